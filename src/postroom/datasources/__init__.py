"""Tenant databases: providers for a consumer's ``resources=``, one per driver, without the drivers' traps.

==========================  ==========================================  ===============================
provider                    what a handler gets                         install
==========================  ==========================================  ===============================
``sqlite_database``         ``SqliteDatabase``, one file                nothing: it is in Python
``asyncpg_pool``            ``asyncpg.Pool``                            ``postroom[asyncpg]``
``asyncpg_inbox``           ``AsyncpgDatabase``, with an inbox          ``postroom[asyncpg]``
``psycopg_pool``            ``psycopg_pool.AsyncConnectionPool``        ``postroom[psycopg]``
``psycopg_connections``     ``PsycopgConnections``, without tasks       ``postroom[psycopg]``
``psycopg_inbox``           ``PsycopgDatabase``, with an inbox          ``postroom[psycopg]``
``sqlalchemy_engine``       ``sqlalchemy.ext.asyncio.AsyncEngine``      ``postroom[sqlalchemy,asyncpg]``
``sqlalchemy_inbox``        ``SqlalchemyDatabase``, with an inbox       ``postroom[sqlalchemy,asyncpg]``
``psycopg_sync_pool``       ``psycopg_pool.ConnectionPool``             ``postroom[psycopg]``
``psycopg_sync_inbox``      ``PsycopgSyncDatabase``                     ``postroom[psycopg]``
``sqlalchemy_sync_engine``  ``sqlalchemy.Engine``                       ``postroom[sqlalchemy,psycopg]``
``sqlalchemy_sync_inbox``   ``SqlalchemySyncDatabase``                  ``postroom[sqlalchemy,psycopg]``
==========================  ==========================================  ===============================

Those with ``sync`` in their names are for plain ``def`` handlers, the others for ``async def`` ones,
and ``sqlite_database`` is for both.

A driver is imported when its name is first used, and so is what asks AWS for passwords
(``rds_iam_token``, ``secrets_manager``). The registry decides who is a tenant; nothing of a DSN
ever comes from a message.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postroom.datasources._sqlite_sync import SqliteSyncTransaction
from postroom.datasources.inbox import SQLITE_INBOX, Inbox, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.datasources.registry import DataSource, Registry, WrongDatabase
from postroom.datasources.scope import Scope
from postroom.datasources.sqlite import SqliteDatabase, SqliteTransaction, sqlite_database, tenant_file
from postroom.errors import UnknownTenant

if TYPE_CHECKING:
    from postroom.datasources._asyncpg_inbox import AsyncpgDatabase, asyncpg_inbox
    from postroom.datasources._psycopg_inbox import PsycopgDatabase, psycopg_inbox
    from postroom.datasources._psycopg_sync import PsycopgSyncDatabase, psycopg_sync_inbox, psycopg_sync_pool
    from postroom.datasources._sqlalchemy_inbox import SqlalchemyDatabase, sqlalchemy_inbox
    from postroom.datasources._sqlalchemy_sync import (
        SqlalchemySyncDatabase,
        sqlalchemy_sync_engine,
        sqlalchemy_sync_inbox,
    )
    from postroom.datasources.asyncpg import asyncpg_pool
    from postroom.datasources.credentials import CachedPassword, Freshness, rds_iam_token, secrets_manager
    from postroom.datasources.psycopg import PsycopgConnections, psycopg_connections, psycopg_pool
    from postroom.datasources.sqlalchemy import sqlalchemy_engine

__all__ = [
    "SQLITE_INBOX",
    "AsyncpgDatabase",
    "CachedPassword",
    "DataSource",
    "Freshness",
    "Inbox",
    "Provider",
    "PsycopgConnections",
    "PsycopgDatabase",
    "PsycopgSyncDatabase",
    "Registry",
    "Scope",
    "SqlalchemyDatabase",
    "SqlalchemySyncDatabase",
    "SqliteDatabase",
    "SqliteSyncTransaction",
    "SqliteTransaction",
    "UnknownTenant",
    "WrongDatabase",
    "asyncpg_inbox",
    "asyncpg_pool",
    "postgres_inbox",
    "psycopg_connections",
    "psycopg_inbox",
    "psycopg_pool",
    "psycopg_sync_inbox",
    "psycopg_sync_pool",
    "rds_iam_token",
    "secrets_manager",
    "sqlalchemy_engine",
    "sqlalchemy_inbox",
    "sqlalchemy_sync_engine",
    "sqlalchemy_sync_inbox",
    "sqlite_database",
    "tenant_file",
]

_LAZY = {
    "asyncpg_pool": "asyncpg",
    "asyncpg_inbox": "_asyncpg_inbox",
    "AsyncpgDatabase": "_asyncpg_inbox",
    "CachedPassword": "credentials",
    "Freshness": "credentials",
    "rds_iam_token": "credentials",
    "secrets_manager": "credentials",
    "psycopg_pool": "psycopg",
    "psycopg_connections": "psycopg",
    "PsycopgConnections": "psycopg",
    "PsycopgDatabase": "_psycopg_inbox",
    "psycopg_inbox": "_psycopg_inbox",
    "PsycopgSyncDatabase": "_psycopg_sync",
    "psycopg_sync_inbox": "_psycopg_sync",
    "psycopg_sync_pool": "_psycopg_sync",
    "sqlalchemy_engine": "sqlalchemy",
    "SqlalchemyDatabase": "_sqlalchemy_inbox",
    "sqlalchemy_inbox": "_sqlalchemy_inbox",
    "SqlalchemySyncDatabase": "_sqlalchemy_sync",
    "sqlalchemy_sync_engine": "_sqlalchemy_sync",
    "sqlalchemy_sync_inbox": "_sqlalchemy_sync",
}
_DRIVERS = {
    "_asyncpg_inbox": ("asyncpg",),
    "_psycopg_inbox": ("psycopg",),
    "_psycopg_sync": ("psycopg",),
    "_sqlalchemy_inbox": ("sqlalchemy",),
    "_sqlalchemy_sync": ("sqlalchemy", "psycopg"),
}
"""Modules to be imported first: they say what to install."""


if not TYPE_CHECKING:  # checkers would take it that every name exists

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            for driver in _DRIVERS.get(_LAZY[name], ()):
                import_module(f"postroom.datasources.{driver}")
            return getattr(import_module(f"postroom.datasources.{_LAZY[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
