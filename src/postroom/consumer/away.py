"""Messages that the consumer made invisible without a handler, and calls back when there is room for them."""

from collections import OrderedDict, deque
from typing import Final

import msgspec

from postroom.consumer.availability import Obstacle, ObstacleKind
from postroom.transports.protocol import Queue

MOST_AWAY: Final = 60_000
"""Messages that one consumer keeps invisible at once: half of what SQS allows in flight (120,000,
quotas-messages.html). ``QueueFacts`` looks at what others have in flight."""
_REMEMBER: Final = 10_000
"""Obstacles of which it is known whether they are over."""
SOON: Final = 1.0
"""A message that reappears by itself so soon is not called back: another consumer may have it by then."""


class Absent(msgspec.Struct, frozen=True):
    """A message that SQS has confirmed to be invisible. Its body is not kept."""

    queue: Queue
    message_id: str
    receipt_handle: str
    until: float
    """The loop time at which it reappears by itself."""


class Away:
    """Remembers what is parked, and what is deferred because of an obstacle, oldest first.

    What an obstacle kept away is called back when the obstacle is over, before anything that was parked.
    """

    def __init__(self) -> None:
        self._callable: deque[Absent] = deque()
        self._behind: OrderedDict[Obstacle, deque[Absent]] = OrderedDict()
        self.known: dict[str, Absent] = {}
        """By message id. Some may have reappeared by now."""
        self._over: OrderedDict[Obstacle, bool] = OrderedDict()
        """Obstacles because of which messages were deferred, and whether each is over: some may be on their way out."""

    def __len__(self) -> int:
        """Return how many messages are away, some of which may have reappeared by now."""
        return len(self.known)

    @property
    def is_full(self) -> bool:
        """Whether as many are away as may be."""
        return len(self) >= MOST_AWAY

    def came_back(self, message_id: str) -> None:
        """Forget a message that was received again: to call it back would take it from the consumer that has it."""
        self.known.pop(message_id, None)

    def add(self, absent: Absent, obstacle: Obstacle | None) -> None:
        """Note a message that is invisible now. Without an obstacle it was parked."""
        self.known[absent.message_id] = absent
        if obstacle is None or self._over.get(obstacle, False):
            self._callable.append(absent)
        else:
            self._behind.setdefault(obstacle, deque()).append(absent)

    def release(self, obstacle: Obstacle, count: int) -> None:
        """Let some messages be called back that are away because of an obstacle, which is not over."""
        behind = self._behind.get(obstacle)
        while behind and count > 0:
            self._callable.append(behind.popleft())
            count -= 1

    def stands(self, obstacle: Obstacle) -> None:
        """Note that a message is being deferred because of an obstacle."""
        self._over.pop(obstacle, None)
        self._over[obstacle] = False
        if len(self._over) > _REMEMBER:
            self._over.popitem(last=False)

    def over(self, obstacle: Obstacle) -> bool:
        """Let messages be called back that were deferred because of an obstacle. Returns whether there are any.

        What SQS has not confirmed yet may be called back as soon as it does.
        """
        if obstacle in self._over:  # every open says that its tenant has no outage: most tenants never had one
            self._over[obstacle] = True
        freed = self._behind.pop(obstacle, None)
        if freed:
            self._callable.extendleft(reversed(freed))
        return bool(freed)

    def keeps(self, obstacle: Obstacle) -> bool:
        """Whether messages are invisible because of an obstacle."""
        return obstacle in self._behind

    def all_over(self) -> None:
        """Let everything be called back: the consumer stops.

        But for what a step has failed for: a process that starts again and again would use up its attempts.
        """
        for obstacle in tuple(self._behind):
            if obstacle.kind is not ObstacleKind.STEP:
                self.over(obstacle)

    def recallable(self, now: float) -> int:
        """Return how many messages may be called back, some of which may have reappeared by now."""
        self._drop_past(self._callable, now)
        return len(self._callable)

    def take(self, count: int, now: float) -> dict[Queue, list[Absent]]:
        """Take out messages to be called back, and return them by queue."""
        taken: dict[Queue, list[Absent]] = {}
        while self._callable and count > 0:
            absent = self._callable.popleft()
            if self._forget(absent) and absent.until > now + SOON:
                taken.setdefault(absent.queue, []).append(absent)
                count -= 1
        return taken

    def tidy(self, now: float) -> None:
        """Forget what has reappeared."""
        self._drop_past(self._callable, now)
        for obstacle, absent in tuple(self._behind.items()):
            self._drop_past(absent, now)
            if not absent:
                del self._behind[obstacle]

    def _drop_past(self, absent: deque[Absent], now: float) -> None:
        while absent and (absent[0].until <= now or self.known.get(absent[0].message_id) is not absent[0]):
            self._forget(absent.popleft())

    def _forget(self, absent: Absent) -> bool:
        """Forget a message. Returns whether this was the newest that is known of it."""
        if self.known.get(absent.message_id) is not absent:
            return False
        del self.known[absent.message_id]
        return True
