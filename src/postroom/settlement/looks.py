"""When to look at which deliveries: one heap of times, one timer, and nothing for each message."""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Final

from postroom.options import MAX_BATCH
from postroom.settlement.delivery import Delivery
from postroom.tasks import Tasks

_SPARE: Final = 64
"""Entries of the heap that may be empty, beside as many as are not."""


class Looks:
    """Deliveries in small groups, by the time at which they are looked at next. A delivery is in one group at most.

    Args:
        look: called with the deliveries of which the time has come.
        tasks: start the timer.
        every: seconds between two calls of ``look`` at the least, while there is anything to look at.
    """

    def __init__(self, look: Callable[[list[Delivery]], None], *, tasks: Tasks, every: float) -> None:
        self._look = look
        self._tasks = tasks
        self._every = every
        self._heap: list[tuple[float, int, dict[Delivery, None]]] = []
        # Between equal times heapq would compare the groups, and dictionaries have no order.
        self._tie = itertools.count()
        self._empty = 0
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._closed = False

    def put(self, deliveries: Sequence[Delivery], at: float) -> None:
        """Look at these at a time of the loop, and no more when it was planned before."""
        for start in range(0, len(deliveries), MAX_BATCH):
            group = dict.fromkeys(deliveries[start : start + MAX_BATCH])
            for delivery in group:
                if delivery.due_with is not None:
                    self.drop(delivery)
                delivery.due_with = group
            heapq.heappush(self._heap, (at, next(self._tie), group))
        if self._timer is None or at < self._rings_at:
            self._set_timer()

    def drop(self, *deliveries: Delivery) -> None:
        """Do not look at them any longer."""
        for delivery in deliveries:
            group = delivery.due_with
            if group is None:
                continue
            delivery.due_with = None
            del group[delivery]
            self._empty += not group
        if self._empty > len(self._heap) // 2 + _SPARE:
            # Or every group of the last half timeout, which may be hours, would stay in memory.
            self._heap = [entry for entry in self._heap if entry[2]]
            heapq.heapify(self._heap)
            self._empty = 0

    def close(self) -> None:
        """Look at nothing any longer."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _, _, group in self._heap:
            for delivery in group:
                delivery.due_with = None
        self._heap.clear()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap and not self._closed:
            # Never later than a second from now: the loop's clock may stand still while the machine
            # sleeps, and only a look at the other clock shows it.
            self._rings_at = min(self._heap[0][0], self._tasks.time() + self._every)
            self._timer = self._tasks.call_at(self._rings_at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._tasks.time()
        # Collected before anything is looked at: `look` puts deliveries back into this heap.
        due: list[Delivery] = []
        heap = self._heap
        while heap and (heap[0][0] <= now or not heap[0][2]):
            group = heapq.heappop(heap)[2]
            self._empty -= not group
            due += group
        for delivery in due:
            delivery.due_with = None
        self._look(due)
        # `look` may have set an earlier timer through `put`.
        if self._timer is None:
            self._set_timer()
