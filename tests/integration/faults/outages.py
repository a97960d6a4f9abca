"""A site of tenants' databases behind every adapter, and the outages that befall their server."""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import asyncpg

from postroom import Concurrency, Consumer, PoolLimits
from postroom.datasources import postgres_inbox
from postroom.events import Event, HandlerFinished
from postroom.local import LocalBroker
from postroom.testing.postgres import PostgresServer
from postroom.transports.memory import MemoryClient
from support.ways import WAYS, Way
from support.world import Tenant, World

USERS = {way.name: f"app_{number}" for number, way in enumerate(WAYS)}
"""Each adapter logs in as a user of its own: the server counts connections by user."""
PASSWORD = "right"
SCHEMA = f"{postgres_inbox().schema} CREATE TABLE orders (id text PRIMARY KEY);"
SIZE = 2
"""Connections per tenant."""


class Databases:
    """A server with a number of tenants' databases, for one user who is no superuser."""

    def __init__(self, server: PostgresServer, tenants: int) -> None:
        self.server = server
        self.tenants = [Tenant(f"t-{number:03}") for number in range(tenants)]

    def make(self) -> None:
        """Create the databases."""
        self.server.execute(_for_each(f"CREATE ROLE %s LOGIN PASSWORD '{PASSWORD}'"))
        grants = f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {', '.join(USERS.values())};"
        self.server.create_template("outages", SCHEMA + grants)
        for tenant in self.tenants:
            self.server.create_database(tenant.tenant_id, template="outages")

    def registry(self, way: Way) -> Callable[[Tenant], str]:
        """Return the registry of an adapter."""
        return lambda tenant: self.server.dsn(tenant.tenant_id, user=USERS[way.name], password=PASSWORD)

    def orders(self) -> set[str]:
        """Return the orders that are in the databases of the tenants that they belong to."""
        found: set[str] = set()
        for tenant in self.tenants:
            rows = self.server.execute("SELECT id FROM orders", database=tenant.tenant_id).split()
            assert all(row.startswith(f"{tenant.tenant_id}/") for row in rows)
            found.update(rows)
        return found

    def empty(self) -> None:
        """Delete what was recorded."""
        for tenant in self.tenants:
            self.server.execute("TRUNCATE orders, postroom_inbox", database=tenant.tenant_id)


class Backends:
    """Watches how many connections of each user the server itself counts."""

    SQL = "SELECT usename, count(*) FROM pg_stat_activity WHERE usename LIKE 'app_%' GROUP BY 1"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.most: Counter[str] = Counter()

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[Self]:
        """Count again and again for the time of the block."""
        connection = await asyncpg.connect(self._server.dsn())
        watching = asyncio.create_task(self._watch(connection), name="watch")
        try:
            yield self
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await connection.close()

    async def _watch(self, connection: Any) -> None:
        while True:
            for user, count in await connection.fetch(self.SQL):
                self.most[user] = max(self.most[user], count)
            await asyncio.sleep(0.005)

    def left(self) -> dict[str, int]:
        """Return what is open now; a backend notices a closed socket a moment later."""
        for _ in range(50):
            lines = self._server.execute(self.SQL).split()
            if not lines:
                break
        return {user: int(count) for user, count in (line.split("|") for line in lines)}


@dataclass
class Row:
    """What was seen of one adapter under one outage."""

    way: str
    kind: str
    sent: set[str] = field(default_factory=set[str])
    lost: int = 0
    dead: int = 0
    failures: int = 0
    first: float = 0.0
    """Seconds from the end of the outage to the first order that was committed after it."""
    last: float = 0.0
    """Seconds from the end of the outage until nothing waits."""


class Office:
    """One adapter's queue, pool and consumer, and when which order was committed."""

    def __init__(self, way: Way, databases: Databases, tenants: list[Tenant], world: World, *, budget: int) -> None:
        self.way = way
        self.tenants = tenants
        self.world = world
        self.queue = re.sub(r"[^a-z]+", "-", way.name.lower())
        self.row = Row(way.name, "")
        self.done: list[tuple[float, str]] = []
        world.create(self.queue, dead_letters=f"{self.queue}-dead", receives=5)
        self.pool = way.provide(databases.registry(way), SIZE).pool(limits=PoolLimits(budget=budget), name=way.name)
        self.consumer: Consumer[Tenant, Any] = Consumer(
            self.queue,
            context=Tenant,
            resources=self.pool,
            client=MemoryClient(world.broker),
            concurrency=Concurrency(total=32),
            observers=[self._observe],
            payload=dict,
        )
        self.consumer.handler(way.handler(lambda order: self.done.append((time.monotonic(), order))))

    def send(self) -> None:
        """Send one order of the next tenant in turn."""
        tenant = self.tenants[len(self.row.sent) % len(self.tenants)]
        order = f"{tenant.tenant_id}/{self.queue}/{len(self.row.sent)}"
        self.world.send({"order_id": order}, tenant=tenant.tenant_id, queue=self.queue)
        self.row.sent.add(order)

    async def emptied(self, seconds: float = 120) -> None:
        """Return when nothing is left in the queue."""
        async with asyncio.timeout(seconds):
            while any(self.world.counts(self.queue)):
                await asyncio.sleep(0.05)

    def _observe(self, event: Event) -> None:
        if isinstance(event, HandlerFinished) and event.error is not None:
            self.row.failures += 1


class Lines(logging.Handler):
    """The log as a reader sees it, lines that differ only in names and numbers taken together."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line."""
        line = f"{record.levelname} {record.name}: {record.getMessage()}".partition("\n")[0]
        line = re.sub(r"t-\d{3}", "t-NNN", line)
        line = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", line)
        line = re.sub(r"0x[0-9a-f]+|postroom-(sync-)?\d+|app_\d", "...", line)
        self.counts[re.sub(r"\d+(\.\d+)?(?= (s|messages|more|times)\b)", "N", line)] += 1

    @asynccontextmanager
    async def heard(self) -> AsyncGenerator[Self]:
        """Listen for the time of the block."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield self
        finally:
            root.removeHandler(self)


@asynccontextmanager
async def offices(databases: Databases, ways: list[Way], *, budget: int, apart: bool) -> AsyncGenerator[list[Office]]:
    """Open an office for each adapter, and close them.

    Args:
        databases: where the tenants are.
        ways: the adapters.
        budget: of each pool.
        apart: give each adapter tenants of its own, instead of all to each.
    """
    async with LocalBroker() as broker, AsyncExitStack() as stack:
        made: list[Office] = []
        for number, way in enumerate(ways):
            tenants = databases.tenants[number :: len(ways)] if apart else databases.tenants
            made.append(Office(way, databases, tenants, World(broker), budget=budget))
            await stack.enter_async_context(made[-1].pool)
            await stack.enter_async_context(made[-1].consumer)
        yield made


END = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename LIKE 'app_%'"
Kind = Callable[[PostgresServer, float], Any]


def _for_each(statement: str) -> str:
    return "; ".join(statement % user for user in USERS.values())


async def _sql(server: PostgresServer, *statements: str) -> None:
    for statement in statements:
        await asyncio.to_thread(server.execute, statement)


async def refused(server: PostgresServer, seconds: float) -> None:
    """The server does not run: nothing listens on its port."""
    server.kill()
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.restart)


async def black_hole(server: PostgresServer, seconds: float) -> None:
    """The server is frozen: connections are accepted by its machine, and nothing answers."""
    server.freeze()
    await asyncio.sleep(seconds)
    server.thaw()


async def wrong_password(server: PostgresServer, seconds: float) -> None:
    """The password was changed, and the registry has the old one."""
    await _sql(server, _for_each("ALTER ROLE %s PASSWORD 'wrong'"), END)
    await asyncio.sleep(seconds)
    await _sql(server, _for_each(f"ALTER ROLE %s PASSWORD '{PASSWORD}'"))


async def too_many(server: PostgresServer, seconds: float) -> None:
    """There is no connection left for this user: 53300."""
    await _sql(server, _for_each("ALTER ROLE %s CONNECTION LIMIT 0"), END)
    await asyncio.sleep(seconds)
    await _sql(server, _for_each("ALTER ROLE %s CONNECTION LIMIT -1"))


async def read_only(server: PostgresServer, seconds: float) -> None:
    """The server refuses writes, as a replica does after a failover: 25006."""
    await _sql(server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    await asyncio.sleep(seconds)
    await _sql(
        server,
        "SET default_transaction_read_only = off; ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    )


async def killed_backends(server: PostgresServer, seconds: float) -> None:
    """Every connection is ended, again and again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await _sql(server, END)
        await asyncio.sleep(0.2)


async def restart(server: PostgresServer, seconds: float) -> None:
    """The server crashes, and is back after its recovery."""
    server.kill()
    await asyncio.to_thread(server.restart)
    await asyncio.sleep(seconds)
    server.kill()
    await asyncio.to_thread(server.restart)


KINDS: dict[str, Kind] = {
    "refused": refused,
    "black hole": black_hole,
    "wrong password": wrong_password,
    "53300": too_many,
    "read-only": read_only,
    "killed backends": killed_backends,
    "restart": restart,
}


async def suffer(
    databases: Databases, kind: str, *, ways: list[Way], seconds: float, budget: int, rate: float
) -> tuple[list[Row], Counter[str]]:
    """Let every adapter work before, during and after an outage; return what was seen, and what the log said."""
    async with Lines().heard() as lines, offices(databases, ways, budget=budget, apart=True) as made:
        for office in made:
            office.row.kind = kind
        producing = asyncio.create_task(_produce(made, rate), name="produce")
        await asyncio.gather(*(_warm(office) for office in made))
        await KINDS[kind](databases.server, seconds)
        over = time.monotonic()
        await asyncio.sleep(1)
        producing.cancel()
        await asyncio.wait([producing])
        await asyncio.gather(*(_recovered(office, over) for office in made))
        for office in made:
            office.row.dead = sum(office.world.counts(f"{office.queue}-dead"))
    there = await asyncio.to_thread(databases.orders)
    for office in made:
        office.row.lost = len(office.row.sent - there)
    await asyncio.to_thread(databases.empty)
    return [office.row for office in made], lines.counts


@dataclass(frozen=True)
class Count:
    """How many connections of one adapter the server counted."""

    way: str
    orders: int
    missing: int
    budget: int
    most: int
    left: int


async def spend(databases: Databases, *, ways: list[Way], rounds: int, budget: int) -> list[Count]:
    """Let every adapter work for all tenants, with a budget for a part of them; return what the server counted."""
    async with Backends(databases.server).watched() as backends:
        async with offices(databases, ways, budget=budget, apart=False) as made:
            for office in made:
                for _ in range(rounds * len(databases.tenants)):
                    office.send()
            await asyncio.gather(*(office.emptied(600) for office in made))
        left = await asyncio.to_thread(backends.left)
    there = await asyncio.to_thread(databases.orders)
    await asyncio.to_thread(databases.empty)
    return [
        Count(
            office.way.name,
            len(office.row.sent),
            len(office.row.sent - there),
            budget,
            backends.most[USERS[office.way.name]],
            left.get(USERS[office.way.name], 0),
        )
        for office in made
    ]


async def _produce(made: list[Office], rate: float) -> None:
    while True:
        for office in made:
            office.send()
        await asyncio.sleep(1 / rate)


async def _warm(office: Office) -> None:
    """Return when every tenant has been open once: an outage that meets nothing open shows less."""
    async with asyncio.timeout(120):
        while len({order.partition("/")[0] for _, order in office.done}) < len(office.tenants):
            await asyncio.sleep(0.05)


async def _recovered(office: Office, over: float) -> None:
    await office.emptied()
    office.row.last = time.monotonic() - over
    office.row.first = min((at - over for at, _ in office.done if at >= over), default=float("nan"))
