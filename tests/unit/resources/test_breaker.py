"""Negative entries and host breakers, as plain functions of time."""

import random

import pytest

from postroom.options import OpenBackoff
from postroom.resources.breaker import TRIP_AFTER, Cooling, Hosts
from postroom.resources.causes import Cause
from postroom.resources.identity import Identity

BACKOFF = OpenBackoff(base=1.0, cap=8.0, permanent=60.0)
DOWN = OSError("down")


def cooling(remember: int = 100) -> Cooling:
    """Return an empty memory."""
    return Cooling(BACKOFF, remember, random.Random(1))


def key(number: int) -> Identity:
    """Return some key."""
    return (int, number)


def hosts(remember: int = 100) -> Hosts:
    """Return hosts of which nothing is known."""
    return Hosts(BACKOFF, remember, random.Random(1), probe_deadline=10.0)


def trip(breakers: Hosts, now: float = 0.0) -> float:
    """Let enough keys fail on host "h", and return for how long it is left alone."""
    for _ in range(TRIP_AFTER):
        breakers.started("h", now)
    for number in range(TRIP_AFTER):
        breakers.failed("h", key(number), Cause(DOWN, None), now, probe=False)
    return breakers.remaining("h", now)


def test_pauses_grow_with_full_jitter_up_to_the_cap() -> None:
    """The n-th pause lies between zero and base times two to the n-1, never above the cap."""
    for attempt, ceiling in enumerate([1, 2, 4, 8, 8, 8], start=1):
        pauses = []
        for seed in range(200):
            memory = Cooling(BACKOFF, 10, random.Random(seed))
            # Minutes apart: a pause is no longer than the outage has lasted.
            times = [100.0 * number for number in range(attempt)]
            pauses.append([memory.failed(key(1), None, Cause(DOWN, None), permanent=False, now=at) for at in times][-1])
        assert max(pauses) <= ceiling
        assert max(pauses) > 0.8 * ceiling
        assert min(pauses) < 0.2 * ceiling


def test_no_pause_is_longer_than_the_outage_has_lasted() -> None:
    """Else a tenant that drew short pauses in the beginning would wait for a multiple of the outage after its end."""
    for seed in range(200):
        memory, now = Cooling(BACKOFF, 10, random.Random(seed)), 10.0
        while now < 100.0:
            pause = memory.failed(key(1), None, Cause(DOWN, None), permanent=False, now=now)
            assert pause <= max(BACKOFF.base, now - 10.0)
            now += max(pause, 0.01)


def test_a_thousand_failures_do_not_overflow() -> None:
    """The exponent is bounded."""
    memory = cooling()
    for _ in range(2_000):
        assert memory.failed(key(1), None, Cause(DOWN, None), permanent=False, now=0.0) <= 8.0


def test_a_permanent_failure_pauses_for_long() -> None:
    """An unknown tenant is not asked about again for the permanent pause."""
    memory = cooling()
    assert memory.failed(key(1), None, Cause(LookupError(), None), permanent=True, now=5.0) == 60.0
    assert memory.remaining(key(1), 64.0) == 1.0
    assert memory.remaining(key(1), 65.0) == 0.0
    record = memory.find(key(1))
    assert record is not None
    assert (record.permanent, record.cause is not None and record.cause.text) == (True, "LookupError")


def test_success_forgets() -> None:
    """After a success the next failure counts as the first."""
    memory = cooling()
    memory.failed(key(1), None, Cause(DOWN, None), permanent=True, now=0.0)
    memory.forget(key(1))
    assert memory.remaining(key(1), 0.0) == 0.0
    assert len(memory) == 0


def test_room_on_a_full_server_ends_the_pauses_of_a_few_that_it_refused() -> None:
    """Of two at a time: not of what failed for another reason, nor elsewhere, nor when another reason is over."""

    class FullError(Exception):
        sqlstate = "53300"

    memory = cooling()
    failures = {0: ("h", FullError()), 1: ("other", FullError()), 2: ("h", DOWN), 3: (None, FullError())}
    failures |= dict.fromkeys(range(4, 8), ("h", FullError()))
    for number, (host, error) in failures.items():
        memory.failed(key(number), None, Cause(error, None), permanent=False, now=0.0, host=host, key=number)
    now = min(memory.remaining(key(number), 0.0) for number in failures) / 2
    invited, paused = [], [set(failures)]
    for number in (2, 3, 9, 0, 0, 0):
        invited.append(memory.found_room(key(number), now))
        paused.append({each for each in failures if memory.remaining(key(each), now)})
    everything, elsewhere = set(failures), {1, 2, 3}
    assert paused == [*[everything] * 4, everything - {0, 4}, {7, *elsewhere}, elsewhere]
    assert invited == [(), (), (), (0, 4), (5, 6), (7,)]


def test_the_oldest_failures_are_forgotten_first() -> None:
    """I10: a flood of invented tenants takes a bounded place, and a repeated failure counts as new."""
    memory = cooling(remember=3)
    for number in (1, 2, 3, 1, 4):
        memory.failed(key(number), None, Cause(LookupError(), None), permanent=True, now=float(number))
    assert [memory.find(key(number)) is not None for number in (1, 2, 3, 4)] == [True, False, True, True]
    for number in range(10_000):
        memory.failed(key(number), None, Cause(LookupError(), None), permanent=True, now=0.0)
    assert len(memory) == 3


def test_old_failures_are_purged() -> None:
    """What failed long ago counts as a first failure when it fails again."""
    memory = cooling()
    memory.failed(key(1), None, Cause(DOWN, None), permanent=False, now=0.0)
    memory.purge(100.0)
    assert memory.find(key(1)) is not None
    memory.purge(200.0)
    assert memory.find(key(1)) is None


def test_distrust_outlives_the_sweeper() -> None:
    """Who is not trusted stays so for as long as a failure would be remembered, and is not left alone for it."""
    memory = cooling()
    memory.distrust(key(1), None, now=1_000.0)
    memory.purge(1_005.0)
    record = memory.find(key(1))
    assert record is not None
    assert record.verify
    assert memory.remaining(key(1), 1_000.0) == 0.0
    assert memory.count(1_000.0) == 0
    memory.purge(2_000.0)
    assert len(memory) == 0


def test_a_new_host_gets_few_opens_at_once() -> None:
    """No more opens are under way than would trip the breaker."""
    breakers = hosts()
    started = 0
    while breakers.room("h", 0.0):
        breakers.started("h", 0.0)
        started += 1
    assert started == TRIP_AFTER


def test_a_host_that_answers_gets_more() -> None:
    """Each success lets one more open run beside the others."""
    breakers = hosts()
    for expected in range(TRIP_AFTER + 1, TRIP_AFTER + 20):
        breakers.started("h", 0.0)
        breakers.succeeded("h", probe=False)
        assert breakers.room("h", 0.0) == expected


def test_several_failing_keys_trip_the_breaker_once() -> None:
    """Then nothing is tried until the pause is over, and half open one probe, only one."""
    breakers = hosts()
    pause = trip(breakers)
    assert 1.0 <= pause <= 2.0
    assert breakers.room("h", pause - 0.001) == 0
    assert breakers.room("h", pause) == 1
    assert breakers.started("h", pause)
    assert breakers.room("h", pause) == 0


def test_one_failing_tenant_does_not_trip_the_breaker_of_its_neighbours() -> None:
    """Failures are counted per key: I9."""
    breakers = hosts()
    for _ in range(50):
        breakers.started("h", 0.0)
        assert not breakers.failed("h", key(1), Cause(DOWN, None), 0.0, probe=False)
    assert breakers.room("h", 0.0) == TRIP_AFTER - 1


def test_a_success_in_between_starts_the_count_anew() -> None:
    """Only failures without a success between them add up."""
    breakers = hosts()
    for number in range(50):
        breakers.started("h", 0.0)
        if number % 4 == 3:
            breakers.succeeded("h", probe=False)
        else:
            assert not breakers.failed("h", key(number), Cause(DOWN, None), 0.0, probe=False)
    assert breakers.remaining("h", 0.0) == 0.0


def test_the_pauses_between_probes_grow_with_the_trouble_and_a_success_ends_it() -> None:
    """Twice the base at first, then a thirtieth of the time for which the host has been down, up to the cap."""
    breakers = hosts()
    trip(breakers)
    for now in (10.0, 59.0, 120.0, 210.0, 3_600.0):
        ceiling = min(8.0, max(2.0, now / 30))
        probe = breakers.started("h", now)
        assert breakers.failed("h", key(1), Cause(DOWN, None), now, probe=probe)
        assert ceiling / 2 <= breakers.remaining("h", now) <= ceiling
    probe = breakers.started("h", 3_700.0)
    breakers.succeeded("h", probe=probe)
    assert breakers.remaining("h", 3_700.0) == 0.0
    assert breakers.room("h", 3_700.0) > TRIP_AFTER


def test_a_stuck_probe_does_not_hold_the_breaker_half_open_for_ever() -> None:
    """After its deadline another probe is admitted."""
    breakers = hosts()
    now = trip(breakers)
    breakers.started("h", now)
    assert breakers.room("h", now + 9.9) == 0
    assert breakers.room("h", now + 10.0) == 1


def test_a_straggler_does_not_end_somebody_elses_probe() -> None:
    """An open that began before the trip may end during the probe: still one probe."""
    breakers = hosts()
    breakers.started("h", 0.0)
    for _ in range(TRIP_AFTER - 1):
        breakers.started("h", 0.0)
    for number in range(TRIP_AFTER):
        breakers.started("h", 0.0)
        breakers.failed("h", key(number), Cause(DOWN, None), 0.0, probe=False)
    now = breakers.remaining("h", 0.0)
    assert breakers.started("h", now)
    breakers.undecided("h", probe=False)
    assert breakers.room("h", now) == 0
    breakers.undecided("h", probe=True)
    assert breakers.room("h", now) == 1


def test_hosts_are_bounded_too() -> None:
    """I10: idle hosts are forgotten, oldest first; a host with opens under way is kept."""
    breakers = hosts(remember=3)
    breakers.started("kept", 0.0)
    for number in range(1_000):
        breakers.started(number, 0.0)
        breakers.succeeded(number, probe=False)
    assert len(breakers) == 3
    breakers.purge(1e6)
    assert len(breakers) == 1
    assert breakers.room("kept", 0.0) == TRIP_AFTER - 1


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "undecided"])
def test_contexts_without_a_host_have_no_breaker(outcome: str) -> None:
    """Host None is no host."""
    breakers = hosts()
    for number in range(20):
        assert not breakers.started(None, 0.0)
        if outcome == "failed":
            assert not breakers.failed(None, key(number), Cause(DOWN, None), 0.0, probe=False)
        else:
            getattr(breakers, outcome)(None, probe=False)
    assert breakers.room(None, 0.0) > 0
    assert len(breakers) == 0


def test_a_host_that_is_left_alone_is_not_purged() -> None:
    """Its last open may have begun long ago, and failed only now: what was said of the pause holds."""
    breakers = hosts()
    assert trip(breakers) > 0
    later = 500.0
    assert breakers.started("h", later)
    breakers.failed("h", key(1), Cause(DOWN, None), later + 200.0, probe=True)
    pause = breakers.remaining("h", later + 200.0)
    assert pause > 0
    breakers.purge(later + 200.0)
    assert breakers.remaining("h", later + 200.0) == pause
