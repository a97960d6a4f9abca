"""What a drain, a close or an offboarding waits for in vain is named: tenant, consumer, how many, what to do."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import Consumer, MessageContext, ResourcePool
from postroom.console import MoveFailed, move_tenant, offboard_tenant
from postroom.errors import ConfigurationError
from support.shop import tenant_of
from support.world import Order, World, with_world

SHARED = "Drain it in every consumer that shares the pool, stop what else leases from it, and run this again"
OTHERS = "what is no consumer here, such as a web route or an outbox relay"


class Slow:
    """A provider that takes its time."""

    def __init__(self) -> None:
        self.open = self.close = 0.0

    @asynccontextmanager
    async def __call__(self, tenant: str) -> AsyncGenerator[str]:
        """Open and close."""
        await asyncio.sleep(self.open)
        yield tenant
        await asyncio.sleep(self.close)


class Place:
    """Two consumers that share a pool."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.provider = Slow()
        self.pool: ResourcePool[str, str] = ResourcePool(self.provider)
        self.orders, self.invoices = (self._consumer(name) for name in ("orders", "invoices"))
        self.release: list[Callable[[], object]] = []
        """What ends the uses of the pool that are no consumer's."""

    def _consumer(self, name: str) -> Consumer[str, str]:
        self.world.create(name, dead_letters="dead", receives=20)
        consumer: Consumer[str, str] = Consumer(name, context=tenant_of, resources=self.pool, client=self.world.client)

        @consumer.handler
        async def handle(order: Order, _ctx: MessageContext[str, str]) -> None:
            await asyncio.sleep(order.seconds)

        return consumer

    async def load(self, *queues: str, count: int = 2, seconds: float = 60.0) -> None:
        """Have some handlers of a tenant run."""
        for queue in queues:
            for number in range(count):
                self.world.send({"order_id": str(number), "seconds": seconds}, tenant="acme", queue=queue)
        await asyncio.sleep(2)


async def another_consumer(place: Place) -> str:
    """Handlers of another consumer run."""
    await place.load("invoices")
    return f"the resources of tenant acme are in use (2 leases out): 2 handlers running in invoices. {SHARED}"


async def a_route(place: Place) -> str:
    """A web route holds a lease."""
    place.release.append((await place.pool.acquire("acme")).release)
    return f"the resources of tenant acme are in use (1 lease out): {OTHERS} (1 lease). {SHARED}"


async def both(place: Place) -> str:
    """A route and a handler."""
    await place.load("invoices", count=1)
    place.release.append((await place.pool.acquire("acme")).release)
    users = f"1 handler running in invoices; {OTHERS} (1 lease)"
    return f"the resources of tenant acme are in use (2 leases out): {users}. {SHARED}"


async def busy_route(place: Place) -> str:
    """A route leases again and again."""

    async def serve() -> None:
        while True:
            async with place.pool.lease("acme"):
                pass
            await asyncio.sleep(0.001)

    serving = asyncio.create_task(serve())
    place.release.append(serving.cancel)
    await asyncio.sleep(1)
    return f"the resources of tenant acme are in use (opened again by others): {OTHERS}. {SHARED}"


async def slow_cleanup(place: Place) -> str:
    """The provider does not end."""
    async with place.pool.lease("acme"):
        place.provider.close = 9
    return "the provider does not open or close the resources of tenant acme: see what it waits for"


@pytest.mark.parametrize("hold", [another_consumer, a_route, both, busy_route, slow_cleanup])
@with_world
async def test_what_keeps_resources_open_is_named(world: World, hold: Callable[[Place], Awaitable[str]]) -> None:
    """Of a close, and of an offboarding and a move that come to it."""
    place = Place(world)
    async with place.pool, place.orders, place.invoices:
        text = f"not done after 5 s: {await hold(place)}"
        with pytest.raises(TimeoutError) as closing:
            await place.orders.tenants.close("acme", timeout=5)
        assert str(closing.value) == text
        if hold is slow_cleanup:
            return
        with pytest.raises(TimeoutError) as offboarding:
            await place.orders.tenants.offboard("acme", reason="left", timeout=5)
        assert str(offboarding.value) == text
        place.orders.tenants.resume("acme")
        with pytest.raises(MoveFailed) as moving:
            await move_tenant("acme", place.orders, switch=lambda: None, back=None, reason="full", drain=5)
        assert f"(close: {text})" in str(moving.value)
        for release in place.release:
            release()


@with_world
async def test_a_drain_names_what_runs(world: World) -> None:
    """How many handlers, of which tenant, in which queue; what only waits is not counted, because it is paused."""
    place = Place(world)
    async with place.pool, place.orders:
        await place.load("orders", count=20)
        running = place.orders.tenants["acme"].running
        with pytest.raises(TimeoutError) as draining:
            await place.orders.tenants.drain("acme", timeout=5)
        work = f"tenant acme has {running} handlers running in orders"
        assert str(draining.value) == f"not done after 5 s: {work}: give it more time, or end what hangs there"


@with_world
async def test_a_drain_names_what_waits_for_resources(world: World) -> None:
    """Its handler is about to start."""
    place = Place(world)
    place.provider.open = 20
    async with place.pool, place.orders:
        await place.load("orders", count=1)
        with pytest.raises(TimeoutError, match="tenant acme has 1 message waiting in orders: give it more time"):
            await place.orders.tenants.drain("acme", timeout=5)


@with_world
async def test_queues_without_dead_letters_are_named(world: World) -> None:
    """One, or several of many: nothing is changed."""
    world.create("orders", dead_letters="dead", receives=20)
    bare = [f"bare-{number}" for number in range(7)]
    for name in bare:
        world.create(name)

    def made(*queues: str) -> Consumer[Any, Any]:
        consumer: Consumer[str, None] = Consumer(queues=queues, context=tenant_of, client=world.client)

        @consumer.handler
        async def handle(_order: Order, _ctx: MessageContext[str, None]) -> None: ...

        return consumer

    for queues, text in (
        (["orders", "bare-1"], "queue bare-1 has no dead-letter queue"),
        (["orders", "bare-1", "bare-2"], "the queues bare-1, bare-2 have no dead-letter queue"),
        (bare, "the queues bare-0, bare-1, bare-2, bare-3, bare-4, 2 more have no dead-letter queue"),
    ):
        async with made(*queues) as consumer:
            with pytest.raises(ConfigurationError, match=text):
                await consumer.tenants.offboard("acme", reason="left")
            with pytest.raises(ConfigurationError, match=text):
                await offboard_tenant("acme", consumer, reason="left")
            assert not list(consumer.tenants)
