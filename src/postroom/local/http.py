"""Just enough of an HTTP/1.1 server: requests in, responses out, connections kept alive. No routes, no middleware.

A request is answered in the very call that read its last byte, without a task of its own; only a long poll is
answered later. That is why it is here: a web framework before the same broker takes up to twice the CPU
(``docs/local-broker.md`` has the figures).
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol, cast

from postroom.log_fields import Log, Step

_log = Log("postroom.local", Step.RECEIVE)

MAX_HEAD = 64 * 1024
_ONCE = frozenset({b"content-length", b"transfer-encoding"})
MAX_LINE = 1024
"""Bytes of the line before a chunk, with its extensions."""
MAX_BODY = 16 * 1024 * 1024
_MAX_DIGITS = 20
"""Digits of a Content-Length, at most."""
_TLS = b"\x16"
"""How a client begins that speaks TLS: with a handshake (RFC 8446, 5.1). No method of HTTP does."""
_QUIET = 60.0
"""Seconds between two lines of the log."""
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
            413: "Payload Too Large", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
            501: "Not Implemented", 503: "Service Unavailable"}  # fmt: skip


class Request(NamedTuple):
    """One request. Names of headers are in lower case."""

    method: str
    target: str
    headers: dict[bytes, bytes]
    body: bytes


class Response(NamedTuple):
    """One response. ``headers`` are complete lines, with their line ends."""

    status: int
    headers: str
    body: bytes


class Pending(Protocol):
    """An answer that will be given later."""

    def cancel(self) -> None:
        """Forget it: the client is gone."""
        ...


Respond = Callable[[Response], None]
Handler = Callable[[Request, Respond], Response | Pending]


class HttpError(Exception):
    """What came is not a request that this server understands. The connection is closed after the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Head(NamedTuple):
    """The head of a request, as far as it is used."""

    method: str
    target: str
    headers: dict[bytes, bytes]
    length: int | None
    """Bytes of the body; None for a chunked one."""
    keep_alive: bool


_lines: dict[bytes, tuple[bytes, bytes]] = {}
"""Header lines as they were read: clients send most of theirs with every request, byte for byte."""
_MAX_LINES = 1_000
_MAX_REMEMBERED = 300
_NEVER_TWICE = frozenset(
    {b"authorization", b"amz-sdk-invocation-id", b"x-amz-date", b"x-amz-security-token", b"x-amzn-trace-id"}
)
"""Headers that differ from request to request, or that are nothing to remember."""


def parse_head(raw: bytes) -> _Head:
    """Read the request line and the headers, without the empty line that ends them. Raises HttpError."""
    lines = raw.split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise HttpError(400, "not an HTTP/1 request")
    headers: dict[bytes, bytes] = {}
    known = _lines
    for line in lines[1:]:
        pair = known.get(line)
        name, value = pair if pair is not None else _header(line)
        if name in headers and name in _ONCE:
            raise HttpError(400, "two lengths")  # the next request could be smuggled between them
        headers[name] = value
    connection = headers.get(b"connection", b"").lower()
    keep_alive = connection == b"keep-alive" if words[2] == b"HTTP/1.0" else b"close" not in connection
    try:
        method, target = words[0].decode("ascii"), words[1].decode("ascii")
    except UnicodeDecodeError:
        raise HttpError(400, "a target must be percent-encoded") from None
    return _Head(method, target, headers, _length(headers), keep_alive)


def _header(line: bytes) -> tuple[bytes, bytes]:
    """Read one header line, and remember it if it may come again."""
    name, colon, value = line.partition(b":")
    # A space before the colon, or a folded line: others read these differently, and a request could be smuggled.
    if not colon or not name or name[-1:] in b" \t" or name[:1] in b" \t":
        raise HttpError(400, "not a header line")
    pair = name.lower(), value.strip()
    if len(line) <= _MAX_REMEMBERED and pair[0] not in _NEVER_TWICE:
        # Rare, and cheaper than an order of use: a client's lines are here again after its next request.
        if len(_lines) >= _MAX_LINES:
            _lines.clear()
        _lines[line] = pair
    return pair


def _length(headers: dict[bytes, bytes]) -> int | None:
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked" or b"content-length" in headers:
            raise HttpError(501, "the only transfer encoding here is chunked")
        return None
    text = headers.get(b"content-length", b"0")
    if not text.isdigit():
        raise HttpError(400, "not a length")
    # By its digits first: Python reads no number of more than some thousand.
    if len(text) > _MAX_DIGITS or int(text) > MAX_BODY:
        raise HttpError(413, "the body is too large")
    return int(text)


class Chunks:
    """Reads a chunked body as it arrives, and keeps nothing of it but the body.

    The framing is bounded as the headers are: lines of chunks, their extensions, and the trailers, which are dropped.
    """

    def __init__(self) -> None:
        self._body = bytearray()
        self._left = 0
        """Bytes of the present chunk that are missing."""
        self._ends = False
        """Whether the line end of a chunk is missing."""
        self._trailers: int | None = None
        """Bytes of trailers so far; None before them."""

    def feed(self, buffer: bytearray) -> bytes | None:
        """Take from the front of a buffer; return the body once it is complete. Raises HttpError."""
        at = 0
        try:
            while True:
                part = buffer[at : at + self._left]
                self._body += part
                self._left -= len(part)
                at += len(part)
                line = None if self._left else self._line(buffer, at)
                if line is None:
                    return None
                at += len(line) + 2
                if self._trailers is not None and not line:
                    return bytes(self._body)
                self._take(line)
        finally:
            # Once per call: cutting the front off after each chunk would copy the rest each time.
            del buffer[:at]

    def _line(self, buffer: bytearray, at: int) -> bytes | None:
        """Return the line that starts here; None while it is incomplete."""
        limit = MAX_LINE if self._trailers is None else MAX_HEAD - self._trailers
        end = buffer.find(b"\r\n", at, at + limit + 2)
        if end >= 0:
            return bytes(buffer[at:end])
        if len(buffer) - at < limit + 2:
            return None
        raise HttpError(400, "not a chunk") if self._trailers is None else HttpError(431, "the trailers are too large")

    def _take(self, line: bytes) -> None:
        if self._trailers is not None:
            self._trailers += len(line) + 2
        elif not self._ends:
            self._size(line)
        elif line:
            raise HttpError(400, "not a chunk")
        else:
            self._ends = False

    def _size(self, line: bytes) -> None:
        digits = line.partition(b";")[0].strip()
        if not digits or digits.strip(b"0123456789abcdefABCDEF"):
            raise HttpError(400, "not a chunk")
        size = int(digits, 16)
        if size > MAX_BODY - len(self._body):
            raise HttpError(413, "the body is too large")
        if size:
            self._left = size
            self._ends = True
        else:
            self._trailers = 0


class Connections:
    """The open connections of a server."""

    def __init__(self) -> None:
        self._open: set[HttpConnection] = set()
        self._none_left: asyncio.Future[None] | None = None
        self._told_of_tls = -_QUIET

    def add(self, connection: "HttpConnection") -> None:
        """Note one that was opened."""
        self._open.add(connection)

    def discard(self, connection: "HttpConnection") -> None:
        """Note one that was closed."""
        self._open.discard(connection)
        if not self._open and self._none_left is not None and not self._none_left.done():
            self._none_left.set_result(None)

    def tell_of_tls(self) -> None:
        """Log that a client speaks TLS; once a minute, as it tries again."""
        now = monotonic()
        if now - self._told_of_tls >= _QUIET:
            self._told_of_tls = now
            _log.warning("A client speaks https to this server, which speaks http: write http:// in its endpoint URL")

    async def close(self, grace: float) -> None:
        """Close all: each after the answer that it is giving; after ``grace`` seconds whatever they do."""
        for connection in list(self._open):
            connection.close_when_idle()
        if not self._open:
            return
        self._none_left = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([self._none_left], timeout=grace)
        finally:
            for connection in list(self._open):
                # Also when the stop itself is cancelled: no connection outlives the server.
                connection.abort()


class HttpConnection(asyncio.Protocol):
    """One connection. Requests that arrive while one is being answered wait for their turn."""

    def __init__(self, handler: Handler, connections: "Connections", date: Callable[[], str]) -> None:
        self._handler = handler
        self._connections = connections
        self._date = date
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._chunks: Chunks | None = None
        self._pending: Pending | None = None
        self._answering = False
        self._clogged = False
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Forget a long poll when its client is gone: what it would have got goes to the next one."""
        self._connections.discard(self)
        self._transport = None
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    def data_received(self, data: bytes) -> None:
        """Take in bytes, and answer what is complete."""
        if not (self._buffer or self._head or self._answering or self._clogged) and self._at_once(data):
            return
        self._buffer += data
        if self._answering or self._clogged:
            if len(self._buffer) > MAX_HEAD and self._transport is not None:
                self._transport.pause_reading()  # a client that does not wait for answers waits here
            return
        self._work()

    def pause_writing(self) -> None:
        """Answer no more while the client does not take its answers: they would pile up here."""
        self._clogged = True

    def resume_writing(self) -> None:
        """Go on with what arrived meanwhile."""
        self._clogged = False
        if not self._answering:
            self._go_on()

    def close_when_idle(self) -> None:
        """Close after the answer that is being made; at once if there is none."""
        self._closing = True
        if not self._answering and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close without sending what is left."""
        if self._transport is not None:
            self._transport.abort()

    def _at_once(self, data: bytes) -> bool:
        """Answer what arrived if it is one whole request, as nearly always, without buffering it."""
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
        if end < 0:
            return False
        try:
            head = parse_head(data[:end])
        except HttpError as error:
            self._refuse(error)
            return True
        # Chunks, a part of a request, several requests, or a client that waits for 100 Continue: the long way.
        if head.length is None or len(data) != end + 4 + head.length or b"expect" in head.headers:
            return False
        self._closing = self._closing or not head.keep_alive
        self._answer(Request(head.method, head.target, head.headers, data[end + 4 :]))
        return True

    def _work(self) -> None:
        try:
            while self._transport is not None and not (self._answering or self._clogged or self._closing):
                request = self._next_request()
                if request is None:
                    break
                self._answer(request)
        except HttpError as error:
            self._refuse(error)

    def _refuse(self, error: HttpError) -> None:
        """Say what is wrong with what came, and close."""
        self._closing = True
        # Where the next request begins is unknown after one that cannot be read.
        self._buffer.clear()
        self._write(Response(error.status, "Content-Type: text/plain\r\n", f"{error}\n".encode()))

    def _next_request(self) -> Request | None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if self._buffer.startswith(_TLS):
                    self._connections.tell_of_tls()
                    raise HttpError(400, "this server speaks http, not https: write http:// in the endpoint URL")
                if len(self._buffer) > MAX_HEAD:
                    raise HttpError(431, "the headers are too large")
                return None
            if end > MAX_HEAD:
                raise HttpError(431, "the headers are too large")
            # Kept while the body arrives, so that 100 Continue is said once.
            self._head = parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if self._head.headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = self._head
        body = self._body(head.length)
        if body is None:
            return None
        self._head = self._chunks = None
        self._closing = self._closing or not head.keep_alive
        return Request(head.method, head.target, head.headers, body)

    def _body(self, length: int | None) -> bytes | None:
        """Take a body out of what arrived; return None while it is incomplete."""
        if length is None:
            self._chunks = self._chunks or Chunks()
            return self._chunks.feed(self._buffer)
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _answer(self, request: Request) -> None:
        self._answering = True
        answer = self._handler(request, self._late)
        if isinstance(answer, Response):
            self._answering = False
            # A body would be taken for the beginning of the next answer.
            self._write(answer._replace(body=b"") if request.method == "HEAD" else answer)
        elif self._answering:  # it may have been given while the handler ran
            self._pending = answer

    def _late(self, response: Response) -> None:
        """Give the answer that was pending, then go on with what arrived meanwhile."""
        self._pending = None
        self._answering = False
        if self._transport is None:
            return
        self._write(response)
        if not self._clogged:
            self._go_on()

    def _go_on(self) -> None:
        if self._buffer and not self._closing and self._transport is not None:
            self._transport.resume_reading()
            self._work()

    def _write(self, response: Response) -> None:
        if self._transport is None:
            return
        status, headers, body = response
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\n{headers}"
            f"Date: {self._date()}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'close' if self._closing else 'keep-alive'}\r\n\r\n"
        )
        # In one piece: one system call, and for most answers one packet.
        self._transport.write(head.encode("latin-1") + body)
        if self._closing:
            self._transport.close()
