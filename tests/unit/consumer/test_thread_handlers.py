"""Plain ``def`` handlers in a whole consumer, in real time: their threads are real."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import Concurrency, Consumer, MessageContext, Reject, RetryPolicy, Settlement, Shutdown, Visibility
from postroom.local import LocalBroker
from support.world import Tenant, World

LONG = 20.0


class Signals(logging.Handler):
    """Calls a function, in the loop, at the first log line that contains a text."""

    def __init__(self, text: str, function: Callable[[], object]) -> None:
        super().__init__()
        self._text = text
        self._function = function

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a line."""
        if self._text in record.getMessage():
            self._function()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """A queue in memory, in real time."""
    async with LocalBroker(seed=1) as broker:
        made = World(broker)
        made.create()
        yield made


@pytest.mark.parametrize("fails", [False, True])
async def test_a_thread_that_returns_while_handlers_are_cancelled_counts_with_its_outcome(fails: bool) -> None:
    """Its work is done: it is acknowledged, or retried as any failure, and its resource was open until then."""
    release, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    events: list[str] = []

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncIterator[str]:
        yield "a connection"
        events.append("closed")

    async with world() as there:
        shutdown = Shutdown(drain=0, cancel=LONG, poll=0)
        options: dict[str, Any] = {"resources": database, "client": there.client, "shutdown": shutdown}
        orders: Consumer[Tenant, str] = Consumer("orders", context=Tenant, retry=RetryPolicy(base=900), **options)

        @orders.handler
        def handle(body: dict[str, Any], ctx: MessageContext[Tenant, str]) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert release.wait(LONG)
            events.append("done")
            if fails:
                raise ValueError("broken")

        logger = logging.getLogger("postroom.consumer")
        logger.addHandler(seen := Signals("Cancelling 1 handler:", lambda: loop.call_soon(release.set)))
        try:
            there.send({})
            async with asyncio.timeout(LONG), orders:
                await begun.wait()
        finally:
            logger.removeHandler(seen)
        assert orders.statistics().settled == {Settlement.RETRIED if fails else Settlement.ACKED: 1}
        assert there.counts() == ((0, 1) if fails else (0, 0))
    assert events == ["done", "closed"]


async def test_a_thread_that_hangs_is_given_up_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    """Its message is back in the queue, and the stop does not wait for it. The log says where it hangs."""
    release, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    async with world() as there:
        shutdown = Shutdown(drain=0, cancel=0.1, poll=0)
        orders: Consumer[Any, Any] = Consumer("orders", client=there.client, shutdown=shutdown)

        @orders.handler
        def handle(body: dict[str, Any], ctx: MessageContext) -> None:
            # One line: it may not have gone on when the consumer looks where it is.
            _ = loop.call_soon_threadsafe(begun.set), release.wait(LONG)

        there.send({})
        async with asyncio.timeout(LONG / 2), orders:
            await begun.wait()
        assert there.counts() == (1, 0)
        release.set()
    (told,) = [text for text in caplog.messages if text.startswith("Cancelled the handler")]
    assert f", called at {__file__}:{handle.__code__.co_firstlineno + 3} in handle: " in told


@pytest.mark.parametrize("error", [ValueError("broken"), Reject("never")])
async def test_an_error_of_a_thread_that_has_lost_its_message_meanwhile_is_told(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread is not cut off: what it raises is its own, and the message takes its way by itself."""
    release, told = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    async with world() as there:
        shorter: dict[str, Any] = {"visibility": Visibility(timeout=1, heartbeat=False), "client": there.client}
        orders: Consumer[Tenant, None] = Consumer(
            "orders", context=Tenant, **shorter, on_error=lambda _: told.set(), retry=RetryPolicy(base=900)
        )

        @orders.handler
        def handle(body: dict[str, Any], ctx: MessageContext[Tenant]) -> None:
            assert release.wait(LONG)
            if ctx.message.receive_count == 1:
                raise error

        logger = logging.getLogger("postroom")
        signals = (
            Signals("Lost message", lambda: loop.call_soon(release.set)),
            Signals("is not rejected (never): the consumer had lost it before", told.set),
        )
        for signal in signals:
            logger.addHandler(signal)
        try:
            there.send({})
            async with asyncio.timeout(LONG), orders:
                await told.wait()
        finally:
            for signal in signals:
                logger.removeHandler(signal)
        assert orders.statistics().failed == ({"ValueError": 1} if isinstance(error, ValueError) else {})
    assert "was cut off" not in caplog.text


async def test_a_stop_iteration_frees_its_slot_and_its_message_is_retried() -> None:
    """As many as there are threads would stop the consumer for good."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with world() as there:
        concurrency = Concurrency(total=2, threads=2)
        orders: Consumer[Any, Any] = Consumer("orders", client=there.client, concurrency=concurrency)

        @orders.handler
        def handle(body: dict[str, Any], ctx: MessageContext) -> None:
            if body["bad"]:
                next(iter([]))
            loop.call_soon_threadsafe(done.set)

        for _ in range(8):
            there.send({"bad": True})
        there.send({"bad": False})
        async with asyncio.timeout(LONG), orders:
            await done.wait()
        assert orders.statistics().failed["RuntimeError"] > 0


async def test_a_stop_that_is_cancelled_with_the_whole_program_waits_for_no_thread() -> None:
    """As by a second Ctrl-C in a script of one's own: a thread that hangs would keep the process."""
    begun, ends = asyncio.Event(), threading.Event()
    loop, mine = asyncio.get_running_loop(), asyncio.current_task()
    async with world() as there:
        orders: Consumer[Tenant, None] = Consumer("orders", context=Tenant, client=there.client)

        @orders.handler
        def handle(_body: dict[str, Any], _ctx: MessageContext[Tenant]) -> None:
            loop.call_soon_threadsafe(begun.set)
            ends.wait(LONG)

        others = asyncio.all_tasks()
        run = asyncio.create_task(orders.run())
        there.send({"order_id": "1"})
        async with asyncio.timeout(LONG):
            await begun.wait()
            orders.stop()
            await asyncio.sleep(0)
            tasks = asyncio.all_tasks() - others
            for task in (*tasks, run):
                assert task is not mine
                task.cancel()
            await asyncio.wait({*tasks, run})
        assert not ends.is_set()
        ends.set()
