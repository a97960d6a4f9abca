"""A transport that raises what its protocol does not name fails a call, and never the consumer."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from postroom import Consumer, Message, MessageContext, RetryPolicy
from postroom.consumer.facts import QueueFacts
from postroom.errors import Reject
from postroom.local import LocalBroker
from postroom.tasks import Tasks
from postroom.transports.memory import MemoryClient
from postroom.transports.protocol import EntryFailure, Queue
from support.passing import PassingClient, PassingQueue
from support.virtual import in_virtual_time
from support.world import Databases, Order, Tenant, World, in_world, with_world


class Exit(BaseException):
    """What a library ends its own loop with."""


ODD: list[type[BaseException]] = [Exit, GeneratorExit, asyncio.CancelledError]


class OddQueue(PassingQueue):
    """A queue that raises an error in one of its calls, the first times."""

    def __init__(self, inner: Queue, client: "OddClient") -> None:
        super().__init__(inner)
        self._client = client

    async def before(self, call: str) -> None:
        """Raise, or take long over a message that is called back."""
        self._client.visit(call)
        task = asyncio.current_task()
        if self._client.slow and task is not None and task.get_name() == "postroom-recall":
            self._client.recalling.set()
            await asyncio.sleep(self._client.slow)


class OddClient(MemoryClient):
    """Opens such queues."""

    place = ""
    error: type[BaseException] = Exit
    left = 0
    slow = 0.0
    recalling: asyncio.Event

    def visit(self, place: str) -> None:
        """Raise, if it is that call's turn."""
        if place == self.place and self.left > 0:
            self.left -= 1
            raise self.error

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        self.visit("queue")
        return OddQueue(await super().queue(name), self)


@pytest.mark.parametrize("error", ODD)
@pytest.mark.parametrize("place", ["receive", "delete", "change_visibility", "send", "attributes"])
@with_world
async def test_what_a_call_raises_fails_that_call(world: World, place: str, error: type[BaseException]) -> None:
    """It is tried again: one order is acknowledged, one retried, one rejected, and the consumer goes on."""
    world.create(dead_letters="dead")
    client = OddClient(world.broker)
    client.place, client.error, client.left = place, error, 2
    done: list[str] = []
    orders = Consumer("orders", context=Tenant, client=client, retry=RetryPolicy(base=1, jitter=0))

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, None]) -> None:
        if order.order_id == "bad":
            raise Reject("bad")
        if order.order_id == "again" and ctx.attempt == 1:
            raise ValueError
        await asyncio.sleep(order.seconds)
        done.append(order.order_id)

    async with orders:
        world.send_orders("good", "again", "bad")
        world.send_orders("long", seconds=100)
        await asyncio.sleep(150)
    left, dead, unraised = sum(world.counts()), sum(world.counts("dead")), client.left
    assert (sorted(done), left, dead) == (["again", "good", "long"], 0, 1)
    assert unraised == 0 or place == "attributes"  # which are read while messages come, a minute apart


def again_and_long(*, seconds: float) -> tuple[list[str], int]:
    """Consume one order that fails once and one that takes long. Return what was done, and what is left in the end."""

    async def scenario(world: World) -> tuple[list[str], int]:
        world.create()
        client = OddClient(world.broker)
        done: list[str] = []
        orders = Consumer("orders", context=Tenant, client=client, retry=RetryPolicy(base=1, jitter=0))

        @orders.handler
        async def handle(order: Order, ctx: MessageContext[Tenant, None]) -> None:
            if ctx.attempt == 1 and order.seconds < 50:
                raise ValueError
            await asyncio.sleep(order.seconds)
            done.append(order.order_id)

        async with orders:
            world.send_orders("again")
            world.send_orders("long", seconds=100)
            await asyncio.sleep(seconds)
        return sorted(done), sum(world.counts())

    return in_world(scenario)


def test_none_is_no_message_and_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that ends without a `return` where there is nothing to tell does not end the consumer."""
    names = ("receive", "delete", "change_visibility")
    originals = {name: getattr(OddQueue, name) for name in names}

    def sparing(name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            return await originals[name](*arguments, **named) or None

        return call

    for name in names:
        monkeypatch.setattr(OddQueue, name, sparing(name))

    assert again_and_long(seconds=150) == (["again", "long"], 0)


@pytest.mark.parametrize("place", ["receive", "delete", "change_visibility"])
@pytest.mark.parametrize(
    "answer",
    [True, ["gone"], [EntryFailure(10, "x")], {"Messages": []}, object()],
    ids=["flag", "texts", "place", "dict", "object"],
)
def test_what_a_call_should_not_return_fails_that_call(
    monkeypatch: pytest.MonkeyPatch, place: str, answer: object
) -> None:
    """The first three times. What is lost by that comes again."""
    original, left = getattr(OddQueue, place), [3]

    async def call(*arguments: Any, **named: Any) -> Any:
        if left[0] > 0 and (given := await original(*arguments, **named)) is not None:
            left[0] -= 1
            return answer if answer != {"Messages": []} else {"Messages": given}
        return await original(*arguments, **named)

    monkeypatch.setattr(OddQueue, place, call)

    done, left_over = again_and_long(seconds=600)
    assert (sorted(set(done)), left_over) == (["again", "long"], 0)
    assert left == [0]


@pytest.mark.parametrize(
    "answer",
    [None, [], True, [None, None], ["1", "2"], [EntryFailure(0, "x"), EntryFailure(0, "x")]],
    ids=["none", "empty", "flag", "nones", "texts", "places"],
)
@with_world
async def test_what_a_send_should_not_return_is_no_letter_that_was_sent(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """The messages would be deleted, and be nowhere."""
    original, left = OddQueue.send, [3]

    async def call(queue: OddQueue, messages: Any) -> Any:
        left[0] -= 1
        return await original(queue, messages) if left[0] < 0 else answer

    monkeypatch.setattr(OddQueue, "send", call)
    world.create(dead_letters="dead")
    orders = Consumer("orders", context=Tenant, client=OddClient(world.broker))

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, None]) -> None:
        raise Reject("bad")

    world.send_orders("1", "2")
    async with orders:
        await asyncio.sleep(600)
    assert (sum(world.counts()), sum(world.counts("dead"))) == (0, 2)
    assert left[0] < 0


@with_world
async def test_a_stop_waits_for_recalls_that_are_out(world: World) -> None:
    """What was deferred during an outage is visible soon after the stop, although calls were out when it began."""
    world.create(dead_letters="dead", receives=20)
    client = OddClient(world.broker)
    # Longer than the handlers that a stop waits for, and shorter than `Shutdown(flush=)`, which ends all calls.
    client.slow, client.recalling = 3.5, asyncio.Event()
    databases = Databases()
    databases.failures["a"] = ConnectionError
    orders = Consumer(
        "orders",
        context=Tenant,
        resources=databases,
        client=client,
    )

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
        await asyncio.sleep(order.seconds)

    world.send_orders(*map(str, range(200)), seconds=3)
    async with orders:
        # What is deferred comes back by itself when the pool tries again: it has to try before.
        while orders.statistics().away < 150:
            await asyncio.sleep(0.1)
        del databases.failures["a"]
        orders.tenants.retry_now(Tenant("a"))
        await asyncio.wait_for(client.recalling.wait(), 60)
        out = len([task for task in asyncio.all_tasks() if task.get_name() == "postroom-recall"])
    await asyncio.sleep(22)  # it is hidden from polls that were out
    (visible, hidden) = world.counts()
    assert out > 0
    assert hidden == 0
    assert visible > 150


@in_virtual_time
async def test_a_task_that_raises_cancelled_error_itself_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """One that was cancelled is not."""
    fatal: list[BaseException] = []
    tasks = Tasks(fatal.append)

    async def own() -> None:
        raise asyncio.CancelledError

    task = tasks.spawn(asyncio.sleep(100), "cancelled")
    tasks.spawn(own(), "own")
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.sleep(1)
    [error] = fatal
    assert "task own" in str(error)
    assert caplog.messages == ["Task own ended by a CancelledError that its own code raised"]


@in_virtual_time
async def test_a_timer_that_raises_what_is_no_exception_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """As one that raises an Exception is."""
    fatal: list[BaseException] = []

    def fail() -> None:
        raise Exit

    Tasks(fatal.append).call_later(1, fail)
    await asyncio.sleep(2)
    [error] = fatal
    assert isinstance(error, Exit)
    assert caplog.messages == ["A timer of postroom failed"]


@pytest.mark.filterwarnings("error")
def test_a_call_that_is_closed_with_its_loop_awaits_nothing_more() -> None:
    """As when a program is left in the middle: its coroutines end without a word, and no call counts as failed."""

    class Silent(OddQueue):
        async def before(self, call: str) -> None:
            if call == "attributes":
                await asyncio.Event().wait()

    async def begin() -> Any:
        async with LocalBroker() as broker, MemoryClient(broker) as client:
            broker.create_queue("orders")
            queue = Silent(await client.queue("orders"), OddClient(broker))
            call = QueueFacts(queue, Tasks(lambda _error: None))._ask()
            call.send(None)
            return call

    asyncio.run(begin()).close()


class DatedQueue(PassingQueue):
    """A queue with messages that say otherwise when they were sent."""

    sent: Callable[[float], float]

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive, with another time of sending."""
        messages = await super().receive(limit=limit, wait=wait, visibility=visibility, attempt_id=attempt_id)
        return list(map(self._dated, messages))

    def _dated(self, message: Message) -> Message:
        assert message.sent_at is not None
        said = {**message.system_attributes, "SentTimestamp": str(self.sent(message.sent_at))}
        return msgspec.structs.replace(message, system_attributes=said)


class DatedClient(PassingClient):
    """Opens such a queue for ``orders``."""

    def __init__(self, inner: MemoryClient, sent: Callable[[float], float]) -> None:
        super().__init__(inner)
        self._sent = sent

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        opened = await super().queue(name)
        if name != "orders":
            return opened
        dated = DatedQueue(opened)
        dated.sent = self._sent
        return dated


def in_seconds(sent_at: float) -> float:
    """Answer seconds where SQS answers milliseconds."""
    return sent_at


def at_the_epoch(_sent_at: float) -> float:
    """Know no time."""
    return 0


def five_days_ago(sent_at: float) -> float:
    """Go wrong by more than the retention period."""
    return (sent_at - 5 * 86_400) * 1000


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(in_seconds, id="in seconds"),
        pytest.param(at_the_epoch, id="at the epoch"),
        pytest.param(five_days_ago, id="five days ago"),
    ],
)
@with_world
async def test_a_message_that_was_handed_out_has_not_expired(world: World, sent: Callable[[float], float]) -> None:
    """Its retention period seems to be over, by a wrong clock or a wrong time of sending: it waits for its tenant."""
    world.create(dead_letters="dead", receives=10)
    databases, done = Databases(), 0
    databases.failures["acme"] = lambda: ConnectionRefusedError("down")
    client = DatedClient(world.client, sent)
    orders = Consumer("orders", context=Tenant, resources=databases, client=client)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, Any]) -> None:
        nonlocal done
        done += 1

    async with orders:
        world.send_orders(*map(str, range(20)), tenant="acme")
        await asyncio.sleep(300)
        del databases.failures["acme"]
        await asyncio.sleep(300)
    assert (done, sum(world.counts("dead"))) == (20, 0)


@with_world
async def test_a_queue_that_is_deleted_and_made_again_is_consumed_again(world: World) -> None:
    """A queue is its name, as it is by its URL over the network."""
    world.create()
    done: list[str] = []
    orders = Consumer("orders", client=world.client)

    @orders.handler
    async def handle(order: Order, _ctx: MessageContext[None, None]) -> None:
        done.append(order.order_id)

    async with orders:
        world.send_orders("before")
        await asyncio.sleep(1)
        world.broker.delete_queue("orders")
        await asyncio.sleep(70)
        world.create()
        await asyncio.sleep(60)
        world.send_orders("after")
        await asyncio.sleep(30)
    assert done == ["before", "after"]
