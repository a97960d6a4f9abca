"""Which of several queues is asked next, and for how long: by weight where messages are, in turn where none are."""

import heapq
from collections.abc import Iterable
from typing import Final, Generic

import msgspec
from typing_extensions import TypeVar

from postroom.consumer.demand import Pause
from postroom.options import Polling

_FIRST_REST: Final = 1.0
"""Seconds between the first two looks at a queue that has become idle; doubles with every look that finds nothing."""
_LOOK: Final = 1.0
"""Seconds that SQS holds a look open: a receive without a wait asks only some of its servers, and can miss a message
(sqs-short-and-long-polling.html)."""
_FULL: Final = 0.5
"""Seconds between two times at which a queue would be looked at that holds too much."""
_AT_ONCE: Final = 0.5
"""The part of the wait that was asked for: an empty answer that comes sooner is an answer at once."""
_FIRST_PACE: Final = 0.1
_LONGEST_PACE: Final = 2.0
"""Seconds between long polls that are answered at once with nothing; doubles up to the longest."""

I = TypeVar("I", default=object)  # noqa: E741 - what the consumer keeps of a queue


class Station(Generic[I]):
    """One queue in the rota. Several turns of it may be out, but one look at most."""

    __slots__ = (
        "backoff", "due", "expected", "fifo", "full", "gone", "inlet", "look", "out", "rest", "served", "weight",
    )  # fmt: skip

    def __init__(self, inlet: I, *, weight: float = 1.0, fifo: bool = False) -> None:
        self.inlet: I = inlet
        """What the consumer keeps of the queue."""
        self.weight: float = weight
        self.fifo: bool = fifo
        self.served: float = 0.0
        """Messages received, divided by the weight: its place in virtual time."""
        self.expected: bool = False
        """Whether it has messages, as far as is known."""
        self.full: bool = False
        """Whether the last answer was as large as it could be: then several receives at once bring more."""
        self.out: int = 0
        """Turns that are out."""
        self.look: Look[I] | None = None
        """The look that is out."""
        self.due: float | None = None
        """When it is looked at next; None while it is not idle, or is being looked at."""
        self.rest: float = 0.0
        """Seconds between the last two looks that found nothing."""
        self.backoff: float = 0.0
        """Seconds between the last two receives that failed."""
        self.gone: bool = False
        """Whether it was removed."""


class Look(msgspec.Struct, Generic[I], frozen=True, eq=False):
    """Ask a queue that is not known to have messages."""

    station: Station[I]
    wait: float
    """Seconds that SQS may hold the receive open."""


class Rota(Generic[I]):
    """Decides which queue is asked next. Pure: no await, no clock, no I/O.

    Queues that are known to have messages take turns for the room that there is, by weight; their receives wait for
    nothing. All others are looked at: by a long poll that stays where there are at most ``watched`` queues, otherwise
    in turn, ever more rarely.

    Args:
        polling: how messages are asked for.
        watched: looks that may be outstanding.
        rest: the longest time in seconds between two looks at a queue that is idle.
    """

    def __init__(self, polling: Polling, *, watched: int, rest: float) -> None:
        self._polling = polling
        self._most = max(1, polling.pollers - 1)
        self._watched = watched
        self._most_rest = rest
        self._stations: dict[Station[I], None] = {}
        self._expecting: dict[Station[I], None] = {}
        self._idle: list[tuple[float, int, Station[I]]] = []
        self._entered = 0
        self._served = 0.0
        """The place in virtual time of the queue that had the last turn: one that was idle begins from there."""

    def __len__(self) -> int:
        return len(self._stations)

    @property
    def watches_all(self) -> bool:
        """Whether a long poll can stay at every queue."""
        return len(self._stations) <= self._watched

    @property
    def expecting(self) -> Iterable[Station[I]]:
        """The queues that are known to have messages."""
        return self._expecting

    def add(self, station: Station[I], now: float) -> None:
        """Take a queue in, or back. It is looked at at once."""
        self._stations[station] = None
        station.look = None
        station.gone = False
        station.rest = station.backoff = 0.0
        self._rests(station, now)

    def remove(self, station: Station[I]) -> None:
        """Ask a queue for nothing more. What is outstanding goes on."""
        self._stations.pop(station, None)
        self._expecting.pop(station, None)
        station.expected = False
        station.due = None
        station.gone = True

    # -- turns --------------------------------------------------------------------------------------------------

    def turn(self, limit: int, *, scouting: bool = False) -> Station[I] | None:
        """Give the next turn to a queue that has messages: it is asked for ``limit`` of them. None where there is none.

        A queue that brought less than it was asked for has one receive outstanding at a time. None of several has all
        pollers: if it stops answering, the others go on. ``scouting`` chooses among standard queues, and is no part of
        a queue's share: what it brings is parked, as a rule.
        """
        best: Station[I] | None = None
        for station in self._expecting:
            # A second receive at a queue that is nearly empty would bring the same nothing twice.
            may = station.full and (station.out < self._most or len(self._stations) == 1)
            may = (may or not station.out) and not (scouting and station.fifo)
            if may and (best is None or station.served < best.served):
                best = station
        if best is not None:
            best.out += 1
            if not scouting:
                self._served = best.served
                # Charged in advance, for the full limit: until the answer comes, the others have
                # their turns.
                best.served += limit / best.weight
        return best

    def answered(self, station: Station[I], count: int, limit: int, now: float, *, scouting: bool = False) -> None:
        """Note what a turn brought."""
        station.out -= 1
        station.backoff = 0.0
        if not scouting:
            # What it was charged for and did not bring is given back.
            station.served -= (limit - count) / station.weight
        self._brought(station, count, limit, now, roomy=False)

    def is_silent(self, station: Station[I]) -> None:
        """Note that a turn is not answered: its queue gets no further one until one of those that are out ends."""
        station.full = False

    # -- looks --------------------------------------------------------------------------------------------------

    def look(self, now: float) -> Look[I] | Pause:
        """Return the queue that is looked at now, or how long none is."""
        idle = self._idle
        while idle:
            due, _, station = idle[0]
            # Entries are not taken out of the middle of the heap; the stale ones are skipped here.
            if station.due != due:
                heapq.heappop(idle)  # it was removed, or turned out to have messages
            elif due > now:
                return Pause(due - now)
            else:
                heapq.heappop(idle)
                station.due = None
                station.look = look = Look(station, self._wait_at(station))
                return look
        return Pause()

    def looked(self, look: Look[I], count: int, limit: int, now: float, *, seconds: float, roomy: bool) -> None:
        """Note what a look brought after some seconds. ``roomy`` tells that there is room for as much again."""
        station = look.station
        station.served += count / station.weight
        if station.look is not look:
            return  # it was removed and taken in again meanwhile
        station.look = None
        station.backoff = 0.0
        if count:
            self._brought(station, count, limit, now, roomy=roomy)
            if not station.expected and self._polling.gather:
                self._rests(station, max(now, now - seconds + self._polling.gather))
        elif not station.expected:
            station.rest = self._rest_after(look, station, seconds)
            self._rests(station, now + station.rest)

    def put_off(self, look: Look[I], now: float) -> None:
        """Note that a queue that holds too much was not looked at. That tells nothing of whether it is idle."""
        station = look.station
        if station.look is look:
            station.look = None
            self._rests(station, now + _FULL)

    def failed(self, turn: Station[I] | Look[I], now: float, limit: int = 0) -> float:
        """Note that a turn or a look failed. Returns the seconds until its queue is asked again.

        ``limit`` is what a turn was charged for: its queue gives nothing up for it.
        """
        if isinstance(turn, Look):
            station = turn.station
            if station.look is turn:
                station.look = None
        else:
            station = turn
            station.out -= 1
            station.served -= limit / station.weight
        # Turns that were out together fail together: for each of them to double the pause, one lost connection would
        # cost the queue half a minute.
        if station.backoff and station.due is not None and station.due > now:
            return station.due - now
        polling = self._polling
        station.backoff = min(polling.max_backoff, 2 * station.backoff or polling.backoff)
        self._expecting.pop(station, None)
        station.expected = station.full = False
        self._rests(station, now + station.backoff)
        return station.backoff

    # -- inside -------------------------------------------------------------------------------------------------

    def _wait_at(self, station: Station[I]) -> float:
        if self.watches_all:
            return self._polling.wait
        return min(_LOOK, self._polling.wait) if station.rest else 0.0  # at first all are looked at in passing

    def _rest_after(self, look: Look[I], station: Station[I], seconds: float) -> float:
        """Return for how long a queue is left alone after a look that found nothing."""
        if not self.watches_all:
            return min(self._most_rest, 2 * station.rest or _FIRST_REST)
        if look.wait > 0 and seconds >= _AT_ONCE * look.wait:
            return 0.0
        return min(_LONGEST_PACE, 2 * station.rest or _FIRST_PACE)

    def _brought(self, station: Station[I], count: int, limit: int, now: float, *, roomy: bool) -> None:
        """Expect more of a queue that brought messages, or leave it to the looks when it is likely to be empty."""
        station.full = count >= limit
        if count:
            station.rest = 0.0
        if station.gone:
            return
        if station.full or (count and not roomy):
            station.due = None
            if not station.expected:
                station.expected = True
                # Turns are not saved up while a queue is idle: it would keep all others from theirs
                # afterwards.
                station.served = max(station.served, self._served)
                self._expecting[station] = None
        else:
            self._expecting.pop(station, None)
            station.expected = False
            self._rests(station, now)

    def _rests(self, station: Station[I], until: float) -> None:
        """Let a queue be looked at from some time on."""
        if station.look is not None or station.gone:
            return
        station.due = until
        self._entered += 1
        # The number decides between equal times: stations have no order, and the oldest goes first.
        heapq.heappush(self._idle, (until, self._entered, station))
