"""Cancellation, at every await of the pool: it hits the caller that it was meant for, and leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from postroom.errors import ResourceOpenError
from postroom.options import PoolLimits
from postroom.resources import Lease, ResourcePool
from postroom.testing.loop import run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, Database, Databases, Tenant

Pool = ResourcePool[Tenant, Database]


async def cancel(*tasks: "asyncio.Task[Lease[Database]]") -> None:
    """Cancel tasks and see that they were."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


def acquire(pool: Pool, tenant: Tenant, count: int) -> "list[asyncio.Task[Lease[Database]]]":
    """Start calls that wait for a lease."""
    return [asyncio.create_task(pool.acquire(tenant)) for _ in range(count)]


@in_virtual_time
async def test_cancelling_the_first_waiter_leaves_the_others_their_open() -> None:
    """I6: the call that began the open does not own it."""
    databases = Databases(open_seconds=1.0)
    async with ResourcePool(databases.provide) as pool:
        first, *others = acquire(pool, A, 5)
        await asyncio.sleep(0.5)
        await cancel(first)
        leases = await asyncio.gather(*others)
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)
        assert pool.statistics().leased == 4
        for lease in leases:
            lease.release()
    assert databases.attempts == {A: 1}


@in_virtual_time
async def test_cancelling_all_waiters_of_an_open_leaks_nothing() -> None:
    """The open goes on, and what it brings is ready for the next lease."""
    databases = Databases(open_seconds=1.0)
    async with ResourcePool(databases.provide) as pool:
        waiters = acquire(pool, A, 5)
        await asyncio.sleep(0.5)
        await cancel(*waiters)
        await asyncio.sleep(1.0)
        assert pool.statistics().leased == 0
        lease = pool.try_lease(A)
        assert lease is not None
        lease.release()
    assert databases.attempts == {A: 1}


@in_virtual_time
async def test_cancelling_all_waiters_in_the_line_takes_their_key_out_of_it() -> None:
    """Nothing is opened, and nothing evicted, for callers that are gone."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=1)) as pool:
        lease = await pool.acquire(A)
        await_b = acquire(pool, B, 5)
        await settle()
        assert pool.statistics().waiting == 5
        await cancel(*await_b)
        assert pool.statistics().waiting == 0
        lease.release()
        await asyncio.sleep(1.0)
        assert pool.statistics().ready == 1
    assert databases.attempts == {A: 1}


@pytest.mark.parametrize("seed", range(20))
def test_a_lease_granted_in_the_instant_of_the_cancellation_goes_back(seed: int) -> None:
    """Cancelled after the grant and before the step that would have seen it: the lease is not lost."""
    databases = Databases(open_seconds=1.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ResourcePool(databases.provide) as pool:
            (waiter,) = acquire(pool, A, 1)
            loop.call_later(1.0, waiter.cancel)
            loop.call_later(1.0, lambda: loop.call_soon(waiter.cancel))
            loop.call_later(1.0, lambda: loop.call_soon(lambda: loop.call_soon(waiter.cancel)))
            await asyncio.wait([waiter])
            if not waiter.cancelled():
                waiter.result().release()
            assert pool.statistics().leased == 0

    run_virtual(main(), seed=seed)


@in_virtual_time
async def test_a_cancelled_handler_releases_its_lease() -> None:
    """``async with`` does its work under cancellation."""
    databases = Databases()

    async def handler() -> None:
        async with pool.lease(A):
            await asyncio.sleep(1e6)

    async with ResourcePool(databases.provide) as pool:
        task = asyncio.create_task(handler())
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        assert pool.statistics().leased == 0
        assert pool.statistics().ready == 1


@in_virtual_time
async def test_a_timeout_around_acquire_is_its_callers_own() -> None:
    """``asyncio.timeout`` works as for any other await, and the pool's deadline is not mistaken for it."""
    databases = Databases(stuck={A})
    async with ResourcePool(databases.provide) as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await pool.acquire(A)
        with pytest.raises(ResourceOpenError):
            async with asyncio.timeout(5.0):
                await pool.acquire(A, timeout=1.0)
        assert pool.statistics().waiting == 0


@in_virtual_time
async def test_a_half_built_resource_unwinds() -> None:
    """What the provider had opened before it was called off is closed by the provider itself."""
    steps: list[str] = []

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[str]:
        steps.append("connected")
        try:
            await asyncio.sleep(1e6)
            yield "never"
        finally:
            await asyncio.sleep(0.1)
            steps.append("disconnected")

    async with ResourcePool(provide) as pool:
        waiter = asyncio.create_task(pool.acquire(A))
        await asyncio.sleep(1.0)
        await pool.invalidate(A)
        waiter.cancel()
        await asyncio.wait([waiter])
    assert pool.statistics().weight == 0
    assert steps.count("connected") == steps.count("disconnected")


@in_virtual_time
async def test_an_open_that_invalidates_itself_is_closed_whole() -> None:
    """The cancellation that a provider causes for itself does not hit its own cleanup."""
    databases = Databases()
    closed: list[int] = []
    opens: list[int] = []

    async def provide(tenant: Tenant) -> int:
        opens.append(len(opens))
        if len(opens) == 1:
            await pool.invalidate(tenant)
        return opens[-1]

    async def close(resource: int) -> None:
        await asyncio.sleep(0.1)
        closed.append(resource)

    pool = ResourcePool(provide, cleanup=close)
    async with pool, pool.lease(A) as resource:
        assert resource == 1
    assert closed == [0, 1]
    assert databases.attempts.total() == 0


@in_virtual_time
async def test_an_owner_cancelled_from_outside_closes_its_resource_properly() -> None:
    """The end of ``asyncio.run`` cancels every task: the line after the ``yield`` still runs, to its end."""
    databases = Databases(close_seconds=0.0)
    after_yield: list[str] = []

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[Database]:
        database = await databases.open(tenant)
        yield database
        await databases.close(database)
        after_yield.append("done")

    async with ResourcePool(provide) as pool:
        async with pool.lease(A):
            pass
        for task in asyncio.all_tasks():
            if "owner of" in task.get_name():
                task.cancel()
        await settle()
        assert pool.statistics().live == 0
        assert pool.statistics().evictions == {"cancelled": 1}
        async with pool.lease(A) as new:
            assert new.number == 1
    assert after_yield == ["done", "done"]


@in_virtual_time
async def test_an_owner_cancelled_before_its_first_step_fails_its_waiters() -> None:
    """A task that never ran cannot report: its end does."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        (waiter,) = acquire(pool, A, 1)
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if "owner of" in task.get_name():
                task.cancel()
        with pytest.raises(ResourceOpenError) as caught:
            await waiter
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert pool.statistics().weight == 0


def test_cancelling_everybody_at_any_moment_leaks_nothing() -> None:
    """A storm of cancellations, at each of the pool's moments: budget, tasks and leases come back."""
    databases = Databases()

    async def main() -> None:
        async with ResourcePool(databases.provide, limits=PoolLimits(budget=2)) as pool:
            for moment in range(30):
                tasks = [task for tenant in (A, B, Tenant("c")) for task in acquire(pool, tenant, 3)]
                await asyncio.sleep(moment * 0.01)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for task in tasks:
                    if not task.cancelled():
                        task.result().release()
                assert pool.statistics().leased == 0
                assert pool.statistics().waiting == 0
            await asyncio.sleep(1.0)
            assert pool.statistics().weight == pool.statistics().live

    run_virtual(main(), seed=11)
