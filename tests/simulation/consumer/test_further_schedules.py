"""A slice of the schedules with further hardships, and whether the oracles would notice a defect."""

from collections import Counter
from pathlib import Path

import pytest

from simulation.consumer.further import FURTHER, further_violations, run_further_schedule
from simulation.consumer.further_mutants import FIRST, MUTANTS
from simulation.consumer.planting import Mutant, killed_by, table
from simulation.soak import oracle_of


@pytest.mark.parametrize("first", [FIRST])
def test_no_schedule_breaks_a_promise(first: int) -> None:
    """Every oracle of docs/proof.md; each hardship is met, and enough happens."""
    facts: Counter[str] = Counter()
    hardships: set[str] = set()
    for seed in range(first, first + 24):
        outcome = run_further_schedule(seed)
        assert not outcome.violations, f"seed {seed}: {outcome.violations[0]}\n{outcome.history.text()}"
        facts.update(outcome.facts)
        hardships.update(outcome.plan.hardships)
    assert hardships >= {name for name, _ in FURTHER}
    assert facts["handlers"] > 150
    assert facts["redelivered"] > 15


@pytest.mark.parametrize("seed", [850001408, 873004662])
def test_what_was_broken_once_is_whole(seed: int) -> None:
    """A message paid for the dead letter before it; one had its resources at its last receive, too late to wait."""
    assert run_further_schedule(seed).violations == ()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_oracles_notice_a_planted_defect(mutant: Mutant) -> None:
    """The schedule that was found by searching for this mutant kills it."""
    assert oracle_of(killed_by(mutant, mutant.seed, violations=further_violations) or "nothing") == mutant.oracle


@pytest.mark.long
@pytest.mark.parametrize("seed", sorted({mutant.seed for mutant in MUTANTS}))
def test_without_a_planted_defect_nothing_is_broken_there(seed: int) -> None:
    """What kills a mutant is the defect, and not the schedule."""
    assert run_further_schedule(seed).violations == ()


def test_the_documentation_has_the_planted_defects() -> None:
    """``docs/proof.md`` shows the table that ``python -m simulation.consumer.further_mutants --table`` prints."""
    assert table(MUTANTS) in (Path(__file__).parents[3] / "docs" / "proof.md").read_text()
