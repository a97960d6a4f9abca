"""Mistakes that both checkers must find, each on the line that says so, and nowhere else."""
# ruff: noqa: D103 - the names say what is wrong

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from postroom import Consumer, Message, MessageContext, ResourcePool
from postroom.testing import deliver


@dataclass(frozen=True)
class Tenant:
    tenant_id: str


@dataclass(frozen=True)
class Customer:
    customer_id: str


class Pool: ...


class Order: ...


def tenant_of(message: Message) -> Tenant:
    return Tenant(message.attributes["tenantId"])


def customer_of(message: Message) -> Customer:
    return Customer(message.attributes["customerId"])


async def look_customer_up(message: Message) -> Customer:
    return customer_of(message)


def maybe_tenant(message: Message) -> Tenant | None:
    return None


def of_nothing() -> Tenant:
    return Tenant("")


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[Pool]:
    yield Pool()


@asynccontextmanager
async def sized(tenant: Tenant, connections: int) -> AsyncGenerator[Pool]:
    yield Pool()


async def open_database(tenant: Tenant) -> Pool:
    return Pool()


async def undecorated(tenant: Tenant) -> AsyncIterator[Pool]:
    yield Pool()


def sync_provider(tenant: Tenant) -> Pool:
    return Pool()


async def close_number(number: int) -> None: ...


orders = Consumer("q", context=tenant_of, resources=database)
by_lambda = Consumer("q", context=Tenant, resources=lambda tenant: sized(tenant, 4))
no_resources = Consumer("q", context=tenant_of)
bare = Consumer("q")
databases = ResourcePool(database)

# Resolver and provider disagree.
Consumer("q", context=customer_of, resources=database)  # E: mypy(misc) pyright(reportArgumentType)
Consumer("q", context=look_customer_up, resources=database)  # E: mypy(arg-type) pyright(reportArgumentType)
Consumer("q", context=Customer, resources=database)  # E: mypy(misc) pyright(reportArgumentType)
Consumer("q", context=customer_of, resources=open_database)  # E: mypy(misc) pyright(reportArgumentType)
Consumer("q", context=customer_of, resources=databases)  # E: mypy(misc) pyright(reportArgumentType)
Consumer("q", context=maybe_tenant, resources=database)  # E: mypy(misc) pyright(reportArgumentType)

# Not a resolver, not a provider, not the cleanup of these resources.
Consumer("q", context=of_nothing)  # E: mypy(arg-type) pyright(reportArgumentType)
Consumer("q", context=tenant_of, resources=undecorated)  # E: mypy(arg-type) pyright(reportArgumentType)
Consumer("q", context=tenant_of, resources=sync_provider)  # E: mypy(arg-type) pyright(reportArgumentType)
Consumer("q", resources=open_database, cleanup=close_number)  # E: mypy(misc) pyright(reportArgumentType)


@orders.handler  # E: mypy(arg-type) pyright(reportArgumentType)
async def other_resources(order: Order, ctx: MessageContext[Tenant, int]) -> None: ...


@orders.handler  # E: mypy(arg-type) pyright(reportArgumentType)
async def other_context(order: Order, ctx: MessageContext[Customer, Pool]) -> None: ...


@by_lambda.handler  # E: mypy(arg-type) pyright(reportArgumentType)
async def other_context_than_of_a_lambda(order: Order, ctx: MessageContext[Customer, Pool]) -> None: ...


@no_resources.handler  # E: mypy(arg-type) pyright(reportArgumentType)
async def wants_resources(order: Order, ctx: MessageContext[Tenant, Pool]) -> None: ...


@bare.handler  # E: mypy(arg-type) pyright(reportArgumentType)
async def wants_context(order: Order, ctx: MessageContext[Tenant]) -> None: ...


@orders.handler  # E: mypy(type-var) pyright(reportArgumentType)
async def returns_something(order: Order, ctx: MessageContext[Tenant, Pool]) -> int:
    return 1


@orders.handler  # E: mypy(type-var) pyright(reportArgumentType)
def returns_something_sync(order: Order, ctx: MessageContext[Tenant, Pool]) -> int:
    return 1


@orders.handler  # E: mypy(arg-type) pyright(reportArgumentType)
async def takes_no_context(order: Order) -> None: ...


def frozen(ctx: MessageContext[Tenant, Pool]) -> None:
    ctx.context = Tenant("other")  # E: mypy(misc) pyright(reportAttributeAccessIssue)
    ctx.resources = Pool()  # E: mypy(misc) pyright(reportAttributeAccessIssue)


def not_a_policy(message: Message) -> int:
    return 1


Consumer("q", retry=not_a_policy)  # E: mypy(arg-type) pyright(reportArgumentType)
orders.adjust(8)  # E: mypy(arg-type) pyright(reportArgumentType)


async def settled_wrongly(ctx: MessageContext[Tenant, Pool]) -> None:
    await ctx.extend("60")  # E: mypy(arg-type) pyright(reportArgumentType)
    await ctx.ack(1)  # E: mypy(call-arg) pyright(reportCallIssue)


async def delivered_to_another_tenant() -> None:
    await deliver(orders, Order(), context=Customer(""))  # E: mypy(misc) pyright(reportArgumentType)
