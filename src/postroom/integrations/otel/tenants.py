"""The busiest tenants, in bounded memory and with a bounded number of labels."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from postroom.display import display_key
from postroom.errors import ConfigurationError

OTHER = "other"
"""The label of all tenants that are not among the busiest."""
_CANDIDATES = 5
"""Tenants that are counted for each one that has a label."""
_LEAD = 2.0
"""How many times the handler seconds of a labelled tenant a candidate needs to take its place, and"""
_PART = 0.5
"""which part of an equal part of all handler seconds, for as many tenants as there are labels: tenants that are about
equal, or have little to do, must not change places at every review, because each new label is a new time series."""


@dataclass(frozen=True, slots=True)
class TopTenants:
    """Metrics for the busiest tenants, by handler seconds; all others are one series, ``other``.

    Args:
        count: tenants with a label of their own, 1 to 500.
        every: seconds between two reviews. Labels change in a review only, and a tenant takes another one's place only
            with twice its recent handler seconds, and half of an equal part of all (2.5 % with a ``count`` of 20).
            So there are never more than ``count`` + 1 series at a time for each instrument, and new ones are rare.
    """

    count: int = 20
    every: float = 60.0

    def __post_init__(self) -> None:
        count, every = cast("Any", self.count), cast("Any", self.every)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 500:
            raise ConfigurationError(f"TopTenants(count) takes a whole number from 1 to 500; got {self.count!r}")
        if isinstance(every, bool) or not isinstance(every, int | float) or not every > 0:
            raise ConfigurationError(f"TopTenants(every=...) takes seconds, more than 0; got {self.every!r}")


class Figures(msgspec.Struct):
    """What is counted of one label."""

    messages: int = 0
    failures: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Busiest:
    """Counts handler runs by tenant, as ``TopTenants`` says.

    Candidates are kept as the space-saving sketch does: one that is new when all places are taken begins with the count
    of the least busy one, so that a tenant with more than its part of the work is never missed. What it began with is
    no work of its own, and does not count when labels are given. Counts are halved at each review.
    """

    def __init__(self, options: TopTenants) -> None:
        self._options = options
        self._candidates: dict[str, float] = {}
        self._inherited: dict[str, float] = {}
        self._total = 0.0
        self._labelled: dict[str, Figures] = {}
        self._other = Figures()
        self._review_at: float | None = None

    def ran(self, tenant: Hashable, seconds: float, waited: float, now: float, *, failed: bool) -> None:
        """Count one handler run."""
        label = display_key(tenant)
        if self._review_at is None:
            self._review_at = now + self._options.every
        elif now >= self._review_at:
            self._review_at = now + self._options.every
            self._review()
        self._weigh(label, seconds)
        figures = self._labelled.get(label)
        if figures is None:
            if len(self._labelled) < self._options.count and label != OTHER:
                figures = self._labelled[label] = Figures()
            else:
                figures = self._other
        figures.messages += 1
        figures.failures += failed
        figures.seconds += seconds
        figures.waited += waited

    def figures(self) -> Iterator[tuple[str, Figures]]:
        """Yield what is counted of each label. Safe to call from another thread."""
        yield from list(self._labelled.items())
        yield OTHER, self._other

    def _weigh(self, label: str, seconds: float) -> None:
        candidates = self._candidates
        known = candidates.get(label, 0.0)
        if label not in candidates and len(candidates) >= _CANDIDATES * self._options.count:
            # A labelled tenant keeps its place: its series would end and begin again.
            least = min((each for each in candidates if each not in self._labelled), key=candidates.__getitem__)
            known = self._inherited[label] = candidates.pop(least)
            self._inherited.pop(least, None)
        candidates[label] = known + seconds
        self._total += seconds

    def _review(self) -> None:
        """Let candidates that are much busier take the places of the least busy labels."""
        weights = {label: weight - self._inherited.get(label, 0.0) for label, weight in self._candidates.items()}
        enough = _PART * self._total / self._options.count
        rising = [each for each in weights if each not in self._labelled and each != OTHER and weights[each] > enough]
        rising.sort(key=weights.__getitem__)
        falling = sorted(self._labelled, key=lambda each: weights.get(each, 0.0))
        for gone in falling:
            if not rising or weights[rising[-1]] <= _LEAD * weights.get(gone, 0.0):
                break
            # Its counts end here: what it did is told already, and must not be told again as that of others.
            del self._labelled[gone]
            self._labelled[rising.pop()] = Figures()
        self._total /= 2
        self._candidates = {label: weight / 2 for label, weight in self._candidates.items()}
        self._inherited = {label: weight / 2 for label, weight in self._inherited.items()}
