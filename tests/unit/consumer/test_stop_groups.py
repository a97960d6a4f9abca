"""A stop and message groups, and what it says of what it cuts off."""

import asyncio
import logging
import math
from typing import Any

import pytest

from postroom import Consumer, MessageContext, Polling, Shutdown
from postroom.message import Message
from postroom.transports.memory import MemoryQueue
from support.world import Order, Tenant, World, in_world, with_world


def fifo(world: World, receives: int) -> None:
    """Make a FIFO queue and its dead-letter queue."""
    world.create("dead.fifo", FifoQueue="true")
    arn = world.broker.attributes("dead.fifo")["QueueArn"]
    policy = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "{receives}"}}'
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true", RedrivePolicy=policy)


async def receive_once(world: World, visibility: float) -> None:
    """Spend a receive of what is there, as a consumer does that dies."""
    async with world.client as client:
        await (await client.queue("orders.fifo")).receive(limit=10, wait=0, visibility=visibility)


def resolving(world: World, seconds: float, done: list[str]) -> Consumer[Any, Any]:
    """Make a consumer with a resolver that takes a while."""

    async def context(_message: Message) -> Tenant:
        await asyncio.sleep(seconds)
        return Tenant("t")

    more: dict[str, Any] = {"polling": Polling(pollers=1, wait=20)}
    orders: Consumer[Any, Any] = Consumer("orders.fifo", context=context, client=world.client, **more)

    @orders.handler
    async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
        done.append(order.order_id)

    return orders


@with_world
async def test_what_goes_back_at_a_resolver_leaves_what_is_before_it_in_its_group(world: World) -> None:
    """The first is at its last receive, and starts in the drain; the second goes back."""
    fifo(world, receives=2)
    done: list[str] = []
    world.send({"order_id": "last"}, queue="orders.fifo", group="g")
    await receive_once(world, visibility=1)
    await asyncio.sleep(2)
    world.send({"order_id": "fresh"}, queue="orders.fifo", group="g")
    async with resolving(world, 1.0, done):
        await asyncio.sleep(0.5)
    assert done == ["last"]
    assert (sum(world.counts("orders.fifo")), world.counts("dead.fifo")) == (1, (0, 0))


@with_world
async def test_the_last_receive_that_a_poll_brings_starts_with_others_of_its_group_behind(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with a resolver that takes a while."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    fifo(world, receives=2)
    done: list[str] = []
    world.send({"order_id": "last"}, queue="orders.fifo", group="g")
    await receive_once(world, visibility=6)
    world.send({"order_id": "fresh"}, queue="orders.fifo", group="g")
    async with resolving(world, 0.1, done):
        await asyncio.sleep(5)
    assert done == ["last"]
    assert (sum(world.counts("orders.fifo")), world.counts("dead.fifo")) == (1, (0, 0))


@pytest.mark.parametrize("seconds", [0.5, 3.0, 4.5])
@with_world
async def test_what_the_last_acknowledgement_of_a_stop_lets_a_poll_bring_is_handled(
    world: World, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where polls have had their time: the next one of the group is at its last receive, and was never tried."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    fifo(world, receives=1)
    done: list[str] = []
    orders = Consumer(
        "orders.fifo",
        context=Tenant,
        client=world.client,
        polling=Polling(pollers=2, wait=20, batch=1),
        shutdown=Shutdown(drain=10),
    )

    @orders.handler
    async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(seconds)
        done.append(order.order_id)

    for order_id in ("first", "next"):
        world.send({"order_id": order_id}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(0.1)
    assert done == ["first", "next"]
    assert (world.counts("orders.fifo"), world.counts("dead.fifo")) == ((0, 0), (0, 0))


@with_world
async def test_what_is_resolved_behind_a_message_that_came_again_costs_no_receive(world: World) -> None:
    """Its handler asked for a retry and went on; the message came again, and another one behind it."""
    fifo(world, receives=5)
    seen: list[tuple[str, int]] = []

    async def context(message: Message) -> Tenant:
        await asyncio.sleep(5 if "behind" in message.body else 0)
        return Tenant("t")

    orders: Consumer[Any, Any] = Consumer("orders.fifo", context=context, client=world.client)

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append((order.order_id, ctx.message.receive_count))
        if len(seen) == 1:
            await ctx.retry(delay=1)
            await asyncio.sleep(4)

    world.send({"order_id": "first"}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(0.5)
        world.send({"order_id": "behind"}, queue="orders.fifo", group="g")
        await asyncio.sleep(60)
    assert seen == [("first", 1), ("first", 2), ("behind", 1)]


@pytest.mark.parametrize(
    ("receives", "acks", "line", "reason"),
    [
        (
            1,
            False,
            ": unless it still ends well, its message becomes a dead letter",
            "the consumer stopped, at its last receive, in the middle of its handler",
        ),
        (5, False, ": unless it still ends well, its message is handled again", None),
        (5, True, ": its message is acked already", None),
    ],
)
@with_world
async def test_a_cancelled_handler_and_its_message_are_told_as_they_are(
    world: World, receives: int, *, acks: bool, line: str, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing goes back that was acknowledged, and what ran for a while was tried."""
    world.create(dead_letters="dead", receives=receives)
    orders = Consumer("orders", context=Tenant, client=world.client, shutdown=Shutdown(drain=2))

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Tenant]) -> None:
        if acks:
            await ctx.ack()
        await asyncio.sleep(1_000)

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(5)
    async with world.client as client:
        letters = await (await client.queue("dead")).receive(limit=10, wait=0, visibility=1)
    assert [letter.message_attributes["postroom.reason"].string_value or "" for letter in letters] == (
        [] if reason is None else [reason]
    )
    (told,) = [each for each in caplog.messages if each.startswith("Cancelled the handler")]
    assert "(attempt 1, receive 1), at " in told
    assert told.endswith(f" in handle{line}")


def test_a_stop_says_that_it_waits_for_a_handler_that_began_during_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last poll brought a message at its last receive."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead", receives=1)
        orders = Consumer("orders", context=Tenant, client=world.client, polling=Polling(pollers=1, wait=20))

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
            await asyncio.sleep(order.seconds)

        async with orders:
            await asyncio.sleep(5)
            asyncio.get_running_loop().call_later(1.0, lambda: world.send_orders("last", seconds=8))

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    (said,) = [each for each in caplog.messages if each.startswith("Still stopping")]
    assert said == "Still stopping orders after 5 s: handlers finish, 8 s left; 1 handler (a:eu-west-1 1)"


@with_world
async def test_what_a_stop_gives_back_is_hidden_from_a_poll_that_is_overdue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transport asks a second time when its connection broke: that poll is out for longer than it asked for."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    once = MemoryQueue.receive

    async def twice(self: MemoryQueue, *, wait: float, **more: Any) -> list[Message]:
        return await once(self, wait=0.75 * wait, **more) or await once(self, wait=wait, **more)

    world.create()
    more: dict[str, Any] = {"polling": Polling(wait=4, pollers=2), "shutdown": Shutdown(drain=0.2, poll=2)}
    orders = Consumer("orders", context=Tenant, client=world.client, **more)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(1_000)

    monkeypatch.setattr(MemoryQueue, "receive", twice)
    async with orders:
        await asyncio.sleep(0.5)
        world.send_orders("1")  # one poll brings it; the other one began at 0, and is out until 7
        await asyncio.sleep(4.8)
    assert orders.statistics().received == 1


@with_world
async def test_what_a_handler_gives_back_during_a_stop_is_hidden_from_a_poll_that_is_out(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by ``ctx.retry``: SQS would serve it to that poll, here or where nothing listens any longer."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client, polling=Polling(wait=20))

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(1)
        await ctx.retry(delay=0)

    async with orders:
        await asyncio.sleep(1)
        world.send_orders("1")
        await asyncio.sleep(0.5)
    assert orders.statistics().received == 1
