"""What searching schedules has found, each told once more as an example. docs/proof.md names the seeds."""

import asyncio
import math
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from postroom import (
    AckMode,
    Concurrency,
    Consumer,
    Failure,
    Faults,
    MessageContext,
    Polling,
    Reject,
    ResourcePool,
    RetryPolicy,
    Visibility,
)
from postroom.consumer.engine import Engine
from postroom.message import Message, OutgoingMessage
from postroom.testing.faults import ClientFaults, FaultyClient, FaultyQueue
from postroom.transports.memory import MemoryQueue
from postroom.transports.protocol import EntryFailure, SendResult
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world


class NoDeadLetters(FaultyClient):
    """A client with a dead-letter queue that takes nothing until it is told to."""

    takes = False

    async def queue(self, name: str) -> FaultyQueue:
        """Open a queue; one named ``dead`` refuses what is sent to it."""
        queue = await super().queue(name)
        if queue.info.name == "dead":
            accept = queue.send

            async def send(messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
                if self.takes:
                    return await accept(messages)
                return [EntryFailure(index, "InternalError") for index, _ in enumerate(messages)]

            vars(queue)["send"] = send
        return queue


@with_world
async def test_what_is_still_being_resolved_goes_back_with_its_group(world: World) -> None:
    """S8: a message fails while an async resolver works on those behind it; none of them overtakes it."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    done: list[str] = []

    async def resolve(message: Message) -> Tenant:
        await asyncio.sleep(0.3)
        return Tenant(message.attributes["tenantId"])

    orders: Consumer[Tenant] = Consumer(
        "orders.fifo", context=resolve, retry=RetryPolicy(base=2, jitter=0), client=world.client
    )

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        if order.order_id == "0" and ctx.message.receive_count < 3:
            raise RuntimeError
        done.append(order.order_id)

    for number in range(4):
        world.send({"order_id": str(number)}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(60)
    assert world.counts("orders.fifo") == (0, 0)
    assert done == ["0", "1", "2", "3"]


def test_a_stop_in_the_instant_of_an_arrival_returns_what_is_not_resolved() -> None:
    """S7: whether the task that resolves the contexts has begun or not, its messages go back."""

    async def scenario(world: World) -> tuple[int, int]:
        world.create()

        async def resolve(message: Message) -> Tenant:
            await asyncio.Event().wait()
            raise AssertionError("not reached")

        async def unused(order: Order, ctx: MessageContext[Tenant]) -> None:
            raise AssertionError("not reached")

        orders: Consumer[Tenant] = Consumer("orders", context=resolve, client=world.client)
        orders.handler(unused)
        world.send_orders("1", "2")
        async with orders:
            while not orders.statistics().received:
                await asyncio.sleep(0)
        return world.counts()

    for seed in range(20):
        assert in_world(scenario, seed=seed) == (2, 0)


def test_polling_goes_on_when_the_second_poller_took_the_last_room() -> None:
    """Two pollers, room for one message: whichever receive ends with nothing, a poller asks again."""

    async def scenario(world: World) -> int:
        world.create(VisibilityTimeout="5")
        faulty = FaultyClient(world.client, Random(7), ClientFaults(latency=0.4, unavailable=0.2))
        orders: Consumer[Tenant] = Consumer(
            "orders",
            context=Tenant,
            client=faulty,
            concurrency=Concurrency(total=1, per_tenant=1),
            polling=Polling(wait=1, batch=1, pollers=2, prefetch=0),
        )
        done: list[str] = []

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
            done.append(order.order_id)

        async with orders:
            for number in range(30):
                world.send_orders(str(number))
                await asyncio.sleep(number % 4)
            await asyncio.sleep(100)
        return len(set(done))

    for seed in range(10):
        assert in_world(scenario, seed=seed) == 30


@with_world
async def test_a_reject_that_the_dead_letter_queue_does_not_take_is_no_reason_to_delete(world: World) -> None:
    """S2: neither handled nor a dead letter, so it comes back, with ALWAYS as well."""
    world.create(dead_letters="dead")
    client = NoDeadLetters(world.client, Random(1))
    orders: Consumer[Any] = Consumer("orders", context=Tenant, ack=AckMode.ALWAYS, client=client)

    @orders.handler
    async def refuse(order: Order, ctx: MessageContext[Any]) -> None:
        raise Reject("no such product")

    world.send_orders("1")
    async with orders:
        await asyncio.sleep(0.5)
        before = world.counts()
        client.takes = True
        await asyncio.sleep(20)
    assert (before, world.counts(), world.counts("dead")) == ((0, 1), (0, 0), (1, 0))


@with_world
async def test_a_stop_during_on_error_returns_the_message_at_once(world: World) -> None:
    """S7: the decision that on_error was about to influence is not lost with it."""
    world.create()

    async def slow(_failure: Failure) -> None:
        await asyncio.Event().wait()

    orders: Consumer[Tenant] = Consumer("orders", context=Tenant, on_error=slow, client=world.client)

    @orders.handler
    async def unused(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise AssertionError("not reached")

    world.send("not an order")
    async with orders:
        await asyncio.sleep(1)
    assert world.counts() == (1, 0)


@with_world
async def test_a_tenant_whose_pause_is_over_waits_for_a_slot_without_spinning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every slot is busy when its next turn comes: nothing is looked at again until one is free."""
    dispatch = Engine.dispatch
    looks = 0

    def count(self: Engine, now: float | None = None) -> None:
        nonlocal looks
        looks += 1
        assert looks < 500, "it spins"
        dispatch(self, now)

    monkeypatch.setattr(Engine, "dispatch", count)
    world.create()
    done: list[str] = []
    orders = Consumer("orders", context=Tenant, concurrency=Concurrency(total=1), client=world.client)
    orders.tenants.limit(Tenant("a"), rate=1.0)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(order.seconds)
        done.append(order.order_id)

    async with orders:
        world.send_orders("1", "2", tenant="a")
        await asyncio.sleep(0.5)
        world.send_orders("slow", tenant="b", seconds=10)
        await asyncio.sleep(20)
    assert done == ["1", "slow", "2"]


@pytest.mark.parametrize("mode", AckMode)
@with_world
async def test_quarantine_without_a_dead_letter_queue_deletes_nothing(world: World, mode: AckMode) -> None:
    """Its handler was not called: in every mode the message is still there when the tenant is resumed, untried."""
    world.create()
    done: list[tuple[str, int]] = []
    orders = Consumer("orders", context=Tenant, ack=mode, client=world.client)
    orders.tenants.quarantine(Tenant("a"))

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        done.append((order.order_id, ctx.attempt))

    async with orders:
        world.send_orders("1", tenant="a")
        await asyncio.sleep(60)
        assert not done
        orders.tenants.resume(Tenant("a"))
        await asyncio.sleep(1000)
    assert done[0] == ("1", 1)


@with_world
async def test_a_decision_about_a_broken_tenant_ends_neither_its_pause_nor_its_probe(world: World) -> None:
    """While its breaker is open, limits come and go: nothing starts early, and nothing beside the probe."""
    world.create()
    starts: list[float] = []
    running = most = 0
    options = Faults(breaker_after=2, messages=1, base=20, cap=20, poison_after=None)
    orders = Consumer("orders", context=Tenant, faults=options, client=world.client)
    loop = asyncio.get_running_loop()
    began = loop.time()

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        nonlocal running, most
        running += 1
        starts.append(loop.time() - began)
        if starts[-1] > 1:
            most = max(most, running)
        await asyncio.sleep(order.seconds if starts[-1] < 1 else 10)
        running -= 1
        raise ValueError

    world.send_orders("1", "2", tenant="a")
    async with orders:
        await asyncio.sleep(0.5)
        world.send_orders(*map(str, range(3, 12)), tenant="a")
        for second in range(28):  # the second probe cannot begin before the 30th
            await asyncio.sleep(1)
            orders.tenants.limit(Tenant("a"), concurrency=None if second % 2 else 9)
    assert starts[2] >= 10
    assert (len(starts), most) == (3, 1)


@with_world
async def test_a_late_failure_starts_no_second_probe(world: World) -> None:
    """What ran when the breaker opened was counted then; its end, long after, decides nothing."""
    world.create()
    probes = most = 0
    options = Faults(breaker_after=2, messages=2, base=4, cap=4, poison_after=None)
    orders = Consumer("orders", context=Tenant, faults=options, client=world.client)
    loop = asyncio.get_running_loop()
    began = loop.time()

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        nonlocal probes, most
        probe = loop.time() > began + 1
        probes += probe
        most = max(most, probes)
        await asyncio.sleep(12 if probe else order.seconds)
        probes -= probe
        raise ValueError

    world.send_orders("slow", tenant="a", seconds=6)
    world.send_orders(*map(str, range(20)), tenant="a", seconds=0.1)
    async with orders:
        await asyncio.sleep(40)
    assert most == 1


@with_world
async def test_a_tenant_in_quarantine_starts_nothing_that_waited_for_its_resources(world: World) -> None:
    """The decision came while they were opened: the handler is not called."""
    world.create(dead_letters="dead")
    databases = Databases()
    databases.seconds = 5
    done: list[str] = []
    orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        done.append(order.order_id)

    world.send_orders("1", tenant="a")
    async with orders:
        await asyncio.sleep(1)
        orders.tenants.quarantine(Tenant("a"))
        await asyncio.sleep(10)
    assert (done, world.counts("dead")) == ([], (1, 0))


@with_world
async def test_nothing_begins_to_wait_for_its_resources_while_it_stops(world: World) -> None:
    """S7: one waits for its tenant's resources, one behind it, and a third is being resolved: all go back at once."""
    world.create()
    databases = Databases()
    databases.hanging.add("a")

    async def resolve(message: Message) -> Tenant:
        try:
            await asyncio.sleep(20 if "slow" in message.body else 0)
        finally:
            await asyncio.sleep(0.1)
        return Tenant("a")

    orders = Consumer(
        "orders",
        context=resolve,
        resources=databases,
        concurrency=Concurrency(total=1),
        client=world.client,
    )

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        pytest.fail("its database is never there")

    world.send_orders("1", "2", tenant="a")
    async with orders:
        await asyncio.sleep(1)
        world.send_orders("slow", tenant="a")
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
    seconds, counts = asyncio.get_running_loop().time() - began, world.counts()
    assert seconds < 3
    assert counts == (3, 0)


@with_world
async def test_what_makes_room_with_its_group_may_be_nobodys(world: World) -> None:
    """FIFO: a message without a tenant stands behind one that makes room: both are deferred, and nothing raises."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    databases = Databases()
    databases.hanging.add("a")
    orders = Consumer(
        "orders.fifo",
        context=Tenant,
        resources=ResourcePool(databases, host=lambda tenant: tenant.tenant_id),
        concurrency=Concurrency(total=1),
        polling=Polling(prefetch=10, lane=1),
        client=world.client,
    )

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        ctx.resources.write(order.order_id)

    for number, group in enumerate(("first", "second")):
        world.send({"order_id": str(number)}, queue="orders.fifo", group=group)
    world.send({"order_id": "nobody's"}, tenant=None, queue="orders.fifo", group="second")
    async with orders:
        await asyncio.sleep(1)
        databases.hanging.clear()
        await asyncio.sleep(60)
    rows, counts = sorted(databases.rows("a")), world.counts("orders.fifo")
    assert rows == ["0", "1"]
    assert sum(counts) == 1


@with_world
async def test_a_group_stays_in_order_over_two_receives(world: World) -> None:
    """FIFO: the first receive's message is still being resolved, and visible again, when the second brings the next."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    started: list[str] = []

    async def resolve(message: Message) -> Tenant:
        await asyncio.sleep(5 if "first" in message.body else 0)
        return Tenant("a")

    orders: Consumer[Tenant] = Consumer("orders.fifo", context=resolve, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        started.append(order.order_id)

    world.send({"order_id": "first"}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(1)
        world.send({"order_id": "second"}, queue="orders.fifo", group="g")
        [stored] = [each for each in world.broker.queue("orders.fifo").messages.values() if each.receives]
        handle = world.broker.queue("orders.fifo").handles.make(stored)
        world.broker.change_visibility("orders.fifo", handle, 0)
        await asyncio.sleep(20)
    assert started == ["first", "second"]


@with_world
async def test_a_message_that_is_lost_leaves_its_room_to_others(world: World) -> None:
    """All the room is taken and no handler ends: once what waits is lost, the pollers look for more."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    orders: Consumer[Tenant] = Consumer(
        "orders.fifo",
        context=Tenant,
        concurrency=Concurrency(total=1),
        polling=Polling(prefetch=1, batch=1, pollers=1),
        visibility=lambda call: Visibility(heartbeat="waits" not in call.message.body),
        client=world.client,
    )

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(order.seconds)

    async with orders:
        world.send({"order_id": "runs", "seconds": 1000}, tenant="runs", queue="orders.fifo", group="1")
        await asyncio.sleep(1)
        world.send({"order_id": "waits"}, tenant="waits", queue="orders.fifo", group="2")
        await asyncio.sleep(3)
        seen = [world.counts("orders.fifo")]
        await asyncio.sleep(70)  # it has been lost after a minute, and received again
        assert [*seen, world.counts("orders.fifo")] == [(0, 2)] * 2


@pytest.mark.parametrize(("resolves_in", "end"), [(3, (["1"], 0)), (60, ([], 1))])
@with_world
async def test_a_stop_waits_for_the_context_of_a_message_at_its_last_receive(
    world: World, resolves_in: float, end: tuple[list[str], int]
) -> None:
    """It is handled while the stop drains; if that is too short, it is a dead letter with a reason, not lost."""
    world.create(dead_letters="dead", receives=1)

    async def resolve(message: Message) -> Tenant:
        await asyncio.sleep(resolves_in)
        return Tenant("a")

    orders: Consumer[Tenant] = Consumer("orders", context=resolve, client=world.client)
    done: list[str] = []

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        done.append(order.order_id)

    world.send_orders("1")
    async with orders:
        while not orders.statistics().received:
            await asyncio.sleep(0)
    assert world.counts() == (0, 0)
    assert (done, world.counts("dead")[0]) == end


@with_world
async def test_what_a_poll_brings_during_a_stop_is_not_left_behind_an_async_resolver(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S7: at its last receive it waits for its context until the handlers end, and then it is a dead letter."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    world.create(dead_letters="dead", receives=1)

    async def resolve(message: Message) -> Tenant:
        await (asyncio.Event().wait() if "late" in message.body else asyncio.sleep(0))
        return Tenant("a")

    orders: Consumer[Tenant] = Consumer("orders", context=resolve, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(order.seconds)

    world.send_orders("runs", seconds=5)
    async with orders:
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_later(1, world.send_orders, "late")  # while the stop waits
    assert (world.counts()[1], world.counts("dead")[0]) == (0, 1)


@with_world
async def test_a_resolver_that_ignores_its_cancellation_does_not_keep_a_stop(world: World) -> None:
    """Its message goes back at once, and the stop goes on after a second."""
    world.create()
    loop = asyncio.get_running_loop()
    release = asyncio.Event()

    async def resolve(message: Message) -> Tenant:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Tenant("a")

    orders: Consumer[Tenant] = Consumer("orders", context=resolve, client=world.client)

    @orders.handler
    async def unused(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise AssertionError("not reached")

    world.send_orders("1")
    async with orders:
        while not orders.statistics().received:
            await asyncio.sleep(0)
        began = loop.time()
    seen = world.counts(), loop.time() - began < 10
    release.set()
    await asyncio.sleep(1)
    assert seen == ((1, 0), True)


@with_world
async def test_a_stop_gives_back_at_once_what_is_hardly_ours_any_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 890030256: its visibility timeout was over meanwhile, and it came to a poll of the same consumer."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    world.create()
    orders: Consumer[Tenant] = Consumer(
        "orders", context=Tenant, visibility=Visibility(timeout=3, heartbeat=False), client=world.client
    )

    @orders.handler
    async def unused(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise AssertionError("not reached")

    seen: list[int] = []
    world.send_orders("waits", tenant="a")
    async with orders:
        orders.tenants.pause(Tenant("a"), reason="for a test")
        await asyncio.sleep(2.6)
        asyncio.get_running_loop().call_later(0.2, lambda: seen.append(sum(orders.statistics().settled.values())))
    assert seen == [1]


def test_what_is_behind_a_lost_message_of_its_group_does_not_cost_a_later_receive() -> None:
    """Two of a group wait behind a third. Both are lost, and both come back: they run, and nothing is returned."""

    async def scenario(world: World) -> tuple[list[str], int]:
        world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
        orders: Consumer[Tenant] = Consumer(
            "orders.fifo",
            context=Tenant,
            visibility=lambda call: Visibility(heartbeat="first" in call.message.body),
            client=world.client,
        )
        started: list[str] = []

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
            started.append(order.order_id)
            if order.order_id == "first":
                await asyncio.sleep(70)  # longer than the visibility timeout of the others
                await ctx.ack()
                await asyncio.sleep(5)  # SQS gives out the others again

        for name in ("first", "second", "third"):
            world.send({"order_id": name}, queue="orders.fifo", group="g")
        async with orders:
            await asyncio.sleep(120)
            return started, orders.statistics().received

    assert in_world(scenario) == (["first", "second", "third"], 5)
