"""What a server refuses, as psycopg tells it: a login without its SQLSTATE, a write without its reason."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow, tuple_row

from postroom.datasources._read_only import TAKES_WRITES, is_refused_write, judge
from postroom.datasources._reset import prepare_again
from postroom.resources.failures import of_message

# libpq reports a refused login without its SQLSTATE. The words are the server's, in English.
_REFUSALS: Final = (
    ("28P01", "password authentication failed", ""),
    ("3D000", 'database "', "does not exist"),
    ("28000", "no pg_hba.conf entry", ""),
    ("53300", "too many c", ""),  # "too many clients already", "too many connections for role"
    ("53300", "remaining connection slots are reserved", ""),
    ("57P03", "the database system is ", ""),  # starting up, shutting down, in recovery mode
)


def refusal_of(error: BaseException) -> psycopg.Error | None:
    """Return the error of a refused login with its SQLSTATE, where libpq reports it without."""
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        text = str(error)
        for code, *words in _REFUSALS:
            if all(word in text for word in words):
                return psycopg.errors.lookup(code)(text)
    return None


def _closed_itself(error: BaseException, connection: "psycopg.AsyncConnection[Any] | psycopg.Connection[Any]") -> bool:
    """Return whether a connection is closed because its user closed it: psycopg calls a lost one broken.

    By the text, too: one that was lost may have been closed by a ``finally``, and then its loss is told.
    """
    told = isinstance(error, psycopg.OperationalError) and str(error) == "the connection is closed"
    return told and connection.closed and not connection.broken


@asynccontextmanager
async def judged(connection: "psycopg.AsyncConnection[TupleRow]") -> AsyncGenerator[None]:
    """Ask the server of a connection what a write means that it refuses in the block, and see who closed it."""
    try:
        yield
    except Exception as error:
        prepare_again(error, connection)
        if _closed_itself(error, connection):
            of_message(error)
        elif is_refused_write(error):
            await judge(error, partial(_ask, connection))
        raise


async def _ask(connection: "psycopg.AsyncConnection[TupleRow]", sql: Any) -> object:
    await connection.rollback()
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    row = await (await cursor.execute(sql)).fetchone()
    await connection.rollback()
    return row is not None and row[0]


@contextmanager
def judged_sync(connection: psycopg.Connection[TupleRow]) -> Generator[None]:
    """Ask the server of a connection what a write means that it refuses in the block, and see who closed it."""
    try:
        yield
    except Exception as error:
        prepare_again(error, connection)
        if _closed_itself(error, connection):
            of_message(error)
        elif is_refused_write(error):
            judge_refusal_sync(error, connection)
        raise


def judge_refusal_sync(error: BaseException, connection: psycopg.Connection[TupleRow]) -> None:
    """Rule that a refused write is the message's own, if its server takes writes."""
    with suppress(psycopg.Error):  # without an answer it may be an outage
        connection.rollback()
        row = psycopg.Cursor(connection, row_factory=tuple_row).execute(TAKES_WRITES).fetchone()
        connection.rollback()
        if row is not None and row[0]:
            of_message(error)
