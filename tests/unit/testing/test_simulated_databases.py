"""Simulated tenant databases: what is committed stays, whatever the caller was told, and trouble is what it says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from postroom.datasources import UnknownTenant
from postroom.testing.databases import (
    ConnectionDropped,
    SimulatedDatabases,
    Trouble,
    UnknownDatabase,
    WrongPassword,
)
from support.virtual import in_scene


@asynccontextmanager
async def with_tenant() -> AsyncIterator[SimulatedDatabases]:
    """Make the database of tenant ``a``."""
    databases = SimulatedDatabases(Random(1))
    databases.create("a")
    yield databases


async def write(databases: SimulatedDatabases, *keys: str, once: bool = False) -> None:
    """Write keys in one transaction."""
    async with databases.connect("a") as connection, connection.transaction() as transaction:
        for key in keys:
            (transaction.insert_once if once else transaction.insert)(key)


@in_scene(with_tenant)
async def test_a_commit_is_all_or_nothing(databases: SimulatedDatabases) -> None:
    """Rows appear together; a transaction that raises leaves none."""
    await write(databases, "1", "2")
    async with databases.connect("a") as connection:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is a transaction
            async with connection.transaction() as transaction:
                transaction.insert("3")
                raise ZeroDivisionError
    assert [row.key for row in databases.rows("a")] == ["1", "2"]
    assert databases.connections() == []


@in_scene(with_tenant)
async def test_an_insert_once_is_there_once(databases: SimulatedDatabases) -> None:
    """A plain insert is there as often as it was committed."""
    for _ in range(2):
        await write(databases, "once", once=True)
        await write(databases, "often")
    assert sorted(row.key for row in databases.rows("a")) == ["often", "often", "once"]


@in_scene(with_tenant)
async def test_a_dropped_connection_may_or_may_not_have_committed(databases: SimulatedDatabases) -> None:
    """DROPPING: some fail before the commit, some after it; the rows tell which."""
    databases.trouble("a", Trouble.DROPPING)
    told = 0
    for number in range(60):
        try:
            await write(databases, str(number))
        except ConnectionDropped:
            continue
        told += 1
    there = len(databases.rows("a"))
    assert told < there < 60


@in_scene(with_tenant)
async def test_a_failover_rolls_back_what_is_not_committed(databases: SimulatedDatabases) -> None:
    """And every connection of that tenant is gone."""
    async with databases.connect("a") as connection:
        with pytest.raises(ConnectionDropped):  # noqa: PT012 - it is raised where the block ends
            async with connection.transaction() as transaction:
                transaction.insert("1")
                databases.fail_over("a")
        assert databases.connections("a") == []
    assert databases.rows("a") == []


@in_scene(with_tenant)
async def test_a_black_hole_answers_when_it_is_healed(databases: SimulatedDatabases) -> None:
    """Until then a connect waits."""
    databases.trouble("a", Trouble.BLACK_HOLE)
    writing = asyncio.create_task(write(databases, "1"), name="write")
    await asyncio.sleep(100)
    assert not writing.done()
    databases.trouble("a", Trouble.NONE)
    await writing
    assert len(databases.rows("a")) == 1


@in_scene(with_tenant)
async def test_who_may_not_connect_is_told_why(databases: SimulatedDatabases) -> None:
    """Unknown, refused, or with an old password."""
    old = databases.password("a")
    databases.rotate("a")
    with pytest.raises(UnknownDatabase):
        async with databases.connect("b"):
            pass
    with pytest.raises(WrongPassword):
        async with databases.connect("a", password=old):
            pass
    databases.trouble("a", Trouble.REFUSING)
    with pytest.raises(ConnectionRefusedError):
        async with databases.connect("a"):
            pass


@in_scene(with_tenant)
async def test_a_closed_connection_takes_nothing(databases: SimulatedDatabases) -> None:
    """A lease that was given back is over."""
    async with databases.connect("a") as connection:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        async with connection.transaction() as transaction:
            transaction.insert("1")
    assert databases.rows("a") == []


@in_scene(with_tenant)
async def test_a_broken_deployment_fails_each_new_connection(databases: SimulatedDatabases) -> None:
    """With the error that it was given, until it is healed; connections that exist go on."""
    async with databases.connect("a") as connection:
        databases.misconfigure("a", lambda: KeyError("BILLING_DB_HOST"))
        with pytest.raises(KeyError):
            await write(databases, "1")
        async with connection.transaction() as transaction:
            transaction.insert("2")
    databases.misconfigure("a", None)
    await write(databases, "3")
    assert [row.key for row in databases.rows("a")] == ["2", "3"]


def test_a_database_that_does_not_exist_is_an_unknown_tenant() -> None:
    """A pool tells it from an outage by that."""
    assert issubclass(UnknownDatabase, UnknownTenant)
