"""The service: orders come over HTTP, go through SQS, and end in their tenant's own PostgreSQL.

``uvicorn --factory examples.fastapi_app.main:create_app``
"""

import json
import logging
import os
from dataclasses import dataclass
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, Field

from postroom import (
    AwsClient,
    Concurrency,
    Consumer,
    MessageContext,
    Polling,
    PoolLimits,
    PoolTimeouts,
    Reject,
    RetryPolicy,
    Sender,
    SendFailed,
)
from postroom.datasources import AsyncpgDatabase, Registry, asyncpg_inbox, asyncpg_pool
from postroom.integrations.asgi import health_app
from postroom.integrations.fastapi import leased, lifespan
from postroom.integrations.otel import Telemetry, inject


@dataclass(frozen=True)
class Tenant:
    """The tenant of an order. It comes with the request, and travels as a message attribute."""

    tenant_id: str


class Order(BaseModel):
    """What is ordered."""

    order_id: str
    seconds: float = Field(default=0.0, ge=0, le=60)
    """How long it takes to handle."""


@dataclass(frozen=True)
class Settings:
    """What differs between environments."""

    queue: str
    databases: dict[Tenant, str]
    poll: float = 20.0

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read ``ORDERS_QUEUE``, ``ORDERS_DATABASES`` (JSON: tenant to DSN) and ``ORDERS_POLL`` (seconds)."""
        databases = json.loads(os.environ["ORDERS_DATABASES"])
        return cls(
            queue=os.environ.get("ORDERS_QUEUE", "orders"),
            databases={Tenant(tenant): dsn for tenant, dsn in databases.items()},
            poll=float(os.environ.get("ORDERS_POLL", "20")),
        )


def tenant_of(x_tenant: Annotated[str, Header()]) -> Tenant:
    """Return the tenant of a request. A real service takes it from a verified token."""
    return Tenant(x_tenant)


def make_consumer(settings: Settings, client: AwsClient, telemetry: Telemetry) -> Consumer[Tenant, AsyncpgDatabase]:
    """Make the consumer and the pool that it shares with the requests. Nothing is opened here."""
    databases = asyncpg_inbox(asyncpg_pool(Registry(settings.databases), max_size=4), create=True).pool(
        limits=PoolLimits(budget=20), timeouts=PoolTimeouts(lease=15, close=4), name="orders"
    )
    orders: Consumer[Tenant, AsyncpgDatabase] = Consumer(
        settings.queue,
        context=Tenant,
        resources=databases,
        client=client,
        concurrency=Concurrency(total=16, per_tenant=4, handler_timeout=10),
        polling=Polling(wait=settings.poll),
        retry=RetryPolicy(attempts=5),
        observers=[telemetry],
    )

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, AsyncpgDatabase]) -> None:
        async with ctx.transaction() as tx:  # the order and the message's row in the inbox, or neither
            try:
                await tx.execute("INSERT INTO orders (order_id) VALUES ($1)", order.order_id)
            except asyncpg.DataError as error:  # no retry will make it fit
                raise Reject("the database cannot store this order") from error
            await tx.execute("SELECT pg_sleep($1)", order.seconds)

    return orders


def create_app() -> FastAPI:
    """Make the application. Each worker process of the server calls it, and so has its own consumer."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings.from_environment()
    client = AwsClient()
    telemetry = Telemetry()  # without OpenTelemetry's SDK it does nothing; observed.py sets that up
    sender = Sender(settings.queue, context=Tenant, trace=inject, client=client)
    orders = make_consumer(settings, client, telemetry)
    databases = orders.pool
    assert databases is not None  # noqa: S101 - it was passed

    app = FastAPI(title="orders", lifespan=lifespan(client, databases, sender, orders))
    app.mount("/postroom", health_app(orders))
    database_of_request = Depends(leased(databases, tenant_of), scope="function")

    @app.post("/orders", status_code=202)
    async def place(order: Order, tenant: Annotated[Tenant, Depends(tenant_of)]) -> dict[str, str]:
        try:
            with telemetry.sending(settings.queue):
                return {"message_id": await sender.send(order, context=tenant)}
        except SendFailed as error:
            raise HTTPException(503, "the order was not taken") from error

    @app.get("/orders")
    async def show(database: Annotated[AsyncpgDatabase, database_of_request]) -> list[str]:
        rows: list[Any] = await database.pool.fetch("SELECT order_id FROM orders ORDER BY order_id")
        return [row["order_id"] for row in rows]

    return app


async def prepare(dsn: str) -> None:
    """Create a tenant's table. A real service does this in its migrations."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS orders (order_id text NOT NULL)")
    finally:
        await connection.close()
