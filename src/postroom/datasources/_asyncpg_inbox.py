"""The inbox over asyncpg: transactions that begin with their message's row."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from postroom.datasources.inbox import DEFAULT_TABLE, KEEP, PURGED_AT_ONCE, Inbox, check_age, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.errors import AlreadyHandled, ConfigurationError
from postroom.transactions import MessageKey
from postroom.types import C

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('postroom inbox'))"


class AsyncpgDatabase:
    """An ``asyncpg.Pool`` with an inbox in its database. :func:`asyncpg_inbox` provides it."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", inbox: Inbox, *, wait: float = 60.0) -> None:
        self.pool = pool
        """asyncpg's own pool, for whatever needs no transaction of the message."""
        self.inbox = inbox
        """The table, and the SQL that uses it."""
        self._wait = wait

    def __repr__(self) -> str:
        return f"AsyncpgDatabase({self.inbox!r})"

    @asynccontextmanager
    async def transaction_for(self, key: MessageKey, /) -> "AsyncGenerator[PoolConnectionProxy[asyncpg.Record], None]":
        """Yield a connection of the pool in a transaction that begins with the row of ``key`` in the inbox.

        While another transaction has written the same row and is not at its end, PostgreSQL's unique index makes this
        one wait. A commit whose answer is lost with its connection raises; whether it was done, the next receive of
        the message finds out.

        Raises:
            AlreadyHandled: the row was there. Nothing was done.
            TimeoutError: the other transaction was not at its end after ``wait`` seconds. Nothing was done.
            asyncpg.PostgresError, OSError: the database failed. Before the commit nothing was done.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            if not await self._claim(connection, key):
                raise AlreadyHandled
            yield connection

    async def _claim(self, connection: "PoolConnectionProxy[asyncpg.Record]", key: MessageKey) -> bool:
        try:
            return await connection.fetchval(self.inbox.claim, *key, timeout=self._wait) is not None
        except TimeoutError:
            text = f"another transaction has held the row of this message for more than {self._wait:g} s"
            raise TimeoutError(text) from None

    async def purge_inbox(self, *, older_than: float = KEEP) -> int:
        """Delete the inbox's rows that are older than ``older_than`` seconds, and return how many there were.

        A message that comes after its row was purged is handled again: keep rows for longer than the queue keeps
        messages. The default is what SQS allows at most, and a day. In transactions of 10,000 rows.
        """
        check_age(older_than)
        total = 0
        while count := int(await self.pool.fetchval(self.inbox.purge, older_than, PURGED_AT_ONCE)):
            total += count
        return total


def asyncpg_inbox(
    provider: "Provider[C, asyncpg.Pool[asyncpg.Record]]",
    *,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
) -> "Provider[C, AsyncpgDatabase]":
    """Add an inbox to a provider of asyncpg pools: ``asyncpg_inbox(asyncpg_pool(registry))``.

    Args:
        provider: what opens the pool. Its weight and its health check stay as they are.
        table: the inbox's table, with or without a schema.
        create: create the table at opening where it is missing. Otherwise your migrations do, with
            ``postgres_inbox(table).schema``.
        wait: seconds that a duplicate waits for the transaction of the first, before it counts as failed.

    Raises:
        ConfigurationError: ``table`` is no name for a table; at opening: the database has no such table.
    """
    inbox = postgres_inbox(table)
    check_pool = provider.check

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[AsyncpgDatabase, None]:
        async with provider(context) as pool:
            await _find(pool, inbox, create=create)
            yield AsyncpgDatabase(pool, inbox, wait=wait)

    async def check(database: AsyncpgDatabase) -> bool:
        return check_pool is None or await check_pool(database.pool)

    return Provider(enter, weight=provider.weight, check=None if check_pool is None else check)


async def _find(pool: "asyncpg.Pool[asyncpg.Record]", inbox: Inbox, *, create: bool) -> None:
    async with pool.acquire() as connection:
        if await connection.fetchval("SELECT to_regclass($1)::oid", inbox.table) is not None:
            return
        if not create:
            remedy = f"add postgres_inbox({inbox.table!r}).schema to your migrations, or pass create=True"
            raise ConfigurationError(f"this tenant's database has no table {inbox.table}: {remedy}")
        async with connection.transaction():
            await connection.fetchval(_ONE_AT_A_TIME)  # IF NOT EXISTS fails when two do it at the same time
            await connection.execute(inbox.schema)
