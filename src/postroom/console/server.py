"""A small HTTP/1.1 server for one ASGI application, in the consumers' own event loop: ``postroom run --console``."""

import asyncio
import logging
import secrets
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import unquote

from postroom.checking import check_text, listed
from postroom.console.app import Allow, ConsoleRequest, console
from postroom.consumer import Consumer
from postroom.errors import ConfigurationError
from postroom.integrations.asgi import AsgiApp
from postroom.integrations.listening import Listener, check_port
from postroom.local.hosts import HostPolicy
from postroom.log_fields import Log, Step
from postroom.redaction import log_error

_log = Log("postroom.console", Step.HEALTH)

_PATIENCE: Final = 10.0
"""Seconds that a request may take to arrive."""
_LONGEST_HEAD: Final = 16_384
_LONGEST_BODY: Final = 65_536
_MOST: Final = 50
"""Connections at once; more are closed unanswered."""
_CLOSE: Final = 1.0
"""Seconds for connections to end when the server stops."""


SHORTEST_TOKEN: Final = 12
"""Characters of a token: fewer could be guessed."""


def allow_token(token: str) -> Allow:
    """Return an ``allow=`` that knows operators by a shared token: ``Authorization: Bearer TOKEN``.

    The operator's name is what the request says in ``X-Postroom-Operator``; "operator" without it.

    Raises:
        ConfigurationError: the token has fewer than 12 characters.
    """
    check_text("allow_token(token)", token, "allow_token(os.environ['CONSOLE_TOKEN'])")
    if len(token) < SHORTEST_TOKEN:
        text = f"the console's token has at least {SHORTEST_TOKEN} characters: with it a tenant can be stopped"
        raise ConfigurationError(text)

    def allow(request: ConsoleRequest) -> str | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), token.encode()):
            return None
        return request.headers.get("x-postroom-operator", "").strip() or "operator"

    return allow


class ConsoleServer(Listener):
    """Serves the console while its block is entered.

        run(orders, beside=ConsoleServer(orders, port=8081))

    Where a web framework serves HTTP anyway, mount ``console(...)`` there instead.

    Args:
        consumers: what is shown.
        port: where it listens; 0 for a free port, which ``port`` then says.
        host: the address to listen at. This machine only, unless you say otherwise: it has no TLS.
        allow: names the operator of a request, see ``console``; ``allow_token`` is one.
        allow_hosts: more names by which browsers may reach it, beside addresses and private names.

    Raises:
        ConfigurationError: an argument cannot work; when it is entered, the port is taken.
    """

    def __init__(
        self,
        *consumers: Consumer[Any, Any],
        port: int,
        host: str = "127.0.0.1",
        allow: Allow | None = None,
        allow_hosts: tuple[str, ...] = (),
    ) -> None:
        port = check_port("ConsoleServer", port)
        super().__init__("the console", host, port, most=_MOST, longest_head=_LONGEST_HEAD, grace=_CLOSE)
        self._address = host
        self._app: AsgiApp = console(*consumers, allow=allow)
        names = listed("ConsoleServer(allow_hosts=...)", 'allow_hosts=["desk.example"]', allow_hosts)
        self._hosts = HostPolicy(names, option="--console-host")

    @property
    def url(self) -> str:
        """The address of the page."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"http://{host}:{self.port}/"

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        await self.listen()
        _log.info("Console at %s", self.url)
        return self

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request with the page, or with what the page asks for."""
        try:
            await self._answer(reader, writer)
            await writer.drain()
        except (TimeoutError, OSError, EOFError, ValueError):
            raise
        except Exception as error:
            log_error(_log, logging.ERROR, "The console failed on a request", error=error)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = _Exchange(reader, writer)
        try:
            async with asyncio.timeout(_PATIENCE):
                scope = await exchange.read_head()
        except asyncio.LimitOverrunError:
            text = f"the head of a request has at most {_LONGEST_HEAD} bytes"
            exchange.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
            return
        refusal = self._hosts.refusal(dict(scope["headers"]))
        if refusal is not None:
            exchange.refuse(HTTPStatus.FORBIDDEN, refusal)
            return
        await self._app(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._left = 0
        self._asked = False

    async def read_head(self) -> dict[str, Any]:
        """Read up to the body, and return the ASGI scope. Raises ``ValueError`` for what is no request."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        method, target, version = first.split(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError(version)
        headers: list[tuple[bytes, bytes]] = []
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise ValueError(line)
            headers.append((name.strip().lower(), value.strip()))
        # Bounded before it is read. One byte more than fits is enough for the application to refuse it.
        self._left = min(int(dict(headers).get(b"content-length", b"0")), _LONGEST_BODY + 1)
        path, _, query = target.partition(b"?")
        peer = self._writer.get_extra_info("peername")
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": method.decode("latin-1"), "path": unquote(path.decode("latin-1")), "raw_path": path,
            "query_string": query, "root_path": "", "headers": headers, "client": peer[:2] if peer else None,
        }  # fmt: skip

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the body, and after it the end of the connection."""
        if not self._asked:
            self._asked = True
            async with asyncio.timeout(_PATIENCE):
                body = await self._reader.readexactly(self._left)
            return {"type": "http.request", "body": body, "more_body": False}
        # One request for each connection: what else comes is read only to notice that the client is gone.
        while await self._reader.read(1024):
            pass
        return {"type": "http.disconnect"}

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Write a part of the answer. Raises ``OSError`` when the client is gone."""
        if event["type"] == "http.response.start":
            status = HTTPStatus(event["status"])
            lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
            lines += [name + b": " + value for name, value in event["headers"]]
            self._writer.write(b"\r\n".join([*lines, b"connection: close", b"\r\n"]))
            return
        # A write to a closed transport is dropped in silence: the stream would go on for a viewer that has left.
        if self._writer.transport.is_closing():
            raise ConnectionResetError("the viewer is gone")
        self._writer.write(event.get("body", b""))
        await self._writer.drain()

    def refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer with a text."""
        body = f"{text}\n".encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}"
        self._writer.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + body)
