"""The oracles see: every wrong core is caught, by the seed that caught it first."""

import pytest

from simulation.core.mutants import MUTANTS
from simulation.core.schedules import run_core_schedule


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_core_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that breaks one promise does not survive the schedule that found it."""
    plant, seed = MUTANTS[name]
    plant(monkeypatch)
    found = run_core_schedule(seed).violation
    assert found is not None, f"{name} survived seed {seed}"
    assert not found.startswith("Traceback"), f"{name} crashes, which tells nothing of the oracles:\n{found}"
