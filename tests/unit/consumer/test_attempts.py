"""``RetryPolicy(attempts=)``: as many attempts as were promised, however a handler says that it failed."""

import asyncio
from typing import Any

import pytest

from postroom import Consumer, Drop, Failure, Message, MessageContext, Retry, RetryPolicy, Shutdown
from support.world import Order, Tenant, World, with_world


@pytest.mark.parametrize("how", ["raises", "Retry", "on_error", "ctx.retry()", "ctx.retry() and raises"])
@with_world
async def test_a_message_gets_as_many_attempts_as_were_promised(world: World, how: str) -> None:
    """Then it is a dead letter with the reason, and tells how often it was tried."""
    world.create(dead_letters="dead", receives=20)
    seen: list[int] = []

    def on_error(failure: Failure) -> None:
        if how == "on_error":
            raise Retry(delay=1)

    retry = RetryPolicy(attempts=4, base=1, cap=1)
    orders: Consumer[Tenant] = Consumer("orders", context=Tenant, client=world.client, retry=retry, on_error=on_error)

    @orders.handler
    async def fails(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append(ctx.attempt)
        if how == "Retry":
            raise Retry(delay=1)
        if how.startswith("ctx.retry()"):
            await ctx.retry(delay=1)
        if how != "ctx.retry()":
            raise ValueError

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(120)
    [letter] = await world.broker.receive("dead")
    attributes: Any = letter.message_attributes
    reason, attempts = attributes["postroom.reason"].string_value, attributes["postroom.attempts"].string_value
    assert seen == [1, 2, 3, 4]
    assert str(reason).startswith("4 failed attempts")
    assert attempts == "4"


@with_world
async def test_what_a_stop_rejects_before_its_context_is_known_tells_how_often_it_was_tried(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reason and the attribute say the same, and so does the log."""
    world.create(dead_letters="dead", receives=2)
    asked = 0

    async def resolve(_message: Message) -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            await asyncio.sleep(3600)
        return "acme"

    retry = RetryPolicy(base=1, jitter=0)
    orders: Consumer[str] = Consumer(
        "orders", context=resolve, client=world.client, retry=retry, shutdown=Shutdown(drain=1)
    )

    @orders.handler
    async def fails(_order: Order, _ctx: MessageContext[str]) -> None:
        raise ValueError

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(5)
    [letter] = await world.broker.receive("dead")
    attributes: Any = letter.message_attributes
    reason, attempts = attributes["postroom.reason"].string_value, attributes["postroom.attempts"].string_value
    assert str(reason).endswith("at its last receive, after 1 failed attempt")
    assert attempts == "1"
    [line] = [each for each in caplog.messages if "was sent to the dead-letter queue" in each]
    assert " of a tenant that was not resolved was sent to the dead-letter queue (attempt 2, receive 2)" in line


@pytest.mark.parametrize("where", ["handler", "on_error"])
@with_world
async def test_a_message_can_be_dropped(world: World, where: str) -> None:
    """On a queue without a dead-letter queue what can never be handled would come back until it expires."""
    world.create()
    tries = 0

    def on_error(failure: Failure) -> None:
        if where == "on_error":
            raise Drop("not for us")

    orders: Consumer[Tenant] = Consumer("orders", context=Tenant, client=world.client, on_error=on_error)

    @orders.handler
    async def fails(order: Order, ctx: MessageContext[Tenant]) -> None:
        nonlocal tries
        tries += 1
        raise Drop("not for us") if where == "handler" else ValueError

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(60)
    assert (tries, world.counts()) == (1, (0, 0))
