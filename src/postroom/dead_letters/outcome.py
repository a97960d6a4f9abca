"""What a redrive or a purge found, and what became of it."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Outcome:
    """What was found and what became of it. It grows while the work goes on.

    Args:
        action: ``redrive``, ``purge`` or ``survey``.
        dry_run: nothing was changed; the counts say what would be.
        seen: letters that were looked at.
        matched: those of them that were meant.
        done: those of them that were sent home, or deleted.
        finished: letters that an earlier run had sent home already: they were only deleted.
        kept: letters that were meant and are still there, by why.
        tenants: letters that were meant, by tenant.
        reasons: letters that were meant, by reason.
        cut: there are more letters than one walk can hold: run it again.
        stopped: it was asked to stop before the end.
        total: letters in the queue at the start, as SQS estimates it.
        hidden: letters that were invisible to it at the start, or not visible yet, as SQS estimates it.
    """

    action: str
    dry_run: bool
    seen: int = 0
    matched: int = 0
    done: int = 0
    finished: int = 0
    kept: Counter[str] = field(default_factory=Counter[str])
    tenants: Counter[str] = field(default_factory=Counter[str])
    reasons: Counter[str] = field(default_factory=Counter[str])
    cut: bool = False
    stopped: bool = False
    total: int = 0
    hidden: int = 0

    def counts(self) -> Mapping[str, Any]:
        """Return what goes into the record."""
        names = ("seen", "matched", "done", "finished", "cut", "stopped")
        return {**{name: getattr(self, name) for name in names}, "kept": dict(self.kept), "tenants": dict(self.tenants)}


Progress = Callable[[Outcome], None]
"""Is told after each batch."""
