"""Who sends much and who sends little: the proof that looking for quiet tenants can find one."""

from collections.abc import Hashable
from typing import Final

WINDOW: Final = 5.0
"""Seconds of one of the two windows in which messages are counted: a tenant is remembered for five to ten."""
ENOUGH: Final = 40
"""Messages in the windows before a tenant can count as noisy: fewer tell nothing about anyone's rate."""
_TIMES: Final = 4
"""A quiet tenant sends at most this part of what the noisiest sends: equal tenants differ by less, by chance."""
_MOST: Final = 10_000
"""Tenants counted per window; messages of further ones count for none."""
_PER_TENANT: Final = 0.0001
"""Seconds between two looks at all tenants, for each of them: a look costs a thousandth of that."""


class Crowd:
    """Counts received messages per tenant.

    There is proof of a noisy tenant when one has sent more than an equal share of what came lately, and another has
    sent so little beside it that chance cannot explain it. One tenant alone, or equal tenants, are never noisy.
    """

    def __init__(self) -> None:
        self._now: dict[Hashable, int] = {}
        self._before: dict[Hashable, int] = {}
        self._turn_at = 0.0
        self._top = 0
        self._look_at = 0.0
        self._proved = False
        self._grouped_until = 0.0

    def came(self, tenant: Hashable, now: float, *, grouped: bool) -> None:
        """Count a message. ``grouped`` tells whether it has a message group, as SQS's fair queues need."""
        if now >= self._turn_at:
            self._turn(now)
        if grouped:
            self._grouped_until = now + 2 * WINDOW
        count = self._now.get(tenant, 0) + 1
        if count > 1 or len(self._now) < _MOST:
            self._now[tenant] = count
            self._top = max(self._top, count + self._before.get(tenant, 0))

    def is_grouped(self, now: float) -> bool:
        """Whether messages of the last seconds had message groups."""
        return now < self._grouped_until

    def is_proved(self, now: float) -> bool:
        """Whether a noisy tenant and a quiet one have been seen lately."""
        if now >= self._turn_at:
            self._turn(now)
        if now >= self._look_at:
            self._look_at = now + _PER_TENANT * (len(self._now) + len(self._before))
            self._proved = self._top >= ENOUGH and self._look()
        return self._proved

    def is_noisy(self, tenant: Hashable) -> bool:
        """Whether a tenant is one of the noisy ones, given that there is proof."""
        return 2 * self._count(tenant) >= self._top

    def _count(self, tenant: Hashable) -> int:
        return self._now.get(tenant, 0) + self._before.get(tenant, 0)

    def _look(self) -> bool:
        tenants = self._now.keys() | self._before.keys()
        counts = [self._count(tenant) for tenant in tenants]
        share = sum(counts) / len(counts)
        return self._top > share and min(counts) * _TIMES <= min(self._top, _TIMES * share / 2)

    def _turn(self, now: float) -> None:
        self._before = self._now if now < self._turn_at + WINDOW else {}
        self._now = {}
        self._turn_at = now + WINDOW
        self._top = max(self._before.values(), default=0)
