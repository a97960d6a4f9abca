"""Which of several queues is asked next: shares by weight, no starvation, and looks ever more rarely."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from postroom.consumer.demand import Pause
from postroom.consumer.rota import Look, Rota, Station
from postroom.options import Polling


class Line:
    """Queues with backlogs, asked as a rota says, in an order of its own making."""

    def __init__(self, seed: int, weights: dict[str, float], *, watched: int = 16, rest: float = 60.0) -> None:
        self.rng = Random(seed)
        self.rota: Rota[str] = Rota(Polling(), watched=watched, rest=rest)
        self.stations = {name: Station(name, weight=weight) for name, weight in weights.items()}
        self.backlog: Counter[str] = Counter()
        self.got: Counter[str] = Counter()
        self.out: list[tuple[Station[str], int]] = []
        self.now = 0.0
        for station in self.stations.values():
            self.rota.add(station, 0.0)

    def look_around(self) -> None:
        """Answer every look that is due, once for each queue."""
        for _ in self.stations:
            look = self.rota.look(self.now)
            if isinstance(look, Pause):
                return
            count = self._take(look.station.inlet, 2)
            self.rota.looked(look, count, 2, self.now, seconds=look.wait, roomy=False)

    def turns(self, count: int, *, at_once: int = 4) -> None:
        """Give turns, several of which are out at once and answered in any order."""
        for _ in range(count):
            self.now += 0.01
            self.look_around()
            limit = self.rng.randint(1, 10)
            if (station := self.rota.turn(limit)) is not None:
                self.out.append((station, limit))
            while len(self.out) >= at_once or (self.out and station is None):
                self._answer(self.out.pop(self.rng.randrange(len(self.out))))
        while self.out:
            self._answer(self.out.pop())

    def _answer(self, turn: tuple[Station[str], int]) -> None:
        station, limit = turn
        self.rota.answered(station, self._take(station.inlet, limit), limit, self.now)

    def _take(self, name: str, limit: int) -> int:
        count = min(limit, self.backlog[name])
        self.backlog[name] -= count
        self.got[name] += count
        return count


def judge_shares(seed: int) -> None:
    """Queues with endless backlogs get messages in proportion to their weights, whatever the order of the answers."""
    rng = Random(seed)
    weights = {f"q{number}": rng.choice([0.5, 1.0, 2.0, 5.0]) for number in range(rng.randint(2, 8))}
    line = Line(seed, weights)
    line.backlog.update(dict.fromkeys(weights, 10**9))
    line.turns(3_000, at_once=rng.randint(1, 8))
    per_weight = {name: line.got[name] / weight for name, weight in weights.items()}
    assert max(per_weight.values()) <= 1.15 * min(per_weight.values()), (weights, line.got)


def judge_newcomer(seed: int) -> None:
    """A queue that was idle for long has no credit: its backlog does not shut the others out."""
    line = Line(seed, {"old": 1.0, "new": 1.0})
    line.backlog["old"] = 10**9
    line.turns(2_000)
    line.backlog["new"] = 10**9
    line.now += 60.0
    before = line.got.copy()
    line.turns(400)
    since = line.got - before
    assert 0.8 <= since["old"] / since["new"] <= 1.25, since


def judge_emptied(seed: int) -> None:
    """Every message is received at last, of whatever queue."""
    rng = Random(seed)
    names = [f"q{number}" for number in range(rng.randint(1, 30))]
    line = Line(seed, dict.fromkeys(names, 1.0), watched=rng.randint(1, 10), rest=rng.choice([1.0, 30.0]))
    for _ in range(6):
        line.backlog.update({rng.choice(names): rng.randint(1, 40) for _ in range(5)})
        line.turns(rng.randint(1, 60), at_once=rng.randint(1, 8))
        line.now += rng.choice([0.0, 1.0, 60.0])
    for _ in range(40):
        line.now += 60.0
        line.turns(50)
    assert line.backlog.total() == 0


JUDGES = (judge_shares, judge_newcomer, judge_emptied)


@pytest.mark.parametrize("judge", JUDGES)
def test_the_rota_keeps_its_promises(judge: Callable[[int], None]) -> None:
    """Forty schedules of each kind."""
    _all(judge)


def _all(judge: Callable[[int], None]) -> None:
    for seed in range(40):
        judge(seed)


def _no_charge(self: Rota[str], limit: int, *, scouting: bool = False) -> Station[str] | None:
    station = next(iter(self.expecting), None)
    if station is not None:
        station.out += 1
        station.served += limit / station.weight
    return station


def _with_credit(self: Rota[str], station: Station[str], now: float) -> None:
    self._served = 0.0  # pyright: ignore[reportPrivateUsage]


def _never_again(self: Rota[str], station: Station[str], until: float) -> None:
    if until == 0.0:
        _rests(self, station, until)


_rests: Any = Rota._rests  # pyright: ignore[reportPrivateUsage]
_brought: Any = Rota._brought  # pyright: ignore[reportPrivateUsage]


def _brings_credit(self: Rota[str], station: Station[str], count: int, limit: int, now: float, *, roomy: bool) -> None:
    _with_credit(self, station, now)
    _brought(self, station, count, limit, now, roomy=roomy)


@pytest.mark.parametrize(
    ("name", "broken", "judge"),
    [
        ("turn", _no_charge, judge_shares),
        ("_brought", _brings_credit, judge_newcomer),
        ("_rests", _never_again, judge_emptied),
    ],
)
def test_a_broken_rota_is_found(
    name: str, broken: object, judge: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always the first queue, credit for idle time, and queues that are forgotten: each judge sees its own."""
    monkeypatch.setattr(Rota, name, broken)
    with pytest.raises(AssertionError):
        _all(judge)


def test_an_idle_queue_among_many_is_looked_at_ever_more_rarely() -> None:
    """After 1, 2, 4, 8 ... s, up to `rest`; one that brings a message begins again."""
    line = Line(0, {"a": 1.0, "b": 1.0}, watched=1, rest=10.0)
    pauses: list[float] = []
    for _ in range(7):
        line.look_around()
        pause = line.rota.look(line.now)
        assert isinstance(pause, Pause)
        pauses.append(pause.seconds or 0.0)
        line.now += pause.seconds or 0.0
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_a_queue_that_was_taken_out_and_in_again_has_one_look_at_a_time() -> None:
    """The look from before may still be out; when it ends it starts no second line of looks."""
    rota: Rota[str] = Rota(Polling(), watched=4, rest=60.0)
    station = Station("a")
    rota.add(station, 0.0)
    old = rota.look(0.0)
    assert isinstance(old, Look)
    rota.remove(station)
    rota.add(station, 1.0)
    new = rota.look(1.0)
    assert isinstance(new, Look)
    rota.looked(old, 0, 10, 2.0, seconds=2.0, roomy=True)
    assert rota.look(2.0) == Pause()
    rota.looked(new, 0, 10, 21.0, seconds=20.0, roomy=True)
    assert isinstance(rota.look(21.0), Look)
    assert rota.look(21.0) == Pause()


def test_a_queue_that_fails_is_left_alone_for_longer_each_time() -> None:
    """From `Polling.backoff` to `max_backoff`; an answer ends that."""
    rota: Rota[str] = Rota(Polling(backoff=1, max_backoff=5), watched=4, rest=60.0)
    station = Station("a")
    rota.add(station, 0.0)
    now, pauses = 0.0, list[float]()
    for _ in range(5):
        look = rota.look(now)
        assert isinstance(look, Look)
        pauses.append(rota.failed(look, now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 5, 5]


def test_turns_that_fail_together_are_one_failure() -> None:
    """As by one lost connection: the pause is the first one, whatever is out; the next failure in a row doubles it."""
    rota: Rota[str] = Rota(Polling(backoff=1, max_backoff=5, batch=10), watched=4, rest=60.0)
    station, other = Station("a"), Station("b")
    for each in (station, other):
        rota.add(each, 0.0)
        look = rota.look(0.0)
        assert isinstance(look, Look)
        rota.looked(look, 10, 10, 0.0, seconds=0.0, roomy=True)
    before = station.served
    turns = [turn for turn in (rota.turn(10) for _ in range(8)) if turn is station]
    assert len(turns) == 4
    assert [rota.failed(station, 0.25 * number, 10) for number in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert station.served == before  # it has its share of what comes once it works
    assert not isinstance(rota.look(0.99), Look)
    look = rota.look(1.0)
    assert isinstance(look, Look)
    assert rota.failed(look, 1.0) == 2.0
