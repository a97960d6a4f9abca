"""Planted defects: one for each promise, and what the schedules say to each.

A defect that no schedule finds would mean that the oracle looks the other way.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import msgspec

from postroom.fleet import ledger as ledger_module
from postroom.fleet import memory as memory_module
from postroom.fleet.ledger import Ledger
from postroom.fleet.memory import Store
from postroom.fleet.shares import Share, share_of
from simulation.fleet.schedules import fleet_violations

Mutant = Callable[[], contextlib.AbstractContextManager[object]]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    with patch.object(owner, name, make(getattr(owner, name))):
        yield


def the_store_grants_one_too_many() -> contextlib.AbstractContextManager[object]:
    """F1: one slot more than the cap."""

    def make(original: Any) -> Any:
        def grant(self: Store, fleet: Any, request: Any, ask: Any, now: float) -> Any:
            return original(self, fleet, request, msgspec.structs.replace(ask, cap=ask.cap + 1), now)

        return grant

    return _replaced(Store, "_grant", make)


def the_lease_counts_from_the_answer() -> contextlib.AbstractContextManager[object]:
    """F2: the deadline is counted from when the answer came, and without a margin."""

    def make(original: Any) -> Any:
        def granted(self: Ledger, tenant: Any, ask: Any, grant: Any, *times: float) -> bool:
            now = times[-1]
            more: bool = original(self, tenant, ask, grant, now + self.fleet.lease - self._length, now)
            return more

        return granted

    return _replaced(Ledger, "_granted", make)


def a_promise_is_not_kept() -> contextlib.AbstractContextManager[object]:
    """F2: while a request is out, the replica starts what it said it does not keep."""

    def make(original: Any) -> Any:
        def ask_for(self: Ledger, tenant: Any, entry: Any, demand: Any, now: float) -> Any:
            limit, granted = entry.limit, entry.granted
            ask = original(self, tenant, entry, demand, now)
            entry.limit, entry.granted = limit, granted
            return ask

        return ask_for

    return _replaced(Ledger, "_ask_for", make)


def an_old_answer_counts() -> contextlib.AbstractContextManager[object]:
    """F2: the store lets a late request undo a later one."""

    def make(original: Any) -> Any:
        def grant(self: Store, fleet: Any, request: Any, ask: Any, now: float) -> Any:
            for slot in fleet.slots.get(ask.tenant, {}).values():
                slot.sequence = -1
            return original(self, fleet, request, ask, now)

        return grant

    return _replaced(Store, "_grant", make)


def a_loss_of_memory_goes_unnoticed() -> contextlib.AbstractContextManager[object]:
    """F1, F10: after a flush everything is granted at once."""

    def make(original: Any) -> Any:
        def enter(self: Store, fleet: Any, request: Any, now: float) -> None:
            original(self, fleet, request, now)
            fleet.quiet_until = 0.0

        return enter

    return _replaced(Store, "_enter_epoch", make)


def slots_do_not_expire() -> contextlib.AbstractContextManager[object]:
    """F3: what a crashed replica held stays taken."""

    def make(original: Any) -> Any:
        def grant(self: Store, fleet: Any, request: Any, ask: Any, now: float) -> Any:
            for slot in fleet.slots.get(ask.tenant, {}).values():
                slot.expires += 1e6 if slot.expires < 1e6 else 0.0
            return original(self, fleet, request, ask, now)

        return grant

    return _replaced(Store, "_grant", make)


def idle_slots_are_kept() -> contextlib.AbstractContextManager[object]:
    """F3, F4: a replica never gives anything back."""

    def make(original: Any) -> Any:
        def ask_for(self: Ledger, tenant: Any, entry: Any, demand: Any, now: float) -> Any:
            before = entry.granted if now < entry.expires else 0
            ask = original(self, tenant, entry, demand, now)
            entry.granted = max(entry.granted, before)
            entry.limit = max(entry.limit, min(before, entry.share))
            return msgspec.structs.replace(ask, hold=max(ask.hold, before))

        return ask_for

    return _replaced(Ledger, "_ask_for", make)


def the_first_takes_all() -> contextlib.AbstractContextManager[object]:
    """F4, F5: a share is whatever one wants."""
    return patch.object(memory_module, "share_of", lambda me, line, cap: Share(*[min(cap, line[me].want)] * 2))


def nothing_rotates() -> contextlib.AbstractContextManager[object]:
    """F5: a remainder stays with the first by name."""
    return patch.object(memory_module, "share_of", lambda me, line, cap: share_of(me, dict(sorted(line.items())), cap))


def turns_go_by_the_clock() -> contextlib.AbstractContextManager[object]:
    """F5: a remainder moves on with each lease, and passes by a replica while handlers of another still run."""

    def make(original: Any) -> Any:
        def share(request: Any, ask: Any, others: Any, mine: Any, now: float) -> Share:
            names = sorted({request.replica, *others})
            first = int(now // request.lease) * max(1, ask.cap % len(names)) % len(names)
            line = names[first:] + names[:first]
            with patch.object(memory_module, "sorted", lambda *_args, **_named: line, create=True):
                found: Share = original(request, ask, others, mine, now)
            return found

        return staticmethod(share)

    return _replaced(Store, "_share", make)


def every_message_asks() -> contextlib.AbstractContextManager[object]:
    """F6: an exchange whenever there is something, not a tick at a time."""

    def due(self: Ledger, now: float) -> float:
        self._last_full = float("-inf")
        return max(now, self._last + 0.004)

    return _replaced(Ledger, "due", lambda _original: due)


def a_lost_lease_is_not_noticed() -> contextlib.AbstractContextManager[object]:
    """F7: the time is not looked at."""

    def make(original: Any) -> Any:
        def allowed(self: Ledger, tenant: Any, now: float) -> int | None:
            entry = self._entries.get(tenant)
            if entry is not None and entry.limit:
                return entry.limit
            said: int | None = original(self, tenant, now)
            return said

        return allowed

    return _replaced(Ledger, "allowed", make)


def the_fallback_is_not_divided() -> contextlib.AbstractContextManager[object]:
    """F8: each replica takes the whole limit for its part."""
    return _replaced(Ledger, "_part_of", lambda _original: lambda self, tenant: self.cap_of(tenant) or 1)


def stop_does_not_stop() -> contextlib.AbstractContextManager[object]:
    """F8: the fallback "stop" still starts one."""

    def make(original: Any) -> Any:
        def set_fallback(self: Ledger, tenant: Any, entry: Any) -> None:
            original(self, tenant, entry)
            entry.fallback = max(1, entry.fallback or 0)

        return set_fallback

    return _replaced(Ledger, "_set_fallback", make)


def starts_are_saved_up() -> contextlib.AbstractContextManager[object]:
    """F9: what was not used of a rate does not lapse."""

    def make(_original: Any) -> Any:
        def take(_fleet: Any, request: Any, ask: Any, _hungry: int, _now: float) -> int:
            return math.ceil(ask.rate * request.tick) if ask.rate else 0

        return staticmethod(take)

    return _replaced(Store, "_take", make)


def no_margin() -> contextlib.AbstractContextManager[object]:
    """F2: clocks that do not run alike are not thought of."""
    return patch.object(ledger_module, "MARGIN", -0.02)


MUTANTS: dict[str, tuple[Mutant, str, range]] = {
    "the store grants one too many": (the_store_grants_one_too_many, "F", range(5)),
    "the lease counts from the answer": (the_lease_counts_from_the_answer, "F", range(400)),
    "a promise is not kept": (a_promise_is_not_kept, "F", range(60)),
    "a late request undoes a later one": (an_old_answer_counts, "F", range(200)),
    "a loss of memory goes unnoticed": (a_loss_of_memory_goes_unnoticed, "F", range(200)),
    "slots do not expire": (slots_do_not_expire, "F", range(100)),
    "idle slots are kept": (idle_slots_are_kept, "F", range(60)),
    "the first takes all": (the_first_takes_all, "F", range(60)),
    "nothing rotates": (nothing_rotates, "F5", range(60)),
    "turns go by the clock": (turns_go_by_the_clock, "F5", range(400)),
    "every message asks": (every_message_asks, "F6", range(10)),
    "a lost lease is not noticed": (a_lost_lease_is_not_noticed, "F", range(100)),
    "the fallback is not divided": (the_fallback_is_not_divided, "F8", range(100)),
    "stop does not stop": (stop_does_not_stop, "F8", range(100)),
    "starts are saved up": (starts_are_saved_up, "F9", range(60)),
    "no margin": (no_margin, "F", range(400)),
}
"""Each defect, the promise that it breaks, and the seeds that are searched for it."""


def killed_by(name: str, seeds: range) -> tuple[int, str] | None:
    """Return the first seed that finds a defect, and what it says."""
    mutant, promise, _ = MUTANTS[name]
    with mutant():
        for seed in seeds:
            for found in fleet_violations(seed):
                if found.startswith(promise):
                    return seed, found
    return None


def main() -> int:
    """Try every defect; 0 if each is found."""
    survivors = 0
    for name, (_, _, seeds) in MUTANTS.items():
        found = killed_by(name, seeds)
        survivors += found is None
        print(f"{name}: {'survives' if found is None else f'seed {found[0]}: {found[1]}'}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
