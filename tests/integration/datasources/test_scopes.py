"""Tenants that share a database: a schema each, or rows of their own; directly and through PgBouncer."""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from postroom.datasources import (
    AsyncpgDatabase,
    Provider,
    Scope,
    UnknownTenant,
    asyncpg_inbox,
    asyncpg_pool,
    postgres_inbox,
    psycopg_connections,
    psycopg_inbox,
    psycopg_pool,
    psycopg_sync_inbox,
    psycopg_sync_pool,
    sqlalchemy_engine,
    sqlalchemy_inbox,
    sqlalchemy_sync_engine,
    sqlalchemy_sync_inbox,
)
from postroom.errors import AlreadyHandled, ConfigurationError
from postroom.transactions import MessageKey, TransactionRolledBack
from support.pgbouncer import PGBOUNCER, pgbouncer
from support.tenant_database import TenantDatabase
from support.transactional_sync import InThread, Threaded

pytestmark = pytest.mark.postgres
ScopeOf = Callable[[str], Scope | None]
TENANTS = ("a", "b", 'odd "name"')


@dataclass(frozen=True)
class Driver:
    """How one adapter is provided: with the options that a pooler in transaction mode asks for."""

    name: str
    provide: Callable[[str, ScopeOf], Provider[str, Any]]

    async def value(self, tx: Any, sql: str) -> Any:
        """Run a query and return its first value."""
        if isinstance(tx, InThread):
            return await tx.thread.run(self._value, tx.tx, sql)
        if hasattr(tx, "fetchval"):
            return await tx.fetchval(sql)
        result = await tx.execute(sql if hasattr(tx, "pgconn") else text(sql))
        return (await result.fetchone())[0] if hasattr(tx, "pgconn") else result.scalar()

    def _value(self, tx: Any, sql: str) -> Any:
        return tx.execute(sql).fetchone()[0] if hasattr(tx, "pgconn") else tx.execute(text(sql)).scalar()


def _at(dsn: str) -> Callable[[str], str]:
    return lambda _: dsn


def _asyncpg(dsn: str, scope: ScopeOf) -> Provider[str, Any]:
    pool = asyncpg_pool(_at(dsn), max_size=2, options={"statement_cache_size": 0})
    return asyncpg_inbox(pool, create=True, scope=scope)


def _psycopg(dsn: str, scope: ScopeOf) -> Provider[str, Any]:
    pool = psycopg_pool(_at(dsn), max_size=2, options={"prepare_threshold": None})
    return psycopg_inbox(pool, create=True, scope=scope)


def _connections(dsn: str, scope: ScopeOf) -> Provider[str, Any]:
    pool = psycopg_connections(_at(dsn), max_size=2, options={"prepare_threshold": None})
    return psycopg_inbox(pool, create=True, scope=scope)


def _engine(dsn: str, scope: ScopeOf, session: Any = None) -> Provider[str, Any]:
    arguments = {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"__{uuid4()}__",
    }
    engine = sqlalchemy_engine(_at(dsn), max_size=2, options={"connect_args": arguments})
    return sqlalchemy_inbox(engine, create=True, scope=scope, session=session)


def _psycopg_sync(dsn: str, scope: ScopeOf) -> Provider[str, Any]:
    pool = psycopg_sync_pool(_at(dsn), max_size=2, options={"prepare_threshold": None})
    return psycopg_sync_inbox(pool, create=True, scope=scope).map(Threaded)


def _session_sync(dsn: str, scope: ScopeOf) -> Provider[str, Any]:
    options = {"connect_args": {"prepare_threshold": None}}
    engine = sqlalchemy_sync_engine(_at(dsn), max_size=2, options=options)
    return sqlalchemy_sync_inbox(engine, create=True, scope=scope, session=Session).map(Threaded)


DRIVERS = [
    Driver("asyncpg", _asyncpg),
    Driver("psycopg", _psycopg),
    Driver("psycopg connections", _connections),
    Driver("SQLAlchemy", _engine),
    Driver("session", lambda dsn, scope: _engine(dsn, scope, AsyncSession)),
    Driver("psycopg in threads", _psycopg_sync),
    Driver("session in threads", _session_sync),
]


@pytest.fixture(params=DRIVERS, ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest) -> Driver:
    """One adapter after the other."""
    assert isinstance(request.param, Driver)
    return request.param


@pytest.fixture(params=["direct", "pgbouncer"])
def dsn(request: pytest.FixtureRequest, tenant: TenantDatabase) -> Iterator[str]:
    """The database as a user who owns nothing sees it; through PgBouncer all clients share one connection."""
    role = f"app{secrets.token_hex(4)}"
    tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    tenant.server.execute(f"GRANT CREATE ON SCHEMA public TO {role}", database=tenant.name)
    for name in TENANTS:
        quoted = name.replace('"', '""')
        tenant.server.execute(
            f'CREATE SCHEMA "{quoted}" AUTHORIZATION {role}; CREATE TABLE "{quoted}".orders (id text PRIMARY KEY); '
            f'GRANT ALL ON ALL TABLES IN SCHEMA "{quoted}" TO {role}',
            database=tenant.name,
        )
    tenant.server.execute(
        "CREATE TABLE orders (id text, tenant text NOT NULL DEFAULT current_setting('app.tenant'));"
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY own ON orders USING (tenant = current_setting('app.tenant', true));"
        f"GRANT ALL ON orders TO {role}",
        database=tenant.name,
    )
    direct = tenant.dsn.replace(f"postroom:{tenant.server.password}", f"{role}:p")
    if request.param == "direct":
        yield direct
    elif PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed")
    else:
        with pgbouncer(tenant.server.port, role, "p") as port:
            yield direct.replace(f":{tenant.server.port}/", f":{port}/")
    tenant.server.execute(f"DROP OWNED BY {role} CASCADE", database=tenant.name)


async def _work(driver: Driver, db: Any, key: str, *ids: str) -> list[str]:
    """Insert orders in a message's transaction, and return the ids that its tenant then sees."""
    async with db.transaction_for(MessageKey("orders", key)) as tx:
        for id_ in ids:
            await driver.value(tx, f"INSERT INTO orders VALUES ('{id_}') RETURNING 1")
        seen: str = await driver.value(tx, "SELECT string_agg(id, ',' ORDER BY id) FROM orders")
    return seen.split(",")


async def _interleave(driver: Driver, provider: Provider[str, Any]) -> None:
    """Let the tenants work at the same time, with the same ids and business keys, and with failures between."""

    async def one(name: str) -> list[str]:
        async with provider(name) as db:
            for number in range(5):
                await _work(driver, db, f"key:{number}", f"{name}-{number}")
                with pytest.raises(AlreadyHandled):
                    await _work(driver, db, f"key:{number}", "twice")
                with pytest.raises(TransactionRolledBack):
                    await swallow(db)
            return await _work(driver, db, "key:last", f"{name}-last")

    async def swallow(db: Any) -> None:
        async with db.transaction() as tx:
            with pytest.raises(Exception, match="zero"):
                await driver.value(tx, "SELECT 1/0")

    seen = await asyncio.gather(*map(one, TENANTS))
    assert seen == [[*(f"{name}-{number}" for number in range(5)), f"{name}-last"] for name in TENANTS]


async def test_a_schema_for_each_tenant(driver: Driver, dsn: str, tenant: TenantDatabase) -> None:
    """Each finds its own table and its own inbox, and no other's, whichever used the server's connection before."""
    await _interleave(driver, driver.provide(dsn, lambda name: Scope(schema=name)))
    assert tenant.server.execute('SELECT count(*) FROM "a".postroom_inbox', database=tenant.name) == "6"
    assert tenant.server.execute("SELECT count(*) FROM public.orders", database=tenant.name) == "0"


async def test_rows_of_their_own(driver: Driver, dsn: str, tenant: TenantDatabase) -> None:
    """Row-level security reads the setting; a business key of one tenant is no duplicate of another's."""
    await _interleave(driver, driver.provide(dsn, lambda name: Scope(settings={"app.tenant": name})))
    assert tenant.server.execute("SELECT count(*) FROM postroom_inbox", database=tenant.name) == "18"


@pytest.mark.parametrize("user", ["a superuser", "the owner", "another user"])
async def test_a_user_to_whom_row_level_security_does_not_apply_is_told_of(
    driver: Driver, tenant: TenantDatabase, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    """It sees the rows of all tenants, without a word of PostgreSQL."""
    role = f"app{secrets.token_hex(4)}"
    tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    tenant.server.execute(
        f"GRANT CREATE ON SCHEMA public TO {role}; CREATE TABLE orders (tenant text); "
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        database=tenant.name,
    )
    if user == "the owner":
        tenant.server.execute(f"ALTER TABLE orders OWNER TO {role}", database=tenant.name)
    dsn = tenant.dsn
    if user != "a superuser":
        dsn = dsn.replace(f"postroom:{tenant.server.password}", f"{role}:p")
    provider = driver.provide(dsn, lambda name: Scope(settings={"app.tenant": name}))
    for name in ("a", "b"):
        async with provider(name):
            pass
    said = {
        "a superuser": ["its user postroom is a superuser or has BYPASSRLS"],
        "the owner": [f"its user {role} owns orders"],
        "another user": [],
    }
    lines = [line for line in caplog.messages if "row-level security does not apply" in line]
    assert [line.partition("apply: ")[2].partition(".")[0] for line in lines] == said[user]
    assert all(line.startswith("Tenant a: ") for line in lines)
    tenant.server.execute(f"DROP OWNED BY {role} CASCADE", database=tenant.name)


async def test_a_server_that_hides_its_roles_opens_tenants(
    driver: Driver, tenant: TenantDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """As one of several customers may. What was to be warned of is not known there."""
    role = f"app{secrets.token_hex(4)}"
    tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    tenant.server.execute(
        f"GRANT CREATE ON SCHEMA public TO {role}; REVOKE SELECT ON pg_roles FROM PUBLIC", database=tenant.name
    )
    dsn = tenant.dsn.replace(f"postroom:{tenant.server.password}", f"{role}:p")
    async with driver.provide(dsn, lambda name: Scope(settings={"app.tenant": name}))("a"):
        found = tenant.server.execute("SELECT tablename FROM pg_tables WHERE tablename ~ 'inbox'", database=tenant.name)
    assert found == "postroom_inbox"
    assert "row-level security" not in caplog.text
    tenant.server.execute(f"DROP OWNED BY {role} CASCADE", database=tenant.name)


async def test_outside_of_a_transaction_nothing_of_a_tenant_is_seen(dsn: str) -> None:
    """A forgotten transaction finds no rows; it does not find another tenant's."""
    async with _asyncpg(dsn, lambda name: Scope(settings={"app.tenant": name}))("a") as db:
        await _work(DRIVERS[0], db, "m-1", "1")
        assert await db.pool.fetchval("SELECT count(*) FROM orders") == 0
        async with db.transaction() as tx:
            assert await tx.fetchval("SELECT count(*) FROM orders") == 1
        assert await db.purge_inbox(older_than=0) == 1


async def test_one_pool_for_all_tenants(dsn: str) -> None:
    """A provider of one's own gives each tenant its view of a pool that all share."""
    async with asyncpg_pool(_at(dsn), max_size=1, options={"statement_cache_size": 0})("all") as pool:
        databases = [AsyncpgDatabase(pool, postgres_inbox(), scope=Scope(schema=name)) for name in ("a", "b")]
        for db in databases:
            await db.prepare(create=True)
        await asyncio.gather(*(_work(DRIVERS[0], db, f"m-{n}", f"{n}") for n in range(4) for db in databases))
        for db in databases:
            assert await _work(DRIVERS[0], db, "last", "4") == list("01234")


async def test_a_missing_schema_is_found_at_opening(driver: Driver, tenant: TenantDatabase) -> None:
    """PostgreSQL itself takes any search_path."""
    with pytest.raises(ConfigurationError, match="no schema 'nowhere'"):
        async with driver.provide(tenant.dsn, lambda _: Scope(schema="nowhere"))("a"):
            pass


async def test_a_tenant_without_a_scope_is_unknown() -> None:
    """It is a part of the registry, and is asked before anything is opened."""
    none: dict[str, Scope] = {}
    answers: list[ScopeOf] = [none.get, none.__getitem__]
    for answer in answers:
        with pytest.raises(UnknownTenant):
            async with _asyncpg("postgresql://app@nowhere.invalid/a", answer)("a"):
                pass


def test_a_scope_that_limits_nothing_is_refused() -> None:
    """It would look like isolation."""
    for schema in (None, "", "a\0b"):
        with pytest.raises(ConfigurationError, match="Scope"):
            Scope(schema=schema, settings={})


def test_keys_of_tenants_do_not_meet() -> None:
    """Whatever their names and their keys look like."""
    made = {
        Scope(settings={"app.tenant": name}).key(MessageKey("q", key))
        for name, key in [("a", "b/c"), ("a/b", "c"), ("1:a", "c"), ("a", "1:b/c"), ("", "a")]
    }
    assert len(made) == 5
