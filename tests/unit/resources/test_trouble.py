"""Failing opens, dead hosts, sick resources, and everybody else who must not notice."""

import asyncio
import random
import re
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest

from postroom.errors import ClosedError, PoolExhaustedError, ResourceOpenError, ResourceUnhealthyError, UnknownTenant
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.resources import OpenFailure, ResourcePool
from postroom.testing.loop import run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, Database, Databases, Tenant

BACKOFF = OpenBackoff(base=1.0, cap=8.0, permanent=60.0)
DOWN = OSError("down")


class Panic(BaseException):
    """What no code is meant to catch."""


async def failure(pool: ResourcePool[Tenant, Database], tenant: Tenant = A) -> ResourceOpenError:
    """Return the error of a lease."""
    with pytest.raises(ResourceOpenError) as caught:
        await pool.acquire(tenant)
    return caught.value


@in_virtual_time
async def test_a_failed_open_is_left_alone_and_then_tried_once() -> None:
    """Refused at once while it cools, without a second open; then exactly one probe for all."""
    databases = Databases(errors={A: DOWN})
    async with ResourcePool(databases.provide, backoff=BACKOFF, jitter=random.Random(3)) as pool:
        first = await failure(pool)
        assert first.__cause__ is DOWN
        assert 0 < first.retry_after <= 1.0
        assert pool.retry_after(A) == pytest.approx(first.retry_after)
        assert pool.retry_after(B) == 0.0
        again = await failure(pool)
        assert 0 < again.retry_after <= first.retry_after
        assert "left alone" in str(again)
        await settle()
        seen = pool.statistics()
        assert (seen.cooling, seen.refusals, seen.open_failures, seen.weight) == (1, 1, 1, 0)
        await asyncio.sleep(first.retry_after)
        await asyncio.gather(*(failure(pool) for _ in range(50)))
        assert databases.attempts[A] == 2
        del databases.errors[A]
        await asyncio.sleep(pool.retry_after(A))
        async with pool.lease(A):
            assert pool.statistics().cooling == 0


@in_virtual_time
async def test_a_permanent_failure_is_left_alone_for_long() -> None:
    """An unknown tenant is not looked up again for the permanent pause."""
    databases = Databases(errors={A: UnknownTenant("no such tenant")})
    async with ResourcePool(databases.provide, backoff=BACKOFF) as pool:
        error = await failure(pool)
        assert (error.permanent, error.retry_after) == (True, 60.0)
        await asyncio.sleep(59.0)
        error = await failure(pool)
        assert error.permanent
        assert error.retry_after == pytest.approx(1.0)
        assert databases.attempts[A] == 1
        assert pool.statistics().permanent_failures == 1


@in_virtual_time
async def test_every_waiter_gets_an_error_of_its_own() -> None:
    """Many waiters, one cause, as many instances as waiters."""
    databases = Databases(errors={A: DOWN})
    async with ResourcePool(databases.provide) as pool:
        errors = await asyncio.gather(*(failure(pool) for _ in range(20)))
        assert len({id(error) for error in errors}) == 20
        assert {id(error.__cause__) for error in errors} == {id(DOWN)}


@in_virtual_time
async def test_invalidate_ends_the_pause() -> None:
    """An operator repaired the tenant and says so: the next lease tries at once."""
    databases = Databases(errors={A: UnknownTenant("no such tenant")})
    async with ResourcePool(databases.provide, backoff=BACKOFF) as pool:
        await failure(pool)
        databases.errors.clear()
        await pool.invalidate_where(lambda tenant: tenant == A)
        assert pool.retry_after(A) == 0.0
        async with pool.lease(A):
            pass


@in_virtual_time
async def test_classify_decides_and_its_own_failure_counts_as_transient() -> None:
    """A pool may have its own notion of what lasts."""
    databases = Databases(errors={A: DOWN, B: DOWN})

    def classify(error: BaseException) -> OpenFailure:
        if len(calls) == 1:
            raise RuntimeError("classify is broken")
        calls.append(error)
        return OpenFailure.UNKNOWN_TENANT

    calls: list[BaseException] = []
    async with ResourcePool(databases.provide, classify=classify) as pool:
        assert (await failure(pool, A)).permanent
        assert not (await failure(pool, B)).permanent


@in_virtual_time
async def test_a_flood_of_invented_tenants_takes_bounded_memory() -> None:
    """I10: negative entries are bounded, and live tenants do not notice the flood."""
    databases = Databases(open_seconds=0.0)

    async def provide(tenant: Tenant) -> Database:
        if tenant.name.startswith("invented"):
            raise UnknownTenant(tenant.name)
        return await databases.open(tenant)

    async with ResourcePool(provide, limits=PoolLimits(remember=100)) as pool:
        async with pool.lease(A):
            pass
        for number in range(2_000):
            await failure(pool, Tenant(f"invented {number}"))
        assert pool.statistics().cooling == 100
        lease = pool.try_lease(A)
        assert lease is not None
        lease.release()


def test_a_dead_host_trips_once_for_all_its_tenants() -> None:
    """2,000 tenants on one dead host: at most five opens fail before all the others are told."""
    databases = Databases()
    tenants = [Tenant(str(number)) for number in range(2_000)]
    databases.errors = dict.fromkeys(tenants, DOWN)

    async def main() -> None:
        limits = PoolLimits(budget=4_000, max_concurrent_opens=16)
        pool = ResourcePool(databases.provide, host=lambda tenant: "db-1", limits=limits, backoff=BACKOFF)
        async with pool:
            outcomes = await asyncio.gather(*(failure(pool, tenant) for tenant in tenants))
            assert databases.attempts.total() == 5
            assert pool.statistics().open_failures == 5
            texts = Counter("host" in str(error) for error in outcomes)
            assert texts[True] == 1_995
            # Half open: one probe for all of them, and its failure tells all the others.
            await asyncio.sleep(max(error.retry_after for error in outcomes))
            await asyncio.gather(*(failure(pool, tenant) for tenant in tenants))
            assert databases.attempts.total() == 6
            # Recovery: everybody comes back, never more than allowed at once.
            databases.errors.clear()
            databases.most_opening = 0
            await asyncio.sleep(pool.retry_after(tenants[0]))
            await asyncio.sleep(10.0)
            leases = await asyncio.gather(*(pool.acquire(tenant, timeout=1e6) for tenant in tenants))
            assert databases.most_opening <= 16
            assert len(databases.opened) == 2_000
            for lease in leases:
                lease.release()

    run_virtual(main(), seed=5)


@pytest.mark.parametrize("seed", range(5))
@in_virtual_time
async def test_what_failed_in_its_hosts_name_comes_back_with_its_host(seed: int) -> None:
    """Six keys on a host that is down for five minutes: none is left alone once one of them has opened."""
    databases = Databases()
    tenants = [Tenant(str(number)) for number in range(6)]
    databases.errors = dict.fromkeys(tenants, DOWN)
    async with ResourcePool(databases.provide, host=lambda tenant: "db-1", jitter=random.Random(seed)) as pool:
        for _ in range(600):
            errors = await asyncio.gather(*(failure(pool, tenant) for tenant in tenants))
            await asyncio.sleep(0.5)
        assert errors[0].host == "db-1"
        databases.errors.clear()
        while not (free := [tenant for tenant in tenants if not pool.retry_after(tenant)]):
            await asyncio.sleep(0.1)
        async with pool.lease(free[0]):
            assert [pool.retry_after(tenant) for tenant in tenants] == [0.0] * 6


def test_what_timed_out_is_checked_before_its_next_lease() -> None:
    """It may be the database or it may be the statement: a check tells. Without ``check=`` nothing is done."""
    for checks in (True, False):
        databases = Databases()

        async def main(databases: Databases, check: bool) -> int:
            pool = ResourcePool(databases.provide, check=databases.check if check else None)
            async with pool:
                with suppress(TimeoutError):
                    async with pool.lease(A):
                        raise TimeoutError
                for _ in range(2):
                    async with pool.lease(A), pool.lease(A):
                        pass
                assert len(databases.opened) == 1
            return len(databases.checked)

        assert run_virtual(main(databases, checks)) == checks


async def _timed_out(pool: ResourcePool[Tenant, Database], tenant: Tenant = A) -> None:
    """Use a tenant's resources, in vain."""
    with suppress(TimeoutError):
        async with pool.lease(tenant):
            raise TimeoutError


@pytest.mark.parametrize("weight", [1, 2])
@in_virtual_time
async def test_what_timed_out_is_checked_also_while_others_use_it(weight: int) -> None:
    """Uses that hang, one begun after the other, would keep it from being checked. What is one connection is busy."""
    databases = Databases()
    async with ResourcePool(databases.provide, check=databases.check, weight=weight) as pool:
        async with pool.lease(A):
            await _timed_out(pool)
            async with pool.lease(A), pool.lease(A):
                assert len(databases.checked) == weight - 1
                assert pool.statistics().leased == 3
        assert len(databases.opened) == 1
        async with pool.lease(A):  # it is idle, and can be leased as ever
            pass
    assert len(databases.closed) == 1


@in_virtual_time
async def test_what_is_found_unhealthy_while_others_use_it_closes_behind_them() -> None:
    """The next lease gets another one, and those that use the sick one keep it (I2)."""
    databases = Databases()

    async def check(database: Database) -> bool:
        return database.number > 0

    async with ResourcePool(databases.provide, check=check, weight=2) as pool:
        async with pool.lease(A) as held:
            await _timed_out(pool)
            async with pool.lease(A) as another:
                assert another is not held
                assert [database.alive for database in databases.opened] == [True, True]
        await asyncio.sleep(1)
        assert [database.alive for database in databases.opened] == [False, True]
        assert pool.statistics().evictions == {"unhealthy": 1}


@pytest.mark.parametrize("ends", ["released", "suspect", "invalidated", "closed"])
@in_virtual_time
async def test_whatever_happens_to_what_is_checked_in_use(ends: str) -> None:
    """Its last lease comes back, its user finds it broken, its tenant moves, or the pool is closed, meanwhile."""
    databases = Databases()

    async def slow(database: Database) -> None:
        databases.checked.append(database)
        await asyncio.sleep(1)

    async with ResourcePool(databases.provide, check=slow, weight=2) as pool:
        lease = await pool.acquire(A)
        await _timed_out(pool)
        asked = asyncio.create_task(pool.acquire(A))
        await settle()
        assert len(databases.checked) == 1
        if ends == "suspect":
            lease.report(ConnectionResetError())
        elif ends == "invalidated":
            await pool.invalidate(A)
        closing = asyncio.create_task(pool.aclose()) if ends == "closed" else None
        await settle()
        lease.release()
        if closing is not None:
            with pytest.raises(ClosedError):
                await asked
            await closing
        else:
            again = await asked
            assert (again.resource.number == 0) is (ends == "released")
            again.release()
            assert pool.statistics().leased == 0
    assert len(databases.closed) == len(databases.opened)


@in_virtual_time
async def test_several_that_time_out_on_one_host_let_all_of_it_be_checked() -> None:
    """Five keys: then no other key of that host is taken for good, and no other host is concerned."""
    databases = Databases()
    here = [Tenant(f"here {number}") for number in range(8)]
    there = Tenant("there", region="eu-west-1")
    pool = ResourcePool(databases.provide, check=databases.check, host=lambda tenant: tenant.region)
    async with pool:
        for tenant in (*here, there):
            async with pool.lease(tenant):
                pass
        for tenant in here[:5]:
            with suppress(TimeoutError):
                async with pool.lease(tenant):
                    raise TimeoutError
        for tenant in (*here, there):
            async with pool.lease(tenant):
                pass
    assert {database.tenant for database in databases.checked} == set(here)
    assert len(databases.opened) == 9


@in_virtual_time
async def test_one_broken_tenant_does_not_trip_its_host() -> None:
    """I9: its neighbours on the same host open as ever."""
    databases = Databases(errors={A: DOWN})
    async with ResourcePool(
        databases.provide, host=lambda tenant: "db-1", backoff=OpenBackoff(base=0.01, cap=0.01)
    ) as pool:
        for _ in range(20):
            await failure(pool, A)
            await asyncio.sleep(0.02)
        async with pool.lease(B):
            pass


@in_virtual_time
async def test_hanging_tenants_leave_openings_for_the_others() -> None:
    """I9: tenants that hung before may hold half of the openings, so a cold open elsewhere starts at once."""
    hanging = [Tenant(f"hanging {number}") for number in range(50)]
    databases = Databases(stuck=set(hanging))
    limits = PoolLimits(max_concurrent_opens=8)
    timeouts = PoolTimeouts(open=10.0, lease=1e6)
    backoff = OpenBackoff(base=0.01, cap=0.01)
    async with ResourcePool(databases.provide, limits=limits, timeouts=timeouts, backoff=backoff) as pool:
        await asyncio.gather(*(failure(pool, tenant) for tenant in hanging))
        await asyncio.sleep(1.0)
        again = [asyncio.create_task(failure(pool, tenant)) for tenant in hanging]
        await asyncio.sleep(1.0)
        started = asyncio.get_running_loop().time()
        async with pool.lease(A):
            assert asyncio.get_running_loop().time() - started == pytest.approx(0.1)
        await asyncio.gather(*again)


@in_virtual_time
async def test_hundreds_of_hanging_tenants_leave_openings_for_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """I9: a failure is not forgotten while its tenant waits minutes for its next try; each is told of or counted."""
    hanging = [Tenant(f"hanging {number}") for number in range(300)]
    databases = Databases(stuck=set(hanging))
    async with ResourcePool(databases.provide) as pool:

        async def try_again_and_again(tenant: Tenant) -> None:
            while True:
                with suppress(ResourceOpenError, PoolExhaustedError):
                    await pool.acquire(tenant)
                await asyncio.sleep(max(1.0, pool.retry_after(tenant)))

        trying = [asyncio.create_task(try_again_and_again(tenant)) for tenant in hanging]
        await asyncio.sleep(600.0)
        loop = asyncio.get_running_loop()
        for number in range(60):
            started = loop.time()
            async with pool.lease(Tenant(str(number))):
                assert loop.time() - started == pytest.approx(0.1)
            await asyncio.sleep(10.0)
        for task in trying:
            task.cancel()
        await asyncio.gather(*trying, return_exceptions=True)
    assert all(databases.attempts[tenant] > 1 for tenant in hanging)
    singly = sum("not available for key" in record.message for record in caplog.records if record.levelname == "ERROR")
    shared = [re.match(r"Resources not available, too: (\d+) keys", record.message) for record in caplog.records]
    # One that lasts for long while many do is counted again.
    assert len(hanging) <= singly + sum(int(found[1]) for found in shared if found) <= len(hanging) + 10
    assert len(caplog.records) < 100


@in_virtual_time
async def test_a_slow_tenant_does_not_delay_anybodys_hit_or_open() -> None:
    """I9: while one tenant's database is black-holed, the others lease as if it were not there."""
    databases = Databases(stuck={A})
    async with ResourcePool(databases.provide, limits=PoolLimits(max_concurrent_opens=2)) as pool:
        blocked = [asyncio.create_task(failure(pool, A)) for _ in range(100)]
        await settle()
        loop = asyncio.get_running_loop()
        for number in range(20):
            started = loop.time()
            async with pool.lease(Tenant(str(number))):
                assert loop.time() - started == pytest.approx(0.1)
            async with pool.lease(Tenant(str(number))):
                assert loop.time() - started == pytest.approx(0.1)
        await asyncio.gather(*blocked)


@in_virtual_time
async def test_a_lease_ends_by_its_deadline_whatever_it_waits_for() -> None:
    """I7: opening, budget, host or health check: the deadline is the deadline."""
    databases = Databases(stuck={A})
    limits = PoolLimits(budget=2, patience=60.0)
    loop = asyncio.get_running_loop()
    async with ResourcePool(databases.provide, limits=limits) as pool, pool.lease(B):
        with pytest.raises(ResourceOpenError, match="still opening"):
            await pool.acquire(A, timeout=2.0)
        assert loop.time() == pytest.approx(2.1)
        with pytest.raises(PoolExhaustedError, match="2 of the budget of 2 in use"):
            await pool.acquire(Tenant("c"), timeout=3.0)
        assert loop.time() == pytest.approx(5.1)
        with pytest.raises(PoolExhaustedError):
            await pool.acquire(Tenant("c"), timeout=0.0)
        with pytest.raises(PoolExhaustedError):
            await pool.acquire(Tenant("c"), timeout=-1.0)
        assert loop.time() == pytest.approx(5.1)
        assert pool.statistics().timeouts == 4


@in_virtual_time
async def test_the_deadline_names_the_openings_when_they_are_what_is_missing() -> None:
    """Enough budget, but too many opens at once."""
    databases = Databases(stuck={A})
    async with ResourcePool(databases.provide, limits=PoolLimits(max_concurrent_opens=1)) as pool:
        blocked = asyncio.create_task(failure(pool, A))
        await settle()
        with pytest.raises(PoolExhaustedError, match="1 opens are under way"):
            await pool.acquire(B, timeout=1.0)
        await blocked


@in_virtual_time
async def test_what_is_idle_is_not_what_a_late_lease_lacks(caplog: pytest.LogCaptureFixture) -> None:
    """The budget is in use, but would give way: what is missing is an opening, for contexts that failed before."""
    hanging = [Tenant(f"hanging {number}") for number in range(4)]
    databases = Databases(stuck=set(hanging))
    limits = PoolLimits(budget=6, max_concurrent_opens=2)
    backoff = OpenBackoff(base=0.01, cap=0.01)
    async with ResourcePool(databases.provide, limits=limits, backoff=backoff) as pool:
        await asyncio.gather(*(failure(pool, tenant) for tenant in hanging))
        for number in range(6):
            async with pool.lease(Tenant(str(number))):
                pass
        blocked = [asyncio.create_task(failure(pool, tenant)) for tenant in hanging[:2]]
        await settle()
        with pytest.raises(PoolExhaustedError, match="1 opens of contexts that failed before are under way"):
            await pool.acquire(hanging[3], timeout=7.0)
        await asyncio.gather(*blocked)
    assert "No budget" not in caplog.text


# -- health ---------------------------------------------------------------------------------------------------------

CHECKED = PoolLimits(check_after=30.0, sweep=1_000.0, idle=None)


@in_virtual_time
async def test_a_resource_that_was_idle_for_long_is_checked_first() -> None:
    """Before that it is not; and a check that passes is not repeated at once."""
    databases = Databases()
    async with ResourcePool(databases.provide, check=databases.check, limits=CHECKED) as pool:
        async with pool.lease(A):
            pass
        await asyncio.sleep(29.0)
        async with pool.lease(A):
            assert databases.checked == []
        await asyncio.sleep(31.0)
        assert pool.try_lease(A) is None
        leases = await asyncio.gather(*(pool.acquire(A) for _ in range(10)))
        assert len(databases.checked) == 1
        assert {lease.resource.number for lease in leases} == {0}
        for lease in leases:
            lease.release()
        seen = pool.statistics()
        assert (seen.checks, seen.check_failures, seen.opened) == (1, 0, 1)


@pytest.mark.parametrize("how", ["false", "raises", "hangs", "cancelled"])
@in_virtual_time
async def test_an_unhealthy_resource_is_replaced_unnoticed(how: str) -> None:
    """A caller that asked gets a new one, which was checked before it was handed out."""
    databases = Databases()

    async def check(database: Database) -> bool | None:
        databases.checked.append(database)
        if database.number > 0 or how == "false":
            return database.number > 0
        if how == "raises":
            raise ConnectionResetError("gone")
        if how == "cancelled":
            raise asyncio.CancelledError
        await asyncio.Event().wait()
        return None

    async with ResourcePool(databases.provide, check=check, limits=CHECKED) as pool:
        async with pool.lease(A):
            pass
        await asyncio.sleep(31.0)
        async with pool.lease(A) as new:
            assert new.number == 1
        assert [database.number for database in databases.checked] == [0, 1]
        assert pool.statistics().evictions == {"unhealthy": 1}


@in_virtual_time
async def test_a_replacement_that_is_sick_too_is_an_error_of_its_own_kind() -> None:
    """It is closed again, counted as a failed open, and left alone for a while."""
    databases = Databases(sick={A})
    pool = ResourcePool(databases.provide, check=databases.check, limits=CHECKED, backoff=BACKOFF)
    async with pool:
        async with pool.lease(A):
            pass
        await asyncio.sleep(31.0)
        with pytest.raises(ResourceUnhealthyError, match="unhealthy") as caught:
            await pool.acquire(A)
        assert caught.value.retry_after > 0
        assert not caught.value.permanent
        assert pool.retry_after(A) > 0
        await asyncio.sleep(1.0)
        seen = pool.statistics()
        assert (seen.opened, seen.closed, seen.live, seen.weight) == (2, 2, 0, 0)


@pytest.mark.parametrize("error", [Panic("at src/lib.rs:12"), GeneratorExit("at a yield")], ids=["panic", "generator"])
@in_virtual_time
async def test_a_check_that_raises_no_exception_names_its_cause(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """As the panic of an extension written in Rust: the outage is told with it, and nothing of the pool's dies."""
    databases = Databases()

    async def check(_database: Database) -> None:
        raise error

    async with ResourcePool(databases.provide, check=check, limits=CHECKED, backoff=BACKOFF) as pool:
        async with pool.lease(A):
            pass
        await asyncio.sleep(31.0)
        with pytest.raises(ResourceUnhealthyError) as caught:
            await pool.acquire(A)
        assert caught.value.__cause__ is error
    assert not [text for text in caplog.messages if "died" in text]
    assert any(text.startswith("Resources not available") and f"{error}" in text for text in caplog.messages)


@in_virtual_time
async def test_after_a_report_the_next_resource_is_checked_before_it_is_handed_out() -> None:
    """A failover may still be going on: the new connection has to prove itself."""
    databases = Databases()
    async with ResourcePool(databases.provide, check=databases.check) as pool:
        lease = await pool.acquire(A)
        assert databases.checked == []
        lease.report(ConnectionResetError())
        lease.release()
        databases.sick.add(A)
        with pytest.raises(ResourceUnhealthyError):
            await pool.acquire(A)
        databases.sick.clear()
        await asyncio.sleep(pool.retry_after(A))
        async with pool.lease(A):
            assert len(databases.checked) == 2
        async with pool.lease(A):
            assert len(databases.checked) == 2


@in_virtual_time
async def test_the_sweeper_checks_idle_resources_so_that_leases_stay_hits() -> None:
    """A healthy idle resource never makes a lease wait; a sick one is gone before it is asked for."""
    databases = Databases()
    limits = replace(CHECKED, sweep=1.0)
    async with ResourcePool(databases.provide, check=databases.check, limits=limits) as pool:
        for tenant in (A, B):
            async with pool.lease(tenant):
                pass
        await asyncio.sleep(100.3)
        for tenant in (A, B):
            lease = pool.try_lease(tenant)
            assert lease is not None
            lease.release()
        databases.sick.add(A)
        await asyncio.sleep(32.0)
        assert pool.statistics().evictions == {"unhealthy": 1}
        assert pool.statistics().live == 1


@in_virtual_time
async def test_a_hanging_check_holds_up_nobody_else() -> None:
    """I9: the sweeper does not wait for it; other tenants lease, idle ones are closed."""
    databases = Databases()

    async def check(database: Database) -> None:
        if database.tenant is A:
            await asyncio.Event().wait()

    limits = PoolLimits(check_after=10.0, idle=30.0, sweep=1.0)
    timeouts = PoolTimeouts(check=1_000.0)
    async with ResourcePool(databases.provide, check=check, limits=limits, timeouts=timeouts) as pool:
        for tenant in (A, B):
            async with pool.lease(tenant):
                pass
        await asyncio.sleep(20.0)
        async with pool.lease(B):
            pass
        with pytest.raises(ResourceOpenError, match="health check still runs"):
            await pool.acquire(A, timeout=5.0)
        await asyncio.sleep(40.0)
        assert pool.statistics().evictions == {"idle": 1}


@in_virtual_time
async def test_invalidating_what_is_being_checked_opens_anew() -> None:
    """The check is called off; those who wait for it get a new resource."""
    databases = Databases()

    async def check(database: Database) -> None:
        await asyncio.sleep(1e6 if database.number == 0 else 0)

    async with ResourcePool(databases.provide, check=check, limits=CHECKED) as pool:
        async with pool.lease(A):
            pass
        await asyncio.sleep(31.0)
        waiting = asyncio.create_task(pool.acquire(A))
        await settle()
        await pool.invalidate(A)
        lease = await waiting
        assert lease.resource.number == 1
        lease.release()
        assert pool.statistics().evictions == {"invalidated": 1}
