"""What the tests of SQLite begin with, and how they end."""

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from postroom.datasources import SqliteDatabase, sqlite_database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    """An open database with an empty table."""
    schema = "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY) STRICT;"
    async with sqlite_database(tmp_path.joinpath, create=True, schema=schema)("a.sqlite3") as opened:
        yield opened


@pytest.fixture
def no_thread_stays() -> Iterator[None]:
    """Every test ends with as many threads as it began with."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread
