"""A provider that is mapped keeps what it knows of its resources."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import postroom.datasources
from postroom.datasources import Provider
from postroom.datasources._server import Server
from postroom.datasources._waiting import Waiting
from postroom.errors import ConfigurationError
from postroom.testing.loop import run_virtual
from support.kept import is_kept


class Resource:
    """Says whether it is open and well."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = True
        self.well = True


class Unhashable:
    """What a user may make of a resource: no hash, no attributes."""

    __slots__ = ("resource",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, resource: Resource) -> None:
        self.resource = resource


@asynccontextmanager
async def _enter(context: str) -> AsyncGenerator[Resource]:
    resource = Resource(context)
    yield resource
    resource.open = False


async def _check(resource: Resource) -> bool:
    if not resource.well:
        raise ConnectionError(resource.name)
    return True


PLAIN = Provider(_enter, weight=3, check=_check)


async def test_weight_check_and_closing_are_those_of_the_resource() -> None:
    """Twice mapped, too."""
    provider = PLAIN.map(Unhashable).map(lambda made: [made])
    assert provider.weight == 3
    assert provider.check is not None
    async with provider("a") as first, provider("b") as second:
        assert first[0].resource.name == "a"
        assert await provider.check(first)
        second[0].resource.well = False
        assert await provider.check(first)
        with pytest.raises(ConnectionError, match="b"):
            await provider.check(second)
    assert not first[0].resource.open


async def test_one_object_made_of_two_resources_is_as_well_as_both() -> None:
    """A function may always return the same."""
    made: list[Resource] = []

    def add(resource: Resource) -> list[Resource]:
        made.append(resource)
        return made

    provider = PLAIN.map(add)
    assert provider.check is not None
    async with provider("a"):
        async with provider("b") as both:
            both[1].well = False
            with pytest.raises(ConnectionError, match="b"):
                await provider.check(both)
        assert await provider.check(both)


async def test_a_provider_without_a_check_has_none_mapped() -> None:
    """A pool must not believe that it can check."""
    assert Provider(_enter, weight=2).map(Unhashable).check is None


async def test_a_function_that_raises_closes_the_resource() -> None:
    """Opening has failed."""
    seen: list[Resource] = []

    def fail(resource: Resource) -> None:
        seen.append(resource)
        raise KeyError

    with pytest.raises(KeyError):
        async with PLAIN.map(fail)("a"):
            pass
    assert len(seen) == 1


async def _later(resource: Resource) -> Resource:
    return resource


async def _yields(resource: Resource) -> AsyncGenerator[Resource]:
    yield resource


@pytest.mark.parametrize("function", [_later, _yields])
def test_an_asynchronous_function_is_refused(function: Any) -> None:
    """What has to be awaited or closed is a provider's work."""
    with pytest.raises(ConfigurationError, match="write one around this provider"):
        PLAIN.map(function)


async def test_an_asynchronous_function_behind_a_plain_one_is_refused_at_opening() -> None:
    """Handlers would get a coroutine, and only the first of them could await it."""
    with pytest.raises(ConfigurationError, match="write one around this provider"):
        async with PLAIN.map(lambda resource: _later(resource=resource))("a"):
            pass


class _Own(AsyncSession):
    """A session of the user's."""


@pytest.mark.parametrize("function", [lambda _: AsyncSession(), lambda _: _Own(), lambda _: Session()])
async def test_a_session_for_all_handlers_is_refused_at_opening(function: Any) -> None:
    """One handler would commit what another has failed in."""
    with pytest.raises(
        ConfigurationError, match=r"made one (Async)?Session, and all .*: write map\(async_sessionmaker\)"
    ):
        async with PLAIN.map(function)("a"):
            pass


async def test_a_mapped_provider_makes_a_pool_that_counts_its_weight() -> None:
    """As if it were not mapped."""
    async with PLAIN.map(Unhashable).pool() as pool, pool.lease("a"):
        assert pool.statistics().weight == 3


class TestWaiting:
    """All connections of a tenant are in use."""

    def test_a_wait_of_three_seconds_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """With the tenant, and with what to do; again when it happens again, a minute later."""

        async def main() -> None:
            waiting = Waiting(("acme", "eu"), 4, 10.0, Server(5.0, "db-1/acme"))

            async def wait(seconds: float) -> None:
                with waiting.one(lambda: True):
                    await asyncio.sleep(seconds)

            await asyncio.gather(*(wait(8 + number) for number in range(5)))
            await wait(5)
            await asyncio.sleep(60)
            await wait(5)

        with caplog.at_level(logging.WARNING, "postroom.datasources"):
            run_virtual(main())
        assert len(caplog.messages) == 2
        assert caplog.messages[0].startswith(
            "Tenant acme:eu: all 4 connections are in use, with 5 callers waiting for one, the first for 3 s; each "
            "fails after 10 s. A handler must give its connection back"
        )
        assert "with 1 caller waiting" in caplog.messages[1]

    async def test_who_has_waited_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each use of a connection waits, if only for a moment."""
        monkeypatch.setattr("postroom.datasources._waiting.SAID_AFTER", 3600.0)
        waiting = Waiting("acme", 4, None, Server(5.0, "db-1/acme"))

        async def work() -> None:
            with waiting.one(lambda: True):
                await asyncio.sleep(0)

        assert not await is_kept(work)

    def test_shorter_waits_are_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """However many they are: a busy tenant always has some."""

        async def main() -> None:
            waiting = Waiting("acme", 4, None, Server(5.0, "db-1/acme"))

            async def wait() -> None:
                for _ in range(20):
                    with waiting.one(lambda: True):
                        await asyncio.sleep(1)

            await asyncio.gather(*(wait() for _ in range(5)))

        run_virtual(main())
        assert not caplog.messages

    def test_a_connection_that_is_made_slowly_is_another_matter(self, caplog: pytest.LogCaptureFixture) -> None:
        """Not all are in use: the database is slow, or down."""

        async def main() -> None:
            with Waiting("acme", 4, None, Server(5.0, "db-1/acme")).one(lambda: False):
                await asyncio.sleep(60)

        run_virtual(main())
        assert not caplog.messages


@pytest.mark.parametrize("wrong", [-1, float("nan"), "5", b"", object()])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (postroom.datasources.asyncpg_pool, "idle"),
        (postroom.datasources.asyncpg_pool, "acquire_timeout"),
        (postroom.datasources.psycopg_pool, "connect_timeout"),
        (postroom.datasources.psycopg_connections, "acquire_timeout"),
        (postroom.datasources.sqlalchemy_engine, "close_timeout"),
    ],
)
def test_a_time_that_is_none_is_refused_where_it_is_written(make: Any, name: str, wrong: object) -> None:
    """Not found out by each tenant's opening."""
    with pytest.raises(ConfigurationError, match=rf"{name}=\.\.\.\) takes seconds"):
        make(lambda _tenant: "postgresql://h/db", **{name: wrong})


@pytest.mark.parametrize("add", ["asyncpg_inbox", "psycopg_inbox", "sqlalchemy_inbox", "psycopg_sync_inbox"])
def test_an_inbox_is_added_to_a_provider(add: str) -> None:
    """What says where the databases are is the inner function's."""
    with pytest.raises(ConfigurationError, match="takes Provider: write"):
        getattr(postroom.datasources, add)(lambda _tenant: "postgresql://h/db")


def test_resources_of_one_contexts_scope_are_not_shared_by_key() -> None:
    """Every tenant would work in the part of the database that the first one has."""

    @asynccontextmanager
    async def enter(context: str) -> AsyncGenerator[str]:
        yield context

    scoped = Provider(enter, scoped=True)
    scoped.pool()
    for provider in (scoped, scoped.map(str.upper)):
        with pytest.raises(ConfigurationError, match="leave out key="):
            provider.pool(key=lambda _context: "all")
