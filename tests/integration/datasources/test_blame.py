"""What a use of a connection raises: an outage of the tenant's database, or the failure of the message?"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy.exc

from postroom import ClosedError
from postroom.datasources import DataSource, Registry, WrongDatabase, asyncpg_pool
from postroom.datasources import psycopg_pool as psycopg_pool_of
from postroom.resources.failures import is_of_server, is_outage, is_suspect
from support.drivers import DRIVERS, IN_THREADS, Driver
from support.tenant_database import TenantDatabase

pytestmark = pytest.mark.postgres
RAISED = (
    asyncpg.PostgresError,
    psycopg.Error,
    sqlalchemy.exc.SQLAlchemyError,
    OSError,
    RuntimeError,
    WrongDatabase,
)


@pytest.fixture(params=[*DRIVERS, *IN_THREADS], ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest) -> Driver:
    """One driver after the other."""
    assert isinstance(request.param, Driver)
    return request.param


@dataclass
class Login:
    """A user of its own for one test, and what its password function does."""

    tenant: TenantDatabase
    role: str
    error: Exception | None = None

    @property
    def source(self) -> DataSource:
        """Where the tenant's data is."""
        dsn = self.tenant.dsn.replace(f"postroom:{self.tenant.server.password}", self.role)
        return DataSource(dsn, password=self.password)

    def password(self) -> str:
        """Return the password, or fail."""
        if self.error is not None:
            raise self.error
        return "p"

    def fail(self, error: Exception) -> None:
        """Let the password function raise."""
        self.error = error


@pytest.fixture
def login(tenant: TenantDatabase) -> Login:
    """A user with a password."""
    role = f"app{secrets.token_hex(4)}"
    tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    return Login(tenant, role)


def _refuse_connections(login: Login) -> None:
    login.tenant.server.execute(f'ALTER DATABASE "{login.tenant.name}" ALLOW_CONNECTIONS false')


def _lead_elsewhere(login: Login) -> None:
    other = f"other{secrets.token_hex(4)}"
    login.tenant.server.execute(f"CREATE ROLE {other}; GRANT {other} TO {login.role}")
    login.tenant.server.execute(f"ALTER ROLE {login.role} SET role = '{other}'")


def _refuse_the_password(login: Login) -> None:
    login.tenant.server.execute(f"ALTER ROLE {login.role} PASSWORD 'another'")


TROUBLES: dict[str, Callable[[Login], None]] = {
    "the database takes no connections": _refuse_connections,
    "the server finds another user": _lead_elsewhere,
    "the password is wrong": _refuse_the_password,
    "the secret store throttles": lambda login: login.fail(RuntimeError("Rate exceeded")),
    "the secret store is gone": lambda login: login.fail(OSError("secret store")),
    "the secret store is slow": lambda login: login.fail(TimeoutError()),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_fails_while_another_connection_is_made_is_an_outage(
    driver: Driver, login: Login, trouble: str
) -> None:
    """The tenant's resources are open; no message is to blame because they cannot make one connection more."""
    # psycopg's pool tries for acquire_timeout, and tells why it failed when that is over.
    async with driver.provider(login.source, max_size=2, acquire_timeout=1.0)("a") as resource:
        async with driver.connect(resource) as first:
            assert await first.value("SELECT 1") == 1
            TROUBLES[trouble](login)
            with pytest.raises(RAISED) as raised:
                async with driver.connect(resource):
                    pass
        assert is_outage(raised.value)
        assert is_of_server(raised.value)
        assert str(raised.value)


async def test_what_prepares_a_new_connection_and_fails_is_an_outage(driver: Driver, tenant: TenantDatabase) -> None:
    """``init=`` and ``configure=`` run for each connection, also for one that a handler needs."""
    option = {"asyncpg": "init", "psycopg pool": "configure", "psycopg in threads": "configure"}.get(driver.name)
    if option is None:
        pytest.skip("it has no such function")
    broken = False

    def prepare_now(_: object) -> None:
        if broken:
            raise LookupError("no such type")

    async def prepare(connection: object) -> None:
        prepare_now(connection)

    options = {option: prepare_now if driver in IN_THREADS else prepare}
    async with driver.provider(tenant, max_size=2, acquire_timeout=1.0, **options)("a") as resource:
        async with driver.connect(resource) as first:
            assert await first.value("SELECT 1") == 1
            broken = True
            with pytest.raises((LookupError, psycopg_pool.PoolTimeout)) as raised:
                async with driver.connect(resource):
                    pass
        assert is_outage(raised.value)
        assert is_of_server(raised.value)


async def test_a_write_in_a_read_only_transaction_of_its_own_is_the_messages_failure(
    driver: Driver, tenant: TenantDatabase
) -> None:
    """It would fail at each try, and the resources are well."""
    tenant.server.execute("CREATE TABLE orders (id int)", database=tenant.name)

    async def write(resource: object) -> None:
        async with driver.connect(resource) as connection:
            if driver.name == "asyncpg":  # it commits each statement
                await connection.value("BEGIN")
            await connection.value("SELECT set_config('transaction_read_only', 'on', true)")
            await connection.value("INSERT INTO orders VALUES (1) RETURNING id")

    async with driver.provider(tenant, max_size=1)("a") as resource:
        with pytest.raises(RAISED) as raised:
            await write(resource)
        async with driver.connect(resource) as connection:  # the question leaves the connection as it was
            assert await connection.value("SELECT count(*) FROM orders") == 0
    assert not is_outage(raised.value)
    assert not is_suspect(raised.value)


async def test_a_write_to_a_server_that_takes_none_is_an_outage(driver: Driver, tenant: TenantDatabase) -> None:
    """After a failover, or when a provider's disk is full: for each message, whatever its transaction."""
    tenant.server.execute(f'ALTER DATABASE "{tenant.name}" SET default_transaction_read_only = on')
    tenant.server.execute("SET transaction_read_only = off; CREATE TABLE orders (id int)", database=tenant.name)
    async with driver.provider(tenant, max_size=1)("a") as resource:
        with pytest.raises(RAISED) as raised:
            async with driver.connect(resource) as connection:
                await connection.value("INSERT INTO orders VALUES (1) RETURNING id")
    assert is_outage(raised.value)
    assert is_suspect(raised.value)


async def test_a_handler_that_is_cancelled_while_its_server_is_asked_returns_its_connection(
    driver: Driver, tenant: TenantDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that fails over may be silent from then on."""
    if driver in IN_THREADS:
        pytest.skip("a thread cannot be cancelled")
    asked, answered = asyncio.Event(), asyncio.Event()

    async def judge(*_: object) -> None:
        asked.set()
        await answered.wait()

    for module in ("asyncpg", "sqlalchemy", "_psycopg_refusals"):
        monkeypatch.setattr(f"postroom.datasources.{module}.judge", judge)
    tenant.server.execute("CREATE TABLE orders (id int)", database=tenant.name)

    async def write(resource: object) -> None:
        async with driver.connect(resource) as connection:
            if driver.name == "asyncpg":
                await connection.value("BEGIN")
            await connection.value("SELECT set_config('transaction_read_only', 'on', true)")
            await connection.value("INSERT INTO orders VALUES (1) RETURNING id")

    async with driver.provider(tenant, max_size=1, acquire_timeout=2.0)("a") as resource:
        writing = asyncio.create_task(write(resource))
        await asked.wait()
        writing.cancel()
        answered.set()  # SQLAlchemy waits for the answer all the same
        await asyncio.wait([writing])
        async with driver.connect(resource) as connection:
            assert await connection.value("SELECT 1") == 1


@pytest.mark.parametrize("sqlstate", ["28000", "08P01", "53200", "53400"])
async def test_the_answer_to_a_statement_is_no_outage(driver: Driver, tenant: TenantDatabase, sqlstate: str) -> None:
    """The connection goes on working: the server can be used."""
    async with driver.provider(tenant, max_size=1)("a") as resource:
        with pytest.raises(RAISED) as raised:
            async with driver.connect(resource) as connection:
                await connection.value(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$")
        assert not is_outage(raised.value)
        assert not is_suspect(raised.value)
        async with driver.connect(resource) as connection:
            assert await connection.value("SELECT 1") == 1


async def test_a_connection_that_ends_is_an_outage(driver: Driver, tenant: TenantDatabase) -> None:
    """The server was told to end it."""

    async def use(resource: object) -> None:
        async with driver.connect(resource) as connection:
            await connection.value("SELECT pg_terminate_backend(pg_backend_pid())")
            await connection.value("SELECT 1")

    async with driver.provider(tenant, max_size=1)("a") as resource:
        with pytest.raises(RAISED) as raised:
            await use(resource)
    assert is_outage(raised.value)


@pytest.mark.parametrize("then", ["a statement", "the end of a transaction", "a statement in a transaction"])
async def test_a_connection_that_ends_between_two_statements_is_an_outage(tenant: TenantDatabase, then: str) -> None:
    """As at a failover while a handler waits for something else. asyncpg says: "released back to the pool"."""
    ended = asyncio.Event()

    async def end(connection: Any) -> None:
        connection.add_termination_listener(lambda _: ended.set())
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        tenant.server.execute(f"SELECT pg_terminate_backend({pid})")
        await ended.wait()
        if then != "the end of a transaction":
            await connection.fetchval("SELECT 1")

    async def use(pool: Any) -> None:
        async with pool.acquire() as connection:
            if then == "a statement":
                await end(connection)
            async with connection.transaction():
                await end(connection)

    async with asyncpg_pool(Registry({"a": tenant.dsn}), max_size=1)("a") as pool:
        with pytest.raises(asyncpg.InterfaceError) as raised:
            await use(pool)
        assert is_outage(raised.value)
        assert is_suspect(raised.value)
        assert "ended between two statements" in "".join(raised.value.__notes__)
        assert await pool.fetchval("SELECT 1") == 1


async def test_a_transaction_that_was_open_for_too_long_is_a_failure(tenant: TenantDatabase) -> None:
    """The server ends its connection, and would do so at each try of the message: every driver at once."""
    if not int(tenant.server.execute("SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'")):
        pytest.skip("PostgreSQL has it since version 17")
    tenant.server.execute(f"ALTER DATABASE \"{tenant.name}\" SET transaction_timeout = '1s'")

    async def use(driver: Driver) -> BaseException:
        async with driver.provider(tenant, max_size=1)("a") as resource:
            with pytest.raises(RAISED) as raised:
                async with driver.connect(resource) as connection:
                    await connection.value("SELECT pg_sleep(60)")
            async with driver.connect(resource) as connection:
                assert await connection.value("SELECT 1") == 1
        return raised.value

    for error in await asyncio.gather(*(use(driver) for driver in [*DRIVERS, *IN_THREADS])):
        assert not is_outage(error), error
        assert not is_suspect(error), error


async def test_a_transaction_that_was_idle_for_too_long_is_a_failure_over_asyncpg(tenant: TenantDatabase) -> None:
    """The server says why it ends the connection, and asyncpg does not listen then: it is asked over another one."""
    tenant.server.execute(f"ALTER DATABASE \"{tenant.name}\" SET idle_in_transaction_session_timeout = '10min'")
    ended = asyncio.Event()

    async def use(pool: Any) -> None:
        async with pool.acquire() as connection, connection.transaction():
            connection.add_termination_listener(lambda _: ended.set())
            await connection.execute("SET idle_in_transaction_session_timeout = 1")
            await ended.wait()

    async with asyncpg_pool(Registry({"a": tenant.dsn}), max_size=1)("a") as pool:
        with pytest.raises(asyncpg.InterfaceError) as raised:
            await use(pool)
        assert not is_outage(raised.value)
        assert not is_suspect(raised.value)


async def test_a_connection_that_its_user_closed_is_a_failure(driver: Driver, tenant: TenantDatabase) -> None:
    """It would fail at each try, and the resources are well."""

    async def use(resource: object) -> None:
        async with driver.connect(resource) as connection:
            await connection.value("SELECT 1")
            await connection.close()
            await connection.value("SELECT 1")

    async with driver.provider(tenant, max_size=1)("a") as resource:
        with pytest.raises((asyncpg.InterfaceError, *RAISED)) as raised:
            await use(resource)
        assert not is_outage(raised.value)
        assert not is_suspect(raised.value)
        async with driver.connect(resource) as connection:
            assert await connection.value("SELECT 1") == 1


async def test_a_connection_that_ended_before_its_user_closed_it_is_an_outage(tenant: TenantDatabase) -> None:
    """As a ``finally`` may close it: the error that left the block is the server's."""

    async def use(pool: Any) -> None:
        async with pool.connection() as connection:
            try:
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            finally:
                await connection.close()

    async with psycopg_pool_of(Registry({"a": tenant.dsn}))("a") as pool:
        with pytest.raises(psycopg.OperationalError) as raised:
            await use(pool)
    assert is_outage(raised.value)


async def test_what_a_handler_closed_is_opened_again(driver: Driver, tenant: TenantDatabase) -> None:
    """A message that meets it has failed, as its own handler may have closed it; the next one gets new resources."""
    if not driver.keeps_connections or "SQLAlchemy" in driver.name:
        pytest.skip("it has no pool that can be closed for good")
    async with driver.provider(tenant, max_size=1).pool() as pool:
        async with pool.lease("a") as resource:
            closed = asyncio.to_thread(resource.close) if driver in IN_THREADS else resource.close()
            await closed
        lease = await pool.acquire("a")
        with pytest.raises(ClosedError, match="closed by a handler") as raised:
            async with driver.connect(lease.resource):
                pass
        assert not lease.report(raised.value)
        lease.release()
        async with pool.lease("a") as resource, driver.connect(resource) as connection:
            assert await connection.value("SELECT 1") == 1
        assert pool.retry_after("a") == 0


async def test_a_connection_that_cannot_be_returned_tells_of_a_silent_server(tenant: TenantDatabase) -> None:
    """Of asyncpg there is nothing but ``TimeoutError``, and the handler has done its work."""
    async with asyncpg_pool(Registry({"a": tenant.dsn}), connect_timeout=0.2)("a") as pool:
        connection = await pool.acquire()
        tenant.server.freeze()
        place = f"127.0.0.1:{tenant.server.port}/{tenant.name}"
        with pytest.raises(TimeoutError, match=f"a connection of {place} did not forget its last user within 0.2 s"):
            await pool.release(connection)
        with pytest.raises(TimeoutError, match=f"no connection to {place} was made within 0.2 s") as raised:
            await pool.acquire()
        assert is_of_server(raised.value)
        tenant.server.thaw()


async def test_a_handler_that_waits_for_its_own_connection_has_failed(driver: Driver, tenant: TenantDatabase) -> None:
    """The server is asked, and answers: the tenant is no outage."""

    async def two(resource: Any) -> None:
        async with driver.connect(resource) as first:
            await first.value("SELECT 1")
            async with driver.connect(resource):
                pass

    async with driver.provider(tenant, max_size=1, acquire_timeout=0.2)("a") as resource:
        with pytest.raises((TimeoutError, psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)) as raised:
            await asyncio.wait_for(two(resource), 10)
    assert not is_outage(raised.value)
    if "SQLAlchemy" not in driver.name:  # which has words of its own
        assert "a handler must give its connection back" in str(raised.value)
