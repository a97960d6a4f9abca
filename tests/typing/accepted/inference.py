"""What both checkers infer and accept; `assert_type` fails the check where they infer anything else."""
# ruff: noqa: D102, D103, PYI034 - declarations to be looked at by checkers

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, assert_type

import msgspec

from postroom import Consumer, Message, MessageContext, ResourcePool, run
from postroom.payloads import KeyRing, context_from_attributes, cross_check_group, signed


@dataclass(frozen=True)
class Tenant:
    tenant_id: str
    region: str


class TenantStruct(msgspec.Struct, frozen=True):
    tenant_id: str


class TenantTuple(NamedTuple):
    tenant_id: str


@dataclass
class Order:
    order_id: str


class Pool:
    async def execute(self, query: str, *args: object) -> str:
        return query


class Executes(Protocol):
    async def execute(self, query: str, *args: object) -> str: ...


def tenant_of(message: Message) -> Tenant:
    return Tenant(message.attributes["tenantId"], message.attributes["region"])


async def look_up(message: Message) -> Tenant:
    return tenant_of(message)


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[Pool]:
    yield Pool()


@asynccontextmanager
async def struct_database(tenant: TenantStruct) -> AsyncGenerator[Pool]:
    yield Pool()


@asynccontextmanager
async def sized(tenant: Tenant, connections: int) -> AsyncGenerator[Pool]:
    yield Pool()


async def open_named(name: str) -> Pool:
    return Pool()


async def open_database(tenant: Tenant) -> Pool:
    return Pool()


async def close_database(pool: Pool) -> None: ...


def close_at_once(pool: Pool) -> None: ...


class Manager:
    @asynccontextmanager
    async def database(self, tenant: Tenant) -> AsyncGenerator[Pool]:
        yield Pool()


class Database:
    def __init__(self, tenant: Tenant) -> None: ...
    async def __aenter__(self) -> "Database":
        return self

    async def __aexit__(self, *error: object) -> None: ...


# Resolvers and providers of every kind.
by_function = Consumer("q", context=tenant_of, resources=database)
assert_type(by_function, Consumer[Tenant, Pool])
assert_type(Consumer("q", context=look_up, resources=database), Consumer[Tenant, Pool])
assert_type(Consumer("q", context=Tenant, resources=database), Consumer[Tenant, Pool])
assert_type(Consumer("q", context=TenantStruct, resources=struct_database), Consumer[TenantStruct, Pool])
assert_type(Consumer("q", context=TenantTuple), Consumer[TenantTuple, None])
assert_type(Consumer("q", context=Tenant, resources=open_database, cleanup=close_database), Consumer[Tenant, Pool])
assert_type(Consumer("q", context=Tenant, resources=open_database, cleanup=close_at_once), Consumer[Tenant, Pool])
assert_type(Consumer("q", context=look_up, resources=open_database), Consumer[Tenant, Pool])
assert_type(Consumer("q", context=tenant_of, resources=Manager().database), Consumer[Tenant, Pool])
assert_type(Consumer("q", context=tenant_of, resources=Database), Consumer[Tenant, Database])
assert_type(Consumer("q", context=Tenant, resources=lambda tenant: sized(tenant, 4)), Consumer[Tenant, Pool])
assert_type(Consumer("q", context=tenant_of, resources=lambda one: open_named(one.region)), Consumer[Tenant, Pool])

# A pool of one's own.
databases = ResourcePool(database)
assert_type(databases, ResourcePool[Tenant, Pool])
assert_type(ResourcePool(open_database, cleanup=close_database), ResourcePool[Tenant, Pool])
assert_type(Consumer("q", context=tenant_of, resources=databases), Consumer[Tenant, Pool])

# Without a context, without resources: None, by the defaults of the type variables.
bare = Consumer("q")
without_resources = Consumer("q", context=tenant_of)
assert_type(bare, Consumer[None, None])
assert_type(without_resources, Consumer[Tenant, None])
# mypy cannot tell an async resolver from a sync one that returns a coroutine unless resources= says the context.
assert_type(Consumer[Tenant]("q", context=look_up), Consumer[Tenant, None])

# Resolvers made of resolvers.
from_attributes = context_from_attributes(Tenant)
verified = signed(from_attributes, keys=KeyRing({"k": b"k" * 32}), queue="q")
assert_type(from_attributes(Message(id="", body="")), Tenant)
assert_type(verified(Message(id="", body="")), Tenant)
assert_type(Consumer("q", context=verified, resources=database), Consumer[Tenant, Pool])
checked = cross_check_group(tenant_of, tenant=lambda context: context.tenant_id)
assert_type(Consumer("q", context=checked, resources=database), Consumer[Tenant, Pool])


@by_function.handler
async def exact(order: Order, ctx: MessageContext[Tenant, Pool]) -> None:
    assert_type(ctx.context, Tenant)
    assert_type(ctx.resources, Pool)
    assert_type(ctx.message, Message)


@by_function.handler
def sync(order: Order, ctx: MessageContext[Tenant, Pool]) -> None: ...


@by_function.handler
async def protocol_only(order: Order, ctx: MessageContext[Tenant, Executes]) -> None:
    await ctx.resources.execute("...", order.order_id)


@by_function.handler
async def nothing_of_it(order: dict[str, Any], ctx: MessageContext[object, object]) -> None: ...


class Handler:
    async def __call__(self, order: Order, ctx: MessageContext[Tenant, Pool]) -> None: ...


class Service:
    async def record(self, order: Order, ctx: MessageContext[Tenant, Pool]) -> None: ...


by_function.handler(Handler())
by_function.handler(Service().record)


@bare.handler
async def no_context(order: Order, ctx: MessageContext) -> None:
    assert_type(ctx.context, None)
    assert_type(ctx.resources, None)


@without_resources.handler
async def no_resources(order: Order, ctx: MessageContext[Tenant]) -> None:
    assert_type(ctx.resources, None)


async def in_a_test(ctx: MessageContext[Tenant, Pool]) -> None:
    """The decorator keeps what calling the handler returns: await works on an async one."""
    await exact(Order(""), ctx)
    sync(Order(""), ctx)


if __name__ == "__main__":
    run(by_function, bare, without_resources)
