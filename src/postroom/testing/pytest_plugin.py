"""pytest fixtures. Loaded wherever postroom is installed, so it imports nothing until a fixture is asked for."""

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postroom.local.threaded import ThreadedServer
    from postroom.testing.postgres import PostgresServer

_numbers = count()


@pytest.fixture
def sqs_server() -> "Iterator[ThreadedServer]":
    """Run a local SQS for one test, in a thread of its own.

    It has ``endpoint_url``, ``client_options`` (for ``boto3.client("sqs", **sqs_server.client_options)``),
    ``create_queue(name, attributes)``, ``queue_url(name)``, ``counts(name)`` and ``call(function)``, which calls a
    function with the broker itself.
    """
    from postroom.local.threaded import ThreadedServer  # noqa: PLC0415 - a test run without it does not pay for it

    with ThreadedServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> "Iterator[PostgresServer]":
    """Run a real PostgreSQL for the whole test session, of the extra ``postgres-server`` or of this system.

    It has ``create_database(name, schema=...)``, which returns the DSN, ``execute(sql)``, ``kill()``, ``freeze()``,
    ``thaw()`` and ``restart()``. Tests that need it are skipped where there is no PostgreSQL.
    """
    from postroom.errors import ConfigurationError  # noqa: PLC0415
    from postroom.testing.postgres import PostgresServer  # noqa: PLC0415

    server = PostgresServer()
    try:
        server.start()
    except ConfigurationError as error:
        pytest.skip(f"no PostgreSQL can be started here: {error}")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def postgres_dsn(postgres_server: "PostgresServer") -> "Iterator[str]":
    """Make an empty PostgreSQL database for one test, and return its DSN. It is dropped afterwards."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)
