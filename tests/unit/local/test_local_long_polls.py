"""Long polls: woken at once, one at a time, in the engine and in an event loop of virtual time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from postroom.errors import ClosedError, ConfigurationError, NotOpenError
from postroom.local import BrokerError, LocalBroker, LocalQueue
from postroom.local.shapes import Receive, Received, Send
from support.virtual import in_virtual_time
from unit.local.bench import START, Bench


class Waiting:
    """A long poll of the engine that notes what it was given."""

    def __init__(self, bench: Bench, queue: LocalQueue, limit: int = 10) -> None:
        self.got: list[str] | None = None
        request = Receive(max_number_of_messages=limit, wait_time_seconds=20)
        assert bench.broker.receive(queue, request) == []
        self.waiter = bench.broker.wait(queue, request, self.deliver)

    def deliver(self, messages: list[Received]) -> None:
        """Note messages; a second delivery is an error."""
        assert self.got is None
        self.got = [message.body for message in messages]


def test_one_message_wakes_one_poll(bench: Bench) -> None:
    """The poll that waited longest gets the message, the others go on waiting."""
    queue = bench.queue()
    first, second = Waiting(bench, queue), Waiting(bench, queue)
    bench.send(queue, "a")
    assert (first.got, second.got) == (["a"], None)
    bench.send(queue, "b")
    assert second.got == ["b"]


def test_batch_is_shared_by_limits(bench: Bench) -> None:
    """What a redrive moves is shared among those who wait at the dead-letter queue, by their limits."""
    source, dead = bench.pair()
    polls = [Waiting(bench, dead, limit=2) for _ in range(3)]
    bench.send(source, "a", "b", "c")
    bench.take(source, visibility_timeout=0)
    assert [poll.got for poll in polls] == [None, None, None]
    bench.take(source)
    assert [poll.got for poll in polls] == [["a", "b"], ["c"], None]


def test_cancelled_poll_gets_nothing(bench: Bench) -> None:
    """A poll of a client that is gone takes no message from those who still wait."""
    queue = bench.queue()
    gone, here = Waiting(bench, queue), Waiting(bench, queue)
    bench.broker.cancel(queue, gone.waiter)
    bench.send(queue, "a")
    assert (gone.got, here.got) == (None, ["a"])


def test_cancelled_polls_are_forgotten(bench: Bench) -> None:
    """Polls that came and went do not pile up behind one that stays."""
    queue = bench.queue()
    for _ in range(100):
        bench.broker.cancel(queue, Waiting(bench, queue).waiter)
    assert not queue.waiters


def test_deleted_queue_ends_polls(bench: Bench) -> None:
    """Polls on a queue that is deleted get nothing, at once."""
    queue = bench.queue()
    poll = Waiting(bench, queue)
    bench.broker.delete_queue(queue)
    assert poll.got == []


def test_next_event(bench: Bench) -> None:
    """The engine says when time alone will make a message available."""
    queue = bench.queue(MessageRetentionPeriod="3600")
    assert bench.broker.next_event(queue) is None
    bench.send(queue, "lying")
    assert bench.broker.next_event(queue) == START + 3600
    bench.send(queue, "a", delay_seconds=50)
    assert bench.broker.next_event(queue) == START + 50
    bench.take(queue)
    assert bench.broker.next_event(queue) == START + 30


# -- in an event loop --------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(**attributes: str) -> AsyncIterator[tuple[LocalBroker, LocalQueue]]:
    """Open a broker with one queue."""
    async with LocalBroker(seed=1, epoch=START) as broker:
        yield broker, broker.create_queue("orders", attributes)


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_poll_times_out() -> None:
    """A poll that finds nothing returns after exactly its waiting time, the queue's unless it says otherwise."""
    async with opened(ReceiveMessageWaitTimeSeconds="7") as (broker, _):
        for wait, expected in ((None, 7.0), (0, 0.0), (20, 20.0)):
            started = now()
            assert await broker.receive("orders", wait=wait) == []
            assert now() - started == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("how", ["send", "delay", "expiry", "given back", "unlock"])
@in_virtual_time
async def test_poll_is_woken_at_once(how: str) -> None:
    """A send, the end of a delay or of a timeout, a message given back and an unlocked group wake a waiting poll."""
    async with opened(VisibilityTimeout="5") as (broker, standard):
        queue = standard
        if how == "unlock":
            attributes = {"FifoQueue": "true", "ContentBasedDeduplication": "true", "VisibilityTimeout": "60"}
            queue = broker.create_queue("orders.fifo", attributes)
            broker.send(queue, Send(message_body="first", message_group_id="g"))
        elif how in {"expiry", "given back"}:
            broker.send(queue, "x")
        held = await broker.receive(queue)
        if how == "unlock":
            broker.send(queue, Send(message_body="x", message_group_id="g"))
        started = now()
        poll = asyncio.create_task(broker.receive(queue, wait=20), name="poll")
        await asyncio.sleep(1)
        if how == "send":
            broker.send(queue, "x")
        elif how == "delay":
            broker.send(queue, Send(message_body="x", delay_seconds=3))
        elif how == "given back":
            broker.change_visibility(queue, held[0].receipt_handle, 0)
        elif how == "unlock":
            broker.delete(queue, held[0].receipt_handle)
        [message] = await poll
        assert message.body == "x"
        expected = {"send": 1, "delay": 4, "expiry": 5, "given back": 1, "unlock": 1}[how]
        assert now() - started == pytest.approx(expected, abs=1e-3)


@in_virtual_time
async def test_extended_while_somebody_waits() -> None:
    """A poll that waits for a timeout to end waits longer when that timeout is extended, shorter when it is cut."""
    async with opened(VisibilityTimeout="5") as (broker, queue):
        broker.send(queue, "x")
        [held] = await broker.receive(queue)
        poll = asyncio.create_task(broker.receive(queue, wait=20), name="poll")
        await asyncio.sleep(4)
        broker.change_visibility(queue, held.receipt_handle, 12)
        await asyncio.sleep(5)
        assert not poll.done()
        broker.change_visibility(queue, held.receipt_handle, 2)
        assert len(await poll) == 1
        assert now() == pytest.approx(11, abs=1e-3)


@in_virtual_time
async def test_message_in_the_last_moment() -> None:
    """What becomes available in the very moment in which a poll times out is delivered to it."""
    async with opened() as (broker, queue):
        broker.send(queue, Send(message_body="x", delay_seconds=10))
        assert len(await broker.receive(queue, wait=10)) == 1


@in_virtual_time
async def test_cancelled_receive_takes_nothing() -> None:
    """A receive that is cancelled while it waits leaves the next message to others."""
    async with opened() as (broker, queue):
        poll = asyncio.create_task(broker.receive(queue, wait=20), name="poll")
        await asyncio.sleep(1)
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        broker.send(queue, "x")
        assert not broker.polls
        assert len(await broker.receive(queue)) == 1


@in_virtual_time
async def test_move_task_wakes_a_poll() -> None:
    """A move task that has its time wakes what waits at its destination, though no request comes."""
    async with opened() as (broker, dead):
        policy = f'{{"deadLetterTargetArn": "{dead.arn}", "maxReceiveCount": 1}}'
        source = broker.create_queue("source", {"RedrivePolicy": policy})
        broker.send(source, "x")
        await broker.receive(source, visibility=0)
        assert await broker.receive(source) == []
        broker.engine.start_move(dead.arn, None, 1)
        started = now()
        assert [message.body for message in await broker.receive(source, wait=20)] == ["x"]
        assert now() - started == pytest.approx(1.0, abs=1e-3)


@in_virtual_time
async def test_scaled_time() -> None:
    """With a time scale the broker's seconds pass faster than the loop's."""
    async with LocalBroker(time_scale=60.0) as broker:
        queue = broker.create_queue("q", {"VisibilityTimeout": "60"})
        broker.send(queue, "x")
        await broker.receive(queue)
        assert await broker.receive(queue, wait=20) == []
        assert now() == pytest.approx(1 / 3)
        await asyncio.sleep(2 / 3)
        assert len(await broker.receive(queue)) == 1
    with pytest.raises(ConfigurationError, match="above 0"):
        LocalBroker(time_scale=0)


@in_virtual_time
async def test_life_of_a_broker() -> None:
    """A broker works inside of its `async with`, which may be nested, and says so outside of it."""
    broker = LocalBroker()
    with pytest.raises(NotOpenError, match="async with LocalBroker"):
        broker.create_queue("q")
    async with broker:
        async with broker:
            broker.create_queue("q")
        broker.send("q", "x")
        poll = asyncio.create_task(broker.receive("q", wait=20, visibility=0), name="first")
        assert len(await poll) == 1
        broker.purge("q")
        poll = asyncio.create_task(broker.receive("q", wait=20), name="second")
        await asyncio.sleep(1)
    assert await poll == []
    with pytest.raises(ClosedError):
        broker.send("q", "x")


@in_virtual_time
async def test_small_words() -> None:
    """The in-process broker names its queues by name, URL or ARN, and manages them."""
    async with opened() as (broker, queue):
        assert [each.name for each in broker.list_queues("ord")] == ["orders"]
        assert broker.queue(queue.arn) is broker.queue("http://x/000000000000/orders") is queue
        broker.set_attributes("orders", {"VisibilityTimeout": "9"})
        assert broker.attributes("orders", ["VisibilityTimeout"]) == {"VisibilityTimeout": "9"}
        broker.delete_queue("orders")
        with pytest.raises(BrokerError, match="does not exist"):
            broker.send("orders", "x")


def test_a_broker_of_another_loop_is_refused() -> None:
    """As that of a fixture with a loop of its own: its timers run there, so a receive would wait for good."""
    opened, used = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        broker = opened.run_until_complete(LocalBroker().__aenter__())
        broker.create_queue("orders")
        with pytest.raises(ConfigurationError, match="opened in another event loop: open it in the one that uses it"):
            used.run_until_complete(broker.receive("orders", wait=1))
        opened.run_until_complete(broker.__aexit__(None, None, None))
    finally:
        opened.close()
        used.close()
