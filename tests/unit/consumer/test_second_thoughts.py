"""What is said twice of one message, and hooks that hang, are cut off or raise odd things."""

import asyncio
import logging
from itertools import pairwise
from typing import Any

import pytest

from postroom import Concurrency, Consumer, Drop, Failure, MessageContext, Reject, Retry, RetryPolicy, Shutdown
from postroom.transports.memory import MemoryQueue
from support.world import Order, Tenant, World, in_world, with_world

MOVED = "failed at its last receive (1 of 1)"


async def reasons(world: World) -> list[str | None]:
    """Return the reasons of what is in the dead-letter queue."""
    async with world.client as client:
        letters = await (await client.queue("dead")).receive(limit=10, wait=0, visibility=1)
    found = [letter.message_attributes.get("postroom.reason") for letter in letters]
    return [None if each is None else each.string_value for each in found]


@pytest.mark.parametrize("first", ["retry", "ack"])
@with_world
async def test_what_a_handler_has_settled_is_not_rejected_as_well(
    world: World, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A dead letter beside it would be handled twice when it is sent home."""
    world.create(dead_letters="dead", receives=5)
    runs = 0
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Tenant]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            await (ctx.ack() if first == "ack" else ctx.retry(delay=1))
            raise Reject("never")

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(30)
    assert (runs, world.counts("dead")) == ({"retry": 2, "ack": 1}[first], (0, 0))
    (line,) = [each for each in caplog.messages if "is not rejected (never)" in each]
    assert {"retry": "had retried it before", "ack": "had acked it before"}[first] in line


@with_world
async def test_a_retry_asked_for_at_the_last_receive_is_told_as_any_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """SQS moves the message by itself, without a word."""
    world.create(dead_letters="dead", receives=1)
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Tenant]) -> None:
        await ctx.retry(delay=1)

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(30)
    assert sum(f"{MOVED} with ctx.retry()" in each for each in caplog.messages) == 1


@with_world
async def test_on_error_that_hangs_ends_in_time_and_takes_no_slot_for_good(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a bound, failing messages of some tenants would take every slot."""

    async def hang(_failure: Failure) -> None:
        await asyncio.Event().wait()

    world.create()
    done: list[str] = []
    more: dict[str, Any] = {"concurrency": Concurrency(total=2, per_tenant=2, resolver_timeout=5), "on_error": hang}
    orders = Consumer("orders", context=Tenant, client=world.client, **more)

    @orders.handler
    async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
        if order.order_id == "bad":
            raise ValueError
        done.append(order.order_id)

    async with orders:
        world.send_orders("bad", "bad")
        await asyncio.sleep(1)
        world.send_orders("good", tenant="b")
        await asyncio.sleep(8)
        assert list(done) == ["good"]
    assert "on_error took longer than Concurrency(resolver_timeout=5) for message" in caplog.text


@with_world
async def test_a_stop_that_cuts_on_error_off_says_so_and_that_the_handler_failed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It was at its last receive: the reason counts its failure, and does not say that its handler was cut off."""

    async def hang(_failure: Failure) -> None:
        await asyncio.Event().wait()

    world.create(dead_letters="dead", receives=1)
    more: dict[str, Any] = {"shutdown": Shutdown(drain=1), "on_error": hang}
    orders = Consumer("orders", context=Tenant, client=world.client, **more)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        raise ValueError

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(2)
    assert await reasons(world) == ["the consumer stopped, at its last receive, after 1 failed attempt"]
    assert any(each.startswith("Cancelled on_error of message") for each in caplog.messages)


def test_a_cancelled_error_of_on_errors_own_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Such as of a future that something else cancelled."""

    async def cancelled(_failure: Failure) -> None:
        raise asyncio.CancelledError

    async def scenario(world: World) -> None:
        world.create()
        orders = Consumer("orders", context=Tenant, client=world.client, on_error=cancelled)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
            raise ValueError

        async with orders:
            world.send_orders("1")
            await asyncio.sleep(0.5)

    with caplog.at_level(logging.ERROR):
        in_world(scenario)
    assert "on_error failed for message" in caplog.text


@with_world
async def test_a_group_of_errors_may_be_nested_deeply(world: World) -> None:
    """In a resolver it would end the consumer, and all other tenants with it."""
    deep: BaseException = ValueError("at the bottom")
    for _ in range(2_000):
        deep = BaseExceptionGroup("g", [deep])

    def resolve(message: Any) -> Tenant:
        if message.attributes["tenantId"] == "bad":
            raise deep
        return Tenant("good")

    world.create()
    done: list[Any] = []
    orders = Consumer("orders", context=resolve, client=world.client)

    @orders.handler
    async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
        done.append(order)

    async with orders:
        world.send_orders("1", tenant="bad")
        world.send_orders("2", tenant="good")
        await asyncio.sleep(5)
        assert len(done) == 1


@with_world
async def test_a_receive_that_swallows_cancellations_does_not_hold_a_stop_up(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A transport may do so by mistake: it is cancelled once more, and then left alone."""
    stubborn = True

    async def receive(*_arguments: Any, **_more: Any) -> list[Any]:
        while True:
            try:
                await asyncio.sleep(1_000)
            except asyncio.CancelledError:
                if not stubborn:
                    raise

    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client)
    orders.handler(lambda _payload, _ctx: None)
    monkeypatch.setattr(MemoryQueue, "receive", receive)
    loop = asyncio.get_running_loop()
    async with orders:
        await asyncio.sleep(1)
        began = loop.time()
    took = loop.time() - began
    stubborn = False
    left = [task for task in asyncio.all_tasks() if "poller" in task.get_name()]
    for task in left:
        task.cancel()
    await asyncio.wait(left)
    assert took < 25
    assert "a transport swallows cancellations" in caplog.text


@with_world
async def test_a_handler_that_runs_on_after_a_retry_is_not_told_as_on_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop cancels it; there is no ``on_error`` at all."""
    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client, shutdown=Shutdown(drain=1))

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Tenant]) -> None:
        await ctx.retry(delay=1)
        await asyncio.sleep(100)

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(0.5)
    (line,) = [text for text in caplog.messages if text.startswith("Cancelled ")]
    assert line.startswith("Cancelled the handler of message ")
    assert f", called at {__file__}:" in line
    assert line.endswith(" in handle: its message is retried already")


def test_a_retry_asked_for_by_a_message_that_has_had_its_attempts_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """It becomes a dead letter, as on any other way there."""

    async def scenario(world: World) -> list[str | None]:
        world.create(dead_letters="dead", receives=5)
        orders = Consumer("orders", context=Tenant, client=world.client, retry=RetryPolicy(attempts=1))

        @orders.handler
        async def handle(_order: Order, ctx: MessageContext[Tenant]) -> None:
            await ctx.retry()

        async with orders:
            world.send_orders("1")
            await asyncio.sleep(5)
        return await reasons(world)

    reason = "1 failed attempt, the last one with ctx.retry()"
    assert in_world(scenario) == [reason]
    (line,) = [text for text in caplog.messages if "was sent to the dead-letter queue" in text]
    assert line.endswith(f"(attempt 1, receive 1): {reason}")


@with_world
async def test_a_handler_that_ignores_its_cancellation_makes_no_dead_letter_without_a_reason(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is at its last receive: given back, SQS would move it by itself."""
    ends = asyncio.Event()
    world.create(dead_letters="dead", receives=1)
    orders = Consumer("orders", context=Tenant, client=world.client, shutdown=Shutdown(drain=1, cancel=1))

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                continue

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(0.5)
    ends.set()
    assert await reasons(world) == ["the consumer stopped, at its last receive, in the middle of its handler"]
    assert any("did not end when it was cancelled" in text for text in caplog.messages)


@pytest.mark.parametrize("place", ["resolver", "handler"])
@with_world
async def test_the_text_of_sys_exit_is_redacted(world: World, place: str, caplog: pytest.LogCaptureFixture) -> None:
    """As the text of every other error; and the message that it ended the process for is named."""

    def fail(*_: object) -> Any:
        raise SystemExit("cannot reach postgresql://app:hunter2secret@db/acme")

    world.create()
    more: dict[str, Any] = {"context": fail} if place == "resolver" else {"context": Tenant}
    orders: Consumer[Any, Any] = Consumer("orders", client=world.client, **more)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Any]) -> None:
        fail()

    sent = world.send({"order_id": "1"})
    with pytest.raises(SystemExit):
        await orders.run()
    assert "hunter2secret" not in caplog.text
    assert "db/acme" in caplog.text
    assert any(sent in text for text in caplog.messages)


@with_world
async def test_a_resolver_that_ends_the_process_has_its_message_back_off(world: World) -> None:
    """A supervisor starts the process again: one message must not end it every second."""

    def fail(_: object) -> Any:
        raise SystemExit(3)

    world.create()
    world.send_orders("1")
    ended: list[float] = []
    for _ in range(4):
        more: dict[str, Any] = {"context": fail, "retry": RetryPolicy(base=2, jitter=0)}
        orders: Consumer[Any, Any] = Consumer("orders", client=world.client, **more)
        orders.handler(lambda _payload, _ctx: None)
        with pytest.raises(SystemExit):
            await orders.run()
        ended.append(asyncio.get_running_loop().time())
    pauses = [after - before for before, after in pairwise(ended)]
    assert pauses == [pytest.approx(each, abs=1.5) for each in (2, 4, 8)]


@pytest.mark.parametrize(
    ("instruction", "calls", "dead"), [(Reject("no"), 1, 1), (Drop("no"), 1, 0), (Retry(delay=3), 2, 0)]
)
@with_world
async def test_an_instruction_that_a_task_group_wraps_is_obeyed(
    world: World, instruction: Exception, calls: int, dead: int
) -> None:
    """If it is the only error: a handler with a TaskGroup cannot raise it bare."""

    async def raise_it() -> None:
        raise instruction

    world.create(dead_letters="dead", receives=5)
    orders = Consumer("orders", context=Tenant, client=world.client)
    runs = 0

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(raise_it())

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(10)
    assert (runs, sum(world.counts("dead"))) == (calls, dead)
