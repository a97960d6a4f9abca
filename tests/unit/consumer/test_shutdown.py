"""The eight steps of a stop, one test per number, and what happens beside them."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from postroom import (
    AccessDenied,
    Concurrency,
    Consumer,
    MessageContext,
    Polling,
    PoolTimeouts,
    ResourcePool,
    Settlement,
    Shutdown,
    StopReason,
)
from postroom.consumer import Queues
from postroom.consumer.demand import AdaptivePolicy
from postroom.events import ConsumerStarted, ConsumerStopped, ConsumerStopping, Event
from postroom.tasks import Tasks
from postroom.transports.memory import MemoryQueue
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Tenant, Database]


def sleeping(world: World, databases: Any = None, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer with a handler that sleeps as long as the order says, then writes it."""
    orders = Consumer("orders", context=Tenant, resources=databases or Databases(), client=world.client, **options)

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        await asyncio.sleep(order.seconds)
        ctx.resources.write(order.order_id)

    return orders


def now() -> float:
    """Return the virtual time."""
    return asyncio.get_running_loop().time()


@with_world
async def test_step_1_an_idle_long_poll_does_not_hold_a_stop_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing to do, a stop takes no longer than Shutdown.poll, and strands nothing."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    world.create()
    async with sleeping(world, shutdown=Shutdown(poll=2)):
        await asyncio.sleep(5)
        started = now()
    world.send_orders("later")
    assert world.counts() == (1, 0)
    assert (now() - started) == 2.0


@with_world
async def test_step_1_what_an_outstanding_poll_still_brings_goes_back(world: World) -> None:
    """A message that arrives during the stop is visible again at once, and is not handled."""
    world.create()
    databases = Databases()
    orders = sleeping(world, databases)
    async with orders:
        world.send_orders("slow", seconds=10)
        await asyncio.sleep(1)
        orders.stop()
        leaving = asyncio.create_task(orders.wait_for_stop(), name="wait")
        await leaving
        asyncio.get_running_loop().call_later(0.5, world.send_orders, "late")
    rows, counts = databases.rows("a"), world.counts()
    assert rows == ["slow"]
    assert counts == (1, 0)


@with_world
async def test_step_2_messages_that_have_not_started_are_visible_at_once(world: World) -> None:
    """Thirty messages, ten slots: twenty are back before the ten have finished."""
    world.create()
    orders = sleeping(world, concurrency=Concurrency(total=10, per_tenant=10))
    world.send_orders(*(str(n) for n in range(30)), seconds=3)
    await orders.__aenter__()
    await asyncio.sleep(1)
    started = now()
    leaving = asyncio.create_task(orders.__aexit__(None, None, None), name="leave")
    await asyncio.sleep(0.5)
    meanwhile = world.counts()
    await leaving
    at_the_end, seconds = world.counts(), now() - started
    assert meanwhile == (20, 10)
    assert at_the_end == (20, 0)
    assert seconds < 3


@with_world
async def test_step_2_a_message_that_waits_for_its_database_goes_back(world: World) -> None:
    """Its open is not waited for."""
    world.create()
    databases = Databases()
    databases.hanging.add("a")
    async with sleeping(world, databases):
        world.send_orders("1", "2")
        await asyncio.sleep(1)
        started = now()
    counts, seconds = world.counts(), now() - started
    assert counts == (2, 0)
    assert seconds < 4


@pytest.mark.parametrize("kept_from_running", [True, False])
@with_world
async def test_step_2_a_stop_spends_one_receive_of_a_message(
    world: World, monkeypatch: pytest.MonkeyPatch, *, kept_from_running: bool
) -> None:
    """What goes back is hidden from the long polls that are still out: another consumer finds it after them."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    world.create(dead_letters="dead", receives=3)
    receives: list[int] = []
    polling = Polling(pollers=4, wait=20)
    databases = Databases()
    if kept_from_running:
        databases.hanging.add("a")
    first = sleeping(world, databases, polling=polling, shutdown=Shutdown(drain=0.1))
    async with first:
        world.send_orders("1", seconds=100)
        await asyncio.sleep(10)
        began = now()
    took = now() - began
    second = Consumer("orders", client=world.client)

    @second.handler
    async def count(_order: Order, ctx: MessageContext[Any, Any]) -> None:
        receives.append(ctx.message.receive_count)

    async with second:
        await asyncio.sleep(25)
    received, dead = first.statistics().received, world.counts("dead")
    assert (receives, received, dead) == ([2], 1, (0, 0))
    assert took < 4


@with_world
async def test_step_2_on_a_busy_queue_messages_go_back_to_others_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls that end within half a second hide nothing."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    world.create()
    slots = Concurrency(total=1, per_tenant=1)
    async with sleeping(world, concurrency=slots, polling=Polling(pollers=2, prefetch=20)):
        world.send_orders(*(str(n) for n in range(9)), seconds=1)
        await asyncio.sleep(0.5)
        asyncio.get_running_loop().call_later(0.2, world.send_orders, *(str(n) for n in range(9, 40)))
    visible, hidden = world.counts()
    assert hidden == 0
    assert visible == 39


@pytest.mark.parametrize(("answers", "counts"), [(True, [(2, 1), (2, 1)]), (False, [(0, 3), (2, 1)])])
@with_world
async def test_step_2_what_goes_back_is_not_given_to_polls_that_were_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch, *, answers: bool, counts: list[tuple[int, int]]
) -> None:
    """A busy server may not know yet that their caller is gone: it is asked something, or messages stay hidden."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", 0.5)  # as on this machine

    async def hangs(_queue: MemoryQueue) -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    world.create()
    seen: list[tuple[int, int]] = []
    orders = sleeping(world, concurrency=Concurrency(total=1, per_tenant=1), polling=Polling(prefetch=20))
    async with orders:
        world.send_orders("1", "2", "3", seconds=10)
        await asyncio.sleep(0.1)
        orders.stop()
        if not answers:
            monkeypatch.setattr(MemoryQueue, "attributes", hangs)
        for at in (1.0, 2.5):
            asyncio.get_running_loop().call_later(at, lambda: seen.append(world.counts()))
    assert seen == counts


@with_world
async def test_step_3_running_handlers_get_their_time(world: World) -> None:
    """A handler that ends within drain is acknowledged."""
    world.create()
    databases = Databases()
    async with sleeping(world, databases, shutdown=Shutdown(drain=10)):
        world.send_orders("1", seconds=9)
        await asyncio.sleep(1)
    assert (databases.rows("a"), world.counts()) == (["1"], (0, 0))


@with_world
async def test_step_3_what_a_poll_brings_at_its_last_receive_is_handled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if no handler runs: given back, it would be a dead letter that was never tried."""
    monkeypatch.setattr(MemoryQueue, "cancellable_after", math.inf)  # as on AWS
    world.create(dead_letters="dead", receives=1)
    databases = Databases()
    async with sleeping(world, databases, polling=Polling(pollers=1, wait=20)):
        await asyncio.sleep(5)
        began = now()
        asyncio.get_running_loop().call_later(1.0, world.send_orders, "last")
    rows, dead, took = databases.rows("a"), world.counts("dead"), now() - began
    assert (rows, dead) == (["last"], (0, 0))
    assert took < 3


@with_world
async def test_step_4_the_rest_is_cancelled_with_a_reason_and_goes_back(world: World) -> None:
    """The handler sees why; its message is visible again; what it began is not acknowledged."""
    world.create()
    reasons: list[str] = []
    orders = Consumer("orders", context=Tenant, shutdown=Shutdown(drain=2), client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError as cancelled:
            reasons.extend(cancelled.args)
            raise

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(1)
    counts, cancelled = world.counts(), orders.statistics().cancelled
    assert reasons == ["the consumer stops and its drain time is over"]
    assert counts == (1, 0)
    assert cancelled == 1


@with_world
async def test_step_4_a_handler_that_ignores_cancellation_does_not_hold_a_stop_up(world: World) -> None:
    """After the cancel budget the stop goes on, and its message goes back."""
    world.create()
    shutdown = Shutdown(drain=1, cancel=2, poll=0)
    orders = Consumer("orders", context=Tenant, shutdown=shutdown, client=world.client)
    release = asyncio.Event()

    @orders.handler
    async def stubborn(order: Order, ctx: MessageContext[Tenant]) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(1)
        started = now()
    took, counts = now() - started, world.counts()
    release.set()
    assert took == pytest.approx(3.0, abs=0.3)
    assert counts == (1, 0)


@with_world
async def test_step_5_acknowledgements_are_flushed(world: World) -> None:
    """What was handled in the last instant is deleted before the stop ends."""
    world.create()
    orders = sleeping(world)
    async with orders:
        world.send_orders("1")
        while not orders.statistics().succeeded:
            await asyncio.sleep(0)
        assert world.counts() == (0, 1)
    counts, settled = world.counts(), dict(orders.statistics().settled)
    assert counts == (0, 0)
    assert settled == {Settlement.ACKED: 1}


@with_world
async def test_step_5_a_delete_that_is_denied_for_ever_does_not_hold_a_stop_up(world: World) -> None:
    """AccessDenied on every delete: the calls are bounded and the stop returns."""
    world.create()
    calls = 0
    queue = await world.client.__aenter__()
    opened = await queue.queue("orders")

    async def deny(_handles: Any) -> Any:
        nonlocal calls
        calls += 1
        raise AccessDenied("not allowed to delete")

    orders = Consumer("orders", context=Tenant, client=_Opened(_Altered(opened, delete=deny)))

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None: ...

    world.send_orders(*(str(n) for n in range(25)))
    async with orders:
        await asyncio.sleep(2)
        started = now()
    took = now() - started
    await world.client.__aexit__(None, None, None)
    failures = orders.statistics().settlement_failures
    assert took <= 2.5
    assert calls <= 5
    assert failures == 25


@with_world
async def test_step_5_returning_and_calling_back_share_their_time(world: World) -> None:
    """SQS answers no change any longer: neither what is returned nor what is parked holds a stop up beyond flush."""
    world.create()
    heard = asyncio.Event()
    heard.set()
    inner = await world.client.__aenter__()
    opened = await inner.queue("orders")

    async def change(changes: Any) -> Any:
        await heard.wait()
        return await opened.change_visibility(changes)

    deaf = _Opened(_Altered(opened, change_visibility=change))
    orders = Consumer(
        "orders", context=Tenant, client=deaf, polling=Polling(lane=1), shutdown=Shutdown(poll=0, flush=3)
    )

    @orders.handler
    async def unused(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise AssertionError("not reached")

    orders.tenants.pause(Tenant("a"))
    world.send_orders(*(str(n) for n in range(200)), tenant="a")
    async with orders:
        await asyncio.sleep(5)
        parked = orders.statistics().deferred
        heard.clear()
        started = now()
    took = now() - started
    await world.client.__aexit__(None, None, None)
    assert parked > 0
    assert took <= 3.5


class _Opened:
    """A client with a queue that is open already."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    async def queue(self, _name: str) -> Any:
        return self._queue


class _Altered:
    """A queue that has some of its calls answered by the test."""

    def __init__(self, queue: Any, **calls: Any) -> None:
        self._queue = queue
        vars(self).update(calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


@with_world
async def test_step_6_the_heartbeat_lasts_through_the_drain(world: World) -> None:
    """A handler that drains for two visibility timeouts keeps its message until it is acknowledged."""
    from postroom import Visibility

    world.create()
    databases = Databases()
    options = {"visibility": Visibility(timeout=10), "shutdown": Shutdown(drain=60)}
    async with sleeping(world, databases, **options):
        world.send_orders("1", seconds=25)
        await asyncio.sleep(1)
    assert (databases.rows("a"), world.counts()) == (["1"], (0, 0))


@with_world
async def test_step_7_databases_close_after_the_last_handler(world: World) -> None:
    """Never under a running handler; the world's databases refuse a write after they closed."""
    world.create()
    databases = Databases()
    async with sleeping(world, databases):
        world.send_orders("1", tenant="a", seconds=5)
        world.send_orders("2", tenant="b", seconds=1)
        await asyncio.sleep(0.5)
    assert (databases.rows("a"), databases.rows("b")) == (["1"], ["2"])
    diary = databases.diary
    assert sorted(diary[:2]) == ["open a", "open b"]
    assert sorted(diary[2:]) == ["close a", "close b"]


@with_world
async def test_step_8_the_client_closes_last_and_only_when_nobody_uses_it(world: World) -> None:
    """Two consumers share a client: the first to stop leaves it open."""
    world.create()
    world.create("others")
    first = sleeping(world)
    second = Consumer("others", client=world.client)

    @second.handler
    async def ignore(order: dict[str, Any], ctx: MessageContext) -> None: ...

    async with second:
        async with first:
            pass
        world.send({"a": 1}, queue="others")
        await asyncio.sleep(1)
        assert second.statistics().succeeded == 1


@with_world
async def test_nothing_of_a_consumer_is_left_after_a_stop(world: World) -> None:
    """No task, no lease, no resource (I8). The virtual loop itself reports tasks that are left."""
    world.create()
    before = asyncio.all_tasks()
    orders = sleeping(world)
    async with orders:
        world.send_orders(*(str(n) for n in range(5)), seconds=1)
        await asyncio.sleep(0.5)
    statistics = orders.statistics()
    assert (statistics.held, statistics.running, statistics.waiting) == (0, 0, 0)
    assert statistics.pool is not None
    assert statistics.pool.live == 0
    assert ({task.get_name() for task in asyncio.all_tasks() - before}) == set()


Timers = list[tuple[asyncio.TimerHandle, str]]


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    """Every timer that a component sets from now on, with the name of what it calls."""
    made: Timers = []

    def noting(set_timer: Callable[..., asyncio.TimerHandle]) -> Callable[..., asyncio.TimerHandle]:
        def set_and_note(tasks: Tasks, when: float, function: Any, *arguments: Any) -> asyncio.TimerHandle:
            timer = set_timer(tasks, when, function, *arguments)
            made.append((timer, function.__name__))
            return timer

        return set_and_note

    monkeypatch.setattr(Tasks, "call_later", noting(Tasks.call_later))
    monkeypatch.setattr(Tasks, "call_at", noting(Tasks.call_at))
    return made


def alive(timers: Timers) -> list[str]:
    """Return what the event loop will call."""
    return [name for timer, name in timers if not timer.cancelled() and timer.when() > now()]


@pytest.mark.parametrize("several", [False, True])
@with_world
async def test_no_timer_of_a_consumer_is_left_after_a_stop(world: World, several: bool, timers: Timers) -> None:
    """It would hold the whole consumer in the event loop of a web application, for as long as a poll may take."""
    for name in ("orders", "invoices"):
        world.create(name)
    queues: dict[str, Any] = {"queues": ["orders", "invoices"]} if several else {"queue": "orders"}
    orders: Consumer[Tenant, None] = Consumer(context=Tenant, client=world.client, **queues)

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(order.seconds)

    async with orders:
        world.send_orders(*(str(n) for n in range(5)), seconds=1)
        await asyncio.sleep(1.5)
    assert timers
    assert alive(timers) == []


def test_no_timer_is_left_of_a_queue_that_is_listed_no_longer(timers: Timers) -> None:
    """Its polls have ended, and nothing looks at them."""

    async def scenario(world: World) -> list[str]:
        for name in ("orders", "invoices"):
            world.create(name)
        listed = ["orders", "invoices"]
        orders: Consumer[Tenant, None] = Consumer(
            queues=Queues(lambda: list(listed), every=5), context=Tenant, client=world.client
        )

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
            pass

        async with orders:
            await asyncio.sleep(1)
            listed.remove("invoices")
            while len(orders.statistics().queues) > 1:
                await asyncio.sleep(0.5)
            return [name for name in alive(timers) if name == "_look_for_overdue"]

    assert len(in_world(scenario)) <= 1, "that of the queue that is still consumed"


@pytest.mark.parametrize("stops", [False, True])
@with_world
async def test_messages_of_tasks_that_were_cancelled_before_their_first_step_are_not_forgotten(
    world: World, stops: bool
) -> None:
    """Code that cancels every task of the loop may hit one that was just made: its message comes again, a stop ends."""
    world.create()
    world.send_orders("1", "2", "3")
    orders = Consumer("orders", context=Tenant, client=world.client)
    handled: list[str] = []

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, None]) -> None:
        if order.order_id == "1":
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                if task.get_name().startswith("postroom-message-"):
                    task.cancel()
            if stops:
                orders.stop()
        handled.append(order.order_id)

    async with orders:
        await (orders.wait_for_stop() if stops else asyncio.sleep(10))
        began = now()
    counts, seconds = world.counts(), now() - began
    assert sorted(handled) == (["1"] if stops else ["1", "2", "3"])
    assert counts == ((2, 0) if stops else (0, 0))
    assert seconds < 3


@with_world
async def test_stop_is_idempotent_and_may_come_from_a_handler(world: World) -> None:
    """Two stops are one; run() returns."""
    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def finish(order: Order, ctx: MessageContext[Tenant]) -> None:
        orders.stop()
        orders.stop()

    world.send_orders("1")
    await orders.run()
    orders.stop()
    assert orders.running is False


@with_world
async def test_stop_now_cancels_without_waiting(world: World) -> None:
    """The second signal: handlers are cancelled although their drain time is not over."""
    world.create()
    orders = sleeping(world, shutdown=Shutdown(drain=1000, poll=0))
    await orders.__aenter__()
    world.send_orders("1", seconds=500)
    await asyncio.sleep(1)
    leaving = asyncio.create_task(orders.__aexit__(None, None, None), name="leave")
    await asyncio.sleep(3)
    started = now()
    orders.stop(now=True)
    await leaving
    seconds, counts = now() - started, world.counts()
    assert seconds < 0.5
    assert counts == (1, 0)


@with_world
async def test_a_caller_that_is_cancelled_still_stops_in_order(world: World) -> None:
    """The caller's CancelledError goes on after the consumer has stopped, not before (I6)."""
    world.create()
    orders = sleeping(world, shutdown=Shutdown(drain=1000))
    world.send_orders("1", seconds=500)
    running = asyncio.create_task(orders.run(), name="run")
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (orders.running, world.counts()) == (False, (1, 0))


@with_world
async def test_a_dead_poller_stops_the_consumer_and_is_raised(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that polls no more must not look alive. What a transport raises is none of its defects."""

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(AdaptivePolicy, "next", broken)
    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None: ...

    with pytest.raises(ZeroDivisionError):
        await orders.run()
    assert not orders.running


@with_world
async def test_observers_are_told_of_start_and_stop(world: World) -> None:
    """With the queue and the reason."""
    world.create()
    events: list[Event] = []
    orders = Consumer("orders", context=Tenant, observers=[events.append], client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None: ...

    async with orders:
        orders.stop(reason=StopReason.SIGNAL)
    started, *others, stopped = events
    assert isinstance(started, ConsumerStarted)
    assert started == ConsumerStarted("orders", started.statistics)
    assert others == [ConsumerStopping("orders", StopReason.SIGNAL)]
    assert stopped == ConsumerStopped("orders", StopReason.SIGNAL, 0, started.statistics)
    assert started.statistics is not None
    assert started.statistics().running == 0  # of the run that they are about, also after it


@with_world
async def test_a_provider_that_hangs_in_closing_is_bounded(world: World) -> None:
    """A database that does not close holds the stop up for Shutdown.close, no longer."""
    world.create()

    @asynccontextmanager
    async def sticky(tenant: Tenant) -> Any:
        try:
            yield Database(tenant)
        finally:
            await asyncio.sleep(1000)

    orders = Consumer(
        "orders", context=Tenant, resources=sticky, shutdown=Shutdown(close=3, poll=0), client=world.client
    )

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None: ...

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(1)
        started = now()
    assert (now() - started) < 7


@with_world
async def test_a_lane_that_is_full_while_blocked_does_not_close_the_buffer(world: World) -> None:
    """A black-holed tenant with half of the traffic: the others are served at once, and it holds no slot."""
    world.create()
    databases = Databases()
    databases.hanging.add("broken")
    orders = sleeping(world, databases, polling=Polling(prefetch=10, lane=4), concurrency=Concurrency(total=5))
    async with orders:
        for number in range(100):
            world.send_orders(f"x{number}", tenant="broken")
            world.send_orders(f"y{number}", tenant="well", seconds=0.1)
        await asyncio.sleep(8)
        statistics = orders.statistics()
        served, broken, running = len(databases.rows("well")), databases.rows("broken"), statistics.running
    assert served == 100
    assert broken == []
    assert running == 0


@with_world
async def test_a_stop_says_which_tenants_handlers_it_waits_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """How many of which tenant, and for how long; a stop that is over says how long it took."""
    caplog.set_level(logging.INFO, "postroom.consumer")
    world.create()
    async with sleeping(world, shutdown=Shutdown(drain=4, cancel=1, poll=0)):
        for number in range(3):
            world.send_orders(f"a-{number}", tenant="a", seconds=100)
        world.send_orders("b-0", tenant="b", seconds=100)
        await asyncio.sleep(1)
    said = [text for text in caplog.messages if text.startswith(("Stopping", "Still", "Stopped"))]
    assert said[0] == "Stopping orders: waiting up to 4 s for 4 handlers (a:eu-west-1 3, b:eu-west-1 1)"
    assert said[-1].startswith("Stopped consuming memory://local/000000000000/orders after 4.")


@with_world
async def test_a_pool_that_was_passed_keeps_a_stop_no_longer_than_an_own_one(world: World) -> None:
    """Its own PoolTimeouts.close is longer than what is left of the 30 s; it goes on closing, and the stop is over."""
    world.create()
    closed = asyncio.Event()

    @asynccontextmanager
    async def sticky(tenant: Tenant) -> Any:
        try:
            yield Database(tenant)
        finally:
            await asyncio.sleep(20)
            closed.set()

    pool = ResourcePool(sticky, timeouts=PoolTimeouts(close=60))
    orders = sleeping(world, pool)
    async with orders:
        world.send_orders("1")
        await asyncio.sleep(1)
        started = now()
    took, open_still = now() - started, not closed.is_set()
    await closed.wait()
    await pool.aclose()
    assert took <= Shutdown().close + 1.0
    assert open_still


@with_world
async def test_an_idle_stop_does_not_wait_where_a_receive_can_be_cancelled(world: World) -> None:
    """In memory, and on a server on this machine, nothing is stranded; only AWS needs Shutdown(poll=...)."""
    world.create()
    async with sleeping(world, shutdown=Shutdown(poll=2)):
        await asyncio.sleep(5)
        started = now()
    assert (now() - started) == 0.0
