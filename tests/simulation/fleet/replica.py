"""One process of the simulation with whole consumers: its way to the store, its way to the queue, and its death."""

import asyncio
import contextvars
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

from postroom import Concurrency, Consumer, Fleet, MessageContext, Polling, PoolLimits, ResourcePool
from postroom.fleet import Answer, Decisions, Request
from postroom.fleet.member import Member
from postroom.fleet.memory import Store
from postroom.options import OpenBackoff
from postroom.transports.memory import MemoryClient
from postroom.transports.protocol import Queue
from support.passing import PassingClient, PassingQueue
from support.world import Order, Tenant

T = TypeVar("T")
LEASE, TICK, CAP = 6.0, 1.0, 3
_owner: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("owner", default=None)


class _Task(asyncio.Task[Any]):
    """A task with a hash that does not depend on where it lies in memory, so that sets of tasks replay too."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
        self.number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self.number


def task_factory() -> Callable[..., asyncio.Task[Any]]:
    """Return what makes tasks that their process knows: what a process starts dies with it."""
    numbers = itertools.count(1)

    def make(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        context = options.get("context")
        owner = _owner.get() if context is None else context.get(_owner)
        task = _Task(next(numbers), coroutine, loop=loop, **options)
        if owner is not None:
            owner.tasks.append(task)
        return task

    return make


class Link:
    """One replica's way to the store. It counts its awaits, so that a process can die at each of them."""

    def __init__(self, store: Store, rng: Random) -> None:
        self.store = store
        self.rng = rng
        self.cut_off = self.deaf = self.slow = False
        self.heard: dict[str, float] = {}
        """Hosts that the store says are down, and since when this replica knows."""
        self.turns: dict[str, float] = {}
        """Hosts that this replica may try, and since when."""
        self.on_turn: Callable[[str], object] = bool
        self.on_report: Callable[[str], object] = bool
        self.awaits = 0
        self.crash_at: int | None = None
        self.on_crash: Callable[[], object] = bool
        self.on_decided: Callable[[Mapping[str, str | None]], object] = bool

    async def exchange(self, fleet: str, request: Request) -> Answer:
        """Exchange, if the store can be reached."""
        answer = await self._call(lambda: self.store.exchange(fleet, request))
        now = asyncio.get_running_loop().time()
        self.heard = {hint.host: self.heard.get(hint.host, now) for hint in answer.hints}
        return answer

    async def decide(self, fleet: str, changes: Mapping[str, str | None]) -> int:
        """Write decisions down."""

        def effect() -> int:
            version = self.store.decide(fleet, changes)
            self.on_decided(changes)
            return version

        return await self._call(effect)

    async def decisions(self, fleet: str) -> Decisions:
        """Read decisions."""
        return await self._call(lambda: self.store.decisions(fleet))

    async def restore(self, fleet: str, decisions: Decisions) -> int:
        """Write down again what was lost."""
        return await self._call(lambda: self.store.restore(fleet, decisions))

    async def report(self, fleet: str, host: str, cause: str | None, seconds: float) -> None:
        """Report a host."""

        def effect() -> None:
            self.store.report(fleet, host, cause, seconds)
            self.on_report(host)

        await self._call(effect)
        self.turns.pop(host, None)  # its own try is over
        if cause is None:
            self.heard.pop(host, None)  # it knows better than what the store said before

    async def claim_probe(self, fleet: str, host: str, replica: str, seconds: float) -> bool:
        """Ask for the turn at a host."""

        def effect() -> bool:
            has_turn = self.store.claim_probe(fleet, host, replica, seconds)
            if has_turn:
                self.turns[host] = asyncio.get_running_loop().time()
                self.on_turn(host)
            return has_turn

        return await self._call(effect)

    async def replicas(self, fleet: str) -> Collection[str]:
        """List the replicas that are alive."""
        return await self._call(lambda: self.store.replicas(fleet))

    async def usage(self, fleet: str) -> Mapping[str, tuple[int, int]]:
        """List the slots in use."""
        return await self._call(lambda: self.store.usage(fleet))

    async def aclose(self) -> None:
        """Do nothing."""

    async def _call(self, effect: Callable[[], T]) -> T:
        await self._leg()
        if self.cut_off:
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))  # refused at once, or silent for longer than one waits
            raise ConnectionError("the store cannot be reached")
        found = effect()
        await self._leg()
        if self.deaf:
            await asyncio.Event().wait()
        return found

    async def _leg(self) -> None:
        self.awaits += 1
        if self.awaits == self.crash_at:
            self.on_crash()
            await asyncio.Event().wait()
        await asyncio.sleep(self.rng.uniform(0.0, 0.8 * LEASE / 3) if self.slow else self.rng.uniform(0.0002, 0.002))


class _Client(PassingClient):
    """The queue as one process sees it: once that is dead, nothing gets out."""

    def __init__(self, inner: MemoryClient, process: "Process") -> None:
        super().__init__(inner)
        self._process = process

    async def queue(self, name: str) -> Queue:
        """Open a queue."""
        return _Queue(await super().queue(name), self._process)


class _Queue(PassingQueue):
    cancellable_after = 0.0
    """As a queue in memory says."""

    def __init__(self, inner: Queue, process: "Process") -> None:
        super().__init__(inner)
        self._process = process

    async def before(self, call: str) -> None:
        self._process.check()


class Host:
    """A database server that is up or down, and what is to be done when a process tries it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.down = False
        self.on_try: Callable[[Process, Host], object] = lambda _process, _host: None
        self.on_reached: Callable[[Process, Host], object] = lambda _process, _host: None


class Process:
    """A replica: a consumer with its pool, and everything that it starts."""

    def __init__(
        self,
        name: str,
        link: Link,
        client: MemoryClient,
        hosts: Sequence[Host],
        *,
        on_start: Callable[["Process", str, int], object],
        seed: int,
    ) -> None:
        self.name = name
        self.link = link
        self.hosts = hosts
        self.alive = True
        self.born = 0.0
        self.tasks: list[asyncio.Task[Any]] = []
        self.running: dict[str, int] = {}
        self._on_start = on_start
        self._home = contextvars.copy_context()
        self._home.run(_owner.set, self)
        link.on_crash = self.crash
        self._pool: ResourcePool[Tenant, str] = ResourcePool(
            self._database,
            host=lambda tenant: self.host_of(tenant).name,
            limits=PoolLimits(budget=100, idle=0.7, sweep=0.2),
            backoff=OpenBackoff(base=0.5, cap=4.0),
            jitter=Random(seed),
        )
        self.consumer: Consumer[Tenant, str] = Consumer(
            "orders",
            context=Tenant,
            resources=self._pool,
            client=_Client(client, self),
            fleet=Fleet(link, per_tenant=CAP, lease=LEASE, tick=TICK),
            concurrency=Concurrency(total=12, per_tenant=4),
            polling=Polling(wait=1.0, scout=False),
        )
        self.consumer.handler(self._handle)
        self.main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run."""
        self.born = asyncio.get_running_loop().time()
        self.main = asyncio.get_running_loop().create_task(self._live(), context=self._home.copy())

    async def _live(self) -> None:
        async with self._pool:
            await self.consumer.run()

    @property
    def member(self) -> Member | None:
        """Its membership, while it runs."""
        return self.consumer.tenants._member

    def host_of(self, tenant: Tenant) -> Host:
        """Return where a tenant's database is."""
        return self.hosts[sum(tenant.tenant_id.encode()) % len(self.hosts)]

    def check(self) -> None:
        """Raise in a dead process."""
        if not self.alive:
            raise asyncio.CancelledError

    def do(self, what: Callable[[], Awaitable[Any] | None]) -> None:
        """Do something as code of this process would."""
        self._home.copy().run(what)

    def crash(self) -> None:
        """Die, wherever its tasks stand: nothing gets out any longer, and nothing is given back."""
        self.alive = False
        self.link.cut_off = True
        asyncio.get_running_loop().create_task(self.bury(), context=contextvars.Context())

    async def bury(self) -> None:
        """End everything that still runs of a dead process."""
        for _ in range(200):
            alive = [task for task in self.tasks if not task.done()]
            if not alive:
                return
            for task in alive:
                task.cancel()
            await asyncio.sleep(0)
        text = f"{self.name} could not be killed: {alive}"
        raise AssertionError(text)

    @asynccontextmanager
    async def _database(self, tenant: Tenant) -> AsyncGenerator[str]:
        host = self.host_of(tenant)
        host.on_try(self, host)
        await asyncio.sleep(0.01)
        if host.down:
            raise ConnectionRefusedError(tenant.tenant_id)
        host.on_reached(self, host)
        yield tenant.tenant_id

    async def _handle(self, order: Order, ctx: MessageContext[Tenant, str]) -> None:
        tenant = ctx.context.tenant_id
        self.running[tenant] = self.running.get(tenant, 0) + 1
        self._on_start(self, tenant, self.running[tenant])
        try:
            await asyncio.sleep(order.seconds)
        finally:
            self.running[tenant] -= 1
