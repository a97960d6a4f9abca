"""The oracles see: every wrong pool is caught within a bounded number of schedules."""

import gc
from collections.abc import Iterator

import pytest

from simulation.pool_mutants import MUTANTS
from simulation.pool_schedules import run_pool_schedule

SEEDS = 2_000
FOUND_LATE = {
    "admits_two_probes": 1_261,
    "revives_what_was_reported_broken": 163,
    "never_closes_what_is_idle": 69,
    "counts_waiters_not_keys": 62,
    "drops_the_lease_of_a_cancelled_waiter": 49,
    "hammers_what_failed": 37,
    "opens_everything_at_once": 26,
    "hands_out_an_open_older_than_its_invalidation": 22,
    "forgets_who_waits_at_a_gate": 21,
    "opens_on_after_the_close": 19,
    "leaves_parked_demands_behind": 19,
    "evicts_nothing_for_a_host": 14,
}
"""Wrong pools that many schedules do not notice, with the first one that does."""

# Wrong pools leave things behind, and each says so in its own way.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """Collect what a wrong pool left while its warnings are still ignored."""
    yield
    gc.collect()


def first_catch(since: int) -> int | None:
    """Return the first seed from one on that finds something."""
    return next((seed for seed in range(since, SEEDS) if run_pool_schedule(seed).violation is not None), None)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_pool_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that breaks one promise does not survive the schedules."""
    MUTANTS[name](monkeypatch)
    assert first_catch(FOUND_LATE.get(name, 0)) is not None, f"{name} survived {SEEDS} schedules"
