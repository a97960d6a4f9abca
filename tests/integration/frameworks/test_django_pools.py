"""A pool of Django's own: each block gets a connection as new, as it would without one."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from postroom import ConfigurationError
from postroom.integrations.django import TenantAlias, tenant_databases, using_tenant
from postroom.testing.postgres import PostgresServer
from support.django_shop import entry

from django.db import connections  # isort: skip
from postroom.integrations.django.pooling import reset_between_users  # isort: skip

pytestmark = pytest.mark.postgres
ONE = {"min_size": 1, "max_size": 1}


@asynccontextmanager
async def pooled(server: PostgresServer, database: str, **options: Any) -> AsyncGenerator[TenantAlias]:
    """Lease a database with a pool of one connection."""
    own = {**entry(server, database, **{"pool": ONE, **options}), "TIME_ZONE": "Europe/Oslo"}
    async with tenant_databases({"acme": own}.get).pool() as pool, pool.lease("acme") as alias:
        yield alias


def sessions(alias: TenantAlias, *uses: Callable[[Any], Any]) -> list[Any]:
    """Let blocks, one after the other, use the driver's connection, and return what they found."""
    found = []
    for use in uses:
        with using_tenant(alias):
            connections[alias].ensure_connection()
            found.append(use(connections[alias].connection))
    return found


def one(sql: str) -> Callable[[Any], Any]:
    """Return what asks for the only value of a query."""
    return lambda connection: connection.execute(sql).fetchone()[0]


STATE = """
select concat_ws('/', pg_backend_pid(), current_user, nullif(current_setting('shop.tenant', true), ''),
    current_setting('search_path'), current_setting('timezone'),
    (select count(*) from pg_locks where locktype = 'advisory'), to_regclass('pg_temp.basket'))
"""
TENANT = "select coalesce(current_setting('shop.tenant', true), '')"
LEFT = """
set shop.tenant = 'acme'; set search_path = other; set timezone = 'Asia/Tokyo'; select pg_advisory_lock(1);
create temp table basket (x int); set role passing
"""


async def test_a_session_ends_with_its_block(postgres_server: PostgresServer, database: str) -> None:
    """Roles, settings, locks and temporary tables; the time zone is the entry's again."""
    postgres_server.execute("create role passing")
    try:
        async with pooled(postgres_server, database) as alias:
            first, _, last = await asyncio.to_thread(sessions, alias, one(STATE), lambda c: c.execute(LEFT), one(STATE))
        assert first == last
        assert "/Europe/Oslo/0" in last
    finally:
        postgres_server.execute("drop role passing")


async def test_what_the_driver_keeps_ends_with_its_block(postgres_server: PostgresServer, database: str) -> None:
    """Factories, flags and handlers of notices on this side of the connection."""

    def state(connection: Any) -> Any:
        return connection.row_factory, connection.read_only, len(connection._notice_handlers), id(connection)

    def leave(connection: Any) -> None:
        connection.row_factory = psycopg.rows.dict_row
        connection.read_only = True
        connection.add_notice_handler(print)

    async with pooled(postgres_server, database) as alias:
        first, _, last = await asyncio.to_thread(sessions, alias, state, leave, state)
    assert first == last


def test_the_role_of_the_entry_stays(postgres_server: PostgresServer, database: str) -> None:
    """Django takes it once for each connection of a pool."""
    postgres_server.execute("create role shopkeeper")
    options: dict[str, Any] = {"pool": True, "assume_role": "shopkeeper"}
    wrapper = SimpleNamespace(vendor="postgresql", settings_dict={"OPTIONS": options}, timezone_name="UTC")
    reset_between_users(wrapper, 5)
    try:
        with options["pool"]["connection_class"].connect(postgres_server.dsn(database), autocommit=True) as connection:
            options["pool"]["reset"](connection)
            assert connection.execute("select current_user").fetchone() == ("shopkeeper",)
    finally:
        postgres_server.execute("drop role shopkeeper")


async def test_the_entrys_own_reset_and_class_are_used_too(postgres_server: PostgresServer, database: str) -> None:
    """A reset sees a connection as new, and what it sets is there for the next user. The entry stays as it is."""

    class Own(psycopg.Connection[Any]):
        pass

    def reset(connection: Any) -> None:
        connection.execute(f"set shop.tenant = 'found {one(TENANT)(connection) or 'nothing'}'")

    pool = {**ONE, "reset": reset, "connection_class": Own}
    async with pooled(postgres_server, database, pool=pool) as alias:

        def look(connection: Any) -> Any:
            return type(connection), one(TENANT)(connection)

        found = await asyncio.to_thread(sessions, alias, lambda c: c.execute("set shop.tenant = 'acme'"), look)
    kind, tenant = found[1]
    assert issubclass(kind, Own)
    assert tenant == "found nothing"
    assert pool == {**ONE, "reset": reset, "connection_class": Own}


async def test_a_connection_that_cannot_be_reset_is_not_used_again(
    postgres_server: PostgresServer, database: str
) -> None:
    """The next block gets another one."""

    def leave(connection: Any) -> int:
        connection.execute("set shop.tenant = 'acme'")
        postgres_server.execute(f"select pg_terminate_backend({connection.info.backend_pid}, 5000)")
        return int(connection.info.backend_pid)

    def look(connection: Any) -> tuple[int, str]:
        return connection.info.backend_pid, one(TENANT)(connection)

    async with pooled(postgres_server, database) as alias:
        first, (second, tenant) = await asyncio.to_thread(sessions, alias, leave, look)
    assert second != first
    assert not tenant


def test_a_pool_that_is_not_of_postgresql_is_refused() -> None:
    """Django has one for Oracle. Its sessions would meet."""
    connection = SimpleNamespace(vendor="oracle", settings_dict={"OPTIONS": {"pool": True}})
    with pytest.raises(ConfigurationError, match=r"must not have OPTIONS=.*pool.*oracle"):
        reset_between_users(connection, 5)
