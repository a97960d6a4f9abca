"""The inbox over asyncpg, against the real server: duplicates wait, and whatever happens it is all or nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from postroom import AlreadyHandled, ConfigurationError
from postroom.datasources import AsyncpgDatabase, Provider, Registry, asyncpg_inbox, asyncpg_pool, postgres_inbox
from postroom.resources.failures import OpenFailure, classify_open
from postroom.testing.postgres import HOST
from postroom.transactions import MessageKey
from support.tenant_database import TenantDatabase

pytestmark = pytest.mark.postgres
KEY = MessageKey("orders", "m-1")
BROKEN = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


def provider(tenant: TenantDatabase, *, port: int | None = None, **options: Any) -> Provider[str, AsyncpgDatabase]:
    """Provide for a registry with one tenant, ``"a"``; through a proxy if one is named."""
    dsn = tenant.dsn if port is None else tenant.dsn.replace(f":{tenant.server.port}/", f":{port}/")
    return asyncpg_inbox(asyncpg_pool(Registry({"a": dsn}), max_size=4), **options)


@pytest.fixture
def migrated(tenant: TenantDatabase) -> TenantDatabase:
    """A database with its inbox, made by a migration, and a table of orders that forbids nothing."""
    schema = postgres_inbox().schema
    tenant.server.execute(f"{schema} CREATE TABLE orders (id text)", database=tenant.name)
    return tenant


@pytest.fixture
async def db(migrated: TenantDatabase) -> AsyncIterator[AsyncpgDatabase]:
    """The tenant's open pool."""
    async with provider(migrated)("a") as opened:
        yield opened


async def _handle(db: AsyncpgDatabase, key: MessageKey, *ids: str) -> None:
    async with db.transaction_for(key) as tx:
        for id_ in ids:
            await tx.execute("INSERT INTO orders VALUES ($1)", id_)


async def _ids(db: AsyncpgDatabase) -> list[str]:
    return [row["id"] for row in await db.pool.fetch("SELECT id FROM orders ORDER BY id")]


async def _keys(db: AsyncpgDatabase) -> list[str]:
    return [row[0] for row in await db.pool.fetch("SELECT message_id FROM postroom_inbox ORDER BY 1")]


async def _someone_waits(db: AsyncpgDatabase) -> None:
    """Return when the server says that a transaction waits for another."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while not await db.pool.fetchval(waiting):
            await asyncio.sleep(0)


class TestExactlyOnce:
    """The row and the effects are one."""

    async def test_a_block_that_ends_is_committed_with_its_row(self, db: AsyncpgDatabase) -> None:
        """And a duplicate is not let in."""
        await _handle(db, KEY, "1", "2")
        with pytest.raises(AlreadyHandled):
            await _handle(db, KEY, "3")
        assert await _ids(db) == ["1", "2"]
        assert await _keys(db) == ["m-1"]
        assert db.pool.get_idle_size() == db.pool.get_size()

    async def test_a_block_that_raises_leaves_neither(self, db: AsyncpgDatabase) -> None:
        """The next attempt does the work."""

        async def fail() -> None:
            async with db.transaction_for(KEY) as tx:
                await tx.execute("INSERT INTO orders VALUES ('lost')")
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        await _handle(db, KEY, "1")
        assert await _ids(db) == ["1"]

    async def test_a_duplicate_waits_and_then_leaves(self, db: AsyncpgDatabase) -> None:
        """The unique index makes it wait until the first has committed."""
        async with db.transaction_for(KEY) as tx:
            await tx.execute("INSERT INTO orders VALUES ('first')")
            second = asyncio.create_task(_handle(db, KEY, "second"))
            await _someone_waits(db)
            assert not second.done()
        with pytest.raises(AlreadyHandled):
            await second
        assert await _ids(db) == ["first"]

    async def test_a_duplicate_does_the_work_when_the_first_rolls_back(self, db: AsyncpgDatabase) -> None:
        """It has waited for that."""
        seconds: list[asyncio.Task[None]] = []

        async def first() -> None:
            async with db.transaction_for(KEY) as tx:
                await tx.execute("INSERT INTO orders VALUES ('first')")
                seconds.append(asyncio.create_task(_handle(db, KEY, "second")))
                await _someone_waits(db)
                raise KeyError

        with pytest.raises(KeyError):
            await first()
        await seconds[0]
        assert await _ids(db) == ["second"]

    async def test_other_messages_do_not_wait(self, db: AsyncpgDatabase) -> None:
        """Nor does the same id of another queue."""
        async with db.transaction_for(KEY) as tx:
            await tx.execute("INSERT INTO orders VALUES ('1')")
            await _handle(db, MessageKey("orders", "m-2"), "2")
            await _handle(db, MessageKey("invoices", "m-1"), "3")
        assert await _ids(db) == ["1", "2", "3"]

    async def test_it_does_not_wait_for_ever(self, migrated: TenantDatabase) -> None:
        """The first may be on a machine that has no power: the second counts as failed, and its connection is good."""
        async with provider(migrated, wait=0.2)("a") as db:
            async with db.transaction_for(KEY) as tx:
                with pytest.raises(TimeoutError, match="another transaction has held the row"):
                    await _handle(db, KEY, "second")
                await tx.execute("INSERT INTO orders VALUES ('first')")
                assert await db.pool.fetchval("SELECT 1") == 1
            assert await _ids(db) == ["first"]

    async def test_twenty_at_once(self, db: AsyncpgDatabase) -> None:
        """Four connections, one of them does the work."""
        outcomes = await asyncio.gather(*(_handle(db, KEY, "1") for _ in range(20)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(AlreadyHandled) == 19
        assert await _ids(db) == ["1"]


class TestCancellation:
    """A cancelled handler leaves nothing, or all."""

    async def test_at_any_moment(self, db: AsyncpgDatabase, migrated: TenantDatabase) -> None:
        """The commit included: effects are there exactly where the row is, and no transaction stays open."""
        for number in range(60):
            task = asyncio.create_task(_handle(db, MessageKey("orders", f"{number}"), f"{number}a", f"{number}b"))
            await asyncio.wait([task], timeout=number * 0.0001)
            task.cancel()
            await asyncio.wait([task])
        await _handle(db, KEY, "m-1a", "m-1b")
        keys = await _keys(db)
        assert sorted(await _ids(db)) == sorted(f"{key}{part}" for key in keys for part in "ab")
        stuck = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert migrated.server.execute(stuck) == "0"

    async def test_while_it_waits_for_the_first(self, db: AsyncpgDatabase) -> None:
        """The first does not notice, and the connection serves the next."""
        async with db.transaction_for(KEY) as tx:
            second = asyncio.create_task(_handle(db, KEY, "second"))
            await _someone_waits(db)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            await tx.execute("INSERT INTO orders VALUES ('first')")
        assert await _ids(db) == ["first"]


class TestLostConnections:
    """Who loses the connection does not know; the next receive of the message finds out."""

    async def test_before_the_commit_nothing_is_done(self, db: AsyncpgDatabase) -> None:
        """The driver's pool replaces the connection, and the next attempt does the work."""

        async def lose() -> None:
            async with db.transaction_for(KEY) as tx:
                await tx.execute("INSERT INTO orders VALUES ('lost')")
                backend = await tx.fetchval("SELECT pg_backend_pid()")
                await db.pool.fetchval("SELECT pg_terminate_backend($1, 5000)", backend)

        with pytest.raises(BROKEN):
            await lose()
        await _handle(db, KEY, "1")
        assert await _ids(db) == ["1"]

    async def test_when_the_answer_to_the_commit_is_lost(self, migrated: TenantDatabase) -> None:
        """It was committed, and the handler fails all the same: the duplicate finds the row."""
        async with swallows_the_answer_to(b"COMMIT", migrated) as port, provider(migrated, port=port)("a") as db:
            with pytest.raises(BROKEN):
                await _handle(db, KEY, "1")
        async with provider(migrated)("a") as db:
            assert await _ids(db) == ["1"]
            with pytest.raises(AlreadyHandled):
                await _handle(db, KEY, "2")

    async def test_a_killed_server_keeps_both_or_none(self, db: AsyncpgDatabase, migrated: TenantDatabase) -> None:
        """What was committed is there after its recovery, what was open is not."""
        await _handle(db, KEY, "kept")
        other = MessageKey("orders", "m-2")

        async def lose() -> None:
            async with db.transaction_for(other) as tx:
                await tx.execute("INSERT INTO orders VALUES ('lost')")
                migrated.server.kill()

        with pytest.raises(BROKEN):
            await lose()
        migrated.server.restart()
        with pytest.raises(AlreadyHandled):
            await _handle(db, KEY, "again")
        await _handle(db, other, "done")
        assert await _ids(db) == ["done", "kept"]


@asynccontextmanager
async def swallows_the_answer_to(word: bytes, tenant: TenantDatabase) -> AsyncIterator[int]:
    """Run a proxy to the server that cuts a connection when the server answers a request with that word."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(HOST, tenant.server.port)
        asked = asyncio.Event()

        async def ask() -> None:
            while data := await client.read(65_536):
                if word in data:
                    asked.set()
                to_server.write(data)

        async def answer() -> None:
            while (data := await server.read(65_536)) and not asked.is_set():
                to_client.write(data)
            to_client.transport.abort()

        tasks.update(asyncio.create_task(each()) for each in (ask, answer))
        with suppress(OSError):
            await asyncio.gather(*tasks)
        to_server.close()
        to_client.close()

    listener = await asyncio.start_server(serve, HOST, 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class TestTheTable:
    """Who makes it, and who empties it."""

    async def test_a_missing_table_is_found_at_opening(self, tenant: TenantDatabase) -> None:
        """It is an outage until a migration makes it; the error says how, and nothing of the DSN."""
        with pytest.raises(ConfigurationError, match="migrations") as missing:
            async with provider(tenant)("a"):
                pass
        assert classify_open(missing.value) is OpenFailure.OUTAGE
        assert tenant.server.password not in str(missing.value)

    async def test_it_is_created_on_request(self, tenant: TenantDatabase) -> None:
        """Also by many workers at the same time."""

        async def use(number: int) -> int:
            async with provider(tenant, create=True)("a") as db:
                await _handle(db, MessageKey("orders", str(number)))
                return len(await _keys(db))

        assert max(await asyncio.gather(*map(use, range(8)))) == 8

    async def test_it_may_have_another_name(self, tenant: TenantDatabase) -> None:
        """In a schema of its own, for instance."""
        tenant.server.execute("CREATE SCHEMA app", database=tenant.name)
        async with provider(tenant, table="app.inbox", create=True)("a") as db:
            async with db.transaction_for(KEY):
                pass
            assert await db.pool.fetchval("SELECT count(*) FROM app.inbox") == 1
            assert "app.inbox" in repr(db)

    @pytest.mark.parametrize("name", ["", "Inbox", "a.b.c", "inbox; DROP TABLE orders", 'in"box', "inbox "])
    def test_no_other_name_is_taken(self, name: str) -> None:
        """It becomes part of SQL."""
        with pytest.raises(ConfigurationError, match="plain lower-case name"):
            postgres_inbox(name)

    async def test_old_rows_are_purged(self, db: AsyncpgDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
        """The young stay; more than fit into one transaction go as well."""
        monkeypatch.setattr("postroom.datasources._asyncpg_inbox.PURGED_AT_ONCE", 2)
        for number in range(7):
            await _handle(db, MessageKey("orders", f"m-{number}"))
        await db.pool.execute(
            "UPDATE postroom_inbox SET handled_at = now() - interval '16 days' WHERE message_id < 'm-5'"
        )
        assert await db.purge_inbox() == 5
        assert await _keys(db) == ["m-5", "m-6"]
        assert await db.purge_inbox() == 0
        assert await db.purge_inbox(older_than=0) == 2

    async def test_the_pool_keeps_its_weight_and_its_check(self, migrated: TenantDatabase) -> None:
        """It counts its connections, and asks one whether it is well."""
        made = provider(migrated)
        assert made.weight == 4
        async with made.pool() as pool, pool.lease("a") as db:
            assert made.check is not None
            assert await made.check(db)
