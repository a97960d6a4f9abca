"""Schedules with further hardships: what reviews and unit tests found before any schedule did.

They are the same schedules otherwise. Each has one or two of these hardships beside those that its seed has anyway, and
one in ten has several queues. They are drawn apart, with random numbers of their own, so that the schedules of
``hardships.py`` stay what they are.
"""

from dataclasses import replace
from random import Random
from typing import Any

from postroom import AckMode, Concurrency, Polling, Visibility
from postroom.testing.faults import ClientFaults
from simulation.consumer.control import DIVERT, ELSEWHERE, OWN_QUEUE
from simulation.consumer.hardships import HARDSHIPS, REFUSING, Harden, make_event, with_events, without_endless
from simulation.consumer.many_queues import with_many_queues
from simulation.consumer.plan import (
    ENDLESS,
    Event,
    How,
    Kind,
    Obstruction,
    Operation,
    OrderPlan,
    Plan,
    Raising,
    Reaction,
    make_shutdown,
)
from simulation.consumer.schedule import Outcome, run_consumer_schedule

_ENDS = ("stop", "stop", "stop now", "cancel")
_FAILS = (How.DENIED, How.THROTTLED, How.REFUSED, How.HANGS)
_CALM = ClientFaults(latency=0.05)


def with_further_hardships(plan: Plan) -> Plan:
    """Add one or two hardships to a plan."""
    rng = Random(plan.seed ^ 0xF0117)
    if rng.random() < 0.1:
        plan = with_many_queues(plan)
    # Where the redrive policy comes and goes, or may not be read, what cannot be handled stays in the queue.
    faults = replace(plan.faults, denied=0.0)
    plan = replace(plan, equal=False, redrives=(), blind=False, faults=faults)
    for name, harden in rng.sample(FURTHER, rng.choice((1, 1, 2))):
        plan = replace(harden(plan, rng), hardships=(*plan.hardships, name))
    rng = Random(plan.seed ^ 0x57095)  # apart again: the schedules above stay what they are
    for name, harden in RARE:
        if rng.random() < 0.1:
            return replace(harden(plan, rng), hardships=(*plan.hardships, name))
    return plan


def run_further_schedule(seed: int) -> Outcome:
    """Run one schedule in virtual time."""
    return run_consumer_schedule(seed, change=with_further_hardships)


def further_violations(seed: int) -> tuple[str, ...]:
    """Return what was broken in one schedule."""
    return run_further_schedule(seed).violations


def _visible(plan: Plan, timeout: int) -> dict[str, Any]:
    """Return a plan's options with another visibility timeout, which the heartbeat extends."""
    return plan.options | {"visibility": Visibility(timeout=timeout)}


def _calm(plan: Plan, rng: Random, part: float) -> Plan:
    """Let nothing else go wrong in a part of the schedules: then the oracles have no excuse to consider."""
    return replace(plan, faults=_CALM, events=(), broken=()) if rng.random() < part else plan


def _obstructed(plan: Plan, *obstructions: Obstruction) -> Plan:
    end = max(plan.end, *(each.end + 5.0 for each in obstructions))
    return replace(plan, obstructions=(*plan.obstructions, *obstructions), end=end)


# -- one function for each ---------------------------------------------------------------------------------------------


def _changed_cancellations(plan: Plan, rng: Random) -> Plan:
    """Handlers make something else of their cancellation: at a stop, at their time limit, when a message is lost."""
    timeout = rng.choice((2, 3, 5))
    orders = tuple(_reacting(each, rng) for each in plan.orders)
    concurrency = replace(plan.options["concurrency"], handler_timeout=rng.choice((None, 1.5)))
    shutdown = plan.options["shutdown"]
    shutdown = make_shutdown(poll=shutdown.poll, drain=rng.choice((0.0, 1.0)), cancel=1.0, flush=5.0, close=2.0)
    options = _visible(plan, timeout) | {"concurrency": concurrency, "shutdown": shutdown}
    ack = rng.choice((plan.ack, AckMode.ALWAYS))
    plan = replace(plan, orders=orders, options=options, ack=ack)
    for _ in range(rng.randint(0, 2)):
        plan = with_events(plan, make_event(rng, plan, rng.choice(_ENDS), at=rng.uniform(0.5, 12.0)))
    if rng.random() < 0.6:
        start = rng.uniform(0.0, 4.0)
        how = rng.choice((*_FAILS, How.BEYOND))
        plan = _obstructed(plan, Obstruction(Operation.EXTEND, how, start, start + rng.uniform(3.0, 12.0)))
    return plan


def _reacting(order: OrderPlan, rng: Random) -> OrderPlan:
    chance = rng.random()
    if chance < 0.15:
        return replace(order, kind=Kind.CANCELS_ITSELF)
    if chance < 0.7 and order.kind is not Kind.STUBBORN:
        reaction = rng.choice(tuple(Reaction)[1:])
        kind = Kind.WELL if reaction is Reaction.GOES_ON else order.kind
        return replace(order, reaction=reaction, kind=kind, seconds=rng.choice((order.seconds, 2.0, 8.0)))
    return order


def _refused_extensions(plan: Plan, rng: Random) -> Plan:
    """Extensions fail while messages have to wait at their last receive."""
    timeout = rng.choice((5, 10, 20, 30))
    start = rng.uniform(0.0, 4.0)
    end = start + timeout * rng.uniform(1.5, 4.0)
    how = rng.choice((*_FAILS, How.BEYOND))
    plan = replace(_calm(plan, rng, 0.6), options=_visible(plan, timeout), max_receives=rng.choice((1, 1, 2, 3)))
    plan = _obstructed(plan, Obstruction(Operation.EXTEND, how, start, end))
    if how is not How.BEYOND and rng.random() < 0.3:
        plan = _obstructed(plan, Obstruction(Operation.CHANGE, how, start, end))
    held_up = {"at": rng.uniform(0.0, start), "seconds": end - start}
    match rng.choice(("host", "pause", "slots")):
        case "host":
            trouble = rng.choice(REFUSING)
            return with_events(
                replace(plan, hosts=1), make_event(rng, plan, "host trouble", trouble=trouble, **held_up)
            )
        case "pause":
            return with_events(plan, *_everywhere(rng, plan, "pause", rng.choice(plan.tenants), **held_up))
        case _:
            orders = tuple(replace(each, seconds=rng.choice((each.seconds, 8.0))) for each in plan.orders)
            concurrency = Concurrency(total=rng.choice((1, 2)))
            return replace(plan, orders=orders, options=plan.options | {"concurrency": concurrency})


def _everywhere(rng: Random, plan: Plan, control: str, tenant: str, **fixed: Any) -> list[Event]:
    """Return a decision about a tenant in every process."""
    return [
        make_event(rng, plan, "control", index=index, tenant=tenant, control=control, **fixed) for index in range(3)
    ]


def _slow_dead_letters(plan: Plan, rng: Random) -> Plan:
    """FIFO: what is first in its group is to be rejected, and the dead-letter queue does not answer.

    Where extensions fail as well, it is lost meanwhile, and comes again with what follows it.
    """
    start = rng.uniform(0.0, 3.0)
    end = start + rng.uniform(5.0, 100.0)
    timeout = rng.choice((3, 5, 10, 30))
    orders = tuple(_in_group(each, rng) for each in plan.orders)
    most = rng.choice((1, 2, 3, 5, 20))
    plan = replace(_calm(plan, rng, 0.4), fifo=True, orders=orders, max_receives=most, options=_visible(plan, timeout))
    how = rng.choice((*_FAILS, How.SLOW, How.HANGS))
    plan = _obstructed(plan, Obstruction(Operation.SEND, how, start, end, queue="dead", part=rng.choice((0.5, 1.0))))
    if rng.random() < 0.6:
        begin = rng.uniform(start, (start + end) / 2)
        stop = min(end, begin + timeout * rng.uniform(1.0, 4.0))
        how = rng.choice((How.DENIED, How.THROTTLED, How.REFUSED, How.BEYOND))
        plan = _obstructed(plan, Obstruction(Operation.EXTEND, how, begin, stop))
    return plan


def _in_group(order: OrderPlan, rng: Random) -> OrderPlan:
    kind = rng.choice((Kind.REJECTS, Kind.NOBODY, Kind.STRANGER, Kind.FAILS)) if rng.random() < 0.25 else order.kind
    seconds = min(order.seconds, 1.0)
    return replace(order, group=f"{order.tenant}-{rng.randint(0, 1)}", kind=kind, seconds=seconds)


def _denied_deletes(plan: Plan, rng: Random) -> Plan:
    """What was handled cannot be deleted for a long time."""
    start = rng.uniform(0.0, 5.0)
    end = start + rng.choice((15.0, 40.0, 90.0, 150.0))
    options = _visible(plan, rng.choice((2, 5, 10, 30)))
    plan = replace(_calm(plan, rng, 0.5), options=options)
    how = rng.choice((*_FAILS, How.DENIED, How.SLOW))
    return _obstructed(plan, Obstruction(Operation.DELETE, how, start, end, part=rng.choice((0.5, 1.0))))


def _late_answers(plan: Plan, rng: Random) -> Plan:
    """A process stands still while it waits for messages: the answer is read late, maybe after their time is over."""
    timeout = rng.choice((2, 3, 5))
    polling = Polling(wait=20, pollers=rng.choice((1, 2)), backoff=0.2, max_backoff=2.0)
    events = tuple(each for each in plan.events if each.what not in {"block", "freeze"})
    options = _visible(plan, timeout) | {"polling": polling}
    plan = replace(plan, events=events, options=options, max_receives=rng.choice((1, 1, 2, 3)), body_bytes=0)
    plan = _calm(plan, rng, 0.5)
    at, times = rng.uniform(0.5, 5.0), list[float]()
    for _ in range(rng.randint(1, 3)):
        seconds = timeout * rng.uniform(0.3, 2.5)
        what = rng.choice(("freeze", "freeze", "block"))
        plan = with_events(plan, make_event(rng, plan, what, at=at, seconds=seconds, index=0))
        times += [at + rng.uniform(0.0, seconds) for _ in range(2)]
        at += seconds + rng.uniform(1.0, 8.0)
    orders = [replace(each, at=rng.choice((each.at, *times))) for each in plan.orders]
    return replace(plan, orders=tuple(sorted(orders, key=lambda order: order.at)), processes=rng.choice((1, 1, 2)))


def _wrong_clocks(plan: Plan, rng: Random) -> Plan:
    """The clocks of the machines are wrong, and messages are deleted after a minute or two."""
    clock = rng.choice((1, -1)) * rng.choice((40.0, 3_600.0, 100_000.0))
    if plan.retention is None:
        harden = next(harden for name, _, harden in HARDSHIPS if name == "short retention")
        plan = harden(plan, rng)
    return replace(plan, clock=clock, queues=1, listed=False)  # each queue learns the time from its own messages


def _failing_diversions(plan: Plan, rng: Random) -> Plan:
    """A tenant is diverted to a queue that does not exist, or takes nothing, or to its own."""
    suffix = ".fifo" if plan.fifo else ""
    targets = (ELSEWHERE, ELSEWHERE, "missing", *((OWN_QUEUE,) if plan.queues == 1 else ()))
    control = f"{DIVERT}{rng.choice(targets)}{suffix}"
    start, seconds = rng.uniform(0.0, 8.0), rng.uniform(5.0, 30.0)
    most = rng.choice((plan.max_receives, 1, 2, 5))
    orders = without_endless(plan.orders) if most is None else plan.orders
    plan = replace(_calm(plan, rng, 0.4), max_receives=most, orders=orders)
    tenant = rng.choice(plan.tenants)
    plan = with_events(plan, *_everywhere(rng, plan, control, tenant, at=start, seconds=seconds))
    plan = replace(plan, end=max(plan.end, start + seconds + 5.0))
    if rng.random() < 0.7:
        call = rng.choice((Operation.SEND, Operation.SEND, Operation.OPEN))
        how = rng.choice((*_FAILS, How.BEYOND, How.SLOW))
        begin = start + rng.uniform(-1.0, 5.0)
        plan = _obstructed(plan, Obstruction(call, how, begin, begin + rng.uniform(3.0, 70.0), queue=ELSEWHERE))
    return plan


def _stops_at_last_receive(plan: Plan, rng: Random) -> Plan:
    """A consumer stops with messages at their last receive, of tenants that may not run just then."""
    orders = tuple(replace(each, seconds=min(each.seconds, 0.3)) for each in without_endless(plan.orders))
    shutdown = make_shutdown(poll=1.0, drain=rng.choice((3.0, 8.0)), cancel=1.0, flush=5.0, close=2.0)
    options = _visible(plan, 30) | {"shutdown": shutdown}
    plan = replace(_calm(plan, rng, 0.8), orders=orders, options=options, max_receives=1, obstructions=())
    tenant = rng.choice(plan.tenants)
    match rng.choice(("rate", "rate", "outage", "room")):
        case "rate":
            plan = with_events(plan, *_everywhere(rng, plan, "limit rate", tenant, at=0.0, seconds=60.0))
        case "outage":
            at, trouble = rng.uniform(0.0, 3.0), rng.choice(REFUSING)
            event = make_event(rng, plan, "trouble", tenant=tenant, at=at, seconds=5.0, trouble=trouble)
            plan = with_events(plan, event)
        case _:
            plan = replace(plan, limits=replace(plan.limits, budget=rng.choice((1, 2))))
    for index in range(3):
        plan = with_events(plan, make_event(rng, plan, "stop", index=index, at=rng.uniform(0.1, 6.0)))
    return plan


def _groups_that_follow(plan: Plan, rng: Random) -> Plan:
    """A consumer stops while a receive is out that brings what was behind, in its group, at its last receive."""
    seconds = rng.choice((0.3, 1.0, 2.0))
    orders = tuple(replace(each, kind=Kind.WELL, group=each.tenant, seconds=seconds) for each in plan.orders)
    shutdown = make_shutdown(poll=rng.choice((0.0, 1.0)), drain=8.0, cancel=1.0, flush=5.0, close=2.0)
    polling = replace(plan.options["polling"], batch=1, wait=20)  # one of a group here, the next one in the queue
    options = _visible(plan, 30) | {"shutdown": shutdown, "polling": polling}
    plan = replace(_calm(plan, rng, 0.8), fifo=True, orders=orders, options=options, max_receives=1, obstructions=())
    for index in range(3):
        plan = with_events(plan, make_event(rng, plan, "stop", index=index, at=rng.uniform(0.1, 6.0)))
    return plan


def _kept_quarantines(plan: Plan, rng: Random) -> Plan:
    """A tenant is in quarantine, and the dead-letter queue takes nothing. All else is well."""
    start, seconds = rng.uniform(0.0, 3.0), rng.uniform(10.0, 60.0)
    orders = tuple(replace(each, kind=Kind.WELL) for each in plan.orders)
    plan = replace(_calm(plan, rng, 0.6), orders=orders, max_receives=rng.choice((1, 2, 3, 5)))
    options = plan.options | {"concurrency": replace(plan.options["concurrency"], handler_timeout=None)}
    plan = replace(plan, obstructions=(), deployments=(), raising=(), options=options)
    tenant = rng.choice(plan.tenants)
    plan = with_events(plan, *_everywhere(rng, plan, "quarantine", tenant, at=start, seconds=seconds))
    how = rng.choice((*_FAILS, How.BEYOND))
    return _obstructed(plan, Obstruction(Operation.SEND, how, 0.0, start + seconds + 5.0, queue="dead"))


def _steps_that_fail(plan: Plan, rng: Random) -> Plan:
    """The resolver fails for everything at first, as with a mistake of a deployment. It may be started again."""
    until = rng.choice((15.0, 40.0, 150.0))
    more = [_one_more(plan, number, at=rng.uniform(0.0, until)) for number in range(rng.randint(40, 80))]
    more += [_one_more(plan, 100 + number, at=until + 2.0) for number in range(rng.choice((0, 30)))]
    orders = sorted([*without_endless(plan.orders), *more], key=lambda order: order.at)
    options = plan.options | {"shutdown": make_shutdown(poll=1.0, drain=1.0, cancel=1.0, flush=5.0, close=2.0)}
    plan = replace(
        _calm(plan, rng, 0.8),
        ack=AckMode.ON_SUCCESS,
        orders=tuple(orders),
        raising=(Raising("resolver", None, 0.0, until, 1.0),),
        max_receives=rng.choice((2, 3, 5)),
        obstructions=(),
        deployments=(),
        retention=None,
        body_bytes=0,
        kept_paused=None,
        survivors_finish=True,
        options=options,
        end=max(plan.end, until + 20.0),
    )
    for index in range(rng.choice((0, 0, 3))):
        plan = with_events(plan, make_event(rng, plan, "stop", index=index, at=rng.uniform(1.0, until)))
    return plan


def _one_more(plan: Plan, number: int, *, at: float) -> OrderPlan:
    tenant = plan.tenants[number % len(plan.tenants)]
    return OrderPlan(f"{tenant}-more-{number}", tenant, f"{tenant}-more-{number}", at, Kind.WELL, 0.02, 0)


def _losses_of_others(plan: Plan, rng: Random) -> Plan:
    """Handlers let out that another message is lost. Their own is not."""
    orders = tuple(
        replace(each, kind=Kind.LETS_OUT) if each.kind not in ENDLESS and rng.random() < 0.6 else each
        for each in plan.orders
    )
    return replace(plan, orders=orders)


FURTHER: tuple[tuple[str, Harden], ...] = (
    ("changed cancellations", _changed_cancellations),
    ("refused extensions", _refused_extensions),
    ("slow dead letters", _slow_dead_letters),
    ("denied deletes", _denied_deletes),
    ("late answers", _late_answers),
    ("wrong clocks", _wrong_clocks),
    ("failing diversions", _failing_diversions),
)
"""Each further hardship."""
RARE: tuple[tuple[str, Harden], ...] = (
    ("stops at the last receive", _stops_at_last_receive),
    ("quarantines that are kept", _kept_quarantines),
    ("groups at the last receive", _groups_that_follow),
    ("steps that fail for everything", _steps_that_fail),
    ("losses of other messages", _losses_of_others),
)
"""What one in ten has beside them, one at most."""
