"""Limits that hold over all replicas. Run it with ``python -m examples.fleet.main``: it brings its own Valkey.

Three replicas consume one queue. Each could run eight handlers of a tenant at once; the fleet allows four in all. A
tenant that an operator pauses on one replica is paused on all of them.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass

from examples.running import run_example

from postroom import Concurrency, Consumer, Fleet, MessageContext, TenantState
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.testing.valkey import ValkeyServer
from postroom.transports.memory import MemoryClient

MESSAGES = 60


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str


class Work:
    """What the handlers of all replicas do, with a count of what runs at once."""

    def __init__(self) -> None:
        self.running = Counter[str]()
        self.peak = Counter[str]()
        self.done = Counter[str]()

    async def do(self, _number: int, ctx: MessageContext[Tenant]) -> None:
        """Work for 50 ms."""
        tenant = ctx.context.tenant_id
        self.running[tenant] += 1
        self.peak[tenant] = max(self.peak[tenant], self.running[tenant])
        await asyncio.sleep(0.05)
        self.running[tenant] -= 1
        self.done[tenant] += 1


def replica(store: str, work: Work, client: MemoryClient) -> Consumer[Tenant, None]:
    """Return one replica. In production each is a process on a machine of its own, and all have these lines."""
    jobs = Consumer(
        "jobs",
        context=Tenant,
        concurrency=Concurrency(total=32, per_tenant=8),  # of this replica
        fleet=Fleet(store, per_tenant=4),  # of all replicas together
        client=client,
    )
    jobs.handler(work.do)
    return jobs


async def until(work: Work, tenant: str, done: int) -> None:
    """Wait until a tenant's messages are done."""
    while work.done[tenant] < done:  # noqa: ASYNC110 - an example waits for what it shows
        await asyncio.sleep(0.05)


async def main() -> None:
    """Run three replicas, then pause a tenant on one of them."""
    work = Work()
    async with AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(ValkeyServer())
        broker = await stack.enter_async_context(LocalBroker())
        client = await stack.enter_async_context(MemoryClient(broker))
        broker.create_queue("jobs")
        queue = await client.queue("jobs")
        for number in range(MESSAGES):
            for tenant in ("acme", "globex"):
                await send(queue, number, Tenant(tenant))
        replicas = [await stack.enter_async_context(replica(valkey.url, work, client)) for _ in range(3)]
        await asyncio.gather(*(until(work, tenant, MESSAGES) for tenant in ("acme", "globex")))
        for tenant in ("acme", "globex"):
            print(f"{tenant}: {work.done[tenant]} done, at most {work.peak[tenant]} at once on three replicas")
        first, *others = replicas
        first.tenants.pause(Tenant("acme"), reason="database move")
        for other in others:
            while other.tenants[Tenant("acme")].state is not TenantState.PAUSED:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for tenant in ("acme", "globex"):
            await send(queue, 0, Tenant(tenant))
        await until(work, "globex", MESSAGES + 1)
        print(f"acme is paused on all replicas; globex goes on: {work.done['globex'] - MESSAGES} more")
        others[-1].tenants.resume(Tenant("acme"))
        await until(work, "acme", MESSAGES + 1)
        print("acme is resumed, from another replica: its message was handled")


if __name__ == "__main__":
    run_example(main)
