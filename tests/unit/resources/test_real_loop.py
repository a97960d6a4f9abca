"""The pool on asyncio's own loop, with real time."""

import asyncio
import gc

from postroom.options import PoolLimits
from postroom.resources import ResourcePool
from unit.resources.databases import A, Databases, Tenant


async def test_many_tenants_on_a_real_loop() -> None:
    """Opens, hits, evictions and the close, with real timers and a real scheduler."""
    databases = Databases(open_seconds=0.001, close_seconds=0.001)

    async def use(number: int) -> None:
        tenant = Tenant(str(number % 20))
        async with pool.lease(tenant) as database:
            assert database.alive
            assert database.tenant == tenant
            await asyncio.sleep(0.001)
            assert database.alive

    async with ResourcePool(databases.provide, limits=PoolLimits(budget=5, sweep=0.01)) as pool:
        await asyncio.gather(*(use(number) for number in range(500)))
        seen = pool.statistics()
        assert seen.hits + seen.misses == 500
        assert seen.live <= 5
    assert databases.most_live <= 5
    assert len(databases.opened) == len(databases.closed)


def test_the_end_of_asyncio_run_closes_what_somebody_left_open() -> None:
    """A program that ends without closing its pool still leaves its providers properly."""
    databases = Databases(open_seconds=0.0, close_seconds=0.0)

    async def main() -> None:
        pool = await ResourcePool(databases.provide).__aenter__()
        (await pool.acquire(A)).release()

    asyncio.run(main())
    gc.collect()
    assert [database.alive for database in databases.opened] == [False]
    assert len(databases.closed) == 1
