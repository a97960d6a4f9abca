"""Whatever happens in whatever order, the scheduler keeps its caps, its counts, its groups, and loses no message."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from postroom.scheduling import Scheduler, State, Ticket


class SchedulerMachine(RuleBasedStateMachine):
    """A model beside the scheduler: every ticket that was added, with its state."""

    running = Bundle("running")
    suspended = Bundle("suspended")

    def __init__(self) -> None:
        super().__init__()
        self.tickets: list[Ticket] = []
        self.scheduler = Scheduler[Ticket](total=1, per_tenant=1)
        self.total = self.per_tenant = 1

    @initialize(total=st.integers(1, 4), per_tenant=st.integers(1, 3))
    def configure(self, total: int, per_tenant: int) -> None:
        """Choose the caps."""
        self.total, self.per_tenant = total, per_tenant
        self.scheduler = Scheduler[Ticket](total=total, per_tenant=per_tenant)

    @rule(tenant=st.integers(0, 3), group=st.none() | st.sampled_from(["g", "h"]))
    def add(self, tenant: int, group: str | None) -> None:
        """A message arrives."""
        ticket = Ticket(tenant, group)
        self.tickets.append(ticket)
        self.scheduler.add(ticket)

    @rule(target=running, tenants=st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple))
    def receive(self, tenants: tuple[int, ...]) -> Ticket | None:
        """Some messages arrive together: where there is room for all, each is seated unless its tenant has its cap."""
        tickets = [Ticket(tenant) for tenant in tenants]
        room = self.scheduler.has_room(len(tickets))
        assert not room or (self._count(State.WAITING) == 0 and self._count(State.SUSPENDED) == 0)
        for ticket in tickets:
            may_run = room and self._count(State.RUNNING, ticket.tenant) < self.per_tenant
            if not (room and self.scheduler.seat(ticket)):
                self.scheduler.add(ticket)
            self.tickets.append(ticket)
            assert (ticket.state is State.RUNNING) is may_run
        return tickets[0]

    @rule(target=running)
    def grant(self) -> Ticket | None:
        """A slot is asked for."""
        ticket = self.scheduler.grant()
        if ticket is None:
            assert not self._somebody_could_run(), "work-conserving"
        else:
            assert ticket.state is State.RUNNING
        return ticket

    @rule(target=suspended, ticket=consumes(running))
    def suspend(self, ticket: Ticket | None) -> Ticket | None:
        """A running ticket waits for its tenant's resources."""
        if ticket is not None and ticket.state is State.RUNNING:
            self.scheduler.suspend(ticket)
        return ticket

    @rule(ticket=consumes(suspended))
    def resume(self, ticket: Ticket | None) -> None:
        """Its resources are there; it waits for its slot, which grant() gives it like any other."""
        if ticket is not None and ticket.state is State.SUSPENDED:
            self.scheduler.resume(ticket)

    @rule(ticket=consumes(running) | consumes(suspended))
    def finish(self, ticket: Ticket | None) -> None:
        """A message ends, in whatever state it is."""
        if ticket is not None:
            self.scheduler.finish(ticket)
            assert ticket.state is State.DONE

    @rule(ticket=running)
    def fail_group(self, ticket: Ticket | None) -> None:
        """A message fails: what is behind it in its group comes back in order."""
        if ticket is not None and ticket.state is State.RUNNING and ticket.group is not None:
            behind = [t for t in self.tickets if t.group == ticket.group and t.state is State.WAITING]
            assert self.scheduler.withdraw_group(ticket) == behind

    @rule(keep=st.integers(0, 2))
    def shed(self, keep: int) -> None:
        """Blocked lanes give up their surplus, which is done then."""
        for ticket in self.scheduler.shed(keep=keep, blocked_before=0):
            assert ticket.state is State.DONE

    @rule()
    def stop(self) -> None:
        """Everything that waits comes back, once."""
        waiting = [t for t in self.tickets if t.state is State.WAITING]
        withdrawn = self.scheduler.withdraw_waiting()
        assert len(withdrawn) == len(waiting)
        assert set(map(id, withdrawn)) == set(map(id, waiting))

    def _count(self, state: State, tenant: object = None) -> int:
        return sum(t.state is state and (tenant is None or t.tenant == tenant) for t in self.tickets)

    def _somebody_could_run(self) -> bool:
        busy_groups = {t.group for t in self.tickets if t.state in {State.RUNNING, State.SUSPENDED}}
        return self._count(State.RUNNING) < self.total and any(
            t.state is State.WAITING
            and (t.group is None or t.group not in busy_groups)
            and not self._count(State.SUSPENDED, t.tenant)
            and self._count(State.RUNNING, t.tenant) < self.per_tenant
            and t.lane is not None
            for t in self.tickets
        )

    @invariant()
    def caps_hold(self) -> None:
        """Never more than total, never more than per_tenant for one tenant, one of a group."""
        assert self._count(State.RUNNING) <= self.total
        for tenant in range(4):
            assert self._count(State.RUNNING, tenant) <= self.per_tenant
        for group in ("g", "h"):
            active = [t for t in self.tickets if t.group == group and t.state in {State.RUNNING, State.SUSPENDED}]
            assert len(active) <= 1

    @invariant()
    def counts_agree(self) -> None:
        """The gauges are what the tickets say."""
        gauges = self.scheduler.statistics()
        assert gauges.running == self._count(State.RUNNING)
        assert gauges.waiting == self._count(State.WAITING) == self.scheduler.waiting
        assert gauges.suspended == self._count(State.SUSPENDED)
        blocked = {t.tenant for t in self.tickets if t.state is State.SUSPENDED}
        lined_up = [t for t in self.tickets if t.state is State.WAITING and t.tenant in blocked and t.lane is not None]
        assert self.scheduler.blocked == self._count(State.SUSPENDED) + len(lined_up)
        assert self.scheduler.size == sum(t.state is not State.DONE for t in self.tickets)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
