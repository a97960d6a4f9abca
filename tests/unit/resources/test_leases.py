"""Leasing: one open for many, the right resource, and a clear word for every misuse."""

import asyncio
import contextvars
import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from postroom.errors import ClosedError, ConfigurationError, NotOpenError, ResourceError
from postroom.resources import Lease, PoolLimits, ResourcePool
from postroom.testing.loop import VirtualLoop, run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, Database, Databases, Tenant


@in_virtual_time
async def test_a_lease_gives_the_tenants_own_resource_and_keeps_it_for_the_next() -> None:
    """The second lease is a hit; another tenant gets another database."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        async with pool.lease(A) as first:
            assert first.tenant is A
        async with pool.lease(Tenant("a")) as again, pool.lease(B) as other:
            assert again is first
            assert other.tenant is B
        seen = pool.statistics()
        assert (seen.opened, seen.hits, seen.misses, seen.live) == (2, 1, 2, 2)
    assert pool.statistics().live == 0
    assert [database.alive for database in databases.opened] == [False, False]


@in_virtual_time
async def test_ten_thousand_leases_of_one_cold_key_make_one_open() -> None:
    """I1: single flight."""
    databases = Databases()

    async def use() -> None:
        async with pool.lease(A) as database:
            assert database.alive

    async with ResourcePool(databases.provide) as pool:
        await asyncio.gather(*(use() for _ in range(10_000)))
        assert pool.statistics().leased == 0
    assert databases.attempts == {A: 1}


def test_a_thousand_keys_at_once_stay_within_budget_and_openings() -> None:
    """I3: as many opens as keys, never more at a time than allowed, never over budget."""
    databases = Databases()
    limits = PoolLimits(budget=50, max_concurrent_opens=16)

    async def main() -> None:
        async def use(tenant: Tenant) -> None:
            async with pool.lease(tenant, timeout=1e6):
                await asyncio.sleep(0.05)

        async with ResourcePool(databases.provide, limits=limits) as pool:
            await asyncio.gather(*(use(Tenant(str(number))) for number in range(1_000)))
            assert pool.statistics().opened == 1_000

    run_virtual(main(), seed=7)
    assert len(databases.opened) == 1_000
    assert databases.most_opening == 16
    assert databases.most_live == 50


@in_virtual_time
async def test_keys_that_look_the_same_joined_are_two_tenants() -> None:
    """I5: ("a:b", "c") and ("a", "b:c") never share."""
    databases = Databases()
    async with (
        ResourcePool(databases.provide) as pool,
        pool.lease(Tenant("a:b", "c")) as one,
        pool.lease(Tenant("a", "b:c")) as other,
    ):
        assert one is not other
        assert (one.tenant.name, other.tenant.name) == ("a:b", "a")


@in_virtual_time
async def test_try_lease_hits_or_returns_none_without_waiting() -> None:
    """It is a plain function: None when cold, a lease when ready."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        assert pool.try_lease(A) is None
        (await pool.acquire(A)).release()
        lease = pool.try_lease(A)
        assert lease is not None
        with lease as database:
            assert database.tenant is A
            assert pool.statistics().leased == 1
        assert pool.statistics().leased == 0


@in_virtual_time
async def test_a_hit_does_not_suspend() -> None:
    """Leasing what is ready gives no other task a turn."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        async with pool.lease(A):
            pass
        others: list[int] = []
        asyncio.get_running_loop().call_soon(others.append, 1)
        async with pool.lease(A):
            assert others == []
        await settle()


@in_virtual_time
async def test_releasing_twice_releases_once() -> None:
    """The second release is nothing; the first one counts."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        one, two = await pool.acquire(A), await pool.acquire(A)
        one.release()
        one.release()
        assert pool.statistics().leased == 1
        two.release()
        assert pool.statistics().leased == 0
        with pytest.raises(ClosedError, match="released"):
            _ = one.resource
        with pytest.raises(ClosedError, match="released"):
            one.__enter__()
        assert one.report(ConnectionResetError()) is False
        assert repr(one) == "Lease(released)"


@in_virtual_time
async def test_a_released_lease_keeps_nothing() -> None:
    """Wherever it is kept, its resource is gone once the pool has closed it."""

    @asynccontextmanager
    async def provide(_context: object) -> AsyncGenerator[Database]:
        yield Database(A, 1)

    async with ResourcePool(provide) as pool:
        lease = await pool.acquire(A)
        alive = weakref.ref(lease.resource)
        lease.release()
        await pool.invalidate(A)
        await settle()
        gc.collect()
        assert alive() is None


@pytest.mark.parametrize("is_open", [False, True])
@in_virtual_time
async def test_a_forgotten_lease_warns_and_gives_itself_back(is_open: bool) -> None:
    """What is never released is noticed, and does not hold its resource forever."""
    databases = Databases()

    async def forget(pool: ResourcePool[Tenant, Database]) -> None:
        lease = await pool.acquire(A)
        assert lease.resource.alive

    async with ResourcePool(databases.provide) as pool:
        if is_open:
            (await pool.acquire(A)).release()
        with pytest.warns(ResourceWarning, match="a:us-east-1"):
            await asyncio.create_task(forget(pool))
        await settle()
        assert pool.statistics().leased == 0


@in_virtual_time
async def test_the_lease_works_as_an_async_context_manager_too() -> None:
    """``async with lease`` releases as ``with`` does, and lets the exception pass."""
    databases = Databases()

    async def use(lease: Lease[Database]) -> None:
        async with lease as database:
            raise KeyError(database.tenant.name)

    async with ResourcePool(databases.provide) as pool:
        lease = await pool.acquire(A)
        assert repr(lease) == "Lease(a:us-east-1)"
        with pytest.raises(KeyError):
            await use(lease)
        assert pool.statistics().leased == 0


@in_virtual_time
async def test_one_scope_cannot_be_entered_twice_at_once() -> None:
    """``pool.lease()`` belongs to one ``async with``."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        scope = pool.lease(A)
        async with scope:
            with pytest.raises(RuntimeError, match="again for each"):
                await scope.__aenter__()
        async with scope as database:
            assert database.alive


@in_virtual_time
async def test_leases_nest() -> None:
    """A handler that leases its own tenant again, or another, does not lock itself out."""
    databases = Databases()
    async with (
        ResourcePool(databases.provide, limits=PoolLimits(budget=2)) as pool,
        pool.lease(A) as one,
        pool.lease(A) as two,
        pool.lease(B) as other,
    ):
        assert one is two
        assert other.tenant is B


@in_virtual_time
async def test_a_provider_may_lease_from_its_own_pool() -> None:
    """Opening one resource with the help of another works."""
    databases = Databases()

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[Database]:
        if tenant == A:
            async with pool.lease(B):
                database = await databases.open(tenant)
        else:
            database = await databases.open(tenant)
        yield database
        await databases.close(database)

    pool = ResourcePool(provide)
    async with pool, pool.lease(A) as database:
        assert database.tenant is A
        assert pool.statistics().opened == 2


@in_virtual_time
async def test_key_names_the_part_of_the_context_that_counts() -> None:
    """Contexts with the same key share; the provider sees the context that came first."""
    databases = Databases()

    @dataclass(frozen=True)
    class Request:
        tenant: Tenant
        trace: str

    async def provide(request: Request) -> Database:
        return await databases.open(request.tenant)

    async with ResourcePool(provide, key=lambda request: request.tenant, cleanup=databases.close) as pool:
        async with pool.lease(Request(A, "1")) as one, pool.lease(Request(A, "2")) as two:
            assert one is two
        async with pool.lease(Request(B, "1")) as other:
            assert other is not one


@in_virtual_time
async def test_a_context_that_cannot_be_a_key_is_refused_clearly() -> None:
    """An unhashable context, or a failing ``key=``, is an error of this lease only."""
    databases = Databases()

    @dataclass
    class Mutable:
        name: str

    async with ResourcePool[Mutable, str](lambda context: _nothing()) as pool:
        with pytest.raises(ResourceError, match="frozen dataclass"):
            pool.try_lease(Mutable("a"))
        with pytest.raises(ResourceError, match="frozen dataclass"):
            await pool.acquire(Mutable("a"))
    async with ResourcePool(databases.provide, key=lambda tenant: tenant.nothing) as keyed:  # type: ignore[attr-defined]  # a wrong key function
        with pytest.raises(ResourceError, match="AttributeError") as caught:
            await keyed.acquire(A)
        assert isinstance(caught.value.__cause__, AttributeError)
    async with ResourcePool(databases.provide, host=lambda tenant: [tenant]) as hosted:  # type: ignore[arg-type,return-value]  # a wrong host function
        with pytest.raises(ResourceError, match="host="):
            await hosted.acquire(A)


async def _nothing() -> str:
    """Return something."""
    return "resource"


@pytest.mark.parametrize("seed", range(5))
def test_a_key_whose_hash_changes_harms_nobody_else(seed: int) -> None:
    """A context class that is changed while it is in use is a bug of its owner: it opens again, and nothing is left."""

    class Careless:
        def __init__(self, name: str) -> None:
            self.name = name

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Careless) and other.name == self.name

        def __hash__(self) -> int:
            return hash(self.name)

    async def provide(context: Careless) -> str:
        await asyncio.sleep(0.1)
        return context.name

    async def main() -> None:
        async with ResourcePool(provide, limits=PoolLimits(budget=2, idle=1.0, sweep=0.1)) as pool:
            context = Careless("a")
            async with pool.lease(context):
                context.name = "b"
                async with pool.lease(Careless("a")) as again:
                    assert again == "a"
                    waiter = asyncio.create_task(pool.acquire(changing := Careless("c"), timeout=2.0))
                    await settle()
                    changing.name = "d"
                    await asyncio.wait([waiter])
                    assert waiter.exception() is not None
            await asyncio.sleep(3.0)
            assert pool.statistics().weight == 0
            async with pool.lease(Careless("c")) as other:
                assert other == "c"

    run_virtual(main(), seed=seed)


@in_virtual_time
async def test_weights_have_to_fit() -> None:
    """What can never fit is refused at once, not after a deadline."""
    databases = Databases()
    with pytest.raises(ConfigurationError, match="raise PoolLimits"):
        ResourcePool(databases.provide, weight=11, limits=PoolLimits(budget=10))
    for wrong in (0, -1, True, 1.5, None):
        with pytest.raises(ResourceError, match="whole number") as caught:
            async with ResourcePool(databases.provide, weight=lambda tenant: wrong) as pool:  # type: ignore[arg-type,return-value]  # noqa: B023
                await pool.acquire(A)
        assert isinstance(caught.value.__cause__, ConfigurationError)
    async with ResourcePool(databases.provide, weight=lambda _: 11, limits=PoolLimits(budget=10)) as pool:
        with pytest.raises(ResourceError, match="weight= gave 11"):
            await pool.acquire(A)
    assert databases.attempts.total() == 0


@in_virtual_time
async def test_an_unopened_and_a_closed_pool_say_so() -> None:
    """The text shows the line to write."""
    databases = Databases()
    pool = ResourcePool(databases.provide, name="databases")
    with pytest.raises(NotOpenError, match="async with pool:"):
        pool.try_lease(A)
    with pytest.raises(NotOpenError, match="async with pool:"):
        await pool.acquire(A)
    assert pool.retry_after(A) == 0.0
    assert pool.statistics().live == 0
    await pool.invalidate(A)
    async with pool:
        pass
    with pytest.raises(ClosedError, match="databases was closed"):
        pool.try_lease(A)
    with pytest.raises(ClosedError):
        async with pool.lease(A):
            pass
    assert pool.retry_after(A) == 0.0


def test_a_pool_belongs_to_one_loop() -> None:
    """Used from another loop it refuses to wait, instead of hanging."""
    databases = Databases()
    pool = ResourcePool(databases.provide)

    async def elsewhere() -> None:
        with pytest.raises(ConfigurationError, match="another event loop"):
            await pool.acquire(A)

    loop = VirtualLoop()
    loop.run_until_complete(pool.__aenter__())
    run_virtual(elsewhere())
    loop.run_until_complete(pool.aclose())
    loop.close()


def test_what_is_open_is_not_leased_in_another_loop() -> None:
    """Two loops would use one connection at once."""
    databases = Databases()
    pool = ResourcePool(databases.provide)

    async def use() -> None:
        async with pool.lease(A):
            pass

    async def elsewhere() -> None:
        with pytest.raises(ConfigurationError, match="another event loop"):
            await use()

    loop = VirtualLoop()
    loop.run_until_complete(pool.__aenter__())
    loop.run_until_complete(use())
    run_virtual(elsewhere())
    assert pool.statistics().leased == 0
    loop.run_until_complete(pool.aclose())
    loop.close()


@in_virtual_time
async def test_a_pool_may_be_entered_by_everybody_who_uses_it() -> None:
    """Each ``async with`` counts; the last exit closes."""
    databases = Databases()
    pool = ResourcePool(databases.provide)
    async with pool:
        async with pool as again:
            assert again is pool
        async with pool.lease(A) as database:
            assert database.alive
    assert pool.statistics().closed == 1


@in_virtual_time
async def test_a_provider_never_sees_a_handlers_context_variables() -> None:
    """What a resource is opened with comes from where the pool was opened, and not from the first caller."""
    tenant_of_message: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")
    seen: list[str] = []

    async def provide(_tenant: Tenant) -> str:
        seen.append(tenant_of_message.get())
        return "resource"

    async def handler(pool: ResourcePool[Tenant, str]) -> None:
        tenant_of_message.set("somebody's")
        async with pool.lease(A):
            pass

    tenant_of_message.set("the application's")
    async with ResourcePool(provide) as pool:
        await asyncio.create_task(handler(pool))
    assert seen == ["the application's"]


@in_virtual_time
async def test_none_may_be_a_resource() -> None:
    """A provider that yields None leases None."""

    async def provide(_tenant: Tenant) -> None:
        return None

    async with ResourcePool(provide) as pool, pool.lease(A) as nothing:
        assert nothing is None


async def test_an_open_resource_is_leased_to_no_other_thread() -> None:
    """A plain handler runs in one: counts of leases would go wrong, and a resource has its own event loop."""

    @asynccontextmanager
    async def provide(context: str) -> AsyncGenerator[str]:
        yield context

    async with ResourcePool(provide, weight=1) as pool:
        async with pool.lease("a"):
            pass

        def lease() -> None:
            with pytest.raises(ConfigurationError, match="another event loop"):
                pool.try_lease("a")
            with pytest.raises(ConfigurationError, match="another event loop"):
                asyncio.run(pool.acquire("a"))

        await asyncio.to_thread(lease)
        assert pool.statistics().leased == 0
