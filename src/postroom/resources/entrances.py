"""Who is inside of ``async with pool``: the last one to leave closes it."""

import asyncio
import weakref
from typing import Any, Final

_MOST_STALE: Final = 100


class Entrances:
    """Counts those who are inside, round by round: a pool that was closed and opened again is in its next round.

    An exit belongs to the latest entrance of the same task, or else to the latest of this round. So one who entered
    before an explicit ``aclose()`` and leaves after the pool was opened again does not close it for the others.
    """

    def __init__(self) -> None:
        self._round = 0
        self._inside: list[tuple[weakref.ref[asyncio.Task[Any]] | None, int]] = []

    def enter(self) -> None:
        """Note that the current task enters."""
        task = asyncio.current_task()
        self._inside.append((None if task is None else weakref.ref(task), self._round))

    def leave(self) -> bool:
        """Note that the current task leaves. Returns whether it was the last one of this round."""
        task = asyncio.current_task()
        places = range(len(self._inside))
        mine = [place for place in places if (known := self._inside[place][0]) is not None and known() is task]
        others = [place for place in places if self._inside[place][1] == self._round]
        place = next(reversed(mine or others), None)
        if place is None:
            return True
        _, of_round = self._inside.pop(place)
        return of_round == self._round and all(other != self._round for _, other in self._inside)

    def start_round(self) -> None:
        """Note that the pool is opened again."""
        self._round += 1
        alive = [each for each in self._inside if each[0] is not None and each[0]() is not None]
        self._inside = alive[-_MOST_STALE:]
