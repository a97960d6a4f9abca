"""psycopg 3: a ``psycopg_pool`` per context, or connections as they are needed. ``pip install 'postroom[psycopg]'``.

psycopg_pool runs its own tasks in every pool: four by default, 40,000 with 10,000 tenants. :func:`psycopg_pool` makes
it two. :func:`psycopg_connections` has none and pays some milliseconds for each connection that it makes instead: for
very many tenants with little to do.
"""

import asyncio
import itertools
import logging
import os
import socket
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from weakref import WeakSet

from postroom.datasources._attempts import Attempts
from postroom.datasources.registry import CANARY, DataSource, Locate, Provider, ask, located, verify
from postroom.errors import ConfigurationError
from postroom.types import C

try:
    import psycopg
    import psycopg_pool as pools
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import TransactionStatus
    from psycopg.rows import TupleRow
except ModuleNotFoundError as error:  # pragma: no cover - the test environment has it
    raise ModuleNotFoundError("psycopg is missing: pip install 'postroom[psycopg]'", name="psycopg") from error

_numbers = itertools.count(1)
_log = logging.getLogger("postroom.datasources")
Connection = psycopg.AsyncConnection[TupleRow]
Configure = Callable[[Connection], Awaitable[None]]

RESET: Final = "RESET SESSION AUTHORIZATION; RESET ALL; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all()"
"""What a connection forgets when it is returned: psycopg_pool itself resets nothing, ``search_path`` included."""
# libpq reports a refused login without its SQLSTATE. The words are the server's, in English.
_REFUSALS: Final = {
    "28P01": ("password authentication failed",),
    "3D000": ('database "', "does not exist"),
    "28000": ("no pg_hba.conf entry",),
}


class _Connections:
    """The connections of one context, however they were made."""

    def __init__(self, source: DataSource, *, connect_timeout: float, canary: bool, options: Mapping[str, Any]) -> None:
        _check_dsn(source.dsn)
        self._source = source
        self._canary = canary
        self._options = options
        self._attempts: Attempts[Connection] = Attempts(connect_timeout, psycopg.AsyncConnection.close)
        self._live: WeakSet[Connection] = WeakSet()
        self._ready: list[Connection] = []

    async def first(self) -> None:
        """Make the first connection and keep it for the pool, which would hide in a time-out why it cannot."""
        self._ready.append(await self.connect())

    def kind(self) -> type[Connection]:
        """Return the class of connections that a pool is to make."""
        owner = self

        class Owned(psycopg.AsyncConnection[TupleRow]):
            @classmethod
            async def connect(cls, conninfo: str = "", **_: Any) -> Any:  # noqa: ARG003 - the registry's counts
                return owner._ready.pop() if owner._ready else await owner.connect()

        return Owned

    async def connect(self) -> Connection:
        """Make one connection and let the canary look at it."""
        connection = await self._attempts.make(self._connect, self._greet)
        self._live.add(connection)
        return connection

    async def _connect(self) -> Connection:
        keywords: dict[str, Any] = dict(self._options)
        if self._source.password is not None:
            keywords["password"] = await ask(self._source.password)
        return await connect(self._source.dsn, **keywords)

    async def _greet(self, connection: Connection) -> None:
        if self._canary:
            cursor = await connection.execute(CANARY)
            verify(self._source, *(await cursor.fetchone() or ("", "")))
            await connection.rollback()

    async def end(self) -> bool:
        """End what is still open or being opened. Returns whether anything was in use."""
        try:
            await self._attempts.close()
        finally:
            held = [connection for connection in self._live if not connection.closed]
            in_use = [connection for connection in held if connection not in self._ready]
            for connection in held:
                await end_connection(connection)
        if in_use:
            _log.warning("%d psycopg connections were still held at close and were ended", len(in_use))
        return bool(in_use)


def psycopg_pool(
    locate: Locate[C],
    *,
    max_size: int = 4,
    idle: float = 60.0,
    connect_timeout: float = 5.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    reset: bool = True,
    configure: Configure | None = None,
    options: Mapping[str, Any] | None = None,
) -> "Provider[C, pools.AsyncConnectionPool[Connection]]":
    """Provide a ``psycopg_pool.AsyncConnectionPool`` per context, with two tasks instead of four.

    The first connection is made at once, so that a wrong password is an error with its SQLSTATE and not a time-out.

    Args:
        locate: context to DSN or ``DataSource``; ``LookupError`` for a context that is nobody's.
        max_size: connections at most; the weight of one resource.
        idle: seconds after which an unused connection is closed, down to none.
        connect_timeout: seconds for one connection to be made, the canary included.
        close_timeout: seconds that the pool's tasks may take at close. Held connections are then ended.
        canary: check database and user of every new connection against the registry (``WrongDatabase``).
        reset: forget session settings, roles and locks when a connection is returned: one more round trip.
        configure: called with each new connection; it must leave no transaction open.
        options: further keywords for each connection, such as ``autocommit`` or ``row_factory``.

    Raises:
        LookupError: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        psycopg.OperationalError, TimeoutError: at opening: the first connection could not be made.
    """

    @asynccontextmanager
    async def enter(context: C) -> "AsyncGenerator[pools.AsyncConnectionPool[Connection], None]":
        source = await located(locate, context)
        connections = _Connections(source, connect_timeout=connect_timeout, canary=canary, options=options or {})
        try:
            await connections.first()
            pool = pools.AsyncConnectionPool(
                source.dsn,
                connection_class=connections.kind(),
                min_size=0,
                max_size=max_size,
                max_idle=idle,
                timeout=connect_timeout,
                reconnect_timeout=connect_timeout,
                num_workers=1,
                name=f"postroom-{next(_numbers)}",
                open=False,
                configure=configure,
                reset=reset_session if reset else None,
            )
            try:
                await pool.open()
                yield pool
            finally:
                await _close(pool, connections, close_timeout)
        finally:
            await connections.end()

    return Provider(enter, weight=max_size, check=_check_pool)


class PsycopgConnections:
    """Connections of one context, made when they are asked for and closed after use; at most ``max_size`` at once."""

    def __init__(self, connections: _Connections, max_size: int) -> None:
        self._connections = connections
        self._places = asyncio.Semaphore(max_size)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection, None]:
        """Connect, and commit when the block ends, or roll back when it raises. Waits while all are in use.

        Raises:
            ClosedError: the tenant's resources were closed.
        """
        async with self._places, await self._connections.connect() as connection:
            yield connection


def psycopg_connections(
    locate: Locate[C],
    *,
    max_size: int = 4,
    connect_timeout: float = 5.0,
    canary: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Provider[C, PsycopgConnections]:
    """Provide :class:`PsycopgConnections` per context: no pool, no task, no idle connection.

    The arguments and errors are those of :func:`psycopg_pool`. One connection is made and closed at opening, to prove
    that it can be.
    """

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[PsycopgConnections, None]:
        source = await located(locate, context)
        connections = _Connections(source, connect_timeout=connect_timeout, canary=canary, options=options or {})
        try:
            await (await connections.connect()).close()
            yield PsycopgConnections(connections, max_size)
        finally:
            await connections.end()

    return Provider(enter, weight=max_size, check=_check_connections)


async def _check_pool(pool: "pools.AsyncConnectionPool[Connection]") -> bool:
    """Ask one idle connection. A pool whose connections are all in use is in use: its users report what they find."""
    statistics = pool.get_stats()
    if statistics["pool_size"] >= statistics["pool_max"] and not statistics["pool_available"]:
        return True
    async with pool.connection() as connection:
        await connection.execute("SELECT 1")
    return True


async def _check_connections(connections: PsycopgConnections) -> bool:
    async with connections.connection() as connection:
        await connection.execute("SELECT 1")
    return True


async def reset_session(connection: Connection) -> None:
    """Forget what the last user of the connection set. Ends an open transaction by rolling it back."""
    autocommit = connection.autocommit
    if connection.info.transaction_status != TransactionStatus.IDLE:
        await connection.rollback()
    await connection.set_autocommit(True)  # one round trip instead of three: no BEGIN, no COMMIT
    await connection.execute(RESET)
    await connection.set_autocommit(autocommit)


def _check_dsn(dsn: str) -> None:
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # libpq's own words would quote the string, and a password may stand in it.
        raise ConfigurationError("the registry's DSN is not one that PostgreSQL understands") from None


async def connect(dsn: str = "", **keywords: Any) -> Connection:
    """Connect as psycopg does; a failed attempt leaves no socket, and a refused login has its SQLSTATE."""
    try:
        return await psycopg.AsyncConnection.connect(dsn, **keywords)
    except BaseException as error:
        # psycopg leaves an abandoned socket to the garbage collector, and the frames of the traceback keep it.
        traceback.clear_frames(error.__traceback__)
        if (refusal := _refusal(error)) is not None:
            raise refusal from error
        raise


def _refusal(error: BaseException) -> psycopg.Error | None:
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        text = str(error)
        for code, words in _REFUSALS.items():
            if all(word in text for word in words):
                return psycopg.errors.lookup(code)(text)
    return None


async def end_connection(connection: Connection) -> None:
    """End a connection that another task may be using.

    Closing it would pull the file descriptor from under that task: it would wait for ever, and later disturb whoever
    is given the same number. After a shutdown it reads the end of the stream, and closes the connection itself.
    """
    if connection.pgconn.transaction_status != TransactionStatus.ACTIVE and not connection.lock.locked():
        await connection.close()
        return
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
