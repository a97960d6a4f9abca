"""Collects entries into batch calls, and retries refused ones a bounded number of times."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic

from typing_extensions import TypeVar

from postroom.errors import InvalidReceiptHandle, InvalidRequest, TransportError
from postroom.options import MAX_BATCH
from postroom.transports.protocol import EntryFailure

_log = logging.getLogger("postroom.settlement")

E = TypeVar("E")

ATTEMPTS = 4
"""How often one entry is sent at most."""
_FIRST_PAUSE = 0.2
"""Seconds before the second attempt; doubles."""

Send = Callable[[Sequence[E]], Awaitable[Sequence[EntryFailure]]]
Done = Callable[[E, TransportError | None], None]


class Batcher(Generic[E]):
    """Sends entries in batches of ten, by size or after a short interval.

    Args:
        name: what is sent, for logs and task names.
        send: sends one batch and returns the entries that were refused, by their place.
        done: called once for each entry, with None or with the error that ended it. Never called for an entry
            whose batch was cancelled by :meth:`cancel`.
        linger: seconds that an entry waits for company.

    An entry that SQS refuses as the sender's fault, and every entry of a call that SQS will refuse again, ends at
    once. The rest is sent again, ``ATTEMPTS`` times in all. So the calls are bounded, whatever SQS answers.
    """

    def __init__(self, name: str, *, send: Send[E], done: Done[E], linger: float) -> None:
        self._name = name
        self._send = send
        self._done = done
        self._linger = linger
        self._buffer: list[E] = []
        self._timer: asyncio.TimerHandle | None = None
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> int:
        """Entries that wait in the buffer; those on their way are not counted."""
        return len(self._buffer)

    def add(self, entry: E, *, urgent: bool = False) -> None:
        """Take an entry in. An urgent one leaves in this turn of the loop, with what is there."""
        buffer = self._buffer
        buffer.append(entry)
        if len(buffer) >= MAX_BATCH:
            self.flush()
        elif urgent or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(0.0 if urgent else self._linger, self.flush)

    def flush(self) -> None:
        """Send what is in the buffer now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._buffer:
            batch, self._buffer = self._buffer[:MAX_BATCH], self._buffer[MAX_BATCH:]
            task = asyncio.create_task(self._deliver(batch), name=f"postroom-{self._name}-batch")
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def drain(self) -> None:
        """Send what is in the buffer and wait until every entry has ended, retries included."""
        while self._buffer or self._batches:
            self.flush()
            await asyncio.wait(tuple(self._batches))

    async def cancel(self) -> int:
        """Give up what has not ended, and return how many batches that were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._buffer.clear()
        batches = tuple(self._batches)
        for batch in batches:
            batch.cancel()
        if batches:
            await asyncio.wait(batches)
        return len(batches)

    async def _deliver(self, batch: list[E]) -> None:
        pause = _FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            last = attempt == ATTEMPTS
            batch = await self._attempt(batch, last=last)
            if not batch:
                return
            await asyncio.sleep(pause)
            pause *= 2

    async def _attempt(self, batch: list[E], *, last: bool) -> list[E]:
        """Send once. Entries that ended are reported; those to send again are returned."""
        try:
            failures = {failure.index: failure for failure in await self._send(batch)}
        except TransportError as error:
            if error.retryable and not last:
                return batch
            _log.error("%s of %d messages failed: %s", self._name, len(batch), error)
            for entry in batch:
                self._done(entry, error)
            return []
        again: list[E] = []
        for index, entry in enumerate(batch):
            failure = failures.get(index)
            if failure is None:
                self._done(entry, None)
            elif failure.sender_fault or last:
                self._done(entry, _error_of(failure, self._name))
            else:
                again.append(entry)
        return again


def _error_of(failure: EntryFailure, operation: str) -> TransportError:
    kind = InvalidReceiptHandle if "ReceiptHandle" in failure.code else InvalidRequest
    return kind(f"SQS refused an entry of {operation}: {failure.code}", operation=operation, code=failure.code)
