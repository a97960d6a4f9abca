"""How near a queue is to the limit of messages in flight, all its consumers together."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from postroom.errors import TransportError
from postroom.transports.protocol import Queue

_log = logging.getLogger("postroom.consumer")

LIMIT: Final = 120_000
"""Messages that a queue may have in flight (quotas-messages.html). Past it long polls return nothing, and no reason;
short polls fail with ``OverLimit``."""
ENOUGH: Final = LIMIT * 3 // 4
"""In flight in the queue, whosever they are: more, and nothing is put off any more."""
_EVERY: Final = 2.0
"""Seconds between two looks while messages are put off."""
_MANY: Final = 500
"""Messages put off that are worth a look of their own: a hundredth of the calls that they cost in any case."""
_REST: Final = 30.0
"""Seconds without putting off after the queue has refused a receive."""


class InFlight:
    """Asks the queue how many messages are in flight, while this consumer adds to them by putting messages off.

    One call per ``_EVERY`` seconds or ``_MANY`` messages, none while nothing is put off. The answer is approximate
    and late, so the limit is kept at a distance. A look that fails is not logged: the consumer's own bound remains.
    """

    def __init__(self, queue: Queue, *, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._clock = clock
        self._count = 0
        self._since = 0
        self._rest_until = 0.0
        self._next = 0.0
        self._look: asyncio.Task[None] | None = None

    def refusal(self) -> str | None:
        """Return why nothing may be put off now; None while it may. Looks again when that was long ago."""
        now = self._clock()
        if now < self._rest_until:
            return f"the queue refused a receive: the limit is {LIMIT:,} messages in flight"
        if self._count < ENOUGH:
            return None
        self._look_again()
        return f"{self._count:,} messages are in flight in the queue, of {LIMIT:,} allowed"

    def put_off(self) -> None:
        """Note that a message was put off."""
        self._since += 1
        self._look_again()

    def _look_again(self) -> None:
        if self._look is None and (self._since >= _MANY or self._clock() >= self._next):
            self._since = 0
            self._look = asyncio.create_task(self._ask(), name="postroom-in-flight")

    def refused(self) -> None:
        """Note that the queue refused a receive because too much is in flight."""
        now = self._clock()
        if now >= self._rest_until:
            _log.warning("%s has too many messages in flight: nothing is put off for a while", self._queue.info.name)
        self._rest_until = now + _REST

    async def close(self) -> None:
        """End a look that is under way."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])

    async def _ask(self) -> None:
        try:
            said = await self._queue.attributes()
            count = int(said.get("ApproximateNumberOfMessagesNotVisible", "0"))
            if count >= ENOUGH > self._count:
                _log.warning("%s has %d messages in flight: nothing is put off now", self._queue.info.name, count)
            self._count = count
        except (TransportError, ValueError):
            self._count = 0
        finally:
            self._next = self._clock() + _EVERY
            self._look = None
