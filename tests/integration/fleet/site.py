"""Where replicas of a fleet run as processes: a queue, a database per tenant, a store, and a network to it for each."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import msgspec

from integration.faults.tcp_proxy import Mode
from integration.fleet.network import Networks
from postroom.local import LocalBroker, LocalServer
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.postgres import PostgresServer
from postroom.testing.valkey import ValkeyServer

_REPLICA: Final = Path(__file__).with_name("replica.py")
_CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
_RECEIVES: Final = 8
"""After so many receives SQS gives a message up."""
_SCHEMA: Final = """
CREATE TABLE runs (
    id bigserial PRIMARY KEY, replica text, order_id bigint, part int, pid int, others int[], decided timestamptz,
    started timestamptz DEFAULT clock_timestamp(), ended timestamptz
);
CREATE INDEX ON runs (started)
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large everything is, and what the fleet is told."""

    replicas: int = 8
    tenants: int = 6
    cap: int = 4
    lease: float = 3.0
    tick: float = 0.25
    fallback: str = "share"
    seconds: tuple[float, float] = (0.02, 0.12)
    """How long handlers take, at least and at most."""
    visible: int = 60
    """Messages that are there to be received."""
    backlog: int = 3_000
    """Messages in the queue at most, those included that replicas hold or have deferred."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tenants."""
        return tuple(f"tenant-{number}" for number in range(self.tenants))


@dataclass(frozen=True)
class Where:
    """What a site uses and does not own."""

    server: PostgresServer
    store: ValkeyServer
    logs: Path


@dataclass
class Life:
    """One process: when it died and when it was frozen, in seconds since 1970."""

    process: asyncio.subprocess.Process
    log: Path
    died: float | None = None
    frozen: list[tuple[float, float]] = field(default_factory=list)


class Site:
    """The queue, the databases, the store, and the replicas."""

    def __init__(self, plan: Plan, where: Where, broker: LocalBroker, endpoint: str) -> None:
        self.plan = plan
        self.broker = broker
        self.store = where.store
        self.lives: dict[str, Life] = {}
        self.sent: Counter[str] = Counter()
        self.databases: dict[str, asyncpg.Connection[Any]] = {}
        self.reports: list[dict[str, Any]] = []
        self._rng = Random(7)
        self._server = where.server
        self._logs = where.logs
        port = urlsplit(self.store.url).port
        assert port is not None
        self._port = port
        self._networks = Networks(port)
        self._environment = {
            **os.environ, **_CREDENTIALS, "ENDPOINT": endpoint, "DSN": where.server.dsn("fleet"), "CAP": str(plan.cap),
            "LEASE": str(plan.lease), "TICK": str(plan.tick), "FALLBACK": plan.fallback,
        }  # fmt: skip

    async def connect(self) -> None:
        """Connect to the tenants' databases."""
        self._networks.__enter__()
        for tenant in self.plan.names:
            self.databases[tenant] = await asyncpg.connect(self._server.dsn(f"fleet-{tenant}"))

    async def close(self) -> None:
        """Close the connections, and kill what still runs."""
        for life in self.lives.values():
            if life.process.returncode is None:
                life.process.send_signal(signal.SIGCONT)
                life.process.kill()
                await life.process.wait()
        for database in self.databases.values():
            await database.close()
        self._networks.__exit__(None, None, None)

    # -- replicas ---------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[str]:
        """The replicas that run."""
        return [name for name, life in self.lives.items() if life.process.returncode is None]

    async def start(self) -> str:
        """Start a replica, with a network of its own to the store."""
        name = f"r{len(self.lives) + 1}"
        address = self.store.url.replace(f":{self._port}/", f":{await self._networks.open(name)}/")
        log = self._logs / f"{name}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(_REPLICA), env={**self._environment, "NAME": name, "STORE": address},
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self.lives[name] = Life(process, log)
        return name

    async def kill(self, name: str) -> float:
        """End a replica as a crash does. Returns when."""
        life = self.lives[name]
        at = time.time()
        life.process.kill()
        await life.process.wait()
        life.died = time.time()
        return at

    def freeze(self, name: str) -> None:
        """Stop a replica in the middle of whatever it does."""
        life = self.lives[name]
        life.frozen.append((time.time(), float("inf")))
        life.process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen replica go on."""
        life = self.lives[name]
        life.process.send_signal(signal.SIGCONT)
        life.frozen[-1] = (life.frozen[-1][0], time.time())

    def tell(self, name: str, order: str) -> float:
        """Have a replica pause or resume a tenant. Returns when it was told."""
        stdin = self.lives[name].process.stdin
        assert stdin is not None
        stdin.write(f"{order}\n".encode())
        return time.time()

    def cut(self, names: list[str], mode: Mode) -> None:
        """Cut replicas off from the store: connections are reset and refused, or swallow everything."""
        self._networks.set(names, mode)

    def heal(self, names: list[str]) -> None:
        """Let replicas reach the store again. Connections that swallowed something stay broken, as in a network."""
        self._networks.set(names, Mode.PASS)

    async def stop(self) -> list[int]:
        """Stop all replicas; keep what they say that they did."""
        names = self.alive
        for name in names:
            self.lives[name].process.terminate()
        codes: list[int] = []
        for name in names:
            output, _ = await self.lives[name].process.communicate()
            codes.append(self.lives[name].process.returncode or 0)
            if output:
                self.reports.append(json.loads(output))
        return codes

    # -- work -------------------------------------------------------------------------------------------------------

    def top_up(self) -> None:
        """Keep work in the queue for every tenant."""
        there = sum(self.counts("orders"))
        least, most = self.plan.seconds
        for _ in range(
            min(20, (self.plan.backlog - there) // self.plan.tenants)
        ):  # others have to have their turn, too
            for tenant in self.plan.names:
                self.sent[tenant] += 1
                order = {"order_id": self.sent[tenant], "seconds": self._rng.uniform(least, most)}
                attributes = {"tenantId": AttributeValue(string_value=tenant, data_type="String")}
                body = msgspec.json.encode(order).decode()
                self.broker.send("orders", Send(message_body=body, message_attributes=attributes))

    async def pass_time(self, seconds: float) -> None:
        """Let the fleet work."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.top_up()
            await asyncio.sleep(min(0.05, left))

    async def until_empty(self, seconds: float) -> None:
        """Let the fleet work until every order is done. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            shown = 0.0
            while set(self.counts("orders")) != {0}:
                if time.monotonic() > shown + 10.0:
                    shown = time.monotonic()
                    print("  still there: {} visible, {} not".format(*self.counts("orders")), flush=True)
                await asyncio.sleep(0.1)

    def counts(self, queue: str) -> tuple[int, int]:
        """Return the messages of a queue that are visible, and those that are not."""
        said = self.broker.attributes(queue)
        return int(said["ApproximateNumberOfMessages"]), int(said["ApproximateNumberOfMessagesNotVisible"])

    async def until_full(self, tenants: list[str], since: float, limit: float) -> dict[str, float]:
        """Wait until the fleet uses the whole cap again. Returns after how many seconds, by tenant.

        Raises:
            TimeoutError: it did not within ``limit`` seconds.
        """
        text = """SELECT extract(epoch FROM min(started))::float8 FROM runs
                  WHERE started > to_timestamp($1) AND cardinality(others) + 1 >= $2"""
        found: dict[str, float] = {}
        async with asyncio.timeout(limit):
            while len(found) < len(tenants):
                await self.pass_time(0.1)
                for tenant in tenants:
                    at = await self.databases[tenant].fetchval(text, since, self.plan.cap)
                    if at is not None:
                        found[tenant] = at - since
        return found

    async def last_by_fallback(self, since: float) -> float:
        """Return after how many seconds the last handler began that its replica ran without slots; 0.0 for none."""
        text = "SELECT extract(epoch FROM max(decided))::float8 - $1 FROM runs WHERE part IS NOT NULL"
        found = [await database.fetchval(text, since) for database in self.databases.values()]
        return max((seconds for seconds in found if seconds is not None and seconds > 0), default=0.0)

    def learned(self, tenant: str, since: float) -> dict[str, tuple[float, float, float]]:
        """Return when replicas learned of a pause, when the store wrote it down, and the seconds of their calls."""
        found: dict[str, tuple[float, float, float]] = {}
        for name in self.alive:
            for line in self.lives[name].log.read_text().splitlines():
                _, marked, told = line.partition("PAUSED ")
                if marked:
                    paused, at, written, calls = json.loads(told)
                    if at >= since and tenant in paused:
                        found[name] = (at, written, calls)
        return found

    async def busy_with(self, name: str) -> list[str]:
        """Return the tenants of which a replica runs a handler."""
        text = "SELECT EXISTS (SELECT FROM runs WHERE replica = $1 AND ended IS NULL)"
        return [tenant for tenant, database in self.databases.items() if await database.fetchval(text, name)]

    async def until_consuming(self, name: str) -> None:
        """Let time pass until a replica says that it consumes."""
        while "Consuming" not in self.lives[name].log.read_text():
            await self.pass_time(0.1)

    async def not_done(self) -> int:
        """Return how many orders no handler has ended."""
        text = "SELECT count(DISTINCT order_id) FROM runs WHERE ended IS NOT NULL"
        done: list[int] = [await database.fetchval(text) for database in self.databases.values()]
        return sum(self.sent.values()) - sum(done)


@asynccontextmanager
async def site(plan: Plan, where: Where) -> AsyncIterator[Site]:
    """Run everything, with the replicas of the plan, from when they use the whole cap."""
    for tenant in plan.names:
        where.server.create_database(f"fleet-{tenant}", schema=_SCHEMA)
    async with LocalBroker() as broker, LocalServer(broker) as sqs:
        dead = broker.create_queue("orders-dead")
        redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": _RECEIVES})
        broker.create_queue("orders", {"RedrivePolicy": redrive})
        here = Site(plan, where, broker, sqs.endpoint_url)
        await here.connect()
        try:
            for _ in range(plan.replicas):
                await here.until_consuming(await here.start())
            await here.until_full(list(plan.names), time.time(), 60.0)
            yield here
        finally:
            await here.close()
            for tenant in plan.names:
                where.server.drop_database(f"fleet-{tenant}")
