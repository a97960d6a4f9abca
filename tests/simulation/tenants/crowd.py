"""Far more tenants than may be open at once: what it costs to choose which to close, and what is kept of each."""

import gc
import tracemalloc
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any

from postroom import PoolLimits
from simulation.tenants.world import Plan, Stream, Tenant, World, simulate

_PARTS = ("consumer", "resources", "scheduling", "settlement")
_CONTAINERS = (dict, list, set, deque)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """One run."""

    messages: int
    seen: int
    """Tenants that sent anything."""
    most_weight: int
    """Of the pool, as it says itself."""
    most_connections: int
    """Of the pool, as the databases saw it: what was open or opening."""
    hit_rate: float
    """The part of leases for which nothing was opened."""
    lru: float
    """The same for an LRU cache of the same size, over the leases in the order in which they were made."""
    optimum: float
    """The same for a cache that knows the future (Belady's)."""
    p99: float
    left: int
    """Resources, lanes and messages that are left some time after the last message."""
    state: int
    """Items in all of postroom's containers then."""
    kept: int
    """Bytes that postroom's modules allocated since the start and that are still there; 0 if not measured."""


def run_crowd(
    *,
    seed: int = 1,
    tenants: int = 10_000,
    pools: int = 200,
    weight: int = 2,
    rate: float = 500.0,
    seconds: float = 60.0,
    exponent: float = 1.1,
    traced: bool = False,
) -> Crowd:
    """Run a crowd of tenants over few pools, wait until nothing is in use any longer, and look what is left."""
    names = tuple(Tenant(f"tenant-{number}", "host") for number in range(tenants))
    weights = tuple(accumulate((number + 1) ** -exponent for number in range(tenants)))
    plan = Plan(
        seed=seed,
        streams=(Stream(tenants=names, weights=weights, rate=rate),),
        seconds=seconds,
        settle=60.0,
        limits=PoolLimits(budget=pools * weight, idle=20.0),
        weight=weight,
    )
    most = left = state = kept = 0

    def look(world: World) -> None:
        nonlocal most
        most = max(most, world.pool.statistics().weight)

    def at_end(world: World) -> None:
        nonlocal left, state, kept
        gc.collect()
        kept = _kept() if traced else 0
        figures, pool = world.consumer.statistics(), world.pool.statistics()
        left = figures.tenants + figures.held + pool.live + pool.cooling + pool.waiting
        state = count_state(world)

    if traced:
        tracemalloc.start()
    outcome, servers = simulate(plan, look=look, at_end=at_end)
    if traced:
        tracemalloc.stop()
    order = outcome.started
    return Crowd(
        messages=len(order),
        seen=len(set(order)),
        most_weight=most,
        most_connections=servers.most_present * weight,
        hit_rate=1 - len(servers.attempts) / len(order),
        lru=_lru(order, pools),
        optimum=_belady(order, pools),
        p99=outcome.percentile(0.99, lambda _tenant: True),
        left=left,
        state=state,
        kept=kept,
    )


def count_state(world: World) -> int:
    """Count the items in every container that the run's parts can reach, the queue and the handlers left out."""
    run: Any = world.consumer._run
    stack: list[Any] = [vars(run), vars(world.pool)]
    seen: set[int] = set()
    items = 0
    while stack:
        thing = stack.pop()
        if id(thing) in seen or not _is_ours(thing):
            continue
        seen.add(id(thing))
        if isinstance(thing, _CONTAINERS):
            items += len(thing)
        stack.extend(gc.get_referents(thing))
    return items


def _is_ours(thing: Any) -> bool:
    if isinstance(thing, type):
        return False
    ours = tuple(f"postroom.{part}" for part in _PARTS)
    return isinstance(thing, (*_CONTAINERS, tuple)) or type(thing).__module__.startswith(ours)


def _kept() -> int:
    ours = [tracemalloc.Filter(True, f"*/postroom/{part}/*") for part in _PARTS]
    snapshot = tracemalloc.take_snapshot().filter_traces(ours)
    return sum(statistic.size for statistic in snapshot.statistics("filename"))


def _lru(order: Sequence[Tenant], size: int) -> float:
    cache: OrderedDict[Tenant, None] = OrderedDict()
    hits = 0
    for tenant in order:
        hits += tenant in cache
        cache[tenant] = None
        cache.move_to_end(tenant)
        if len(cache) > size:
            cache.popitem(last=False)
    return hits / len(order)


def _belady(order: Sequence[Tenant], size: int) -> float:
    """Evict the tenant that is wanted again last."""
    uses: defaultdict[Tenant, deque[int]] = defaultdict(deque)
    for place, tenant in enumerate(order):
        uses[tenant].append(place)
    furthest: list[tuple[int, int, Tenant]] = []
    next_use: dict[Tenant, int] = {}
    hits = 0
    for place, tenant in enumerate(order):
        hits += tenant in next_use
        uses[tenant].popleft()
        next_use[tenant] = uses[tenant][0] if uses[tenant] else len(order) + place
        heappush(furthest, (-next_use[tenant], place, tenant))
        while len(next_use) > size:
            use, _, loser = heappop(furthest)
            if next_use.get(loser) == -use:
                del next_use[loser]
    return hits / len(order)
