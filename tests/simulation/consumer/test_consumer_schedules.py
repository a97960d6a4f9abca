"""A slice of the search that ``make soak`` does: whole consumers under faults, and whether the oracles would notice."""

import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from simulation.consumer.hardships import make_plan
from simulation.consumer.mutants import MUTANTS, PROVED, consumer_violations
from simulation.consumer.planting import Mutant, killed_by, table
from simulation.consumer.schedule import run_consumer_schedule
from simulation.contexts import run_context_pairs
from simulation.soak import oracle_of

_TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, 30, 30))
def test_no_schedule_breaks_a_promise(first: int) -> None:
    """Every oracle of docs/proof.md, over thirty schedules; and enough happens in them."""
    facts: Counter[str] = Counter()
    for seed in range(first, first + 30):
        outcome = run_consumer_schedule(seed)
        assert not outcome.violations, f"seed {seed}: {outcome.violations[0]}\n{outcome.history.text()}"
        facts.update(outcome.facts)
    assert facts["crashes"] > 5
    assert facts["stops"] > 30
    assert facts["redelivered"] > 30


def digest(seed: int) -> str:
    """Return a hash of everything that happened in a schedule."""
    return sha256(run_consumer_schedule(seed).history.text().encode()).hexdigest()


def test_a_seed_replays_exactly() -> None:
    """The same history, line by line, also in another process with another seed for hashes."""
    seeds = (3, 8, 27, 41, 76, 99, 110, 679)
    script = (
        "from simulation.consumer.test_consumer_schedules import digest\n"
        f"print(*(digest(seed) for seed in {seeds}), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS), *sys.path]), "PYTHONHASHSEED": "12345"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert [digest(seed) for seed in seeds] == elsewhere


def test_those_seeds_have_what_could_make_a_replay_differ() -> None:
    """A backlog, watched logs, a frozen process or a blocked loop, a hung extension, a function that raises."""
    names = {name for seed in (3, 8, 27, 41, 76, 99, 110, 679) for name in make_plan(seed).hardships}
    assert names >= {"overload", "watched logs", "blocked loop", "hung extensions", "stop while starting"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_oracles_notice_a_planted_defect(mutant: Mutant) -> None:
    """The schedule that was found by searching for this mutant kills it."""
    assert oracle_of(killed_by(mutant, mutant.seed, violations=consumer_violations) or "nothing") == mutant.oracle


def test_each_new_oracle_is_proved_by_two_planted_defects_or_more() -> None:
    """An oracle that no defect ever reaches would be decoration."""
    counts = Counter(mutant.oracle for mutant in MUTANTS)
    assert all(counts[each] >= 2 for each in PROVED), counts


@pytest.mark.parametrize("seed", range(4))
def test_no_two_contexts_share_a_key(seed: int) -> None:
    """I5: delimiters, unicode, look-alikes and types; ten thousand pairs here, a million in ``make soak``."""
    assert run_context_pairs(seed, 2_500) == ()


def test_a_message_that_is_parked_does_not_find_out_whether_an_outage_is_over() -> None:
    """Seed 63012: it had been chosen to, was surplus, and everything of its tenant was deferred forever."""
    assert run_consumer_schedule(63_012).violations == ()


@pytest.mark.parametrize("seed", [5_093, 5_337, 5_623, 5_826, 3_001_581])
def test_what_a_search_found_stays_mended(seed: int) -> None:
    """Bodies in an error; retention unknown; a slot that came too late; a poll that answers in a stop; a late close."""
    assert run_consumer_schedule(seed).violations == ()


def test_the_documentation_has_the_planted_defects() -> None:
    """``docs/proof.md`` shows the table that ``python -m simulation.consumer.mutants --table`` prints."""
    assert table(MUTANTS) in (_TESTS.parent / "docs" / "proof.md").read_text()
