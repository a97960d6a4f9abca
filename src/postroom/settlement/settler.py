"""Everything that is held, and the only place where it is let go."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from postroom.errors import OwnershipLost, PostroomError, TransportError
from postroom.events import MessageSettled, Observers
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.options import Visibility
from postroom.settlement.backoff import whole_seconds
from postroom.settlement.batcher import Batcher
from postroom.settlement.delivery import Delivery
from postroom.settlement.heartbeat import Heartbeat
from postroom.transports.protocol import EntryFailure, Queue, VisibilityChange
from postroom.types import Settlement

_log = logging.getLogger("postroom.settlement")

LINGER = 0.1
"""Seconds that an acknowledgement or a visibility change waits for company."""
MAX_ATTRIBUTES = 10
"""Message attributes per message (quotas-messages.html)."""
REASON_ATTRIBUTE = "postroom.reason"
"""The message attribute that tells why a message was sent to the dead-letter queue."""

_OWNERSHIP_LOST = "OwnershipLost"

OpenQueue = Callable[[], Awaitable[Queue | None]]


class _Entry(msgspec.Struct, eq=False):
    """One decision on its way to SQS."""

    delivery: Delivery
    delay: float = 0.0
    waiter: asyncio.Future[None] | None = None
    sent_handle: str = ""


class Settler:
    """Holds deliveries from receive to settle, and settles each at most once.

    Args:
        queue: where they came from.
        visibility: how long they stay ours.
        dead_letter_queue: opens the dead-letter queue, or returns None where there is none.
        on_lost: called once for a delivery whose ownership was lost before it was settled.
        observers: told of every settlement, once SQS confirmed it.
    """

    def __init__(
        self,
        queue: Queue,
        visibility: Visibility,
        *,
        dead_letter_queue: OpenQueue,
        on_lost: Callable[[Delivery], None],
        observers: Observers,
    ) -> None:
        self.heartbeat = Heartbeat(queue, visibility, on_lost=self._lost)
        self._queue = queue
        self._visibility = visibility
        self._dead_letter_queue = dead_letter_queue
        self._on_lost = on_lost
        self._observers = observers
        self._held: dict[str, Delivery] = {}
        self._deletes = Batcher[_Entry]("delete", send=self._delete, done=self._deleted, linger=LINGER)
        self._changes = Batcher[_Entry]("change-visibility", send=self._change, done=self._ended, linger=LINGER)
        self._counts: Counter[Settlement] = Counter()
        self._failed = 0

    @property
    def held(self) -> int:
        """Deliveries that are ours now, those whose acknowledgement is on its way included."""
        return len(self._held)

    @property
    def failures(self) -> int:
        """Decisions that SQS refused for good: the message comes back after its visibility timeout."""
        return self._failed

    def counts(self) -> Mapping[Settlement, int]:
        """Return how many messages ended in each way."""
        return dict(self._counts)

    def take(self, messages: Sequence[Message]) -> list[Delivery]:
        """Hold the messages of one receive. A message that is held already is renewed instead of returned again."""
        now = asyncio.get_running_loop().time()
        timeout = self._visibility.timeout
        fresh: list[Delivery] = []
        for message in messages:
            known = self._held.get(message.id)
            if known is not None and known.may_be_renewed:
                known.renew(message, received_at=now, visibility=timeout)
                continue
            if known is not None and message.receive_count < known.receives:
                continue  # its answer was overtaken by that of a newer receive, which has been decided
            delivery = Delivery.of(message, received_at=now, visibility=timeout)
            self._held[message.id] = delivery
            fresh.append(delivery)
        if fresh:
            self.heartbeat.cover(fresh)
        return fresh

    def ack(self, delivery: Delivery) -> None:
        """Delete the message, with the next batch. Does nothing when it is settled or lost already."""
        if delivery.settlement is None and not delivery.lost:
            delivery.settlement = Settlement.ACKED
            self._deletes.add(_Entry(delivery))

    async def ack_now(self, delivery: Delivery) -> None:
        """Delete the message and return when SQS has confirmed it.

        Raises:
            OwnershipLost: the visibility timeout is over; the message may be with another consumer.
            TransportError: SQS refused, or could not be reached in a few attempts.
        """
        self._claim(delivery, Settlement.ACKED)
        waiter = asyncio.get_running_loop().create_future()
        self._deletes.add(_Entry(delivery, waiter=waiter), urgent=True)
        await waiter

    def give_back(self, delivery: Delivery, settlement: Settlement, *, delay: float) -> None:
        """Make the message visible again after ``delay`` seconds. Does nothing when it is settled or lost already."""
        if delivery.settlement is None and not delivery.lost:
            delivery.settlement = settlement
            self.heartbeat.release(delivery)
            self._changes.add(_Entry(delivery, delay))

    async def give_back_now(self, delivery: Delivery, settlement: Settlement, *, delay: float) -> None:
        """Make the message visible again after ``delay`` seconds, and return when SQS has confirmed it.

        Raises: as :meth:`ack_now`.
        """
        self._claim(delivery, settlement)
        self.heartbeat.release(delivery)
        waiter = asyncio.get_running_loop().create_future()
        self._changes.add(_Entry(delivery, delay, waiter), urgent=True)
        await waiter

    def leave(self, delivery: Delivery) -> None:
        """Do nothing with the message: SQS shows it again after its visibility timeout. ``ack_now`` still works."""
        if delivery.settlement is None and not delivery.lost:
            delivery.settlement = Settlement.LEFT
            self.heartbeat.release(delivery)
            self._end(delivery, Settlement.LEFT)

    def lose(self, delivery: Delivery) -> None:
        """Let go of a message that is not ours any more. Does nothing when it is settled or lost already."""
        if delivery.settlement is None and not delivery.lost:
            delivery.lost = True
            self._end(delivery, Settlement.LOST)

    async def reject(self, delivery: Delivery, reason: str) -> bool:
        """Send the message to the dead-letter queue and then delete it. Returns False where there is none.

        Raises:
            PostroomError: the dead-letter queue could not be opened, or did not take it. Nothing was decided then.
        """
        queue = await self._dead_letter_queue()
        if queue is None:
            _log.warning("Message %s was rejected, but its queue has no dead-letter queue", delivery.message.id)
            return False
        [result] = await queue.send([_dead_letter(delivery.message, reason, fifo=queue.info.fifo)])
        if isinstance(result, EntryFailure):
            text = f"the dead-letter queue refused message {delivery.message.id}: {result.code}"
            raise TransportError(text, operation="SendMessageBatch", code=result.code)
        if delivery.settlement is None and not delivery.lost:
            delivery.settlement = Settlement.REJECTED
            self._deletes.add(_Entry(delivery))
        return True

    async def drain(self) -> None:
        """Send everything that was decided, and wait for the answers."""
        await self._deletes.drain()
        await self._changes.drain()

    async def abandon(self) -> None:
        """Give up what has not reached SQS, and what is still held: its visibility timeout brings it back."""
        for batcher in (self._deletes, self._changes):
            given_up = await batcher.cancel()
            if given_up:
                _log.error("Gave up %d batches that SQS did not answer in time", given_up)
        for delivery in list(self._held.values()):
            self.heartbeat.release(delivery)
        self._held.clear()

    def _claim(self, delivery: Delivery, settlement: Settlement) -> None:
        now = asyncio.get_running_loop().time()
        if delivery.lost or delivery.deadline <= now:
            raise _ownership_lost(delivery.message)
        if delivery.settlement is not None and delivery.settlement is not Settlement.LEFT:
            text = f"message {delivery.message.id} is settled already: {delivery.settlement.value}"
            raise PostroomError(text)
        delivery.settlement = settlement
        self._held.setdefault(delivery.message.id, delivery)

    async def _delete(self, entries: Sequence[_Entry]) -> Sequence[EntryFailure]:
        return await self._send_live(entries, self._send_deletes)

    async def _change(self, entries: Sequence[_Entry]) -> Sequence[EntryFailure]:
        # An extension that is still on its way would overwrite the backoff if it arrived after it.
        await self.heartbeat.quiesce([entry.delivery for entry in entries])
        return await self._send_live(entries, self._send_changes)

    async def _send_live(
        self, entries: Sequence[_Entry], send: Callable[[Sequence[_Entry]], Awaitable[Sequence[EntryFailure]]]
    ) -> Sequence[EntryFailure]:
        """Send the entries that are still ours; report the others as refused, in place."""
        now = asyncio.get_running_loop().time()
        live: list[int] = []
        refused: list[EntryFailure] = []
        for index, entry in enumerate(entries):
            delivery = entry.delivery
            self.heartbeat.release(delivery)
            if delivery.lost or delivery.deadline <= now:
                refused.append(EntryFailure(index, _OWNERSHIP_LOST, sender_fault=True))
                continue
            entry.sent_handle = delivery.receipt_handle
            live.append(index)
        if live:
            for failure in await send([entries[index] for index in live]):
                place = live[failure.index]
                refused.append(EntryFailure(place, failure.code, failure.text, failure.sender_fault))
        return refused

    async def _send_deletes(self, entries: Sequence[_Entry]) -> Sequence[EntryFailure]:
        return await self._queue.delete([entry.sent_handle for entry in entries])

    async def _send_changes(self, entries: Sequence[_Entry]) -> Sequence[EntryFailure]:
        changes = [VisibilityChange(entry.sent_handle, whole_seconds(entry.delay)) for entry in entries]
        return await self._queue.change_visibility(changes)

    def _deleted(self, entry: _Entry, error: TransportError | None) -> None:
        delivery = entry.delivery
        if error is None and entry.sent_handle != delivery.receipt_handle:
            # It was received again while the delete was on its way: only the newest handle surely deletes it.
            self._deletes.add(entry, urgent=True)
            return
        self._ended(entry, error)

    def _ended(self, entry: _Entry, error: TransportError | None) -> None:
        delivery = entry.delivery
        waiter = entry.waiter
        if error is None and delivery.settlement is not None:
            delivery.confirmed = True
            self._end(delivery, delivery.settlement, entry.delay)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            return
        lost = error is not None and error.code == _OWNERSHIP_LOST
        if lost:
            delivery.lost = True
        else:
            self._failed += 1
            delivery.settlement = Settlement.LEFT  # whatever was decided: SQS does not know it
        self._end(delivery, Settlement.LOST if lost else Settlement.LEFT)
        if waiter is not None and not waiter.done():
            waiter.set_exception(_ownership_lost(delivery.message) if lost or error is None else error)

    def _lost(self, delivery: Delivery) -> None:
        if delivery.settlement is None:
            _log.warning("Ownership of message %s was lost: its visibility timeout is over", delivery.message.id)
            self._end(delivery, Settlement.LOST)
            self._on_lost(delivery)

    def _end(self, delivery: Delivery, settlement: Settlement, delay: float = 0.0) -> None:
        # Also what was lost while its delete waited: it must not be kept from whoever has it next.
        self.heartbeat.release(delivery)
        if self._held.get(delivery.message.id) is delivery:
            del self._held[delivery.message.id]
        self._counts[settlement] += 1
        if self._observers:
            self._observers.tell(MessageSettled(delivery.message, settlement, delay))


def _ownership_lost(message: Message) -> OwnershipLost:
    text = (
        f"message {message.id} is not ours any more: its visibility timeout passed without a confirmed extension, "
        "so another consumer may have it. Use a longer Visibility(timeout=...), or settle sooner in MANUAL mode"
    )
    return OwnershipLost(text, message_id=message.id)


def _dead_letter(message: Message, reason: str, *, fifo: bool) -> OutgoingMessage:
    attributes = dict(message.message_attributes)
    if len(attributes) < MAX_ATTRIBUTES or REASON_ATTRIBUTE in attributes:
        attributes[REASON_ATTRIBUTE] = MessageAttribute("String", string_value=_attribute_text(reason))
    else:
        _log.warning("Message %s has %d attributes: no room for the reason", message.id, MAX_ATTRIBUTES)
    return OutgoingMessage(
        body=message.body,
        message_attributes=attributes,
        group_id=message.group_id,
        deduplication_id=message.id if fifo else None,
    )


def _attribute_text(text: str) -> str:
    """Return text as a String attribute may carry it: not empty, not long, no control characters."""
    shown = "".join(character if character.isprintable() else " " for character in text[:500]).strip()
    return shown or "rejected"
