"""A rejected message is in the dead-letter queue, with what tells which it was, of which tenant, and why."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import pytest

from postroom.errors import (
    AccessDenied,
    InvalidRequest,
    OwnershipLost,
    PostroomError,
    QueueNotFound,
    Throttled,
    TransportError,
)
from postroom.events import Observers
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.options import Visibility
from postroom.settlement import DeadLetters, Delivery, Ending, Settler
from postroom.tasks import Tasks
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure, Queue, QueueInfo, RedrivePolicy, SendResult
from postroom.types import Settlement
from support.scripted import ScriptedQueue, message

MOST = 1_048_576


class Letters(ScriptedQueue):
    """A dead-letter queue that refuses what SQS would refuse."""

    def __init__(self, *, fifo: bool = False, most: int = MOST) -> None:
        super().__init__(fifo=fifo)
        self._info = QueueInfo(
            name="dead", url="memory://dead", arn="arn:dead", fifo=fifo, attributes={"MaximumMessageSize": str(most)}
        )
        self.most = most
        self.batches_sent: list[int] = []
        self.errors: list[BaseException] = []
        self.takes = 0.0

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Refuse what is too large, or has too many attributes."""
        await asyncio.sleep(self.takes)
        if self.errors:
            raise self.errors.pop()
        self.batches_sent.append(len(messages))
        sizes = [size(each) for each in messages]
        assert len(messages) <= 10
        assert sum(sizes) <= MOST
        assert all(len(each.message_attributes) <= 10 for each in messages)
        assert all(each <= self.most for each in sizes)
        return await super().send(messages)


def size(each: OutgoingMessage) -> int:
    """Count a message as SQS does."""
    total = len(each.body.encode())
    for name, value in each.message_attributes.items():
        total += len(name) + len(value.data_type) + len((value.string_value or "").encode())
    return total


class Desk:
    """A settler with a dead-letter queue."""

    def __init__(self, letters: Letters | None) -> None:
        self.queue = ScriptedQueue()
        self.letters = letters
        self.opened: list[str] = []
        self.redrive = None if letters is None else RedrivePolicy("arn:dead", 3)
        self.told: list[tuple[str, Settlement]] = []
        self.tasks = Tasks(_fatal)
        self.settler = Settler(
            self.queue,
            Visibility(timeout=30),
            tasks=self.tasks,
            listener=self,
            dead_letters=DeadLetters(self, self.open, tasks=self.tasks),
            observers=Observers(),
            rng=Random(1),
        )

    async def open(self, arn: str) -> Queue:
        """Open the dead-letter queue."""
        self.opened.append(arn)
        await asyncio.sleep(0.5)
        assert self.letters is not None
        return self.letters

    def lost(self, delivery: Delivery) -> None:
        """Learn of a loss."""

    def settled(self, endings: Sequence[Ending]) -> None:
        """Note ends."""
        self.told += [(each.delivery.message.id, each.settlement) for each in endings]


def _fatal(error: BaseException) -> None:
    raise error


def scenario(test: Callable[[Desk], Awaitable[None]], letters: Letters | None) -> Desk:
    """Run a scenario in virtual time and return its desk."""

    async def main() -> Desk:
        made = Desk(letters)
        await test(made)
        await made.settler.drain()
        await made.settler.abandon()
        await made.tasks.close(grace=1.0)
        return made

    return run_virtual(main())


def reject(received: Message, reason: str, letters: Letters, *, attempt: int = 1) -> Desk:
    """Reject one message and return the desk."""

    async def test(made: Desk) -> None:
        [delivery] = made.settler.take([received])
        delivery.tenant = "acme"
        delivery.attempt = attempt
        assert await made.settler.reject(delivery, reason)

    return scenario(test, letters)


def text(**values: str) -> dict[str, MessageAttribute]:
    """Make String attributes."""
    return {name: MessageAttribute(string_value=value) for name, value in values.items()}


def test_a_dead_letter_tells_which_message_it_was() -> None:
    """Body and attributes as they were, the reason, then id, queue, trace, attempts and times; then it is deleted."""
    letters = Letters()
    system = {
        "AWSTraceHeader": "Root=1-5759e988",
        "SentTimestamp": "1700000000123",
        "ApproximateFirstReceiveTimestamp": "1700000001000",
        "ApproximateReceiveCount": "7",
        "MessageGroupId": "acme",
    }
    received = Message(
        id="m1", body="{1}", receipt_handle="r1", message_attributes=text(tenantId="acme"), system_attributes=system
    )
    made = reject(received, "bad\nsku", letters, attempt=3)
    [letter] = letters.sent
    assert (letter.body, letter.group_id, letter.deduplication_id) == ("{1}", "acme", None)
    assert letter.trace_header == "Root=1-5759e988"
    assert {name: value.string_value for name, value in letter.message_attributes.items()} == {
        "tenantId": "acme",
        "postroom.reason": "bad sku",
        "postroom.message_id": "m1",
        "postroom.queue": "arn:orders",
        "postroom.attempts": "2",
        "postroom.sent": "2023-11-14T22:13:20.123+00:00",
        "postroom.first_received": "2023-11-14T22:13:21.000+00:00",
        "postroom.receives": "7",
    }
    assert made.queue.deleted == ["r1"]
    assert made.told == [("m1", Settlement.REJECTED)]


def test_odd_system_attributes_keep_nothing_from_being_rejected() -> None:
    """Times that are no numbers are left out."""
    letters = Letters()
    system = {"SentTimestamp": "soon", "ApproximateFirstReceiveTimestamp": "9" * 40}
    reject(Message(id="m1", body="{}", receipt_handle="r1", system_attributes=system), "why", letters)
    assert "postroom.sent" not in letters.sent[0].message_attributes


@pytest.mark.parametrize("used", range(11))
def test_the_senders_attributes_come_first(used: int, caplog: pytest.LogCaptureFixture) -> None:
    """Then the reason, then the message id and the others, as far as SQS's ten go; the log says what found no room."""
    letters = Letters()
    own = text(**{f"a{n}": "x" for n in range(used)})
    reject(Message(id="m1", body="{}", receipt_handle="r1", message_attributes=own), "no such product", letters)
    names = list(letters.sent[0].message_attributes)
    assert names[:used] == list(own)
    rest = ["postroom.reason", "postroom.message_id", "postroom.queue", "postroom.attempts", "postroom.receives"]
    assert names[used:] == rest[: 10 - used]
    said = [each.getMessage() for each in caplog.records if "no such product" in each.getMessage()]
    assert len(said) == (1 if used == 10 else 0)
    assert all("m1" in line and "acme" in line for line in said)


def test_a_message_that_is_rejected_again_has_the_new_reason() -> None:
    """It came back from the dead-letter queue with ten attributes, ours among them."""
    letters = Letters()
    ten = text(**{"postroom.reason": "the old one", "postroom.queue": "arn:old"}, **{f"a{n}": "x" for n in range(8)})
    reject(Message(id="m1", body="{}", receipt_handle="r1", message_attributes=ten), "the new one", letters)
    attributes = letters.sent[0].message_attributes
    assert attributes["postroom.reason"].string_value == "the new one"
    assert len(attributes) == 10


@pytest.mark.parametrize("most", [1024, 65_536, MOST])
@pytest.mark.parametrize("free", [0, 10, 21, 22, 27, 28, 29, 40, 60, 100, 300, 500, 1000])
@pytest.mark.parametrize("letter", ["x", "ä"])
def test_a_large_message_is_rejected_all_the_same(
    most: int, free: int, letter: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However little room is left: the reason is in its attribute, or whole in the log."""
    letters = Letters(most=most)
    reason = f"no {letter * 50} in the catalogue"
    reject(Message(id="m1", body="x" * (most - free), receipt_handle="r1"), reason, letters)
    [sent] = letters.sent
    attribute = sent.message_attributes.get("postroom.reason")
    told = attribute is not None and attribute.string_value == reason
    assert told or any(reason in each.getMessage() and "m1" in each.getMessage() for each in caplog.records)


def test_a_reason_is_readable() -> None:
    """An empty one, or one of control characters, is still an attribute that SQS accepts."""
    letters = Letters()
    reject(message(1), "\x00\n", letters)
    assert letters.sent[0].message_attributes["postroom.reason"].string_value == "rejected"


def test_a_reason_has_no_password() -> None:
    """It is often the text of a driver's error, and everyone who may read the dead-letter queue reads it."""
    letters = Letters()
    reject(message(1), "cannot connect to postgres://app:hunter2-S3CR3T@db.internal/acme", letters)
    said = letters.sent[0].message_attributes["postroom.reason"].string_value
    assert said == "cannot connect to postgres://app:***@db.internal/acme"


def test_letters_are_sent_ten_at_a_time_and_the_queue_is_opened_once() -> None:
    """200 messages rejected at once by as many handlers cost 20 calls and one look-up."""
    letters = Letters()

    async def test(made: Desk) -> None:
        deliveries = [each for n in range(20) for each in made.settler.take([message(10 * n + i) for i in range(10)])]
        assert all(await asyncio.gather(*(made.settler.reject(each, "why") for each in deliveries)))

    made = scenario(test, letters)
    assert made.opened == ["arn:dead"]
    assert letters.batches_sent == [10] * 20
    assert len(made.queue.deleted) == 200


def test_large_letters_share_a_call_only_as_far_as_sqs_allows() -> None:
    """A batch is bounded by one MiB in all."""
    letters = Letters()

    async def test(made: Desk) -> None:
        deliveries = made.settler.take([message(n, body="x" * 400_000) for n in range(5)])
        await asyncio.gather(*(made.settler.reject(each, "why") for each in deliveries))

    scenario(test, letters)
    assert sorted(letters.batches_sent) == [1, 2, 2]


def test_a_redrive_policy_may_come_and_go() -> None:
    """It is asked for with each message; another queue is opened again."""

    async def test(made: Desk) -> None:
        one, two, three = made.settler.take([message(n) for n in range(3)])
        made.letters = Letters()
        assert not await made.settler.reject(one, "why")
        made.redrive = RedrivePolicy("arn:dead", 3)
        assert await made.settler.reject(one, "why")
        made.redrive = RedrivePolicy("arn:other", 3)
        assert await made.settler.reject(two, "why")
        made.redrive = None
        assert not await made.settler.reject(three, "why")

    assert scenario(test, None).opened == ["arn:dead", "arn:other"]


def test_a_queue_that_was_made_again_is_opened_again() -> None:
    """The one that is kept does not exist any longer."""
    letters = Letters()
    letters.errors = [QueueNotFound("gone")]
    made = reject(message(1), "why", letters)
    assert made.opened == ["arn:dead", "arn:dead"]
    assert len(letters.sent) == 1


def test_no_letter_is_sent_of_a_message_that_is_lost_while_the_queue_is_opened() -> None:
    """Another consumer may handle it by then. The letters beside it are sent."""
    letters = Letters()

    async def test(made: Desk) -> None:
        lost, *others = made.settler.take([message(1), message(2), message(3)])
        asyncio.get_running_loop().call_later(0.3, setattr, lost, "lost", True)  # the open takes 0.5 s
        ends = await asyncio.gather(
            *(made.settler.reject(each, "why") for each in (others[0], lost, others[1])), return_exceptions=True
        )
        assert ends[0] is True
        assert ends[2] is True
        assert isinstance(ends[1], OwnershipLost)

    made = scenario(test, letters)
    assert len(letters.sent) == 2
    assert sorted(id_ for id_, settlement in made.told if settlement is Settlement.REJECTED) == ["m2", "m3"]


@pytest.mark.parametrize("error", [Throttled("slow down"), OSError("reset")])
def test_a_passing_failure_is_tried_again(error: BaseException) -> None:
    """The message is ours meanwhile."""
    letters = Letters()
    letters.errors = [error] * 4
    assert reject(message(1), "why", letters).told == [("m1", Settlement.REJECTED)]
    assert len(letters.sent) == 1


def test_a_queue_that_cannot_be_reached_is_given_up_after_a_minute() -> None:
    """Nothing is decided then: the caller gives the message back, which is extended meanwhile."""
    letters = Letters()

    async def test(made: Desk) -> None:
        letters.errors = [Throttled("slow down") for _ in range(1000)]
        [delivery] = made.settler.take([message(1)])
        with pytest.raises(TransportError, match="slow down"):
            await made.settler.reject(delivery, "why")
        assert 60 <= asyncio.get_running_loop().time() < 70
        assert delivery.settlement is None
        assert made.settler.ours(delivery)

    assert scenario(test, letters).queue.deleted == []


def test_a_letter_is_tried_for_as_long_as_its_message_is_extended() -> None:
    """The dead-letter queue is back after 40 seconds, past the first deadline of the message: it gets the reason."""
    letters = Letters()

    async def test(made: Desk) -> None:
        letters.errors = [Throttled("slow down") for _ in range(1000)]
        [delivery] = made.settler.take([message(1)])
        asyncio.get_running_loop().call_later(40, letters.errors.clear)
        assert await made.settler.reject(delivery, "why")

    assert scenario(test, letters).told == [("m1", Settlement.REJECTED)]
    assert len(letters.sent) == 1


def test_a_denied_or_refused_letter_is_an_error_at_once() -> None:
    """Nothing is lost, and nothing is decided."""
    letters = Letters()

    async def test(made: Desk) -> None:
        [delivery] = made.settler.take([message(1)])
        letters.errors = [AccessDenied("sqs:SendMessage")]
        with pytest.raises(AccessDenied):
            await made.settler.reject(delivery, "why")
        assert delivery.settlement is None

    made = scenario(test, letters)
    assert made.queue.deleted == []


def test_a_refused_call_tells_why() -> None:
    """What SQS says of a whole call is its cause and its remedy. Of an entry it may quote what was sent."""
    letters = Letters()
    why = "SendMessageBatch on queue 'dead': KMS.DisabledException: arn:aws:kms:eu-west-1:1:key/1 is disabled"

    async def test(made: Desk) -> None:
        [delivery] = made.settler.take([message(1)])
        letters.errors = [InvalidRequest(why, operation="SendMessageBatch", code="KMS.DisabledException")]
        with pytest.raises(InvalidRequest, match=r"the dead-letter queue refused message m1: .*key/1 is disabled"):
            await made.settler.reject(delivery, "why")

    scenario(test, letters)


def test_what_is_lost_on_its_way_is_not_deleted() -> None:
    """The copy may be there already; the message is with another consumer, which will reject it as well."""
    letters = Letters()
    letters.takes = 5

    async def test(made: Desk) -> None:
        [delivery] = made.settler.take([message(1)])
        calling = asyncio.create_task(made.settler.reject(delivery, "why"))
        await asyncio.sleep(1)
        made.settler.lose(delivery)
        await calling
        with pytest.raises(OwnershipLost):
            await made.settler.reject(delivery, "why")

    assert scenario(test, letters).queue.deleted == []


def test_a_cancelled_caller_leaves_no_letter_without_its_delete() -> None:
    """What is on its way is finished; what has not left is dropped."""
    letters = Letters()
    letters.takes = 5

    async def test(made: Desk) -> None:
        one, two = made.settler.take([message(1), message(2)])
        first = asyncio.create_task(made.settler.reject(one, "why"))
        await asyncio.sleep(1)
        second = asyncio.create_task(made.settler.reject(two, "why"))
        await asyncio.sleep(0.01)
        first.cancel()
        second.cancel()
        await asyncio.sleep(10)

    made = scenario(test, letters)
    assert len(letters.sent) == 1
    assert made.queue.deleted == ["r1"]


def test_what_a_cancelled_caller_has_sent_is_not_sent_again() -> None:
    """A handler was cut off while its own letter was on its way, and its failure asks for another one."""
    letters = Letters()
    letters.takes = 5

    async def test(made: Desk) -> None:
        [delivery] = made.settler.take([message(1)])
        first = asyncio.create_task(made.settler.reject(delivery, "ctx.retry()"))
        await asyncio.sleep(5.53)
        first.cancel()
        assert await made.settler.reject(delivery, "the handler failed")

    made = scenario(test, letters)
    assert len(letters.sent) == 1
    assert made.queue.deleted == ["r1"]
    assert made.told == [("m1", Settlement.REJECTED)]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_stop_answers_what_waits(cancelled: bool) -> None:
    """A dead-letter queue that never answers keeps nothing waiting after the stop gave up, or was cancelled in it."""
    letters = Letters()
    letters.takes = 10_000

    async def test(made: Desk) -> None:
        [delivery] = made.settler.take([message(1)])
        calling = asyncio.create_task(made.settler.reject(delivery, "why"))
        await asyncio.sleep(1)
        stopping = asyncio.create_task(made.settler.abandon())
        await asyncio.sleep(0)
        if cancelled:
            stopping.cancel()
        await asyncio.wait([stopping])
        with pytest.raises(PostroomError, match="stopped"):
            await calling
        assert made.told == [("m1", Settlement.LEFT)]

    scenario(test, letters)


def test_without_a_dead_letter_queue_the_answer_is_no_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The caller handles the messages as failures."""

    async def test(made: Desk) -> None:
        for delivery in made.settler.take([message(n) for n in range(50)]):
            assert not await made.settler.reject(delivery, "why")
        await asyncio.sleep(5)

    scenario(test, None)
    [line] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "Rejected 50 messages of orders" in line
    assert "no dead-letter queue" in line


def test_a_letter_on_a_fifo_queue_keeps_its_group_and_is_there_once() -> None:
    """The message id is its deduplication id."""
    letters = Letters(fifo=True)
    reject(message(1, group="g"), "why", letters)
    assert (letters.sent[0].group_id, letters.sent[0].deduplication_id) == ("g", "m1")
