"""Every adapter of a transactional resource, as the conformance suite uses it."""
# ruff: noqa: D102 - the base class says what each of them does

import asyncio
import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from postroom.datasources import (
    SQLITE_INBOX,
    Provider,
    Registry,
    asyncpg_inbox,
    asyncpg_pool,
    psycopg_connections,
    psycopg_inbox,
    psycopg_pool,
    sqlalchemy_engine,
    sqlalchemy_inbox,
    sqlite_database,
)
from postroom.testing.postgres import HOST
from support.tenant_database import TenantDatabase


class Adapter(ABC):
    """How one adapter is opened and used, and what another connection sees in its database."""

    @abstractmethod
    def provider(self, **options: Any) -> Provider[str, Any]:
        """Provide for one tenant, ``"a"``."""

    @abstractmethod
    async def execute(self, tx: Any, sql: str) -> None:
        """Run one statement in a transaction."""

    @abstractmethod
    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        """Return a savepoint, as the driver's users write it."""

    @abstractmethod
    def column(self, name: str, table: str) -> list[str]:
        """Return what is committed in a column, in order."""

    def orders(self) -> list[str]:
        """Return the ids of the orders that are committed."""
        return self.column("id", "orders")

    def keys(self, table: str = "postroom_inbox") -> list[str]:
        """Return the ids of the messages with rows that are committed."""
        return self.column("message_id", table)


class SqliteAdapter(Adapter):
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def provider(self, **options: Any) -> Provider[str, Any]:
        schema = f"{SQLITE_INBOX.schema} CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY) STRICT;"
        return sqlite_database(lambda _: self.path, create=True, schema=schema, **options)

    async def execute(self, tx: Any, sql: str) -> None:
        await tx.execute(sql)

    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        return nullcontext(tx)  # each step is one

    def column(self, name: str, table: str) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return [row for (row,) in connection.execute(f"SELECT {name} FROM {table} ORDER BY 1")]


class PostgresAdapter(Adapter):
    """A database on the real server, through one of the drivers."""

    scheme: ClassVar = "postgresql"

    def __init__(self, tenant: TenantDatabase) -> None:
        self.tenant = tenant

    def dsn(self, port: int | None = None) -> str:
        """Return the URL, through a proxy if one is named."""
        dsn = self.tenant.dsn.replace("postgresql", self.scheme, 1)
        return dsn if port is None else dsn.replace(f":{self.tenant.server.port}/", f":{port}/")

    def provider(self, *, port: int | None = None, max_size: int = 4, **options: Any) -> Provider[str, Any]:
        return self.inbox(Registry({"a": self.dsn(port)}), max_size, **options)

    @abstractmethod
    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        """Provide with an inbox."""

    async def execute(self, tx: Any, sql: str) -> None:
        await tx.execute(sql)

    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        transaction: AbstractAsyncContextManager[Any] = tx.transaction()
        return transaction

    async def close(self, tx: Any) -> None:
        """Close the connection of a transaction, as a mistaken handler does."""
        await tx.close()

    def column(self, name: str, table: str) -> list[str]:
        sql = f"SELECT {name} FROM {table} ORDER BY 1"
        return self.tenant.look(sql).splitlines()

    def run(self, sql: str) -> str:
        """Run statements from outside."""
        return self.tenant.look(sql)

    async def someone_waits(self) -> None:
        """Return when the server says that a transaction waits for another."""
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock' AND state = 'active'"
        )
        async with asyncio.timeout(10):
            while await asyncio.to_thread(self.run, sql) == "0":
                await asyncio.sleep(0)


class AsyncpgAdapter(PostgresAdapter):
    """asyncpg's pool."""

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        return asyncpg_inbox(asyncpg_pool(registry, max_size=max_size), **options)


class PsycopgAdapter(PostgresAdapter):
    """psycopg's pool."""

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        return psycopg_inbox(psycopg_pool(registry, max_size=max_size), **options)


class PsycopgConnectionsAdapter(PsycopgAdapter):
    """psycopg's connections without a pool."""

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        return psycopg_inbox(psycopg_connections(registry, max_size=max_size), **options)


class SqlalchemyAdapter(PostgresAdapter):
    """SQLAlchemy's connections, over asyncpg."""

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        return sqlalchemy_inbox(sqlalchemy_engine(registry, max_size=max_size), **options)

    async def execute(self, tx: Any, sql: str) -> None:
        await tx.execute(text(sql))

    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        transaction: AbstractAsyncContextManager[Any] = tx.begin_nested()
        return transaction

    async def close(self, tx: Any) -> None:
        raw = await tx.get_raw_connection()
        await raw.driver_connection.close()


class SqlalchemyPsycopgAdapter(SqlalchemyAdapter):
    """SQLAlchemy's connections, over psycopg."""

    scheme = "postgresql+psycopg"


class SessionAdapter(SqlalchemyAdapter):
    """SQLAlchemy's ORM session, over asyncpg."""

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        sessions = async_sessionmaker(expire_on_commit=False)
        return sqlalchemy_inbox(sqlalchemy_engine(registry, max_size=max_size), session=sessions, **options)

    async def close(self, tx: Any) -> None:
        await super().close(await tx.connection())


class SessionPsycopgAdapter(SessionAdapter):
    """SQLAlchemy's ORM session, over psycopg, made by the class itself."""

    scheme = "postgresql+psycopg"

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        return sqlalchemy_inbox(sqlalchemy_engine(registry, max_size=max_size), session=AsyncSession, **options)


class Proxy:
    """A proxy to the server that cuts a connection when the server answers a request with a word, once it is told to.

    Args:
        word: in the request.
        port: the server's.
    """

    def __init__(self, word: bytes, port: int) -> None:
        self.port = 0
        self.cutting = False
        self._word = word
        self._server_port = port
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Proxy"]:
        """Listen on a free port for the time of the block."""
        listener = await asyncio.start_server(self._serve, HOST, 0)
        async with listener:
            self.port = listener.sockets[0].getsockname()[1]
            yield self
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # aborted sockets close in the next turn of the loop

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(HOST, self._server_port)
        asked = asyncio.Event()

        async def ask() -> None:
            while data := await client.read(65_536):
                if self.cutting and self._word in data:
                    asked.set()
                to_server.write(data)

        async def answer() -> None:
            while (data := await server.read(65_536)) and not asked.is_set():
                to_client.write(data)
            to_client.transport.abort()

        pair = [asyncio.create_task(each()) for each in (ask, answer)]
        self._tasks.update(pair)
        try:
            with suppress(OSError, asyncio.CancelledError):
                await asyncio.gather(*pair)
        finally:
            to_server.transport.abort()
            to_client.transport.abort()
