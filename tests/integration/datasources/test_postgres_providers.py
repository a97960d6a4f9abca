"""What every PostgreSQL provider promises, whatever the driver: one suite, run by each of them."""

import asyncio
import logging
import secrets
import socket
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import anyio
import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy.exc

from postroom.datasources import (
    DataSource,
    Provider,
    Registry,
    UnknownTenant,
    WrongDatabase,
    sqlalchemy_engine,
)
from postroom.datasources._server import Server
from postroom.errors import ClosedError, ConfigurationError
from postroom.resources.failures import OpenFailure, classify_open, is_outage, sqlstate_of
from support.drivers import DRIVERS, Connection, Driver
from support.tenant_database import CLIENT, TenantDatabase

pytestmark = pytest.mark.postgres
BROKEN = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asyncpg 0.30, for a connection that broke
    psycopg.Error,
    sqlalchemy.exc.DBAPIError,
    OSError,
)
CLOSED = (asyncpg.InterfaceError, psycopg_pool.PoolClosed, ClosedError)


_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"


@pytest.fixture(params=DRIVERS, ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest) -> Driver:
    """One driver after the other."""
    assert isinstance(request.param, Driver)
    return request.param


async def _open(provider: Provider[str, Any], context: str = "a") -> None:
    async with provider(context):
        pass


class TestOpening:
    """Opening a tenant's resources."""

    async def test_a_slash_in_a_password_is_no_other_database(self, driver: Driver, tenant: TenantDatabase) -> None:
        """SQLAlchemy reads it; the canary must not take the rest of the password for the database's name."""
        if driver.provide is not sqlalchemy_engine:
            pytest.skip("the driver refuses it")
        role = f"slash{secrets.token_hex(4)}"
        tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'a/b'")
        dsn = tenant.dsn.replace(f"postroom:{tenant.server.password}", f"{role}:a/b")
        async with driver.provider(DataSource(dsn))("a") as engine, driver.connect(engine) as connection:
            assert await connection.value("SELECT current_user") == role

    async def test_the_handler_reaches_its_own_database(self, driver: Driver, tenant: TenantDatabase) -> None:
        """And nothing of it is open afterwards."""
        async with driver.provider(tenant)("a") as resource, driver.connect(resource) as connection:
            assert await connection.value("SELECT current_database()") == tenant.name
        tenant.wait_for_backends(0)

    async def test_an_unknown_tenant_is_permanent_and_connects_nowhere(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """The registry decides who exists."""
        with pytest.raises(UnknownTenant) as unknown:
            await _open(driver.provider(tenant), "mallory")
        assert classify_open(unknown.value) is OpenFailure.UNKNOWN_TENANT

    async def test_a_wrong_password_is_an_outage(self, driver: Driver, tenant: TenantDatabase) -> None:
        """At once, with its SQLSTATE: not a time-out, and not a secret in the text."""
        source = DataSource(tenant.server.dsn(tenant.name, password="wrong-secret"))
        with pytest.raises(BROKEN) as refused:
            await asyncio.wait_for(_open(driver.provider(source)), 3)
        assert classify_open(refused.value) is OpenFailure.OUTAGE
        assert "secret" not in str(refused.value)
        tenant.wait_for_backends(0)

    async def test_a_missing_database_is_an_outage(self, driver: Driver, tenant: TenantDatabase) -> None:
        """The registry names a database that does not exist."""
        with pytest.raises(BROKEN) as refused:
            await _open(driver.provider(DataSource(tenant.server.dsn("it does not exist"))))
        assert classify_open(refused.value) is OpenFailure.OUTAGE
        states = [sqlstate_of(error) for error in (refused.value, refused.value.__cause__) if error is not None]
        assert "3D000" in states

    async def test_a_refused_connection_is_an_outage(self, driver: Driver, tenant: TenantDatabase) -> None:
        """A server that is down may come back."""
        tenant.server.kill()
        with pytest.raises(BROKEN) as refused:
            await _open(driver.provider(DataSource(tenant.dsn)))
        assert classify_open(refused.value) is OpenFailure.OUTAGE

    async def test_a_black_hole_is_left_after_the_connect_timeout(self, driver: Driver, tenant: TenantDatabase) -> None:
        """The server accepts and says nothing: opening is bounded, and it is an outage."""
        tenant.server.freeze()
        with pytest.raises((TimeoutError, *BROKEN)) as refused:
            await asyncio.wait_for(_open(driver.provider(tenant, connect_timeout=0.2)), 3)
        assert classify_open(refused.value) is OpenFailure.OUTAGE
        place = f"127.0.0.1:{tenant.server.port}/{tenant.name}"
        assert str(refused.value) == f"no connection to {place} was made within 0.2 s (connect_timeout=)"

    @pytest.mark.parametrize("driver", [DRIVERS[0], DRIVERS[3]], ids=lambda driver: driver.name)
    async def test_a_silent_host_leaves_time_for_the_next_one(self, driver: Driver, tenant: TenantDatabase) -> None:
        """As a DSN has them for a fail-over. Over psycopg the share is two seconds: see the unit tests."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            hosts = f"127.0.0.1:{silent.getsockname()[1]}", f"127.0.0.1:{tenant.server.port}"
            user = f"postroom:{tenant.server.password}"
            dsn = f"postgresql://{user}@{','.join(hosts)}/{tenant.name}"
            if driver.name != "asyncpg":  # as SQLAlchemy's URLs have them
                dsn = f"postgresql://{user}@/{tenant.name}?" + "&".join(f"host={host}" for host in hosts)
            await _open(driver.provider(DataSource(dsn), connect_timeout=1.0))

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://app:top-secret@[db/a",
            "app top-secret db",
            "postgresql://app:secret/secret@db/a",
            "postgresql://app:top@secret@127.0.0.1:1/a",
            "postgresql://app:secret\u2100@127.0.0.1:1/a",
            "postgresql://app:secret#secret@127.0.0.1:1/a",
            "postgresql://app:secret?secret@127.0.0.1:1/a",
        ],
    )
    async def test_a_dsn_that_is_none_is_not_shown(self, driver: Driver, dsn: str) -> None:
        """Drivers quote what they cannot read; a password may stand in it."""
        with pytest.raises((ConfigurationError, ValueError, asyncpg.InterfaceError, OSError)) as refused:
            await _open(driver.provide(Registry({"a": dsn})))
        shown = f"{refused.value!r}{refused.value.__cause__!r}{refused.value.__context__!r}"
        assert "secret" not in shown

    async def test_parameters_of_a_dsn_mean_the_same_with_every_driver(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """Those that libpq's URLs usually have: a registry serves several drivers."""
        parameters = "sslmode=disable&sslrootcert=/certs/rds.pem&application_name=shop&options=-csearch_path%3Dours"
        source = DataSource(f"{tenant.dsn}?{parameters}")
        async with driver.provider(source)("a") as resource, driver.connect(resource) as connection:
            assert await connection.value("SELECT current_setting('application_name')") == "shop"
            assert await connection.value("SHOW search_path") == "ours"

    async def test_a_database_without_an_encoding_is_no_other_one(self, driver: Driver, tenant: TenantDatabase) -> None:
        """From such a one psycopg returns bytes: the name of the database, too."""
        if driver.name == "SQLAlchemy psycopg":
            pytest.skip("SQLAlchemy cannot read the server's version then")
        name = f"ascii{secrets.token_hex(4)}"
        tenant.server.execute(
            f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        source = DataSource(tenant.server.dsn(name))
        async with driver.provider(source)("a") as resource, driver.connect(resource) as connection:
            assert await connection.value("SELECT 1") == 1
        tenant.server.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def test_what_a_password_function_says_is_in_no_line_of_ours(
        self, driver: Driver, tenant: TenantDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A library below may log its error as it is, under its own name."""

        def password() -> str:
            raise RuntimeError("refused token=top-secret")

        with caplog.at_level(logging.DEBUG), pytest.raises(RuntimeError):
            await _open(driver.provider(DataSource(tenant.dsn, password=password)))
        ours = [record for record in caplog.records if record.name.startswith("postroom")]
        assert not [record for record in ours if "top-secret" in record.getMessage()]


class TestCanary:
    """The connection must lead where the registry says."""

    async def test_another_database_is_refused(self, driver: Driver, tenant: TenantDatabase) -> None:
        """As if a pooler had mixed up two tenants: an outage, and nothing stays open."""
        with pytest.raises(WrongDatabase) as wrong:
            await _open(driver.provider(DataSource(tenant.dsn, database="tenant-b")))
        assert classify_open(wrong.value) is OpenFailure.OUTAGE
        tenant.wait_for_backends(0)

    async def test_another_user_is_refused(self, driver: Driver, tenant: TenantDatabase) -> None:
        """A role setting may turn one user into another."""
        with pytest.raises(WrongDatabase, match="user 'postroom'"):
            await _open(driver.provider(DataSource(tenant.dsn, user="somebody")))

    async def test_it_can_be_kept_silent(self, driver: Driver, tenant: TenantDatabase) -> None:
        """For poolers with names of their own for databases."""
        await _open(driver.provider(DataSource(tenant.dsn, database="an alias"), canary=False))


class TestCredentials:
    """Passwords that change while the tenant is served."""

    async def test_the_password_is_asked_for_each_connection(self, driver: Driver, tenant: TenantDatabase) -> None:
        """After a rotation the next connection uses the new one; the resource needs not be opened again."""
        current = [tenant.server.password]
        asked = []

        async def password() -> str:
            await asyncio.sleep(0)
            asked.append(current[0])
            return current[0]

        role = f"app{secrets.token_hex(4)}"
        tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
        current[0] = "first"
        dsn = tenant.dsn.replace(f"postroom:{tenant.server.password}", role)
        async with driver.provider(DataSource(dsn, password=password), max_size=2)("a") as resource:
            async with driver.connect(resource) as connection:
                assert await connection.value("SELECT current_user") == role
            tenant.server.execute(f"ALTER ROLE {role} PASSWORD 'second'")
            current[0] = "second"
            tenant.server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
            tenant.wait_for_backends(0)
            assert await _value_after_a_break(driver, resource) == 1
        assert asked[0] == "first"
        assert asked[-1] == "second"


class TestCauses:
    """What went wrong can be read from what the driver raises."""

    async def test_a_full_server_is_told_by_its_sqlstate(self, driver: Driver, tenant: TenantDatabase) -> None:
        """53300, wherever in the chain of causes: it is an outage, and not the message's fault."""
        role = f"app{secrets.token_hex(4)}"
        tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p' CONNECTION LIMIT 1")
        source = DataSource(tenant.dsn.replace(f"postroom:{tenant.server.password}", f"{role}:p"))

        async def two(resource: object) -> None:
            async with driver.connect(resource) as first:
                await first.value("SELECT 1")
                async with driver.connect(resource) as second:
                    await second.value("SELECT 1")

        async with driver.provider(source, max_size=2, acquire_timeout=1.0)("a") as resource:
            with pytest.raises((psycopg_pool.PoolTimeout, *BROKEN)) as refused:
                await two(resource)
            states: list[str | None] = []
            error: BaseException | None = refused.value
            while error is not None:
                states += [sqlstate_of(error), sqlstate_of(getattr(error, "orig", None) or error)]
                error = error.__cause__
            assert "53300" in states
            assert "p@" not in f"{refused.value!r}{refused.value.__cause__!r}"
            async with driver.connect(resource) as alone:
                assert await alone.value("SELECT 1") == 1

    async def test_on_a_full_server_callers_wait_for_the_connections_that_there_are(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """As if the pool had no more than these; nothing fails because other programs hold the rest."""
        role = f"app{secrets.token_hex(4)}"
        tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p' CONNECTION LIMIT 1")
        source = DataSource(tenant.dsn.replace(f"postroom:{tenant.server.password}", f"{role}:p"))

        async def use(resource: object) -> object:
            async with driver.connect(resource) as connection:
                return await connection.value("SELECT 1 FROM pg_sleep(0.01)")

        async with driver.provider(source, max_size=3, acquire_timeout=60.0)("a") as resource:
            assert await asyncio.gather(*(use(resource) for _ in range(6))) == [1] * 6

    async def test_waiting_for_a_connection_is_bounded_and_told(
        self, driver: Driver, tenant: TenantDatabase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler that takes a second connection while it holds the last one fails; the log names the tenant."""
        monkeypatch.setattr("postroom.datasources._waiting.SAID_AFTER", 0.05)

        async def two(resource: object) -> None:
            async with driver.connect(resource) as first:
                await first.value("SELECT 1")
                async with driver.connect(resource) as second:
                    await second.value("SELECT 1")

        async with driver.provider(tenant, max_size=1, acquire_timeout=0.2)("a") as resource:
            with pytest.raises((TimeoutError, psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)):
                await asyncio.wait_for(two(resource), 5)
            said = [line for line in caplog.messages if "connections are in use" in line]
            assert [line[:9] for line in said] == ["Tenant a:"]
            async with driver.connect(resource) as alone:  # on a busy machine it waits, and is told, again
                assert await alone.value("SELECT 1") == 1


class TestLimits:
    """Connections are what is scarce."""

    async def test_never_more_connections_than_the_weight(self, driver: Driver, tenant: TenantDatabase) -> None:
        """As the server counts them, with more users than connections."""
        provider = driver.provider(tenant, max_size=2)
        most = 0
        async with provider("a") as resource:

            async def use() -> None:
                nonlocal most
                async with driver.connect(resource) as connection:
                    sql = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{tenant.name}' AND {CLIENT}"
                    most = max(most, int(await connection.value(sql)))

            await asyncio.gather(*(use() for _ in range(20)))
        assert provider.weight == 2
        assert 1 <= most <= 2


class TestReturning:
    """What the last user of a connection did is not the next one's business."""

    @pytest.mark.parametrize("setting", ["search_path", "statement_timeout"])
    async def test_session_settings_are_forgotten(self, driver: Driver, tenant: TenantDatabase, setting: str) -> None:
        """The drivers' pools themselves keep them."""
        async with driver.provider(tenant, max_size=1)("a") as resource:
            async with driver.connect(resource) as connection:
                before = await connection.value(f"SELECT current_setting('{setting}')")
                pid = await connection.value("SELECT pg_backend_pid()")
                await connection.value(f"SELECT set_config('{setting}', '7', false)")
                await connection.commit()
            async with driver.connect(resource) as connection:
                assert await connection.value(f"SELECT current_setting('{setting}')") == before
                same = await connection.value("SELECT pg_backend_pid()") == pid
        assert same == driver.keeps_connections

    async def test_an_open_transaction_is_rolled_back(self, driver: Driver, tenant: TenantDatabase) -> None:
        """A handler that raises leaves nothing behind."""
        tenant.server.execute("CREATE TABLE orders (id int)", database=tenant.name)
        async with driver.provider(tenant, max_size=1)("a") as resource:
            with suppress(KeyError):
                async with driver.connect(resource) as connection:
                    if driver.name == "asyncpg":
                        await connection.value("BEGIN")
                    assert await connection.value("INSERT INTO orders VALUES (1) RETURNING id") == 1
                    raise KeyError
            async with driver.connect(resource) as connection:
                assert await connection.value("SELECT count(*) FROM orders") == 0

    async def test_a_transaction_that_sql_began_is_rolled_back(self, driver: Driver, tenant: TenantDatabase) -> None:
        """SQLAlchemy knows nothing of it; its next user would work in it, and nothing would be committed."""
        if not driver.name.startswith("SQLAlchemy"):
            pytest.skip("the driver's own pool knows its transactions")
        tenant.server.execute("CREATE TABLE orders (id int)", database=tenant.name)
        async with driver.provider(tenant, max_size=1)("a") as resource:
            async with resource.connect() as plain:
                connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
                await connection.exec_driver_sql("BEGIN")
                await connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
            async with driver.connect(resource) as connection:
                assert await connection.value("SELECT count(*) FROM orders") == 0


class TestClosing:
    """Closing: bounded, complete, and final."""

    async def test_a_connection_that_was_given_back_counts_as_such_at_once(
        self, driver: Driver, tenant: TenantDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Although a pool may be about to make it ready for the next user: no handler fails for that."""
        async with driver.provider(tenant)("a") as resource, driver.connect(resource) as connection:
            await connection.value("SELECT 1")
        assert "its resources were closed with" not in caplog.text
        tenant.wait_for_backends(0)

    async def test_a_held_connection_does_not_hold_up_the_close(
        self, driver: Driver, tenant: TenantDatabase, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After the time-out it is ended: the server counts none, its user gets an error, the log names the tenant."""
        options = {} if driver.name == "psycopg connections" else {"close_timeout": 0.1}
        leaving = asyncio.Event()
        holding = asyncio.Event()

        async def hold(resource: object) -> None:
            async with driver.connect(resource) as connection:
                await connection.value("SELECT 1")
                holding.set()
                await leaving.wait()
                await connection.value("SELECT 2")

        async with driver.provider(tenant, **options)("a") as resource:
            holder = asyncio.create_task(hold(resource), name="holder")
            await holding.wait()
            assert tenant.backends() >= 1
        (said,) = [record for record in caplog.records if "its resources were closed" in record.getMessage()]
        assert said.getMessage().startswith("Tenant a: its resources were closed with 1 connection in use")
        assert vars(said)["tenant"] == "a"
        tenant.wait_for_backends(0)
        leaving.set()
        with pytest.raises(BROKEN):
            await asyncio.wait_for(holder, 5)

    async def test_connections_that_could_not_be_made_do_not_hold_up_the_close(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """They were never in use, so there is nothing to wait for."""
        options = {} if driver.name == "psycopg connections" else {"close_timeout": 60.0}
        broken = False

        async def password() -> str:
            if broken:
                raise OSError("the secret store is down")
            return tenant.server.password

        source = DataSource(tenant.dsn, password=password)
        async with asyncio.timeout(30):
            async with driver.provider(source, max_size=1, acquire_timeout=0.2, **options)("a") as resource:
                broken = True
                tenant.server.execute(_TERMINATE.format(tenant.name))
                tenant.wait_for_backends(0)
                assert await _value_after_a_break(driver, resource) is None
                broken = False
                while await _value_after_a_break(driver, resource) is None:
                    pass  # psycopg's pool lets more and more time pass between two attempts
        tenant.wait_for_backends(0)

    async def test_a_query_that_runs_at_close_fails_for_its_caller(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """It gets an error, not a wait without end, and not a cancellation that was not its own."""
        options = {} if driver.name == "psycopg connections" else {"close_timeout": 0.1}

        async def sleep(resource: object) -> None:
            async with driver.connect(resource) as connection:
                started.set()
                await connection.value("SELECT pg_sleep(60)")

        started = asyncio.Event()
        async with driver.provider(tenant, **options)("a") as resource:
            sleeper = asyncio.create_task(sleep(resource), name="sleeper")
            await started.wait()
            await asyncio.to_thread(_wait_for_query, tenant, "pg_sleep")
        with pytest.raises(BROKEN):
            await asyncio.wait_for(sleeper, 5)

    async def test_a_frozen_server_does_not_hold_up_the_close(self, driver: Driver, tenant: TenantDatabase) -> None:
        """Saying goodbye politely would need an answer."""
        options = {} if driver.name == "psycopg connections" else {"close_timeout": 0.2}
        async with asyncio.timeout(5):
            async with driver.provider(tenant, **options)("a") as resource:
                async with driver.connect(resource) as connection:
                    await connection.value("SELECT 1")
                tenant.server.freeze()
        tenant.server.thaw()
        tenant.wait_for_backends(0)

    async def test_a_connection_that_is_being_made_does_not_come_to_life_afterwards(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """The drivers' pools forget attempts under way when they close."""
        options = {} if driver.name == "psycopg connections" else {"close_timeout": 0.2}
        holding, leaving = asyncio.Event(), asyncio.Event()

        async def hold(resource: object) -> None:
            async with driver.connect(resource) as connection:
                await connection.value("SELECT 1")
                holding.set()
                await leaving.wait()

        async def use(resource: object) -> None:
            async with driver.connect(resource) as connection:
                await connection.value("SELECT 1")

        async with driver.provider(tenant, max_size=2, connect_timeout=30, **options)("a") as resource:
            holder = asyncio.create_task(hold(resource), name="holder")
            await holding.wait()
            tenant.server.freeze()
            late = asyncio.create_task(use(resource), name="late")
            done, _ = await asyncio.wait([late], timeout=0.1)
            assert not done
        with pytest.raises((*CLOSED, *BROKEN)):
            await asyncio.wait_for(late, 3)
        tenant.server.thaw()
        leaving.set()
        await asyncio.gather(holder, return_exceptions=True)
        tenant.wait_for_backends(0)

    async def test_a_scope_of_anyio_leaves_no_statement_running(self, driver: Driver, tenant: TenantDatabase) -> None:
        """It cancels what ends a statement on the server, too. No pool counts a connection on which one runs on."""
        async with driver.provider(tenant, max_size=1)("a") as resource:

            async def sleep() -> None:
                async with driver.connect(resource) as connection:
                    await connection.value("SELECT pg_sleep(60)")

            async with anyio.create_task_group() as group:
                group.start_soon(sleep)
                await asyncio.to_thread(_wait_for_query, tenant, "pg_sleep(60)")
                group.cancel_scope.cancel()
            async with driver.connect(resource) as connection:
                assert await connection.value("SELECT 1") == 1
        tenant.wait_for_backends(0)

    async def test_use_after_close_is_refused(self, driver: Driver, tenant: TenantDatabase) -> None:
        """Nothing comes to life again without anybody noticing."""
        async with driver.provider(tenant)("a") as resource:
            pass
        with pytest.raises(CLOSED):
            async with driver.connect(resource) as connection:
                await connection.value("SELECT 1")
        tenant.wait_for_backends(0)

    async def test_a_cancelled_close_leaves_nothing_open(self, driver: Driver, tenant: TenantDatabase) -> None:
        """A pool cancels a close that takes too long."""
        options = {} if driver.name == "psycopg connections" else {"close_timeout": 60}
        opened = asyncio.Event()

        async def live() -> None:
            async with driver.provider(tenant, **options)("a") as resource:
                held = driver.connect(resource)
                await held.__aenter__()
                holders.append(held)
                opened.set()

        holders: list[AbstractAsyncContextManager[Connection]] = []
        life = asyncio.create_task(live(), name="life")
        await opened.wait()
        done, _ = await asyncio.wait([life], timeout=0.05)
        life.cancel()
        await asyncio.wait([life])
        tenant.wait_for_backends(0)
        for held in holders:
            with suppress(*BROKEN):
                await held.__aexit__(None, None, None)
        assert done or life.cancelled()


class TestHealth:
    """check(): for the pool."""

    async def test_a_healthy_one_passes(self, driver: Driver, tenant: TenantDatabase) -> None:
        """True, also while all connections are in use."""
        provider = driver.provider(tenant, max_size=1)
        assert provider.check is not None
        async with provider("a") as resource:
            assert await provider.check(resource)
            if driver.keeps_connections:
                async with driver.connect(resource):
                    assert await asyncio.wait_for(provider.check(resource), 1)

    async def test_a_dead_server_fails(self, driver: Driver, tenant: TenantDatabase) -> None:
        """By raising what is wrong."""
        provider = driver.provider(tenant, connect_timeout=0.5)
        assert provider.check is not None
        async with provider("a") as resource:
            tenant.server.kill()
            with pytest.raises((TimeoutError, *BROKEN)):
                await provider.check(resource)

    async def test_a_silent_server_fails_while_all_connections_are_in_use(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """And who waits for one of them in vain has met an outage; with a server that answers it is a failure."""
        provider = driver.provider(tenant, max_size=1, connect_timeout=0.5, acquire_timeout=0.1)
        assert provider.check is not None

        async def wait_in_vain(resource: object) -> Exception:
            with pytest.raises((TimeoutError, psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)) as raised:
                async with driver.connect(resource):
                    pass
            return raised.value

        async with provider("a") as resource, driver.connect(resource):
            assert await provider.check(resource)
            error = await wait_in_vain(resource)
            assert not is_outage(error)
            tenant.server.freeze()
            try:
                problems = await asyncio.gather(*(wait_in_vain(resource) for _ in range(3)))
                assert all(is_outage(each) for each in problems)
                with pytest.raises(TimeoutError) as silent:
                    await provider.check(resource)
            finally:
                tenant.server.thaw()
            assert is_outage(silent.value)
            assert sqlstate_of(silent.value) == "08001"  # not the OSError of any other call of a handler
            assert await provider.check(resource)

    async def test_who_waits_in_vain_costs_the_server_no_connection_more(
        self, driver: Driver, tenant: TenantDatabase
    ) -> None:
        """Nor does the health check: the budget counts ``max_size``."""
        before = tenant.sessions()
        provider = driver.provider(tenant, max_size=1, acquire_timeout=0.1)
        assert provider.check is not None
        async with provider("a") as resource, driver.connect(resource):
            for _ in range(2):
                with pytest.raises((TimeoutError, psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)):
                    async with driver.connect(resource):
                        pass
                assert await provider.check(resource)
        assert tenant.sessions() - before == (1 if driver.keeps_connections else 2)  # one at opening

    async def test_a_server_behind_a_unix_socket_is_asked_there(self, tenant: TenantDatabase) -> None:
        """By the path that the driver took, whatever the server calls it."""
        where = f"host={tenant.server.directory} port={tenant.server.port} user={tenant.server.user}"
        dsn = f"{where} dbname={tenant.name} password={tenant.server.password}"
        async with await psycopg.AsyncConnection.connect(dsn) as of_psycopg:
            of_asyncpg = await asyncpg.connect(
                f"postgresql://postroom:{tenant.server.password}@/{tenant.name}",
                host=str(tenant.server.directory),
                port=tenant.server.port,
            )
            try:
                for connection in (of_psycopg, of_asyncpg):
                    server = Server(0.5, "here")
                    server.met(connection)
                    assert await server.check()
                    tenant.server.freeze()
                    assert await server.problem() is not None
                    tenant.server.thaw()
            finally:
                of_asyncpg.terminate()

    async def test_a_restarted_server_is_used_again(self, driver: Driver, tenant: TenantDatabase) -> None:
        """At the latest with the second try: the driver's pool drops its dead connections."""
        async with driver.provider(tenant, max_size=1)("a") as resource:
            tenant.server.restart()
            assert await _value_after_a_break(driver, resource) == 1


async def _value_after_a_break(driver: Driver, resource: object) -> object:
    """Ask for 1. A pool may hand out each of its dead connections once, before it drops them."""
    for _ in range(3):
        with suppress(*BROKEN):
            async with driver.connect(resource) as connection:
                return await connection.value("SELECT 1")
    return None


def _wait_for_query(tenant: TenantDatabase, words: str) -> None:
    while words not in tenant.server.execute("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()"):
        pass
