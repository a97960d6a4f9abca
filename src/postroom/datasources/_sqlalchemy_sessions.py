"""What the providers of SQLAlchemy share: reading a URL, and what a message's transaction does and when it ends."""

import re
from contextlib import suppress
from inspect import isawaitable
from typing import Any, TypeVar

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from postroom.datasources._canary import unreadable
from postroom.datasources._postgres_inbox import ENDED, SWALLOWED, Work
from postroom.transactions import TransactionRolledBack

Tx = TypeVar("Tx")
S = TypeVar("S", bound=Session | AsyncSession)


def parsed(dsn: str) -> URL:
    """Return the URL of a registry's DSN. Raises ``ConfigurationError``, which quotes nothing, where it is none."""
    url: URL | None = None
    with suppress(ArgumentError, ValueError):  # ValueError: a port that is no number
        url = make_url(dsn)
    # An "@" in the host: the end of a password that SQLAlchemy's errors would show as the host.
    if url is None or "@" in (url.host or ""):
        raise unreadable("SQLAlchemy")
    return url


def once_only(factory: Any) -> dict[str, Any]:
    """Return the options with which a factory makes sessions that cannot be used again once they are closed.

    Otherwise a statement behind the block would begin another transaction without a word: on another connection,
    without the message's row, and never committed. Factories of the user's own are called as documented.
    """
    maker = isinstance(factory, sessionmaker | async_sessionmaker)
    return {"close_resets_only": False} if maker or factory is Session or factory is AsyncSession else {}


class OfConnection(Work[Tx]):
    """Statements through a connection, of whatever the transaction belongs to. One that blocks answers at once.

    Args:
        tx: what the handler gets.
        connection: SQLAlchemy's, sync or async.
        transaction: of the connection or of the session.
    """

    def __init__(self, tx: Tx, connection: Any, transaction: Any) -> None:
        super().__init__(tx)
        self._connection = connection
        self._transaction = transaction

    async def value(self, sql: str, *parameters: Any) -> Any:
        named = {f"p{number}": value for number, value in enumerate(parameters, start=1)}
        return (await _done(self._connection.execute(text(re.sub(r"\$(\d+)", r":p\1", sql)), named))).scalar()

    async def run(self, sql: str) -> None:
        for statement in sql.split(";\n"):
            if statement.strip():
                await _done(self._connection.exec_driver_sql(statement))

    async def finish(self) -> None:
        if not self._transaction.is_active:
            raise TransactionRolledBack(ENDED)


class OfSession(OfConnection[S]):
    """Statements through the connection of a session, which is flushed before its transaction ends."""

    async def finish(self) -> None:
        if not self._transaction.is_active:  # a failed flush has done that, or the block
            raise TransactionRolledBack(SWALLOWED if self.tx.in_transaction() else ENDED)
        await _done(self.tx.flush())


async def _done(answer: Any) -> Any:
    return await answer if isawaitable(answer) else answer
