"""What every transactional resource promises, whatever the driver: one suite, inherited by each of them.

The invariant: when a block returns without an error, its row and all of its effects are there; otherwise neither.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from postroom import AlreadyHandled, ConfigurationError
from postroom.datasources import Registry, postgres_inbox, sqlalchemy_engine, sqlalchemy_inbox
from postroom.resources.failures import OpenFailure, classify_open
from postroom.transactions import MessageKey, TransactionRolledBack
from support.tenant_database import TenantDatabase
from support.transactional import (
    Adapter,
    AsyncpgAdapter,
    PostgresAdapter,
    Proxy,
    PsycopgAdapter,
    PsycopgConnectionsAdapter,
    SessionAdapter,
    SessionPsycopgAdapter,
    SqlalchemyAdapter,
    SqlalchemyPsycopgAdapter,
    SqliteAdapter,
)

KEY = MessageKey("orders", "m-1")
OTHER = MessageKey("orders", "m-2")
BROKEN = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    psycopg.Error,
    sqlalchemy.exc.DBAPIError,
    OSError,
)
Step = Callable[[Any], Awaitable[None]]


class TransactionalSuite:
    """The part of the suite that needs nothing but the protocol."""

    aborts: ClassVar[bool]
    """Whether a failed statement aborts its transaction; otherwise the statement alone is undone."""

    @pytest.fixture
    async def adapter(self) -> Adapter:
        """Return the adapter under test."""
        raise NotImplementedError

    @pytest.fixture
    async def db(self, adapter: Adapter) -> AsyncIterator[Any]:
        """The tenant's open resources."""
        async with adapter.provider()("a") as opened:
            yield opened

    async def handle(self, adapter: Adapter, db: Any, key: MessageKey, *ids: str, then: Step | None = None) -> None:
        """Insert orders in the transaction of a message."""
        async with db.transaction_for(key) as tx:
            for id_ in ids:
                await adapter.execute(tx, f"INSERT INTO orders VALUES ('{id_}')")
            if then is not None:
                await then(tx)

    async def test_a_block_that_ends_is_committed_with_its_row(self, adapter: Adapter, db: Any) -> None:
        """A duplicate is told so, and does nothing."""
        await self.handle(adapter, db, KEY, "1", "2")
        assert (adapter.orders(), adapter.keys()) == (["1", "2"], ["m-1"])
        with pytest.raises(AlreadyHandled):
            await self.handle(adapter, db, KEY, "3")
        assert (adapter.orders(), adapter.keys()) == (["1", "2"], ["m-1"])

    async def test_a_block_that_raises_leaves_neither(self, adapter: Adapter, db: Any) -> None:
        """Its own error comes through, and the next attempt does the work."""

        async def fail(_: Any) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await self.handle(adapter, db, KEY, "lost", then=fail)
        assert (adapter.orders(), adapter.keys()) == ([], [])
        await self.handle(adapter, db, KEY, "1")
        assert (adapter.orders(), adapter.keys()) == (["1"], ["m-1"])

    async def test_a_database_error_that_leaves_the_block_is_not_replaced(self, adapter: Adapter, db: Any) -> None:
        """The cause is what the log should say."""
        with pytest.raises(Exception, match=r"(?i)unique"):
            await self.handle(adapter, db, KEY, "1", "1")
        assert (adapter.orders(), adapter.keys()) == ([], [])

    async def test_a_swallowed_error_never_ends_well_with_effects_missing(self, adapter: Adapter, db: Any) -> None:
        """Either the block raises and nothing is there, or all that did not fail is there, the row included."""

        async def swallow(tx: Any) -> None:
            with pytest.raises(Exception, match=r"(?i)unique"):
                await adapter.execute(tx, "INSERT INTO orders VALUES ('1')")

        if self.aborts:
            with pytest.raises(TransactionRolledBack):
                await self.handle(adapter, db, KEY, "1", then=swallow)
            assert (adapter.orders(), adapter.keys()) == ([], [])
            await self.handle(adapter, db, KEY, "again")
        else:
            await self.handle(adapter, db, KEY, "1", then=swallow)
            assert (adapter.orders(), adapter.keys()) == (["1"], ["m-1"])
        await self.handle(adapter, db, OTHER, "2")
        assert "2" in adapter.orders()

    async def test_an_error_in_a_savepoint_that_was_rolled_back_may_be_swallowed(
        self, adapter: Adapter, db: Any
    ) -> None:
        """That is what savepoints are for."""

        async def swallow(tx: Any) -> None:
            with pytest.raises(Exception, match=r"(?i)unique"):
                async with adapter.savepoint(tx):
                    await adapter.execute(tx, "INSERT INTO orders VALUES ('1')")
            await adapter.execute(tx, "INSERT INTO orders VALUES ('2')")

        await self.handle(adapter, db, KEY, "1", then=swallow)
        assert (adapter.orders(), adapter.keys()) == (["1", "2"], ["m-1"])

    async def test_twenty_at_once(self, adapter: Adapter, db: Any) -> None:
        """One of them does the work."""
        tasks = (self.handle(adapter, db, KEY, "1") for _ in range(20))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(AlreadyHandled) == 19
        assert (adapter.orders(), adapter.keys()) == (["1"], ["m-1"])

    async def test_cancelled_at_any_moment(self, adapter: Adapter, db: Any) -> None:
        """The commit included: effects are there exactly where the row is."""
        for number in range(50):
            key = MessageKey("orders", f"{number:02}")
            task = asyncio.create_task(self.handle(adapter, db, key, f"{number:02}a", f"{number:02}b"))
            await asyncio.wait([task], timeout=number * 0.0002)
            task.cancel()
            await asyncio.wait([task])
        await self.handle(adapter, db, MessageKey("orders", "99"), "99a", "99b")
        done = adapter.keys()
        assert adapter.orders() == [f"{key}{part}" for key in done for part in "ab"]


class TestSqlite(TransactionalSuite):
    """A file of SQLite. tests/unit/datasources has what only it promises."""

    aborts = False

    @pytest.fixture
    async def adapter(self, tmp_path: Path) -> Adapter:
        """Return a file that does not exist yet."""
        return SqliteAdapter(tmp_path / "a.sqlite3")

    @pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK"])
    async def test_a_step_that_ends_the_transaction_is_told(self, adapter: Adapter, db: Any, sql: str) -> None:
        """At the end of the block, too."""

        async def end(tx: Any) -> None:
            with pytest.raises(Exception, match=r"(?i)savepoint"):
                await adapter.execute(tx, sql)

        with pytest.raises(TransactionRolledBack):
            await self.handle(adapter, db, KEY, "1", then=end)


def ready(kind: type[PostgresAdapter], tenant: TenantDatabase) -> PostgresAdapter:
    """Return an adapter of a database with an inbox and a table of orders."""
    made = kind(tenant)
    made.run(f"{postgres_inbox().schema} CREATE TABLE orders (id text PRIMARY KEY)")
    return made


@pytest.mark.postgres
class PostgresSuite(TransactionalSuite):
    """The part that a server and its connections bring along."""

    aborts = True
    kind: ClassVar[type[PostgresAdapter]]

    @pytest.fixture
    async def adapter(self, tenant: TenantDatabase) -> PostgresAdapter:
        """Return a database with its inbox, made by a migration, and a table of orders."""
        return ready(self.kind, tenant)

    async def test_a_duplicate_waits_and_then_leaves(self, adapter: PostgresAdapter, db: Any) -> None:
        """The unique index makes it wait until the first has committed."""
        async with db.transaction_for(KEY) as tx:
            await adapter.execute(tx, "INSERT INTO orders VALUES ('first')")
            second = asyncio.create_task(self.handle(adapter, db, KEY, "second"))
            await adapter.someone_waits()
            assert not second.done()
        with pytest.raises(AlreadyHandled):
            await second
        assert adapter.orders() == ["first"]

    async def test_a_duplicate_does_the_work_when_the_first_rolls_back(self, adapter: PostgresAdapter, db: Any) -> None:
        """It has waited for that."""
        seconds: list[asyncio.Task[None]] = []

        async def fail(_: Any) -> None:
            seconds.append(asyncio.create_task(self.handle(adapter, db, KEY, "second")))
            await adapter.someone_waits()
            raise KeyError

        with pytest.raises(KeyError):
            await self.handle(adapter, db, KEY, "first", then=fail)
        await seconds[0]
        assert adapter.orders() == ["second"]

    async def test_other_messages_do_not_wait(self, adapter: PostgresAdapter, db: Any) -> None:
        """Nor does the same id of another queue."""

        async def others(_: Any) -> None:
            await self.handle(adapter, db, OTHER, "2")
            await self.handle(adapter, db, MessageKey("invoices", "m-1"), "3")

        await self.handle(adapter, db, KEY, "1", then=others)
        assert adapter.orders() == ["1", "2", "3"]

    async def test_a_duplicate_does_not_wait_without_a_limit(self, adapter: PostgresAdapter) -> None:
        """The first may be on a machine that has no power: the second counts as failed, and the rest goes on."""
        async with adapter.provider(wait=0.2)("a") as db:

            async def second(_: Any) -> None:
                with pytest.raises(TimeoutError, match="another transaction has held the row"):
                    await self.handle(adapter, db, KEY, "second")
                await self.handle(adapter, db, OTHER, "other")

            await self.handle(adapter, db, KEY, "first", then=second)
        assert adapter.orders() == ["first", "other"]

    async def test_a_cancelled_duplicate_does_not_disturb_the_first(self, adapter: PostgresAdapter, db: Any) -> None:
        """And the connections serve the next."""

        async def cancelled(_: Any) -> None:
            second = asyncio.create_task(self.handle(adapter, db, KEY, "second"))
            await adapter.someone_waits()
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second

        await self.handle(adapter, db, KEY, "first", then=cancelled)
        await asyncio.gather(*(self.handle(adapter, db, MessageKey("orders", f"{n}"), f"{n}") for n in range(8)))
        assert adapter.orders() == [*"01234567", "first"]

    async def test_a_swallowed_error_in_a_savepoint_that_stays_open(self, adapter: PostgresAdapter, db: Any) -> None:
        """Nothing has undone it, so the transaction is aborted."""

        async def swallow(tx: Any) -> None:
            await adapter.execute(tx, "SAVEPOINT mine")
            with pytest.raises(BROKEN):
                await adapter.execute(tx, "INSERT INTO orders VALUES ('1')")

        with pytest.raises(TransactionRolledBack, match="savepoint"):
            await self.handle(adapter, db, KEY, "1", then=swallow)
        assert (adapter.orders(), adapter.keys()) == ([], [])

    @pytest.mark.parametrize("sql", ["SELECT nothing FROM nowhere", "SELECT 1/0", "SELEC 1"])
    async def test_any_swallowed_error_is_told(self, adapter: PostgresAdapter, db: Any, sql: str) -> None:
        """Found by the parser, the planner or the executor."""

        async def swallow(tx: Any) -> None:
            with pytest.raises(BROKEN):
                await adapter.execute(tx, sql)

        with pytest.raises(TransactionRolledBack):
            await self.handle(adapter, db, KEY, "1", then=swallow)
        assert (adapter.orders(), adapter.keys()) == ([], [])

    async def test_a_swallowed_statement_timeout(self, adapter: PostgresAdapter, db: Any) -> None:
        """The server's own limit."""

        async def swallow(tx: Any) -> None:
            await adapter.execute(tx, "SET LOCAL statement_timeout = '20ms'")
            with pytest.raises(BROKEN):
                await adapter.execute(tx, "SELECT pg_sleep(10)")

        with pytest.raises(TransactionRolledBack):
            await self.handle(adapter, db, KEY, "1", then=swallow)
        assert (adapter.orders(), adapter.keys()) == ([], [])

    async def test_a_swallowed_time_limit_of_the_handler(self, adapter: PostgresAdapter, db: Any) -> None:
        """The driver cancels the statement on the server, or gives the connection up."""

        async def swallow(tx: Any) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await adapter.execute(tx, "SELECT pg_sleep(10)")

        with pytest.raises((TransactionRolledBack, *BROKEN, sqlalchemy.exc.SQLAlchemyError)):
            await self.handle(adapter, db, KEY, "1", then=swallow)
        assert (adapter.orders(), adapter.keys()) == ([], [])
        await self.handle(adapter, db, KEY, "1")

    async def test_a_deferred_constraint_fails_at_the_commit(self, adapter: PostgresAdapter, db: Any) -> None:
        """The server's error comes through, and nothing is there."""
        adapter.run("CREATE TABLE lines (id text REFERENCES orders DEFERRABLE INITIALLY DEFERRED)")

        async def insert(tx: Any) -> None:
            await adapter.execute(tx, "INSERT INTO lines VALUES ('none')")

        with pytest.raises(BROKEN, match="foreign key"):
            await self.handle(adapter, db, KEY, "1", then=insert)
        assert (adapter.orders(), adapter.keys()) == ([], [])

    async def test_a_serialization_failure_at_the_commit(self, adapter: PostgresAdapter) -> None:
        """One of two that contradict each other fails, and leaves nothing."""
        role = f'postroom IN DATABASE "{adapter.tenant.name}"'
        adapter.run(f"ALTER ROLE {role} SET default_transaction_isolation = 'serializable'")
        adapter.run("CREATE TABLE totals (n int); INSERT INTO totals VALUES (0)")
        both = asyncio.Barrier(2)
        async with adapter.provider()("a") as db:

            async def skew(tx: Any) -> None:
                await adapter.execute(tx, "SELECT count(*) FROM totals")
                await both.wait()
                await adapter.execute(tx, "INSERT INTO totals SELECT count(*) FROM totals")
                await both.wait()

            work = (self.handle(adapter, db, MessageKey("orders", id_), id_, then=skew) for id_ in "12")
            outcomes = await asyncio.gather(*work, return_exceptions=True)
        failed = [outcome for outcome in outcomes if outcome is not None]
        assert len(failed) == 1
        assert isinstance(failed[0], BROKEN)
        assert "serialize" in str(failed[0])
        assert adapter.orders() == adapter.keys() == [id_ for id_, out in zip("12", outcomes, strict=True) if not out]

    @pytest.mark.parametrize(
        ("statements", "committed"),
        [
            (["COMMIT"], True),
            (["COMMIT", "BEGIN"], True),
            (["COMMIT AND CHAIN"], True),
            (["ROLLBACK"], False),
            (["ROLLBACK", "BEGIN"], False),
            (["ROLLBACK AND CHAIN"], False),
            (["PREPARE TRANSACTION 'x'"], False),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    async def test_a_block_that_ends_its_transaction_itself(
        self, adapter: PostgresAdapter, db: Any, statements: list[str], committed: bool
    ) -> None:
        """It is told, and the message is not acknowledged as done."""

        async def end(tx: Any) -> None:
            for sql in statements:
                await adapter.execute(tx, sql)

        with pytest.raises((TransactionRolledBack, *BROKEN)):
            await self.handle(adapter, db, KEY, "1", then=end)
        assert (adapter.orders(), adapter.keys()) == ((["1"], ["m-1"]) if committed else ([], []))
        await self.handle(adapter, db, OTHER, "2")
        assert "2" in adapter.orders()

    async def test_a_block_that_closes_its_connection(self, adapter: PostgresAdapter, db: Any) -> None:
        """It raises, nothing is there, and the pool makes another connection."""
        with pytest.raises(Exception, match=r"(?i)close|released"):
            await self.handle(adapter, db, KEY, "1", then=adapter.close)
        assert (adapter.orders(), adapter.keys()) == ([], [])
        await self.handle(adapter, db, KEY, "1")

    async def test_a_connection_lost_before_the_commit(self, adapter: PostgresAdapter, db: Any) -> None:
        """Nothing was done; the driver's pool replaces the connection, and the next attempt does the work."""

        async def lose(_: Any) -> None:
            adapter.run(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE state LIKE 'idle in transaction%' AND datname = current_database() "
                "AND backend_xid IS NOT NULL"  # it has written: the pool may be about to set up another
            )

        with pytest.raises(BROKEN):
            await self.handle(adapter, db, KEY, "lost", then=lose)
        assert (adapter.orders(), adapter.keys()) == ([], [])
        await self.handle(adapter, db, KEY, "1")

    async def test_the_answer_to_the_commit_is_lost(self, adapter: PostgresAdapter) -> None:
        """It was committed, and the block raises all the same: the duplicate finds the row."""
        proxy = Proxy(b"COMMIT", adapter.tenant.server.port)

        async def cut(_: Any) -> None:
            proxy.cutting = True

        async with proxy.listening(), adapter.provider(port=proxy.port)("a") as db:
            with pytest.raises(BROKEN):
                await self.handle(adapter, db, KEY, "1", then=cut)
        async with adapter.provider()("a") as db:
            with pytest.raises(AlreadyHandled):
                await self.handle(adapter, db, KEY, "2")
        assert (adapter.orders(), adapter.keys()) == (["1"], ["m-1"])

    async def test_a_killed_server_keeps_both_or_none(self, adapter: PostgresAdapter) -> None:
        """What was committed is there after its recovery, what was open is not."""
        async with adapter.provider(max_size=1)("a") as db:
            await self.handle(adapter, db, KEY, "kept")

            async def kill(_: Any) -> None:
                adapter.tenant.server.kill()

            with pytest.raises(BROKEN):
                await self.handle(adapter, db, OTHER, "lost", then=kill)
            adapter.tenant.server.restart()
            with pytest.raises(AlreadyHandled):
                await self.handle(adapter, db, KEY, "again")
            await self.handle(adapter, db, OTHER, "done")
        assert adapter.orders() == ["done", "kept"]

    async def test_no_transaction_stays_open(self, adapter: PostgresAdapter, db: Any) -> None:
        """Also when handlers are cancelled at any moment."""
        await self.test_cancelled_at_any_moment(adapter, db)
        stuck = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert adapter.run(stuck) == "0"

    async def test_a_transaction_without_a_message(self, adapter: PostgresAdapter, db: Any) -> None:
        """It commits, writes no row, and does not end well when an error was swallowed either."""
        async with db.transaction() as tx:
            await adapter.execute(tx, "INSERT INTO orders VALUES ('1')")

        async def swallow() -> None:
            async with db.transaction() as tx:
                with pytest.raises(BROKEN):
                    await adapter.execute(tx, "INSERT INTO orders VALUES ('1')")

        with pytest.raises(TransactionRolledBack):
            await swallow()
        assert (adapter.orders(), adapter.keys()) == (["1"], [])

    async def test_a_missing_table_is_found_at_opening(self, tenant: TenantDatabase) -> None:
        """It needs a migration; the error says how, and nothing of the DSN."""
        with pytest.raises(ConfigurationError, match="migrations") as missing:
            async with self.kind(tenant).provider()("a"):
                pass
        assert classify_open(missing.value) is OpenFailure.OUTAGE
        assert tenant.server.password not in str(missing.value)

    async def test_the_table_is_created_on_request(self, tenant: TenantDatabase) -> None:
        """Also by many workers at the same time."""
        adapter = self.kind(tenant)
        adapter.run("CREATE TABLE orders (id text)")

        async def use(number: int) -> None:
            async with adapter.provider(create=True)("a") as db:
                await self.handle(adapter, db, MessageKey("orders", str(number)), str(number))

        await asyncio.gather(*map(use, range(8)))
        assert adapter.keys() == list("01234567")

    async def test_the_table_may_have_another_name(self, tenant: TenantDatabase) -> None:
        """In a schema of its own, for instance."""
        adapter = self.kind(tenant)
        adapter.run("CREATE SCHEMA app; CREATE TABLE orders (id text)")
        async with adapter.provider(table="app.inbox", create=True)("a") as db:
            await self.handle(adapter, db, KEY)
            assert "app.inbox" in repr(db)
        assert adapter.keys("app.inbox") == ["m-1"]

    async def test_old_rows_are_purged(
        self, adapter: PostgresAdapter, db: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The young stay; more than fit into one transaction go as well."""
        monkeypatch.setattr("postroom.datasources._postgres_inbox.PURGED_AT_ONCE", 2)
        for number in range(7):
            await self.handle(adapter, db, MessageKey("orders", f"m-{number}"))
        adapter.run("UPDATE postroom_inbox SET handled_at = now() - interval '16 days' WHERE message_id < 'm-5'")
        assert await db.purge_inbox() == 5
        assert adapter.keys() == ["m-5", "m-6"]
        assert await db.purge_inbox() == 0
        assert await db.purge_inbox(older_than=0) == 2

    async def test_the_inbox_keeps_the_weight_and_the_check(self, adapter: PostgresAdapter) -> None:
        """A pool counts the connections, and asks one whether it is well."""
        made = adapter.provider(max_size=3)
        assert made.weight == 3
        async with made.pool() as pool, pool.lease("a") as db:
            assert made.check is not None
            assert await made.check(db)


class TestAsyncpg(PostgresSuite):
    """``asyncpg_inbox(asyncpg_pool(...))``."""

    kind = AsyncpgAdapter


class TestPsycopg(PostgresSuite):
    """``psycopg_inbox(psycopg_pool(...))``."""

    kind = PsycopgAdapter

    async def test_commit_by_the_connection_is_refused_at_once(self, adapter: PostgresAdapter, db: Any) -> None:
        """The driver forbids it within a transaction's block."""

        async def commit(tx: Any) -> None:
            await tx.commit()

        with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
            await self.handle(adapter, db, KEY, "1", then=commit)
        assert (adapter.orders(), adapter.keys()) == ([], [])


class TestPsycopgConnections(PostgresSuite):
    """``psycopg_inbox(psycopg_connections(...))``."""

    kind = PsycopgConnectionsAdapter


class TestSqlalchemy(PostgresSuite):
    """``sqlalchemy_inbox(sqlalchemy_engine(...))``, over asyncpg."""

    kind = SqlalchemyAdapter

    @pytest.mark.parametrize("how", ["commit", "rollback"])
    async def test_a_block_that_ends_the_transaction_of_its_connection(
        self, adapter: PostgresAdapter, db: Any, how: str
    ) -> None:
        """As with SQL of its own."""

        async def end(tx: Any) -> None:
            await getattr(tx, how)()

        with pytest.raises(TransactionRolledBack):
            await self.handle(adapter, db, KEY, "1", then=end)
        assert adapter.keys() == (["m-1"] if how == "commit" else [])

    async def test_autocommit_is_refused(self, adapter: PostgresAdapter) -> None:
        """Each statement would be committed by itself: the row before the effects."""
        engine = sqlalchemy_engine(Registry({"a": adapter.dsn()}), options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            async with sqlalchemy_inbox(engine)("a"):
                pass


class TestSqlalchemyPsycopg(TestSqlalchemy):
    """``sqlalchemy_inbox(sqlalchemy_engine(...))``, over psycopg."""

    kind = SqlalchemyPsycopgAdapter


class Base(DeclarativeBase):
    """The ORM's tables."""


class Order(Base):
    """An order."""

    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)


class TestSession(TestSqlalchemy):
    """``sqlalchemy_inbox(..., session=async_sessionmaker(...))``."""

    kind = SessionAdapter

    async def test_objects_are_flushed_and_committed(self, adapter: PostgresAdapter, db: Any) -> None:
        """Without a word of the handler."""

        async def add(tx: Any) -> None:
            tx.add(Order(id="1"))

        await self.handle(adapter, db, KEY, then=add)
        assert (adapter.orders(), adapter.keys()) == (["1"], ["m-1"])

    async def test_a_flush_that_fails_at_the_end(self, adapter: PostgresAdapter, db: Any) -> None:
        """Its error comes through, and nothing is there."""

        async def add(tx: Any) -> None:
            tx.add(Order(id="1"))

        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await self.handle(adapter, db, KEY, "1", then=add)
        assert (adapter.orders(), adapter.keys()) == ([], [])

    @pytest.mark.parametrize("rolls_back", [False, True])
    async def test_a_swallowed_flush(self, adapter: PostgresAdapter, db: Any, rolls_back: bool) -> None:
        """The session has rolled everything back, the row included, whether the handler asked for that or not."""

        async def add(tx: Any) -> None:
            tx.add(Order(id="1"))
            with pytest.raises(sqlalchemy.exc.IntegrityError):
                await tx.flush()
            if rolls_back:
                await tx.rollback()

        with pytest.raises(TransactionRolledBack):
            await self.handle(adapter, db, KEY, "1", then=add)
        assert (adapter.orders(), adapter.keys()) == ([], [])

    async def test_a_session_is_over_with_its_block(self, adapter: PostgresAdapter, db: Any) -> None:
        """Used behind it, it would begin a transaction of its own, which is never committed."""
        async with db.transaction_for(KEY) as tx:
            await adapter.execute(tx, "INSERT INTO orders VALUES ('1')")
        with pytest.raises(sqlalchemy.exc.InvalidRequestError, match="closed"):
            await adapter.execute(tx, "INSERT INTO orders VALUES ('2')")
        assert adapter.orders() == ["1"]


class TestSessionPsycopg(TestSession):
    """``sqlalchemy_inbox(..., session=AsyncSession)``, over psycopg."""

    kind = SessionPsycopgAdapter


@pytest.mark.parametrize("name", ["", "Inbox", "a.b.c", "inbox; DROP TABLE orders", 'in"box', "inbox "])
def test_a_table_has_a_plain_name(name: str) -> None:
    """It becomes part of SQL."""
    with pytest.raises(ConfigurationError, match="plain lower-case name"):
        postgres_inbox(name)
