"""Does a message cost more when there is more: more live tenants, more at once? And what does each of them weigh?

The consumer's own cost as ``benchmarks/pipeline.py`` measures it, above the transport. Runs alternate, and the ratio is
that of the medians to the smallest case.

    python -m benchmarks.consumers_growth [--rounds 5] [--messages 60000]
"""

import argparse
import asyncio
import gc
import logging
import statistics
import time
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks import pipeline
from benchmarks.pipeline import Order, PreparedClient, PreparedQueue, Tenant, database

from postroom import Concurrency, Consumer, MessageContext, PoolLimits, ResourcePool

TENANTS = (1, 100, 10_000)
CONCURRENCY = (1, 10, 100, 1000)
MIDDLE = (100, 64)
"""Tenants while the concurrency varies, and the other way round."""
LEASES = 20_000
PATIENCE = 60


def cost(messages: int, tenants: int, concurrency: int) -> float:
    """Return the microseconds of CPU of one message."""
    used, _, _ = asyncio.run(pipeline.once(messages, tenants, concurrency))
    gc.collect()
    return used / messages * 1e6


def grow(title: str, cases: dict[int, tuple[int, int]], options: argparse.Namespace) -> None:
    """Measure cases alternately and print them, with the ratio to the smallest."""
    costs: dict[int, list[float]] = {size: [] for size in cases}
    for _ in range(options.rounds):
        for size, (tenants, concurrency) in cases.items():
            costs[size].append(cost(options.messages, tenants, concurrency))
    first = statistics.median(next(iter(costs.values())))
    print(f"{title:>16}{'ratio':>8}{'us/message':>12}{'spread':>16}")
    for size, taken in costs.items():
        middle = statistics.median(taken)
        print(f"{size:>16,}{middle / first:>7.2f}x{middle:>12.1f}{f'{min(taken):.1f}-{max(taken):.1f}':>16}")
    print(flush=True)


async def in_flight(count: int) -> int:
    """Return the bytes that so many messages take with handlers that run, the messages themselves not counted."""
    queue = PreparedQueue(count, 1)
    begun, go = 0, asyncio.Event()
    all_begun = asyncio.Event()
    pool = ResourcePool(database)
    orders = Consumer(
        "bench",
        context=Tenant,
        resources=pool,
        concurrency=Concurrency(total=count, per_tenant=count, reserved=0),
        client=PreparedClient(queue),
    )

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, dict[str, str]]) -> None:
        nonlocal begun
        begun += 1
        if begun == count:
            all_begun.set()
        await go.wait()

    async with pool, pool.lease(Tenant("tenant-0", "eu-west-1")):
        gc.collect()
        tracemalloc.start()
        async with orders:
            empty = tracemalloc.get_traced_memory()[0]
            async with asyncio.timeout(PATIENCE):
                await all_begun.wait()
            gc.collect()
            full = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            go.set()
            await queue.empty.wait()
            orders.stop(now=True)
    return full - empty


@asynccontextmanager
async def nothing(tenant: Tenant) -> AsyncGenerator[None]:
    """Open nothing: what is weighed is the pool's own."""
    yield None


async def live(count: int) -> int:
    """Return the bytes that so many open resources take, the resources themselves not counted."""
    tenants = [Tenant(f"tenant-{number}", "eu-west-1") for number in range(count)]
    async with ResourcePool(nothing, limits=PoolLimits(budget=count)) as pool:
        gc.collect()
        tracemalloc.start()
        for tenant in tenants:
            async with pool.lease(tenant):
                pass
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return used


async def hits(tenants: int) -> float:
    """Return the microseconds of CPU of a lease that finds its resource open: lease, read, release."""
    known = [Tenant(f"tenant-{number}", "eu-west-1") for number in range(tenants)]
    async with ResourcePool(nothing, limits=PoolLimits(budget=tenants)) as pool:
        for tenant in known:
            async with pool.lease(tenant):
                pass
        started = time.process_time()
        for number in range(LEASES):
            lease = pool.try_lease(known[number % tenants])
            assert lease is not None
            lease.release()
        return (time.process_time() - started) / LEASES * 1e6


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=60_000)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    tenants, concurrency = MIDDLE
    print(f"CPU of a message, by live tenants (concurrency {concurrency})")
    grow("live tenants", {number: (number, concurrency) for number in TENANTS}, options)
    print(f"CPU of a message, by concurrency ({tenants} live tenants)")
    grow("concurrency", {number: (tenants, number) for number in CONCURRENCY}, options)
    for number in (1, 10_000):
        taken = statistics.median(asyncio.run(hits(number)) for _ in range(options.rounds))
        print(f"pool hit, {number:,} live: {taken:.2f} us (lease and release)")
    for number in (1_000, 10_000):
        print(f"memory per message in flight, {number:,} of them: {asyncio.run(in_flight(number)) / number:,.0f} bytes")
    for number in (1_000, 10_000):
        print(f"memory per live tenant, {number:,} of them: {asyncio.run(live(number)) / number:,.0f} bytes")


if __name__ == "__main__":
    main()
