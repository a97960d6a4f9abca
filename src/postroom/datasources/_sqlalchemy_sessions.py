"""What the providers of SQLAlchemy share: reading a URL, and sessions that end with their message's transaction."""

from contextlib import suppress
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from postroom.datasources._canary import unreadable


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
