"""Asks for messages while there is room for them."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from postroom.errors import TransportError
from postroom.events import Observers, PollFailed
from postroom.message import Message
from postroom.options import Polling, Visibility
from postroom.transports.protocol import Queue

_log = logging.getLogger("postroom.consumer")


class Poller:
    """Keeps receives outstanding: one while the queue is quiet, up to ``Polling.pollers`` while it is busy.

    Args:
        queue: where to receive.
        polling: how.
        visibility: the visibility timeout that a receive asks for.
        capacity: messages to hold at once.
        held: how many are held now.
        starving: whether nothing waits for a slot, so that even a small receive is worth a call.
        admit: takes the messages of one receive.
        observers: told of failed receives.
    """

    def __init__(
        self,
        queue: Queue,
        polling: Polling,
        visibility: Visibility,
        *,
        capacity: int,
        held: Callable[[], int],
        starving: Callable[[], bool],
        admit: Callable[[Sequence[Message]], None],
        observers: Observers,
    ) -> None:
        self._queue = queue
        self._polling = polling
        self._visibility = visibility
        self._capacity = capacity
        self._held = held
        self._starving = starving
        self._admit = admit
        self._observers = observers
        self._asked_for = 0
        self._busy = False
        self._stopping = False
        self._waiters: list[asyncio.Future[None]] = []
        self._paused: set[asyncio.Future[None]] = set()
        self.last_success: float | None = None
        """The loop time of the last receive that SQS answered, with or without messages."""
        self.failures = 0

    @property
    def room(self) -> int:
        """How many more messages could be held."""
        return self._capacity - self._held() - self._asked_for

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
        """Receive until stopped. ``number`` 0 always polls; the others only while the queue is busy."""
        pause = self._polling.backoff
        while (limit := await self._room(number)) > 0:
            try:
                messages = await self._receive(limit)
            except TransportError as error:
                await self._back_off(error, pause)
                pause = min(pause * 2, self._polling.max_backoff)
                continue
            pause = self._polling.backoff
            self._busy = len(messages) == limit
            if messages:
                self._admit(messages)
            if self._busy:
                self.wake()

    async def _room(self, number: int) -> int:
        """Wait until a receive is worth a call, and return how many messages to ask for; 0 when stopping."""
        while not self._stopping:
            room = self.room
            enough = room >= self._polling.batch or (room > 0 and self._asked_for == 0 and self._starving())
            if enough and (number == 0 or self._busy):
                return min(room, self._polling.batch)
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return 0

    async def _receive(self, limit: int) -> list[Message]:
        self._asked_for += limit
        try:
            messages = await self._queue.receive(
                limit=limit, wait=self._polling.wait, visibility=self._visibility.timeout
            )
        finally:
            self._asked_for -= limit
            self.wake()  # there is more room: another poller may have waited for it, or nobody polls any more
        self.last_success = asyncio.get_running_loop().time()
        return messages

    async def _back_off(self, error: TransportError, pause: float) -> None:
        self.failures += 1
        _log.error("Receiving from %s failed, next try in %g s: %s", self._queue.info.name, pause, error)
        if self._observers:
            self._observers.tell(PollFailed(self._queue.info.name, error, pause))
        ended = asyncio.get_running_loop().create_future()
        self._paused.add(ended)
        try:
            await asyncio.wait([ended], timeout=pause)
        finally:
            self._paused.discard(ended)
