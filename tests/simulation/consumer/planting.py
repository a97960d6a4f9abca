"""Planted defects: how they are planted, which seed notices one, and the search for all of them."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

Patch = AbstractContextManager[Any]
Violations = Callable[[int], Sequence[str]]
"""Runs the schedule of a seed, and returns what was broken."""
_MOST = 2_000
"""Seeds that are searched for each defect."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect, planted."""

    name: str
    plant: Callable[[], Patch]
    seed: int
    """A seed that kills it, found by searching."""
    oracle: str
    """Which oracle it is that notices first."""


def swap(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], Patch]:
    """Replace an attribute by what ``make`` does with the original."""
    return lambda: patch.object(owner, name, make(getattr(owner, name)))


def does_nothing_later(owner: Any, name: str) -> Callable[[], Patch]:
    """Let a coroutine function do nothing."""
    return swap(owner, name, lambda _: _nothing_later)


async def _nothing_later(*_args: Any, **_options: Any) -> None:
    """Do nothing, when awaited."""


def says(owner: Any, name: str, answer: Any) -> Callable[[], Patch]:
    """Let a method always return one answer."""
    return swap(owner, name, lambda _: lambda *_args, **_options: answer)


def killed_by(mutant: Mutant, seed: int, *, violations: Violations) -> str | None:
    """Return what a schedule says against a mutant; None if it notices nothing."""
    with mutant.plant():
        found = violations(seed)
    return found[0] if found else None


def table(mutants: Sequence[Mutant]) -> str:
    """Return a table of docs/proof.md, of the seeds that are kept."""
    rows = [f"| {mutant.name} | {mutant.seed} | {mutant.oracle} |" for mutant in mutants]
    return "\n".join(["| planted defect | found by seed | oracle |", "|---|---|---|", *rows])


def search(mutants: Sequence[Mutant], *, violations: Violations, first: int = 0) -> int:
    """Search for every mutant, or print their table if that is asked for; 1 if one survives."""
    if "--table" in sys.argv:
        print(table(mutants))
        return 0
    survivors = 0
    print("| mutant | killed by seed | oracle |\n|---|---|---|")
    for mutant in mutants:
        verdicts = ((seed, killed_by(mutant, seed, violations=violations)) for seed in range(first, first + _MOST))
        seed, verdict = next(((seed, said) for seed, said in verdicts if said is not None), ("**survives**", ""))
        survivors += not verdict
        print(f"| {mutant.name} | {seed} | {verdict.partition(' at ')[0]} |")
        sys.stdout.flush()
    return 1 if survivors else 0
