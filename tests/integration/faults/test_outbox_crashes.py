"""``kill -9`` of replicas that write and relay, at random times, then the ledger: what was committed was sent.

At least once, in the order of each group, and nothing that was rolled back. POSTROOM_KILLS says how many kills (1 in
the test suite, for two of the storages).
"""

import asyncio
import contextlib
import itertools
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from integration.workers import CREDENTIALS
from postroom.local import LocalBroker, LocalServer
from postroom.outbox import postgres_outbox
from postroom.testing.postgres import PostgresServer
from postroom.transports.memory import MemoryClient

KILLS = int(os.environ.get("POSTROOM_KILLS", "1"))
WORKER = Path(__file__).parents[1] / "outbox_worker.py"
STORAGES = ["sqlite", "asyncpg", "psycopg", "sqlalchemy"] if KILLS > 2 else ["sqlite", "asyncpg"]
pytestmark = [pytest.mark.long, pytest.mark.postgres, pytest.mark.timeout(120 + 30 * KILLS)]
_names = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """One storage: what a worker is told of it, and what is in it."""

    environment: dict[str, str]
    column: Callable[[str, str], list[str]]


@pytest.fixture(params=STORAGES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A SQLite file, or a database behind each driver."""
    environment = {"STORAGE": request.param, "DIRECTORY": str(tmp_path)}
    if request.param == "sqlite":

        def column(name: str, table: str) -> list[str]:
            with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite3")) as connection:
                return [row for (row,) in connection.execute(f"SELECT {name} FROM {table}")]

        yield Place(environment, column)
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"outbox-{request.param}-{tmp_path.name}"
    dsn = server.create_database(name, schema=f"{postgres_outbox().schema} CREATE TABLE orders (id text PRIMARY KEY)")
    yield Place(
        {**environment, "DSN": dsn},
        lambda column, table: server.execute(f"SELECT {column} FROM {table}", database=name).splitlines(),
    )
    server.drop_database(name)


@asynccontextmanager
async def _worker(place: Place, endpoint: str, *, write: bool) -> AsyncIterator[asyncio.subprocess.Process]:
    told = {"ENDPOINT": endpoint, "NAME": f"w{next(_names)}", "WRITE": "1" if write else "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WORKER), env={**os.environ, **CREDENTIALS, **place.environment, **told}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _comes(broker: LocalBroker, count: int) -> None:
    """Wait until so many messages have come."""
    async with asyncio.timeout(120):
        while int(broker.attributes("events")["ApproximateNumberOfMessages"]) < count:
            await asyncio.sleep(0.02)


async def _bodies(broker: LocalBroker, name: str) -> list[str]:
    found: list[str] = []
    async with MemoryClient(broker) as client:
        queue = await client.queue(name)
        while batch := await queue.receive(limit=10, wait=0, visibility=3600):
            found += [message.body for message in batch]
            await queue.delete([message.receipt_handle for message in batch])
    return found


async def test_killed_at_random_times_it_sends_what_was_committed(place: Place) -> None:
    """Two replicas at a time, one of which is killed and replaced; in the end another one sends the rest."""
    rng = Random(2026)
    async with LocalBroker() as broker, LocalServer(broker) as server:
        broker.create_queue("events")
        broker.create_queue("events.fifo", {"FifoQueue": "true"})
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(_worker(place, server.endpoint_url, write=True))]
            for _ in range(KILLS):
                running.append(await stack.enter_async_context(_worker(place, server.endpoint_url, write=True)))
                come = int(broker.attributes("events")["ApproximateNumberOfMessages"])
                await _comes(broker, come + rng.randrange(5, 60))
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                running.pop(rng.randrange(len(running))).kill()
            running.pop().kill()
        async with _worker(place, server.endpoint_url, write=False) as last:
            assert await last.wait() == 0
        _audit(place, await _bodies(broker, "events"), await _bodies(broker, "events.fifo"))


def _audit(place: Place, events: list[str], ordered: list[str]) -> None:
    committed = set(place.column("id", "orders"))
    assert place.column("id", "postroom_outbox") == []
    assert set(events) == set(ordered) == committed
    assert not [order for order in committed if int(order.partition(":")[2]) % 5 == 4]  # was rolled back
    firsts = list(dict.fromkeys(ordered))
    for writer in {order.partition(":")[0] for order in committed}:
        own = [int(order.partition(":")[2]) for order in firsts if order.startswith(f"{writer}:")]
        assert own == sorted(own)
    twice = sum(count > 1 for count in Counter(events).values())
    again = sum(count > 1 for count in Counter(ordered).values())
    text = (
        f"{place.environment['STORAGE']}: {KILLS + 1} kills, {len(committed)} orders, 0 lost, 0 that were rolled back"
    )
    print(f"{text}, {twice} sent twice, {again} in the FIFO queue")
    assert again == 0  # SQS drops what has the same deduplication id
