"""Two tenants share one database. Run it with ``python -m examples.shared_database.main``: it brings its own server.

Row-level security shows each tenant its own rows. ``Scope`` tells PostgreSQL which tenant it is,
inside each transaction. The inbox is in the same transaction, so an order that is sent twice is
recorded once.
"""

import asyncio
from dataclasses import dataclass

from examples.running import run_example
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from postroom import Consumer, MessageContext
from postroom.datasources import (
    DataSource,
    Provider,
    Registry,
    Scope,
    SqlalchemyDatabase,
    postgres_inbox,
    sqlalchemy_engine,
    sqlalchemy_inbox,
)
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.testing.postgres import PostgresServer
from postroom.transports.memory import MemoryClient

SCHEMA = f"""
CREATE TABLE orders (order_id text NOT NULL, tenant text NOT NULL DEFAULT current_setting('app.tenant'));
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON orders USING (tenant = current_setting('app.tenant', true));
{postgres_inbox().schema}
CREATE ROLE app LOGIN PASSWORD 'app';
GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
"""


@dataclass(frozen=True)
class Tenant:
    """The tenant of a message."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """The payload of a message."""

    order_id: str


TENANTS = (Tenant("acme"), Tenant("globex"))
Database = SqlalchemyDatabase[AsyncSession]


def databases(dsn: str) -> Provider[Tenant, Database]:
    """Provide each tenant's part of the shared database. The registry decides who is a tenant."""
    registry = Registry(dict.fromkeys(TENANTS, DataSource(dsn)))
    return sqlalchemy_inbox(
        sqlalchemy_engine(registry, max_size=2),
        session=AsyncSession,
        scope=lambda tenant: Scope(settings={"app.tenant": tenant.tenant_id}),
    )


async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
    """Record an order, once, and print how many orders its tenant sees."""
    async with ctx.transaction(key=order.order_id) as session:
        await session.execute(text("INSERT INTO orders (order_id) VALUES (:id)"), {"id": order.order_id})
        count = (await session.execute(text("SELECT count(*) FROM orders"))).scalar_one()
    print(f"{ctx.context.tenant_id}: recorded {order.order_id}, sees {count}")


async def main() -> None:
    """Send the same three orders to both tenants, one of them twice, and handle them."""
    with PostgresServer() as server:
        server.create_database("shared", schema=SCHEMA)
        dsn = server.dsn("shared", user="app", password="app")  # noqa: S106 - the server lives for a moment
        async with LocalBroker() as broker, MemoryClient(broker) as client:
            broker.create_queue("orders")
            queue = await client.queue("orders")
            for tenant in TENANTS:
                for order_id in ("order-1", "order-2", "order-3", "order-2"):
                    await send(queue, Order(order_id), tenant)
            orders = Consumer("orders", context=Tenant, resources=databases(dsn), client=client)
            orders.handler(record)
            async with orders:
                while sum(orders.statistics().settled.values()) < 8:  # noqa: ASYNC110 - statistics are asked for
                    await asyncio.sleep(0.05)


if __name__ == "__main__":
    run_example(main)
