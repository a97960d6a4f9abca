"""The inbox over asyncpg: transactions that begin with their message's row."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from postroom.datasources._postgres_inbox import ENDED, PostgresDatabase, Work, add_inbox, check_inbox
from postroom.datasources.inbox import DEFAULT_TABLE, Inbox, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.datasources.scope import Scope, ScopeOf
from postroom.transactions import TransactionRolledBack
from postroom.types import C

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy


class AsyncpgDatabase(PostgresDatabase["PoolConnectionProxy[asyncpg.Record]"]):
    """An ``asyncpg.Pool`` with an inbox in its database. ``asyncpg_inbox`` provides it.

    Args:
        pool: asyncpg's own pool.
        inbox: the table: ``postgres_inbox()``.
        wait: seconds that a duplicate waits for the transaction of the first.
        scope: the tenant's part of a database that tenants share.
    """

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", inbox: Inbox, *, wait: float = 60.0, scope: Scope | None = None
    ) -> None:
        super().__init__(inbox, wait=wait, scope=scope)
        self.pool = pool
        """asyncpg's own pool, for what needs no transaction of the message. No scope holds there."""

    @asynccontextmanager
    async def _begin(self) -> "AsyncGenerator[Work[PoolConnectionProxy[asyncpg.Record]], None]":
        async with self.pool.acquire() as connection, connection.transaction():
            yield _Work(connection)


class _Work(Work["PoolConnectionProxy[asyncpg.Record]"]):
    async def value(self, sql: str, *parameters: Any) -> Any:
        return await self.tx.fetchval(sql, *parameters)

    async def run(self, sql: str) -> None:
        await self.tx.execute(sql)

    async def finish(self) -> None:
        if not self.tx.is_in_transaction():
            raise TransactionRolledBack(ENDED)


def asyncpg_inbox(
    provider: "Provider[C, asyncpg.Pool[asyncpg.Record]]",
    *,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> "Provider[C, AsyncpgDatabase]":
    """Add an inbox to a provider of asyncpg pools: ``asyncpg_inbox(asyncpg_pool(registry))``.

    Args:
        provider: what opens the pool. Its weight and its health check stay as they are.
        table: the inbox's table, with or without a schema.
        create: create the table at opening where it is missing. Otherwise your migrations do, with
            ``postgres_inbox(table).schema``.
        wait: seconds that a duplicate waits for the transaction of the first, before it counts as
            failed.
        scope: context to the tenant's part of a database that tenants share: a schema, or settings.

    Raises:
        ConfigurationError: ``table`` is no name for a table; at opening: the database has no such
            table or schema.
    """
    check_inbox("asyncpg_inbox", wait=wait, create=create, scope=scope)
    inbox = postgres_inbox(table)
    return add_inbox(
        provider,
        lambda pool, own: AsyncpgDatabase(pool, inbox, wait=wait, scope=own),
        lambda database: database.pool,
        lambda database: database.prepare(create=create),
        scope,
    )
