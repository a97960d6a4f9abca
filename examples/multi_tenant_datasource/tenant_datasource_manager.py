"""Where each tenant's data is, and how it is opened and closed: SQLite files, or PostgreSQL databases."""

import os
import sqlite3
import tomllib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from postroom.datasources import DataSource, Provider, SqliteDatabase, UnknownTenant, asyncpg_pool, sqlite_database

from .order_created_event import OrderCreatedEvent
from .tenant_context import TenantContext
from .tenant_resources import TenantResources

if TYPE_CHECKING:
    import asyncpg

SCHEMA = "CREATE TABLE IF NOT EXISTS orders (order_id text PRIMARY KEY, customer_id text NOT NULL, amount {} NOT NULL)"
INSERT = "INSERT INTO orders VALUES ({}) ON CONFLICT (order_id) DO NOTHING"


@dataclass(frozen=True)
class SqliteDataSource:
    """A tenant's SQLite file."""

    name: str
    database: SqliteDatabase

    async def save_order(self, order: OrderCreatedEvent) -> bool:
        """Save an order, in one transaction and one hop to the file's thread."""
        row = (order.order_id, order.customer_id, str(order.amount))

        def work(connection: sqlite3.Connection) -> bool:
            return connection.execute(INSERT.format("?, ?, ?"), row).rowcount == 1

        return await self.database.run(work)


@dataclass(frozen=True)
class PostgresDataSource:
    """A tenant's PostgreSQL database."""

    name: str
    pool: "asyncpg.Pool[asyncpg.Record]"

    async def save_order(self, order: OrderCreatedEvent) -> bool:
        """Save an order. A statement of its own is a transaction of its own."""
        sql = INSERT.format("$1, $2, $3")
        return await self.pool.execute(sql, order.order_id, order.customer_id, order.amount) == "INSERT 0 1"


class TenantDataSourceManager:
    """Opens and closes the tenants' databases.

    Args:
        registry: who is a tenant, and where its data is: ``sqlite:<file>`` or ``postgresql://...``. Only this says
            so; a message names its tenant and nothing else.
        directory: where SQLite files are.
    """

    def __init__(self, registry: Mapping[TenantContext, str | DataSource], directory: Path) -> None:
        self._registry = registry
        self._directory = directory
        self._files = sqlite_database(self._file_of, create=True, schema=SCHEMA.format("text"))

    @classmethod
    def from_environment(cls) -> Self:
        """Read the registry from TENANT_REGISTRY (default: tenants.toml here); files are in TENANT_DIRECTORY."""
        registry = Path(os.environ.get("TENANT_REGISTRY", Path(__file__).with_name("tenants.toml")))
        return cls(read_registry(registry), Path(os.environ.get("TENANT_DIRECTORY", "tenant-databases")))

    @cached_property
    def _servers(self) -> "Provider[TenantContext, asyncpg.Pool[asyncpg.Record]]":
        return asyncpg_pool(self._located, max_size=4)  # needs asyncpg: made when the first tenant needs it

    @asynccontextmanager
    async def resources(self, context: TenantContext) -> AsyncGenerator[TenantResources, None]:
        """Open one tenant's resources; what follows the yield closes them. The consumer's pool calls it."""
        name = f"{context.tenant_id}-{context.region}-db"
        if self._is_file(self._located(context)):
            async with self._files(context) as database:
                yield TenantResources(SqliteDataSource(name, database))
        else:
            async with self._servers(context) as pool:
                await pool.execute(SCHEMA.format("numeric"))
                yield TenantResources(PostgresDataSource(name, pool))

    def weight(self, context: TenantContext) -> int:
        """Return how many connections a tenant's resources may hold: for a pool's budget."""
        source = self._registry.get(context, "sqlite:")  # whether it exists is found out when it is opened
        return (self._files if self._is_file(source) else self._servers).weight

    async def check(self, resources: TenantResources) -> bool:
        """Ask the database whether it is well: for a pool's ``check=``."""
        match resources.data_source:
            case SqliteDataSource(database=database):
                return await database.check()
            case PostgresDataSource(pool=pool):
                return await pool.fetchval("SELECT true") is True
            case _:
                return True

    def _located(self, context: TenantContext) -> str | DataSource:
        try:
            return self._registry[context]
        except KeyError:  # a LookupError: the pool leaves an unknown tenant alone for a minute
            raise UnknownTenant("the registry has no such tenant") from None

    def _file_of(self, context: TenantContext) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory / str(self._located(context)).removeprefix("sqlite:")

    @staticmethod
    def _is_file(source: str | DataSource) -> bool:
        return isinstance(source, str) and source.startswith("sqlite:")


def read_registry(path: Path) -> dict[TenantContext, str | DataSource]:
    """Read the tenants from a TOML file; see tenants.toml."""
    with path.open("rb") as file:
        tenants = tomllib.load(file)["tenants"]
    return {TenantContext(tenant["tenant_id"], tenant["region"]): _source(tenant) for tenant in tenants}


def _source(tenant: Mapping[str, str]) -> str | DataSource:
    variable = tenant.get("password_variable")
    if variable is None:
        return tenant["database"]
    # Asked for each connection, so that a rotated password reaches the next one.
    return DataSource(tenant["database"], password=lambda: os.environ[variable])
