"""SQLAlchemy: one ``AsyncEngine`` per context. Needs ``pip install 'postroom[sqlalchemy]'`` and a driver's extra."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

from postroom.datasources._attempts import Attempts
from postroom.datasources._canary import CANARY, require_names, verify
from postroom.datasources._lookups import lookups_of
from postroom.datasources._lost import took_too_long
from postroom.datasources._passwords import connected
from postroom.datasources._places import place_of, places
from postroom.datasources._read_only import is_refused_write, judge
from postroom.datasources._reset import LostCodecs, prepare_again
from postroom.datasources._server import Server
from postroom.datasources._waiting import Waiting, make_do, tell_of_held
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
from postroom.resources.failures import of_message
from postroom.tasks import told_once
from postroom.types import C

try:
    from sqlalchemy import URL, event, exc, text
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.pool import AsyncAdaptedQueuePool
    from sqlalchemy.util import await_only

    from postroom.datasources._sqlalchemy_sessions import parsed
except ModuleNotFoundError as _error:  # pragma: no cover - the test environment has it
    raise ModuleNotFoundError(
        "SQLAlchemy is missing: pip install 'postroom[sqlalchemy]'", name="sqlalchemy"
    ) from _error

_SQLALCHEMYS: Final = frozenset({"async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func"})
"""Parameters of a URL that SQLAlchemy takes for its own."""
REFUSED: Final = "postroom refused"
"""Where a connection keeps a write that was refused."""
_FRESH: Final = "_postroom_fresh"
"""Where SQLAlchemy's record of a connection keeps what was noted there before the first use."""
OWN: Final = {
    "url": "", "pool": "", "poolclass": "", "pool_size": "max_size", "max_overflow": "max_size",
    # These make connections past the registry and the canary.
    "creator": "", "async_creator": "",
}  # fmt: skip


def sqlalchemy_engine(
    locate: Locate[C],
    *,
    max_size: int = 4,
    connect_timeout: float = 5.0,
    acquire_timeout: float = 10.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    reset: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Provider[C, AsyncEngine]:
    """Provide an ``AsyncEngine`` per context. It opens its first connection at once, and others as they are needed.

    SQLAlchemy's own ``dispose()`` leaves connections that are in use alive, and an engine that is
    used afterwards builds a new pool without a word. After this one nothing is open, and a later
    use raises ``ClosedError``.

    Args:
        locate: context to URL or ``DataSource``; ``LookupError`` or None where there is no such
            tenant. A plain ``postgresql://`` takes asyncpg where it is installed, else psycopg.
        max_size: connections at most, without overflow; the weight of one resource.
        connect_timeout: seconds for one connection to be made, the canary included. Several hosts of
            a DSN share them.
        acquire_timeout: seconds after which asking for a connection raises SQLAlchemy's
            ``TimeoutError``. A wait of 3 s is logged, once.
        close_timeout: seconds that connections in use may take at close; then they are ended.
        canary: check database and user of every new connection against the registry
            (``WrongDatabase``).
        reset: forget roles, settings, locks, LISTEN and temporary tables when a connection is
            returned: one more round trip. It may take ``connect_timeout``; then the connection is
            ended.
        options: further keywords for ``create_async_engine``, such as ``isolation_level``. A function
            that makes connections is ``{"connect_args": {"async_creator_fn": function}}``: the
            canary looks at them, too.

    Raises:
        UnknownTenant: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        ConfigurationError: at opening: the URL is none, or names no database that the canary could
            compare.
        sqlalchemy.exc.DBAPIError, OSError, TimeoutError: at opening: the first connection could not
            be made.
    """
    check_locate("sqlalchemy_engine", locate)
    check_count("sqlalchemy_engine", "max_size", max_size)
    check_switches("sqlalchemy_engine", canary=canary, reset=reset)
    check_keywords("sqlalchemy_engine", options, OWN)
    check_times(
        "sqlalchemy_engine",
        connect_timeout=connect_timeout,
        acquire_timeout=acquire_timeout,
        close_timeout=close_timeout,
    )

    codecs = LostCodecs()

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[AsyncEngine, None]:
        source = await located(locate, context)
        url = _url(source.dsn)
        # In its words: SQLAlchemy takes a "/" in a password, where others see the end of the host.
        source = replace(source, dsn=url.render_as_string(hide_password=False))
        server = Server(connect_timeout, place_of(source))
        waiting = Waiting(context, max_size, acquire_timeout, server)
        uses = _Uses(max_size, waiting)
        keywords = {**_pool_options(uses, waiting, acquire_timeout), **(options or {})}
        keywords.setdefault("pool_timeout", acquire_timeout)
        engine = create_async_engine(url, **keywords)
        who, more = display_key(context), {"canary": canary, "reset": reset}
        watch = _Watch(engine, source, who, uses, codecs, connect_timeout=connect_timeout, **more)
        try:
            async with engine.connect():
                pass
            yield engine
        finally:
            await watch.close(close_timeout)

    return Provider(enter, weight=max_size, check=_check, place=places(locate))


class _Uses:
    """The connections of an engine that are in use; one that is being made is not.

    By their records and not counted: SQLAlchemy checks in also what it could not connect, and so never checked out.
    """

    def __init__(self, most: int, waiting: Waiting) -> None:
        self.most = most
        self._waiting = waiting
        self._records: set[Any] = set()
        self.open: set[Any] = set()
        """Connections of the engine, whether they are in use or not."""
        self.none = asyncio.Event()
        self.none.set()

    def is_full(self) -> bool:
        return len(self._records) >= self.most

    def met(self, connection: Any) -> None:
        """Note where a new connection leads to."""
        self._waiting.server.met(connection)

    def begin(self, record: Any) -> None:
        self._records.add(record)
        self.none.clear()

    def end(self, record: Any) -> None:
        self._records.discard(record)
        self._waiting.freed()  # it wakes in the next turn of the loop: then the connection is back
        if not self._records:
            self.none.set()


def _pool_options(uses: _Uses, room: Waiting, acquire_timeout: float) -> dict[str, Any]:
    class Watched(AsyncAdaptedQueuePool):
        """SQLAlchemy's pool, which also says when its connections do not suffice."""

        # SQLAlchemy would name its own logger after this module, and it logs what drivers raise as it is.
        _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncAdaptedQueuePool"

        waiting = room

        def _do_get(self) -> Any:  # the hook that every kind of pool fills in
            with room.one(uses.is_full):
                try:
                    record = make_do(
                        super()._do_get,
                        held=uses.open,
                        wait=lambda: await_only(room.until_freed()),
                        limit=acquire_timeout,
                    )
                    return renewed(record)
                except exc.TimeoutError as late:  # an outage where the server is silent
                    raise late from await_only(room.server.problem())

    return {"poolclass": Watched, "pool_size": uses.most, "max_overflow": 0}


def _url(dsn: str) -> URL:
    url = parsed(dsn)
    if url.drivername in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+asyncpg" if find_spec("asyncpg") else "postgresql+psycopg")
    return url


class _Watch:
    """Everything that is to happen at the connections of one engine, as listeners of its pool."""

    def __init__(
        self,
        engine: AsyncEngine,
        source: DataSource,
        who: str,
        uses: _Uses,
        codecs: LostCodecs,
        *,
        connect_timeout: float,
        canary: bool,
        reset: bool,
    ) -> None:
        self._engine = engine
        self._source = source
        self._who = who
        self._timeout = connect_timeout
        lookups = lookups_of(engine.url.query)
        self._attempts: Attempts[Any] = Attempts(connect_timeout, _end, place_of(source), lookups)
        self._uses = uses
        self._codecs = codecs
        sync = engine.sync_engine
        postgresql = sync.dialect.name == "postgresql"
        self._names = require_names(source) if canary and postgresql else None
        event.listen(sync, "do_connect", self._before_connect)
        event.listen(sync, "connect", self._after_connect)
        event.listen(sync, "checkout", self._checkout)
        event.listen(sync, "checkin", self._checkin)
        event.listen(sync, "invalidate", self._end_statement)
        event.listen(sync, "close", self._forget)
        event.listen(sync, "close_detached", self._forget)
        if postgresql:
            event.listen(sync, "handle_error", judge_at_once)
        if reset and postgresql:
            self._driver = _driver(sync.dialect.driver)
            # At its first use: listeners of "connect" have done what they do by then.
            event.listen(sync, "checkout", self._remember)
            event.listen(sync, "reset", self._reset)
            event.listen(sync, "handle_error", note_refusal)

    def _before_connect(self, dialect: Any, _record: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        """Put ourselves between SQLAlchemy and the driver: every dialect with asyncio takes ``async_creator_fn``."""
        if (create := keywords.get("async_creator_fn") or _creator(dialect, self._timeout)) is None:
            return
        if dialect.driver == "asyncpg":
            _driver("asyncpg").read_as_dsn(keywords, self._engine.url.query.keys() - _SQLALCHEMYS)

        async def connect(*arguments: Any, **keywords: Any) -> Any:
            async def once(password: dict[str, Any]) -> Any:
                return await create(*arguments, **{**keywords, **password})

            return await connected(self._source, once)

        async def make(*arguments: Any, **keywords: Any) -> Any:
            return await self._attempts.make(lambda: connect(*arguments, **keywords), self._greet)

        keywords["async_creator_fn"] = make

    async def _greet(self, connection: Any) -> None:
        if self._names is not None:
            row = await _first_row(connection, CANARY)
            verify(self._names, row[0], row[1])
        self._uses.met(connection)

    def _after_connect(self, connection: Any, _record: Any) -> None:
        self._uses.open.add(connection)

    def _checkout(self, _connection: Any, record: Any, _proxy: Any) -> None:
        self._uses.begin(record)

    def _checkin(self, _connection: Any, record: Any) -> None:
        self._uses.end(record)

    def _end_statement(self, connection: Any, _record: Any, error: BaseException | None) -> None:
        # SQLAlchemy would do it next, but a scope of anyio cancels that as well. Then it drops the connection, and the
        # statement runs on, on a connection that no pool counts.
        if isinstance(error, asyncio.CancelledError) and self._engine.dialect.driver == "asyncpg":
            connection.run_async(_close_asyncpg)

    def _forget(self, connection: Any, *_: Any) -> None:
        self._uses.open.discard(connection)

    def _remember(self, connection: Any, record: Any, _proxy: Any) -> None:
        self._driver.remember(connection.driver_connection)
        keep_notes(connection, record)

    def _reset(self, connection: Any, record: Any, state: Any) -> None:
        if state.terminate_only or not state.asyncio_safe:
            return  # it is not used again
        # SQLAlchemy replaces a connection that could not be reset. In an empty context: the loop may keep a timer that
        # was cancelled, and with it the message of the connection's user.
        loop, end, mine = asyncio.get_running_loop(), self._driver.break_off, connection.driver_connection
        late = loop.call_later(self._timeout, end, mine, context=Context())
        try:
            connection.rollback()
            connection.run_async(
                self._driver.reset_session
            )  # past the dialect: one round trip, not one for each statement
            if (error := record.info.pop(REFUSED, None)) is not None:
                connection.run_async(partial(_judge, error))
        finally:
            late.cancel()
        if getattr(connection.driver_connection, "spoilt", False):
            if connection.driver_connection.codecs_changed:
                self._codecs.ended()
            record.invalidate(soft=True)  # asyncpg has no way back: the next user gets a new one

    async def close(self, timeout: float) -> None:
        try:
            await self._attempts.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._uses.none.wait()
                    await self._engine.dispose()
        finally:
            held, self._uses.open = self._uses.open, set()
            for connection in held:
                await _end(connection.driver_connection)
            if held:
                tell_of_held(self._who, len(held))


def keep_notes(connection: Any, record: Any) -> None:
    """Keep what ``info`` and ``record_info`` are at the first use of a connection."""
    if getattr(record, _FRESH, (None,))[0] is not connection:
        setattr(record, _FRESH, (connection, dict(record.info), dict(record.record_info)))


def renewed(record: Any) -> Any:
    """Return a record with the ``info`` and ``record_info`` of its first use: SQLAlchemy keeps both for the next user.

    When the next use begins, and not when one ends: listeners of "checkin" may want what is there. And before those of
    "checkout", who may note something for it.
    """
    kept: tuple[Any, dict[str, Any], dict[str, Any]] = getattr(record, _FRESH, (None, {}, {}))
    of, info, lasting = kept
    if of is not None and of is record.dbapi_connection:  # SQLAlchemy empties the info of one that is gone
        for notes, fresh in ((record.info, info), (record.record_info, lasting)):
            notes.clear()
            notes.update(fresh)
    return record


def note_refusal(problem: Any) -> None:
    """Remember a refused write until its connection is returned: its server is asked then what it means."""
    if problem.connection is not None and is_refused_write(problem.original_exception):
        problem.connection.info[REFUSED] = problem.original_exception


def judge_at_once(problem: Any) -> None:
    """Rule that what a transaction's own length has ended is a failure, and forget a plan that was refused."""
    error = problem.original_exception
    if took_too_long(error) and problem.sqlalchemy_exception is not None:
        of_message(problem.sqlalchemy_exception)
    if problem.connection is not None and not problem.is_disconnect:
        prepare_again(error, problem.connection.connection.driver_connection)


def _creator(dialect: Any, timeout: float) -> Callable[..., Awaitable[Any]] | None:
    """Return what makes a connection of the dialect's driver, within so many seconds for all hosts together."""
    if dialect.driver == "asyncpg":
        from postroom.datasources import asyncpg  # noqa: PLC0415 - only where it is in use

        return partial(asyncpg.connect_remembering, in_all=timeout)
    if dialect.driver.startswith("psycopg"):
        from postroom.datasources import psycopg  # noqa: PLC0415 - only where it is in use

        return partial(psycopg.connect, in_all=timeout)
    return None


async def _first_row(connection: Any, sql: str) -> Any:
    if not hasattr(connection, "pgconn"):
        return await connection.fetchrow(sql)
    cursor = await connection.execute(sql)
    row = await cursor.fetchone()
    await connection.rollback()
    return row


async def _judge(error: BaseException, connection: Any) -> None:
    async def ask(sql: str) -> object:
        return (await _first_row(connection, sql))[0]

    await judge(error, ask)


def _driver(name: str) -> Any:
    """Return the module that makes the driver's connections again what they were."""
    if name == "asyncpg":
        from postroom.datasources import asyncpg  # noqa: PLC0415 - only where it is in use

        return asyncpg
    from postroom.datasources import psycopg  # noqa: PLC0415 - only where it is in use

    return psycopg


async def _close_asyncpg(connection: Any) -> None:
    # Cancelled once more, too: SQLAlchemy goes on with the cancellation that it is about to raise.
    with suppress(Exception, asyncio.CancelledError), told_once():
        await connection.close(timeout=2)


async def _end(connection: Any) -> None:
    """End a driver's connection that another task may be using."""
    if hasattr(connection, "terminate"):  # asyncpg
        connection.terminate()
        await asyncio.sleep(0)  # an aborted socket closes in the next turn of the loop
    elif hasattr(connection, "pgconn"):
        from postroom.datasources.psycopg import end_connection  # noqa: PLC0415 - only where psycopg is in use

        await end_connection(connection)
    else:
        await connection.close()


async def _check(engine: AsyncEngine) -> bool:
    """Ask one idle connection; where there is none, the server: users of the others may wait for it in vain."""
    pool: Any = engine.pool
    if pool.checkedout() >= pool.size():
        return bool(await pool.waiting.server.check())
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return True
