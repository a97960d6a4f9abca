"""Effects happen exactly once, over real databases, although messages are delivered twice and handlers fail."""

import asyncio
import contextlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from postroom import Concurrency, Consumer, MessageContext, RetryPolicy, SyncTransactional, Transactional
from postroom.datasources import (
    Provider,
    asyncpg_inbox,
    asyncpg_pool,
    postgres_inbox,
    psycopg_inbox,
    psycopg_pool,
    psycopg_sync_inbox,
    psycopg_sync_pool,
    sqlalchemy_engine,
    sqlalchemy_inbox,
    sqlalchemy_sync_engine,
    sqlalchemy_sync_inbox,
    sqlite_database,
    tenant_file,
)
from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.postgres import PostgresServer
from postroom.transports.memory import MemoryClient
from support.world import Order, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(120)]
TENANTS = ("a", "b")


@dataclass(frozen=True)
class Storage:
    """Both tenants' databases behind one driver."""

    provider: Callable[[], Provider[Tenant, Any]]
    insert: Callable[[Any, str], Any]
    effects: Callable[[str], list[str]]


def sqlite_storage(directory: Path) -> Storage:
    """A file per tenant."""

    def effects(tenant: str) -> list[str]:
        with contextlib.closing(sqlite3.connect(tenant_file(directory, tenant))) as connection:
            return [row for (row,) in connection.execute("SELECT id FROM effects")]

    return Storage(
        lambda: sqlite_database(
            lambda tenant: tenant_file(directory, tenant.tenant_id),
            create=True,
            schema="CREATE TABLE IF NOT EXISTS effects (id TEXT)",
        ),
        lambda tx, order: tx.execute("INSERT INTO effects VALUES (?)", (order,)),
        effects,
    )


def postgres_storage(server: PostgresServer, name: str, driver: str) -> Storage:
    """A database per tenant."""

    def locate(tenant: Tenant) -> str:
        return server.dsn(f"{name}-{tenant.tenant_id}")

    ways: dict[str, tuple[Callable[[], Provider[Tenant, Any]], Callable[[Any, str], Any]]] = {
        "asyncpg": (
            lambda: asyncpg_inbox(asyncpg_pool(locate, max_size=12)),
            lambda tx, order: tx.execute("INSERT INTO effects VALUES ($1)", order),
        ),
        "psycopg": (
            lambda: psycopg_inbox(psycopg_pool(locate, max_size=12)),
            lambda tx, order: tx.execute("INSERT INTO effects VALUES (%s)", (order,)),
        ),
        "SQLAlchemy": (
            lambda: sqlalchemy_inbox(sqlalchemy_engine(locate, max_size=12)),
            lambda tx, order: tx.execute(text("INSERT INTO effects VALUES (:id)"), {"id": order}),
        ),
        "session": (
            lambda: sqlalchemy_inbox(sqlalchemy_engine(locate, max_size=12), session=AsyncSession),
            lambda tx, order: tx.execute(text("INSERT INTO effects VALUES (:id)"), {"id": order}),
        ),
    }
    by_id = text("INSERT INTO effects VALUES (:id)")
    ways |= {
        "psycopg sync": (lambda: psycopg_sync_inbox(psycopg_sync_pool(locate, max_size=12)), ways["psycopg"][1]),
        "session sync": (
            lambda: sqlalchemy_sync_inbox(sqlalchemy_sync_engine(locate, max_size=12), session=Session),
            lambda tx, order: tx.execute(by_id, {"id": order}),
        ),
    }
    provide, insert = ways[driver]
    for tenant in TENANTS:
        server.create_database(f"{name}-{tenant}", schema=f"{postgres_inbox().schema} CREATE TABLE effects (id text)")
    return Storage(
        provide,
        insert,
        lambda tenant: server.execute("SELECT id FROM effects", database=f"{name}-{tenant}").splitlines(),
    )


@pytest.fixture(params=["sqlite", "psycopg sync", "session sync"])
def sync_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """One driver for plain handlers after the other."""
    yield from _storage(request, tmp_path)


@pytest.fixture(params=["sqlite", "asyncpg", "psycopg", "SQLAlchemy", "session"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """One driver after the other."""
    yield from _storage(request, tmp_path)


def _storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "sqlite":
        yield sqlite_storage(tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"inbox-{tmp_path.name}"
    yield postgres_storage(server, name, request.param)
    for tenant in TENANTS:
        server.drop_database(f"{name}-{tenant}")


def send(broker: LocalBroker, order: str, tenant: str, seconds: float = 0.0) -> None:
    """Send an order of a tenant."""
    named = {"tenantId": tenant, "region": "eu-west-1"}
    attributes = {name: AttributeValue(string_value=value, data_type="String") for name, value in named.items()}
    body = msgspec.json.encode({"order_id": order, "seconds": seconds}).decode()
    broker.send("orders", Send(message_body=body, message_attributes=attributes))


async def emptied(broker: LocalBroker) -> None:
    """Wait until the queue has no message, not even one in flight."""
    async with asyncio.timeout(40):
        while True:
            said = broker.attributes("orders")
            if said["ApproximateNumberOfMessages"] == said["ApproximateNumberOfMessagesNotVisible"] == "0":
                return
            await asyncio.sleep(0.02)


class Twice:
    """A handler that has each message delivered a second time while it works on the first, in one of four ways."""

    def __init__(self, broker: LocalBroker, storage: Storage) -> None:
        self.broker = broker
        self.storage = storage
        self.receives: Counter[str] = Counter()
        self.second: dict[str, asyncio.Event] = {}

    async def __call__(self, order: Order, ctx: MessageContext[Tenant, Transactional[Any]]) -> None:
        """Make the order's effect in a transaction."""
        self.receives[order.order_id] += 1
        second = self.second.setdefault(order.order_id, asyncio.Event())
        first = self.receives[order.order_id] == 1
        if not first:
            second.set()
        way = int(order.order_id) % 4 if first else -1
        if way == 0:
            await self._redeliver(ctx, second)
        async with ctx.transaction() as tx:
            await self.storage.insert(tx, order.order_id)
            if way in {1, 2}:
                await self._redeliver(ctx, second)
            if way == 2:
                raise ConnectionResetError("before the commit")
        if way == 3:
            await self._redeliver(ctx, second)
            raise ConnectionResetError("after the commit")

    async def _redeliver(self, ctx: MessageContext[Any, Any], second: asyncio.Event) -> None:
        """Do as a visibility timeout that is over does, and wait until another handler has the message."""
        self.broker.change_visibility("orders", ctx.message.receipt_handle, 0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await second.wait()
                return
        raise RuntimeError("it came to this consumer, which has it already")


class TwiceInThreads:
    """The same as a plain ``def`` handler."""

    def __init__(self, broker: LocalBroker, storage: Storage) -> None:
        self.broker = broker
        self.storage = storage
        self.receives: Counter[str] = Counter()
        self.second: dict[str, threading.Event] = {}
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()

    def __call__(self, order: Order, ctx: MessageContext[Tenant, SyncTransactional[Any]]) -> None:
        """Make the order's effect in a transaction."""
        with self._lock:
            self.receives[order.order_id] += 1
            second = self.second.setdefault(order.order_id, threading.Event())
            first = self.receives[order.order_id] == 1
        if not first:
            second.set()
        way = int(order.order_id) % 4 if first else -1
        if way == 0:
            self._redeliver(ctx, second)
        with ctx.transaction() as tx:
            self.storage.insert(tx, order.order_id)
            if way in {1, 2}:
                self._redeliver(ctx, second)
            if way == 2:
                raise ConnectionResetError("before the commit")
        if way == 3:
            self._redeliver(ctx, second)
            raise ConnectionResetError("after the commit")

    def _redeliver(self, ctx: MessageContext[Any, Any], second: threading.Event) -> None:
        change = self.broker.change_visibility
        self._loop.call_soon_threadsafe(change, "orders", ctx.message.receipt_handle, 0)
        if not second.wait(0.3):
            raise RuntimeError("it came to this consumer, which has it already")


async def test_whatever_is_delivered_twice_happens_once_in_threads(sync_storage: Storage) -> None:
    """With plain ``def`` handlers, as with the others."""
    await _deliver_twice(sync_storage, TwiceInThreads)


async def test_whatever_is_delivered_twice_happens_once(storage: Storage) -> None:
    """The second comes before, during and after the first's transaction, which commits, fails, or fails afterwards."""
    await _deliver_twice(storage, Twice)


async def _deliver_twice(storage: Storage, kind: type[Twice] | type[TwiceInThreads]) -> None:
    orders = [str(number) for number in range(24)]
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        handler = kind(broker, storage)
        for number, order in enumerate(orders):
            send(broker, order, TENANTS[number // 4 % 2])
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                consumer: Consumer[Tenant, Any] = Consumer(
                    "orders",
                    context=Tenant,
                    resources=storage.provider(),
                    concurrency=Concurrency(total=60, per_tenant=30),
                    retry=RetryPolicy(base=0.1),
                    client=MemoryClient(broker),
                    payload=Order,
                )
                consumer.handler(handler)
                await stack.enter_async_context(consumer)
            await emptied(broker)
    assert min(handler.receives[order] for order in orders) >= 2
    done = {tenant: sorted(storage.effects(tenant), key=int) for tenant in TENANTS}
    assert done == {tenant: [order for order in orders if TENANTS[int(order) // 4 % 2] == tenant] for tenant in TENANTS}
