"""One round of a relay: rows are taken, so that no other relay has them, and removed when they were sent."""

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Collection, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, cast

import msgspec

from postroom.datasources._postgres_inbox import PostgresDatabase, Work
from postroom.datasources.sqlite import SqliteDatabase
from postroom.display import counted
from postroom.errors import ConfigurationError
from postroom.message import OutgoingMessage
from postroom.outbox.tables import Outbox, is_sqlite, json_of
from postroom.redaction import sqlstate_of

ROWS: Final = 100
"""Rows of a round."""
BYTES: Final = 4 * 1_048_576
"""Bytes of the messages of a round: this much is in memory, and one message more."""
_GROUPS: Final = 10
"""Groups of FIFO queues of a round."""
_LOOKED_AT: Final = 1_000
"""The oldest ordered rows, among which groups are looked for."""


class NoOutbox(ConfigurationError):
    """The relay's resources have no outbox that is known here. If no tenant's have had one, the relay ends."""


class Row(msgspec.Struct, frozen=True):
    """One message that waits in an outbox."""

    id: int
    queue: str
    message: OutgoingMessage | None
    """None: what stands in the row is no message."""


class Round(Protocol):
    """Rows that are ours until the round ends. What is not removed or set aside waits for the next one."""

    @property
    def rows(self) -> Sequence[Row]:
        """The rows, the oldest first."""
        ...

    async def remove(self, ids: Collection[int]) -> str | None:
        """Delete rows: they were sent. What cannot be deleted is set aside; returns what to do about that."""
        ...

    async def set_aside(self, reasons: Sequence[tuple[int, str]]) -> None:
        """Keep rows that can never be sent, with the reason, and let others pass."""
        ...


@asynccontextmanager
async def taken(database: object, outbox: Outbox, paused: Collection[str]) -> AsyncGenerator[Round, None]:
    """Take the oldest rows of queues that are not paused. At the end of the block, what was done is committed.

    In PostgreSQL it is one transaction: if this process dies, its rows are free at once. Rows of one message group are
    taken by one relay at a time, in their order.

    Raises:
        NoOutbox: the resources have no outbox that is known here.
    """
    if isinstance(database, SqliteDatabase) and is_sqlite(outbox):
        async with _sqlite_round(database, outbox, paused) as found:
            yield found
    elif isinstance(database, PostgresDatabase) and not is_sqlite(outbox):
        async with database.work(read_committed=True) as work:  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            yield await _PostgresRound.take(work, outbox, paused)  # pyright: ignore[reportUnknownArgumentType]
    else:
        name = type(cast("object", database)).__name__
        text = (
            "OutboxRelay(databases=...) takes asyncpg_inbox(...), psycopg_inbox(...) or sqlalchemy_inbox(...) with "
            f"postgres_outbox(), or sqlite_database(...) with SQLITE_OUTBOX; got {name}"
        )
        raise NoOutbox(text)


_NO_TABLE: Final = (
    "this tenant's database has no table {table}, or one without all of its columns: add "
    "postgres_outbox({table!r}).schema to your migrations"
)
_ADVICE: Final = {
    "42P01": _NO_TABLE,
    "42703": _NO_TABLE,
    "42501": "the relay's user may not read, set aside and delete rows: GRANT SELECT, UPDATE, DELETE ON {table}",
}
"""What to do, by the SQLSTATE of a table that is not as it should be."""


class _PostgresRound:
    def __init__(self, work: Work[Any], outbox: Outbox, rows: Sequence[Row]) -> None:
        self._work = work
        self._table = outbox.table
        self.rows = rows

    @classmethod
    async def take(cls, work: Work[Any], outbox: Outbox, paused: Collection[str]) -> "_PostgresRound":
        without = msgspec.json.encode(sorted(paused)).decode()
        try:
            groups = await work.value(groups_sql(outbox.table), without)
            # A second statement sees what the last holder of a group has removed; the first one may not.
            found = await work.value(rows_sql(outbox.table), without, groups or "[]")
        except Exception as error:
            if (advice := _ADVICE.get(sqlstate_of(error) or "")) is None:
                raise
            raise ConfigurationError(advice.format(table=outbox.table)) from error
        return cls(work, outbox, _rows(msgspec.json.decode(found or "[]")))

    async def remove(self, ids: Collection[int]) -> str | None:
        sql = (
            f"WITH gone AS (DELETE FROM {self._table} WHERE id IN "  # noqa: S608
            f"(SELECT CAST(value AS bigint) FROM json_array_elements_text({json_of('$1')}) AS each (value)) "
            "RETURNING 1) SELECT count(*) FROM gone"
        )
        gone = await self._work.value(sql, msgspec.json.encode(list(ids)).decode())
        if gone == len(ids):
            return None
        text = (  # no other has deleted them: they are locked
            f"{counted(len(ids), 'message')} of {self._table} {'was' if len(ids) == 1 else 'were'} sent, and "
            f"PostgreSQL deleted {gone} of the rows without an error. What stays is %s: "
            "let the relay's user delete rows, also by a policy where the table has row-level security, and let "
            "no trigger keep them"
        )
        if gone + await self._set_aside([(each, _SENT) for each in ids]) == len(ids):
            return text % f"set aside with the reason {_SENT!r}"
        raise ConfigurationError(text % "sent again at each try")

    async def set_aside(self, reasons: Sequence[tuple[int, str]]) -> None:
        await self._set_aside(reasons)

    async def _set_aside(self, reasons: Sequence[tuple[int, str]]) -> int:
        sql = (
            f"WITH aside AS (UPDATE {self._table} AS row SET failed_at = now(), reason = item ->> 1 "  # noqa: S608
            f"FROM json_array_elements({json_of('$1')}) AS items (item) "
            "WHERE row.id = CAST(item ->> 0 AS bigint) RETURNING 1) SELECT count(*) FROM aside"
        )
        return int(await self._work.value(sql, msgspec.json.encode(reasons).decode()))


_SENT: Final = "sent, and the row could not be deleted"
_PAUSED: Final = f"json_array_elements_text({json_of('$1')}) AS each (value)"
_NOT_PAUSED: Final = f"queue NOT IN (SELECT value FROM {_PAUSED})"  # noqa: S608


def groups_sql(table: str) -> str:
    """Lock the groups that waited longest and that no other relay has."""
    own = f"CAST(CAST('{table}' AS regclass) AS oid)"  # a lock is the database's, which may have one for each tenant
    return (
        f"WITH oldest AS MATERIALIZED (SELECT id, queue, ordered_by FROM {table} "  # noqa: S608
        f"WHERE ordered_by IS NOT NULL AND failed_at IS NULL AND {_NOT_PAUSED} ORDER BY id LIMIT {_LOOKED_AT}), "
        "waiting AS MATERIALIZED (SELECT queue, ordered_by FROM oldest GROUP BY queue, ordered_by ORDER BY min(id)), "
        "mine AS (SELECT queue, ordered_by FROM waiting WHERE "
        f"pg_try_advisory_xact_lock(hashtextextended(concat_ws(' ', {own}, queue, ordered_by), 0)) LIMIT {_GROUPS}) "
        "SELECT CAST(json_agg(json_build_array(queue, ordered_by)) AS text) FROM mine"
    )


def rows_sql(table: str) -> str:
    """Take rows: those without an order that no other relay has, and those of the groups that were locked.

    Who may not delete rows, or set them aside, is refused here: afterwards they are sent.
    """
    return (
        f"WITH may_delete AS (DELETE FROM {table} WHERE false), "  # noqa: S608
        f"may_set_aside AS (UPDATE {table} SET failed_at = NULL, reason = NULL WHERE false), "
        f"free AS MATERIALIZED (SELECT id, queue, message FROM {table} "
        f"WHERE ordered_by IS NULL AND failed_at IS NULL AND {_NOT_PAUSED} "
        f"ORDER BY id LIMIT {ROWS} FOR UPDATE SKIP LOCKED), "
        "mine AS MATERIALIZED (SELECT item ->> 0 AS queue, item ->> 1 AS ordered_by "
        f"FROM json_array_elements({json_of('$2')}) AS items (item)), "
        "ordered AS MATERIALIZED (SELECT own.id, own.queue, own.message FROM mine CROSS JOIN LATERAL ("
        f"SELECT id, queue, message FROM {table} AS each WHERE each.queue = mine.queue "
        "AND each.ordered_by = mine.ordered_by AND each.ordered_by IS NOT NULL AND each.failed_at IS NULL "
        f"ORDER BY id LIMIT {ROWS} FOR UPDATE) AS own ORDER BY own.id LIMIT {ROWS}), "
        "sized AS (SELECT id, queue, message, sum(octet_length(message)) OVER (ORDER BY id) AS total "
        "FROM (SELECT * FROM free UNION ALL SELECT * FROM ordered) AS found) "
        "SELECT CAST(json_agg(json_build_array(id, queue, message) ORDER BY id) AS text) "
        f"FROM sized WHERE total - octet_length(message) < {BYTES}"
    )


class _SqliteRound:
    def __init__(self, database: SqliteDatabase, outbox: Outbox, rows: Sequence[Row]) -> None:
        self._database = database
        self._table = outbox.table
        self.rows = rows

    async def remove(self, ids: Collection[int]) -> None:
        sql = f"DELETE FROM {self._table} WHERE id = ?"  # noqa: S608
        await self._database.run(lambda connection: connection.executemany(sql, [(each,) for each in ids]).rowcount)

    async def set_aside(self, reasons: Sequence[tuple[int, str]]) -> None:
        sql = f"UPDATE {self._table} SET failed_at = CURRENT_TIMESTAMP, reason = ? WHERE id = ?"  # noqa: S608
        rows = [(reason, each) for each, reason in reasons]
        await self._database.run(lambda connection: connection.executemany(sql, rows).rowcount)


@asynccontextmanager
async def _sqlite_round(
    database: SqliteDatabase, outbox: Outbox, paused: Collection[str]
) -> AsyncGenerator[_SqliteRound, None]:
    """Take rows while no other process relays this file. A file has one writer, so no transaction may wait for SQS."""
    with _only_relay_of(database) as alone:
        rows = await database.run(lambda connection: _look(connection, outbox, paused), write=False) if alone else []
        if rows:
            # Who cannot write now, because another process does for long, would send them again and again.
            await database.run(lambda _: None)
        yield _SqliteRound(database, outbox, _rows(rows))


def _look(connection: sqlite3.Connection, outbox: Outbox, paused: Collection[str]) -> list[tuple[int, str, str]]:
    places = ", ".join("?" * len(paused))
    sql = (
        f"SELECT id, queue, message FROM {outbox.table} "  # noqa: S608
        f"WHERE failed_at IS NULL AND queue NOT IN ({places}) ORDER BY id LIMIT {ROWS}"
    )
    found: list[tuple[int, str, str]] = []
    size = 0
    try:
        waiting = connection.execute(sql, sorted(paused))
    except sqlite3.OperationalError as error:
        if not str(error).startswith("no such "):  # a table, or one of its columns
            raise
        text = f"this tenant's database has {error}: pass SQLITE_OUTBOX.schema to sqlite_database(schema=...)"
        raise ConfigurationError(text) from error
    for row in waiting:
        found.append(tuple(row))
        size += len(row[2])
        if size >= BYTES:
            break
    return found


@contextlib.contextmanager
def _only_relay_of(database: SqliteDatabase) -> Generator[bool, None, None]:
    """Yield whether no other process relays this file now. The lock ends with the process, however that ends."""
    path = database.path.with_name(f"{database.path.name}-outbox")
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:  # locked
            yield False
        else:
            yield True


def _rows(found: Sequence[Any]) -> list[Row]:
    return [Row(each[0], each[1], _message(each[2])) for each in found]


def _message(text: str) -> OutgoingMessage | None:
    try:
        return _MESSAGE.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


_MESSAGE: Final = msgspec.json.Decoder(OutgoingMessage)
