"""Real servers for the integration tests: one PostgreSQL per test process, one database per test."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from integration.workers import Site
from postroom.local import LocalBroker, LocalServer
from postroom.testing.postgres import PostgresError
from support.quick_postgres import QuickServer

_numbers = itertools.count(1)
_EMPTY = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
END $$;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
SELECT count(*) FROM pg_database LEFT JOIN pg_db_role_setting ON setdatabase = pg_database.oid
    WHERE datname = current_database() AND datacl IS NULL AND datconnlimit = -1 AND datallowconn AND setconfig IS NULL
"""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[QuickServer]:
    """One PostgreSQL for the whole test process. A test that kills it restarts it."""
    with QuickServer() as server:
        yield server


@pytest.fixture(scope="session")
def _empty_databases() -> list[str]:
    return []


@pytest.fixture
def database(postgres_server: QuickServer, _empty_databases: list[str]) -> Iterator[str]:
    """The name of an empty database that no other test uses meanwhile. To empty one takes a third of making one."""
    if _empty_databases:
        name = _empty_databases.pop()
    else:
        name = f"test-{next(_numbers)}"
        postgres_server.create_database(name)
    yield name
    try:
        as_new = postgres_server.look(_EMPTY, database=name) == "1"
    except PostgresError:
        as_new = False
    postgres_server.look_away(name)
    if as_new:
        _empty_databases.append(name)
    else:
        postgres_server.drop_database(name)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A local SQS over HTTP."""
    async with LocalBroker() as broker, LocalServer(broker) as server:
        broker.create_queue("orders", {"VisibilityTimeout": "30"})
        yield Site(broker, server.endpoint_url, tmp_path)
