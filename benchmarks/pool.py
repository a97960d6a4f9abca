"""What a lease costs: the hit path, a cold key with many waiters, many keys at once, memory per live tenant.

::

    python benchmarks/pool.py            # the table
    python benchmarks/pool.py --limit 2  # and exit 1 if a hit takes more than 2 microseconds
"""

import argparse
import asyncio
import gc
import platform
import resource as os_resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from postroom.resources import PoolLimits, ResourcePool

TENANTS = 500
ROUNDS = 40
REPEATS = 15


@dataclass(frozen=True)
class Tenant:
    """A context as in the README."""

    tenant_id: str
    region: str


@asynccontextmanager
async def database(_context: object) -> AsyncIterator[object]:
    """Open nothing, so that only the pool is measured."""
    yield object()


async def hit(make: Callable[[int], Hashable], *, held: bool = False) -> float:
    """Return the microseconds of CPU of try_lease + release, with a new context each time, as messages make them."""
    async with ResourcePool[Any, object](database, limits=PoolLimits(budget=TENANTS)) as pool:
        for number in range(TENANTS):
            async with pool.lease(make(number)):
                pass
        contexts = [make(number) for number in range(TENANTS)]
        others = [await pool.acquire(context) for context in contexts] if held else []
        best = min(_time_hits(pool, contexts) for _ in range(REPEATS))
        for lease in others:
            lease.release()
    return best


def _time_hits(pool: ResourcePool[Any, object], contexts: list[Hashable]) -> float:
    started = time.process_time()
    for _ in range(ROUNDS):
        for context in contexts:
            lease = pool.try_lease(context)
            assert lease is not None
            lease.release()
    return (time.process_time() - started) / (ROUNDS * len(contexts)) * 1e6


async def scoped_hit() -> float:
    """Return the microseconds of CPU of ``async with pool.lease(context)``."""
    async with ResourcePool[Any, object](database) as pool:
        context = Tenant("tenant", "eu-west-1")
        async with pool.lease(context):
            pass
        best = float("inf")
        for _ in range(REPEATS):
            started = time.process_time()
            for _ in range(ROUNDS * 100):
                async with pool.lease(context):
                    pass
            best = min(best, (time.process_time() - started) / (ROUNDS * 100) * 1e6)
    return best


async def cold(waiters: int) -> tuple[float, int]:
    """Return the microseconds per waiter, and the opens, of many calls for one cold key."""
    async with ResourcePool[Any, object](database) as pool:
        started = time.process_time()
        leases = await asyncio.gather(*(pool.acquire("tenant") for _ in range(waiters)))
        spent = (time.process_time() - started) / waiters * 1e6
        for lease in leases:
            lease.release()
        return spent, pool.statistics().opened


async def many(keys: int, budget: int) -> tuple[float, int]:
    """Return the microseconds per key, and the opens, of many cold keys at once on a small budget."""
    most = 0

    async def use(number: int) -> None:
        nonlocal most
        async with pool.lease(number, timeout=600):
            most = max(most, pool._core.budget.used)  # noqa: SLF001 - the promise is about the inside

    async with ResourcePool[Any, object](database, limits=PoolLimits(budget=budget)) as pool:
        started = time.process_time()
        await asyncio.gather(*(use(number) for number in range(keys)))
        spent = (time.process_time() - started) / keys * 1e6
        assert most <= budget
        return spent, pool.statistics().opened


async def memory(keys: int) -> float:
    """Return the bytes of resident memory per live entry, its task included."""
    async with ResourcePool[Any, object](database, limits=PoolLimits(budget=keys)) as pool:
        gc.collect()
        before = os_resource.getrusage(os_resource.RUSAGE_SELF).ru_maxrss
        for number in range(keys):
            async with pool.lease(Tenant(f"tenant-{number}", "eu-west-1")):
                pass
        after = os_resource.getrusage(os_resource.RUSAGE_SELF).ru_maxrss
    return (after - before) * (1 if sys.platform == "darwin" else 1024) / keys


async def measure() -> dict[str, float]:
    """Measure everything, and print it as it comes."""
    print(f"Python {platform.python_version()}, {platform.machine()}; CPU time, best of {REPEATS}\n")
    figures: dict[str, float] = {}

    def show(name: str, value: float, unit: str, remark: str = "") -> None:
        figures[name] = value
        print(f"{name:<52} {value:>9.2f} {unit:<9} {remark}")

    show("memory per live entry", await memory(10_000), "bytes", "10,000 entries, owner task included")
    show("hit, frozen dataclass", await hit(lambda n: Tenant(f"tenant-{n}", "eu-west-1")), "us", "try_lease + release")
    show("hit, frozen dataclass, key in use", await hit(lambda n: Tenant(f"t-{n}", "eu"), held=True), "us")
    show("hit, tuple", await hit(lambda n: (f"tenant-{n}", "eu-west-1")), "us")
    show("hit, str", await hit(lambda n: f"tenant-{n}"), "us")
    show("hit, async with pool.lease()", await scoped_hit(), "us")
    spent, opens = await cold(10_000)
    show("10,000 calls for one cold key, each", spent, "us", f"{opens} open")
    spent, opens = await many(1_000, 50)
    show("1,000 cold keys at once, budget 50, each", spent, "us", f"{opens} opens")
    return figures


def main() -> int:
    """Print the table; compare the hit with a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit", type=float, help="microseconds that a hit may take")
    options = parser.parse_args()
    figures = asyncio.run(measure())
    slowest = max(value for name, value in figures.items() if name.startswith("hit, ") and "async" not in name)
    if options.limit is not None and slowest > options.limit:
        print(f"\na hit took {slowest:.2f} us, more than {options.limit:g}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
