"""The local broker over HTTP, so that boto3, aiobotocore and the ``aws`` command line work unchanged."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from email.utils import formatdate
from types import TracebackType
from typing import Any, Final, Self

from postroom.checking import check_kind, check_optional, listed, shown
from postroom.errors import ClosedError, ConfigurationError, NotOpenError
from postroom.local.front import Access, Front
from postroom.local.hosts import HostPolicy
from postroom.local.http import Connections, HttpConnection
from postroom.local.inprocess import LocalBroker

LOOPBACK = ("127.0.0.1", "::1")
_LAST_PORT: Final = 65_535
_GRACE = 2.0
"""Seconds for a client to take the rest of an answer when the server stops."""


class LocalServer:
    """SQS over HTTP on this machine, for the time of an ``async with``.

        async with LocalServer() as server:
            client = boto3.client("sqs", **server.client_options)

    Leaving it ends long polls (they get nothing), finishes answers under way and closes connections. A broker that
    is passed is entered as well; it is the caller's otherwise.

    Args:
        broker: the broker to serve; a new one by default.
        host: the address, or addresses, to listen on. Loopback by default: there is no authentication.
        port: the port; 0 takes a free one.
        access: is called with one line of the request log per request.
        allow_hosts: more names by which clients may reach it, beside addresses, loopback names, this machine's name
            and names that are private by their form; see ``HostPolicy``.

    Raises:
        ConfigurationError: an argument cannot work. Entering it: it is open already, or its broker is open in another
            event loop.
    """

    def __init__(
        self,
        broker: LocalBroker | None = None,
        *,
        host: str | Sequence[str] = LOOPBACK,
        port: int = 0,
        access: Callable[[Access], None] | None = None,
        allow_hosts: Sequence[str] = (),
    ) -> None:
        if broker is not None:
            check_kind("LocalServer(broker)", broker, LocalBroker, "LocalServer(LocalBroker(seed=1))")
        given: Any = port
        if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= _LAST_PORT:
            raise ConfigurationError(f"LocalServer(port=...) takes a port, or 0 for a free one; got {shown(port)}")
        check_optional("LocalServer(access=...)", "(Access)", access)
        hosts = (host,) if isinstance(host, str) else listed("LocalServer(host=...)", 'host="127.0.0.1"', host)
        # An empty text means all interfaces to a socket, and this server has no authentication.
        if not hosts or not all(isinstance(each, str) and each.strip() for each in hosts):
            text = 'LocalServer(host=...) takes addresses: write host="127.0.0.1", or "0.0.0.0" for all interfaces'
            raise ConfigurationError(f"{text}; got {shown(host)}")
        listed("LocalServer(allow_hosts=...)", 'allow_hosts=["sqs.example"]', allow_hosts)
        self.broker: LocalBroker = broker or LocalBroker()
        self._hosts = hosts
        self._port = port
        self._access = access
        self._host_policy = HostPolicy(allow_hosts)
        self._stack: AsyncExitStack | None = None
        self._servers: list[asyncio.Server] = []
        self._connections = Connections()
        self._url: str | None = None
        self._closed = self._entered = False
        self._date = (0, "")

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("this LocalServer is open already: make one for each `async with`")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.broker)
            self._entered = True
            stack.push_async_callback(self._stop)
            await self._listen()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()

    @property
    def endpoint_url(self) -> str:
        """The URL to give to clients. Raises ``NotOpenError`` before ``async with``, ``ClosedError`` after it."""
        if self._url is None:
            if self._closed:
                raise ClosedError("this LocalServer was closed: its `async with` is over")
            raise NotOpenError("this LocalServer is not open: write `async with LocalServer() as server:`")
        return self._url

    @property
    def client_options(self) -> dict[str, str]:
        """Keyword arguments for ``boto3.client("sqs", ...)`` and for aiobotocore's ``create_client``."""
        return {
            "endpoint_url": self.endpoint_url,
            "region_name": self.broker.scope.region,
            "aws_access_key_id": "local",
            "aws_secret_access_key": "local",
        }

    async def _listen(self) -> None:
        front = Front(self.broker, lambda: self.endpoint_url, self._access, self._host_policy)
        loop = asyncio.get_running_loop()

        def connection() -> HttpConnection:
            return HttpConnection(front, self._connections, self._http_date)

        port = self._port
        for index, host in enumerate(self._hosts):
            try:
                server = await loop.create_server(connection, host, port, backlog=1024)
            except OSError as error:
                error.filename = host  # that of several which is meant; the name resolver's own error has none
                if index == 0 or self._hosts is not LOOPBACK:
                    raise
                continue  # a machine without IPv6
            self._servers.append(server)
            # The first address decides the port, and names the server; the others listen at the same one.
            if index == 0:
                port = server.sockets[0].getsockname()[1]
                name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - to show, not to bind
                self._url = f"http://{name}:{port}"

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        # Long polls get nothing, at once: so their connections become idle, and close.
        for poll in list(self.broker.polls):
            poll.end()
        await self._connections.close(_GRACE)
        for server in self._servers:
            # Last: since Python 3.12 it waits for all connections.
            await server.wait_closed()
        self._servers.clear()
        self._url = None
        self._closed, self._entered = True, False

    def _http_date(self) -> str:
        now = int(asyncio.get_running_loop().time())
        if self._date[0] != now:
            self._date = (now, formatdate(usegmt=True))
        return self._date[1]
