"""Everything that is held, and the only place where it is let go."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any, Final, Generic, Protocol

from typing_extensions import TypeVar

from postroom.display import counted
from postroom.errors import (
    ClosedError,
    ConfigurationError,
    InvalidReceiptHandle,
    OwnershipLost,
    PostroomError,
    QueueNotFound,
)
from postroom.events import MessageSettled, Observers
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.message import Message
from postroom.options import MAX_VISIBILITY, Visibility
from postroom.settlement.backoff import whole_seconds
from postroom.settlement.batcher import CHANGEABLE, PATIENCE, Batcher, Fate, Work
from postroom.settlement.dead_letters import DeadLetters
from postroom.settlement.delivery import Decision, Delivery, Ending
from postroom.settlement.heartbeat import STOOD_STILL, Heartbeat
from postroom.settlement.sending import Changes, Deletes
from postroom.settlement.sleep import Moment, machine_slept
from postroom.settlement.trouble import Refusals, Trouble
from postroom.tasks import Tasks
from postroom.transports.protocol import Queue
from postroom.types import Settlement

_log = Log("postroom.settlement", Step.SETTLE)

# Looked up for every message: on Python 3.11 the member of an enum costs as much as a call.
_ACKED, _SEND = Settlement.ACKED, Fate.SEND

LINGER: Final = 0.1
"""Seconds that an acknowledgement or a visibility change waits for company."""
_BRIEF: Final = 5.0
"""Seconds for which no delete may work before nothing more is received."""
_LATE: Final = 1.0
"""Seconds between a deadline and the look at it, from which on something kept the event loop from it."""

_UNDELETED: Final = "%s of {} could not be deleted %s. Messages: %s"
_UNRETURNED: Final = "%s of {} could not be given back %s. Messages: %s"
_LOST: Final = "%s of {} were lost, too (%s): another consumer may have them. Messages: %s"
_MOVED: Final = "is moved to the dead-letter queue by SQS, since this was its last receive"
_NOWHERE: Final = "Rejected %s of {}, but the queue has no dead-letter queue (%s). Messages: %s"
_STOPPED: Final = "the consumer stopped before SQS confirmed it: message {} comes back after its visibility timeout"

D = TypeVar("D", bound=Delivery, default=Delivery)
D_contra = TypeVar("D_contra", bound=Delivery, contravariant=True, default=Delivery)


class Listener(Protocol[D_contra]):
    """What a settler tells of its deliveries. It is called synchronously, and may call the settler back."""

    def lost(self, delivery: D_contra) -> None:
        """Learn, once, that ownership of a message ended before SQS had confirmed what was decided about it."""
        ...

    def settled(self, endings: Sequence[Ending]) -> None:
        """Learn, once for each delivery, what became of some that ended together.

        SQS has confirmed the decision; or it was given up, and then the settlement is LEFT or LOST.
        """
        ...


class Tally:
    """How much settlers hold that share one memory."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes: int = 0
        """The sum of the lengths of the bodies of what is held."""


class Settler(Generic[D]):
    """Holds deliveries from receive to settle, and settles each at most once.

    A decision that SQS refuses for now is tried again until the deadline of its delivery. That of a delete moves on
    meanwhile, since the heartbeat goes on until the delete is confirmed.

    Args:
        queue: where they came from.
        visibility: how long they stay ours, where ``Delivery.visibility`` says nothing else.
        tasks: start the timers and calls.
        listener: told what becomes of them.
        dead_letters: where rejected messages go.
        observers: told of every settlement.
        kind: the class of deliveries to make.
        tally: where the bytes of held bodies are counted; None for one of its own.
        slept: returns the seconds that the machine was suspended in all.
        rng: for the jitter of pauses.
    """

    def __init__(
        self,
        queue: Queue,
        visibility: Visibility,
        *,
        tasks: Tasks,
        listener: Listener[D],
        dead_letters: DeadLetters,
        observers: Observers,
        kind: type[D] = Delivery,  # type: ignore[assignment]
        tally: Tally | None = None,
        slept: Callable[[], float] = machine_slept,
        rng: Random | None = None,
    ) -> None:
        self._queue = queue
        self._visibility = visibility
        self._tasks = tasks
        self._time = tasks.time
        self._listener: Listener[Any] = listener
        self.dead_letters: DeadLetters = dead_letters
        """Where rejected messages go."""
        self._observers = observers
        self._kind = kind
        self._held: dict[str, D] = {}
        self.deliveries: Mapping[str, D] = MappingProxyType(self._held)
        """What is ours, by message id, until its acknowledgement is confirmed."""
        self.tally: Tally = Tally() if tally is None else tally
        """How much is held, by settlers with the same tally together."""
        self.heartbeat: Heartbeat = Heartbeat(queue, visibility, tasks=tasks, holder=self, slept=slept, rng=rng)
        name = queue.info.name
        self._deleting = Deletes(self, queue)
        doing = f"Deleting messages of {name}"
        # For as long as they are ours, also where it is refused: given up, they would be handled again.
        self._deletes = self._batcher("delete", self._deleting, doing, rng, patience=MAX_VISIBILITY)
        doing = f"Changing the visibility of messages of {name}"
        self._changes = self._batcher("change", Changes(self, queue), doing, rng, patience=PATIENCE)
        self._stretching: dict[Delivery, Decision] = {}
        self._undeleted = Refusals(_UNDELETED.format(name), tasks=tasks, queue=name)
        self._unreturned = Refusals(_UNRETURNED.format(name), tasks=tasks, queue=name)
        self._losses = Refusals(_LOST.format(name), tasks=tasks, queue=name)
        self._nowhere = Refusals(_NOWHERE.format(name), tasks=tasks, queue=name)
        self._counts: Counter[Settlement] = Counter()
        self._failed = 0
        self._closed = False

    @property
    def held(self) -> int:
        """Deliveries that are ours now, until their acknowledgement is confirmed."""
        return len(self._held)

    @property
    def bytes(self) -> int:
        """The sum of the lengths of the bodies of what is held, by settlers with the same tally together."""
        return self.tally.bytes

    @property
    def unconfirmed(self) -> int:
        """Acknowledgements and returned messages that SQS has not confirmed yet."""
        return self._deletes.pending + self._changes.pending

    @property
    def failures(self) -> int:
        """Decisions that were given up: the message comes back after its visibility timeout."""
        return self._failed

    def counts(self) -> Mapping[Settlement, int]:
        """Return how many messages ended in each way."""
        return dict(self._counts)

    async def check_deletes(self) -> None:
        """Return if messages can be deleted, as far as is known: what is received else is handled again and again.

        What waits to be deleted shows whether that works again; where that is nothing, or a few messages that SQS
        refuses, a delete is sent to find out.

        Raises:
            Undeletable: no delete has worked for some seconds.
        """
        since = self._deletes.failing_since
        if since is not None and (seconds := self._time() - since) >= _BRIEF:
            await self._deleting.check(self._deletes, seconds)

    def take(self, messages: Sequence[Message], arrived: Moment | None = None) -> list[D]:
        """Hold the messages of one receive. A message that is held already is renewed instead of returned again.

        Args:
            messages: what one receive brought.
            arrived: the earliest moment at which SQS can have handed them out; None for now.
        """
        received_at = self.heartbeat.now()
        if arrived is not None:
            # The loop's clock stood still while the machine slept; that of SQS did not.
            received_at = arrived.time - (self.heartbeat.slept - arrived.slept)
        timeout = self._visibility.timeout
        fresh: list[D] = []
        for message in messages:
            known = self._held.get(message.id)
            if known is not None:
                # A standard queue delivers at least once: the newest receipt handle is the only one
                # that is certain to delete the message.
                if known.may_be_renewed:
                    known.renew(message, received_at=received_at, visibility=timeout)
                    self.heartbeat.moved(known)
                    continue
                if message.receive_count < known.receives:
                    continue  # its answer was overtaken by that of a newer receive, which has been decided
                self._supersede(known)
            delivery = self._kind.of(message, received_at, timeout)
            self._held[message.id] = delivery
            self.tally.bytes += len(message.body)
            fresh.append(delivery)
        if fresh:
            self.heartbeat.cover(fresh)
        return fresh

    def ours(self, delivery: D) -> bool:
        """Return whether a message may be worked on now: it is neither settled nor lost, and its time is not over."""
        if delivery.lost or delivery.settlement is not None:
            return False
        now = self.heartbeat.now()  # first: it may bring the deadline forward
        # Here in `ours`, and again in `fate`: each is the last look before something that cannot be
        # undone.
        if delivery.deadline <= now:
            self._lapse(delivery)
        return not delivery.lost

    def ack(self, delivery: D) -> None:
        """Delete the message, with the next batch. Does nothing when it is settled or lost already."""
        if delivery.lost:
            self._suppressed(delivery)
        elif delivery.settlement is None:
            delivery.settlement = _ACKED
            delivery.decision = decision = Decision(delivery)
            self._deletes.add(decision)

    async def ack_now(self, delivery: D) -> None:
        """Delete the message and return when SQS has confirmed it.

        Raises:
            OwnershipLost: the visibility timeout is over; the message may be with another consumer.
            TransportError: SQS refused it for good.
            ClosedError: the consumer stopped before SQS confirmed it, or the client was closed.
        """
        self._claim(delivery, Settlement.ACKED)
        await self._wait_for(self._deletes, Decision(delivery))

    def give_back(self, delivery: D, settlement: Settlement, *, delay: float) -> None:
        """Make the message visible again after ``delay`` seconds. Does nothing when it is settled or lost already."""
        if delivery.settlement is None and not delivery.lost:
            delivery.settlement = settlement
            # Before the change leaves: an extension sent after it would overwrite its delay and
            # hide the message again.
            self.heartbeat.uncover(delivery)
            delivery.decision = decision = Decision(delivery, delay)
            self._changes.add(decision)

    async def give_back_now(self, delivery: D, settlement: Settlement, *, delay: float) -> None:
        """Make the message visible again after ``delay`` seconds, and return when SQS has confirmed it.

        Raises: as ``ack_now``.
        """
        self._claim(delivery, settlement)
        self.heartbeat.uncover(delivery)
        await self._wait_for(self._changes, Decision(delivery, delay))

    async def extend_now(self, delivery: D, seconds: float) -> None:
        """Keep the message for ``seconds`` from now, and return when SQS has confirmed it.

        What the heartbeat has promised is not shortened by it. Without heartbeat, and for a message that was left,
        it is: then the given time counts.

        Raises: as ``ack_now``; ``ConfigurationError`` when SQS does not allow so many seconds.
        """
        if not 0 < seconds <= MAX_VISIBILITY:
            raise ConfigurationError(f"a message is extended by more than 0 and at most 43,200 s; got {seconds!r}")
        while True:
            self._check_open(delivery)
            # One request at a time for each delivery: SQS may apply two that are out in either
            # order. `wait` and not `await`: the earlier caller's error or cancellation is not this
            # caller's.
            earlier = self._stretching.get(delivery)
            if earlier is None or earlier.waiter is None or earlier.waiter.done():
                break
            await asyncio.wait([earlier.waiter])
        policy = delivery.visibility or self._visibility
        now = self._time()
        if (
            delivery.covered
            and policy.heartbeat
            and now + delivery.allowed(whole_seconds(seconds), now) <= delivery.deadline
        ):
            return
        decision = Decision(delivery, seconds, extends=True)
        self._stretching[delivery] = decision
        await self._wait_for(self._changes, decision)

    def leave(self, delivery: D) -> None:
        """Do nothing with the message: SQS shows it again after its visibility timeout.

        ``ack_now``, ``give_back_now`` and ``extend_now`` still work until then.
        """
        if delivery.settlement is None and not delivery.lost:
            delivery.settlement = Settlement.LEFT
            self._end(Ending(delivery, Settlement.LEFT))

    def lose(self, delivery: D) -> None:
        """Let go of a message that is not ours any longer. Does nothing when it is settled or lost already."""
        if delivery.settlement is None and not delivery.lost:
            delivery.lost = True
            self._end(Ending(delivery, Settlement.LOST))

    async def reject(self, delivery: D, reason: str, *, to: DeadLetters | None = None) -> bool:
        """Send the message to the dead-letter queue and then delete it. Returns False where there is none.

        Args:
            delivery: the message.
            reason: why.
            to: another queue than the dead-letter queue.

        Raises:
            PostroomError: the dead-letter queue could not be opened, or did not take it. Nothing was decided then.
        """
        target = self.dead_letters if to is None else to
        if not target.exists:
            self._nowhere.add("they count as failed", delivery.message.id, delivery.tenant)
            return False
        await target.deliver(delivery, reason, source=self._queue.info, sent=self._rejected)
        return True

    async def drain(self) -> None:
        """Send everything that was decided, and wait for the answers."""
        batchers = (self.dead_letters.letters, self._deletes, self._changes)
        for batcher in batchers:
            batcher.hasten()
        try:
            # Together: deletes that are not answered must not keep what is given back from leaving.
            # In rounds: a letter that the dead-letter queue has taken leads to a delete, which is
            # then pending.
            while any(batcher.pending for batcher in batchers):
                for batcher in batchers:
                    batcher.flush()
                    await batcher.idle()
        finally:
            for batcher in batchers:
                batcher.relax()

    async def abandon(self) -> None:
        """Give up what has not reached SQS, and what is still held: its visibility timeout brings it back.

        Calls that wait for an answer raise. It returns within seconds, whatever a transport does.
        """
        # First: handlers run on during the awaits below, and their calls must raise, not wait for
        # an answer.
        self._closed = True
        try:
            await self.dead_letters.abandon()
            left = [*await self._deletes.cancel(), *await self._changes.cancel()]
            if left:
                text = "Gave up what was decided about %s of %s: not confirmed in time. They come back: %s"
                name = self._queue.info.name
                _log.error(
                    text, counted(len(left), "message"), name, _ids(left), extra=about(queue=name, step=Step.STOP)
                )
        finally:
            self._let_go_of_all()

    # -- what the heartbeat tells ----------------------------------------------------------------------------------

    def expired(self, delivery: Delivery, cause: str) -> None:
        """Note that a delivery's time is over. What left in time, and is not answered yet, is waited for."""
        decision = delivery.decision
        if delivery.lost or delivery.confirmed:
            return
        if decision is not None and decision.on_its_way:
            delivery.overdue = cause
            return
        self._lose(delivery, cause)

    def quiet(self, delivery: Delivery) -> None:
        """Send what waited for an extension to be answered, so as not to be overwritten by it."""
        if delivery.decision is not None:
            self._changes.resume(delivery.decision)
        if (stretch := self._stretching.get(delivery)) is not None:
            self._changes.resume(stretch)

    # -- what the batches ask and tell -----------------------------------------------------------------------------

    def fate(self, entry: Decision, now: float) -> Fate:
        """Return what to do with a decision that is about to be sent."""
        delivery = entry.delivery
        if entry.over:
            return Fate.OVER
        if delivery.deadline <= now:
            self._lapse(delivery)
        error: PostroomError | None = None
        if delivery.lost:
            error = _ownership_lost(delivery.message)
        elif entry.extends and delivery.settlement not in {None, Settlement.LEFT}:
            error = _settled_already(delivery)
        if error is None:
            return _SEND
        if entry.extends:
            self._stretching.pop(delivery, None)
        entry.answer(error)
        return Fate.OVER

    def ended(self, decisions: Sequence[Decision], error: PostroomError | None) -> None:
        """Note how decisions ended: well, or all of them with one error."""
        endings: list[Ending] = []
        for decision in decisions:
            if decision.over:
                continue
            delivery = decision.delivery
            if error is None and delivery.settlement is not None:
                delivery.confirmed = decision.over = True
                if decision.waiter is not None:
                    decision.answer()
                endings.append(Ending(delivery, delivery.settlement, decision.delay))
            else:
                endings.append(self._given_up(decision, error))
        self._end(*endings)

    def _given_up(self, decision: Decision, error: PostroomError | None) -> Ending:
        delivery = decision.delivery
        self._failed += 1
        refusals, follows = self._unreturned, "come back after their visibility timeout"
        if delivery.settlement in {Settlement.ACKED, Settlement.REJECTED}:
            refusals, follows = self._undeleted, "were handled, and will be handled again"
        cause = f"({error}): they {follows}{_only_if_it_exists(error)}"
        refusals.add(cause, delivery.message.id, delivery.tenant)
        decision.answer(error)
        delivery.settlement = Settlement.LEFT  # whatever was decided: SQS does not know it
        return Ending(delivery, Settlement.LEFT)

    def stretched(self, decision: Decision, error: PostroomError | None) -> None:
        """Note how the request for more time of one delivery ended."""
        delivery = decision.delivery
        self._stretching.pop(delivery, None)
        # A refusal of an older handle says nothing: the message was received again meanwhile.
        if isinstance(error, InvalidReceiptHandle) and decision.sent_handle == delivery.receipt_handle:
            self._lose(delivery, "SQS does not know its receipt handle any longer")
            error = _ownership_lost(delivery.message)
        if error is None and (delivery.lost or delivery.deadline <= self._time()):
            self._lapse(delivery)
            error = _ownership_lost(delivery.message)
        self.heartbeat.moved(delivery)
        decision.answer(error)

    def delete_again(self, decision: Decision) -> None:
        """Send a delete with the newest receipt handle."""
        self._deletes.add(decision, urgent=True)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _batcher(
        self, name: str, work: Work[Decision], doing: str, rng: Random | None, *, patience: float
    ) -> Batcher[Decision]:
        tasks = self._tasks
        trouble = Trouble(doing, "tried again while they are ours", tasks=tasks, queue=self._queue.info.name)
        return Batcher[Decision](
            name,
            work,
            tasks=tasks,
            linger=LINGER,
            trouble=trouble,
            patience=patience,
            denials=CHANGEABLE,
            rng=rng,
        )

    def _check_open(self, delivery: Delivery) -> None:
        """Raise unless something may still be asked of SQS for a delivery."""
        if self._closed:
            raise ClosedError(_STOPPED.format(delivery.message.id))
        now = self.heartbeat.now()
        if delivery.slept < self.heartbeat.slept:
            delivery.account_for_sleep(self.heartbeat.slept)
        if not delivery.lost and delivery.deadline <= now and not delivery.confirmed:
            self._lapse(delivery)
        if delivery.lost:
            raise _ownership_lost(delivery.message)
        if delivery.settlement not in {None, Settlement.LEFT}:
            raise _settled_already(delivery)

    def _claim(self, delivery: D, settlement: Settlement) -> None:
        self._check_open(delivery)
        if delivery.settlement is Settlement.LEFT:
            # It was let go of when it was left. Until SQS answers it is held again, so that a stop
            # answers this caller.
            self.heartbeat.watch(delivery)
            if delivery.message.id not in self._held:
                self._held[delivery.message.id] = delivery
                self.tally.bytes += len(delivery.message.body)
        delivery.settlement = settlement

    async def _wait_for(self, batcher: Batcher[Decision], decision: Decision) -> None:
        decision.waiter = self._tasks.loop.create_future()
        if not decision.extends:
            decision.delivery.decision = decision
        batcher.add(decision, urgent=True)
        # Shielded: a caller that is cancelled takes back nothing, and others may wait for the same answer.
        await asyncio.shield(decision.waiter)

    def _rejected(self, delivery: Delivery) -> None:
        """Delete what the dead-letter queue has taken."""
        if delivery.lost:
            self._suppressed(delivery)
        elif delivery.settlement is None:
            delivery.settlement = Settlement.REJECTED
            delivery.decision = decision = Decision(delivery)
            self._deletes.add(decision)

    def _supersede(self, known: Delivery) -> None:
        """Drop a delivery that was given back and has come again: what was decided has taken effect, or is moot."""
        decision = known.decision
        if decision is None or known.settlement is None:
            self._drop([known])
            return
        sent = bool(decision.sent_handle)
        known.confirmed = sent
        known.lost = not sent
        decision.answer(None if sent else _ownership_lost(known.message))
        self._changes.forget(decision)
        self._end(Ending(known, known.settlement if sent else Settlement.LOST, decision.delay))

    def _lapse(self, delivery: Delivery) -> None:
        """Note that a deadline has passed before the heartbeat told of it."""
        decision = delivery.decision
        if not delivery.lost and (decision is None or not decision.on_its_way):
            self._lose(delivery, delivery.overdue or self.heartbeat.cause_of(delivery))

    def _lose(self, delivery: Delivery, cause: str) -> None:
        if delivery.lost:
            return
        delivery.lost = True
        now, decision = self._time(), delivery.decision
        late = now - delivery.deadline if delivery.overdue is None else 0.0  # what was seen in time is not late
        if late >= _LATE:
            cause = STOOD_STILL
        shown = f"{cause}: it was noticed {late:.1f} s too late" if late >= _LATE else cause
        last = self.dead_letters.follows(delivery.receives)
        if delivery.settlement in {Settlement.ACKED, Settlement.REJECTED}:
            only = _only_if_it_exists(self._deletes.last_error if self._deletes.failing_since is not None else None)
            again = f"will be handled again{only}"
            cause = f"handled before, and {f'each {_MOVED}' if last else again}: {cause}"
            text = (
                "Message %s of %s was handled, but its acknowledgement is suppressed: it is not ours any longer "
                f"after %.1f s (%s). It {_MOVED if last else again}"
            )
        elif delivery.settlement is None:
            cause = f"each {_MOVED}: {cause}" if last else cause
            text = (
                f"Lost message %s of %s after %.1f s: %s. {f'It {_MOVED}' if last else 'Another consumer may have it'}"
            )
        else:
            cause = f"given back before, and SQS did not know it: {cause}"
            text = "Message %s of %s was given back, and its time was over after %.1f s before SQS knew it: %s"
        if delivery.settlement is not Settlement.LEFT:
            self._tell_of_loss(delivery, cause, text, now - delivery.received_at, shown)
        if decision is not None:
            decision.answer(_ownership_lost(delivery.message))
            self._deletes.forget(decision)
            self._changes.forget(decision)
        if not delivery.told:
            self._listener.lost(delivery)
        if delivery.settlement is not Settlement.LEFT or not delivery.told:
            self._end(Ending(delivery, Settlement.LOST))

    def _suppressed(self, delivery: Delivery) -> None:
        follows = _MOVED if self.dead_letters.follows(delivery.receives) else "will be handled again"
        text = f"The acknowledgement of message %s of %s is suppressed: it was lost, and {follows}"
        self._tell_of_loss(delivery, f"handled all the same: each {follows}", text)

    def _tell_of_loss(self, delivery: Delivery, cause: str, text: str, *arguments: object) -> None:
        """Name a message, or count it where many are lost: after a freeze or an outage it is all that is here."""
        if self._losses.is_among_the_first():
            _log.warning(text, delivery.message.id, tenant_in_words(delivery.tenant), *arguments, extra=about(delivery))
        else:
            self._losses.add(cause, delivery.message.id, delivery.tenant)

    def _end(self, *endings: Ending) -> None:
        self._drop([ending.delivery for ending in endings])
        untold: list[Ending] = []
        for ending in endings:
            delivery = ending.delivery
            # Also what was lost while its delete waited: it must not be kept from the consumer that has it next.
            delivery.decision = None
            self._counts[ending.settlement] += 1
            if self._observers:
                # In a clean context: the task at hand may be another message's, or one that lasts.
                event = MessageSettled(delivery.message, ending.settlement, ending.delay, delivery.tenant)
                self._tasks.run_clean(self._observers.tell, event)
            if not delivery.told:
                delivery.told = True
                untold.append(ending)
        if untold:
            self._listener.settled(untold)

    def _drop(self, deliveries: Sequence[Delivery]) -> None:
        """Hold deliveries no longer. A newer one of the same message may be held under its id."""
        self.heartbeat.release(*deliveries)
        held, tally = self._held, self.tally
        for delivery in deliveries:
            message = delivery.message
            if held.get(message.id) is delivery:
                del held[message.id]
                tally.bytes -= len(message.body)

    def _let_go_of_all(self) -> None:
        self._deletes.close()
        self._changes.close()
        # Tuples, here and below: an answer and `_end` take entries out of these mappings.
        for stretch in tuple(self._stretching.values()):
            stretch.answer(ClosedError(_STOPPED.format(stretch.delivery.message.id)))
        self._stretching.clear()
        for delivery in tuple(self._held.values()):
            decision = delivery.decision
            if decision is not None:
                self._failed += 1
                decision.answer(ClosedError(_STOPPED.format(delivery.message.id)))
            delivery.settlement = Settlement.LEFT
            self._end(Ending(delivery, Settlement.LEFT))
        for refusals in (self._undeleted, self._unreturned, self._losses, self._nowhere):
            refusals.flush()


def _settled_already(delivery: Delivery) -> PostroomError:
    settlement = delivery.settlement
    how = "" if settlement is None else settlement.value
    return PostroomError(f"message {delivery.message.id} is settled already: {how}")


def _ownership_lost(message: Message) -> OwnershipLost:
    text = (
        f"message {message.id} is not ours any longer: its visibility timeout passed without a confirmed extension, "
        "so another consumer may have it. Use a longer Visibility(timeout=...), or settle sooner in MANUAL mode"
    )
    return OwnershipLost(text, message_id=message.id)


def _only_if_it_exists(error: PostroomError | None) -> str:
    """Return the condition on which messages come again after an error: a deleted queue took them with it."""
    return " only if the queue still exists" if isinstance(error, QueueNotFound) else ""


def _ids(decisions: Sequence[Decision]) -> str:
    shown = ", ".join(decision.delivery.message.id for decision in decisions[:3])
    return f"{shown}, ..." if len(decisions) > 3 else shown
