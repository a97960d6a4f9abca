"""Tenant databases: providers for a consumer's ``resources=``, one per driver, without the drivers' traps.

=======================  ==========================================  ===============================
provider                 what a handler gets                         install
=======================  ==========================================  ===============================
``sqlite_database``      :class:`SqliteDatabase`, one file           nothing: it is in Python
``asyncpg_pool``         ``asyncpg.Pool``                            ``postroom[asyncpg]``
``asyncpg_inbox``        :class:`AsyncpgDatabase`, with an inbox     ``postroom[asyncpg]``
``psycopg_pool``         ``psycopg_pool.AsyncConnectionPool``        ``postroom[psycopg]``
``psycopg_connections``  :class:`PsycopgConnections`, without tasks  ``postroom[psycopg]``
``sqlalchemy_engine``    ``sqlalchemy.ext.asyncio.AsyncEngine``      ``postroom[sqlalchemy,asyncpg]``
=======================  ==========================================  ===============================

A driver is imported when its name is first used. The registry decides who is a tenant; nothing of a DSN ever comes
from a message.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from postroom.datasources.inbox import SQLITE_INBOX, Inbox, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.datasources.registry import DataSource, Registry, WrongDatabase
from postroom.datasources.sqlite import SqliteDatabase, SqliteTransaction, sqlite_database, tenant_file
from postroom.errors import UnknownTenant

if TYPE_CHECKING:
    from postroom.datasources._asyncpg_inbox import AsyncpgDatabase, asyncpg_inbox
    from postroom.datasources.asyncpg import asyncpg_pool
    from postroom.datasources.psycopg import PsycopgConnections, psycopg_connections, psycopg_pool
    from postroom.datasources.sqlalchemy import sqlalchemy_engine

__all__ = [
    "SQLITE_INBOX",
    "AsyncpgDatabase",
    "DataSource",
    "Inbox",
    "Provider",
    "PsycopgConnections",
    "Registry",
    "SqliteDatabase",
    "SqliteTransaction",
    "UnknownTenant",
    "WrongDatabase",
    "asyncpg_inbox",
    "asyncpg_pool",
    "postgres_inbox",
    "psycopg_connections",
    "psycopg_pool",
    "sqlalchemy_engine",
    "sqlite_database",
    "tenant_file",
]

_LAZY = {
    "asyncpg_pool": "asyncpg",
    "asyncpg_inbox": "_asyncpg_inbox",
    "AsyncpgDatabase": "_asyncpg_inbox",
    "psycopg_pool": "psycopg",
    "psycopg_connections": "psycopg",
    "PsycopgConnections": "psycopg",
    "sqlalchemy_engine": "sqlalchemy",
}


if not TYPE_CHECKING:  # to whom it would say that every name exists

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(import_module(f"postroom.datasources.{_LAZY[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
