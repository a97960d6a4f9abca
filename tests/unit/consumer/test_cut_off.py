"""What cuts a handler off is no failure of it, whatever its libraries make of that; what it does to itself is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from postroom import AckMode, Consumer, MessageContext, OwnershipLost, RetryPolicy, Shutdown, Visibility
from postroom.message import Message
from support.world import Order, Tenant, World, with_world

Ctx = MessageContext[Tenant]


async def translate() -> None:
    """Make a driver's error of a cancellation."""
    try:
        await asyncio.sleep(1_000)
    except asyncio.CancelledError:
        raise ConnectionError("connection lost in the middle of a query") from None


async def fail_in_a_group() -> None:
    """Have the clean-up of a task group fail."""
    async with asyncio.TaskGroup() as group:
        group.create_task(translate())
        await asyncio.sleep(1_000)


async def fail_later() -> None:
    """Note the cancellation, and fail for it after that."""
    cut_off = False
    try:
        await asyncio.sleep(1_000)
    except asyncio.CancelledError:
        cut_off = True
    if cut_off:
        raise ValueError("half done")


async def cancel_itself() -> None:
    """Do what an old library for time limits does."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


@pytest.mark.parametrize("ack", [AckMode.ON_SUCCESS, AckMode.ALWAYS])
@pytest.mark.parametrize("work", [translate, fail_in_a_group, fail_later])
@with_world
async def test_a_handler_that_a_stop_cuts_off_has_not_failed(
    world: World, work: Callable[[], Awaitable[None]], ack: AckMode, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message goes back: it is neither a dead letter after its only attempt, nor deleted. The log has the error."""
    told: list[object] = []
    world.create(dead_letters="dead", receives=5)
    more: dict[str, Any] = {"retry": RetryPolicy(attempts=1), "shutdown": Shutdown(drain=1), "ack": ack}
    orders = Consumer("orders", context=Tenant, client=world.client, on_error=told.append, **more)

    @orders.handler
    async def handle(_order: Order, _ctx: Ctx) -> None:
        await work()

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(1)
    await asyncio.sleep(2)
    assert (world.counts(), world.counts("dead")) == ((1, 0), (0, 0))
    assert told == []
    (line,) = [text for text in caplog.messages if "was cut off, and ended with" in text]
    assert "of tenant a" in line


@with_world
async def test_a_lost_message_has_had_no_attempt(world: World) -> None:
    """Its handler was cut off: its next run is the first attempt."""
    world.create(dead_letters="dead", receives=5)
    more: dict[str, Any] = {"retry": RetryPolicy(attempts=1), "visibility": Visibility(timeout=5, heartbeat=False)}
    orders = Consumer("orders", context=Tenant, client=world.client, **more)
    attempts: list[int] = []

    @orders.handler
    async def handle(_order: Order, ctx: Ctx) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            await translate()

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(30)
    assert attempts == [1, 1]


@with_world
async def test_a_handler_has_failed_that_lets_out_the_loss_of_another_message(world: World) -> None:
    """Its own message is ours: it has its attempts and its backoff, and ends with the reason."""
    calls: list[int] = []
    world.create(dead_letters="dead", receives=9)
    orders = Consumer("orders", context=Tenant, client=world.client, retry=RetryPolicy(attempts=2, base=1, cap=1))

    @orders.handler
    async def handle(_order: Order, ctx: Ctx) -> None:
        calls.append(ctx.attempt)
        raise OwnershipLost("of a context that was kept", message_id="another")

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(10)
    assert calls == [1, 2]
    [letter] = await world.broker.receive("dead")
    assert "2 failed attempts, the last one with OwnershipLost" in str(letter.message_attributes)


@with_world
async def test_a_handler_that_cancels_itself_has_failed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """As with any other error: counted, told, and seen again after the backoff."""
    told: list[object] = []
    world.create()
    more: dict[str, Any] = {"retry": RetryPolicy(base=2, jitter=0), "on_error": told.append}
    orders = Consumer("orders", context=Tenant, client=world.client, **more)
    runs = 0

    @orders.handler
    async def handle(_order: Order, _ctx: Ctx) -> None:
        nonlocal runs
        runs += 1
        await cancel_itself()

    async with orders:
        world.send_orders("1", "2", "3")
        await asyncio.sleep(5)
    assert runs == len(told) == 6
    assert "raised CancelledError of its own" in caplog.text


@with_world
async def test_a_resolver_that_cancels_itself_fails_for_its_message(world: World) -> None:
    """It ends neither the consumer nor other messages."""

    async def resolve(message: Message) -> Tenant:
        if message.attributes["tenantId"] == "bad":
            await cancel_itself()
        return Tenant(message.attributes["tenantId"])

    world.create()
    orders: Consumer[Tenant, None] = Consumer("orders", context=resolve, client=world.client)
    done: list[str] = []

    @orders.handler
    async def handle(_order: Order, ctx: Ctx) -> None:
        done.append(ctx.context.tenant_id)

    async with orders:
        world.send_orders("1", tenant="bad")
        await asyncio.sleep(1)
        world.send_orders("2", tenant="good")
        await asyncio.sleep(1)
    assert done == ["good"]


@with_world
async def test_handlers_that_are_cancelled_with_the_whole_program_have_not_failed(world: World) -> None:
    """As by ``asyncio.run`` when the main coroutine ends without a stop."""
    told: list[object] = []
    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client, ack=AckMode.ALWAYS, on_error=told.append)

    @orders.handler
    async def handle(_order: Order, _ctx: Ctx) -> None:
        await asyncio.sleep(1_000)

    await orders.__aenter__()
    world.send_orders("1")
    await asyncio.sleep(1)
    mine = asyncio.current_task()
    for task in asyncio.all_tasks() - {mine}:
        task.cancel()
    await asyncio.sleep(1)
    assert world.counts() in {(1, 0), (0, 1)}
    assert told == []
