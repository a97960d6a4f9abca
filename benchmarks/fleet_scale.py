"""Where one Valkey ends: the traffic of many replicas and tenants, spoken to a real server from few processes.

Each replica is its exchanges alone, once a tick, for the tenants that have work there: a random part of all of them,
of which a tenth changes with every tick. Run it with ``python -m benchmarks.fleet --only scale``.
"""

import asyncio
import multiprocessing
import random
import time
from dataclasses import dataclass
from typing import Any

from valkey import Valkey

from postroom.fleet import Ask, Request, ValkeyState
from postroom.testing.valkey import ValkeyServer

_TENANTS = 10_000
_LEASE, _TICK = 15.0, 1.0
_PROCESSES = 2
_CHURN = 0.1
"""The part of a replica's tenants that are others in the next tick."""


@dataclass(frozen=True)
class Load:
    """What the replicas do."""

    replicas: int
    each: int
    """Tenants with work at one replica at a time."""
    seconds: float


@dataclass
class _Seen:
    """What one process measured."""

    latencies: list[float]
    late: int
    """Ticks that began later than they should have, by more than a tenth of a tick."""
    cpu: float
    began: float = 0.0
    ended: float = 0.0


async def _replica(state: ValkeyState, name: str, load: Load, seen: _Seen) -> None:
    rng = random.Random(name)
    held = dict.fromkeys(rng.sample(range(_TENANTS), load.each), 0)
    await asyncio.sleep(rng.random() * _TICK)
    began = time.perf_counter()
    for tick in range(int(load.seconds / _TICK)):
        delay = began + tick * _TICK - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        seen.late += delay < -0.1 * _TICK
        for tenant in rng.sample(sorted(held), int(_CHURN * load.each)):
            del held[tenant]
            held[rng.randrange(_TENANTS)] = 0
        asks = tuple(Ask(f"t:tenant-{number:05}", 20, slots, 3, 8) for number, slots in held.items())
        sent = time.perf_counter()
        answer = await state.exchange("scale", Request(name, tick + 1, "", _LEASE, _TICK, asks))
        seen.latencies.append(time.perf_counter() - sent)
        held = {tenant: min(3, grant.slots) for tenant, grant in zip(held, answer.grants, strict=True)}


def _process(url: str, load: Load, first: int) -> _Seen:
    seen, cpu = _Seen([], 0, 0.0, time.monotonic()), time.process_time()

    async def main() -> None:
        state = ValkeyState(url)
        names = [f"replica-{number:03}" for number in range(first, load.replicas, _PROCESSES)]
        await asyncio.gather(*(_replica(state, name, load, seen) for name in names))
        await state.aclose()

    asyncio.run(main())
    seen.cpu, seen.ended = time.process_time() - cpu, time.monotonic()
    return seen


def _usage(client: Any) -> tuple[float, int, int]:
    """Return the server's CPU seconds, its calls of scripts, and bytes in both directions."""
    cpu, stats = client.info("cpu"), client.info("stats")
    calls = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    return (
        cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        calls,
        stats["total_net_input_bytes"] + stats["total_net_output_bytes"],
    )


def _quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def measure(server: ValkeyServer, load: Load) -> str:
    """Return one row of the table."""
    client: Any = Valkey.from_url(server.url)
    client.flushall()
    before = _usage(client)
    with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
        parts = pool.starmap(_process, [(server.url, load, first) for first in range(_PROCESSES)])
    after = _usage(client)
    memory = client.info("memory")["used_memory"]
    client.close()
    latencies = [each for part in parts for each in part.latencies]
    cpu, calls, size = (last - first for last, first in zip(after, before, strict=True))
    length = max(part.ended for part in parts) - min(part.began for part in parts)
    asks = len(latencies) * load.each
    late = sum(part.late for part in parts) / len(latencies)
    return (
        f"| {load.replicas} | {load.each:,} | {asks / length:,.0f} | {calls / length:,.0f} "
        f"| {size / length / 1e6:.1f} MB | {memory / 1e6:.0f} MB "
        f"| {cpu / length * 100:.0f} % | {cpu / asks * 1e6:.0f} us "
        f"| {_quantile(latencies, 0.5) * 1e3:.1f} / {_quantile(latencies, 0.99) * 1e3:.1f} ms | {late * 100:.0f} % |"
    )


def scale(server: ValkeyServer, replicas: list[int], seconds: float) -> None:
    """Print the table."""
    print(f"{_TENANTS:,} tenants, a tick of {_TICK:g} s, {seconds:g} s for each row:")
    print("| replicas | tenants at each | tenants asked for per second | script calls per second | bytes per second "
          "| memory | CPU of the server's core | of it for each | exchange p50 / p99 | late ticks |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for count in replicas:
        for each in (10, 50, 100, 200, 400, 800):
            print(measure(server, Load(count, each, seconds)), flush=True)
