"""A bounded slice of the fleet's schedules, and the planted defects. A soak runner takes many longer."""

import pytest

from simulation.fleet.mutants import MUTANTS
from simulation.fleet.schedules import fleet_violations, run_fleet_schedule

FOUND_BY = {
    "the store grants one too many": 0,
    "the lease counts from the answer": 3,
    "a promise is not kept": 4,
    "a late request undoes a later one": 0,
    "a loss of memory goes unnoticed": 8,
    "slots do not expire": 0,
    "idle slots are kept": 4,
    "the first takes all": 3,
    "nothing rotates": 3,
    "turns go by the clock": 312,
    "every message asks": 2,
    "a lost lease is not noticed": 6,
    "the fallback is not divided": 12,
    "stop does not stop": 3,
    "starts are saved up": 1,
    "no margin": 0,
}
"""A seed that finds each defect soon: the first one, or a later one that takes less time."""

FOUND_BY_SEARCH = (
    7058,  # F5: with handlers as long as a lease, a turn that goes by the clock passed by a replica
    5000483,  # F1: a flush just as a replica was back that had run by the fallback: the store believed its claim
    3112,  # F4: what arrived a moment ago was counted as needed, while a slot was on its way
)


@pytest.mark.parametrize("first", range(0, 3, 3))
def test_the_promises_hold_whatever_happens(first: int) -> None:
    """F1 to F9 hold in every seeded schedule; a failure names the seed that repeats it."""
    for seed in range(first, first + 3):
        assert fleet_violations(seed) == (), f"seed {seed}"


@pytest.mark.parametrize("seed", FOUND_BY_SEARCH)
def test_what_was_found_by_search_stays_mended(seed: int) -> None:
    """A seed that once broke a promise breaks none."""
    assert fleet_violations(seed) == ()


def test_a_seed_repeats_its_schedule_exactly() -> None:
    """The same seed gives the same history."""
    assert run_fleet_schedule(1, history=True) == run_fleet_schedule(1, history=True)


def test_every_defect_has_a_seed() -> None:
    """No defect is planted without a schedule that finds it."""
    assert set(FOUND_BY) == set(MUTANTS)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name: str) -> None:
    """A fleet that breaks one promise does not survive the schedule that found it."""
    plant, promise, _ = MUTANTS[name]
    with plant():
        found = fleet_violations(FOUND_BY[name])
    assert found, f"{name} survived"
    assert found[0].startswith(promise)
