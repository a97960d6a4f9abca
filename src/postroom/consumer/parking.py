"""Surplus messages of noisy tenants, put off so that the receive path stays open for everybody else."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from postroom.consumer.inflight import InFlight
from postroom.errors import TransportError
from postroom.options import MAX_BATCH
from postroom.settlement import Delivery, Settler
from postroom.transports.protocol import Queue, VisibilityChange
from postroom.types import Settlement

_log = logging.getLogger("postroom.consumer")

TRIES_LEFT = 3
"""Receives that a message keeps for real attempts: parking uses up only those beyond."""
MOST_PARKED = 60_000
"""Messages parked at once by one consumer: half of what SQS allows in flight (120,000, quotas-messages.html). What
others have in flight is looked at besides."""
Parked = tuple[float, float, Delivery]
"""A message that was put off: when, and until when at the least."""

_DELAY = (7.5, 22.5)
_SETTLED = 0.25
"""Seconds after which a parked message is surely parked: its visibility change has been sent and answered."""


class Parking:
    """Puts surplus messages off by their visibility, with jitter, and calls them back when slots run dry.

    A parked message has been received, so parking counts towards ``maxReceiveCount``. A message is parked only while
    ``TRIES_LEFT`` receives are left after this one's, and never where the redrive policy allows no more than that:
    parking dead-letters nothing. A message that is called back uses no receive that it would not have used later.
    """

    def __init__(
        self, queue: Queue, settler: Settler, *, clock: Callable[[], float], in_flight: InFlight | None = None
    ) -> None:
        redrive = queue.info.redrive
        self._queue = queue
        self._settler = settler
        self._clock = clock
        self._in_flight = InFlight(queue, clock=clock) if in_flight is None else in_flight
        self._most_receives = None if redrive is None else redrive.max_receive_count
        self._rng = Random()  # noqa: S311 - jitter, not secrecy
        self._parked: deque[Parked] = deque()
        self._recalls: set[asyncio.Task[None]] = set()
        self.total = 0
        """Messages parked so far, those of an outage included."""

    @property
    def refused_because(self) -> str | None:
        """Why nothing may be parked now; None while it may."""
        if self._queue.info.fifo:
            return "a FIFO queue hands out the next message of a group only when the last one is done"
        if self._most_receives is not None and self._most_receives <= TRIES_LEFT:
            return f"the queue's maxReceiveCount is {self._most_receives}: no receive to spare"
        if self.count() >= MOST_PARKED:
            return f"{MOST_PARKED} messages are parked already"
        return self._in_flight.refusal()

    def count(self) -> int:
        """Return how many messages are parked now, at the most."""
        now = self._clock()
        while self._parked and self._parked[0][1] <= now:
            self._parked.popleft()
        return len(self._parked)

    def spares(self, delivery: Delivery) -> bool:
        """Whether a message can do with one receive less without coming nearer to the dead-letter queue."""
        return self._most_receives is None or delivery.receives + TRIES_LEFT <= self._most_receives

    def puts_off(self, delivery: Delivery) -> bool:
        """Whether a message may be put off now."""
        return self.refused_because is None and self.spares(delivery)

    def adopt(self, messages: Iterable[Parked]) -> None:
        """Take messages that somebody else put off: they are called back before those that were parked."""
        self._parked.extendleft(reversed(list(messages)))

    def park(self, delivery: Delivery) -> None:
        """Put a message off."""
        now = self._clock()
        self.total += 1
        self._in_flight.put_off()
        delay = self._rng.uniform(*_DELAY)
        self._settler.give_back(delivery, Settlement.DEFERRED, delay=delay)
        self._parked.append((now, now + delay, delivery))

    def recall(self, count: int, *, settled: float = _SETTLED) -> None:
        """Make the messages parked longest visible again, because there is room for them after all.

        Those parked less than ``settled`` seconds ago stay, and those whose own change SQS has not confirmed: it would
        hide them after all.
        """
        now = self._clock()
        handles: list[str] = []
        early: list[Parked] = []
        while self._parked and len(handles) < count and self._parked[0][0] + settled <= now:
            _, until, delivery = parked = self._parked.popleft()
            # One that may be visible again already, or was not put off in the end, could be with somebody else by now.
            if until <= now + 1.0 or delivery.lost or delivery.settlement is not Settlement.DEFERRED:
                continue
            if delivery.confirmed:
                handles.append(delivery.receipt_handle)
            else:
                early.append(parked)
        self.adopt(early)
        for start in range(0, len(handles), MAX_BATCH):
            task = asyncio.create_task(self._show(handles[start : start + MAX_BATCH]), name="postroom-recall-parked")
            self._recalls.add(task)
            task.add_done_callback(self._recalls.discard)

    def recall_all(self) -> None:
        """Make everything that is parked visible again. Their own changes must have been answered."""
        self.recall(len(self._parked), settled=0.0)

    async def close(self) -> None:
        """Let everything that is still parked be seen at once: another consumer may have time for it.

        Cancelled, it gives up what SQS has not answered: nothing may outlive the stop.
        """
        self.recall(len(self._parked))
        recalls = tuple(self._recalls)
        try:
            if recalls:
                await asyncio.wait(recalls)
        finally:
            for recall in recalls:
                recall.cancel()

    async def _show(self, handles: list[str]) -> None:
        try:
            await self._queue.change_visibility([VisibilityChange(handle, 0) for handle in handles])
        except TransportError as error:
            _log.warning("Calling %d parked messages back failed, they come by themselves: %s", len(handles), error)
