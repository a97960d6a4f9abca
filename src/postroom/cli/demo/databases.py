"""The tenants' databases of the demo: real ones, made for it, gone after it."""

import asyncio
import secrets
import socket
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import quote, urlsplit

from postroom.cli.demo.application import example
from postroom.cli.demo.story import Row
from postroom.errors import ConfigurationError

Rows = list[Row] | None
"""The rows of one database; None where there is no table yet."""
SELECT: Final = "SELECT order_id, customer_id, amount FROM orders ORDER BY order_id"
_CONNECT_TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class Databases:
    """Where each tenant's database is, and how to look into it."""

    locations: Mapping[Any, Path | str]
    kind: str
    orders: Callable[[Any], Awaitable[Rows]]
    """Reads a tenant's orders over a connection of its own, past all that did the work."""


def tenants() -> tuple[Any, Any, Any]:
    """Return the contexts of the demo: two with databases that are up, and one with a database that is down."""
    context = example("tenant_context").TenantContext
    return context("tenant-a", "us-east-1"), context("tenant-b", "eu-west-1"), context("tenant-c", "us-east-1")


@asynccontextmanager
async def sqlite_databases() -> AsyncGenerator[Databases]:
    """Give every tenant a SQLite file. The storage of the third one is away."""
    with TemporaryDirectory(prefix="postroom-demo-") as directory:
        name = example("tenant_datasource_manager").database_name
        first, second, down = tenants()
        files = {tenant: Path(directory) / f"{name(tenant)}.sqlite" for tenant in (first, second)}
        files[down] = Path(directory) / "not-mounted" / f"{name(down)}.sqlite"

        async def orders(tenant: Any) -> Rows:
            return await asyncio.to_thread(read_file, files[tenant])

        yield Databases(files, f"SQLite files in {directory}", orders)


def read_file(path: Path) -> Rows:
    """Read the orders in a file, without making it."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return [(order, customer, Decimal(amount)) for order, customer, amount in connection.execute(SELECT)]


@asynccontextmanager
async def postgres_databases(dsn: str | None) -> AsyncGenerator[Databases]:
    """Give every tenant a PostgreSQL database, on a server of our own or on the given one. The third one's is down.

    Raises:
        ConfigurationError: the server cannot be reached, or the extras are not installed.
    """
    async with AsyncExitStack() as stack:
        if dsn is None:
            from postroom.testing.postgres import PostgresServer

            server = await stack.enter_async_context(PostgresServer())
            dsn, kind = server.dsn(), "PostgreSQL databases on a server started for this demo"
        else:
            kind = "PostgreSQL databases on the given server"
        locations = await stack.enter_async_context(_created(dsn))

        async def orders(tenant: Any) -> Rows:
            return None if tenant == tenants()[2] else await _read_database(locations[tenant])

        yield Databases(locations, kind, orders)


@asynccontextmanager
async def _created(admin: str) -> AsyncGenerator[dict[Any, str]]:
    connection = await _connect(admin)
    name = example("tenant_datasource_manager").database_name
    first, second, down = tenants()
    suffix = secrets.token_hex(3)
    names = {tenant: f"{name(tenant)}-{suffix}" for tenant in (first, second)}
    try:
        for database in names.values():
            await connection.execute(f'CREATE DATABASE "{database}"')
        with dead_port() as port:
            locations = {tenant: with_database(admin, database) for tenant, database in names.items()}
            yield {**locations, down: f"postgresql://none@127.0.0.1:{port}/{name(down)}"}
    finally:
        for database in names.values():
            await connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        await connection.close(timeout=_CONNECT_TIMEOUT)


async def _connect(dsn: str) -> Any:
    try:
        import asyncpg
    except ModuleNotFoundError as error:
        raise ConfigurationError("the demo with PostgreSQL needs: pip install 'postroom[asyncpg]'") from error
    try:
        return await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # Not the driver's own text: it may quote the DSN.
        raise ConfigurationError(f"PostgreSQL does not let us in ({type(error).__name__}); check --dsn") from None


async def _read_database(dsn: str) -> Rows:
    connection = await _connect(dsn)
    try:
        if not await connection.fetchval("SELECT to_regclass('orders') IS NOT NULL"):
            return None
        return [(row[0], row[1], Decimal(row[2])) for row in await connection.fetch(SELECT)]
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT)


@contextmanager
def dead_port() -> Generator[int]:
    """Hold a port without a listener: connections to it are refused, and no other process can take it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def with_database(dsn: str, database: str) -> str:
    """Return the DSN of another database on the same server."""
    return urlsplit(dsn)._replace(path=f"/{quote(database, safe='')}").geturl()
