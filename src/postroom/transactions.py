"""What resources offer so that a message's effects happen exactly once: transactions that begin with its row."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import NamedTuple, Protocol, TypeVar

from postroom.errors import PostroomError

Tx = TypeVar("Tx")
SyncTx = TypeVar("SyncTx")
Tx_co = TypeVar("Tx_co", covariant=True)
SyncTx_co = TypeVar("SyncTx_co", covariant=True)


class TransactionRolledBack(PostroomError):
    """A transaction's block ended well, but its transaction did not: its effects are not all there.

    The block swallowed an error of the database. From then on the transaction is aborted:
    PostgreSQL answers its COMMIT with ROLLBACK, and some drivers pass over that in silence. Or the
    block ended the transaction itself. It is raised where the block ends, so the handler fails and
    the message comes back.
    """


class MessageKey(NamedTuple):
    """By what a duplicate is recognised: the primary key of a row in the inbox."""

    queue: str
    """The name of the queue."""
    id: str
    """The message id; or the tenant's name and the business key of ``ctx.transaction(key=...)``: opaque."""


class Transactional(Protocol[Tx_co]):
    """Resources with an inbox: a table in the tenant's database with a row for each message that was handled.

    ``Tx_co`` is what a handler gets inside of a transaction: a connection, a session, whatever the
    driver works with.
    """

    def transaction_for(self, key: MessageKey, /) -> AbstractAsyncContextManager[Tx_co]:
        """Return a context manager of a transaction that holds the row of ``key``, and then the handler's work.

        Entered, it has written the row. When another transaction has written the same one and is
        not at its end, it waits for that end first. It commits when the block is left, and returns
        only then; it rolls back, the row included, when an exception or a cancellation leaves the
        block. When it returns without an error, the row and every effect are committed: it raises
        when the database rolled back instead, or when it cannot know.

        Raises:
            AlreadyHandled: when it is entered: the row was there. Nothing was done.
            TransactionRolledBack: at its end: the block swallowed an error of the database, or
                ended the transaction itself.
        """
        ...


class SyncTransactional(Protocol[SyncTx_co]):
    """Resources with an inbox for plain ``def`` handlers, which run in threads.

    ``SyncTx_co`` is what a handler gets inside of a transaction.
    """

    def sync_transaction_for(self, key: MessageKey, /) -> AbstractContextManager[SyncTx_co]:
        """Return a context manager of a transaction that holds the row of ``key``, and then the handler's work.

        It is entered and left in the handler's thread, and blocks that thread. What it promises,
        and what it raises, is the same as for ``Transactional.transaction_for``.
        """
        ...


class EitherTransactional(Transactional[Tx_co], SyncTransactional[SyncTx_co], Protocol[Tx_co, SyncTx_co]):
    """Resources with an inbox for both kinds of handlers, such as ``SqliteDatabase``."""
