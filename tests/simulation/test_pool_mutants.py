"""The oracles see: every wrong pool is caught within a bounded number of schedules."""

import gc
from collections.abc import Iterator

import pytest

from simulation.pool_mutants import MUTANTS
from simulation.pool_schedules import run_pool_schedule

SEEDS = 2_000

# Wrong pools leave things behind, and each says so in its own way.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """Collect what a wrong pool left while its warnings are still ignored."""
    yield
    gc.collect()


def first_catch() -> int | None:
    """Return the first seed that finds something."""
    return next((seed for seed in range(SEEDS) if run_pool_schedule(seed).violation is not None), None)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_pool_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that breaks one promise does not survive the schedules."""
    MUTANTS[name](monkeypatch)
    assert first_catch() is not None, f"{name} survived {SEEDS} schedules"
