"""Keeps every message in flight ours: one task, one heap of deadlines, batched extensions."""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence

from postroom.errors import TransportError
from postroom.options import MAX_BATCH, Visibility
from postroom.settlement.delivery import Delivery
from postroom.transports.protocol import Queue, VisibilityChange

_log = logging.getLogger("postroom.settlement")

_RETRY = 1.0
"""Seconds between two tries of an extension that failed; less when the deadline is nearer."""
_LAST_TRY = 0.1
"""Seconds before the deadline from which a failed extension is not tried again: half of ever less is no time."""


class Heartbeat:
    """Extends the visibility timeout of covered deliveries, and notices when one is lost.

    A delivery is covered from receive until somebody settles it: while it waits for a slot, while its handler runs,
    and while its acknowledgement waits in a buffer. Extensions go out when half of the timeout is over. A delivery
    whose deadline passes without a confirmed extension is lost: ``on_lost`` is called once, synchronously.

    Callers that are about to delete a message or to set its backoff first call :meth:`release`, then await
    :meth:`quiesce`, so that no extension can arrive after their own change and overwrite it.
    """

    def __init__(self, queue: Queue, visibility: Visibility, *, on_lost: Callable[[Delivery], None]) -> None:
        self._queue = queue
        self._visibility = visibility
        self._on_lost = on_lost
        self._due: list[tuple[float, int, list[Delivery]]] = []
        self._tie = itertools.count()
        self._wake = asyncio.Event()
        self._beats: set[asyncio.Task[None]] = set()
        self.extended = 0
        """Extensions that SQS confirmed."""

    def cover(self, deliveries: Sequence[Delivery]) -> None:
        """Start to cover deliveries of one receive, which share their deadline."""
        for delivery in deliveries:
            delivery.covered = True
        self._schedule(deliveries[0].deadline, deliveries)

    def release(self, delivery: Delivery) -> None:
        """Stop covering a delivery. An extension of it may still be on its way: see :meth:`quiesce`."""
        delivery.covered = False
        if delivery.due_with is not None:
            # Or every message of the last half timeout would stay in memory.
            delivery.due_with.remove(delivery)
            delivery.due_with = None

    async def quiesce(self, deliveries: Iterable[Delivery]) -> None:
        """Wait until no extension of these is on its way."""
        while self._beats and any(delivery.beating for delivery in deliveries):
            await asyncio.wait(self._beats, return_when=asyncio.FIRST_COMPLETED)

    async def run(self) -> None:
        """Extend until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._next_due()
                self._beat(self._take_due(loop.time()))
        finally:
            for beat in self._beats:
                beat.cancel()

    def _schedule(self, deadline: float, deliveries: Sequence[Delivery]) -> None:
        now = asyncio.get_running_loop().time()
        pause = (deadline - now) / 2 if self._visibility.heartbeat else deadline - now
        self._push(now + max(0.0, pause), deliveries)

    def _push(self, due: float, deliveries: Sequence[Delivery]) -> None:
        if not self._due or due < self._due[0][0]:
            self._wake.set()
        due_together = list(deliveries)
        for delivery in due_together:
            delivery.due_with = due_together
        heapq.heappush(self._due, (due, next(self._tie), due_together))

    async def _next_due(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._due or self._due[0][0] > loop.time():
            self._wake.clear()
            timer = loop.call_at(self._due[0][0], self._wake.set) if self._due else None
            try:
                await self._wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    def _take_due(self, now: float) -> list[Delivery]:
        due: list[Delivery] = []
        while self._due and self._due[0][0] <= now:
            due.extend(heapq.heappop(self._due)[2])
        for delivery in due:
            delivery.due_with = None
        return [delivery for delivery in due if delivery.covered and not delivery.beating]

    def _beat(self, due: Sequence[Delivery]) -> None:
        """Extend what is due; what is past its deadline, or may not be extended any more, is lost or left to be."""
        now = asyncio.get_running_loop().time()
        batch: list[tuple[Delivery, int]] = []
        for delivery in due:
            seconds = self._seconds(delivery, now)
            if delivery.deadline <= now:
                self._lose(delivery)
            elif seconds <= 0:
                self._push(delivery.deadline, [delivery])
            else:
                delivery.beating = True
                batch.append((delivery, seconds))
        for start in range(0, len(batch), MAX_BATCH):
            task = asyncio.create_task(self._extend(batch[start : start + MAX_BATCH]), name="postroom-heartbeat-batch")
            self._beats.add(task)
            task.add_done_callback(self._beats.discard)

    def _seconds(self, delivery: Delivery, now: float) -> int:
        if not self._visibility.heartbeat:
            return 0
        options = self._visibility
        seconds = delivery.extension(now, timeout=options.timeout, max_extension=options.max_extension)
        # An "extension" that ends before the present deadline would shorten our hold.
        return seconds if now + seconds > delivery.deadline else 0

    async def _extend(self, batch: Sequence[tuple[Delivery, int]]) -> None:
        sent_at = asyncio.get_running_loop().time()
        changes = [VisibilityChange(delivery.receipt_handle, seconds) for delivery, seconds in batch]
        try:
            refused = await self._send(changes)
        finally:
            for delivery, _ in batch:
                delivery.beating = False
        confirmed: list[Delivery] = []
        for index, (delivery, seconds) in enumerate(batch):
            renewed = delivery.receipt_handle != changes[index].receipt_handle
            if index not in refused:
                if not renewed:  # counted from before the request was sent: never later than SQS's own deadline
                    delivery.deadline = sent_at + seconds
                self.extended += 1
                if delivery.covered:
                    confirmed.append(delivery)
            elif delivery.covered:  # one that was settled meanwhile is refused rightly, and nobody's trouble
                # A refusal of the older receipt handle says nothing of the one that was received meanwhile.
                self._refused(delivery, final=refused[index] and not renewed)
        if confirmed:
            self._schedule(min(d.deadline for d in confirmed), confirmed)

    async def _send(self, changes: Sequence[VisibilityChange]) -> dict[int, bool]:
        """Return the refused entries, by their place; the value tells whether trying again is useless."""
        try:
            failures = await self._queue.change_visibility(changes)
        except TransportError as error:
            _log.warning("Extending the visibility of %d messages failed: %s", len(changes), error)
            return dict.fromkeys(range(len(changes)), False)
        return {failure.index: failure.sender_fault for failure in failures}

    def _refused(self, delivery: Delivery, *, final: bool) -> None:
        now = asyncio.get_running_loop().time()
        if final or delivery.deadline <= now:
            self._lose(delivery)
            return
        left = delivery.deadline - now
        self._push(now + min(_RETRY, left / 2) if left > _LAST_TRY else delivery.deadline, [delivery])

    def _lose(self, delivery: Delivery) -> None:
        delivery.covered = False
        delivery.lost = True
        self._on_lost(delivery)
