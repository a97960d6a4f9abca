"""Queues that tenants are diverted to: each is opened when the first message goes there, and kept."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from postroom.display import display_key
from postroom.settlement import DeadLetters
from postroom.tasks import Tasks
from postroom.transports.protocol import Queue, RedrivePolicy

_MOST: Final = 100
"""Queues that are remembered; the oldest is forgotten first."""


class _Towards(msgspec.Struct, frozen=True):
    """A queue that was chosen by an operator, in the place of a redrive policy."""

    redrive: RedrivePolicy | None


class Diversions:
    """Sends messages to queues that an operator names, as the dead-letter queue would get them: with the reason.

    Args:
        open_queue: opens a queue by name, URL or ARN.
        tasks: start the calls, and the timers.
    """

    def __init__(self, open_queue: Callable[[str], Awaitable[Queue]], *, tasks: Tasks) -> None:
        self._open_queue = open_queue
        self._tasks = tasks
        self._known: dict[str, DeadLetters] = {}

    def to(self, queue: str) -> DeadLetters:
        """Return what sends messages to a queue."""
        known = self._known.get(queue)
        if known is None:
            if len(self._known) >= _MOST:
                del self._known[next(iter(self._known))]
            towards = _Towards(RedrivePolicy(queue, 1))
            name = f"queue {display_key(queue)}"
            known = self._known[queue] = DeadLetters(towards, self._open_queue, tasks=self._tasks, name=name)
        return known
