"""The fixtures that every test run with postroom has."""

from urllib.parse import urlsplit

import psycopg
import pytest

from postroom.testing.postgres import PostgresServer


@pytest.mark.postgres
def test_a_test_gets_an_empty_database_of_its_own(postgres_dsn: str, postgres_server: PostgresServer) -> None:
    """Of the server that lives for the session."""
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("CREATE TABLE orders (id text PRIMARY KEY)")
        tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
        assert connection.execute(tables).fetchone() == (1,)
    assert urlsplit(postgres_dsn).port == postgres_server.port


@pytest.mark.postgres
def test_the_next_test_finds_nothing_of_the_last(postgres_dsn: str) -> None:
    """The database was dropped."""
    with psycopg.connect(postgres_dsn) as connection:
        tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
        assert connection.execute(tables).fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM pg_database WHERE datname LIKE 'test_%'").fetchone() == (1,)
