"""What one user of a connection leaves behind, the next one does not find: each kind of state, each adapter."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from sqlalchemy import event, text
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.pool import Pool

from postroom.datasources import (
    DataSource,
    Provider,
    Registry,
    asyncpg_pool,
    psycopg_pool,
    psycopg_sync_pool,
    sqlalchemy_engine,
    sqlalchemy_sync_engine,
)
from support.kept import is_kept
from support.tenant_database import TenantDatabase
from support.transactional_sync import InThread, Thread

pytestmark = [pytest.mark.postgres, pytest.mark.filterwarnings("ignore::asyncpg.InterfaceWarning")]


@dataclass(frozen=True)
class Driver:
    """How one adapter is opened and used: a connection in, values out."""

    name: str
    provide: Callable[..., Provider[Any, Any]]
    connect: Callable[[Any], AbstractAsyncContextManager[Any]]
    run: Callable[[Any, str], Awaitable[Any]]
    scheme: str = "postgresql"


async def _asyncpg(connection: Any, sql: str) -> Any:
    return await connection.fetchval(sql)


async def _psycopg(connection: Any, sql: str) -> Any:
    cursor = await psycopg.AsyncCursor(connection).execute(sql)
    return (await cursor.fetchone() or (None,))[0] if cursor.description else None


async def _sqlalchemy(connection: Any, sql: str) -> Any:
    result = await connection.execute(text(sql))
    return result.scalar() if result.returns_rows else None


@asynccontextmanager
async def _in_a_thread(manager: AbstractContextManager[Any]) -> AsyncGenerator[InThread]:
    thread = Thread()
    try:
        async with thread.block(manager) as connection:
            yield InThread(connection, thread)
    finally:
        thread.end()


async def _psycopg_sync(connection: Any, sql: str) -> Any:
    def run() -> Any:
        cursor = psycopg.Cursor(connection.tx).execute(sql)
        return (cursor.fetchone() or (None,))[0] if cursor.description else None

    return await connection.thread.run(run)


async def _sqlalchemy_sync(connection: Any, sql: str) -> Any:
    def run() -> Any:
        result = connection.tx.execute(text(sql))
        return result.scalar() if result.returns_rows else None

    return await connection.thread.run(run)


DRIVERS = [
    Driver("asyncpg", asyncpg_pool, lambda pool: pool.acquire(), _asyncpg),
    Driver("psycopg", psycopg_pool, lambda pool: pool.connection(), _psycopg),
    Driver("SQLAlchemy asyncpg", sqlalchemy_engine, lambda engine: engine.connect(), _sqlalchemy),
    Driver("SQLAlchemy psycopg", sqlalchemy_engine, lambda engine: engine.connect(), _sqlalchemy, "postgresql+psycopg"),
]
IN_THREADS = [
    Driver("psycopg in threads", psycopg_sync_pool, lambda pool: _in_a_thread(pool.connection()), _psycopg_sync),
    Driver(
        "SQLAlchemy in threads",
        sqlalchemy_sync_engine,
        lambda engine: _in_a_thread(engine.connect()),
        _sqlalchemy_sync,
    ),
]
"""What a thread does cannot be cancelled."""
ENDINGS = [
    *((driver, ending) for driver in DRIVERS for ending in ("success", "failure", "cancellation")),
    *((driver, ending) for driver in IN_THREADS for ending in ("success", "failure")),
]
STATES = {
    "role": ("SET ROLE other", "SELECT current_user::text"),
    "session authorization": ("SET SESSION AUTHORIZATION other", "SELECT session_user::text"),
    "both": ("SET SESSION AUTHORIZATION other; SET ROLE third", "SELECT current_user || '/' || session_user"),
    "search_path": ("SET search_path = other", "SHOW search_path"),
    "custom setting": ("SELECT set_config('app.tenant', 'acme', false)", "SELECT current_setting('app.tenant', true)"),
    "read-only": ("SET default_transaction_read_only = on", "SHOW default_transaction_read_only"),
    "isolation level": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW default_transaction_isolation",
    ),
    "statement timeout": ("SET statement_timeout = '9s'", "SHOW statement_timeout"),
    "advisory lock": ("SELECT pg_advisory_lock(7)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
    "LISTEN": ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
    "temporary table": (
        "CREATE TEMP TABLE t AS SELECT 'secret' AS s",
        "SELECT count(*) FROM pg_class WHERE relname = 't'",
    ),
    "prepared statement": (
        "PREPARE mine AS SELECT 'secret'",
        "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
    ),
    "prepared statement with an odd name": (
        'PREPARE "my ""one""" AS SELECT 1',
        "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
    ),
    "cursor": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors WHERE name = 'c'"),
    "transaction": ("BEGIN; CREATE TABLE open (n int)", "SELECT count(txid_current_if_assigned())"),
}


async def _leave_behind(driver: Driver, resource: Any, sql: str, ending: str) -> int:
    """Change the state of the only connection, end its use, and return its backend."""
    done = asyncio.Event()
    backends: list[int] = []

    async def use() -> None:
        async with driver.connect(resource) as connection:
            backends.append(await driver.run(connection, "SELECT pg_backend_pid()"))
            for statement in sql.split("; "):
                with suppress(asyncpg.InterfaceError):  # a statement that asyncpg refuses to prepare
                    await driver.run(connection, statement)
            if hasattr(connection, "commit") and not sql.startswith("BEGIN"):
                await connection.commit()
            done.set()
            if ending == "failure":
                raise KeyError
            if ending == "cancellation":
                await driver.run(connection, "SELECT pg_sleep(60)")

    task = asyncio.create_task(use())
    await asyncio.wait([task, asyncio.create_task(done.wait())], return_when=asyncio.FIRST_COMPLETED)
    if ending == "cancellation":
        await asyncio.sleep(0.02)
        task.cancel()
    await asyncio.wait([task])
    error = None if task.cancelled() else task.exception()
    if error is not None and not done.is_set():
        raise error
    return backends[0]


@pytest.mark.parametrize(("driver", "ending"), ENDINGS, ids=lambda value: getattr(value, "name", value))
async def test_nothing_is_left_for_the_next_user(driver: Driver, tenant: TenantDatabase, ending: str) -> None:
    """All kinds of state in one table; whichever way the use of the connection ended."""
    tenant.server.execute(
        "DROP ROLE IF EXISTS other, third; CREATE ROLE other; CREATE ROLE third; GRANT third TO other"
    )
    tenant.server.execute("GRANT CREATE ON SCHEMA public TO other, third", database=tenant.name)
    dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
    found: dict[str, Any] = {}
    kept = 0
    async with driver.provide(Registry({"a": dsn}), max_size=1)("a") as resource:
        for name, (sql, question) in STATES.items():
            async with driver.connect(resource) as connection:
                before = await driver.run(connection, question)
            backend = await _leave_behind(driver, resource, sql, ending)
            async with driver.connect(resource) as connection:
                after = await driver.run(connection, question)
                kept += await driver.run(connection, "SELECT pg_backend_pid()") == backend
            if after not in {before, None, ""}:
                found[name] = after
    tenant.server.execute("DROP OWNED BY other, third", database=tenant.name)
    assert found == {}
    if ending == "success":  # else nothing was tested but that connections end
        assert kept == len(STATES)


class TestFlagsOfPsycopg:
    """What psycopg keeps in the connection, and not on the server."""

    FLAGS: ClassVar = {
        "autocommit": True,
        "isolation_level": psycopg.IsolationLevel.SERIALIZABLE,
        "read_only": True,
        "deferrable": True,
    }

    @pytest.mark.parametrize("configured", [False, True])
    async def test_flags_are_what_they_were(self, tenant: TenantDatabase, configured: bool) -> None:
        """As the options and configure() made them."""

        async def configure(connection: Any) -> None:
            await connection.set_read_only(configured)

        provider = psycopg_pool(
            Registry({"a": tenant.dsn}), max_size=1, configure=configure, options={"autocommit": configured}
        )
        async with provider("a") as pool:
            async with pool.connection() as connection:
                before = {name: getattr(connection, name) for name in (*self.FLAGS, "row_factory", "prepare_threshold")}
                for name, value in self.FLAGS.items():
                    await getattr(connection, f"set_{name}")(value)
                connection.row_factory = dict_row  # type: ignore[assignment]
                connection.prepare_threshold = None
            async with pool.connection() as again:
                assert again is connection
                assert {name: getattr(again, name) for name in before} == before
                assert before["autocommit"] is before["read_only"] is configured


async def _drivers(driver: Driver, connection: Any) -> Any:
    """Return the driver's own connection."""
    if driver.name.startswith("SQLAlchemy"):
        pooled = connection.tx.connection if driver in IN_THREADS else await connection.get_raw_connection()
        return pooled.driver_connection
    return connection.tx if driver in IN_THREADS else connection


class TestWhatDriversKeepOnThisSide:
    """Callbacks, codecs and adapters: the next user of a connection may be another tenant."""

    @pytest.mark.parametrize("driver", [*DRIVERS, *IN_THREADS], ids=lambda driver: driver.name)
    async def test_callbacks_and_adapters_are_what_they_were(self, tenant: TenantDatabase, driver: Driver) -> None:
        """One user's are told nothing of the next one, and change nothing that it reads."""

        class Acmes(TextLoader):
            def load(self, _data: Any) -> str:
                return "read by acme"

        told: list[Any] = []
        dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
        async with driver.provide(Registry({"a": dsn}), max_size=1)("a") as pool:
            for turn in range(2):  # what is put back is put back each time
                async with driver.connect(pool) as connection:
                    backend = await driver.run(connection, "SELECT pg_backend_pid()")
                    raw = await _drivers(driver, connection)
                    if hasattr(raw, "pgconn"):
                        raw.add_notice_handler(told.append)
                        raw.add_notify_handler(told.append)
                        raw.adapters.register_loader("text", Acmes)
                        raw.row_factory = dict_row
                    else:
                        raw.add_query_logger(told.append)
                        raw.add_log_listener(lambda _, message: told.append(message))
                async with driver.connect(pool) as connection:
                    told.clear()
                    await driver.run(connection, "DO $$ BEGIN RAISE NOTICE 'secret'; END $$")
                    await driver.run(connection, "LISTEN news")
                    await driver.run(connection, "NOTIFY news, 'secret'")
                    assert await driver.run(connection, "SELECT 'x'::text") == "x"
                    assert await driver.run(connection, "SELECT pg_backend_pid()") == backend, turn
                    assert told == []

    @pytest.mark.parametrize("driver", [*DRIVERS, *IN_THREADS], ids=lambda driver: driver.name)
    async def test_notes_and_attributes_are_what_they_were(self, tenant: TenantDatabase, driver: Driver) -> None:
        """What one user writes down at a connection is not read by the next one."""

        async def notes(connection: Any, raw: Any) -> list[dict[str, Any]]:
            if not driver.name.startswith("SQLAlchemy"):
                return [vars(raw)]
            if driver in IN_THREADS:
                return [vars(raw), connection.tx.info, connection.tx.connection.record_info]
            return [vars(raw), connection.info, (await connection.get_raw_connection()).record_info]

        dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
        async with driver.provide(Registry({"a": dsn}), max_size=1)("a") as pool:
            for turn in range(3):  # what is put back is put back each time
                async with driver.connect(pool) as connection:
                    backend = await driver.run(connection, "SELECT pg_backend_pid()")
                    raw = await _drivers(driver, connection)
                    for each in await notes(connection, raw):
                        assert each.setdefault("tenant", turn) == turn
                        if turn and each is not vars(raw):
                            each.clear()
                            each["tenant"] = turn
                async with driver.connect(pool) as connection:
                    assert await driver.run(connection, "SELECT pg_backend_pid()") == backend

    async def test_notes_of_a_listener_of_connect_stay(self, tenant: TenantDatabase) -> None:
        """They belong to the connection, and are there for every user of it."""

        def note(_connection: Any, record: Any) -> None:
            record.info["made"] = "here"

        async with sqlalchemy_engine(Registry({"a": tenant.dsn}), max_size=1)("a") as engine:
            event.listen(engine.sync_engine, "connect", note)
            async with engine.connect() as connection:
                await connection.invalidate()  # the engine's first connection was made before there was a listener
            for _ in range(2):
                async with engine.connect() as connection:
                    assert connection.info["made"] == "here"
                    connection.info.clear()

    @pytest.mark.parametrize("driver", [DRIVERS[2], IN_THREADS[1]], ids=lambda driver: driver.name)
    async def test_notes_of_a_listener_of_checkout_are_those_of_the_use(
        self, tenant: TenantDatabase, driver: Driver
    ) -> None:
        """Also those of one that listens to every pool, which is told first."""
        uses: list[int] = []
        found: list[int] = []

        def begin(_connection: Any, record: Any, _proxy: Any) -> None:
            uses.append(len(uses))
            record.info["use"] = record.record_info["use"] = uses[-1]

        def end(_connection: Any, record: Any) -> None:
            found.extend({record.info["use"], record.record_info["use"]})

        event.listen(Pool, "checkout", begin)
        event.listen(Pool, "checkin", end)
        try:
            dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
            async with driver.provide(Registry({"a": dsn}), max_size=1)("a") as pool:
                for _ in range(3):
                    async with driver.connect(pool) as connection:
                        await driver.run(connection, "SELECT 1")
        finally:
            event.remove(Pool, "checkout", begin)
            event.remove(Pool, "checkin", end)
        assert found == uses

    @pytest.mark.parametrize("driver", [DRIVERS[0], DRIVERS[2]], ids=lambda driver: driver.name)
    async def test_a_connection_with_other_codecs_is_not_used_again(
        self, tenant: TenantDatabase, driver: Driver, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Asyncpg cannot tell what they were: the next user gets a new connection. The log says so once."""
        dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
        backends: set[int] = set()
        async with driver.provide(Registry({"a": dsn}), max_size=1)("a") as pool:
            for _ in range(3):
                async with driver.connect(pool) as connection:
                    assert await driver.run(connection, "SELECT '[1]'::json") != "read by acme"
                    backends.add(await driver.run(connection, "SELECT pg_backend_pid()"))
                    raw = await _drivers(driver, connection)
                    await raw.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=lambda _: "read by acme")
        assert len(backends) == 3
        assert sum("has changed a type codec" in line for line in caplog.messages) == 1

    async def test_codecs_that_setup_sets_before_each_use_end_no_connection(
        self, tenant: TenantDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nor those of ``reset``. They are there for every user."""

        async def setup(connection: Any) -> None:
            await connection.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=lambda _: "read by setup")

        provider = asyncpg_pool(Registry({"a": tenant.dsn}), max_size=1, options={"setup": setup, "reset": setup})
        async with provider("a") as pool:
            backends = {await pool.fetchval("SELECT pg_backend_pid()") for _ in range(3)}
            assert await pool.fetchval("SELECT '[1]'::json") == "read by setup"
        assert len(backends) == 1
        assert "codec" not in caplog.text

    @pytest.mark.parametrize("driver", [*DRIVERS, *IN_THREADS], ids=lambda driver: driver.name)
    @pytest.mark.parametrize("sql", ["DISCARD ALL", "discard  all ;", "DEALLOCATE ALL", "Deallocate Prepare All"])
    async def test_statements_that_the_server_forgot_are_no_trap(
        self, tenant: TenantDatabase, driver: Driver, sql: str
    ) -> None:
        """The driver believes that they are still prepared, and the next user would fail."""
        dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
        autocommit = {"isolation_level": "AUTOCOMMIT"} if "SQLAlchemy" in driver.name else {"autocommit": True}
        options = {} if driver.name == "asyncpg" else autocommit
        async with driver.provide(Registry({"a": dsn}), max_size=1, options=options)("a") as pool:
            async with driver.connect(pool) as connection:
                for _ in range(7):  # psycopg prepares what it has run five times
                    assert await driver.run(connection, "SELECT 1 + 1") == 2
                await driver.run(connection, sql)
            async with driver.connect(pool) as connection:
                assert await driver.run(connection, "SELECT 1 + 1") == 2
                raw = await _drivers(driver, connection)
                if hasattr(raw, "fetchval"):  # asyncpg sends what has no parameters in another way
                    await raw.execute(sql)
            async with driver.connect(pool) as connection:
                assert await driver.run(connection, "SELECT 1 + 1") == 2

    async def test_what_init_hangs_in_stays(self, tenant: TenantDatabase) -> None:
        """On the same connection."""
        told: list[Any] = []

        async def init(connection: Any) -> None:
            connection.add_query_logger(told.append)
            await connection.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=lambda _: "read by init")

        async with asyncpg_pool(Registry({"a": tenant.dsn}), max_size=1, init=init)("a") as pool:
            backends = {await pool.fetchval("SELECT pg_backend_pid()") for _ in range(2)}
            told.clear()
            assert await pool.fetchval("SELECT '[1]'::json") == "read by init"
            assert len(backends) == 1
            assert [record.query for record in told][:1] == ["SELECT '[1]'::json"]


@pytest.mark.parametrize("driver", [*DRIVERS, *IN_THREADS], ids=lambda driver: driver.name)
async def test_a_connection_that_died_keeps_no_other_from_its_user(driver: Driver, tenant: TenantDatabase) -> None:
    """It has no answer for the reset: it is ended after connect_timeout, and the others go on meanwhile."""
    dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
    provider = driver.provide(Registry({"a": dsn}), max_size=2, connect_timeout=1.0, acquire_timeout=8.0)
    frozen: list[int] = []
    try:
        async with asyncio.timeout(20), provider("a") as pool:
            with suppress(TimeoutError):  # asyncpg's pool tells who returns it
                async with driver.connect(pool) as connection:
                    frozen.append(await driver.run(connection, "SELECT pg_backend_pid()"))
                    if hasattr(connection, "commit"):
                        await connection.commit()
                    elif driver in IN_THREADS:
                        await connection.thread.run(connection.tx.commit)
                    os.kill(frozen[0], signal.SIGSTOP)
            async with driver.connect(pool) as connection, driver.connect(pool) as other:
                assert await driver.run(connection, "SELECT 1") == await driver.run(other, "SELECT 1") == 1
    finally:
        for backend in frozen:
            os.kill(backend, signal.SIGCONT)


@pytest.mark.parametrize("driver", [*DRIVERS, *IN_THREADS], ids=lambda driver: driver.name)
async def test_a_statement_that_was_prepared_before_a_migration_fails_once(
    driver: Driver, tenant: TenantDatabase
) -> None:
    """By itself psycopg prepares again after a rollback only, and in autocommit there is none."""
    options: dict[str, Any] = {} if driver.name == "asyncpg" else {"autocommit": True}
    if "SQLAlchemy" in driver.name:
        options = {"isolation_level": "AUTOCOMMIT"}
    tenant.server.execute("CREATE TABLE orders (id int)", database=tenant.name)
    provider = driver.provide(
        Registry({"a": tenant.dsn.replace("postgresql", driver.scheme, 1)}), max_size=1, options=options
    )

    async def use(resource: Any) -> None:
        async with driver.connect(resource) as connection:
            await driver.run(connection, "SELECT * FROM orders")

    async with provider("a") as resource:
        for _ in range(7):  # psycopg prepares what comes for the sixth time
            await use(resource)
        tenant.server.execute("ALTER TABLE orders ADD COLUMN amount int", database=tenant.name)
        with suppress(psycopg.errors.FeatureNotSupported, NotSupportedError):
            await use(resource)
        await use(resource)


async def test_a_connection_of_the_users_own_function_is_reset(tenant: TenantDatabase) -> None:
    """SQLAlchemy's ``async_creator_fn`` makes what it likes."""
    driver = DRIVERS[2]
    options = {"connect_args": {"async_creator_fn": asyncpg.connect}}
    async with driver.provide(Registry({"a": tenant.dsn}), max_size=1, options=options)("a") as engine:
        async with driver.connect(engine) as connection:
            await driver.run(connection, "SET statement_timeout = '9s'")
            await connection.commit()
        async with driver.connect(engine) as connection:
            assert await driver.run(connection, "SHOW statement_timeout") == "0"


async def test_a_role_that_the_database_gives_comes_back(tenant: TenantDatabase) -> None:
    """The next user is who the registry says: the role of the connection's beginning, and not the login's own."""
    tenant.server.execute(
        "DROP ROLE IF EXISTS app, app_role; CREATE ROLE app LOGIN PASSWORD 'p'; CREATE ROLE app_role; "
        "GRANT app_role TO app; ALTER ROLE app SET role = 'app_role'"
    )
    dsn = tenant.dsn.replace(f"postroom:{tenant.server.password}", "app:p")
    for driver in [*DRIVERS, *IN_THREADS]:
        source = DataSource(dsn.replace("postgresql", driver.scheme, 1), user="app_role")
        async with driver.provide(Registry({"a": source}), max_size=1)("a") as pool:
            async with driver.connect(pool) as connection:
                await driver.run(connection, "SET ROLE none")
            async with driver.connect(pool) as connection:
                assert await driver.run(connection, "SELECT current_user::text") == "app_role"


async def test_without_reset_nothing_is_asked_of_the_server(tenant: TenantDatabase) -> None:
    """Behind a pooler that pins a session when a setting is touched, the reset costs more than it is worth."""
    for driver in [*DRIVERS, *IN_THREADS]:
        dsn = tenant.dsn.replace("postgresql", driver.scheme, 1)
        async with driver.provide(Registry({"a": dsn}), max_size=1, reset=False)("a") as resource:
            async with driver.connect(resource) as connection:
                await driver.run(connection, "SELECT set_config('app.tenant', 'acme', false)")
                if hasattr(connection, "commit"):
                    await connection.commit()
            async with driver.connect(resource) as connection:
                assert await driver.run(connection, "SELECT current_setting('app.tenant', true)") == "acme"


async def test_a_reset_that_has_ended_keeps_no_message(tenant: TenantDatabase) -> None:
    """SQLAlchemy resets a connection in the task of its last user."""
    async with sqlalchemy_engine(Registry({"a": tenant.dsn}), max_size=1, connect_timeout=600)("a") as engine:

        async def work() -> None:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

        assert not await is_kept(work)
