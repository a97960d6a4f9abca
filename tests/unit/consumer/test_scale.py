"""Many messages, many tenants, one slow message: what is opened, what waits, what does not."""

import asyncio
from typing import Any

import pytest

from postroom import Concurrency, Consumer, MessageContext, Polling, PoolLimits, ResourcePool
from postroom.consumer.deferral import PATIENCE
from postroom.scheduling import Scheduler
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Tenant, Database]


def recording(world: World, resources: Any, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer that writes each order after its seconds."""
    orders = Consumer("orders", context=Tenant, resources=resources, client=world.client, **options)

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        if order.seconds:
            await asyncio.sleep(order.seconds)
        ctx.resources.write(order.order_id)

    return orders


async def until_empty(world: World) -> float:
    """Wait until nothing is in the queue, and return the virtual time."""
    while world.counts() != (0, 0):
        await asyncio.sleep(0.01)
    return asyncio.get_running_loop().time()


@with_world
async def test_ten_thousand_messages_of_a_cold_tenant_make_one_open(world: World) -> None:
    """Single flight (I1), with all of them held at once."""
    world.create()
    databases = Databases()
    databases.seconds = 5
    orders = recording(
        world,
        databases,
        concurrency=Concurrency(total=10_000, per_tenant=10_000),
        polling=Polling(prefetch=1_000, pollers=8, lane=10_000),
    )
    world.send_orders(*map(str, range(10_000)))
    async with orders:
        await asyncio.sleep(4.9)
        held = orders.statistics().held
        await until_empty(world)
    assert (len(databases.made), held, len(set(databases.rows("a")))) == (1, 10_000, 10_000)


@with_world
async def test_a_thousand_cold_tenants_at_once(world: World) -> None:
    """1,000 opens, never more than allowed at a time, the budget never exceeded (I3)."""
    world.create()
    databases = Databases()
    databases.seconds = 0.05
    limits = PoolLimits(budget=1_000, max_concurrent_opens=16)
    async with ResourcePool(databases, limits=limits) as pool:
        orders = recording(world, pool, concurrency=Concurrency(total=200), polling=Polling(prefetch=1_000, pollers=8))
        for number in range(1_000):
            world.send_orders(str(number), tenant=f"tenant-{number}")
        most = 0
        async with orders:
            while world.counts() != (0, 0):
                await asyncio.sleep(0.01)
                most = max(most, pool.statistics().weight)
    opened, most_opening, most_weight, tenants = (
        len(databases.made),
        databases.most_opening,
        most,
        len({d.tenant for d in databases.made}),
    )
    assert opened == tenants == 1_000
    assert most_opening == 16
    assert most_weight <= 1_000


@with_world
async def test_a_small_budget_is_shared_by_many_tenants(world: World) -> None:
    """100 tenants and a budget of 5: never more than 5 open, closing ones included, and everybody is served."""
    world.create()
    databases = Databases()
    limits = PoolLimits(budget=5)
    async with ResourcePool(databases, limits=limits) as pool:
        for number in range(200):
            world.send_orders(str(number), tenant=f"tenant-{number % 100}")
        most = 0
        async with recording(world, pool):
            while world.counts() != (0, 0):
                await asyncio.sleep(0.01)
                most = max(most, sum(database.open for database in databases.made))
    rows = sum(len(database.rows) for database in databases.made)
    assert most <= 5
    assert rows == 200


@with_world
async def test_one_slow_message_stalls_nobody(world: World) -> None:
    """One of 200 sleeps 5 s: the other 199 finish in under 0.3 s after the first."""
    world.create()
    done: list[tuple[str, float]] = []
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(order.seconds)
        done.append((order.order_id, asyncio.get_running_loop().time()))

    world.send_orders("slow", seconds=5)
    world.send_orders(*map(str, range(199)), seconds=0.001)
    async with orders:
        await until_empty(world)
    assert done[-1][0] == "slow"
    assert done[198][1] - done[0][1] < 0.3


@pytest.mark.parametrize("how", ["refusing", "black-holed"])
def test_a_broken_tenant_with_half_of_the_traffic_costs_the_others_nothing(how: str) -> None:
    """The healthy tenants' messages finish as soon as they do without it, within 5%, and it holds no slot."""

    async def scenario(world: World, *, broken: bool) -> float:
        world.create()
        databases = Databases()
        if how == "refusing":
            databases.failures["broken"] = ConnectionRefusedError
        else:
            databases.hanging.add("broken")
        done = asyncio.Event()
        finished = 0
        orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)

        @orders.handler
        async def record(order: Order, ctx: Ctx) -> None:
            nonlocal finished
            assert ctx.context.tenant_id != "broken"
            await asyncio.sleep(order.seconds)
            finished += 1
            if finished == 600:
                done.set()

        for number in range(600):
            world.send_orders(str(number), tenant=f"well-{number % 8}", seconds=0.2)
            if broken:
                world.send_orders(str(number), tenant="broken", seconds=0.2)
        async with orders:
            await done.wait()
            return asyncio.get_running_loop().time()

    alone = in_world(lambda world: scenario(world, broken=False))
    beside = in_world(lambda world: scenario(world, broken=True))
    assert beside <= 1.05 * alone


@with_world
async def test_many_tenants_that_are_down_are_not_all_looked_at_for_each_receive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look goes through all of them: it is made four times a second, however many opens fail and messages come."""
    looks: list[int] = []
    shed = Scheduler.shed

    def counted(self: Scheduler[Any], **options: Any) -> list[Any]:
        looks.append(self.blocked_lanes)
        return shed(self, **options)

    monkeypatch.setattr(Scheduler, "shed", counted)
    world.create(dead_letters="dead", receives=10)
    databases = Databases()
    databases.failures = {f"tenant-{number}": ConnectionRefusedError for number in range(400)}
    orders = recording(world, databases, concurrency=Concurrency(total=10))
    for number in range(800):
        world.send_orders(str(number), tenant=f"tenant-{number % 400}")
    async with orders:
        await asyncio.sleep(1.0)
        for number in range(100):
            world.send_orders(f"good-{number}", tenant="good")
            await asyncio.sleep(0.1)
    assert sum(len(database.rows) for database in databases.made) == 100
    assert max(looks) > 300
    assert len(looks) <= 1 + 11 / PATIENCE
