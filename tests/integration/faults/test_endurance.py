"""A consumer process at full load for minutes: its descriptors, its memory and the server's own count stay flat.

More tenants than the budget has room for, so that databases are opened and closed all the time. POSTROOM_MINUTES says
for how long; without it a few seconds, which show no more than that nothing grows quickly.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

import psutil
import pytest

from integration.workers import Site
from postroom.datasources import postgres_inbox
from postroom.testing.postgres import PostgresServer
from support.tenant_database import CLIENT

MINUTES = float(os.environ.get("POSTROOM_MINUTES", "0"))
SECONDS = MINUTES * 60 or 8.0
TENANTS = tuple(f"tenant-{number}" for number in range(12))
CONNECTIONS = 2
BUDGET = 16
"""Connections: for eight tenants of twelve."""
_BACKLOG = 1_000
pytestmark = [pytest.mark.long, pytest.mark.postgres, pytest.mark.timeout(120 + 2 * SECONDS)]


@dataclass
class Samples:
    """What was seen of the worker, once a second or so."""

    at: list[float] = field(default_factory=list[float])
    descriptors: list[int] = field(default_factory=list[int])
    memory: list[int] = field(default_factory=list[int])
    backends: list[int] = field(default_factory=list[int])
    blocks: list[int] = field(default_factory=list[int])
    """What Python has given out, of whatever size."""
    malloc: list[int] = field(default_factory=list[int])
    """Bytes that the C library has given out, where it says so."""
    done: list[int] = field(default_factory=list[int])
    """Orders that are out of the queue."""

    def between(self, values: list[int], start: float, end: float) -> list[int]:
        """Return the values that were sampled in a time."""
        return [value for at, value in zip(self.at, values, strict=True) if start <= at < end]


def _backends(server: PostgresServer, name: str) -> int:
    return int(server.execute(f"SELECT count(*) FROM pg_stat_activity WHERE datname LIKE '{name}-%' AND {CLIENT}"))


def _memory(path: Path) -> tuple[int, int]:
    """Return the worker's blocks of Python's memory and bytes of the C library's."""
    blocks, malloc = path.read_text().split() if path.exists() else (0, 0)
    return int(blocks), int(malloc)


async def _produce(site: Site, sent: list[str]) -> None:
    """Keep the queue full: there is always more than the consumer can do."""
    rng = Random(4)
    while True:
        for _ in range(_BACKLOG - sum(site.counts())):
            tenant = rng.choice(TENANTS)
            sent.append(f"{tenant}-{len(sent)}")
            site.send(sent[-1], tenant=tenant)
        await asyncio.sleep(0.1)


async def _watch(
    process: psutil.Process, server: PostgresServer, name: str, *, count_done: Callable[[], int], memory: Path
) -> Samples:
    """Sample until the time is over."""
    loop = asyncio.get_running_loop()
    samples = Samples()
    start = loop.time()
    while (now := loop.time() - start) < SECONDS:
        samples.at.append(now)
        samples.descriptors.append(process.num_fds())
        samples.memory.append(process.memory_info().rss)
        blocks, malloc = _memory(memory)
        samples.blocks.append(blocks)
        samples.malloc.append(malloc)
        samples.done.append(count_done())
        samples.backends.append(await asyncio.to_thread(_backends, server, name))
        await asyncio.sleep(min(1.0, SECONDS / 60))
    return samples


async def test_at_full_load_nothing_grows(site: Site, postgres_server: PostgresServer) -> None:
    """Descriptors and memory stay where they were, and the server never counts more backends than the budget."""
    name = f"endurance-{os.getpid()}"
    schema = f"{postgres_inbox().schema} CREATE TABLE orders (order_id text)"
    for tenant in TENANTS:
        postgres_server.create_database(f"{name}-{tenant}", schema=schema)
    settings = {"STORAGE": "asyncpg", "DSN": postgres_server.dsn(name), "QUIET": "1", "TOTAL": "32"}
    settings |= {"BUDGET": str(BUDGET), "CONNECTIONS": str(CONNECTIONS), "PER_TENANT": "2"}
    sent: list[str] = []
    producing = asyncio.create_task(_produce(site, sent), name="produce")
    log = site.directory / "log"
    with log.open("wb") as said:
        site.log = said
        async with site.worker(**settings) as worker:
            async with asyncio.timeout(60):
                while not await asyncio.to_thread(_backends, postgres_server, name):
                    await asyncio.sleep(0.1)
            samples = await _watch(
                psutil.Process(worker.pid),
                postgres_server,
                name,
                count_done=lambda: len(sent) - sum(site.counts()),
                memory=site.directory / "memory",
            )
            producing.cancel()
            await asyncio.wait([producing])
            left = sum(site.counts())
            worker.terminate()
            await worker.communicate()
    assert worker.returncode == 0, log.read_text()
    assert _backends(postgres_server, name) == 0
    done = sum(int(postgres_server.execute("SELECT count(*) FROM orders", database=f"{name}-{t}")) for t in TENANTS)
    _judge(samples, f"{done:,} orders in {SECONDS:g} s")
    assert len(sent) - left <= done <= len(sent)
    for tenant in TENANTS:
        postgres_server.drop_database(f"{name}-{tenant}")


def _judge(samples: Samples, what: str) -> None:
    """After warming up nothing climbs; in a few seconds, which are spent warming up, not far.

    Memory by three measures. What Python and the C library have given out stays the same. What the system counts also
    has the holes that opening and closing connections leaves between; that grows ever more slowly, and has stopped in
    the end.
    """
    part = SECONDS / max(3.0, MINUTES)
    parts = [(number * part, (number + 1) * part) for number in range(round(SECONDS / part))]
    descriptors = [median(samples.between(samples.descriptors, *when)) for when in parts]
    memory = [median(samples.between(samples.memory, *when)) / 2**20 for when in parts]
    print(f"{what}; backends at most {max(samples.backends)} of {BUDGET}, at the end 0; {len(samples.at)} samples")
    done = [samples.between(samples.done, *when) for when in parts]
    rates = [(each[-1] - each[0]) / part for each in done]
    print("orders per second:", *(f"{each:.0f}" for each in rates))
    print("descriptors:", *(f"{each:g}" for each in descriptors), "at most", max(samples.descriptors))
    blocks = [median(samples.between(samples.blocks, *when)) for when in parts]
    print("blocks, thousands:", *(f"{each / 1000:.1f}" for each in blocks))
    malloc = [median(samples.between(samples.malloc, *when)) / 2**20 for when in parts]
    print("malloc, MiB:", *(f"{each:.1f}" for each in malloc))
    print("memory, MiB:", *(f"{each:.1f}" for each in memory))
    assert min(rates) > max(rates) / 10, "it stood still"
    assert BUDGET // 2 < max(samples.backends) <= BUDGET
    assert max(samples.descriptors) <= descriptors[1] + BUDGET + 50  # what the client may open to SQS at once
    if MINUTES >= 3:
        assert descriptors[-1] <= descriptors[1] + 4
        assert blocks[-1] <= blocks[1] * 1.03
        assert malloc[-1] <= malloc[1] * 1.05
        assert max(memory[-3:]) <= min(memory[-3:]) * 1.03
        assert memory[-1] <= memory[1] * 1.2
    else:
        assert memory[-1] <= memory[1] * 1.5
