"""The one decision that everything waits for: who opens next, and who has to go for it.

``next_step`` looks at the line, the budget and the table, and returns one step; it changes nothing. The pool carries
it out and asks again, until there is no step.
"""

from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Final

import msgspec

from postroom.resources.breaker import Cooling, Hosts
from postroom.resources.budget import Budget
from postroom.resources.entries import Demand, Entry, EntryState, Table
from postroom.resources.gates import Gate, Gates
from postroom.resources.line import Line

MOST_OVERTAKES: Final = 16
"""How often lighter demands may pass one that the budget cannot serve yet."""


class Start(msgspec.Struct, frozen=True):
    """Open what is demanded. The overtaken ones waited longer, but ask for more than there is."""

    demand: Demand
    overtaken: tuple[Demand, ...] = ()


class Admit(msgspec.Struct, frozen=True):
    """Let it into the pool's line: the budget of its host has room for it."""

    demand: Demand


class Revive(msgspec.Struct, frozen=True):
    """Hand out the entry that was draining for others: it is its key's turn again."""

    entry: Entry


class Evict(msgspec.Struct, frozen=True):
    """Close this idle entry: its budget is needed."""

    entry: Entry


class Drain(msgspec.Struct, frozen=True):
    """Lease this busy entry no more: others have waited long for its budget."""

    entry: Entry


class Park(msgspec.Struct, frozen=True):
    """Step aside: the host admits no more opens for now."""

    demand: Demand


class Refuse(msgspec.Struct, frozen=True):
    """Give up: the key, or its host, failed meanwhile."""

    demand: Demand


class Drop(msgspec.Struct, frozen=True):
    """Forget it: no call waits for it, and nothing needs to be replaced."""

    demand: Demand


class LookAgain(msgspec.Struct, frozen=True):
    """Nothing to do before this time."""

    at: float


Step = Start | Admit | Revive | Evict | Drain | Park | Refuse | Drop | LookAgain


class View(msgspec.Struct, frozen=True):
    """What the decision looks at."""

    line: Line
    table: Table
    budget: Budget
    gates: Gates
    cooling: Cooling
    hosts: Hosts
    max_opens: int
    patience: float

    def candidates(self) -> Iterator[Demand]:
        """Yield those that may be next: as many as may open now, and at least the first in line."""
        # Keys that failed last time may hold half of the openings, so that hanging tenants leave room for others.
        troubled = self.table.troubled_opens < max(1, self.max_opens // 2)
        return islice(self.line.candidates(troubled=troubled), max(1, self.openings))

    @property
    def openings(self) -> int:
        """How many more providers may be entered at once."""
        return self.max_opens - self.table.opens


class _Supply(msgspec.Struct):
    """What is left for those further back in the line."""

    free: int
    coming: int
    """Closes are under way."""
    draining: int
    """Comes back behind the last leases of busy entries."""

    def reserve(self, weight: int) -> None:
        taken = min(weight, self.free)
        self.free -= taken
        self.coming -= weight - taken


def next_step(view: View, now: float) -> Step | None:
    """Return what to do next for those who wait, or None when only events help."""
    if not view.line:
        return None
    coming, until = view.table.coming(view.patience, now)
    supply = _Supply(view.budget.free, coming, view.table.draining_weight)
    passed: list[Demand] = []
    looks: list[float] = []
    for demand in view.candidates():
        step = _aside(view, demand, now) or _served(view, demand, supply, passed)
        if step is not None or view.openings <= 0:
            return step
        if demand.weight <= supply.free + supply.coming:
            supply.reserve(demand.weight)  # closes are under way: no one else may take what they bring
            looks.append(until)
            continue
        step = _make_room(view, demand, supply, now)
        if not isinstance(step, LookAgain | None):
            return step
        looks += [step.at] if step else []
        if demand.overtaken >= MOST_OVERTAKES:
            break
        passed.append(demand)
    return LookAgain(min(looks)) if looks else None


def _aside(view: View, demand: Demand, now: float) -> Step | None:
    """Return the step that takes a demand out of the line, if one does."""
    step = _given_up(view, demand, now)
    if step is not None or demand.host is None or demand.identity in view.table.revivable:
        return step
    return Park(demand) if view.hosts.room(demand.host, now) <= 0 else None


def _given_up(view: View, demand: Demand, now: float) -> Step | None:
    """Return the step that ends a demand without opening anything for it, if one does."""
    if not demand.waiters:
        replaced = view.table.ready.get(demand.identity)
        if replaced is None or not replaced.busy:
            return Drop(demand)
    if demand.identity in view.table.revivable:
        return None
    alone = view.cooling.remaining(demand.identity, now) > 0 or view.hosts.remaining(demand.host, now) > 0
    return Refuse(demand) if alone else None


def _served(view: View, demand: Demand, supply: _Supply, passed: list[Demand]) -> Step | None:
    """Return the step that gives a demand what it wants, if that is possible now."""
    fits = demand.weight <= supply.free and view.openings > 0
    revivable = view.table.revivable.get(demand.identity)
    if revivable is not None and (fits or not passed):
        return Revive(revivable)  # its turn came while it still drains: no close, no open, no budget
    return Start(demand, tuple(passed)) if fits else None


def _make_room(view: View, demand: Demand, supply: _Supply, now: float) -> Evict | Drain | LookAgain | None:
    """Return the entry to take budget back from: an idle one's, or after some patience a busy one's."""
    shortfall = demand.weight - supply.free - supply.coming
    evictable = view.table.evictable_weight(shortfall)
    if evictable >= shortfall:
        return Evict(next(view.table.evictable()))
    if not demand.waiters:
        return None
    if evictable + supply.draining >= shortfall:
        supply.draining -= shortfall  # busy ones drain already
        return None
    longest = min(view.table.busy(), key=lambda entry: entry.since, default=None)
    if longest is None:
        return None
    patient_until = max(demand.since, longest.since) + view.patience
    return Drain(longest) if now >= patient_until else LookAgain(patient_until)


def next_at_gate(view: View, host: Hashable, now: float) -> Step | None:
    """Return what to do for the first in line for a host's budget, or None when only events help.

    What the head waits for is taken only from that host: from what is idle there, or after some patience from what is
    busy. Other hosts are not concerned.
    """
    gate = view.gates.find(host)
    if gate is None or not gate.waiting:
        return None
    demand = next(iter(gate.waiting))
    step = _given_up(view, demand, now)
    if step is not None:
        return step
    revivable = view.table.revivable.get(demand.identity)
    if revivable is not None:
        return Revive(revivable)
    if gate.limit is None or gate.used + demand.weight <= gate.limit:
        return Admit(demand)
    return _make_room_on_host(view, gate, demand, gate.used + demand.weight - gate.limit, now)


def _make_room_on_host(
    view: View, gate: Gate, demand: Demand, shortfall: int, now: float
) -> Evict | Drain | LookAgain | None:
    closing = [
        (view.table.returning[entry] + view.patience, entry.weight)
        for entry in gate.entries
        if entry in view.table.returning and view.table.returning[entry] + view.patience > now
    ]
    shortfall -= sum(weight for _, weight in closing)
    if shortfall <= 0:
        return LookAgain(min(until for until, _ in closing))
    idle = [entry for entry in gate.entries if entry.state is EntryState.READY and not entry.busy]
    evictable = sum(entry.weight for entry in idle)
    if evictable >= shortfall:
        return Evict(min(idle, key=lambda entry: entry.idle_since))
    revivable = view.table.revivable
    draining = sum(entry.weight for entry in gate.entries if revivable.get(entry.identity) is entry)
    if not demand.waiters or evictable + draining >= shortfall:
        return None
    busy = [entry for entry in gate.entries if entry.state is EntryState.READY and entry.busy]
    longest = min(busy, key=lambda entry: entry.since, default=None)
    if longest is None:
        return None
    patient_until = max(demand.since, longest.since) + view.patience
    return Drain(longest) if now >= patient_until else LookAgain(patient_until)
