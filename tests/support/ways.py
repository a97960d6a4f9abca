"""Every way to a tenant's database, behind one shape: how it is opened, and a handler that records an order there."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from postroom import MessageContext
from postroom.datasources import (
    Provider,
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
)
from support.world import Tenant

LocateUrl = Callable[[Tenant], str]
Done = Callable[[str], None]
Handler = Callable[[dict[str, Any], MessageContext[Tenant, Any]], Any]
_BY_ID = text("INSERT INTO orders VALUES (:id)")


@dataclass(frozen=True)
class Way:
    """One adapter.

    ``provide`` gets the registry and the number of connections per tenant; ``handler`` gets what is told of each order
    that was committed.
    """

    name: str
    provide: Callable[[LocateUrl, int], Provider[Tenant, Any]]
    handler: Callable[[Done], Handler]


def _own(locate: LocateUrl, size: int) -> Provider[Tenant, Any]:
    """A provider of one's own, as the documents show it."""

    @asynccontextmanager
    async def open_database(tenant: Tenant) -> AsyncGenerator[Any]:
        async with asyncpg.create_pool(locate(tenant), min_size=0, max_size=size) as pool:
            await pool.fetchval("SELECT 1")
            yield pool

    return Provider(open_database, weight=size)


class Repository:
    """What a provider is mapped to."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def execute(self, sql: str, *parameters: Any) -> None:
        """Run a statement."""
        await self._pool.execute(sql, *parameters)


def _without_inbox(done: Done) -> Handler:
    async def record(order: dict[str, Any], ctx: MessageContext[Tenant, Any]) -> None:
        await ctx.resources.execute("INSERT INTO orders VALUES ($1) ON CONFLICT DO NOTHING", order["order_id"])
        done(order["order_id"])

    return record


def _with_inbox(insert: Callable[[Any, str], Any]) -> Callable[[Done], Handler]:
    def make(done: Done) -> Handler:
        async def record(order: dict[str, Any], ctx: MessageContext[Tenant, Any]) -> None:
            async with ctx.transaction() as tx:
                await insert(tx, order["order_id"])
            done(order["order_id"])

        return record

    return make


def _in_a_thread(insert: Callable[[Any, str], Any]) -> Callable[[Done], Handler]:
    def make(done: Done) -> Handler:
        def record(order: dict[str, Any], ctx: MessageContext[Tenant, Any]) -> None:
            with ctx.transaction() as tx:
                insert(tx, order["order_id"])
            done(order["order_id"])

        return record

    return make


def _asyncpg(tx: Any, order: str) -> Any:
    return tx.execute("INSERT INTO orders VALUES ($1)", order)


def _psycopg(tx: Any, order: str) -> Any:
    return tx.execute("INSERT INTO orders VALUES (%s)", (order,))


def _sqlalchemy(tx: Any, order: str) -> Any:
    return tx.execute(_BY_ID, {"id": order})


def _over_psycopg(locate: LocateUrl) -> LocateUrl:
    return lambda tenant: locate(tenant).replace("postgresql", "postgresql+psycopg", 1)


WAYS = [
    Way("own provider", _own, _without_inbox),
    Way("mapped", lambda locate, size: asyncpg_pool(locate, max_size=size).map(Repository), _without_inbox),
    Way("asyncpg", lambda locate, size: asyncpg_inbox(asyncpg_pool(locate, max_size=size)), _with_inbox(_asyncpg)),
    Way("psycopg", lambda locate, size: psycopg_inbox(psycopg_pool(locate, max_size=size)), _with_inbox(_psycopg)),
    Way(
        "psycopg, no pool",
        lambda locate, size: psycopg_inbox(psycopg_connections(locate, max_size=size)),
        _with_inbox(_psycopg),
    ),
    Way(
        "SQLAlchemy",
        lambda locate, size: sqlalchemy_inbox(sqlalchemy_engine(locate, max_size=size)),
        _with_inbox(_sqlalchemy),
    ),
    Way(
        "SQLAlchemy, psycopg",
        lambda locate, size: sqlalchemy_inbox(sqlalchemy_engine(_over_psycopg(locate), max_size=size)),
        _with_inbox(_sqlalchemy),
    ),
    Way(
        "ORM session",
        lambda locate, size: sqlalchemy_inbox(sqlalchemy_engine(locate, max_size=size), session=AsyncSession),
        _with_inbox(_sqlalchemy),
    ),
    Way(
        "psycopg in threads",
        lambda locate, size: psycopg_sync_inbox(psycopg_sync_pool(locate, max_size=size)),
        _in_a_thread(_psycopg),
    ),
    Way(
        "session in threads",
        lambda locate, size: sqlalchemy_sync_inbox(sqlalchemy_sync_engine(locate, max_size=size), session=Session),
        _in_a_thread(_sqlalchemy),
    ),
]
"""Each adapter for PostgreSQL."""
