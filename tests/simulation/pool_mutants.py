"""Wrong pools: each takes one promise away. The schedules have to notice every one of them."""

import asyncio
import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from postroom.display import display_key
from postroom.resources import plan as plan_module
from postroom.resources import pool as pool_module
from postroom.resources.breaker import Cooling, Hosts
from postroom.resources.budget import Budget
from postroom.resources.core import Core
from postroom.resources.engine import Engine
from postroom.resources.entries import Demand, Entry, EntryState, LeaseRequest, Reason, Stage, Table, Waiter
from postroom.resources.gates import Gates
from postroom.resources.identity import Identifier, Identity
from postroom.resources.line import Line
from postroom.resources.plan import View
from postroom.resources.pool import ResourcePool
from postroom.resources.providers import _FromFunction
from postroom.resources.refusals import NotOpened

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Register a mutant under the name of its function."""
    MUTANTS[apply.__name__] = apply
    return apply


@mutant
def evicts_what_is_in_use(patch: Patch) -> None:
    """I2: the budget is taken from a lease that is in use."""

    def evictable(self: Table) -> Iterator[Entry]:
        return iter(list(self.ready.values()))

    patch.setattr(Table, "evictable", evictable)


@mutant
def gives_the_budget_back_at_eviction(patch: Patch) -> None:
    """I3: the next open starts while the close still runs."""
    close, ended = Core._close, Core.ended

    def early(self: Core, entry: Entry, reason: Reason, now: float) -> None:
        close(self, entry, reason, now)
        self.budget.give_back(entry.weight)
        entry.weight = 0

    patch.setattr(Core, "_close", early)
    patch.setattr(Core, "ended", ended)


@mutant
def has_no_single_flight(patch: Patch) -> None:
    """I1: every call that misses opens."""
    ask = Core.ask

    def alone(self: Core, request: LeaseRequest, waiter: Waiter, now: float) -> None:
        demand = self.demands.get(request.identity)
        if demand is not None and demand.stage is Stage.OPENING:
            del self.demands[request.identity]
        ask(self, request, waiter, now)

    patch.setattr(Core, "ask", alone)


@mutant
def lets_one_cancelled_waiter_fail_the_others(patch: Patch) -> None:
    """I6: every waiter of the same open is cancelled too."""
    withdraw: Any = ResourcePool._withdraw

    def together(self: Any, waiter: Waiter, engine: Engine) -> None:
        others = list(waiter.demand.waiters) if waiter.demand is not None else []
        withdraw(self, waiter, engine)
        for other in others:
            other.future.cancel()

    patch.setattr(ResourcePool, "_withdraw", together)


@mutant
def passes_the_providers_cancellation_on(patch: Patch) -> None:
    """I6: waiters get what the provider raised, as it is."""
    patch.setattr(NotOpened, "error", lambda self, context: self.cause.error)


@mutant
def admits_two_probes(patch: Patch) -> None:
    """I9: a half-open breaker lets everybody through."""
    room = Hosts.room

    def wide(self: Hosts, name: Hashable, now: float) -> int:
        host = self._hosts.get(name)
        return 2 if host is not None and host.until and host.until <= now else room(self, name, now)

    patch.setattr(Hosts, "room", wide)


@mutant
def closes_twice(patch: Patch) -> None:
    """I4: the cleanup runs again."""
    leave = _FromFunction.__aexit__

    async def twice(self: Any, *error: Any) -> None:
        await leave(self, *error)
        await leave(self, *error)

    patch.setattr(_FromFunction, "__aexit__", twice)


@mutant
def never_closes_what_opened_too_late(patch: Patch) -> None:
    """I4: an open that was called off leaves its resource behind."""

    async def entered(self: Any) -> Any:
        return await self._opening

    patch.setattr(_FromFunction, "__aenter__", entered)
    patch.setattr(_FromFunction, "__aexit__", _nothing)


async def _nothing(*_arguments: Any) -> None:
    """Do nothing."""


@mutant
def joins_keys_to_a_text(patch: Patch) -> None:
    """I5: ("c", "d") and "c:d" share a resource."""

    def joined(self: Identifier, key: Any) -> Identity:
        return (display_key(key.name),)

    patch.setattr(Identifier, "__call__", joined)


@mutant
def believes_pythons_equality(patch: Patch) -> None:
    """I5: 1, 1.0 and True share a resource."""

    def equal(self: Identifier, key: Any) -> Identity:
        return (key,)

    patch.setattr(Identifier, "__call__", equal)


@mutant
def remembers_every_failure(patch: Patch) -> None:
    """I10: negative entries grow without bound."""
    make = Cooling.__init__

    def endless(self: Cooling, backoff: Any, _remember: int, jitter: Any) -> None:
        make(self, backoff, 1_000_000, jitter)

    patch.setattr(Cooling, "__init__", endless)


@mutant
def forgets_demands_badly(patch: Patch) -> None:
    """I10: a key without waiters keeps its place in the line."""

    def leave(self: Core, waiter: Waiter, now: float) -> None:
        demand, waiter.demand = waiter.demand, None
        if demand is not None:
            demand.waiters.pop(waiter, None)

    patch.setattr(Core, "leave", leave)


@mutant
def opens_on_after_the_close(patch: Patch) -> None:
    """I8: what is being opened when the pool closes comes up all the same."""
    shut = Core.shut

    def careless(self: Core, now: float) -> None:
        call_off, self._call_off = self._call_off, lambda entry, now: None  # type: ignore[method-assign]  # the mutation
        shut(self, now)
        self._call_off = call_off  # type: ignore[method-assign]  # the mutation

    patch.setattr(Core, "shut", careless)


@mutant
def leases_what_was_invalidated(patch: Patch) -> None:
    """I5: what is ready stays ready."""

    def invalidate(self: Core, identities: Any, now: float) -> None:
        for identity in identities:
            self.cooling.forget(identity)

    patch.setattr(Core, "invalidate", invalidate)


@mutant
def hands_out_an_open_older_than_its_invalidation(patch: Patch) -> None:
    """I5: only what is ready is invalidated, not what is being opened."""
    invalidate = Core.invalidate

    def half(self: Core, identities: Any, now: float) -> None:
        opening = {entry.identity for entry in self.table.entries if entry.state is EntryState.OPENING}
        invalidate(self, [identity for identity in identities if identity not in opening], now)

    patch.setattr(Core, "invalidate", half)


@mutant
def leases_what_was_reported_broken(patch: Patch) -> None:
    """I5: a report changes nothing."""
    patch.setattr(Core, "suspect", lambda self, entry, now: None)


@mutant
def revives_what_was_reported_broken(patch: Patch) -> None:
    """I5: a broken entry that drains for others becomes ready again."""

    def keep(self: Table, entry: Entry) -> None:
        if entry.state is not EntryState.DRAINING and self.revivable.get(entry.identity) is entry:
            del self.revivable[entry.identity]
            self.draining_weight -= entry.weight

    patch.setattr(Table, "unrevive", keep)


@mutant
def loses_budget(patch: Patch) -> None:
    """I8: a close does not give its weight back."""
    patch.setattr(Budget, "give_back", lambda self, weight: None)


@mutant
def ignores_deadlines(patch: Patch) -> None:
    """I7: waiters wait without a limit."""
    patch.setattr(ResourcePool, "_expire", lambda self, waiter, engine: None)


@mutant
def drops_the_lease_of_a_cancelled_waiter(patch: Patch) -> None:
    """I6: what was granted in the instant of a cancellation is lost."""

    def careless(self: Any, waiter: Waiter, engine: Engine) -> None:
        self._core.leave(waiter, engine.loop.time())
        if waiter.future.done() and not waiter.future.cancelled():
            lease = waiter.future.result()
            if hasattr(lease, "_entry"):
                lease._entry = None
        engine.act()

    patch.setattr(ResourcePool, "_withdraw", careless)


@mutant
def serves_the_last_first(patch: Patch) -> None:
    """I9: the line is a stack."""
    give_place = Line.give_place

    def push(self: Line, demand: Demand, *, front: bool = False) -> None:
        give_place(self, demand, front=front)
        demand.sequence = demand.sequence if front else 1_000_000 - demand.sequence

    patch.setattr(Line, "give_place", push)


@mutant
def opens_everything_at_once(patch: Patch) -> None:
    """I3: no limit on concurrent opens."""
    patch.setattr(View, "openings", property(lambda self: 1_000))


@mutant
def forgets_to_wake_the_line(patch: Patch) -> None:
    """I9: budget comes back and no waiter is told."""

    def silent(self: Core, entry: Entry, now: float, *, clean: bool) -> None:
        self.table.remove(entry)
        self.budget.give_back(entry.weight)
        self.counters.closed += entry.opened

    patch.setattr(Core, "ended", silent)


@mutant
def leaves_parked_demands_behind(patch: Patch) -> None:
    """I9: a host answers, and those who waited for its answer are not told."""
    patch.setattr(Core, "_unpark", lambda self, host, now: None)


@mutant
def skips_the_health_check(patch: Patch) -> None:
    """Health: what was idle for long is leased as it is."""
    patch.setattr(Core, "needs_check", lambda self, entry, now: False)
    patch.setattr(Core, "_due_for_check", lambda self, now: [])


@mutant
def hammers_what_failed(patch: Patch) -> None:
    """I9: a failing key is tried again at once."""
    patch.setattr(Cooling, "remaining", lambda self, identity, now: 0.0)
    patch.setattr(Core, "_refusal", lambda self, request, now: None)


@mutant
def closes_without_grace(patch: Patch) -> None:
    """I2: a stop does not wait for leases."""
    shut = Core.shut

    def rude(self: Core, now: float) -> None:
        shut(self, now)
        self.force(now)

    patch.setattr(Core, "shut", rude)


@mutant
def never_closes_what_is_idle(patch: Patch) -> None:
    """The sweeper looks away."""
    patch.setattr(Core, "sweep", lambda self, now: None)


@mutant
def leases_what_closes(patch: Patch) -> None:
    """I2: an entry that drains or closes can still be found."""
    move = Table.move

    def sticky(self: Table, entry: Entry, state: EntryState, now: float) -> None:
        found = self.ready.get(entry.identity)
        move(self, entry, state, now)
        if found is entry and state is not EntryState.CHECKING:
            self.ready[entry.identity] = entry

    patch.setattr(Table, "move", sticky)


@mutant
def leaves_the_provider_from_another_task(patch: Patch) -> None:
    """I4: close runs where the last lease was released."""
    leave = _FromFunction.__aexit__

    async def elsewhere(self: Any, *error: Any) -> None:
        await asyncio.create_task(leave(self, *error))

    patch.setattr(_FromFunction, "__aexit__", elsewhere)


@mutant
def leaves_its_sweeper_behind(patch: Patch) -> None:
    """I8: a task outlives the close."""

    async def close(self: Any, engine: Engine) -> None:
        while self._core.table.entries:
            await asyncio.sleep(0.001)

    patch.setattr(pool_module.ResourcePool, "_close", close)


@mutant
def counts_waiters_not_keys(patch: Patch) -> None:
    """I9: a key with many waiters moves up the line."""
    join, give_place, before_all = Core._join, Line.give_place, itertools.count(1)

    def apart(self: Line, demand: Demand, *, front: bool = False) -> None:
        give_place(self, demand, front=front)
        demand.sequence *= 1_000_000  # so that there is room before the first

    def louder(self: Core, demand: Demand, waiter: Waiter) -> None:
        join(self, demand, waiter)
        if len(demand.waiters) > 1 and demand.stage is Stage.QUEUED:
            self.line.remove(demand)
            demand.sequence = next(before_all)
            self.line.add(demand)

    patch.setattr(Line, "give_place", apart)
    patch.setattr(Core, "_join", louder)


@mutant
def ignores_the_budget_of_a_host(patch: Patch) -> None:
    """I3: whatever a host can take, everything that the pool has room for is opened there."""
    put = Gates.put

    def unlimited(self: Gates, demand: Demand) -> None:
        demand.host_limit = None
        put(self, demand)

    patch.setattr(Gates, "put", unlimited)


@mutant
def gives_a_hosts_budget_back_at_eviction(patch: Patch) -> None:
    """I3: the next open on a host starts while the close there still runs."""
    close = Core._close

    def early(self: Core, entry: Entry, reason: Reason, now: float) -> None:
        close(self, entry, reason, now)
        self.gates.ended(entry)
        entry.admitted = False

    patch.setattr(Core, "_close", early)


@mutant
def loses_the_budget_of_a_host(patch: Patch) -> None:
    """I8: a close does not give back what it had of its host."""
    patch.setattr(Gates, "ended", lambda self, entry: None)


@mutant
def keeps_what_a_withdrawn_demand_took(patch: Patch) -> None:
    """I3: a key that a host admitted, and that leaves before anything opens, takes its place along."""
    withdraw = Gates.withdraw

    def greedy(self: Gates, demand: Demand) -> None:
        if demand.stage is Stage.AT_GATE:
            withdraw(self, demand)

    patch.setattr(Gates, "withdraw", greedy)


@mutant
def forgets_who_waits_at_a_gate(patch: Patch) -> None:
    """I9: a host has room again, and its first in line is not told."""
    patch.setattr(Gates, "_settle", lambda self, host: self._gates[host].unused and self._gates.pop(host))


@mutant
def evicts_nothing_for_a_host(patch: Patch) -> None:
    """I9: idle resources fill a host while others wait at its gate."""
    patch.setattr(plan_module, "_make_room_on_host", lambda view, gate, demand, shortfall, now: None)


@mutant
def hands_out_what_timed_out(patch: Patch) -> None:
    """Health: a use timed out, and the next one gets the same resource unchecked."""
    patch.setattr(Core, "doubt", lambda self, entry, now: None)


@mutant
def closes_what_is_sick_under_its_users(patch: Patch) -> None:
    """I2: a check that finds a resource sick while it is in use closes it at once."""
    checked = Core.checked

    def at_once(self: Core, entry: Entry, now: float, *, healthy: bool) -> None:
        leases, entry.leases = entry.leases, 0 if not healthy else entry.leases
        checked(self, entry, now, healthy=healthy)
        entry.leases = leases

    patch.setattr(Core, "checked", at_once)


@mutant
def blames_the_message_for_a_full_server(patch: Patch) -> None:
    """Outage: too many connections, met in use, count as the message's own failure."""
    patch.setattr(Engine, "outage", lambda self, entry, error: False)


@mutant
def forgets_an_outage_that_a_use_met(patch: Patch) -> None:
    """Outage: it is called one, and nothing is left alone for it."""
    patch.setattr(Core, "outage", lambda self, entry, error, now: None)
