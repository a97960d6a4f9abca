"""``ctx.ack()``, ``ctx.retry()`` and ``ctx.extend()``: in async code, in threads, and when they are forgotten."""

import asyncio
import gc
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from postroom import AckMode, ConfigurationError, Consumer, MessageContext, OwnershipLost, PostroomError, Settlement
from postroom.consumer.context import Confirmation
from postroom.local import LocalBroker
from postroom.transports.memory import MemoryClient
from support.settles import Recorded, context_of
from support.world import World, with_world

METHODS: list[tuple[Callable[[MessageContext[Any, Any]], Confirmation], tuple[str, float | None]]] = [
    (lambda ctx: ctx.ack(), ("ack", None)),
    (lambda ctx: ctx.retry(), ("retry", None)),
    (lambda ctx: ctx.retry(delay=7), ("retry", 7)),
    (lambda ctx: ctx.extend(60), ("extend", 60)),
]


@pytest.mark.parametrize(("method", "asked"), METHODS)
async def test_awaited_in_the_loop_it_is_done_when_it_returns(method: Any, asked: Any) -> None:
    """And not before it is awaited."""
    settles = Recorded()
    confirmation = method(context_of(settles))
    await asyncio.sleep(0)
    assert settles.asked == []
    assert await confirmation is None
    assert settles.asked == [asked]


@pytest.mark.parametrize(("method", "asked"), METHODS)
async def test_called_in_a_thread_it_is_done_when_it_returns(method: Any, asked: Any) -> None:
    """It blocks the thread until then, and awaiting what it returned does no harm."""
    settles = Recorded()

    ctx = context_of(settles)
    confirmation, done = await asyncio.to_thread(lambda: (method(ctx), list(settles.asked)))
    assert done == [asked]
    await confirmation
    assert settles.asked == [asked]


@pytest.mark.parametrize("kind", [OwnershipLost, TimeoutError, PostroomError])
async def test_what_went_wrong_is_raised_in_the_thread(kind: type[Exception]) -> None:
    """As it is in async code."""
    ctx = context_of(Recorded(kind("what went wrong")))
    with pytest.raises(kind, match="what went wrong"):
        await asyncio.to_thread(ctx.ack)
    with pytest.raises(kind, match="what went wrong"):
        await ctx.ack()


async def test_it_works_in_another_loop_of_a_thread() -> None:
    """A plain handler that runs async code of its own by asyncio.run."""
    settles = Recorded()
    ctx = context_of(settles)

    async def work() -> None:
        await ctx.ack()

    await asyncio.to_thread(asyncio.run, work())
    assert settles.asked == [("ack", None)]


@pytest.mark.parametrize("start", [asyncio.create_task, asyncio.ensure_future, asyncio.gather, asyncio.shield])
async def test_it_is_a_coroutine_for_what_takes_one(start: Any) -> None:
    """Tasks, gather, shield, wait_for and TaskGroup take it."""
    settles = Recorded()
    await start(context_of(settles).ack())
    await asyncio.wait_for(context_of(settles).ack(), timeout=5)
    async with asyncio.TaskGroup() as group:
        group.create_task(context_of(settles).ack())
    assert len(settles.asked) == 3
    confirmation = context_of(settles).ack()
    assert inspect.isawaitable(confirmation)
    confirmation.close()


async def test_one_that_is_cancelled_is_cancelled_inside() -> None:
    """A timeout around it ends what it waits for."""
    settles = Recorded()
    settles.gate = asyncio.Event()
    task = asyncio.create_task(context_of(settles).ack())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert settles.asked == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("method", "asked"), METHODS)
async def test_one_that_is_forgotten_is_said_aloud(method: Any, asked: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With the method and the message, in the log and as a RuntimeWarning."""
    settles = Recorded()
    with pytest.warns(RuntimeWarning, match="never awaited"):  # noqa: PT031 - it is said when it is collected
        method(context_of(settles))
        gc.collect()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"ctx.{asked[0]}() for message 0f8fad5b of tenant acme was never awaited" in caplog.text
    assert [(vars(record)["message_id"], vars(record)["tenant"]) for record in caplog.records] == [("0f8fad5b", "acme")]
    assert settles.asked == []


async def test_one_that_is_closed_is_given_up_on_purpose() -> None:
    """As a coroutine that is closed: nothing is said, nothing is done."""
    settles = Recorded()
    context_of(settles).ack().close()
    gc.collect()
    assert settles.asked == []


def test_after_the_loop_ended_it_says_so_in_a_thread() -> None:
    """A thread that the stop gave up does not wait for an answer that cannot come."""

    async def main() -> MessageContext[Any, Any]:
        return context_of(Recorded())

    ctx = asyncio.run(main())
    for method, _ in METHODS:
        with pytest.raises(PostroomError, match="stopped"):
            method(ctx)


def test_while_the_loop_ends_it_says_so_in_a_thread() -> None:
    """What waits when the loop ends is told, too."""
    told: list[BaseException] = []
    threads: list[threading.Thread] = []

    async def main() -> None:
        settles = Recorded()
        settles.gate = asyncio.Event()  # SQS does not answer
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def acknowledge() -> None:
            asked.set()
            await asyncio.Event().wait()

        settles.acknowledge = acknowledge  # type: ignore[method-assign]
        ctx = context_of(settles)

        def handler() -> None:
            try:
                ctx.ack()
            except PostroomError as error:
                told.append(error)

        threads.append(threading.Thread(target=handler, daemon=True))
        threads[0].start()
        await asked.wait()
        assert loop.is_running()

    asyncio.run(main())
    threads[0].join(20)
    assert len(told) == 1
    assert "stopped" in str(told[0])


@pytest.mark.parametrize("seconds", [0, -1, 43_201, float("nan"), float("inf"), "60", True, None])
async def test_an_extension_takes_seconds_that_sqs_allows(seconds: Any) -> None:
    """Said at once, by the call and not by its await."""
    with pytest.raises(ConfigurationError, match="43,200"):
        context_of(Recorded()).extend(seconds)


async def test_an_ack_inside_of_a_transaction_is_refused_in_threads_too() -> None:
    """Nothing is committed yet."""
    settles = Recorded()
    settles.transactions = 1
    with pytest.raises(PostroomError, match="transaction"):
        await asyncio.to_thread(context_of(settles).ack)


async def test_a_plain_handler_acknowledges_in_manual_mode() -> None:
    """In its thread, in real time, with a real consumer."""
    async with LocalBroker(seed=1) as broker:
        world = World(broker)
        world.create()
        orders = Consumer("orders", client=world.client, ack=AckMode.MANUAL)

        @orders.handler
        def handle(body: str, ctx: MessageContext) -> None:
            ctx.ack()
            orders_loop.call_soon_threadsafe(orders.stop)

        orders_loop = asyncio.get_running_loop()
        world.send("x", tenant=None)
        await orders.run()
        assert orders.statistics().settled == {Settlement.ACKED: 1}
        assert world.counts() == (0, 0)


@pytest.mark.parametrize("retry", [True, False])
@with_world
async def test_a_plain_handler_settles_by_hand_in_virtual_time(world: World, retry: bool) -> None:
    """There it runs inline; what it asks for is done right after it, and a user's test sees the same outcome."""
    world.create()
    orders = Consumer("orders", client=MemoryClient(world.broker), ack=AckMode.MANUAL)

    @orders.handler
    def handle(body: str, ctx: MessageContext) -> None:
        if retry:
            ctx.retry(delay=1000)
        else:
            ctx.ack()

    world.send("x", tenant=None)
    async with orders:
        await asyncio.sleep(5)
    assert dict(orders.statistics().settled) == {Settlement.RETRIED if retry else Settlement.ACKED: 1}


async def test_a_task_of_a_plain_handler_in_the_loop_awaits_as_any_other() -> None:
    """Code that a thread sends to the loop is async code: nothing is confirmed before it is."""
    from postroom.consumer.handlers import build_handle
    from postroom.consumer.threads import Threads

    settles = Recorded()
    loop = asyncio.get_running_loop()

    async def in_the_loop(ctx: MessageContext[Any, Any]) -> None:
        await ctx.ack()
        assert settles.asked == [("ack", None)]

    def handler(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(in_the_loop(ctx), loop).result(20)

    threads = Threads(1)
    await build_handle(handler, middleware=(), timeout=None, threads=threads)("payload", context_of(settles))
    threads.close()
    assert settles.asked == [("ack", None)]
