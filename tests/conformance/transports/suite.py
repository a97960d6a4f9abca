"""What every transport does, as SQS does it. Inherit ``QueueTransportSuite`` and say how to open a backend.

Written from the API reference (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/) and from what
the layers above rely on. The tests run in real time, and wait for nothing longer than a second.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

import pytest

from postroom.errors import ClosedError, ConfigurationError, InvalidRequest, NotOpenError, QueueNotFound
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.transports import Client, EntryFailure, Queue, RedrivePolicy, SendResult, VisibilityChange


class Backend(Protocol):
    """A message service that a suite runs against."""

    def client(self) -> Client:
        """Return a new client, not yet entered."""
        ...

    async def create_queue(self, name: str, attributes: Mapping[str, str]) -> None:
        """Create a queue."""
        ...


def text(number: int) -> OutgoingMessage:
    """Return a message to send."""
    return OutgoingMessage(body=f"body {number}")


async def take(queue: Queue, count: int, *, visibility: float = 30) -> list[Message]:
    """Receive until ``count`` messages are there: one receive may bring fewer than there are."""
    messages: list[Message] = []
    for _ in range(20):
        messages += await queue.receive(limit=min(10, count - len(messages)), wait=1, visibility=visibility)
        if len(messages) >= count:
            return messages
    raise AssertionError(f"{len(messages)} of {count} messages came")


async def nothing_is_left(queue: Queue) -> bool:
    """Whether nothing is available now."""
    return not await queue.receive(limit=10, wait=0, visibility=30)


def handles(messages: Sequence[Message]) -> list[str]:
    """Return the receipt handles of some messages."""
    return [message.receipt_handle for message in messages]


class QueueTransportSuite:
    """The behaviours. ``deviations`` names the tests that a backend is known to fail, and why."""

    deviations: ClassVar[Mapping[str, str]] = {}

    def open_backend(self) -> AbstractAsyncContextManager[Backend]:
        """Open the backend for one test."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _known_deviation(self, request: pytest.FixtureRequest) -> None:
        assert isinstance(request.node, pytest.Function)
        reason = self.deviations.get(request.node.originalname)
        if reason is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        """Give an open backend."""
        async with self.open_backend() as backend:
            yield backend

    @pytest.fixture
    async def client(self, backend: Backend) -> AsyncIterator[Client]:
        """Give an open client."""
        async with backend.client() as client:
            yield client

    @pytest.fixture
    async def queue(self, backend: Backend, client: Client) -> Queue:
        """Give a standard queue of the test's own."""
        return await self.make(backend, client)

    @pytest.fixture
    async def fifo(self, backend: Backend, client: Client) -> Queue:
        """Give a FIFO queue of the test's own."""
        return await self.make(backend, client, suffix=".fifo", FifoQueue="true")

    async def make(self, backend: Backend, client: Client, *, suffix: str = "", **attributes: str) -> Queue:
        """Create a queue and open it."""
        name = f"suite-{uuid.uuid4().hex[:12]}{suffix}"
        await backend.create_queue(name, attributes)
        return await client.queue(name)

    # Opening

    async def test_a_queue_is_opened_by_name_url_and_arn(self, client: Client, queue: Queue) -> None:
        """All three lead to the same queue."""
        info = queue.info
        assert isinstance(queue, Queue)
        assert info.arn.endswith(f":{info.name}")
        for name in (info.name, info.url, info.arn):
            other = await client.queue(name)
            assert (other.info.name, other.info.arn) == (info.name, info.arn)

    async def test_a_queue_says_what_it_is(self, backend: Backend, client: Client) -> None:
        """FIFO, visibility timeout and redrive policy are read when the queue is opened."""
        dead = await self.make(backend, client, suffix=".fifo", FifoQueue="true")
        policy = json.dumps({"deadLetterTargetArn": dead.info.arn, "maxReceiveCount": 4})
        queue = await self.make(
            backend, client, suffix=".fifo", FifoQueue="true", VisibilityTimeout="77", RedrivePolicy=policy
        )
        assert queue.info.fifo
        assert queue.info.visibility_timeout == 77
        assert queue.info.redrive == RedrivePolicy(dead.info.arn, 4)
        assert queue.info.attributes["VisibilityTimeout"] == "77"

    async def test_a_standard_queue_says_so(self, queue: Queue) -> None:
        """Without a policy there is none."""
        assert not queue.info.fifo
        assert queue.info.visibility_timeout == 30
        assert queue.info.redrive is None

    async def test_a_queue_that_does_not_exist_is_not_found(self, client: Client) -> None:
        """The error names the queue and has SQS's code."""
        with pytest.raises(QueueNotFound, match="no-such-queue") as caught:
            await client.queue("no-such-queue")
        assert caught.value.code == "AWS.SimpleQueueService.NonExistentQueue"
        assert caught.value.operation == "GetQueueUrl"
        assert not caught.value.retryable

    async def test_a_client_is_entered_any_number_of_times(self, backend: Backend) -> None:
        """Each user enters and leaves; the last exit closes, and the client may be entered again."""
        await backend.create_queue("shared", {})
        client = backend.client()
        with pytest.raises(NotOpenError, match="async with"):
            await client.queue("shared")
        async with client as outer:
            assert outer is client
            async with client:
                queue = await client.queue("shared")
            assert await queue.send([text(1)])
        with pytest.raises(ClosedError):
            await client.queue("shared")
        with pytest.raises(ClosedError):
            await queue.receive(limit=1, wait=0, visibility=30)
        async with client:
            assert len(await take(await client.queue("shared"), 1)) == 1

    async def test_users_that_enter_at_once_share_the_client(self, backend: Backend) -> None:
        """A caller that comes while it opens waits for it; the one that leaves first takes nothing from the others."""
        await backend.create_queue("shared", {})
        client = backend.client()

        async def use(number: int) -> None:
            async with client:
                queue = await client.queue("shared")
                await queue.send([text(number)])

        await asyncio.gather(*(use(number) for number in range(5)))
        async with client:
            assert len(await take(await client.queue("shared"), 5)) == 5

    # Sending and receiving

    async def test_sent_messages_are_received(self, queue: Queue) -> None:
        """Every result stands at its message's place and has its id."""
        results = await queue.send([text(number) for number in range(10)])
        ids = {}
        for number, result in enumerate(results):
            assert isinstance(result, SendResult)
            assert result.index == number
            ids[result.message_id] = f"body {number}"
        messages = await take(queue, 10)
        assert {message.id: message.body for message in messages} == ids

    async def test_a_message_has_all_that_was_sent(self, queue: Queue) -> None:
        """Any text, attributes of every type, and SQS's own attributes."""
        body = 'snow ☃, rocket 🚀, quotes "\', backslash \\, tab \t, lines \r\n, <&>, {"json": [1]}'
        attributes = {
            "tenantId": MessageAttribute("String", "größe"),
            "label": MessageAttribute("String.uuid", "1"),
            "amount": MessageAttribute("Number", "1.50"),
            "blob": MessageAttribute("Binary", binary_value=bytes(range(256))),
        }
        await queue.send([OutgoingMessage(body=body, message_attributes=attributes)])
        (message,) = await take(queue, 1)
        assert message.body == body
        assert message.message_attributes == attributes
        assert dict(message.attributes) == {"tenantId": "größe", "label": "1", "amount": "1.50"}
        assert message.queue == queue.info.name
        assert message.receipt_handle
        assert message.receive_count == 1
        assert message.group_id is None
        sent_at, received_at = message.sent_at, message.first_received_at
        assert sent_at is not None
        assert received_at is not None
        assert 0 <= received_at - sent_at < 60
        assert message.system_attributes["SenderId"]

    async def test_a_message_without_attributes_has_none(self, queue: Queue) -> None:
        """There is an empty mapping, not nothing."""
        await queue.send([text(1)])
        (message,) = await take(queue, 1)
        assert message.message_attributes == {}
        assert not message.attributes

    async def test_a_large_message_comes_through(self, queue: Queue) -> None:
        """A body of 200 KiB in several bytes per character is a body like any other."""
        body = "ü" * 100 * 1024
        await queue.send([OutgoingMessage(body=body)])
        (message,) = await take(queue, 1)
        assert message.body == body

    async def test_refused_messages_are_named_by_their_place(self, queue: Queue) -> None:
        """One message that SQS does not take does not keep the others back."""
        bad = OutgoingMessage(body="bad", message_attributes={"a": MessageAttribute("Nonsense", "x")})
        first, refused, last = await queue.send([text(0), bad, text(2)])
        assert isinstance(first, SendResult)
        assert isinstance(last, SendResult)
        assert isinstance(refused, EntryFailure)
        assert (refused.index, refused.sender_fault) == (1, True)
        assert refused.code
        assert {message.body for message in await take(queue, 2)} == {"body 0", "body 2"}

    async def test_a_receive_brings_no_more_than_asked_for(self, queue: Queue) -> None:
        """``limit`` is kept."""
        await queue.send([text(number) for number in range(5)])
        assert len(await queue.receive(limit=1, wait=1, visibility=30)) == 1
        assert len(await queue.receive(limit=3, wait=1, visibility=30)) <= 3

    async def test_an_empty_queue_gives_nothing(self, queue: Queue) -> None:
        """Without a wait the answer comes at once, and is no error."""
        assert await queue.receive(limit=10, wait=0, visibility=30) == []

    async def test_a_long_poll_ends_when_a_message_comes(self, queue: Queue) -> None:
        """A receive that waits does not wait for its time to be over."""
        poll = asyncio.create_task(queue.receive(limit=10, wait=20, visibility=30), name="poll")
        await queue.attributes()  # the poll has been made by the time this is answered
        await queue.send([text(1)])
        async with asyncio.timeout(10):
            assert [message.body for message in await poll] == ["body 1"]

    async def test_a_long_poll_does_not_keep_other_calls_waiting(self, queue: Queue) -> None:
        """Deletes and sends pass while receives wait."""
        other = asyncio.create_task(queue.receive(limit=1, wait=1, visibility=30), name="poll")
        await queue.attributes()
        async with asyncio.timeout(10):
            await queue.send([text(1)])
            messages = await other
            assert await queue.delete(handles(messages)) == []

    async def test_a_cancelled_poll_leaves_the_transport_usable(self, queue: Queue) -> None:
        """Cancelling is quick, and the next receive works."""
        poll = asyncio.create_task(queue.receive(limit=10, wait=20, visibility=0), name="poll")
        await queue.attributes()
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        await queue.send([text(1)])
        assert len(await take(queue, 1)) == 1

    async def test_parts_of_seconds_are_rounded_up(self, queue: Queue) -> None:
        """SQS knows whole seconds: half a second of visibility is one, not none."""
        await queue.send([text(1)])
        assert len(await queue.receive(limit=1, wait=0.5, visibility=0.5)) == 1
        assert await nothing_is_left(queue)

    async def test_a_message_comes_back_after_its_visibility_timeout(self, queue: Queue) -> None:
        """Not before; then with a count of two, under the same id, with another receipt handle."""
        await queue.send([text(1)])
        (first,) = await queue.receive(limit=1, wait=1, visibility=1)
        assert await nothing_is_left(queue)
        (second,) = await take(queue, 1)
        assert second.id == first.id
        assert second.receive_count == 2
        assert second.receipt_handle != first.receipt_handle
        assert second.first_received_at == first.first_received_at

    async def test_a_delayed_message_comes_later(self, queue: Queue) -> None:
        """``delay`` holds a message back."""
        await queue.send([OutgoingMessage(body="later", delay=1)])
        assert await nothing_is_left(queue)
        assert [message.body for message in await take(queue, 1)] == ["later"]

    async def test_a_group_on_a_standard_queue_is_kept(self, queue: Queue) -> None:
        """It is the tenant of SQS's fair queues."""
        await queue.send([OutgoingMessage(body="x", group_id="tenant-1")])
        (message,) = await take(queue, 1)
        assert message.group_id == "tenant-1"

    async def test_a_trace_header_travels_beside_the_attributes(self, queue: Queue) -> None:
        """It comes back as the message's ``trace_header``, takes no message attribute, and is None if none was sent."""
        header = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
        ten = {f"a{number}": MessageAttribute("String", "x") for number in range(10)}
        sent = [
            OutgoingMessage(body="with", message_attributes=ten, trace_header=header),
            OutgoingMessage(body="without"),
        ]
        assert all(isinstance(result, SendResult) for result in await queue.send(sent))
        messages = {message.body: message for message in await take(queue, 2)}
        assert messages["with"].trace_header == header
        assert len(messages["with"].message_attributes) == 10
        assert messages["without"].trace_header is None

    async def test_a_long_poll_ends_with_its_client(self, backend: Backend) -> None:
        """Who still waits is told at once that the client was closed."""
        await backend.create_queue("shared", {})
        async with backend.client() as client:
            queue = await client.queue("shared")
            poll = asyncio.create_task(queue.receive(limit=10, wait=20, visibility=30), name="poll")
            await queue.attributes()  # the poll has been made by the time this is answered
        async with asyncio.timeout(5):
            with pytest.raises(ClosedError):
                await poll

    async def test_the_attributes_of_a_queue_are_known(self, queue: Queue) -> None:
        """Among them how long it keeps a message."""
        assert queue.info.attributes_known
        assert queue.info.retention == 345_600

    # Settling

    async def test_a_deleted_message_is_gone(self, queue: Queue) -> None:
        """Every entry of the batch took effect."""
        await queue.send([text(number) for number in range(10)])
        messages = await take(queue, 10, visibility=1)
        assert await queue.delete(handles(messages)) == []
        assert await queue.receive(limit=10, wait=2, visibility=30) == []

    async def test_deleting_again_is_no_failure(self, queue: Queue) -> None:
        """Deletes are idempotent: a lost answer is repaired by asking again."""
        await queue.send([text(1)])
        messages = await take(queue, 1)
        assert await queue.delete(handles(messages)) == []
        assert await queue.delete(handles(messages)) == []

    async def test_one_handle_twice_in_a_batch_is_no_failure(self, queue: Queue) -> None:
        """Entries are named by their place, so a standard queue's duplicates fit into one batch."""
        await queue.send([text(1)])
        messages = await take(queue, 1)
        assert await queue.delete(handles(messages) * 2) == []

    async def test_refused_deletes_are_named_by_their_place(self, queue: Queue) -> None:
        """A handle that SQS never gave is the sender's fault; the others are deleted."""
        await queue.send([text(1), text(2)])
        first, second = handles(await take(queue, 2, visibility=1))
        (failure,) = await queue.delete([first, "no-such-handle", second])
        assert (failure.index, failure.sender_fault) == (1, True)
        assert failure.code == "ReceiptHandleIsInvalid"
        assert await queue.receive(limit=10, wait=2, visibility=30) == []

    async def test_visibility_zero_gives_a_message_back_at_once(self, queue: Queue) -> None:
        """That is how unstarted messages are returned."""
        await queue.send([text(1), text(2)])
        messages = await take(queue, 2)
        assert await queue.change_visibility([VisibilityChange(handle, 0) for handle in handles(messages)]) == []
        again = await take(queue, 2)
        assert {message.id for message in again} == {message.id for message in messages}
        assert {message.receive_count for message in again} == {2}

    async def test_visibility_can_be_extended(self, queue: Queue) -> None:
        """That is a heartbeat: the message stays away beyond its first timeout."""
        await queue.send([text(1)])
        (message,) = await queue.receive(limit=1, wait=1, visibility=1)
        assert await queue.change_visibility([VisibilityChange(message.receipt_handle, 60)]) == []
        assert await queue.receive(limit=1, wait=2, visibility=30) == []

    async def test_refused_changes_are_named_by_their_place(self, queue: Queue) -> None:
        """Unknown handles and impossible timeouts are refused one by one."""
        await queue.send([text(1)])
        (good,) = handles(await take(queue, 1))
        failures = await queue.change_visibility(
            [
                VisibilityChange("no-such-handle", 10),
                VisibilityChange(good, 0),
                VisibilityChange(good, 43_201),
            ]
        )
        assert [failure.index for failure in failures] == [0, 2]
        assert all(failure.sender_fault for failure in failures)
        assert failures[0].code == "ReceiptHandleIsInvalid"
        assert len(await take(queue, 1)) == 1

    async def test_the_visibility_of_a_deleted_message_cannot_change(self, queue: Queue) -> None:
        """A heartbeat that comes after the delete is refused."""
        await queue.send([text(1)])
        (handle,) = handles(await take(queue, 1))
        await queue.delete([handle])
        (failure,) = await queue.change_visibility([VisibilityChange(handle, 10)])
        assert failure.index == 0

    @pytest.mark.parametrize("count", [0, 11])
    async def test_batches_have_one_to_ten_entries(self, queue: Queue, count: int) -> None:
        """Everything else is refused whole."""
        with pytest.raises(InvalidRequest):
            await queue.send([text(number) for number in range(count)])
        with pytest.raises(InvalidRequest):
            await queue.delete(["handle"] * count)
        with pytest.raises(InvalidRequest):
            await queue.change_visibility([VisibilityChange("handle", 1)] * count)

    async def test_a_batch_is_a_list(self, queue: Queue) -> None:
        """One entry in its place, or entries of another kind, are refused with what to write; any iterable is taken."""
        one, change = text(1), VisibilityChange("handle", 1)
        sends: Any = (one, "body", None, [one, "body"])
        for wrong in sends:
            with pytest.raises(
                ConfigurationError, match=r"send\(messages\) takes a list.*OutgoingMessage\(body=.*; got"
            ):
                await queue.send(wrong)
        deletes: Any = ("handle", b"handle", None, [5])
        for wrong in deletes:
            with pytest.raises(ConfigurationError, match=r"takes a list.*write \[message\.receipt_handle\]; got"):
                await queue.delete(wrong)
        changes: Any = (change, None, ["handle"])
        for wrong in changes:
            with pytest.raises(ConfigurationError, match=r"takes a list.*write \[VisibilityChange\(.*; got"):
                await queue.change_visibility(wrong)
        right: Any = iter([one])
        assert len(await queue.send(right)) == 1

    @pytest.mark.parametrize("limit", [0, 11])
    async def test_a_receive_asks_for_one_to_ten(self, queue: Queue, limit: int) -> None:
        """Everything else is refused."""
        with pytest.raises(InvalidRequest):
            await queue.receive(limit=limit, wait=0, visibility=30)

    async def test_attributes_are_asked_for_anew(self, queue: Queue) -> None:
        """The approximate counts follow what happens."""
        await queue.send([text(number) for number in range(3)])
        await take(queue, 1)
        attributes = await queue.attributes()
        assert attributes["ApproximateNumberOfMessages"] == "2"
        assert attributes["ApproximateNumberOfMessagesNotVisible"] == "1"
        assert attributes["QueueArn"] == queue.info.arn

    async def test_many_callers_at_once_see_every_message_once(self, queue: Queue) -> None:
        """Eight workers drain a hundred messages: nothing twice, nothing lost."""
        for start in range(0, 100, 10):
            await queue.send([text(number) for number in range(start, start + 10)])
        bodies: list[str] = []

        async def work() -> None:
            while messages := await queue.receive(limit=10, wait=0, visibility=30):
                bodies.extend(message.body for message in messages)
                assert await queue.delete(handles(messages)) == []

        await asyncio.gather(*(work() for _ in range(8)))
        assert sorted(bodies) == sorted(f"body {number}" for number in range(100))

    # FIFO

    async def test_fifo_messages_come_in_order_within_their_group(self, fifo: Queue) -> None:
        """Sends have sequence numbers, messages their group and deduplication id."""
        results = await fifo.send(
            [
                OutgoingMessage(body=f"{group}{number}", group_id=group, deduplication_id=f"{group}{number}")
                for number in range(3)
                for group in "ab"
            ]
        )
        numbers = [result.sequence_number for result in results if isinstance(result, SendResult)]
        assert len(numbers) == 6
        assert all(numbers)
        messages = await take(fifo, 6)
        assert [message.body for message in messages if message.group_id == "a"] == ["a0", "a1", "a2"]
        assert [message.body for message in messages if message.group_id == "b"] == ["b0", "b1", "b2"]
        assert messages[0].deduplication_id == messages[0].body

    async def test_a_group_waits_for_its_messages_in_flight(self, fifo: Queue) -> None:
        """As long as one is in flight, no other of the group comes."""
        await fifo.send(
            [OutgoingMessage(body=str(number), group_id="g", deduplication_id=str(number)) for number in (1, 2)]
        )
        (first,) = await fifo.receive(limit=1, wait=1, visibility=30)
        assert await nothing_is_left(fifo)
        assert await fifo.delete([first.receipt_handle]) == []
        assert [message.body for message in await take(fifo, 1)] == ["2"]

    async def test_the_same_attempt_gets_the_same_messages(self, fifo: Queue) -> None:
        """A receive with an answer that was lost is repeated under its attempt id."""
        await fifo.send([OutgoingMessage(body="1", group_id="g", deduplication_id="1")])
        first = await fifo.receive(limit=1, wait=1, visibility=30, attempt_id="attempt-1")
        again = await fifo.receive(limit=1, wait=1, visibility=30, attempt_id="attempt-1")
        assert [message.id for message in again] == [message.id for message in first]
        assert await fifo.receive(limit=1, wait=0, visibility=30, attempt_id="attempt-2") == []

    async def test_receives_without_an_attempt_id_are_attempts_of_their_own(self, fifo: Queue) -> None:
        """One receive never gets what another one has."""
        await fifo.send([OutgoingMessage(body="1", group_id="g", deduplication_id="1")])
        assert len(await fifo.receive(limit=1, wait=1, visibility=30)) == 1
        assert await nothing_is_left(fifo)

    async def test_a_duplicate_is_sent_once(self, fifo: Queue) -> None:
        """The second send of a deduplication id succeeds and adds nothing."""
        message = OutgoingMessage(body="1", group_id="g", deduplication_id="same")
        (first,) = await fifo.send([message])
        (second,) = await fifo.send([message])
        assert isinstance(first, SendResult)
        assert isinstance(second, SendResult)
        (received,) = await take(fifo, 1)
        await fifo.delete([received.receipt_handle])
        assert await nothing_is_left(fifo)
