"""A bounded slice of the core's schedules. A soak runner takes many longer."""

from functools import cache

import pytest

from simulation.core.schedules import run_core_schedule

SEEDS = 150
SLICE = 75

schedule = cache(run_core_schedule)
"""A schedule that other tests here look at as well."""


@pytest.mark.parametrize("first", range(0, SEEDS, SLICE))
def test_the_promises_hold_whatever_happens_and_in_whatever_order(first: int) -> None:
    """Every oracle of ``watch`` holds in every seeded schedule; a failure names the seed that repeats it."""
    for seed in range(first, first + SLICE):
        outcome = schedule(seed)
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


def test_a_seed_repeats_its_schedule_exactly() -> None:
    """The same seed gives the same events at the same times; other seeds give others."""
    first, second = ([run_core_schedule(seed) for seed in range(20)] for _ in range(2))
    assert first == second
    assert len({outcome.digest for outcome in first}) == 20


def test_the_schedules_reach_what_they_are_for() -> None:
    """Everything that can happen to a message does so somewhere in a few hundred seeds."""
    ends = {"acked", "rejected", "dead"}
    between = {"parked", "deferred", "crowded", "recalled", "retried", "returned", "refused", "lost", "duplicate"}
    around = {"stop", "pause", "quarantine", "limit", "resume", "redrive", "broken", "unreachable", "host down"}
    missing = ends | between | around
    for seed in range(300):
        missing -= {what for what, count in schedule(seed).counts.items() if count}
        if not missing:
            return
    raise AssertionError(missing)


def test_messages_expire_somewhere() -> None:
    """Queues with a short retention period are among them."""
    assert any(schedule(seed).counts.get("expires") for seed in range(1_000))
