"""What ``ctx.transaction()`` returns: a transaction of the tenant's database, for ``async with`` or for ``with``."""

import asyncio
import threading
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, Protocol

from postroom.errors import AlreadyHandled, ConfigurationError
from postroom.transactions import MessageKey, SyncTx, Tx

_count: Final = threading.Lock()  # the handlers of one message may use several threads


class Counts(Protocol):
    """Where the transactions of one run of a handler are counted."""

    transactions: int
    """Those that are open."""
    written: set[MessageKey] | None
    """The keys of those that are open or were committed; None before the first."""
    committed: int
    """Those that were committed."""

    def tell_half_done(self) -> None:
        """Note that one was rolled back behind another one that was committed."""
        ...


class MessageTransaction(Generic[Tx, SyncTx]):
    """One transaction of one message; nothing is done before it is entered, and it is entered once.

    ``async with`` it in an ``async def`` handler, ``with`` it in a plain ``def`` handler.

    Args:
        counts: where it counts as open.
        resources: the tenant's, with ``transaction_for``, ``sync_transaction_for`` or both.
        key: by what a duplicate is recognised.
    """

    __slots__ = ("_async", "_counts", "_key", "_resources", "_sync")

    def __init__(self, counts: Counts, resources: Any, key: MessageKey) -> None:
        if not hasattr(resources, "transaction_for") and not hasattr(resources, "sync_transaction_for"):
            kind = type(resources).__name__
            text = f"ctx.transaction() needs resources with an inbox, such as asyncpg_inbox(...) provides; got {kind}"
            raise ConfigurationError(text)
        self._counts = counts
        self._resources = resources
        self._key = key
        self._async: Any = None  # what was entered, and is left at the end
        self._sync: Any = None

    async def __aenter__(self) -> Tx:
        """Begin, in the event loop."""
        if not hasattr(self._resources, "transaction_for"):
            self._refuse("is for plain def handlers: with ctx.transaction() as tx")
        transaction: AbstractAsyncContextManager[Tx] = self._resources.transaction_for(self._key)
        self._async = transaction
        self._begin()
        try:
            return await transaction.__aenter__()
        except BaseException as error:
            self._end(committed=False, error=error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Commit, or roll back."""
        committed = False
        try:
            swallowed: bool | None = await self._async.__aexit__(kind, error, traceback)
            committed = error is None
            return swallowed
        finally:
            self._end(committed=committed, error=error)

    def __enter__(self) -> SyncTx:
        """Begin, in the handler's thread."""
        if not hasattr(self._resources, "sync_transaction_for"):
            self._refuse(
                "is for async def handlers: async with ctx.transaction() as tx. For plain def handlers there are "
                "psycopg_sync_inbox(...), sqlalchemy_sync_inbox(...) and sqlite_database(...)"
            )
        if _in_a_task():
            text = (
                "with ctx.transaction() blocks its thread, and this is the event loop's: use it in a plain def handler"
            )
            raise ConfigurationError(text)
        transaction: AbstractContextManager[SyncTx] = self._resources.sync_transaction_for(self._key)
        self._sync = transaction
        self._begin()
        try:
            return transaction.__enter__()
        except BaseException as error:
            self._end(committed=False, error=error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Commit, or roll back."""
        committed = False
        try:
            swallowed: bool | None = self._sync.__exit__(kind, error, traceback)
            committed = error is None
            return swallowed
        finally:
            self._end(committed=committed, error=error)

    def _begin(self) -> None:
        with _count:
            if self._counts.written is None:
                self._counts.written = set()
            if self._key in self._counts.written:
                # It would find the row of the first one, as a duplicate does: the rest of the handler would be left
                # out, and the message acknowledged. Inside of the first one it would wait for itself.
                text = (
                    "this call of the handler has entered ctx.transaction() with the same key before: a message has "
                    "one such block. Put everything into it; or give each part a key= of its own, and catch "
                    "AlreadyHandled around each"
                )
                raise ConfigurationError(text)
            self._counts.written.add(self._key)
            self._counts.transactions += 1

    def _end(self, *, committed: bool, error: BaseException | None) -> None:
        with _count:
            self._counts.transactions -= 1
            self._counts.committed += committed
            if not committed and self._counts.written is not None:  # it may be tried again
                self._counts.written.discard(self._key)
            half_done = self._counts.committed > 0 and not committed
        if half_done and not isinstance(error, AlreadyHandled):
            self._counts.tell_half_done()

    def _refuse(self, remedy: str) -> NoReturn:
        raise ConfigurationError(f"the transaction of {type(self._resources).__name__} {remedy}")


def _in_a_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no event loop runs in this thread
        return False
