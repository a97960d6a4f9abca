"""A server that has no connection left makes a pool wait for its own, and fails no use that can be served."""

import asyncio

import asyncpg
import pytest

from postroom.datasources import Registry, asyncpg_pool
from postroom.testing.postgres import PostgresServer


@pytest.mark.postgres
async def test_a_pool_that_is_refused_another_connection_uses_the_one_it_has(
    postgres_server: PostgresServer, database: str
) -> None:
    """Ten uses, one connection: all are served, one after the other; then the limit goes, and the pool grows."""
    role = f"one_{database}"
    postgres_server.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'p' CONNECTION LIMIT 1")
    most = 0
    try:
        registry = Registry({"acme": postgres_server.dsn(database, user=role, password="p")})
        async with asyncpg_pool(registry, max_size=4)("acme") as pool:

            async def use() -> None:
                nonlocal most
                async with pool.acquire() as connection:
                    most = max(most, pool.get_size())
                    await connection.execute("SELECT pg_sleep(0.01)")

            await asyncio.gather(*(use() for _ in range(10)))
            assert most == 1
            async with pool.acquire():
                with pytest.raises(asyncpg.TooManyConnectionsError):
                    await pool.acquire(timeout=1)
                await asyncio.to_thread(postgres_server.execute, f'ALTER ROLE "{role}" CONNECTION LIMIT -1')
                async with pool.acquire(timeout=10):
                    assert pool.get_size() == 2
    finally:
        postgres_server.execute(f'DROP ROLE IF EXISTS "{role}"')
