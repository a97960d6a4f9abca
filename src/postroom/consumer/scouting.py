"""Whether to look for quiet tenants' messages while there is no room for more, and how hard."""

from collections.abc import Callable
from typing import Final

from postroom.consumer.parking import Parking
from postroom.message import Message

SCOUTS: Final = 3
"""Scouting receives per round trip: a quiet message waits for a third of a round trip at most."""
BATCH: Final = 2
"""Messages per scouting receive. SQS's fair queues hand out quiet tenants' messages first."""
_SPACING: Final = 0.002
_LONGEST_PAUSE: Final = 0.25
_RARE: Final = 1000.0
_ALONE: Final = 0.05
_LATE: Final = 0.03
"""Seconds that a quiet message may lie in the queue. More, and the queue does not (yet) hand it out first."""
_MISSING: Final = 4.0
"""Usual pauses between quiet messages without one, after which skimming looks where they are."""
_LOOK: Final = 1.0
_SKIM: Final = 3.0
_FIRST_LOOK: Final = 3.0
"""Seconds of skimming at the start, when nobody knows yet who else is in the queue."""


class Scouting:
    """Keeps receives outstanding when the buffer is full, so that quiet tenants need not wait behind noisy ones.

    Two gears. *Scouting*: SQS's fair queues hand out quiet tenants' messages first, so a few small receives find
    them; what else they bring is parked. *Skimming*: where a quiet message has lain in the queue for long, the queue
    does not know yet who is noisy; then every poller takes full batches off the top, until quiet messages come soon.

    Scouts go slower when no quiet message has come for long, by a thousandth of that time, 0.25 s at the most; and
    while one tenant is all that has been seen.
    """

    def __init__(
        self, parking: Parking, *, clock: Callable[[], float], alone: Callable[[], bool], enabled: bool
    ) -> None:
        self._parking = parking
        self._clock = clock
        self._alone = alone
        self._enabled = enabled
        self._start = self._next = clock() + _ALONE
        self._skim_until = self._start + _FIRST_LOOK
        self._quiet_at = clock()
        self._interval = 1.0
        self._missing = _MISSING
        self.receives = 0
        """Scouting receives so far."""

    @property
    def skimming(self) -> bool:
        """Whether every poller takes full batches."""
        return self._clock() < self._skim_until

    @property
    def stopped_because(self) -> str | None:
        """Why there is no scouting, even if there were no room; None while there would be."""
        if not self._enabled:
            return "Polling(scout=False), or no contexts"
        return self._parking.refused_because

    def pause(self, number: int, *, round_trip: float) -> float | None:
        """Return the seconds until poller ``number`` may scout; 0.0 if it goes now, None if it does not."""
        if self.stopped_because is not None:
            return None
        now = self._clock()
        if now < self._start:
            return self._start - now
        if now - self._quiet_at > self._missing * self._interval:
            # Quiet messages used to come. They may have stopped, or lie behind noisy ones: look, ever more rarely.
            self._missing *= 2
            self._skim_until = max(self._skim_until, now + _LOOK)
        skimming = now < self._skim_until
        if number >= SCOUTS and not skimming:
            return None
        if not skimming and now < self._next:
            return self._next - now
        rare = min(_LONGEST_PAUSE, max((now - self._quiet_at) / _RARE, _ALONE if self._alone() else 0.0))
        self._next = now + max(_SPACING, round_trip / SCOUTS, rare)
        self.receives += 1
        return 0.0

    def found_quiet(self, message: Message) -> None:
        """Note that a message came whose tenant has not had its part."""
        now = self._clock()
        self._interval += 0.1 * (min(1.0, max(0.01, now - self._quiet_at)) - self._interval)
        self._missing = _MISSING
        self._quiet_at = now
        sent, received = message.sent_at, message.first_received_at
        # Both times are the queue's own: no clock of ours is compared with them.
        if message.receive_count == 1 and sent is not None and received is not None and received - sent > _LATE:
            self._skim_until = now + _SKIM
