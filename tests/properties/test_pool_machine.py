"""The pool's core as a state machine, driven by Hypothesis without a loop, a task or a clock."""

import random
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from postroom.options import OpenBackoff, PoolLimits
from postroom.resources import actions, news
from postroom.resources.core import Core
from postroom.resources.entries import Entry, EntryState, LeaseRequest, Stage, Waiter
from postroom.resources.identity import Identifier

TENANTS = ["a", "b", "c", 1, True, 1.0, ("a", "b"), "a:b"]


@dataclass(eq=False)
class Held:
    """A lease that is out."""

    entry: Entry
    key: Any


class PoolMachine(RuleBasedStateMachine):
    """Ask, leave, open, fail, release, report, check, invalidate, sweep, wait, close: in any order."""

    leases: Bundle[Held] = Bundle("leases")

    @initialize(
        budget=st.integers(1, 5),
        opens=st.integers(1, 4),
        patience=st.sampled_from([0.0, 2.0]),
        checks=st.booleans(),
        hosts=st.integers(0, 2),
        heavy=st.booleans(),
        per_host=st.sampled_from([None, None, 1, 2, 4]),
    )
    def make(
        self,
        *,
        budget: int,
        opens: int,
        patience: float,
        checks: bool,
        hosts: int,
        heavy: bool,
        per_host: int | None,
    ) -> None:
        """Make a core."""
        self.per_host = None if per_host is None or not hosts else min(per_host, budget)
        self.limits = PoolLimits(
            per_host=self.per_host, budget=budget, max_concurrent_opens=opens, idle=20.0, max_age=30.0,
            check_after=5.0, sweep=1.0, patience=patience, remember=2,
        )  # fmt: skip
        self.core = Core(
            limits=self.limits,
            backoff=OpenBackoff(base=1.0, cap=4.0, permanent=10.0),
            probe_deadline=10.0,
            jitter=random.Random(0),
            checks=checks,
        )
        self.identify = Identifier()
        self.hosts = hosts
        self.heavy = heavy
        self.now = 0.0
        self.tasks: dict[Entry, str] = {}
        """Owner tasks and what they do: opening, open, leaving."""
        self.weights: dict[Entry, int] = {}
        self.forced = False
        self.checking: dict[Entry, None] = {}
        self.waiters: dict[Waiter, Any] = {}
        self.wake_at: list[float] = []
        self.ended: set[int] = set()
        self.granted: list[Held] = []
        self.told: list[news.News] = []

    # -- the acting half, as simple as can be -------------------------------------------------------------------

    def act(self) -> list[Held]:
        """Carry out the actions; return the leases that were granted."""
        granted: list[Held] = []
        todo, self.core.actions = self.core.actions, []
        for action in todo:
            match action:
                case actions.Open(entry):
                    assert entry not in self.tasks
                    self.tasks[entry] = "opening"
                    self.weights[entry] = entry.weight
                case actions.CallOff(entry):
                    assert self.tasks[entry] in {"opening", "open"}
                    self.tasks[entry] = "called off" if self.tasks[entry] == "opening" else "leaving"
                case actions.Close(entry):
                    assert self.tasks[entry] == "open", "closed twice, or before it was open"
                    assert self.forced or not entry.leases, "I2"
                    self.tasks[entry] = "leaving"
                case actions.Check(entry):
                    assert entry not in self.checking
                    self.checking[entry] = None
                case actions.StopCheck(entry):
                    assert entry in self.checking
                case actions.Grant(entry, waiter):
                    key = self.waiters.pop(waiter)
                    assert self.tasks[entry] == "open", "granted before it was open"
                    assert entry.stamp == self.identify(key), "I5"
                    assert (type(entry.key), entry.key) == (type(key), key), "I5"
                    granted.append(Held(entry, key))
                case actions.TurnAway(waiter, refusal):
                    error = refusal.error(waiter.context)
                    assert error is not refusal.error(waiter.context), "each waiter gets an error of its own"
                    del self.waiters[waiter]
                case actions.Tell(told):
                    self.told.append(told)
                case actions.WakeAt(when):
                    assert when > self.now, "a timer for the past would ring without end"
                    self.wake_at.append(when)
        return granted

    def pick(self, states: set[str], number: int) -> Entry | None:
        """Return an entry with a task that does one of these things."""
        entries = [entry for entry, state in self.tasks.items() if state in states]
        return entries[number % len(entries)] if entries else None

    # -- rules --------------------------------------------------------------------------------------------------

    @rule(target=leases, number=st.integers(0, len(TENANTS) - 1))
    def ask(self, number: int) -> Any:
        """A caller wants a lease."""
        key = TENANTS[number]
        request = LeaseRequest(
            identity=self.identify(key),
            key=key,
            context=key,
            weight=min(1 + number % 3, self.per_host or self.limits.budget) if self.heavy else 1,
            host=number % self.hosts if self.hosts else None,
            host_limit=self.per_host,
        )
        waiter = Waiter(key, None)
        self.waiters[waiter] = key
        if not self.core.shut_down:
            self.core.ask(request, waiter, self.now)
        else:
            del self.waiters[waiter]
        return multiple(*self.act())

    @rule(target=leases, number=st.integers(0, 20))
    def leave(self, number: int) -> Any:
        """A waiter is cancelled, or too late."""
        waiters = list(self.waiters)
        if waiters:
            waiter = waiters[number % len(waiters)]
            del self.waiters[waiter]
            self.core.leave(waiter, self.now)
        return multiple(*self.act())

    @rule(target=leases, number=st.integers(0, 20), outcome=st.sampled_from(["ok", "ok", "ok", "down", "unknown"]))
    def finish_open(self, number: int, outcome: str) -> Any:
        """A provider was entered, or failed."""
        entry = self.pick({"opening", "called off"}, number)
        if entry is None:
            return multiple()
        if outcome == "ok":
            return multiple(*self.succeed(entry))
        self.core.open_failed(entry, OSError(outcome), permanent=outcome == "unknown", now=self.now)
        granted = self.act()
        return multiple(*granted, *self.end(entry))

    def succeed(self, entry: Entry) -> list[Held]:
        """Let a provider be entered."""
        wanted = self.core.opened(entry, object(), self.now)
        assert wanted == (self.tasks[entry] == "opening")
        self.tasks[entry] = "open" if wanted else "leaving"
        if wanted:
            self.core.usable(entry, self.now)
        return self.act()

    @rule(target=leases, number=st.integers(0, 20))
    def time_out_open(self, number: int) -> Any:
        """A provider hangs: its waiters are told, its task goes on for a while."""
        entry = self.pick({"opening"}, number)
        if entry is not None:
            self.tasks[entry] = "called off"
            self.core.open_failed(entry, TimeoutError(), permanent=False, now=self.now)
        return multiple(*self.act())

    @rule(target=leases, number=st.integers(0, 20), clean=st.booleans())
    def finish_close(self, number: int, clean: bool) -> Any:
        """A provider was left."""
        entry = self.pick({"leaving"}, number)
        return multiple(*(self.end(entry, clean=clean) if entry is not None else []))

    def end(self, entry: Entry, *, clean: bool = True) -> list[Held]:
        """End an owner task."""
        assert id(entry) not in self.ended
        self.ended.add(id(entry))
        self.granted.append(Held(entry, None))  # keeps the entry, so that its id stays its own
        del self.tasks[entry]
        self.core.ended(entry, self.now, clean=clean)
        return self.act()

    @rule(target=leases, number=st.integers(0, 20))
    def kill_owner(self, number: int) -> Any:
        """A caller cancels an owner task from outside."""
        entry = self.pick({"open"}, number)
        if entry is None:
            return multiple()
        self.tasks[entry] = "leaving"
        self.core.died(entry, self.now)
        return multiple(*self.act())

    @rule(target=leases, held=leases, number=st.integers(0, 2))
    def report(self, held: Held, number: int) -> Any:
        """A caller reports, while holding its lease."""
        if held.entry.leases and number == 0:
            self.core.suspect(held.entry, self.now)
            assert self.core.table.ready.get(held.entry.identity) is not held.entry
        return multiple(*self.act())

    @rule(target=leases, held=leases)
    def meet_outage(self, held: Held) -> Any:
        """A use of what is leased finds its server full: that is known from now on, and closes nothing."""
        entry = held.entry
        if entry.leases:
            before = entry.state
            self.core.outage(entry, OSError("full"), self.now)
            assert self.core.troubled
            assert entry.state is before or entry.state is EntryState.DRAINING
        return multiple(*self.act())

    @rule(held=leases)
    def time_out_use(self, held: Held) -> None:
        """A use of a lease times out: its entry is checked before the next one."""
        if held.entry.leases:
            self.core.doubt(held.entry, self.now)

    @rule(target=leases, number=st.integers(0, 20))
    def release(self, number: int) -> Any:
        """A caller gives a lease back."""
        held = [entry for entry in self.core.table.entries if entry.leases]
        if held:
            entry = held[number % len(held)]
            entry.leases -= 1
            if not entry.leases:
                self.core.unused(entry, self.now)
        return multiple(*self.act())

    @rule(target=leases, number=st.integers(0, 20), healthy=st.booleans())
    def finish_check(self, number: int, healthy: bool) -> Any:
        """A health check ends."""
        if not self.checking:
            return multiple()
        entry = list(self.checking)[number % len(self.checking)]
        del self.checking[entry]
        self.core.checked(entry, self.now, healthy=healthy)
        return multiple(*self.act())

    @rule(target=leases, numbers=st.lists(st.integers(0, len(TENANTS) - 1), max_size=4))
    def invalidate(self, numbers: list[int]) -> Any:
        """A caller invalidates some tenants."""
        identities = [self.identify(TENANTS[number]) for number in numbers]
        before = [entry for entry in self.core.table.entries if entry.identity in identities]
        self.core.invalidate(identities, self.now)
        granted = self.act()
        assert all(entry.state not in {EntryState.READY, EntryState.OPENING, EntryState.CHECKING} for entry in before)
        return multiple(*granted)

    @rule(target=leases, seconds=st.sampled_from([0.1, 1.0, 3.0, 12.0, 40.0]))
    def wait(self, seconds: float) -> Any:
        """Time passes; timers ring, and the sweeper comes by."""
        self.now += seconds
        granted: list[Held] = []
        if any(when <= self.now for when in self.wake_at):
            self.wake_at = [when for when in self.wake_at if when > self.now]
            self.core.wake(self.now)
            granted += self.act()
        if not self.core.shut_down:
            self.core.sweep(self.now)
            granted += self.act()
        return multiple(*granted)

    @precondition(lambda self: not self.core.shut_down and self.now > 60.0)
    @rule()
    def shut(self) -> None:
        """The pool closes."""
        self.core.shut(self.now)
        assert self.act() == []
        assert not self.waiters, "every waiter was told"

    @precondition(lambda self: self.core.shut_down)
    @rule()
    def force(self) -> None:
        """The grace is over."""
        self.forced = True
        self.core.force(self.now)
        self.act()
        assert set(self.tasks.values()) <= {"leaving", "called off"}

    # -- invariants ---------------------------------------------------------------------------------------------

    @invariant()
    def keeps_the_budget(self) -> None:
        """I3: what is booked is what exists, and no more than the limit."""
        booked = sum(self.weights[entry] for entry in self.tasks)
        assert self.core.budget.used == booked <= self.limits.budget
        for host in range(self.hosts if self.per_host is not None else 0):
            gate = self.core.gates.find(host)
            there = sum(self.weights[entry] for entry in self.tasks if entry.host == host)
            admitted = [demand for demand in self.core.demands.values() if demand.admitted and demand.host == host]
            used = 0 if gate is None else gate.used
            assert used == there + sum(demand.weight for demand in admitted) <= (self.per_host or 0)
            assert all(demand.stage in {Stage.QUEUED, Stage.PARKED} for demand in admitted)

    @invariant()
    def opens_one_at_a_time_per_key(self) -> None:
        """I1: one OPENING and one READY per key, and never more opens than allowed."""
        for state in (EntryState.OPENING, EntryState.READY):
            keys = [entry.identity for entry in self.core.table.entries if entry.state is state]
            assert len(keys) == len(set(keys))
        entering = sum(state in {"opening", "called off"} for state in self.tasks.values())
        assert entering == self.core.table.opens <= self.limits.max_concurrent_opens

    @invariant()
    def keeps_its_books(self) -> None:
        """The groups of the table agree with the states of its entries."""
        table = self.core.table
        for state in EntryState:
            assert table.counts[state] == sum(entry.state is state for entry in table.entries)
        assert set(table.ready.values()) == {entry for entry in table.entries if entry.state is EntryState.READY}
        idle = {entry for entry in table.entries if entry.state is EntryState.READY and not entry.leases}
        assert {entry for entry in table.idle if entry.state is EntryState.READY} == idle
        assert table.draining_weight == sum(entry.weight for entry in table.revivable.values())
        assert all(entry.state is EntryState.DRAINING for entry in table.revivable.values())
        assert table.troubled_opens == sum(
            entry.troubled for entry in table.entries if entry.state in {EntryState.OPENING, EntryState.UNWINDING}
        )
        assert self.core.counters.opened - self.core.counters.closed == table.live

    @invariant()
    def forgets_nobody(self) -> None:
        """Every waiter waits in exactly one demand, and every demand waits for something that will happen."""
        core = self.core
        waiting = [waiter for demand in core.demands.values() for waiter in demand.waiters]
        assert set(waiting) == set(self.waiters)
        assert len(waiting) == len(set(waiting))
        for demand in core.demands.values():
            entries = [entry for entry in core.table.entries if entry.identity == demand.identity]
            if demand.stage is Stage.OPENING:
                assert any(entry.state is EntryState.OPENING for entry in entries)
            elif demand.stage is Stage.CHECKING:
                assert any(entry.state is EntryState.CHECKING for entry in entries)
            else:
                assert demand.waiters or demand.replaces

    @invariant()
    def serves_whom_it_can(self) -> None:
        """I9: the first in line never waits for what is free."""
        core = self.core
        head = next(iter(core.line), None)
        if head is not None and not core.shut_down and not head.troubled:
            assert core.budget.free < head.weight or core.table.opens >= self.limits.max_concurrent_opens
        for first in core.gates.heads():
            gate = core.gates.find(first.host)
            assert core.shut_down or gate is None or gate.limit is None or gate.used + first.weight > gate.limit

    @invariant()
    def remembers_little(self) -> None:
        """I10: bounded memory."""
        assert len(self.core.cooling) <= self.limits.remember
        assert len(self.core.hosts) <= self.limits.remember + self.limits.max_concurrent_opens

    def teardown(self) -> None:
        """I4 and I8: closed and finished, nothing is left."""
        if not hasattr(self, "core"):
            return
        self.core.shut(self.now)
        self.act()
        self.forced = True
        self.core.force(self.now)
        self.act()
        for entry in list(self.checking):
            self.core.checked(entry, self.now, healthy=False)
        for entry in list(self.tasks):
            self.end(entry)
        assert self.core.budget.used == 0
        assert not self.core.table.entries
        assert len(self.core.gates) == 0
        assert not self.waiters
        assert self.core.counters.opened == self.core.counters.closed


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.__doc__ = "No order of events breaks an invariant of the core."
TestPoolMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
