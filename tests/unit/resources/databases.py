"""Databases for the pool's tests: slow, failing or stuck as the test says, and counted."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tenant:
    """The context of these tests."""

    name: str
    region: str = "us-east-1"


A, B, C, D = (Tenant(name) for name in "abcd")


@dataclass(eq=False)
class Database:
    """One open database."""

    tenant: Tenant
    number: int
    alive: bool = True


@dataclass(eq=False)
class Databases:
    """A provider, and what it saw."""

    open_seconds: float = 0.1
    close_seconds: float = 0.1
    errors: dict[Tenant, BaseException] = field(default_factory=dict[Tenant, BaseException])
    """Tenants that cannot be opened, and why."""
    close_errors: dict[Tenant, BaseException] = field(default_factory=dict[Tenant, BaseException])
    stuck: set[Tenant] = field(default_factory=set[Tenant])
    """Tenants with an open that never answers."""
    sick: set[Tenant] = field(default_factory=set[Tenant])
    """Tenants with a health check that fails."""
    attempts: Counter[Tenant] = field(default_factory=Counter[Tenant])
    order: list[Tenant] = field(default_factory=list[Tenant])
    opened: list[Database] = field(default_factory=list[Database])
    closed: list[Database] = field(default_factory=list[Database])
    checked: list[Database] = field(default_factory=list[Database])
    opening: int = 0
    most_opening: int = 0
    most_live: int = 0
    _live: int = 0

    @asynccontextmanager
    async def provide(self, tenant: Tenant) -> AsyncIterator[Database]:
        """Open a database, and close it after the ``yield``."""
        database = await self.open(tenant)
        yield database
        await self.close(database)

    async def open(self, tenant: Tenant) -> Database:
        """Open a database."""
        self.attempts[tenant] += 1
        self.order.append(tenant)
        self.opening += 1
        self._live += 1
        self.most_opening = max(self.most_opening, self.opening)
        self.most_live = max(self.most_live, self._live)
        try:
            await asyncio.sleep(1e9 if tenant in self.stuck else self.open_seconds)
            if tenant in self.errors:
                raise self.errors[tenant].with_traceback(None)  # else it has the frames of each time before
        except BaseException:
            self._live -= 1
            raise
        finally:
            self.opening -= 1
        database = Database(tenant, len(self.opened))
        self.opened.append(database)
        return database

    async def close(self, database: Database) -> None:
        """Close a database."""
        database.alive = False
        try:
            await asyncio.sleep(self.close_seconds)
            if database.tenant in self.close_errors:
                raise self.close_errors[database.tenant]
        finally:
            self.closed.append(database)
            self._live -= 1

    async def check(self, database: Database) -> bool:
        """Say whether a database is well."""
        self.checked.append(database)
        await asyncio.sleep(0.01)
        return database.tenant not in self.sick
