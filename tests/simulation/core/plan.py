"""What stays fixed during one schedule of the core, drawn from its seed, and limits small enough to be reached."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

from postroom.consumer import attempts, availability, away, crowd, deferral, demand, scouting
from postroom.options import Faults, Polling, RetryPolicy
from postroom.types import AckMode

CROWD_ENOUGH: Final = 12
MOST_AWAY: Final = 25
_SMALL: Final[tuple[tuple[Any, str, int], ...]] = (
    (crowd, "ENOUGH", CROWD_ENOUGH),
    (away, "MOST_AWAY", MOST_AWAY),
    (scouting, "BUDGET", 40),
    (attempts, "REMEMBER", 100_000),
)
"""Limits for what needs thousands of messages otherwise."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One schedule."""

    fifo: bool
    most: int | None
    retention: float
    known: bool
    tenants: int
    hosts: int
    with_pool: bool
    ack: AckMode
    retry: RetryPolicy
    faults: Faults
    polling: Polling
    pollers: int
    total: int
    per_tenant: int
    reserved: int
    caps: dict[int, int] | None
    duration: float
    weight: int
    """Bytes of a body."""
    crowd: bool
    """One tenant sends much more than the others."""
    equal: bool
    hard: float
    """The part of the messages that succeed only after several attempts."""
    trouble: float
    slow_resolver: bool
    most_blocked: int
    most_held: int
    remember: int
    changes: bool
    """Whether the redrive policy changes."""
    stops: int


def draw_plan(rng: Random) -> Plan:
    """Draw everything that stays fixed during one schedule."""
    fifo = rng.random() < 0.2
    many = rng.random() < 0.12 and not fifo
    tenants = rng.choice([1, 2, 3, 5])
    total = rng.choice([1, 2, 3, 6])
    base = rng.choice([0.1, 1.0])
    scout: bool | Literal["always"] = rng.choice([True, True, "always", False]) if not fifo else False
    return Plan(
        fifo=fifo,
        most=rng.choice([None, 1, 2, 3, 4, 5, 5, 6, 8, 10, 20]),
        retention=rng.choice([400.0, 1_000.0]) if rng.random() < 0.15 else 345_600.0,
        known=rng.random() < 0.95,
        tenants=max(2, tenants) if many else tenants,
        hosts=rng.choice([0, 1, 1, 2]),
        with_pool=rng.random() < 0.8,
        ack=AckMode.ALWAYS if rng.random() < 0.08 else AckMode.ON_SUCCESS,
        retry=RetryPolicy(attempts=rng.choice([None, None, None, 1, 2, 4, 7]), base=0.5, cap=60.0),
        faults=Faults(
            breaker_after=rng.choice([2, 3, 5, None]),
            messages=rng.choice([1, 2, 3]),
            base=base,
            cap=rng.choice([base, 5.0, 60.0]),
            poison_after=rng.choice([None, None, 2]),
            poison_others=2,
        ),
        polling=Polling(
            batch=rng.choice([1, 3, 10]),
            prefetch=rng.choice([None, 0, 2, 5]),
            scout=scout,
            lane=rng.choice([1, 2, 4, 16]),
            gather=rng.choice([0.0, 0.0, 0.1]),
            memory=1024 * 1024,
        ),
        pollers=rng.choice([1, 2, 3]),
        total=total,
        per_tenant=rng.choice([1, 2, 8]),
        reserved=rng.choice([0, 0, 1]),
        caps={0: rng.choice([1, 3])} if rng.random() < 0.2 else None,
        duration=rng.choice([0.01, 0.2, 3.0]),
        weight=120_000 if rng.random() < 0.15 else 10,
        crowd=many,
        equal=many and rng.random() < 0.3,
        hard=rng.choice([0.0, 0.1, 1.0]) if not many else 0.0,
        trouble=rng.choice([0.0, 0.3, 1.0]),
        slow_resolver=rng.random() < 0.15,
        most_blocked=rng.choice([4, 12, 10_000, 10_000]),
        most_held=rng.choice([3, 8, 1_000, 1_000]),
        remember=rng.choice([2, 10_000, 10_000]),
        changes=rng.random() < 0.1,
        stops=rng.choice([0, 0, 0, 1, 2]),
    )


@contextmanager
def small_limits(plan: Plan) -> Generator[None]:
    """Let limits of thousands be a few, for the time of one schedule."""
    changes = (
        *_SMALL,
        (deferral, "MOST_BLOCKED", plan.most_blocked),
        (deferral, "MOST_HELD", plan.most_held),
        (deferral, "MOST_LAST", 3 * plan.most_blocked),
        (deferral, "LANES", 20),
        (availability, "REMEMBER", plan.remember),
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


__all__ = ["CROWD_ENOUGH", "MOST_AWAY", "Plan", "demand", "draw_plan", "small_limits"]
