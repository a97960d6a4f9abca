"""FIFO queues: tenants share the slots however many message groups they own, and each group keeps its order."""

import asyncio
from collections import Counter, defaultdict
from random import Random

import pytest

from postroom import Concurrency, Consumer, MessageContext, Polling, RetryPolicy, Visibility
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world


def test_tenants_share_the_slots_however_many_groups_they_own() -> None:
    """One tenant has fifteen groups and one has five; both always have work, and get the same handler seconds."""

    async def scenario(world: World) -> Counter[str]:
        world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
        orders = Consumer(
            "orders.fifo",
            context=Tenant,
            concurrency=Concurrency(total=4, per_tenant=4, reserved=0),
            polling=Polling(pollers=4),
            client=world.client,
        )
        served: Counter[str] = Counter()
        running: Counter[str] = Counter()

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
            group = ctx.message.group_id or ""
            running[group] += 1
            assert running[group] == 1
            await asyncio.sleep(order.seconds)
            running[group] -= 1
            served[ctx.context.tenant_id] += 1

        for number in range(100):
            for tenant, groups in (("many", 15), ("few", 5)):
                for group in range(groups):
                    body = {"order_id": f"{tenant}-{group}-{number}", "seconds": 0.05}
                    world.send(body, tenant=tenant, queue="orders.fifo", group=f"{tenant}-{group}")
        async with orders:
            await asyncio.sleep(4)
            return served.copy()

    served = in_world(scenario)
    assert 0.9 <= served["few"] / served["many"] <= 1.1
    assert served.total() >= 0.9 * 4 * 4 / 0.05


@pytest.mark.parametrize("seed", range(3))
@with_world
async def test_every_group_keeps_its_order_under_failures(world: World, seed: int) -> None:
    """Handlers fail at random; nothing of a group is done before what was sent before it, and all is done once."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    rng = Random(seed)
    orders = Consumer(
        "orders.fifo",
        context=Tenant,
        concurrency=Concurrency(total=6, per_tenant=3),
        retry=RetryPolicy(base=0.5, cap=1),
        client=world.client,
    )
    done: dict[str, list[int]] = defaultdict(list)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(rng.uniform(0, 0.2))
        if rng.random() < 0.3:
            raise ValueError
        done[ctx.message.group_id or ""].append(int(order.order_id.partition("-")[2]))

    for number in range(12):
        for group in range(9):
            body = {"order_id": f"{group}-{number}"}
            world.send(body, tenant="abc"[group % 3], queue="orders.fifo", group=f"g{group}")
    async with orders:
        await asyncio.sleep(400)
    assert world.counts("orders.fifo") == (0, 0)
    assert len(done) == 9
    assert all(numbers == list(range(12)) for numbers in done.values())


@with_world
async def test_a_paused_tenant_with_many_groups_takes_no_room_from_others(world: World) -> None:
    """Its 400 groups are held in their order; what another tenant sends is handled at once."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    orders = Consumer("orders.fifo", context=Tenant, concurrency=Concurrency(total=10), client=world.client)
    done: list[str] = []
    handled = asyncio.Event()

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        done.append(order.order_id)
        handled.set()

    async with orders:
        orders.tenants.pause(Tenant("paused"))
        for number in range(2):
            for group in range(400):
                body = {"order_id": f"{group}-{number}"}
                world.send(body, tenant="paused", queue="orders.fifo", group=str(group))
        await asyncio.sleep(30)
        world.send({"order_id": "other"}, tenant="other", queue="orders.fifo", group="other")
        sent = asyncio.get_running_loop().time()
        async with asyncio.timeout(60):
            await handled.wait()
        waited = asyncio.get_running_loop().time() - sent
        first = done.copy()
        orders.tenants.resume(Tenant("paused"))
        await asyncio.sleep(60)
    assert first == ["other"]
    groups: dict[str, list[str]] = defaultdict(list)
    for name in done[1:]:
        groups[name.partition("-")[0]].append(name)
    assert len(groups) == 400
    assert all(names == sorted(names) for names in groups.values())
    assert waited < 1.0


@with_world
async def test_bodies_of_a_paused_tenant_that_take_all_the_memory_are_told_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its groups cannot be deferred. The log says once why nothing is received; a resume ends it."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    orders = Consumer("orders.fifo", context=Tenant, polling=Polling(memory=1_048_576), client=world.client)
    done: list[str] = []

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        done.append(order.order_id)

    async with orders:
        orders.tenants.pause(Tenant("paused"))
        for group in range(30):
            body = {"order_id": str(group), "filling": "x" * 100_000}
            world.send(body, tenant="paused", queue="orders.fifo", group=str(group))
        await asyncio.sleep(30)
        assert done == []
        orders.tenants.resume(Tenant("paused"))
        await asyncio.sleep(30)
    assert len(done) == 30
    said = [line for line in caplog.messages if line.startswith("Nothing is received any longer")]
    assert len(said) == 1
    assert "30 messages of tenants that cannot run now take all the room" in said[0]
    assert "30 of them are of tenant paused:eu-west-1: resume it, or divert it" in said[0]


@with_world
async def test_nothing_of_a_group_overtakes_a_message_that_is_lost_in_an_outage(world: World) -> None:
    """Its handler ignores that it is cancelled, and then meets the outage of its tenant's database."""

    class Cut(Exception):
        sqlstate = "57P01"

    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    orders: Consumer[Tenant, Database] = Consumer(
        "orders.fifo",
        context=Tenant,
        resources=Databases(),
        visibility=lambda call: Visibility(heartbeat="second" in call.message.body),
        client=world.client,
    )
    started: list[str] = []

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        started.append(order.order_id)
        if len(started) == 1:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                raise Cut from None

    for name in ("first", "second"):
        world.send({"order_id": name}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(300)
    assert started == ["first", "first", "second"]
