"""Schedules in which each consumer consumes several queues with one set of slots, one pool and one set of tenants.

They are the same schedules otherwise: what a seed decides about one queue is decided about all of them together, and
every oracle of ``watch.py``, ``process.py`` and ``verdicts.py`` judges the whole consumer. In particular *slots*: the
handlers of all queues together never are more than ``total``, or than ``per_tenant``.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from postroom.consumer import lifecycle
from postroom.consumer.rota import Rota
from postroom.settlement import Settler
from simulation.consumer.plan import Plan
from simulation.consumer.planting import Mutant, search, swap
from simulation.consumer.schedule import Outcome, run_consumer_schedule


def with_many_queues(plan: Plan) -> Plan:
    """Spread a plan over two to five queues. Its own random numbers: those of the plan are not drawn again."""
    rng = Random(plan.seed ^ 0x9E5)
    return replace(plan, queues=rng.randint(2, 5), listed=rng.random() < 0.4, equal=False)


def run_many_queues_schedule(seed: int) -> Outcome:
    """Run one schedule in virtual time."""
    return run_consumer_schedule(seed, change=with_many_queues)


def many_queues_violations(seed: int) -> tuple[str, ...]:
    """Return what was broken in one schedule."""
    return run_many_queues_schedule(seed).violations


# -- planted defects ---------------------------------------------------------------------------------------------------


def _slots_for_each_queue(scheduler_limits: Any) -> Any:
    """Count slots by queue: each of two has its own."""

    def mutant(self: Any, *arguments: Any) -> Mapping[str, Any]:
        limits = dict(scheduler_limits(self, *arguments))
        limits["total"] *= 2
        return limits

    return mutant


def _caps_for_each_queue(scheduler_limits: Any) -> Any:
    """Count a tenant's handlers by queue."""

    def mutant(self: Any, *arguments: Any) -> Mapping[str, Any]:
        limits = dict(scheduler_limits(self, *arguments))
        limits["per_tenant"] = limits["total"]
        return limits

    return mutant


def _settles_elsewhere(make: Any) -> Any:
    """Settle every message of a consumer in the queue that it opened first."""

    def mutant(self: Any, queue: Any, *arguments: Any, tasks: Any, **options: Any) -> None:
        tasks.first_queue = getattr(tasks, "first_queue", queue)
        make(self, tasks.first_queue, *arguments, tasks=tasks, **options)

    return mutant


def _asks_the_first_only(add: Any) -> Any:
    """Ask no queue but the first one."""

    def mutant(self: Any, station: Any, now: float) -> None:
        if not len(self):
            add(self, station, now)

    return mutant


MUTANTS: tuple[Mutant, ...] = (
    Mutant("has slots for each queue", swap(lifecycle.Run, "_scheduler_limits", _slots_for_each_queue), 6, "slots"),
    Mutant("caps a tenant in each queue", swap(lifecycle.Run, "_scheduler_limits", _caps_for_each_queue), 3, "slots"),
    Mutant("settles in the first queue", swap(Settler, "__init__", _settles_elsewhere), 1, "liveness"),
    Mutant("asks the first queue only", swap(Rota, "add", _asks_the_first_only), 0, "liveness"),
)


if __name__ == "__main__":
    sys.exit(search(MUTANTS, violations=many_queues_violations))
