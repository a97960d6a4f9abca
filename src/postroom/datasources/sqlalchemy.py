"""SQLAlchemy: one ``AsyncEngine`` per context. Needs ``pip install 'postroom[sqlalchemy]'`` and a driver's extra."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from typing import Any

from postroom.datasources.registry import CANARY, DataSource, Locate, Provider, ask, located, verify
from postroom.errors import ClosedError, ConfigurationError
from postroom.types import C

try:
    from sqlalchemy import URL, event, make_url, text
    from sqlalchemy.exc import ArgumentError, DBAPIError
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.util import await_only
except ModuleNotFoundError as error:  # pragma: no cover - the test environment has it
    raise ModuleNotFoundError("SQLAlchemy is missing: pip install 'postroom[sqlalchemy]'", name="sqlalchemy") from error

_log = logging.getLogger("postroom.datasources")
_RESET = "RESET SESSION AUTHORIZATION; RESET ALL; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all()"


def sqlalchemy_engine(
    locate: Locate[C],
    *,
    max_size: int = 4,
    connect_timeout: float = 5.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    reset: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Provider[C, AsyncEngine]:
    """Provide an ``AsyncEngine`` per context. It opens its first connection at once, and others as they are needed.

    SQLAlchemy's own ``dispose()`` leaves connections that are in use alive, and an engine that is used afterwards
    builds a new pool without a word. After this one nothing is open, and a later use raises ``ClosedError``.

    Args:
        locate: context to URL or ``DataSource``; ``LookupError`` for a context that is nobody's. A plain
            ``postgresql://`` takes asyncpg where it is installed, else psycopg.
        max_size: connections at most, without overflow; the weight of one resource.
        connect_timeout: seconds for one connection to be made.
        close_timeout: seconds that connections in use may take at close; then they are ended.
        canary: check database and user of every new connection against the registry (``WrongDatabase``).
        reset: forget session settings and roles when a connection is returned: one more round trip.
        options: further keywords for ``create_async_engine``, such as ``isolation_level``.

    Raises:
        LookupError: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        sqlalchemy.exc.DBAPIError, OSError, TimeoutError: at opening: the first connection could not be made. A
            login that psycopg's library reports without SQLSTATE is raised as psycopg's error with it.
    """

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[AsyncEngine, None]:
        source = await located(locate, context)
        engine = create_async_engine(_url(source.dsn), **_pool_options(max_size, connect_timeout, options or {}))
        watch = _Watch(engine, source, connect_timeout=connect_timeout, canary=canary, reset=reset)
        try:
            async with asyncio.timeout(connect_timeout):
                await _connect_once(engine)
            yield engine
        finally:
            await watch.close(close_timeout)

    return Provider(enter, weight=max_size, check=_check)


def _pool_options(max_size: int, connect_timeout: float, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"pool_size": max_size, "max_overflow": 0, "pool_timeout": connect_timeout, **options}


def _url(dsn: str) -> URL:
    try:
        url = make_url(dsn)
    except ArgumentError:
        # SQLAlchemy's words might quote the URL, and a password may stand in it.
        raise ConfigurationError("the registry's DSN is not a URL that SQLAlchemy understands") from None
    if url.drivername in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+asyncpg" if find_spec("asyncpg") else "postgresql+psycopg")
    return url


class _Watch:
    """Everything that is to happen at the connections of one engine, as listeners of its pool."""

    def __init__(
        self, engine: AsyncEngine, source: DataSource, *, connect_timeout: float, canary: bool, reset: bool
    ) -> None:
        self._engine = engine
        self._source = source
        self._connect_timeout = connect_timeout
        self._live: set[Any] = set()
        self._in_use = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._closed = False
        sync = engine.sync_engine
        self._canary = canary and sync.dialect.name == "postgresql"
        event.listen(sync, "do_connect", self._before_connect)
        event.listen(sync, "connect", self._after_connect)
        event.listen(sync, "checkout", self._checkout)
        event.listen(sync, "checkin", self._checkin)
        event.listen(sync, "close", self._forget)
        event.listen(sync, "close_detached", self._forget)
        if reset and sync.dialect.name == "postgresql":
            event.listen(sync, "reset", self._reset)

    def _before_connect(self, dialect: Any, _record: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        if self._closed:
            raise ClosedError("this engine belongs to a tenant whose resources were closed")
        if self._source.password is not None:
            keywords["password"] = await_only(ask(self._source.password))
        if dialect.driver == "asyncpg":
            keywords.setdefault("timeout", self._connect_timeout)
        elif dialect.driver.startswith("psycopg"):
            keywords.setdefault("connect_timeout", max(2, round(self._connect_timeout)))  # libpq knows no less

    def _after_connect(self, connection: Any, _record: Any) -> None:
        if self._canary:
            cursor = connection.cursor()
            try:
                cursor.execute(CANARY)
                verify(self._source, *cursor.fetchone())
            except BaseException:
                connection.close()  # SQLAlchemy would leave it to the garbage collector
                raise
            finally:
                cursor.close()
            connection.rollback()
        self._live.add(connection)

    def _checkout(self, _connection: Any, _record: Any, _proxy: Any) -> None:
        self._in_use += 1
        self._unused.clear()

    def _checkin(self, _connection: Any, _record: Any) -> None:
        self._in_use -= 1
        if not self._in_use:
            self._unused.set()

    def _forget(self, connection: Any, *_: Any) -> None:
        self._live.discard(connection)

    def _reset(self, connection: Any, _record: Any, state: Any) -> None:
        if state.terminate_only or not state.asyncio_safe:
            return  # it is not used again
        connection.rollback()
        connection.run_async(_reset_session)  # past the dialect: one round trip instead of one for each statement

    async def close(self, timeout: float) -> None:
        self._closed = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._unused.wait()
                    await self._engine.dispose()
        finally:
            held, self._live = self._live, set()
            for connection in held:
                await _end(connection.driver_connection)
            if held:
                _log.warning("%d connections of an engine were still in use at close and were ended", len(held))


async def _connect_once(engine: AsyncEngine) -> None:
    try:
        async with engine.connect():
            pass
    except DBAPIError as error:
        if engine.dialect.driver.startswith("psycopg"):
            from postroom.datasources.psycopg import refusal_of  # noqa: PLC0415 - only where psycopg is in use

            if (refusal := refusal_of(error.orig)) is not None:
                raise refusal from error
        raise


async def _reset_session(connection: Any) -> None:
    if hasattr(connection, "pgconn"):
        from postroom.datasources.psycopg import reset_session  # noqa: PLC0415 - only where psycopg is in use

        await reset_session(connection)
    else:
        await connection.execute(_RESET)


async def _end(connection: Any) -> None:
    """End a driver's connection that another task may be using."""
    if hasattr(connection, "terminate"):  # asyncpg
        connection.terminate()
        await asyncio.sleep(0)  # an aborted socket closes in the next turn of the loop
    elif hasattr(connection, "pgconn"):
        from postroom.datasources.psycopg import shut_down  # noqa: PLC0415 - only where psycopg is in use

        shut_down(connection)
    else:
        await connection.close()


async def _check(engine: AsyncEngine) -> bool:
    """Ask one idle connection. An engine whose connections are all in use is in use: its users report."""
    pool: Any = engine.pool
    if pool.checkedout() >= pool.size():
        return True
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return True
