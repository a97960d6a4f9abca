"""Closing: a grace for leases, an end to everything, the same for every caller, however often."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from postroom.errors import ClosedError
from postroom.options import PoolLimits, PoolTimeouts
from postroom.resources import Lease, ResourcePool
from postroom.testing.loop import run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, Database, Databases, Tenant

Pool = ResourcePool[Tenant, Database]


async def touch(pool: Pool, *tenants: Tenant) -> None:
    """Lease each tenant once."""
    for tenant in tenants:
        async with pool.lease(tenant):
            pass


def alive(lease: Lease[Database]) -> bool:
    """Return whether what was leased is still open."""
    return lease.resource.alive


@in_virtual_time
async def test_idle_resources_close_at_once_and_together() -> None:
    """A hundred closes take as long as one."""
    databases = Databases(close_seconds=1.0)
    loop = asyncio.get_running_loop()
    async with ResourcePool(databases.provide) as pool:
        await touch(pool, *(Tenant(str(number)) for number in range(100)))
        started = loop.time()
    assert (loop.time() - started) == pytest.approx(1.0)
    assert len(databases.closed) == 100


@in_virtual_time
async def test_leases_get_their_grace_and_no_more() -> None:
    """What is released in time closes behind its lease; the rest is closed when the grace is over."""
    databases = Databases(close_seconds=0.0)
    pool = await ResourcePool(databases.provide).__aenter__()
    quick, slow = await pool.acquire(A), await pool.acquire(B)
    closing = asyncio.create_task(pool.aclose(grace=5.0))
    await asyncio.sleep(1.0)
    assert not closing.done()
    quick.release()
    await settle()
    assert [database.tenant for database in databases.closed] == [A]
    await asyncio.sleep(3.9)
    assert alive(slow)
    await closing
    assert asyncio.get_running_loop().time() == pytest.approx(5.2)
    assert not alive(slow)  # it still has its database, which says by itself that it is closed
    slow.release()
    assert pool.statistics().leased == 0


@in_virtual_time
async def test_without_a_grace_the_close_timeout_is_it() -> None:
    """Leaving ``async with`` never waits forever, even for a lease that its own block still holds."""
    databases = Databases(close_seconds=0.0)
    async with ResourcePool(databases.provide, timeouts=PoolTimeouts(close=7.0)) as pool:
        lease = await pool.acquire(A)
    assert asyncio.get_running_loop().time() == pytest.approx(7.1)
    lease.release()


@in_virtual_time
async def test_those_who_wait_are_told() -> None:
    """Each waiter gets a ClosedError of its own, whatever it waited for."""
    databases = Databases(stuck={A})
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=1)) as pool:
        waiters = [asyncio.create_task(pool.acquire(tenant)) for tenant in (A, A, B, B)]
        await settle()
        await pool.aclose()
        errors = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(error) for error in errors] == [ClosedError] * 4
        assert len({id(error) for error in errors}) == 4


@in_virtual_time
async def test_an_open_under_way_is_called_off_and_nothing_comes_back_to_life() -> None:
    """I8: closed during an open, also one that ignores its cancellation and succeeds."""
    opened: list[Tenant] = []
    closed: list[str] = []

    async def stubborn(tenant: Tenant) -> str:
        try:
            await asyncio.sleep(10.0)
        except asyncio.CancelledError:
            await asyncio.sleep(1.0)
        opened.append(tenant)
        return "late"

    pool = await ResourcePool(stubborn, cleanup=closed.append).__aenter__()
    waiter = asyncio.create_task(pool.acquire(A))
    await asyncio.sleep(5.0)
    await pool.aclose(grace=0.0)
    assert isinstance(waiter.exception(), ClosedError)
    assert (opened, closed) == ([A], ["late"])
    seen = pool.statistics()
    assert (seen.live, seen.opening, seen.weight) == (0, 0, 0)


@in_virtual_time
async def test_closing_twice_at_once_is_one_close() -> None:
    """Both wait for the same; the shorter grace wins."""
    databases = Databases()
    loop = asyncio.get_running_loop()
    pool = await ResourcePool(databases.provide).__aenter__()
    lease = await pool.acquire(A)
    patient = asyncio.create_task(pool.aclose(grace=60.0))
    await asyncio.sleep(1.0)
    await asyncio.gather(pool.aclose(grace=2.0), pool.aclose(grace=90.0), patient)
    assert loop.time() == pytest.approx(3.2)
    await pool.aclose()
    await pool.aclose(grace=0.0)
    assert loop.time() == pytest.approx(3.2)
    lease.release()
    assert len(databases.closed) == 1


@in_virtual_time
async def test_cancelling_the_close_does_not_stop_it() -> None:
    """The call ends, the close goes on."""
    databases = Databases(close_seconds=1.0)
    pool = await ResourcePool(databases.provide).__aenter__()
    await touch(pool, A)
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0.5)
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    await pool.aclose()
    assert len(databases.closed) == 1


@in_virtual_time
async def test_a_pool_that_was_never_opened_closes_too() -> None:
    """There is nothing to do, and it says that it is closed."""
    pool = ResourcePool(Databases().provide)
    await pool.aclose()
    with pytest.raises(ClosedError):
        pool.try_lease(A)


def test_the_error_of_the_block_comes_through() -> None:
    """Closing does not hide why the block ended."""
    databases = Databases(close_errors={A: OSError("will not close")})

    async def main() -> None:
        async with ResourcePool(databases.provide) as pool:
            await touch(pool, A)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtual(main())
    assert len(databases.closed) == 1


@in_virtual_time
async def test_a_check_under_way_is_called_off() -> None:
    """I8: the check's task ends with the pool."""
    databases = Databases()

    async def check(database: Database) -> None:
        await asyncio.Event().wait()

    limits = PoolLimits(check_after=1.0, sweep=100.0)
    async with ResourcePool(databases.provide, check=check, limits=limits) as pool:
        await touch(pool, A)
        await asyncio.sleep(2.0)
        waiter = asyncio.create_task(pool.acquire(A))
        await settle()
    assert isinstance(waiter.exception(), ClosedError)
    assert len(databases.closed) == 1


@in_virtual_time
async def test_what_ignores_every_cancellation_is_abandoned_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """The close returns all the same, and says by name what it left."""
    give_in = asyncio.Event()

    async def stubborn(tenant: Tenant) -> None:
        while not give_in.is_set():
            try:
                await give_in.wait()
            except asyncio.CancelledError:
                continue

    pool = await ResourcePool(stubborn, timeouts=PoolTimeouts(open=1.0, close=1.0, check=1.0)).__aenter__()
    waiter = asyncio.create_task(pool.acquire(A))
    await settle()
    with caplog.at_level(logging.ERROR, logger="postroom.pool"):
        await pool.aclose(grace=0.0)
    assert "owner of a:us-east-1" in caplog.text
    assert isinstance(waiter.exception(), ClosedError)
    give_in.set()


@pytest.mark.parametrize("times", [1, 4, 1_000])
@pytest.mark.parametrize("held", [False, True])
def test_the_default_close_fits_into_the_thirty_seconds_of_a_stop(
    held: bool, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A cleanup hangs and swallows cancellations: it gets a few within seconds, and is abandoned after them."""
    swallowed = 0
    give_in = asyncio.Event()

    @asynccontextmanager
    async def stubborn(_: Tenant) -> AsyncIterator[object]:
        nonlocal swallowed
        yield object()
        while swallowed < times and not give_in.is_set():
            try:
                await give_in.wait()
            except asyncio.CancelledError:
                swallowed += 1

    async def main() -> float:
        pool = await ResourcePool(stubborn).__aenter__()
        lease = await pool.acquire(A)
        if not held:
            lease.release()
        began = asyncio.get_running_loop().time()
        await pool.__aexit__(None, None, None)
        took = asyncio.get_running_loop().time() - began
        lease.release()
        swallowed_in_time.append(swallowed)
        give_in.set()
        return took

    swallowed_in_time: list[int] = []
    assert run_virtual(main()) <= 25.0
    assert swallowed_in_time[0] == min(times, 5 if held else 6)
    assert ("abandoned" in caplog.text) is (times == 1_000)


def test_after_the_close_not_a_task_is_left() -> None:
    """I8: everything that the pool started has ended when ``aclose`` returns."""
    databases = Databases(close_errors={A: OSError()}, stuck={B})

    async def main() -> None:
        before = asyncio.all_tasks()
        async with ResourcePool(databases.provide) as pool:
            await touch(pool, A)
            waiter = asyncio.create_task(pool.acquire(B))
            await settle()
        await asyncio.wait([waiter])
        assert isinstance(waiter.exception(), ClosedError)
        assert asyncio.all_tasks() == before

    run_virtual(main(), seed=2)
