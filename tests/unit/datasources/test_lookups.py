"""A name server that does not answer for some tenants keeps no thread that others need."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from postroom.datasources import (
    Provider,
    Registry,
    asyncpg_pool,
    psycopg_connections,
    psycopg_pool,
    psycopg_sync_pool,
    sqlalchemy_engine,
    sqlalchemy_sync_engine,
)
from postroom.datasources._lookups import Lookups
from postroom.redaction import describe

Provide = Callable[..., Provider[Any, Any]]


class NameServer:
    """Answers for no name but its own until the end of the test."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers = threading.Event()

    def ask(self, host: str | bytes, *_: object, **__: object) -> list[Any]:
        """Be ``socket.getaddrinfo``."""
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append((name, threading.current_thread().name))
        if name.startswith("silent"):
            self.answers.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """Ask this one. No thread that asks it stays."""
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.ask)
    yield server
    server.answers.set()
    for thread in threading.enumerate():
        if thread.name == "postroom-lookup":
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    "provide",
    [asyncpg_pool, psycopg_pool, psycopg_connections, sqlalchemy_engine, psycopg_sync_pool, sqlalchemy_sync_engine],
)
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
async def test_silent_names_keep_no_thread_of_the_event_loop(names: NameServer, provide: Provide, scheme: str) -> None:
    """With twenty of them no connection could be made any longer, to SQS neither."""
    if "+" in scheme and provide not in {sqlalchemy_engine, sqlalchemy_sync_engine}:
        pytest.skip("SQLAlchemy's own")
    registry = Registry({str(number): f"{scheme}://app:p@silent-{number}.internal/a" for number in range(20)})
    provider = provide(registry, connect_timeout=0.05)

    async def open_one(tenant: str) -> None:
        with pytest.raises(TimeoutError, match=f"no connection to silent-{tenant}.internal/a was made within") as late:
            async with provider(tenant):
                pass
        in_threads = provide in {psycopg_sync_pool, sqlalchemy_sync_engine}  # libpq looks names up, and does not tell
        assert ("; the name server has not answered" in describe(late.value)) != in_threads

    await asyncio.gather(*(open_one(str(number)) for number in range(20)))
    assert {thread.partition("-")[0] for _, thread in names.asked} == {"postroom"}
    assert await asyncio.to_thread(lambda: "there is one") == "there is one"


async def test_one_thread_asks_for_a_name_however_many_want_it(names: NameServer) -> None:
    """A tenant with a silent name server is tried again and again."""
    lookups = Lookups()
    waiting = [asyncio.create_task(lookups.look_up("silent.internal:5432/a")) for _ in range(9)]
    await asyncio.sleep(0)
    waiting.pop().cancel()
    names.answers.set()
    await asyncio.gather(*waiting)
    assert [name for name, _ in names.asked] == ["silent.internal"]
    await lookups.look_up("silent.internal:5432/a")
    assert len(names.asked) == 2


async def test_a_thread_that_cannot_be_started_keeps_nobody_waiting(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor those who want that name later, when there are threads again."""
    lookups = Lookups()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        await lookups.look_up("db-1.internal:5432/a")
    assert names.asked == []
    await lookups.look_up("db-1.internal:5432/a")
    assert [name for name, _ in names.asked] == ["db-1.internal"]


@pytest.mark.parametrize(
    "place",
    [
        "10.0.0.1:5432/a",
        "[fd00::1]:5432/a",
        "fd00::1/a",
        "/run/postgresql:5432/a",
        "db-1:5432,db-2:5432/a",
        "the database",
        "localhost/tenants/acme.db",
    ],
)
async def test_what_is_no_single_name_is_not_looked_up(names: NameServer, place: str) -> None:
    """An address needs no name server; of several hosts a silent one must leave time for the others."""
    await Lookups().look_up(place)
    assert names.asked == []


@pytest.mark.parametrize("provide", [psycopg_pool, psycopg_connections, sqlalchemy_engine])
async def test_a_name_with_an_address_is_not_looked_up(names: NameServer, provide: Provide) -> None:
    """Libpq's ``hostaddr`` is for where there is no name server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scheme = "postgresql+psycopg" if provide is sqlalchemy_engine else "postgresql"
    dsn = f"{scheme}://app:p@silent.internal:{port}/a?hostaddr=127.0.0.1"
    with pytest.raises((psycopg.OperationalError, DBAPIError), match="refused"):
        async with provide(Registry({"a": dsn}))("a"):
            pass
    assert names.asked == []


@pytest.mark.parametrize("place", ["db-1.internal:5432/a", "db-1.internal/a"])
async def test_what_cannot_be_found_is_left_to_the_driver(names: NameServer, place: str) -> None:
    """It asks again, and says what is wrong."""
    await Lookups().look_up(place)
    assert [name for name, _ in names.asked] == ["db-1.internal"]
