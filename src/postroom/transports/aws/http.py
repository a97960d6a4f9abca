"""HTTP/1.1 on a bare asyncio protocol: one request, one answer, connections kept alive.

It knows no redirects, no cookies, no compression, no proxies and no retries. Answers are parsed by llhttp
(``httptools``); anything that is not one whole and valid answer to the request that is under way ends the connection.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, cast

import httptools

from postroom.tasks import home_context, is_cancelled
from postroom.transports.aws.clean import CLEAN

MAX_ANSWER: Final = 32 * 1024 * 1024
"""Bytes of one answer: ten messages are at most 1 MiB of text, escaped at most six times as long, with attributes."""

_BUFFER: Final = 64 * 1024
_LATE: Final = 0.1
"""Seconds by which a timer is late when the loop did not run: asyncio runs it before it reads what came meanwhile."""
_GRACE: Final = 1.0
"""Seconds to read an answer that may be in the socket already."""
_MOMENTS: Final = 2
"""How often a request gets them: a machine that is short of CPU may stand still again."""


class NoAnswer(Exception):
    """No whole answer came. The request may have taken effect all the same.

    Attributes:
        stale: the connection had been idle and failed without a byte of an answer. The other side had closed it,
            most likely: it says nothing about the path.
    """

    def __init__(self, reason: str, *, stale: bool = False) -> None:
        super().__init__(reason)
        self.stale = stale


class Answer(NamedTuple):
    """The status and the body of an answer."""

    status: int
    body: bytes


class HttpConnection(asyncio.BufferedProtocol):
    """One connection, for one request at a time. Created by ``HttpPool``.

    It reads into a buffer of its own: asyncio would otherwise make one of 256 KiB for every read, twice with TLS.
    """

    __slots__ = (
        "_buffer",
        "_context",
        "_due",
        "_lost",
        "_moments",
        "_parser",
        "_parts",
        "_size",
        "_timeout",
        "_timer",
        "_transport",
        "_used",
        "_waiter",
        "idle_since",
    )

    def __init__(self, lost: Callable[["HttpConnection"], None]) -> None:
        self._lost = lost
        self._context = home_context()
        self._buffer = memoryview(bytearray(_BUFFER))
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._timeout = 0.0
        self._moments = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._used = False
        self.idle_since: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether another request may be made on it."""
        return self._transport is not None and self._waiter is None and not self._transport.is_closing()

    async def exchange(self, request: bytes, *, timeout: float) -> Answer:
        """Make one request and return its answer. Who cancels it must abort the connection.

        Time in which the loop did not run does not count: an answer that is in the socket by then is read, since its
        messages would be hidden until their visibility timeout.

        Raises:
            NoAnswer: it did not come whole within ``timeout`` seconds, or is not HTTP; the connection is closed.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or not self.usable:
            raise NoAnswer("the connection is closed or busy", stale=True)
        waiter: asyncio.Future[Answer] = loop.create_future()
        self._waiter = waiter
        self._size = 0
        self._timeout, self._moments = timeout, _MOMENTS
        self._due = due = loop.time() + timeout
        # One timer for many requests: nearly every answer comes in time, and a timer costs as much as its parsing.
        if self._timer is None or self._timer.when() > due:
            self._set_timer(due)
        # After the timer: a peer that never reads must not hold this call without a limit.
        self._transport.write(request)
        try:
            return await waiter
        finally:
            self._used = True

    def abort(self) -> None:
        """Close it at once, also where a forked child has it, too: SQS would serve a long poll that has no reader."""
        if self._transport is None:
            return
        if (shared := self._transport.get_extra_info("socket")) is not None:
            with suppress(OSError), socket.fromfd(shared.fileno(), shared.family, shared.type) as own:
                own.shutdown(socket.SHUT_RDWR)
        self._transport.abort()

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._time_is_up, context=self._context)

    def _time_is_up(self) -> None:
        """Fail. But where the loop stood still, or an answer has begun, what is in the socket is read first."""
        self._timer = None
        if self._waiter is None:
            return
        late = asyncio.get_running_loop().time() - self._due
        if late < 0.0:  # a later request waits
            self._set_timer(self._due)
        elif self._moments and (late >= _LATE or self._size):
            self._moments -= 1
            self._due += late + min(self._timeout, _GRACE)
            self._set_timer(self._due)
        else:
            self._fail(f"no whole answer within {self._timeout:g} s")

    def _fail(self, reason: str) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(NoAnswer(reason, stale=self._used and self._size == 0))
        self.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to read to."""
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what came."""
        self._size += nbytes
        # Before the parser: it would keep all of it.
        if self._size > MAX_ANSWER:
            self._fail(f"an answer of more than {MAX_ANSWER} bytes")
            return
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"not HTTP: {type(error).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._fail(f"the connection was lost: {type(exc).__name__}" if exc else "the connection was closed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None
        self._lost(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Refuse an answer that no call waits for: it would be taken for the answer to the next request."""
        if self._waiter is None:
            self.abort()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Hand over the answer."""
        parts, self._parts = self._parts, []
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # "continue" and the like precede the answer
            return
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(Answer(status, parts[0] if len(parts) == 1 else b"".join(parts)))
        if not self._parser.should_keep_alive():
            self.abort()


class HttpPool:
    """Connections to one host. The caller bounds how many requests it makes at once.

    Args:
        host, port: where to connect.
        tls: the context for TLS; None for plain HTTP.
        connect_timeout: seconds to connect, TLS included.
        timeout: seconds from a request to the end of its answer.
        idle: seconds after which an unused connection is not used again.
    """

    __slots__ = (
        "_closed",
        "_connect_timeout",
        "_dials",
        "_gone",
        "_host",
        "_idle",
        "_idle_limit",
        "_live",
        "_port",
        "_timeout",
        "_tls",
    )

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        connect_timeout: float,
        timeout: float,
        idle: float = 12.0,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._idle_limit = idle
        self._idle: deque[HttpConnection] = deque()
        self._live: set[HttpConnection] = set()
        self._dials: set[asyncio.Task[HttpConnection]] = set()
        self._gone = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._live)

    async def exchange(self, request: bytes) -> Answer:
        """Make one request and return its answer, whatever its status.

        Cancelling it closes its connection; the request may have taken effect.

        Raises:
            NoAnswer: the host could not be reached, or no whole answer came.
        """
        connection = self._take() or await self._connect()
        try:
            answer = await connection.exchange(request, timeout=self._timeout)
        except BaseException:
            # Its answer may still come, and would be taken for that of the next request.
            connection.abort()
            raise
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)  # closed or not: that is seen when it is taken
        return answer

    async def aclose(self) -> None:
        """Close every connection at once; requests under way fail with ``NoAnswer``."""
        self._closed = True
        for dial in self._dials:
            # First: a dial that ends during the rest would leave an open connection behind.
            dial.cancel()
        for connection in tuple(self._live):
            connection.abort()
        # In a loop: a dial that ended meanwhile may have added one more.
        while self._live:
            self._gone.clear()
            await self._gone.wait()

    def _take(self) -> HttpConnection | None:
        oldest = asyncio.get_running_loop().time() - self._idle_limit
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others age, and so the pool shrinks
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> HttpConnection:
        if self._closed:
            raise NoAnswer("the pool is closed")
        # In a clean context: what reads from the connection lives on after the caller, and serves others.
        dial = asyncio.get_running_loop().create_task(self._dial(), name="postroom-connect", context=CLEAN.copy())
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard, context=CLEAN.copy())
        try:
            connection = await dial
        except OSError as error:  # TimeoutError, ssl.SSLError and socket.gaierror are OSErrors
            raise NoAnswer(f"no connection: {type(error).__name__}") from error
        except asyncio.CancelledError:
            # The dial may have ended in the very step in which the caller was cancelled.
            dial.add_done_callback(_abandon, context=CLEAN.copy())
            if is_cancelled():
                raise
            raise NoAnswer("the pool was closed") from None
        if not connection.usable:  # lost again before this task ran, and so already forgotten
            raise NoAnswer("the connection was closed at once")
        return connection

    async def _dial(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_timeout):
            _, connection = await loop.create_connection(
                lambda: HttpConnection(self._forget),
                self._host,
                self._port,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        if connection.usable:  # if not, it was lost again, and is already forgotten
            self._live.add(connection)
        return connection

    def _forget(self, connection: HttpConnection) -> None:
        self._live.discard(connection)
        self._gone.set()


def _abandon(dial: asyncio.Task[HttpConnection]) -> None:
    if not dial.cancelled() and dial.exception() is None:
        dial.result().abort()
