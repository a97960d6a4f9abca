"""The providers for plain ``def`` handlers: what opening, waiting and closing promise."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import quote

import psycopg
import psycopg_pool
import pytest
import sqlalchemy.exc
from sqlalchemy import text

from postroom import ClosedError, ConfigurationError, UnknownTenant
from postroom.datasources import (
    DataSource,
    Provider,
    Registry,
    WrongDatabase,
    psycopg_sync_pool,
    sqlalchemy_sync_engine,
)
from postroom.resources import is_outage, sqlstate_of
from support.tenant_database import TenantDatabase

pytestmark = pytest.mark.postgres
Provide = Callable[..., Provider[str, Any]]


@pytest.fixture(params=[psycopg_sync_pool, sqlalchemy_sync_engine], ids=["psycopg", "SQLAlchemy"])
def provide(request: pytest.FixtureRequest) -> Any:
    """One provider after the other."""
    return request.param


def _connect(resource: Any) -> Any:
    """Return the context manager of a connection."""
    return resource.connection() if isinstance(resource, psycopg_pool.ConnectionPool) else resource.connect()


def _ask(resource: Any, sql: str) -> Any:
    with _connect(resource) as connection:
        if isinstance(connection, psycopg.Connection):
            return connection.execute(sql).fetchone()[0]  # type: ignore[index]
        return connection.execute(text(sql)).scalar()


async def test_a_thread_uses_it_and_nothing_is_left(provide: Provide, tenant: TenantDatabase) -> None:
    """One connection is made at opening, more when threads ask at once, none is open afterwards."""
    made = provide(Registry({"a": tenant.dsn}), max_size=3)
    async with made("a") as resource:
        assert tenant.backends() == 1
        answers = await asyncio.gather(*(asyncio.to_thread(_ask, resource, "SELECT 1") for _ in range(9)))
        assert answers == [1] * 9
        assert tenant.backends() <= made.weight == 3
        assert made.check is not None
        assert await made.check(resource)
    tenant.wait_for_backends(0)
    with pytest.raises((ClosedError, psycopg_pool.PoolClosed)):
        await asyncio.to_thread(_ask, resource, "SELECT 1")


async def test_a_refused_login_says_why_and_no_secret(provide: Provide, tenant: TenantDatabase) -> None:
    """At opening, with its SQLSTATE; the password is in none of it."""
    dsn = tenant.dsn.replace(tenant.server.password, "not-the-secret")
    with pytest.raises((psycopg.OperationalError, sqlalchemy.exc.DBAPIError)) as refused:
        async with provide(Registry({"a": dsn}))("a"):
            pass
    assert sqlstate_of(refused.value) == "28P01"
    assert is_outage(refused.value)
    assert "not-the-secret" not in str(refused.value)
    tenant.wait_for_backends(0)


@pytest.mark.parametrize("password", ["a=b 'c\" \\", "p@s/s:w?o#r&d%zz+", "[ü℀]"])
async def test_a_password_may_have_any_character(provide: Provide, tenant: TenantDatabase, password: str) -> None:
    """Percent-encoded, as in any URL."""
    role = f"app{secrets.token_hex(4)}"
    literal = password.replace("'", "''")
    tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{literal}'")
    login = f"{role}:{quote(password, safe='')}"
    dsn = tenant.dsn.replace(f"postroom:{tenant.server.password}", login)
    async with provide(Registry({"a": dsn}))("a") as resource:
        assert await asyncio.to_thread(_ask, resource, "SELECT current_user") == role


async def test_the_canary_compares(provide: Provide, tenant: TenantDatabase) -> None:
    """Nothing is given out that leads elsewhere."""
    source = DataSource(tenant.dsn, database="another")
    with pytest.raises(WrongDatabase, match="another"):
        async with provide(Registry({"a": source}))("a"):
            pass
    tenant.wait_for_backends(0)


async def test_a_rotated_password_is_asked_for_in_the_event_loop(provide: Provide, tenant: TenantDatabase) -> None:
    """An async function, for each connection, and once more when the server has refused what it said."""
    answers = ["of yesterday", tenant.server.password, tenant.server.password]
    forgotten: list[str] = []

    class Password:
        async def __call__(self) -> str:
            assert asyncio.current_task() is not None
            return answers.pop(0)

        def forget(self, password: str, /) -> None:
            forgotten.append(password)

    dsn = tenant.dsn.replace(f":{tenant.server.password}@", "@")
    async with provide(Registry({"a": DataSource(dsn, password=Password())}), max_size=2)("a") as resource:

        def two() -> None:
            with _connect(resource), _connect(resource):
                pass

        await asyncio.to_thread(two)
    assert (answers, forgotten) == ([], ["of yesterday"])


async def test_on_a_full_server_threads_wait_for_the_connections_that_there_are(
    provide: Provide, tenant: TenantDatabase
) -> None:
    """As if the pool had no more than these; nothing fails because other programs hold the rest."""
    role = f"app{secrets.token_hex(4)}"
    tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p' CONNECTION LIMIT 1")
    registry = Registry({"a": tenant.dsn.replace(f"postroom:{tenant.server.password}", f"{role}:p")})
    async with provide(registry, max_size=3, acquire_timeout=60.0)("a") as resource:
        asked = (asyncio.to_thread(_ask, resource, "SELECT 1 FROM pg_sleep(0.01)") for _ in range(6))
        assert await asyncio.gather(*asked) == [1] * 6


async def test_connections_that_could_not_be_made_do_not_hold_up_the_close(
    provide: Provide, tenant: TenantDatabase
) -> None:
    """They were never in use, so there is nothing to wait for."""
    broken = False

    def password() -> str:
        if broken:
            raise OSError("the secret store is down")
        return tenant.server.password

    registry = Registry({"a": DataSource(tenant.dsn, password=password)})
    async with asyncio.timeout(30):
        async with provide(registry, max_size=1, acquire_timeout=0.2, close_timeout=60.0)("a") as resource:
            broken = True
            sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{tenant.name}'"
            tenant.server.execute(sql)
            for _ in range(3):
                with pytest.raises((psycopg.Error, sqlalchemy.exc.SQLAlchemyError, OSError)):
                    await asyncio.to_thread(_ask, resource, "SELECT 1")
            broken = False
            answer = None
            while answer is None:  # psycopg's pool lets more and more time pass between two attempts
                with suppress(psycopg.Error):
                    answer = await asyncio.to_thread(_ask, resource, "SELECT 1")
    tenant.wait_for_backends(0)


async def test_waiting_ends_in_time(provide: Provide, tenant: TenantDatabase) -> None:
    """A thread that holds all connections and asks for another one gets an error."""
    late = (psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)
    async with provide(Registry({"a": tenant.dsn}), max_size=1, acquire_timeout=0.1)("a") as resource:

        def nested() -> None:
            with ExitStack() as stack:
                stack.enter_context(_connect(resource))
                with pytest.raises(late):
                    stack.enter_context(_connect(resource))

        await asyncio.to_thread(nested)


async def test_a_silent_server_fails_while_all_connections_are_in_use(provide: Provide, tenant: TenantDatabase) -> None:
    """And who waits for one of them in vain has met an outage; with a server that answers it is a failure."""
    made = provide(Registry({"a": tenant.dsn}), max_size=1, connect_timeout=1.0, acquire_timeout=0.1)
    assert made.check is not None

    def wait_in_vain(resource: Any) -> Exception:
        with pytest.raises((psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)) as raised, _connect(resource):
            pass
        return raised.value

    async with made("a") as resource:
        with _connect(resource):
            assert await made.check(resource)
            error = await asyncio.to_thread(wait_in_vain, resource)
            assert not is_outage(error)
            tenant.server.freeze()
            try:
                problems = await asyncio.gather(*(asyncio.to_thread(wait_in_vain, resource) for _ in range(3)))
                assert all(is_outage(each) for each in problems)
                with pytest.raises(TimeoutError) as silent:
                    await made.check(resource)
            finally:
                tenant.server.thaw()
            assert is_outage(silent.value)
            assert await made.check(resource)


async def test_who_waits_in_vain_costs_the_server_no_connection_more(provide: Provide, tenant: TenantDatabase) -> None:
    """Nor does the health check: the budget counts ``max_size``."""
    before = tenant.sessions()
    made = provide(Registry({"a": tenant.dsn}), max_size=1, acquire_timeout=0.1)
    assert made.check is not None

    def wait_in_vain(resource: Any) -> None:
        with pytest.raises((psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)), _connect(resource):
            pass

    async with made("a") as resource:
        with _connect(resource):
            await asyncio.gather(*(asyncio.to_thread(wait_in_vain, resource) for _ in range(2)))
            assert await made.check(resource)
    assert tenant.sessions() - before == 1


async def test_a_long_wait_is_said_once_and_its_cause_is_shown(
    tenant: TenantDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits, for what, and what can be done; and why there is no connection where the server refuses them."""
    monkeypatch.setattr("postroom.datasources._psycopg_sync.SAID_AFTER", 0.05)
    async with psycopg_sync_pool(Registry({"a": tenant.dsn}), max_size=1, acquire_timeout=0.2)("a") as pool:

        def wait() -> None:
            with pool.connection():
                for _ in range(2):
                    with pytest.raises(psycopg_pool.PoolTimeout):
                        pool.getconn()

        with caplog.at_level(logging.WARNING, "postroom.datasources"):
            await asyncio.to_thread(wait)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "postroom.datasources"]
    assert line.startswith("Tenant a: all 1 connections are in use, and a handler has waited")
    assert "max_size=" in line


async def test_wrong_registries_are_refused(provide: Provide) -> None:
    """In words that say what to write instead, without the DSN."""
    with pytest.raises(UnknownTenant):
        async with provide(Registry({}))("a"):
            pass
    with pytest.raises(ConfigurationError) as refused:
        async with provide(Registry({"a": "this is no://dsn with secret"}))("a"):
            pass
    assert "secret" not in str(refused.value)
    if provide is sqlalchemy_sync_engine:
        with pytest.raises(ConfigurationError, match=r"postgresql\+psycopg"):
            async with provide(Registry({"a": "mysql://localhost/x"}))("a"):
                pass


async def test_a_server_that_does_not_answer_is_late(provide: Provide) -> None:
    """The event loop does not wait for the thread, and the error says which option is meant."""
    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: silent.append(writer), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        registry = Registry({"a": f"postgresql://a:b@127.0.0.1:{port}/c"})
        late = f"no connection to 127.0.0.1:{port}/c was made within 0.2 s"
        with pytest.raises(TimeoutError, match=late):
            async with provide(registry, connect_timeout=0.2)("a"):
                pass
        for writer in silent:  # since Python 3.12 a server ends with its last connection
            writer.close()


async def test_servers_that_do_not_answer_keep_no_other_tenant_waiting(
    provide: Provide, tenant: TenantDatabase
) -> None:
    """However many threads the default executor has."""
    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: silent.append(writer), "127.0.0.1", 0)
    bad = f"postgresql://a:b@127.0.0.1:{server.sockets[0].getsockname()[1]}/c"
    made = provide(lambda name: tenant.dsn if name == "good" else bad, connect_timeout=30.0)

    async def hang(name: str) -> None:
        async with made(name):
            pass

    async with server:
        hanging = [asyncio.create_task(hang(f"bad {number}")) for number in range(40)]
        async with asyncio.timeout(20):
            while len(silent) < len(hanging):
                await asyncio.sleep(0.01)
            async with made("good") as resource:
                assert made.check is not None
                assert await made.check(resource)
        for writer in silent:
            writer.close()
        ended = await asyncio.gather(*hanging, return_exceptions=True)
        assert all(isinstance(each, psycopg.Error | sqlalchemy.exc.SQLAlchemyError) for each in ended)


async def test_many_connections_that_hang_are_ended_together(provide: Provide, tenant: TenantDatabase) -> None:
    """Not one after the other: the close of the pool would be out of time before the last one."""
    time = asyncio.get_running_loop().time
    made = provide(Registry({"a": tenant.dsn}), max_size=12, close_timeout=0.1)
    with ThreadPoolExecutor(12) as threads:
        try:
            async with made("a") as resource:
                hanging = [threads.submit(_ask, resource, "SELECT pg_sleep(600)") for _ in range(12)]
                tenant.wait_for_backends(12)
                await asyncio.sleep(0.1)  # they have begun their statement
                tenant.server.freeze()
                closing = time()
            assert time() - closing < 6  # a second for each of them to be cancelled, and one to be let go of
            done, running = await asyncio.to_thread(wait, hanging, 5)
            assert not running
            assert all(future.exception() is not None for future in done)
        finally:
            tenant.server.thaw()


async def test_a_thread_that_had_its_answer_leaves_no_connection_open(
    tenant: TenantDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds the connection while the resource is closed, and nothing tells it that its socket was shut down."""
    held: list[Any] = []
    async with asyncio.timeout(20), psycopg_sync_pool(Registry({"a": tenant.dsn}), close_timeout=0.1)("a") as pool:
        connection = await asyncio.to_thread(pool.getconn)
        held.append(connection)
        connection.lock.acquire()
        asyncio.get_running_loop().call_later(0.5, connection.lock.release)
    assert held[0].closed
    assert "Tenant a: its resources were closed with 1 connection in use" in caplog.text
