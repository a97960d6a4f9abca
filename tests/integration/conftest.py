"""Real servers for the integration tests: one PostgreSQL per test process, one database per test."""

import itertools
from collections.abc import Iterator

import pytest

from postroom.testing.postgres import PostgresServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole test process. A test that kills it restarts it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of an empty database that only this test uses."""
    name = f"test-{next(_numbers)}"
    postgres_server.create_database(name)
    yield name
    postgres_server.drop_database(name)
