"""A pool lives again: it is entered, closed, and entered again, on this event loop or on another one."""

import asyncio
import gc
import random

import pytest

from postroom.errors import ClosedError, ConfigurationError, ResourceOpenError
from postroom.options import OpenBackoff
from postroom.resources import ResourcePool
from postroom.testing.loop import run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, Database, Databases


def test_a_closed_pool_opens_again_with_fresh_state() -> None:
    """No failure, no resource and no count of its last life; on other event loops too."""
    databases = Databases(errors={B: OSError("down")})
    pool = ResourcePool(databases.provide, backoff=OpenBackoff(base=1_000.0, cap=1_000.0))

    async def main() -> None:
        for _ in range(2):
            async with pool:
                async with pool.lease(A):
                    pass
                with pytest.raises(ResourceOpenError, match="could not be opened"):
                    await pool.acquire(B)
                seen = pool.statistics()
                assert (seen.opened, seen.open_failures, seen.live, seen.cooling) == (1, 1, 1, 1)
            with pytest.raises(ClosedError):
                pool.try_lease(A)
            assert pool.statistics().live == 0

    run_virtual(main())
    run_virtual(main())
    assert len(databases.closed) == len(databases.opened) == 4


@in_virtual_time
async def test_a_pool_that_is_being_closed_is_waited_for() -> None:
    """All who enter meanwhile share the next life; nothing of the last one is left when it begins."""
    databases = Databases(close_seconds=2.0)
    pool = ResourcePool(databases.provide)
    loop = asyncio.get_running_loop()

    async def enter() -> float:
        async with pool:
            entered = loop.time()
            assert databases.closed == databases.opened[:1]
            async with pool.lease(A):
                await asyncio.sleep(1.0)
            return entered

    async with pool, pool.lease(A):
        pass
    assert loop.time() == pytest.approx(2.1)
    await pool.__aenter__()
    (await pool.acquire(A)).release()
    databases.closed.clear()
    databases.opened[:] = databases.opened[1:]
    closing = asyncio.create_task(pool.aclose())
    await settle()
    with pytest.raises(ClosedError):
        pool.try_lease(A)
    entered = await asyncio.gather(*(enter() for _ in range(5)))
    assert entered == [pytest.approx(4.2)] * 5
    assert closing.done()
    assert len(databases.opened) == len(databases.closed) == 2


@in_virtual_time
async def test_cancelling_who_waits_to_enter_changes_nothing_for_the_others() -> None:
    """I6, before the pool is even open."""
    databases = Databases(close_seconds=2.0)
    pool = ResourcePool(databases.provide)
    async with pool, pool.lease(A):
        pass
    await pool.__aenter__()
    (await pool.acquire(A)).release()
    closing = asyncio.create_task(pool.aclose())
    await settle()
    first, second = (asyncio.create_task(pool.__aenter__()) for _ in range(2))
    await settle()
    first.cancel()
    assert await second is pool
    async with pool.lease(A):
        pass
    await pool.aclose()
    await closing


@in_virtual_time
async def test_an_old_user_does_not_close_the_next_life() -> None:
    """One who entered before an explicit close, and leaves after others have opened the pool again."""
    databases = Databases()
    pool = ResourcePool(databases.provide)
    leave = asyncio.Event()

    async def old() -> None:
        async with pool:
            await leave.wait()

    user = asyncio.create_task(old())
    await settle()
    await pool.aclose()
    async with pool:
        leave.set()
        await user
        async with pool.lease(A):
            pass
    with pytest.raises(ClosedError):
        pool.try_lease(A)


@in_virtual_time
async def test_a_pool_that_was_entered_by_hand_and_closed_counts_no_one_as_inside() -> None:
    """As a web framework's start and stop events do, again and again."""
    databases = Databases()
    pool = ResourcePool(databases.provide)
    for _ in range(3):
        await pool.__aenter__()
        (await pool.acquire(A)).release()
        await pool.aclose()
    async with pool, pool.lease(A):
        pass
    with pytest.raises(ClosedError):
        pool.try_lease(A)
    assert len(databases.closed) == 4


def test_a_pool_that_was_left_open_on_a_dead_loop_opens_again() -> None:
    """A test that failed half-way does not spoil the next one."""
    databases = Databases()
    pool = ResourcePool(databases.open, cleanup=None)

    async def careless() -> None:
        await pool.__aenter__()
        (await pool.acquire(A)).release()

    async def careful() -> None:
        async with pool, pool.lease(A):
            pass

    asyncio.run(careless())
    asyncio.run(careful())
    asyncio.run(careful())
    gc.collect()
    assert len(databases.opened) == 3


def test_an_open_pool_is_not_taken_to_another_loop() -> None:
    """Not while it is open, and not while it is being closed."""
    pool = ResourcePool(Databases().provide)

    async def elsewhere() -> None:
        with pytest.raises(ConfigurationError, match="open in another event loop"):
            await pool.__aenter__()

    async def main() -> None:
        async with pool:
            await asyncio.to_thread(asyncio.run, elsewhere())

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(200))
def test_entering_and_closing_race(seed: int) -> None:
    """Whatever the order: a lease works while one is inside, every open is closed once, nothing is left at the end."""
    rng = random.Random(seed)
    databases = Databases(open_seconds=0.05, close_seconds=0.2)

    async def main() -> None:
        pool: ResourcePool[object, Database] = ResourcePool(databases.provide)  # type: ignore[arg-type]

        async def user() -> None:
            for _ in range(3):
                await asyncio.sleep(rng.random())
                async with pool:
                    try:
                        async with pool.lease(rng.choice([A, B])) as database:
                            await asyncio.sleep(rng.random() * 0.3)
                            assert database.alive or closed_by_force
                    except ClosedError:
                        assert closed_by_force

        closed_by_force: list[int] = []

        async def closer() -> None:
            for _ in range(rng.choice([0, 2])):
                await asyncio.sleep(rng.random() * 2)
                closed_by_force.append(1)
                await pool.aclose(rng.choice([0.0, 0.1, None]))

        users = [asyncio.create_task(user()) for _ in range(4)]
        if seed % 3 == 0:
            await asyncio.sleep(rng.random() * 2)
            users[0].cancel()
        await asyncio.wait([*users, asyncio.create_task(closer())])
        for task in users:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        await pool.aclose()
        assert pool.statistics().live == 0
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("pool")] == []

    run_virtual(main(), seed=seed)
    assert len(databases.opened) == len(databases.closed) == len(set(databases.closed))
