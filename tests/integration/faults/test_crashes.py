"""``kill -9`` of the consumer at random times while a producer runs, then the ledger: nothing lost or mixed up.

Without an inbox, each effect happens at least once; with one, exactly once. POSTROOM_KILLS says how many kills (2 in
the test suite).
"""

import asyncio
import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from integration.workers import Site
from postroom.datasources import postgres_inbox, tenant_file
from postroom.testing.postgres import PostgresServer

KILLS = int(os.environ.get("POSTROOM_KILLS", "2"))
PATIENCE = 40.0 if KILLS <= 2 else 300.0
"""Seconds that a worker may take to come to work: the imports of SQLAlchemy take long on a busy machine."""
TENANTS = ("tenant-a", "tenant-b", "tenant-c")
pytestmark = [pytest.mark.postgres, pytest.mark.timeout(120 + 120 * KILLS)]


@dataclass(frozen=True)
class Storage:
    """The tenants' databases: what tells the worker of them, and what is in one."""

    name: str
    rows: Callable[[str], list[str]]
    environment: dict[str, str] = field(default_factory=dict[str, str])


def _rows_of(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row for (row,) in connection.execute("SELECT order_id FROM orders")]


@contextlib.contextmanager
def _on(server: PostgresServer, name: str, driver: str) -> Iterator[Storage]:
    schema = f"{postgres_inbox().schema} CREATE TABLE orders (order_id text)"
    for tenant in TENANTS:
        server.create_database(f"{name}-{tenant}", schema=schema)
    yield Storage(
        driver,
        lambda tenant: server.execute("SELECT order_id FROM orders", database=f"{name}-{tenant}").splitlines(),
        {"DSN": server.dsn(name)},
    )
    for tenant in TENANTS:
        server.drop_database(f"{name}-{tenant}")


DRIVERS = ["asyncpg", "psycopg", "sqlalchemy", "sqlalchemy-session", "psycopg-sync", "sqlalchemy-sync"]
IN_THE_SUITE = ["asyncpg"]
"""The others take as long and show the same: they are tried when kills are asked for."""


@pytest.fixture(params=IN_THE_SUITE if KILLS <= 2 else ["plain", "sqlite", "sqlite-sync", *DRIVERS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """Files without an inbox, files with one, and PostgreSQL with one, over each driver."""
    match request.param:
        case "plain":
            yield Storage("plain", lambda tenant: _rows_of(tmp_path / f"{tenant}.db"))
        case "sqlite" | "sqlite-sync" as driver:
            yield Storage(driver, lambda tenant: _rows_of(tenant_file(tmp_path, tenant)))
        case driver:
            with _on(request.getfixturevalue("postgres_server"), f"crash-{tmp_path.name}", driver) as storage:
                yield storage


async def _produce(site: Site, sent: list[tuple[str, str]], rng: Random) -> None:
    while True:
        tenant = rng.choice(TENANTS)
        order = f"{tenant}-{len(sent)}"
        site.send(order, tenant=tenant, seconds=rng.choice((0.0, 0.01, 0.03)))
        sent.append((tenant, order))
        await asyncio.sleep(0.03)


async def _crash(site: Site, settings: dict[str, str], rng: Random, number: int) -> None:
    """Let a worker come to work, and kill it at a random time."""
    before = sum(line.startswith("done") for line in site.diary())
    async with site.worker(**settings) as worker:
        await site.diary_has(before + 1 + number % 3, "done", seconds=PATIENCE)
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        worker.kill()
        await worker.communicate()
    assert worker.returncode == -9


async def test_killed_at_random_times_it_loses_nothing(site: Site, storage: Storage) -> None:
    """Everything is in its own tenant's database, and nothing else: once with the inbox."""
    rng = Random(2026)
    settings = {"VISIBILITY": "2", "STORAGE": storage.name, **storage.environment}
    sent: list[tuple[str, str]] = []
    producing = asyncio.create_task(_produce(site, sent, rng), name="produce")
    for number in range(KILLS):
        await _crash(site, settings, rng, number)
    producing.cancel()
    await asyncio.wait([producing])
    async with site.worker(**settings) as worker:
        await site.empty(seconds=60 + 20 * KILLS)
        worker.terminate()
        await worker.communicate()
    assert worker.returncode == 0
    _audit(site, storage, sent)


def _audit(site: Site, storage: Storage, sent: list[tuple[str, str]]) -> None:
    rows = {tenant: Counter(storage.rows(tenant)) for tenant in TENANTS}
    for tenant in TENANTS:
        assert set(rows[tenant]) == {order for owner, order in sent if owner == tenant}
    twice = sum(count > 1 for counter in rows.values() for count in counter.values())
    duplicates = sum(line.startswith("duplicate") for line in site.diary())
    text = f"{storage.name}: {KILLS} kills, {len(sent)} orders, 0 lost, 0 astray, {twice} effects twice"
    print(f"{text}, {duplicates} duplicates kept off by the inbox")
    if storage.name == "plain":
        assert twice <= 60 * KILLS  # at most what ran or waited to be acknowledged at each kill
    else:
        assert twice == 0
        assert duplicates > 0 or KILLS < 10  # so many kills without one would have proved nothing
