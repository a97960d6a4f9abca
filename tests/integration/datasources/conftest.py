"""One tenant's database per test; a test may freeze or kill its server."""

from collections.abc import Iterator

import pytest

from support.quick_postgres import QuickServer
from support.tenant_database import TenantDatabase


@pytest.fixture
def tenant(postgres_server: QuickServer, database: str) -> Iterator[TenantDatabase]:
    """An empty database. The server is brought back to life afterwards."""
    yield TenantDatabase(postgres_server, database)
    postgres_server.thaw()
    if not postgres_server.running:
        postgres_server.restart()
