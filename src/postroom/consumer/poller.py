"""Asks for messages while there is room for them."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from postroom.consumer.scouting import BATCH, Scouting
from postroom.errors import TransportError
from postroom.events import Observers, PollFailed
from postroom.message import Message
from postroom.options import Polling, Visibility
from postroom.transports.protocol import Queue

_log = logging.getLogger("postroom.consumer")

SPARSE: Final = 3
"""Receives outstanding while messages come few by few, so that one that comes while a receive is on its way back finds
another; and the most messages of a receive for which that is so: each of them could take a receive of its own."""


class Poller:
    """Keeps receives outstanding: one while the queue is quiet, up to ``Polling.pollers`` while it is busy.

    While receives bring a few messages, up to ``SPARSE``, as many receives are outstanding; the first that comes back
    empty ends that.

    When there is no room for more, ``scouting`` decides whether to look for quiet tenants' messages all the same.

    Args:
        queue: where to receive.
        polling: how.
        visibility: the visibility timeout that a receive asks for.
        capacity: how many messages to hold at once.
        held: how many are held now.
        starving: whether nothing waits for a slot, so that even a small receive is worth a call.
        admit: takes the messages of one receive, and returns how many of them lack nothing but a slot.
        on_over_limit: called when the queue refuses a receive because too many messages are in flight.
        observers: told of failed receives.
    """

    def __init__(
        self,
        queue: Queue,
        polling: Polling,
        visibility: Visibility,
        *,
        capacity: Callable[[], int],
        scouting: Scouting,
        held: Callable[[], int],
        starving: Callable[[], bool],
        admit: Callable[[Sequence[Message]], int],
        on_over_limit: Callable[[], None],
        observers: Observers,
    ) -> None:
        self._queue = queue
        self._polling = polling
        self._visibility = visibility
        self._capacity = capacity
        self._scouting = scouting
        self._held = held
        self._starving = starving
        self._admit = admit
        self._on_over_limit = on_over_limit
        self._observers = observers
        self._asked_for = 0
        self._busy = False
        self._sparse = False
        self._stopping = False
        self._waiters: list[asyncio.Future[None]] = []
        self._paused: set[asyncio.Future[None]] = set()
        self.last_success: float | None = None
        """The loop time of the last receive that SQS answered, with or without messages."""
        self.failures = 0
        self.round_trip = 0.0
        """Seconds that a receive takes of late which need not wait for messages."""

    @property
    def room(self) -> int:
        """How many more messages could be held."""
        return self._capacity() - self._held() - self._asked_for

    def wake(self) -> None:
        """Look again whether there is room: a message ended, or the queue turned busy."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def stop(self) -> None:
        """Start no receive any more. Those that are outstanding go on: their messages must not be stranded."""
        self._stopping = True
        self.wake()
        for pause in self._paused:
            if not pause.done():
                pause.set_result(None)

    async def run(self, number: int) -> None:
        """Receive until stopped. ``number`` 0 always polls; the others only while messages come."""
        pause = self._polling.backoff
        while (limit := await self._room(number)) != 0:
            try:
                messages = await self._receive(limit)
            except TransportError as error:
                await self._back_off(error, pause)
                pause = min(pause * 2, self._polling.max_backoff)
                continue
            pause = self._polling.backoff
            if limit > 0:
                self._busy = len(messages) == limit
            may_run = self._admit(messages) if messages else 0
            if limit > 0 and (may_run or not messages):  # what tenants send that are down tells nothing of the others
                self._sparse = 0 < may_run <= SPARSE
            self._scouting.received(emptied=len(messages) < abs(limit))
            if self._busy or self._sparse:
                self.wake()

    async def _room(self, number: int) -> int:
        """Wait until a receive is worth a call, and return how many messages to ask for; 0 when stopping.

        A scouting receive is a negative number: what it brings has no room here.
        """
        while not self._stopping:
            room = self.room
            timeout = None
            enough = room >= self._polling.batch or (room > 0 and self._asked_for == 0 and self._starving())
            if enough and (number == 0 or self._busy or (self._sparse and number < SPARSE)):
                return min(room, self._polling.batch)
            # What cannot be parked is held beyond the capacity; that has an end, too.
            if not enough and self._held() < 2 * self._capacity():
                timeout = self._scouting.pause(number, pollers=self._polling.pollers, round_trip=self.round_trip)
                if timeout == 0.0:
                    return -(self._polling.batch if self._scouting.skimming else min(BATCH, self._polling.batch))
            await self._woken(timeout)
        return 0

    async def _woken(self, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.append(waiter)
        timer = None if timeout is None else loop.call_later(timeout, self._wake_one, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _wake_one(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            self._waiters.remove(waiter)
            waiter.set_result(None)

    async def _receive(self, limit: int) -> list[Message]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._asked_for += max(0, limit)
        try:
            messages = await self._queue.receive(
                limit=abs(limit), wait=self._polling.wait, visibility=self._visibility.timeout
            )
        finally:
            self._asked_for -= max(0, limit)
            if limit > 0:
                self.wake()  # there is more room: another poller may have waited for it, or nobody polls any more
        self.last_success = loop.time()
        if len(messages) == abs(limit):  # it did not have to wait for any
            self.round_trip += 0.2 * (self.last_success - started - self.round_trip)
        return messages

    async def _back_off(self, error: TransportError, pause: float) -> None:
        self.failures += 1
        if error.code == "OverLimit":
            self._on_over_limit()
        _log.error("Receiving from %s failed, next try in %g s: %s", self._queue.info.name, pause, error)
        if self._observers:
            self._observers.tell(PollFailed(self._queue.info.name, error, pause))
        ended = asyncio.get_running_loop().create_future()
        self._paused.add(ended)
        try:
            await asyncio.wait([ended], timeout=pause)
        finally:
            self._paused.discard(ended)
