"""What both checkers infer of ``ctx.transaction()``: its type comes from the resources."""
# ruff: noqa: D102, D103 - declarations to be looked at by checkers

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import assert_type

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from postroom import Consumer, MessageContext, Transactional
from postroom.datasources import (
    AsyncpgDatabase,
    Registry,
    SqliteDatabase,
    SqliteTransaction,
    asyncpg_inbox,
    asyncpg_pool,
    sqlite_database,
    tenant_file,
)
from postroom.transactions import MessageKey


@dataclass(frozen=True)
class Tenant:
    tenant_id: str


@dataclass
class Order:
    order_id: str


class Session:
    async def save(self, order: Order) -> None: ...


class Storage:
    @asynccontextmanager
    async def transaction_for(self, key: MessageKey, /) -> AsyncGenerator[Session]:
        yield Session()


@asynccontextmanager
async def storage(tenant: Tenant) -> AsyncGenerator[Storage]:
    yield Storage()


def file_of(tenant: Tenant) -> str:
    return str(tenant_file("/var/lib/orders", tenant.tenant_id))


registry = Registry({Tenant("a"): "postgresql://localhost/a"})
with_storage = Consumer("q", context=Tenant, resources=storage)
with_asyncpg = Consumer("q", context=Tenant, resources=asyncpg_inbox(asyncpg_pool(registry)))
with_sqlite = Consumer("q", context=Tenant, resources=sqlite_database(file_of))
with_pool = Consumer("q", context=Tenant, resources=asyncpg_inbox(asyncpg_pool(registry)).pool())
assert_type(with_storage, Consumer[Tenant, Storage])
assert_type(with_asyncpg, Consumer[Tenant, AsyncpgDatabase])
assert_type(with_sqlite, Consumer[Tenant, SqliteDatabase])
assert_type(with_pool, Consumer[Tenant, AsyncpgDatabase])


@with_storage.handler
async def save(order: Order, ctx: MessageContext[Tenant, Storage]) -> None:
    async with ctx.transaction() as tx:
        assert_type(tx, Session)
        await tx.save(order)


@with_asyncpg.handler
async def insert(order: Order, ctx: MessageContext[Tenant, AsyncpgDatabase]) -> None:
    async with ctx.transaction(key=order.order_id) as tx:
        assert_type(tx, PoolConnectionProxy[asyncpg.Record])
        await tx.execute("INSERT INTO orders VALUES ($1)", order.order_id)


@with_sqlite.handler
async def write(order: Order, ctx: MessageContext[Tenant, SqliteDatabase]) -> None:
    async with ctx.transaction() as tx:
        assert_type(tx, SqliteTransaction)
        assert_type(await tx.execute("INSERT INTO orders VALUES (?)", (order.order_id,)), int)


@with_storage.handler
async def by_protocol(order: Order, ctx: MessageContext[Tenant, Transactional[Session]]) -> None:
    assert_type(ctx.transaction(), AbstractAsyncContextManager[Session])
