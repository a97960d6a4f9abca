"""Units of work on their way through a SQLite database's thread, and transactions that stay open over awaits."""

import asyncio
import contextvars
import inspect
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from postroom.datasources._threads import complete
from postroom.errors import ClosedError, ConfigurationError
from postroom.resources.failures import of_user
from postroom.transactions import TransactionRolledBack

T = TypeVar("T")


class _Abandoned(Exception):
    """The caller of this unit of work has left."""


class Unit(Generic[T]):
    """One unit of work: a transaction of its own.

    Args:
        file: the database's, for errors.
        work: what to do with the connection.
        write: whether it takes the write lock first.
    """

    def __init__(self, file: Path, work: Callable[[sqlite3.Connection], T], *, write: bool) -> None:
        self.result: asyncio.Future[T] = self._future()
        self.file: Path = file
        self.name: str = file.name
        self._work = work
        self.write: bool = write
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._committing = False
        self.abandoned: bool = False

    def _future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def abandon(self) -> None:
        """Interrupt the work and undo it, unless its commit has begun."""
        with self._lock:
            self.abandoned = not self._committing

    def is_unwanted(self) -> bool:
        """Whether the statement that runs now should be interrupted."""
        return self.abandoned

    def refuse(self) -> None:
        """Tell the caller that the work was not done, because the database closes."""
        complete(self.result, None, closed(self.name))

    def do(self, connection: sqlite3.Connection) -> None:
        """Do the work, in the thread, and tell the caller."""
        try:
            value = self._context.run(self._transact, connection)
        except BaseException as error:
            if self.abandoned:  # whatever an interrupted statement raised
                self.refuse()
            else:
                _judge_refusal(error, self.file)
                complete(self.result, None, error)
        else:
            complete(self.result, value, None)

    def _transact(self, connection: sqlite3.Connection) -> T:
        try:
            self._go_on_unless_abandoned()
            connection.execute("BEGIN IMMEDIATE" if self.write else "BEGIN")
            value = self._do_and_decide(connection)
            if connection.in_transaction:
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return value

    def _do_and_decide(self, connection: sqlite3.Connection) -> T:
        """Do the work. When this returns, it is too late to be abandoned."""
        value = self._work(connection)
        _check_done(self._work, value)
        with self._lock:  # the caller is cancelled either before this, and nothing is committed, or too late
            self._go_on_unless_abandoned()
            self._committing = True
        return value

    def _go_on_unless_abandoned(self) -> None:
        if self.abandoned:
            raise _Abandoned


class Step(Unit[T]):
    """One unit of work within a transaction that stays open. One that fails leaves nothing of itself."""

    def __init__(self, file: Path, work: Callable[[sqlite3.Connection], T]) -> None:
        super().__init__(file, work, write=True)

    def _transact(self, connection: sqlite3.Connection) -> T:
        check_open(connection)
        self._go_on_unless_abandoned()
        connection.execute("SAVEPOINT postroom_step")
        try:
            value = self._do_and_decide(connection)
            connection.execute("RELEASE postroom_step")
        except BaseException:
            _undo_step(connection)
            raise
        return value


class Held(Unit[None]):
    """A transaction that stays open: steps are handed in until it ends. Nothing else runs in the thread meanwhile.

    Args:
        file: the database's, for errors.
        begin: called with the connection before the first step.
    """

    def __init__(self, file: Path, begin: Callable[[sqlite3.Connection], None]) -> None:
        super().__init__(file, self._serve, write=True)
        self._begin = begin
        self._begun: asyncio.Future[None] = self._future()
        self._steps: SimpleQueue[Step[Any] | None] = SimpleQueue()
        self._step: Step[Any] | None = None
        self._gate = threading.Lock()
        self.over: bool = False
        """Whether it takes no more steps."""

    async def begun(self) -> None:
        """Return when it is open. Raises what kept it from that."""
        await asyncio.wait([self._begun, self.result], return_when=asyncio.FIRST_COMPLETED)
        if self.result.done():
            self.result.result()

    def hand_in(self, step: Step[Any]) -> None:
        """Let a step be done. Raises ``ClosedError`` when the transaction is over."""
        with self._gate:
            if self.over:
                raise ClosedError(f"this transaction of {self.name!r} is over: this work was not done")
            self._steps.put(step)

    async def commit(self) -> None:
        """Do what was handed in, commit, and return."""
        self._end()
        await self.result

    def drop(self) -> None:
        """Roll back, unless the commit has begun. Units that come later run after that."""
        self.abandon()
        if not self.result.cancel() and not self.result.cancelled():
            self.result.exception()  # else it would count as never retrieved

    def abandon(self) -> None:
        """Interrupt the present step and roll back, unless the commit has begun."""
        super().abandon()
        step = self._step
        if step is not None:
            step.abandon()
        self._end()

    def _end(self) -> None:
        with self._gate:  # no step comes after the None, where it would not be looked at
            if not self.over:
                self.over = True
                self._steps.put(None)

    def _serve(self, connection: sqlite3.Connection) -> None:
        self._begin(connection)
        complete(self._begun, None, None)
        while (step := self._steps.get()) is not None:
            self._step = step
            if self.abandoned:  # looked at after the line above, and set before the other side reads it
                step.abandon()
            step.do(connection)
            self._step = None
        if not self.abandoned:
            check_open(connection)

    def is_unwanted(self) -> bool:
        """Whether the statement that runs now should be interrupted."""
        step = self._step
        return self.abandoned or (step is not None and step.abandoned)


def _check_done(work: object, value: object) -> None:
    """Refuse an async function or a generator function: nothing of it has run, and the caller would not see that."""
    if inspect.iscoroutine(value):
        value.close()
    elif not (inspect.isgeneratorfunction(work) or inspect.isasyncgenfunction(work)):
        return
    raise ConfigurationError("a unit of work is a plain function that returns data; got one with async or yield")


def _judge_refusal(error: BaseException, file: Path) -> None:
    """Say that a refused write is an outage, where this process may not write the file: no message is to blame.

    SQLite opens such a file for reading, without a word, and does not look again.
    """
    if getattr(error, "sqlite_errorcode", -1) & 0xFF != sqlite3.SQLITE_READONLY:
        return
    file = file.resolve()
    if not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        vars(error)["sqlstate"] = "25006"  # what PostgreSQL calls it
        error.add_note(f"this process may not write {file}, or its directory")


def _undo_step(connection: sqlite3.Connection) -> None:
    if not connection.in_transaction:  # an interrupted write has taken all of it back, or the work has ended it
        return
    try:
        connection.execute("ROLLBACK TO postroom_step")
        connection.execute("RELEASE postroom_step")
    except sqlite3.Error:  # the work ended our transaction and began one of its own
        connection.execute("ROLLBACK")


def check_open(connection: sqlite3.Connection) -> None:
    """Refuse to go on without the transaction: what follows would be committed by itself.

    Raises:
        TransactionRolledBack: it has ended.
    """
    if not connection.in_transaction:
        text = "the transaction has ended before its block: a step was interrupted, or committed or rolled back itself"
        raise TransactionRolledBack(text)


def closed(name: str) -> ClosedError:
    """Return the error for work that was not done, because its database was closed."""
    return of_user(ClosedError(f"the database {name!r} was closed: this work was not done"))
