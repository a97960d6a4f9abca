"""One replica of a fleet as a process: each handler writes its begin and end into its tenant's own database.

Configured by the environment: ENDPOINT, DSN (of which ``-tenant`` makes a tenant's), STORE, CAP, LEASE, TICK, NAME.
"""

import os
from dataclasses import dataclass
from typing import Any

from postroom import AwsClient, Concurrency, Consumer, Fleet, MessageContext, Polling, Shutdown, Visibility, run
from postroom.datasources import asyncpg_pool

NAME = os.environ["NAME"]


@dataclass(frozen=True)
class Tenant:
    """The tenant of a message."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """What to do, and how long the database takes for it."""

    order_id: str
    seconds: float


def dsn_of(tenant: Tenant) -> str:
    """Return the tenant's own database."""
    return f"{os.environ['DSN']}-{tenant.tenant_id}"


consumer: Consumer[Tenant, Any] = Consumer(
    "orders",
    context=Tenant,
    resources=asyncpg_pool(dsn_of, max_size=8),
    concurrency=Concurrency(total=24, per_tenant=8),
    polling=Polling(wait=1.0, scout=False, prefetch=8),
    visibility=Visibility(timeout=5.0),
    shutdown=Shutdown(within=10),
    client=AwsClient(region="us-east-1", endpoint_url=os.environ["ENDPOINT"]),
    fleet=Fleet(
        os.environ["STORE"],
        per_tenant=int(os.environ["CAP"]),
        lease=float(os.environ["LEASE"]),
        tick=float(os.environ["TICK"]),
    ),
)


@consumer.handler
async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
    """Run in the tenant's database for a while, which writes down from when to when."""
    begun = "INSERT INTO runs (replica, order_id) VALUES ($1, $2) RETURNING id"
    async with ctx.resources.acquire() as connection:
        number = await connection.fetchval(begun, NAME, order.order_id)
        await connection.execute("SELECT pg_sleep($1)", order.seconds)
        await connection.execute("UPDATE runs SET ended = clock_timestamp() WHERE id = $1", number)


if __name__ == "__main__":
    run(consumer)
