"""How far apart tenants can get that always have work: one quantum and one job, whatever their handlers cost."""

import heapq
import itertools
from collections.abc import Callable, Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from postroom.scheduling import Scheduler, Ticket

QUANTUM = 0.05
costs = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8)
weights = st.floats(0.25, 4.0)


def backlog(scheduler: Scheduler[Ticket], tenants: int, depth: int = 3) -> Callable[[int], None]:
    """Give every tenant some tickets, and return what gives one of them another."""

    def more(tenant: int) -> None:
        scheduler.add(Ticket(tenant))

    for tenant in range(tenants):
        for _ in range(depth):
            more(tenant)
    return more


@settings(max_examples=120, deadline=None)
@given(tenants=st.lists(st.tuples(costs, weights), min_size=2, max_size=5), steps=st.integers(1, 300))
def test_two_backlogged_tenants_differ_by_at_most_one_quantum_and_one_job(
    tenants: list[tuple[list[float], float]], steps: int
) -> None:
    """With one slot, at every moment, by measured seconds per weight; estimates are wrong most of the time."""
    shares = {number: weight for number, (_, weight) in enumerate(tenants)}
    scheduler = Scheduler[Ticket](total=1, per_tenant=1, weights=shares, quantum=QUANTUM)
    more = backlog(scheduler, len(tenants))
    durations: list[Iterator[float]] = [itertools.cycle(costs) for costs, _ in tenants]
    served = [0.0] * len(tenants)
    longest = max(max(costs) / weight for costs, weight in tenants)
    for _ in range(steps):
        ticket = scheduler.grant()
        assert ticket is not None
        tenant = int(str(ticket.tenant))
        seconds = next(durations[tenant])
        more(tenant)
        scheduler.finish(ticket, seconds=seconds)
        served[tenant] += seconds / shares[tenant]
        assert max(served) - min(served) <= QUANTUM + longest + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.005, 0.5), min_size=2, max_size=6),
    slots=st.integers(1, 8),
    steps=st.integers(50, 400),
)
def test_with_many_slots_only_what_runs_comes_on_top(seconds: list[float], slots: int, steps: int) -> None:
    """Each of a tenant's running jobs may have been estimated wrongly; nothing else adds up."""
    scheduler = Scheduler[Ticket](total=slots, per_tenant=slots, quantum=QUANTUM)
    served = [0.0] * len(seconds)
    more = backlog(scheduler, len(seconds), depth=slots + 1)
    ends: list[tuple[float, int, Ticket]] = []
    now, tie = 0.0, itertools.count()
    for _ in range(steps):
        while (ticket := scheduler.grant()) is not None:
            tenant = int(str(ticket.tenant))
            more(tenant)
            heapq.heappush(ends, (now + seconds[tenant], next(tie), ticket))
        now, _, ended = heapq.heappop(ends)
        tenant = int(str(ended.tenant))
        scheduler.finish(ended, seconds=seconds[tenant])
        served[tenant] += seconds[tenant]
        assert max(served) - min(served) <= QUANTUM + (2 * slots + 1) * max(seconds)


def run_for(scheduler: Scheduler[Ticket], seconds: list[float], until: float) -> list[float]:
    """Serve tenants that always have work, and return the handler seconds that each got."""
    more = backlog(scheduler, len(seconds), depth=70)
    served = [0.0] * len(seconds)
    ends: list[tuple[float, int, Ticket]] = []
    now, tie = 0.0, itertools.count()
    while now < until:
        while (ticket := scheduler.grant(now)) is not None:
            tenant = int(str(ticket.tenant))
            heapq.heappush(ends, (now + seconds[tenant], next(tie), ticket))
        now, _, ended = heapq.heappop(ends)
        tenant = int(str(ended.tenant))
        more(tenant)
        scheduler.finish(ended, seconds=seconds[tenant])
        served[tenant] += seconds[tenant]
    return served


def jain(values: list[float]) -> float:
    """Jain's fairness index: 1.0 when all are the same, 1/n when one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def test_handler_seconds_are_shared_evenly_over_ten_seconds() -> None:
    """Jain's index over ten seconds, with handlers of 2 ms to 500 ms, is 0.99 or better."""
    seconds = [0.002, 0.01, 0.02, 0.05, 0.1, 0.5]
    assert jain(run_for(Scheduler[Ticket](total=12, per_tenant=12), seconds, 10.0)) >= 0.99


def test_weights_share_in_proportion() -> None:
    """A tenant of weight 3 gets three times the handler seconds of one of weight 1."""
    scheduler = Scheduler[Ticket](total=8, per_tenant=8, weights={0: 3.0})
    served = run_for(scheduler, [0.02, 0.1], 20.0)
    assert 2.8 <= served[0] / served[1] <= 3.2
