"""The tenants' aliases that Django knows now, and the connections to them that no block of ``using_tenant`` closes.

Such a connection was opened in a thread without a block: Django's for async code, or one where a query said ``using=``.
To PostgreSQL it is ended with its alias.
"""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from asgiref.local import Local
from django.apps import apps as django_apps
from django.core import signals as django_signals
from django.db import DEFAULT_DB_ALIAS
from django.db import connections as django_connections
from django.db.backends.base import base as django_backend
from django.db.backends.signals import connection_created as django_connection_created

from postroom.errors import ClosedError, ConfigurationError


class TenantAlias(str):
    """The alias of one tenant's database, for ``using=``: a text that only ``tenant_databases`` makes, and tests."""

    __slots__ = ()


# Django has no types.
connections: Any = django_connections
_apps: Any = django_apps
_backend: Any = django_backend
_connection_created: Any = django_connection_created
_signals: Any = django_signals
used: Any = Local(thread_critical=True)
"""The aliases that are in use: by thread, as Django keeps its connections."""
_entries: Final[dict[str, dict[str, Any]]] = {}
"""The tenants' databases, as they would be in the settings."""
_strays: Final[dict[str, WeakSet[Any]]] = {}
"""The connections without a block, for each alias that is known. Those of a thread go with it, as Django's do."""
_changing: Final = threading.Lock()
_here: Final = threading.local()
"""Has the aliases that this thread had connections without a block to."""


class _Databases(dict[str, Any]):
    """The databases of the settings, and those of tenants: Django finds these, and does not walk them.

    There may be a thousand, and Django walks all databases for each request of a web server. Its test cases forbid
    what they find there and the test does not name.
    """

    def __contains__(self, alias: object) -> bool:
        return super().__contains__(alias) or alias in _entries

    def __missing__(self, alias: str) -> dict[str, Any]:
        return _entries[alias]


def register(alias: TenantAlias, entry: Mapping[str, Any]) -> None:
    """Make an alias known.

    Raises:
        ConfigurationError: the entry has ``ATOMIC_REQUESTS``.
    """
    if entry.get("ATOMIC_REQUESTS"):
        text = "Django knows no tenant when a request begins; use transaction.atomic(using=alias)"
        raise ConfigurationError(f"a tenant's entry must not have ATOMIC_REQUESTS: {text}")
    # Django completes all entries once, before the first connection: so this one is completed like them.
    own = {**entry, "OPTIONS": {**entry.get("OPTIONS", {})}}
    complete: dict[str, Any] = connections.configure_settings({DEFAULT_DB_ALIAS: {}, alias: own})
    with _changing:
        if not isinstance(connections.settings, _Databases):
            connections.settings = _Databases(connections.settings)
        _entries[alias] = complete[alias]
        _strays[alias] = WeakSet()


def forget(alias: TenantAlias) -> None:
    """Make an alias unknown, and end the connections that no block closes."""
    with _changing:
        _entries.pop(alias, None)
        strays = list(_strays.pop(alias, ()))
    for connection in strays:
        _end(connection)
    # What Django keeps of each alias for as long as the process lives.
    _backend.RAN_DB_VERSION_CHECK.discard(alias)
    if _apps.is_installed("django.contrib.contenttypes"):
        _apps.get_model("contenttypes", "ContentType").objects._cache.pop(alias, None)  # noqa: SLF001


def is_known(alias: str) -> bool:
    """Whether an alias is a tenant's, and its database is open."""
    return alias in _entries


def has_stray(alias: TenantAlias) -> bool:
    """Whether there is a connection that no block closes."""
    return bool(_strays.get(alias))


def connection_of(alias: str) -> Any:
    """Return this thread's connection to an alias; None where it has none. Django's own look walks all aliases."""
    return getattr(connections._connections, alias, None)  # noqa: SLF001


def close(alias: str) -> None:
    """Close and forget this thread's connection to an alias; else each thread would keep an object per tenant."""
    if (connection := connection_of(alias)) is None:
        return
    with _changing:
        if (strays := _strays.get(alias)) is not None:
            strays.discard(connection)
    try:
        connection.close()
    finally:
        del connections[alias]
    if alias not in connections.settings:
        _close_pool(connection)


def close_stray(alias: TenantAlias) -> None:
    """Close this thread's connection to an alias, unless it belongs to a block."""
    if not hasattr(used, alias):
        close(alias)


def _close_pool(connection: Any) -> None:
    """Close a pool of Django's own. It belongs to the process and not to the thread: a close leaves it open."""
    if hasattr(connection, "close_pool"):
        with suppress(KeyError):  # two threads do this at once
            connection.close_pool()


def _end(connection: Any) -> None:
    """End a connection of another thread, which may use it: for a query that was given up, say.

    Of PostgreSQL only. Other drivers crash when a connection is closed in use, so it goes with its thread, or when that
    thread opens another one.
    """
    raw = connection.connection
    if connection.vendor != "postgresql" or raw is None:
        return
    with suppress(Exception):  # whatever a driver says of its end; the others have to end, too
        if hasattr(raw, "pgconn"):
            from postroom.datasources._sync_connections import give_up  # noqa: PLC0415 - it needs psycopg

            give_up(raw)
        else:  # psycopg2 waits in close() for the end of the query
            raw.cancel()
            raw.close()


def _note(*, connection: Any, **_: Any) -> None:
    """See that a new connection will be closed."""
    alias = connection.alias
    if hasattr(used, alias):
        return
    with _changing:
        strays = _strays.get(alias)
        if strays is not None:
            strays.add(connection)
    if strays is not None:
        _clear_up(alias)
    elif isinstance(alias, TenantAlias) and alias not in connections.settings:
        connection.close()
        raise ClosedError(f"the resources of this tenant were closed: {alias} is not known any longer")


def _clear_up(alias: str) -> None:
    """Close and forget this thread's connections to aliases that have gone: no other thread can."""
    mine: set[str] = vars(_here).setdefault("aliases", set())
    for gone in [each for each in mine if each not in _strays]:
        mine.discard(gone)
        close(gone)
    mine.add(alias)


def _close_old(**_: Any) -> None:
    for alias in vars(_here).get("aliases", ()):
        if (connection := connection_of(alias)) is not None:
            connection.close_if_unusable_or_obsolete()


_connection_created.connect(_note, dispatch_uid="postroom")
# Between two requests Django closes what it walks.
_signals.request_started.connect(_close_old, dispatch_uid="postroom")
_signals.request_finished.connect(_close_old, dispatch_uid="postroom")
