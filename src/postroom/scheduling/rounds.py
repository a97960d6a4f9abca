"""Lanes in the order of the rounds in which it is their turn."""

from collections import deque
from heapq import heappop, heappush
from typing import Generic

from typing_extensions import TypeVar

from postroom.scheduling.tickets import Lane, Place, Ticket

# Looked up for every message: on Python 3.11 the member of an enum costs as much as a call.
_NOWHERE, _IN_LINE = Place.NOWHERE, Place.IN_LINE

T = TypeVar("T", bound=Ticket, default=Ticket)


class Rounds(Generic[T]):
    """The lines of one class of lanes, one line per round, the lowest round first.

    In a textbook deficit round robin a lane that owes three quanta is looked at and passed over three times. Here it
    stands in the line of the round in which its debt is paid, so that every decision takes the same few steps, however
    long the jobs are and however small the quantum is. A lane that moves leaves a stale entry behind, which is skipped
    when it surfaces.
    """

    __slots__ = ("_lines", "_over", "numbers")

    def __init__(self, *, over: bool) -> None:
        self._over = over
        self._lines: dict[int, deque[Lane[T]]] = {}
        self.numbers: list[int] = []
        """The rounds that have a line, as a heap. Empty when no lane stands here."""

    def __len__(self) -> int:
        """Entries that stand here, stale ones included."""
        return sum(len(line) for line in self._lines.values())

    def put(self, lane: Lane[T], number: int) -> None:
        """Let a lane stand at the end of a round's line."""
        lane.place = _IN_LINE
        lane.round = number
        lane.over = self._over
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = deque()
            heappush(self.numbers, number)
        line.append(lane)

    def first(self) -> Lane[T] | None:
        """Return the lane that is next here, the one with the lowest round; None when none stands here."""
        numbers = self.numbers
        while numbers:
            number = numbers[0]
            line = self._lines[number]
            while line:
                lane = line[0]
                if lane.place is _IN_LINE and lane.round == number and lane.over is self._over:
                    return lane
                line.popleft()
            del self._lines[number]
            heappop(numbers)
        return None

    def take(self, lane: Lane[T]) -> None:
        """Remove the lane that ``first`` found."""
        line = self._lines[lane.round]
        line.popleft()
        if not line:  # at once: while no round has a line, there is nothing to look for
            del self._lines[lane.round]
            heappop(self.numbers)
        lane.place = _NOWHERE
