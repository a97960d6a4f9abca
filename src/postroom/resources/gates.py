"""One budget per host, in front of the pool's own line: who may stand in that line at all.

A demand takes its weight of the host's budget when it passes the gate, and gives it back with the entry that it opens,
when the close of that has finished; or at once, if nothing is opened for it. First come, first served, host by host:
a host that is full delays no other host.
"""

from collections.abc import Hashable, Iterable

from postroom.resources.entries import Demand, Entry, Stage
from postroom.resources.line import Row


class Gate:
    """The budget of one host, who waits for it, and who has it."""

    __slots__ = ("entries", "limit", "used", "waiting")

    def __init__(self) -> None:
        self.limit: int | None = None
        """As it was said last; None for no limit."""
        self.used: int = 0
        self.waiting = Row()
        self.entries: dict[Entry, None] = {}

    @property
    def unused(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.used or self.waiting or self.entries)


class Gates:
    """The gates of all hosts on which something is open or wanted."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.stirred: dict[Hashable, None] = {}
        """Hosts where something changed, so that the first in line may have its turn."""
        self._gates: dict[Hashable, Gate] = {}

    def __len__(self) -> int:
        return len(self._gates)

    def counts(self, host: Hashable) -> bool:
        """Return whether what opens on this host has to pass its gate."""
        return self.enabled and host is not None

    def find(self, host: Hashable) -> Gate | None:
        """Return the gate of a host, if anything is open or wanted there."""
        return self._gates.get(host)

    def heads(self) -> Iterable[Demand]:
        """Return the first in line of every gate."""
        return [next(iter(gate.waiting)) for gate in self._gates.values() if gate.waiting]

    def waits(self, host: Hashable) -> bool:
        """Return whether a demand waits for this host's budget."""
        gate = self._gates.get(host)
        return gate is not None and bool(gate.waiting)

    def put(self, demand: Demand) -> None:
        """Let a demand wait at its host's gate, at its place."""
        gate = self._gates.setdefault(demand.host, Gate())
        gate.limit = demand.host_limit
        gate.waiting.add(demand)
        demand.stage = Stage.AT_GATE
        self.stir(demand.host)

    def admit(self, demand: Demand) -> None:
        """Let a demand through: it has taken its weight of the host's budget."""
        gate = self._gates[demand.host]
        gate.waiting.remove(demand)
        gate.used += demand.weight
        if gate.limit is not None and gate.used > gate.limit:
            raise AssertionError(f"host budget overrun: {gate.used} of {gate.limit}")
        demand.admitted = True
        self.stir(demand.host)

    def withdraw(self, demand: Demand) -> None:
        """Take a demand out, wherever it is: nothing will be opened for it."""
        if demand.stage is Stage.AT_GATE:
            self._gates[demand.host].waiting.remove(demand)
            self._settle(demand.host)
        elif demand.admitted:
            demand.admitted = False
            self._give_back(demand.host, demand.weight)

    def opening(self, demand: Demand, entry: Entry) -> None:
        """Note that an entry is opened with what a demand has taken."""
        if demand.admitted:
            demand.admitted = False
            entry.admitted = True
            self._gates[entry.host].entries[entry] = None

    def ended(self, entry: Entry) -> None:
        """Note that a close has finished."""
        if entry.admitted:
            del self._gates[entry.host].entries[entry]
            self._give_back(entry.host, entry.weight)

    def stir(self, host: Hashable) -> None:
        """Look at this host's gate again."""
        if self.waits(host):
            self.stirred[host] = None

    def stir_all(self) -> None:
        """Look at every gate again: time has passed."""
        for host in self._gates:
            self.stir(host)

    def clear(self) -> None:
        """Forget who waits: the pool closes."""
        for gate in self._gates.values():
            gate.waiting.clear()
        self.stirred.clear()

    def _give_back(self, host: Hashable, weight: int) -> None:
        gate = self._gates[host]
        if weight > gate.used:
            raise AssertionError(f"host budget given back twice: {weight} of {gate.used}")
        gate.used -= weight
        self._settle(host)

    def _settle(self, host: Hashable) -> None:
        if self._gates[host].unused:
            del self._gates[host]
        self.stir(host)
