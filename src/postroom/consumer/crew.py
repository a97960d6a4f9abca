"""The consumer as its fleet sees it: which tenants have how much here, and what changed for them."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from postroom.consumer.engine import Engine
from postroom.consumer.tenants import Tenants
from postroom.events import Observers
from postroom.fleet import Fleet
from postroom.fleet.decisions import Verdict
from postroom.fleet.hints import Hints
from postroom.fleet.ledger import Demand
from postroom.fleet.member import Member
from postroom.scheduling import Scheduler


class Crew:
    """Connects a membership with scheduler, tenants and engine. Nothing here runs per message."""

    def __init__(self, scheduler: Scheduler[Any], tenants: Tenants, engine: Engine) -> None:
        self._scheduler = scheduler
        self._tenants = tenants
        self._engine = engine
        self._metered: dict[Hashable, None] = {}
        self._starved: dict[Hashable, None] = {}
        self.member: Member
        """Set once, when both are made."""

    def here(self) -> Iterable[Hashable]:
        """Return the tenants that have something here. Called once per tick: forgets the pace of those that left."""
        for tenant in [tenant for tenant in self._metered if self.member.ledger.entry(tenant) is None]:
            del self._metered[tenant]
            self._tenants.unmeter(tenant)
        return self._scheduler.tenants()

    def demand(self, tenant: Hashable) -> Demand:
        """Return what a tenant could use: of one that cannot run now, what tries or goes on."""
        figures = self._scheduler.figures(tenant)
        waiting = figures.waiting + figures.suspended
        if waiting and self._tenants.is_paused(tenant):
            waiting = 0
        elif (
            waiting > 1
            and tenant not in self._starved
            and self._scheduler.is_blocked(tenant)
            and self.member.ledger.rate_of(tenant) is None
        ):
            waiting = max(1, figures.suspended)
        return Demand(figures.running, waiting, self._scheduler.own_cap(tenant))

    def offer(self, tenants: Iterable[Hashable]) -> None:
        """Start what may start now."""
        for tenant in tenants:
            if tenant in self._metered:
                self._scheduler.wake(tenant)  # its lane sleeps until there are starts
            self._scheduler.look_again(tenant)
        self._engine.dispatch()
        self._engine.make_room()

    def starve(self, tenants: Iterable[Hashable], now: float) -> None:
        """Let messages of tenants without a slot here make room for those of others; of all others no longer."""
        before, self._starved = self._starved, dict.fromkeys(tenants)
        for tenant in before:
            if tenant not in self._starved:
                self._scheduler.withhold(tenant, withheld=False)
                if not self._tenants.is_paused(tenant):
                    self._engine.core.decided(tenant, paused=False)  # what made room may come back
        for tenant in self._starved:
            self._scheduler.withhold(tenant, withheld=True, now=now)

    def meter(self, tenant: Hashable) -> None:
        """Have a tenant's starts metered, before any of it can start."""
        if tenant not in self._metered:
            self._metered[tenant] = None
            self._engine.tasks.call_soon(self._tenants.meter, tenant)

    def overrule(self, rulings: Mapping[Hashable, Verdict], *, complete: bool) -> None:
        """Take over what was decided in the fleet."""
        self._tenants.overrule(rulings, complete=complete)

    async def carry_out(self, what: str, name: str) -> str | None:
        """Carry out what another replica ordered for a tenant."""
        return await self._tenants.handover.carry_out(what, name)


def join(
    fleet: Fleet,
    queue: str,
    scheduler: Scheduler[Any],
    tenants: Tenants,
    engine: Engine,
    *,
    hints: Hints,
    observers: Observers,
) -> Member:
    """Make the consumer's membership in its fleet."""
    crew = Crew(scheduler, tenants, engine)
    crew.member = Member(fleet, queue, engine.tasks, crew, hints=hints, observers=observers, pending=tenants.pending)
    tenants.join(crew.member)
    return crew.member
