"""What a stop and an outage of SQS do with a message at its last receive: one dead letter at most."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from postroom import AckMode, Concurrency, Consumer, MessageContext, Polling, ServiceUnavailable, Shutdown
from postroom.transports.memory import MemoryQueue
from support.world import Order, Tenant, World, in_world

Ctx = MessageContext[Tenant]
QUICK = Shutdown(poll=0.1, drain=0.5, cancel=0.5, flush=2)


def queue_with_one_receive(world: World) -> None:
    """Create a queue that makes a dead letter of what it handed out once."""
    arn = world.broker.create_queue("dead").arn
    world.create(RedrivePolicy=f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": 1}}')


def dead_letters_of_a_stop(work: Callable[[Ctx], Awaitable[object]], **options: Any) -> int:
    """Stop while a message is handled at its last receive, and return how many dead letters there are then."""

    async def scenario(world: World) -> int:
        queue_with_one_receive(world)
        orders = Consumer("orders", context=Tenant, client=world.client, shutdown=QUICK, **options)

        @orders.handler
        async def handle(_order: Order, ctx: Ctx) -> None:
            await work(ctx)

        async with orders:
            world.send_orders("1")
            await asyncio.sleep(1)
        await asyncio.sleep(60)
        return sum(world.counts("dead"))

    return in_world(scenario)


async def sleep_through(seconds: float, cancellations: int) -> None:
    """Sleep, and ignore some cancellations."""
    for _ in range(cancellations):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(seconds)
    await asyncio.sleep(seconds)


def test_what_was_acknowledged_by_hand_is_no_dead_letter() -> None:
    """Its handler goes on, and ignores that it is cancelled."""

    async def work(ctx: Ctx) -> None:
        await ctx.ack()
        await sleep_through(5, 1)

    assert dead_letters_of_a_stop(work, ack=AckMode.MANUAL) == 0


def test_a_handler_that_obeys_the_second_cancellation_makes_one_dead_letter() -> None:
    """The first one is on its way already."""
    assert dead_letters_of_a_stop(lambda _ctx: sleep_through(30, 1)) == 1


def test_an_outage_of_sqs_that_ends_in_time_makes_no_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message waits for a slot at its last receive. SQS is back 3 s before its visibility timeout is over."""

    async def scenario(world: World) -> tuple[list[str], int]:
        queue_with_one_receive(world)
        one = Concurrency(total=1)
        orders = Consumer("orders", context=Tenant, client=world.client, concurrency=one, polling=Polling(wait=1))
        handled: list[str] = []

        @orders.handler
        async def handle(order: Order, _ctx: Ctx) -> None:
            await asyncio.sleep(1 if handled else 80)
            handled.append(order.order_id)

        async def gone(*_arguments: object, **_options: object) -> Any:
            await asyncio.sleep(0.05)
            raise ServiceUnavailable("gone")

        async with orders:
            world.send_orders("1", "2")
            await asyncio.sleep(25)
            with monkeypatch.context() as patch:
                for call in ("receive", "change_visibility", "delete", "send"):
                    patch.setattr(MemoryQueue, call, gone)
                await asyncio.sleep(32)
            await asyncio.sleep(60)
        return handled, sum(world.counts("dead"))

    assert in_world(scenario) == (["1", "2"], 0)
