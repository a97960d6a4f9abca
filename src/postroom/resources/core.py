"""The pool as a state machine: what happened goes in, what to do comes out. No task, no clock, no I/O.

Every method takes the time, changes the state at once and completely, and leaves in ``actions`` what is to be done.
``ResourcePool`` does it. Here is where the invariants of docs/design.md are kept:

* I1 a key has one demand, and a demand opens one entry;
* I2 only an entry without leases moves to CLOSING, but for ``Core.force`` and a cancelled owner;
* I3 the budget is taken when an entry is made and given back in ``Core.ended``; so is a host's, in ``gates``;
* I9 who is served next is decided in ``plan``, and nowhere else.
"""

import random
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any, Final

from postroom.options import OpenBackoff, PoolLimits
from postroom.resources import actions, news, plan
from postroom.resources.actions import Action
from postroom.resources.breaker import Cooling, Hosts
from postroom.resources.budget import Budget
from postroom.resources.causes import Cause
from postroom.resources.entries import Demand, Entry, EntryState, LeaseRequest, Reason, Stage, Table, Waiter
from postroom.resources.gates import Gates
from postroom.resources.identity import Identity
from postroom.resources.line import Line
from postroom.resources.refusals import HostDown, NotOpened, PoolClosed, Refusal, StillCooling
from postroom.resources.statistics import Counters

_READY: Final = EntryState.READY  # a release looks at it: found in a third of the time
_LEASED: Final = frozenset({EntryState.READY, EntryState.CHECKING})
_IN_LINE: Final = frozenset({Stage.QUEUED, Stage.PARKED, Stage.AT_GATE})
LONG_WAIT: Final = 1.0
"""Seconds of waiting for budget that are worth a line in the log, however short the patience is."""
TELL_AGAIN: Final = 60.0
"""Seconds between two such lines."""
_MOST_HOLDERS: Final = 3
_KEPT: Final = 60.0
"""Seconds for which a key has its place in line without a call that waits. A message asks again once it has a slot."""


class Core:
    """Everything that a pool knows and decides."""

    def __init__(
        self,
        *,
        limits: PoolLimits,
        backoff: OpenBackoff,
        probe_deadline: float,
        jitter: random.Random,
        checks: bool,
        name: str = "pool",
    ) -> None:
        self.limits = limits
        self.name = name
        self.checks = checks
        """Whether the pool has a health check."""
        self.counters: Counters = Counters()
        self.table: Table = Table()
        self.budget: Budget = Budget(limits.budget)
        self.cooling: Cooling = Cooling(backoff, limits.remember, jitter)
        self.hosts: Hosts = Hosts(backoff, limits.remember, jitter, probe_deadline)
        self.gates: Gates = Gates(enabled=limits.per_host is not None)
        self.line: Line = Line()
        self.demands: dict[Identity, Demand] = {}
        self._left: OrderedDict[Identity, tuple[Demand, float]] = OrderedDict()
        """Demands that were in line until their last call left, and when that was, the oldest first."""
        self.actions: list[Action] = []
        self.shut_down: bool = False
        self._jitter = jitter
        self._wake_at: float | None = None
        self._told_of_waiting: float | None = None
        self._view = plan.View(
            line=self.line,
            table=self.table,
            budget=self.budget,
            gates=self.gates,
            cooling=self.cooling,
            hosts=self.hosts,
            max_opens=limits.max_concurrent_opens,
            patience=limits.patience,
        )

    @property
    def troubled(self) -> bool:
        """Whether anything is left alone, or has failed since its last success."""
        return bool(self.cooling.records or self.hosts.troubled)

    # -- leases -------------------------------------------------------------------------------------------------

    def needs_check(self, entry: Entry, now: float) -> bool:
        """Return whether a lease has to check a ready entry first: it was idle for long, or a use of it timed out."""
        if not self.checks:
            return False
        # A resource in use is tried by its users at this moment: their reports say more than a
        # check. But users that all time out, one begun after the other, would never let it be
        # checked. One that is a single connection is busy, and cannot be asked.
        if entry.leases and entry.weight == 1:
            return False
        return entry.doubtful or (not entry.leases and now - entry.checked_at > self.limits.check_after)

    def ask(self, request: LeaseRequest, waiter: Waiter, now: float) -> None:
        """Let a waiter have a lease, now or later, or refuse it."""
        entry = self.table.ready.get(request.identity)
        demand = self.demands.get(request.identity)
        if entry is not None and not self.needs_check(entry, now):
            # Before any refusal: what is open may be leased although its replacement fails.
            self._grant(entry, waiter)
        elif demand is not None:
            self._join(demand, waiter)
        elif entry is not None:
            self._join(self._check(entry, now), waiter)
        elif (refusal := self._refusal(request, now)) is not None:
            self.counters.refusals += 1
            self.actions.append(actions.TurnAway(waiter, refusal))
        else:
            self._join(self._demand(request, now), waiter)
        self._serve(now)
        if waiter.demand is not None and waiter.demand.stage in _IN_LINE and len(waiter.demand.waiters) == 1:
            self.counters.waits += 1

    def leave(self, waiter: Waiter, now: float) -> None:
        """Forget a waiter that was cancelled or is too late. What it waited for goes on if others want it."""
        demand = waiter.demand
        if demand is None:
            return
        waiter.demand = None
        demand.waiters.pop(waiter, None)
        # Only in line. An open under way goes on: cancelling it would throw away what the next
        # lease of this key can use.
        if not demand.waiters and not demand.replaces and demand.stage in _IN_LINE:
            self._drop(demand, now)
            self._keep_place(demand, now)
            self._serve(now)

    def unused(self, entry: Entry, now: float) -> None:
        """Decide what becomes of an entry when its last lease came back, or its check is over."""
        if entry.state is _READY:
            entry.checked_at = entry.idle_since = now
            self.table.idle[entry] = None
        elif entry.state is EntryState.CHECKING:
            entry.idle_since = now
            self.table.idle[entry] = None
        elif entry.state is EntryState.DRAINING and not entry.busy:
            self._close(entry, entry.reason or Reason.CAPACITY, now)
        if self.demands:  # no key stands in line without one
            self.gates.stir(entry.host)
            self._serve(now)

    def suspect(self, entry: Entry, now: float) -> None:
        """Stop leasing this entry: its use showed that it is broken."""
        if entry.state in _LEASED or self.table.revivable.get(entry.identity) is entry:
            self.cooling.distrust(entry.identity, entry.context, now)
            self._retire(entry, Reason.SUSPECT, now)
            self._serve(now)

    def doubt(self, entry: Entry, now: float) -> None:
        """Check an entry before its next lease: its use timed out. Where several of a host did, check all of it."""
        entry.doubtful = True
        if self.hosts.doubted(entry.host, entry.identity, now):
            for other in self.table.entries:
                other.doubtful = other.doubtful or other.host == entry.host

    def outage(self, entry: Entry, error: BaseException, now: float) -> None:
        """Note that a use of an entry met an outage of its server: its key counts as failed, and so for its host."""
        before = self.cooling.find(entry.identity)
        if before is not None and before.until > now:
            before.in_use = True
            return  # uses that ran side by side met the same outage: it is one failure, and no pause becomes shorter
        cause = Cause(error, entry.context)
        pause = self.cooling.failed(
            entry.identity, entry.context, cause, permanent=False, now=now, in_use=True, host=entry.host, key=entry.key
        )
        tripped = self.hosts.failed_in_use(entry.host, entry.identity, cause, now)
        self._tell_failure(entry, cause, pause, now, tripped=tripped, in_use=True)
        if tripped:
            self._refuse_host(entry.host, now)
            self._serve(now)

    # -- what owner tasks report --------------------------------------------------------------------------------

    def opened(self, entry: Entry, resource: Any, now: float) -> bool:
        """Note that a provider was entered. Returns False when it is not wanted after all: leave it at once."""
        entry.opened = True
        entry.resource = resource
        entry.stamp = entry.identity
        self.counters.opened += 1
        if entry.state is not EntryState.OPENING:
            self._count_eviction(entry, Reason.CALLED_OFF)
            self.table.move(entry, EntryState.CLOSING, now)
            self._serve(now)
            return False
        record = self.cooling.find(entry.identity)
        entry.verify = self.checks and record is not None and record.verify
        return True

    def usable(self, entry: Entry, now: float) -> tuple[Hashable, ...]:
        """Hand out an entry that was opened, and checked where the one before it broke.

        Returns other keys of its host that may be tried at once.
        """
        if entry.state is not EntryState.OPENING:
            return ()
        self._tell_recovery(entry, now)
        invited = self.cooling.found_room(entry.identity, now)
        self.cooling.forget(entry.identity)
        self.hosts.succeeded(entry.host, probe=entry.probe)
        # Make before break: the predecessor drains only now that its successor can be leased.
        for group in (self.table.ready, self.table.revivable):
            if predecessor := group.get(entry.identity):
                self._retire(predecessor, Reason.AGE, now)
        entry.since = entry.checked_at = entry.idle_since = now
        if self.limits.max_age is not None:
            # With jitter: after a deployment all tenants open in the same minute, and would
            # otherwise all be replaced in the same minute, again and again.
            entry.expires_at = now + self.limits.max_age * self._jitter.uniform(0.9, 1.0)
        self.table.move(entry, EntryState.READY, now)
        self._hand_out(entry, self.demands.pop(entry.identity, None))
        if not entry.leases:
            self.table.idle[entry] = None
        self.gates.stir(entry.host)
        self._unpark(entry.host, now)
        self._serve(now)
        return invited

    def open_failed(self, entry: Entry, error: BaseException, *, permanent: bool, now: float) -> float:
        """Note that a provider failed, or is too slow, or opened something unhealthy. Returns the pause."""
        if entry.state is not EntryState.OPENING:
            return 0.0
        self.counters.open_failures += 1
        self.counters.permanent_failures += permanent
        cause = Cause(error, entry.context)
        pause = self.cooling.failed(
            entry.identity, entry.context, cause, permanent=permanent, now=now, host=entry.host, key=entry.key
        )
        tripped = False
        if permanent or entry.opened:
            # An unknown tenant, or an unhealthy resource: the server has answered, so this is no
            # outage of it.
            self.hosts.undecided(entry.host, probe=entry.probe)
        else:
            tripped = self.hosts.failed(entry.host, entry.identity, cause, now, probe=entry.probe)
        self._tell_failure(entry, cause, pause, now, tripped=tripped)
        if tripped and entry.probe:
            self.cooling.excuse(entry.identity, now)  # it was tried in its host's name: that failed, not the key
            pause = self.hosts.remaining(entry.host, now)
        self._leave_opening(entry, Reason.UNHEALTHY, now)
        demand = self.demands.pop(entry.identity, None)
        if demand is not None:
            self._turn_away(demand, NotOpened(entry.key, cause, permanent, pause))
        if tripped:
            self._refuse_host(entry.host, now)
        self._unpark(entry.host, now)
        self._serve(now)
        return pause

    def ended(self, entry: Entry, now: float, *, clean: bool) -> None:
        """Note that an owner task is over: the resource is closed, its budget is free."""
        self.table.remove(entry)
        # Only after the close (I3). Given back with the decision to close, a slow close would let
        # more be open than the limit.
        self.budget.give_back(entry.weight)
        self.gates.ended(entry)
        if entry.opened:
            self.counters.closed += 1
            self.counters.close_failures += not clean
        self._serve(now)

    def died(self, entry: Entry, now: float) -> None:
        """Note that an owner task was cancelled from outside: it leaves its provider, leases or not."""
        if entry.state is not EntryState.CLOSING:
            self._count_eviction(entry, Reason.CANCELLED)
            self._abandon_check(entry, now)
            self.table.move(entry, EntryState.CLOSING, now)
            self._serve(now)

    # -- health -------------------------------------------------------------------------------------------------

    def checked(self, entry: Entry, now: float, *, healthy: bool) -> None:
        """Note the result of a health check."""
        entry.pinned = False
        self.counters.checks += 1
        if entry.state is not EntryState.CHECKING:
            # It was retired while it was checked; the check was the last use that kept it open.
            self.unused(entry, now)
            return
        if healthy:
            entry.checked_at = now
            entry.doubtful = False
            self.hosts.trusted(entry.host)
            self.table.move(entry, EntryState.READY, now)
            self._hand_out(entry, self.demands.pop(entry.identity, None))
        else:
            self.counters.check_failures += 1
            self.cooling.distrust(entry.identity, entry.context, now)
            self.table.move(entry, EntryState.DRAINING, now)
            self._retire(entry, Reason.UNHEALTHY, now)
            self._ask_again(entry.identity, now)
        self.gates.stir(entry.host)  # it is idle now, and may give way
        self._serve(now)

    # -- orders -------------------------------------------------------------------------------------------------

    def invalidate(self, identities: Iterable[Identity], now: float) -> None:
        """Lease nothing of these keys that exists by now; forget their failures."""
        wanted = dict.fromkeys(identities)
        for identity in wanted:
            self.forget_failures(identity)
        # The newest first, because each goes to the front of the line: so they stand there in their old order.
        for entry in [entry for entry in reversed(self.table.entries) if entry.identity in wanted]:
            if entry.state is EntryState.OPENING:
                self._call_off(entry, now)
                self._ask_again(entry.identity, now)
                self._unpark(entry.host, now)
            else:
                self._retire(entry, Reason.INVALIDATED, now)
        self._serve(now)

    def forget_failures(self, identity: Identity) -> None:
        """Drop what is remembered of a key's failures: the tenant was repaired."""
        record = self.cooling.find(identity)
        if record is not None and record.told:
            self._tell(news.Repaired(record.key))
        self.cooling.forget(identity)

    def sweep(self, now: float) -> None:
        """Close what was idle for too long, replace what is too old, check what was not used for a while."""
        self.cooling.purge(now, self.demands)
        while self._left and next(iter(self._left.values()))[1] < now - _KEPT:
            self._left.popitem(last=False)
        self.hosts.purge(now)
        idle = self.limits.idle
        # Lists, here and below: closing an entry takes it out of what is iterated.
        for entry in [entry for entry in self.table.evictable() if idle is not None and now - entry.idle_since >= idle]:
            self._close(entry, Reason.IDLE, now)
        for entry in [entry for entry in self.table.ready.values() if entry.expires_at <= now]:
            self._renew(entry, now)
        for entry in self._due_for_check(now):
            self._check(entry, now)
        self.gates.stir_all()
        self._serve(now)
        for demand in (next(iter(self.line), None), *self.gates.heads()):
            if demand is not None:
                self.note_waiting(demand, now)

    def wake(self, now: float) -> None:
        """Look again, as asked for by ``WakeAt``."""
        # First: `_look_again` ignores a time that is not earlier than the one noted here.
        self._wake_at = None
        self.gates.stir_all()
        self._serve(now)

    def shut(self, now: float) -> None:
        """Close everything that is not in use, call off what is opening, turn away every waiter."""
        # First: what follows frees budget, and `_serve` must not open anything with it.
        self.shut_down = True
        for demand in list(self.demands.values()):
            if demand.stage in _IN_LINE:
                self._take_out(demand)
            self._turn_away(demand, PoolClosed(self.name))
        self.demands.clear()
        self._left.clear()
        self.gates.clear()
        for entry in list(self.table.entries):
            if entry.state is EntryState.OPENING:
                self._call_off(entry, now)
            else:
                self._retire(entry, Reason.SHUTDOWN, now)

    def force(self, now: float) -> None:
        """Close what is still leased: the grace is over (the exception of I2)."""
        for entry in [entry for entry in self.table.entries if entry.state is EntryState.DRAINING]:
            self._close(entry, entry.reason or Reason.SHUTDOWN, now)

    # -- the inside: demands ------------------------------------------------------------------------------------

    def _demand(self, request: LeaseRequest, now: float) -> Demand:
        demand = self.demands[request.identity] = Demand(request, now)
        record = self.cooling.find(request.identity)
        demand.troubled = record is not None and record.failures > 0
        if (left := self._left.pop(request.identity, None)) is None:
            self.line.give_place(demand)
        else:
            before, _ = left
            demand.since, demand.sequence, demand.overtaken = before.since, before.sequence, before.overtaken
        self._line_up(demand)
        return demand

    def _keep_place(self, demand: Demand, now: float) -> None:
        """Remember the place of a demand that no call waits for now: its caller may ask again after its deadline.

        Behind all others each time, a key would never come first where the line takes longer than the deadlines.
        """
        if len(self._left) >= self.limits.remember:
            self._left.popitem(last=False)
        self._left[demand.identity] = demand, now

    def _line_up(self, demand: Demand) -> None:
        """Put a demand into the line, at its place: its host's first, where the host has a budget, then the pool's."""
        if self.gates.counts(demand.host):
            self.gates.put(demand)
        else:
            self.line.add(demand)

    def _take_out(self, demand: Demand) -> None:
        if demand.stage is not Stage.AT_GATE:
            self.line.remove(demand)
        self.gates.withdraw(demand)

    def _join(self, demand: Demand, waiter: Waiter) -> None:
        demand.waiters[waiter] = None
        waiter.demand = demand

    def _refusal(self, request: LeaseRequest | Demand, now: float) -> Refusal | None:
        if request.identity in self.table.revivable:
            return None
        record = self.cooling.find(request.identity)
        host_down = self.hosts.remaining(request.host, now) > 0
        # An unknown tenant is named as such even while its host is down. Any other failure of the
        # key is the host's failure then.
        if record is not None and record.until > now and (record.permanent or not host_down):
            return StillCooling(request.key, record.failures, record.cause, record.permanent, self._pause(request, now))
        return self._host_down(request, self._pause(request, now)) if host_down else None

    def _host_down(self, request: LeaseRequest | Demand, pause: float) -> HostDown:
        host = self.hosts.find(request.host)
        return HostDown(request.key, request.host, None if host is None else host.cause, pause)

    def last_cause(self, demand: Demand) -> Cause | None:
        """Return what the last failure of a demand's key was, or of its host."""
        record, host = self.cooling.find(demand.identity), self.hosts.find(demand.host)
        return (None if record is None else record.cause) or (None if host is None else host.cause)

    def retry_after(self, request: LeaseRequest, now: float) -> float:
        """Return the seconds for which a key is left alone; 0.0 if there is something that may be leased anyway.

        What is open counts for nothing if its last use met an outage of its server.
        """
        record = self.cooling.find(request.identity)
        if record is not None and record.in_use:
            return self._pause(request, now)
        demand = self.demands.get(request.identity)
        checking = demand is not None and demand.stage is Stage.CHECKING
        if checking or request.identity in self.table.ready or request.identity in self.table.revivable:
            return 0.0
        return self._pause(request, now)

    def unknown_at(self, request: LeaseRequest, now: float) -> float | None:
        """Return when it was said that there is no such tenant; None unless the key is left alone because of that."""
        record = self.cooling.find(request.identity)
        if record is None or not record.permanent or record.until <= now or self.retry_after(request, now) <= 0:
            return None
        return record.at

    def _pause(self, request: LeaseRequest | Demand, now: float) -> float:
        return max(self.cooling.remaining(request.identity, now), self.hosts.remaining(request.host, now))

    def _turn_away(self, demand: Demand, refusal: Refusal) -> None:
        for waiter in demand.waiters:
            waiter.demand = None
            self.actions.append(actions.TurnAway(waiter, refusal))
        demand.waiters.clear()

    def _drop(self, demand: Demand, now: float) -> None:
        """Take a demand out of the line without opening anything for it."""
        self._take_out(demand)
        del self.demands[demand.identity]
        self._unpark(demand.host, now)  # it may have been the one that the others of its host wait for

    def _ask_again(self, identity: Identity, now: float) -> None:
        """Put a demand back that its entry was taken from, to the front of the line; drop it if no call waits."""
        demand = self.demands.get(identity)
        if demand is None:
            return
        refusal = self._refusal(demand, now)
        if refusal is not None:
            self._turn_away(demand, refusal)
        if demand.waiters:
            # To the front: this key has already waited for its turn once.
            self.line.give_place(demand, front=True)
            self._line_up(demand)
        else:
            del self.demands[identity]

    def _refuse_host(self, host: Any, now: float) -> None:
        rest = self.hosts.remaining(host, now)
        gate = self.gates.find(host)
        waiting = [] if gate is None else list(gate.waiting)
        for demand in self.line.of_host(host) + waiting:
            if demand.identity not in self.table.revivable:
                refusal = self._host_down(demand, rest)
                self._drop(demand, now)
                self._turn_away(demand, refusal)

    def _unpark(self, host: Any, now: float) -> None:
        if host is not None:
            self.line.unpark(host, self.hosts.room(host, now))

    # -- the inside: entries ------------------------------------------------------------------------------------

    def _grant(self, entry: Entry, waiter: Waiter) -> None:
        self.table.idle.pop(entry, None)
        entry.leases += 1
        waiter.demand = None
        self.actions.append(actions.Grant(entry, waiter))

    def _hand_out(self, entry: Entry, demand: Demand | None) -> None:
        """Give a ready entry to everybody who waits for its key."""
        if demand is not None:
            if demand.identity != entry.stamp:
                raise AssertionError("a resource was about to be handed to another tenant")  # I5
            for waiter in list(demand.waiters):
                self._grant(entry, waiter)
            demand.waiters.clear()

    def _check(self, entry: Entry, now: float, demand: Demand | None = None) -> Demand:
        """Start the health check of an entry. Who wants a lease waits for it."""
        self.table.move(entry, EntryState.CHECKING, now)
        entry.pinned = True
        demand = self.demands[entry.identity] = demand or Demand(_request_of(entry), now)
        demand.stage = Stage.CHECKING
        self.actions.append(actions.Check(entry))
        return demand

    def _due_for_check(self, now: float) -> list[Entry]:
        """Return idle entries that would need a check on their next lease, before the next sweep."""
        if not self.checks or self.line:
            return []
        # While keys wait for budget nothing is checked: an entry being checked cannot give way to
        # them.
        horizon = now + self.limits.sweep - self.limits.check_after
        due = [entry for entry in self.table.evictable() if entry.doubtful or entry.checked_at <= horizon]
        room = self.limits.max_concurrent_opens - self.table.counts[EntryState.CHECKING]
        return [entry for entry in due if entry.identity not in self.demands][: max(0, room)]

    def _abandon_check(self, entry: Entry, now: float) -> None:
        if entry.state is EntryState.CHECKING:
            self.actions.append(actions.StopCheck(entry))
            self.table.move(entry, EntryState.DRAINING, now)
            self._ask_again(entry.identity, now)

    def _retire(self, entry: Entry, reason: Reason, now: float) -> None:
        """Lease an entry no more, and close it as soon as it is not in use."""
        self._abandon_check(entry, now)
        if entry.state is EntryState.READY:
            self.table.move(entry, EntryState.DRAINING, now)
        if entry.state is not EntryState.DRAINING:
            return
        self.table.unrevive(entry)
        # The first reason stays. Lack of budget is none of the entry's own, so any other one
        # replaces it.
        entry.reason = reason if entry.reason in {None, Reason.CAPACITY} else entry.reason
        if not entry.busy:
            self._close(entry, reason, now)

    def _close(self, entry: Entry, reason: Reason, now: float) -> None:
        self._count_eviction(entry, reason)
        self.table.move(entry, EntryState.CLOSING, now)
        self.actions.append(actions.Close(entry))

    def _call_off(self, entry: Entry, now: float) -> None:
        self.hosts.undecided(entry.host, probe=entry.probe)
        self._leave_opening(entry, Reason.CALLED_OFF, now)
        self.actions.append(actions.CallOff(entry))

    def _leave_opening(self, entry: Entry, reason: Reason, now: float) -> None:
        """Give up an open. What was opened already has to be closed, what was not has to unwind."""
        if entry.opened:
            self._count_eviction(entry, reason)
        self.table.move(entry, EntryState.CLOSING if entry.opened else EntryState.UNWINDING, now)

    def _renew(self, entry: Entry, now: float) -> None:
        """Make before break: open the successor of a busy entry first, where the budget allows it."""
        demand = self.demands.get(entry.identity)
        if not entry.busy:
            self._retire(entry, Reason.AGE, now)
        elif demand is not None and demand.stage in _IN_LINE and now - demand.since >= self.limits.sweep:
            demand.replaces = False  # no room for two of them: break before make
            if not demand.waiters:
                self._drop(demand, now)
            self._retire(entry, Reason.AGE, now)
        elif demand is None:
            self._succeed(entry, now)

    def _succeed(self, entry: Entry, now: float) -> None:
        request = _request_of(entry)
        # Both are open for a moment, each with its whole weight. Where that never fits, the
        # successor would wait until the sweep gives up.
        if 2 * entry.weight > min(self.budget.limit, entry.host_limit or self.budget.limit):
            self._retire(entry, Reason.AGE, now)
        elif self._refusal(request, now) is None:
            self._demand(request, now).replaces = True

    def _count_eviction(self, entry: Entry, reason: Reason) -> None:
        entry.reason = reason
        evictions = self.counters.evictions
        evictions[reason] = evictions.get(reason, 0) + 1

    # -- the inside: who is next ----------------------------------------------------------------------------

    def _serve(self, now: float) -> None:
        """Carry out the next step for those who wait, until only events help."""
        if self.shut_down:
            return
        while True:
            self._serve_gates(now)
            step = plan.next_step(self._view, now)
            if step is not None:
                self._take(step, now)
            if (step is None or isinstance(step, plan.LookAgain)) and not self.gates.stirred:
                break
        if not self.line and self.table.revivable:
            for entry in list(self.table.revivable.values()):  # their budget is not needed after all
                if not self.gates.waits(entry.host):
                    self._revive(entry, now)

    def _serve_gates(self, now: float) -> None:
        """Let into the pool's line what the budgets of their hosts have room for."""
        stirred = self.gates.stirred
        while stirred:
            host = next(iter(stirred))
            step = plan.next_at_gate(self._view, host, now)
            if step is None or isinstance(step, plan.LookAgain):
                stirred.pop(host, None)
            if step is not None:
                self._take(step, now)

    def _take(self, step: plan.Step, now: float) -> None:
        match step:
            case plan.Start(demand, overtaken):
                self._start(demand, overtaken, now)
            case plan.Admit(demand):
                self.gates.admit(demand)
                self.line.add(demand)
            case plan.Revive(entry):
                self._revive(entry, now)
            case plan.Evict(entry):
                self._close(entry, Reason.CAPACITY, now)
            case plan.Drain(entry):
                entry.reason = Reason.CAPACITY
                self.table.move(entry, EntryState.DRAINING, now)
                self.table.make_revivable(entry)
            case plan.Park(demand):
                self.line.park(demand)
            case plan.Refuse(demand):
                refusal = self._refusal(demand, now) or self._host_down(demand, 0.0)
                self._drop(demand, now)
                self._turn_away(demand, refusal)
            case plan.Drop(demand):
                self._drop(demand, now)
            case plan.LookAgain(when):
                self._look_again(when)

    def _look_again(self, when: float) -> None:
        if self._wake_at is None or when < self._wake_at:
            self._wake_at = when
            self.actions.append(actions.WakeAt(when))

    def _start(self, demand: Demand, overtaken: Iterable[Demand], now: float) -> None:
        for passed in overtaken:
            passed.overtaken += 1
        self.line.remove(demand)
        demand.stage = Stage.OPENING
        self.budget.take(demand.weight)
        entry = Entry(demand, now)
        self.gates.opening(demand, entry)
        entry.probe = self.hosts.started(demand.host, now)
        self.table.add(entry)
        self.actions.append(actions.Open(entry))

    def _revive(self, entry: Entry, now: float) -> None:
        self.counters.revived += 1
        entry.since = now
        entry.reason = None
        self.table.move(entry, EntryState.READY, now)
        demand = self.demands.get(entry.identity)
        in_line = demand is not None and demand.stage in _IN_LINE
        if demand is None or not demand.waiters or not self.needs_check(entry, now):
            self._hand_out(entry, demand)
            if demand is not None and in_line:
                self._drop(demand, now)
        elif in_line:  # otherwise another one is being opened for them
            self._take_out(demand)
            self._check(entry, now, demand)
            self._unpark(entry.host, now)
        self.gates.stir(entry.host)

    # -- the inside: what is told -------------------------------------------------------------------------------

    def note_waiting(self, demand: Demand, now: float) -> None:
        """Tell, once a minute and no more, that a key has waited for budget for long, and who has it."""
        waited = now - demand.since
        if not demand.waiters or waited <= max(self.limits.patience, LONG_WAIT):
            return
        if self._told_of_waiting is not None and now - self._told_of_waiting < TELL_AGAIN:
            return
        gate = self.gates.find(demand.host) if demand.stage is Stage.AT_GATE else None
        if gate is None and not self.lacks_budget(demand):
            return  # it is an opening that is missing
        used, limit = (self.budget.used, self.budget.limit) if gate is None else (gate.used, gate.limit or 0)
        if used + demand.weight <= limit:
            return
        self._told_of_waiting = now
        held = sorted(self.table.entries if gate is None else gate.entries, key=_most_weight_first)[:_MOST_HOLDERS]
        holders = tuple((entry.key, entry.weight, entry.leases) for entry in held)
        host = None if gate is None else demand.host
        self._tell(news.Exhausted(demand.key, waited, demand.weight, used, limit, host, holders))

    def lacks_budget(self, demand: Demand) -> bool:
        """Whether a demand waits for budget: what is idle would give way to it."""
        missing = demand.weight - self.budget.free
        return missing > 0 and self.table.evictable_weight(missing) < missing

    def _tell(self, told: news.News) -> None:
        self.actions.append(actions.Tell(told))

    def _tell_failure(
        self,
        entry: Entry,
        cause: Cause,
        pause: float,
        now: float,
        *,
        tripped: bool,
        in_use: bool = False,
    ) -> None:
        """Tell of an outage: of the host once it has tripped, of the key until then."""
        record, host = self.cooling.find(entry.identity), self.hosts.find(entry.host)
        if host is not None and tripped:
            rest = self.hosts.remaining(entry.host, now)
            self._tell(news.HostFailed(entry.host, entry.key, cause, rest, host.trips))
        if record is None:
            return
        # One line for the host instead of one for each of its tenants, of which there may be
        # thousands.
        of_host = host is not None and host.trips > 0 and not record.permanent
        loud = not record.told and not of_host
        record.told = record.told or loud
        failed = (entry.key, cause, record.permanent, pause, record.failures)
        self._tell(news.OpenFailed(*failed, loud=loud, told=record.told, in_use=in_use))

    def _tell_recovery(self, entry: Entry, now: float) -> None:
        record, host = self.cooling.find(entry.identity), self.hosts.find(entry.host)
        if host is not None and host.trips:
            self._tell(news.HostAvailable(entry.host, now - host.down_since, host.trips))
        if record is not None and record.told:
            self._tell(news.Available(entry.key, now - record.since, record.failures + 1))


def _request_of(entry: Entry) -> LeaseRequest:
    return LeaseRequest(entry.identity, entry.key, entry.context, entry.weight, entry.host, entry.host_limit)


def _most_weight_first(entry: Entry) -> tuple[int, int]:
    return -entry.weight, -entry.leases
