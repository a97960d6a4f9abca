"""Which tenants are noisy and which are quiet: the proof that looking for quiet tenants can find one."""

from collections.abc import Hashable
from typing import Final

import msgspec

WINDOW: Final = 5.0
"""Seconds of one of the two windows in which messages are counted: a tenant is remembered for five to fifteen."""
ENOUGH: Final = 40
"""Messages of noisy tenants in the windows before there can be proof: fewer may be a burst."""
_SOME: Final = 5
"""Messages of one tenant that found enough of it here, before it can count as noisy."""
_FEW: Final = 2
"""Messages of one tenant that found room, before it can count as quiet: one may be a newcomer's first."""
_TIMES: Final = 9
"""A quiet tenant's messages find room nine times out of ten: those of equal tenants in a backlog do not."""
_MOST: Final = 10_000
"""Tenants counted per window; messages of further ones count for none."""
_PER_TENANT: Final = 0.0001
"""Seconds between two looks at all tenants, for each of them: a look costs a thousandth of that."""


class _Count(msgspec.Struct):
    """Messages of one tenant in the present window, and in the one before it."""

    over: int = 0
    """Those that found as much of their tenant here as its share."""
    within: int = 0
    """Those that found less."""
    over_before: int = 0
    within_before: int = 0

    @property
    def is_noisy(self) -> bool:
        """Whether at least half of them found their tenant's share used up."""
        over = self.over + self.over_before
        return over >= _SOME and over >= self.within + self.within_before

    @property
    def quiet(self) -> int:
        """How many a quiet tenant has sent; 0 if it is not quiet."""
        within = self.within + self.within_before
        return within if _TIMES * (self.over + self.over_before) <= within else 0


class Crowd:
    """Counts received messages per tenant, by whether they found their tenant's share here already.

    A tenant is noisy when at least half of its messages found its share used up, and quiet when nine of ten found it
    free. There is proof of a crowd when both kinds have been seen. One tenant alone is never noisy; nor are equal
    tenants, because their messages find the same.
    """

    def __init__(self) -> None:
        self._counts: dict[Hashable, _Count] = {}
        """Of every tenant of which a message came in one of the two windows."""
        self._tenants = 0
        """Tenants of which one came in the present window."""
        self._turn_at = 0.0
        self._over = 0
        self._over_before = 0
        self._look_at = 0.0
        self._proved = False
        self._suspected = False
        self.grouped_until: float = 0.0
        """Until when messages of the last seconds had message groups."""

    def came(self, tenant: Hashable, now: float, *, over: bool, grouped: bool) -> None:
        """Count a message.

        ``over`` tells whether it found its tenant's share here, ``grouped`` whether it has a message group, as SQS's
        fair queues need.
        """
        if now >= self._turn_at:
            self._turn(now)
        if grouped:
            self.grouped_until = now + 2 * WINDOW
        count = self._counts.get(tenant)
        if count is None or not (count.over or count.within):
            if self._tenants >= _MOST:
                return
            self._tenants += 1
            if count is None:
                count = self._counts[tenant] = _Count()
        if over:
            count.over += 1
            self._over += 1
        else:
            count.within += 1

    def is_grouped(self, now: float) -> bool:
        """Whether messages of the last seconds had message groups."""
        return now < self.grouped_until

    def is_proved(self, now: float) -> bool:
        """Whether a noisy tenant and a quiet one have been seen lately."""
        self._look(now)
        return self._proved

    def is_suspected(self, now: float) -> bool:
        """Whether there may be proof soon: one message of a quiet tenant, and one of another too many."""
        self._look(now)
        return self._suspected

    def was_suspected(self, now: float) -> bool:
        """Whether the last look saw that, not long ago. Looks at nothing and changes nothing: for statistics."""
        return self._suspected and now < self._turn_at + WINDOW

    def is_noisy(self, tenant: Hashable) -> bool:
        """Whether a tenant is noisy."""
        count = self._counts.get(tenant)
        return count is not None and count.is_noisy

    def _look(self, now: float) -> None:
        if now >= self._turn_at:
            self._turn(now)
        if now < self._look_at:
            return
        counts = self._counts.values()
        self._look_at = now + _PER_TENANT * len(counts)
        over = self._over + self._over_before
        quiet = max((count.quiet for count in counts), default=0) if over else 0
        self._suspected = quiet > 0
        self._proved = quiet >= _FEW and over >= ENOUGH and any(count.is_noisy for count in counts)

    def _turn(self, now: float) -> None:
        late = now >= self._turn_at + WINDOW
        before = {} if late else self._counts
        self._counts = {
            tenant: _Count(over_before=count.over, within_before=count.within)
            for tenant, count in before.items()
            if count.over or count.within
        }
        self._over_before = 0 if late else self._over
        self._over = self._tenants = 0
        self._turn_at = now + WINDOW
