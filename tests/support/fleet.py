"""A store for fleets in virtual time, with everything that may happen to one, and consumers that write a diary."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from postroom import Concurrency, Consumer, Fleet, MessageContext, Polling
from postroom.fleet import Answer, Decisions, MemoryState, Request
from support.world import Order, Tenant, World


class FaultyState(MemoryState):
    """A shared state in memory that can be cut off, be slow, and count what it is asked."""

    def __init__(self) -> None:
        super().__init__(lambda: asyncio.get_running_loop().time())
        self.gone = False
        self.silent = False
        self.delay = 0.001
        self.refused_reports = 0
        """Reports that fail, from now on."""
        self.requests: list[tuple[float, Request]] = []
        self.probes: list[tuple[float, str]] = []

    async def _travel(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay)
        if self.gone:
            raise ConnectionError("connection refused: redis://user:s3cret@cache:6379")

    async def exchange(self, fleet: str, request: Request) -> Answer:
        """Exchange, if the store can be reached."""
        await self._travel()
        self.requests.append((self.store.clock(), request))
        return await super().exchange(fleet, request)

    async def decide(self, fleet: str, changes: Mapping[str, str | None]) -> int:
        """Decide, if the store can be reached."""
        await self._travel()
        return await super().decide(fleet, changes)

    async def decisions(self, fleet: str) -> Decisions:
        """Read decisions, if the store can be reached."""
        await self._travel()
        return await super().decisions(fleet)

    async def report(self, fleet: str, host: str, cause: str | None, seconds: float) -> None:
        """Report, if the store can be reached."""
        await self._travel()
        if self.refused_reports:
            self.refused_reports -= 1
            raise ConnectionResetError("the connection was reset")
        await super().report(fleet, host, cause, seconds)

    async def claim_probe(self, fleet: str, host: str, replica: str, seconds: float) -> bool:
        """Claim, if the store can be reached."""
        await self._travel()
        claimed = await super().claim_probe(fleet, host, replica, seconds)
        if claimed:
            self.probes.append((self.store.clock(), replica))
        return claimed


class Diary:
    """What handlers of several replicas did."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.starts: list[tuple[float, str, str]] = []
        """Time, replica and tenant of each start."""

    def by(self, replica: str) -> list[float]:
        """Return when a replica started handlers."""
        return [at for at, who, _tenant in self.starts if who == replica]


def replica(
    world: World, diary: Diary, fleet: Fleet, name: str = "one", *, queue: str = "orders", **options: Any
) -> Consumer[Tenant]:
    """Make a consumer with handlers that take the seconds of their order, and write a diary."""
    options.setdefault("concurrency", Concurrency(total=16, per_tenant=8))
    options.setdefault("polling", Polling(wait=1.0, scout=False))
    orders: Consumer[Tenant] = Consumer(queue, context=Tenant, client=world.client, fleet=fleet, **options)

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant]) -> None:
        tenant = ctx.context.tenant_id
        diary.starts.append((asyncio.get_running_loop().time(), name, tenant))
        diary.running[tenant] += 1
        diary.most[tenant] = max(diary.most[tenant], diary.running[tenant])
        try:
            await asyncio.sleep(order.seconds)
        finally:
            diary.running[tenant] -= 1

    return orders
