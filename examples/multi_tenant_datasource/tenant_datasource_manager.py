"""The registry of the tenants' databases, and the provider that opens one.

Which tenants exist, and where their databases are, is decided here and never by a message.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from postroom.datasources import SqliteDatabase, UnknownTenant, sqlite_database

from .tenant_context import TenantContext
from .tenant_resources import TenantDataSource, TenantResources

if TYPE_CHECKING:
    import asyncpg

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS orders (order_id text PRIMARY KEY, customer_id text NOT NULL, amount text NOT NULL)"
)
INSERT = "INSERT INTO orders (order_id, customer_id, amount) VALUES ({}) ON CONFLICT (order_id) DO NOTHING"

CONNECTIONS = 4
"""Connections per tenant to PostgreSQL, at most."""
Locations = Mapping[TenantContext, Path | str]
"""Where each tenant's database is: a file of SQLite's, or the DSN of a PostgreSQL database."""


def database_name(tenant: TenantContext) -> str:
    """Return what a tenant's database is called."""
    return f"{tenant.tenant_id}-{tenant.region}-db"


@dataclass(frozen=True)
class SqliteDataSource:
    """A tenant's orders in a SQLite file."""

    name: str
    database: SqliteDatabase

    async def save_order(self, order_id: str, customer_id: str, amount: Decimal) -> None:
        """Write an order, once."""
        await self.database.execute(INSERT.format("?, ?, ?"), (order_id, customer_id, str(amount)))

    async def check(self) -> bool:
        """Return True when the file answers, and is still the one that was opened."""
        return await self.database.check()


@dataclass(frozen=True)
class PostgresDataSource:
    """A tenant's orders in a PostgreSQL database."""

    name: str
    pool: "asyncpg.Pool[asyncpg.Record]"

    async def save_order(self, order_id: str, customer_id: str, amount: Decimal) -> None:
        """Write an order, once."""
        await self.pool.execute(INSERT.format("$1, $2, $3"), order_id, customer_id, str(amount))

    async def check(self) -> bool:
        """Return True when the server answers."""
        return bool(await self.pool.fetchval("SELECT true"))


class TenantDataSourceManager:
    """Opens the database of a tenant that it knows.

    Args:
        locations: the tenants that exist, with a file for each (SQLite) or a DSN for each (PostgreSQL).
    """

    def __init__(self, locations: Locations) -> None:
        self._locations = locations
        self._sqlite = sqlite_database(self._path, create=True, schema=SCHEMA)

    def connections(self, tenant: TenantContext) -> int:
        """Return what a tenant's resources take of the pool's budget: the connections that they may open."""
        return 1 if isinstance(self._locations.get(tenant), Path) else CONNECTIONS

    @asynccontextmanager
    async def resources(self, tenant: TenantContext) -> AsyncGenerator[TenantResources]:
        """Provide a tenant's resources: what follows the ``yield`` is the cleanup.

        Raises:
            UnknownTenant: there is no such tenant. It is a ``LookupError``, so the pool does not try again soon.
            Exception: whatever the driver raises when the database cannot be reached. The pool tries again later.
        """
        async with self._open(tenant) as data_source:
            yield TenantResources(data_source)

    async def check(self, resources: TenantResources) -> bool:
        """Ask a tenant's database whether it is well. The pool does it before a lease after a time without any."""
        return await resources.data_source.check()

    @asynccontextmanager
    async def _open(self, tenant: TenantContext) -> AsyncGenerator[TenantDataSource]:
        if isinstance(self._locate(tenant), Path):
            async with self._sqlite(tenant) as database:
                yield SqliteDataSource(database_name(tenant), database)
        else:
            from postroom.datasources import asyncpg_pool  # noqa: PLC0415 - SQLite does not need asyncpg installed

            async with asyncpg_pool(self._dsn, max_size=CONNECTIONS)(tenant) as pool:
                await pool.execute(SCHEMA)
                yield PostgresDataSource(database_name(tenant), pool)

    def _locate(self, tenant: TenantContext) -> Path | str:
        try:
            return self._locations[tenant]
        except KeyError:
            text = f"there is no tenant {tenant.tenant_id!r} in {tenant.region!r}"
            raise UnknownTenant(text) from None

    def _path(self, tenant: TenantContext) -> Path:
        return Path(self._locate(tenant))

    def _dsn(self, tenant: TenantContext) -> str:
        return str(self._locate(tenant))
