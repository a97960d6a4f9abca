"""A slice of the schedules with several queues for each consumer, and whether the oracles would notice a defect."""

from collections import Counter

import pytest

from simulation.consumer.many_queues import (
    MUTANTS,
    many_queues_violations,
    run_many_queues_schedule,
    with_many_queues,
)
from simulation.consumer.plan import make_ordinary_plan
from simulation.consumer.planting import Mutant, killed_by
from simulation.soak import oracle_of


@pytest.mark.parametrize("first", range(0, 20, 20))
def test_no_schedule_breaks_a_promise(first: int) -> None:
    """Every oracle of docs/proof.md judges the consumer as a whole, whatever queue a message is from."""
    facts: Counter[str] = Counter()
    queues: set[int] = set()
    listed = 0
    for seed in range(first, first + 20):
        outcome = run_many_queues_schedule(seed)
        assert not outcome.violations, f"seed {seed}: {outcome.violations[0]}\n{outcome.history.text()}"
        facts.update(outcome.facts)
        queues.add(outcome.plan.queues)
        listed += outcome.plan.listed
    assert queues == {2, 3, 4, 5}
    assert listed > 3
    assert facts["handlers"] > 200
    assert facts["redelivered"] > 15


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_oracles_notice_a_planted_defect(mutant: Mutant) -> None:
    """The schedule that was found by searching for this mutant kills it."""
    assert oracle_of(killed_by(mutant, mutant.seed, violations=many_queues_violations) or "nothing") == mutant.oracle


@pytest.mark.long
@pytest.mark.parametrize("seed", sorted({mutant.seed for mutant in MUTANTS}))
def test_without_a_planted_defect_nothing_is_broken_there(seed: int) -> None:
    """What kills a mutant is the defect, and not the schedule."""
    assert run_many_queues_schedule(seed).violations == ()


def test_a_message_group_is_in_one_queue_and_a_tenant_in_several() -> None:
    """Order holds within a group of one queue; slots are shared by a tenant's messages of all queues."""
    groups: dict[tuple[int, str], set[int]] = {}
    tenants: dict[tuple[int, str], set[int]] = {}
    for seed in range(50):
        plan = with_many_queues(make_ordinary_plan(seed))
        for order in plan.orders:
            tenants.setdefault((seed, order.tenant), set()).add(plan.queue_of(order))
            if plan.fifo and order.group is not None:
                groups.setdefault((seed, order.group), set()).add(plan.queue_of(order))
    assert {len(each) for each in groups.values()} == {1}
    assert sum(len(each) > 1 for each in tenants.values()) > len(tenants) / 2
