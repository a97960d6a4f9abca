"""Sends rejected messages to the dead-letter queue: found once, ten per call, with what tells who they were."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from postroom.errors import InvalidRequest, OwnershipLost, PostroomError, QueueNotFound, ServiceUnavailable
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.settlement.batcher import MAX_BYTES, Batcher, Fate
from postroom.settlement.delivery import Delivery
from postroom.settlement.letters import ROOM, size_of, write
from postroom.settlement.trouble import Trouble
from postroom.tasks import Tasks
from postroom.transports.protocol import EntryFailure, Queue, QueueInfo, RedrivePolicy, checked_results
from postroom.types import Settlement

_log = Log("postroom.settlement", Step.DEAD_LETTER)

_LETTERS: Final = "dead-letter"
"""What the refusal of an entry calls its operation."""
_LINGER: Final = 0.05
"""Seconds that a dead letter waits for company. A handler's slot waits as well."""
_LONGEST: Final = 60.0
"""Seconds for which a letter is tried; then its message is given back, and rejected again later."""


class HasRedrive(Protocol):
    """Knows where messages go that cannot be handled. The answer may change at any time."""

    @property
    def redrive(self) -> RedrivePolicy | None:
        """The queue's redrive policy; None while it has none."""
        ...


class _Posting(msgspec.Struct, eq=False):
    """One message on its way to the dead-letter queue."""

    delivery: Delivery
    reason: str
    source: QueueInfo
    size: int
    until: float
    """The loop time at which it is not tried any longer."""
    waiter: asyncio.Future[None]
    sent: Callable[[Delivery], None]


class DeadLetters:
    """The dead-letter queue of one queue, or another that messages are sent to: opened when first needed, and kept.

    Args:
        redrive: says which queue that is. It is asked for each message, since a policy can be added or changed.
        open_queue: opens a queue by its ARN.
        tasks: start the calls, and the timers.
        name: what the log and errors call it; None for the dead-letter queue.
    """

    def __init__(
        self,
        redrive: HasRedrive,
        open_queue: Callable[[str], Awaitable[Queue]],
        *,
        tasks: Tasks,
        name: str | None = None,
    ) -> None:
        self._redrive = redrive
        self._open_queue = open_queue
        self._chosen = name is not None
        self._name = name = "the dead-letter queue" if name is None else name
        self._time = tasks.time
        self._opening = asyncio.Lock()
        self._queue: Queue | None = None
        self._arn = ""
        self.letters: Batcher[_Posting] = Batcher[_Posting](
            _LETTERS,
            self,
            tasks=tasks,
            linger=_LINGER,
            trouble=Trouble(f"Sending messages to {name}", "tried again for a while", tasks=tasks),
            patience=0.0,
            size=lambda posting: posting.size,
        )
        """The batches of letters."""
        self.works: bool = False
        """Whether the queue has taken anything yet."""
        self._future = tasks.loop.create_future

    @property
    def exists(self) -> bool:
        """Whether there is a dead-letter queue."""
        return self._redrive.redrive is not None

    def follows(self, receives: int) -> bool:
        """Whether SQS hands a message out no more after so many receives, and moves it to a dead-letter queue."""
        redrive = self._redrive.redrive
        return redrive is not None and receives >= redrive.max_receive_count

    async def deliver(
        self, delivery: Delivery, reason: str, *, source: QueueInfo, sent: Callable[[Delivery], None]
    ) -> None:
        """Send a message, and return when the dead-letter queue has taken it.

        Args:
            delivery: the message.
            reason: why.
            source: the queue that it came from.
            sent: called when it was taken, also when the caller does not wait any longer.

        Raises:
            PostroomError: the queue could not be opened, or did not take it.
        """
        now = self._time()
        if delivery.lost or delivery.deadline <= now:
            raise _too_late(delivery)
        size = min(size_of(delivery.message) + ROOM, MAX_BYTES)
        waiter = self._future()
        # Not bounded by the deadline, which moves while the message is extended: `fate` asks for it each time.
        self.letters.add(_Posting(delivery, reason, source, size, now + _LONGEST, waiter, sent))
        # Not shielded: a caller that is cancelled cancels the waiter, and `fate` sees by it that
        # the letter must not leave.
        await waiter

    async def abandon(self) -> None:
        """Give up what was not answered."""
        left: list[_Posting] = []
        try:
            left = await self.letters.cancel()
        finally:
            # Also when the stop itself is cancelled here: a handler must not wait for an answer that never comes.
            for posting in left or self.letters.give_up():
                self._answer(posting, self._unsent(posting.delivery, "the consumer has stopped"))

    # -- the work of the batcher -----------------------------------------------------------------------------------

    def fate(self, entry: _Posting, now: float) -> Fate:
        """Return what to do with a letter that is about to be sent."""
        if entry.waiter.done():  # its caller was cancelled: nothing is decided
            return Fate.OVER
        if entry.delivery.settlement is Settlement.REJECTED:  # by an earlier letter of it
            self._answer(entry, None)
            return Fate.OVER
        if entry.delivery.lost or entry.delivery.deadline <= now:
            self._answer(entry, _too_late(entry.delivery))
            return Fate.OVER
        if now >= entry.until:
            self._answer(entry, self._unsent(entry.delivery, f"it was tried in vain ({self.letters.last_error})"))
            return Fate.OVER
        return Fate.SEND

    async def send(self, entries: Sequence[_Posting]) -> Sequence[EntryFailure]:
        """Send letters. A queue that is gone is looked for once: it may have been made again."""
        try:
            return await self._send_to(await self._opened(), entries)
        except QueueNotFound:
            self._queue = None
            return await self._send_to(await self._opened(), entries)

    async def _send_to(self, queue: Queue, entries: Sequence[_Posting]) -> Sequence[EntryFailure]:
        """Send the letters of messages that are still ours: to open the queue may have taken long."""
        now = self._time()
        ours = [place for place, each in enumerate(entries) if self.fate(each, now) is Fate.SEND]
        if len(ours) == len(entries):
            return await self._post(queue, entries)
        failures: Sequence[EntryFailure] = ()
        if ours:
            failures = await self._post(queue, [entries[place] for place in ours])
        again = [msgspec.structs.replace(each, index=ours[each.index]) for each in failures]
        # Their callers have their answer from `fate`.
        lost = sorted(set(range(len(entries))).difference(ours))
        return [*again, *(EntryFailure(place, "Lost", sender_fault=True) for place in lost)]

    async def _post(self, queue: Queue, entries: Sequence[_Posting]) -> Sequence[EntryFailure]:
        letters = [write(each.delivery, each.reason, source=each.source, target=queue.info) for each in entries]
        results = checked_results(await queue.send([letter.outgoing for letter in letters]), len(letters))
        failures = [each for each in results if isinstance(each, EntryFailure)]
        refused = {failure.index for failure in failures}
        for index, (letter, entry) in enumerate(zip(letters, entries, strict=True)):
            if letter.unsaid is not None and index not in refused:
                text = "Message %s of %s was sent to %s without room for its whole reason: %s"
                delivery = entry.delivery
                shown = tenant_in_words(delivery.tenant)
                _log.warning(text, delivery.message.id, shown, self._name, letter.unsaid, extra=about(delivery))
        return failures

    @staticmethod
    def _answer(entry: _Posting, error: PostroomError | None) -> None:
        if entry.waiter.done():
            return
        if error is None:
            entry.waiter.set_result(None)
        else:
            entry.waiter.set_exception(error)
            entry.waiter.exception()  # its caller may have been cancelled in this very turn

    def done(self, entries: Sequence[_Posting], error: PostroomError | None) -> None:
        """Learn how letters ended."""
        for entry in entries:
            self._ended(entry, error)

    def _ended(self, entry: _Posting, error: PostroomError | None) -> None:
        if error is None:
            # Before the answer, and for every letter: the message is deleted even if its caller is
            # gone.
            self.works = True
            entry.sent(entry.delivery)
        elif isinstance(error, InvalidRequest):
            # Of an entry the code alone: SQS's words may quote what was sent. Those of a call quote nothing.
            why = error.code if error.operation == _LETTERS else error
            text = f"{self._name} refused message {entry.delivery.message.id}: {why}"
            error = InvalidRequest(text, operation="SendMessageBatch", code=error.code)
        self._answer(entry, error)

    async def _opened(self) -> Queue:
        # Several batches may find at once that the queue is not open.
        async with self._opening:
            redrive = self._redrive.redrive
            if redrive is None:
                raise QueueNotFound(f"{self._name} is not there any longer")
            if self._queue is None or self._arn != redrive.dead_letter_queue:
                try:
                    self._queue = await self._open_queue(redrive.dead_letter_queue)
                except QueueNotFound as error:
                    if self._chosen:
                        raise
                    # What a missing queue is said to need elsewhere, another name, would mislead here.
                    text = f"{self._name} {redrive.dead_letter_queue} does not exist"
                    text += ": create it, or correct the redrive policy of the queue"
                    raise QueueNotFound(text, operation=error.operation, code=error.code) from error
                self._arn = redrive.dead_letter_queue
            return self._queue

    def _unsent(self, delivery: Delivery, why: str) -> ServiceUnavailable:
        text = f"message {delivery.message.id} was not sent to {self._name}: {why}"
        return ServiceUnavailable(text, operation="SendMessageBatch")


def _too_late(delivery: Delivery) -> OwnershipLost:
    text = f"message {delivery.message.id} is not ours any longer: its visibility timeout is over"
    return OwnershipLost(text, message_id=delivery.message.id)
