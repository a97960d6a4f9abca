"""psycopg's connections for threads: made, watched and ended as those of the event loop are."""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from postroom.datasources._attempts import late, refused
from postroom.datasources._canary import CANARY, require_names, verify
from postroom.datasources._passwords import Forgetful, connected
from postroom.datasources._places import place_of
from postroom.datasources._psycopg_refusals import refusal_of
from postroom.datasources._reset import DEALLOCATE, RESET
from postroom.datasources._server import Server
from postroom.datasources._threads import in_thread
from postroom.datasources._waiting import tell_of_held
from postroom.datasources.psycopg import break_off, changed_flags, check_dsn, remember, restore, share_of_each_host
from postroom.datasources.registry import DataSource, Password, ask
from postroom.errors import ClosedError
from postroom.tasks import run_now

T = TypeVar("T")
SyncConnection = psycopg.Connection[TupleRow]
Connect = Callable[..., SyncConnection]
PATIENCE: Final = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""What ends a wait for a server that is gone without a word, after a minute: nothing else can interrupt a thread. Linux
itself would wait for two hours while nothing is sent, and then for a quarter of an hour."""
_CANCELLING: Final = 1.0
"""Seconds for telling the server that a statement is not wanted."""
_RELEASED: Final = 1.0
"""Seconds for a thread to let go of a connection after its socket was shut down."""


async def in_time(timeout: float, connect: Callable[[], T], place: str) -> T:
    """Connect to a place in a thread, and return the result, or raise ``TimeoutError`` after ``timeout`` seconds."""
    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            return await in_thread(connect)
    except TimeoutError:
        if deadline.expired():
            raise late(timeout, place) from None
        raise


class SyncConnections:
    """The connections of one context, made in the threads that ask for them. Made and ended in the event loop.

    Args:
        source: what the registry said.
        who: the tenant, as the log names it.
        connect_timeout: seconds for one connection to be made.
        canary: whether each new connection is compared with the registry.
        options: keywords for each connection.
    """

    def __init__(
        self, source: DataSource, who: str, *, connect_timeout: float, canary: bool, options: Mapping[str, Any]
    ) -> None:
        self._who = who
        self._source = _for_threads(source, connect_timeout)
        self._names = require_names(source, options) if canary else None
        self._timeout = connect_timeout
        self.place = place_of(source, options)
        self._options = options
        self._lock = threading.Lock()
        self._live: WeakSet[SyncConnection] = WeakSet()
        self._ready: list[SyncConnection] = []
        self._under_way = 0
        self._none = threading.Event()
        self._none.set()
        self._closed = False
        self.refusal: Exception | None = None
        """Why the pool could not make its last connection: psycopg_pool tells those who wait only that it is late."""
        self.server = Server(connect_timeout, self.place)

    async def first(self) -> None:
        """Make the first connection and keep it for the pool, which would hide in a time-out why it cannot."""
        self._ready.append(await in_time(self._timeout, self.connect, self.place))

    def kind(self) -> type[SyncConnection]:
        """Return the class of connections that a pool is to make."""
        owner = self

        class Owned(psycopg.Connection[TupleRow]):
            @classmethod
            def connect(cls, conninfo: str = "", **_: Any) -> Any:  # noqa: ARG003 - the registry's counts
                return owner._ready.pop() if owner._ready else owner._noted(owner.connect)

        return Owned

    def preparing(self, configure: Callable[[SyncConnection], None] | None) -> Callable[[SyncConnection], None]:
        """Return what a pool does with each new connection."""

        def prepare(connection: SyncConnection) -> None:
            if configure is not None:
                self._noted(partial(configure, connection))
            self.refusal = None
            remember(connection)

        return prepare

    def _noted(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except Exception as error:
            self.refusal = refused(error, self.place)
            raise

    def connect(self, make: Connect | None = None) -> SyncConnection:
        """Make one connection and let the canary look at it.

        Args:
            make: makes it, with the keywords that it is given; None for the DSN and the options.

        Raises:
            ClosedError: the resource was closed, before or meanwhile. Whatever else is raised is ruled an outage.
        """
        with self._lock:
            self._go_on_unless_closed()
            # Under the lock of `end`: it waits for this attempt, or this attempt finds the resource
            # closed.
            self._under_way += 1
            self._none.clear()
        try:
            connection = self._attempt(make or self._make)
        except Exception as error:
            told = refused(error, self.place)
            raise told from told.__cause__
        finally:
            with self._lock:
                self._under_way -= 1
                if not self._under_way:
                    self._none.set()
        self.server.met(connection)
        return connection

    def _make(self, **keywords: Any) -> SyncConnection:
        given = {**conninfo_to_dict(self._source.dsn), **self._options}
        patience = {name: value for name, value in PATIENCE.items() if name not in given}
        # libpq takes whole seconds, and 0 would mean without a limit.
        timeout = {} if "connect_timeout" in given else {"connect_timeout": max(1, round(self._timeout))}
        share = share_of_each_host(self._source.dsn, self._options, self._timeout)
        return connect_sync(self._source.dsn, **{**patience, **timeout, **share, **self._options, **keywords})

    def _attempt(self, make: Connect) -> SyncConnection:
        async def once(password: dict[str, Any]) -> SyncConnection:
            return make(**password)

        connection = run_now(connected(self._source, once))
        try:
            with self._lock:
                self._go_on_unless_closed()
                # Before the canary: a look that hangs must be ended by the close, too.
                self._live.add(connection)
            self._greet(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _greet(self, connection: SyncConnection) -> None:
        if self._names is not None:
            cursor = connection.cursor(row_factory=tuple_row)
            cursor.execute(CANARY)
            verify(self._names, *(cursor.fetchone() or ("", "")))
            connection.rollback()

    def _go_on_unless_closed(self) -> None:
        if self._closed:
            raise ClosedError("the resources of this tenant were closed")

    async def end(self) -> bool:
        """End what is still open or being opened. Returns whether anything was in use."""
        with self._lock:
            # First: a thread that is connecting looks at it once more before it uses what it got.
            self._closed = True
            held = [connection for connection in self._live if not connection.closed]
        in_use = [connection for connection in held if connection not in self._ready]
        busy = [connection for connection in held if _is_busy(connection)]
        try:  # without this, the server would finish the statements, and keep their backends
            await asyncio.gather(*(in_thread(partial(_cancel, connection)) for connection in busy))
        finally:  # also when the close is cancelled meanwhile: this waits for nothing
            for connection in busy:
                break_off(connection)
        await asyncio.gather(*(in_thread(partial(end_sync_connection, connection)) for connection in held))
        if self._under_way:  # they end by themselves: their thread looks whether it may go on
            await in_thread(lambda: self._none.wait(self._timeout))
        if in_use:
            tell_of_held(self._who, len(in_use))
        return bool(in_use)


class _FromThread:
    """A registry's password function, asked by threads: it runs in the event loop, where its kind belongs."""

    def __init__(self, password: Password, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._password = password
        self._loop = loop
        self._timeout = timeout

    def __call__(self) -> str:
        # Bounded: a loop that has stopped would never answer, and the thread would hang for good.
        answer = asyncio.run_coroutine_threadsafe(ask(self._password), self._loop)
        try:
            return answer.result(self._timeout)
        except TimeoutError as late:  # the future's own has no text
            raise TimeoutError(str(late) or f"no password was there within {self._timeout:g} s") from late
        finally:
            answer.cancel()  # one that comes too late is asked for by no one

    def forget(self, password: str, /) -> None:
        memory: object = self._password
        if isinstance(memory, Forgetful):
            self._loop.call_soon_threadsafe(memory.forget, password)  # and the next question comes after it


def _for_threads(source: DataSource, timeout: float) -> DataSource:
    check_dsn(source.dsn)
    if source.password is None:
        return source
    password = _FromThread(source.password, asyncio.get_running_loop(), timeout)
    return DataSource(source.dsn, database=source.database, user=source.user, password=password)


def connect_sync(dsn: str = "", **keywords: Any) -> SyncConnection:
    """Connect as psycopg does; a failed attempt leaves no socket, and a refused login has its SQLSTATE."""
    try:
        return psycopg.Connection.connect(dsn, **keywords)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        if (refusal := refusal_of(error)) is not None:
            raise refusal from error
        raise


def reset_sync_session(connection: SyncConnection, seconds: float) -> None:
    """Make a connection what it was before its last user, or raise after so many seconds: it may be dead."""
    until, wait = time.monotonic() + seconds, connection.wait
    own = vars(connection)  # where a function comes before that of the class

    def bounded(waiting: Generator[Any, Any, Any], *arguments: Any, **keywords: Any) -> Any:
        return wait(_until(until, waiting), *arguments, **keywords)

    own["wait"] = bounded
    try:
        _reset(connection)
    finally:
        own.pop("wait", None)


def _until(until: float, waiting: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Pass on what psycopg waits for, and looks at ten times a second, for as long as there is time."""
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if time.monotonic() > until:
                raise psycopg.OperationalError("the connection did not forget its last user in time")
            wanted = waiting.send(ready)
    except StopIteration as done:
        return cast("T", done.value)


def _reset(connection: SyncConnection) -> None:
    """Make a connection what it was before its last user. Ends an open transaction by rolling it back."""
    autocommit = connection.autocommit
    if connection.info.transaction_status != TransactionStatus.IDLE:
        connection.rollback()
    connection.autocommit = True  # one round trip instead of three: no BEGIN, no COMMIT
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    cursor.execute(RESET)
    while cursor.nextset():
        pass
    if cursor.rowcount:
        cursor.execute(DEALLOCATE)
    connection.autocommit = autocommit
    for name, value in changed_flags(connection).items():
        setattr(connection, name, value)
    restore(connection)


def end_sync_connection(connection: SyncConnection) -> None:
    """End a connection that a thread may be using: after a shutdown that thread reads the end of the stream."""
    if not _is_busy(connection):
        connection.close()
        return
    break_off(connection)
    # A thread that had its answer before the shutdown does not notice it, and leaves the connection open.
    if connection.lock.acquire(timeout=_RELEASED):
        try:
            connection.close()
        finally:
            connection.lock.release()


def give_up(connection: SyncConnection) -> None:
    """Cancel what a thread may be doing with a connection, and end it: the server would go on until it is done."""
    if _is_busy(connection):
        _cancel(connection)
    end_sync_connection(connection)


def _is_busy(connection: SyncConnection) -> bool:
    return connection.pgconn.transaction_status == TransactionStatus.ACTIVE or connection.lock.locked()


def _cancel(connection: SyncConnection) -> None:
    with suppress(psycopg.Error, OSError):
        connection.cancel_safe(timeout=_CANCELLING)
