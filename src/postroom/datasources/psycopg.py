"""psycopg 3: a ``psycopg_pool`` per context, or connections as they are needed. ``pip install 'postroom[psycopg]'``.

psycopg_pool runs its own tasks in every pool: four by default, 40,000 with 10,000 tenants.
``psycopg_pool`` makes it two. ``psycopg_connections`` has none and pays some milliseconds
for each connection that it makes instead: for very many tenants with little to do.
"""

import asyncio
import itertools
import os
import socket
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet

from postroom.checking import check_optional
from postroom.datasources._attempts import Attempts, refused, spent
from postroom.datasources._canary import CANARY, is_torn, require_names, unreadable, verify
from postroom.datasources._lookups import lookups_of
from postroom.datasources._passwords import connected
from postroom.datasources._places import place_of, places
from postroom.datasources._reset import DEALLOCATE, RESET, forget_attributes, remember_attributes
from postroom.datasources._server import Server
from postroom.datasources._waiting import Waiting, in_vain, is_out_of_room, tell_of_held
from postroom.datasources.providers import Provider
from postroom.datasources.registry import (
    DataSource,
    Locate,
    check_keywords,
    check_locate,
    check_switches,
    check_times,
    located,
)
from postroom.display import display_key
from postroom.options import check_count
from postroom.redaction import describe
from postroom.resources.failures import of_message
from postroom.tasks import TimeLimit, told_once
from postroom.types import C

try:
    import psycopg
    import psycopg_pool as pools
    from psycopg.adapt import AdaptersMap
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import TransactionStatus
    from psycopg.rows import TupleRow, tuple_row

    from postroom.datasources._psycopg_refusals import judged, refusal_of
except ModuleNotFoundError as _error:  # pragma: no cover - the test environment has it
    raise ModuleNotFoundError("psycopg is missing: pip install 'postroom[psycopg]'", name="psycopg") from _error

T = TypeVar("T")
_numbers = itertools.count(1)
Connection = psycopg.AsyncConnection[TupleRow]
Configure = Callable[[Connection], Awaitable[None]]

OWN: Final = {"conninfo": "", "min_size": "", "max_size": "max_size", "max_idle": "idle", "timeout": "acquire_timeout"}
FLAGS: Final = ("autocommit", "isolation_level", "read_only", "deferrable")
ATTRIBUTES: Final = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")
_HUNG_IN: Final = ("_notice_handlers", "_notify_handlers", "_adapters")
"""What its users add to a connection; psycopg has no list of it, and no way back."""
_FRESH: Final = "_postroom_fresh"
"""Where a connection keeps what it was like before its first use."""


class _Connection(psycopg.AsyncConnection[TupleRow]):
    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        # A scope of anyio would cancel this as well. Then the statement ran on, on a connection that no pool counts.
        with told_once():
            await super().cancel_safe(timeout=timeout)


class _Connections:
    """The connections of one context, however they were made."""

    def __init__(
        self, source: DataSource, who: str, *, connect_timeout: float, canary: bool, options: Mapping[str, Any]
    ) -> None:
        check_dsn(source.dsn)
        self._who = who
        self._source = source
        self._names = require_names(source, options) if canary else None
        self._options = options
        self._timeout = connect_timeout
        self._place = place_of(source, options)
        self.server = Server(connect_timeout, self._place)
        lookups = lookups_of({**conninfo_to_dict(source.dsn), **options})
        self._attempts: Attempts[Connection] = Attempts(
            connect_timeout, psycopg.AsyncConnection.close, self._place, lookups
        )
        # Weak: connections that the user's code dropped must not be kept open by this list.
        self._live: WeakSet[Connection] = WeakSet()
        self._ready: list[Connection] = []
        self.returned: WeakSet[Connection] = WeakSet()
        """What its user has given back: a pool's worker may still be at it when the pool is closed."""
        self.refusal: Exception | None = None
        """Why the pool could not make its last connection: psycopg_pool tells those who wait only that it is late."""

    async def first(self) -> None:
        """Make the first connection and keep it for the pool, which would hide in a time-out why it cannot."""
        self._ready.append(await self.connect())

    def kind(self) -> type[Connection]:
        """Return the class of connections that a pool is to make."""
        owner = self

        class Owned(psycopg.AsyncConnection[TupleRow]):
            @classmethod
            async def connect(cls, conninfo: str = "", **_: Any) -> Any:  # noqa: ARG003 - the registry's counts
                return owner._ready.pop() if owner._ready else await owner._noted(owner.connect())

        return Owned

    def preparing(self, configure: Configure | None) -> Configure:
        """Return what a pool does with each new connection."""

        async def prepare(connection: Connection) -> None:
            if configure is not None:
                await self._noted(configure(connection))
            self.refusal = None
            remember(connection)

        return prepare

    async def _noted(self, making: Awaitable[T]) -> T:
        try:
            return await making
        except Exception as error:
            self.refusal = refused(error, self._place)
            raise

    async def connect(self) -> Connection:
        """Make one connection and let the canary look at it."""
        connection = await self._attempts.make(self._connect, self._greet)
        self.server.met(connection)
        self._live.add(connection)
        return connection

    async def _connect(self) -> Connection:
        async def once(password: dict[str, Any]) -> Connection:
            return await connect(self._source.dsn, in_all=self._timeout, **{**self._options, **password})

        return await connected(self._source, once)

    async def _greet(self, connection: Connection) -> None:
        if self._names is not None:
            cursor = connection.cursor(row_factory=tuple_row)
            await cursor.execute(CANARY)
            verify(self._names, *(await cursor.fetchone() or ("", "")))
            await connection.rollback()

    async def end(self) -> bool:
        """End what is still open or being opened. Returns whether anything was in use."""
        try:
            await self._attempts.close()
        finally:
            held = [connection for connection in self._live if not connection.closed]
            in_use = [each for each in held if each not in self._ready and each not in self.returned]
            for connection in held:
                await end_connection(connection)
        if in_use:
            tell_of_held(self._who, len(in_use))
        return bool(in_use)


def psycopg_pool(
    locate: Locate[C],
    *,
    max_size: int = 4,
    idle: float = 60.0,
    connect_timeout: float = 5.0,
    acquire_timeout: float = 10.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    reset: bool = True,
    configure: Configure | None = None,
    options: Mapping[str, Any] | None = None,
) -> "Provider[C, pools.AsyncConnectionPool[Connection]]":
    """Provide a ``psycopg_pool.AsyncConnectionPool`` per context, with two tasks instead of four.

    The first connection is made at once, so that a wrong password is an error with its SQLSTATE and
    not a time-out.

    Args:
        locate: context to DSN or ``DataSource``; ``LookupError`` or None where there is no such
            tenant.
        max_size: connections at most; the weight of one resource.
        idle: seconds after which an unused connection is closed, down to none.
        connect_timeout: seconds for one connection to be made, the canary included. Several hosts of
            a DSN share them.
        acquire_timeout: seconds after which asking for a connection raises ``PoolTimeout``, where
            the call names none itself. Its cause is why the last connection could not be made, if
            that is so: then it is an outage. A wait of 3 s is logged.
        close_timeout: seconds that the pool's tasks may take at close. Held connections are then
            ended.
        canary: check database and user of every new connection against the registry
            (``WrongDatabase``).
        reset: forget roles, settings, locks, LISTEN, temporary tables and changed flags, such as
            ``autocommit``, when a connection is returned: one more round trip. It may take
            ``connect_timeout``; then the connection is ended.
        configure: called with each new connection; it must leave no transaction open. Flags that it
            sets stay; a setting belongs into ``options={"options": "-c name=value"}``, because the
            reset undoes a SET.
        options: further keywords for each connection, such as ``autocommit`` or ``row_factory``.

    Raises:
        UnknownTenant: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        ConfigurationError: at opening: the DSN is none, or names no database that the canary could
            compare.
        psycopg.OperationalError, TimeoutError: at opening: the first connection could not be made.
    """
    check_locate("psycopg_pool", locate)
    check_count("psycopg_pool", "max_size", max_size)
    check_switches("psycopg_pool", canary=canary, reset=reset)
    check_keywords("psycopg_pool", options, OWN)
    check_times(
        "psycopg_pool",
        idle=idle,
        connect_timeout=connect_timeout,
        acquire_timeout=acquire_timeout,
        close_timeout=close_timeout,
    )
    check_optional("psycopg_pool(configure=...)", "(connection)", configure)

    @asynccontextmanager
    async def enter(context: C) -> "AsyncGenerator[pools.AsyncConnectionPool[Connection], None]":
        source = await located(locate, context)
        who, given = display_key(context), options or {}
        connections = _Connections(source, who, connect_timeout=connect_timeout, canary=canary, options=given)

        async def put_back(connection: Connection) -> None:
            # The pool's only worker does this: a dead connection would keep all others from their users.
            late = asyncio.get_running_loop().call_later(connect_timeout, break_off, connection)
            try:
                await reset_session(connection)
            finally:
                late.cancel()

        try:
            # Before the pool: its own workers would retry a wrong password in the background until
            # the time-out.
            await connections.first()
            pool = _Pool(
                source.dsn,
                connection_class=connections.kind(),
                # None is kept when idle: thousands of tenants would each hold a server process.
                min_size=0,
                max_size=max_size,
                max_idle=idle,
                timeout=acquire_timeout,
                reconnect_timeout=connect_timeout,
                # Three by default: for few connections one is enough, and each is a task per
                # tenant.
                num_workers=1,
                name=f"postroom-{next(_numbers)}",
                open=False,
                configure=connections.preparing(configure),
                reset=put_back if reset else None,
            )
            pool.watch(connections, who, Waiting(context, max_size, acquire_timeout, connections.server))
            try:
                await pool.open()
                yield pool
            finally:
                await _close(pool, connections, close_timeout)
        finally:
            await connections.end()

    return Provider(enter, weight=max_size, check=_check_pool, place=places(locate))


class _Pool(pools.AsyncConnectionPool[Connection]):
    """psycopg's pool, which also says when its connections do not suffice, and why it has none."""

    _connections: _Connections
    _who: str
    waiting: Waiting

    def watch(self, connections: _Connections, who: str, waiting: Waiting) -> None:
        self._connections = connections
        self._who = who
        self.waiting = waiting

    async def getconn(self, timeout: float | None = None) -> Connection:
        if self.closed:
            raise spent()
        with self.waiting.one(self._is_full):
            try:
                connection = await super().getconn(timeout)
            except pools.PoolTimeout as late:
                cause = self._connections.refusal or await self.waiting.server.problem()
                if cause is not None:
                    raise pools.PoolTimeout(f"{late}: {describe(cause)}") from cause
                if not self._is_full():
                    raise
                told = in_vain(self._who, self.timeout if timeout is None else timeout, self.max_size)
                raise of_message(pools.PoolTimeout(told)) from None
        self._connections.returned.discard(connection)
        return connection

    async def putconn(self, conn: Connection) -> None:
        self._connections.returned.add(conn)
        await super().putconn(conn)

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncGenerator[Connection]:
        async with super().connection(timeout) as connection, judged(connection):
            yield connection

    def _is_full(self) -> bool:
        # Its size counts connections that are being made, too.
        statistics = self.get_stats()
        full = statistics["pool_size"] >= statistics["pool_max"] and not statistics["pool_available"]
        return full and self._connections.refusal is None


def remember(connection: Any) -> None:
    """Remember what psycopg keeps of a new connection on this side: tenants may share it."""
    if not hasattr(connection, _FRESH):
        names = (*FLAGS, *ATTRIBUTES, *_HUNG_IN)
        setattr(connection, _FRESH, {name: _copied(getattr(connection, name)) for name in names})
        remember_attributes(connection)


def changed_flags(connection: Any) -> dict[str, Any]:
    """Return the flags that are not what they were, and what they were."""
    fresh = getattr(connection, _FRESH, {})
    return {name: fresh[name] for name in FLAGS if fresh and getattr(connection, name) != fresh[name]}


def restore(connection: Any) -> None:
    """Put everything but the flags back: row factories, handlers of notices and notifications, adapters, attributes."""
    for name, value in getattr(connection, _FRESH, {}).items():
        if name not in FLAGS:
            setattr(connection, name, _copied(value))
    setattr(connection, "_notifies_backlog", deque())  # noqa: B010 - psycopg's own, which type checkers must not know
    forget_attributes(connection)


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return list(cast("list[Any]", value))
    return AdaptersMap(value) if isinstance(value, AdaptersMap) else value  # the two share until one is changed


_NOTICES: Final = 1.0
"""Seconds within which a server has noticed that a connection was closed."""


class PsycopgConnections:
    """Connections of one context, made when they are asked for and closed after use; at most ``max_size`` at once."""

    def __init__(self, connections: _Connections, places: asyncio.Semaphore, waiting: Waiting, limit: float) -> None:
        self._connections = connections
        self._places = places
        self.waiting = waiting
        self._limit = limit
        self._used = 0
        self._closed_at = asyncio.get_running_loop().time()  # the one that was made at opening

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection, None]:
        """Connect, and commit when the block ends, or roll back when it raises. Waits while all are in use.

        Raises:
            ClosedError: the tenant's resources were closed.
            TimeoutError: all were in use for ``acquire_timeout`` seconds, or connecting took too
                long.
        """
        await self._take_place()
        try:
            async with await self._connect() as connection, judged(connection):
                self._used += 1
                try:
                    yield connection
                finally:
                    self._used -= 1
                    self._closed_at = asyncio.get_running_loop().time()
        finally:
            self._places.release()
            # After the release: what it wakes must find the place free.
            self.waiting.freed()

    def is_full(self) -> bool:
        """Return whether all connections are in use."""
        return self._places.locked()

    async def _take_place(self) -> None:
        with self.waiting.one(self.is_full):
            try:
                async with TimeLimit(self._limit):
                    await self._places.acquire()
            except TimeoutError:
                late = await self.waiting.timed_out(self._limit)
                raise late from late.__cause__

    async def _connect(self) -> Connection:
        """Connect; where the server has no room for one more, wait for one of ours to be closed."""
        time = asyncio.get_running_loop().time
        until = time() + self._limit
        while True:
            try:
                return await self._connections.connect()
            except psycopg.Error as error:
                just_closed = time() - self._closed_at < _NOTICES  # the server may still count it
                if not is_out_of_room(error, self._used + just_closed) or time() >= until:
                    raise
            await self.waiting.until_freed()


def psycopg_connections(
    locate: Locate[C],
    *,
    max_size: int = 4,
    connect_timeout: float = 5.0,
    acquire_timeout: float = 10.0,
    canary: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Provider[C, PsycopgConnections]:
    """Provide ``PsycopgConnections`` per context: no pool, no task, no idle connection.

    One connection is made and closed at opening, to prove that it can be.

    Args:
        locate: the registry, as for ``psycopg_pool``.
        max_size: connections of one tenant at once. This is the weight in the pool's budget.
        connect_timeout: seconds that one connection may take.
        acquire_timeout: seconds that a handler may wait while its tenant has ``max_size`` connections.
        canary: whether each new connection is asked if it is what the registry says.
        options: further keyword arguments of ``psycopg.AsyncConnection.connect``.

    Raises:
        ConfigurationError: an argument cannot work.
    """
    check_locate("psycopg_connections", locate)
    check_count("psycopg_connections", "max_size", max_size)
    check_switches("psycopg_connections", canary=canary)
    check_keywords("psycopg_connections", options, {"conninfo": "", "max_size": "max_size"})
    check_times("psycopg_connections", connect_timeout=connect_timeout, acquire_timeout=acquire_timeout)

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[PsycopgConnections, None]:
        source = await located(locate, context)
        who, given = display_key(context), options or {}
        connections = _Connections(source, who, connect_timeout=connect_timeout, canary=canary, options=given)
        waiting = Waiting(context, max_size, acquire_timeout, connections.server)
        try:
            # A tenant with a wrong password has to fail at opening, where the pool's backoff is,
            # and not in its handlers.
            await (await connections.connect()).close()
            yield PsycopgConnections(connections, asyncio.Semaphore(max_size), waiting, acquire_timeout)
        finally:
            await connections.end()

    return Provider(enter, weight=max_size, check=_check_connections, place=places(locate))


async def _check_pool(pool: "pools.AsyncConnectionPool[Connection]") -> bool:
    """Ask one idle connection; where there is none, the server: users of the others may wait for it in vain."""
    statistics = pool.get_stats()
    if (
        isinstance(pool, _Pool)
        and statistics["pool_size"] >= statistics["pool_max"]
        and not statistics["pool_available"]
    ):
        return await pool.waiting.server.check()
    async with pool.connection() as connection:
        await connection.execute("SELECT 1")
    return True


async def _check_connections(connections: PsycopgConnections) -> bool:
    """Ask with a connection; where all are in use, ask the server: their users may wait for it in vain."""
    if connections.is_full():
        return await connections.waiting.server.check()
    async with connections.connection() as connection:
        await connection.execute("SELECT 1")
    return True


async def reset_session(connection: Connection) -> None:
    """Make a connection what it was before its last user. Ends an open transaction by rolling it back."""
    autocommit = connection.autocommit
    # Autocommit cannot be changed inside of a transaction.
    if connection.info.transaction_status != TransactionStatus.IDLE:
        await connection.rollback()
    await connection.set_autocommit(True)  # one round trip instead of three: no BEGIN, no COMMIT
    # The factories of the connection are what its last user made of them.
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    await cursor.execute(RESET)
    while cursor.nextset():
        pass
    if cursor.rowcount:
        await cursor.execute(DEALLOCATE)
    await connection.set_autocommit(autocommit)
    for name, value in changed_flags(connection).items():
        await getattr(connection, f"set_{name}")(value)
    restore(connection)


def check_dsn(dsn: str) -> None:
    """Refuse what is no connection string, without quoting it. Raises ``ConfigurationError``."""
    readable = not is_torn(dsn)
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        readable = False
    if not readable:
        raise unreadable("PostgreSQL")


def share_of_each_host(dsn: str, keywords: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Return the keyword that gives each of several hosts its part of a time; libpq knows no less than two seconds."""
    given = {**conninfo_to_dict(dsn), **keywords}
    hosts = str(given.get("host") or given.get("hostaddr") or "").count(",") + 1
    return {} if hosts == 1 or "connect_timeout" in given else {"connect_timeout": max(2, int(timeout / hosts))}


async def connect(dsn: str = "", *, in_all: float, **keywords: Any) -> Connection:
    """Connect as psycopg does; a failed attempt leaves no socket, and a refused login has its SQLSTATE.

    Args:
        dsn: the DSN.
        in_all: seconds for all hosts together, where there are several.
        keywords: psycopg's own.
    """
    share = share_of_each_host(dsn, keywords, in_all)
    try:
        return await _Connection.connect(dsn, **{**share, **keywords})
    except BaseException as error:
        # psycopg leaves an abandoned socket to the garbage collector, and the frames of the traceback keep it.
        traceback.clear_frames(error.__traceback__)
        if (refusal := refusal_of(error)) is not None:
            raise refusal from error
        raise


async def end_connection(connection: Connection) -> None:
    """End a connection that another task may be using.

    Closing it would pull the file descriptor from under that task: it would wait without an end,
    and later disturb the next owner of the same number. After a shutdown the task reads the end of
    the stream, and closes the connection itself.
    """
    if connection.pgconn.transaction_status != TransactionStatus.ACTIVE and not connection.lock.locked():
        await connection.close()
        return
    break_off(connection)


def break_off(connection: "Connection | psycopg.Connection[TupleRow]") -> None:
    """Let who waits for an answer read the end of the stream."""
    with suppress(OSError, psycopg.OperationalError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


async def _close(pool: "pools.AsyncConnectionPool[Connection]", connections: _Connections, timeout: float) -> None:
    try:
        await pool.close(timeout=timeout)
    finally:
        await connections.end()
        # The pool forgets a worker that did not end in time. It ends now that what it waited for has ended.
        workers = [task for task in asyncio.all_tasks() if task.get_name().startswith(f"{pool.name}-")]
        if workers:
            _, stuck = await asyncio.wait(workers, timeout=timeout)
            for task in stuck:
                task.cancel()
