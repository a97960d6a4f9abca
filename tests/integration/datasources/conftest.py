"""One tenant's database per test; a test may freeze or kill its server."""

from collections.abc import Iterator

import pytest

from postroom.testing.postgres import PostgresServer
from support.tenant_database import TenantDatabase


@pytest.fixture
def tenant(postgres_server: PostgresServer, database: str) -> Iterator[TenantDatabase]:
    """An empty database. The server is brought back to life afterwards."""
    yield TenantDatabase(postgres_server, database)
    postgres_server.thaw()
    if not postgres_server.running:
        postgres_server.restart()
