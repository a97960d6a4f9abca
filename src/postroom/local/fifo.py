"""FIFO queues: in each group nothing overtakes a message that is in flight; and deduplication.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-understanding-logic.html
"""

from collections import deque
from heapq import heappop, heappush
from math import inf

from postroom.local.messages import MessageState, Stored

DEDUPLICATION_WINDOW = 300.0
"""Seconds for which a deduplication id and a receive attempt id are remembered."""


class _Group:
    __slots__ = ("in_flight", "lying", "name", "ready")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lying: list[tuple[int, Stored]] = []  # a heap by sequence: what comes back takes its old place
        self.in_flight: set[int] = set()
        self.ready = False

    def head(self) -> Stored | None:
        """Return the first message that still exists."""
        while self.lying:
            message = self.lying[0][1]
            if message.state is not MessageState.GONE:
                return message
            heappop(self.lying)
        return None

    def bound(self) -> float:
        """Return the sequence that the next message must precede: that of the first one in flight."""
        return min(self.in_flight) if self.in_flight else inf


class FifoOrder:
    """Decides which messages of a FIFO queue a receive gets.

    A message in flight locks what comes after it in its group; one that was given back comes before it and may be
    received again. A receive takes as many as it can from one group before it turns to the next. Groups take turns:
    one that was unlocked goes behind those that wait.
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._ready: deque[_Group] = deque()

    def add(self, message: Stored, _now: float) -> None:
        """Take in a new message, available or delayed."""
        name = message.group or ""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name)
        heappush(group.lying, (message.seq, message))
        self._check(group)

    def delay_over(self, message: Stored, _now: float) -> None:
        """Note that a message became available where it lies."""
        self._check(self._groups[message.group or ""])

    def take(self, limit: int, _now: float) -> list[Stored]:
        """Remove up to ``limit`` messages from those that lie, and lock their groups."""
        taken: list[Stored] = []
        while self._ready and len(taken) < limit:
            group = self._ready.popleft()
            group.ready = False
            bound = group.bound()  # what this very receive takes does not lock the rest of it
            while len(taken) < limit and (head := group.head()) is not None and _is_next(head, bound):
                heappop(group.lying)
                group.in_flight.add(head.seq)
                taken.append(head)
            self._check(group)
        return taken

    def returned(self, message: Stored, _now: float) -> None:
        """Put a message that was in flight back to its place."""
        group = self._groups[message.group or ""]
        group.in_flight.discard(message.seq)
        heappush(group.lying, (message.seq, message))
        self._check(group)

    def left(self, message: Stored, _now: float, *, was_in_flight: bool) -> None:
        """Note that a message is gone."""
        group = self._groups[message.group or ""]
        if was_in_flight:
            group.in_flight.discard(message.seq)
        self._check(group)

    def restore_in_flight(self, message: Stored, _now: float) -> None:
        """Note a message that is in flight already, when a queue is loaded."""
        name = message.group or ""
        group = self._groups.setdefault(name, _Group(name))
        group.in_flight.add(message.seq)

    def clear(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self._ready.clear()

    def _check(self, group: _Group) -> None:
        if group.ready:
            return
        head = group.head()
        if head is None:
            if not group.in_flight:
                self._groups.pop(group.name, None)
        elif _is_next(head, group.bound()):
            group.ready = True
            self._ready.append(group)


def _is_next(head: Stored, bound: float) -> bool:
    return head.state is MessageState.AVAILABLE and head.seq < bound


class Deduplication:
    """Remembers what was sent within the window, also after it was received and deleted."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, int]] = {}
        self._expiry: deque[tuple[float, tuple[str, str]]] = deque()

    def find(self, key: tuple[str, str], now: float) -> tuple[str, int] | None:
        """Return (message id, sequence) of the message that was sent under a key, within the window."""
        while self._expiry and self._expiry[0][0] <= now:
            del self._known[self._expiry.popleft()[1]]
        return self._known.get(key)

    def remember(self, key: tuple[str, str], message_id: str, seq: int, sent_at: float) -> None:
        """Remember a message; the caller has made sure that the key is not known."""
        self._known[key] = (message_id, seq)
        self._expiry.append((sent_at + DEDUPLICATION_WINDOW, key))

    def entries(self) -> list[tuple[str, str, str, int, float]]:
        """Return (scope, id, message id, sequence, sent at) of everything remembered, oldest first."""
        return [(*key, *self._known[key], expiry - DEDUPLICATION_WINDOW) for expiry, key in self._expiry]

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
        self._expiry.clear()


class Attempts:
    """Remembers which messages a receive request attempt id got, so that a retry gets the same ones."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, list[tuple[Stored, int, float]]]] = {}

    def remember(self, attempt_id: str, messages: list[Stored], now: float) -> None:
        """Remember what was handed out under an id."""
        while self._known and next(iter(self._known.values()))[0] <= now:
            del self._known[next(iter(self._known))]
        self._known.pop(attempt_id, None)  # so that it goes to the end: the oldest stay in front
        parts = [(message, message.receives, message.visible_at) for message in messages]
        self._known[attempt_id] = (now + DEDUPLICATION_WINDOW, parts)

    def replay(self, attempt_id: str, now: float) -> list[Stored]:
        """Return the messages handed out under an id, if all are as they were then; else nothing."""
        expiry, parts = self._known.get(attempt_id, (now, []))
        if expiry <= now:
            return []
        for message, receives, visible_at in parts:
            in_flight = message.state is MessageState.IN_FLIGHT and message.visible_at > now
            if not in_flight or message.receives != receives or message.visible_at != visible_at:
                return []
        return [message for message, _, _ in parts]

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
