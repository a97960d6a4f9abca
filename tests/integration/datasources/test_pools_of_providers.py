"""Providers in a ResourcePool: weight, health and rotation against the real server."""

import asyncio
import logging
from pathlib import Path

import pytest

from postroom import PoolLimits, ResourceOpenError, ResourcePool
from postroom.datasources import DataSource, Registry, asyncpg_pool, psycopg_connections, psycopg_pool, sqlite_database
from support.tenant_database import TenantDatabase

pytestmark = pytest.mark.postgres


def _tasks_of_pools() -> int:
    return sum(task.get_name().startswith("postroom-") for task in asyncio.all_tasks())


async def test_the_budget_counts_connections(tenant: TenantDatabase) -> None:
    """A provider's pool weighs what it may hold, and gives that back when it is closed."""
    provider = asyncpg_pool(Registry({1: tenant.dsn, 2: tenant.dsn}), max_size=3)
    async with ResourcePool(provider, limits=PoolLimits(budget=5)) as pool:
        async with pool.lease(1) as first:
            assert await first.fetchval("SELECT 1") == 1
            assert pool.statistics().weight == 3
        async with pool.lease(2):
            assert pool.statistics().weight == 3
            assert pool.statistics().evictions == {"capacity": 1}
    assert pool.statistics().weight == 0
    tenant.wait_for_backends(0)


async def test_a_failed_check_opens_anew(tenant: TenantDatabase) -> None:
    """After the server was restarted an idle resource is replaced before anybody gets it."""
    provider = asyncpg_pool(Registry({1: tenant.dsn}), max_size=1)
    async with provider.pool(limits=PoolLimits(check_after=0.0)) as pool:
        async with pool.lease(1) as first:
            await first.fetchval("SELECT 1")
        tenant.server.restart()
        async with pool.lease(1) as second:
            assert await second.fetchval("SELECT 1") == 1
    assert first is second or pool.statistics().opened == 2


async def test_an_unknown_tenant_is_remembered_as_permanent(tenant: TenantDatabase) -> None:
    """And the error names neither a DSN nor a password."""
    async with psycopg_connections(Registry({1: tenant.dsn})).pool() as pool:
        with pytest.raises(ResourceOpenError) as unknown:
            async with pool.lease(2):
                pass
    assert unknown.value.permanent
    assert tenant.server.password not in f"{unknown.value!r}{unknown.value.__cause__!r}"


async def test_an_invalidated_resource_takes_the_rotated_data_source(tenant: TenantDatabase) -> None:
    """Rotation: change the registry, invalidate, and the next lease goes to the new place."""
    sources: dict[int, str | DataSource] = {1: tenant.dsn}
    tenant.server.create_database(f"{tenant.name}-moved")
    async with asyncpg_pool(Registry(sources)).pool() as pool:
        async with pool.lease(1) as before:
            assert await before.fetchval("SELECT current_database()::text") == tenant.name
        sources[1] = tenant.server.dsn(f"{tenant.name}-moved")
        await pool.invalidate(1)
        async with pool.lease(1) as after:
            assert await after.fetchval("SELECT current_database()::text") == f"{tenant.name}-moved"
    tenant.server.drop_database(f"{tenant.name}-moved")


async def test_psycopg_runs_two_tasks_for_a_pool_and_none_without(tenant: TenantDatabase) -> None:
    """psycopg_pool's own default is four; with thousands of tenants that is the difference."""
    registry = Registry({1: tenant.dsn})
    async with psycopg_pool(registry)(1):
        assert _tasks_of_pools() == 2
    assert _tasks_of_pools() == 0
    before = asyncio.all_tasks()
    async with psycopg_connections(registry)(1):
        assert asyncio.all_tasks() == before


async def test_the_log_names_the_key_and_never_the_dsn(
    tenant: TenantDatabase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At debug level too."""
    caplog.set_level(logging.DEBUG)
    registry = Registry({("tenant-a", "us-east-1"): tenant.dsn})
    async with asyncpg_pool(registry).pool() as pool, pool.lease(("tenant-a", "us-east-1")):
        pass
    async with sqlite_database(tmp_path.joinpath, create=True).pool() as files, files.lease("a"):
        pass
    assert "Resources created for key: tenant-a:us-east-1" in caplog.text
    assert tenant.server.password not in caplog.text
