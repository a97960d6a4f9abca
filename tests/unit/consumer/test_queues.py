"""One consumer over several queues: slots, tenants and resources are shared, and each message is settled in its own."""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import pytest

from postroom.consumer import Consumer, MessageContext, Queues
from postroom.errors import ConfigurationError, QueueNotFound
from postroom.events import ConsumerStarted, Event, PollFailed, PollFinished
from postroom.fleet import Fleet
from postroom.local.options import Scope
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.options import Concurrency, Polling, RetryPolicy, Shutdown
from postroom.resources import ResourcePool
from postroom.transports.memory import MemoryClient
from postroom.types import Settlement, StopReason
from support.world import Databases, Order, Tenant, World, in_world, with_world

Handle = Callable[[Order, MessageContext[Any, Any]], Awaitable[None]]


def consumer_of(world: World, queues: Any, handle: Handle, **more: Any) -> Consumer[Any, Any]:
    """Return a consumer of several queues that finds tenants in the messages' attributes."""
    consumer = Consumer(queues=queues, context=Tenant, **{"client": world.client, **more})
    consumer.handler(handle)
    return consumer


class Diary:
    """A handler that takes as long as its order says, and notes what it handled."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.running = self.most = 0

    async def __call__(self, order: Order, ctx: MessageContext[Any, Any]) -> None:
        """Handle an order."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(order.seconds)
        finally:
            self.running -= 1
        self.done.append((ctx.queue, order.order_id))

    def by_queue(self) -> Counter[str]:
        """Count what was handled of each queue."""
        return Counter(queue for queue, _ in self.done)

    async def has(self, count: int, *, within: float = 600.0) -> None:
        """Wait until so many were handled."""
        async with asyncio.timeout(within):
            while len(self.done) < count:
                await asyncio.sleep(0.05)


def send(world: World, queue: str, count: int, *, tenant: str = "a", seconds: float = 0.0, **more: Any) -> None:
    """Send orders to a queue."""
    for number in range(count):
        world.send({"order_id": f"{queue}-{number}", "seconds": seconds}, tenant=tenant, queue=queue, **more)


@with_world
async def test_messages_of_every_queue_are_handled_and_deleted_from_their_own(world: World) -> None:
    """Two queues, two tenants: all of both is handled, `ctx.queue` says from which, and both queues are empty."""
    for name in ("orders", "invoices"):
        world.create(name)
        send(world, name, 25, tenant=name)
    diary = Diary()
    async with consumer_of(world, ["orders", "invoices"], diary) as consumer:
        await diary.has(50)
        await asyncio.sleep(1)
        now = consumer.statistics()
        acked = {name: each.settled.get(Settlement.ACKED, 0) for name, each in now.queues.items()}
        handled, left, received = (
            diary.by_queue(),
            [world.counts(name) for name in ("orders", "invoices")],
            now.received,
        )
    assert handled == {"orders": 25, "invoices": 25}
    assert left == [(0, 0), (0, 0)]
    assert acked == {"orders": 25, "invoices": 25}
    assert received == 50


@with_world
async def test_slots_and_limits_of_a_tenant_are_shared_by_all_queues(world: World) -> None:
    """Never more handlers run than there are slots in all, nor more of one tenant than it may have, over all queues."""
    for name in ("a", "b", "c"):
        world.create(name)
        send(world, name, 20, tenant="acme", seconds=0.5)
    one = Diary()
    async with consumer_of(world, ["a", "b", "c"], one, concurrency=Concurrency(total=6, per_tenant=2)):
        await one.has(60)
    for name in ("a", "b", "c"):
        send(world, name, 20, tenant=name, seconds=0.5)
    several = Diary()
    async with consumer_of(world, ["a", "b", "c"], several, concurrency=Concurrency(total=6, per_tenant=6)):
        await several.has(60)
    assert (one.most, several.most) == (2, 6)


@with_world
async def test_a_tenants_pause_holds_in_every_queue_and_its_resources_are_opened_once(world: World) -> None:
    """`consumer.tenants` decides for all queues, and the pool is one."""
    databases, diary = Databases(), Diary()
    for name in ("orders", "invoices"):
        world.create(name)
    pool: ResourcePool[Any, Any] = ResourcePool(databases)
    consumer = consumer_of(world, ["orders", "invoices"], diary, resources=pool)
    consumer.tenants.pause(Tenant("acme"))
    async with consumer:
        for name in ("orders", "invoices"):
            send(world, name, 5, tenant="acme")
            send(world, name, 5, tenant="beta")
        await diary.has(10)
        await asyncio.sleep(5)
        before, waiting = diary.by_queue(), consumer.tenants[Tenant("acme")].waiting
        consumer.tenants.resume(Tenant("acme"))
        await diary.has(20)
        after, opened = diary.by_queue(), databases.diary[:2]
    assert before == {"orders": 5, "invoices": 5}
    assert waiting == 10
    assert after == {"orders": 10, "invoices": 10}
    assert sorted(opened) == ["open acme", "open beta"]


def shares(world: World, queues: Any, seconds: float = 60.0) -> Any:
    """Handle backlogs for some time, with few slots, and return what was handled of each queue."""

    async def run() -> Counter[str]:
        diary = Diary()
        concurrency = Concurrency(total=4, per_tenant=4)
        async with consumer_of(world, queues, diary, concurrency=concurrency, shutdown=Shutdown(drain=0)):
            await asyncio.sleep(seconds)
            return diary.by_queue()

    return run()


@pytest.mark.parametrize("weight", [1, 3, 9])
@with_world
async def test_queues_with_backlogs_share_by_weight(world: World, weight: int) -> None:
    """A queue of weight 3 has three messages handled for each one of weight 1, and the other never starves."""
    for name in ("heavy", "light"):
        world.create(name)
        send(world, name, 3_000, tenant=name, seconds=0.1)
    found: Counter[str] = await shares(world, {"heavy": weight, "light": 1})
    assert found.total() > 2_000
    assert found["heavy"] / found["light"] == pytest.approx(weight, rel=0.1)


@with_world
async def test_a_quiet_queue_does_not_wait_behind_another_queues_backlog(world: World) -> None:
    """With every slot taken and a backlog in one queue, a message for another one starts within a second or so."""
    for name in ("busy", "quiet"):
        world.create(name)
    send(world, "busy", 2_000, tenant="noisy", seconds=0.5)
    diary, waits = Diary(), list[float]()
    async with consumer_of(world, ["busy", "quiet"], diary, shutdown=Shutdown(drain=0)):
        for number in range(10):
            await asyncio.sleep(3)
            send(world, "quiet", 1, tenant=f"quiet-{number}")
            began = asyncio.get_running_loop().time()
            while diary.by_queue()["quiet"] <= number:
                await asyncio.sleep(0.01)
            waits.append(asyncio.get_running_loop().time() - began)
    assert max(waits) < 1.0


@with_world
async def test_an_idle_queue_has_one_long_poll_and_a_message_there_is_received_at_once(world: World) -> None:
    """A few idle queues cost one request each in 20 s, and wait for nothing."""
    names = ["a", "b", "c"]
    for name in names:
        world.create(name)
    diary = Diary()
    async with consumer_of(world, names, diary) as consumer:
        await asyncio.sleep(2_000)
        receives = {name: each.receives for name, each in consumer.statistics().queues.items()}
        began = asyncio.get_running_loop().time()
        send(world, "b", 1)
        await diary.has(1)
        waited = asyncio.get_running_loop().time() - began
    assert all(95 <= count <= 105 for count in receives.values()), receives
    assert waited <= 0.1


@with_world
async def test_many_idle_queues_are_looked_at_ever_more_rarely_and_never_forgotten(world: World) -> None:
    """300 queues: few receives are out at once, each queue is looked at once in `rest` seconds, and not less often."""
    names = [f"q{number}" for number in range(300)]
    for name in names:
        world.create(name)
    client = Counting(world.client)
    diary, waits = Diary(), list[float]()
    queues = Queues(names, rest=30.0, watched=12)
    consumer = Consumer(queues=queues, context=Tenant, client=client)
    consumer.handler(diary)
    async with consumer:
        await asyncio.sleep(300)
        before = client.receives
        await asyncio.sleep(600)
        per_queue = (client.receives - before) / 300
        for number in range(20):
            send(world, names[number * 7], 1)
            began = asyncio.get_running_loop().time()
            await diary.has(number + 1)
            waits.append(asyncio.get_running_loop().time() - began)
    most, handled = client.most, len(diary.done)
    assert most <= 12 + Polling().pollers
    assert 18 <= per_queue <= 21, "once in 30 s and one second"
    assert max(waits) <= 32.0
    assert handled == 20


@with_world
async def test_a_queue_that_was_busy_is_looked_at_soon_again(world: World) -> None:
    """Among many queues, one that has just had messages is asked after 1, 2, 4 ... s, not after a whole rest."""
    names = [f"q{number}" for number in range(40)]
    for name in names:
        world.create(name)
    diary = Diary()
    async with consumer_of(world, Queues(names, watched=4), diary):
        await asyncio.sleep(300)
        send(world, "q7", 30)
        await diary.has(30)
        await asyncio.sleep(1)
        send(world, "q7", 1)
        began = asyncio.get_running_loop().time()
        await diary.has(31)
        assert (asyncio.get_running_loop().time() - began) <= 4.0


class Wrapped:
    """A client around another one."""

    def __init__(self, client: MemoryClient) -> None:
        self._client = client

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)


class Counting(Wrapped):
    """A client that counts the receives of its queues, and those that are out at once."""

    def __init__(self, client: MemoryClient) -> None:
        super().__init__(client)
        self.receives = self.out = self.most = 0

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        opened: Any = await self._client.queue(name)
        receive = opened.receive

        async def counted(**asked: Any) -> Sequence[Message]:
            self.receives += 1
            self.out += 1
            self.most = max(self.most, self.out)
            try:
                found: Sequence[Message] = await receive(**asked)
                return found
            finally:
                self.out -= 1

        opened.receive = counted
        return opened


@with_world
async def test_queues_come_and_go_as_the_function_lists_them(world: World) -> None:
    """A new queue is consumed from the next question on; one that is gone is drained and asked for nothing more."""
    for name in ("a", "b"):
        world.create(name)
    listed = {"a": 1.0}
    diary = Diary()

    async def tenants_queues() -> dict[str, float]:
        return dict(listed)

    async with consumer_of(world, Queues(tenants_queues, every=10), diary) as consumer:
        send(world, "a", 1)
        await diary.has(1)
        listed["b"] = 2.0
        send(world, "b", 2, seconds=30.0)
        await asyncio.sleep(11)
        del listed["b"]
        await asyncio.sleep(32)  # b is listed no longer, and its last look has ended
        world.send({"order_id": "late"}, queue="b")
        await diary.has(3)
        await asyncio.sleep(30)
        names = set(consumer.statistics().queues)
        done, left, received = diary.done, world.counts("b"), consumer.statistics().received
    assert sorted(done) == [("a", "a-0"), ("b", "b-0"), ("b", "b-1")]
    assert names == {"a"}
    assert left == (1, 0), "what ran of it was deleted; what came later stays in it"
    assert received == 3, "what was counted for a closed queue stays in the sums"


@with_world
async def test_a_queue_that_is_listed_again_goes_on(world: World) -> None:
    """A queue that is listed again, while something of it still runs or after it was closed, is consumed again."""
    world.create("a")
    world.create("b")
    listed = ["a", "b"]
    diary = Diary()
    async with consumer_of(world, Queues(lambda: list(listed), every=5), diary):
        for pause in (6.0, 60.0):
            send(world, "b", 1, seconds=20.0)
            await asyncio.sleep(1)
            listed.remove("b")
            await asyncio.sleep(pause)
            listed.append("b")
            await asyncio.sleep(6)
        send(world, "b", 1)
        await diary.has(3)
        assert diary.by_queue() == {"b": 3}


def test_a_function_that_fails_or_returns_nonsense_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The queues that are known stay, the cause is logged once, and the next answer counts again."""

    async def scenario(world: World) -> Counter[str]:
        for name in ("a", "b"):
            world.create(name)
        answers: list[Any] = [["a"], OSError("registry is down"), OSError("registry is down"), "a", ["a", "b"]]

        def listed() -> Any:
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        diary = Diary()
        async with consumer_of(world, Queues(listed, every=5), diary):
            await asyncio.sleep(18)
            send(world, "a", 1)
            send(world, "b", 1)
            await diary.has(2)
            return diary.by_queue()

    with caplog.at_level(logging.INFO, "postroom.consumer"):
        assert in_world(scenario) == {"a": 1, "b": 1}
    failed, wrong = [record for record in caplog.records if "could not be listed" in record.getMessage()]
    assert "OSError: registry is down" in failed.getMessage()
    assert failed.exc_text is not None
    assert "in listed" in failed.exc_text, "where in the user's function"
    assert "takes a list of names" in wrong.getMessage()
    assert not wrong.exc_text
    after = caplog.messages[caplog.records.index(wrong) + 1 :]
    assert after[0] == "The queues of listed can be listed again"
    assert "Queue b is consumed from now on" in after


@with_world
async def test_one_broken_queue_stops_neither_the_others_nor_the_consumer(world: World) -> None:
    """Receives of one queue fail: the others flow, health stays ready and names it, and events name it."""
    for name in ("good", "bad"):
        world.create(name)
    diary, told = Diary(), list[Event]()
    client = Breaking(world.client, "bad")
    consumer = Consumer(
        queues=["good", "bad"], context=Tenant, client=client, observers=[told.append], polling=Polling(wait=1)
    )
    consumer.handler(diary)
    async with consumer:
        client.broken = True
        send(world, "good", 5)
        send(world, "bad", 5)
        await asyncio.sleep(60)
        sick, during = consumer.health(), diary.by_queue()
        client.broken = False
        await diary.has(10)
        well, failed = consumer.health(), {event.queue for event in told if isinstance(event, PollFailed)}
    assert sick.live
    assert sick.ready
    assert sick.reasons == ()
    assert len(sick.unreachable) == 1
    assert sick.unreachable[0].startswith("bad: receives have failed for")
    assert well.unreachable == ()
    assert during == {"good": 5}
    assert failed == {"bad"}


class Breaking(Wrapped):
    """A client of which queues can be broken."""

    def __init__(self, client: MemoryClient, *broken: str) -> None:
        super().__init__(client)
        self._names = broken
        self.broken = False

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        opened: Any = await self._client.queue(name)
        receive = opened.receive

        async def received(**asked: Any) -> Any:
            if self.broken and name in self._names:
                raise OSError("no route to host")
            return await receive(**asked)

        opened.receive = received
        return opened


@with_world
async def test_all_queues_broken_is_not_ready(world: World) -> None:
    """Where no queue answers, the consumer is not ready, and every queue is named."""
    for name in ("a", "b"):
        world.create(name)
    client = Breaking(world.client, "a", "b")
    consumer = Consumer(queues=["a", "b"], context=Tenant, client=client, polling=Polling(wait=1))
    consumer.handler(Diary())
    async with consumer:
        await asyncio.sleep(5)
        client.broken = True
        await asyncio.sleep(120)
        health = consumer.health()
    assert not health.ready
    assert health.live
    assert [reason.partition(":")[0] for reason in health.reasons] == ["a", "b"]


def test_two_queues_of_one_name_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    """They are in two regions: lines, statistics, health and ``ctx.queue`` call them by their ARNs."""
    east, west = (f"arn:aws:sqs:{region}:000000000000:orders" for region in ("us-east-1", "eu-west-1"))

    async def scenario(world: World) -> tuple[Any, ...]:
        world.create("alone")
        for arn in (east, west):
            world.broker.engine.create_queue("orders", scope=Scope("000000000000", arn.split(":")[3]))
        diary = Diary()
        async with consumer_of(world, [east, west, "alone"], diary, polling=Polling(wait=1)) as consumer:
            for queue in consumer.opened_queues:
                attribute = {"tenantId": MessageAttribute(string_value="a")}
                await queue.send([OutgoingMessage(body='{"order_id": "1"}', message_attributes=attribute)])
            await diary.has(3)
            world.broker.delete_queue(west)
            await asyncio.sleep(90)
            figures = {name: each.received for name, each in consumer.statistics().queues.items()}
            return diary.by_queue(), figures, consumer.statistics().received, consumer.health().unreachable

    with caplog.at_level(logging.INFO, "postroom"):
        handled, figures, received, [unreachable] = in_world(scenario)
    assert handled == figures == {east: 1, west: 1, "alone": 1}
    assert received == 3
    assert unreachable.startswith(west)
    assert f"Consuming 3 queues: {east}, {west}, alone" in caplog.messages
    assert any(f"Receiving from {west} failed" in line for line in caplog.messages)


@with_world
async def test_a_fixed_list_with_an_unknown_queue_does_not_start(world: World) -> None:
    """A wrong name in a list is found at the start, as for one queue; nothing is left open."""
    world.create("orders")
    consumer = consumer_of(world, ["orders", "typo"], Diary())
    with pytest.raises(QueueNotFound, match="typo"):
        await consumer.__aenter__()
    assert consumer.running is False


def test_a_listed_queue_that_does_not_exist_yet_is_opened_later(caplog: pytest.LogCaptureFixture) -> None:
    """Where a function lists them, the others are consumed, health names it, and it is opened when it is there."""

    async def scenario(world: World) -> tuple[tuple[str, ...], Counter[str], tuple[str, ...]]:
        world.create("a")
        diary = Diary()
        async with consumer_of(world, Queues(lambda: ["a", "later"], every=5), diary) as consumer:
            send(world, "a", 1)
            await diary.has(1)
            missing = consumer.health().unreachable
            assert "Queue a is consumed from now on" not in caplog.messages, "it was there from the start"
            world.create("later")
            send(world, "later", 1)
            await diary.has(2)
            return missing, diary.by_queue(), consumer.health().unreachable

    with caplog.at_level(logging.INFO, "postroom.consumer"):
        missing, handled, after = in_world(scenario)
    lines = [each for each in caplog.messages if each.startswith("Queue later ") and "dead-letter" not in each]
    assert [line[:30] for line in lines] == ["Queue later could not be opene", "Queue later is consumed from n"]
    assert missing == ("later cannot be opened (QueueNotFound)",)
    assert handled == {"a": 1, "later": 1}
    assert after == ()


def test_no_queue_at_all_is_healthy_and_waits() -> None:
    """A function may list none: the consumer is ready, costs nothing, and takes the first one in."""

    async def scenario(world: World) -> tuple[bool, Counter[str]]:
        world.create("first")
        listed: list[str] = []
        diary = Diary()
        async with consumer_of(world, Queues(lambda: listed, every=5), diary) as consumer:
            await asyncio.sleep(20)
            ready = consumer.health().ready
            listed.append("first")
            send(world, "first", 1)
            await diary.has(1)
            return ready, diary.by_queue()

    assert in_world(scenario) == (True, {"first": 1})


@with_world
async def test_a_stop_drains_every_queue_and_gives_back_what_has_not_started(world: World) -> None:
    """What runs finishes and is deleted; what waits or still comes is visible again in its own queue."""
    names = ("a", "b", "c")
    for name in names:
        world.create(name)
        send(world, name, 40, tenant=name, seconds=5.0)
    diary = Diary()
    async with consumer_of(world, list(names), diary, concurrency=Concurrency(total=6)):
        await asyncio.sleep(2)
        assert diary.running == 6
    left, done = [world.counts(name) for name in names], len(diary.done)
    assert done == 6
    assert all(in_flight == 0 for _, in_flight in left)
    assert sum(visible for visible, _ in left) == 120 - 6


@with_world
async def test_a_consumer_of_several_queues_can_be_started_again(world: World) -> None:
    """A second run has its queues, and counts from zero."""
    for name in ("a", "b"):
        world.create(name)
    diary = Diary()
    consumer = consumer_of(world, ["a", "b"], diary)
    for name in ("a", "b"):
        send(world, name, 1)
        async with consumer:
            await diary.has(1 if name == "a" else 2)
    assert (len(diary.done), consumer.statistics().received) == (2, 1)


@with_world
async def test_retries_dead_letters_and_ctx_go_to_the_messages_own_queue(world: World) -> None:
    """A failed message comes back in its queue, and goes to that queue's dead-letter queue; ctx.ack() deletes there."""
    for name in ("a", "b"):
        world.create(name, dead_letters=f"{name}-dead", receives=5)
        send(world, name, 1)
    seen: Counter[tuple[str, int]] = Counter()

    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None:
        seen[ctx.queue, ctx.attempt] += 1
        if ctx.queue == "a":
            raise ValueError(order.order_id)
        await ctx.ack()

    async with consumer_of(world, ["a", "b"], handle, retry=RetryPolicy(attempts=2)):
        await asyncio.sleep(60)
    counts = [world.counts(name) for name in ("a", "b", "a-dead", "b-dead")]
    assert counts == [(0, 0), (0, 0), (1, 0), (0, 0)]
    assert seen == {("a", 1): 1, ("a", 2): 1, ("b", 1): 1}


def test_fifo_and_standard_queues_may_be_mixed_and_groups_of_one_name_are_apart() -> None:
    """Two FIFO queues have a group of one name: each is in order, neither waits for the other, a standard queue too."""

    async def scenario(world: World) -> dict[str, list[str]]:
        for name in ("one.fifo", "two.fifo"):
            world.create(name, FifoQueue="true", ContentBasedDeduplication="true")
        world.create("plain")
        diary = Diary()
        for name in ("one.fifo", "two.fifo", "plain"):
            send(world, name, 6, seconds=1.0, group="g")
        began = asyncio.get_running_loop().time()
        async with consumer_of(world, ["one.fifo", "two.fifo", "plain"], diary):
            await diary.has(18)
            took = asyncio.get_running_loop().time() - began
        assert took < 9.0, "the groups ran side by side"
        return {name: [order for queue, order in diary.done if queue == name] for name in ("one.fifo", "two.fifo")}

    for name, orders in in_world(scenario).items():
        assert orders == [f"{name}-{number}" for number in range(6)]


@with_world
async def test_memory_is_one_limit_for_all_queues(world: World) -> None:
    """Bodies of all queues count together against `Polling(memory=)`, and what is let go frees it."""
    for name in ("a", "b"):
        world.create(name)
    gate = asyncio.Event()

    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None:
        await gate.wait()

    body = {"order_id": "x" * 200_000}
    for name in ("a", "b"):
        for _ in range(10):
            world.send(body, queue=name)
    polling = Polling(memory=1024 * 1024, batch=1)
    async with consumer_of(world, ["a", "b"], handle, polling=polling, concurrency=Concurrency(total=50)) as orders:
        await asyncio.sleep(30)
        most = orders.statistics().held_bytes
        gate.set()
        await asyncio.sleep(60)
        acked = orders.statistics().settled.get(Settlement.ACKED, 0)
    assert 1024 * 1024 <= most <= 1024 * 1024 + 24 * 201_000
    assert most < 20 * 200_000
    assert acked == 20


@with_world
async def test_events_say_which_queue_and_the_consumer_has_a_title(world: World) -> None:
    """A receive's event names its queue; the consumer's own events and its repr have the title."""
    for name in ("a", "b"):
        world.create(name)
        send(world, name, 1)
    told = list[Event]()
    consumer = consumer_of(world, Queues(["a", "b"], name="sales"), Diary(), observers=[told.append])
    async with consumer:
        await asyncio.sleep(25)
    started = next(event.queue for event in told if isinstance(event, ConsumerStarted))
    assert (started, {event.queue for event in told if isinstance(event, PollFinished)}, repr(consumer)) == (
        "sales",
        {"a", "b"},
        "<Consumer of 'sales', not running>",
    )


@with_world
async def test_a_stop_during_an_endless_listing_ends(world: World) -> None:
    """The function that lists the queues hangs: the consumer stops all the same."""
    world.create("a")
    asked = list[None]()

    async def listed() -> list[str]:
        asked.append(None)
        if len(asked) > 1:
            await asyncio.Event().wait()
        return ["a"]

    async with consumer_of(world, Queues(listed, every=5), Diary()) as consumer:
        await asyncio.sleep(6)
        consumer.stop(reason=StopReason.REQUESTED)
        began = asyncio.get_running_loop().time()
    assert (asyncio.get_running_loop().time() - began) < 5.0


_WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "write Consumer"),
    ({"queue": ["a"]}, "Consumer(queues=...)"),
    ({"queue": "a", "queues": ["b"]}, "two places"),
    ({"queues": "orders"}, "takes a list"),
    ({"queues": []}, "names no queue"),
    ({"queues": {}}, "names no queue"),
    ({"queues": ["a", "a"]}, "twice"),
    ({"queues": ["a", 3]}, "by name, URL or ARN"),
    ({"queues": {"a": 0}}, "above 0"),
    ({"queues": {"a": True}}, "above 0"),
    ({"queues": str.upper}, "() -> names"),
    ({"queues": 7}, "takes a list"),
]


@pytest.mark.parametrize(("arguments", "says"), _WRONG)
def test_a_wrong_list_says_what_to_write(arguments: dict[str, Any], says: str) -> None:
    """Every list that cannot work is refused when the consumer is made."""
    with pytest.raises(ConfigurationError) as refused:
        Consumer(**arguments)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"rest": "60"}, {"watched": 0}, {"watched": 1.5}, {"name": ""}, {"every": float("nan")}]
)
def test_wrong_options_of_queues_are_refused(options: dict[str, Any]) -> None:
    """Each option says what it takes."""
    with pytest.raises(ConfigurationError, match=rf"Queues\({next(iter(options))}|{next(iter(options))}="):
        Queues(["a"], **options)


def test_a_fleet_over_several_queues_needs_a_name() -> None:
    """The default would change with the list, and the replicas of two deployments would not meet."""
    with pytest.raises(ConfigurationError, match=r"Fleet\(\.\.\., name="):
        Consumer(queues=["a", "b"], context=Tenant, fleet=Fleet("valkey://cache:6379", per_tenant=2))
    Consumer(queues=["a", "b"], context=Tenant, fleet=Fleet("valkey://cache:6379", per_tenant=2, name="sales"))


@with_world
async def test_two_names_of_one_queue_are_refused(world: World) -> None:
    """A name and the URL of the same queue would consume it twice."""
    world.create("a")
    async with world.client as client:
        url = (await client.queue("a")).info.url
    with pytest.raises(ConfigurationError, match="twice"):
        await consumer_of(world, ["a", url], Diary()).__aenter__()


Receive = Callable[..., Awaitable[list[Message]]]


class Hooked(Wrapped):
    """A client that leaves receives to a function, which is told the queue and how to receive."""

    def __init__(self, client: MemoryClient, hook: Callable[[str, Receive], Awaitable[list[Message]]]) -> None:
        super().__init__(client)
        self._hook = hook

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        opened: Any = await self._client.queue(name)
        receive = opened.receive

        async def received(**asked: Any) -> list[Message]:
            return await self._hook(name, lambda: receive(**asked))

        opened.receive = received
        return opened


SILENT = [(1, False, 0), (9, True, 0), (40, True, 500), (40, False, 0)]
"""Numbers of queues that hang, whether they have messages, and how many messages another queue has."""
MORE_SILENT = [each for each in itertools.product((1, 9, 40), (False, True), (0, 500)) if each not in SILENT]


@pytest.mark.parametrize(
    ("hanging", "busy", "backlog"), [*SILENT, *(pytest.param(*each, marks=pytest.mark.long) for each in MORE_SILENT)]
)
@with_world
async def test_queues_that_do_not_answer_hold_up_no_other(world: World, hanging: int, busy: bool, backlog: int) -> None:
    """They hang, with a backlog or without: the others' messages are handled within seconds, few or many.

    Nine are more than there are pollers, forty are more than there are looks.
    """
    silent = False

    async def receive(name: str, ask: Receive) -> list[Message]:
        if name.startswith("silent") and silent:
            await asyncio.sleep(100)
            raise OSError("no answer")
        await asyncio.sleep(0.005)
        return await ask()

    names = [*(f"silent-{number}" for number in range(hanging)), "good", "other"]
    for name in names:
        world.create(name)
        if name.startswith("silent") and busy:
            send(world, name, 2_000 // hanging, seconds=0.02)
    diary = Diary()
    consumer = consumer_of(world, names, diary, client=Hooked(world.client, receive))
    async with consumer:
        await asyncio.sleep(1)
        silent = True
        await asyncio.sleep(5)
        diary.done.clear()
        send(world, "good", backlog)
        slowest = 0.0
        for round_ in range(1, 20):
            send(world, "good", 1)
            send(world, "other", 1)
            began = asyncio.get_running_loop().time()
            await diary.has(backlog + 2 * round_, within=30)
            slowest = max(slowest, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(1)
        silent = False
        await asyncio.sleep(150)
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert consumer.health().live
        # Those that were not answered for long are gone again.
        assert sum(name.startswith(("postroom-poller", "postroom-look")) for name in names) == 8 + 16
    assert slowest < 5


@with_world
async def test_messages_that_are_held_already_are_not_asked_for_again_and_again(world: World) -> None:
    """A server that ignores the visibility timeout shows them at once to every receive; receives are paced."""
    shown: list[Message] = []
    receives = 0

    async def receive(name: str, ask: Receive) -> list[Message]:
        nonlocal receives
        receives += 1
        if name == "odd":
            await asyncio.sleep(0.01)
            shown[:] = shown or await ask()
            return shown
        return await ask()

    for name in ("odd", "good"):
        world.create(name)
    client = Hooked(world.client, receive)
    send(world, "odd", 10, seconds=100.0)
    diary = Diary()
    async with consumer_of(
        world, ["odd", "good"], diary, client=client, concurrency=Concurrency(total=30, per_tenant=30)
    ):
        await asyncio.sleep(60)
        send(world, "good", 5)
        await diary.has(5, within=3.0)
        assert diary.by_queue() == {"good": 5}
    assert receives < 400


class Hanging(Wrapped):
    """A client that opens some queues only when they are let."""

    def __init__(self, client: MemoryClient) -> None:
        super().__init__(client)
        self.gate = asyncio.Event()
        self.asked: list[str] = []

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        if name.startswith("hung"):
            self.asked.append(name)
            await self.gate.wait()
        return await self._client.queue(name)


HUNG = [f"hung-{number}" for number in range(20)]
"""More than are opened at once."""


@pytest.mark.parametrize("first", [True, False])
@with_world
async def test_queues_that_take_long_to_open_hold_up_no_other(world: World, first: bool) -> None:
    """They are there at the start, or listed later: the others are consumed within seconds, and they join later."""
    listed = [*HUNG, "a"] if first else ["a"]
    for name in (*HUNG, "a", "new"):
        world.create(name)
        send(world, name, 1)
    client, diary = Hanging(world.client), Diary()
    async with consumer_of(world, Queues(lambda: listed, every=10), diary, client=client) as consumer:
        await diary.has(1, within=1)
        assert consumer.health().ready
        listed[:] = [*HUNG, "a", "new"]
        await diary.has(2, within=16)
        assert diary.by_queue() == {"a": 1, "new": 1}
        await asyncio.sleep(5)  # the queues from the 17th on wait for room
        assert sorted(client.asked) == sorted(HUNG)
        if first:
            assert f"{HUNG[0]} cannot be opened (TimeoutError)" in consumer.health().unreachable
        listed.remove(HUNG[-1])
        await asyncio.sleep(10)
        client.gate.set()
        await diary.has(21, within=1)
        assert HUNG[-1] not in diary.by_queue()
        assert consumer.health().unreachable == ()
        client.gate.clear()
        listed.append(HUNG[-1])
        await asyncio.sleep(10)
    assert [task.get_name() for task in asyncio.all_tasks() if "open" in task.get_name()] == []


@with_world
async def test_a_start_that_is_given_up_opens_nothing_further(world: World) -> None:
    """Also where it waits for a queue of a fixed list: no task is left."""
    world.create("hung")
    consumer = consumer_of(world, ["hung"], Diary(), client=Hanging(world.client))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await consumer.__aenter__()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Keeping(Wrapped):
    """A client with a queue that answers no delete until it is let."""

    def __init__(self, client: MemoryClient) -> None:
        super().__init__(client)
        self.gate = asyncio.Event()

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        opened: Any = await self._client.queue(name)
        delete = opened.delete

        async def deleted(handles: Sequence[str]) -> Any:
            if name == "keeps":
                await self.gate.wait()
            return await delete(handles)

        opened.delete = deleted
        return opened


@pytest.mark.parametrize("watched", [16, 1])
@with_world
async def test_a_queue_that_answers_no_delete_does_not_fill_the_memory_of_the_others(
    world: World, watched: int
) -> None:
    """What is handled and not deleted stays here: it takes half of the memory at most, and goes on once it can."""
    world.create("keeps")
    world.create("good")
    for _ in range(200):
        world.send({"order_id": "x" * 10_000, "seconds": 0.0}, tenant="a", queue="keeps")
    client, diary = Keeping(world.client), Diary()
    queues = Queues(["keeps", "good"], watched=watched, rest=2)
    polling = Polling(memory=1 << 20)
    async with consumer_of(world, queues, diary, client=client, polling=polling) as consumer:
        await asyncio.sleep(5)
        kept = diary.by_queue()["keeps"]
        assert kept >= 50
        for number in range(1, 20):
            send(world, "good", 1)
            await diary.has(kept + number, within=3)
        assert diary.by_queue() == {"keeps": kept, "good": 19}
        client.gate.set()
        await diary.has(219, within=30)
    assert consumer.statistics().held_bytes == 0


@pytest.mark.parametrize("watched", [16, 1])
@with_world
async def test_a_queue_that_had_filled_its_memory_goes_on_at_once(world: World, watched: int) -> None:
    """It was not idle in the meantime: it is not left alone for as long as one that is."""
    world.create("keeps")
    world.create("good")
    for _ in range(200):
        world.send({"order_id": "x" * 10_000, "seconds": 0.0}, tenant="a", queue="keeps")
    client, diary = Keeping(world.client), Diary()
    queues = Queues(["keeps", "good"], watched=watched, rest=300)
    async with consumer_of(world, queues, diary, client=client, polling=Polling(memory=1 << 20)):
        await asyncio.sleep(1_000)
        assert len(diary.by_queue()) == 1
        client.gate.set()
        await diary.has(200, within=5)
