"""What is held is let go exactly once, and every caller that waits for it learns how it ended."""

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import pytest

from postroom.errors import (
    AccessDenied,
    ClosedError,
    ConfigurationError,
    InvalidReceiptHandle,
    InvalidRequest,
    OwnershipLost,
    PostroomError,
    QueueNotFound,
    ServiceUnavailable,
    Throttled,
    TransportError,
)
from postroom.events import Event, MessageSettled, Observers
from postroom.message import Message
from postroom.options import Visibility
from postroom.settlement import DeadLetters, Delivery, Ending, Moment, Settler
from postroom.tasks import Tasks
from postroom.transports.protocol import EntryFailure, Queue, RedrivePolicy, VisibilityChange
from postroom.types import Settlement
from support.scripted import ScriptedQueue, answer, message
from support.virtual import in_scene, in_virtual_time


class Desk:
    """A settler over a scripted queue, with what it told."""

    def __init__(self, queue: ScriptedQueue, dead_letters: ScriptedQueue | None, options: Visibility) -> None:
        self.queue = queue
        self.events: list[Event] = []
        self.losses: list[Delivery] = []
        self.told: list[tuple[str, Settlement, float]] = []
        self.opened = 0
        self.slept = 0.0
        self._dead_letters = dead_letters
        self.tasks = Tasks(_fatal)
        self.settler = Settler(
            queue,
            options,
            tasks=self.tasks,
            listener=self,
            dead_letters=DeadLetters(self, self.open, tasks=self.tasks),
            observers=Observers([self.events.append]),
            slept=lambda: self.slept,
            rng=Random(1),
        )

    @property
    def redrive(self) -> RedrivePolicy | None:
        """Where dead letters go."""
        return None if self._dead_letters is None else RedrivePolicy("arn:dead", 3)

    async def open(self, _arn: str) -> Queue:
        """Open the dead-letter queue."""
        self.opened += 1
        assert self._dead_letters is not None
        return self._dead_letters

    def lost(self, delivery: Delivery) -> None:
        """Note a loss."""
        self.losses.append(delivery)

    def settled(self, endings: Sequence[Ending]) -> None:
        """Note ends."""
        self.told += [(each.delivery.message.id, each.settlement, each.delay) for each in endings]

    def take(self, *messages: Message) -> list[Delivery]:
        """Hold messages."""
        return self.settler.take(messages)

    @property
    def endings(self) -> list[tuple[str, Settlement]]:
        """What observers were told, in order."""
        return [(e.message.id, e.settlement) for e in self.events if isinstance(e, MessageSettled)]


def _fatal(error: BaseException) -> None:
    raise error


@asynccontextmanager
async def desk(
    queue: ScriptedQueue | None = None, dead_letters: ScriptedQueue | None = None, **options: Any
) -> AsyncGenerator[Desk]:
    """Run a settler with its heartbeat."""
    made = Desk(queue or ScriptedQueue(), dead_letters, Visibility(**(dict[str, Any](timeout=30) | options)))
    made.tasks.spawn(made.settler.heartbeat.run(), "heartbeat")
    try:
        yield made
    finally:
        await made.tasks.close(grace=1.0)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings and errors of the log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@in_scene(desk)
async def test_acknowledged_messages_are_deleted_in_one_batch(made: Desk) -> None:
    """Three acks, one call, and nothing held afterwards."""
    for delivery in made.take(message(1), message(2), message(3)):
        made.settler.ack(delivery)
    await made.settler.drain()
    assert [handles for _, handles in made.queue.deletes] == [["r1", "r2", "r3"]]
    assert made.settler.held == 0
    assert made.settler.counts() == {Settlement.ACKED: 3}
    assert [settlement for _, settlement in made.endings] == [Settlement.ACKED] * 3


@in_scene(desk)
async def test_a_message_is_settled_once(made: Desk) -> None:
    """The first decision counts: a retry after an ack, or a second ack, does nothing."""
    [delivery] = made.take(message(1))
    made.settler.ack(delivery)
    made.settler.ack(delivery)
    made.settler.give_back(delivery, Settlement.RETRIED, delay=5)
    await made.settler.drain()
    assert made.queue.deleted == ["r1"]
    assert made.queue.changed == []


@in_scene(desk)
async def test_a_message_given_back_is_visible_after_its_delay(made: Desk) -> None:
    """Whole seconds, rounded up; the heartbeat does not overwrite it."""
    [delivery] = made.take(message(1))
    made.settler.give_back(delivery, Settlement.RETRIED, delay=40.2)
    await asyncio.sleep(100)
    assert made.queue.changed == [("r1", 41)]


@in_scene(desk)
async def test_a_backoff_never_arrives_before_an_extension_that_is_on_its_way(made: Desk) -> None:
    """The extension was sent first and answers late: the backoff is sent after its answer."""
    [delivery] = made.take(message(1))

    async def slow(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        if changes[0].timeout == 30:
            await asyncio.sleep(4)
        return []

    made.queue.on_change = slow
    await asyncio.sleep(15.5)  # the extension left at 15 s
    made.settler.give_back(delivery, Settlement.RETRIED, delay=2)
    await made.settler.drain()
    assert made.queue.changed == [("r1", 30), ("r1", 2)]
    assert made.queue.changes[1][0] >= 19.0


@in_scene(desk)
async def test_ack_now_returns_when_the_delete_is_confirmed(made: Desk) -> None:
    """It does not wait for company."""
    [delivery] = made.take(message(1))
    await made.settler.ack_now(delivery)
    assert made.queue.deleted == ["r1"]
    assert asyncio.get_running_loop().time() == 0.0
    assert made.settler.held == 0


@in_scene(desk)
async def test_ack_now_tells_the_caller_that_it_failed(made: Desk) -> None:
    """A delete that SQS refuses for good raises in the caller, and the message is counted as coming back."""
    made.queue.on_delete = answer(EntryFailure(0, "AccessDenied", sender_fault=True))
    [delivery] = made.take(message(1))
    with pytest.raises(TransportError, match="AccessDenied"):
        await made.settler.ack_now(delivery)
    assert made.settler.failures == 1
    assert made.settler.counts() == {Settlement.LEFT: 1}


@in_scene(desk)
async def test_ack_now_of_a_settled_message_is_refused(made: Desk) -> None:
    """The error says what was decided before."""
    [delivery] = made.take(message(1))
    made.settler.give_back(delivery, Settlement.RETRIED, delay=1)
    with pytest.raises(PostroomError, match="retried"):
        await made.settler.ack_now(delivery)


@in_scene(desk)
async def test_an_ack_after_the_deadline_is_suppressed(made: Desk) -> None:
    """SQS would answer success and delete nothing; we say that it was lost."""
    [delivery] = made.take(message(1))
    made.settler.heartbeat.release(delivery)
    await asyncio.sleep(31)
    with pytest.raises(OwnershipLost, match="visibility timeout"):
        await made.settler.ack_now(delivery)
    made.settler.ack(delivery)
    await made.settler.drain()
    assert made.queue.deleted == []
    assert made.endings == [("m1", Settlement.LOST)]


@in_scene(desk)
async def test_a_lost_message_is_reported_once_and_not_deleted(made: Desk) -> None:
    """Losing ownership tells the consumer, and a later ack does nothing."""
    made.queue.on_change = answer(EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True))
    [delivery] = made.take(message(1))
    await asyncio.sleep(20)
    made.settler.ack(delivery)
    await made.settler.drain()
    assert [delivery.message.id for delivery in made.losses] == ["m1"]
    assert made.queue.deleted == []
    assert made.settler.counts() == {Settlement.LOST: 1}


@in_scene(desk)
async def test_a_second_receive_of_a_held_message_is_one_message(made: Desk) -> None:
    """It is not handled twice at once, and the newest receipt handle deletes it."""
    [delivery] = made.take(message(1))
    again = Message(id="m1", body="{}", receipt_handle="r1-newer")
    assert made.take(again) == []
    made.settler.ack(delivery)
    await made.settler.drain()
    assert made.queue.deleted == ["r1-newer"]


@in_scene(desk)
async def test_a_message_received_again_while_its_delete_is_on_its_way_is_deleted_again(made: Desk) -> None:
    """The first delete may have named a handle that had expired."""
    made.queue.on_delete = answer(after=1)
    [delivery] = made.take(message(1))
    made.settler.ack(delivery)
    await asyncio.sleep(0.5)
    made.take(Message(id="m1", body="{}", receipt_handle="r1-newer"))
    await made.settler.drain()
    assert made.queue.deleted == ["r1", "r1-newer"]
    assert made.settler.counts() == {Settlement.ACKED: 1}


@in_scene(desk)
async def test_an_older_receive_that_arrives_late_is_not_taken_for_the_newest(made: Desk) -> None:
    """Two polls were answered in the wrong order: SQS's count of receives tells which handle still works."""
    [delivery] = made.take(message(1, receive_count=2))
    late = {"ApproximateReceiveCount": "1"}
    made.settler.take([Message(id="m1", body="{}", receipt_handle="r1-older", system_attributes=late)])
    made.settler.ack(delivery)
    await made.settler.drain()
    assert made.queue.deleted == ["r1"]


@in_scene(desk)
async def test_a_message_received_again_after_it_was_given_back_is_a_new_one(made: Desk) -> None:
    """It may arrive before the answer to the change that made it visible."""
    made.queue.on_change = answer(after=1)
    [delivery] = made.take(message(1))
    made.settler.give_back(delivery, Settlement.RETRIED, delay=0)
    await asyncio.sleep(0.5)
    [second] = made.take(Message(id="m1", body="{}", receipt_handle="r1-second"))
    assert second is not delivery
    await made.settler.drain()
    made.settler.ack(second)
    await made.settler.drain()
    assert made.queue.deleted == ["r1-second"]
    assert made.settler.held == 0


@in_scene(desk)
async def test_a_message_that_is_left_can_be_acknowledged_later(made: Desk) -> None:
    """MANUAL: the handler returned, something else acknowledges within the visibility timeout."""
    [delivery] = made.take(message(1))
    made.settler.leave(delivery)
    assert made.settler.held == 0
    await asyncio.sleep(20)
    await made.settler.ack_now(delivery)
    assert made.queue.deleted == ["r1"]
    assert made.queue.changed == []


@in_scene(desk)
async def test_abandon_returns_although_nothing_answers(made: Desk) -> None:
    """A permanent failure or a silent server does not keep a stop from ending."""
    never = asyncio.Event()

    async def hang(_handles: Sequence[str]) -> list[EntryFailure]:
        await never.wait()
        return []

    made.queue.on_delete = hang
    for delivery in made.take(message(1), message(2)):
        made.settler.ack(delivery)
    await asyncio.sleep(1)
    await made.settler.abandon()
    assert made.settler.held == 0


@in_scene(desk)
async def test_a_lost_message_is_not_extended_any_more(made: Desk) -> None:
    """Its delete came too late; an extension that is answered late must not keep it from the next consumer."""
    made.queue.on_change = answer(after=16)
    [first, second] = made.take(message(1), message(2))
    await asyncio.sleep(30.5)  # past the deadline, while an extension is on its way
    made.settler.ack(first)
    made.settler.lose(second)
    await asyncio.sleep(200)
    assert made.queue.changed == [("r1", 30), ("r2", 30)]
    assert made.queue.deleted == []


@pytest.mark.parametrize(
    "error",
    [Throttled("slow down"), ServiceUnavailable("503"), AccessDenied("expired", code="ExpiredToken"), OSError("reset")],
)
@in_scene(desk)
async def test_acknowledgements_survive_an_outage_that_is_longer_than_the_timeout(made: Desk, error: Exception) -> None:
    """Deletes fail for 40 s, extensions do not: everything is deleted once, nothing is lost, the calls are few."""

    async def refuse(_handles: Sequence[str]) -> list[EntryFailure]:
        if asyncio.get_running_loop().time() < 40:
            raise error
        return []

    made.queue.on_delete = refuse
    for first in range(0, 40, 10):
        for delivery in made.take(*(message(first + n) for n in range(10))):
            made.settler.ack(delivery)
    await asyncio.sleep(100)
    assert made.settler.counts() == {Settlement.ACKED: 40}
    assert made.losses == []
    assert made.settler.held == made.settler.bytes == 0
    assert len([time for time, _ in made.queue.deletes if 0.1 < time < 40]) < 20


@in_scene(desk)
async def test_each_entry_that_is_refused_for_now_is_tried_again(made: Desk) -> None:
    """A refusal of single entries that is not the sender's fault passes like one of the whole call."""

    async def refuse(handles: Sequence[str]) -> list[EntryFailure]:
        late = asyncio.get_running_loop().time() >= 40
        return [] if late else [EntryFailure(n, "InternalError") for n in range(len(handles))]

    made.queue.on_delete = refuse
    for delivery in made.take(*(message(n) for n in range(5))):
        made.settler.ack(delivery)
    await asyncio.sleep(100)
    assert made.settler.counts() == {Settlement.ACKED: 5}


@in_scene(desk)
async def test_an_acknowledgement_that_cannot_be_kept_alive_is_suppressed_and_said(
    made: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing gets through until the deadline: the line names message and tenant, and what comes of it."""
    made.queue.on_delete = made.queue.on_change = answer(error=ServiceUnavailable("503"))
    [delivery] = made.take(message(1))
    delivery.tenant = "acme"
    made.settler.ack(delivery)
    await asyncio.sleep(60)
    assert made.told == [("m1", Settlement.LOST, 0.0)]
    assert [delivery.message.id for delivery in made.losses] == ["m1"]
    [line] = [text for text in warnings(caplog) if "m1" in text]
    assert "acme" in line
    assert "suppressed" in line
    assert "handled again" in line


@in_scene(desk)
async def test_refused_deletes_are_told_of_in_one_line(made: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand of them: how many, why, some ids, and what follows."""

    async def refuse(handles: Sequence[str]) -> list[EntryFailure]:
        return [EntryFailure(n, "AccessDenied", sender_fault=True) for n in range(len(handles))]

    made.queue.on_delete = refuse
    for first in range(0, 1000, 10):
        for delivery in made.take(*(message(first + n) for n in range(10))):
            made.settler.ack(delivery)
    await asyncio.sleep(10)
    assert made.settler.failures == 1000
    [line] = warnings(caplog)
    for part in ("1000 messages of orders could not be deleted", "AccessDenied", "m0", "will be handled again"):
        assert part in line


@pytest.mark.parametrize("end", ["a stop", "their deadline"])
@in_scene(desk)
async def test_messages_of_a_deleted_queue_are_not_said_to_come_again(
    made: Desk, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It took them with it. That they will be handled again is true only where the queue is found once more."""
    made.queue.on_delete = made.queue.on_change = answer(error=QueueNotFound("orders was deleted"))
    handled, returned = made.take(message(1), message(2))
    made.settler.ack(handled)
    made.settler.give_back(returned, Settlement.RETRIED, delay=1.0)
    await asyncio.sleep(10 if end == "a stop" else 60)
    await made.settler.drain()
    await asyncio.sleep(10)
    lines = [text for text in warnings(caplog) if "again" in text and "tried again" not in text]
    assert len(lines) == 1
    assert "again only if the queue still exists" in lines[0]
    assert all("exists" in text for text in warnings(caplog) if "come back" in text)


@in_scene(desk)
async def test_a_lost_message_is_told_of_with_its_tenant_and_the_cause(
    made: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each lost message."""
    made.queue.on_change = answer(error=Throttled("slow down"))
    for delivery in made.take(message(1), message(2)):
        delivery.tenant = "acme"
    await asyncio.sleep(60)
    assert sorted(delivery.message.id for delivery in made.losses) == ["m1", "m2"]
    assert sorted(made.told) == [("m1", Settlement.LOST, 0.0), ("m2", Settlement.LOST, 0.0)]
    lines = [text for text in warnings(caplog) if "Lost message" in text]
    assert len(lines) == 2
    assert all("acme" in line and "30.0 s" in line and "slow down" in line for line in lines)


REFUSED = EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True)


@pytest.mark.parametrize(
    ("answer", "works"),
    [
        (AccessDenied("no"), False),
        (ServiceUnavailable("503"), False),
        (OSError("reset"), False),
        (asyncio.CancelledError(), False),
        ([EntryFailure(0, "InternalError")], False),
        ([REFUSED], True),
        ([], True),
        (InvalidReceiptHandle("no handle"), True),
        (InvalidRequest("no handle"), True),
    ],
)
@in_scene(partial(desk, heartbeat=False))
async def test_a_delete_that_touches_no_message_finds_out_whether_deletes_work(
    made: Desk, answer: Any, *, works: bool
) -> None:
    """Where nothing waits to be deleted any longer. Whatever is said of its handle, it was looked at."""

    async def reply(_handles: Sequence[str]) -> list[EntryFailure]:
        if isinstance(answer, BaseException):
            raise answer
        return list(answer)

    made.queue.on_delete = _denied
    [delivery] = made.take(message(1))
    made.settler.ack(delivery)
    await asyncio.sleep(4)
    await made.settler.check_deletes()  # for so short a time it does not matter
    await asyncio.sleep(2)
    with pytest.raises(ServiceUnavailable, match=r"could be deleted \(AccessDenied: no\), so what comes"):
        await made.settler.check_deletes()
    await asyncio.sleep(40)  # it is lost
    made.queue.deletes.clear()
    made.queue.on_delete = reply
    if works:
        await made.settler.check_deletes()
        await made.settler.check_deletes()
        assert len(made.queue.deletes) == 1
    else:
        for _ in range(2):
            with pytest.raises(ServiceUnavailable, match="no message of orders could be deleted"):
                await made.settler.check_deletes()
    assert "r1" not in made.queue.deleted


async def _denied(_handles: Sequence[str]) -> list[EntryFailure]:
    raise AccessDenied("no")


@pytest.mark.parametrize("why", ["refused", "stood still"])
@in_scene(desk)
async def test_many_lost_messages_are_told_of_by_their_number(
    made: Desk, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand at once: the first ten by name, the others in one line. Minutes later one is named again."""
    made.queue.on_change = answer(error=Throttled("slow down"))
    for first in range(0, 1000, 10):
        # Those that come later are lost less late where the machine sleeps.
        await asyncio.sleep(0.02)
        for delivery in made.take(*(message(first + n) for n in range(10))):
            delivery.tenant = f"tenant-{delivery.message.id}"
    if why == "stood still":
        made.slept = 50.0
    await asyncio.sleep(300)
    made.take(message(2000))
    await asyncio.sleep(60)
    assert len(made.losses) == 1001
    *ten, last = [text for text in warnings(caplog) if "ours any longer" in text or "Lost message" in text]
    assert len(ten) == 10
    assert "m2000" in last
    folded = [text for text in warnings(caplog) if "were lost, too" in text]
    assert 1 <= len(folded) <= 3
    assert sum(int(text.split()[0]) for text in folded) == 990
    assert all("of tenant tenant-m" in text and "..." in text for text in folded)
    cause = {"refused": "slow down", "stood still": "the machine stood still"}[why]
    assert all(cause in text for text in folded)


@pytest.mark.parametrize("receives", [2, 3])
@pytest.mark.parametrize("acknowledged", ["in time", "late", "never"])
@in_virtual_time
async def test_what_is_lost_at_its_last_receive_is_said_to_be_a_dead_letter(
    receives: int, acknowledged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no reason there, and is not handled again: after two of three receives it is."""
    async with desk(dead_letters=ScriptedQueue(), heartbeat=False) as made:
        made.queue.on_delete = answer(error=ServiceUnavailable("no connection"), after=35)
        [delivery] = made.take(message(1, receive_count=receives))
        if acknowledged == "in time":
            made.settler.ack(delivery)
        await asyncio.sleep(31)
        if acknowledged == "late":
            made.settler.ack(delivery)
        await asyncio.sleep(60)
    assert len(made.losses) == 1
    said = [text for text in warnings(caplog) if "m1" in text]
    assert len(said) == {"in time": 1, "late": 2, "never": 1}[acknowledged]
    assert all(("is moved to the dead-letter queue by SQS" in text) is (receives == 3) for text in said)
    assert all(("again" in text or "Another consumer" in text) is (receives == 2) for text in said)


@pytest.mark.parametrize("sleeps", [False, True])
@in_scene(desk)
async def test_what_waits_for_an_answer_is_not_said_to_have_stood_still(
    made: Desk,
    caplog: pytest.LogCaptureFixture,
    *,
    sleeps: bool,
) -> None:
    """SQS is away: a delete fails long after the deadline, which was seen in time. Another one really is seen late."""
    made.queue.on_delete, made.queue.on_change = (
        answer(error=ServiceUnavailable("no connection"), after=40),
        answer(error=ServiceUnavailable("no connection")),
    )
    [delivery] = made.take(message(1))
    if sleeps:
        made.slept = 50.0
    else:
        made.settler.ack(delivery)
    await asyncio.sleep(60)
    assert [delivery.message.id for delivery in made.losses] == ["m1"]
    [told] = [text for text in warnings(caplog) if "m1" in text]
    assert ("stood still" in told) is sleeps
    assert ("no connection" in told) is not sleeps


@in_scene(partial(desk, heartbeat=False))
async def test_the_acknowledgement_of_a_lost_message_is_said_to_be_suppressed(
    made: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Its handler went on to the end all the same."""
    [delivery] = made.take(message(1))
    delivery.tenant = "acme"
    await asyncio.sleep(31)
    made.settler.ack(delivery)
    await made.settler.drain()
    assert made.queue.deletes == []
    assert [text for text in warnings(caplog) if "suppressed" in text and "m1" in text and "acme" in text]


@in_scene(desk)
async def test_what_is_past_its_deadline_is_not_ours_and_that_is_told_once(made: Desk) -> None:
    """It is asked before every start, also when no timer has had its turn."""
    [delivery, other] = made.take(message(1), message(2))
    assert made.settler.ours(delivery)
    made.settler.give_back(other, Settlement.RETRIED, delay=0)
    assert not made.settler.ours(other)
    delivery.deadline = asyncio.get_running_loop().time()
    assert not made.settler.ours(delivery)
    assert not made.settler.ours(delivery)
    assert [delivery.message.id for delivery in made.losses] == ["m1"]
    assert made.told == [("m1", Settlement.LOST, 0.0)]


@in_scene(desk)
async def test_after_a_suspension_nothing_is_started(made: Desk) -> None:
    """The machine slept for longer than the timeout; its clock of timers did not count that."""
    [delivery] = made.take(message(1))
    made.slept = 31.0
    assert not made.settler.ours(delivery)
    [later] = made.take(message(2))
    assert made.settler.ours(later)
    assert [delivery.message.id for delivery in made.losses] == ["m1"]


@in_scene(partial(desk, heartbeat=False))
async def test_a_message_is_ours_from_when_it_may_have_arrived(made: Desk) -> None:
    """The process was frozen while the answer waited: it is read 25 s later, and 6 s later its time is over."""
    await asyncio.sleep(25)
    [delivery] = made.settler.take([message(1)], Moment(0.0, 0.0))
    assert delivery.deadline == 30.0
    await asyncio.sleep(6)
    assert not made.settler.ours(delivery)
    assert [delivery.message.id for delivery in made.losses] == ["m1"]


@in_scene(desk)
async def test_what_was_handed_out_before_the_machine_slept_is_not_started(made: Desk) -> None:
    """The clock of the loop stood still meanwhile."""
    asked = made.settler.heartbeat.moment()
    made.slept = 31.0
    [delivery] = made.settler.take([message(1)], asked)
    assert not made.settler.ours(delivery)
    assert [delivery.message.id for delivery in made.losses] == ["m1"]


@in_scene(desk)
async def test_a_left_message_is_not_acknowledged_after_a_suspension(made: Desk) -> None:
    """It is not held any longer, and its deadline counts all the same."""
    [delivery] = made.take(message(1))
    made.settler.leave(delivery)
    made.slept = 31.0
    with pytest.raises(OwnershipLost):
        await made.settler.ack_now(delivery)
    assert made.queue.deletes == []


@in_scene(partial(desk, heartbeat=False))
async def test_a_delete_that_left_in_time_counts_although_its_answer_comes_later(made: Desk) -> None:
    """Only its answer can tell how it went."""
    made.queue.on_delete = answer(after=5)
    [delivery] = made.take(message(1))
    await asyncio.sleep(29)
    await made.settler.ack_now(delivery)
    assert made.losses == []
    assert made.told == [("m1", Settlement.ACKED, 0.0)]


@in_scene(desk)
async def test_a_hanging_extension_does_not_keep_other_messages_from_going_back(made: Desk) -> None:
    """One waits for its extension's answer, until its deadline; the others of its batch go at once."""

    async def hang(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        if changes[0].timeout == 30:
            await asyncio.Event().wait()
        return []

    made.queue.on_change = hang
    [stuck] = made.take(message(1))
    await asyncio.sleep(15.5)
    [free] = made.take(message(2))
    made.settler.give_back(stuck, Settlement.RETURNED, delay=0)
    made.settler.give_back(free, Settlement.RETURNED, delay=0)
    await asyncio.sleep(1)
    assert made.told == [("m2", Settlement.RETURNED, 0)]
    await asyncio.sleep(20)
    assert made.told[1:] == [("m1", Settlement.LOST, 0.0)]


@in_scene(desk)
async def test_what_comes_again_is_extended_although_sqs_had_refused_that_before(made: Desk) -> None:
    """As for a total of 12 hours, which are counted from the newest receive."""

    async def refuse_the_first(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        old = changes[0].receipt_handle == "r1"
        return [EntryFailure(0, "InvalidParameterValue", sender_fault=True)] if old else []

    made.queue.on_change = refuse_the_first
    made.take(message(1))
    await asyncio.sleep(20)
    made.take(Message(id="m1", body="{}", receipt_handle="r1-newer"))
    await asyncio.sleep(100)
    assert made.losses == []
    assert [handle for handle, _ in made.queue.changed] == ["r1", *["r1-newer"] * 6]


@pytest.mark.parametrize("turns", range(4))
@in_scene(desk)
async def test_what_goes_back_waits_for_an_extension_that_is_about_to_be_sent(made: Desk, turns: int) -> None:
    """In whatever turn of the loop it is decided: an extension's call begins one turn after it is picked."""
    made.queue.on_change = answer(after=3)
    [delivery] = made.take(message(1))
    await asyncio.sleep(15.0)
    for _ in range(turns):
        await asyncio.sleep(0)
    made.settler.give_back(delivery, Settlement.RETURNED, delay=0)
    await made.settler.drain()  # it sends what is decided at once
    assert made.queue.changes == [(15.0, [("r1", 30)]), (18.0, [("r1", 0)])]


@in_scene(desk)
async def test_returned_messages_are_not_kept_waiting_by_deletes_that_hang(made: Desk) -> None:
    """A drain sends both together."""

    async def hang(_handles: Sequence[str]) -> list[EntryFailure]:
        await asyncio.Event().wait()
        return []

    made.queue.on_delete = hang
    first, second = made.take(message(1), message(2))
    made.settler.ack(first)
    made.settler.give_back(second, Settlement.RETURNED, delay=0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await made.settler.drain()
    assert made.queue.changed == [("r2", 0)]
    await made.settler.abandon()


@in_scene(desk)
async def test_a_drain_with_nothing_to_send_takes_no_time(made: Desk) -> None:
    """Nor does one with a decision that waits for company."""
    await made.settler.drain()
    [delivery] = made.take(message(1))
    made.settler.ack(delivery)
    await made.settler.drain()
    assert made.told == [("m1", Settlement.ACKED, 0.0)]
    assert asyncio.get_running_loop().time() == 0.0


@in_scene(desk)
async def test_calls_that_wait_are_answered_when_the_stop_gives_up(
    made: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """An ack, a retry and an extension on their way all raise; what is held is told of as left, once."""

    async def hang(_entries: Sequence[Any]) -> list[EntryFailure]:
        await asyncio.Event().wait()
        return []

    made.queue.on_delete = made.queue.on_change = hang
    one, two, three, four = made.take(*(message(n) for n in range(1, 5)))
    made.settler.leave(four)
    calls = [
        asyncio.create_task(made.settler.ack_now(one), name="ack"),
        asyncio.create_task(made.settler.give_back_now(two, Settlement.RETRIED, delay=5), name="retry"),
        asyncio.create_task(made.settler.extend_now(three, 100), name="extend"),
        asyncio.create_task(made.settler.extend_now(four, 100), name="extend left"),
    ]
    await asyncio.sleep(1)
    await made.settler.abandon()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [ClosedError] * 4
    assert sorted(made.told) == [(f"m{n}", Settlement.LEFT, 0.0) for n in range(1, 5)]
    assert made.settler.held == made.settler.bytes == 0
    for late in (made.settler.ack_now(four), made.settler.extend_now(four, 5)):
        with pytest.raises(ClosedError):
            await late
    assert asyncio.get_running_loop().time() < 5
    assert len([text for text in warnings(caplog) if "Gave up" in text]) == 1


@pytest.mark.parametrize("error", [ClosedError("closed"), OSError("reset")])
@in_scene(partial(desk, heartbeat=False))
async def test_ack_now_returns_or_raises_whatever_a_transport_raises(made: Desk, error: Exception) -> None:
    """A closed client raises at once; what the protocol does not name is tried until the deadline."""
    made.queue.on_delete = answer(error=error)
    [delivery] = made.take(message(1))
    with pytest.raises(ClosedError if isinstance(error, ClosedError) else OwnershipLost):
        async with asyncio.timeout(31):
            await made.settler.ack_now(delivery)


@in_scene(desk)
async def test_a_cancelled_caller_takes_nothing_back(made: Desk) -> None:
    """The delete that it asked for goes on, and nothing is reported as an error that was not read."""
    made.queue.on_delete = answer(after=2)
    [delivery] = made.take(message(1))
    calling = asyncio.create_task(made.settler.ack_now(delivery))
    await asyncio.sleep(1)
    calling.cancel()
    await asyncio.sleep(2)
    assert made.told == [("m1", Settlement.ACKED, 0.0)]


@in_scene(desk)
async def test_an_extension_on_request_moves_the_deadline(made: Desk) -> None:
    """Counted from before the request; the heartbeat goes on from there, and a shorter one asks for nothing."""
    made.queue.on_change = answer(after=1)
    [delivery] = made.take(message(1))
    await asyncio.sleep(5)
    await made.settler.extend_now(delivery, 300)
    assert delivery.deadline == 305.0
    await made.settler.extend_now(delivery, 10)
    await asyncio.sleep(400)
    assert made.settler.ours(delivery)
    assert [(round(time), changes) for time, changes in made.queue.changes[:2]] == [
        (5, [("r1", 300)]),
        (290, [("r1", 30)]),
    ]


@in_scene(desk)
async def test_an_extension_on_request_keeps_a_message_that_was_left(made: Desk) -> None:
    """MANUAL: the handler has returned, and something else acknowledges later. It may shorten as well."""
    [delivery, short] = made.take(message(1), message(2))
    made.settler.leave(delivery)
    made.settler.leave(short)
    await asyncio.sleep(20)
    await made.settler.extend_now(delivery, 60)
    await made.settler.extend_now(short, 2)
    await asyncio.sleep(40)
    await made.settler.ack_now(delivery)
    with pytest.raises(OwnershipLost):
        await made.settler.ack_now(short)
    assert made.queue.deleted == ["r1"]
    assert made.told == [("m1", Settlement.LEFT, 0.0), ("m2", Settlement.LEFT, 0.0)]


@in_scene(desk)
async def test_an_extension_on_request_says_when_the_message_is_lost(made: Desk) -> None:
    """SQS does not know the receipt handle any longer; and one with a time that is over asks for nothing."""
    made.queue.on_change = answer(EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True))
    [delivery] = made.take(message(1))
    with pytest.raises(OwnershipLost):
        await made.settler.extend_now(delivery, 60)
    with pytest.raises(OwnershipLost):
        await made.settler.extend_now(delivery, 60)
    with pytest.raises(ConfigurationError):
        await made.settler.extend_now(delivery, 0)
    assert len(made.queue.changes) == 1
    assert [delivery.message.id for delivery in made.losses] == ["m1"]


@in_scene(desk)
async def test_no_heartbeat_overwrites_an_extension_on_request(made: Desk) -> None:
    """It waits for the one that is on its way, and a second request waits for the first."""
    made.queue.on_change = answer(after=3)
    [delivery] = made.take(message(1))
    await asyncio.sleep(15.5)
    first = asyncio.create_task(made.settler.extend_now(delivery, 200), name="first")
    second = asyncio.create_task(made.settler.extend_now(delivery, 400), name="second")
    await asyncio.sleep(1)
    first.cancel()
    await second
    assert delivery.deadline == 421.0
    assert made.queue.changes == [(15.0, [("r1", 30)]), (18.0, [("r1", 200)]), (21.0, [("r1", 400)])]


@in_scene(partial(desk, heartbeat=False))
async def test_an_extension_whose_answer_is_lost_is_not_believed_where_it_shortens(made: Desk) -> None:
    """It may have taken effect all the same."""
    made.queue.on_change = answer(error=ServiceUnavailable("no answer"))
    [delivery] = made.take(message(1))
    with pytest.raises(OwnershipLost):
        await made.settler.extend_now(delivery, 3)
    assert asyncio.get_running_loop().time() <= 8


@in_scene(partial(desk, heartbeat=True))
async def test_bytes_and_bodies_are_let_go_of_with_the_message(made: Desk) -> None:
    """What was given back with a long delay is in the queue, not here; a second receive counts once."""
    for n in range(100):
        [delivery] = made.take(message(n, body="x" * 1000))
        assert made.settler.bytes == 1000
        made.take(message(n, body="x" * 1000, receive_count=2))
        assert made.settler.bytes == 1000
        made.settler.give_back(delivery, Settlement.DEFERRED, delay=900)
        await made.settler.drain()
        del delivery
    assert made.settler.bytes == made.settler.held == len(made.settler.deliveries) == 0
    made.events.clear()
    gc.collect()
    held = [each for each in gc.get_objects() if issubclass(type(each), Delivery)]
    assert [each for each in held if len(each.message.body) == 1000] == []


@in_virtual_time
async def test_subclasses_are_made_where_they_are_asked_for() -> None:
    """A consumer's own kind of delivery carries its own fields, and is the scheduler's ticket as well."""

    class Job(Delivery, eq=False, kw_only=True):
        context: str = "none"

    tasks = Tasks(_fatal)
    made = Desk(ScriptedQueue(), None, Visibility())
    settler = Settler[Job](
        made.queue,
        Visibility(),
        tasks=tasks,
        listener=made,
        dead_letters=DeadLetters(made, made.open, tasks=tasks),
        observers=Observers(),
        kind=Job,
    )
    [job] = settler.take([message(1)])
    assert (job.context, job.tenant, job.attempt, job.group) == ("none", None, 1, None)
    assert settler.deliveries == {"m1": job}
    await settler.abandon()
    await tasks.close(grace=1.0)


@pytest.mark.parametrize("way", ["back", "back now", "extend"])
@in_scene(desk)
async def test_a_delay_ends_within_the_twelve_hours_that_sqs_counts_from_the_receive(made: Desk, way: str) -> None:
    """SQS refuses a change that would hide a message for longer, so the longest delay is cut to what is left."""
    [delivery] = made.take(message(1))
    await asyncio.sleep(2)
    if way == "extend":
        await made.settler.extend_now(delivery, 43_200)
        await made.settler.extend_now(delivery, 43_200)  # there is no more to ask for
        assert delivery.deadline == 43_195.0
    elif way == "back now":
        await made.settler.give_back_now(delivery, Settlement.RETRIED, delay=43_200)
    else:
        made.settler.give_back(delivery, Settlement.RETRIED, delay=43_200)
        await made.settler.drain()
    assert made.queue.changed == [("r1", 43_193)]


@in_scene(desk)
async def test_a_refused_change_is_told_with_tenant_and_cause(made: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The line says of which tenant the message is, and what SQS said of the change."""
    made.queue.on_change = answer(
        EntryFailure(0, "InvalidParameterValue", "Total VisibilityTimeout is too long", sender_fault=True)
    )
    [delivery] = made.take(message(1))
    delivery.tenant = "acme"
    made.settler.give_back(delivery, Settlement.RETRIED, delay=7)
    await made.settler.drain()
    await asyncio.sleep(2)
    [line] = warnings(caplog)
    assert "InvalidParameterValue (Total VisibilityTimeout is too long)" in line
    assert "m1 of tenant acme" in line
