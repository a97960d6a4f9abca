"""The code in docs/datasources.md runs as it stands."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker

from postroom import Consumer
from postroom.datasources import CachedPassword, Provider, SqliteDatabase
from postroom.testing.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "datasources.md").read_text(encoding="utf-8")
REGISTRY, PASSWORDS, MAPPED, OWN, SCOPES, FILES, WORK, SERVER = re.findall(
    r"```python\n(.*?)```", TEXT, flags=re.DOTALL
)


def _run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "datasources.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    return names


async def test_the_registry_example_makes_a_pool_and_a_consumer() -> None:
    """Nothing is opened before it is entered."""
    names = _run(REGISTRY)
    assert isinstance(names["orders"], Consumer)
    assert names["databases"].statistics().budget == 200


def test_the_password_examples_fetch_nothing_yet() -> None:
    """Not before the first connection."""
    names = _run(PASSWORDS)
    assert isinstance(names["with_token"].password, CachedPassword)
    assert isinstance(names["with_secret"].password, CachedPassword)


@pytest.mark.postgres
async def test_the_mapped_example_gives_sessions(postgres_server: PostgresServer) -> None:
    """With the weight and the check of the engine."""
    dsn = postgres_server.create_database("mapped")
    sessions = _run(MAPPED.replace("postgresql://app@db-1.internal/tenant_a", dsn))["sessions"]
    assert (sessions.weight, sessions.check is None) == (4, False)
    async with sessions("tenant-a") as factory:
        assert isinstance(factory, async_sessionmaker)
        assert await sessions.check(factory)


@pytest.mark.postgres
async def test_the_example_of_a_provider_of_ones_own_fails_to_open_without_its_database(
    postgres_server: PostgresServer,
) -> None:
    """With its database it opens."""
    databases = _run(OWN)["databases"]
    dsn = postgres_server.create_database("own")
    assert isinstance(databases, Provider)
    async with databases(dsn) as pool:
        assert await pool.fetchval("SELECT 1") == 1
    port = f":{postgres_server.port}/"
    with pytest.raises(OSError, match="Connect"):
        async with databases(dsn.replace(port, ":1/")):
            pass


@pytest.mark.postgres
async def test_the_scope_examples_keep_tenants_apart(postgres_server: PostgresServer) -> None:
    """By a schema, or by a setting."""
    dsn = postgres_server.create_database("shared", schema="CREATE SCHEMA t_a; CREATE SCHEMA t_b")
    code = SCOPES.replace("postgresql://app@db-1.internal/shared", dsn)
    names = _run(code.replace("scope=", "create=True, scope="), Tenant=object)
    questions = {"by_schema": "SHOW search_path", "by_row": "SELECT current_setting('app.tenant')"}
    for name, question in questions.items():
        for tenant in ("a", "b"):
            async with names[name](SimpleNamespace(tenant_id=tenant)) as database, database.transaction() as tx:
                assert await tx.fetchval(question) == {"by_schema": f'"t_{tenant}", pg_temp', "by_row": tenant}[name]


async def test_the_sqlite_examples_record_an_order(tmp_path: Path) -> None:
    """With the schema of the first and the unit of work of the second."""
    names = _run(
        FILES.replace("/var/lib/orders", str(tmp_path)).replace("schema=", "create=True, schema="), Tenant=object
    )
    names |= _run(WORK)
    tenant = type("Tenant", (), {"tenant_id": "a:b", "region": "c"})
    async with names["files"](tenant) as database:
        assert isinstance(database, SqliteDatabase)
        assert await names["record"](database, "order-001", "99.99") == 1
        assert [tuple(row) for row in await database.fetch("SELECT * FROM orders")] == [("order-001", "99.99")]


@pytest.mark.postgres
def test_the_server_example_survives_a_kill() -> None:
    """And is gone afterwards."""
    names = _run(SERVER)
    assert "tenant-a" in names["dsn"]
    assert not names["server"].running
