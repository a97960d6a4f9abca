"""A worker process for the process tests: one consumer, one SQLite database per tenant, and a diary of what happened.

Configured by the environment: ENDPOINT, QUEUE, DIRECTORY, VISIBILITY, TOTAL, DRAIN.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from postroom import AwsClient, Concurrency, Consumer, MessageContext, Shutdown, Visibility, run

DIRECTORY = Path(os.environ["DIRECTORY"])


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


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[sqlite3.Connection]:
    """Open the tenant's own file."""
    with contextlib.closing(sqlite3.connect(DIRECTORY / f"{tenant.tenant_id}.db", timeout=30)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (order_id TEXT)")
        note(f"open {tenant.tenant_id}")
        try:
            yield connection
        finally:
            note(f"close {tenant.tenant_id}")


orders = Consumer(
    os.environ.get("QUEUE", "orders"),
    context=Tenant,
    resources=database,
    concurrency=Concurrency(total=int(os.environ.get("TOTAL", "10")), per_tenant=int(os.environ.get("TOTAL", "10"))),
    visibility=Visibility(timeout=float(os.environ.get("VISIBILITY", "30"))),
    shutdown=Shutdown(drain=float(os.environ.get("DRAIN", "30"))),
    client=AwsClient(region="us-east-1", endpoint_url=os.environ["ENDPOINT"]),
)


@orders.handler
async def record(order: Order, ctx: MessageContext[Tenant, sqlite3.Connection]) -> None:
    """Write the order to the tenant's database."""
    note(f"start {order.order_id}")
    await asyncio.sleep(order.seconds)
    with ctx.resources:
        ctx.resources.execute("INSERT INTO orders VALUES (?)", (order.order_id,))
    note(f"done {order.order_id}")


if __name__ == "__main__":
    run(orders)
