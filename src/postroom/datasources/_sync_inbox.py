"""The inbox for plain ``def`` handlers: what the coroutines of ``_postgres_inbox`` do, with drivers that block.

Over such a driver no coroutine ever suspends, so each of them can be run to its end in one call. The
promises of a transaction are kept in one place, whichever way it is driven.
"""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, TypeVar

from postroom.datasources._postgres_inbox import PostgresDatabase, Work
from postroom.datasources.inbox import KEEP, Inbox
from postroom.datasources.scope import Scope
from postroom.redaction import sqlstate_of
from postroom.tasks import run_now
from postroom.transactions import MessageKey

T = TypeVar("T")
Tx = TypeVar("Tx")
_LOCK_NOT_AVAILABLE: Final = "55P03"
_LONGEST: Final = 2**31 - 1
_CLAIM: Final = (
    "WITH before AS MATERIALIZED "
    "(SELECT current_setting('lock_timeout') AS mine, set_config('lock_timeout', $1, true)) "
    "INSERT INTO {table} (queue, message_id) SELECT $2, $3 FROM before ON CONFLICT DO NOTHING "
    "RETURNING txid_current(), (SELECT set_config('lock_timeout', mine, true) FROM before)"
)
"""The server ends the wait for a duplicate, as nothing else could interrupt the thread; the block has its own setting
back. In one statement, so that it costs no round trip."""


class _Driven(Generic[Tx]):
    """An async context manager over a driver that blocks, as one for ``with``."""

    def __init__(self, manager: AbstractAsyncContextManager[Tx]) -> None:
        self._manager = manager

    def __enter__(self) -> Tx:
        return run_now(_entered(self._manager))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return run_now(_left(self._manager, kind, error, traceback))


async def _entered(manager: AbstractAsyncContextManager[Tx]) -> Tx:
    return await manager.__aenter__()


async def _left(manager: AbstractAsyncContextManager[Any], *error: Any) -> bool | None:
    return await manager.__aexit__(*error)


Begin = Callable[[], AbstractContextManager[Work[Tx]]]
"""Begins a transaction of the driver; commits at the end of the block, or rolls back when it raises."""


class _Transactions(PostgresDatabase[Tx]):
    """The transactions of a driver that blocks, in the words of those that do not."""

    def __init__(self, inbox: Inbox, begin: Begin[Tx], *, wait: float, scope: Scope | None) -> None:
        super().__init__(inbox, wait=wait, scope=scope)
        self._begin_with = begin
        self._claim_sql = _CLAIM.format(table=inbox.table)

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[Work[Tx], None]:
        with self._begin_with() as work:
            yield work

    async def _claim(self, work: Work[Tx], key: MessageKey) -> int | None:
        milliseconds = f"{min(max(round(self._wait * 1000), 1), _LONGEST)}ms"
        try:
            number = await work.value(self._claim_sql, milliseconds, *key)
        except Exception as error:
            if sqlstate_of(error) == _LOCK_NOT_AVAILABLE:
                self._refuse(error)
            raise
        return None if number is None else int(number)

    def _refuse(self, error: Exception) -> NoReturn:
        text = f"another transaction has held the row of this message for more than {self._wait:g} s"
        raise TimeoutError(text) from error


class SyncDatabase(Generic[Tx]):
    """A driver's resources with an inbox in their database, for plain ``def`` handlers. Its methods block.

    Args:
        inbox: the table, and the SQL that uses it.
        wait: seconds that a duplicate waits for the transaction of the first.
        scope: the tenant's part of a shared database; None where it has a database of its own.
    """

    def __init__(self, inbox: Inbox, *, wait: float = 60.0, scope: Scope | None = None) -> None:
        self.inbox = inbox
        """The table, and the SQL that uses it."""
        self.scope = scope
        """The tenant's part of the database, where it shares one."""
        self._transactions = _Transactions(inbox, self._begin, wait=wait, scope=scope)

    @property
    def bypass(self) -> str | None:
        """Why row-level security does not apply to the user, although ``scope`` has settings; known once prepared."""
        return self._transactions.bypass

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inbox!r})"

    @abstractmethod
    def _begin(self) -> AbstractContextManager[Work[Tx]]:
        """Begin a transaction of the driver; commit at the end of the block, or roll back when it raises."""

    def transaction(self) -> AbstractContextManager[Tx]:
        """Return a context manager of a transaction in the tenant's scope, without a message's row.

        For work that needs no inbox, such as reading.

        Raises:
            TransactionRolledBack: at its end: the block swallowed an error of the database, or
                ended the transaction.
        """
        return _Driven(self._transactions.transaction())

    def sync_transaction_for(self, key: MessageKey, /) -> AbstractContextManager[Tx]:
        """Return a context manager of a transaction that begins with the row of ``key`` in the inbox.

        While another transaction has written the same row and is not at its end, PostgreSQL's
        unique index makes this one wait. A commit that loses its answer with its connection raises;
        whether it was done, the next receive of the message finds out.

        Raises:
            AlreadyHandled: the row was there. Nothing was done.
            TimeoutError: the other transaction was not at its end after ``wait`` seconds. Nothing
                was done.
            TransactionRolledBack: at its end: the block swallowed an error of the database, or
                ended the transaction.
            Exception: the driver's: the database failed. Before the commit nothing was done.
        """
        return _Driven(self._transactions.transaction_for(key))

    def purge_inbox(self, *, older_than: float = KEEP) -> int:
        """Delete the inbox's rows that are older than ``older_than`` seconds, and return how many there were.

        A message that comes after its row was purged is handled again: keep rows for longer than
        the queue keeps messages. The default is the most that SQS allows, and a day. In
        transactions of 10,000 rows.
        """
        return run_now(self._transactions.purge_inbox(older_than=older_than))

    def prepare(self, *, create: bool) -> None:
        """Look for the table, and create it where it is missing and ``create`` is set.

        Raises:
            ConfigurationError: there is no such table or schema, or statements are committed one by
                one.
        """
        run_now(self._transactions.prepare(create=create))
