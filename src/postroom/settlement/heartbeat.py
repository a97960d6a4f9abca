"""Keeps every message in flight ours: batched extensions, and a deadline that is watched whatever they do."""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Protocol

from postroom.errors import InvalidReceiptHandle, PostroomError, ServiceUnavailable, Throttled
from postroom.options import MAX_VISIBILITY, Visibility
from postroom.settlement.batcher import CHANGEABLE, Batcher, Fate, named
from postroom.settlement.delivery import Delivery
from postroom.settlement.gate import Pauses
from postroom.settlement.looks import Looks
from postroom.settlement.sleep import Moment, machine_slept
from postroom.settlement.trouble import Trouble, describe
from postroom.tasks import Tasks
from postroom.transports.protocol import EntryFailure, Queue, VisibilityChange, checked_failures

STOOD_STILL: Final = "the event loop, the process or the machine stood still"
"""The cause of a loss where nothing has happened in time."""
_EVERY: Final = 1.0
"""Seconds between two looks at the clock, so that a suspended machine is noticed."""
_AT_ONCE: Final = 20
"""Extension calls that leave before the first answers are there: with 1,000 messages held there are a hundred."""
_JUMP: Final = 0.25
"""Seconds that the machine slept which are worth to set the deadlines right: less is how exactly clocks are read."""


class Holder(Protocol):
    """What the heartbeat tells of the deliveries that it watches."""

    def expired(self, delivery: Delivery, cause: str) -> None:
        """Learn that a message is not ours any longer, and why."""
        ...

    def quiet(self, delivery: Delivery) -> None:
        """Learn that an extension is not on its way any longer: what may not overtake it can go."""
        ...


class Heartbeat:
    """Extends the visibility timeout of covered deliveries, and notices when one is lost.

    A delivery is covered from receive until SQS has confirmed what became of it: while it waits for a slot, while its
    handler runs, and while its acknowledgement is on its way or is tried again. Extensions go out when half of the
    timeout is over. One that passes its deadline without a confirmed extension is lost. That is a matter of the clock
    alone: a call that hangs keeps no deadline from being seen, and an answer that comes later changes nothing.

    While extensions fail, one batch at a time is tried, however many wait; then all go again.

    Args:
        queue: where the messages came from.
        visibility: how long they stay ours, where their tenant has no other policy.
        tasks: start the timers and calls.
        holder: told of what happens.
        slept: returns the seconds that the machine was suspended in all.
        rng: for the jitter of pauses.
    """

    def __init__(
        self,
        queue: Queue,
        visibility: Visibility,
        *,
        tasks: Tasks,
        holder: Holder,
        slept: Callable[[], float] = machine_slept,
        rng: Random | None = None,
    ) -> None:
        self._queue = queue
        self._visibility = visibility
        self._holder = holder
        self._time = tasks.time
        self._read_slept = slept
        self.slept: float = slept()
        """Seconds that the machine was suspended in all, when that was looked at last."""
        self._watched: dict[Delivery, None] = {}
        self._asked: dict[Delivery, str] = {}
        """Deliveries that an extension is to be sent for, and the receipt handle that it was sent with."""
        self._looks = Looks(self._look, tasks=tasks, every=_EVERY)
        name = queue.info.name
        follows = "tried again until their visibility timeout is over"
        self._extensions = Batcher[Delivery](
            "extend",
            self,
            tasks=tasks,
            linger=0.0,
            trouble=Trouble(f"Extending the visibility of messages of {name}", follows, tasks=tasks, queue=name),
            pauses=_pauses(visibility.timeout),
            denied=_pauses(visibility.timeout),
            patience=MAX_VISIBILITY,
            denials=CHANGEABLE,
            most=None,
            at_once=_AT_ONCE,
            rng=rng,
        )
        self.extended: int = 0
        """Extensions that SQS confirmed."""

    def now(self) -> float:
        """Return the loop's time, with all deadlines set right if the machine has slept since."""
        slept = self._read_slept()
        if slept - self.slept >= _JUMP:
            self.slept = slept
            self._set_right()
        return self._time()

    def moment(self) -> Moment:
        """Return the loop's time, and how long the machine has slept until now."""
        return Moment(self.now(), self.slept)

    def cover(self, deliveries: Sequence[Delivery]) -> None:
        """Start to cover deliveries of one receive, which share their deadline."""
        for delivery in deliveries:
            delivery.covered = True
            delivery.slept = self.slept
        self._watched.update(dict.fromkeys(deliveries))
        first = deliveries[0]
        self._looks.put(deliveries, self._due(first, self._time()))

    def watch(self, delivery: Delivery) -> None:
        """Watch the deadline of a delivery that is not extended."""
        delivery.account_for_sleep(self.slept)
        self._watched[delivery] = None
        self._looks.put([delivery], delivery.deadline)

    def moved(self, delivery: Delivery) -> None:
        """Note that something else than the heartbeat has moved a deadline."""
        if delivery in self._watched:
            self._looks.put([delivery], self._due(delivery, self._time()))

    def uncover(self, delivery: Delivery) -> None:
        """Do not extend it any longer; its deadline is watched all the same."""
        delivery.covered = False
        if self._asked and self._asked.pop(delivery, None) is not None:
            self._extensions.forget(delivery)

    def release(self, *deliveries: Delivery) -> None:
        """Neither extend them nor watch their deadlines any longer."""
        for delivery in deliveries:
            delivery.covered = False
            if self._asked:
                self.uncover(delivery)
            self._watched.pop(delivery, None)
        self._looks.drop(*deliveries)

    async def run(self) -> None:
        """Extend until cancelled. The work is done by timers, so that no call keeps it from looking at the clock."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.close()

    def close(self) -> None:
        """Extend nothing and watch nothing any longer."""
        self._looks.close()
        self._extensions.close()
        self._watched.clear()
        self._asked.clear()

    def _set_right(self) -> None:
        # A copy, here and in the next line: what is over is released while it is looked at.
        for delivery in tuple(self._watched):
            delivery.account_for_sleep(self.slept)
        self._look(list(self._watched))

    def _look(self, due: Sequence[Delivery]) -> None:
        """Look at what is due: it is extended, looked at later, or lost."""
        if self._read_slept() - self.slept >= _JUMP:
            self.now()  # looks at everything, these included
            return
        now = self._time()
        later: dict[float, list[Delivery]] = {}
        for delivery in due:
            if delivery not in self._watched:
                continue
            if delivery.deadline <= now:
                self._expire(delivery)
                continue
            at = self._due(delivery, now)
            if at <= now:
                self._asked[delivery] = ""
                self._extensions.add(delivery)
                # The next look is at the deadline: it must be seen although no answer has come by
                # then.
                at = delivery.deadline
            later.setdefault(at, []).append(delivery)
        for at, group in later.items():
            self._looks.put(group, at)
        self._extensions.flush()

    def _due(self, delivery: Delivery, now: float) -> float:
        """Return when to look at a delivery next: when it is to be extended, or is over."""
        deadline = delivery.deadline
        if not delivery.covered or delivery.beating or delivery in self._asked:
            return deadline
        policy = delivery.visibility or self._visibility
        if not policy.heartbeat:
            return deadline
        at = deadline - min(policy.timeout, deadline - delivery.received_at, MAX_VISIBILITY) / 2
        at = max(now, at)
        return at if self._gain(delivery, policy, at) > 0 else deadline

    def _gain(self, delivery: Delivery, policy: Visibility, at: float) -> int:
        """Return the seconds to ask for at a time; 0 where that would not prolong our hold."""
        seconds = delivery.extension(at, timeout=policy.timeout, max_extension=policy.max_extension)
        return seconds if at + seconds > delivery.deadline else 0

    # -- the work of the batcher -----------------------------------------------------------------------------------

    def fate(self, entry: Delivery, now: float) -> Fate:
        """Return what to do with an extension that is about to be sent."""
        policy = entry.visibility or self._visibility
        if entry.covered and not entry.beating and now < entry.deadline and self._gain(entry, policy, now) > 0:
            # Now, and not when its call begins: a change of visibility that is decided in between must wait for it.
            entry.beating = True
            return Fate.SEND
        self._asked.pop(entry, None)
        return Fate.OVER

    async def send(self, entries: Sequence[Delivery]) -> Sequence[EntryFailure]:
        """Extend up to ten deliveries."""
        sent_at, slept = self.now(), self.slept
        changes: list[VisibilityChange] = []
        for delivery in entries:
            policy = delivery.visibility or self._visibility
            changes.append(VisibilityChange(delivery.receipt_handle, self._gain(delivery, policy, sent_at)))
            self._asked[delivery] = delivery.receipt_handle
        try:
            failures = checked_failures(await self._queue.change_visibility(changes), len(changes))
        except BaseException as error:
            # Also after a cancellation: a change of visibility may wait for this extension to be
            # over.
            cause = named(error)
            trouble = f"its last extension failed ({describe(cause)})"
            out_of_reach = isinstance(cause, Throttled | ServiceUnavailable)
            for delivery in entries:
                delivery.trouble, delivery.out_of_reach = trouble, out_of_reach
            self._landed(entries)
            raise
        # The machine may have slept during the call: old deadlines are set right before new ones
        # are compared with them.
        self.now()
        for delivery in entries:
            delivery.beating = False
        refused = {failure.index for failure in failures}
        for index, (delivery, change) in enumerate(zip(entries, changes, strict=True)):
            if index not in refused:
                self.extended += 1
                # Counted from before the request was sent: never later than SQS's own deadline.
                self.confirm(delivery, change.receipt_handle, sent_at + change.timeout - (self.slept - slept))
        self._landed(entries)
        return failures

    def _landed(self, entries: Sequence[Delivery]) -> None:
        for delivery in entries:
            delivery.beating = False
            self._holder.quiet(delivery)

    def confirm(self, delivery: Delivery, handle: str, deadline: float) -> None:
        """Take a new deadline over. One that comes after the old one is over changes nothing: it may be too late."""
        now = self._time()
        if delivery.lost or delivery.receipt_handle != handle:
            return
        if delivery.deadline <= now:
            if delivery in self._watched:
                self._expire(delivery)
            return
        delivery.trouble, delivery.out_of_reach = None, False
        delivery.deadline = deadline

    def done(self, entries: Sequence[Delivery], error: PostroomError | None) -> None:
        """Plan the next look at deliveries the extensions of which were confirmed, or refused for good."""
        now = self._time()
        for entry in entries:
            handle = self._asked.pop(entry, "")
            if entry not in self._watched:
                continue
            if error is not None and handle in {"", entry.receipt_handle}:
                # A refusal of the older receipt handle says nothing of the one that was received meanwhile.
                self._refused(entry, error)
            else:
                self._looks.put([entry], max(now, self._due(entry, now)))

    def _refused(self, delivery: Delivery, error: PostroomError) -> None:
        delivery.trouble, delivery.out_of_reach = f"SQS refused its extension ({describe(error)})", False
        if isinstance(error, InvalidReceiptHandle) and delivery.covered and delivery.decision is None:
            self._give_up(delivery, delivery.trouble)
            return
        # Also what is being deleted is refused, and rightly: the answer to the delete will tell.
        delivery.covered = False
        self._looks.put([delivery], delivery.deadline)

    def cause_of(self, delivery: Delivery) -> str:  # noqa: PLR0911 - a list of causes
        """Return why a delivery's time is over."""
        policy = delivery.visibility or self._visibility
        if delivery.beating:
            return "its last extension was not answered in time"
        if delivery.trouble is not None:
            return delivery.trouble
        if delivery in self._asked:
            error = self._extensions.last_error
            why = "were not answered in time" if error is None else f"failed ({describe(error)})"
            return f"its extension waited behind others that {why}"
        if not policy.heartbeat:
            return "it is not extended: Visibility(heartbeat=False)"
        if not delivery.covered:
            return "what was decided did not reach SQS in time"
        if delivery.received_at + policy.max_extension - delivery.deadline < 1.0:  # SQS takes whole seconds
            return "Visibility(max_extension=...) is over"
        return STOOD_STILL  # its extension was due, and nothing has asked for it

    def _expire(self, delivery: Delivery) -> None:
        self._give_up(delivery, self.cause_of(delivery))

    def _give_up(self, delivery: Delivery, cause: str) -> None:
        self.release(delivery)
        self._holder.expired(delivery, cause)


def _pauses(timeout: float) -> Pauses:
    """Return the pauses between failing extensions: several fit into the half timeout that is left."""
    return Pauses(first=min(1.0, timeout / 12), cap=min(2.0, timeout / 6))
