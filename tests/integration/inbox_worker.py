"""A worker process with an inbox, to be killed. Nothing but the inbox keeps its effects from happening twice.

Configured by the environment: ENDPOINT, DIRECTORY, and DSN for PostgreSQL; without one, a SQLite file per tenant.
"""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postroom import AlreadyHandled, AwsClient, Concurrency, Consumer, MessageContext, Visibility, run
from postroom.datasources import Provider, asyncpg_inbox, asyncpg_pool, sqlite_database, tenant_file
from postroom.events import Event, HandlerFinished

DIRECTORY = Path(os.environ["DIRECTORY"])
DSN = os.environ.get("DSN", "")


@dataclass(frozen=True)
class Tenant:
    """Whose message it is."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """What happened, and how long it takes to handle."""

    order_id: str
    seconds: float = 0.0


def note(line: str) -> None:
    """Append a line to the diary, at once and whole, so that a killed process leaves no half lines."""
    descriptor = os.open(DIRECTORY / "diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def note_duplicates(event: Event) -> None:
    """Write down which messages were found handled before."""
    if isinstance(event, HandlerFinished) and isinstance(event.error, AlreadyHandled):
        note(f"duplicate {event.message.id}")


async def with_asyncpg(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
    """Make an effect in the tenant's PostgreSQL database, and dawdle before and after its commit."""
    async with ctx.transaction() as tx:
        await tx.execute("INSERT INTO effects VALUES ($1)", order.order_id)
        await asyncio.sleep(order.seconds)
    note(f"done {order.order_id}")
    await asyncio.sleep(order.seconds)


async def with_sqlite(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
    """Make an effect in the tenant's SQLite file, and dawdle before and after its commit."""
    async with ctx.transaction() as tx:
        await tx.execute("INSERT INTO effects VALUES (?)", (order.order_id,))
        await asyncio.sleep(order.seconds)
    note(f"done {order.order_id}")
    await asyncio.sleep(order.seconds)


def dsn_of(tenant: Tenant) -> str:
    """Return where a tenant's PostgreSQL database is."""
    return f"{DSN}-{tenant.tenant_id}"


def file_of(tenant: Tenant) -> Path:
    """Return where a tenant's SQLite file is."""
    return tenant_file(DIRECTORY, tenant.tenant_id)


resources: Provider[Tenant, Any] = (
    asyncpg_inbox(asyncpg_pool(dsn_of))
    if DSN
    else sqlite_database(file_of, create=True, schema="CREATE TABLE IF NOT EXISTS effects (id TEXT)")
)
consumer: Consumer[Tenant, Any] = Consumer(
    "orders",
    context=Tenant,
    resources=resources,
    concurrency=Concurrency(total=10, per_tenant=5),
    visibility=Visibility(timeout=1.0),
    observers=[note_duplicates],
    client=AwsClient(region="us-east-1", endpoint_url=os.environ["ENDPOINT"]),
)
consumer.handler(with_asyncpg if DSN else with_sqlite)

if __name__ == "__main__":
    run(consumer)
