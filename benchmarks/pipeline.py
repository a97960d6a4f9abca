"""What the consumer itself costs per message: CPU above the transport, with everything on.

The queue is made of prepared batches that answer at once, so nothing but postroom's own work is measured: typed
context from attributes, scheduler, pooled lease, validated payload, handler task, heartbeat, batched acknowledgement.

    python benchmarks/pipeline.py [--messages 50000] [--tenants 100] [--concurrency 64] [--profile]

``--with router`` and ``--with envelope`` measure what a ``Router`` and an ``SnsEnvelope`` add that plain messages pass,
``--with groups`` what it costs to count who is noisy and who is quiet, where messages have groups.
``--calls`` counts calls of Python and C per message instead: the same on every run, however busy the machine is.
"""

import argparse
import asyncio
import cProfile
import gc
import json
import logging
import pstats
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import msgspec

from postroom import (
    Concurrency,
    Consumer,
    Message,
    MessageAttribute,
    MessageContext,
    Polling,
    PoolLimits,
    ResourcePool,
    Router,
    by_attribute,
)
from postroom.message import OutgoingMessage
from postroom.payloads import SnsEnvelope
from postroom.transports.protocol import EntryFailure, QueueInfo, SendResult, VisibilityChange


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str
    region: str


class Order(msgspec.Struct):
    """The payload."""

    order_id: str
    customer_id: str
    amount: float


class PreparedQueue:
    """Hands out prepared messages, ten at a time, and takes every delete."""

    def __init__(self, messages: int, tenants: int, *, grouped: bool = False) -> None:
        self._make = partial(_message, tenants=tenants, grouped=grouped)
        numbers = range(0, messages, 10)
        self._batches = [[self._make(n + i) for i in range(10)] for n in numbers]
        self._left = messages
        self.empty = asyncio.Event()
        self.calls = 0

    @property
    def info(self) -> QueueInfo:
        """What the queue says of itself."""
        return QueueInfo(name="bench", url="memory://bench", arn="arn:bench")

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Return the next batch; when there is none, wait like an empty long poll."""
        self.calls += 1
        await asyncio.sleep(0)
        if self._batches:
            return self._batches.pop()
        await asyncio.sleep(wait)
        return []

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Count deletes."""
        self.calls += 1
        self._left -= len(receipt_handles)
        if not self._left:
            self.empty.set()
        return []

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Take every change: what goes back, as of a noisy tenant, comes again. Nothing is extended here."""
        self._batches += [[self._make(int(change.receipt_handle[2:]))] for change in changes]
        return []

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Take nothing."""
        return []

    async def attributes(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}


class PreparedClient:
    """Opens the prepared queue."""

    def __init__(self, queue: PreparedQueue) -> None:
        self._queue = queue

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    async def queue(self, name: str) -> PreparedQueue:
        """Open it."""
        return self._queue


def _message(number: int, tenants: int, *, grouped: bool) -> Message:
    body = json.dumps({"order_id": f"order-{number}", "customer_id": "cust-1", "amount": 9.5})
    attributes = {
        "tenantId": MessageAttribute("String", string_value=f"tenant-{number % tenants}"),
        "region": MessageAttribute("String", string_value="eu-west-1"),
    }
    group = {"MessageGroupId": f"tenant-{number % tenants}"}
    return Message(
        id=f"id-{number}",
        body=body,
        receipt_handle=f"r-{number}",
        message_attributes=attributes,
        system_attributes={"ApproximateReceiveCount": "1", **(group if grouped else {})},
    )


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[dict[str, str]]:
    """Give every tenant something of its own."""
    yield {"tenant": tenant.tenant_id}


async def once(messages: int, tenants: int, concurrency: int, extra: str = "") -> tuple[float, float, int]:
    """Consume so many messages and return CPU seconds, wall seconds and calls."""
    queue = PreparedQueue(messages, tenants, grouped=extra == "groups")
    pool = ResourcePool(database, limits=PoolLimits(budget=tenants))
    orders = Consumer(
        "bench",
        context=Tenant,
        resources=pool,
        concurrency=Concurrency(total=concurrency, per_tenant=concurrency),
        polling=Polling(wait=20),
        client=PreparedClient(queue),
        unwrap=SnsEnvelope(raw=True) if extra == "envelope" else None,
    )

    async def handle(order: Order, ctx: MessageContext[Tenant, dict[str, str]]) -> None:
        assert ctx.resources["tenant"] == ctx.context.tenant_id

    if extra == "router":
        router = Router[Tenant, dict[str, str]](by_attribute("region"))
        router.handler("eu-west-1")(handle)
        orders.handler(router)
    else:
        orders.handler(handle)

    async with pool:
        for tenant in range(tenants):
            async with pool.lease(Tenant(f"tenant-{tenant}", "eu-west-1")):
                pass
        cpu, wall = time.process_time(), time.perf_counter()
        async with orders:
            await queue.empty.wait()
            used = time.process_time() - cpu, time.perf_counter() - wall
            orders.stop(now=True)
    return *used, queue.calls


def count_calls(tenants: int, concurrency: int, extra: str) -> None:
    """Print how many calls of Python and of C one more message makes."""
    counts = {"call": 0, "c_call": 0}

    def noted(_frame: object, event: str, _argument: object) -> None:
        if event in counts:
            counts[event] += 1

    seen: list[dict[str, int]] = []
    gc.disable()
    for messages in (2_000, 6_000):
        counts.update(call=0, c_call=0)
        sys.setprofile(noted)
        asyncio.run(once(messages, tenants, concurrency, extra))
        sys.setprofile(None)
        seen.append(dict(counts))
    python, c = ((seen[1][each] - seen[0][each]) / 4_000 for each in ("call", "c_call"))
    print(f"calls per message: {python:.1f} of Python, {c:.1f} of C")


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--with", dest="extra", choices=["router", "envelope", "groups"], default="")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.calls:
        count_calls(options.tenants, options.concurrency, options.extra)
        return
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(asyncio.run, once(options.messages, options.tenants, options.concurrency, options.extra))
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)
        return
    sizes = options.messages, options.tenants, options.concurrency
    runs = [asyncio.run(once(*sizes, options.extra)) for _ in range(options.runs)]
    cpu = [used / options.messages * 1e6 for used, _, _ in runs]
    wall = [options.messages / seconds for _, seconds, _ in runs]
    print(f"CPU per message: median {statistics.median(cpu):.1f} us (from {min(cpu):.1f} to {max(cpu):.1f})")
    print(f"messages per second on one core: median {statistics.median(wall):,.0f}")


if __name__ == "__main__":
    main()
