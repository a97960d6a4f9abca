"""What plain ``def`` handlers are promised: the suite of ``test_transactional``, each block in a thread."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc

from integration.datasources import test_transactional as suite
from integration.datasources.test_transactional import BROKEN, KEY, OTHER, ready
from postroom import AlreadyHandled, ConfigurationError
from postroom.datasources import Registry, sqlalchemy_sync_engine, sqlalchemy_sync_inbox
from postroom.transactions import TransactionRolledBack
from support.tenant_database import TenantDatabase
from support.transactional import Adapter, PostgresAdapter
from support.transactional_sync import (
    PsycopgSyncAdapter,
    SessionSyncAdapter,
    SqlalchemySyncAdapter,
    SqliteSyncAdapter,
)


class TestSqliteSync(suite.TestSqlite):
    """A file of SQLite, from threads."""

    @pytest.fixture
    async def adapter(self, tmp_path: Path) -> Adapter:
        """Return a file that does not exist yet."""
        return SqliteSyncAdapter(tmp_path / "a.sqlite3")


class SyncSuite(suite.PostgresSuite):
    """A thread cannot be cancelled: who cancels its handler waits for it, and how the block ended counts."""

    async def test_a_cancelled_duplicate_does_not_disturb_the_first(self, adapter: PostgresAdapter, db: Any) -> None:
        """It goes on waiting in its thread, and is told so when the first has committed."""
        seconds: list[asyncio.Task[None]] = []

        async def cancelled(_: Any) -> None:
            seconds.append(asyncio.create_task(self.handle(adapter, db, KEY, "second")))
            await adapter.someone_waits()
            seconds[0].cancel()

        await self.handle(adapter, db, KEY, "first", then=cancelled)
        with pytest.raises(AlreadyHandled):
            await seconds[0]
        assert adapter.orders() == ["first"]

    async def test_a_swallowed_time_limit_of_the_handler(self, adapter: PostgresAdapter, db: Any) -> None:
        """Here that is the server's: the thread itself has none."""
        await self.test_a_swallowed_statement_timeout(adapter, db)

    async def test_the_blocks_own_lock_timeout_is_what_it_was(self, adapter: PostgresAdapter) -> None:
        """The wait for a duplicate has another one, and gives it back."""
        role = f'postroom IN DATABASE "{adapter.tenant.name}"'
        adapter.run(f"ALTER ROLE {role} SET lock_timeout = '7s'; CREATE TABLE seen (setting text)")
        async with adapter.provider(wait=0.2)("a") as db:

            async def look(tx: Any) -> None:
                await adapter.execute(tx, "INSERT INTO seen SELECT current_setting('lock_timeout')")

            await self.handle(adapter, db, KEY, "1", then=look)
        assert adapter.run("SELECT setting FROM seen") == "7s"

    async def test_closing_ends_what_a_thread_still_uses(
        self, tenant: TenantDatabase, adapter: PostgresAdapter
    ) -> None:
        """A handler that hangs gets an error, nothing of it is there, and no connection is left."""
        hanging: list[asyncio.Task[None]] = []
        async with adapter.provider()("a") as db:

            async def hang(tx: Any) -> None:
                await adapter.execute(tx, "SELECT pg_sleep(600)")

            hanging.append(asyncio.create_task(self.handle(adapter, db, KEY, "1", then=hang)))
            async with asyncio.timeout(10):
                while await asyncio.to_thread(adapter.run, _SLEEPS) != "1":
                    await asyncio.sleep(0)
        with pytest.raises(BROKEN):
            await hanging[0]
        assert (adapter.orders(), adapter.keys()) == ([], [])
        tenant.wait_for_backends(0)


_SLEEPS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


class TestPsycopgSync(SyncSuite):
    """``psycopg_sync_inbox(psycopg_sync_pool(...))``."""

    kind = PsycopgSyncAdapter


class OfSqlalchemy(suite.TransactionalSuite):
    """What SQLAlchemy brings along."""

    aborts = True

    @pytest.mark.parametrize("how", ["commit", "rollback"])
    async def test_a_block_that_ends_the_transaction_of_its_connection(
        self, adapter: PostgresAdapter, db: Any, how: str
    ) -> None:
        """As with SQL of its own."""

        async def end(tx: Any) -> None:
            await tx.thread.run(getattr(tx.tx, how))

        with pytest.raises(TransactionRolledBack):
            await self.handle(adapter, db, KEY, "1", then=end)
        assert adapter.keys() == (["m-1"] if how == "commit" else [])

    async def test_autocommit_is_refused(self, adapter: PostgresAdapter) -> None:
        """Each statement would be committed by itself: the row before the effects."""
        engine = sqlalchemy_sync_engine(Registry({"a": adapter.dsn()}), options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            async with sqlalchemy_sync_inbox(engine)("a"):
                pass


class TestSqlalchemySync(OfSqlalchemy):
    """``sqlalchemy_sync_inbox(sqlalchemy_sync_engine(...))``: what its session shares with it is tested there."""

    pytestmark = pytest.mark.postgres

    @pytest.fixture
    async def adapter(self, tenant: TenantDatabase) -> Adapter:
        """Return a database with its inbox."""
        return ready(SqlalchemySyncAdapter, tenant)


class TestSessionSync(SyncSuite, OfSqlalchemy):
    """``sqlalchemy_sync_inbox(..., session=sessionmaker(...))``."""

    kind = SessionSyncAdapter

    async def test_objects_are_flushed_and_committed(self, adapter: PostgresAdapter, db: Any) -> None:
        """Without a word of the handler."""

        async def add(tx: Any) -> None:
            await tx.thread.run(tx.tx.add, suite.Order(id="1"))

        await self.handle(adapter, db, KEY, then=add)
        assert (adapter.orders(), adapter.keys()) == (["1"], ["m-1"])

    async def test_a_session_is_over_with_its_block(self, adapter: PostgresAdapter, db: Any) -> None:
        """Used behind it, it would begin a transaction of its own, which is never committed."""
        sessions: list[Any] = []

        async def keep(tx: Any) -> None:
            sessions.append(tx.tx)

        await self.handle(adapter, db, KEY, "1", then=keep)
        with pytest.raises(sqlalchemy.exc.InvalidRequestError, match="closed"):
            await asyncio.to_thread(sessions[0].execute, sqlalchemy.text("INSERT INTO orders VALUES ('2')"))
        assert adapter.orders() == ["1"]

    async def test_a_flush_that_fails_at_the_end(self, adapter: PostgresAdapter, db: Any) -> None:
        """Its error comes through, and nothing is there."""

        async def add(tx: Any) -> None:
            await tx.thread.run(tx.tx.add, suite.Order(id="1"))

        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await self.handle(adapter, db, KEY, "1", then=add)
        assert (adapter.orders(), adapter.keys()) == ([], [])

    @pytest.mark.parametrize("rolls_back", [False, True])
    async def test_a_swallowed_flush(self, adapter: PostgresAdapter, db: Any, rolls_back: bool) -> None:
        """The session has rolled everything back, the row included, whether the handler asked for that or not."""

        async def add(tx: Any) -> None:
            await tx.thread.run(tx.tx.add, suite.Order(id="1"))
            with pytest.raises(sqlalchemy.exc.IntegrityError):
                await tx.thread.run(tx.tx.flush)
            if rolls_back:
                await tx.thread.run(tx.tx.rollback)

        with pytest.raises(TransactionRolledBack):
            await self.handle(adapter, db, KEY, "1", then=add)
        assert (adapter.orders(), adapter.keys()) == ([], [])
        await self.handle(adapter, db, OTHER, "2")
