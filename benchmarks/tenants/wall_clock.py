"""What a noisy tenant costs quiet ones in real time: ``postroom local``, real databases, processes of their own.

    python benchmarks/tenants/wall_clock.py [--database postgres|sqlite] [--rounds 2] [--seconds 6]

Five quiet tenants send 25 messages per second together. *noisy*: one more tenant has sent twenty times as many as they
will, before they begin; they are handled beside its backlog. *solo*: the same without it, in the same process, right
before. Handlers insert a row into the tenant's own database and take 30 ms; 16 slots. *fifo* is the same consumer
with first come, first served in the scheduler's place and no scouts. Rounds alternate; the latency is from before the
send to after the commit, and the ratio that of noisy to solo, each the median of the rounds.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import boto3

from postroom import Concurrency, Consumer, Message, MessageContext, Polling, PoolLimits, ResourcePool, Shutdown
from postroom.datasources import Registry, asyncpg_pool, sqlite_database
from postroom.message import OutgoingMessage
from postroom.testing.postgres import PostgresServer
from postroom.transports.aws import AwsClient
from postroom.transports.protocol import Queue

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from simulation.fairness.model import scheduled_by  # noqa: E402 - the path comes first

QUIET = tuple(f"quiet{number}" for number in range(5))
RATE = 25.0
NOISE = 20
SLOTS = 16
SECONDS = 0.03
SCHEMA = "CREATE TABLE orders (id TEXT PRIMARY KEY)"
Handled = tuple[str, float, float]
"""Tenant, sent at, done at."""


def tenant_of(message: Message) -> str:
    """Return the tenant: the message group."""
    return message.group_id or ""


def main_of_worker(options: argparse.Namespace) -> None:
    """Consume until a line comes on standard input, then write down what was handled."""
    asyncio.run(work(options))


async def work(options: argparse.Namespace) -> None:
    """Run the consumer."""
    sources: dict[str, str] = json.loads(options.sources)
    handled: list[Handled] = []
    provider: Any
    if options.database == "postgres":
        provider = asyncpg_pool(Registry(sources), max_size=SLOTS)
    else:
        provider = sqlite_database(lambda tenant: Path(sources[tenant]))
    pool: ResourcePool[str, Any] = provider.pool(limits=PoolLimits(budget=200, check_after=3600.0))
    consumer: Consumer[str, Any] = Consumer(
        "orders",
        context=tenant_of,
        resources=pool,
        client=AwsClient(endpoint_url=options.endpoint, region="us-east-1"),
        concurrency=Concurrency(total=SLOTS, per_tenant=SLOTS),
        polling=Polling(pollers=4, scout=options.policy == "postroom"),
        shutdown=Shutdown(drain=0, cancel=2, flush=2, poll=0.1),
    )

    @consumer.handler
    async def insert(order: dict[str, Any], ctx: MessageContext[str, Any]) -> None:
        if options.database == "postgres":
            async with ctx.resources.acquire() as connection:
                await connection.execute("INSERT INTO orders VALUES ($1)", ctx.message.id)
        else:
            await ctx.resources.execute("INSERT INTO orders VALUES (?)", (ctx.message.id,))
        await asyncio.sleep(SECONDS)
        handled.append((ctx.context, order["sent"], time.time()))

    with scheduled_by(options.policy):
        async with pool:
            for tenant in sources:  # what is measured is not the opening; the plain scheduler knows none
                async with pool.lease(tenant):
                    pass
            async with consumer:
                print("ready", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
    await asyncio.to_thread(Path(options.out).write_text, json.dumps(handled), encoding="utf-8")


class Worker:
    """A consumer process."""

    def __init__(self, database: str, policy: str, endpoint: str, sources: dict[str, str]) -> None:
        self._out = tempfile.NamedTemporaryFile(prefix="wall-clock-", suffix=".json")  # noqa: SIM115 - closed by stop
        command = [sys.executable, __file__, "--worker", "--database", database, "--policy", policy]
        command += ["--endpoint", endpoint, "--sources", json.dumps(sources), "--out", self._out.name]
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **keys},
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit("the worker did not start")

    def stop(self) -> list[Handled]:
        """End it and return what it handled."""
        self._process.communicate("end\n", timeout=30)
        with self._out:
            return [(tenant, sent, done) for tenant, sent, done in json.load(self._out)]


@contextlib.contextmanager
def local_sqs() -> Iterator[str]:
    """Run ``postroom local`` and return its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "postroom", "local", "--port", str(port), "--host", "127.0.0.1", "--no-log"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@contextlib.contextmanager
def databases(kind: str) -> Iterator[dict[str, str]]:
    """Make a database for each tenant, and return where it is."""
    tenants = (*QUIET, "noisy")
    if kind == "postgres":
        with PostgresServer() as server:
            yield {tenant: server.create_database(tenant, schema=SCHEMA) for tenant in tenants}
        return
    with tempfile.TemporaryDirectory(prefix="wall-clock-") as folder:
        found = {tenant: f"{folder}/{tenant}.sqlite3" for tenant in tenants}
        for path in found.values():
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute(SCHEMA)
        yield found


async def send_noise(queue: Queue, count: int) -> None:
    """Send a backlog of the noisy tenant, eight batches at a time."""
    batches = iter(range(0, count, 10))

    async def sender() -> None:
        for _ in batches:
            await queue.send([OutgoingMessage(body=body(), group_id="noisy") for _ in range(10)])

    await asyncio.gather(*(sender() for _ in range(8)))


async def send_quiet(queue: Queue, seconds: float, rng: Random) -> None:
    """Send what quiet tenants send, at random times."""
    end = time.time() + seconds
    under_way: set[asyncio.Task[Any]] = set()
    while time.time() < end:
        await asyncio.sleep(rng.expovariate(RATE))
        message = OutgoingMessage(body=body(), group_id=rng.choice(QUIET))
        under_way.add(asyncio.create_task(queue.send([message])))
    await asyncio.wait(under_way)


def body() -> str:
    """Make a body with the time."""
    return json.dumps({"sent": time.time()})


@contextlib.asynccontextmanager
async def open_queue(endpoint: str) -> AsyncIterator[Queue]:
    """Make the queue again and open it."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    sqs = boto3.client("sqs", endpoint_url=endpoint, **keys)
    sqs.create_queue(QueueName="orders", Attributes={"VisibilityTimeout": "60"})
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    async with AwsClient(endpoint_url=endpoint, region="us-east-1") as client:
        yield await client.queue("orders")


async def one_round(options: argparse.Namespace, policy: str, sources: dict[str, str], seed: int) -> dict[str, Any]:
    """Run solo and noisy with a new server and a new consumer; return what was seen."""
    rng = Random(seed)
    with local_sqs() as endpoint:
        async with open_queue(endpoint) as queue:
            worker = await asyncio.to_thread(Worker, options.database, policy, endpoint, sources)
            await send_quiet(queue, 1.0, rng)
            await asyncio.sleep(0.5)
            solo_from = time.time()
            await send_quiet(queue, options.seconds, rng)
            await asyncio.sleep(0.5)
            await send_noise(queue, int(NOISE * RATE * options.seconds))
            noisy_from = time.time()
            await send_quiet(queue, options.seconds, rng)
            noisy_to = time.time()
            await asyncio.sleep(2.0)
            handled = await asyncio.to_thread(worker.stop)
    return {
        "solo": [done - sent for tenant, sent, done in handled if tenant in QUIET and solo_from <= sent < noisy_from],
        "noisy": [done - sent for tenant, sent, done in handled if tenant in QUIET and sent >= noisy_from],
        "noise": sum(tenant == "noisy" and done < noisy_to for tenant, _, done in handled) / (noisy_to - noisy_from),
    }


def percentile(values: Sequence[float], part: float) -> float:
    """Return a percentile, in milliseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3 if ordered else float("nan")


def row(database: str, policy: str, rounds: Sequence[dict[str, Any]]) -> str:
    """Write the medians of the rounds."""
    figures = [
        (median(percentile(each[what], part) for each in rounds)) for what in ("solo", "noisy") for part in (0.5, 0.99)
    ]
    solo, solo99, noisy, noisy99 = figures
    worst = max(percentile(each["noisy"], 0.99) / percentile(each["solo"], 0.99) for each in rounds)
    return (
        f"| {database} | {policy} | {solo:.1f} / {solo99:.1f} ms | {noisy:.1f} / {noisy99:.1f} ms | "
        f"{noisy / solo:.2f}x / {noisy99 / solo99:.2f}x | {worst:.2f}x | "
        f"{median(len(each['noisy']) for each in rounds):.0f} | {median(each['noise'] for each in rounds):.0f}/s |"
    )


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("postgres", "sqlite"))
    parser.add_argument("--policy", choices=("postroom", "fifo"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    for name in ("endpoint", "sources", "out"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        main_of_worker(options)
        return
    print(
        "| database | policy | solo p50 / p99 | noisy p50 / p99 | ratio p50 / p99 | worst p99 | quiet messages |",
        end=" ",
    )
    print("noisy messages handled |")
    print("|" + "---|" * 8)
    kinds = [options.database] if options.database else ["postgres", "sqlite"]
    policies = [options.policy] if options.policy else ["postroom", "fifo"]
    for options.database in kinds:
        found: dict[str, list[dict[str, Any]]] = {policy: [] for policy in policies}
        with databases(options.database) as sources:
            for number in range(options.rounds):
                for policy in policies:
                    found[policy].append(asyncio.run(one_round(options, policy, sources, number)))
        for policy in policies:
            print(row(options.database, policy, found[policy]), flush=True)


if __name__ == "__main__":
    main()
