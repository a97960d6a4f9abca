"""The inbox over psycopg: transactions that begin with their message's row."""

import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, LiteralString, Protocol, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool
from typing_extensions import TypeVar

from postroom.datasources._postgres_inbox import ENDED, SWALLOWED, PostgresDatabase, Work, add_inbox, check_inbox
from postroom.datasources.inbox import DEFAULT_TABLE, Inbox, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.datasources.scope import Scope, ScopeOf
from postroom.transactions import TransactionRolledBack
from postroom.types import C

Connection = psycopg.AsyncConnection[TupleRow]
Tx = TypeVar("Tx", bound=Connection | psycopg.Connection[TupleRow])


class HasConnections(Protocol):
    """Resources that lend connections: a ``psycopg_pool.AsyncConnectionPool``, or ``PsycopgConnections``."""

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection for the time of the block."""
        ...


P = TypeVar("P", bound=HasConnections, default="AsyncConnectionPool[Connection]")


class PsycopgDatabase(PostgresDatabase[Connection], Generic[P]):
    """Connections of psycopg with an inbox in their database. ``psycopg_inbox`` provides it.

    Args:
        pool: a ``psycopg_pool.AsyncConnectionPool``, or ``PsycopgConnections``.
        inbox: the table: ``postgres_inbox()``.
        wait: seconds that a duplicate waits for the transaction of the first.
        scope: the tenant's part of a database that tenants share.
    """

    def __init__(self, pool: P, inbox: Inbox, *, wait: float = 60.0, scope: Scope | None = None) -> None:
        super().__init__(inbox, wait=wait, scope=scope)
        self.pool = pool
        """What lends connections, for what needs no transaction of the message. No scope holds there."""

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[Work[Connection], None]:
        async with self.pool.connection() as connection, connection.transaction():
            yield _Work(connection)


class OfConnection(Work[Tx]):
    """Statements through a connection, sync or async."""

    async def finish(self) -> None:
        status = self.tx.info.transaction_status
        if status == TransactionStatus.INERROR:
            raise TransactionRolledBack(SWALLOWED)
        if status == TransactionStatus.IDLE:
            raise TransactionRolledBack(ENDED)


class _Work(OfConnection[Connection]):
    async def value(self, sql: str, *parameters: Any) -> Any:
        # The connection's own factories are the user's.
        async with psycopg.AsyncCursor(self.tx, row_factory=tuple_row) as cursor:
            await cursor.execute(with_places(sql), parameters)
            row = await cursor.fetchone()
        return None if row is None else row[0]

    async def run(self, sql: str) -> None:
        await self.tx.execute(cast("LiteralString", sql))


def with_places(sql: str) -> LiteralString:
    """Return a statement with the places that psycopg knows instead of ``$1``, ``$2``."""
    return cast("LiteralString", re.sub(r"\$\d+", "%s", sql))  # each occurs once, in order


def psycopg_inbox(
    provider: Provider[C, P],
    *,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, PsycopgDatabase[P]]:
    """Add an inbox to a provider of psycopg's connections: ``psycopg_inbox(psycopg_pool(registry))``.

    Args:
        provider: what opens the pool: ``psycopg_pool`` or ``psycopg_connections``. Its weight and
            its health check stay as they are.
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
    check_inbox("psycopg_inbox", wait=wait, create=create, scope=scope)
    inbox = postgres_inbox(table)

    def database(pool: P, own: Scope | None) -> PsycopgDatabase[P]:
        return PsycopgDatabase(pool, inbox, wait=wait, scope=own)

    return add_inbox(provider, database, lambda made: made.pool, lambda made: made.prepare(create=create), scope)
