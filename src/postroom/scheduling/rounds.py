"""Lanes in the order of the rounds in which it is their turn."""

from collections import deque
from heapq import heappop, heappush
from typing import Final, Generic

from typing_extensions import TypeVar

from postroom.scheduling.tickets import NOWHERE, Lane, Ticket

NEVER: Final = 1 << 62
"""Later than any round."""

T = TypeVar("T", bound=Ticket, default=Ticket)


class Rounds(Generic[T]):
    """The lines of one class of lanes, one line per round, the lowest round first.

    In a textbook deficit round robin a lane that owes three quanta is looked at and passed over three times. Here it
    stands in the line of the round in which its debt is paid, so that every decision takes the same few steps, however
    long the jobs are and however small the quantum is. A lane that moves leaves a stale entry behind, which is skipped
    when it surfaces.
    """

    __slots__ = ("_lines", "_numbers", "_over")

    def __init__(self, *, over: bool) -> None:
        self._over = over
        self._lines: dict[int, deque[Lane[T]]] = {}
        self._numbers: list[int] = []

    def __len__(self) -> int:
        """Entries that stand here, stale ones included."""
        return sum(len(line) for line in self._lines.values())

    def put(self, lane: Lane[T], number: int) -> None:
        """Let a lane stand at the end of a round's line."""
        lane.round = number
        lane.over = self._over
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = deque()
            heappush(self._numbers, number)
        line.append(lane)

    def first(self) -> int:
        """Return the lowest round in which a lane stands; ``NEVER`` when none does."""
        numbers = self._numbers
        while numbers:
            number = numbers[0]
            line = self._lines[number]
            while line:
                lane = line[0]
                if lane.round == number and lane.over is self._over:
                    return number
                line.popleft()
            del self._lines[number]
            heappop(numbers)
        return NEVER

    def take(self, number: int) -> Lane[T]:
        """Remove and return the lane that :meth:`first` found in this round."""
        lane = self._lines[number].popleft()
        lane.round = NOWHERE
        return lane
