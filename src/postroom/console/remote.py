"""The HTTP API of a console, as a client: for the command line, and for moving tenants over several processes."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import urlencode, urlsplit

from postroom.checking import check_text
from postroom.display import present_user
from postroom.errors import ConfigurationError, PostroomError

_LONGEST: Final = 64 * 1024 * 1024
_PATIENCE: Final = 10.0


class ConsoleError(PostroomError):
    """A console did not do what it was asked to, or does not answer."""


class _Line:
    """The connections of one order, made in a thread, and hung up in the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[http.client.HTTPConnection] = []
        self._hung_up = False

    def take(self, connection: http.client.HTTPConnection) -> None:
        """Connect, unless it was hung up. Raises ``OSError``.

        Once it was, nothing more may leave: a pause that was called off would come after the way back.
        """
        with self._lock:
            self._check()
            self._connections.append(connection)
        # Outside of the lock: it may take seconds, and the event loop must not wait for it when it hangs up.
        connection.connect()
        with self._lock:
            self._check()  # hung up while it connected: there was no socket yet that could be shut down

    def _check(self) -> None:
        if self._hung_up:
            raise ConnectionAbortedError("the order was called off")

    def hang_up(self) -> None:
        """End what is on the line, or the thread, and with it the end of the program, would wait for the answer."""
        with self._lock:
            self._hung_up = True
        for connection in self._connections:
            # Shut down, not closed: a close does not wake the thread that reads, and the descriptor's number may belong
            # to another socket by then. Not connected yet, or just closed: then there is nothing to end.
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)


class RemoteConsole:
    """The console of another process.

    Args:
        url: its address, such as ``http://127.0.0.1:8081/``.
        token: what it wants to see before it lets anyone act.
        operator: who acts; by default the user of this process.

    Raises:
        ConfigurationError: the address is none.
    """

    def __init__(self, url: str, *, token: str | None = None, operator: str | None = None) -> None:
        check_text("RemoteConsole(url)", url, 'RemoteConsole("http://127.0.0.1:8081/")')
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"{url!r} is not a URL, such as http://127.0.0.1:8081/")
        self.url: str = url if url.endswith("/") else f"{url}/"
        self._headers = {"X-Postroom-Operator": operator or present_user()}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __repr__(self) -> str:
        return f"RemoteConsole({self.url!r})"

    def state(self, *, top: int, search: str = "") -> dict[str, Any]:
        """Return one look. Blocks.

        Raises:
            ConsoleError: it does not answer.
            ConfigurationError: it does not take the question.
        """
        return self._call("GET", f"state?{urlencode({'top': top, 'search': search})}")

    def act(self, order: Mapping[str, Any], *, patience: float = _PATIENCE) -> dict[str, Any]:
        """Carry out an action. Blocks.

        Args:
            order: ``action``, ``tenant``, ``reason``, and what the action takes.
            patience: seconds until the answer has to be here.

        Raises:
            ConsoleError: it does not answer, or could not do it.
            ConfigurationError: there is something to change: the order, or the token.
        """
        return self._act(order, patience, _Line())

    async def order(self, order: Mapping[str, Any], *, patience: float = _PATIENCE) -> dict[str, Any]:
        """Carry out an action, as ``act`` does, without blocking. Cancelled, it hangs up; the action goes on there."""
        line = _Line()
        try:
            return await asyncio.to_thread(self._act, order, patience, line)
        except asyncio.CancelledError:
            line.hang_up()
            raise

    def _act(self, order: Mapping[str, Any], patience: float, line: _Line) -> dict[str, Any]:
        token = self._call("GET", "me", line=line)["token"]
        headers = {"Content-Type": "application/json", "X-Postroom-Token": token}
        body = json.dumps(order)
        return self._call("POST", "actions", body=body, headers=headers, patience=patience, line=line)

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float = _PATIENCE,
        line: _Line | None = None,
    ) -> dict[str, Any]:
        """Ask. Not by urllib: a proxy that is set for AWS must not be asked about this machine."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(cast("str", parts.hostname), parts.port, timeout=patience)
        try:
            if line is not None:
                line.take(connection)
            connection.request(method, parts.path + path, body=body, headers={**self._headers, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read(_LONGEST)
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            raise ConsoleError(f"no console answers at {self.url}: {why}. See `postroom run --console`") from error
        finally:
            connection.close()
        return self._said(answer.status, content)

    def _said(self, status: int, content: bytes) -> dict[str, Any]:
        try:
            said: Any = json.loads(content)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise ConsoleError(f"{self.url} is not a console: it answered {status}")
        found = cast("dict[str, Any]", said)
        if status != http.client.OK:
            kind = ConfigurationError if status in {400, 403} else ConsoleError
            raise kind(str(found.get("error", status)))
        return found
