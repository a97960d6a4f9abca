"""The outbox's table: the SQL that makes it, for your migrations, and what writes into it."""

import re
import sqlite3
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeAlias, cast

import msgspec

from postroom.checking import check_queue
from postroom.datasources._sqlite_sync import SqliteSyncTransaction
from postroom.datasources.sqlite import SqliteTransaction
from postroom.errors import ConfigurationError
from postroom.message import OutgoingMessage
from postroom.sending import Sender
from postroom.tasks import is_in_loop

if TYPE_CHECKING:
    import asyncpg
    import psycopg
    from asyncpg.pool import PoolConnectionProxy
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    Transaction: TypeAlias = (
        asyncpg.Connection[Any]
        | PoolConnectionProxy[Any]
        | psycopg.AsyncConnection[Any]
        | AsyncConnection
        | AsyncSession
        | SqliteTransaction
    )
    """What a handler or a request works with inside of its transaction."""

DEFAULT_TABLE: Final = "postroom_outbox"
_TABLE: Final = re.compile(r"(?:[a-z_][a-z0-9_]{0,62}\.)?([a-z_][a-z0-9_]{0,50})")
_SQLITE: Final = "sqlite"
_POSTGRES: Final = "postgres"
_SYNC: Final = {("psycopg", "Connection"), ("sqlalchemy", "Connection"), ("sqlalchemy", "Session")}
"""Transactions of plain functions, which run inline in virtual time, where a loop runs as well."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """One outbox table. Made by ``postgres_outbox``; ``SQLITE_OUTBOX`` is that of a SQLite file."""

    table: str
    schema: str = field(repr=False)
    """Statements that create the table where it does not exist."""
    dialect: str = field(repr=False)

    def add(self, tx: "Transaction", to: "Sender[Any] | str", *messages: OutgoingMessage) -> Coroutine[Any, Any, None]:
        """Write messages into the outbox, in a transaction that is open. They are sent after its commit, or never.

            async with ctx.transaction() as tx:
                await tx.execute("INSERT INTO invoices VALUES ($1)", invoice.id)
                await outbox.add(tx, invoices, invoices.message(invoice, context=ctx.context))

        Args:
            tx: what the driver works with: a connection of asyncpg or psycopg, an ``AsyncConnection`` or
                ``AsyncSession`` of SQLAlchemy, a ``SqliteTransaction``. Its transaction may be anyone's: a handler's
                ``ctx.transaction()``, or that of a web request.
            to: the sender of the queue, or the queue's name, URL or ARN.
            messages: what ``Sender.message`` made. On FIFO queues each gets a deduplication id here, which it
                keeps however often it is sent.

        Raises:
            ConfigurationError: there is no transaction: each statement would be committed by itself. Or ``tx`` is of
                no driver that is known, ``to`` cannot be the name of a queue, or it is called in a plain ``def``,
                which cannot await it.
        """
        # Not in the coroutine: a plain function never awaits it, and its message would be lost in silence.
        if not _can_await(tx):
            raise ConfigurationError(_IN_PLAIN_DEF[self.dialect])
        return _insert(tx, self, [_row(to, message) for message in messages])

    def insert(self, connection: sqlite3.Connection, to: "Sender[Any] | str", *messages: OutgoingMessage) -> None:
        """Do what ``add`` does in a unit of work of a ``SqliteDatabase``, which is a plain function.

        Raises:
            ConfigurationError: there is no transaction, or this is no outbox of SQLite.
        """
        if self.dialect != _SQLITE:
            raise ConfigurationError("outbox.insert() is for SQLite: use SQLITE_OUTBOX, or `await outbox.add(tx, ...)`")
        if not connection.in_transaction:
            raise _no_transaction("BEGIN")
        connection.executemany(self.sqlite_insert, [_row(to, message) for message in messages])

    @property
    def sqlite_insert(self) -> str:
        """Insert one row: queue, order, message."""
        return f"INSERT INTO {self.table} (queue, ordered_by, message) VALUES (?, ?, ?)"  # noqa: S608

    @property
    def postgres_insert(self) -> str:
        """Insert rows, given as one JSON array of queue, order and message."""
        return (
            f"INSERT INTO {self.table} (queue, ordered_by, message) "  # noqa: S608
            "SELECT item ->> 0, item ->> 1, item ->> 2 "
            f"FROM json_array_elements({json_of('$1')}) WITH ORDINALITY AS items (item, place) ORDER BY place"
        )


def postgres_outbox(table: str = DEFAULT_TABLE) -> Outbox:
    """Return the outbox of a PostgreSQL database; its ``schema`` is for your migrations.

    Args:
        table: its name, in lower case, with or without a schema: ``orders.outbox``.

    Raises:
        ConfigurationError: that is no name for a table.
    """
    named = _TABLE.fullmatch(str(table))
    if named is None:
        raise ConfigurationError(f"an outbox table has a plain lower-case name, or schema.name; got {table!r}")
    return Outbox(
        table,
        schema=(
            f"CREATE TABLE IF NOT EXISTS {table} (\n"
            "    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,\n"
            "    queue text NOT NULL,\n"
            "    ordered_by text,\n"
            "    message text NOT NULL,\n"
            "    written_at timestamptz NOT NULL DEFAULT now(),\n"
            "    failed_at timestamptz,\n"
            "    reason text\n"
            ");\n"
            f"CREATE INDEX IF NOT EXISTS {named[1]}_any ON {table} (id)\n"
            "    WHERE ordered_by IS NULL AND failed_at IS NULL;\n"
            f"CREATE INDEX IF NOT EXISTS {named[1]}_ordered ON {table} (id) INCLUDE (queue, ordered_by)\n"
            "    WHERE ordered_by IS NOT NULL AND failed_at IS NULL;\n"
            f"CREATE INDEX IF NOT EXISTS {named[1]}_groups ON {table} (queue, ordered_by, id)\n"
            "    WHERE ordered_by IS NOT NULL AND failed_at IS NULL;\n"
        ),
        dialect=_POSTGRES,
    )


SQLITE_OUTBOX: Final = Outbox(
    DEFAULT_TABLE,
    schema=(
        f"CREATE TABLE IF NOT EXISTS {DEFAULT_TABLE} (\n"
        "    id INTEGER PRIMARY KEY AUTOINCREMENT,\n"
        "    queue TEXT NOT NULL,\n"
        "    ordered_by TEXT,\n"
        "    message TEXT NOT NULL,\n"
        "    written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,\n"
        "    failed_at TEXT,\n"
        "    reason TEXT\n"
        ");\n"
        f"CREATE INDEX IF NOT EXISTS {DEFAULT_TABLE}_waiting ON {DEFAULT_TABLE} (id) WHERE failed_at IS NULL;\n"
    ),
    dialect=_SQLITE,
)
"""The outbox of a SQLite file: pass its ``schema`` to ``sqlite_database(schema=...)``."""


def json_of(parameter: str) -> str:
    """Return the SQL of a parameter that holds JSON. It is bound as text: connections may have a codec for JSON."""
    return f"CAST(CAST({parameter} AS text) AS json)"


def is_sqlite(outbox: Outbox) -> bool:
    """Return whether it is the outbox of a SQLite file."""
    return outbox.dialect == _SQLITE


def _row(to: object, message: object) -> tuple[str, str | None, str]:
    """Return a message as a row: its queue, what orders it, and itself as JSON."""
    queue = cast("Sender[Any]", to).queue if isinstance(to, Sender) else to
    if not isinstance(queue, str) or not queue:
        raise ConfigurationError(f"outbox.add(tx, to, ...) takes a Sender or the name of a queue; got {queue!r}")
    check_queue("outbox.add(tx, to, ...)", queue)
    if not isinstance(message, OutgoingMessage):
        text = "outbox.add(tx, sender, ...) takes messages, which sender.message(payload, context=...) makes"
        raise ConfigurationError(f"{text}; got {type(message).__name__}")
    ordered = queue.endswith(".fifo")
    if ordered and message.group_id is None:
        raise ConfigurationError(f"queue {queue!r} is a FIFO queue, and each message needs a group: say group=...")
    if ordered and message.deduplication_id is None:
        message = msgspec.structs.replace(message, deduplication_id=uuid.uuid4().hex)
    return queue, message.group_id if ordered else None, msgspec.json.encode(message).decode()


_IN_PLAIN_DEF: Final = {
    _SQLITE: "outbox.add() is awaited, which a plain `def` cannot do: write "
    "tx.run(lambda connection: SQLITE_OUTBOX.insert(connection, sender, message))",
    _POSTGRES: "outbox.add() is awaited, which a plain `def` cannot do: write the handler as `async def`, with an "
    "async provider such as asyncpg_inbox(...)",
}


def _can_await(tx: object) -> bool:
    """Whether the caller is async: it runs in an event loop, and its transaction is none for plain functions."""
    if not is_in_loop():
        return False
    kinds = {(each.__module__.partition(".")[0], each.__name__) for each in type(tx).__mro__}
    return not isinstance(tx, SqliteSyncTransaction) and kinds.isdisjoint(_SYNC)


async def _insert(tx: Any, outbox: Outbox, rows: Sequence[tuple[str, str | None, str]]) -> None:
    """Write rows with whatever driver ``tx`` is of."""
    if not rows:
        return
    drivers = {each.__module__.partition(".")[0] for each in type(tx).__mro__}
    if isinstance(tx, SqliteTransaction) == (outbox.dialect != _SQLITE):
        text = "SQLITE_OUTBOX is for a SqliteTransaction, and postgres_outbox() for a transaction of PostgreSQL"
        raise ConfigurationError(f"{text}; got {type(tx).__name__} with the outbox of {outbox.dialect}")
    if isinstance(tx, SqliteTransaction):
        await tx.run(lambda connection: connection.executemany(outbox.sqlite_insert, rows).rowcount)
        return
    written = msgspec.json.encode(rows).decode()
    if "asyncpg" in drivers:
        if not tx.is_in_transaction():
            raise _no_transaction("async with connection.transaction():")
        await tx.execute(outbox.postgres_insert, written)
    elif "psycopg" in drivers:
        if tx.autocommit and tx.info.transaction_status.name == "IDLE":
            raise _no_transaction("async with connection.transaction():")
        await tx.execute(cast("LiteralString", outbox.postgres_insert.replace("$1", "%s")), (written,))
    elif "sqlalchemy" in drivers:
        import sqlalchemy  # noqa: PLC0415 - an extra

        if await _commits_each_statement(tx):
            raise _no_transaction("on an engine without isolation_level=AUTOCOMMIT")
        await tx.execute(sqlalchemy.text(outbox.postgres_insert.replace("$1", ":rows")), {"rows": written})
    else:
        text = "outbox.add(tx, ...) takes a connection of asyncpg or psycopg, an AsyncConnection or AsyncSession of "
        raise ConfigurationError(f"{text}SQLAlchemy, or a SqliteTransaction; got {type(tx).__name__}")


async def _commits_each_statement(tx: Any) -> bool:
    """Whether an ``AsyncConnection`` or ``AsyncSession`` is in AUTOCOMMIT: then it says that it has a transaction."""
    connection = tx if hasattr(tx, "get_raw_connection") else await tx.connection()
    driver = (await connection.get_raw_connection()).dbapi_connection
    return getattr(driver, "autocommit", False) is True


def _no_transaction(begin: str) -> ConfigurationError:
    text = "there is no open transaction, so the message would not be written together with your changes; begin one: "
    return ConfigurationError(text + begin)
