"""How many messages to ask the queue for, and when: one replaceable policy."""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from postroom.consumer.crowd import Crowd
from postroom.consumer.job import Job
from postroom.consumer.scouting import BATCH, Scouting
from postroom.log_fields import Log, Step
from postroom.options import Polling

_log = Log("postroom.consumer", Step.RECEIVE)

SPARSE: Final = 3
"""Receives outstanding while messages come a few at a time, so that one that comes while a receive is on its way back
finds another; and the most messages of a receive for which that is so: each of them could take a receive of its own."""
BEYOND: Final = 4
"""Capacities that scouts may fill with messages that are not parked. Before there is proof of a crowd, they have to see
two messages of one quiet tenant behind the noisy ones: with two capacities, p99 of five quiet tenants in noise that
began with the consumer was five times what it is alone (median of the seeds 21 to 24 of ``make fairness``), with four
1.04 times."""
_AT_ONCE: Final = 0.5
"""The part of the wait that was asked for: an empty answer that comes sooner is an answer at once."""
_FIRST_PACE: Final = 0.1
_LONGEST_PACE: Final = 2.0
"""Seconds between receives that are answered at once with nothing; doubles up to the longest."""


class Ask(msgspec.Struct, frozen=True):
    """Receive up to ``limit`` messages now."""

    limit: int
    scouting: bool = False
    """Whether there is no room for what it brings: it looks for quiet tenants' messages."""


class Pause(msgspec.Struct, frozen=True):
    """Receive nothing for some seconds, or until there is more room."""

    seconds: float | None = None
    """None: until woken."""


class Answer(msgspec.Struct, frozen=True):
    """What a receive brought."""

    ask: Ask
    count: int
    runnable: int
    """Messages that lack nothing but a slot, as far as is known."""
    seconds: float
    """How long it took."""
    again: int = 0
    """Messages that were held already: they are nothing new."""


class Floor(Protocol):
    """What a policy sees of the consumer."""

    @property
    def slots(self) -> int:
        """Handlers that may run at once."""
        ...

    @property
    def free(self) -> int:
        """Slots that no handler has."""
        ...

    @property
    def typical(self) -> float:
        """Handler seconds of a message, as a recent average."""
        ...

    @property
    def waiting(self) -> int:
        """Messages that wait for nothing but a slot."""
        ...

    @property
    def fifo(self) -> bool:
        """Whether the queue is a FIFO queue."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether what is held takes as much memory as it may, or nothing more may be held for other reasons."""
        ...

    def taken(self, capacity: int) -> int:
        """Return how much of a capacity is in use."""
        ...


class ReceivePolicy(Protocol):
    """Decides how many messages to ask for. Pure: no await, no clock, no I/O."""

    round_trip: float
    """Seconds that a receive takes, as a recent average of those that need not wait for messages."""

    def capacity(self, floor: Floor) -> int:
        """Return how many messages to hold at once."""
        ...

    def next(self, number: int, floor: Floor, now: float) -> Ask | Pause:
        """Return what poller ``number`` does now. Number 0 is the one that polls an idle queue."""
        ...

    def asked(self, ask: Ask) -> None:
        """Note that a receive was sent."""
        ...

    def failed(self, ask: Ask) -> None:
        """Note that a receive failed."""
        ...

    def answered(self, answer: Answer, now: float) -> None:
        """Note what a receive brought."""
        ...

    def handled(self) -> None:
        """Note that a message was handled."""
        ...

    def parked(self) -> None:
        """Note that a message was parked."""
        ...

    def wants_company(self) -> bool:
        """Whether pollers that pause should look again, because messages come."""
        ...

    def is_quiet(self, floor: Floor) -> bool:
        """Whether no poller but number 0 would ask now. Asked for every message that ends, to wake no other."""
        ...

    def is_choosy(self, job: Job, now: float) -> bool:
        """Return whether ``is_surplus`` has to be asked about an arriving message. Asked for every one: it is cheap."""
        ...

    def is_surplus(self, job: Job, standing: tuple[bool, bool], *, crowded: bool, now: float) -> bool:
        """Return whether an arriving message makes room for others, given its tenant's standing.

        ``crowded`` tells that there is no room, if its tenant has its part of what may wait here.
        """
        ...


class AdaptivePolicy:
    """The default: one long poll while the queue is quiet, up to ``Polling.pollers`` while it is busy.

    While receives bring a few messages, up to ``SPARSE`` of them are outstanding; the first that comes back empty ends
    that. When there is no room, ``Scouting`` decides whether to look for quiet tenants' messages all the same. Where
    it does not, and slots are free, one message is asked for now and then.
    """

    def __init__(self, polling: Polling, scouting: Scouting, crowd: Crowd) -> None:
        self._polling = polling
        self._scouting = scouting
        self._crowd = crowd
        self._asked_for = 0
        self._busy = False
        self._sparse = False
        self._grouped = False
        """Whether the last message that came had a message group."""
        self._next_at = 0.0
        self._pace = 0.0
        self._warned = False
        self.handled: Callable[[], None] = scouting.handled
        self.parked: Callable[[], None] = scouting.parked
        self.round_trip: float = 0.0
        """Seconds that a receive takes, as a recent average of those that need not wait for messages."""

    def capacity(self, floor: Floor) -> int:
        """Return how many messages to hold: those that run, and enough behind them."""
        return floor.slots + self.buffer(floor)

    def buffer(self, floor: Floor) -> int:
        """Return how many messages to hold beyond those that run, so that no slot waits for the network.

        Twice what is handled during one round trip, and a batch. More would only wait here instead of in the queue,
        where SQS keeps quiet tenants' messages in front. On a FIFO queue four batches: there is no such order, and
        tenants can share the slots only as far as their groups are here.
        """
        polling, slots = self._polling, floor.slots
        handled = slots * self.round_trip / max(floor.typical, 0.001)
        most = 10 * slots + polling.batch if polling.prefetch is None else polling.prefetch
        batches = 4 if floor.fifo else 1
        # Bounded: one measured round trip that hung for seconds must not fetch the whole queue.
        return min(most, batches * polling.batch + int(2 * handled))

    def next(self, number: int, floor: Floor, now: float) -> Ask | Pause:
        """Return what poller ``number`` does now."""
        # Before any room is counted: bodies, not messages, are what fills a machine's memory.
        if floor.is_full:
            return Pause()
        polling = self._polling
        capacity = self.capacity(floor)
        taken = floor.taken(capacity)
        # What was asked for counts as taken. Otherwise every poller would fill the same room.
        room = capacity - taken - self._asked_for
        if self._has_room(room, floor):
            if number == 0 or self._busy or (self._sparse and number < SPARSE and not polling.gather):
                wait = self._next_at - now
                return Pause(wait) if wait > 0 else Ask(min(room, polling.batch))
            return Pause()
        seconds = None
        if taken < BEYOND * capacity:  # what cannot be parked is held beyond the capacity; that has an end, too
            seconds = self._scouting.pause(number, now, pollers=polling.pollers, round_trip=self.round_trip)
        if seconds is None and number == 0 and self._grouped and floor.free > 0:
            seconds = self._scouting.glance(max(0, taken - capacity), now)
            return Pause(seconds) if seconds else Ask(1, scouting=True)
        if seconds == 0.0:
            # A scout takes few: each message that it finds and cannot keep costs a receive.
            skims = self._scouting.is_skimming(now)
            return Ask(polling.batch if skims else min(BATCH, polling.batch), scouting=True)
        return Pause(seconds)

    def asked(self, ask: Ask) -> None:
        """Note that a receive was sent."""
        if not ask.scouting:
            self._asked_for += ask.limit

    def failed(self, ask: Ask) -> None:
        """Note that a receive failed."""
        if not ask.scouting:
            self._asked_for -= ask.limit

    def answered(self, answer: Answer, now: float) -> None:
        """Note what a receive brought."""
        ask = answer.ask
        if answer.count == ask.limit:  # it did not have to wait for any
            # A fifth: it follows a change within about five receives, and one slow answer moves it
            # little.
            self.round_trip += 0.2 * (answer.seconds - self.round_trip)
        if not ask.scouting:
            self._asked_for -= ask.limit
            self._busy = answer.count == ask.limit
            if answer.runnable or not answer.count:  # messages of tenants that are down tell nothing of the others
                self._sparse = 0 < answer.runnable <= SPARSE
        self._pace_next(answer, now)
        self._scouting.received(now, emptied=answer.count < ask.limit)

    def wants_company(self) -> bool:
        """Whether pollers that pause should look again, because messages come."""
        return self._busy or self._sparse

    def is_quiet(self, floor: Floor) -> bool:
        """Whether no poller but number 0 would ask now: one long poll is enough, and there is room for what it brings.

        Without room the others are asked as well, since scouting is a matter of each poller.
        """
        return not (self._busy or self._sparse) and not floor.is_full and self._has_room(self._room(floor), floor)

    def _room(self, floor: Floor) -> int:
        capacity = self.capacity(floor)
        return capacity - floor.taken(capacity) - self._asked_for

    def _has_room(self, room: int, floor: Floor) -> bool:
        return room >= self._polling.batch or (room > 0 and self._asked_for == 0 and floor.waiting == 0)

    def is_choosy(self, job: Job, now: float) -> bool:
        """Return whether quiet tenants' messages can be found: not without message groups, unless it is always tried.

        So a queue with messages that have none pays nothing for the proof that there is a quiet tenant.
        """
        when = self._scouting.when
        if when is True:
            return "MessageGroupId" in job.message.system_attributes or now < self._crowd.grouped_until
        return when == "always"

    def is_surplus(self, job: Job, standing: tuple[bool, bool], *, crowded: bool, now: float) -> bool:
        """Return whether an arriving message makes room for others.

        Only a message of a tenant that is proved to be noisy does, when that tenant has its part of the buffer.
        """
        enough, has_share = standing
        over = enough or has_share
        self._grouped = "MessageGroupId" in job.message.system_attributes
        self._crowd.came(job.tenant, now, over=over, grouped=self._grouped)
        if over:
            self._scouting.found_noisy(job.tenant, job.message)
        else:
            self._scouting.found_quiet(job.message, now)
        if not (enough and crowded) or not self._scouting.may_park(now):
            return False
        return self._crowd.is_noisy(job.tenant)

    def _pace_next(self, answer: Answer, now: float) -> None:
        """Space receives out: for ``Polling.gather``, and where the queue answers at once with nothing new."""
        polling = self._polling
        if answer.count > answer.again:
            self._pace = 0.0
            # Counted from the start of the receive: the time that it took has gathered messages,
            # too.
            self._next_at = now - answer.seconds + polling.gather if answer.count < answer.ask.limit else now
            return
        if answer.seconds >= _AT_ONCE * polling.wait and polling.wait > 0:
            self._pace = 0.0
            return
        # Some servers ignore WaitTimeSeconds, or the visibility timeout. Without a pace that would be a busy loop,
        # billed per request.
        self._pace = min(_LONGEST_PACE, 2 * self._pace or _FIRST_PACE)
        self._next_at = now + self._pace
        if self._pace == _LONGEST_PACE and polling.wait >= 1 and not self._warned:
            self._warned = True
            text = "Receives are answered at once with nothing new, although Polling(wait=%g); receiving every %g s now"
            _log.warning(text, polling.wait, self._pace)


class SharedPolicy(AdaptivePolicy):
    """For several queues that share one consumer: how much is asked for in all. Which of them is asked, a rota says.

    What a queue that is only looked at may bring has no room set aside for it: it would be taken from the others for
    as long as a long poll lasts. So while there is no room, a look asks for little.
    """

    def look(self, floor: Floor) -> int:
        """Return how many messages a look at an idle queue asks for; 0: none is looked at now."""
        capacity = self.capacity(floor)
        taken = floor.taken(capacity)
        if floor.is_full or taken >= BEYOND * capacity:
            return 0
        batch = self._polling.batch
        return batch if capacity - taken - self._asked_for >= batch else min(BATCH, batch)

    def is_roomy(self, floor: Floor) -> bool:
        """Whether there is room for another batch."""
        capacity = self.capacity(floor)
        return capacity - floor.taken(capacity) - self._asked_for >= self._polling.batch

    def looked(self, limit: int, count: int, now: float) -> None:
        """Note what a look brought."""
        self._scouting.received(now, emptied=count < limit)

    def _pace_next(self, answer: Answer, now: float) -> None:
        """Leave the pace to the rota: it is each queue's own."""
