"""What a consumer asks a pool, cheaply and without fear: events, trouble, pauses, hosts, contexts."""

import asyncio
import contextvars
from typing import Any

import pytest

from postroom.errors import ResourceError, ResourceOpenError, UnknownTenant
from postroom.events import Event, ResourceClosed, ResourceOpened, ResourceOpenFailed
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.resources import ResourcePool
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, C, Databases, Tenant

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nothing")


@in_virtual_time
async def test_observers_come_and_go() -> None:
    """Each is told from its subscription on, until it leaves; the same function may subscribe twice."""
    databases = Databases(errors={B: OSError("down")})
    first: list[Event] = []
    later: list[Event] = []
    async with ResourcePool(databases.provide, host=lambda tenant: "db-1", observers=[first.append]) as pool:
        async with pool.lease(A):
            pass
        leave, also = pool.subscribe(later.append), pool.subscribe(later.append)
        with pytest.raises(ResourceOpenError):
            await pool.acquire(B)
        assert len(later) == 2
        leave()
        leave()
        await pool.invalidate(A)
        await asyncio.sleep(1.0)
        also()
    assert not pool._observers._observers[1:]
    opened, failed, closed = first
    assert isinstance(opened, ResourceOpened)
    assert isinstance(failed, ResourceOpenFailed)
    assert opened.host == failed.host == "db-1"
    assert isinstance(closed, ResourceClosed)
    assert [type(event) for event in later] == [ResourceOpenFailed, ResourceOpenFailed, ResourceClosed]


@in_virtual_time
async def test_an_observer_that_leaves_while_it_is_told_spoils_nothing() -> None:
    """The others are told all the same."""
    databases = Databases()
    seen: list[str] = []
    async with ResourcePool(databases.provide) as pool:

        def once(event: Event) -> None:
            seen.append("once")
            leave()

        leave = pool.subscribe(once)
        pool.subscribe(lambda event: seen.append("always"))
        for tenant in (A, B):
            async with pool.lease(tenant):
                pass
    assert seen[:3] == ["once", "always", "always"]


@in_virtual_time
async def test_a_pool_knows_whether_it_is_troubled() -> None:
    """From the first failure until the first success of that key and that host."""
    databases = Databases(errors={A: OSError("down")})
    backoff = OpenBackoff(base=0.1, cap=0.1)
    async with ResourcePool(databases.provide, host=lambda tenant: tenant.region, backoff=backoff) as pool:
        async with pool.lease(B):
            pass
        quiet = pool.troubled
        with pytest.raises(ResourceOpenError):
            await pool.acquire(A)
        assert (quiet, pool.troubled) == (False, True)
        await asyncio.sleep(1.0)
        assert pool.troubled
        async with pool.lease(C):
            pass
        seen = [pool.troubled]  # the host answers, the key has yet to
        databases.errors.clear()
        async with pool.lease(A):
            pass
        assert [*seen, pool.troubled] == [True, False]
        databases.errors[B] = OSError("down")
        await pool.invalidate(B)
        with pytest.raises(ResourceOpenError):
            await pool.acquire(B)
        await asyncio.sleep(400.0)
        assert not pool.troubled  # it is so long ago that it counts for nothing


class Grudge(Exception):
    """What a user's function raises."""


def refuse(tenant: Tenant) -> Any:
    """Fail for one tenant."""
    if tenant is A:
        raise Grudge(tenant.name)
    return 1


@pytest.mark.parametrize("name", ["key", "host", "weight"])
@in_virtual_time
async def test_a_function_that_raises_concerns_its_context_only(name: str) -> None:
    """``acquire`` says so, with the cause; questions are answered; other contexts lease as ever."""
    databases = Databases()
    functions: dict[str, Any] = {name: refuse}
    async with ResourcePool(databases.provide, **functions) as pool:
        with pytest.raises(ResourceError, match="Grudge") as caught:
            await pool.acquire(A)
        assert isinstance(caught.value.__cause__, Grudge)
        assert caught.value.context is A
        pool._core.cooling.distrust("somebody else", None, 0.0)  # troubled: so that the questions are really asked
        assert pool.troubled
        assert pool.retry_after(A) == 0.0
        assert pool.host_of(A) is None
        assert not pool.is_open(A)
        if name == "key":
            with pytest.raises(ResourceError):
                pool.try_lease(A)
        else:
            assert pool.try_lease(A) is None
        async with pool.lease(B):
            assert pool.is_open(B)
            assert pool.host_of(B) == (1 if name == "host" else None)


@in_virtual_time
async def test_a_pool_knows_which_tenants_there_are_not() -> None:
    """Until the provider is asked again. An outage is another matter."""
    databases = Databases(errors={A: UnknownTenant("a"), B: OSError("down")})
    async with ResourcePool(databases.provide) as pool:
        for tenant in (A, B):
            assert pool.unknown_at(tenant) is None
            with pytest.raises(ResourceError):
                await pool.acquire(tenant)
        assert pool.unknown_at(A) == pytest.approx(0.1)
        assert pool.unknown_at(B) is None
        await asyncio.sleep(61.0)
        assert pool.unknown_at(A) is None
    assert pool.unknown_at(A) is None


@in_virtual_time
async def test_a_host_function_that_fails_during_an_outage_leaves_the_keys_own_pause() -> None:
    """A tenant that was removed from the registry while its database was down."""
    databases = Databases(errors={A: ConnectionRefusedError("down")})
    known = {A: "db-1"}
    backoff = OpenBackoff(base=10.0, cap=10.0)
    async with ResourcePool(databases.provide, host=known.__getitem__, backoff=backoff) as pool:
        with pytest.raises(ResourceOpenError) as caught:
            await pool.acquire(A)
        del known[A]
        assert pool.retry_after(A) == pytest.approx(caught.value.retry_after)
        assert pool.retry_after(A) > 0
        assert pool.host_of(A) is None
        with pytest.raises(ResourceError, match="KeyError"):
            await pool.acquire(A)


@in_virtual_time
async def test_unhashable_answers_are_answered_too() -> None:
    """A list as key or host is a mistake of that context, not an end of its caller."""
    databases = Databases()
    wrong: Any = lambda tenant: [tenant.name]  # noqa: E731 - the mistake
    for name in ("key", "host"):
        async with ResourcePool(databases.provide, **{name: wrong}) as pool:
            pool._core.cooling.distrust("somebody else", None, 0.0)
            assert (pool.retry_after(A), pool.host_of(A), pool.is_open(A)) == (0.0, None, False)
            with pytest.raises(ResourceError):
                await pool.acquire(A)


@in_virtual_time
async def test_nothing_of_a_message_is_visible_where_the_pool_runs() -> None:
    """Isolation: providers, checks, observers and timers see the context variables of the place of opening."""
    databases = Databases(errors={C: OSError("down")})
    seen: set[str] = set()

    async def check(resource: object) -> None:
        seen.add(f"check {caller.get()}")

    def observe(event: Event) -> None:
        seen.add(f"{type(event).__name__} {caller.get()}")

    class Loud(Databases):
        async def open(self, tenant: Tenant) -> Any:
            seen.add(f"open {caller.get()}")
            return await databases.open(tenant)

    async def message(pool: ResourcePool[Tenant, Any], tenant: Tenant) -> None:
        caller.set(tenant.name)
        for _ in range(5):
            try:
                async with pool.lease(tenant, timeout=3.0):
                    await asyncio.sleep(0.3)
            except ResourceError:
                await asyncio.sleep(1.0)
            assert caller.get() == tenant.name

    caller.set("the pool's")
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def watched(when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        if "postroom.resources" in getattr(callback, "__module__", "") or hasattr(callback, "__self__"):
            home = callback.__self__.__class__.__module__ if hasattr(callback, "__self__") else ""
            if home.startswith("postroom.resources"):
                seen.add(f"timer {(context or contextvars.copy_context()).get(caller, 'nothing')}")
        return call_at(when, callback, *args, context=context)

    loop.call_at = watched  # type: ignore[assignment,method-assign]  # a watch on the loop
    pool = ResourcePool(
        Loud().open,
        cleanup=None,
        check=check,
        limits=PoolLimits(budget=2, patience=0.1, check_after=0.1, idle=0.5, sweep=0.2),
        timeouts=PoolTimeouts(lease=3.0),
        observers=[observe],
    )
    async with pool:
        tasks = [asyncio.create_task(message(pool, Tenant(str(n)) if n else C)) for n in range(8)]
        await asyncio.wait(tasks)
        for task in tasks:
            task.result()
    assert {entry.partition(" ")[0] for entry in seen} >= {"open", "check", "timer", "ResourceOpened", "ResourceClosed"}
    assert {entry.partition(" ")[2] for entry in seen} == {"the pool's"}
