"""Every driver of PostgreSQL behind one shape: how it is provided, and one connection of it as a test uses it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import psycopg_pool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import postroom.datasources
from postroom.datasources import (
    DataSource,
    Provider,
    PsycopgConnections,
    Registry,
    asyncpg_pool,
    psycopg_connections,
    psycopg_sync_pool,
    sqlalchemy_engine,
    sqlalchemy_sync_engine,
)
from postroom.datasources._threads import in_thread
from support.tenant_database import TenantDatabase


@dataclass(frozen=True)
class Connection:
    """One connection of any driver, as this suite uses it."""

    value: Callable[[str], Awaitable[Any]]
    commit: Callable[[], Awaitable[Any]]
    close: Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Driver:
    """How one driver is provided and used."""

    name: str
    provide: Callable[..., Provider[Any, Any]]
    connect: Callable[[Any], AbstractAsyncContextManager[Connection]]
    scheme: str = "postgresql"
    keeps_connections: bool = True
    """Whether a connection that is given back serves the next user."""

    def provider(self, source: object, **options: Any) -> Provider[str, Any]:
        """Provide for a registry with one tenant, ``"a"``."""
        if isinstance(source, TenantDatabase):
            source = DataSource(source.dsn)
        assert isinstance(source, DataSource)
        return self.provide(Registry({"a": replace(source, dsn=self.url(source.dsn))}), **options)

    def url(self, dsn: str) -> str:
        """Return the DSN with the scheme that this driver wants."""
        return dsn.replace("postgresql", self.scheme, 1)


@asynccontextmanager
async def _of_asyncpg(pool: "asyncpg.Pool[asyncpg.Record]") -> AsyncIterator[Connection]:
    async with pool.acquire() as connection:
        yield Connection(connection.fetchval, lambda: asyncio.sleep(0), connection.close)  # each statement is committed


@asynccontextmanager
async def _of_psycopg(pool: "psycopg_pool.AsyncConnectionPool[Any] | PsycopgConnections") -> AsyncIterator[Connection]:
    async with pool.connection() as connection:

        async def value(sql: str) -> object:
            row = await (await connection.execute(sql)).fetchone()
            return None if row is None else row[0]

        yield Connection(value, connection.commit, connection.close)


@asynccontextmanager
async def _of_sqlalchemy(engine: AsyncEngine) -> AsyncIterator[Connection]:
    async with engine.connect() as connection:

        async def value(sql: str) -> object:
            return (await connection.execute(text(sql))).scalar()

        yield Connection(value, connection.commit, connection.close)


DRIVERS = [
    Driver("asyncpg", asyncpg_pool, _of_asyncpg),
    Driver("psycopg pool", postroom.datasources.psycopg_pool, _of_psycopg),
    Driver("psycopg connections", psycopg_connections, _of_psycopg, keeps_connections=False),
    Driver("SQLAlchemy asyncpg", sqlalchemy_engine, _of_sqlalchemy),
    Driver("SQLAlchemy psycopg", sqlalchemy_engine, _of_sqlalchemy, scheme="postgresql+psycopg"),
]


@asynccontextmanager
async def _of_threads(resource: Any) -> AsyncIterator[Connection]:
    of_psycopg = isinstance(resource, psycopg_pool.ConnectionPool)
    # SQLAlchemy's connect() takes a connection at once, and may wait for one. asyncio.to_thread would make another
    # error of a TimeoutError, without what is known of it.
    manager: Any = resource.connection() if of_psycopg else await in_thread(resource.connect)
    connection = await asyncio.to_thread(manager.__enter__)

    def ask(sql: str) -> object:
        if of_psycopg:
            row = connection.execute(sql).fetchone()
            return None if row is None else row[0]
        return connection.execute(text(sql)).scalar()

    async def value(sql: str) -> object:
        return await asyncio.to_thread(ask, sql)

    try:
        yield Connection(
            value, lambda: asyncio.to_thread(connection.commit), lambda: asyncio.to_thread(connection.close)
        )
    except BaseException as error:
        await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(manager.__exit__, None, None, None)


IN_THREADS = [
    Driver("psycopg in threads", psycopg_sync_pool, _of_threads),
    Driver("SQLAlchemy in threads", sqlalchemy_sync_engine, _of_threads),
]
