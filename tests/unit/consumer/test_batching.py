"""Batches: of one tenant, up to a size or a time, each message settled by itself, whatever happens to the others."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Self, TypeVar

import pytest
from typing_extensions import TypeAliasType

from postroom import (
    AckMode,
    AlreadyHandled,
    BatchContext,
    Concurrency,
    ConfigurationError,
    Consumer,
    Drop,
    Failure,
    MessageContext,
    MessageError,
    PayloadError,
    Reject,
    Retry,
    RetryPolicy,
    Shutdown,
    Visibility,
    current_message,
)
from postroom.consumer.batching import element_type_of
from postroom.events import Event, HandlerFinished
from support.world import Database, Databases, Order, Tenant, World, with_world

Batch = Callable[[list[Order], BatchContext[Tenant, Database]], Awaitable[None]]
SLOTS = Concurrency(total=40, per_tenant=10)


class Scene:
    """A consumer with a batch handler, in a world."""

    def __init__(
        self, world: World, function: Batch, *, queue: str = "orders", size: int = 5, wait: float = 1.0, **options: Any
    ) -> None:
        self.databases = Databases()
        self.errors: list[Failure] = []
        options = {"concurrency": SLOTS, "on_error": self.errors.append, **options}
        self.orders: Consumer[Tenant, Database] = Consumer(
            queue, context=Tenant, resources=self.databases, client=world.client, **options
        )
        self.orders.batch_handler(size=size, wait=wait)(function)

    async def until(self, count: int) -> dict[str, int]:
        """Work until so many messages were settled."""
        async with self.orders, asyncio.timeout(600):
            while sum(self.orders.statistics().settled.values()) < count:
                await asyncio.sleep(0.1)
            return {str(name): number for name, number in self.orders.statistics().settled.items()}


@with_world
async def test_a_batch_is_of_one_tenant_and_full_or_late(world: World) -> None:
    """Up to five, and what is left after a second. Nothing is the current message of a batch."""
    world.create()
    world.send_orders(*map(str, range(7)), tenant="a")
    world.send_orders("x", "y", tenant="b")
    seen: list[tuple[float, str, list[str]]] = []

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        assert current_message() is None
        assert {item.context for item in batch.items} == {batch.context}
        assert all(item.resources is batch.resources for item in batch.items)
        now = asyncio.get_running_loop().time()
        seen.append((now, batch.context.tenant_id, [order.order_id for order in orders]))
        for order in orders:
            batch.resources.write(order.order_id)

    scene = Scene(world, store)
    assert await scene.until(9) == {"acked": 9}
    assert sorted((name, len(ids)) for _, name, ids in seen) == [("a", 2), ("a", 5), ("b", 2)]
    for when, _, ids in seen:
        assert when < 0.5 if len(ids) == 5 else 0.9 < when < 1.6
    assert sorted(scene.databases.rows("a")) == [str(number) for number in range(7)]


@with_world
async def test_each_message_fails_by_its_place(world: World) -> None:
    """With whatever a handler may raise; the others are acknowledged."""
    world.create(dead_letters="dead", receives=5)
    world.send_orders(*"01234")

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        if len(orders) == 1:
            return
        errors = {"1": ValueError("no"), "2": Reject("bad"), "3": Retry(delay=5), "4": AlreadyHandled()}
        for index, order in enumerate(orders):
            if order.order_id in errors:
                batch.fail(index, errors[order.order_id])
        assert len(batch.failures) == 4

    scene = Scene(world, store, retry=RetryPolicy(base=1))
    settled = await scene.until(7)
    assert settled == {"acked": 4, "retried": 2, "rejected": 1}
    assert [str(failure.error) for failure in scene.errors] == ["no"]
    assert isinstance(scene.errors[0].payload, Order)
    assert world.counts("dead") == (1, 0)


@with_world
async def test_what_the_handler_raises_is_the_failure_of_all_that_did_not_fail_before(world: World) -> None:
    """Each attempt is counted by itself."""
    world.create(dead_letters="dead", receives=5)
    world.send_orders(*"012")
    attempts: list[list[int]] = []

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        attempts.append(sorted(item.attempt for item in batch.items))
        if len(attempts) == 1:
            batch.fail(0, Reject("mine"))
            raise OSError("all")

    scene = Scene(world, store, size=3, retry=RetryPolicy(base=1, jitter=0))
    settled = await scene.until(5)
    assert settled == {"acked": 2, "retried": 2, "rejected": 1}
    assert attempts == [[1, 1, 1], [2, 2]]


@with_world
async def test_a_batch_that_returns_its_work_has_failed(world: World) -> None:
    """A coroutine without its await has not run: none of its messages is acknowledged."""
    world.create()
    world.send_orders("1", "2", "3")
    calls = 0

    async def work(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        for order in orders:
            batch.resources.write(order.order_id)

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> Any:
        nonlocal calls
        calls += 1
        return work(orders, batch) if calls == 1 else await work(orders, batch)

    scene = Scene(world, store)
    assert await scene.until(6) == {"retried": 3, "acked": 3}
    assert {type(failure.error) for failure in scene.errors} == {TypeError}
    assert sorted(scene.databases.rows("a")) == ["1", "2", "3"]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("error", [AlreadyHandled, Drop, Reject, Retry])
@with_world
async def test_what_one_message_says_decides_for_no_other(world: World, error: Any, grouped: bool) -> None:
    """``AlreadyHandled`` that leaves the handler is an error, and so is each instruction out of a ``TaskGroup``."""
    world.create(dead_letters="dead")
    world.send_orders(*"01")

    async def work(order: Order) -> None:
        if order.order_id == "0":
            raise error() if error is AlreadyHandled else error("it")
        await asyncio.sleep(1)

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        if len(handled := [*orders]) == 1 or batch.items[0].attempt > 1:
            return
        if not grouped:
            await work(min(handled, key=lambda order: order.order_id))
        async with asyncio.TaskGroup() as tasks, asyncio.TaskGroup() as inner:
            for order in handled:
                (tasks if order.order_id == "0" else inner).create_task(work(order))

    scene = Scene(world, store, size=2, retry=RetryPolicy(base=1))
    settled = await scene.until(2)
    if grouped or error is AlreadyHandled:
        assert settled == {"retried": 2}
        assert f"{error.__name__} left the handler of a batch" in str(scene.errors[0].error)
    else:  # the handler says it of all of them
        assert settled == {{Drop: "acked", Reject: "rejected", Retry: "retried"}[error]: 2}


@with_world
async def test_a_stop_waits_for_a_batch_and_cancels_it_after_that(world: World) -> None:
    """Cancelled, its messages go back; the database is not closed under it."""
    world.create()
    world.send_orders(*"012")
    ended: list[bool] = []

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        scene.orders.stop()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.5)
            ended.append(batch.resources.open)

    scene = Scene(world, store, size=3, shutdown=Shutdown(drain=2, cancel=2))
    await scene.orders.run()
    assert ended == [True]
    assert world.counts() == (3, 0)


@with_world
async def test_a_batch_goes_on_when_one_of_its_messages_is_lost(world: World) -> None:
    """The others are acknowledged; the lost one is another consumer's."""
    world.create()
    world.send_orders(*"012")
    started: list[int] = []
    done: list[int] = []

    def visibility(call: Any) -> Visibility:
        lost = '"order_id":"1"' in call.message.body
        return Visibility(timeout=4.0, heartbeat=False) if lost else Visibility()

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        started.append(len(orders))
        if len(started) == 1:
            await asyncio.sleep(100)
        done.append(len(orders))

    scene = Scene(world, store, size=3, visibility=visibility)
    async with scene.orders:
        await asyncio.sleep(120)
        settled = scene.orders.statistics().settled
    assert (started, done) == ([3, 1], [1, 3])
    assert {str(name): count for name, count in settled.items()}["acked"] == 3
    assert world.counts() == (0, 0)


@with_world
async def test_one_that_is_cancelled_while_it_collects_leaves_the_others(world: World) -> None:
    """As by its middleware. The time that it waited is no time of its handler either."""
    world.create()
    world.send_orders("0")
    sizes: list[int] = []
    told: list[float] = []

    async def layer(payload: Order, ctx: MessageContext[Any, Any], call_next: Any) -> None:
        async with asyncio.timeout(3):
            await call_next(payload, ctx)

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        sizes.append(len(orders))

    def observe(event: Event) -> None:
        if isinstance(event, HandlerFinished):
            told.append(event.seconds)

    scene = Scene(world, store, wait=3.5, middleware=[layer], observers=[observe], retry=RetryPolicy(base=60))
    async with scene.orders:
        await asyncio.sleep(1)
        world.send_orders("1")
        await asyncio.sleep(9)
    assert [type(failure.error).__name__ for failure in scene.errors] == ["TimeoutError"]
    assert sizes == [1]
    assert told == pytest.approx([0.0, 0.0])


@with_world
async def test_a_task_that_is_cancelled_before_its_first_step_holds_no_slot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by code that cancels every task of the loop: its messages come again, and are not lost under ALWAYS."""
    world.create()
    world.send_orders(*map(str, range(5)))
    handled: list[str] = []

    async def store(orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        handled.extend(order.order_id for order in orders)

    loop, cancelled = asyncio.get_running_loop(), list[str]()
    create_task = loop.create_task

    def create(work: Any, **options: Any) -> asyncio.Task[Any]:
        task = create_task(work, **options)
        if not cancelled and task.get_name().startswith("postroom-batch"):
            cancelled.append(task.get_name())
            task.cancel()
        return task

    monkeypatch.setattr(loop, "create_task", create)
    scene = Scene(world, store, ack=AckMode.ALWAYS)
    assert await scene.until(10) == {"acked": 5, "retried": 5}
    assert scene.orders.statistics().running == 0
    assert cancelled
    assert sorted(handled) == ["0", "1", "2", "3", "4"]


@with_world
async def test_middleware_is_called_for_each_message(world: World) -> None:
    """Around its waiting and its batch; what it sets is not seen by other messages' middleware."""
    mark: ContextVar[str] = ContextVar("mark", default="none")
    world.create()
    world.send_orders(*"01")
    told: list[str] = []

    async def layer(payload: Order, ctx: MessageContext[Any, Any], call_next: Any) -> None:
        told.append(f"{mark.get()} {payload.order_id}")
        mark.set(payload.order_id)
        await call_next(payload, ctx)
        told.append("after")

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        told.append(f"batch of {len(orders)}")

    await Scene(world, store, size=2, middleware=[layer]).until(2)
    assert sorted(told[:2]) == ["none 0", "none 1"]
    assert told[2:] == ["batch of 2", "after", "after"]


@with_world
async def test_the_end_of_the_process_is_the_handlers_to_ask_for(world: World) -> None:
    """``SystemExit`` ends the consumer, in order, and nothing is acknowledged."""
    world.create()
    world.send_orders(*"01")

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        raise SystemExit(7)

    scene = Scene(world, store, size=2)
    with pytest.raises(SystemExit):
        await scene.orders.run()
    assert sum(world.counts()) == 2


async def _list(payloads: list[Order], batch: BatchContext[Tenant, None]) -> None:
    """Handle a list."""


async def _single(payload: Order, batch: BatchContext[Tenant, None]) -> None:
    """Handle no list."""


def _plain(payloads: list[Order], batch: BatchContext[Tenant, None]) -> None:
    """Handle nothing in a thread."""


@pytest.mark.parametrize(
    ("options", "function", "text"),
    [
        ({"size": 0}, _list, "from 1 up"),
        ({"size": True}, _list, "from 1 up"),
        ({"wait": -1}, _list, "0 or more"),
        ({"size": 50}, _list, r"write Concurrency\(total=64, per_tenant=50\)"),
        ({"size": 100}, _list, r"write Concurrency\(total=100, per_tenant=100\)"),
        ({}, _single, r"annotate it as list\[Order\]"),
        ({}, _plain, "asyncio.to_thread"),
        ({}, 3, "takes a function"),
    ],
)
def test_mistakes_are_told_when_it_is_registered(options: dict[str, Any], function: Any, text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=text):
        Consumer("orders", context=Tenant).batch_handler(**options)(function)


T = TypeVar("T")
Page = TypeAliasType("Page", list[T], type_params=(T,))
Pages = TypeAliasType("Pages", Page[Order])


@pytest.mark.parametrize("annotation", [Page[Order], Pages, Annotated[Page[Order], "a note"], Sequence[Order]])
def test_a_list_may_have_a_name_and_notes(annotation: Any) -> None:
    """It says of what it is a list all the same."""

    async def store(payloads: Any, batch: Any) -> None: ...

    store.__annotations__["payloads"] = annotation
    assert element_type_of(store) is Order


def test_a_place_that_is_none_is_refused() -> None:
    """And an error that is none."""
    batch = BatchContext[None, None]([MessageContext(None, None, None, None, 1, None)])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="from 0 to 0"):
        batch.fail(1, ValueError())
    with pytest.raises(ConfigurationError, match="takes an exception"):
        batch.fail(0, "no")  # type: ignore[arg-type]


def test_one_consumer_has_one_batch_handler() -> None:
    """A second one is refused."""
    orders = Consumer("orders", context=Tenant)
    assert orders.batch_handler(size=2)(_list) is _list
    with pytest.raises(ConfigurationError, match="has a handler already"):
        orders.batch_handler(size=2)(_list)


@with_world
async def test_a_stop_hands_over_what_was_collected(world: World) -> None:
    """At once, and not after ``wait``; what was collected is acknowledged. A second run waits for others again."""
    world.create()
    sizes: list[int] = []

    async def store(orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        sizes.append(len(orders))

    scene = Scene(world, store, wait=1000.0)
    for _ in range(2):
        world.send_orders("1", "2", "3", tenant="a")
        world.send_orders("4", tenant="b")
        async with scene.orders:
            await asyncio.sleep(20)
            assert scene.orders.statistics().settled == {}
            stopping = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - stopping < 1.0
    assert sorted(sizes) == [1, 1, 3, 3]
    assert world.counts() == (0, 0)
    assert scene.errors == []


@with_world
async def test_a_pause_hands_over_what_was_collected_of_its_tenant(world: World) -> None:
    """A drain would wait for it; other tenants' messages go on to wait for company."""
    world.create()
    seen: list[str] = []

    async def store(_orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        seen.append(batch.context.tenant_id)

    scene = Scene(world, store, wait=1000.0)
    world.send_orders("1", tenant="a")
    world.send_orders("2", tenant="b")
    async with scene.orders:
        await asyncio.sleep(5)
        async with asyncio.timeout(5):
            await scene.orders.tenants.drain(Tenant("a"), reason="move")
        assert seen == ["a"]


@pytest.mark.parametrize("before", [0.0, 0.5])
@with_world
async def test_the_wait_for_others_is_no_time_of_the_handler(world: World, before: float) -> None:
    """Neither of its limit, which may be shorter than the wait, nor of the seconds that are told; middleware is."""
    world.create()
    world.send_orders("0")
    ran: list[float] = []
    told: list[float] = []
    loop = asyncio.get_running_loop()

    async def layer(payload: Order, ctx: MessageContext[Any, Any], call_next: Any) -> None:
        await asyncio.sleep(before)
        await call_next(payload, ctx)

    async def store(_orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        began = loop.time()
        try:
            await asyncio.sleep(3600 if not ran else 1.4)
        finally:
            ran.append(loop.time() - began)

    def observe(event: Event) -> None:
        if isinstance(event, HandlerFinished):
            told.append(event.seconds)

    limited = Concurrency(total=20, per_tenant=10, handler_timeout=2.0)
    options: dict[str, Any] = {"middleware": [layer], "observers": [observe], "concurrency": limited}
    scene = Scene(world, store, wait=5.0, retry=RetryPolicy(base=1, jitter=0), **options)
    assert await scene.until(2) == {"retried": 1, "acked": 1}
    assert ran == pytest.approx([2.0 - before, 1.4])
    assert told == pytest.approx([2.0, before + 1.4])
    assert [type(failure.error).__name__ for failure in scene.errors] == ["HandlerTimeout"]


@with_world
async def test_nothing_goes_back_before_the_handler_has_ended(world: World) -> None:
    """After the time limits of its messages, which begin one after another, it cleans up, and is not called beside."""
    world.create()
    world.send_orders("0")
    running: list[str] = []
    calls: list[int] = []
    cancelled: list[float] = []

    async def store(orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        calls.append(len(orders))
        assert not running
        running.extend(order.order_id for order in orders)
        try:
            await asyncio.sleep(3600 if len(calls) == 1 else 0)
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop().time())
            await asyncio.sleep(10)
            raise
        finally:
            running.clear()

    limited = Concurrency(total=20, per_tenant=10, handler_timeout=3.0)
    scene = Scene(world, store, size=2, concurrency=limited, retry=RetryPolicy(base=0.1))
    async with scene.orders:
        await asyncio.sleep(0.5)
        world.send_orders("1")
        await asyncio.sleep(60)
    assert sum(calls) == 4
    assert calls[0] == 2
    assert [when > 3.4 for when in cancelled] == [True]  # once, with the last of its messages
    assert [type(failure.error).__name__ for failure in scene.errors] == ["HandlerTimeout"] * 2
    assert world.counts() == (0, 0)


@pytest.mark.parametrize("ignored", [1, 2])
@with_world
async def test_what_a_cancelled_handler_finishes_is_acknowledged(world: World, ignored: int) -> None:
    """As with a handler of one message: it was done. A stop cancels again what went on after its time limit."""
    world.create()
    world.send_orders(*"012")
    visible: list[int] = []

    async def store(_orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        for _ in range(ignored):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
                visible.append(world.counts()[0])

    limited = Concurrency(total=20, per_tenant=10, handler_timeout=3.0 if ignored == 2 else None)
    scene = Scene(world, store, size=3, concurrency=limited)
    async with scene.orders:
        await asyncio.sleep(10)
        scene.orders.stop(now=True)
    assert visible == [0] * ignored
    assert {str(name): count for name, count in scene.orders.statistics().settled.items()} == {"acked": 3}
    assert world.counts() == (0, 0)


class _Odd(MessageError):
    """Cannot be made again from what it keeps."""

    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"{code} at {where}")


class _Uncopied(ValueError):
    """Cannot be made again at all."""

    def __new__(cls, *, where: str) -> Self:
        return super().__new__(cls, where)

    def __init__(self, *, where: str) -> None:
        super().__init__(where)


@pytest.mark.parametrize("by_place", [True, False])
@pytest.mark.parametrize(
    "error",
    [ValueError("no"), PayloadError("no customer"), _Odd(7, where="x"), _Uncopied(where="x")],
    ids=lambda error: type(error).__name__,
)
@with_world
async def test_each_message_fails_with_an_error_of_its_own(
    world: World, error: Exception, by_place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It names its message, keeps its class, text and notes, and is logged as long as those of the others."""
    error.__notes__ = ["a hint"]
    error.__traceback__ = None
    world.create()
    world.send_orders(*"01234")
    named: list[bool] = []

    async def on_error(failure: Failure) -> None:
        await asyncio.sleep(0.1)
        assert type(failure.error) is type(error)
        assert (str(failure.error), failure.error.__notes__) == (str(error), ["a hint"])
        if isinstance(failure.error, MessageError):
            assert failure.message is not None
            named.append(failure.error.message_id == failure.message.id)

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        if not by_place:
            raise error
        for index in range(len(orders)):
            batch.fail(index, error)

    assert await Scene(world, store, on_error=on_error).until(5) == {"retried": 5}
    assert named == [True] * (5 if isinstance(error, MessageError) else 0)
    lengths = [len(str(record.exc_text or record.message)) for record in caplog.records if record.levelname == "ERROR"]
    assert len(lengths) == 5
    assert max(lengths) == min(lengths)


@with_world
async def test_contexts_that_are_equal_but_of_other_types_are_not_mixed(world: World) -> None:
    """``1``, ``True`` and ``1.0`` are three tenants, as in the pool."""
    world.create()
    contexts = {"one": 1, "true": True, "float": 1.0}
    seen: list[str] = []
    orders: Consumer[Any, None] = Consumer(
        "orders", context=lambda message: contexts[message.attributes["tenantId"]], client=world.client
    )

    @orders.batch_handler(size=5, wait=0.5)
    async def store(payloads: list[Order], batch: BatchContext[Any, None]) -> None:
        seen.extend(f"{batch.context!r} {item.context!r}" for item in batch.items)

    for tenant in contexts:
        world.send_orders("0", tenant=tenant)
    world.send_orders("1", tenant="one")
    async with orders:
        await asyncio.sleep(5)
    assert sorted(seen) == ["1 1", "1 1", "1.0 1.0", "True True"]


@pytest.mark.parametrize(("tenants", "each"), [(1, 42), (3, 40), (40, 1), (40, 3)])
@with_world
async def test_a_batch_does_not_wait_with_slots_that_messages_wait_for(world: World, tenants: int, each: int) -> None:
    """Its tenant can get no further one, or others need its slots. But a tenant's own batch that runs is waited for."""
    world.create()
    for number in range(each):
        for tenant in range(tenants):
            world.send_orders(f"{number}", tenant=f"t{tenant}")
    sizes: list[int] = []

    async def store(orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        await asyncio.sleep(0.1)
        sizes.append(len(orders))

    scene = Scene(world, store, size=6, wait=1000.0, concurrency=Concurrency(total=12, per_tenant=8))
    async with scene.orders:
        await asyncio.sleep(each * tenants / 12 + 5)
        left = each * tenants - sum(sizes)
    if tenants == 1:
        assert set(sizes) == {6}
    # The last ones wait for others again: nothing waits for their slots.
    assert left < (6 if tenants == 1 else 13)


@with_world
async def test_what_is_lost_while_it_waits_for_its_batch_is_not_handled(world: World) -> None:
    """Also where it is lost in the very moment in which the batch begins: another consumer may have it by then."""
    world.create()
    world.send_orders(*"012")
    seen: list[list[str]] = []

    def visibility(call: Any) -> Visibility:
        lost = '"order_id":"1"' in call.message.body and call.message.receive_count == 1
        return Visibility(heartbeat=not lost)

    async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
        seen.append(sorted(order.order_id for order in orders))
        assert len(batch.items) == len(orders)

    scene = Scene(world, store, wait=60.0, visibility=visibility)
    async with scene.orders:
        await asyncio.sleep(200)
        settled = {str(name): count for name, count in scene.orders.statistics().settled.items()}
    assert seen == [["0", "2"], ["1"]]
    assert settled == {"acked": 3, "lost": 1}
    assert world.counts() == (0, 0)


@with_world
async def test_nothing_of_a_group_overtakes_a_message_that_is_lost_in_a_batch(world: World) -> None:
    """What follows it in its group waits until the handler that has it has ended."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    for order, group in (("0", "x"), ("1", "y"), ("2", "y")):
        world.send({"order_id": order}, tenant="a", group=group, queue="orders.fifo")
    running: list[str] = []
    seen: list[list[str]] = []

    def visibility(call: Any) -> Visibility:
        lost = '"order_id":"1"' in call.message.body and call.message.receive_count == 1
        return Visibility(heartbeat=not lost)

    async def store(orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        names = sorted(order.order_id for order in orders)
        seen.append(names + running)
        running.extend(names)
        await asyncio.sleep(100 if len(seen) == 1 else 1)
        del running[: len(names)]

    scene = Scene(world, store, queue="orders.fifo", size=2, visibility=visibility)
    async with scene.orders:
        await asyncio.sleep(200)
    assert seen == [["0", "1"], ["1"], ["2"]]
    assert world.counts("orders.fifo") == (0, 0)


@pytest.mark.parametrize("decision", ["quarantine", "divert", "pause"])
@with_world
async def test_a_decision_about_a_tenant_hands_over_what_was_collected(world: World, decision: str) -> None:
    """At once: nothing of it begins long after the decision."""
    world.create()
    world.create("elsewhere")
    began: list[float] = []

    async def store(_orders: list[Order], _batch: BatchContext[Tenant, Database]) -> None:
        began.append(asyncio.get_running_loop().time())

    scene = Scene(world, store, wait=1000.0)
    world.send_orders("1")
    async with scene.orders:
        await asyncio.sleep(5)
        decided = asyncio.get_running_loop().time()
        tenants = scene.orders.tenants
        if decision == "divert":
            tenants.divert(Tenant("a"), queue="elsewhere", reason="x")
        else:
            getattr(tenants, decision)(Tenant("a"), reason="x")
        await asyncio.sleep(50)
        assert began == [decided]
