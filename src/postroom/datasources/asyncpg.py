"""asyncpg: one connection pool per context. Needs ``pip install 'postroom[asyncpg]'``."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlencode

from postroom.checking import check_optional
from postroom.datasources._attempts import Attempts, refused, spent, unanswered
from postroom.datasources._canary import CANARY, Names, is_torn, require_names, unreadable, verify
from postroom.datasources._lookups import LOOKUPS
from postroom.datasources._lost import ENDS_TRANSACTIONS, chain, took_too_long
from postroom.datasources._passwords import connected
from postroom.datasources._places import place_of, places
from postroom.datasources._read_only import is_refused_write, judge
from postroom.datasources._reset import DEALLOCATE, RESET, LostCodecs, forget_attributes, remember_attributes
from postroom.datasources._server import Server
from postroom.datasources._waiting import Waiting, is_out_of_room, tell_of_held
from postroom.datasources.providers import Provider
from postroom.datasources.registry import Locate, check_keywords, check_locate, check_switches, check_times, located
from postroom.display import display_key
from postroom.options import check_count
from postroom.resources.failures import of_message
from postroom.tasks import TimeLimit
from postroom.types import C

try:
    import asyncpg
    from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

    from postroom.datasources._asyncpg_hosts import connect_in_turn
except ModuleNotFoundError as _error:  # pragma: no cover - the test environment has it
    raise ModuleNotFoundError("asyncpg is missing: pip install 'postroom[asyncpg]'", name="asyncpg") from _error

if TYPE_CHECKING:
    _PoolBase = asyncpg.Pool[asyncpg.Record]
    _AcquiringBase = PoolAcquireContext[asyncpg.Record]
    _ConnectionBase = asyncpg.Connection[asyncpg.Record]
else:  # only the stubs have parameters
    _PoolBase = asyncpg.Pool
    _AcquiringBase = PoolAcquireContext
    _ConnectionBase = asyncpg.Connection

Reset = Callable[["asyncpg.Connection[asyncpg.Record]"], Awaitable[None]]
_OWN: Final = {
    "dsn": "", "connect": "", "min_size": "", "max_size": "max_size", "init": "init",
    "max_inactive_connection_lifetime": "idle",
}  # fmt: skip
_CALLBACKS: Final = ("_query_loggers", "_log_listeners", "_termination_listeners")
_FORGETTING: Final = frozenset({"DISCARD ALL", "DEALLOCATE ALL", "DEALLOCATE PREPARE ALL"})
_LONGEST: Final = 40
"""Characters of a query that may be one of these: longer ones are not looked at."""
_NONE_PREPARED: Final = "SELECT 0"  # what PostgreSQL answers to the last statement of RESET


class Init(Protocol):
    """Prepares a new connection: type codecs, for instance."""

    async def __call__(self, connection: "asyncpg.Connection[asyncpg.Record]", /) -> None:
        """Prepare ``connection``."""


def asyncpg_pool(
    locate: Locate[C],
    *,
    max_size: int = 4,
    idle: float = 60.0,
    connect_timeout: float = 5.0,
    acquire_timeout: float | None = 10.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    reset: bool = True,
    init: Init | None = None,
    options: Mapping[str, Any] | None = None,
) -> "Provider[C, asyncpg.Pool[asyncpg.Record]]":
    """Provide an ``asyncpg.Pool`` per context. It opens its first connection at once, and others as they are needed.

    asyncpg's own ``close()`` waits without bound for connections that are held. This one terminates
    them after ``close_timeout``: nothing of the pool is open when it has been left.

    Args:
        locate: context to DSN or ``DataSource``; ``LookupError`` or None where there is no such
            tenant.
        max_size: connections at most; the weight of one resource.
        idle: seconds after which an unused connection is closed, down to none.
        connect_timeout: seconds for one connection to be made, the canary included. Several hosts of
            a DSN share them.
        acquire_timeout: seconds after which ``acquire()`` raises ``TimeoutError``, where the call
            names none itself. None waits without a limit. A wait of 3 s is logged, once. While the
            server is full (53300), callers wait for one of the connections that the pool has.
        close_timeout: seconds that held connections may take at close.
        canary: check database and user of every new connection against the registry
            (``WrongDatabase``).
        reset: forget roles, settings, locks, LISTEN and temporary tables when a connection is
            returned. It takes the place of asyncpg's own reset, which keeps roles and temporary
            tables. False forgets nothing.
        init: called with each new connection, after the canary: type codecs, for instance. Settings
            belong into ``options={"server_settings": ...}``: the reset undoes a SET.
        options: further keywords for ``asyncpg.create_pool``, such as ``ssl`` or
            ``statement_cache_size``.

    Raises:
        UnknownTenant: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        ConfigurationError: at opening: asyncpg cannot read the DSN, or it names no database that the
            canary could compare.
        asyncpg.PostgresError, OSError, TimeoutError: at opening: the first connection could not be
            made.
    """
    check_locate("asyncpg_pool", locate)
    check_count("asyncpg_pool", "max_size", max_size)
    check_switches("asyncpg_pool", canary=canary, reset=reset)
    check_keywords("asyncpg_pool", options, _OWN)
    check_times("asyncpg_pool", idle=idle, connect_timeout=connect_timeout, close_timeout=close_timeout)
    if acquire_timeout is not None:
        check_times("asyncpg_pool", acquire_timeout=acquire_timeout)
    check_optional("asyncpg_pool(init=...)", "(connection)", init)
    keywords = dict(options or {})
    keywords["reset"] = _reset_with(keywords.get("reset"), everything=reset)
    keywords["setup"] = _setup_with(keywords.get("setup"))
    keywords["connection_class"] = _remembering(keywords.get("connection_class", asyncpg.Connection))

    @asynccontextmanager
    async def enter(context: C) -> "AsyncGenerator[asyncpg.Pool[asyncpg.Record], None]":
        source = await located(locate, context)
        if is_torn(source.dsn):
            raise unreadable("asyncpg")
        names = require_names(source, keywords) if canary else None
        place = place_of(source, options)
        attempts = Attempts(connect_timeout, _discard, place, LOOKUPS)
        server = Server(connect_timeout, place)

        async def prepare(connection: Any) -> None:
            try:
                if init is not None:
                    await init(connection)
            except Exception as error:
                told = refused(error, place)
                raise told from told.__cause__
            remember(connection)

        async def connect(*arguments: Any, **keywords: Any) -> "asyncpg.Connection[asyncpg.Record]":
            async def once(password: dict[str, Any]) -> "asyncpg.Connection[asyncpg.Record]":
                return await _connect(connect_timeout, *arguments, **(keywords | password))

            made = await attempts.make(lambda: connected(source, once), lambda connection: _greet(connection, names))
            server.met(made)
            return made

        pool = _Pool(
            source.dsn,
            min_size=0,
            max_size=max_size,
            # Down to none: an idle tenant must not hold a process of the server.
            max_inactive_connection_lifetime=idle,
            connect=connect,
            init=prepare,
            waiting=Waiting(context, max_size, acquire_timeout, server),
            acquire_timeout=acquire_timeout,
            # A reset that hangs, as on a dead host, would otherwise hold its place in the pool.
            release_timeout=connect_timeout,
            place=place,
            **keywords,
        )
        try:
            await pool
            # An open that never connected would prove nothing about the tenant's database. To connect has a limit of
            # its own; the rest is for `init`.
            async with pool.acquire(timeout=connect_timeout + (acquire_timeout or connect_timeout)):
                pass
            yield pool
        finally:
            try:
                # First: an attempt that ends later would add a connection to a pool that is closed.
                await attempts.close()
            finally:
                await _close(pool, close_timeout, display_key(context))

    return Provider(enter, weight=max_size, check=_check, place=places(locate))


class _Acquiring(_AcquiringBase):
    """``pool.acquire()``, with a limit and a word in the log for who waits.

    asyncpg's own limit costs a task for each call, and swallows a cancellation that meets the end
    of the wait.
    """

    def __init__(self, pool: "_Pool", timeout: float | None) -> None:
        super().__init__(pool, None)
        self._watched = pool
        self._limit = timeout
        self._used: Any = None

    async def __aenter__(self) -> "PoolConnectionProxy[asyncpg.Record]":
        acquired = await self._wait(super().__aenter__)
        self._used = getattr(acquired, "_con", None)  # asyncpg takes it away from its user when it is lost
        return acquired

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self.connection is not None and isinstance(error := exc[1], Exception):
                await self._judge(error)
        finally:  # also where a cancellation does not wait for the answer
            await super().__aexit__(*exc)

    async def _judge(self, error: Exception) -> None:
        """Find out what an error of the block means: an outage, or a failure of the message."""
        if is_refused_write(error):
            await judge(error, partial(_ask, self.connection))
        elif took_too_long(error):
            of_message(error)
        elif getattr(self._used, "lost", False) and _tell_of_loss(error) and self._used.lost_in_transaction:
            # The server has said why, and asyncpg does not tell.
            await judge(error, partial(_ask_over_another, self._watched), ENDS_TRANSACTIONS)

    def __await__(self) -> "Generator[Any, Any, PoolConnectionProxy[asyncpg.Record]]":
        async def acquire() -> "PoolConnectionProxy[asyncpg.Record]":
            return await PoolAcquireContext(self._watched, None)

        self.done = True
        return self._wait(acquire).__await__()

    async def _wait(
        self, acquire: "Callable[[], Awaitable[PoolConnectionProxy[asyncpg.Record]]]"
    ) -> "PoolConnectionProxy[asyncpg.Record]":
        pool = self._watched
        if pool.is_closing():
            raise spent()
        limit = TimeLimit(self._limit)
        refusal: Exception | None = None
        with pool.waiting.one(pool.is_full):
            try:
                async with limit:
                    while True:
                        try:
                            return await acquire()
                        except asyncpg.TooManyConnectionsError as error:
                            if not is_out_of_room(error, pool.get_size()):
                                raise
                            # Kept: if no place becomes free in time, this is the reason, and not
                            # the lateness.
                            refusal = error
                        await pool.waiting.until_freed()
            except TimeoutError:
                # Only for our own limit: a TimeoutError of the driver passes as it is.
                if limit.expired() and refusal is not None:
                    raise refusal from None
                if limit.expired() and self._limit is not None:
                    late = await pool.waiting.timed_out(self._limit, full=pool.is_full())
                    raise late from late.__cause__
                raise


class _Pool(_PoolBase):
    """asyncpg's pool, which also says when its connections do not suffice, and waits for none without a limit.

    Args:
        arguments: asyncpg's own.
        waiting: who is told of those who wait.
        acquire_timeout: the limit of ``acquire()`` where the call names none.
        release_timeout: seconds that a returned connection may take to forget its last user; then
            it is terminated.
        place: where the connections lead, as people are told.
        options: asyncpg's own.
    """

    def __init__(
        self,
        *arguments: Any,
        waiting: Waiting,
        acquire_timeout: float | None,
        release_timeout: float,
        place: str,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **(_DEFAULTS | options))
        self.waiting = waiting
        self._acquire_timeout = acquire_timeout
        self._release_timeout = release_timeout
        self._place = place

    def is_full(self) -> bool:
        """Return whether all connections exist and are in use."""
        return self.get_size() >= self.get_max_size() and not self.get_idle_size()

    def acquire(self, *, timeout: float | None = None) -> _Acquiring:
        return _Acquiring(self, self._acquire_timeout if timeout is None else timeout)

    async def release(self, connection: "PoolConnectionProxy[asyncpg.Record]", *, timeout: float | None = None) -> None:
        limit = self._release_timeout if timeout is None else timeout
        try:
            await super().release(connection, timeout=limit)
        except TimeoutError as late:  # asyncpg's own, which says nothing: the server is silent
            raise unanswered(f"a connection of {self._place} did not forget its last user within {limit:g} s") from late
        finally:
            self.waiting.freed()


_DEFAULTS: Final[dict[str, Any]] = {
    "max_queries": 50_000,
    "setup": None,
    "loop": None,
    "connection_class": asyncpg.Connection,
    "record_class": asyncpg.Record,
}
"""asyncpg's defaults for what ``create_pool`` fills in and the class itself demands."""


def _setup_with(setup: Init | None) -> Init | None:
    """Return what a connection goes through before each use: codecs that are set there are no user's of it."""
    if setup is None:
        return None

    async def set_up(connection: Any) -> None:
        await setup(connection)
        connection.keep_codecs()

    return set_up


def _reset_with(then: Reset | None, *, everything: bool) -> Reset:
    """Return what a returned connection goes through: our reset, and then the user's own."""
    codecs = LostCodecs()

    async def reset(connection: Any) -> None:
        if everything:
            await reset_session(connection)
            if connection.spoilt:
                if connection.codecs_changed:
                    codecs.ended()
                connection.terminate()  # asyncpg has no way back; the pool makes another one when it needs one
                return
        if then is not None:
            await then(connection)
            connection.keep_codecs()

    return reset


class _Remembering(_ConnectionBase):
    """Knows what it was like, and whether it is spoilt or was lost: asyncpg can neither tell nor undo that.

    It is spoilt where its codecs were changed, or the server has forgotten what asyncpg believes to be prepared.
    """

    fresh: dict[str, Any] | None = None
    spoilt = False
    codecs_changed = False
    lost = False
    """Whether it ended, and not on this side."""
    lost_in_transaction = False
    _ended = False

    async def close(self, *, timeout: float | None = None) -> None:
        self._ended = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        self._ended = True
        super().terminate()

    def _cleanup(self) -> None:
        if not self._ended:
            self.lost, self.lost_in_transaction = True, self.is_in_transaction()
        asyncpgs: Any = super()
        asyncpgs._cleanup()  # noqa: SLF001 - not in the stubs

    def keep_codecs(self) -> None:
        """Take its codecs as they are for its own."""
        self.spoilt = self.codecs_changed = False

    async def execute(self, query: str, *arguments: Any, **keywords: Any) -> str:
        self.spoilt = self.spoilt or _forgets_statements(query)
        return await super().execute(query, *arguments, **keywords)

    async def _get_statement(self, query: str, *arguments: Any, **keywords: Any) -> Any:  # of whatever else runs SQL
        self.spoilt = self.spoilt or _forgets_statements(query)
        asyncpgs: Any = super()
        return await asyncpgs._get_statement(query, *arguments, **keywords)  # noqa: SLF001 - not in the stubs

    async def set_type_codec(self, *arguments: Any, **keywords: Any) -> None:
        self.spoilt = self.codecs_changed = True
        await super().set_type_codec(*arguments, **keywords)

    async def reset_type_codec(self, *arguments: Any, **keywords: Any) -> None:
        self.spoilt = self.codecs_changed = True
        await super().reset_type_codec(*arguments, **keywords)

    async def set_builtin_type_codec(self, *arguments: Any, **keywords: Any) -> None:
        self.spoilt = self.codecs_changed = True
        await super().set_builtin_type_codec(*arguments, **keywords)


def _forgets_statements(query: str) -> bool:
    return len(query) < _LONGEST and " ".join(query.upper().replace(";", " ").split()) in _FORGETTING


def _remembering(kind: Any) -> Any:
    """Return a class of connections that is also this one."""
    is_one = asyncpg.Connection in kind.__mro__  # else asyncpg says what is wrong with it
    return type(kind.__name__, (_Remembering, kind), {}) if is_one else kind


def read_as_dsn(keywords: dict[str, Any], parameters: Iterable[str]) -> None:
    """Let asyncpg read what it knows in DSNs only, such as ``sslrootcert``: SQLAlchemy passes it on as a keyword.

    Args:
        keywords: for ``asyncpg.connect``.
        parameters: names of those that a URL had.
    """
    known = inspect.signature(asyncpg.connect).parameters
    left = {name: keywords.pop(name) for name in parameters if name in keywords and name not in known}
    if left:
        keywords["dsn"] = f"postgresql://?{urlencode(left, doseq=True)}"


async def connect_remembering(*arguments: Any, in_all: float, **keywords: Any) -> "asyncpg.Connection[asyncpg.Record]":
    """Connect as asyncpg does, within so many seconds ``in_all``, however many hosts there are."""
    default: Any = asyncpg.Connection
    kind = _remembering(keywords.get("connection_class", default))
    return await connect_in_turn(asyncpg.connect, in_all, *arguments, **{**keywords, "connection_class": kind})


def remember(connection: Any) -> None:
    """Remember what asyncpg keeps of a new connection on this side: tenants may share it."""
    if getattr(connection, "fresh", ...) is None:  # one that a function of the user made has none
        connection.fresh = {name: getattr(connection, name).copy() for name in _CALLBACKS}
        connection.fresh["_listeners"] = {}  # the server forgets what they listen to
        connection.keep_codecs()
        remember_attributes(connection)


async def reset_session(connection: Any) -> None:
    """Make a connection what it was before its last user, but for its codecs."""
    if connection.is_in_transaction():  # begun by SQL, of which neither SQLAlchemy nor its dialect knows
        await connection.execute("ROLLBACK")
    # A second round trip only where something was prepared: most handlers prepare nothing by name.
    if await connection.execute(RESET) != _NONE_PREPARED:
        await connection.execute(DEALLOCATE)
    fresh: dict[str, Any] = getattr(connection, "fresh", None) or {}
    for name, callbacks in fresh.items():
        setattr(connection, name, callbacks.copy())
    forget_attributes(connection)


async def _ask(connection: Any, sql: str) -> Any:
    if connection.is_in_transaction():  # begun by SQL, and aborted
        await connection.execute("ROLLBACK")
    return await connection.fetchval(sql)


async def _ask_over_another(pool: _Pool, sql: str) -> Any:
    async with pool.acquire() as connection:
        return await connection.fetchval(sql)


def _tell_of_loss(error: Exception) -> bool:
    """Say what asyncpg means by a connection that cannot be used, where it was lost. Return whether that was said."""
    told = [each for each in chain(error) if isinstance(each, asyncpg.InterfaceError)]
    for each in told:
        vars(each)["sqlstate"] = "08003"  # what asyncpg raises where a statement is under way
        each.add_note("the connection ended between two statements: by the server, or on the way to it")
    return bool(told)


async def _connect(timeout: float, *arguments: Any, **keywords: Any) -> "asyncpg.Connection[asyncpg.Record]":
    try:
        return await connect_in_turn(asyncpg.connect, timeout, *arguments, **keywords)
    except asyncpg.InterfaceError:
        raise  # asyncpg's own words about a setting, which quote no password
    except ValueError:
        # Those of Python quote what they could not read: a password that holds a "#" is taken for a port.
        pass
    raise unreadable("asyncpg")


async def _greet(connection: "asyncpg.Connection[asyncpg.Record]", names: Names | None) -> None:
    if names is not None:
        row = await connection.fetchrow(CANARY)
        assert row is not None  # noqa: S101 - it has no FROM and no WHERE
        verify(names, row[0], row[1])


def break_off(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Let who waits for an answer learn that none comes."""
    connection.terminate()


async def _discard(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    connection.terminate()
    await asyncio.sleep(0)  # an aborted socket closes in the next turn of the loop


async def _check(pool: "asyncpg.Pool[asyncpg.Record]") -> bool:
    """Ask one idle connection; where there is none, the server: users of the others may wait for it in vain."""
    if isinstance(pool, _Pool) and pool.is_full():
        return await pool.waiting.server.check()
    async with pool.acquire() as connection:
        await connection.execute("SELECT 1")
    return True


async def _close(pool: _Pool, timeout: float, who: str) -> None:
    held = pool.get_size() - pool.get_idle_size()
    try:
        async with asyncio.timeout(timeout):
            await pool.close()
    except TimeoutError:
        tell_of_held(who, held)
    finally:
        pool.terminate()  # after close() it does nothing; without it a cancelled or failed close leaks
        await asyncio.sleep(0)  # an aborted socket closes in the next turn of the loop
