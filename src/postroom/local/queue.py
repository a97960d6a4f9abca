"""One queue: its messages, their states, and when the next of them changes state by itself.

Nothing here looks at a clock or answers a client: every method is told what time it is. What a receive may take is
decided by the order (``fair``, ``fifo``).
"""

from collections import deque
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from typing import Protocol

from postroom.local.attributes import DEFAULTS, FIFO_DEFAULTS, Redrive, RedriveAllow, parse_redrive, parse_redrive_allow
from postroom.local.fair import FairOrder, FairPolicy
from postroom.local.fifo import Attempts, Deduplication, FifoOrder
from postroom.local.messages import Handles, MessageState, Stored
from postroom.local.options import Scope
from postroom.local.shapes import Receive

SCOPE_PAUSE = 60.0
"""Seconds until a changed deduplication scope takes effect: SQS needs up to sixty for a changed attribute."""
INSTANT = 1e-6
"""Two times closer than this are the same: sums of floats differ by less, and no client can tell."""


class Order(Protocol):
    """Which of the available messages a receive gets."""

    def add(self, message: Stored, _now: float, /) -> None:
        """Take in a new message, available or delayed."""
        ...

    def delay_over(self, message: Stored, _now: float, /) -> None:
        """Note that the delay of a message is over."""
        ...

    def take(self, limit: int, _now: float, /) -> list[Stored]:
        """Remove up to ``limit`` messages from those that lie; they are in flight now."""
        ...

    def returned(self, message: Stored, _now: float, /) -> None:
        """Take back a message that was in flight."""
        ...

    def left(self, message: Stored, _now: float, /, *, was_in_flight: bool) -> None:
        """Note that a message is gone."""
        ...

    def restore_in_flight(self, message: Stored, _now: float, /) -> None:
        """Note a message that is in flight already, when a queue is loaded."""
        ...

    def clear(self) -> None:
        """Forget all messages that lie here; those in flight were reported gone one by one."""
        ...


class Waiter:
    """A long poll that waits. ``deliver`` is called once, with what it got."""

    __slots__ = ("deliver", "request", "waits")

    def __init__(self, request: Receive, deliver: Callable[[list[Stored]], None]) -> None:
        self.request: Receive = request
        self.deliver: Callable[[list[Stored]], None] = deliver
        self.waits: bool = True


class _Settings:
    """The attributes that decide something, read once when they are set."""

    __slots__ = (
        "content_based",
        "deduplicates_by_group",
        "delay",
        "max_bytes",
        "redrive",
        "redrive_allow",
        "retention",
        "visibility",
        "wait",
    )

    def __init__(self, attributes: Mapping[str, str]) -> None:
        values = {**DEFAULTS, **attributes}
        self.visibility: int = int(values["VisibilityTimeout"])
        self.delay: int = int(values["DelaySeconds"])
        self.wait: int = int(values["ReceiveMessageWaitTimeSeconds"])
        self.retention: int = int(values["MessageRetentionPeriod"])
        self.max_bytes: int = int(values["MaximumMessageSize"])
        self.content_based: bool = values.get("ContentBasedDeduplication") == "true"
        self.deduplicates_by_group: bool = values.get("DeduplicationScope") == "messageGroup"
        self.redrive: Redrive | None = parse_redrive(values["RedrivePolicy"]) if "RedrivePolicy" in values else None
        self.redrive_allow: RedriveAllow = (
            parse_redrive_allow(values["RedriveAllowPolicy"]) if "RedriveAllowPolicy" in values else RedriveAllow()
        )


class LocalQueue:
    """The state of one queue."""

    def __init__(
        self, name: str, scope: Scope, *, uid: int, attributes: Mapping[str, str], now: float, fair: FairPolicy
    ) -> None:
        self.name = name
        """The name, with ``.fifo`` at its end where it is such a queue."""
        self.scope = scope
        self.uid = uid
        self.arn: str = f"arn:aws:sqs:{scope.region}:{scope.account}:{name}"
        """The ARN, which ``RedrivePolicy`` names it by."""
        self.fifo: bool = name.endswith(".fifo")
        """Whether it keeps the order of message groups."""
        self.created_at: float = now
        self.modified_at: float = now
        self.purged_at: float | None = None
        self.deleted = False
        self.attributes: dict[str, str] = dict(attributes)
        """The attributes that were set, by SQS's names; change them by ``set_attributes`` of the broker."""
        self.settings: _Settings = _Settings(attributes)
        self._by_group = [(now, self.settings.deduplicates_by_group)]  # since when each deduplication scope holds
        self.tags: dict[str, str] = {}
        """The tags, by key."""
        self.messages: dict[int, Stored] = {}
        self.available: int = 0
        """Messages that a receive would get."""
        self.delayed: int = 0
        """Messages that are not visible yet."""
        self.in_flight: int = 0
        """Messages that were received, and are invisible for their timeout."""
        self.order: Order = FifoOrder() if self.fifo else FairOrder(fair, now)
        self.handles: Handles = Handles(uid)
        self.deduplication: Deduplication = Deduplication()
        self.attempts: Attempts = Attempts()
        self.waiters: deque[Waiter] = deque()
        self._due: list[tuple[float, int, Stored]] = []  # delays and visibility timeouts; stale entries are skipped
        self._kept: list[tuple[float, int, Stored]] = []  # by when retention started
        self._tie = 0

    def set_attributes(self, changes: Mapping[str, str], now: float) -> None:
        """Store attributes that were checked; an empty text removes one."""
        delay = self.settings.delay
        self.replace_attributes({**self.attributes, **changes}, now)
        if self.fifo and self.settings.delay != delay:
            self._delay_again(now)

    def replace_attributes(self, attributes: Mapping[str, str], now: float) -> None:
        """Replace all attributes."""
        is_new = not self.attributes
        self.attributes = {name: value for name, value in attributes.items() if value}
        self.settings = _Settings(self.attributes)
        self.modified_at = now
        by_group = self.settings.deduplicates_by_group
        if is_new:
            self._by_group = [(now, by_group)]
        elif by_group != self._by_group[-1][1]:
            # Recorded of SQS: for one more minute it deduplicates in the old scope.
            self._by_group.append((now + SCOPE_PAUSE, by_group))

    def deduplicates_by_group(self, now: float) -> bool:
        """Whether a deduplication id counts within its message group; as it was set at least a minute ago."""
        while len(self._by_group) > 1 and self._by_group[1][0] <= now + INSTANT:
            del self._by_group[0]
        return self._by_group[0][1]

    def _delay_again(self, now: float) -> None:
        """Apply a new delay to messages that are here and were never received: FIFO queues do, standard ones not."""
        for message in [each for each in self.messages.values() if not each.receives_here]:
            message.visible_at = message.sent_at + self.settings.delay
            is_delayed = message.visible_at > now + INSTANT
            if is_delayed and message.state is MessageState.AVAILABLE:
                message.state = MessageState.DELAYED
                self.available -= 1
                self.delayed += 1
            if is_delayed:
                self._push_due(message)
            elif message.state is MessageState.DELAYED:
                self._end_delay(message, now)

    def _end_delay(self, message: Stored, now: float) -> None:
        message.state = MessageState.AVAILABLE
        self.delayed -= 1
        self.available += 1
        self.order.delay_over(message, now)

    def all_attributes(self) -> dict[str, str]:
        """Return every attribute as GetQueueAttributes shows it."""
        stored = self.attributes
        if "KmsMasterKeyId" not in stored:  # the reuse period belongs to the key, and is shown only with it
            stored = {name: value for name, value in stored.items() if name != "KmsDataKeyReusePeriodSeconds"}
        return {
            "QueueArn": self.arn,
            "ApproximateNumberOfMessages": str(self.available),
            "ApproximateNumberOfMessagesNotVisible": str(self.in_flight),
            "ApproximateNumberOfMessagesDelayed": str(self.delayed),
            "CreatedTimestamp": str(int(self.created_at)),
            "LastModifiedTimestamp": str(int(self.modified_at)),
            **DEFAULTS,
            **(FIFO_DEFAULTS if self.fifo else {}),
            **stored,
        }

    # -- messages ------------------------------------------------------------------------------------------------

    def insert(self, message: Stored, now: float) -> None:
        """Take in a new message. Its ``visible_at`` decides whether it is delayed."""
        self.messages[message.seq] = message
        heappush(self._kept, (message.kept_since, self._next_tie(), message))
        if message.visible_at > now + INSTANT:
            message.state = MessageState.DELAYED
            self.delayed += 1
            self._push_due(message)
        else:
            message.state = MessageState.AVAILABLE
            self.available += 1
        self.order.add(message, now)

    def take(self, limit: int, now: float) -> list[Stored]:
        """Take available messages out of the order; each must then be flown or removed."""
        taken = self.order.take(limit, now)
        self.available -= len(taken)
        self.in_flight += len(taken)
        for message in taken:
            message.state = MessageState.IN_FLIGHT
        return taken

    def fly(self, message: Stored, timeout: float, now: float) -> None:
        """Count a receive of a taken message and hide it for ``timeout`` seconds."""
        message.receives += 1
        message.receives_here += 1
        message.received_at = now
        # A message that came by a redrive brings its first receive along.
        message.first_received_at = message.first_received_at or now
        message.given_back = False
        self.hide(message, timeout, now)

    def hide(self, message: Stored, timeout: float, now: float) -> None:
        """Let the visibility timeout of a message in flight end in ``timeout`` seconds."""
        message.visible_at = now + timeout
        # With 0 the caller gives it back in the same step: there is no deadline to wait for.
        if timeout > 0:
            self._push_due(message)

    def recall(self, message: Stored, now: float) -> None:
        """Put a message back in flight that was not received since its visibility timeout ended."""
        message.state = MessageState.IN_FLIGHT
        self.available -= 1
        self.in_flight += 1
        # Its entry in the order is stale from here on; it must not be handed out from there.
        self.order.left(message, now, was_in_flight=False)
        self.order.restore_in_flight(message, now)

    def give_back(self, message: Stored, now: float) -> None:
        """Make a message available again that its receiver gave back: on a standard queue, as the last one."""
        # 0 stands for no place yet: the order gives it the next one, behind all that wait.
        message.place = 0
        self.land(message, now)

    def land(self, message: Stored, now: float) -> None:
        """Make a message that is in flight available again, in its old place."""
        message.state = MessageState.AVAILABLE
        message.visible_at = now
        self.in_flight -= 1
        self.available += 1
        self.order.returned(message, now)

    def remove(self, message: Stored, now: float) -> None:
        """Forget a message."""
        del self.messages[message.seq]
        state = message.state
        message.state = MessageState.GONE
        if state is MessageState.IN_FLIGHT:
            self.in_flight -= 1
        elif state is MessageState.DELAYED:
            self.delayed -= 1
        else:
            self.available -= 1
        self.order.left(message, now, was_in_flight=state is MessageState.IN_FLIGHT)

    def clear(self, now: float) -> None:
        """Forget all messages, and what was remembered of sends and receives."""
        for message in self.messages.values():
            # Reported one by one: the meters of its tenants count what is in flight, and must come back to zero.
            if message.state is MessageState.IN_FLIGHT:
                message.state = MessageState.GONE
                self.order.left(message, now, was_in_flight=True)
            message.state = MessageState.GONE
        self.messages.clear()
        self.available = 0
        self.delayed = 0
        self.in_flight = 0
        self.order.clear()
        self.attempts.clear()
        self.deduplication.clear()
        self._due.clear()
        self._kept.clear()

    def restore(self, message: Stored, now: float) -> None:
        """Take in a message as it was when it was saved."""
        if message.state is not MessageState.IN_FLIGHT:
            self.insert(message, now)
            return
        self.messages[message.seq] = message
        heappush(self._kept, (message.kept_since, self._next_tie(), message))
        self.in_flight += 1
        self.order.restore_in_flight(message, now)
        self._push_due(message)

    # -- time ----------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> list[Stored]:
        """Let happen what is due: delays and visibility timeouts end, messages expire. Returns the expired ones."""
        limit = now + INSTANT
        while self._due and self._due[0][0] <= limit:
            _, tie, message = heappop(self._due)
            # Its timeout was changed, or it was received again: a later entry counts.
            if message.due != tie:
                continue
            if message.state is MessageState.IN_FLIGHT:
                self.land(message, now)
            elif message.state is MessageState.DELAYED:
                self._end_delay(message, now)
        expired: list[Stored] = []
        # The retention of now, not that of the send: a changed attribute holds for messages that are here already.
        while self._kept and self._kept[0][0] + self.settings.retention <= limit:
            message = heappop(self._kept)[2]
            if message.state is not MessageState.GONE:
                expired.append(message)
                self.remove(message, now)
        return expired

    def next_due(self) -> float | None:
        """Return when the next delay or visibility timeout ends, or the next message expires; None for never."""
        while self._due and not _is_due(self._due[0]):
            heappop(self._due)
        while self._kept and self._kept[0][2].state is MessageState.GONE:
            heappop(self._kept)
        expiry = self._kept[0][0] + self.settings.retention if self._kept else None
        if not self._due:
            return expiry
        return self._due[0][0] if expiry is None else min(self._due[0][0], expiry)

    def _next_tie(self) -> int:
        self._tie += 1
        # Deleted messages leave their entries here until retention ends, which is days: drop them when they are most.
        if len(self._kept) > 64 + 2 * len(self.messages):
            self._kept = [entry for entry in self._kept if entry[2].state is not MessageState.GONE]
            heapify(self._kept)
        return self._tie

    def _push_due(self, message: Stored) -> None:
        self._tie += 1
        message.due = self._tie
        heappush(self._due, (message.visible_at, self._tie, message))
        # Each heartbeat leaves a stale entry behind, however far in the future it lies.
        if len(self._due) > 64 + 2 * (self.delayed + self.in_flight):
            self._due = [entry for entry in self._due if _is_due(entry)]
            heapify(self._due)

    # -- long polls ----------------------------------------------------------------------------------------------

    def next_waiter(self) -> Waiter | None:
        """Return the long poll that has waited longest."""
        # A cancelled poll stays in line until it is in front: taking it from the middle would walk over all others.
        while self.waiters and not self.waiters[0].waits:
            self.waiters.popleft()
        return self.waiters[0] if self.waiters else None


def _is_due(entry: tuple[float, int, Stored]) -> bool:
    """Whether an entry still says when its message becomes available."""
    _, tie, message = entry
    return message.due == tie and message.state in {MessageState.DELAYED, MessageState.IN_FLIGHT}
