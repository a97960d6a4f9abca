"""SQLAlchemy's ORM with a database per tenant. Run it with ``python -m examples.sqlalchemy_orm.main``.

It brings its own PostgreSQL. Each tenant has a database and an engine of its own. ``ctx.transaction()`` is a session of
the message's tenant. The objects and the message's row in the inbox are one transaction, so an order that is delivered
twice is stored once.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from examples.running import run_example
from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from postroom import Consumer, MessageContext
from postroom.datasources import (
    Provider,
    Registry,
    SqlalchemyDatabase,
    postgres_inbox,
    sqlalchemy_engine,
    sqlalchemy_inbox,
)
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.testing.postgres import PostgresServer
from postroom.transports.memory import MemoryClient

Database = SqlalchemyDatabase[AsyncSession]


class Base(DeclarativeBase):
    """The tables of one tenant. They name no tenant: the database is the tenant's own."""


class Order(Base):
    """An order with its lines."""

    __tablename__ = "orders"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    lines: Mapped[list["Line"]] = relationship(back_populates="order")


class Line(Base):
    """One line of an order."""

    __tablename__ = "lines"

    line_id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(ForeignKey("orders.order_id"))
    article: Mapped[str]
    price: Mapped[Decimal]
    order: Mapped[Order] = relationship(back_populates="lines")


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str


class LinePlaced(BaseModel):
    """One line of the payload."""

    article: str
    price: Decimal


class OrderPlaced(BaseModel):
    """The payload. It is a type of its own: the table may change without the message."""

    order_id: str
    customer: str
    lines: list[LinePlaced]


def databases(dsns: Mapping[Tenant, str]) -> Provider[Tenant, Database]:
    """Provide an engine with at most four connections for each tenant, and sessions of it."""
    engines = sqlalchemy_engine(Registry(dsns), max_size=4)
    return sqlalchemy_inbox(engines, session=async_sessionmaker(expire_on_commit=False))


async def store(placed: OrderPlaced, ctx: MessageContext[Tenant, Database]) -> None:
    """Store an order with its lines, once."""
    order = Order(
        order_id=placed.order_id,
        customer=placed.customer,
        lines=[Line(article=line.article, price=line.price) for line in placed.lines],
    )
    async with ctx.transaction(key=placed.order_id) as session:  # flushed and committed at the end
        session.add(order)
    print(f"{ctx.context.tenant_id}: stored {order.order_id} with {len(order.lines)} lines")


async def report(database: Database) -> str:
    """Return what a tenant's database has."""
    async with database.transaction() as session:  # one without a message: nothing is written to the inbox
        orders = await session.scalar(select(func.count()).select_from(Order))
        total = await session.scalar(select(func.sum(Line.price)))
    return f"{orders} orders, {total} in all"


def create_database(server: PostgresServer, tenant: Tenant) -> str:
    """Create a tenant's database with its tables, and return its DSN. A real service does this with Alembic."""
    dsn = server.create_database(tenant.tenant_id, schema=postgres_inbox().schema)
    engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    engine.dispose()
    return dsn


async def main() -> None:
    """Send two orders to each of two tenants, each of them twice."""
    tenants = (Tenant("acme"), Tenant("globex"))
    lines = [LinePlaced(article="chair", price=Decimal("49.90")), LinePlaced(article="desk", price=Decimal(199))]
    with PostgresServer() as server:
        dsns = {tenant: create_database(server, tenant) for tenant in tenants}
        async with LocalBroker() as broker, MemoryClient(broker) as client:
            broker.create_queue("orders")
            queue = await client.queue("orders")
            for tenant in tenants:
                for number in (1, 2, 1, 2):
                    placed = OrderPlaced(order_id=f"order-{number}", customer="Ada", lines=lines)
                    await send(queue, placed, tenant)
            pool = databases(dsns).pool()
            orders = Consumer("orders", context=Tenant, resources=pool, client=client)
            orders.handler(store)
            async with pool, orders:
                while sum(orders.statistics().settled.values()) < 8:  # noqa: ASYNC110 - statistics are asked for
                    await asyncio.sleep(0.05)
                for tenant in tenants:
                    async with pool.lease(tenant) as database:
                        print(f"{tenant.tenant_id}: {await report(database)}")


if __name__ == "__main__":
    run_example(main)
