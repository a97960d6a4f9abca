"""The tenants' databases of the demo: real ones, made for it, gone after it."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from postroom.cli.demo.application import example
from postroom.errors import ConfigurationError


@dataclass(frozen=True)
class Databases:
    """Where each tenant's database is, and how to look into it past the consumer."""

    locations: dict[Any, Path | str]
    kind: str

    async def orders(self, tenant: Any) -> list[str]:
        """Read the order ids back, over a connection of our own."""
        manager = example("tenant_datasource_manager").TenantDataSourceManager(self.locations)
        async with manager.resources(tenant) as resources:
            found: list[str] = await resources.data_source.orders()
            return found


def tenants() -> tuple[Any, Any, Any]:
    """Return the contexts of the demo: two whose databases are up, and one whose database is down."""
    context = example("tenant_context").TenantContext
    return context("tenant-a", "us-east-1"), context("tenant-b", "eu-west-1"), context("tenant-c", "us-east-1")


@asynccontextmanager
async def sqlite_databases() -> AsyncGenerator[Databases]:
    """Give every tenant a SQLite file. The storage of the third one is away."""
    with TemporaryDirectory(prefix="postroom-demo-") as directory:
        name = example("tenant_datasource_manager").database_name
        first, second, down = tenants()
        locations: dict[Any, Path | str] = {
            tenant: Path(directory) / f"{name(tenant)}.sqlite" for tenant in (first, second)
        }
        locations[down] = Path(directory) / "not-mounted" / f"{name(down)}.sqlite"
        yield Databases(locations, f"SQLite files in {directory}")


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
            admin, kind = server.dsn(), "PostgreSQL, started for this demo"
        else:
            admin, kind = dsn, "PostgreSQL at the given DSN"
        yield Databases(await stack.enter_async_context(_created(admin)), kind)


@asynccontextmanager
async def _created(admin: str) -> AsyncGenerator[dict[Any, Path | str]]:
    try:
        import asyncpg
    except ModuleNotFoundError as error:
        raise ConfigurationError("the demo with PostgreSQL needs: pip install 'postroom[asyncpg]'") from error
    name = example("tenant_datasource_manager").database_name
    first, second, down = tenants()
    suffix = secrets.token_hex(3)
    names = {tenant: f"{name(tenant)}-{suffix}" for tenant in (first, second)}
    try:
        connection = await asyncpg.connect(admin)
    except (OSError, asyncpg.PostgresError) as error:
        raise ConfigurationError(f"PostgreSQL does not let us in ({type(error).__name__}); check --dsn") from error
    try:
        for database in names.values():
            await connection.execute(f'CREATE DATABASE "{database}"')
        locations: dict[Any, Path | str] = {tenant: _with_database(admin, names[tenant]) for tenant in names}
        locations[down] = "postgresql://nobody@127.0.0.1:1/down"  # a port on which nothing listens
        yield locations
    finally:
        for database in names.values():
            await connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        await connection.close()


def _with_database(dsn: str, database: str) -> str:
    from urllib.parse import quote, urlsplit

    return urlsplit(dsn)._replace(path=f"/{quote(database)}").geturl()
