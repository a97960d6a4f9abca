"""FIFO: nothing of a group overtakes a message that is not done, however that one's handler ended."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from postroom import AckMode, Consumer, Drop, MessageContext, Polling, Reject, Retry, RetryPolicy, Visibility
from postroom.message import Message
from postroom.transports.memory import MemoryQueue
from support.world import Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Tenant]
Calls = list[tuple[str, int]]
"""Orders with their counts of receives, as their handler was called."""


def calls_of(first: Callable[[Ctx], Awaitable[object]], *, receives: int = 8, **options: Any) -> Calls:
    """Let ``first`` handle the first receive of the first of two messages of a group, and return all calls."""

    async def scenario(world: World) -> Calls:
        arn = world.broker.create_queue("dead.fifo", {"FifoQueue": "true"}).arn
        redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": {receives}}}'
        world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true", RedrivePolicy=redrive)
        options.setdefault("context", Tenant)
        orders = Consumer("orders.fifo", client=world.client, polling=Polling(pollers=1), **options)
        calls: Calls = []

        @orders.handler
        async def handle(order: Order, ctx: Ctx) -> None:
            calls.append((order.order_id, ctx.message.receive_count))
            if len(calls) == 1:
                await first(ctx)

        for number in "12":
            world.send({"order_id": number}, queue="orders.fifo", group="g")
        async with orders:
            await asyncio.sleep(60)
        return calls

    return in_world(scenario)


async def retry_and_drop(ctx: Ctx) -> None:
    """Ask for a retry, and end in a way that would delete the message."""
    await ctx.retry(delay=3)
    raise Drop("enough")


async def retry_and_fail(ctx: Ctx) -> None:
    """Ask for a retry, and fail: ``AckMode.ALWAYS`` would delete the message."""
    await ctx.retry(delay=3)
    raise ValueError


async def lose_and_return(_ctx: Ctx) -> None:
    """Swallow the cancellation that tells of a lost message."""
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        return


async def lose_and_drop(_ctx: Ctx) -> None:
    """Make something else of the cancellation that tells of a lost message."""
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        raise Drop("enough") from None


async def lose_and_fail(_ctx: Ctx) -> None:
    """Fail in the clean-up after a cancellation that tells of a lost message."""
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        raise ValueError("the clean-up failed") from None


SHORT: dict[str, Any] = {"visibility": Visibility(timeout=6, heartbeat=False)}


@pytest.mark.parametrize("ack", [AckMode.ON_SUCCESS, AckMode.ALWAYS])
@pytest.mark.parametrize("end", [retry_and_drop, retry_and_fail, lose_and_return, lose_and_drop, lose_and_fail])
def test_nothing_overtakes_a_message_that_is_not_acknowledged_after_all(
    end: Callable[[Ctx], Awaitable[object]], ack: AckMode, caplog: pytest.LogCaptureFixture
) -> None:
    """It was given back or lost before its handler ended; a drop that does nothing is not told as one."""
    calls = calls_of(end, ack=ack, **({} if end in {retry_and_drop, retry_and_fail} else SHORT))
    assert [order for order, _ in calls] == ["1", "1", "2"]
    assert not any(" is dropped " in text for text in caplog.messages)


@pytest.mark.parametrize("error", [Reject("no"), Drop("no"), ValueError("no")])
def test_what_is_behind_an_acknowledged_message_runs_from_its_first_receive(error: Exception) -> None:
    """However its handler ends after ``ctx.ack()``: nothing before it is left in the queue."""

    async def end(ctx: Ctx) -> None:
        await ctx.ack()
        raise error

    assert calls_of(end) == [("1", 1), ("2", 1)]


def test_a_message_that_comes_again_is_not_given_back_behind_itself_while_it_is_resolved() -> None:
    """What was received with it before goes back, and what is behind it now; it is at its last receive itself."""

    async def resolve(message: Message) -> Tenant:
        await asyncio.sleep(5 if message.receive_count > 1 else 0.01)
        return Tenant("a")

    async def end(ctx: Ctx) -> None:
        await ctx.retry(delay=1)
        await asyncio.sleep(3)

    assert calls_of(end, receives=2, context=resolve) == [("1", 1), ("1", 2), ("2", 2)]


@with_world
async def test_a_resolver_that_cleans_up_slowly_behind_a_message_that_failed_is_counted_once(world: World) -> None:
    """Its message went back: counted as slow after that, it would make room for one message more, for all time."""

    async def resolve(message: Message) -> Tenant:
        if message.receive_count == 1 and '"2"' in message.body:
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(3)
        return Tenant("a")

    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    orders: Consumer[Tenant] = Consumer("orders.fifo", client=world.client, context=resolve)
    calls: list[str] = []

    @orders.handler
    async def handle(order: Order, _ctx: Ctx) -> None:
        calls.append(order.order_id)
        if len(calls) == 1:
            await asyncio.sleep(0.1)
            raise Retry("not yet", delay=1)

    for number in "12":
        world.send({"order_id": number}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(60)
        run: Any = orders._run
        assert calls == ["1", "1", "2"]
    assert (run.core.resolving, run.core.unresolved) == (0, 0)


@pytest.mark.parametrize("taken", [True, False])
def test_what_comes_while_a_message_is_rejected_spends_no_receives(
    taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead-letter queue takes longer than the message is hidden: it comes again, with another one behind it."""
    once = MemoryQueue.send
    sends = 0

    async def slow(self: MemoryQueue, messages: Any) -> Any:
        nonlocal sends
        if self.info.name == "dead.fifo":
            sends += 1
            if sends == 1:
                await asyncio.sleep(7 if taken else 6.3)
                if not taken:
                    raise ConnectionError("refused")
        return await once(self, messages)

    async def resolve(message: Message) -> Tenant:
        await asyncio.sleep(0.1 if message.receive_count == 1 else 1)
        return Tenant("a")

    async def fail(ctx: Ctx) -> None:
        monkeypatch.setattr(MemoryQueue, "send", slow)
        raise ValueError

    more: dict[str, Any] = {"visibility": Visibility(timeout=5, heartbeat=False)}
    calls = calls_of(fail, retry=RetryPolicy(attempts=1, base=1, cap=1), context=Tenant if taken else resolve, **more)
    assert [order for order, _ in calls] in (["1", "1", "2"], ["1", "2"])
    assert calls[-1][1] <= 3


def handled(
    count: int, *, receives: int, decide: Callable[[Order, Ctx, Consumer[Tenant, Any]], object], **options: Any
) -> tuple[list[tuple[str, int]], list[str]]:
    """Send some messages of one group, and return what was handled to its end, and the reasons of dead letters."""

    async def scenario(world: World) -> tuple[list[tuple[str, int]], list[str]]:
        arn = world.broker.create_queue("dead.fifo", {"FifoQueue": "true"}).arn
        world.broker.create_queue("aside.fifo", {"FifoQueue": "true", "ContentBasedDeduplication": "true"})
        redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": {receives}}}'
        world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true", RedrivePolicy=redrive)
        orders: Consumer[Tenant, Any] = Consumer("orders.fifo", context=Tenant, client=world.client, **options)
        done: list[tuple[str, int]] = []

        @orders.handler
        async def handle(order: Order, ctx: Ctx) -> None:
            decide(order, ctx, orders)
            done.append((order.order_id, ctx.message.receive_count))

        for number in range(count):
            world.send({"order_id": str(number)}, queue="orders.fifo", group="g")
        async with orders:
            decide(Order("begin"), None, orders)  # type: ignore[arg-type]
            await asyncio.sleep(300)
        async with world.client as client:
            queue, reasons = await client.queue("dead.fifo"), list[str]()
            while letters := await queue.receive(limit=10, wait=0, visibility=3600):
                said = [letter.message_attributes.get("postroom.reason") for letter in letters]
                reasons += ["" if each is None else each.string_value or "" for each in said]
        return done, reasons

    return in_world(scenario)


def test_a_group_goes_on_at_once_behind_a_rejected_message() -> None:
    """It is in the dead-letter queue: those behind it spend no receive."""

    def decide(order: Order, _ctx: Ctx, _orders: object) -> None:
        if order.order_id in {"0", "1", "2", "3", "4"}:
            raise Reject("not ours")

    done, reasons = handled(9, receives=5, decide=decide)
    assert done == [("5", 1), ("6", 1), ("7", 1), ("8", 1)]
    assert reasons == ["not ours"] * 5


def test_a_whole_group_goes_where_its_tenant_is_diverted_or_is_quarantined() -> None:
    """None of it becomes a dead letter for another reason."""

    def divert(order: Order, _ctx: Ctx, orders: Consumer[Tenant, Any]) -> None:
        if order.order_id == "begin":
            orders.tenants.divert(Tenant("a"), queue="aside.fifo", reason="backlog")

    def quarantine(order: Order, _ctx: Ctx, orders: Consumer[Tenant, Any]) -> None:
        if order.order_id == "begin":
            orders.tenants.quarantine(Tenant("a"), reason="corrupt import")

    assert handled(8, receives=3, decide=divert) == ([], [])
    assert handled(8, receives=3, decide=quarantine) == ([], ["corrupt import"] * 8)


@pytest.mark.parametrize("receives", [1, 3, 5])
@pytest.mark.parametrize("attempts", [None, 1])
def test_a_message_that_always_fails_takes_none_of_its_group_with_it(receives: int, attempts: int | None) -> None:
    """At its last receive it blocks the group no longer: SQS gives it out no more."""

    def decide(order: Order, _ctx: Ctx, _orders: object) -> None:
        if order.order_id == "0":
            raise ValueError

    done, reasons = handled(9, receives=receives, decide=decide, retry=RetryPolicy(attempts=attempts, base=1))
    assert [order for order, _ in done] == list("12345678")
    assert len(reasons) == 1
