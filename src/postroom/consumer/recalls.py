"""Makes messages visible again that were parked or deferred, ten per call."""

import asyncio
from collections.abc import Callable
from typing import Final

from postroom.consumer.away import SOON, Absent
from postroom.errors import InvalidReceiptHandle
from postroom.options import MAX_BATCH
from postroom.settlement import Refusals, describe, error_of, whole_seconds
from postroom.tasks import Tasks, has_to_leave
from postroom.transports.protocol import Queue, VisibilityChange, checked_failures

_TRIES: Final = 4
"""Calls for one message. Refused entries of a batch are rare, and what is not called back comes by itself."""
_PAUSE: Final = 0.2
"""Seconds before the second call; doubles with each further one."""
_UNSHOWN: Final = "%s could not be called back (%s): they come back after their visibility timeout. Messages: %s"


class Recalls:
    """Calls messages back, and keeps the calls that are out, since a stop has to wait for them."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._failures = Refusals(_UNSHOWN, tasks=tasks)
        self.out: set[asyncio.Task[None]] = set()
        """Calls that are not answered yet."""
        self._away: dict[str, Absent] = {}
        """By message id: those of the calls that are out, for as long as they have not come back."""

    def came_back(self, message_id: str) -> None:
        """Try a message no more that was received: to show it now would give it to another consumer, too."""
        self._away.pop(message_id, None)

    def begin(self, absent: dict[Queue, list[Absent]], delay: Callable[[Queue], float] | None = None) -> None:
        """Call messages back that ``Away`` does not know any longer, to be seen after a delay."""
        for queue, messages in absent.items():
            seconds = 0.0 if delay is None else delay(queue)
            for start in range(0, len(messages), MAX_BATCH):
                batch = messages[start : start + MAX_BATCH]
                self._away.update((each.message_id, each) for each in batch)
                task = self._tasks.spawn(self._show(queue, batch, seconds), "postroom-recall")
                self.out.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.out.discard(task)
        if not self.out:
            self._away.clear()

    def flush(self) -> None:
        """Tell now of what could not be called back."""
        self._failures.flush()

    async def _show(self, queue: Queue, batch: list[Absent], delay: float) -> None:
        """Call a batch back. Single entries that are refused for now are tried again, a call that failed is not.

        A call without an answer may have taken effect: another consumer may have its messages by now, and to show
        them once more would take them from it. An entry that was refused stays invisible.
        """
        for tries in range(1, _TRIES + 1):
            task = asyncio.current_task()
            try:
                changes = [VisibilityChange(each.receipt_handle, whole_seconds(delay)) for each in batch]
                failures = checked_failures(await queue.change_visibility(changes), len(changes))
            except BaseException as error:
                if has_to_leave(error, task):
                    raise
                self._failed(batch, error)
                return
            again: list[Absent] = []
            for failure in failures:
                refusal = error_of(failure, "calling messages back")
                if failure.sender_fault or tries == _TRIES:
                    self._failed([batch[failure.index]], refusal)
                else:
                    again.append(batch[failure.index])
            if not again:
                return
            await asyncio.sleep(_PAUSE * 2 ** (tries - 1))
            now = self._tasks.time()
            batch = [each for each in again if self._away.get(each.message_id) is each and each.until > now + SOON]
            if not batch:
                return

    def _failed(self, messages: list[Absent], error: BaseException) -> None:
        if not isinstance(error, InvalidReceiptHandle):  # such a message is visible, or another consumer has it
            for each in messages:
                self._failures.add(describe(error), each.message_id)
