"""A relay follows a tenant to its new database, also where nothing tells it of the move."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from postroom.datasources import Provider
from postroom.errors import UnknownTenant
from postroom.outbox.rounds import Counters, Rounds
from postroom.outbox.run import Run
from postroom.resources import ResourcePool
from support.virtual import in_virtual_time


class Registry:
    """Says where each tenant's database is, and counts how often it was asked."""

    def __init__(self) -> None:
        self.places = {"acme": "db-1", "beta": "db-1"}
        self.asked = 0
        self.trouble: Callable[[], str] | None = None
        self.hangs = False
        self.open: list[str] = []

    @asynccontextmanager
    async def database(self, tenant: str) -> AsyncGenerator[str]:
        """Open the database that a tenant has now: its place stands for it."""
        place = self.places[tenant]
        self.open.append(place)
        try:
            yield place
        finally:
            self.open.remove(place)

    async def place(self, tenant: str) -> str:
        """Say where a tenant is."""
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        return self.places[tenant] if self.trouble is None else self.trouble()


class Looks:
    """Rounds that find nothing, and remember in which database they looked."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.found: list[tuple[str, str]] = []

    async def once(self, database: object, tenant: str) -> bool:
        """Do one round."""
        self.found.append((tenant, str(database)))
        return False

    def since(self, count: int, tenant: str = "acme") -> set[str]:
        """Return the databases of a tenant that were looked at after the first so many looks."""
        return {database for each, database in self.found[count:] if each == tenant}


@asynccontextmanager
async def relay(registry: Registry, *, interval: float = 1.0, place: bool = True) -> AsyncGenerator[Looks]:
    """Relay the outboxes of two tenants from a pool that no consumer knows."""
    provider = Provider(registry.database, place=registry.place if place else None)
    looks = Looks()

    async def tenants() -> list[str]:
        return ["acme", "beta"]

    async with ResourcePool(cast("Any", provider)) as pool:
        run = Run[Any](pool, tenants, cast("Rounds", looks), interval)
        run.begin(4)
        yield looks
        await run.end()


@in_virtual_time
async def test_rows_of_a_database_that_a_tenant_was_moved_to_are_found(caplog: pytest.LogCaptureFixture) -> None:
    """Within seconds, and the old one is closed; the log says so once, of that tenant."""
    registry = Registry()
    async with relay(registry) as looks:
        await asyncio.sleep(30)
        assert looks.since(0) == {"db-1"}
        registry.places["acme"] = "db-2"
        await asyncio.sleep(10)
        count = len(looks.found)
        await asyncio.sleep(30)
        assert looks.since(count) == {"db-2"}
        assert looks.since(count, "beta") == {"db-1"}
        assert registry.open == ["db-1", "db-2"]
    said = [record.getMessage() for record in caplog.records if "is at db-2 now" in record.getMessage()]
    assert len(said) == 1
    assert "tenant acme" in said[0]
    assert "no longer at db-1" in said[0]


@in_virtual_time
async def test_a_move_between_the_answer_and_the_open_is_found_out() -> None:
    """What the first answer named is what later ones are compared with, not what was opened a moment later."""
    registry = Registry()
    opened = registry.database

    @asynccontextmanager
    async def late(tenant: str) -> AsyncGenerator[str]:
        async with opened(tenant) as database:
            registry.places["acme"] = "db-2"  # as if it were moved while a replica starts
            yield database

    registry.database = late  # type: ignore[method-assign]
    async with relay(registry) as looks:
        await asyncio.sleep(10)
        count = len(looks.found)
        await asyncio.sleep(30)
        assert looks.since(count) == {"db-2"}


def _unknown() -> str:
    raise UnknownTenant("no such tenant")


def _cancelled() -> str:
    raise asyncio.CancelledError


@pytest.mark.parametrize("trouble", [_unknown, _cancelled, None])
@in_virtual_time
async def test_a_registry_that_does_not_answer_costs_no_look(trouble: Callable[[], str] | None) -> None:
    """It raises whatever it likes, or hangs; the relay goes on, and follows when it answers again."""
    registry = Registry()
    async with relay(registry) as looks:
        await asyncio.sleep(10)
        registry.trouble, registry.hangs = trouble, trouble is None
        registry.places["acme"] = "db-2"
        before = len(looks.found)
        await asyncio.sleep(60)
        assert len(looks.found) > before + 60
        assert looks.since(before) == {"db-1"}
        registry.trouble, registry.hangs = None, False
        await asyncio.sleep(10)
        count = len(looks.found)
        await asyncio.sleep(10)
        assert looks.since(count) == {"db-2"}


@in_virtual_time
async def test_a_move_before_the_first_answer_is_found_out() -> None:
    """What was opened meanwhile may be anywhere: a registry of one's own is slow when it is asked first."""
    registry = Registry()
    registry.hangs = True
    async with relay(registry) as looks:
        await asyncio.sleep(4)
        assert looks.since(0) == {"db-1"}
        registry.places["acme"] = "db-2"
        registry.hangs = False
        await asyncio.sleep(10)
        count = len(looks.found)
        await asyncio.sleep(30)
        assert looks.since(count) == {"db-2"}
        assert sorted(registry.open) == ["db-1", "db-2"]


@pytest.mark.parametrize(("interval", "most"), [(0.1, 42), (1.0, 42), (20.0, 6)])
@in_virtual_time
async def test_the_registry_is_asked_far_less_often_than_the_outbox(interval: float, most: int) -> None:
    """Once in five seconds, or in five looks if that is longer, for each of two tenants."""
    registry = Registry()
    async with relay(registry, interval=interval) as looks:
        await asyncio.sleep(100)
        assert 2 <= registry.asked <= most
        assert len(looks.found) >= 8


@in_virtual_time
async def test_a_provider_that_tells_no_place_is_relayed_from_where_it_was() -> None:
    """There is nothing to compare."""
    registry = Registry()
    async with relay(registry, place=False) as looks:
        await asyncio.sleep(20)
        assert looks.since(0) == {"db-1"}
        assert registry.asked == 0
