"""Who is a tenant, and where its data is: the registry decides, a message never does."""

import reprlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Generic
from urllib.parse import parse_qs, unquote, urlsplit

from postroom.errors import ConfigurationError, UnknownTenant
from postroom.resources import ResourcePool
from postroom.types import C, R

Password = Callable[[], str | Awaitable[str]]
"""Asked for each physical connection, so that a rotated password or a fresh token reaches the next one."""


class WrongDatabase(ConfigurationError):
    """The canary sang: the connection leads to another database, or as another user, than the registry says.

    Nothing was read or written. A pooler between us and the server, a DNS name or a role setting leads astray. A pool
    takes it as permanent.
    """


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where one tenant's data is.

    Args:
        dsn: the URL of the database. It may leave the password to ``password``. It is not part of the ``repr``.
        database: what ``select current_database()`` must answer; None for the database that the URL names.
        user: what ``select current_user`` must answer; None for the user that the URL names.
        password: a function, sync or async, that is asked for each physical connection.
    """

    dsn: str = field(repr=False)
    database: str | None = field(default=None, kw_only=True)
    user: str | None = field(default=None, kw_only=True)
    password: Password | None = field(default=None, repr=False, kw_only=True)


Located = str | DataSource | None
"""A DSN, a ``DataSource``, or None for a context that is nobody's."""
Locate = Callable[[C], Located | Awaitable[Located]]
"""A registry as a function, sync or async: context to data source. ``LookupError`` or None: there is no such tenant."""


class Registry(Generic[C]):
    """The tenants that exist, as a function from context to data source.

    The mapping is read at every call and not copied: what you add to it exists from then on. A context that it does
    not contain raises :class:`UnknownTenant`.

    Args:
        sources: context to DSN or ``DataSource``.
    """

    def __init__(self, sources: Mapping[C, str | DataSource]) -> None:
        self._sources = sources

    def __call__(self, context: C) -> str | DataSource:
        """Return where the data of ``context`` is. Raises ``UnknownTenant``."""
        try:
            return self._sources[context]
        except KeyError:
            raise _unknown(context) from None

    def __repr__(self) -> str:
        return f"Registry(<{len(self._sources)} tenants>)"


@dataclass(frozen=True, slots=True)
class Provider(Generic[C, R]):
    """A provider of resources: call it with a context for an async context manager of that context's resources.

    A ``ResourcePool`` of it, and a consumer that it is passed to, count its connections and check its health.
    """

    enter: Callable[[C], AbstractAsyncContextManager[R]] = field(repr=False)
    weight: int = 1
    """What one resource costs in the pool's budget: the connections that it may hold."""
    check: Callable[[R], Awaitable[bool]] | None = field(default=None, repr=False)
    """The health check for the pool: returns True, or raises what is wrong."""

    def __call__(self, context: C) -> AbstractAsyncContextManager[R]:
        """Return what opens and closes the resources of ``context``."""
        return self.enter(context)

    def pool(self, **options: Any) -> ResourcePool[C, R]:
        """Make a ``ResourcePool`` of this provider.

        Args:
            options: the keywords of ``ResourcePool``: ``limits``, ``timeouts``, ``host``, ``name``, ...
        """
        return ResourcePool(self, **options)


async def located(locate: Locate[C], context: C) -> DataSource:
    """Ask the registry. Raises ``UnknownTenant`` where it answers None; its own ``LookupError`` passes through."""
    answer = locate(context)
    found = await answer if isawaitable(answer) else answer
    if found is None:
        raise _unknown(context)
    return found if isinstance(found, DataSource) else DataSource(found)


async def ask(password: Password) -> str:
    """Ask for the password of one connection."""
    answer = password()
    return await answer if isawaitable(answer) else answer


def _unknown(context: object) -> UnknownTenant:
    # The context came with a message: whoever sent it chooses its length.
    return UnknownTenant(f"the registry has no data source for {reprlib.repr(context)}")


CANARY = "SELECT current_database(), current_user"


def expected(source: DataSource) -> tuple[str | None, str | None]:
    """Return the database and the user that the canary must find; None where nothing is known to compare."""
    url = urlsplit(source.dsn)
    query = parse_qs(url.query)
    database = source.database or query.get("dbname", query.get("database", [""]))[0] or unquote(url.path[1:])
    user = source.user or query.get("user", [""])[0] or unquote(url.username or "")
    if not url.scheme:  # a connection string of key=value pairs: only what was said explicitly is known
        return source.database, source.user
    return database or None, user or None


def verify(source: DataSource, database: str, user: str) -> None:
    """Compare what the connection says with what the registry says. Raises ``WrongDatabase``."""
    for what, is_one, should_be in zip(("database", "user"), (database, user), expected(source), strict=True):
        if should_be is not None and is_one != should_be:
            raise WrongDatabase(f"the connection leads to {what} {is_one!r}, and the registry says {should_be!r}")
