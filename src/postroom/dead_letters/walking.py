"""Goes through a dead-letter queue once: receives each letter, and keeps it invisible until the walk is over.

SQS has no way to look at messages without receiving them. A walk that is killed leaves nothing behind: what it had
received is visible again after ``hold`` seconds.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Final, ParamSpec, TypeVar

from postroom.display import counted
from postroom.errors import TransportError
from postroom.log_fields import Log, Step, about
from postroom.message import Message
from postroom.options import MAX_BATCH
from postroom.transports.protocol import EntryFailure, Queue, VisibilityChange

P = ParamSpec("P")
T = TypeVar("T")

_log = Log("postroom.dead_letters", Step.DEAD_LETTER)

HOLD: Final = 120.0
"""Seconds for which letters stay invisible when the process that looks at them is killed."""
MOST_HELD: Final = 100_000
"""Letters that one walk keeps invisible: SQS allows 120,000 in flight (quotas-messages.html)."""
_WAIT: Final = 1.0
"""Seconds that a receive waits: a long poll asks all of SQS's servers, a short one only some of them. So the first one
that brings nothing ends the walk."""
_TRIES: Final = 6
_PAUSE: Final = 0.2
"""Tries of a call that SQS refuses for now, and seconds before the second one; they double."""


class Walk:
    """One walk through a queue. Every letter that it brings is held, until it is forgotten or released.

    Args:
        queue: the queue.
        hold: seconds of invisibility, extended while the walk lasts.
    """

    def __init__(self, queue: Queue, *, hold: float = HOLD) -> None:
        self._queue = queue
        self._hold = hold
        self._time = asyncio.get_running_loop().time
        self._held: dict[str, tuple[float, str]] = {}  # id: deadline and receipt handle, the oldest first
        self.seen: int = 0
        """Letters brought so far."""
        self.cut: bool = False
        """Whether it ended because too many letters are held: there may be more."""

    async def batches(self) -> AsyncGenerator[list[Message], None]:
        """Yield letters as they are received, each once."""
        while True:
            await self.extend()
            if len(self._held) >= MOST_HELD:
                self.cut = True
                return
            asked = self._time()
            messages = await patiently(self._receive)
            new = list({message.id: message for message in messages if message.id not in self._held}.values())
            for message in messages:
                self._held.pop(message.id, None)  # received again: the newest receipt handle counts
                self._held[message.id] = (asked + self._hold, message.receipt_handle)
            if not messages:
                return
            if new:
                self.seen += len(new)
                yield new

    def handle(self, message_id: str) -> str:
        """Return the receipt handle of a letter that is held."""
        return self._held[message_id][1]

    def owns(self, message_id: str) -> bool:
        """Whether a letter is held and will be for another while: it may be acted on."""
        held = self._held.get(message_id)
        return held is not None and held[0] - self._time() > min(5.0, self._hold / 4)

    def forget(self, message_id: str) -> None:
        """Hold a letter no longer: it was deleted."""
        self._held.pop(message_id, None)

    async def release(self) -> None:
        """Make everything that is held visible again. What fails reappears by itself, and is told."""
        handles = [handle for _, handle in self._held.values()]
        self._held.clear()
        for done, batch in enumerate(tens(handles)):
            try:
                await patiently(self._queue.change_visibility, [VisibilityChange(handle, 0) for handle in batch])
            except TransportError as error:
                left, name = counted(len(handles) - done * MAX_BATCH, "letter"), self._queue.info.name
                text = "Queue %s did not make %s visible again that only were looked at; they are within %g s: %s"
                _log.warning(text, name, left, self._hold, error, extra=about(queue=name))
                return

    async def _receive(self) -> list[Message]:
        return await self._queue.receive(limit=MAX_BATCH, wait=_WAIT, visibility=self._hold)

    async def extend(self) -> None:
        """Extend what has less than half of its time left. To be called while anything else is waited for."""
        soon = self._time() + self._hold / 2
        # The oldest first: this is asked with each receive, and there may be a hundred thousand.
        late = [key for key, _ in takewhile(lambda held: held[1][0] < soon, self._held.items())]
        for batch in tens(late):
            changes = [VisibilityChange(self._held[key][1], int(self._hold)) for key in batch]
            began = self._time()
            failures = await patiently(self._queue.change_visibility, changes)
            refused = {failure.index for failure in failures}
            for index, key in enumerate(batch):
                _, handle = self._held.pop(key)
                if index not in refused:  # else it is visible again, and may be received once more
                    self._held[key] = (began + self._hold, handle)


async def patiently(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call, and make it again after a growing pause while SQS refuses it for now. Raises ``TransportError``."""
    for number in range(_TRIES - 1):
        try:
            return await call(*args, **kwargs)
        except TransportError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(_PAUSE * 2**number * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not secrecy
    return await call(*args, **kwargs)


async def delete(queue: Queue, handles: Sequence[str]) -> list[EntryFailure]:
    """Delete up to ten messages, and what was refused for now once more. Returns what is left."""
    left = list(range(len(handles)))
    refused: list[EntryFailure] = []  # for good: they stay, whatever the next tries do for the others
    for_now: list[EntryFailure] = []
    for _ in range(_TRIES):
        answers = await patiently(queue.delete, [handles[index] for index in left])
        failures = [EntryFailure(left[each.index], each.code, each.text, each.sender_fault) for each in answers]
        refused += [failure for failure in failures if failure.sender_fault]
        for_now = [failure for failure in failures if not failure.sender_fault]
        left = [failure.index for failure in for_now]
        if not left:
            break
    return refused + for_now


def tens(items: Sequence[T]) -> list[Sequence[T]]:
    """Cut a sequence into parts of ten, as SQS's batches are."""
    return [items[at : at + MAX_BATCH] for at in range(0, len(items), MAX_BATCH)]
