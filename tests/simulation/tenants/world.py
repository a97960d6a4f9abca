"""Many tenants on hosts that fail, a queue that they share, and the real consumer between them, in virtual time.

Everything but the clock, the network's delay, the databases and the handlers' work is the real thing: the local
broker with the delivery order of SQS's fair queues, the consumer, the pool.
"""

import asyncio
import contextlib
import logging
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any
from unittest import mock

from postroom import Concurrency, Consumer, Message, MessageContext, Polling, PoolLimits, ResourcePool, Shutdown
from postroom.consumer.job import Job
from postroom.events import Event, ResourceOpenFailed
from postroom.local import LocalBroker
from postroom.local.shapes import Send
from postroom.scheduling import Scheduler
from postroom.testing.loop import run_virtual
from postroom.transports.memory import MemoryClient
from simulation.fairness.model import FarClient


class Trouble(Enum):
    """What is the matter with a tenant or a host."""

    REFUSING = "refusing"
    """New connections are refused, those that exist are broken."""
    HANGING = "hanging"
    """Nothing is answered any longer: opens and statements go nowhere."""
    OPENS_HANG = "opens hang"
    """New connections are not answered; those that exist go on."""


@dataclass(frozen=True)
class Tenant:
    """The context: who, and on which host."""

    name: str
    host: str

    @classmethod
    def of(cls, message: Message) -> "Tenant":
        """Return the tenant of a message: its message group says so."""
        name, _, host = (message.group_id or "").partition("@")
        return cls(name, host)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to open a tenant's resources."""

    tenant: Tenant
    at: float
    failed_at: float | None = None
    pause: float = 0.0


class Connection:
    """A tenant's resource."""

    def __init__(self, servers: "Servers", tenant: Tenant) -> None:
        self.tenant = tenant
        self._servers = servers

    async def ping(self) -> None:
        """Check that it answers."""
        await self._servers.meet_trouble(self.tenant, opening=False)

    async def work(self, seconds: float) -> None:
        """Take some seconds. Raises ``ConnectionError`` or goes nowhere while there is trouble."""
        await asyncio.sleep(seconds)
        await self._servers.meet_trouble(self.tenant, opening=False)


class Servers:
    """The provider: hosts and tenants with their trouble, and a diary of what was tried."""

    def __init__(self, *, open_seconds: float) -> None:
        self._open_seconds = open_seconds
        self._loop = asyncio.get_running_loop()
        self.trouble: dict[str, Trouble] = {}
        """By tenant's name or host."""
        self.attempts: list[Attempt] = []
        self.failures: list[Attempt] = []
        self.opening: Counter[str] = Counter()
        self.most_opening: Counter[str] = Counter()
        """Opens at once, by host, since the counter was last cleared."""
        self.failed_before_trip: dict[str, int] = {}
        """By host: tenants with opens that had failed when it was first left alone."""
        self.pool: ResourcePool[Tenant, Connection] | None = None
        self.present = 0
        self.most_present = 0
        """Resources that were open, opening or closing at once."""

    @contextlib.asynccontextmanager
    async def connect(self, tenant: Tenant) -> AsyncIterator[Connection]:
        """Open a tenant's resource, for the time of the block."""
        self.attempts.append(Attempt(tenant, self._loop.time()))
        self.present += 1
        self.most_present = max(self.most_present, self.present)
        try:
            await self._open(tenant)
            yield Connection(self, tenant)
        finally:
            self.present -= 1

    async def _open(self, tenant: Tenant) -> None:
        self.opening[tenant.host] += 1
        self.most_opening[tenant.host] = max(self.most_opening[tenant.host], self.opening[tenant.host])
        try:
            await asyncio.sleep(self._open_seconds)
            await self.meet_trouble(tenant, opening=True)
        finally:
            self.opening[tenant.host] -= 1

    async def meet_trouble(self, tenant: Tenant, *, opening: bool) -> None:
        """Raise or hang if the tenant or its host is in trouble."""
        trouble = self._trouble(tenant)
        if trouble is Trouble.REFUSING:
            raise ConnectionRefusedError
        if trouble is Trouble.HANGING or (trouble is Trouble.OPENS_HANG and opening):
            pause = 1.0
            while self._trouble(tenant) is not None:  # TCP sends again after 1, 3, 7, ... seconds
                await asyncio.sleep(pause)
                pause *= 2
            if not opening:
                raise ConnectionResetError  # a host that was down does not know the connection any longer

    def _trouble(self, tenant: Tenant) -> Trouble | None:
        return self.trouble.get(tenant.name) or self.trouble.get(tenant.host)

    def observe(self, event: Event) -> None:
        """Write down a failed open, with the pause that the pool has announced."""
        if isinstance(event, ResourceOpenFailed):
            tenant = event.key
            assert isinstance(tenant, Tenant)
            started = next(tried.at for tried in reversed(self.attempts) if tried.tenant == tenant)
            self.failures.append(Attempt(tenant, started, self._loop.time(), event.retry_after))
            stranger = Tenant("a stranger", tenant.host)
            if tenant.host not in self.failed_before_trip and self.pool and self.pool.retry_after(stranger):
                failed = {failure.tenant for failure in self.failures if failure.tenant.host == tenant.host}
                self.failed_before_trip[tenant.host] = len(failed)


class Watched(Scheduler[Job]):
    """A scheduler that looks, at every grant, at how many slots some tenants have had for longer than this instant."""

    suspects: Callable[[Tenant], bool]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._granted: Counter[Any] = Counter()
        self._instant = -1.0
        self.grants = 0
        self.held_at_grant = 0
        """The most slots that suspects held when another slot was granted."""

    def grant(self, now: float = 0.0) -> Job | None:
        """Grant, and look."""
        if now != self._instant:
            self._instant = now
            self._granted.clear()
        job = super().grant(now)
        if job is not None:
            self.grants += 1
            self._granted[job.tenant] += 1
            held = sum(
                lane.running - self._granted[tenant]
                for tenant, lane in self._lanes.items()
                if isinstance(tenant, Tenant) and self.suspects(tenant)
            )
            self.held_at_grant = max(self.held_at_grant, held)
        return job


@dataclass(frozen=True, slots=True)
class Done:
    """One handled message."""

    tenant: Tenant
    sent: float
    at: float


@dataclass
class Outcome:
    """What a run showed."""

    done: list[Done] = field(default_factory=list[Done])
    sent: Counter[Tenant] = field(default_factory=Counter[Tenant])
    sent_at: list[tuple[Tenant, float]] = field(default_factory=list[tuple[Tenant, float]])
    started: list[Tenant] = field(default_factory=list[Tenant])
    """The tenants of the handlers that began, in order."""
    grants: int = 0
    held_at_grant: int = 0
    receives: Counter[int] = field(default_factory=Counter[int])
    """How often messages had been received when they were handled."""
    dead_letters: int = 0
    held: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """How many messages the consumer held, from time to time."""
    failed: dict[str, int] = field(default_factory=dict[str, int])

    def percentile(self, part: float, who: Callable[[Tenant], bool], *, since: float = 0.0) -> float:
        """Return a percentile of the seconds from send to the handler's end."""
        ordered = sorted(done.at - done.sent for done in self.done if who(done.tenant) and done.sent >= since)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")

    def rate(self, who: Callable[[Tenant], bool], start: float, end: float) -> float:
        """Return how many messages per second were handled in a time."""
        times = [done.at for done in self.done if who(done.tenant)]
        return (bisect_left(times, end) - bisect_left(times, start)) / (end - start)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Messages of some tenants, as a Poisson process."""

    tenants: tuple[Tenant, ...]
    rate: float
    """Messages per second of all of them together."""
    weights: tuple[float, ...] | None = None
    """How much of it each sends, summed up; None for all the same."""
    handler: float = 0.02
    """Seconds; each takes 0.5 to 1.5 times as long."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run."""

    streams: tuple[Stream, ...]
    seed: int = 1
    seconds: float = 30.0
    trouble: tuple[tuple[float, str, Trouble | None], ...] = ()
    """When, to which tenant or host, what."""
    suspects: Callable[[Tenant], bool] = lambda _tenant: False
    slots: int = 64
    per_tenant: int = 8
    pollers: int = 8
    handler_timeout: float | None = None
    limits: PoolLimits = PoolLimits()  # noqa: RUF009 - frozen
    weight: int = 1
    check: bool = False
    """Whether the pool has a health check."""
    open_seconds: float = 0.02
    round_trip: float = 0.01
    max_receives: int | None = None
    settle: float = 0.0
    """Seconds after the last message was sent."""


@contextlib.contextmanager
def _reproducibly(seed: int) -> Iterator[None]:
    """Let the consumer draw its jitter from the seed, and log nothing."""
    rng = Random(seed ^ 0xD1CE)

    def seeded() -> Random:
        return Random(rng.random())

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as patches:
            for name, module in list(sys.modules.items()):
                if name.startswith("postroom.consumer.") and hasattr(module, "Random"):
                    patches.enter_context(mock.patch.object(module, "Random", seeded))
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _watching(plan: Plan, made: list[Watched]) -> Iterator[None]:
    """Let a consumer that starts here have a scheduler that looks."""

    def watched(**options: Any) -> Watched:
        scheduler = Watched(**options)
        scheduler.suspects = plan.suspects
        made.append(scheduler)
        return scheduler

    with mock.patch("postroom.consumer.lifecycle.Scheduler", watched):
        yield


@dataclass
class World:
    """What a run is made of, for those who look on."""

    servers: Servers
    pool: ResourcePool[Tenant, Connection]
    consumer: Consumer[Tenant, Connection]
    outcome: Outcome
    broker: LocalBroker


Look = Callable[[World], None]


def simulate(plan: Plan, *, look: Look | None = None, at_end: Look | None = None) -> tuple[Outcome, Servers]:
    """Run a plan. ``look`` is called every 50 ms with everything there is, ``at_end`` once, before the stop."""

    async def main() -> tuple[Outcome, Servers]:
        async with LocalBroker(seed=plan.seed, epoch=1_800_000_000.0) as broker:
            attributes = {"VisibilityTimeout": "60"}
            if plan.max_receives is not None:
                dead = broker.create_queue("dead").arn
                policy = f'{{"deadLetterTargetArn": "{dead}", "maxReceiveCount": "{plan.max_receives}"}}'
                attributes["RedrivePolicy"] = policy
            broker.create_queue("orders", attributes)
            return await _run(plan, broker, look, at_end)

    with _reproducibly(plan.seed):
        return run_virtual(main(), limit=100_000)


async def _run(plan: Plan, broker: LocalBroker, look: Look | None, at_end: Look | None) -> tuple[Outcome, Servers]:
    servers = Servers(open_seconds=plan.open_seconds)
    pool = ResourcePool(
        servers.connect,
        host=lambda tenant: tenant.host,
        weight=plan.weight,
        check=Connection.ping if plan.check else None,
        limits=plan.limits,
        observers=[servers.observe],
        jitter=Random(plan.seed),
    )
    servers.pool = pool
    outcome = Outcome()
    consumer = _consumer(plan, broker, pool, outcome)
    world = World(servers, pool, consumer, outcome, broker)
    made: list[Watched] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_watching(plan, made))
        await stack.enter_async_context(pool)
        await stack.enter_async_context(consumer)
        side = [_send(plan, stream, number, world) for number, stream in enumerate(plan.streams)]
        side += [_cause_trouble(plan, servers), _look_on(world, look)]
        tasks = [asyncio.create_task(work) for work in side]
        await asyncio.sleep(plan.seconds + plan.settle)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
        if at_end is not None:
            at_end(world)
        outcome.grants, outcome.held_at_grant = made[0].grants, made[0].held_at_grant
        outcome.failed = dict(consumer.statistics().failed)
        if plan.max_receives is not None:
            said = broker.attributes("dead")
            outcome.dead_letters = int(said["ApproximateNumberOfMessages"])
        broker.purge("orders")  # or the stop would have to give it all back
    return outcome, servers


def _consumer(
    plan: Plan, broker: LocalBroker, pool: ResourcePool[Tenant, Connection], outcome: Outcome
) -> Consumer[Tenant, Connection]:
    loop = asyncio.get_running_loop()
    rng = Random(plan.seed)
    consumer = Consumer(
        "orders",
        context=Tenant.of,
        resources=pool,
        client=FarClient(MemoryClient(broker), plan.round_trip),
        concurrency=Concurrency(total=plan.slots, per_tenant=plan.per_tenant, handler_timeout=plan.handler_timeout),
        polling=Polling(pollers=plan.pollers),
        shutdown=Shutdown(drain=0, cancel=1, flush=1, poll=0),
    )

    @consumer.handler
    async def work(payload: tuple[float, float], ctx: MessageContext[Tenant, Connection]) -> None:
        sent, seconds = payload
        assert ctx.resources.tenant == ctx.context
        outcome.started.append(ctx.context)
        await ctx.resources.work(seconds * rng.uniform(0.5, 1.5))
        outcome.done.append(Done(ctx.context, sent, loop.time()))
        outcome.receives[ctx.message.receive_count] += 1

    return consumer


async def _send(plan: Plan, stream: Stream, number: int, world: World) -> None:
    rng = Random(f"{plan.seed}/{number}")
    loop = asyncio.get_running_loop()
    while loop.time() < plan.seconds:
        await asyncio.sleep(rng.expovariate(stream.rate))
        [tenant] = rng.choices(stream.tenants, cum_weights=stream.weights)
        body = f"[{loop.time()!r}, {stream.handler!r}]"
        world.broker.send("orders", Send(message_body=body, message_group_id=f"{tenant.name}@{tenant.host}"))
        world.outcome.sent[tenant] += 1
        world.outcome.sent_at.append((tenant, loop.time()))


async def _cause_trouble(plan: Plan, servers: Servers) -> None:
    loop = asyncio.get_running_loop()
    for at, whom, what in plan.trouble:
        await asyncio.sleep(at - loop.time())
        servers.most_opening.clear()
        if what is None:
            servers.trouble.pop(whom, None)
        else:
            servers.trouble[whom] = what


async def _look_on(world: World, look: Look | None) -> None:
    while True:
        world.outcome.held.append((asyncio.get_running_loop().time(), world.consumer.statistics().held))
        if look is not None:
            look(world)
        await asyncio.sleep(0.05)
