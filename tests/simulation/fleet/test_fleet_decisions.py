"""Whole consumers of a fleet: a bounded slice of the schedules, a death at every await, and the planted defects."""

import pytest

from simulation.fleet.whole import run_whole_schedule, whole_violations
from simulation.fleet.whole_mutants import WHOLE_MUTANTS

FOUND_BY = {
    "nothing is restored": 1,
    "versions are counted": 60,
    "what a store remembers is the latest": 14,
    "decisions are read once": 0,
    "a decision is said once": 12,
    "members stay": 3,
    "hints last": 0,
    "every replica tries": 0,
    "everyone has the turn": 0,
    "a host that was down stays down": 0,
}
"""A seed that finds each defect."""

AWAITS = (1, 2, 6, 14, 33)
"""Those of the first replica's calls to the store at which it dies: a start, an exchange, a decision, a report."""


@pytest.mark.parametrize("seed", [0, 4])
def test_decisions_and_outages_hold_whatever_happens(seed: int) -> None:
    """F10 to F12 hold for whole consumers through losses of the store, crashes and dead hosts."""
    assert whole_violations(seed) == ()


@pytest.mark.parametrize("crash_at", AWAITS)
def test_a_replica_may_die_at_any_await_of_its_calls(crash_at: int) -> None:
    """Before or after the store has done what it was asked for, a crash breaks no promise."""
    result = run_whole_schedule(5, crash_at=crash_at)
    assert result.broken == ()
    assert result.facts["crash"] >= 1


def test_a_decision_outlives_three_losses_in_a_row() -> None:
    """F11: found by search: replicas that come between losses of the store take nothing for taken back."""
    result = run_whole_schedule(77, crash_at=78)
    assert result.broken == ()
    assert result.facts["flush"] == 3


def test_the_same_seed_gives_the_same_run() -> None:
    """A seed that is found repeats."""
    assert run_whole_schedule(1) == run_whole_schedule(1)


def test_every_defect_has_a_seed() -> None:
    """No defect is planted without a schedule that finds it."""
    assert set(FOUND_BY) == set(WHOLE_MUTANTS)


@pytest.mark.parametrize("name", WHOLE_MUTANTS)
def test_a_planted_defect_is_found(name: str) -> None:
    """A fleet that breaks one promise does not survive the schedule that found it."""
    plant, promise, _ = WHOLE_MUTANTS[name]
    with plant():
        found = [text for text in whole_violations(FOUND_BY[name]) if text.startswith(promise)]
    assert found, f"{name} survived"
