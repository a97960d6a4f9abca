"""The hot path's HTTP: one request, one whole answer, or none; and which connections are used again."""

import asyncio
import errno
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Self
from unittest import mock

import pytest

from postroom.testing.loop import VirtualLoop
from postroom.transports.aws import http
from postroom.transports.aws.http import Answer, HttpPool, NoAnswer
from support.virtual import in_virtual_time

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server on a free port that does on each connection what the test says."""

    def __init__(self, serve: Serve, *, tls: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._tls = tls
        self.connections = 0
        self.gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._run, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self.gone.set()


def answering(*answers: bytes) -> Serve:
    """Answer one request after the other, then close."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readexactly(len(REQUEST))
            writer.write(answer)
        await writer.drain()
        writer.close()

    return serve


async def forever_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request."""
    while True:
        await reader.readexactly(len(REQUEST))
        writer.write(OK)


@asynccontextmanager
async def pool_to(port: int, *, timeout: float = 5.0, idle: float = 12.0) -> AsyncIterator[HttpPool]:
    """Give a pool, closed afterwards with nothing left."""
    pool = HttpPool("127.0.0.1", port, tls=None, connect_timeout=5, timeout=timeout, idle=idle)
    try:
        yield pool
    finally:
        await pool.aclose()
        assert len(pool) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK, Answer(200, b"ok")),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!", Answer(403, b"no!")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n", Answer(200, b"ok")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nTrailer: t\r\n\r\n",
            Answer(200, b"ok"),
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Answer(200, b"ok")),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, Answer(200, b"ok")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Answer(200, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204, b"")),
        (b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", None),
    ],
)
async def test_answers_are_read_whole(answer: bytes, expected: Answer | None) -> None:
    """Lengths, chunks and preliminary answers are understood, whatever the status."""
    async with Server(answering(answer)) as server, pool_to(server.port) as pool:
        if expected is None:
            with pytest.raises(NoAnswer):
                await pool.exchange(REQUEST)
        else:
            assert await pool.exchange(REQUEST) == expected


async def test_an_answer_in_single_bytes_is_read_whole() -> None:
    """However the network cuts it, the answer is the same."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async with Server(serve) as server, pool_to(server.port) as pool:
        assert await pool.exchange(REQUEST) == Answer(200, b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="half a head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{", id="half a body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", id="no last chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a chunk of length zz"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", id="a negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", id="two lengths"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="both lengths"
        ),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="an upgrade"),
        pytest.param(b"SSH-2.0-OpenSSH_9\r\n", id="another protocol"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x46", id="a TLS alert"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\x00c\r\nContent-Length: 2\r\n\r\nok", id="a NUL in a header"),
    ],
)
async def test_what_is_no_whole_answer_is_none(answer: bytes) -> None:
    """Nothing is guessed: half an answer, and what is not HTTP, is no answer, and its connection is gone."""
    async with Server(answering(answer)) as server, pool_to(server.port) as pool:
        with pytest.raises(NoAnswer) as caught:
            await pool.exchange(REQUEST)
        assert not caught.value.stale
        await server.gone.wait()


async def test_an_answer_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that sends more than any SQS can is not listened to any longer."""
    monkeypatch.setattr(http, "MAX_ANSWER", 100_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: " + b"x" * 10_000 + b"\r\n")
            await writer.drain()

    async with Server(serve) as server, pool_to(server.port) as pool:
        with pytest.raises(NoAnswer, match=r"not HTTP|more than 100000 bytes"):
            await pool.exchange(REQUEST)


async def test_a_dripping_answer_ends_at_the_timeout() -> None:
    """The time is for the whole answer: a byte now and then does not buy more of it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.001)

    async with Server(serve) as server, pool_to(server.port, timeout=0.05) as pool:
        with pytest.raises(NoAnswer, match=r"within 0\.05 s"):
            await pool.exchange(REQUEST)
        await server.gone.wait()


@pytest.mark.parametrize("begun", [False, True], ids=["whole", "in parts"])
@in_virtual_time
async def test_an_answer_that_waits_in_the_socket_is_read_after_a_standstill(begun: bool) -> None:
    """After a freeze the loop runs its timers before it reads; a large answer takes several reads."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    connection = http.HttpConnection(lambda _: None)
    connection.connection_made(mock.Mock(is_closing=lambda: False, get_extra_info=lambda _: None))
    asked = asyncio.create_task(connection.exchange(REQUEST, timeout=25), name="request")
    await asyncio.sleep(24)
    if begun:
        read(connection, OK[:10])
        await asyncio.sleep(1)  # the time is up, and the rest comes a moment later
    else:
        loop.block(30)
        await asyncio.sleep(0)  # the timer runs
    loop.call_later(0.5, read, connection, OK[10 if begun else 0 :])
    assert await asked == Answer(200, b"ok")


@in_virtual_time
async def test_a_request_without_an_answer_ends_though_the_loop_stands_still_again_and_again() -> None:
    """Being late is no reason to wait without end."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    connection = http.HttpConnection(lambda _: None)
    connection.connection_made(mock.Mock(is_closing=lambda: False, get_extra_info=lambda _: None))
    asked = asyncio.create_task(connection.exchange(REQUEST, timeout=25), name="request")
    while not asked.done():
        await asyncio.sleep(0.1)
        loop.block(2)
    with pytest.raises(NoAnswer, match="within 25 s"):
        await asked
    assert loop.time() < 35


def read(connection: http.HttpConnection, data: bytes) -> None:
    """Let a connection read some bytes."""
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


async def test_the_time_of_one_request_does_not_end_the_next_one() -> None:
    """An answered request leaves no timer behind that would strike its successor on the same connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        writer.write(OK)
        await reader.readexactly(len(REQUEST))
        await asyncio.sleep(0.1)  # beyond the first one's time
        writer.write(OK)

    async with Server(serve) as server, pool_to(server.port, timeout=0.05) as pool:
        await pool.exchange(REQUEST)
        pool._timeout = 5
        assert await pool.exchange(REQUEST) == Answer(200, b"ok")
        assert server.connections == 1


@pytest.mark.parametrize(("timeout", "ends_at"), [(25, 36), (5, 16), (200, 211)], ids=["same", "shorter", "longer"])
@in_virtual_time
async def test_a_later_request_without_an_answer_ends_at_its_own_time(timeout: float, ends_at: float) -> None:
    """Neither with the timer of the one before it, nor long after it."""
    connection = http.HttpConnection(lambda _: None)
    connection.connection_made(mock.Mock(is_closing=lambda: False, get_extra_info=lambda _: None))
    first = asyncio.create_task(connection.exchange(REQUEST, timeout=25), name="request")
    await asyncio.sleep(1)
    read(connection, OK)
    await first
    await asyncio.sleep(10)
    with pytest.raises(NoAnswer, match=f"within {timeout} s"):
        await connection.exchange(REQUEST, timeout=timeout)
    assert asyncio.get_running_loop().time() == pytest.approx(ends_at, abs=0.001)


async def test_a_connection_takes_one_request_at_a_time() -> None:
    """A second one is refused before anything is written, and does not disturb the first."""
    async with Server(forever_ok) as server, pool_to(server.port) as pool:
        await pool.exchange(REQUEST)
        (connection,) = pool._live
        first = asyncio.create_task(connection.exchange(REQUEST, timeout=5), name="first")
        await asyncio.sleep(0)
        with pytest.raises(NoAnswer, match="closed or busy"):
            await connection.exchange(REQUEST, timeout=5)
        assert await first == Answer(200, b"ok")
        connection.abort()
        with pytest.raises(NoAnswer, match="closed or busy"):
            await connection.exchange(REQUEST, timeout=5)


async def test_connections_are_used_again() -> None:
    """Requests one after the other share a connection; requests at once have one each, and keep them."""
    async with Server(forever_ok) as server, pool_to(server.port) as pool:
        for _ in range(5):
            await pool.exchange(REQUEST)
        assert server.connections == 1
        for _ in range(2):
            await asyncio.gather(*(pool.exchange(REQUEST) for _ in range(4)))
        assert server.connections == 4


async def test_a_connection_that_idled_too_long_is_not_used_again() -> None:
    """SQS may close it at any moment, so it is closed here first."""
    async with Server(forever_ok) as server, pool_to(server.port, idle=-1) as pool:
        await pool.exchange(REQUEST)
        await pool.exchange(REQUEST)
        assert server.connections == 2
        assert len(pool) <= 2


async def test_a_connection_closed_while_idle_is_not_used_again() -> None:
    """What the other side closed is replaced without a failed request."""
    async with Server(answering(OK)) as server, pool_to(server.port) as pool:
        await pool.exchange(REQUEST)
        await server.gone.wait()
        await pool._gone.wait()  # this side has seen it, too
        assert await pool.exchange(REQUEST) == Answer(200, b"ok")
        assert server.connections == 2


async def test_a_used_connection_that_breaks_without_a_byte_is_stale() -> None:
    """A race lost against the other side's idle timeout is told apart from a path that does not work."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        writer.write(OK)
        await reader.readexactly(len(REQUEST))

    async with Server(serve) as server, pool_to(server.port) as pool:
        await pool.exchange(REQUEST)
        with pytest.raises(NoAnswer) as caught:
            await pool.exchange(REQUEST)
        assert caught.value.stale


async def test_a_used_connection_that_breaks_within_an_answer_is_not_stale() -> None:
    """A caller that began to answer was there: that is a failure of the path."""
    async with Server(answering(OK, OK[:-1])) as server, pool_to(server.port) as pool:
        await pool.exchange(REQUEST)
        with pytest.raises(NoAnswer) as caught:
            await pool.exchange(REQUEST)
        assert not caught.value.stale


async def test_a_connection_lost_before_its_use_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss may be told before the one who connected runs again; closing the pool must not wait for it then."""

    async def connect_and_lose(
        factory: Callable[[], http.HttpConnection], *_: object, **__: object
    ) -> tuple[None, Any]:
        connection = factory()
        connection.connection_made(mock.Mock(get_extra_info=lambda _: None))
        connection.connection_lost(None)
        return None, connection

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect_and_lose)
    async with pool_to(1) as pool:
        with pytest.raises(NoAnswer, match="closed at once"):
            await pool.exchange(REQUEST)


@pytest.mark.parametrize("second", [OK, b"HTTP/1.1 500 Evil\r\nContent-Le", b"H", b"garbage"])
async def test_a_second_answer_is_never_taken_for_the_next_one(second: bytes) -> None:
    """Whatever follows an answer ends its connection, so that no request meets another one's answer."""
    hand = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        writer.write(OK + second)
        hand.set()
        await reader.read()

    async with Server(serve) as server, pool_to(server.port) as pool:
        assert await pool.exchange(REQUEST) == Answer(200, b"ok")
        await server.gone.wait()
        assert await pool.exchange(REQUEST) == Answer(200, b"ok")
        assert server.connections == 2


async def test_data_that_nobody_asked_for_ends_an_idle_connection() -> None:
    """An answer that comes while nothing is asked is dropped."""
    go = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        writer.write(OK)
        await go.wait()
        writer.write(OK)
        await reader.read()

    async with Server(serve) as server, pool_to(server.port) as pool:
        await pool.exchange(REQUEST)
        go.set()
        await server.gone.wait()
        assert len(pool) == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_that_is_to_be_closed_is_closed(answer: bytes) -> None:
    """``Connection: close`` and HTTP/1.0 end the connection after the answer."""
    async with Server(answering(answer, answer)) as server, pool_to(server.port) as pool:
        assert await pool.exchange(REQUEST) == Answer(200, b"ok")
        assert await pool.exchange(REQUEST) == Answer(200, b"ok")
        assert server.connections == 2


@asynccontextmanager
async def unanswered() -> AsyncIterator[tuple[Server, HttpPool, "asyncio.Task[Answer]"]]:
    """Make a request that a server has read, and does not answer."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        asked.set()
        await reader.read()

    async with Server(serve) as server, pool_to(server.port) as pool:
        task = asyncio.create_task(pool.exchange(REQUEST), name="request")
        await asked.wait()
        yield server, pool, task


async def test_a_cancelled_request_closes_its_connection() -> None:
    """The answer that still comes must not meet the next request."""
    async with unanswered() as (server, pool, task):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.gone.wait()
        assert len(pool) == 0


async def test_a_cancelled_request_is_over_for_the_server_though_a_forked_child_has_its_connection() -> None:
    """Such as a worker of a process pool: SQS would give messages to a long poll that has no reader."""
    async with unanswered() as (server, _pool, task):
        with closing(_twin_to(server.port)):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.gone.wait()


def _twin_to(port: int) -> socket.socket:
    """Return a second descriptor of the connection to a port, as a child has it."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            twin = socket.fromfd(int(name), socket.AF_INET, socket.SOCK_STREAM)
            with suppress(OSError):
                if twin.getpeername()[1:] == (port,):
                    return twin
            twin.close()
    raise LookupError(port)


async def test_no_descriptor_is_left_where_a_socket_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may refuse to tell the address of one that was shut down, as macOS does."""

    class Socket(socket.socket):
        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002
            if family == -1 and fileno is not None:
                raise OSError(errno.EINVAL, "Invalid argument")
            super().__init__(family, type, proto, fileno)

    async with Server(forever_ok) as server:
        before = len(os.listdir("/dev/fd"))
        async with pool_to(server.port) as pool:
            await pool.exchange(REQUEST)
            monkeypatch.setattr(socket, "socket", Socket)
        await server.gone.wait()
        assert len(os.listdir("/dev/fd")) <= before


async def test_a_request_cancelled_just_as_it_is_answered_leaves_no_connection_behind() -> None:
    """The connection is neither used again nor forgotten open."""
    async with Server(forever_ok) as server, pool_to(server.port) as pool:
        await pool.exchange(REQUEST)
        (connection,) = pool._live
        task = asyncio.create_task(pool.exchange(REQUEST), name="request")
        await asyncio.sleep(0)  # it has written and waits
        connection.get_buffer(-1)[: len(OK)] = OK
        connection.buffer_updated(len(OK))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.gone.wait()


async def test_nobody_there_is_no_answer() -> None:
    """A refused connection is told as such, with its cause."""
    async with Server(forever_ok) as server:
        port = server.port
    async with pool_to(port) as pool:
        with pytest.raises(NoAnswer, match="no connection: ConnectionRefusedError") as caught:
            await pool.exchange(REQUEST)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_server_that_hangs_up_at_once_is_no_answer() -> None:
    """It does not matter whether the request could still be written."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with Server(serve) as server, pool_to(server.port) as pool:
        for _ in range(20):
            with pytest.raises(NoAnswer):
                await pool.exchange(REQUEST)


async def test_closing_fails_what_is_under_way() -> None:
    """``aclose`` does not wait: requests under way get no answer, and every connection is gone."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        asked.set()
        await reader.read()

    async with Server(serve) as server, pool_to(server.port) as pool:
        task = asyncio.create_task(pool.exchange(REQUEST), name="request")
        await asked.wait()
        await pool.aclose()
        with pytest.raises(NoAnswer):
            await task


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    try:
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command, which makes the certificate, is not installed")
    path = folder / "both"
    path.write_text((folder / "key").read_text() + (folder / "cert").read_text())
    return path


def server_tls(certificate: Path) -> ssl.SSLContext:
    """Return the server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_tls_is_spoken_to_whom_is_trusted(certificate: Path) -> None:
    """Over TLS the same answers come over the same kept connections."""
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with Server(forever_ok, tls=server_tls(certificate)) as server:
        pool = HttpPool("127.0.0.1", server.port, tls=trusting, connect_timeout=5, timeout=5)
        for _ in range(3):
            assert await pool.exchange(REQUEST) == Answer(200, b"ok")
        assert server.connections == 1
        await pool.aclose()


@pytest.mark.parametrize("trusts", [True, False])
async def test_a_certificate_that_does_not_fit_is_no_answer(certificate: Path, *, trusts: bool) -> None:
    """Neither a stranger's certificate nor one for another name gets a request."""
    context = ssl.create_default_context(cafile=str(certificate) if trusts else None)
    host = "localhost" if trusts else "127.0.0.1"
    async with Server(forever_ok, tls=server_tls(certificate)) as server:
        pool = HttpPool(host, server.port, tls=context, connect_timeout=5, timeout=5)
        with pytest.raises(NoAnswer, match="no connection: SSLCertVerificationError"):
            await pool.exchange(REQUEST)
        await pool.aclose()


async def test_a_handshake_that_never_ends_ends_at_the_connect_timeout() -> None:
    """A port that takes connections and says nothing is given up."""

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with Server(serve) as server:
        context = ssl.create_default_context()
        pool = HttpPool("127.0.0.1", server.port, tls=context, connect_timeout=0.05, timeout=5)
        with pytest.raises(NoAnswer, match="no connection: TimeoutError"):
            await pool.exchange(REQUEST)
        await pool.aclose()
