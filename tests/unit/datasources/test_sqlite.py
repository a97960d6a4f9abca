"""SQLite, one file per tenant: transactions, cancellation, closing, and names of files."""

import asyncio
import contextlib
import contextvars
import os
import sqlite3
import string
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postroom.datasources import SqliteDatabase, UnknownTenant, sqlite_database, tenant_file
from postroom.errors import ClosedError, ConfigurationError
from postroom.redaction import describe
from postroom.resources.failures import OpenFailure, classify_open, is_of_server, is_outage, is_suspect
from postroom.transactions import MessageKey

pytestmark = pytest.mark.usefixtures("no_thread_stays")
SCHEMA = "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY) STRICT;"
FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO orders SELECT i FROM n"


async def _ids(database: SqliteDatabase) -> list[str]:
    return [row["id"] for row in await database.fetch("SELECT id FROM orders ORDER BY id")]


def _insert(connection: sqlite3.Connection, *ids: str) -> int:
    return connection.executemany("INSERT INTO orders VALUES (?)", [(id_,) for id_ in ids]).rowcount


async def _insert_later(connection: sqlite3.Connection) -> None:
    _insert(connection, "later")


def _insert_lazily(connection: sqlite3.Connection) -> Iterator[int]:
    yield _insert(connection, "lazily")


async def _insert_later_and_lazily(connection: sqlite3.Connection) -> AsyncGenerator[int, None]:
    yield _insert(connection, "lazily")


@pytest.mark.parametrize(
    "work",
    [
        _insert_later,
        _insert_lazily,
        _insert_later_and_lazily,
        lambda connection: _insert_later(connection=connection),
    ],
)
async def test_a_unit_of_which_nothing_would_run_is_refused(database: SqliteDatabase, work: Any) -> None:
    """Its message would be acknowledged without any work done; so would that of a step."""
    with pytest.raises(ConfigurationError, match="a plain function that returns data; got one with async or yield"):
        await database.run(work)
    async with database.transaction_for(MessageKey("orders", "1")) as tx:
        with pytest.raises(ConfigurationError, match="a plain function"):
            await tx.run(work)
        await tx.execute("INSERT INTO orders VALUES ('own')")
    assert await _ids(database) == ["own"]


@pytest.mark.parametrize("path", [":memory:", "file:orders?mode=memory"])
async def test_a_database_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """All tenants would share one file of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no database in memory or URI: write tenant_file\("):
        await SqliteDatabase.open(path, create=True)
    assert os.listdir(tmp_path) == []


class Blocker:
    """A unit of work that stops where a test wants it to."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.entered = asyncio.Event()
        self.go_on = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> str:
        """Write a row, say so, and wait."""
        _insert(connection, "blocked")
        self.loop.call_soon_threadsafe(self.entered.set)
        assert self.go_on.wait(10)
        return "done"


class TestWork:
    """Units of work."""

    async def test_a_unit_that_returns_is_committed(self, database: SqliteDatabase) -> None:
        """Another connection sees it at once."""
        assert await database.run(lambda connection: _insert(connection, "1", "2")) == 2
        assert await database.execute("INSERT INTO orders VALUES (:id)", {"id": "3"}) == 1
        with sqlite3.connect(database.path) as other:
            assert other.execute("SELECT count(*) FROM orders").fetchone() == (3,)
        other.close()

    async def test_a_unit_that_raises_leaves_nothing(self, database: SqliteDatabase) -> None:
        """All of it is rolled back, the error is the caller's, and the next unit works."""

        def half(connection: sqlite3.Connection) -> None:
            _insert(connection, "1")
            raise KeyError("half-way")

        with pytest.raises(KeyError, match="half-way"):
            await database.run(half)
        with pytest.raises(sqlite3.IntegrityError):
            await database.run(lambda connection: _insert(connection, "1", "1"))
        assert await _ids(database) == []

    async def test_a_stop_iteration_does_not_hang_the_caller(self, database: SqliteDatabase) -> None:
        """No future can carry one."""
        with pytest.raises(RuntimeError, match="StopIteration"):
            await database.run(lambda _: next(iter(())))

    async def test_what_a_unit_does_to_the_connection_ends_with_it(self, database: SqliteDatabase) -> None:
        """Closed, with another row factory, in another mode: the next one gets it as it was."""
        habits: list[Callable[[sqlite3.Connection], Any]] = [
            lambda connection: connection.close(),
            lambda connection: setattr(connection, "row_factory", lambda _, row: dict(enumerate(row))),
            lambda connection: setattr(connection, "text_factory", bytes),
            lambda connection: setattr(connection, "isolation_level", "DEFERRED"),
        ]
        for habit in habits:
            with suppress(sqlite3.ProgrammingError):
                await database.run(habit)
            [row] = await database.fetch("SELECT 'x' AS name")
            assert row["name"] == "x"
            assert await database.check()

    async def test_what_a_unit_does_to_the_session_ends_with_it(self, database: SqliteDatabase, tmp_path: Path) -> None:
        """The next one writes into the tenant's own file and no other, by the rules that it was opened with."""
        habits = [
            "CREATE TEMP TABLE orders (id TEXT); INSERT INTO orders VALUES ('left over')",
            "CREATE TEMP TRIGGER lost BEFORE INSERT ON orders BEGIN SELECT RAISE(IGNORE); END",
            f"COMMIT; ATTACH '{tmp_path / 'other.sqlite3'}' AS other; CREATE TABLE other.secret (id TEXT); BEGIN",
            "COMMIT; PRAGMA foreign_keys = OFF; BEGIN",
            "PRAGMA query_only = ON",
            "PRAGMA ignore_check_constraints = ON",
            "COMMIT; PRAGMA synchronous = OFF; BEGIN",
        ]
        settings = "SELECT * FROM pragma_foreign_keys, pragma_ignore_check_constraints, pragma_synchronous"
        before = [tuple(row) for row in await database.fetch(settings)]
        for number, habit in enumerate(habits):

            def leave(connection: sqlite3.Connection, habit: str = habit) -> None:
                for statement in habit.split("; ") if "TRIGGER" not in habit else [habit]:
                    connection.execute(statement)

            await database.run(leave)
            await database.execute("INSERT INTO orders VALUES (?)", (str(number),))
            assert [tuple(row) for row in await database.fetch(settings)] == before
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await database.fetch("SELECT id FROM other.secret")
        with sqlite3.connect(database.path) as own:
            assert own.execute("SELECT count(*) FROM orders").fetchone() == (len(habits),)
        own.close()

    async def test_hooks_of_a_unit_end_with_it(self, database: SqliteDatabase) -> None:
        """What it hung into the connection is told of no other unit; and the next can be interrupted."""
        told: list[str] = []

        def ask(*_: Any) -> int:
            told.append("asked")
            return sqlite3.SQLITE_OK

        def hang_in(connection: sqlite3.Connection) -> None:
            connection.set_trace_callback(told.append)
            connection.set_authorizer(ask)
            connection.set_progress_handler(None, 0)

        await database.run(hang_in)
        told.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await database.execute(FOR_EVER)
        assert await _ids(database) == []
        assert told == []

    async def test_a_file_that_is_gone_when_its_connection_was_closed_is_told(
        self, database: SqliteDatabase, tmp_path: Path
    ) -> None:
        """To each caller, until it is there again."""
        away = database.path.with_name("away")
        async with sqlite_database(tmp_path.joinpath)(database.path.name) as same:
            with suppress(sqlite3.ProgrammingError):
                await same.run(lambda connection: connection.close())
            database.path.rename(away)
            for _ in range(2):
                with pytest.raises(FileNotFoundError):
                    await same.fetch("SELECT 1")
            away.rename(database.path)
            assert await same.check()

    async def test_units_run_one_after_the_other(self, database: SqliteDatabase) -> None:
        """No transaction sees half of another."""

        def count_and_insert(connection: sqlite3.Connection) -> int:
            (count,) = connection.execute("SELECT count(*) FROM orders").fetchone()
            _insert(connection, str(count))
            return int(count)

        counts = await asyncio.gather(*(database.run(count_and_insert) for _ in range(100)))
        assert sorted(counts) == list(range(100))

    async def test_the_callers_context_reaches_the_thread(self, database: SqliteDatabase) -> None:
        """Logging in a unit of work knows the message."""
        tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")

        async def work_for(name: str) -> str:
            tenant.set(name)
            return await database.run(lambda _: tenant.get())

        assert list(await asyncio.gather(work_for("a"), work_for("b"))) == ["a", "b"]

    async def test_a_reader_does_not_wait_for_a_foreign_writer(self, database: SqliteDatabase) -> None:
        """Write-ahead mode: only writers exclude each other."""
        other = sqlite3.connect(database.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert await _ids(database) == []
        other.execute("ROLLBACK")
        other.close()

    async def test_the_settings_keep_every_commit(self, database: SqliteDatabase) -> None:
        """Write-ahead log, synchronised at each commit; foreign keys are checked."""
        settings = {
            name: (await database.run(lambda c, name=name: c.execute(f"PRAGMA {name}").fetchone()[0]))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


class TestCancelling:
    """A cancelled caller."""

    async def test_a_running_unit_is_interrupted_and_rolled_back(self, database: SqliteDatabase) -> None:
        """Even a statement that would never end, and that may begin only after the caller was cancelled."""
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def endless(connection: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(started.set)
            connection.execute(FOR_EVER)

        working = asyncio.create_task(database.run(endless), name="endless")
        await started.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert await _ids(database) == []

    async def test_a_unit_between_two_statements_is_not_committed(self, database: SqliteDatabase) -> None:
        """The commit asks once more."""
        blocker = Blocker()
        working = asyncio.create_task(database.run(blocker), name="blocked")
        await blocker.entered.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        blocker.go_on.set()
        assert await _ids(database) == []

    async def test_a_waiting_unit_never_starts(self, database: SqliteDatabase) -> None:
        """And the unit before it is not disturbed."""
        blocker = Blocker()
        first = asyncio.create_task(database.run(blocker), name="first")
        await blocker.entered.wait()
        second = asyncio.create_task(database.run(lambda connection: _insert(connection, "second")), name="second")
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        blocker.go_on.set()
        assert await first == "done"
        assert await _ids(database) == ["blocked"]


class TestClosing:
    """Closing: bounded, and exactly once."""

    async def test_what_was_asked_for_is_finished(self, tmp_path: Path) -> None:
        """Work that waits when close begins is done."""
        database = await SqliteDatabase.open(tmp_path / "a", create=True, schema=SCHEMA)
        inserts = [asyncio.create_task(database.execute("INSERT INTO orders VALUES (?)", (str(n),))) for n in range(9)]
        await asyncio.sleep(0)
        await database.aclose()
        assert await asyncio.gather(*inserts) == [1] * 9
        assert os.listdir(tmp_path) == ["a"]

    async def test_a_handler_that_closes_it_costs_the_next_lease_an_opening(self, tmp_path: Path) -> None:
        """A message that meets it has failed; the tenant goes on."""
        provider = sqlite_database(tmp_path.joinpath, create=True, schema=SCHEMA)
        async with provider.pool() as pool:
            async with pool.lease("a.sqlite3") as database:
                await database.aclose()
            with pytest.raises(ClosedError) as raised:
                async with pool.lease("a.sqlite3") as database:
                    await database.fetch("SELECT 1")
            assert not is_outage(raised.value)
            async with pool.lease("a.sqlite3") as database:
                assert [tuple(row) for row in await database.fetch("SELECT 1")] == [(1,)]

    async def test_use_after_close_is_refused(self, tmp_path: Path) -> None:
        """And a second close does nothing."""
        database = await SqliteDatabase.open(tmp_path / "a", create=True)
        await database.aclose()
        await database.aclose()
        with pytest.raises(ClosedError, match="closed"):
            await database.fetch("SELECT 1")

    async def test_work_that_outlasts_the_timeout_is_rolled_back(self, tmp_path: Path) -> None:
        """Its caller and those who wait behind it get ClosedError, none gets a cancellation that was not its own."""
        database = await SqliteDatabase.open(tmp_path / "a", create=True, schema=SCHEMA)
        tasks = [
            asyncio.create_task(database.run(lambda connection: connection.execute(FOR_EVER).rowcount)),
            asyncio.create_task(database.execute("INSERT INTO orders VALUES ('behind')")),
        ]
        await asyncio.sleep(0)
        await database.aclose(timeout=0.05)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ClosedError, ClosedError]
        again = await SqliteDatabase.open(tmp_path / "a")
        assert await _ids(again) == []
        await again.aclose()

    async def test_work_that_cannot_be_interrupted_does_not_hold_up_the_close(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Plain Python in a thread cannot be stopped: close says so and returns."""
        database = await SqliteDatabase.open(tmp_path / "a", create=True, schema=SCHEMA)
        blocker = Blocker()
        stuck = asyncio.create_task(database.run(blocker), name="stuck")
        await blocker.entered.wait()
        await database.aclose(timeout=0.01)
        assert "ignores its interruption" in caplog.text
        blocker.go_on.set()
        with pytest.raises(ClosedError):
            await stuck

    async def test_a_cancelled_close_still_ends_the_thread(self, tmp_path: Path) -> None:
        """A pool's deadline cancels a close: running work is interrupted at once."""
        database = await SqliteDatabase.open(tmp_path / "a", create=True, schema=SCHEMA)
        endless = asyncio.create_task(database.run(lambda connection: connection.execute(FOR_EVER).rowcount))
        await asyncio.sleep(0)
        closing = asyncio.create_task(database.aclose(timeout=60), name="closing")
        await asyncio.wait([closing], timeout=0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(ClosedError):
            await endless


class TestOpening:
    """Opening: who is a tenant, and who is only away."""

    async def test_a_missing_file_is_an_unknown_tenant(self, tmp_path: Path) -> None:
        """Permanent, and nothing is created."""
        with pytest.raises(UnknownTenant) as unknown:
            async with sqlite_database(tmp_path.joinpath)("mallory"):
                pass
        assert classify_open(unknown.value) is OpenFailure.UNKNOWN_TENANT
        assert os.listdir(tmp_path) == []

    async def test_a_missing_directory_is_an_outage(self, tmp_path: Path) -> None:
        """The storage may come back: transient."""
        with pytest.raises(sqlite3.OperationalError) as away:
            async with sqlite_database(tmp_path.joinpath, create=True)("not mounted/a"):
                pass
        assert classify_open(away.value) is OpenFailure.OUTAGE

    async def test_a_file_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        """SQLite's own words, and the thread ends."""
        (tmp_path / "a").write_bytes(b"not a database" * 100)
        with pytest.raises(sqlite3.DatabaseError):
            await SqliteDatabase.open(tmp_path / "a")

    async def test_a_schema_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        """It is one transaction."""
        with pytest.raises(sqlite3.OperationalError):
            await SqliteDatabase.open(tmp_path / "a", create=True, schema="CREATE TABLE x (i); CREATE GARBAGE")
        plain = await SqliteDatabase.open(tmp_path / "a")
        assert await plain.fetch("SELECT name FROM sqlite_schema") == []
        await plain.aclose()

    async def test_a_cancelled_open_ends_the_thread(self, tmp_path: Path) -> None:
        """Whatever the thread had got to."""
        opening = asyncio.create_task(SqliteDatabase.open(tmp_path / "a", create=True), name="opening")
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    def test_an_unknown_synchronous_setting_is_refused_when_it_is_written(self, tmp_path: Path) -> None:
        """It would go into a PRAGMA as it is."""
        with pytest.raises(ValueError, match="FULL"):
            sqlite_database(tmp_path.joinpath, synchronous="FULL; DROP TABLE orders")

    def test_the_provider_says_what_a_pool_needs(self, tmp_path: Path) -> None:
        """One connection, and a check."""
        provider = sqlite_database(tmp_path.joinpath)
        assert (provider.weight, provider.check) == (1, SqliteDatabase.check)


class TestCheck:
    """The health check."""

    async def test_a_healthy_database_passes(self, database: SqliteDatabase) -> None:
        """It answers True."""
        assert await database.check()

    async def test_a_deleted_file_is_noticed(self, database: SqliteDatabase) -> None:
        """SQLite itself goes on writing to it, and all of that would be lost."""
        database.path.unlink()
        with pytest.raises(FileNotFoundError):
            await database.check()

    async def test_a_unit_after_a_replacement_finds_the_new_file(self, database: SqliteDatabase) -> None:
        """Reads and writes alike: each unit looks at the file first."""
        replace(database.path, "new")
        assert await _ids(database) == ["new"]
        replace(database.path, "newer")
        assert await database.execute("INSERT INTO orders VALUES ('1')") == 1
        async with database.transaction_for(MessageKey("orders", "1")) as tx:
            await tx.execute("INSERT INTO orders VALUES ('2')")
        assert await _ids(database) == ["1", "2", "newer"]
        assert await database.check()

    async def test_a_file_that_is_gone_is_an_outage(self, database: SqliteDatabase) -> None:
        """Its storage may be away. What is written to a file that was deleted is lost without an error."""
        database.path.unlink()
        with pytest.raises(FileNotFoundError) as written:
            await database.execute("INSERT INTO orders VALUES ('1')")
        with pytest.raises(FileNotFoundError) as read:
            await _ids(database)
        with pytest.raises(FileNotFoundError) as begun:
            async with database.transaction_for(MessageKey("orders", "2")):
                pass
        assert all(is_outage(raised.value) and is_of_server(raised.value) for raised in (written, read, begun))
        replace(database.path, "new")
        assert await _ids(database) == ["new"]

    @pytest.mark.parametrize("refused", ["the file", "its directory", "neither"])
    async def test_a_file_that_may_not_be_written_is_an_outage(
        self, database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, refused: str
    ) -> None:
        """As after a deployment under another user: SQLite only reads it. What a unit forbids itself is its own."""
        place = {"the file": database.path, "its directory": database.path.parent}.get(refused)
        monkeypatch.setattr(os, "access", lambda path, _: path != place)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA query_only = 1")  # as SQLite answers then, too; root may write every file
            connection.row_factory = lambda _, row: {"first": row[0]}  # of the user
            connection.text_factory = bytes
            _insert(connection, "1")

        with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database") as raised:
            await database.run(write)
        outage = refused != "neither"
        assert (is_outage(raised.value), is_suspect(raised.value)) == (outage, outage)
        assert ("this process may not write" in describe(raised.value)) == outage

    async def test_a_new_file_that_cannot_be_opened_is_an_outage(self, database: SqliteDatabase) -> None:
        """It may be on its way, as a copy is."""
        database.path.with_name("new").write_text("no database, and as long as the head of one" * 9)
        database.path.with_name("new").replace(database.path)
        with pytest.raises(sqlite3.DatabaseError) as raised:
            await _ids(database)
        assert is_outage(raised.value)
        replace(database.path, "new")
        assert await _ids(database) == ["new"]

    async def test_the_log_of_the_old_file_is_not_applied_to_the_new_one(
        self, database: SqliteDatabase, tmp_path: Path
    ) -> None:
        """SQLite finds it by its name: it would be played into the file that is there now, and destroy that."""
        await database.execute("INSERT INTO orders VALUES ('old')")
        database.path.rename(tmp_path / "old")
        replace(database.path, *map(str, range(1000)))
        assert len(await _ids(database)) == 1000
        assert [row[0] for row in await database.fetch("PRAGMA integrity_check")] == ["ok"]
        assert found(tmp_path / "old") == ["old"]

    async def test_a_close_leaves_no_log_of_the_old_file(self, tmp_path: Path) -> None:
        """The next to open the new file may be another program."""
        database = await SqliteDatabase.open(tmp_path / "a", create=True, schema=SCHEMA)
        await database.execute("INSERT INTO orders VALUES ('old')")
        replace(database.path, *map(str, range(1000)))
        await database.aclose()
        assert len(found(database.path)) == 1000

    async def test_others_that_have_the_old_file_open_do_not_share_the_log_of_the_new_one(
        self, database: SqliteDatabase
    ) -> None:
        """As replicas on one machine have. Each finds the new file at its next unit."""
        async with sqlite_database(database.path.with_name)(database.path.name) as other:
            await other.execute("INSERT INTO orders VALUES ('old')")
            replace(database.path, *map(str, range(1000)))
            await database.execute("INSERT INTO orders VALUES ('new')")
            await other.execute("INSERT INTO orders VALUES ('newer')")
            for one in (database, other):
                assert len(await _ids(one)) == 1002
                assert [row[0] for row in await one.fetch("PRAGMA integrity_check")] == ["ok"]

    async def test_a_file_that_is_replaced_while_it_is_opened_is_an_outage(self, tmp_path: Path) -> None:
        """It is not known which of the two was opened; the pool opens it again."""
        replace(tmp_path / "a", "old")
        replace(tmp_path / "b", "new")

        def look(row: str) -> int:
            (tmp_path / "b").rename(tmp_path / "a")
            return 1

        connect = sqlite3.connect

        def connected(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **keywords)
            connection.create_function("look", 1, look)
            return connection

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", connected)
            with pytest.raises(OSError, match="replaced while it was opened"):
                await SqliteDatabase.open(tmp_path / "a", schema="SELECT look(id) FROM orders")
        assert found(tmp_path / "a") == ["new"]


def replace(path: Path, *orders: str) -> None:
    """Put another file in the place of a database, as a deployment or a restored backup does."""
    new = path.with_name("new")
    with contextlib.closing(sqlite3.connect(new)) as connection:
        connection.executescript(SCHEMA)
        _insert(connection, *orders)
        connection.commit()
    new.replace(path)


def found(path: Path) -> list[str]:
    """Return the orders that another program finds in a file that is whole."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [id_ for (id_,) in connection.execute("SELECT id FROM orders ORDER BY id")]


ids = st.lists(st.text(max_size=20), min_size=1, max_size=3)


class TestTenantFile:
    """Names of files from ids that came with a message."""

    def test_plain_ids_are_readable(self) -> None:
        """The usual id is its own name."""
        assert tenant_file("/data", "tenant-a", "us-east-1") == Path("/data/tenant-a.us-east-1.sqlite3")

    @given(ids, ids)
    def test_no_two_tenants_share_a_file(self, first: list[str], second: list[str]) -> None:
        """Whatever is in the ids, also where capitals and small letters are one."""
        try:
            names = [tenant_file("/data", *ids).name.lower() for ids in (first, second)]
        except UnknownTenant:
            return
        assert (names[0] == names[1]) == (first == second)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (("a:b", "c"), ("a", "b:c")),
            (("a.b", "c"), ("a", "b.c")),
            (("A",), ("a",)),
            (("%3a",), (":",)),
            (("\ud800",), ("\ud801",)),
        ],
    )
    def test_neighbours_are_told_apart(self, first: tuple[str, ...], second: tuple[str, ...]) -> None:
        """The pairs that a joined string would confuse."""
        assert tenant_file("/data", *first) != tenant_file("/data", *second)

    @given(ids)
    def test_no_id_leads_out_of_the_directory(self, parts: list[str]) -> None:
        """No separator, no dot-dot, nothing but a short plain name."""
        try:
            path = tenant_file("/data", *parts)
        except UnknownTenant:
            return
        assert path.parent == Path("/data")
        assert set(path.name) <= set(string.ascii_lowercase + string.digits + "-_.%")
        assert len(path.name) < 255
        assert not path.name.startswith(".")

    @pytest.mark.parametrize("parts", [(), ("",), ("a", ""), ("x" * 300,)])
    def test_ids_that_make_no_name_are_nobody(self, parts: tuple[str, ...]) -> None:
        """A lookup error: the message is at fault, not the storage."""
        with pytest.raises(UnknownTenant):
            tenant_file("/data", *parts)
