"""A real PostgreSQL for the documents' code."""

from collections.abc import Iterator

import pytest

from postroom.testing.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole test process."""
    with PostgresServer() as server:
        yield server
