"""Starting twice, starting in vain, stopping before the start, and being cancelled again and again."""

import asyncio
import logging
from contextlib import suppress
from typing import Any, Self

import pytest

from postroom import (
    Concurrency,
    ConfigurationError,
    Consumer,
    MessageContext,
    NotOpenError,
    QueueNotFound,
    ResourcePool,
    Shutdown,
    StopReason,
)
from postroom.consumer.core import Core
from postroom.consumer.pipeline import Pipeline
from postroom.local import LocalBroker
from postroom.transports.memory import MemoryClient
from support.passing import PassingClient
from support.world import Databases, Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Any, Any]


class Slow(PassingClient):
    """A client that opens its queue when it may."""

    def __init__(self, world: World) -> None:
        super().__init__(MemoryClient(world.broker))
        self.may_open = asyncio.Event()
        self.opening = 0

    async def queue(self, name: str) -> Any:
        """Open the queue."""
        self.opening += 1
        try:
            await self.may_open.wait()
            return await super().queue(name)
        finally:
            self.opening -= 1


def consumer(client: Any, handled: list[str] | None = None, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer that writes down what it handled."""
    orders: Consumer[Any, Any] = Consumer("orders", client=client, **options)

    @orders.handler
    async def handle(order: Order, ctx: Ctx) -> None:
        await asyncio.sleep(order.seconds)
        if handled is not None:
            handled.append(order.order_id)

    return orders


def others() -> set[asyncio.Task[Any]]:
    """Return all tasks but this one."""
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.mark.parametrize("first_ends", ["well", "cancelled"])
@with_world
async def test_a_second_start_is_refused_at_once(world: World, first_ends: str) -> None:
    """While the first is under way, and after it. The first is not disturbed, and nothing is left of either."""
    world.create()
    client = Slow(world)
    orders = consumer(client)
    before = others()
    first = asyncio.create_task(orders.__aenter__(), name="first")
    await asyncio.sleep(1)
    with pytest.raises(ConfigurationError, match="starting already"):
        await orders.__aenter__()
    with pytest.raises(ConfigurationError, match="starting already"):
        await orders.run()
    if first_ends == "cancelled":
        first.cancel()
        await asyncio.wait([first])
    client.may_open.set()
    if first_ends == "well":
        await first
    else:
        await orders.__aenter__()
    with pytest.raises(ConfigurationError, match="running already"):
        await orders.__aenter__()
    await orders.__aexit__(None, None, None)
    assert (client.open, others() - before) == (0, set())


@with_world
async def test_a_start_that_failed_can_be_made_again(world: World) -> None:
    """The queue was missing; now it is there."""
    handled: list[str] = []
    client = Slow(world)
    client.may_open.set()
    orders = consumer(client, handled)
    with pytest.raises(QueueNotFound):
        await orders.run()
    assert (client.open, orders.running) == (0, False)
    world.create()
    world.send_orders("1")
    async with orders:
        await asyncio.sleep(1)
    assert handled == ["1"]


@pytest.mark.parametrize("by", ["itself", "another task"])
def test_a_consumer_may_be_ended_in_its_own_block(by: str, caplog: pytest.LogCaptureFixture) -> None:
    """The end of the block finds nothing to do, or waits for the stop that is under way."""
    handled: list[str] = []

    async def scenario(world: World) -> tuple[int, int]:
        world.create()
        orders = consumer(world.client, handled)
        world.send_orders("1", seconds=3)
        async with orders:
            await asyncio.sleep(1)
            ending = asyncio.create_task(orders.end())
            await (ending if by == "itself" else asyncio.sleep(1))
        assert await ending is None
        with pytest.raises(NotOpenError):
            await orders.end()
        return world.counts()

    with caplog.at_level(logging.INFO, "postroom"):
        assert in_world(scenario) == (0, 0)
    assert handled == ["1"]
    assert sum(text.startswith("Stopped consuming") for text in caplog.messages) == 1


class Moving:
    """A client of whichever broker there is."""

    def __init__(self) -> None:
        self.inner: Any = None

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    async def queue(self, name: str) -> Any:
        """Open the queue there."""
        return await self.inner.queue(name)


def test_a_consumer_of_a_loop_that_was_closed_starts_in_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    """As a pool does. A program that enters it by hand, and does not stop it, ends so."""
    client, handled = Moving(), list[str]()
    pool = ResourcePool(Databases())
    orders = consumer(client, handled, context=Tenant, resources=pool)

    async def main(order: str, *, stops: bool) -> None:
        async with LocalBroker() as broker, asyncio.timeout(30):
            world = World(broker)
            world.create()
            client.inner = world.client
            await pool.__aenter__()
            await orders.__aenter__()
            world.send_orders(order)
            while order not in handled:
                await asyncio.sleep(0.01)
            if stops:
                await orders.end()
                await pool.aclose()

    asyncio.run(main("1", stops=False))
    asyncio.run(main("2", stops=True))
    assert sum("of the consumer of orders was closed without a stop" in text for text in caplog.messages) == 1


@with_world
async def test_a_start_that_hangs_says_what_it_waits_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Credentials of a process, a middleware or a queue that never answer have no time limit of their own."""

    class Hangs:
        async def __aenter__(self) -> Self:
            await asyncio.sleep(30)
            return self

        async def __aexit__(self, *_error: object) -> None:
            return None

        async def __call__(self, payload: Any, ctx: Ctx, call_next: Any) -> None:
            await call_next(payload, ctx)

    world.create()
    client = Slow(world)
    for middleware in ([], [Hangs()]):
        orders = consumer(client, middleware=middleware)
        asyncio.get_running_loop().call_later(20, client.may_open.set)
        async with orders:
            await asyncio.sleep(30)
    told = [record.getMessage() for record in caplog.records if "takes longer" in record.getMessage()]
    assert told == [
        "The start of orders takes longer than 10 s: it waits for SQS to tell of the queue, or for credentials",
        "The start of orders takes longer than 10 s: it waits for Hangs to be entered",
    ]


@with_world
async def test_a_cancelled_start_leaves_nothing_and_can_be_made_again(world: World) -> None:
    """By a timeout, as a web framework's lifespan has."""
    world.create()
    handled: list[str] = []
    client = Slow(world)
    orders = consumer(client, handled)
    before = others()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2), orders:
            raise AssertionError("not reached")
    assert (client.open, client.opening, orders.running, others() - before) == (0, 0, False, set())
    client.may_open.set()
    world.send_orders("1")
    async with orders:
        await asyncio.sleep(1)
    assert handled == ["1"]


@pytest.mark.parametrize("when", ["before", "while"])
@with_world
async def test_run_ends_when_it_is_stopped_before_it_runs(world: World, when: str) -> None:
    """Even if the queue never answers; the next run is not stopped."""
    world.create()
    client = Slow(world)
    handled: list[str] = []
    orders = consumer(client, handled)
    running = asyncio.create_task(orders.run(), name="run")
    if when == "while":
        await asyncio.sleep(3)
    orders.stop()
    orders.stop(now=True)
    await running
    took = asyncio.get_running_loop().time()
    assert (client.open, orders.running, running.cancelling()) == (0, False, 0)
    client.may_open.set()
    world.send_orders("1")
    async with orders:
        await asyncio.sleep(1)
    assert took == (3.0 if when == "while" else 0.0)
    assert handled == ["1"]


@pytest.mark.parametrize("seed", range(30))
def test_a_stop_in_the_instant_in_which_the_start_is_done_is_a_stop(seed: int) -> None:
    """Whatever comes first in that turn of the loop: run() returns, nothing runs, and nothing is cancelled later."""

    async def scenario(world: World) -> None:
        world.create()
        client = Slow(world)
        orders = consumer(client)
        before = others()

        async def use() -> None:
            await orders.run()
            await asyncio.sleep(10)

        using = asyncio.create_task(use(), name="use")
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        loop.call_soon(client.may_open.set)
        for _ in range(seed % 6):
            await asyncio.sleep(0)
        loop.call_soon(orders.stop)
        await using
        assert (client.open, orders.running, others() - before) == (0, False, set())

    in_world(scenario, seed=seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_cancellation_that_meets_a_stop_while_starting_is_not_swallowed(seed: int) -> None:
    """The owner cancels the task in the turn in which the consumer is stopped: that cancellation goes on."""

    async def scenario(world: World) -> None:
        world.create()
        client = Slow(world)
        orders = consumer(client)
        before = others()
        using = asyncio.create_task(orders.run(), name="use")
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        loop.call_soon(client.may_open.set)
        loop.call_soon(orders.stop)
        loop.call_soon(using.cancel)
        await asyncio.wait([using])
        assert using.cancelled()
        assert (client.open, orders.running, others() - before) == (0, False, set())

    in_world(scenario, seed=seed)


@with_world
async def test_a_block_that_was_stopped_while_it_started_is_asked_to_stop_at_once(world: World) -> None:
    """With the reason that was given; the block is entered, and its wait returns."""
    world.create()
    client = Slow(world)
    orders = consumer(client)
    loop = asyncio.get_running_loop()
    loop.call_later(1, orders.stop)
    loop.call_later(2, client.may_open.set)
    async with orders:
        await orders.wait_for_stop()
    assert loop.time() < 5


@with_world
async def test_a_stop_after_a_run_does_not_stop_the_next_one(world: World) -> None:
    """Stopping what is stopped means nothing."""
    world.create()
    handled: list[str] = []
    orders = consumer(MemoryClient(world.broker), handled)
    async with orders:
        pass
    orders.stop()
    world.send_orders("1")
    async with orders:
        await asyncio.sleep(1)
    assert handled == ["1"]


async def _cancelled_thrice(block: "asyncio.Task[None]") -> None:
    await asyncio.sleep(1)
    for _ in range(3):
        block.cancel()
        await asyncio.sleep(0.5)
    with suppress(asyncio.CancelledError):
        await block


async def _cancelled_in_each_turn(block: "asyncio.Task[None]") -> None:
    await asyncio.sleep(1)
    while not block.done():  # as a cancelled scope of anyio does it
        block.cancel()
        await asyncio.sleep(0.01)


async def _cancelled_once(block: "asyncio.Task[None]") -> None:
    await asyncio.sleep(1)
    block.cancel()
    await asyncio.wait([block])


@pytest.mark.parametrize("cancel", [_cancelled_once, _cancelled_thrice, _cancelled_in_each_turn])
@pytest.mark.parametrize("waits", ["in its block", "in its end"])
@with_world
async def test_however_often_it_is_cancelled_nothing_runs_when_it_is_left(
    world: World, cancel: Any, waits: str
) -> None:
    """Handlers get their time to clean up, and their messages are back when the block ends.

    The cancellation that leaves the block drains; one that comes while it ends cancels handlers at once.
    """
    world.create()
    events: list[str] = []
    orders: Consumer[Any, Any] = Consumer("orders", client=world.client, shutdown=Shutdown(cancel=5))

    @orders.handler
    async def handle(body: dict[str, Any], ctx: Ctx) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(3)
            events.append("cleaned up")

    async def block() -> None:
        async with orders:
            world.send({})
            await asyncio.sleep(0.5 if waits == "in its end" else 1000)

    before = others()
    started = asyncio.get_running_loop().time()
    task = asyncio.create_task(block(), name="block")
    await cancel(task)
    assert task.cancelled()
    assert others() - before == set()
    counts, took = world.counts(), asyncio.get_running_loop().time() - started
    assert events == ["cleaned up"]
    assert counts == (1, 0)
    assert took < (25 if (cancel, waits) == (_cancelled_once, "in its block") else 8)


@with_world
async def test_a_timeout_around_the_block_is_a_timeout(world: World) -> None:
    """The cancellation is the timeout's, and it gets it back after the stop."""
    world.create()
    with pytest.raises(TimeoutError):  # noqa: PT012 - the block is what is tested
        async with asyncio.timeout(5), consumer(world.client):
            world.send_orders("1", seconds=500)
            await asyncio.sleep(1000)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert world.counts() == (1, 0)


@with_world
async def test_a_task_group_whose_other_task_failed_gets_its_error(world: World) -> None:
    """The consumer's task is cancelled, stops in order, and the error of the other one comes through."""
    world.create()
    orders = consumer(world.client)

    async def fail() -> None:
        await asyncio.sleep(2)
        raise ZeroDivisionError

    world.send_orders("1", seconds=500)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(orders.run(), name="run")
            group.create_task(fail(), name="fail")
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert not orders.running
    assert world.counts() == (1, 0)


@pytest.mark.parametrize("fatal", [ZeroDivisionError(), SystemExit(3), KeyboardInterrupt()])
@with_world
async def test_what_ended_a_consumer_is_raised_where_it_was_started(world: World, fatal: BaseException) -> None:
    """After the stop; ``end`` returns it instead, and an error of the block's own comes first."""
    world.create()
    orders = consumer(world.client)

    def die() -> None:
        run = orders._run
        assert run is not None
        run.fatal = fatal
        orders.stop(reason=StopReason.FATAL)

    async with suppressing(type(fatal)), orders:
        die()
        await orders.wait_for_stop()
    assert not orders.running
    await orders.__aenter__()
    die()
    assert await orders.end() is fatal
    with pytest.raises(LookupError):  # noqa: PT012
        async with orders:
            die()
            raise LookupError


class suppressing:  # noqa: N801 - as contextlib's
    """Expect an error in an ``async with`` of several parts."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, *_rest: object) -> bool:
        assert kind is self._kind
        return True


@with_world
async def test_concurrency_is_adjusted_while_it_runs_and_for_the_next_run(world: World) -> None:
    """The run is told; a later start has the numbers that were said last."""
    world.create()
    told: list[Concurrency] = []
    orders = consumer(world.client, concurrency=Concurrency(total=1))
    async with orders:
        run: Any = orders._run
        run.adjust = told.append
        orders.adjust(Concurrency(total=5))
        with pytest.raises(ConfigurationError):
            orders.adjust(None)  # type: ignore[arg-type]
    orders.adjust(Concurrency(total=7))
    async with orders:
        assert orders._run is not None
        told.append(orders._run.settings.concurrency)
    assert told == [Concurrency(total=5), Concurrency(total=7)]


@with_world
async def test_a_time_limit_that_is_adjusted_is_told_to_hold_from_the_next_start(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Who wants to free the slots of what hangs learns that it does not, and who changes numbers what is lost."""
    world.create()
    orders = consumer(world.client, concurrency=Concurrency(total=1, handler_timeout=30))
    async with orders:
        orders.adjust(Concurrency(total=5, handler_timeout=30))
        assert not any("adjust" in text or "next start" in text for text in caplog.messages)
        orders.adjust(Concurrency(total=5, handler_timeout=2))
    orders.adjust(Concurrency(total=5))
    told = [text for text in caplog.messages if "next start" in text]
    assert told == [
        "Concurrency(handler_timeout=2) holds from the next start of the consumer of orders on, and 30 until then"
    ]


@pytest.mark.parametrize("where", [(Pipeline, "_did_succeed"), (Core, "finish")])
@with_world
async def test_a_defect_that_leaves_the_task_of_a_message_ends_the_consumer(
    world: World, where: tuple[type[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one in what follows its handling: it is raised where the consumer was started, and no message hangs."""
    planned = iter([ZeroDivisionError()])
    kind, name = where
    proper = getattr(kind, name)

    def fails_once(*arguments: Any, **options: Any) -> Any:
        if (error := next(planned, None)) is not None:
            raise error
        return proper(*arguments, **options)

    monkeypatch.setattr(kind, name, fails_once)
    world.create()
    orders = consumer(world.client)
    world.send_orders("1", seconds=1)
    with pytest.raises(ZeroDivisionError):
        async with orders:
            await orders.wait_for_stop()
    assert asyncio.get_running_loop().time() < 60


@with_world
async def test_a_pool_that_is_closed_under_a_consumer_costs_no_message(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """No handler ran, so nothing has failed. The log says what messages wait for, and they go on when it is open."""
    world.create(dead_letters="dead")
    pool = ResourcePool(Databases())
    handled: list[str] = []
    orders = consumer(world.client, handled, context=Tenant, resources=pool)

    async with pool, orders:
        world.send_orders("1")
        await asyncio.sleep(1)
        await pool.aclose()
        for tenant in "abc":
            world.send_orders("2", "3", tenant=tenant)
        await asyncio.sleep(300)
        failed = orders.statistics().failed
        await pool.__aenter__()
        await asyncio.sleep(60)
    assert len(handled) == 7
    assert (world.counts(), world.counts("dead")) == ((0, 0), (0, 0))
    assert 3 <= failed["ClosedError"] <= 1_000
    told = [text for text in caplog.messages if "is unavailable; its messages wait" in text]
    assert len(told) == 3
    assert all("pool was closed; keep it open for as long as it is used" in text for text in told)
