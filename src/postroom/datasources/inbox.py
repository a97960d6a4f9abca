"""The inbox: a table in each tenant's own database, with a row for each message that was handled.

A message's row and its effects are written in one transaction, so that neither is there without the
other. How a handler works in one: ``postroom.MessageContext.transaction``.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from postroom.errors import ConfigurationError

DEFAULT_TABLE: Final = "postroom_inbox"
KEEP: Final = 15 * 86_400.0
"""Seconds after which no queue can deliver a message: SQS keeps one for 14 days at most.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
"""
PURGED_AT_ONCE: Final = 10_000
"""Rows that a purge deletes in one transaction, so that handlers are not kept waiting."""
_TABLE = re.compile(r"(?:[a-z_][a-z0-9_]{0,62}\.)?([a-z_][a-z0-9_]{0,50})")


@dataclass(frozen=True, slots=True)
class Inbox:
    """One inbox table: the SQL that creates it, for your migrations, and the SQL that uses it."""

    table: str
    schema: str = field(repr=False)
    """Statements that create the table where it does not exist."""
    claim: str = field(repr=False)
    """Inserts the row of a queue and an id. It returns one row with the number of the transaction, or nothing when the
    row of the message is there already."""
    purge: str = field(repr=False)
    """Deletes rows of an age, as many as a limit says."""


def postgres_inbox(table: str = DEFAULT_TABLE) -> Inbox:
    """Return the inbox of a PostgreSQL database; its ``schema`` is for your migrations.

    Args:
        table: its name, in lower case, with or without a schema: ``orders.inbox``.

    Raises:
        ConfigurationError: that is no name for a table.
    """
    named = _TABLE.fullmatch(str(table))
    if named is None:
        raise ConfigurationError(f"an inbox table has a plain lower-case name, or schema.name; got {table!r}")
    return Inbox(
        table,
        schema=(
            f"CREATE TABLE IF NOT EXISTS {table} (\n"
            "    queue text NOT NULL,\n"
            "    message_id text NOT NULL,\n"
            "    handled_at timestamptz NOT NULL DEFAULT now(),\n"
            "    PRIMARY KEY (queue, message_id)\n"
            ");\n"
            f"CREATE INDEX IF NOT EXISTS {named[1]}_handled_at ON {table} (handled_at);\n"
        ),
        claim=(
            f"INSERT INTO {table} (queue, message_id) VALUES ($1, $2) "  # noqa: S608
            "ON CONFLICT DO NOTHING RETURNING txid_current()"
        ),
        purge=(
            f"WITH gone AS (DELETE FROM {table} WHERE (queue, message_id) IN (SELECT queue, message_id FROM {table} "  # noqa: S608
            "WHERE handled_at <= now() - make_interval(secs => $1) ORDER BY handled_at LIMIT $2) RETURNING 1) "
            "SELECT count(*) FROM gone"
        ),
    )


SQLITE_INBOX: Final = Inbox(
    DEFAULT_TABLE,
    schema=(
        f"CREATE TABLE IF NOT EXISTS {DEFAULT_TABLE} (\n"
        "    queue TEXT NOT NULL,\n"
        "    message_id TEXT NOT NULL,\n"
        "    handled_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,\n"
        "    PRIMARY KEY (queue, message_id)\n"
        ") WITHOUT ROWID;\n"
        f"CREATE INDEX IF NOT EXISTS {DEFAULT_TABLE}_handled_at ON {DEFAULT_TABLE} (handled_at);\n"
    ),
    claim=f"INSERT INTO {DEFAULT_TABLE} (queue, message_id) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1",  # noqa: S608
    purge=(
        f"DELETE FROM {DEFAULT_TABLE} WHERE (queue, message_id) IN (SELECT queue, message_id FROM {DEFAULT_TABLE} "  # noqa: S608
        "WHERE handled_at <= datetime('now', ?) ORDER BY handled_at LIMIT ?)"
    ),
)
"""The inbox of a SQLite file. ``SqliteDatabase`` creates it when it is first needed."""


def check_age(older_than: float) -> None:
    """Refuse an age that would delete what happens now. Raises ``ValueError``."""
    if not older_than >= 0:
        raise ValueError(f"older_than= is an age in seconds, 0 or more; got {older_than!r}")
