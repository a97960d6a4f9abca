"""How long a resource lives: budget, idleness, age, invalidation, suspicion."""

import asyncio
from collections import Counter

import pytest

from postroom.errors import PoolExhaustedError
from postroom.options import PoolLimits, PoolTimeouts
from postroom.resources import ResourcePool
from postroom.testing.loop import run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, C, D, Database, Databases, Tenant

Pool = ResourcePool[Tenant, Database]


async def touch(pool: Pool, *tenants: Tenant) -> None:
    """Lease each tenant once."""
    for tenant in tenants:
        async with pool.lease(tenant):
            pass


def alive(database: Database) -> bool:
    """Return whether a database is still open."""
    return database.alive


@in_virtual_time
async def test_the_least_recently_used_gives_way() -> None:
    """A full budget evicts the idle entry that was used longest ago."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=3)) as pool:
        await touch(pool, A, B, C, A, D)
        await touch(pool, A, C, D)
        assert databases.attempts[B] == 1
        assert [database.tenant for database in databases.closed] == [B]
        assert pool.statistics().evictions == {"capacity": 1}
    assert databases.attempts == {A: 1, B: 1, C: 1, D: 1}


@in_virtual_time
async def test_the_budget_comes_back_only_when_the_close_has_finished() -> None:
    """I3: a slow close delays the open that waits for its budget."""
    databases = Databases(close_seconds=5.0)
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=1)) as pool:
        await touch(pool, A)
        started = asyncio.get_running_loop().time()
        await touch(pool, B)
        assert (asyncio.get_running_loop().time() - started) == pytest.approx(5.1)
    assert databases.most_live == 1


@in_virtual_time
async def test_weights_are_connections_not_pools() -> None:
    """A heavy tenant takes the place of several light ones."""
    databases = Databases()
    weights = {A: 1, B: 1, C: 1, D: 3}
    pool = ResourcePool(databases.provide, limits=PoolLimits(budget=3), weight=weights.__getitem__)
    async with pool:
        await touch(pool, A, B, C)
        assert pool.statistics().weight == 3
        async with pool.lease(D):
            assert pool.statistics().live == 1
            assert pool.statistics().weight == 3
            with pytest.raises(PoolExhaustedError, match="3 of the budget of 3"):
                await pool.acquire(A, timeout=0.5)


@in_virtual_time
async def test_nothing_is_evicted_where_that_would_not_be_enough() -> None:
    """A waiting giant does not cost the others their hits while it cannot be served anyway."""
    databases = Databases()
    weights = {A: 1, B: 1, D: 3}
    limits = PoolLimits(budget=3, patience=60.0)
    async with ResourcePool(databases.provide, limits=limits, weight=weights.__getitem__) as pool:
        await touch(pool, A)
        async with pool.lease(B):
            with pytest.raises(PoolExhaustedError):
                await pool.acquire(D, timeout=1.0)
        assert pool.statistics().live == 2


@in_virtual_time
async def test_what_is_idle_for_long_is_closed() -> None:
    """The idle time counts from the last release; leased ones stay."""
    databases = Databases()
    limits = PoolLimits(idle=10.0, sweep=1.0)
    async with ResourcePool(databases.provide, limits=limits) as pool, pool.lease(A):
        await touch(pool, B)
        await asyncio.sleep(9.0)
        await touch(pool, B)
        await asyncio.sleep(9.0)
        assert pool.statistics().live == 2
        await asyncio.sleep(3.0)
        assert pool.statistics().live == 1
        assert pool.statistics().evictions == {"idle": 1}


@in_virtual_time
async def test_idle_none_keeps_them() -> None:
    """Without an idle time nothing is closed for idleness."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(idle=None)) as pool:
        await touch(pool, A)
        await asyncio.sleep(86_400)
        assert pool.statistics().live == 1


@in_virtual_time
async def test_a_busy_resource_is_replaced_before_it_is_closed() -> None:
    """Make before break: at no moment is there no resource, and every lease keeps its own."""
    databases = Databases(open_seconds=3.0)
    limits = PoolLimits(max_age=60.0, sweep=1.0)
    async with ResourcePool(databases.provide, limits=limits) as pool:
        async with pool.lease(A) as old:
            misses = pool.statistics().misses
            for _ in range(70):
                await asyncio.sleep(1.0)
                async with pool.lease(A) as current:
                    assert current.alive
            assert current is not old
            assert alive(old)
            assert pool.statistics().misses == misses
            assert pool.statistics().draining == 1
        await asyncio.sleep(1.0)
        assert not alive(old)
        assert pool.statistics().evictions == {"age": 1}


@in_virtual_time
async def test_an_idle_resource_that_is_too_old_is_just_closed() -> None:
    """No lease needs its successor now."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(max_age=60.0, sweep=1.0)) as pool:
        await touch(pool, A)
        await asyncio.sleep(62.0)
        assert pool.statistics().evictions == {"age": 1}
        assert pool.statistics().live == 0
    assert databases.attempts[A] == 1


@in_virtual_time
async def test_ages_are_jittered_by_a_tenth() -> None:
    """Resources opened together do not go together, and none lives longer than the maximum."""
    databases = Databases(open_seconds=0.0)
    closed_at: list[float] = []

    async def note(database: Database) -> None:
        closed_at.append(asyncio.get_running_loop().time())

    limits = PoolLimits(max_age=1_000.0, idle=None, sweep=0.5)
    async with ResourcePool(databases.open, cleanup=note, limits=limits) as pool:
        await asyncio.gather(*(touch(pool, Tenant(str(number))) for number in range(100)))
        await asyncio.sleep(1_001.0)
    assert len(closed_at) == 100
    assert min(closed_at) >= 900.0
    assert max(closed_at) <= 1_001.0
    assert max(closed_at) - min(closed_at) > 80.0


@in_virtual_time
async def test_without_room_for_two_the_old_one_is_drained_first() -> None:
    """A resource that takes the whole budget is replaced break before make."""
    databases = Databases()
    limits = PoolLimits(budget=1, max_age=10.0, sweep=1.0)
    async with ResourcePool(databases.provide, limits=limits) as pool:
        async with pool.lease(A):
            await asyncio.sleep(12.0)
            assert pool.statistics().draining == 1
        await touch(pool, A)
        assert pool.statistics().evictions == {"age": 1}
    assert databases.most_live == 1
    assert databases.attempts[A] == 2


@in_virtual_time
async def test_age_is_kept_even_when_the_budget_stays_full() -> None:
    """No room for a successor within a sweep or two: the old one is drained all the same."""
    databases = Databases()
    limits = PoolLimits(budget=2, max_age=10.0, sweep=1.0)
    async with ResourcePool(databases.provide, limits=limits) as pool, pool.lease(A), pool.lease(B):
        await asyncio.sleep(14.0)
        assert pool.statistics().draining == 2
        assert pool.statistics().waiting == 0


@in_virtual_time
async def test_a_replacement_that_fails_leaves_the_old_one_in_service() -> None:
    """A database that refuses new connections keeps its old ones."""
    databases = Databases()
    limits = PoolLimits(max_age=10.0, sweep=1.0)
    async with ResourcePool(databases.provide, limits=limits) as pool, pool.lease(A) as old:
        databases.errors[A] = OSError("too many connections")
        await asyncio.sleep(60.0)
        async with pool.lease(A) as still:
            assert still is old
        assert databases.attempts[A] > 2
        assert pool.retry_after(A) == 0.0
        del databases.errors[A]
        await asyncio.sleep(60.0)
        async with pool.lease(A) as new:
            assert new is not old


@in_virtual_time
async def test_invalidate_hides_what_exists() -> None:
    """The next lease opens again; the leases out keep theirs until they are released."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        async with pool.lease(A) as old:
            await pool.invalidate(A)
            async with pool.lease(A) as new:
                assert new is not old
                assert alive(old)
        await asyncio.sleep(1.0)
        assert not alive(old)
        assert pool.statistics().evictions == {"invalidated": 1}


@in_virtual_time
async def test_invalidate_while_it_opens_opens_anew_for_those_who_wait() -> None:
    """No lease gets a resource that began to open before the invalidation, and none gets an error."""
    databases = Databases(open_seconds=10.0)
    async with ResourcePool(databases.provide, timeouts=PoolTimeouts(open=60.0)) as pool:
        waiting = [asyncio.create_task(pool.acquire(A)) for _ in range(3)]
        await asyncio.sleep(5.0)
        await pool.invalidate(A)
        leases = [await task for task in waiting]
        assert asyncio.get_running_loop().time() == pytest.approx(15.0)
        assert databases.attempts[A] == 2
        for lease in leases:
            lease.release()


@in_virtual_time
async def test_invalidate_where_takes_the_contexts_that_match() -> None:
    """A predicate over contexts; what it raises changes nothing."""
    databases = Databases()
    west = Tenant("a", "west")
    async with ResourcePool(databases.provide) as pool:
        await touch(pool, A, B, west)
        with pytest.raises(ZeroDivisionError):
            await pool.invalidate_where(lambda tenant: 1 // 0 == 1)
        assert pool.statistics().live == 3
        await pool.invalidate_where(lambda tenant: tenant.region == "west")
        await asyncio.sleep(1.0)
        assert [database.tenant for database in databases.closed] == [west]


def test_a_reported_connection_error_replaces_the_resource() -> None:
    """Suspect: no new lease gets it; the next one opens another. A handler's own error changes nothing."""
    databases = Databases()

    async def main() -> None:
        async with ResourcePool(databases.provide) as pool:
            with pytest.raises(KeyError):
                await fail_in(pool, KeyError("the handler's own"))
            async with pool.lease(A) as same:
                assert pool.statistics().evictions == {}
            with pytest.raises(ConnectionResetError):
                await fail_in(pool, ConnectionResetError("server gone"))
            async with pool.lease(A) as new:
                assert new is not same
            assert pool.statistics().evictions == {"suspect": 1}

    async def fail_in(pool: Pool, error: Exception) -> None:
        async with pool.lease(A):
            raise error

    run_virtual(main())


@in_virtual_time
async def test_reporting_leaves_the_other_leases_alone() -> None:
    """The suspect drains: who has it keeps it, who comes gets another."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        one, two = await pool.acquire(A), await pool.acquire(A)
        assert one.report(ConnectionResetError())
        assert one.resource.alive
        one.release()
        async with pool.lease(A) as new:
            assert new is not two.resource
            assert two.resource.alive
        two.release()
        await asyncio.sleep(1.0)
        assert pool.statistics().live == 1


@in_virtual_time
async def test_busy_tenants_take_turns() -> None:
    """I9: with every entry in use, the one that was open longest gives way after the patience."""
    databases = Databases()
    limits = PoolLimits(budget=2, patience=1.0)
    done = asyncio.Event()

    async def hog(tenant: Tenant) -> None:
        while not done.is_set():  # two overlapping leases: never idle
            async with pool.lease(tenant):
                await asyncio.sleep(0.3)

    async with ResourcePool(databases.provide, limits=limits) as pool:
        hogs = [asyncio.create_task(hog(tenant)) for tenant in (A, A, B, B)]
        await asyncio.sleep(2.05)
        hogs += [asyncio.create_task(hog(A)), asyncio.create_task(hog(B))]
        started = asyncio.get_running_loop().time()
        async with pool.lease(C):
            assert asyncio.get_running_loop().time() - started < 2.5
        done.set()
        await asyncio.gather(*hogs)


@in_virtual_time
async def test_a_drained_entry_is_revived_when_nobody_needs_its_budget_any_more() -> None:
    """The waiter gave up: the busy entry stays, nothing was closed for nothing."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=1, patience=1.0)) as pool:
        async with pool.lease(A) as database:
            waiter = asyncio.create_task(pool.acquire(B))
            await asyncio.sleep(1.5)
            assert pool.statistics().draining == 1
            waiter.cancel()
            await settle()
            assert pool.statistics().draining == 0
        async with pool.lease(A) as again:
            assert again is database
        assert pool.statistics().revived == 1
    assert databases.attempts == {A: 1}


@in_virtual_time
async def test_a_drained_entry_is_revived_when_its_turn_comes_while_it_drains() -> None:
    """Its own tenant is first in line again before its last lease is out."""
    databases = Databases()
    weights = {A: 1, B: 2}
    limits = PoolLimits(budget=2, patience=1.0)
    pool = ResourcePool(databases.provide, limits=limits, weight=weights.__getitem__)
    async with pool, pool.lease(A) as database:
        waiter = asyncio.create_task(pool.acquire(B, timeout=2.0))
        await asyncio.sleep(1.5)
        assert pool.statistics().draining == 1
        again = asyncio.create_task(pool.acquire(A))
        with pytest.raises(PoolExhaustedError):
            await waiter
        lease = await again
        assert lease.resource is database
        lease.release()


@in_virtual_time
async def test_a_suspect_entry_is_not_revived() -> None:
    """Drained for others and then reported: it closes."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=1, patience=1.0)) as pool:
        lease = await pool.acquire(A)
        waiter = asyncio.create_task(pool.acquire(B))
        await asyncio.sleep(1.5)
        assert lease.report(ConnectionResetError())
        waiter.cancel()
        await settle()
        assert pool.statistics().draining == 1
        lease.release()
        async with pool.lease(A) as new:
            assert new.number == 1
        assert pool.statistics().revived == 0


@in_virtual_time
async def test_a_hanging_close_does_not_hold_up_the_line() -> None:
    """While one close hangs, the next idle entry gives way."""
    databases = Databases()

    async def close(database: Database) -> None:
        await (asyncio.sleep(1e6) if database.tenant is A else databases.close(database))

    limits = PoolLimits(budget=2, patience=1.0)
    timeouts = PoolTimeouts(close=60.0)
    async with ResourcePool(databases.open, cleanup=close, limits=limits, timeouts=timeouts) as pool:
        await touch(pool, A, B)
        started = asyncio.get_running_loop().time()
        async with pool.lease(C):
            assert asyncio.get_running_loop().time() - started == pytest.approx(1.2)


@pytest.mark.parametrize("per_host", [None, 2])
@in_virtual_time
async def test_a_key_that_asks_again_after_its_deadline_has_its_old_place(per_host: int | None) -> None:
    """I9: where the line takes longer than the deadlines of leases, each key still has its turn."""
    databases = Databases()
    turns: Counter[Tenant] = Counter()
    limits = PoolLimits(budget=2, per_host=per_host)
    async with ResourcePool(databases.provide, limits=limits, host=lambda _: "db-1") as pool:

        async def use(tenant: Tenant) -> None:
            while True:
                try:
                    async with pool.lease(tenant, timeout=10.0):
                        turns[tenant] += 1
                        await asyncio.sleep(20.0)
                except PoolExhaustedError:
                    await asyncio.sleep(1.0)

        users = [asyncio.create_task(use(Tenant(str(number)))) for number in range(20)]
        await asyncio.sleep(2_000.0)
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)
    assert len(turns) == 20
    assert max(turns.values()) - min(turns.values()) <= 2


@pytest.mark.parametrize("how", ["too late", "cancelled"])
@in_virtual_time
async def test_a_place_in_line_is_not_kept_for_long(how: str) -> None:
    """A key that does not come again leaves nothing behind."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=1, remember=3)) as pool, pool.lease(A):
        for number in range(5):
            waits = asyncio.create_task(pool.acquire(Tenant(str(number)), timeout=1.0))
            await asyncio.sleep(0.5)
            if how == "cancelled":
                waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
        assert len(pool._core._left) == 3
        await asyncio.sleep(70.0)
        assert not pool._core._left


@in_virtual_time
async def test_lighter_demands_may_pass_a_heavy_one_but_not_for_ever() -> None:
    """I9: what the budget cannot serve yet does not block the line, and is not starved either."""
    databases = Databases()
    heavy = Tenant("heavy")
    limits = PoolLimits(budget=4, patience=0.0, idle=None)
    weigh = {heavy: 4}
    async with ResourcePool(databases.provide, limits=limits, weight=lambda t: weigh.get(t, 1)) as pool:
        done = asyncio.Event()

        async def light(name: str) -> None:
            number = 0
            while not done.is_set():
                number += 1
                async with pool.lease(Tenant(f"{name}{number}"), timeout=1e6):
                    await asyncio.sleep(0.5)

        crowd = [asyncio.create_task(light(name)) for name in "wxyz"]
        await asyncio.sleep(3.0)
        async with pool.lease(heavy, timeout=60.0) as database:
            assert database.tenant is heavy
        done.set()
        await asyncio.gather(*crowd)
