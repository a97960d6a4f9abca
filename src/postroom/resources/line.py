"""The waiting line: one place per key, first come first served; the keys of a host that admits none step aside (I9)."""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from operator import attrgetter

from postroom.resources.entries import Demand, Stage


class Line:
    """Demands that wait for budget and an opening."""

    def __init__(self) -> None:
        self._fresh: OrderedDict[Demand, None] = OrderedDict()
        self._troubled: OrderedDict[Demand, None] = OrderedDict()
        self._parked: dict[Hashable, OrderedDict[Demand, None]] = {}
        self._back = itertools.count(1)
        self._front = itertools.count(-1, -1)

    def __len__(self) -> int:
        """Return how many wait for budget or an opening; parked ones wait for neither."""
        return len(self._fresh) + len(self._troubled)

    def append(self, demand: Demand) -> None:
        """Add a demand at the end."""
        demand.stage = Stage.QUEUED
        demand.sequence = next(self._back)
        self._lane(demand)[demand] = None

    def prepend(self, demand: Demand) -> None:
        """Put a demand back to the front: it had its turn, and the turn was taken from it."""
        demand.stage = Stage.QUEUED
        demand.sequence = next(self._front)
        lane = self._lane(demand)
        lane[demand] = None
        lane.move_to_end(demand, last=False)

    def remove(self, demand: Demand) -> None:
        """Take a demand out, wherever it waits."""
        if demand.stage is Stage.PARKED:
            parked = self._parked[demand.host]
            del parked[demand]
            if not parked:
                del self._parked[demand.host]
        else:
            del self._lane(demand)[demand]

    def park(self, demand: Demand) -> None:
        """Let a demand step aside until its host admits it."""
        self.remove(demand)
        demand.stage = Stage.PARKED
        self._parked.setdefault(demand.host, OrderedDict())[demand] = None

    def unpark(self, host: Hashable, count: int) -> None:
        """Let up to ``count`` demands of a host back into the line, at its end."""
        for demand in self._parked_on(host, count):
            self.remove(demand)
            self.append(demand)

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
        return heapq.merge(self._fresh, self._troubled, key=attrgetter("sequence"))

    def _parked_on(self, host: Hashable, most: int | None = None) -> list[Demand]:
        parked = self._parked.get(host)
        return list(itertools.islice(parked, most)) if parked else []

    def _lane(self, demand: Demand) -> OrderedDict[Demand, None]:
        return self._troubled if demand.troubled else self._fresh
