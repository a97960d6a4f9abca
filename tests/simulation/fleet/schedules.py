"""One seeded schedule of a fleet: hardships first, then calm, in which everything has to come right again."""

import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from random import Random

from simulation.fleet.world import LONGEST, Plan, Replica, Violation, World

_LOOKS = 8
"""Looks per tick at what is in use."""
_HANDS = 2.5
"""Ticks that a slot may take to change hands."""
_ENOUGH = 150
"""Slots that were needed, over all looks, for a judgement."""


@dataclass(frozen=True)
class Outcome:
    """What a schedule came to."""

    plan: Plan
    violation: str | None
    starts: int
    covered: int
    """Starts under slots of the store, as opposed to the fallback's."""
    calls: int
    history: tuple[str, ...]


def run_fleet_schedule(seed: int, *, history: bool = False) -> Outcome:
    """Run one schedule."""
    plan = Plan.of(seed)
    world = World(plan)
    world.keep_history = history
    violation: str | None = None
    try:
        _hardships(world, Random(seed + 5))
        world.run(plan.seconds)
        _calm(world)
        world.judge_rates()
        world.judge_cost()
    except Violation as error:
        violation = str(error)
    return Outcome(plan, violation, world.starts, world.covered_starts, world.calls, tuple(world.history))


def fleet_violations(seed: int) -> tuple[str, ...]:
    """Return what a schedule broke."""
    found = run_fleet_schedule(seed).violation
    return () if found is None else (found,)


def _hardships(world: World, rng: Random) -> None:
    plan = world.plan
    if "stale restart" in plan.hardships:
        world.snapshot()

    def one(kind: str) -> None:
        alive = [replica for replica in world.replicas if not replica.stopping]
        victim = rng.choice(alive) if alive else None
        if kind in {"flush", "restart", "stale restart"}:
            world.lose_memory(kind)
        elif kind == "store gone":
            _cut_store(world, rng)
        elif kind == "cap changes":
            world.change_cap()
        elif kind == "slow for a while":
            world.note("the store is slow")
            world.slow_until = world.now + rng.choice([0.5, 1.5]) * plan.lease
        elif kind == "partition":
            _part(world, rng.sample(alive, len(alive) // 2), rng)
        elif victim is not None:
            _harm(world, victim, kind, rng)

    for kind in plan.hardships:
        if kind in {"slow", "lost requests", "lost answers", "late requests", "late answers", "clocks"}:
            continue
        for _ in range(rng.choice([1, 1, 2, 3])):
            world.at(rng.uniform(2, plan.seconds - 2), lambda kind=kind: one(kind))  # type: ignore[misc]


def _cut_store(world: World, rng: Random) -> None:
    world.note("the store is gone")
    world.store_gone = True

    def back() -> None:
        world.note("the store is back")
        world.store_gone = False

    world.at(rng.choice([1.0, world.plan.lease * 0.8, world.plan.lease * 2]), back)


def _harm(world: World, victim: Replica, kind: str, rng: Random) -> None:
    if kind == "crash":
        world.crash(victim)
    elif kind == "stop":
        world.stop(victim)
    elif kind == "freeze":
        world.note(f"{victim.name} freezes")
        victim.frozen_until = world.now + rng.choice([0.7, world.plan.lease * 0.97, world.plan.lease * 1.7])
    elif kind == "cut off":
        _part(world, [victim], rng)
    elif kind == "deaf":
        _part(world, [victim], rng, deaf=True)


def _part(world: World, victims: list[Replica], rng: Random, *, deaf: bool = False) -> None:
    """Part some replicas from the store, in both directions or in one."""
    names = ", ".join(victim.name for victim in victims)
    world.note(f"{names} {'hears' if deaf else 'reaches'} the store no longer")

    def joined() -> None:
        world.note(f"{names}: joined again")
        for victim in victims:
            victim.cut_off = victim.deaf = False

    for victim in victims:
        victim.deaf, victim.cut_off = deaf, not deaf
    world.at(rng.choice([2.0, world.plan.lease * 1.5]), joined)


def _calm(world: World) -> None:
    """F3, F4, F5: in calm all slots are used, in max-min shares, and each hungry replica has a turn."""
    plan = world.plan
    world.hard = False
    world.store_gone = False
    for replica in world.replicas:
        replica.cut_off, replica.deaf, replica.frozen_until = False, False, 0.0
    world.slow_until = world.now
    # What was given up long ago may still arrive; leases and the silence after a loss of memory end.
    world.run(world.now + 4.2 * plan.lease + 4 * plan.tick + 12 * plan.handler)
    if any(other.stopping for other in world.replicas) or plan.rate is not None:
        return
    _judge_turns(world)
    _judge_use(world)


def _judge_turns(world: World) -> None:
    """F5: each replica with work has a slot in the time of one turn for each: a lease, and what runs at its end."""
    plan = world.plan
    tenants = [f"t{number}" for number in range(plan.tenants)]
    hungry = [(replica, tenant) for replica in world.replicas for tenant in tenants if replica.waiting[tenant]]
    world.had.clear()
    turns = math.ceil(len(world.replicas) / world.cap)
    world.run(world.now + turns * (plan.lease + LONGEST * plan.handler + 2 * plan.tick))
    for replica, tenant in hungry:
        if replica.name not in world.had[tenant]:
            text = f"F5: {replica.name} never had a slot of {tenant}, at {world.now:.3f}"
            raise Violation(text)


def _judge_use(world: World) -> None:
    """F3, F4: what is free, and needed for longer than a slot takes to change hands, is in use."""
    plan = world.plan
    looks = math.ceil(4 * plan.lease / (plan.tick / _LOOKS))
    lately = int(_HANDS * _LOOKS)
    needs: dict[tuple[str, str], deque[int]] = defaultdict(lambda: deque(maxlen=lately))
    used: Counter[str] = Counter()
    needed: Counter[str] = Counter()
    for _ in range(looks):
        world.run(world.now + plan.tick / _LOOKS)
        for tenant in (f"t{number}" for number in range(plan.tenants)):
            steady = 0
            for replica in world.replicas:
                need = needs[replica.name, tenant]
                need.append(_need(replica, tenant))
                steady += min(need) if len(need) == lately else 0
            could = min(world.cap, steady)
            needed[tenant] += could
            used[tenant] += min(could, sum(replica.running_of(tenant) for replica in world.replicas))
    for tenant, could in needed.items():
        if could >= _ENOUGH and used[tenant] < 0.6 * could:
            text = f"F4: {used[tenant]} slots of {tenant} were used, {could} could have been, at {world.now:.3f}"
            raise Violation(text)


def _need(replica: Replica, tenant: str) -> int:
    demand = replica.demand(tenant)
    return min(demand.running + demand.waiting, demand.local)
