"""Handlers that never end hold their slots in silence: the log tells of them, once, and of the end."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from postroom import Concurrency, Consumer, Failure, Message, MessageContext, Shutdown, Visibility
from support.world import Order, Tenant, World, in_world, with_world


def lines_of(
    caplog: pytest.LogCaptureFixture,
    story: Callable[[World, asyncio.Event], Awaitable[None]],
    *,
    seconds: Callable[[str], float] | None = None,
    total: int = 64,
) -> list[logging.LogRecord]:
    """Consume with handlers that wait for an event, or for seconds, and return what the log says of their length."""

    async def scenario(world: World) -> None:
        world.create()
        done = asyncio.Event()
        concurrency = Concurrency(total=total, per_tenant=min(total, 8))
        shutdown = Shutdown(drain=0, cancel=1)
        orders = Consumer("orders", context=Tenant, client=world.client, concurrency=concurrency, shutdown=shutdown)

        @orders.handler
        async def handle(_order: Order, ctx: MessageContext[Tenant, Any]) -> None:
            await (done.wait() if seconds is None else asyncio.sleep(seconds(ctx.context.tenant_id)))

        async with orders:
            await story(world, done)

    with caplog.at_level(logging.INFO, "postroom.consumer"):
        in_world(scenario)
    return [each for each in caplog.records if each.getMessage().startswith(("No handler of", "Handlers of"))]


def test_a_tenant_whose_handlers_hang_is_told_of_once_and_so_is_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """With its number of handlers, the first message, and what to do."""

    async def story(world: World, done: asyncio.Event) -> None:
        world.send_orders(*map(str, range(20)), tenant="acme")
        await asyncio.sleep(3600)
        done.set()
        await asyncio.sleep(60)

    told, over = lines_of(caplog, story)
    assert told.levelno == logging.WARNING
    assert told.getMessage().startswith("No handler of tenant acme:eu-west-1 has ended for 30")
    assert ": 8 handlers (acme:eu-west-1 8), the longest for 30" in told.getMessage()
    assert "; 12 messages wait here in all. " in told.getMessage()
    assert "Concurrency(handler_timeout=...)" in told.getMessage()
    assert vars(told)["message_id"] in told.getMessage()
    assert over.getMessage().startswith("Handlers of tenant acme:eu-west-1 end again, after 36")


@with_world
async def test_a_handler_that_keeps_its_message_group_waiting_is_told_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """There are slots enough, but the next message of the group has to wait for the end of this one."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    done = asyncio.Event()
    orders = Consumer("orders.fifo", context=Tenant, client=world.client)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, Any]) -> None:
        await done.wait()

    for number in range(3):
        world.send({"order_id": str(number)}, tenant="acme", queue="orders.fifo", group="acme")
    async with orders:
        await asyncio.sleep(3600)
        done.set()
        await asyncio.sleep(60)
    told, over = [text for text in caplog.messages if text.startswith(("No handler of", "Handlers of"))]
    assert told.startswith("No handler of tenant acme:eu-west-1 has ended for 30")
    assert "; 2 messages wait here in all. " in told
    assert over.startswith("Handlers of tenant acme:eu-west-1 end again, after 36")


def test_many_tenants_that_hold_all_slots_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of another tenant can run."""

    async def story(world: World, _: asyncio.Event) -> None:
        for tenant in range(6):
            world.send_orders("1", tenant=f"t{tenant}")
        await asyncio.sleep(1)
        world.send_orders("1", tenant="quiet")
        await asyncio.sleep(3600)

    [told] = lines_of(caplog, story, total=6)
    assert told.getMessage().startswith("No handler of 6 tenants has ended for ")
    assert " and 1 more tenant)" in told.getMessage()
    assert f", called at {__file__}:" in told.getMessage()


def test_long_handlers_that_keep_no_one_waiting_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """There are slots enough."""

    async def story(world: World, _: asyncio.Event) -> None:
        world.send_orders("1", "2", tenant="acme")
        await asyncio.sleep(3600)

    assert lines_of(caplog, story) == []


def test_long_work_is_no_standstill(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers of ten minutes with a backlog: the first ones are told of, before it is known what one takes."""

    async def story(world: World, _: asyncio.Event) -> None:
        world.send_orders(*map(str, range(100)), tenant="acme")
        await asyncio.sleep(6000)

    records = lines_of(caplog, story, seconds=lambda _: 600.0)
    assert [each.levelname for each in records] == ["WARNING", "WARNING"]


def told_of_one(
    caplog: pytest.LogCaptureFixture, handler: Callable[[], Awaitable[None]], *, seconds: float = 600, **options: Any
) -> list[logging.LogRecord]:
    """Consume one message with a handler, and return what the log says between the start and the stop."""

    async def scenario(world: World) -> None:
        world.create()
        shutdown = Shutdown(drain=0, cancel=1)
        orders = Consumer("orders", context=Tenant, client=world.client, shutdown=shutdown, **options)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Tenant, Any]) -> None:
            await handler()

        world.send_orders("1", tenant="acme")
        async with orders:
            await asyncio.sleep(seconds)

    with caplog.at_level(logging.INFO, "postroom.consumer"):
        in_world(scenario)
    return [each for each in caplog.records if vars(each)["message_id"] is not None]


async def swallow(seconds: float) -> None:
    """Run on for some time after the cancellation, and end as if nothing had been."""
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(seconds)


async def cancel_itself(seconds: float) -> None:
    """Set a time limit as an old library does, which never takes its cancellation back, and go on."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(1, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)
    await asyncio.sleep(seconds)


def test_a_handler_that_cancels_itself_ignores_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on as it means to, with a time limit of the consumer's as without one."""
    assert told_of_one(caplog, lambda: cancel_itself(200)) == []
    assert told_of_one(caplog, lambda: cancel_itself(200), concurrency=Concurrency(handler_timeout=500)) == []


def test_a_handler_that_ignores_its_time_limit_is_told_of_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It keeps its slot, and its message is acknowledged in the end: nothing else would say so."""
    limit = Concurrency(handler_timeout=5)
    told, how, over = told_of_one(caplog, lambda: swallow(300), concurrency=limit)
    assert [each.levelname for each in (told, how, over)] == ["WARNING", "WARNING", "WARNING"]
    assert " of tenant acme:eu-west-1 (attempt 1, receive 1) still runs, 30 s after it was canc" in told.getMessage()
    assert "(its time limit), and keeps its slot, at " in told.getMessage()
    assert f", called at {__file__}:{swallow.__code__.co_firstlineno + 5} in swallow. Let " in told.getMessage()
    assert how.getMessage().endswith(
        "was cancelled by Concurrency(handler_timeout=5), and ended without an error, which counts as success"
    )
    assert over.getMessage().endswith(" of tenant acme:eu-west-1 has ended, 300 s after it was cancelled")
    assert {vars(each)["tenant"] for each in (told, how, over)} == {"acme:eu-west-1"}
    assert {vars(each)["step"] for each in (told, how, over)} == {"handler"}


def test_a_handler_that_runs_beside_the_next_receive_of_its_message_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its message was lost, so it was cancelled: another consumer may have the message by now."""
    limit = Visibility(timeout=60, max_extension=60)
    records = told_of_one(caplog, lambda: swallow(3600), seconds=115, visibility=limit)
    [told] = [each.getMessage() for each in records if "still runs" in each.getMessage()]
    assert "(the message is not ours any longer: its visibility timeout is over)" in told


def test_an_error_that_a_library_made_of_the_time_limit_is_told_as_that(caplog: pytest.LogCaptureFixture) -> None:
    """``RuntimeError: stream closed`` alone would lead elsewhere."""

    async def convert() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as error:
            text = "stream closed"
            raise RuntimeError(text) from error

    how, failed = told_of_one(caplog, convert, seconds=5.5, concurrency=Concurrency(handler_timeout=5))
    assert how.getMessage().endswith("was cancelled by Concurrency(handler_timeout=5), and ended with RuntimeError")
    assert failed.getMessage().endswith("RuntimeError: stream closed")


def test_a_handler_that_obeys_its_cancellation_slowly_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """A rollback takes its time."""

    async def roll_back() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(20)

    [failed] = told_of_one(caplog, roll_back, seconds=25.5, concurrency=Concurrency(handler_timeout=5))
    assert "HandlerTimeout" in failed.getMessage()


def test_an_error_handler_that_ignores_its_time_limit_is_told_of_as_that(caplog: pytest.LogCaptureFixture) -> None:
    """It keeps the slot of its message as a handler does."""

    async def fail() -> None:
        raise ValueError("no such article")

    async def on_error(_failure: Failure) -> None:
        await swallow(100)

    limit = Concurrency(resolver_timeout=5)
    records = told_of_one(caplog, fail, seconds=115, concurrency=limit, on_error=on_error)
    told, over = (each for each in records if each.getMessage().startswith("on_error of message "))
    assert "still runs, 30 s after it was cancelled (its time limit), and keeps its slot, at " in told.getMessage()
    assert over.getMessage().endswith(" has ended, 100 s after it was cancelled")
    assert vars(told)["step"] == "on_error"


def test_a_resolver_that_ignores_its_time_limit_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Its message waits for it without a slot: no other line would come, for as long as it runs."""

    async def resolve(message: Message) -> Tenant:
        await swallow(100)
        return Tenant(message.attributes["tenantId"], "eu-west-1")

    async def scenario(world: World) -> None:
        world.create()
        limit = Concurrency(resolver_timeout=5)
        orders: Consumer[Tenant] = Consumer("orders", context=resolve, client=world.client, concurrency=limit)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Tenant, Any]) -> None: ...

        world.send_orders("1", "2", tenant="acme")
        async with orders:
            await asyncio.sleep(34.9)
            assert not caplog.messages[1:]
            await asyncio.sleep(100)

    with caplog.at_level(logging.WARNING, "postroom.consumer"):
        in_world(scenario)
    [told] = [each for each in caplog.records if "context resolver" in each.getMessage()]
    assert (
        ", 30 s after it was cancelled by Concurrency(resolver_timeout=5), and its message waits" in told.getMessage()
    )
    assert f", called at {__file__}:{swallow.__code__.co_firstlineno + 5} in swallow. Let " in told.getMessage()
    assert vars(told)["message_id"] is not None
    assert vars(told)["step"] == "context"
