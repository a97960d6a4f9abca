"""The memory transport: the queue protocol over a broker in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import pytest

from postroom.errors import (
    AccessDenied,
    ClosedError,
    ConfigurationError,
    InvalidReceiptHandle,
    InvalidRequest,
    NotOpenError,
    QueueNotFound,
    ServiceUnavailable,
    Throttled,
    TransportError,
)
from postroom.local import BrokerError, LocalBroker
from postroom.message import MessageAttribute, OutgoingMessage
from postroom.testing.loop import run_virtual
from postroom.transports.memory import MemoryClient, MemoryQueue, _transport_error
from postroom.transports.protocol import Client, EntryFailure, Queue, SendResult, VisibilityChange


@asynccontextmanager
async def opened(name: str = "orders", **attributes: str) -> AsyncIterator[tuple[LocalBroker, MemoryQueue]]:
    """Open a broker, a client and a queue."""
    async with LocalBroker(seed=1) as broker, MemoryClient(broker) as client:
        broker.create_queue(name, attributes)
        yield broker, await client.queue(name)


def virtual(main: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run an async test in virtual time."""

    def test() -> None:
        run_virtual(main())

    test.__name__, test.__doc__ = main.__name__, main.__doc__
    return test


@virtual
async def test_keeps_the_protocol() -> None:
    """Client and queue are what the consumer asks for, and the queue tells of itself."""
    async with opened("orders.fifo", FifoQueue="true", VisibilityTimeout="45") as (broker, queue):
        assert isinstance(MemoryClient(broker), Client)
        assert isinstance(queue, Queue)
        info = queue.info
        assert (info.name, info.fifo, info.visibility_timeout, info.redrive) == ("orders.fifo", True, 45, None)
        assert info.arn == broker.queue(info.url).arn


@virtual
async def test_redrive_policy_is_told() -> None:
    """The dead-letter queue and its count are part of what a queue tells of itself."""
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        arn = broker.create_queue("dead").arn
        broker.create_queue("q", {"RedrivePolicy": f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "4"}}'})
        redrive = (await client.queue("q")).info.redrive
        assert redrive is not None
        assert (redrive.dead_letter_queue, redrive.max_receive_count) == (arn, 4)


@virtual
async def test_there_and_back() -> None:
    """Everything that was sent is received: body, attributes with their types, group."""
    async with opened() as (_, queue):
        attributes = {
            "tenantId": MessageAttribute("String", "a"),
            "blob": MessageAttribute("Binary", None, b"\0"),
        }
        sent = await queue.send([OutgoingMessage(body="x", message_attributes=attributes, group_id="g", delay=2)])
        assert isinstance(sent[0], SendResult)
        [message] = await queue.receive(limit=10, wait=20, visibility=30)
        assert asyncio.get_running_loop().time() == pytest.approx(2)
        assert (message.id, message.body, message.queue) == (sent[0].message_id, "x", "orders")
        assert message.message_attributes == attributes
        assert (message.group_id, message.receive_count) == ("g", 1)
        assert await queue.delete([message.receipt_handle]) == []
        assert (await queue.attributes())["ApproximateNumberOfMessagesNotVisible"] == "0"


@virtual
async def test_a_broker_takes_what_a_queue_takes() -> None:
    """Tests send with either."""
    attributes = {"tenantId": MessageAttribute(string_value="acme")}
    message = OutgoingMessage(
        body="x", message_attributes=attributes, group_id="g", deduplication_id="d", trace_header="Root=1"
    )
    async with LocalBroker() as broker:
        broker.create_queue("q.fifo", {"FifoQueue": "true"})
        broker.send("q.fifo", message)
        [received] = await broker.receive("q.fifo")
    assert received.message_attributes["tenantId"].string_value == "acme"
    assert received.attributes["MessageGroupId"] == "g"
    assert received.attributes["MessageDeduplicationId"] == "d"
    assert received.attributes["AWSTraceHeader"] == "Root=1"


async def test_a_broker_refuses_what_is_no_message() -> None:
    """With what to write."""
    one: Any = OutgoingMessage(body="x")
    wrong: Any = {"body": "x"}
    async with LocalBroker() as broker:
        broker.create_queue("q")
        with pytest.raises(ConfigurationError, match=r"takes a text or an OutgoingMessage\(...\); got dict"):
            broker.send("q", wrong)
        several: list[Any] = [one, [one], ["x"]]
        for entries in several:
            with pytest.raises(ConfigurationError, match=r"write \[SendEntry\(id=\"1\", message_body=\"hello\"\)\]"):
                broker.send_batch("q", entries)


async def test_results_keep_their_places() -> None:
    """What was refused is told by its place in the call, in order."""
    async with opened() as (_, queue):
        results = await queue.send(
            [OutgoingMessage(body="a"), OutgoingMessage(body="\0"), OutgoingMessage(body="c", delay=1000)]
        )
        assert [(type(each), each.index) for each in results] == [
            (SendResult, 0),
            (EntryFailure, 1),
            (EntryFailure, 2),
        ]
        [message] = await queue.receive(limit=10, wait=0, visibility=30)
        [failure] = await queue.delete([message.receipt_handle, "nonsense"])
        assert (failure.index, failure.code, failure.sender_fault) == (1, "ReceiptHandleIsInvalid", True)
        [failure] = await queue.change_visibility([VisibilityChange(message.receipt_handle, 5)])
        assert (failure.index, failure.code) == (0, "InvalidParameterValue")


@virtual
async def test_visibility() -> None:
    """Changed visibility shows: 0 gives back at once; part seconds of a receive are rounded up, never down to 0."""
    async with opened() as (_, queue):
        await queue.send([OutgoingMessage(body="a")])
        [message] = await queue.receive(limit=1, wait=0.1, visibility=0.1)
        assert await queue.receive(limit=1, wait=0, visibility=30) == []
        assert await queue.change_visibility([VisibilityChange(message.receipt_handle, 0)]) == []
        assert len(await queue.receive(limit=1, wait=0, visibility=30)) == 1


@virtual
async def test_attempt_id() -> None:
    """A receive can be repeated on a FIFO queue."""
    async with opened("q.fifo", FifoQueue="true") as (_, queue):
        await queue.send([OutgoingMessage(body="a", group_id="g", deduplication_id="1")])
        first = await queue.receive(limit=1, wait=0, visibility=30, attempt_id="x")
        again = await queue.receive(limit=1, wait=0, visibility=30, attempt_id="x")
        assert [message.receipt_handle for message in first] == [message.receipt_handle for message in again]


@virtual
async def test_unknown_queue() -> None:
    """A queue that does not exist is not found, and the text shows the line that makes it."""
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        with pytest.raises(QueueNotFound, match=r"broker\.create_queue\('orders'\)"):
            await client.queue("orders")
        with pytest.raises(InvalidRequest):
            await client.queue("http://x/y/z/orders")


@virtual
async def test_deleted_queue() -> None:
    """A queue that is deleted under its user is not found any longer, whatever is asked of it."""
    async with opened() as (broker, queue):
        broker.delete_queue("orders")
        for call in (
            queue.receive(limit=1, wait=0, visibility=1),
            queue.delete(["x"]),
            queue.send([OutgoingMessage(body="x")]),
            queue.attributes(),
        ):
            with pytest.raises(QueueNotFound):
                await call


@virtual
async def test_refused_as_a_whole() -> None:
    """A call that SQS refuses as a whole raises, with the action and SQS's code."""
    async with opened() as (_, queue):
        calls: dict[str, Coroutine[None, None, object]] = {
            "SendMessageBatch": queue.send([]),
            "DeleteMessageBatch": queue.delete(["x"] * 11),
            "ChangeMessageVisibilityBatch": queue.change_visibility([]),
            "ReceiveMessage": queue.receive(limit=11, wait=0, visibility=0),
        }
        for operation, call in calls.items():
            with pytest.raises(InvalidRequest) as caught:
                await call
            assert caught.value.operation == operation
            assert caught.value.code


@virtual
async def test_broker_that_is_not_open() -> None:
    """A client of a broker that is not open says which line to write."""
    broker = LocalBroker()
    with pytest.raises(NotOpenError, match="async with LocalBroker"):
        await MemoryClient(broker).__aenter__()


@virtual
async def test_life_of_a_client() -> None:
    """A client is open from its first `async with` to its last, and leaves the broker open."""
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        client = MemoryClient(broker)
        with pytest.raises(NotOpenError, match="async with MemoryClient"):
            await client.queue("orders")
        async with client:
            async with client:
                queue = await client.queue("orders")
            await queue.send([OutgoingMessage(body="x")])
        with pytest.raises(ClosedError):
            await queue.send([OutgoingMessage(body="x")])
        assert broker.attributes("orders")["ApproximateNumberOfMessages"] == "1"


@virtual
async def test_lets_others_run() -> None:
    """Calls that need not wait still give way, so that no loop of calls starves the others."""
    async with opened() as (_, queue):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other(), name="other")
        for _ in range(10):
            await queue.receive(limit=1, wait=0, visibility=1)
        assert turns >= 10
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("QueueDoesNotExist", 400, QueueNotFound),
        ("ReceiptHandleIsInvalid", 404, InvalidReceiptHandle),
        ("AccessDeniedException", 403, AccessDenied),
        ("OverLimit", 403, Throttled),
        ("InvalidParameterValueException", 400, InvalidRequest),
        ("InternalFailure", 500, ServiceUnavailable),
    ],
)
def test_errors(kind: str, status: int, expected: type[TransportError]) -> None:
    """Every refusal of the broker becomes the error that the AWS transport would raise."""
    error = _transport_error(BrokerError(kind, "why", status=status), "ReceiveMessage")
    assert type(error) is expected
    assert error.retryable == (expected in {Throttled, ServiceUnavailable})


@virtual
async def test_a_refused_question_for_attributes_is_an_error_of_the_protocol() -> None:
    """What the broker raises never leaves the transport as it is."""
    async with opened() as (broker, queue):

        def refuse(_queue: object) -> dict[str, str]:
            raise BrokerError("InternalError", "the disk is full", status=500)

        with mock.patch.object(broker, "attributes", refuse), pytest.raises(ServiceUnavailable, match="disk is full"):
            await queue.attributes()


@virtual
async def test_closing_the_client_ends_a_poll_at_once() -> None:
    """The broker stays open for others; the client may be entered again and polls again."""
    async with LocalBroker(seed=1) as broker:
        broker.create_queue("orders")
        client = MemoryClient(broker)
        async with client:
            queue = await client.queue("orders")
            poll = asyncio.create_task(queue.receive(limit=1, wait=20, visibility=30), name="poll")
            await asyncio.sleep(1)
        with pytest.raises(ClosedError, match="its MemoryClient was closed meanwhile"):
            await poll
        assert asyncio.get_running_loop().time() == 1
        async with client:
            again = await client.queue("orders")
            assert await again.receive(limit=1, wait=2, visibility=30) == []
