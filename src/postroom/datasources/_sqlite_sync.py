"""Transactions of SQLite for plain ``def`` handlers: another thread hands in the steps, and waits for each of them."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar, cast

from postroom.datasources._sqlite_units import Held, Step

T = TypeVar("T")
Parameters = Sequence[Any] | Mapping[str, Any]


class _Waited:
    """A unit of work for a caller that is a thread and not a task."""

    def _future(self) -> asyncio.Future[Any]:
        return cast("asyncio.Future[Any]", Future())


class SyncStep(_Waited, Step[T]):
    """One step of a transaction, asked for by a thread."""

    def wait(self) -> T:
        """Return what the work returned, or raise what it raised."""
        return cast("Future[T]", self.result).result()


class SyncHeld(_Waited, Held):
    """A transaction that a thread holds open."""

    def wait_until_begun(self) -> None:
        """Return when it is open. Raises what kept it from that."""
        wait([cast("Future[None]", self._begun), cast("Future[None]", self.result)], return_when=FIRST_COMPLETED)
        if self.result.done():
            self.result.result()

    def wait_until_committed(self) -> None:
        """Do what was handed in, commit, and return."""
        self._end()
        cast("Future[None]", self.result).result()


class SqliteSyncTransaction:
    """A transaction of a ``SqliteDatabase`` that a thread holds open: ``SqliteTransaction`` without ``await``."""

    def __init__(self, held: SyncHeld) -> None:
        self._held = held

    def __repr__(self) -> str:
        return f"<SqliteSyncTransaction of {self._held.name!r}, {'over' if self._held.over else 'open'}>"

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work(connection)`` in the database's thread, as a step of the transaction, and return what it returns.

        A step that raises leaves nothing of itself; a handler that catches that may go on.

        Raises:
            ClosedError: the transaction is over, or the database was closed.
            TransactionRolledBack: an earlier step has ended the transaction. The block raises the
                same at its end.
        """
        step = SyncStep(self._held.file, work)
        self._held.hand_in(step)
        return step.wait()

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return self.run(lambda connection: connection.execute(sql, parameters).rowcount)

    def fetch(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Run one query and return its rows: by position and by name."""
        return self.run(lambda connection: connection.execute(sql, parameters).fetchall())
