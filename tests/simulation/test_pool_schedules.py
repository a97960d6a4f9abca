"""A bounded slice of the pool's fault schedules. A soak runner takes many longer."""

from functools import cache

import pytest

from simulation.pool_schedules import run_pool_schedule

SEEDS = 250
SLICE = 125

schedule = cache(run_pool_schedule)
"""A schedule that other tests here look at as well."""


@pytest.mark.parametrize("first", range(0, SEEDS, SLICE))
def test_the_invariants_hold_whatever_fails_and_whenever(first: int) -> None:
    """I1 to I10 hold in every seeded schedule; a failure names the seed that repeats it."""
    for seed in range(first, first + SLICE):
        outcome = schedule(seed)
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


def test_a_seed_repeats_its_schedule_exactly() -> None:
    """The same seed gives the same events at the same times; other seeds give others."""
    assert [run_pool_schedule(seed) for seed in range(20)] == [run_pool_schedule(seed) for seed in range(20)]
    assert len({run_pool_schedule(seed).digest for seed in range(20)}) == 20


def test_the_schedules_reach_what_they_are_for() -> None:
    """Everything that can go wrong does so somewhere in a few hundred seeds."""
    wanted = {"open", "close", "lease", "cancel", "invalidate", "murder", "suspect", "revived", "unhealthy", "too late"}
    wanted |= {"PoolExhaustedError", "ResourceOpenError", "ResourceUnhealthyError", "aged", "tripped", "server full"}
    for seed in range(500):
        wanted -= {what for what, count in schedule(seed).counts.items() if count}
        if not wanted:
            return
    raise AssertionError(wanted)
