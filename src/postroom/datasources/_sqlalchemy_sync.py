"""SQLAlchemy for plain ``def`` handlers: one ``Engine`` per context, over psycopg, and its inbox."""

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Generic, overload

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from typing_extensions import TypeVar

from postroom.datasources._places import places
from postroom.datasources._postgres_inbox import Work, add_inbox, check_inbox
from postroom.datasources._psycopg_refusals import judge_refusal_sync
from postroom.datasources._sqlalchemy_sessions import OfConnection, OfSession, once_only, parsed
from postroom.datasources._sync_connections import (
    PATIENCE,
    SyncConnection,
    SyncConnections,
    connect_sync,
    in_time,
    reset_sync_session,
)
from postroom.datasources._sync_inbox import SyncDatabase
from postroom.datasources._threads import in_thread
from postroom.datasources._waiting import make_do
from postroom.datasources.inbox import DEFAULT_TABLE, Inbox, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.datasources.psycopg import remember, share_of_each_host
from postroom.datasources.registry import (
    DataSource,
    Locate,
    check_keywords,
    check_locate,
    check_switches,
    check_times,
    located,
)
from postroom.datasources.scope import Scope, ScopeOf
from postroom.datasources.sqlalchemy import OWN, REFUSED, judge_at_once, keep_notes, note_refusal, renewed
from postroom.display import display_key
from postroom.errors import ConfigurationError
from postroom.options import check_count
from postroom.types import C

Tx = TypeVar("Tx")
S = TypeVar("S", bound=Session, default=Session)
BeginSync = Callable[[Engine], AbstractContextManager[Work[Tx]]]
"""How a transaction of an engine begins."""
_PLAIN = frozenset({"postgresql", "postgres", "postgresql+psycopg"})


def sqlalchemy_sync_engine(
    locate: Locate[C],
    *,
    max_size: int = 4,
    connect_timeout: float = 5.0,
    acquire_timeout: float = 10.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    reset: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Provider[C, Engine]:
    """Provide an ``Engine`` per context, for plain ``def`` handlers. It opens its first connection at once.

    It is for PostgreSQL, over psycopg, and has no threads of its own. After it is closed nothing is
    open, and a later use raises ``ClosedError``. A connection that waits for a server which is gone
    without a word fails after about a minute: a thread cannot be cancelled. ``keepalives_*`` and
    ``tcp_user_timeout`` in ``options={"connect_args": {...}}`` say otherwise.

    Args:
        locate: context to URL or ``DataSource``; ``LookupError`` or None where there is no such
            tenant. A password function is called in the event loop.
        max_size: connections at most, without overflow; the weight of one resource.
        connect_timeout: seconds for one connection to be made, in whole ones and at least 2.
        acquire_timeout: seconds after which asking for a connection raises SQLAlchemy's
            ``TimeoutError``.
        close_timeout: seconds that connections in use may take at close; then they are ended.
        canary: check database and user of every new connection against the registry
            (``WrongDatabase``).
        reset: forget roles, settings, locks, LISTEN and temporary tables when a connection is
            returned: one more round trip. It may take ``connect_timeout``; then the connection is
            ended.
        options: further keywords for ``create_engine``, such as ``isolation_level``.

    Raises:
        UnknownTenant: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        ConfigurationError: at opening: the URL is none for PostgreSQL over psycopg, or names no
            database that the canary could compare.
        sqlalchemy.exc.DBAPIError, TimeoutError: at opening: the first connection could not be made.
    """
    owner = "sqlalchemy_sync_engine"
    check_locate(owner, locate)
    check_count(owner, "max_size", max_size)
    check_switches(owner, canary=canary, reset=reset)
    check_keywords(owner, options, OWN)
    check_times(owner, connect_timeout=connect_timeout, close_timeout=close_timeout, acquire_timeout=acquire_timeout)

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[Engine, None]:
        source = await located(locate, context)
        url = _url(source.dsn)
        uses = _Uses()
        size = {"pool_size": max_size, "max_overflow": 0, "pool_timeout": acquire_timeout}
        keywords = {"poolclass": _pool_class(uses, acquire_timeout, lambda: watch), **size, **(options or {})}
        engine = create_engine(url, **keywords)
        who = display_key(context)
        watch = _Watch(engine, source, who, url, uses, connect_timeout=connect_timeout, canary=canary, reset=reset)
        try:
            await in_time(connect_timeout, lambda: _ask(engine), watch.place)
            yield engine
        finally:
            await watch.close(close_timeout)

    return Provider(enter, weight=max_size, check=_check, place=places(locate))


class _Uses:
    """The connections of an engine, and which of them are in use by threads.

    By their records and not counted: SQLAlchemy checks in also what it could not connect, and so never checked out.
    """

    def __init__(self) -> None:
        self._records: set[Any] = set()
        self._changed = threading.Condition()
        self.open: set[Any] = set()

    def opened(self, connection: Any, _record: Any) -> None:
        self.open.add(connection)

    def closed(self, connection: Any, *_: Any) -> None:
        self.open.discard(connection)

    def begin(self, _connection: Any, record: Any, _proxy: Any) -> None:
        with self._changed:
            self._records.add(record)

    def end(self, _connection: Any, record: Any) -> None:
        with self._changed:
            self._records.discard(record)
            self._changed.notify_all()

    def until_freed(self) -> None:
        """Wait until a connection comes free, or for a second: a full server may have room again then."""
        with self._changed:
            self._changed.wait(1.0)

    def none(self, timeout: float) -> bool:
        """Wait until none is in use. Returns whether that is so in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._records, timeout)


def _pool_class(uses: _Uses, acquire_timeout: float, watched: Callable[[], "_Watch"]) -> type[QueuePool]:
    class Patient(QueuePool):
        """SQLAlchemy's pool, which waits for one of its own connections where the server has no room for more."""

        # SQLAlchemy would name its own logger after this module, and it logs what drivers raise as it is.
        _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"

        def _do_get(self) -> Any:  # the hook that every kind of pool fills in
            try:
                return renewed(make_do(super()._do_get, held=uses.open, wait=uses.until_freed, limit=acquire_timeout))
            except exc.TimeoutError as late:  # an outage where the server is silent
                raise late from watched().server.problem_for_a_thread()

        async def check(self) -> bool:
            return await watched().server.check()

    return Patient


class _Watch:
    """Everything that is to happen at the connections of one engine, as listeners of its pool."""

    def __init__(
        self,
        engine: Engine,
        source: DataSource,
        who: str,
        url: URL,
        uses: _Uses,
        *,
        connect_timeout: float,
        canary: bool,
        reset: bool,
    ) -> None:
        # SQLAlchemy leaves spaces as they are, and libpq takes no URL with one.
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False).replace(" ", "%20")
        in_libpqs_words = DataSource(plain, database=source.database, user=source.user, password=source.password)
        timeout = connect_timeout
        self._connections = SyncConnections(in_libpqs_words, who, connect_timeout=timeout, canary=canary, options={})
        self.place = self._connections.place
        self.server = self._connections.server
        self._engine = engine
        self._timeout = connect_timeout
        self._uses = uses
        event.listen(engine, "do_connect", self._do_connect)
        event.listen(engine, "connect", uses.opened)
        event.listen(engine, "close", uses.closed)
        event.listen(engine, "close_detached", uses.closed)
        event.listen(engine, "checkout", uses.begin)
        event.listen(engine, "checkin", uses.end)
        event.listen(engine, "handle_error", judge_at_once)
        if reset:
            # At its first use: listeners of "connect" have done what they do by then.
            event.listen(engine, "checkout", self._remember)
            event.listen(engine, "reset", self._reset)
            event.listen(engine, "handle_error", note_refusal)

    def _do_connect(self, _dialect: Any, _record: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        """Make the connection instead of SQLAlchemy, with what its dialect made of the URL."""
        share = share_of_each_host("", keywords, self._timeout)
        defaults = {**PATIENCE, "connect_timeout": max(1, round(self._timeout)), **share}

        def make(**more: Any) -> SyncConnection:
            return connect_sync(*arguments, **{**defaults, **keywords, **more})

        return self._connections.connect(make)

    def _remember(self, connection: Any, record: Any, _proxy: Any) -> None:
        remember(connection)
        keep_notes(connection, record)

    def _reset(self, connection: Any, record: Any, state: Any) -> None:
        if state.terminate_only:
            return
        reset_sync_session(connection, self._timeout)
        if (error := record.info.pop(REFUSED, None)) is not None:
            judge_refusal_sync(error, connection)

    async def close(self, timeout: float) -> None:
        try:
            if await in_thread(lambda: self._uses.none(timeout)):
                await in_thread(self._engine.dispose)
        finally:
            await self._connections.end()


def _url(dsn: str) -> URL:
    url = parsed(dsn)
    if url.drivername not in _PLAIN:
        text = "sqlalchemy_sync_engine() takes URLs of PostgreSQL over psycopg: postgresql:// or postgresql+psycopg://"
        raise ConfigurationError(f"{text}; got {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


def _ask(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


async def _check(engine: Engine) -> bool:
    """Ask one idle connection; where there is none, the server: users of the others may wait for it in vain."""
    pool: Any = engine.pool
    if pool.checkedout() >= pool.size():
        return bool(await pool.check())
    await in_thread(lambda: _ask(engine))
    return True


class SqlalchemySyncDatabase(SyncDatabase[Tx], Generic[Tx]):
    """An ``Engine`` with an inbox in its database. ``sqlalchemy_sync_inbox`` provides it."""

    def __init__(
        self, engine: Engine, inbox: Inbox, begin: BeginSync[Tx], *, wait: float = 60.0, scope: Scope | None = None
    ) -> None:
        super().__init__(inbox, wait=wait, scope=scope)
        self.engine = engine
        """SQLAlchemy's own engine, for what needs no transaction of the message. No scope holds there."""
        self._begin_with = begin

    def _begin(self) -> AbstractContextManager[Work[Tx]]:
        return self._begin_with(self.engine)


@contextmanager
def _begin_connection(engine: Engine) -> Generator[Work[Connection]]:
    with engine.connect() as connection, connection.begin() as transaction:
        yield OfConnection(connection, connection, transaction)


def _begin_session(factory: Callable[..., S]) -> BeginSync[S]:
    options = once_only(factory)

    @contextmanager
    def begin(engine: Engine) -> Generator[Work[S]]:
        with factory(bind=engine, **options) as session, session.begin() as transaction:
            yield OfSession(session, session.connection(), transaction)

    return begin


@overload
def sqlalchemy_sync_inbox(
    provider: Provider[C, Engine],
    *,
    session: None = None,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, SqlalchemySyncDatabase[Connection]]: ...


@overload
def sqlalchemy_sync_inbox(
    provider: Provider[C, Engine],
    *,
    session: Callable[..., S],
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, SqlalchemySyncDatabase[S]]: ...


def sqlalchemy_sync_inbox(
    provider: Provider[C, Engine],
    *,
    session: Callable[..., Any] | None = None,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, SqlalchemySyncDatabase[Any]]:
    """Add an inbox for plain ``def`` handlers: ``sqlalchemy_sync_inbox(sqlalchemy_sync_engine(...), session=Session)``.

    Args:
        provider: what opens the engine. Its weight and its health check stay as they are.
        session: makes the ``Session`` that handlers get, called with ``bind=``: the class itself,
            or a ``sessionmaker(expire_on_commit=False)``. None: handlers get a ``Connection``.
        table: the inbox's table, with or without a schema.
        create: create the table at opening where it is missing. Otherwise your migrations do, with
            ``postgres_inbox(table).schema``.
        wait: seconds that a duplicate waits for the transaction of the first, before it counts as
            failed.
        scope: context to the tenant's part of a database that tenants share: a schema, or settings.

    Raises:
        ConfigurationError: ``table`` is no name for a table, ``session`` makes no session; at
            opening: the database has no such table or schema, or its connections are in AUTOCOMMIT.
    """
    if isinstance(session, type) and not issubclass(session, Session):
        raise ConfigurationError(f"session= takes Session or a sessionmaker(...); got {session.__name__}")
    check_inbox("sqlalchemy_sync_inbox", wait=wait, create=create, scope=scope)
    inbox = postgres_inbox(table)
    begin: BeginSync[Any] = _begin_connection if session is None else _begin_session(session)

    async def prepare(database: SqlalchemySyncDatabase[Any]) -> None:
        await in_thread(lambda: database.prepare(create=create))

    return add_inbox(
        provider,
        lambda engine, own: SqlalchemySyncDatabase(engine, inbox, begin, wait=wait, scope=own),
        lambda database: database.engine,
        prepare,
        scope,
    )
