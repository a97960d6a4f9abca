"""What both checkers infer of ``ctx.transaction()``: its type comes from the resources."""
# ruff: noqa: D102, D103 - declarations to be looked at by checkers

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import assert_type

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import Connection as SyncEngineConnection
from sqlalchemy.ext.asyncio import AsyncConnection as EngineConnection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import sessionmaker

from postroom import Consumer, MessageContext, SyncTransactional, Transactional
from postroom.datasources import (
    AsyncpgDatabase,
    Provider,
    PsycopgConnections,
    PsycopgDatabase,
    PsycopgSyncDatabase,
    Registry,
    Scope,
    SqlalchemyDatabase,
    SqlalchemySyncDatabase,
    SqliteDatabase,
    SqliteSyncTransaction,
    SqliteTransaction,
    asyncpg_inbox,
    asyncpg_pool,
    psycopg_connections,
    psycopg_inbox,
    psycopg_pool,
    psycopg_sync_inbox,
    psycopg_sync_pool,
    sqlalchemy_engine,
    sqlalchemy_inbox,
    sqlalchemy_sync_engine,
    sqlalchemy_sync_inbox,
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


class MySession(AsyncSession): ...


def scope_of(tenant: Tenant) -> Scope:
    return Scope(schema=tenant.tenant_id)


with_psycopg = Consumer("q", context=Tenant, resources=psycopg_inbox(psycopg_pool(registry), scope=scope_of))
with_connections = Consumer("q", context=Tenant, resources=psycopg_inbox(psycopg_connections(registry)))
with_engine = Consumer("q", context=Tenant, resources=sqlalchemy_inbox(sqlalchemy_engine(registry)))
with_session = sqlalchemy_inbox(sqlalchemy_engine(registry), session=async_sessionmaker(expire_on_commit=False))
with_own_session = sqlalchemy_inbox(sqlalchemy_engine(registry), session=MySession)
assert_type(with_psycopg, Consumer[Tenant, PsycopgDatabase[AsyncConnectionPool[AsyncConnection[TupleRow]]]])
assert_type(with_connections, Consumer[Tenant, PsycopgDatabase[PsycopgConnections]])
assert_type(with_engine, Consumer[Tenant, SqlalchemyDatabase[EngineConnection]])
assert_type(with_session, Provider[Tenant, SqlalchemyDatabase[AsyncSession]])
assert_type(with_own_session, Provider[Tenant, SqlalchemyDatabase[MySession]])


@with_psycopg.handler
async def execute(order: Order, ctx: MessageContext[Tenant, PsycopgDatabase]) -> None:
    async with ctx.transaction() as tx:
        assert_type(tx, AsyncConnection[TupleRow])
    async with ctx.resources.pool.connection() as connection:
        assert_type(connection, AsyncConnection[TupleRow])


@with_engine.handler
async def core(order: Order, ctx: MessageContext[Tenant, SqlalchemyDatabase[EngineConnection]]) -> None:
    async with ctx.transaction() as tx:
        assert_type(tx, EngineConnection)


with_sessions = Consumer("q", context=Tenant, resources=with_own_session)


@with_sessions.handler
async def orm(order: Order, ctx: MessageContext[Tenant, SqlalchemyDatabase[MySession]]) -> None:
    async with ctx.transaction() as tx, ctx.resources.transaction() as other:
        assert_type(tx, MySession)
        assert_type(other, MySession)


class Repository:
    def __init__(self, database: AsyncpgDatabase) -> None:
        self.transaction_for = database.transaction_for


mapped = asyncpg_inbox(asyncpg_pool(registry)).map(Repository)
assert_type(mapped, Provider[Tenant, Repository])
assert_type(sqlalchemy_engine(registry), Provider[Tenant, AsyncEngine])
assert_type(sqlalchemy_engine(registry).map(async_sessionmaker), Provider[Tenant, async_sessionmaker[AsyncSession]])
with_repository = Consumer("q", context=Tenant, resources=mapped)


@with_repository.handler
async def through_repository(order: Order, ctx: MessageContext[Tenant, Repository]) -> None:
    async with ctx.transaction() as tx:
        assert_type(tx, PoolConnectionProxy[asyncpg.Record])


sync_psycopg = Consumer("q", context=Tenant, resources=psycopg_sync_inbox(psycopg_sync_pool(registry)))
sync_core = Consumer("q", context=Tenant, resources=sqlalchemy_sync_inbox(sqlalchemy_sync_engine(registry)))
sync_sessions = sqlalchemy_sync_inbox(sqlalchemy_sync_engine(registry), session=sessionmaker(expire_on_commit=False))
assert_type(sync_psycopg, Consumer[Tenant, PsycopgSyncDatabase])
assert_type(sync_core, Consumer[Tenant, SqlalchemySyncDatabase[SyncEngineConnection]])
assert_type(sync_sessions, Provider[Tenant, SqlalchemySyncDatabase[OrmSession]])


@sync_psycopg.handler
def plain_psycopg(order: Order, ctx: MessageContext[Tenant, PsycopgSyncDatabase]) -> None:
    with ctx.transaction(key=order.order_id) as tx, ctx.resources.transaction() as other:
        assert_type(tx, Connection[TupleRow])
        assert_type(other, Connection[TupleRow])


@sync_core.handler
def plain_core(order: Order, ctx: MessageContext[Tenant, SqlalchemySyncDatabase[SyncEngineConnection]]) -> None:
    with ctx.transaction() as tx:
        assert_type(tx, SyncEngineConnection)


with_sync_sessions = Consumer("q", context=Tenant, resources=sync_sessions)


@with_sync_sessions.handler
def plain_orm(order: Order, ctx: MessageContext[Tenant, SqlalchemySyncDatabase[OrmSession]]) -> None:
    with ctx.transaction() as tx:
        assert_type(tx, OrmSession)


@with_sqlite.handler
def plain_file(order: Order, ctx: MessageContext[Tenant, SqliteDatabase]) -> None:
    with ctx.transaction() as tx:
        assert_type(tx, SqliteSyncTransaction)
        assert_type(tx.execute("INSERT INTO orders VALUES (?)", (order.order_id,)), int)


def plain_protocol(order: Order, ctx: MessageContext[Tenant, SyncTransactional[Session]]) -> None:
    assert_type(ctx.transaction(), AbstractContextManager[Session])
