"""A queue has a limit of messages in flight, for all its consumers together: parking does not use it up."""

import asyncio
import logging
from unittest import mock

import pytest

from postroom import Concurrency, Consumer, MessageContext, Polling, Shutdown
from postroom.consumer import facts
from simulation.fairness.model import FarClient
from support.world import Order, Tenant, World, in_world, with_world

LIMIT = 600


def noisy_consumer(world: World, *, wait: float, pollers: int = 4) -> Consumer[Tenant]:
    """Make a consumer with handlers that take so long that it can only park what it finds."""
    orders: Consumer[Tenant] = Consumer(
        "orders",
        context=Tenant,
        client=FarClient(world.client, 0.05),
        concurrency=Concurrency(total=4, per_tenant=4),
        polling=Polling(wait=wait, pollers=pollers, scout="always"),
        shutdown=Shutdown(drain=0, cancel=1, flush=1, poll=0),
    )

    @orders.handler
    async def work(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(order.seconds)

    return orders


def test_parking_stops_far_from_the_limit_whichever_consumer_fills_it() -> None:
    """Three consumers that would each have parked half of what is allowed; a quiet tenant is still served."""

    async def scenario(world: World) -> tuple[int, list[str | None], int]:
        world.create()
        for number in range(5_000):
            world.send_orders(str(number), tenant="noisy", seconds=60, group="noisy")
        consumers = [noisy_consumer(world, wait=20) for _ in range(3)]
        most = 0
        async with consumers[0], consumers[1], consumers[2]:
            for _ in range(300):
                await asyncio.sleep(0.1)
                most = max(most, world.counts()[1])
            reasons = [orders.statistics().scouting_stopped for orders in consumers]
            world.broker.purge("orders")
        return most, reasons, sum(orders.statistics().parked for orders in consumers)

    with (
        mock.patch.multiple(facts, LIMIT=LIMIT, ENOUGH=200, _MANY=20),
        mock.patch("postroom.local.delivery.MAX_IN_FLIGHT", LIMIT),
    ):
        most, reasons, parked = in_world(scenario)
    assert 200 <= most < LIMIT
    assert parked > 50
    assert any(reason is not None and "in flight in the queue" in reason for reason in reasons)


def test_a_receive_that_is_refused_for_the_limit_ends_parking_for_a_while_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Short polls fail with OverLimit. The consumer goes on when messages have ended."""

    async def scenario(world: World) -> tuple[str | None, int]:
        world.create()
        orders = noisy_consumer(world, wait=0)
        other = noisy_consumer(world, wait=0)
        world.send_orders(*map(str, range(60)), tenant="noisy", seconds=3)
        async with orders, other:
            await asyncio.sleep(8)
            reason = orders.statistics().scouting_stopped or other.statistics().scouting_stopped
            await asyncio.sleep(120)
        return reason, orders.statistics().succeeded + other.statistics().succeeded

    with mock.patch("postroom.local.delivery.MAX_IN_FLIGHT", 20), caplog.at_level(logging.WARNING):
        reason, done = in_world(scenario)
    assert reason is not None
    assert "refused a receive" in reason
    assert done == 60
    assert 1 <= sum("too many messages in flight" in line for line in caplog.messages) <= 4


def test_a_limit_that_is_reached_for_minutes_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line for one state, however long each receive is refused."""

    async def scenario(world: World) -> None:
        world.create()
        world.send_orders(*map(str, range(12)), tenant="noisy", seconds=400)
        async with noisy_consumer(world, wait=0, pollers=1):
            await asyncio.sleep(300)

    with mock.patch("postroom.local.delivery.MAX_IN_FLIGHT", 5), caplog.at_level(logging.WARNING):
        in_world(scenario)
    assert sum("too many messages in flight" in line for line in caplog.messages) == 1


@with_world
async def test_the_attributes_are_not_asked_for_in_a_quiet_minute(world: World) -> None:
    """The attributes cost a call: a quiet consumer makes none."""
    world.create()
    orders = noisy_consumer(world, wait=20)
    world.send_orders(*map(str, range(20)), seconds=0.1)
    with mock.patch.object(facts.QueueFacts, "_ask", side_effect=AssertionError) as asked:
        async with orders:
            await asyncio.sleep(60)
    assert asked.call_count == 0
