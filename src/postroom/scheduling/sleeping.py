"""Lanes that may have nothing before a time."""

from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, Generic

from typing_extensions import TypeVar

from postroom.scheduling.tickets import Lane, Ticket

T = TypeVar("T", bound=Ticket, default=Ticket)

_ROOM: Final = 64
"""Entries from which stale ones are looked for."""


class Sleepers(Generic[T]):
    """Lanes by the time at which they wake.

    A lane that is woken early, or sleeps longer than was said first, leaves a stale entry behind. Stale entries are
    skipped when they surface, and removed whenever the heap has doubled. A lane that sleeps until it is woken has no
    entry here.
    """

    __slots__ = ("_clean_at", "_tie", "beds")

    def __init__(self) -> None:
        self.beds: list[tuple[float, int, Lane[T]]] = []
        """A heap of times, and the lanes that wake then; stale entries included."""
        self._clean_at = _ROOM
        self._tie = count()

    def put(self, lane: Lane[T], until: float) -> None:
        """Note that a lane sleeps until a time, whatever was said before."""
        lane.asleep_until = until
        if len(self.beds) >= self._clean_at:
            self.beds[:] = [bed for bed in self.beds if bed[2].asleep_until == bed[0]]
            heapify(self.beds)
            self._clean_at = max(_ROOM, 2 * len(self.beds))
        heappush(self.beds, (until, next(self._tie), lane))

    def due(self, now: float) -> list[Lane[T]]:
        """Take out the lanes that are due."""
        due: list[Lane[T]] = []
        while self.beds and self.beds[0][0] <= now:
            until, _, lane = heappop(self.beds)
            if lane.asleep_until == until:
                due.append(lane)
        return due

    def next(self) -> float | None:
        """Return when the next lane wakes; None when none sleeps until a time."""
        while self.beds and self.beds[0][2].asleep_until != self.beds[0][0]:
            heappop(self.beds)
        return self.beds[0][0] if self.beds else None
