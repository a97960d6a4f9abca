"""A tenant's database as an alias of ``django.db.connections``, known for as long as it is leased.

Django's connections belong to a thread, so handlers are plain ``def`` functions. What a handler opened is closed in its
own thread when it returns: no connection, transaction or ``SET`` of one tenant meets the next.
"""

import functools
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

from asgiref.sync import sync_to_async
from django import db as django_db

from postroom.checking import check_function
from postroom.consumer import MessageContext
from postroom.consumer.callables import is_async
from postroom.datasources import Provider
from postroom.datasources._read_only import TAKES_WRITES, is_refused_write
from postroom.datasources._threads import in_thread
from postroom.datasources.registry import ask_registry
from postroom.errors import ConfigurationError, PostroomError
from postroom.integrations.django import aliases
from postroom.integrations.django.aliases import TenantAlias, connection_of, connections
from postroom.integrations.django.pooling import reset_between_users
from postroom.integrations.django.routing import in_use
from postroom.options import check_count
from postroom.resources.failures import of_message
from postroom.tasks import is_in_loop
from postroom.types import C

P = TypeVar("P")

_db: Any = django_db  # Django has no types
_CONNECTING: Final = 5
"""Seconds that a connection to PostgreSQL may take, unless the entry says otherwise: libpq itself has no limit. A reset
may take as long."""
_IN_TRANSACTION: Final = (2, 3)
"""libpq's PQTRANS_INTRANS and PQTRANS_INERROR."""


def tenant_databases(
    locate: Callable[[C], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None], *, connections_each: int = 8
) -> Provider[C, TenantAlias]:
    """Return a provider of tenants' databases for a consumer's ``resources=``.

        orders = Consumer("orders", context=Tenant, resources=tenant_databases(lambda tenant: DATABASES_OF[tenant.id]))

    The alias is known to Django when the first lease opens it, and one connection is tried: a database that cannot be
    reached is an outage, and no attempt of a message. It is removed when the pool closes it, and every connection to
    PostgreSQL that is still open is ended with it. So is a pool of Django's own (``OPTIONS: {"pool": ...}``), which has
    to be of PostgreSQL: its connections forget roles, settings, locks and temporary tables when they come back to it.
    Connections to PostgreSQL have a limit of 5 s, unless the entry has a ``connect_timeout`` in its ``OPTIONS``.

    Args:
        locate: the registry: a context to an entry as in the setting ``DATABASES``, sync or async. None, or a
            ``LookupError``: there is no such tenant.
        connections_each: connections that one tenant may have open, for the pool's budget: as many as
            ``Concurrency(per_tenant=)``, or the ``max_size`` of Django's pool.

    Raises:
        ConfigurationError: at opening: the entry has ``ATOMIC_REQUESTS``, or a pool of another database's.
    """
    check_function("tenant_databases(locate)", "(context) -> an entry as in the setting DATABASES", locate)
    check_count("tenant_databases", "connections_each", connections_each)

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[TenantAlias]:
        entry: Mapping[str, Any] = await ask_registry(locate, context)
        # By chance, and not counted: an object that was pickled has the alias that another process knew its tenant by.
        alias = TenantAlias(f"tenant-{secrets.token_hex(8)}")
        aliases.register(alias, entry)
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

    In ``async def`` code it is for Django's own asynchronous calls (``await Order.objects.acount()``) and
    ``sync_to_async``: their thread's connection is closed at the end. Blocks that run at the same time share that
    connection, with its settings. A thread that the block starts enters one of its own.

    Raises:
        PostroomError: at the end: a transaction began in the block and did not end there, as without autocommit. It is
            rolled back. Not told in ``async def`` code; one that Django did not begin is told of PostgreSQL and SQLite.
    """
    outermost = not hasattr(aliases.used, alias) and not _is_in_transaction(alias)
    if outermost:
        setattr(aliases.used, alias, True)
    token = in_use.set(alias)
    try:
        yield alias
        if outermost and _is_in_transaction(alias):
            raise PostroomError(f"a transaction of {alias} began in `with using_tenant(...)` and did not end there")
    except Exception as error:
        if outermost and is_refused_write(error):
            _judge(error, alias)
        raise
    finally:
        # Before the close: what runs during it must not find a database that is about to go.
        in_use.reset(token)
        if outermost:
            delattr(aliases.used, alias)
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
        _db.close_old_connections()
        try:
            with using_tenant(ctx.resources):
                handler(payload, ctx)
        finally:
            _db.close_old_connections()

    return handle


def _try_out(alias: TenantAlias) -> None:
    connection = connections[alias]
    try:
        if connection.vendor == "postgresql":
            connection.settings_dict["OPTIONS"].setdefault("connect_timeout", _CONNECTING)
        reset_between_users(connection, _CONNECTING)
        connection.ensure_connection()
    finally:
        aliases.close(alias)


def _remove(alias: TenantAlias) -> None:
    try:
        connections[alias]  # for its pool: this thread has no connection yet
    finally:
        aliases.forget(alias)
        aliases.close(alias)


def _close(alias: TenantAlias) -> None:
    """Close what a block opened: in this thread, or in that of async code."""
    in_a_loop = is_in_loop()
    if in_a_loop and aliases.has_stray(alias):
        # Handed to the thread of Django's own async calls now, before the queries of the next block: the end of a
        # `with` block cannot wait. Without such a thread there is nothing to close in it.
        closing = sync_to_async(aliases.close_stray)(alias)
        with suppress(RuntimeError):
            closing.send(None)
        closing.close()
    if not in_a_loop or os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        aliases.close(alias)


def _judge(error: BaseException, alias: TenantAlias) -> None:
    """Rule that a refused write is the message's own, if all servers that this thread is connected to take writes.

    Django does not tell which of them refused it.
    """
    mine = connection_of(alias)
    if mine is None or mine.connection is None:
        return
    with suppress(Exception):  # without an answer it may be an outage
        if all(_takes_writes(each) for each in (mine, *connections.all(initialized_only=True))):
            of_message(error)


def _takes_writes(connection: Any) -> bool:
    if connection.vendor != "postgresql" or connection.connection is None:
        return True
    with connection.cursor() as cursor:
        cursor.execute(TAKES_WRITES)
        return bool(cursor.fetchone()[0])


def _is_in_transaction(alias: TenantAlias) -> bool:
    connection = connection_of(alias)
    return connection is not None and (connection.in_atomic_block or _began_without_django(connection))


def _began_without_django(connection: Any) -> bool:
    """Whether a transaction began by SQL, or because there is no autocommit, in which work would be lost as well."""
    raw = connection.connection
    if raw is None:
        return False
    match connection.vendor:
        case "postgresql":  # the number is the same in psycopg and psycopg2
            return raw.info.transaction_status in _IN_TRANSACTION
        case "sqlite":
            return bool(raw.in_transaction)
        case _:
            return False
