"""Lanes that may have nothing before a time."""

from heapq import heappop, heappush
from itertools import count
from typing import Generic

from typing_extensions import TypeVar

from postroom.scheduling.tickets import Lane, Ticket

T = TypeVar("T", bound=Ticket, default=Ticket)


class Sleepers(Generic[T]):
    """Lanes by the time at which they wake. A lane whose time changed leaves a stale entry behind, which is skipped."""

    __slots__ = ("_beds", "_tie")

    def __init__(self) -> None:
        self._beds: list[tuple[float, int, Lane[T]]] = []
        self._tie = count()

    def __bool__(self) -> bool:
        return bool(self._beds)

    def put(self, lane: Lane[T], until: float) -> None:
        """Let a lane sleep until a time, whatever was said before."""
        lane.asleep_until = until
        heappush(self._beds, (until, next(self._tie), lane))

    def woken(self, now: float) -> list[Lane[T]]:
        """Wake the lanes whose time has come, and return them."""
        woken: list[Lane[T]] = []
        while self._beds and self._beds[0][0] <= now:
            until, _, lane = heappop(self._beds)
            if lane.asleep_until == until:
                lane.asleep_until = 0.0
                woken.append(lane)
        return woken

    def next(self) -> float | None:
        """Return when the next lane wakes; None when none sleeps."""
        while self._beds and self._beds[0][2].asleep_until != self._beds[0][0]:
            heappop(self._beds)
        return self._beds[0][0] if self._beds else None
