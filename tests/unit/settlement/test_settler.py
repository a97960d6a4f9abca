"""What is held is let go exactly once, and whoever waits for it learns how it ended."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from postroom.errors import AccessDenied, OwnershipLost, PostroomError, TransportError
from postroom.events import Event, MessageSettled, Observers
from postroom.message import Message, MessageAttribute
from postroom.options import Visibility
from postroom.settlement import Delivery, Settler
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure, Queue, VisibilityChange
from postroom.types import Settlement
from support.scripted import ScriptedQueue, message


class Desk:
    """A settler over a scripted queue, with what it told."""

    def __init__(self, queue: ScriptedQueue, dead_letters: ScriptedQueue | None) -> None:
        self.queue = queue
        self.events: list[Event] = []
        self.lost: list[Delivery] = []
        self._dead_letters = dead_letters
        self.settler = Settler(
            queue,
            Visibility(timeout=30),
            dead_letter_queue=self._open_dead_letters,
            on_lost=self.lost.append,
            observers=Observers([self.events.append]),
        )

    async def _open_dead_letters(self) -> Queue | None:
        return self._dead_letters

    def take(self, *messages: Message) -> list[Delivery]:
        """Hold messages."""
        return self.settler.take(messages)

    @property
    def endings(self) -> list[tuple[str, Settlement]]:
        """What observers were told, in order."""
        return [(e.message.id, e.settlement) for e in self.events if isinstance(e, MessageSettled)]


@asynccontextmanager
async def desk(queue: ScriptedQueue | None = None, dead_letters: ScriptedQueue | None = None) -> AsyncIterator[Desk]:
    """Run a settler with its heartbeat."""
    made = Desk(queue or ScriptedQueue(), dead_letters)
    task = asyncio.create_task(made.settler.heartbeat.run(), name="heartbeat")
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])


def scenario(test: Callable[[Desk], Awaitable[None]], **options: ScriptedQueue) -> Desk:
    """Run a scenario in virtual time and return its desk."""

    async def main() -> Desk:
        async with desk(**options) as made:
            await test(made)
            return made

    return run_virtual(main())


def test_acknowledged_messages_are_deleted_in_one_batch() -> None:
    """Three acks, one call, and nothing held afterwards."""

    async def test(made: Desk) -> None:
        for delivery in made.take(message(1), message(2), message(3)):
            made.settler.ack(delivery)
        await made.settler.drain()

    made = scenario(test)
    assert [handles for _, handles in made.queue.deletes] == [["r1", "r2", "r3"]]
    assert made.settler.held == 0
    assert made.settler.counts() == {Settlement.ACKED: 3}
    assert [settlement for _, settlement in made.endings] == [Settlement.ACKED] * 3


def test_a_message_is_settled_once() -> None:
    """The first decision counts: a retry after an ack, or a second ack, does nothing."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        made.settler.ack(delivery)
        made.settler.ack(delivery)
        made.settler.give_back(delivery, Settlement.RETRIED, delay=5)
        await made.settler.drain()

    made = scenario(test)
    assert made.queue.deleted == ["r1"]
    assert made.queue.changed == []


def test_a_message_given_back_is_visible_after_its_delay() -> None:
    """Whole seconds, rounded up; the heartbeat does not overwrite it."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        made.settler.give_back(delivery, Settlement.RETRIED, delay=40.2)
        await asyncio.sleep(100)

    assert scenario(test).queue.changed == [("r1", 41)]


def test_a_backoff_never_arrives_before_an_extension_that_is_on_its_way() -> None:
    """The extension was sent first and answers late: the backoff is sent after its answer."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))

        async def slow(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            if changes[0].timeout == 30:
                await asyncio.sleep(4)
            return []

        made.queue.on_change = slow
        await asyncio.sleep(15.5)  # the extension left at 15 s
        made.settler.give_back(delivery, Settlement.RETRIED, delay=2)
        await made.settler.drain()

    made = scenario(test)
    assert made.queue.changed == [("r1", 30), ("r1", 2)]
    assert made.queue.changes[1][0] >= 19.0


def test_ack_now_returns_when_the_delete_is_confirmed() -> None:
    """It does not wait for company."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        await made.settler.ack_now(delivery)
        assert made.queue.deleted == ["r1"]
        assert asyncio.get_running_loop().time() == 0.0

    assert scenario(test).settler.held == 0


def test_ack_now_tells_the_caller_that_it_failed() -> None:
    """A delete that SQS denies raises in the caller, and the message is counted as coming back."""

    async def test(made: Desk) -> None:
        async def deny(_handles: Sequence[str]) -> list[EntryFailure]:
            raise AccessDenied("no")

        made.queue.on_delete = deny
        [delivery] = made.take(message(1))
        with pytest.raises(AccessDenied):
            await made.settler.ack_now(delivery)

    made = scenario(test)
    assert made.settler.failures == 1
    assert made.settler.counts() == {Settlement.LEFT: 1}


def test_ack_now_of_a_settled_message_is_refused() -> None:
    """The error says what was decided before."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        made.settler.give_back(delivery, Settlement.RETRIED, delay=1)
        with pytest.raises(PostroomError, match="retried"):
            await made.settler.ack_now(delivery)

    scenario(test)


def test_an_ack_after_the_deadline_is_suppressed() -> None:
    """SQS would answer success and delete nothing; we say that it was lost."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        made.settler.heartbeat.release(delivery)
        await asyncio.sleep(31)
        with pytest.raises(OwnershipLost, match="visibility timeout"):
            await made.settler.ack_now(delivery)
        made.settler.ack(delivery)
        await made.settler.drain()

    made = scenario(test)
    assert made.queue.deleted == []
    assert made.endings == [("m1", Settlement.LOST)]


def test_a_lost_message_is_reported_once_and_not_deleted() -> None:
    """Losing ownership tells the consumer, and a later ack does nothing."""

    async def test(made: Desk) -> None:
        async def refuse(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            return [EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True)]

        made.queue.on_change = refuse
        [delivery] = made.take(message(1))
        await asyncio.sleep(20)
        made.settler.ack(delivery)
        await made.settler.drain()

    made = scenario(test)
    assert [delivery.message.id for delivery in made.lost] == ["m1"]
    assert made.queue.deleted == []
    assert made.settler.counts() == {Settlement.LOST: 1}


def test_a_second_receive_of_a_held_message_is_one_message() -> None:
    """It is not handled twice at once, and the newest receipt handle deletes it."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        again = Message(id="m1", body="{}", receipt_handle="r1-newer")
        assert made.take(again) == []
        made.settler.ack(delivery)
        await made.settler.drain()

    assert scenario(test).queue.deleted == ["r1-newer"]


def test_a_message_received_again_while_its_delete_is_on_its_way_is_deleted_again() -> None:
    """The first delete may have named a handle that had expired."""

    async def test(made: Desk) -> None:
        async def slow(_handles: Sequence[str]) -> list[EntryFailure]:
            await asyncio.sleep(1)
            return []

        made.queue.on_delete = slow
        [delivery] = made.take(message(1))
        made.settler.ack(delivery)
        await asyncio.sleep(0.5)
        made.take(Message(id="m1", body="{}", receipt_handle="r1-newer"))
        await made.settler.drain()

    made = scenario(test)
    assert made.queue.deleted == ["r1", "r1-newer"]
    assert made.settler.counts() == {Settlement.ACKED: 1}


def test_an_older_receive_that_arrives_late_is_not_taken_for_the_newest() -> None:
    """Two polls were answered in the wrong order: SQS's count of receives tells which handle still works."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1, receive_count=2))
        late = {"ApproximateReceiveCount": "1"}
        made.settler.take([Message(id="m1", body="{}", receipt_handle="r1-older", system_attributes=late)])
        made.settler.ack(delivery)
        await made.settler.drain()

    assert scenario(test).queue.deleted == ["r1"]


def test_a_message_received_again_after_it_was_given_back_is_a_new_one() -> None:
    """It may arrive before the answer to the change that made it visible."""

    async def test(made: Desk) -> None:
        async def slow(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            await asyncio.sleep(1)
            return []

        made.queue.on_change = slow
        [delivery] = made.take(message(1))
        made.settler.give_back(delivery, Settlement.RETRIED, delay=0)
        await asyncio.sleep(0.5)
        [second] = made.take(Message(id="m1", body="{}", receipt_handle="r1-second"))
        assert second is not delivery
        await made.settler.drain()
        made.settler.ack(second)
        await made.settler.drain()

    made = scenario(test)
    assert made.queue.deleted == ["r1-second"]
    assert made.settler.held == 0


def test_a_rejected_message_goes_to_the_dead_letter_queue_with_its_reason() -> None:
    """Body and attributes as they were, then it is deleted."""
    letters = ScriptedQueue()
    tenant = {"tenantId": MessageAttribute("String", string_value="tenant-a")}

    async def test(made: Desk) -> None:
        [delivery] = made.take(Message(id="m1", body="{1}", receipt_handle="r1", message_attributes=tenant))
        assert await made.settler.reject(delivery, "bad\nsku")
        await made.settler.drain()

    made = scenario(test, dead_letters=letters)
    [letter] = letters.sent
    assert letter.body == "{1}"
    assert letter.message_attributes["tenantId"].string_value == "tenant-a"
    assert letter.message_attributes["postroom.reason"].string_value == "bad sku"
    assert made.queue.deleted == ["r1"]
    assert made.endings == [("m1", Settlement.REJECTED)]


def test_a_reason_finds_no_room_beside_ten_attributes() -> None:
    """SQS takes ten attributes: the message is dead-lettered as it is."""
    letters = ScriptedQueue()
    ten = {f"a{n}": MessageAttribute("String", string_value="x") for n in range(10)}

    async def test(made: Desk) -> None:
        [delivery] = made.take(Message(id="m1", body="{}", receipt_handle="r1", message_attributes=ten))
        assert await made.settler.reject(delivery, "why")

    scenario(test, dead_letters=letters)
    assert set(letters.sent[0].message_attributes) == set(ten)


def test_a_message_is_not_deleted_when_the_dead_letter_queue_refuses_it() -> None:
    """Nothing is lost, and nothing is decided: the caller gives it back."""
    letters = ScriptedQueue()
    letters.send_failure = "InternalError"

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        with pytest.raises(TransportError, match="refused message m1: InternalError"):
            await made.settler.reject(delivery, "why")
        assert delivery.settlement is None
        await made.settler.drain()

    assert scenario(test, dead_letters=letters).queue.deleted == []


def test_reject_without_a_dead_letter_queue_is_answered_with_no() -> None:
    """The caller handles it as a failure."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        assert not await made.settler.reject(delivery, "why")

    scenario(test)


def test_a_message_that_is_left_can_be_acknowledged_later() -> None:
    """MANUAL: the handler returned, something else acknowledges within the visibility timeout."""

    async def test(made: Desk) -> None:
        [delivery] = made.take(message(1))
        made.settler.leave(delivery)
        assert made.settler.held == 0
        await asyncio.sleep(20)
        await made.settler.ack_now(delivery)

    made = scenario(test)
    assert made.queue.deleted == ["r1"]
    assert made.queue.changed == []


def test_abandon_returns_although_nothing_answers() -> None:
    """A permanent failure or a silent server does not keep a stop from ending."""

    async def test(made: Desk) -> None:
        never = asyncio.Event()

        async def hang(_handles: Sequence[str]) -> list[EntryFailure]:
            await never.wait()
            return []

        made.queue.on_delete = hang
        for delivery in made.take(message(1), message(2)):
            made.settler.ack(delivery)
        await asyncio.sleep(1)
        await made.settler.abandon()

    assert scenario(test).settler.held == 0


def test_a_lost_message_is_not_extended_any_more() -> None:
    """Its delete came too late; an extension that is answered late must not keep it from whoever has it next."""

    async def test(made: Desk) -> None:
        async def slow(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            await asyncio.sleep(16)
            return []

        made.queue.on_change = slow
        [first, second] = made.take(message(1), message(2))
        await asyncio.sleep(30.5)  # past the deadline, while an extension is on its way
        made.settler.ack(first)
        made.settler.lose(second)
        await asyncio.sleep(200)

    made = scenario(test)
    assert made.queue.changed == [("r1", 30), ("r2", 30)]
    assert made.queue.deleted == []
