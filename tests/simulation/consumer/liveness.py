"""Oracle *liveness*: after everything has healed, every message is settled within a bound that the options give."""

from collections.abc import Iterable

from postroom import AckMode
from postroom.options import OpenBackoff, PoolTimeouts
from simulation.consumer.plan import ENDLESS, OrderPlan, Plan

_SLACK = 60.0
OUTAGE = 30.0
"""Seconds for which a tenant is left alone at most after its handlers met an outage of its resources."""
_CROWDED = 2_700.0
"""Seconds for which a message is away at most that was one too many: a process that crashed calls nothing back."""
_STEP = 3.0
"""Seconds that a message takes beside its handler: polls, opens, latencies."""


def bound(plan: Plan, orders: Iterable[OrderPlan]) -> float:
    """Return the seconds within which a healthy consumer settles the messages that are left.

    It is what one message after another takes at most, each try behind the longest pause of everything that may be
    in its way, after what was under way before it healed is over. Generous, but no more than linear in the tries.
    """
    options = plan.options
    backoff = plan.backoff if plan.shared_pool else OpenBackoff()
    # Twice: where others of its tenant have just tried in vain, it waits for the end of their pause, then of its own.
    pause: float = options["retry"].cap + _STEP + 2 * max(backoff.cap, backoff.permanent)
    if plan.ack is AckMode.MANUAL:
        pause += options["visibility"].timeout  # nothing is done about a failure: it is left to that
    if options["faults"].breaker_after is not None:
        pause += options["faults"].cap
    if plan.cuts:
        pause += OUTAGE
    if (limit := options["concurrency"].handler_timeout) is not None:
        pause += limit
    total: float = sum(each.seconds + _STEP + _tries(plan, each) * (each.seconds + pause) for each in orders)
    return left_over(plan) + total


def left_over(plan: Plan) -> float:
    """Return the seconds for which what happened before it healed may still be in the way."""
    timeouts = plan.timeouts if plan.shared_pool else PoolTimeouts()
    visibility: float = max(plan.options["visibility"].timeout, plan.options["visibility"].max_extension % 43_200)
    away = _CROWDED if plan.crowded and not plan.fifo else 0.0
    return _SLACK + 2 * visibility + plan.faults.hang * bool(plan.faults.hung) + timeouts.lease + timeouts.open + away


def _tries(plan: Plan, order: OrderPlan) -> int:
    """Return how many tries of a message go wrong, at most."""
    if order.kind in ENDLESS:
        most = max([plan.max_receives or 0, *(each.max_receives or 0 for each in plan.redrives)])
        return most or 20
    return order.attempts
