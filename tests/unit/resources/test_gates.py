"""One budget per database host, beside the pool's own: ``PoolLimits(per_host=)``."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom.errors import ConfigurationError, PoolExhaustedError, ResourceError
from postroom.options import PoolLimits
from postroom.resources import ResourcePool
from postroom.testing.loop import settle
from support.virtual import in_virtual_time
from unit.resources.databases import Database, Databases, Tenant

ON_1 = [Tenant(f"one {number}", "db-1") for number in range(12)]
ON_2 = [Tenant(f"two {number}", "db-2") for number in range(12)]


def host(tenant: Tenant) -> str | None:
    """Return the host of a tenant."""
    return tenant.region if tenant.region.startswith("db") else None


class Watched(Databases):
    """Databases that count what is open, opening or closing on each host."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    @asynccontextmanager
    async def provide(self, tenant: Tenant) -> AsyncIterator[Database]:
        """Open a database, and close it after the ``yield``."""
        self.on_host[tenant.region] += 1
        self.most[tenant.region] = max(self.most[tenant.region], self.on_host[tenant.region])
        try:
            async with super().provide(tenant) as database:
                yield database
        finally:
            self.on_host[tenant.region] -= 1


async def use(pool: ResourcePool[Tenant, Database], tenant: Tenant, seconds: float = 0.5) -> float:
    """Hold a lease for a while; return how long it took to get it."""
    started = asyncio.get_running_loop().time()
    async with pool.lease(tenant):
        waited = asyncio.get_running_loop().time() - started
        await asyncio.sleep(seconds)
    return waited


@pytest.mark.parametrize("per_host", [3, {"db-1": 3}, lambda name: 3 if name == "db-1" else None])
@in_virtual_time
async def test_a_hosts_budget_is_never_exceeded(per_host: Any) -> None:
    """Opening and closing count; a busy host's tenants take turns; other hosts are bounded by what is theirs."""
    databases = Watched()
    limits = PoolLimits(budget=50, per_host=per_host, patience=0.2)
    async with ResourcePool(databases.provide, host=host, limits=limits) as pool:
        await asyncio.gather(*(use(pool, tenant) for tenant in ON_1 + ON_2))
    assert databases.most["db-1"] == 3
    assert databases.most["db-2"] == (3 if per_host == 3 else 12)
    assert len(databases.opened) == 24


@in_virtual_time
async def test_a_full_host_delays_no_other() -> None:
    """I9: its tenants wait at its own gate, not in the pool's line."""
    databases = Watched()
    limits = PoolLimits(budget=50, max_concurrent_opens=1, per_host=1, patience=60.0)
    async with ResourcePool(databases.provide, host=host, limits=limits) as pool:
        holding = asyncio.create_task(use(pool, ON_1[0], 10.0))
        await settle()
        waiting = [asyncio.create_task(use(pool, tenant)) for tenant in ON_1[1:]]
        await asyncio.sleep(1.0)
        assert await use(pool, ON_2[0]) == pytest.approx(0.1)
        assert await use(pool, Tenant("nowhere", "none")) == pytest.approx(0.1)
        assert not any(task.done() for task in waiting)
        await asyncio.wait([holding, *waiting])


@in_virtual_time
async def test_what_is_idle_on_the_host_makes_room_first() -> None:
    """Only there: another host's idle resources stay."""
    databases = Watched()
    async with ResourcePool(databases.provide, host=host, limits=PoolLimits(per_host=2)) as pool:
        for tenant in (*ON_1[:2], *ON_2[:2]):
            await use(pool, tenant)
        await use(pool, ON_1[2])
        assert [database.tenant for database in databases.closed] == [ON_1[0]]
        assert pool.statistics().evictions == {"capacity": 1}
    assert databases.most == {"db-1": 2, "db-2": 2}


@in_virtual_time
async def test_a_place_that_is_not_used_goes_to_the_next() -> None:
    """I6: cancelling a caller that waits, or has just been admitted, leaks nothing of the host's budget."""
    databases = Watched()
    limits = PoolLimits(budget=2, per_host=1, patience=60.0)
    async with ResourcePool(databases.provide, host=host, limits=limits) as pool:
        other = [asyncio.create_task(use(pool, tenant, 5.0)) for tenant in (ON_2[0], Tenant("nowhere", "none"))]
        await settle()
        let_in = asyncio.create_task(use(pool, ON_1[0]))  # it has its host's budget, and waits for the pool's
        at_gate = [asyncio.create_task(use(pool, tenant)) for tenant in ON_1[1:4]]
        await settle()
        let_in.cancel()
        at_gate[1].cancel()
        await asyncio.wait([*other, let_in, *at_gate])
        assert [tenant for tenant in databases.order if tenant in ON_1] == [ON_1[1], ON_1[3]]
        assert len(pool._core.gates) == 1  # the gate of a host without anything is forgotten
    assert len(pool._core.gates) == 0


@in_virtual_time
async def test_the_deadline_names_the_hosts_budget() -> None:
    """So that the right number is raised."""
    databases = Watched()
    limits = PoolLimits(per_host=1, patience=60.0)
    async with ResourcePool(databases.provide, host=host, limits=limits) as pool, pool.lease(ON_1[0]):
        with pytest.raises(PoolExhaustedError, match="1 of the budget of 1 of its host in use"):
            await pool.acquire(ON_1[1], timeout=1.0)


@in_virtual_time
async def test_a_host_that_is_full_for_long_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """The line names the host, who holds its budget, and the option."""
    databases = Watched()
    limits = PoolLimits(per_host=1, patience=2.0)
    async with ResourcePool(databases.provide, host=host, limits=limits) as pool, pool.lease(ON_1[0]):
        with pytest.raises(PoolExhaustedError):
            await pool.acquire(ON_1[1], timeout=20.0)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "1 of 1 of host db-1 are in use, most of it by one 0:db-1 (1, 1 leased)" in line
    assert "PoolLimits(per_host=...)" in line


@in_virtual_time
async def test_a_host_budget_that_cannot_work_is_refused() -> None:
    """Without ``host=``, above the budget, or below one resource's weight; by a function, for its context only."""
    databases = Watched()
    with pytest.raises(ConfigurationError, match="needs ResourcePool"):
        ResourcePool(databases.provide, limits=PoolLimits(per_host=1))
    for wrong in (0, -1, True, "3", 101):
        with pytest.raises(ConfigurationError, match="per_host"):
            PoolLimits(per_host=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="budget of a host"):
        ResourcePool(databases.provide, host=host, weight=3, limits=PoolLimits(per_host=2))

    def limit(name: str) -> Any:
        return {"db-1": "many", "db-2": 1}[name]

    async with ResourcePool(
        databases.provide, host=host, weight=lambda tenant: 2 if tenant is ON_2[1] else 1,
        limits=PoolLimits(per_host=limit),
    ) as pool:  # fmt: skip
        for tenant, text in ((ON_1[0], "'many'"), (ON_2[1], "budget of a host"), (Tenant("x", "db-3"), "KeyError")):
            with pytest.raises(ResourceError, match=text) as caught:
                await pool.acquire(tenant)
            assert caught.value.__cause__ is not None
        await use(pool, ON_2[0])


@in_virtual_time
async def test_a_limit_may_change_while_the_pool_is_open() -> None:
    """Lowered, it lets nothing new open above it; raised, it admits the keys that wait, with the next one that asks."""
    databases = Watched()
    limits = {"db-1": 3}
    options = PoolLimits(per_host=limits, patience=60.0)
    async with ResourcePool(databases.provide, host=host, limits=options) as pool:
        held = [await pool.acquire(tenant) for tenant in ON_1[:3]]
        limits["db-1"] = 2
        waiting = [asyncio.create_task(pool.acquire(tenant)) for tenant in ON_1[3:5]]
        held[0].release()
        await asyncio.sleep(1.0)
        assert not any(task.done() for task in waiting)
        limits["db-1"] = 4
        waiting.append(asyncio.create_task(pool.acquire(ON_1[5])))
        await asyncio.sleep(1.0)
        assert [task.done() for task in waiting] == [True, True, False]
        for lease in [*held, *(task.result() for task in waiting[:2])]:
            lease.release()
        (await waiting[2]).release()
    assert databases.most["db-1"] <= 4
