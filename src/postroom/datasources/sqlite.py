"""SQLite, one file per tenant, from asyncio.

The cost of SQLite in an event loop is the hop to a thread and back, not SQLite. So a unit of work
is one hop: a plain function that gets the connection, runs as many statements as it likes, and
returns data.
"""

import asyncio
import contextlib
import contextvars
import os
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Self, TypeVar

from postroom.checking import check_function, check_kind
from postroom.datasources._sqlite_files import OpenFile
from postroom.datasources._sqlite_sync import Parameters, SqliteSyncTransaction, SyncHeld
from postroom.datasources._sqlite_units import Held, Step, Unit, closed
from postroom.datasources._threads import complete
from postroom.datasources.inbox import KEEP, PURGED_AT_ONCE, SQLITE_INBOX, check_age
from postroom.datasources.providers import Provider
from postroom.datasources.registry import ask_registry, check_switches, check_times
from postroom.errors import AlreadyHandled, ConfigurationError, PostroomError, UnknownTenant
from postroom.log_fields import Log
from postroom.log_fields import Step as LogStep
from postroom.resources.failures import of_server
from postroom.transactions import MessageKey
from postroom.types import C

_log = Log("postroom.datasources", LogStep.RESOURCES)
T = TypeVar("T")
_STEPS: Final = 10_000
"""Steps of SQLite's machine, some tenths of a millisecond, between two looks whether a unit is still wanted."""
PathOf = Callable[[C], str | os.PathLike[str] | None]


class SqliteDatabase:
    """One SQLite file, open in a thread of its own. Open it with ``open`` or let ``sqlite_database`` do it.

    Units of work run one after the other, each in a transaction of its own; writing ones take the
    file's write lock first (``BEGIN IMMEDIATE``), so that none fails half-way because another
    process writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._jobs: SimpleQueue[Unit[Any] | None] = SimpleQueue()
        self._current: Unit[Any] | None = None
        self._closing = False
        self._door = threading.Lock()  # threads that hand in work may meet aclose()
        self._aborting = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"SqliteDatabase({self.path.name!r})"

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        schema: str = "",
        synchronous: str = "FULL",
        busy_timeout: float = 5.0,
    ) -> Self:
        """Open a file. The options are those of ``sqlite_database``. Close it with ``aclose``.

        Raises:
            ConfigurationError: the path is ``:memory:`` or a URI.
            UnknownTenant: the file does not exist in its directory, and ``create`` is False.
            sqlite3.Error: SQLite cannot open it, or ``schema`` fails.
        """
        if str(path) == ":memory:" or str(path).startswith("file:"):
            text = "a SqliteDatabase is a file of one tenant, also in tests, and no database in memory or URI"
            raise ConfigurationError(f'{text}: write tenant_file(directory, tenant_id); got "{path}"')
        self = cls(Path(path))
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connect = partial(
            _connect, self.path, create=create, schema=schema, synchronous=synchronous, busy_timeout=busy_timeout
        )
        # A daemon: a unit of work that never ends must not keep the interpreter from its own end. SQLite recovers.
        name = f"postroom-sqlite-{self.path.name}"
        threading.Thread(target=self._serve, args=(connect, opened), name=name, daemon=True).start()
        try:
            await opened
        except BaseException:
            await self.aclose(timeout=busy_timeout)
            raise
        return self

    async def run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = True) -> T:
        """Run ``work(connection)`` in the database's thread, in one transaction, and return what it returns.

        It is committed when ``work`` returns and rolled back when it raises. Return data, not a
        cursor: the connection stays in its thread. When the caller is cancelled, a unit that waits
        does not start, and one that runs is interrupted and rolled back, unless its commit has
        begun.

        Args:
            work: a plain function.
            write: False for a unit that only reads: it does not wait for a writer in another
                process.

        Raises:
            ClosedError: the database was closed before or, after ``aclose``'s timeout, while the
                unit ran. It was rolled back.
            ConfigurationError: ``work`` is an async function or a generator function. Nothing was done.
            FileNotFoundError: the file is gone: an outage, and no failure of the message. Another
                file in its place is opened before the unit begins.
            PostroomError: the caller is inside of ``transaction_for`` of this database, which holds
                its thread: use ``tx.run`` there.
        """
        self._check_usable()
        job = Unit(self.path, work, write=write)
        # No lock here: in the loop's thread nothing comes between the check and this line.
        self._jobs.put(job)
        try:
            return await job.result
        except asyncio.CancelledError:
            job.abandon()
            raise

    @asynccontextmanager
    async def transaction_for(self, key: MessageKey, /) -> AsyncGenerator["SqliteTransaction", None]:
        """Hold one transaction open over awaits, which begins with the row of ``key`` in the inbox.

        It is committed when the block is left, and rolled back when an exception or a cancellation
        leaves it, unless the commit has begun. Until then no other unit of work of this database
        runs, here or in another process. The inbox table is made when it is not there.

        Raises:
            AlreadyHandled: the row was there. Nothing was done.
            ClosedError: the database was closed before, or meanwhile. The transaction was rolled
                back.
            FileNotFoundError: the file is gone, as for ``run``.
            TransactionRolledBack: at the end: a step was interrupted while it wrote, or ended the
                transaction itself.
            PostroomError: the caller is inside of another transaction of this database.
            sqlite3.OperationalError: a writer in another process kept the lock for longer than
                ``busy_timeout``.
        """
        self._check_usable()
        held = Held(self.path, partial(_claim, key=key))
        self._jobs.put(held)
        outer = _inside.get()
        try:
            await held.begun()
            _inside.set((*outer, (self, held)))
            yield SqliteTransaction(held)
            await held.commit()
        except BaseException:
            held.drop()
            raise
        finally:
            _inside.set(outer)

    @contextmanager
    def sync_transaction_for(self, key: MessageKey, /) -> Generator[SqliteSyncTransaction]:
        """Hold one transaction open from a thread: ``transaction_for`` for plain ``def`` handlers.

        It blocks the thread, and raises the same errors. A thread cannot be cancelled; when the
        database is closed meanwhile, the present step is interrupted and the transaction rolled
        back.
        """
        held = SyncHeld(self.path, partial(_claim, key=key))
        with self._door:  # nothing comes after the None of aclose(), where it would not be looked at
            self._check_usable()
            self._jobs.put(held)
        outer = _inside.get()
        try:
            held.wait_until_begun()
            _inside.set((*outer, (self, held)))
            yield SqliteSyncTransaction(held)
            held.wait_until_committed()
        except BaseException:
            held.drop()
            raise
        finally:
            _inside.set(outer)

    async def purge_inbox(self, *, older_than: float = KEEP) -> int:
        """Delete the inbox's rows that are older than ``older_than`` seconds, and return how many there were.

        A message that comes after its row was purged is handled again: keep rows for longer than
        the queue keeps messages. The default is what SQS allows at most, and a day. In units of
        10,000 rows; each is committed.
        """
        check_age(older_than)
        age = f"-{older_than:f} seconds"

        def purge(connection: sqlite3.Connection) -> int:
            _create_inbox(connection)
            return connection.execute(SQLITE_INBOX.purge, (age, PURGED_AT_ONCE)).rowcount

        total = 0
        while (count := await self.run(purge)) > 0:
            total += count
        return total

    async def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return await self.run(lambda connection: connection.execute(sql, parameters).rowcount)

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Run one query and return its rows: by position and by name."""
        return await self.run(lambda connection: connection.execute(sql, parameters).fetchall(), write=False)

    async def check(self) -> bool:
        """Return True when the database answers.

        Raises:
            FileNotFoundError: the file is gone.
        """
        await self.fetch("SELECT 1")
        return True

    async def aclose(self, *, timeout: float = 5.0) -> None:
        """Finish what was asked for, close the file, end the thread. A second call waits for the same end.

        After ``timeout`` seconds, or when cancelled, running work is interrupted and rolled back,
        and what waits is not started: its callers get ``ClosedError``.
        """
        with self._door:
            self._closing = True
            self._jobs.put(None)
        try:
            await asyncio.wait([self._ended], timeout=timeout)
        finally:
            self._abandon_all()
        if not self._ended.done():
            await asyncio.wait([self._ended], timeout=timeout)
        if not self._ended.done():
            _log.warning("A unit of work in %r ignores its interruption; its thread stays until it returns", self)

    def _check_usable(self) -> None:
        if self._closing:
            raise closed(self.path.name)
        for database, held in _inside.get():
            if database is self and not held.over:  # it would wait for its own end
                raise PostroomError(f"inside of a transaction of {self!r} only that can be used: tx.run(...)")

    def _serve(self, connect: Callable[[], sqlite3.Connection], opened: asyncio.Future[None]) -> None:
        """Be the thread: open, work, close."""
        connection: sqlite3.Connection | None = None
        file: OpenFile | None = None
        try:
            connection, file, fresh = self._connected(connect)
            complete(opened, None, None)
            while (job := self._jobs.get()) is not None:
                self._current = job
                if self._aborting:  # looked at after the line above, and set before the other side reads it
                    job.abandon()
                try:
                    # A look costs microseconds. What is written to a file that was replaced is lost without an error,
                    # and what is read there stays old; one that is gone raises here.
                    if not file.is_in_place() or not self._renewed(connection) or _state(connection) != fresh:
                        file.close(connection)
                        connection, file, fresh = self._connected(connect)
                    job.do(connection)
                except BaseException as error:  # of the look, or of connect: a unit keeps its errors for its caller
                    complete(job.result, None, of_server(error))
                self._current = None
        except BaseException as error:
            complete(opened, None, error)
        finally:
            if connection is not None and file is not None:
                file.close(connection)
            complete(self._ended, None, None)

    def _connected(self, connect: Callable[[], sqlite3.Connection]) -> tuple[sqlite3.Connection, OpenFile, object]:
        """Return a new connection, its file and its state."""
        file = OpenFile(self.path)
        connection = connect()
        try:
            self._renewed(connection)
            state = _state(connection)
            file.note()
        except BaseException:
            connection.close()
            raise
        return connection, file, state

    def _renewed(self, connection: sqlite3.Connection) -> bool:
        """Undo what the last unit may have set in the connection. Return False where it has closed it."""
        try:
            connection.set_authorizer(None)
            connection.set_trace_callback(None)
            # interrupt() would miss a statement that begins just after it.
            connection.set_progress_handler(self._is_abandoned, _STEPS)
        except sqlite3.ProgrammingError:
            return False
        connection.row_factory = sqlite3.Row
        connection.text_factory = str
        if hasattr(connection, "autocommit"):  # since Python 3.12
            setattr(connection, "autocommit", -1)  # noqa: B010 - sqlite3.LEGACY_TRANSACTION_CONTROL, not in all stubs
        connection.isolation_level = None
        return True

    def _is_abandoned(self) -> bool:
        job = self._current
        return job is not None and job.is_unwanted()

    def _abandon_all(self) -> None:
        if self._ended.done():
            return
        with contextlib.suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.refuse()
        self._jobs.put(None)
        self._aborting = True
        current = self._current
        if current is not None:
            current.abandon()


def _connect(path: Path, *, create: bool, schema: str, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    if not create and not path.exists() and path.parent.is_dir():
        raise UnknownTenant(f"there is no database file {path.name!r}")
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=busy_timeout, isolation_level=None)
    except sqlite3.OperationalError as error:  # "unable to open database file", without the name
        raise sqlite3.OperationalError(f"{error}: {path}") from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        if schema:
            connection.executescript(f"BEGIN IMMEDIATE;\n{schema}\n;COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


_STATE: Final = (
    "SELECT (SELECT count(*) FROM sqlite_temp_master), (SELECT count(*) FROM pragma_database_list WHERE seq > 1), * "
    "FROM pragma_query_only, pragma_foreign_keys, pragma_recursive_triggers, pragma_ignore_check_constraints, "
    "pragma_synchronous"
)
"""What SQLite keeps for a connection, and would change the meaning of the next unit: a temporary table hides the file's
own, an attached file is another tenant's."""


def _state(connection: sqlite3.Connection) -> object:
    """Return what a unit may have changed in SQLite; None where it cannot be read."""
    try:
        return tuple(connection.execute(_STATE).fetchone())
    except sqlite3.Error:
        return None


class SqliteTransaction:
    """A transaction of a ``SqliteDatabase`` that is held open: its units of work are steps of one whole."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def __repr__(self) -> str:
        return f"<SqliteTransaction of {self._held.name!r}, {'over' if self._held.over else 'open'}>"

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work(connection)`` in the database's thread, as a step of the transaction, and return what it returns.

        A step that raises leaves nothing of itself; who catches that may go on. When the caller is
        cancelled, a step that waits is not done and one that runs is interrupted. SQLite may take
        the whole transaction back then: what follows is refused.

        Raises:
            ClosedError: the transaction is over, or the database was closed.
            TransactionRolledBack: an earlier step has ended the transaction. The block raises the
                same at its end.
        """
        step = Step(self._held.file, work)
        self._held.hand_in(step)
        try:
            return await step.result
        except asyncio.CancelledError:
            step.abandon()
            raise

    async def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return await self.run(lambda connection: connection.execute(sql, parameters).rowcount)

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Run one query and return its rows: by position and by name."""
        return await self.run(lambda connection: connection.execute(sql, parameters).fetchall())


_inside: contextvars.ContextVar[tuple[tuple[SqliteDatabase, Held], ...]] = contextvars.ContextVar(
    "postroom_sqlite_transactions", default=()
)


def _claim(connection: sqlite3.Connection, key: MessageKey) -> None:
    _create_inbox(connection)
    if connection.execute(SQLITE_INBOX.claim, key).fetchone() is None:
        raise AlreadyHandled


def _create_inbox(connection: sqlite3.Connection) -> None:
    """Create the table within the present transaction, which ``executescript`` would commit."""
    for statement in SQLITE_INBOX.schema.rstrip(";\n").split(";\n"):
        connection.execute(statement)


def sqlite_database(
    path_of: PathOf[C],
    *,
    create: bool = False,
    schema: str = "",
    synchronous: str = "FULL",
    busy_timeout: float = 5.0,
    close_timeout: float = 5.0,
) -> Provider[C, SqliteDatabase]:
    """Provide one SQLite file per context, in write-ahead mode, as a ``SqliteDatabase``.

    A missing file is an unknown tenant (``LookupError``, permanent) unless ``create``; a missing
    directory is not: the storage may be away. Weight 1: one connection, one thread, both gone when
    it is closed.

    Args:
        path_of: context to path; ``LookupError`` or None where there is no such tenant. See
            ``tenant_file``.
        create: make missing files. Then any context that ``path_of`` accepts becomes a tenant.
        schema: SQL to run whenever a file is opened: ``CREATE TABLE IF NOT EXISTS ...``.
        synchronous: SQLite's setting. ``FULL`` keeps every commit over a power failure; ``NORMAL``
            is quicker and may lose the last ones, although their messages are acknowledged.
        busy_timeout: seconds to wait for a writer in another process.
        close_timeout: seconds that running work may take at close before it is interrupted.

    Raises:
        ConfigurationError: an argument cannot work.
    """
    call = '(context) -> path, such as lambda tenant: tenant_file("/var/lib/orders", tenant.tenant_id)'
    check_function("sqlite_database(path_of)", call, path_of)
    if str(synchronous).upper() not in {"OFF", "NORMAL", "FULL", "EXTRA"}:
        raise ConfigurationError(f"synchronous= takes OFF, NORMAL, FULL or EXTRA; got {synchronous!r}")
    check_switches("sqlite_database", create=create)
    check_kind("sqlite_database(schema=...)", schema, str, 'schema="CREATE TABLE IF NOT EXISTS ..."')
    check_times("sqlite_database", busy_timeout=busy_timeout, close_timeout=close_timeout)

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[SqliteDatabase, None]:
        database = await SqliteDatabase.open(
            await ask_registry(path_of, context),
            create=create,
            schema=schema,
            synchronous=synchronous,
            busy_timeout=busy_timeout,
        )
        try:
            yield database
        finally:
            await database.aclose(timeout=close_timeout)

    async def place(context: C) -> str:
        return str(await ask_registry(path_of, context))

    return Provider(enter, weight=1, check=SqliteDatabase.check, place=place, connects=False)


_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_LONGEST_NAME = 200


def tenant_file(directory: str | os.PathLike[str], *ids: str, suffix: str = ".sqlite3") -> Path:
    """Return the path of a tenant's file: no two lists of ids share one, and none leads out of ``directory``.

    Lower-case letters, digits, ``-`` and ``_`` stand for themselves; every other byte is escaped,
    capitals included, because some file systems do not tell them apart.

    Raises:
        UnknownTenant: an id is empty, or all together are too long for a file name.
        ConfigurationError: an id is no text.
    """
    for part in ids:
        check_kind("tenant_file(directory, *ids)", part, str, "tenant_file(directory, str(tenant_id))")
    encoded = [part.encode(errors="surrogatepass") for part in ids]
    name = ".".join("".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in part) for part in encoded)
    if not ids or not all(ids) or len(name) > _LONGEST_NAME:
        raise UnknownTenant("a tenant's ids must not be empty, nor too long for a file name")
    return Path(directory, name + suffix)
