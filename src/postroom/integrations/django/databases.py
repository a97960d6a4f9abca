"""A tenant's database as an alias of ``django.db.connections``, known for as long as it is leased.

Django's connections belong to a thread, so handlers are plain ``def`` functions. What a handler opened is closed in its
own thread when it returns: no connection, transaction or ``SET`` of one tenant meets the next.
"""

import functools
import itertools
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from asgiref.local import Local
from django.db import DEFAULT_DB_ALIAS
from django.db import connections as django_connections

from postroom.checking import check_function
from postroom.consumer import MessageContext
from postroom.consumer.callables import is_async
from postroom.datasources import Provider
from postroom.datasources._threads import in_thread
from postroom.datasources.registry import answered
from postroom.errors import ConfigurationError, PostroomError
from postroom.options import check_count
from postroom.types import C

P = TypeVar("P")

connections: Any = django_connections  # Django has no types
_numbers: Final = itertools.count(1)
_registering: Final = threading.Lock()
_CONNECTING: Final = 5
"""Seconds that a connection to PostgreSQL may take, unless the entry says otherwise: libpq itself has no limit."""
_alias: ContextVar["TenantAlias | None"] = ContextVar("postroom_django_alias", default=None)
_used: Any = Local(thread_critical=True)
"""The aliases that are in use: by thread, as Django keeps its connections."""


class NoTenantDatabase(ConfigurationError):
    """A model of a tenant was used where no tenant's database is in use. Nothing was read or written."""


class TenantAlias(str):
    """The alias of one tenant's database, for ``using=``: a text that only ``tenant_databases`` makes."""

    __slots__ = ()


def tenant_databases(
    locate: Callable[[C], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None], *, connections_each: int = 8
) -> Provider[C, TenantAlias]:
    """Return a provider of tenants' databases for a consumer's ``resources=``.

        orders = Consumer("orders", context=Tenant, resources=tenant_databases(lambda tenant: DATABASES_OF[tenant.id]))

    The alias is registered when the first lease opens it, and one connection is tried: a database that cannot be
    reached is an outage, and no attempt of a message. It is removed when the pool closes it; a pool of Django's own
    (``OPTIONS: {"pool": ...}``) is closed with it. Connections to PostgreSQL have a limit of 5 s, unless the entry has
    a ``connect_timeout`` in its ``OPTIONS``.

    Args:
        locate: the registry: a context to an entry as in the setting ``DATABASES``, sync or async. None, or a
            ``LookupError``: there is no such tenant.
        connections_each: connections that one tenant may have open, for the pool's budget: as many as
            ``Concurrency(per_tenant=)``, or the ``max_size`` of Django's pool.
    """
    check_function("tenant_databases(locate)", "(context) -> an entry as in the setting DATABASES", locate)
    check_count("tenant_databases", "connections_each", connections_each)

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[TenantAlias]:
        entry: Mapping[str, Any] = await answered(locate, context)
        alias = TenantAlias(f"tenant-{next(_numbers)}")
        _register(alias, entry)
        try:
            # Django connects at the first query: without a try, an outage would be the handler's
            # error, and cost an attempt.
            await in_thread(partial(_try_out, alias), f"postroom-django-{alias}")
            yield alias
        finally:
            await in_thread(partial(_remove, alias), f"postroom-django-{alias}")

    return Provider(enter, weight=connections_each)


@contextmanager
def using_tenant(alias: TenantAlias) -> Generator[TenantAlias]:
    """Make a tenant's database that of ``TenantRouter``, and close this thread's connection to it at the end.

    Within a block for the same tenant, or within its transaction, the connection belongs to that, and stays open.

    Raises:
        PostroomError: at the end: a transaction began in the block and did not end there. It is rolled back.
    """
    outermost = not hasattr(_used, alias) and not _is_in_transaction(alias)
    if outermost:
        setattr(_used, alias, True)
    token = _alias.set(alias)
    try:
        yield alias
        if outermost and _is_in_transaction(alias):
            raise PostroomError(f"a transaction of {alias} began in `with using_tenant(...)` and did not end there")
    finally:
        # Before the close: what runs during it must not find a database that is about to go.
        _alias.reset(token)
        if outermost:
            delattr(_used, alias)
            _close(alias)


def closing_connections(
    handler: Callable[[P, MessageContext[C, TenantAlias]], None],
) -> Callable[[P, MessageContext[C, TenantAlias]], None]:
    """Wrap a ``def`` handler: its tenant's database is the router's, and its connections are closed when it returns.

        @orders.handler
        @closing_connections
        def handle(order: Order, ctx: MessageContext[Tenant, TenantAlias]) -> None: ...

    Connections to other databases of the thread are kept or closed as Django does between two requests
    (``CONN_MAX_AGE``).

    Raises:
        ConfigurationError: the handler is ``async def``: Django's connections belong to threads.
    """
    if is_async(handler):
        name = getattr(handler, "__qualname__", repr(handler))
        text = f"@closing_connections takes a plain `def` handler, since Django's connections belong to threads: {name}"
        raise ConfigurationError(text)

    @functools.wraps(handler)
    def handle(payload: P, ctx: MessageContext[C, TenantAlias]) -> None:
        _close_old()
        try:
            with using_tenant(ctx.resources):
                handler(payload, ctx)
        finally:
            _close_old()

    return handle


class TenantRouter:
    """A database router that sends the models of some applications to the tenant of the message that is handled.

    Name a subclass in ``DATABASE_ROUTERS``. It fails closed: outside of a handler and of ``using_tenant`` a model
    of a tenant raises ``NoTenantDatabase``, unless the query says ``using=``.
    """

    tenant_apps: ClassVar[frozenset[str]] = frozenset()
    """The labels of the applications with tenants' models."""

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        """Return the alias of the current tenant for its models; None for all others."""
        return self._chosen(model)

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        """Return the alias of the current tenant for its models; None for all others."""
        return self._chosen(model)

    def _chosen(self, model: Any) -> str | None:
        if model._meta.app_label not in self.tenant_apps:  # noqa: SLF001 - Django's documented name
            return None
        alias = _alias.get()
        if alias is None:
            name = model._meta.label  # noqa: SLF001
            text = f"{name} is a model of a tenant, and no tenant's database is in use here"
            raise NoTenantDatabase(f"{text}: wrap the handler in @closing_connections, or use `with using_tenant(...)`")
        return alias


def _register(alias: TenantAlias, entry: Mapping[str, Any]) -> None:
    # Django completes all entries once, before the first connection: so this one is completed like them.
    own = {**entry, "OPTIONS": {**entry.get("OPTIONS", {})}}
    complete: dict[str, Any] = connections.configure_settings({DEFAULT_DB_ALIAS: {}, alias: own})
    with _registering:
        # A copy each time: other threads walk these settings, and Django does so for every request of a web server.
        connections.settings = {**connections.settings, alias: complete[alias]}


def _forget(alias: TenantAlias) -> None:
    with _registering:
        connections.settings = {name: entry for name, entry in connections.settings.items() if name != alias}


def _try_out(alias: TenantAlias) -> None:
    connection = connections[alias]
    if connection.vendor == "postgresql":
        connection.settings_dict["OPTIONS"].setdefault("connect_timeout", _CONNECTING)
    try:
        connection.ensure_connection()
    finally:
        _close(alias)
        if alias not in connections.settings:  # the open was given up, and its close has been here before
            _close_pool(connection)


def _remove(alias: TenantAlias) -> None:
    try:
        connection = connections[alias]
    finally:
        # Before the close: an open that was given up, and has made a pool after it, sees that.
        _forget(alias)
    _close_pool(connection)
    _close(alias)


def _close_pool(connection: Any) -> None:
    # The pool belongs to the process and not to the thread: closing a connection leaves it open.
    if hasattr(connection, "close_pool"):
        with suppress(KeyError):  # both of the above do this at once
            connection.close_pool()


def _close(alias: TenantAlias) -> None:
    """Close and forget this thread's connection to an alias; else each thread would keep an object per tenant."""
    if (connection := _connection(alias)) is not None:
        connection.close()
        del connections[alias]


def _is_in_transaction(alias: TenantAlias) -> bool:
    connection = _connection(alias)
    return connection is not None and connection.in_atomic_block


def _connection(alias: str) -> Any:
    """Return this thread's connection to an alias; None where it has none. Django's own look walks all aliases."""
    return getattr(connections._connections, alias, None)  # noqa: SLF001


def _close_old() -> None:
    for alias in connections:
        # A look for a connection takes longer than this one, and there may be a thousand tenants.
        if not isinstance(alias, TenantAlias) and (connection := _connection(alias)) is not None:
            connection.close_if_unusable_or_obsolete()
