"""The service that is tested. It is a consumer as any other: nothing in it knows of tests."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from postroom import Consumer, MessageContext, Reject, RetryPolicy
from postroom.datasources import Provider, SqliteDatabase, sqlite_database, tenant_file
from postroom.transports import Client

SCHEMA = "CREATE TABLE IF NOT EXISTS orders (order_id TEXT PRIMARY KEY, amount INTEGER NOT NULL) STRICT"


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str


@dataclass(frozen=True)
class OrderPlaced:
    """The payload."""

    order_id: str
    amount: int


class Ledger(Protocol):
    """What the handler needs of a tenant's database, so that a test can give it something else."""

    async def add(self, order: OrderPlaced) -> None:
        """Add an order, once."""
        ...


class SqliteLedger:
    """The ledger in production."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def add(self, order: OrderPlaced) -> None:
        """Add an order. One that is delivered twice is there already."""
        await self._database.execute("INSERT OR IGNORE INTO orders VALUES (?, ?)", (order.order_id, order.amount))


Ledgers = Callable[[Tenant], AbstractAsyncContextManager[Ledger]]


def sqlite_ledgers(directory: Path) -> Provider[Tenant, SqliteLedger]:
    """Return how a tenant's ledger is opened and closed: a file for each tenant."""

    def file_of(tenant: Tenant) -> Path:
        return tenant_file(directory, tenant.tenant_id)

    return sqlite_database(file_of, create=True, schema=SCHEMA).map(SqliteLedger)


async def place(order: OrderPlaced, ctx: MessageContext[Tenant, Ledger]) -> None:
    """Handle an order."""
    if order.amount <= 0:
        raise Reject("an order needs an amount")
    await ctx.resources.add(order)


def make_orders(ledgers: Ledgers, client: Client | None = None) -> Consumer[Tenant, Ledger]:
    """Make the consumer. A function, because a test wants other ledgers and another client each time."""
    orders = Consumer("orders", context=Tenant, resources=ledgers, retry=RetryPolicy(base=60, jitter=0), client=client)
    orders.handler(place)
    return orders
