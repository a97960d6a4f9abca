"""What both checkers infer of senders, routers, batches and outboxes."""
# ruff: noqa: D103 - declarations to be looked at by checkers

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, assert_type

from postroom import BatchContext, Consumer, MessageContext, OutgoingMessage, Router, Sender, by_attribute
from postroom.datasources import AsyncpgDatabase, Registry, asyncpg_inbox, asyncpg_pool
from postroom.outbox import OutboxRelay, postgres_outbox


@dataclass(frozen=True)
class Tenant:
    tenant_id: str


@dataclass
class Order:
    order_id: str


class Database: ...


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[Database]:
    yield Database()


orders = Consumer("orders", context=Tenant, resources=database)
router: Router[Tenant, Database] = Router(by_attribute("kind"))


@router.handler("a", "b")
async def created(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
    assert_type(ctx.resources, Database)


@router.handler("c")
def paid(order: dict[str, Any], ctx: MessageContext[Tenant, Database]) -> None: ...


@router.otherwise
async def rest(order: str, ctx: MessageContext[Tenant, Database]) -> None: ...


orders.handler(router)

more = Consumer("more", context=Tenant, resources=database)


@more.handler()
async def handle(order: Order, ctx: MessageContext[Tenant, Database]) -> None: ...


readings = Consumer("readings", context=Tenant, resources=database)


@readings.batch_handler(size=8, wait=0.5)
async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
    assert_type(batch.context, Tenant)
    assert_type(batch.resources, Database)
    assert_type(batch.items[0].context, Tenant)


sender = Sender("orders", context=Tenant, group=lambda tenant: tenant.tenant_id)
assert_type(sender, Sender[Tenant])
databases = asyncpg_inbox(asyncpg_pool(Registry({Tenant("a"): "postgresql://"})))
outbox = postgres_outbox()
relay = OutboxRelay(databases, tenants=[Tenant("a")], outbox=outbox, senders=[sender])


async def send(ctx: MessageContext[Tenant, AsyncpgDatabase]) -> None:
    message = sender.message(Order("1"), context=ctx.context, attributes={"count": 1})
    assert_type(message, OutgoingMessage)
    async with ctx.transaction() as tx, sender:
        await outbox.add(tx, sender, message)
        assert_type(await sender.send(Order("1"), context=ctx.context), str)
        assert_type(await sender.send_many([Order("1")], context=ctx.context), list[str])
    relay.wake(ctx.context)
