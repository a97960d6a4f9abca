"""What a noisy tenant buys: an autoscaler on the depth of the queue, and one on what quiet tenants feel. Virtual time.

A quarter of an hour. Ten quiet tenants send 5 messages a second together, and 30 a second for five minutes; a noisy
one, limited to 4 handlers, sends 2,000 at once. Handlers take a second, and a replica runs 8 at once, so quiet tenants
alone need 0.6 replicas, and 3.8 at their peak. Run it with ``python -m benchmarks.fleet --only autoscaling``.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from postroom import Concurrency, Consumer, Fleet, Message, MessageContext, Polling
from postroom.fleet import MemoryState
from postroom.local import LocalBroker
from postroom.local.shapes import Send
from postroom.testing.loop import run_virtual
from postroom.transports.memory import MemoryClient

_LEAST, _MOST = 2, 20
_MINUTES = 15
_PEAK = range(8, 13)
_NOISE, _NOISE_AT, _LIMIT = 2_000, 1, 4
_EVERY = 15.0
"""Seconds between two looks of the autoscaler."""
_COOLDOWN = 12
"""Looks in a row that have to ask for fewer replicas, before one goes."""
_PER_REPLICA = 100
"""Messages in the queue for each replica, for the one that counts them."""


@dataclass
class _World:
    """The replicas, and what they did."""

    broker: LocalBroker
    state: MemoryState
    replicas: dict[Consumer[str], asyncio.Task[None]] = field(default_factory=dict)
    leaving: list[asyncio.Task[None]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    noisy: int = 0
    replica_seconds: float = 0.0
    most: int = 0
    fewer: int = 0

    def depth(self) -> int:
        """Return the messages in the queue, those in flight included, as KEDA counts them by default."""
        said = self.broker.attributes("orders")
        return int(said["ApproximateNumberOfMessages"]) + int(said["ApproximateNumberOfMessagesNotVisible"])

    def add(self) -> None:
        """Start a replica."""
        orders = Consumer(
            "orders",
            context=_group,
            concurrency=Concurrency(total=8, per_tenant=8),
            polling=Polling(wait=5.0),
            client=MemoryClient(self.broker),
            fleet=Fleet(self.state, per_tenant=_LIMIT),
        )

        @orders.handler
        async def handle(sent: str, ctx: MessageContext[str]) -> None:
            if ctx.context == "noisy":
                self.noisy += 1
            else:
                self.waits.append(asyncio.get_running_loop().time() - float(sent))
            await asyncio.sleep(1)

        self.replicas[orders] = asyncio.create_task(orders.run())

    def scale(self, wanted: int) -> None:
        """Come nearer to the number that is wanted: up at once, down by one after a while."""
        wanted = min(_MOST, max(_LEAST, wanted))
        while len(self.replicas) < wanted:
            self.add()
        self.fewer = self.fewer + 1 if wanted < len(self.replicas) else 0
        if self.fewer >= _COOLDOWN:
            self.fewer = 0
            orders = next(reversed(self.replicas))
            orders.stop()
            self.leaving.append(self.replicas.pop(orders))
        self.most = max(self.most, len(self.replicas))


def _group(message: Message) -> str:
    return message.group_id or ""


def by_depth(world: _World) -> int:
    """Ask for one replica for so many messages."""
    return math.ceil(world.depth() / _PER_REPLICA)


def by_what_is_felt(world: _World) -> int:
    """Ask for half as many more where slots are full and a tenant within its share waits; for fewer if idle."""
    said = [consumer.statistics() for consumer in world.replicas]
    busy = sum(each.utilisation for each in said) / len(said)
    waits = max(each.oldest_wait_within_share for each in said)
    if busy > 0.8 and waits > 1.0:
        return len(said) + max(1, len(said) // 2)
    return len(said) - 1 if busy < 0.4 else len(said)


def not_at_all(_world: _World) -> int:
    """Stay as one is."""
    return _LEAST


async def _run(policy: Callable[[_World], int]) -> _World:
    loop, rng = asyncio.get_running_loop(), random.Random(1)
    async with LocalBroker(seed=1, epoch=1_800_000_000.0) as broker:
        broker.create_queue("orders")
        world = _World(broker, MemoryState(loop.time))
        world.scale(_LEAST)
        scaler = asyncio.create_task(_autoscale(world, policy))
        for second in range(_MINUTES * 60):
            if second == _NOISE_AT * 60:
                for _ in range(_NOISE):
                    _send(broker, "noisy", loop.time())
            for _ in range(30 if second // 60 in _PEAK else 5):
                _send(broker, f"quiet-{rng.randrange(10)}", loop.time())
            world.replica_seconds += len(world.replicas) + sum(not task.done() for task in world.leaving)
            await asyncio.sleep(1)
        scaler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await scaler
        for consumer in world.replicas:
            consumer.stop(now=True)
        await asyncio.gather(*world.replicas.values(), *world.leaving)
    return world


async def _autoscale(world: _World, policy: Callable[[_World], int]) -> None:
    while True:
        await asyncio.sleep(_EVERY)
        world.scale(policy(world))


def _send(broker: LocalBroker, tenant: str, now: float) -> None:
    broker.send("orders", Send(message_body=repr(now), message_group_id=tenant))


def autoscaling() -> None:
    """Print what each signal costs, and what quiet tenants wait."""
    print("| scaled on | replica-hours | most replicas | quiet p50 | quiet p99 | longest | noisy messages |")
    print("|---|---|---|---|---|---|---|")
    policies = {
        "nothing: 2 replicas": not_at_all,
        "queue depth, 100 for each replica": by_depth,
        "`utilisation` and `oldest_wait_within_share`": by_what_is_felt,
    }
    for name, policy in policies.items():
        world = run_virtual(_run(policy), seed=1)
        waits = sorted(world.waits)
        parts = [waits[int(part * (len(waits) - 1))] for part in (0.5, 0.99, 1.0)]
        print(
            f"| {name} | {world.replica_seconds / 3600:.2f} | {world.most} | "
            + " | ".join(f"{each:.2f} s" for each in parts)
            + f" | {world.noisy:,} |",
            flush=True,
        )
