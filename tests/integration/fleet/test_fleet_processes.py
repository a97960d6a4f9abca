"""Replicas as processes with a real Valkey and a real PostgreSQL, which counts: the cap holds whatever happens to them.

POSTROOM_FLEET_ROUNDS says how often everything happens (once in the test suite), POSTROOM_FLEET_REPLICAS how many
replicas there are (3); ``make fleet`` takes eight of them and more rounds.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import msgspec
import pytest

from postroom.local import LocalBroker, LocalServer
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.postgres import PostgresServer
from postroom.testing.valkey import ValkeyServer
from support.valkey import valkey_server

ROUNDS = int(os.environ.get("POSTROOM_FLEET_ROUNDS", "1"))
REPLICAS = int(os.environ.get("POSTROOM_FLEET_REPLICAS", "3"))
CAP, LEASE, TICK, SECONDS = 4, 2.0, 0.25, 0.12
TENANTS = ("tenant-a", "tenant-b")
REPLICA = Path(__file__).with_name("replica.py")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
SCHEMA = """
CREATE TABLE runs (
    id bigserial PRIMARY KEY, replica text, order_id text,
    started timestamptz DEFAULT clock_timestamp(), ended timestamptz
)
"""
pytestmark = [pytest.mark.long, pytest.mark.postgres, pytest.mark.timeout(120 + 120 * ROUNDS)]


@pytest.fixture
def store() -> Iterator[ValkeyServer]:
    """Run a Valkey that forgets everything when it starts again."""
    yield from valkey_server()


@dataclass
class Life:
    """One process: when it died, and when it was frozen, by the clock of the database."""

    process: asyncio.subprocess.Process
    died: float | None = None
    frozen: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Run:
    """One handler, as its tenant's database saw it."""

    replica: str
    order_id: str
    started: float
    ended: float | None


class Site:
    """The queue, the databases, the store, and the replicas."""

    def __init__(self, broker: LocalBroker, endpoint: str, server: PostgresServer, store: ValkeyServer) -> None:
        self.broker = broker
        self.store = store
        self.lives: dict[str, Life] = {}
        self.sent = 0
        self.most_active = 0
        self._server = server
        self._environment = {
            **os.environ, **CREDENTIALS, "ENDPOINT": endpoint, "DSN": server.dsn("fleet"), "STORE": store.url,
            "CAP": str(CAP), "LEASE": str(LEASE), "TICK": str(TICK),
        }  # fmt: skip
        self._databases: dict[str, asyncpg.Connection[Any]] = {}

    async def connect(self) -> None:
        """Connect to the tenants' databases."""
        for tenant in TENANTS:
            self._databases[tenant] = await asyncpg.connect(self._server.dsn(f"fleet-{tenant}"))

    async def close(self) -> None:
        """Close the connections, and kill what still runs."""
        for life in self.lives.values():
            if life.process.returncode is None:
                life.process.send_signal(signal.SIGCONT)
                life.process.kill()
                await life.process.wait()
        for database in self._databases.values():
            await database.close()

    async def start(self) -> str:
        """Start a replica."""
        name = f"r{len(self.lives) + 1}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(REPLICA), env={**self._environment, "NAME": name}, stderr=asyncio.subprocess.DEVNULL
        )
        self.lives[name] = Life(process)
        return name

    def top_up(self) -> None:
        """Keep work in the queue for both tenants."""
        while int(self.broker.attributes("orders")["ApproximateNumberOfMessages"]) < 80:
            for tenant in TENANTS:
                self.sent += 1
                body = msgspec.json.encode({"order_id": str(self.sent), "seconds": SECONDS}).decode()
                attributes = {"tenantId": AttributeValue(string_value=tenant, data_type="String")}
                self.broker.send("orders", Send(message_body=body, message_attributes=attributes))

    async def pass_time(self, seconds: float) -> None:
        """Let the fleet work, and look at what the databases run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.top_up()
            text = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'SELECT pg_sleep%' "
            active = await self._databases[TENANTS[0]].fetchval(text + "AND state = 'active'", f"fleet-{TENANTS[0]}")
            if not any(life.frozen and life.frozen[-1][1] == float("inf") for life in self.lives.values()):
                self.most_active = max(self.most_active, active)
            await asyncio.sleep(0.02)

    async def now(self) -> float:
        """Return the database's time."""
        said: float = await self._databases[TENANTS[0]].fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        return said

    async def runs(self, tenant: str) -> list[Run]:
        """Return what the handlers of a tenant wrote down, in order."""
        text = """SELECT replica, order_id, extract(epoch FROM started)::float8, extract(epoch FROM ended)::float8
                  FROM runs ORDER BY started"""
        return [Run(*row) for row in await self._databases[tenant].fetch(text)]

    def over_the_cap(self, runs: list[Run]) -> list[tuple[float, int]]:
        """Return the starts at which more ran than the cap, and how many ran.

        What a process that is frozen for longer than its lease left running does not count once that is over.
        """
        found: list[tuple[float, int]] = []
        for place, run in enumerate(runs):
            count = 1 + sum(self._runs_at(other, run.started) for other in runs[max(0, place - 400) : place])
            if count > CAP:
                found.append((run.started, count))
        return found

    def _runs_at(self, run: Run, at: float) -> bool:
        life = self.lives[run.replica]
        ends = [end for end in (run.ended, life.died) if end is not None]
        if ends and min(ends) <= at:
            return False
        return not any(run.started < since and since + 0.9 * LEASE <= at for since, _ in life.frozen)


@asynccontextmanager
async def site(server: PostgresServer, store: ValkeyServer) -> AsyncIterator[Site]:
    """Run everything but the replicas."""
    for tenant in TENANTS:
        server.create_database(f"fleet-{tenant}", schema=SCHEMA)
    async with LocalBroker() as broker, LocalServer(broker) as sqs:
        broker.create_queue("orders")
        here = Site(broker, sqs.endpoint_url, server, store)
        await here.connect()
        try:
            yield here
        finally:
            await here.close()
            for tenant in TENANTS:
                server.drop_database(f"fleet-{tenant}")


async def _until_all_work(here: Site) -> None:
    """Let time pass until every replica that lives has had a slot."""
    while {run.replica for run in await here.runs(TENANTS[0])} != set(here.lives):
        await here.pass_time(0.2)


async def _until_full(here: Site, since: float, without: str) -> float:
    """Return how long it took until the others used the whole cap."""
    while True:
        await here.pass_time(0.1)
        runs = [run for run in await here.runs(TENANTS[0]) if run.replica != without]
        for place, run in enumerate(runs):
            if run.started > since:
                open_then = sum(here._runs_at(other, run.started) for other in runs[max(0, place - 100) : place])
                if open_then + 1 >= CAP:
                    return run.started - since
        assert await here.now() - since < LEASE + 15, "the slots of the killed replica never came back"


async def _round(here: Site, rng: Random, told: list[str]) -> None:
    """Kill one replica, freeze another, empty the store, and start it again."""
    alive = [name for name, life in here.lives.items() if life.died is None]
    killed, frozen = rng.sample(alive, 2)
    life = here.lives[killed]
    life.process.kill()
    await life.process.wait()
    life.died = await here.now()
    back = await _until_full(here, life.died, killed)
    told.append(f"slots of a killed replica were back after {back:.2f} s")
    assert back < LEASE + 2 * TICK + 2.0
    await here.start()

    life = here.lives[frozen]
    since = await here.now()
    life.process.send_signal(signal.SIGSTOP)
    life.frozen.append((since, float("inf")))
    await here.pass_time(LEASE + 1.0)
    life.process.send_signal(signal.SIGCONT)
    await here.pass_time(1.0)
    life.frozen[-1] = (since, await here.now())

    here.store.command("FLUSHALL")
    await here.pass_time(1.5)
    await asyncio.to_thread(here.store.restart)
    await here.pass_time(LEASE + 1.0)


async def test_the_cap_holds_whatever_happens(postgres_server: PostgresServer, store: ValkeyServer) -> None:
    """F1, F3, F7: kill -9, a freeze longer than a lease, a flush and a restart: no start over the cap, all handled."""
    told: list[str] = []
    rng = Random(3)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(site(postgres_server, store))
        here.top_up()
        for _ in range(REPLICAS):
            await here.start()
        await _until_all_work(here)
        for _ in range(ROUNDS):
            await _round(here, rng, told)
            await _until_all_work(here)
        here.broker.purge("orders")
        for life in here.lives.values():
            if life.died is None:
                life.process.terminate()
        codes = [await life.process.wait() for life in here.lives.values() if life.died is None]
        starts = 0
        for tenant in TENANTS:
            runs = await here.runs(tenant)
            starts += len(runs)
            assert here.over_the_cap(runs) == []
            used = max(sum(here._runs_at(other, run.started) for other in runs[max(0, n - 50) : n + 1])
                       for n, run in enumerate(runs))  # fmt: skip
            assert used == CAP
        told.append(f"{starts} starts over {len(here.lives)} processes, none over the cap of {CAP}")
        told.append(f"pg_stat_activity showed at most {here.most_active} queries of a tenant")
        assert codes == [0] * len(codes)
        assert here.most_active <= CAP + 1  # a killed client's query ends a moment after it
    print("\n" + "\n".join(told))
