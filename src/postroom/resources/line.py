"""The waiting line: one place per key, first come first served; the keys of a host that admits none step aside (I9)."""

import heapq
import itertools
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from operator import attrgetter
from typing import Final

from postroom.resources.entries import Demand, Stage

_place: Final = attrgetter("sequence")


class Row:
    """Demands in the order of their places. One that comes again has its old place, and that is somewhere between."""

    __slots__ = ("_demands",)

    def __init__(self) -> None:
        self._demands: list[Demand] = []

    def __len__(self) -> int:
        """Return how many stand here."""
        return len(self._demands)

    def __iter__(self) -> Iterator[Demand]:
        """Iterate from the first to the last."""
        return iter(self._demands)

    def add(self, demand: Demand) -> None:
        """Let a demand stand at its place."""
        insort(self._demands, demand, key=_place)

    def remove(self, demand: Demand) -> None:
        """Take a demand out."""
        del self._demands[bisect_left(self._demands, demand.sequence, key=_place)]

    def clear(self) -> None:
        """Take all out."""
        self._demands.clear()


class Line:
    """Demands that wait for budget and an opening."""

    def __init__(self) -> None:
        self._fresh = Row()
        self._troubled = Row()
        self._parked: dict[Hashable, OrderedDict[Demand, None]] = {}
        self._back = itertools.count(1)
        self._front = itertools.count(-1, -1)

    def __len__(self) -> int:
        """Return how many wait for budget or an opening; parked ones wait for neither."""
        return len(self._fresh) + len(self._troubled)

    def give_place(self, demand: Demand, *, front: bool = False) -> None:
        """Give a demand the last place; or the first: it had its turn, and the turn was taken from it."""
        demand.sequence = next(self._front if front else self._back)

    def add(self, demand: Demand) -> None:
        """Let a demand stand in line, at its place."""
        demand.stage = Stage.QUEUED
        self._lane(demand).add(demand)

    def remove(self, demand: Demand) -> None:
        """Take a demand out, wherever it waits."""
        if demand.stage is Stage.PARKED:
            parked = self._parked[demand.host]
            del parked[demand]
            if not parked:
                del self._parked[demand.host]
        else:
            self._lane(demand).remove(demand)

    def park(self, demand: Demand) -> None:
        """Let a demand step aside until its host admits it."""
        self.remove(demand)
        demand.stage = Stage.PARKED
        self._parked.setdefault(demand.host, OrderedDict())[demand] = None

    def unpark(self, host: Hashable, count: int) -> None:
        """Let up to ``count`` demands of a host back into the line, at its end."""
        for demand in self._parked_on(host, count):
            self.remove(demand)
            self.give_place(demand)
            self.add(demand)

    def of_host(self, host: Hashable) -> list[Demand]:
        """Return every demand of a host."""
        return [demand for demand in self if demand.host == host] + self._parked_on(host)

    def __iter__(self) -> Iterator[Demand]:
        """Iterate in the order of service. Parked demands have none."""
        return self.candidates(troubled=True)

    def candidates(self, *, troubled: bool) -> Iterator[Demand]:
        """Iterate in the order of service; without the troubled keys unless they may open now."""
        if not troubled or not self._troubled:
            return iter(self._fresh)
        return heapq.merge(self._fresh, self._troubled, key=_place)

    def _parked_on(self, host: Hashable, most: int | None = None) -> list[Demand]:
        parked = self._parked.get(host)
        return list(itertools.islice(parked, most)) if parked else []

    def _lane(self, demand: Demand) -> Row:
        return self._troubled if demand.troubled else self._fresh
