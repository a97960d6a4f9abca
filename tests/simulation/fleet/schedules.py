"""One seeded schedule of a fleet: hardships first, then calm, in which everything has to come right again."""

from collections import Counter
from dataclasses import dataclass
from random import Random

from postroom.fleet.shares import share_of
from simulation.fleet.world import Plan, Replica, Violation, World


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
        elif victim is not None:
            _harm(world, victim, kind, rng)

    for kind in plan.hardships:
        if kind in {"slow", "lost requests", "lost answers", "late requests", "clocks"}:
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
        world.note(f"{victim.name} is cut off")
        victim.cut_off = True

        def joined() -> None:
            world.note(f"{victim.name} is joined again")
            victim.cut_off = False

        world.at(rng.choice([2.0, world.plan.lease * 1.5]), joined)


def _calm(world: World) -> None:
    """F3, F4, F5: in calm all slots are used, in max-min shares, and each hungry replica has a turn."""
    plan = world.plan
    world.hard = False
    world.store_gone = False
    for replica in world.replicas:
        replica.cut_off, replica.frozen_until = False, 0.0
    # What was given up long ago may still arrive; leases and the silence after a loss of memory end.
    world.run(world.now + 4.2 * plan.lease + 4 * plan.tick + 12 * plan.handler)
    if any(other.stopping for other in world.replicas) or plan.rate is not None:
        return
    world.had.clear()
    used: Counter[str] = Counter()
    needed: Counter[str] = Counter()
    looks = 40
    turns = max(1, -(-max(1, len(world.replicas)) // world.cap)) + 1
    for _ in range(looks):
        world.run(world.now + turns * plan.lease / looks)
        for number in range(plan.tenants):
            tenant = f"t{number}"
            used[tenant] += sum(replica.running_of(tenant) for replica in world.replicas)
            needed[tenant] += min(world.cap, sum(_need(replica, tenant) for replica in world.replicas))
    _judge_use(world, used, needed)
    _judge_turns(world)


def _need(replica: Replica, tenant: str) -> int:
    demand = replica.demand(tenant)
    return min(demand.running + demand.waiting, demand.local)


def _judge_use(world: World, used: Counter[str], needed: Counter[str]) -> None:
    """F3, F4: what is free and needed is in use, most of the time: a slot that changes hands takes up to two ticks."""
    slow = world.plan.handler < world.plan.tick
    for tenant, need in needed.items():
        least = 0.35 if slow else 0.6
        if need > 60 and used[tenant] < least * need:
            text = f"F4: {used[tenant]} slots of {tenant} were used, {need} could have been, at {world.now:.3f}"
            raise Violation(text)


def _judge_turns(world: World) -> None:
    """F5: each replica that has work for a tenant all the time has had a slot for it."""
    for number in range(world.plan.tenants):
        tenant = f"t{number}"
        for replica in world.replicas:
            hungry = replica.waiting[tenant] >= 25 and replica.clock() - replica.ledger.gone_at < 0
            if hungry and replica.name not in world.had[tenant]:
                text = f"F5: {replica.name} never had a slot of {tenant}, at {world.now:.3f}"
                raise Violation(text)


def fair(world: World, tenant: str) -> dict[str, int]:
    """Return the max-min shares of a tenant's slots, for whoever reads a history."""
    demands = {replica.name: (_need(replica, tenant), world.plan.local) for replica in world.replicas}
    period = int(world.store.clock() // world.plan.lease)
    return {name: share_of(name, demands, world.cap, period) for name in demands}
