"""psycopg for plain ``def`` handlers: a ``psycopg_pool.ConnectionPool`` per context, and its inbox."""

import itertools
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, LiteralString, cast

import psycopg
import psycopg_pool as pools
from psycopg.rows import tuple_row

from postroom.checking import check_plain
from postroom.datasources._attempts import spent
from postroom.datasources._places import places
from postroom.datasources._postgres_inbox import Work, add_inbox, check_inbox
from postroom.datasources._psycopg_inbox import OfConnection, with_places
from postroom.datasources._psycopg_refusals import judged_sync
from postroom.datasources._sync_connections import SyncConnection, SyncConnections, reset_sync_session
from postroom.datasources._sync_inbox import SyncDatabase
from postroom.datasources._threads import in_thread
from postroom.datasources._waiting import ADVICE, SAID_AFTER, in_vain
from postroom.datasources.inbox import DEFAULT_TABLE, Inbox, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.datasources.psycopg import OWN
from postroom.datasources.registry import Locate, check_keywords, check_locate, check_switches, check_times, located
from postroom.datasources.scope import Scope, ScopeOf
from postroom.display import display_key
from postroom.log_fields import Log, Step, about
from postroom.options import check_count
from postroom.redaction import describe
from postroom.resources.failures import of_message
from postroom.types import C

SyncPool = pools.ConnectionPool[SyncConnection]
_numbers: Final = itertools.count(1)
_log = Log("postroom.datasources", Step.RESOURCES)


def psycopg_sync_pool(
    locate: Locate[C],
    *,
    max_size: int = 4,
    idle: float = 60.0,
    connect_timeout: float = 5.0,
    acquire_timeout: float = 10.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    reset: bool = True,
    configure: Callable[[SyncConnection], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Provider[C, SyncPool]:
    """Provide a ``psycopg_pool.ConnectionPool`` per context, for plain ``def`` handlers.

    It is opened and closed as ``psycopg_pool`` is, and has two threads of its own. A connection
    that waits for a server which is gone without a word fails after about a minute: a thread cannot
    be cancelled. ``keepalives_*`` and ``tcp_user_timeout`` in the DSN or in ``options`` say
    otherwise.

    Args:
        locate: context to DSN or ``DataSource``; ``LookupError`` or None where there is no such
            tenant. A password function is called in the event loop.
        max_size: connections at most; the weight of one resource.
        idle: seconds after which an unused connection is closed, down to none.
        connect_timeout: seconds for one connection to be made, in whole ones and at least 2.
        acquire_timeout: seconds after which asking for a connection raises ``PoolTimeout``, where
            the call names none itself. Its cause is why the last connection could not be made, if
            that is so: then it is an outage. A wait of 3 s is logged, once.
        close_timeout: seconds that the pool's threads may take at close. Held connections are then
            ended.
        canary: check database and user of every new connection against the registry
            (``WrongDatabase``).
        reset: forget roles, settings, locks, LISTEN, temporary tables and changed flags, such as
            ``autocommit``, when a connection is returned: one more round trip. It may take
            ``connect_timeout``; then the connection is ended.
        configure: called with each new connection; it must leave no transaction open.
        options: further keywords for each connection, such as ``autocommit`` or ``row_factory``.

    Raises:
        UnknownTenant: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        ConfigurationError: at opening: the DSN is none, or names no database that the canary could
            compare.
        psycopg.OperationalError, TimeoutError: at opening: the first connection could not be made.
    """
    owner = "psycopg_sync_pool"
    check_locate(owner, locate)
    check_count(owner, "max_size", max_size)
    check_switches(owner, canary=canary, reset=reset)
    check_keywords(owner, options, OWN)
    if configure is not None:
        check_plain(f"{owner}(configure=...)", "(connection)", configure)
    check_times(owner, idle=idle, connect_timeout=connect_timeout, close_timeout=close_timeout)
    check_times(owner, acquire_timeout=acquire_timeout)

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[SyncPool, None]:
        source = await located(locate, context)
        who, given = display_key(context), options or {}
        connections = SyncConnections(source, who, connect_timeout=connect_timeout, canary=canary, options=given)

        try:
            await connections.first()
            pool = _Pool(
                source.dsn,
                connection_class=connections.kind(),
                min_size=0,
                max_size=max_size,
                max_idle=idle,
                timeout=acquire_timeout,
                reconnect_timeout=connect_timeout,
                num_workers=1,
                name=f"postroom-sync-{next(_numbers)}",
                open=False,
                configure=connections.preparing(configure),
                reset=(lambda connection: reset_sync_session(connection, connect_timeout)) if reset else None,
            )
            pool.watch(connections, who)
            try:
                pool.open()
                yield pool
            finally:
                await in_thread(lambda: pool.close(close_timeout))
        finally:
            await connections.end()

    return Provider(enter, weight=max_size, check=_check_pool, place=places(locate))


class _Pool(pools.ConnectionPool[SyncConnection]):
    """psycopg's pool, which also says when its connections do not suffice, and why it has none."""

    connections: SyncConnections
    _who: str
    _told = False

    def watch(self, connections: SyncConnections, who: str) -> None:
        self.connections = connections
        self._who = who

    def getconn(self, timeout: float | None = None) -> SyncConnection:
        if self.closed:
            raise spent()
        limit = self.timeout if timeout is None else timeout
        try:
            if limit > SAID_AFTER:
                try:
                    return super().getconn(SAID_AFTER)
                except pools.PoolTimeout:
                    self._warn(limit)
                    limit -= SAID_AFTER
            return super().getconn(limit)
        except pools.PoolTimeout as late:
            cause = self.connections.refusal or self.connections.server.problem_for_a_thread()
            if cause is not None:
                raise pools.PoolTimeout(f"{late}: {describe(cause)}") from cause
            if not self.is_full():
                raise
            told = in_vain(self._who, self.timeout if timeout is None else timeout, self.max_size)
            raise of_message(pools.PoolTimeout(told)) from None

    @contextmanager
    def connection(self, timeout: float | None = None) -> Generator[SyncConnection]:
        with super().connection(timeout) as connection, judged_sync(connection):
            yield connection

    def is_full(self) -> bool:
        """Return whether all connections are in use, or being made."""
        statistics = self.get_stats()
        return statistics["pool_size"] >= statistics["pool_max"] and not statistics["pool_available"]

    def _warn(self, limit: float) -> None:
        if self._told or self.connections.refusal is not None:
            return
        self._told = True
        _log.warning(
            "Tenant %s: all %d connections are in use, and a handler has waited for one for %g s; it fails after %g s. "
            "%s",
            self._who,
            self.max_size,
            SAID_AFTER,
            limit,
            ADVICE,
            extra=about(tenant=self._who),
        )


async def _check_pool(pool: SyncPool) -> bool:
    """Ask one idle connection; where there is none, the server: users of the others may wait for it in vain."""
    if isinstance(pool, _Pool) and pool.is_full():
        return await pool.connections.server.check()
    await in_thread(lambda: _ask(pool))
    return True


def _ask(pool: SyncPool) -> None:
    with pool.connection() as connection:
        connection.execute("SELECT 1")


class PsycopgSyncDatabase(SyncDatabase[SyncConnection]):
    """A ``ConnectionPool`` of psycopg with an inbox in its database. ``psycopg_sync_inbox`` provides it.

    Args:
        pool: psycopg's own pool.
        inbox: the table: ``postgres_inbox()``.
        wait: seconds that a duplicate waits for the transaction of the first.
        scope: the tenant's part of a database that tenants share.
    """

    def __init__(self, pool: SyncPool, inbox: Inbox, *, wait: float = 60.0, scope: Scope | None = None) -> None:
        super().__init__(inbox, wait=wait, scope=scope)
        self.pool = pool
        """psycopg's own pool, for what needs no transaction of the message. No scope holds there."""

    @contextmanager
    def _begin(self) -> Generator[Work[SyncConnection]]:
        with self.pool.connection() as connection, connection.transaction():
            yield _Work(connection)


class _Work(OfConnection[SyncConnection]):
    async def value(self, sql: str, *parameters: Any) -> Any:
        # The connection's own factories are the user's.
        with psycopg.Cursor(self.tx, row_factory=tuple_row) as cursor:
            cursor.execute(with_places(sql), parameters)
            row = cursor.fetchone()
        return None if row is None else row[0]

    async def run(self, sql: str) -> None:
        self.tx.execute(cast("LiteralString", sql))


def psycopg_sync_inbox(
    provider: Provider[C, SyncPool],
    *,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, PsycopgSyncDatabase]:
    """Add an inbox for plain ``def`` handlers: ``psycopg_sync_inbox(psycopg_sync_pool(registry))``.

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
    check_inbox("psycopg_sync_inbox", wait=wait, create=create, scope=scope)
    inbox = postgres_inbox(table)

    async def prepare(database: PsycopgSyncDatabase) -> None:
        await in_thread(lambda: database.prepare(create=create))

    return add_inbox(
        provider,
        lambda pool, own: PsycopgSyncDatabase(pool, inbox, wait=wait, scope=own),
        lambda database: database.pool,
        prepare,
        scope,
    )
