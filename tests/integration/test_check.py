"""The inspection asks real databases how many connections they take."""

from typing import Any

import pytest

from postroom import Consumer, MessageContext
from postroom.datasources import Registry, asyncpg_inbox, asyncpg_pool, psycopg_connections, psycopg_pool
from postroom.datasources import sqlalchemy_engine as engine
from postroom.inspection import Deployment, inspect_consumer
from postroom.inspection.databases import look_at_databases
from postroom.testing.postgres import PostgresServer


def _consumer(provider: Any) -> Consumer[Any, Any]:
    made: Consumer[Any, Any] = Consumer("orders", context=lambda message: message.attributes["t"], resources=provider)

    @made.handler
    async def handle(payload: dict[str, Any], ctx: MessageContext[Any, Any]) -> None: ...

    return made


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["asyncpg_pool", "asyncpg_inbox", "psycopg_pool", "psycopg_connections", "sqlalchemy"])
async def test_a_tenants_server_is_asked_what_it_takes(
    kind: str, postgres_server: PostgresServer, database: str
) -> None:
    """Through whatever driver: what applications may open, superusers' reserve left out."""
    registry = Registry({"acme": postgres_server.dsn(database)})
    providers: dict[str, Any] = {
        "asyncpg_pool": asyncpg_pool,
        "asyncpg_inbox": lambda registry: asyncpg_inbox(asyncpg_pool(registry), create=True),
        "psycopg_pool": psycopg_pool,
        "psycopg_connections": psycopg_connections,
        "sqlalchemy": engine,
    }
    made = _consumer(providers[kind](registry))
    asked = "show max_connections", "show superuser_reserved_connections"
    total, reserved = (int(postgres_server.execute(sql, database=database)) for sql in asked)
    fits = (total - reserved) // 100
    for replicas, level in ((fits, "ok"), (fits + 1, "error")):
        if not replicas:
            continue
        deployment = Deployment(replicas=replicas, attributes={"t": "acme"})
        found = await look_at_databases(made, deployment, offline=False)
        assert [finding.topic for finding in found] == ["resources", "connections"]
        assert found[-1].level == level
        assert str(total - reserved) in found[-1].found


@pytest.mark.postgres
async def test_a_tenant_that_cannot_be_opened_is_an_error_without_its_password(
    postgres_server: PostgresServer, database: str
) -> None:
    """The text names the tenant and the cause, and no DSN."""
    registry = Registry({"acme": postgres_server.dsn("no-such-database").replace("postgresql://", "postgresql://")})
    report = await inspect_consumer(
        _consumer(asyncpg_pool(registry)), Deployment(attributes={"t": "acme"}), offline=False
    )
    [found] = [finding for finding in report.findings if finding.topic == "resources"]
    assert found.level == "error"
    assert "acme" in found.found
    assert "postgresql://" not in found.found
    assert database
