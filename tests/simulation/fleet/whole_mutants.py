"""Planted defects of decisions, hints and ends, and what the schedules with whole consumers say to each."""

import contextlib
import sys
from typing import Any
from unittest.mock import patch

import msgspec

from postroom.fleet.hints import Hints
from postroom.fleet.member import Member
from postroom.fleet.memory import Store
from postroom.fleet.protocol import Decisions, Request
from simulation.fleet.mutants import Mutant
from simulation.fleet.whole import whole_violations

Planted = contextlib.AbstractContextManager[object]


def nothing_is_restored() -> Planted:
    """F10, F11: what the store forgot stays forgotten."""
    return patch.object(Store, "restore", lambda self, name, _decisions: self.decisions(name).version)


def versions_are_counted() -> Planted:
    """F11: after a loss, a version may be one that replicas know with other decisions."""
    original = Store.decide

    def decide(self: Store, name: str, changes: Any) -> int:
        fleet = self._fleet(name)
        before = fleet.version
        original(self, name, changes)
        fleet.version = before + 1
        fleet.stamps = {field: min(stamp, before + 1) for field, stamp in fleet.stamps.items()}
        return fleet.version

    return patch.object(Store, "decide", decide)


def what_a_store_remembers_is_the_latest() -> Planted:
    """F11: a store that starts again with an earlier state is believed."""

    def restore(self: Store, name: str, decisions: Decisions) -> int:
        fleet = self._fleet(name)
        if fleet.version < decisions.version:
            fleet.decided = {**decisions.fields, **fleet.decided}
            fleet.stamps = {**decisions.stamps, **fleet.stamps}
            fleet.version = decisions.version + 1
        return fleet.version

    return patch.object(Store, "restore", restore)


def decisions_are_read_once() -> Planted:
    """F11: what is decided later is not heard of."""
    original = Member._settle_decisions

    async def settle(self: Member, answer: Any) -> None:
        if not self._known.version or self.pending:
            await original(self, answer)

    return patch.object(Member, "_settle_decisions", settle)


def a_decision_is_said_once() -> Planted:
    """F11: one that could not be written down is forgotten."""
    original = Member._publish

    async def publish(self: Member) -> None:
        try:
            await original(self)
        finally:
            self.pending.clear()

    return patch.object(Member, "_publish", publish)


def members_stay() -> Planted:
    """F10: a replica that died is counted for good."""
    original = Store._count_members

    def count(fleet: Any, request: Request, now: float) -> None:
        original(fleet, msgspec.structs.replace(request, lease=1e6), now)

    return patch.object(Store, "_count_members", staticmethod(count))


def hints_last() -> Planted:
    """F10, F12: a hint has no end."""
    original = Store.report

    def report(self: Store, name: str, host: str, cause: str | None, seconds: float) -> None:
        original(self, name, host, cause, seconds if cause is None else 1e6)

    return patch.object(Store, "report", report)


def every_replica_tries() -> Planted:
    """F12: nothing waits for another replica's try."""
    return patch.object(Hints, "wait", lambda _self, _host, _now: None)


def everyone_has_the_turn() -> Planted:
    """F12: any replica that asks may try."""
    return patch.object(Store, "claim_probe", lambda *_arguments: True)


def a_host_that_was_down_stays_down() -> Planted:
    """F12: what a replica has heard of a host, it believes for good."""
    original = Hints.learn

    def learn(self: Hints, hints: Any, asked: float, now: float) -> None:
        before = dict.fromkeys(self.known, 1e9)
        original(self, hints, asked, now)
        self.known.update(dict.fromkeys(self.known, 1e9) | before)
        self._mine.clear()

    return patch.object(Hints, "learn", learn)


WHOLE_MUTANTS: dict[str, tuple[Mutant, str, range]] = {
    "nothing is restored": (nothing_is_restored, "F11", range(40)),
    "versions are counted": (versions_are_counted, "F11", range(80)),
    "what a store remembers is the latest": (what_a_store_remembers_is_the_latest, "F11", range(40)),
    "decisions are read once": (decisions_are_read_once, "F11", range(10)),
    "a decision is said once": (a_decision_is_said_once, "F11", range(100)),
    "members stay": (members_stay, "F10", range(40)),
    "hints last": (hints_last, "F1", range(60)),
    "every replica tries": (every_replica_tries, "F12", range(60)),
    "everyone has the turn": (everyone_has_the_turn, "F12", range(60)),
    "a host that was down stays down": (a_host_that_was_down_stays_down, "F12", range(60)),
}
"""Each defect, the promise that it breaks, and the seeds that are searched for it."""


def main() -> int:
    """Try every defect; 0 if each is found."""
    survivors = 0
    for name, (mutant, promise, seeds) in WHOLE_MUTANTS.items():
        with mutant():
            said = ((seed, text) for seed in seeds for text in whole_violations(seed) if text.startswith(promise))
            found = next(said, None)
        survivors += found is None
        print(f"{name}: {'survives' if found is None else f'seed {found[0]}: {found[1]}'}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
