"""Standard queues, and what makes them fair: quiet tenants first.

A tenant is a message group; a message without one is a tenant of its own. A tenant becomes *noisy* when it has more
than its share of what is in flight, or of the recent processing time, and stays so until that is over and its backlog
is drained, or nothing was sent for five minutes. Available messages of quiet tenants are delivered first, whatever
arrived earlier; no delivery is held back when no other tenant has anything. Of several noisy tenants the one with the
fewest messages in flight comes first.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-fair-queues-detailed.html
"""

from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import exp

from postroom.checking import check_number
from postroom.errors import ConfigurationError
from postroom.local.messages import MessageState, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class FairPolicy:
    """When a tenant counts as noisy. The first two are SQS's documented figures; SQS calls them approximate."""

    share: float = 0.10
    """More than this part of what is in flight, or of the recent processing time."""
    minimum: int = 30
    """At least this many messages of its own in flight, for the share in flight to count."""
    recent: float = 60.0
    """Seconds over which processing time counts as recent (the time constant of an exponential decay; ours)."""
    minimum_seconds: float = 1.0
    """Recent processing seconds below which no tenant is noisy by them: a share of nothing says nothing (ours)."""
    lag: float = 0.0
    """Seconds between two looks at who is noisy; 0 looks at every receive. SQS's own lag is not documented."""

    def __post_init__(self) -> None:
        for name in ("share", "minimum", "recent", "minimum_seconds", "lag"):
            check_number(f"FairPolicy({name}=...)", getattr(self, name))
        if not 0 < self.share < 1:
            raise ConfigurationError(f"FairPolicy(share={self.share}): a part between 0 and 1, such as 0.10")
        if self.minimum < 1 or self.recent <= 0 or self.minimum_seconds < 0 or self.lag < 0:
            raise ConfigurationError(
                "FairPolicy: minimum at least 1, recent above 0, minimum_seconds and lag not negative"
            )


class _Meter:
    """Messages in flight, and their recent processing time: a decaying integral over the number in flight."""

    __slots__ = ("at", "count", "seconds")

    def __init__(self, now: float) -> None:
        self.count = 0
        self.seconds = 0.0
        self.at = now

    def read(self, now: float, recent: float) -> float:
        """Bring the processing time up to date and return it."""
        if now > self.at:
            # The number in flight has not changed since ``at``, so the integral has a closed form: no timer, no
            # samples.
            decay = exp((self.at - now) / recent)
            self.seconds = self.seconds * decay + self.count * recent * (1.0 - decay)
            self.at = now
        return self.seconds


_Entry = tuple[int, int, Stored]
"""(place, order, message)."""


class _Lane:
    """The available messages of one tenant; the lane without a group holds all messages that have none."""

    __slots__ = ("back", "backlog", "group", "lying", "meter", "noisy", "sent_at")

    def __init__(self, group: str | None, now: float) -> None:
        self.group = group
        self.lying: deque[_Entry] = deque()  # by place, as they came; an entry of an older order is stale
        self.back: list[_Entry] = []  # a heap by place: what came back to a place before the last one of those
        self.meter = _Meter(now)
        self.noisy = False
        # Drained: from here on only its share makes it noisy.
        self.backlog = False
        """Whether there has always been something of it since it became noisy."""
        self.sent_at = now

    def put(self, message: Stored) -> bool:
        """Lay a message in its place; return whether it is the first one now."""
        entry = (message.place, message.order, message)
        if self.lying and entry[0] < self.lying[-1][0]:
            heappush(self.back, entry)
        else:
            self.lying.append(entry)
        return self.first() is message

    def first(self) -> Stored | None:
        """Return the first message, which may have gone another way."""
        if self.back and (not self.lying or self.back[0] < self.lying[0]):
            return self.back[0][2]
        return self.lying[0][2] if self.lying else None

    def head(self) -> Stored | None:
        """Return the first message that is still here."""
        while self.lying and not _lies(self.lying[0]):
            self.lying.popleft()
        while self.back and not _lies(self.back[0]):
            heappop(self.back)
        first = self.first()
        if first is None:
            self.backlog = False
        return first

    def pop(self) -> None:
        """Take the first message out."""
        if self.back and (not self.lying or self.back[0] < self.lying[0]):
            heappop(self.back)
        else:
            self.lying.popleft()

    def clear(self) -> None:
        self.lying.clear()
        self.back.clear()


_Head = tuple[int, int, _Lane]
_PRUNE_ABOVE = 1_000
_FORGET_NOISY = 300.0
"""Seconds without a new message after which a tenant is quiet, whatever lies there of it."""


def _lies(entry: _Entry) -> bool:
    """Whether the message of an entry still lies there; it may have gone another way since."""
    _, order, message = entry
    return message.order == order and message.state is MessageState.AVAILABLE


def _is_current(entry: _Head) -> bool:
    """Whether an entry still names the head of a quiet tenant's lane."""
    place, _, lane = entry
    first = None if lane.noisy else lane.first()
    return first is not None and first.place == place


class FairOrder:
    """Decides which messages of a standard queue a receive gets: oldest first, those of noisy tenants last.

    "Oldest" means longest available. A message keeps its place when its visibility timeout ends by itself, as
    SQS was recorded to do; one that its receiver gave back goes behind those that wait.
    """

    def __init__(self, policy: FairPolicy, now: float) -> None:
        self._policy = policy
        self._plain = _Lane(None, now)
        self._lanes: dict[str, _Lane] = {}
        self._quiet: list[_Head] = []  # (order of the head, tie, lane): stale entries are skipped when they surface
        self._noisy_lanes: set[_Lane] = set()
        self._total = _Meter(now)
        self._next_look = now
        self._order = 0
        self._tie = 0
        self._prune_at = _PRUNE_ABOVE

    def add(self, message: Stored, now: float) -> None:
        """Take in a new message; a delayed one when its delay is over."""
        self._lane(message, now).sent_at = now
        if message.state is MessageState.AVAILABLE:
            self._lay(message, now)

    def delay_over(self, message: Stored, now: float) -> None:
        """Take in a message at the end of its delay."""
        self._lay(message, now)

    def returned(self, message: Stored, now: float) -> None:
        """Take back a message that was in flight."""
        self._count(message, -1, now)
        self._lay(message, now)

    def left(self, message: Stored, now: float, *, was_in_flight: bool) -> None:
        """Note that a message is gone."""
        if was_in_flight:
            self._count(message, -1, now)
        else:
            lane = self._lane(message, now)
            if lane.first() is message:  # the first message of a lane is always a living one
                lane.head()
                self._enlist(lane)

    def restore_in_flight(self, message: Stored, now: float) -> None:
        """Note a message that is in flight already, when a queue is loaded."""
        self._count(message, 1, now)

    def take(self, limit: int, now: float) -> list[Stored]:
        """Remove up to ``limit`` messages from those that lie."""
        taken: list[Stored] = []
        while len(taken) < limit:
            # A queue without message groups has no tenants to be fair to, and pays nothing for it.
            lane = self._next_lane(now) if self._lanes else self._plain
            head = None if lane is None else lane.head()
            if lane is None or head is None:
                break
            lane.pop()
            self._count(head, 1, now)
            taken.append(head)
            self._enlist(lane)
        return taken

    def clear(self) -> None:
        """Forget all messages that lie here; those in flight were reported gone one by one."""
        self._plain.clear()
        for lane in self._lanes.values():
            lane.clear()
        self._quiet.clear()

    def noisy_groups(self, now: float) -> list[str]:
        """Return the tenants that are noisy now, in order of name."""
        groups = [lane.group for lane in self._lanes.values() if lane.group and self._stays_noisy(lane, now)]
        return sorted(groups)

    # -- lanes ---------------------------------------------------------------------------------------------------

    def _lane(self, message: Stored, now: float) -> _Lane:
        if message.group is None:
            return self._plain
        lane = self._lanes.get(message.group)
        if lane is None:
            if len(self._lanes) >= self._prune_at:
                self._prune(now)
            lane = self._lanes[message.group] = _Lane(message.group, now)
        return lane

    def _lay(self, message: Stored, now: float) -> None:
        lane = self._lane(message, now)
        self._order = max(self._order, message.place) + 1  # a loaded message brings its place along
        message.order = self._order
        message.place = message.place or self._order
        if lane.put(message):
            self._enlist(lane)

    def _enlist(self, lane: _Lane) -> None:
        """Enter the head of a quiet tenant's lane among the others."""
        head = lane.head()
        if head is None or lane.noisy or lane.group is None:
            return
        if len(self._quiet) > 64 + 2 * len(self._lanes):  # lanes that change class often leave stale entries behind
            self._quiet = [entry for entry in self._quiet if _is_current(entry)]
            heapify(self._quiet)
        self._tie += 1
        heappush(self._quiet, (head.place, self._tie, lane))

    def _count(self, message: Stored, change: int, now: float) -> None:
        recent = self._policy.recent
        self._total.read(now, recent)
        self._total.count += change
        if message.group is not None:
            meter = self._lane(message, now).meter
            meter.read(now, recent)
            meter.count += change

    def _prune(self, now: float) -> None:
        """Forget tenants that have nothing here and hardly any recent processing time."""
        # What is left of a tenant's processing time decides nothing any longer: it may as well be a new one.
        small = 0.01 * self._total.read(now, self._policy.recent)
        idle = [
            lane
            for lane in self._lanes.values()
            if not lane.meter.count and lane.head() is None and lane.meter.read(now, self._policy.recent) <= small
        ]
        for lane in idle:
            del self._lanes[lane.group or ""]
            self._noisy_lanes.discard(lane)
        self._prune_at = max(_PRUNE_ABOVE, 2 * len(self._lanes))

    # -- who is noisy --------------------------------------------------------------------------------------------

    def _is_noisy(self, lane: _Lane, now: float) -> bool:
        policy = self._policy
        meter = lane.meter
        if meter.count >= policy.minimum and meter.count > policy.share * self._total.count:
            return True
        used = meter.read(now, policy.recent)
        return used >= policy.minimum_seconds and used > policy.share * self._total.read(now, policy.recent)

    def _stays_noisy(self, lane: _Lane, now: float) -> bool:
        return self._is_noisy(lane, now) or (lane.backlog and now - lane.sent_at < _FORGET_NOISY)

    def _mark(self, lane: _Lane, *, noisy: bool) -> None:
        lane.noisy = lane.backlog = noisy
        if noisy:
            self._noisy_lanes.add(lane)
        else:
            self._noisy_lanes.discard(lane)
        self._enlist(lane)

    def _look(self, now: float) -> bool:
        """Classify again what may have changed; return whether heads must be classified one by one."""
        if self._policy.lag == 0.0:
            # Exact, without a look at every tenant in every receive: noisy ones are few, quiet ones are judged in their
            # turn.
            for lane in [lane for lane in self._noisy_lanes if not self._stays_noisy(lane, now)]:
                self._mark(lane, noisy=False)
            return True
        if now >= self._next_look:
            self._next_look = now + self._policy.lag
            for lane in list(self._lanes.values()):
                noisy = self._stays_noisy(lane, now) if lane.noisy else self._is_noisy(lane, now)
                if noisy != lane.noisy:
                    self._mark(lane, noisy=noisy)
        return False

    def _next_lane(self, now: float) -> _Lane | None:
        at_once = self._look(now)
        while (lane := self._oldest_quiet()) is not None:
            if not (at_once and self._is_noisy(lane, now)):
                break
            heappop(self._quiet)
            self._mark(lane, noisy=True)
        plain = self._plain.head()
        # Messages without a group are never noisy: each is a tenant of its own.
        if lane is not None and (plain is None or self._quiet[0][0] < plain.place):
            heappop(self._quiet)
            return lane
        return self._least_noisy() if plain is None else self._plain

    def _oldest_quiet(self) -> _Lane | None:
        """Return the quiet tenant's lane with the oldest head, and leave its entry on top."""
        heads = self._quiet
        while heads:
            if _is_current(heads[0]):
                return heads[0][2]
            heappop(heads)
        return None

    def _least_noisy(self) -> _Lane | None:
        """Return the lane with the fewest messages in flight, the oldest head first where they are as many."""
        found: _Lane | None = None
        least = (0, 0)
        for lane in self._noisy_lanes:  # few: each had a tenth of something
            if (head := lane.head()) is not None and (found is None or (lane.meter.count, head.place) < least):
                found, least = lane, (lane.meter.count, head.place)
        return found
