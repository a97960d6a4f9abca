"""The HTTP server by the byte: framing, keep-alive, limits, and clients that go away."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest

from postroom.local import LocalServer
from postroom.local.http import (
    MAX_BODY,
    MAX_HEAD,
    Chunks,
    Connections,
    HttpConnection,
    HttpError,
    Response,
    parse_head,
)


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one response."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def call(self, action: str, request: object, *, split: int = 0) -> tuple[int, dict[str, object]]:
        """Call an action, the request in pieces of ``split`` bytes if that is not 0."""
        data = message(action, request)
        for start in range(0, len(data), split or len(data)):
            self.writer.write(data[start : start + (split or len(data))])
            await self.writer.drain()
            await asyncio.sleep(0)
        status, _, body = await self.answer()
        return status, json.loads(body or b"{}")


def message(action: str, request: object, *extra: str) -> bytes:
    """Write a JSON request."""
    body = json.dumps(request).encode()
    lines = ["POST / HTTP/1.1", "Host: localhost:1", f"X-Amz-Target: AmazonSQS.{action}", *extra]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """Run a server with one queue."""
    async with LocalServer() as server:
        server.broker.create_queue("q")
        yield server


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    """Open a raw connection to it."""
    client = await connect(server)
    yield client
    client.writer.close()
    await client.writer.wait_closed()


async def connect(server: LocalServer) -> Client:
    """Open a raw connection."""
    return Client(*await asyncio.open_connection("127.0.0.1", int(server.endpoint_url.rpartition(":")[2])))


URL = "http://localhost:1/000000000000/q"
SEND = {"QueueUrl": URL, "MessageBody": "x"}
POLL = {"QueueUrl": URL, "WaitTimeSeconds": 20}


@pytest.mark.parametrize("split", [0, 1, 7])
async def test_kept_alive(client: Client, split: int) -> None:
    """Many requests go over one connection, however their bytes are cut."""
    for _ in range(3):
        status, answer = await client.call("SendMessage", SEND, split=split)
        assert (status, answer["MD5OfMessageBody"]) == (200, "9dd4e461268c8034f5c8564e155c67a6")


async def test_pipelined(client: Client) -> None:
    """Requests sent at once are answered one by one, in order, also behind a long poll."""
    client.writer.write(message("ReceiveMessage", POLL) + message("GetQueueUrl", {"QueueName": "q"}))
    client.writer.write(message("ListQueues", {}))
    await client.writer.drain()
    other, port = client, client.writer.get_extra_info("peername")[1]
    sender = Client(*await asyncio.open_connection("127.0.0.1", port))
    assert (await sender.call("SendMessage", SEND))[0] == 200
    answers = [json.loads((await other.answer())[2]) for _ in range(3)]
    assert [list(answer) for answer in answers] == [["Messages"], ["QueueUrl"], ["QueueUrls"]]
    sender.writer.close()


async def test_poll_whose_client_is_gone(server: LocalServer, client: Client) -> None:
    """A connection that closes while its poll waits takes no message with it."""
    gone = await connect(server)
    gone.writer.write(message("ReceiveMessage", POLL))
    while not server.broker.polls:
        await asyncio.sleep(0)
    gone.writer.close()
    while server.broker.polls:
        await asyncio.sleep(0)
    await client.call("SendMessage", SEND)
    _, answer = await client.call("ReceiveMessage", POLL)
    assert len(answer["Messages"]) == 1  # type: ignore[arg-type]


async def test_chunked(client: Client) -> None:
    """A chunked body is put together, with extensions and trailers passed over."""
    head = "POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: AmazonSQS.SendMessage\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps(SEND).encode()
    for part in (head.encode(), b"5;ext=1\r\n" + body[:5] + b"\r\n", f"{len(body) - 5:x}\r\n".encode() + body[5:]):
        client.writer.write(part)
        await client.writer.drain()
        await asyncio.sleep(0)
    client.writer.write(b"\r\n0\r\nTrailer: x\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert (await client.call("ListQueues", {}))[0] == 200


async def test_expect_continue(client: Client) -> None:
    """A client that asks first is told to go on."""
    data = message("SendMessage", SEND, "Expect: 100-continue")
    head, _, body = data.partition(b"\r\n\r\n")
    client.writer.write(head + b"\r\n\r\n")
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.writer.write(body)
    assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("first", "extra", "expected"),
    [
        ("HTTP/1.1", "Connection: close\r\n", "close"),
        ("HTTP/1.0", "", "close"),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", "keep-alive"),
        ("HTTP/1.1", "", "keep-alive"),
    ],
)
async def test_connection_header(client: Client, first: str, extra: str, expected: str) -> None:
    """The connection is closed after the answer if the client wants that, or speaks HTTP/1.0."""
    client.writer.write(f"GET /health {first}\r\n{extra}\r\n".encode())
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (200, expected)
    if expected == "close":
        assert await client.reader.read() == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (f"POST / HTTP/1.1\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode(), 413),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    ],
)
async def test_not_http(client: Client, data: bytes, status: int) -> None:
    """What is not a request, or too large, is answered with the fitting status, and the connection is closed."""
    client.writer.write(data)
    answered, headers, _ = await client.answer()
    assert (answered, headers["connection"]) == (status, "close")
    assert await client.reader.read() == b""


async def test_a_client_that_speaks_tls_is_refused_at_once(
    server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It would wait for a handshake until its own timeout. The log says what to write, and says it once a minute."""
    port = int(server.endpoint_url.rpartition(":")[2])
    hello, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(hello, outgoing, server_hostname="localhost").do_handshake()
    handshake = outgoing.read()
    for data in (handshake, handshake[:1]):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        assert b"write http:// in the endpoint URL" in await reader.read()
        writer.close()
        await writer.wait_closed()
    assert [record.getMessage() for record in caplog.records] == [
        "A client speaks https to this server, which speaks http: write http:// in its endpoint URL"
    ]


async def test_an_answer_to_head_has_no_body(client: Client) -> None:
    """The client would take it for the beginning of the next answer."""
    for request, expected in (("HEAD / ", 405), ("HEAD /health ", 200)):
        client.writer.write(f"{request}HTTP/1.1\r\n\r\n".encode())
        assert await client.answer() == (expected, ANY, b"")
    client.writer.write(b"GET /health HTTP/1.1\r\n\r\n")
    assert (await client.answer())[0] == 200


async def test_pages(client: Client) -> None:
    """There is a page for humans, one for health checks, and nothing for other methods."""
    for request, expected in (("GET / ", 200), ("GET /health ", 200), ("DELETE / ", 405), ("GET /?Action=No ", 400)):
        client.writer.write(f"{request}HTTP/1.1\r\n\r\n".encode())
        status, _, body = await client.answer()
        assert status == expected
        if "health" in request:
            assert json.loads(body)["queues"] == 1


async def test_a_defect_is_an_answer(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in the broker is logged and answered with status 500; the connection lives on."""
    monkeypatch.setattr(server.broker.engine, "send", None)
    status, answer = await client.call("SendMessage", SEND)
    assert (status, answer["__type"]) == (500, "com.amazonaws.sqs#InternalFailure")
    assert "the local broker failed in SendMessage" in caplog.text
    assert (await client.call("ListQueues", {}))[0] == 200


async def test_client_that_does_not_read(server: LocalServer) -> None:
    """A client that sends and sends while its poll waits is slowed down, not buffered without end."""
    client = await connect(server)
    client.writer.write(message("ReceiveMessage", {"QueueUrl": URL, "WaitTimeSeconds": 20}))
    while not server.broker.polls:
        await asyncio.sleep(0)
    client.writer.write(message("SendMessage", {"QueueUrl": URL, "MessageBody": "x" * 900_000}) * 12)
    for _ in range(20):
        await asyncio.sleep(0)
    [connection] = server._connections._open
    assert len(connection._buffer) < 2_000_000
    server.broker.send("q", "wake")
    statuses = [(await client.answer())[0] for _ in range(13)]
    assert statuses == [200] * 13
    client.writer.close()


def test_an_incomplete_chunk_is_waited_for() -> None:
    """Half of a chunked body is no body yet, wherever it is cut."""
    whole = b"3;a=b\r\nabc\r\n0\r\nTrailer: x\r\n\r\n"
    for cut in range(len(whole)):
        chunks, buffer = Chunks(), bytearray(whole[:cut])
        assert chunks.feed(buffer) is None
        buffer += whole[cut:] + b"next"
        assert (chunks.feed(buffer), bytes(buffer)) == (b"abc", b"next")


@pytest.mark.parametrize("raw", [b"x" * 2_000, b"-1\r\n", b"\r\n", b"3\r\nabcd\r\n", b"0x1\r\n", b"+3\r\n", b"1_0\r\n"])
def test_no_chunk(raw: bytes) -> None:
    """What is no chunk is refused."""
    with pytest.raises(HttpError) as caught:
        Chunks().feed(bytearray(raw))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "line", [b"a: " + b"x" * 1_000 + b"\r\n", b"a: " + b"x" * 60_000 + b"\r\n", b"\n" * 999, b"a" * 13]
)
def test_trailers_are_bounded_as_headers_are(line: bytes) -> None:
    """Trailers without an end are refused before they take more memory than headers, however they are cut."""
    chunks, buffer = Chunks(), bytearray(b"0\r\n")

    def send_on() -> None:
        while chunks.feed(buffer) is None:
            assert len(buffer) <= MAX_HEAD + len(line)
            buffer.extend(line)

    with pytest.raises(HttpError) as caught:
        send_on()
    assert caught.value.status == 431


def test_framing_of_chunks_is_not_kept() -> None:
    """A body in chunks of one byte, each with an extension, takes the memory of the body alone."""
    chunks, buffer = Chunks(), bytearray()
    for _ in range(1_000):
        buffer += b"1;" + b"e" * 900 + b"\r\nx\r\n"
        assert chunks.feed(buffer) is None
        assert not buffer
    buffer += b"0\r\n\r\n"
    assert chunks.feed(buffer) == b"x" * 1_000


def test_a_chunked_body_is_bounded() -> None:
    """A chunk that would make the body larger than allowed is refused before it comes."""
    chunks, buffer = Chunks(), bytearray(b"1\r\nx\r\n%x\r\n" % MAX_BODY)
    with pytest.raises(HttpError) as caught:
        chunks.feed(buffer)
    assert caught.value.status == 413


def test_header_names_in_lower_case() -> None:
    """Header names are case-insensitive, values keep theirs."""
    head = parse_head(b"GET / HTTP/1.1\r\nX-AMZ-Target:  A.B \r\nEmpty:")
    assert head.headers == {b"x-amz-target": b"A.B", b"empty": b""}


class Pipe(asyncio.Transport):
    """A transport with a client that takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.reading = True

    def write(self, data: Any) -> None:
        """Note it."""
        self.written.append(bytes(data))

    def pause_reading(self) -> None:
        """Note it."""
        self.reading = False

    def resume_reading(self) -> None:
        """Note it."""
        self.reading = True


def test_a_client_that_takes_no_answers_gets_no_more() -> None:
    """While answers pile up nothing is answered, and nothing is read past a bound; then it goes on where it was."""
    pipe = Pipe()
    connection = HttpConnection(lambda _request, _respond: Response(200, "", b"x"), Connections(), lambda: "now")
    connection.connection_made(pipe)
    ask = b"GET / HTTP/1.1\r\n\r\n"
    connection.data_received(ask)
    connection.pause_writing()
    for _ in range(2 * MAX_HEAD // len(ask)):
        connection.data_received(ask)
    assert (len(pipe.written), pipe.reading) == (1, False)
    connection.resume_writing()
    assert (len(pipe.written), pipe.reading) == (1 + 2 * MAX_HEAD // len(ask), True)


def test_a_transport_that_is_no_subclass_of_asyncios_is_served() -> None:
    """Other event loops, such as uvloop, have classes of their own."""
    written: list[bytes] = []
    transport: Any = SimpleNamespace(write=written.append)
    connection = HttpConnection(lambda _request, _respond: Response(200, "", b"x"), Connections(), lambda: "now")
    connection.connection_made(transport)
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert len(written) == 1
