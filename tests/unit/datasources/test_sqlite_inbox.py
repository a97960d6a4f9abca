"""The inbox of a SQLite file: one transaction held open over awaits, duplicates, cancellation, closing, purging."""

import asyncio
import contextvars
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from postroom.datasources import SQLITE_INBOX, SqliteDatabase, SqliteTransaction, sqlite_database
from postroom.errors import AlreadyHandled, ClosedError, PostroomError
from postroom.transactions import MessageKey

T = TypeVar("T")
pytestmark = pytest.mark.usefixtures("no_thread_stays")
SCHEMA = "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY) STRICT;"
FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
FILL_FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO orders SELECT i FROM n"
KEY = MessageKey("orders", "m-1")
OTHER = MessageKey("orders", "m-2")


async def _record(tx: SqliteTransaction, *ids: str) -> None:
    for id_ in ids:
        await tx.execute("INSERT INTO orders VALUES (?)", (id_,))


async def _handle(database: SqliteDatabase, key: MessageKey, *ids: str) -> None:
    async with database.transaction_for(key) as tx:
        await _record(tx, *ids)


async def _ids(database: SqliteDatabase) -> list[str]:
    return [row["id"] for row in await database.fetch("SELECT id FROM orders ORDER BY id")]


async def _keys(database: SqliteDatabase) -> list[tuple[str, str]]:
    return [tuple(row) for row in await database.fetch("SELECT queue, message_id FROM postroom_inbox ORDER BY 2")]


def _as_another_handler(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run it in a task that does not inherit the context of the present block."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


class Signal:
    """Tells a task of the loop that a unit of work has begun in its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()

    def then(self, sql: str) -> Callable[[sqlite3.Connection], None]:
        """Return a unit of work that says that it began and then runs a statement."""

        def work(connection: sqlite3.Connection) -> None:
            self.loop.call_soon_threadsafe(self.begun.set)
            connection.execute(sql).fetchall()

        return work


class TestExactlyOnce:
    """The row and the effects are one."""

    async def test_a_block_that_ends_is_committed_with_its_row(self, database: SqliteDatabase) -> None:
        """Another connection sees both at once."""
        await _handle(database, KEY, "1", "2")
        other = sqlite3.connect(database.path)
        assert other.execute("SELECT id FROM orders").fetchall() == [("1",), ("2",)]
        assert other.execute("SELECT queue, message_id FROM postroom_inbox").fetchall() == [KEY]
        other.close()

    async def test_a_duplicate_is_not_let_in(self, database: SqliteDatabase) -> None:
        """And leaves nothing open: the next unit runs."""
        await _handle(database, KEY, "1")
        with pytest.raises(AlreadyHandled):
            await _handle(database, KEY, "2")
        assert await _ids(database) == ["1"]

    async def test_a_block_that_raises_leaves_neither(self, database: SqliteDatabase) -> None:
        """The next attempt does the work."""
        with pytest.raises(sqlite3.IntegrityError):
            await _handle(database, KEY, "1", "1")
        assert await _ids(database) == []
        await _handle(database, KEY, "2")
        assert await _ids(database) == ["2"]

    async def test_queues_and_ids_are_kept_apart(self, database: SqliteDatabase) -> None:
        """The same id of another queue is another message."""
        for number, key in enumerate((KEY, OTHER, MessageKey("invoices", KEY.id), MessageKey("order", "sm-1"))):
            await _handle(database, key, str(number))
        assert len(await _ids(database)) == 4

    async def test_concurrent_duplicates_wait_and_one_does_the_work(self, database: SqliteDatabase) -> None:
        """Twenty at once, each with awaits between its steps."""

        async def handle(number: int) -> bool:
            try:
                await _handle(database, KEY, f"{number}a", f"{number}b")
            except AlreadyHandled:
                return False
            return True

        assert sum(await asyncio.gather(*map(handle, range(20)))) == 1
        assert len(await _ids(database)) == 2

    async def test_the_second_does_the_work_when_the_first_rolls_back(self, database: SqliteDatabase) -> None:
        """It waits until it is known how the first ends."""
        seconds: list[asyncio.Task[None]] = []

        async def first() -> None:
            async with database.transaction_for(KEY) as tx:
                await _record(tx, "first")
                seconds.append(_as_another_handler(_handle(database, KEY, "second")))
                await tx.fetch("SELECT 1")
                assert not seconds[0].done()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await first()
        await seconds[0]
        assert await _ids(database) == ["second"]

    async def test_another_process_waits_as_well(self, database: SqliteDatabase) -> None:
        """Two connections to one file, as two workers have: SQLite's write lock stands in for the index."""
        async with sqlite_database(database.path.with_name)(database.path.name) as elsewhere:
            async with database.transaction_for(KEY) as tx:
                await _record(tx, "here")
                there = _as_another_handler(_handle(elsewhere, KEY, "there"))
                await tx.fetch("SELECT 1")
            with pytest.raises(AlreadyHandled):
                await there
        assert await _ids(database) == ["here"]


class TestSteps:
    """Units of work within the block."""

    async def test_a_step_that_fails_leaves_nothing_of_itself(self, database: SqliteDatabase) -> None:
        """Who catches it goes on with what was there before."""

        def half(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO orders VALUES ('half')")
            raise KeyError

        async with database.transaction_for(KEY) as tx:
            await _record(tx, "1")
            with pytest.raises(KeyError):
                await tx.run(half)
            with pytest.raises(sqlite3.IntegrityError):
                await _record(tx, "1")
            await _record(tx, "2")
        assert await _ids(database) == ["1", "2"]

    async def test_steps_at_the_same_time_run_one_after_the_other(self, database: SqliteDatabase) -> None:
        """In the order in which they were asked for, all before the commit, awaited or not."""
        async with database.transaction_for(KEY) as tx:
            late = [asyncio.ensure_future(_record(tx, str(number))) for number in range(9)]
            await asyncio.gather(*late[:3])
        await asyncio.gather(*late)
        assert len(await _ids(database)) == 9

    @pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
    async def test_a_step_that_ends_the_transaction_is_found_out(self, database: SqliteDatabase, sql: str) -> None:
        """What would follow it would be committed by itself, without its row: it is refused, and so is the block."""

        def ends(connection: sqlite3.Connection) -> None:
            for statement in sql.split(";"):
                connection.execute(statement)

        async def block() -> None:
            async with database.transaction_for(KEY) as tx:
                with pytest.raises(sqlite3.OperationalError, match="savepoint"):
                    await tx.run(ends)
                with pytest.raises(PostroomError, match="ended before its block"):
                    await _record(tx, "stray")

        with pytest.raises(PostroomError, match="ended before its block"):
            await block()
        assert await _ids(database) == []

    async def test_the_database_itself_is_refused_inside(self, database: SqliteDatabase) -> None:
        """It would wait for the end of the block that waits for it; so would a nested transaction."""
        async with database.transaction_for(KEY) as tx:
            with pytest.raises(PostroomError, match="only that can be used"):
                await database.execute("SELECT 1")
            with pytest.raises(PostroomError, match="only that can be used"):
                await _handle(database, OTHER, "nested")
            with pytest.raises(PostroomError, match="only that can be used"):
                await asyncio.gather(database.fetch("SELECT 1"))
            await _record(tx, "1")
        assert await _ids(database) == ["1"]

    async def test_two_databases_in_one_block(self, database: SqliteDatabase, tmp_path: Path) -> None:
        """Each is refused while its own transaction is open, and no longer."""
        async with sqlite_database(tmp_path.joinpath, create=True, schema=SCHEMA)("b") as second:
            async with database.transaction_for(KEY):
                async with second.transaction_for(KEY):
                    for each in (database, second):
                        with pytest.raises(PostroomError, match="only that can be used"):
                            await _ids(each)
                assert await _ids(second) == []
                with pytest.raises(PostroomError, match="only that can be used"):
                    await _ids(database)
            assert await _ids(database) == []

    async def test_a_step_after_the_block_is_refused(self, database: SqliteDatabase) -> None:
        """Whether it was committed or rolled back."""
        async with database.transaction_for(KEY) as tx:
            assert repr(tx) == "<SqliteTransaction of 'a.sqlite3', open>"
        with pytest.raises(ClosedError, match="over"):
            await _record(tx, "late")
        with pytest.raises(ZeroDivisionError):
            async with database.transaction_for(OTHER) as tx:
                raise ZeroDivisionError
        with pytest.raises(ClosedError, match="over"):
            await _record(tx, "late")
        assert await _ids(database) == []


class TestCancellation:
    """A cancelled handler leaves nothing, or all."""

    @pytest.mark.parametrize("sql", [FOR_EVER, FILL_FOR_EVER])
    async def test_a_running_step_is_interrupted_and_all_is_rolled_back(
        self, database: SqliteDatabase, sql: str
    ) -> None:
        """Whether it reads or writes."""
        signal = Signal()

        async def handle() -> None:
            async with database.transaction_for(KEY) as tx:
                await _record(tx, "first")
                await tx.run(signal.then(sql))

        task = asyncio.create_task(handle())
        await signal.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _handle(database, KEY, "again")
        assert await _ids(database) == ["again"]

    async def test_a_read_that_times_out_leaves_the_transaction_usable(self, database: SqliteDatabase) -> None:
        """Only the step is taken back."""
        signal = Signal()
        async with database.transaction_for(KEY) as tx:
            await _record(tx, "1")
            reading = asyncio.create_task(tx.run(signal.then(FOR_EVER)))
            await signal.begun.wait()
            reading.cancel()
            await _record(tx, "2")
        assert await _ids(database) == ["1", "2"]

    async def test_a_write_that_is_interrupted_ends_the_transaction(self, database: SqliteDatabase) -> None:
        """SQLite takes all of it back; what follows must not be committed without the row."""
        signal = Signal()

        async def block() -> None:
            async with database.transaction_for(KEY) as tx:
                await _record(tx, "first")
                writing = asyncio.create_task(tx.run(signal.then(FILL_FOR_EVER)))
                await signal.begun.wait()
                writing.cancel()
                with pytest.raises(PostroomError, match="ended before its block"):
                    await _record(tx, "2")

        with pytest.raises(PostroomError, match="ended before its block"):
            await block()
        assert await _ids(database) == []

    async def test_who_waits_for_its_turn_does_not_begin(self, database: SqliteDatabase) -> None:
        """A duplicate that is cancelled while it waits for the first."""
        async with database.transaction_for(KEY) as tx:
            waiting = _as_another_handler(_handle(database, OTHER, "never"))
            await tx.fetch("SELECT 1")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await _record(tx, "1")
        assert await _ids(database) == ["1"]
        assert await _keys(database) == [KEY]

    async def test_cancelled_at_any_moment_it_is_all_or_nothing(self, database: SqliteDatabase) -> None:
        """The commit included: effects are there exactly where the row is."""
        await _handle(database, MessageKey("orders", "x"), "xa", "xb")  # on a busy machine none of those may get as far
        for turns in range(120):
            task = asyncio.create_task(_handle(database, MessageKey("orders", f"{turns}"), f"{turns}a", f"{turns}b"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        ids, keys = await _ids(database), await _keys(database)
        assert ids == sorted(f"{key}{part}" for _, key in keys for part in "ab")


@asynccontextmanager
async def _ended_by_closing(database: SqliteDatabase) -> AsyncIterator[SqliteTransaction]:
    """Open a transaction with a block that will raise at its end that the database was closed."""
    with pytest.raises(ClosedError):
        async with database.transaction_for(KEY) as tx:
            yield tx


class TestClosing:
    """A database that is closed under an open transaction."""

    async def test_it_may_end_within_the_time(self, database: SqliteDatabase) -> None:
        """And what it did is there."""
        async with database.transaction_for(KEY) as tx:
            closing = _as_another_handler(database.aclose())
            await _record(tx, "1")
        await closing
        other = sqlite3.connect(database.path)
        assert other.execute("SELECT id FROM orders").fetchall() == [("1",)]
        other.close()

    async def test_after_it_the_transaction_is_rolled_back(self, database: SqliteDatabase) -> None:
        """The handler is told by its next step, or at the end of its block."""
        async with _ended_by_closing(database) as tx:
            await _record(tx, "1")
            await _as_another_handler(database.aclose(timeout=0.01))
            with pytest.raises(ClosedError):
                await _record(tx, "2")
        other = sqlite3.connect(database.path)
        assert other.execute("SELECT id FROM orders").fetchall() == []
        other.close()

    async def test_a_running_step_is_interrupted(self, database: SqliteDatabase) -> None:
        """Its caller gets the same error."""
        signal = Signal()
        async with _ended_by_closing(database) as tx:
            step = asyncio.create_task(tx.run(signal.then(FILL_FOR_EVER)))
            await signal.begun.wait()
            await _as_another_handler(database.aclose(timeout=0.01))
            with pytest.raises(ClosedError):
                await step
        assert repr(tx).endswith("over>")

    async def test_a_closed_one_begins_none(self, database: SqliteDatabase) -> None:
        """Neither does one that closes while it waits."""
        await database.aclose()
        with pytest.raises(ClosedError):
            await _handle(database, KEY, "1")


class TestTheTable:
    """Its schema and its purge."""

    async def test_the_schema_makes_the_table_that_is_used(self, tmp_path: Path) -> None:
        """Also twice, and also where it is part of the file's own schema."""
        provider = sqlite_database(tmp_path.joinpath, create=True, schema=SCHEMA + SQLITE_INBOX.schema)
        for _ in range(2):
            async with provider("a.sqlite3") as database:
                with pytest.raises(KeyError):
                    async with database.transaction_for(KEY):
                        raise KeyError
                assert await _keys(database) == []

    async def test_old_rows_are_purged(self, database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
        """The young stay; more than fit into one unit go as well."""
        monkeypatch.setattr("postroom.datasources.sqlite.PURGED_AT_ONCE", 2)
        for number in range(7):
            await _handle(database, MessageKey("orders", f"m-{number}"))
        await database.execute(
            "UPDATE postroom_inbox SET handled_at = datetime('now', '-16 days') WHERE message_id < 'm-5'"
        )
        assert await database.purge_inbox() == 5
        assert await _keys(database) == [("orders", "m-5"), ("orders", "m-6")]
        assert await database.purge_inbox() == 0
        assert await database.purge_inbox(older_than=0) == 2

    async def test_a_file_that_never_had_a_transaction_can_be_purged(self, database: SqliteDatabase) -> None:
        """A job that goes through all tenants need not know."""
        assert await database.purge_inbox() == 0

    @pytest.mark.parametrize("age", [-1.0, float("nan")])
    async def test_an_age_that_is_none_is_refused(self, database: SqliteDatabase, age: float) -> None:
        """Nothing is deleted."""
        with pytest.raises(ValueError, match="older_than"):
            await database.purge_inbox(older_than=age)
