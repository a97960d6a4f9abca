"""Sessions of a message's transaction, which end with it."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker


def once_only(factory: Any) -> dict[str, Any]:
    """Return the options with which a factory makes sessions that cannot be used again once they are closed.

    Otherwise a statement behind the block would begin another transaction without a word: on another connection,
    without the message's row, and never committed. Factories of the user's own are called as documented.
    """
    maker = isinstance(factory, sessionmaker | async_sessionmaker)
    return {"close_resets_only": False} if maker or factory is Session or factory is AsyncSession else {}
