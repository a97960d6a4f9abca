"""What makes a schedule harder than an ordinary one: kinds of events that are drawn one by one, each rarely.

They change a plan that was made without them, with random numbers of their own. So ordinary schedules still happen,
most harder ones have one or two hardships, and the old kinds of events go on beside them.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import postroom
from postroom import Concurrency, Polling, RetryPolicy, Visibility
from postroom.testing.databases import Trouble
from postroom.testing.faults import ClientFaults
from simulation.consumer.plan import (
    ENDLESS,
    Cut,
    Deployment,
    Event,
    Kind,
    OpenError,
    OrderPlan,
    Plan,
    Raising,
    Redrive,
    make_ordinary_plan,
    make_shutdown,
)

ORDINARY = 0.35
"""How many schedules have no hardship at all."""
FUNCTIONS = (
    "resolver",
    "key",
    "host",
    "weight",
    "classify",
    "delay",
    "on_error",
    "observer",
    "middleware",
    "overrides",
    "weights",
)
"""The user's functions that may raise."""
_POOL_FUNCTIONS = frozenset({"key", "host", "weight", "classify"})
REFUSING = (Trouble.REFUSING, Trouble.BLACK_HOLE)
_STOPS_A_TENANT = ("pause", "pause", "quarantine", "limit concurrency", "limit rate", "drain")

Harden = Callable[[Plan, Random], Plan]


def make_plan(seed: int) -> Plan:
    """Decide everything that can be decided beforehand: an ordinary plan, and in most cases some hardships."""
    plan = make_ordinary_plan(seed)
    rng = Random(seed ^ 0x4A4D)
    if rng.random() < ORDINARY:
        return plan
    for name, chance, harden in HARDSHIPS:
        if rng.random() < chance:
            plan = replace(harden(plan, rng), hardships=(*plan.hardships, name))
            if name == "overload":
                break
    return plan


def without_endless(orders: tuple[OrderPlan, ...]) -> tuple[OrderPlan, ...]:
    """Let every message end well: without a dead-letter queue those that cannot would stay."""
    return tuple(replace(each, kind=Kind.WELL) if each.kind in ENDLESS else each for each in orders)


def make_event(rng: Random, plan: Plan, what: str, **fixed: Any) -> Event:
    """Return an event of which everything is drawn that is not given."""
    chosen: dict[str, Any] = {
        "at": rng.uniform(0, plan.end - 5),
        "index": rng.randint(0, 2),
        "tenant": rng.choice(plan.tenants),
        "seconds": rng.choice((0.3, 2.0, 10.0)),
        "trouble": rng.choice(tuple(Trouble)[1:]),
        "grace": rng.uniform(0, 3),
        "control": rng.choice(_STOPS_A_TENANT),
    }
    return Event(what=what, **(chosen | fixed))


def with_events(plan: Plan, *events: Event, **changes: Any) -> Plan:
    """Return a plan with more events, and with other changes."""
    return replace(plan, events=tuple(sorted((*plan.events, *events), key=lambda each: each.at)), **changes)


# -- one function for each ---------------------------------------------------------------------------------------------


def _overload(plan: Plan, rng: Random) -> Plan:
    """Equal tenants with a backlog of small messages and few slots; nothing else happens, or one outage."""
    tenants = tuple(f"t{number}" for number in range(rng.randint(2, 8)))
    each = rng.randint(80, 180) // len(tenants)
    seconds = rng.choice((0.1, 0.5, 1.0))
    orders = tuple(
        OrderPlan(f"{tenant}-{number}", tenant, f"{tenant}-0" if plan.fifo else tenant, 0.0, Kind.WELL, seconds, 0)
        for number in range(each)
        for tenant in tenants
    )
    total = rng.choice((4, 8, 16))
    outage = rng.random() < 0.3
    options = plan.options | {
        "concurrency": Concurrency(total=total, per_tenant=rng.randint(1, total)),
        "polling": Polling(wait=20, pollers=rng.choice((1, 2, 8)), scout=plan.options["polling"].scout),
        "visibility": Visibility(timeout=30),
        "faults": postroom.Faults(poison_after=None),
        "shutdown": make_shutdown(poll=2.0, drain=20.0, cancel=1.0, flush=5.0, close=2.0),
    }
    plan = replace(
        plan,
        tenants=tenants,
        orders=orders,
        events=(),
        broken=(),
        processes=1,
        faults=ClientFaults(latency=0.05),
        options=options,
        limits=replace(plan.limits, budget=len(tenants), max_concurrent_opens=len(tenants), max_age=None, idle=None),
        slow_resolver=0.0,
        survivors_finish=True,
        hardships=(),
        deployments=(),
        raising=(),
        redrives=(),
        equal=not outage and not plan.fifo,
    )
    if outage:
        trouble = rng.choice(REFUSING)
        return with_events(
            plan, make_event(rng, plan, "host trouble", at=rng.uniform(0, 5), seconds=20.0, trouble=trouble)
        )
    return plan


def _small_receives(plan: Plan, rng: Random) -> Plan:
    most = rng.choice((None, 1, 2, 3, 4, 5, 6, 8, 10, 20))
    orders = without_endless(plan.orders) if most is None else plan.orders
    return replace(plan, max_receives=most, orders=orders, promised=rng.choice((None, None, 1, 2, 3, 5)))


def _decisions_in_an_outage(plan: Plan, rng: Random) -> Plan:
    """A host is down; an operator decides about one of its tenants meanwhile, and takes it back later, or never."""
    start = rng.uniform(0, 6)
    outage = make_event(rng, plan, "host trouble", at=start, seconds=rng.uniform(8, 22), trouble=rng.choice(REFUSING))
    decisions = [
        make_event(rng, plan, "control", at=start + rng.uniform(0, 6), seconds=rng.uniform(5, 23), index=index)
        for index in range(plan.processes)
    ]
    if rng.random() < 0.5:
        return with_events(plan, outage, *decisions, hosts=1)
    return with_events(plan, outage, *decisions, hosts=1, kept_paused=decisions[0].tenant, survivors_finish=True)


def _cancellation(plan: Plan, rng: Random) -> Plan:
    return with_events(plan, make_event(rng, plan, rng.choice(("cancel again", "cancel levels"))))


def _foreign_errors(plan: Plan, rng: Random) -> Plan:
    return replace(plan, faults=replace(plan.faults, foreign=rng.choice((0.02, 0.1))))


def _hung_extensions(plan: Plan, rng: Random) -> Plan:
    hang = rng.choice((1.0, 1.5)) * plan.options["visibility"].timeout
    return replace(plan, faults=replace(plan.faults, hung=rng.choice((0.1, 0.4)), hang=hang))


def _denied_attributes(plan: Plan, rng: Random) -> Plan:
    """A role that may not read the queue's attributes: at times, or from the beginning."""
    denied = rng.choice((0.5, 1.0))
    blind = denied == 1.0
    orders = plan.orders
    if blind:  # it cannot know of a dead-letter queue: what a Reject comes to then depends on the mode
        orders = tuple(replace(each, kind=Kind.WELL) if each.kind is Kind.REJECTS else each for each in orders)
    return replace(plan, faults=replace(plan.faults, denied=denied), blind=blind, orders=orders)


def _raising_functions(plan: Plan, rng: Random) -> Plan:
    name = rng.choice(FUNCTIONS)
    start = rng.choice((0.0, rng.uniform(0, 10)))
    tenant = rng.choice((None, *plan.tenants))
    raising = Raising(name, tenant, start, start + rng.uniform(2, 18), rng.choice((0.3, 1.0)))
    hosts = plan.hosts or 1 if name == "host" else plan.hosts
    return replace(
        plan,
        raising=(*plan.raising, raising),
        hosts=hosts,
        shared_pool=plan.shared_pool or name in _POOL_FUNCTIONS,
        max_receives=_room_for_more(plan, rng),
    )


def _room_for_more(plan: Plan, rng: Random) -> int | None:
    return plan.max_receives if plan.max_receives is None else rng.choice((plan.max_receives, 8))


def _panics(plan: Plan, rng: Random) -> Plan:
    orders = tuple(replace(each, kind=Kind.PANICS) if rng.random() < 0.2 else each for each in plan.orders)
    return replace(plan, orders=orders)


def _bad_deployment(plan: Plan, rng: Random) -> Plan:
    start = rng.choice((0.0, rng.uniform(0, 8)))
    tenants = plan.tenants if rng.random() < 0.5 else (rng.choice(plan.tenants),)
    error = rng.choice(tuple(OpenError))
    return replace(plan, deployments=(Deployment(tenants, start, start + rng.uniform(5, 20), error),))


def _changing_redrive(plan: Plan, rng: Random) -> Plan:
    """A policy appears, changes or goes away; then, once there was time to notice it, a host goes down for long."""
    end = 300.0
    first, then = rng.choice(((None, 3), (None, 5), (8, 3), (3, None), (8, 5), (5, 20)))
    outage = rng.uniform(130, 170)
    orders = tuple(
        replace(each, at=rng.choice((each.at, rng.uniform(0, 250)))) for each in without_endless(plan.orders)
    )
    plan = replace(plan, max_receives=first, end=end, orders=tuple(sorted(orders, key=lambda order: order.at)))
    trouble = make_event(
        rng, plan, "host trouble", at=outage, seconds=rng.uniform(40, 120), trouble=rng.choice(REFUSING)
    )
    return with_events(plan, trouble, redrives=(Redrive(rng.uniform(1, 10), then),))


def _short_retention(plan: Plan, rng: Random) -> Plan:
    """Messages that SQS forgets after a minute or two, and an outage that lasts longer."""
    retention = rng.choice((60, 60, 90))
    plan = replace(plan, end=150.0, retention=retention, max_receives=rng.choice((1, 3, 5, 8, 20)))
    if rng.random() < 0.7:  # nothing else that could be blamed
        plan = replace(plan, faults=ClientFaults(latency=0.05), events=(), broken=(), processes=1)
    seconds = rng.uniform(20, 145)
    return with_events(
        plan,
        make_event(rng, plan, "host trouble", at=rng.uniform(0, 3), seconds=seconds, trouble=rng.choice(REFUSING)),
    )


def _blocked_loop(plan: Plan, rng: Random) -> Plan:
    timeout = plan.options["visibility"].timeout
    seconds = rng.choice((0.5, 1.1, 2.0)) * timeout
    return with_events(
        plan, make_event(rng, plan, rng.choice(("block", "freeze")), at=rng.uniform(0, 20), seconds=seconds)
    )


def _stop_while_starting(plan: Plan, rng: Random) -> Plan:
    return with_events(plan, make_event(rng, plan, "stop starting", seconds=rng.choice((0.5, 3.0, 100_000.0))))


def _late_success(plan: Plan, rng: Random) -> Plan:
    """Every message of one tenant fails until its N-th try, and the tenant's breaker opens for that."""
    tenant = rng.choice(plan.tenants)
    failures = rng.randint(2, 4)
    most = rng.choice((None, 8, 20) if plan.retention is None else (8, 20))
    orders = tuple(
        replace(each, kind=Kind.FAILS, attempts=failures, seconds=min(each.seconds, 0.3))
        if each.tenant == tenant
        else each
        for each in (without_endless(plan.orders) if most is None else plan.orders)
    )
    faults = replace(plan.options["faults"], breaker_after=rng.randint(1, 4), poison_after=None)
    return replace(plan, orders=orders, max_receives=most, promised=None, options=plan.options | {"faults": faults})


def _heavy_bodies(plan: Plan, rng: Random) -> Plan:
    """Bodies of which a few dozen are more than may be held, where an option says how much may be."""
    known: dict[str, Any] = {"memory": 1024 * 1024} if "memory" in Polling.__dataclass_fields__ else {}
    polling = plan.options["polling"]
    polling = replace(polling, pollers=1, batch=min(polling.batch, 3), prefetch=None, **known)
    return replace(plan, body_bytes=rng.choice((60_000, 120_000)), options=plan.options | {"polling": polling})


def _watched_logs(plan: Plan, rng: Random) -> Plan:
    return replace(plan, logs=True)


def _chosen_options(plan: Plan, rng: Random) -> Plan:
    return replace(plan, chosen=True)


def _many_groups(plan: Plan, rng: Random) -> Plan:
    """A tenant with many message groups is paused, and stays so; the others must be served all the same."""
    # Bodies of a paused tenant may take all the memory, and stop the receives: at their last receive they have to stay.
    if len(plan.tenants) < 2 or plan.equal or plan.body_bytes:
        return plan
    tenant = rng.choice(plan.tenants)
    groups = rng.randint(40, 80)
    many = tuple(
        OrderPlan(f"{tenant}-many-{number}", tenant, f"{tenant}-many-{number}", 0.0, Kind.WELL, 0.02, 0)
        for number in range(groups)
    )
    pauses = [
        make_event(rng, plan, "control", at=0.0, index=index, tenant=tenant, control="pause") for index in range(3)
    ]
    orders = tuple(sorted((*many, *plan.orders), key=lambda order: order.at))
    return with_events(plan, *pauses, orders=orders, kept_paused=tenant, survivors_finish=True)


def _cut_statements(plan: Plan, rng: Random) -> Plan:
    """A tenant's handlers meet an outage that no open of its resources shows; it has a few messages."""
    tenant = rng.choice(plan.tenants)
    start = rng.uniform(0.0, 8.0)
    cut = Cut(tenant, start, start + rng.uniform(4.0, 20.0))
    group = f"{tenant}-0" if plan.fifo else tenant
    more = tuple(
        OrderPlan(f"{tenant}-cut-{number}", tenant, group, rng.uniform(0.0, cut.end), Kind.WELL, 0.02, 0)
        for number in range(rng.randint(2, 6))
    )
    orders = tuple(sorted((*more, *plan.orders), key=lambda order: order.at))
    # What says that it is an outage must not fail itself.
    raising = tuple(each for each in plan.raising if each.function != "classify")
    return replace(plan, cuts=(cut,), orders=orders, raising=raising)


HARDSHIPS: tuple[tuple[str, float, Harden], ...] = (
    ("overload", 0.04, _overload),
    ("small receives", 0.3, _small_receives),
    ("decisions in an outage", 0.15, _decisions_in_an_outage),
    ("cancellation", 0.12, _cancellation),
    ("foreign errors", 0.12, _foreign_errors),
    ("hung extensions", 0.1, _hung_extensions),
    ("denied attributes", 0.08, _denied_attributes),
    ("raising functions", 0.2, _raising_functions),
    ("panics", 0.1, _panics),
    ("bad deployment", 0.15, _bad_deployment),
    ("changing redrive", 0.05, _changing_redrive),
    ("short retention", 0.05, _short_retention),
    ("blocked loop", 0.12, _blocked_loop),
    ("stop while starting", 0.08, _stop_while_starting),
    ("late success", 0.08, _late_success),
    ("heavy bodies", 0.05, _heavy_bodies),
    ("watched logs", 0.15, _watched_logs),
    ("chosen options", 0.1, _chosen_options),
    ("many groups", 0.05, _many_groups),
    ("cut statements", 0.08, _cut_statements),
)
"""Each hardship, and how many of the schedules that are not ordinary have it."""


def attempts_option(plan: Plan) -> RetryPolicy:
    """Return the plan's retry policy with the attempts that it promises, where the library knows that option."""
    policy: RetryPolicy = plan.options["retry"]
    if plan.promised is None or not knows_attempts():
        return policy
    known: dict[str, Any] = {"attempts": plan.promised}
    return replace(policy, **known)


def knows_attempts() -> bool:
    """Return whether ``RetryPolicy(attempts=)`` exists."""
    return "attempts" in RetryPolicy.__dataclass_fields__
