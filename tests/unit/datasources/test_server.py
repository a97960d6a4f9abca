"""Whether a server answers, without a connection of its database."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from postroom.datasources._server import Server
from postroom.resources import is_outage

Answer = Callable[[asyncio.StreamWriter], object]


async def _problem(answer: Answer, *, timeout: float = 5.0, asks: int = 1) -> list[TimeoutError | None]:
    """Ask a server that does so with each who knocks; return what is wrong, and check what it was told."""
    heard: list[bytes] = []
    knocking: set[asyncio.StreamWriter] = set()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocking.add(writer)
        heard.append(await reader.readexactly(8))
        answer(writer)

    listening = await asyncio.start_server(meet, "127.0.0.1", 0)
    try:
        server = Server(timeout, "db-1/acme")
        server.met(_connection(listening))
        problems = await asyncio.gather(*(server.problem() for _ in range(asks)))
    finally:
        listening.close()
        for writer in knocking:
            writer.close()
    assert heard == [b"\x00\x00\x00\x08\x04\xd2\x16\x2f"]  # one question for all who ask at once
    return problems


def _connection(listening: asyncio.Server) -> Any:
    """A connection as asyncpg knows it."""
    name = listening.sockets[0].getsockname()
    return SimpleNamespace(_addr=name, _transport=SimpleNamespace(get_extra_info=lambda _: name))


@pytest.mark.parametrize("answer", [lambda writer: writer.write(b"N"), lambda writer: writer.close()])
async def test_whatever_is_said_is_an_answer(answer: Answer) -> None:
    """Also an end: a server that takes nothing but TLS says no more."""
    assert await _problem(answer, asks=3) == [None] * 3


async def test_silence_is_an_outage() -> None:
    """And the server goes on to count none of the connections."""
    problems = await _problem(lambda _writer: None, timeout=0.05, asks=2)
    assert all(problem is not None and is_outage(problem) for problem in problems)


async def test_a_refusal_is_an_outage() -> None:
    """Nothing listens there now."""
    listening = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    server = Server(5.0, "db-1/acme")
    server.met(_connection(listening))
    listening.close()
    with pytest.raises(TimeoutError, match="does not answer") as raised:
        await server.check()
    assert is_outage(raised.value)


async def test_a_server_whose_place_is_not_known_is_not_asked() -> None:
    """As that of a driver that tells no address."""
    server = Server(5.0, "db-1/acme")
    server.met(object())
    assert await server.check()


def test_a_thread_asks_an_event_loop_that_has_ended_for_nothing() -> None:
    """It has outlived the consumer, and must not hang."""

    async def make() -> Server:
        return Server(5.0, "db-1/acme")

    assert asyncio.run(make()).problem_for_a_thread() is None


async def test_the_event_loops_own_thread_does_not_wait_for_itself() -> None:
    """A pool for threads that is used there blocks it anyway."""
    assert Server(5.0, "db-1/acme").problem_for_a_thread() is None
