"""One replica of a fleet as a process: each handler writes into its tenant's own database what that database runs.

Configured by the environment: ENDPOINT, DSN (of which ``-tenant`` makes a tenant's), STORE, CAP, LEASE, TICK, FALLBACK,
NAME. Its input takes orders, one a line: ``pause TENANT`` and ``resume TENANT``. At its end it prints what it did.
"""

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, cast

from postroom import (
    AwsClient,
    Concurrency,
    Consumer,
    Fleet,
    MessageContext,
    Polling,
    PoolLimits,
    ResourcePool,
    Shutdown,
    Visibility,
    run,
)
from postroom.datasources import asyncpg_pool
from postroom.fleet import Fallback

NAME = os.environ["NAME"]
BEGIN = """
INSERT INTO runs (replica, order_id, part, decided, pid, others)
SELECT $1, $2, $3, to_timestamp($4), pg_backend_pid(), ARRAY(
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND (
        query LIKE '%INSERT INTO runs%' OR query LIKE 'SELECT pg_sleep%'
        OR (query LIKE 'UPDATE runs%' AND state = 'active')
    )
) RETURNING id
"""
"""A handler begins: the database itself counts which other sessions of this tenant are in a handler now."""


@dataclass(frozen=True)
class Tenant:
    """The tenant of a message."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """What to do, and how long the database takes for it."""

    order_id: int
    seconds: float


def dsn_of(tenant: Tenant) -> str:
    """Return the tenant's own database."""
    return f"{os.environ['DSN']}-{tenant.tenant_id}"


consumer: Consumer[Tenant, Any] = Consumer(
    "orders",
    context=Tenant,
    resources=ResourcePool(asyncpg_pool(dsn_of, max_size=8), limits=PoolLimits(budget=256)),
    concurrency=Concurrency(total=24, per_tenant=8),
    polling=Polling(wait=1.0, scout=False, prefetch=8),
    visibility=Visibility(timeout=10.0),
    shutdown=Shutdown(within=10),
    client=AwsClient(region="us-east-1", endpoint_url=os.environ["ENDPOINT"]),
    fleet=Fleet(
        os.environ["STORE"],
        per_tenant=int(os.environ["CAP"]),
        lease=float(os.environ["LEASE"]),
        tick=float(os.environ["TICK"]),
        fallback=cast("Fallback", os.environ["FALLBACK"]),
    ),
)


@consumer.handler
async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
    """Run in the tenant's database for a while, which writes down from when to when."""
    decided, part = time.time(), own_part()
    async with ctx.resources.acquire() as connection:
        number = await connection.fetchval(BEGIN, NAME, order.order_id, part, decided)
        await connection.execute("SELECT pg_sleep($1)", order.seconds)
        await connection.execute("UPDATE runs SET ended = clock_timestamp() WHERE id = $1", number)


def own_part() -> int | None:
    """Return how many handlers of a tenant the fallback lets this replica run now; None while its slots hold."""
    fleet = consumer.statistics().fleet
    assert fleet is not None
    return max(1, int(os.environ["CAP"]) // max(fleet.replicas, 1)) if fleet.degraded else None


def obey() -> None:
    """Carry out orders until the input ends. A thread: decisions may be made from any."""
    for line in sys.stdin:
        what, tenant = line.split()
        getattr(consumer.tenants, what)(Tenant(tenant), reason="the trial says so")


def told() -> str:
    """Return what this replica did, for who started it."""
    said = consumer.statistics()
    fleet = said.fleet
    assert fleet is not None
    return json.dumps({
        "succeeded": said.succeeded, "failed": dict(said.failed), "settled": dict(said.settled),
        "cancelled": said.cancelled, "overruns": fleet.overruns, "exchanges": fleet.exchanges,
        "failed_exchanges": fleet.failed_exchanges,
    })  # fmt: skip


if __name__ == "__main__":
    threading.Thread(target=obey, daemon=True).start()
    run(consumer)
    print(told(), flush=True)
