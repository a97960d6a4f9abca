"""A queue that everybody shares, in virtual time: quiet tenants, noisy tenants, and the real consumer between them.

Everything but the clock, the network's delay and the handlers' work is the real thing: the local broker with the
delivery order of SQS's fair queues, the consumer with its poller, intake, scheduler and settlement.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from unittest import mock

from postroom import Concurrency, Consumer, Message, MessageContext, Polling, Shutdown
from postroom.consumer.demand import AdaptivePolicy
from postroom.consumer.job import Job
from postroom.local import LocalBroker
from postroom.local.fair import FairPolicy
from postroom.local.shapes import Send
from postroom.scheduling import Scheduler, State
from postroom.testing.loop import run_virtual
from postroom.transports.memory import MemoryClient
from postroom.transports.protocol import Queue
from support.passing import PassingClient, PassingQueue


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    policy: str = "postroom"
    """``fifo``, ``round-robin``, ``drr`` (without scout), ``postroom``; or ``wide``: postroom with all its receives
    outstanding all the time, as they are under noise."""
    noisy: int = 1
    """Noisy tenants; 0 for the quiet tenants alone."""
    consumers: int = 1
    noisy_seconds: float = 0.02
    lag: float = 0.0
    """Seconds between two looks of the queue at who is noisy."""
    seed: int = 1
    seconds: float = 10.0
    """How long it goes on from when the noise begins."""
    noise_rate: float = 4000.0
    """Messages per second of all noisy tenants, per consumer."""
    noise_from: float = 0.0
    """When the noise begins; quiet messages sent before that are not counted."""
    quiet: int = 5
    quiet_rate: float = 5.0
    """Messages per second of each quiet tenant."""
    quiet_seconds: float = 0.02
    slots: int = 50
    pollers: int = 8
    round_trip: float = 0.01


@dataclass
class Outcome:
    """What a run showed."""

    latencies: list[float] = field(default_factory=list[float])
    """Seconds from send to the handler's end, of quiet tenants' messages."""
    noisy_busy: float = 0.0
    """Handler seconds of noisy tenants."""
    quiet_sent: int = 0
    parked: int = 0
    most_receives: int = 0

    def percentile(self, part: float) -> float:
        """Return a percentile of the latencies, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


class FarQueue(PassingQueue):
    """A queue at the end of a network: a call of a consumer's own takes a round trip."""

    def __init__(self, queue: Queue, round_trip: float) -> None:
        super().__init__(queue)
        self._half = round_trip / 2

    async def before(self, call: str) -> None:
        """Take half a round trip."""
        if call not in {"send", "attributes"}:
            await asyncio.sleep(self._half)

    async def after(self, call: str) -> None:
        """Take the other half."""
        await self.before(call)


class FarClient(PassingClient):
    """A client with queues that are at the end of a network."""

    def __init__(self, client: MemoryClient, round_trip: float) -> None:
        super().__init__(client)
        self._round_trip = round_trip

    async def queue(self, name: str) -> FarQueue:
        """Open a queue."""
        return FarQueue(await super().queue(name), self._round_trip)


class Plain(Scheduler[Job]):
    """What other consumers do: first come, first served, or one of each tenant in turn."""

    def __init__(self, *, total: int, in_turn: bool) -> None:
        super().__init__(total=total, per_tenant=total)
        self._in_turn = in_turn
        self._free = total
        self._queues: dict[Any, deque[Job]] = {}

    @property
    def size(self) -> int:
        """Jobs that are here."""
        return self.waiting + self.total - self._free

    def has_room(self, count: int) -> bool:
        """Let everything stand in line."""
        return False

    def add(self, ticket: Job) -> None:
        """Take a job in."""
        ticket.state = State.WAITING
        self.waiting += 1
        self._queues.setdefault(ticket.tenant if self._in_turn else None, deque()).append(ticket)

    def grant(self, now: float = 0.0) -> Job | None:
        """Give a slot to the next."""
        if not self._free or not self._queues:
            return None
        tenant = next(iter(self._queues))
        line = self._queues.pop(tenant)
        job = line.popleft()
        if line:
            self._queues[tenant] = line
        self._free -= 1
        self.waiting -= 1
        job.state = State.RUNNING
        return job

    def finish(self, ticket: Job, seconds: float | None = None) -> None:
        """Free its slot."""
        self._free += 1

    def withdraw_waiting(self, keep: Any = None) -> list[Job]:
        """Give up what waits."""
        waiting = [job for line in self._queues.values() for job in line]
        self._queues.clear()
        self.waiting = 0
        return waiting


@contextlib.contextmanager
def scheduled_by(policy: str) -> Iterator[None]:
    """Let consumers that start here schedule in another way, for comparison."""
    if policy == "wide":
        always = mock.PropertyMock(return_value=True)
        with mock.patch.object(AdaptivePolicy, "_busy", always, create=True):
            yield
        return
    if policy not in {"fifo", "round-robin"}:
        yield
        return

    def plain(*, total: int, **_limits: Any) -> Scheduler[Job]:
        return Plain(total=total, in_turn=policy == "round-robin")

    with mock.patch("postroom.consumer.lifecycle.Scheduler", plain):
        yield


def tenant_of(message: Message) -> str:
    """Return the tenant: the message group."""
    return message.group_id or ""


def simulate(case: Case) -> Outcome:
    """Run one case and return what it showed."""

    async def main() -> Outcome:
        fair = FairPolicy(lag=case.lag)
        async with LocalBroker(seed=case.seed, epoch=1_800_000_000.0, fair=fair) as broker:
            broker.create_queue("orders", {"VisibilityTimeout": "60"})
            return await _run(case, broker)

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        jitter = mock.patch("postroom.consumer.lifecycle.Random", partial(Random, case.seed))
        with scheduled_by(case.policy), jitter:
            return run_virtual(main(), limit=10_000)
    finally:
        logging.disable(before)


async def _run(case: Case, broker: LocalBroker) -> Outcome:
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    start = loop.time()
    ended = False

    def make() -> Consumer[str, Any]:
        consumer: Consumer[str, Any] = Consumer(
            "orders",
            context=tenant_of,
            client=FarClient(MemoryClient(broker), case.round_trip),
            concurrency=Concurrency(total=case.slots, per_tenant=case.slots),
            polling=Polling(pollers=case.pollers, scout=case.policy in {"postroom", "wide"}),
            shutdown=Shutdown(drain=0, cancel=1, flush=1, poll=0),
        )

        @consumer.handler
        async def work(payload: tuple[float, float], ctx: MessageContext[str]) -> None:
            sent, seconds = payload
            await asyncio.sleep(seconds)
            if ended:
                return
            if ctx.context.startswith("noisy"):
                outcome.noisy_busy += seconds
            elif sent >= case.noise_from:
                outcome.latencies.append(loop.time() - start - sent)
            outcome.most_receives = max(outcome.most_receives, ctx.message.receive_count)

        return consumer

    consumers = [make() for _ in range(case.consumers)]
    async with contextlib.AsyncExitStack() as stack:
        for consumer in consumers:
            await stack.enter_async_context(consumer)
        senders = [
            asyncio.create_task(sender, name="sender")
            for sender in (_quiet(case, broker, outcome), _noise(case, broker))
        ]
        await asyncio.sleep(case.noise_from + case.seconds)
        for sender in senders:
            sender.cancel()
        await asyncio.wait(senders)
        outcome.parked = sum(consumer.statistics().parked for consumer in consumers)
        ended = True
        await asyncio.sleep(0)
        _empty(broker)
    return outcome


def _empty(broker: LocalBroker) -> None:
    """Drop what is left, so that the stop does not have to give it back."""
    broker.purge("orders")


async def _quiet(case: Case, broker: LocalBroker, outcome: Outcome) -> None:
    """Send what quiet tenants send: the same messages at the same times, whatever else the case is."""
    rng = Random(case.seed * 7919 + 1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    while True:
        await asyncio.sleep(rng.expovariate(case.quiet * case.quiet_rate * case.consumers))
        now = loop.time() - start
        _send(broker, f"quiet-{rng.randrange(case.quiet)}", now, case.quiet_seconds * rng.uniform(0.5, 1.5))
        outcome.quiet_sent += now >= case.noise_from


async def _noise(case: Case, broker: LocalBroker) -> None:
    rng = Random(case.seed * 7919 + 2)
    tick, due, number = 0.002, 0.0, 0
    await asyncio.sleep(case.noise_from)
    while case.noisy:
        due += case.noise_rate * case.consumers * tick
        while due >= 1:
            due -= 1
            number += 1
            _send(broker, f"noisy-{number % case.noisy}", 0.0, case.noisy_seconds * rng.uniform(0.5, 1.5))
        await asyncio.sleep(tick)
    await asyncio.Event().wait()


def _send(broker: LocalBroker, group: str, at: float, seconds: float) -> None:
    broker.send("orders", Send(message_body=f"[{at!r},{seconds!r}]", message_group_id=group))
