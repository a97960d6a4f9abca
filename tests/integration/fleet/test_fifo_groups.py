"""Without a store: message groups of a FIFO queue limit a tenant over all consumers, over HTTP."""

import asyncio
from collections import Counter

import pytest

from postroom import AwsClient, Concurrency, Consumer, Message, MessageContext
from postroom.local import LocalBroker, LocalServer
from postroom.local.shapes import Send
from support.aws import isolate_aws

GROUPS, EACH = 2, 24


def tenant_of(message: Message) -> str:
    """Return the tenant of a group such as ``acme#1``."""
    return (message.group_id or "").rpartition("#")[0]


async def test_k_groups_of_a_tenant_limit_it_to_k_over_the_whole_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three consumers with eight slots for a tenant each run two of its messages together, and both groups are used."""
    isolate_aws(monkeypatch)
    running, most, done = Counter[str](), Counter[str](), Counter[str]()
    took_part: set[int] = set()
    everything = asyncio.Event()
    async with LocalBroker() as broker, LocalServer(broker) as server:
        broker.create_queue("orders.fifo", {"FifoQueue": "true", "ContentBasedDeduplication": "true"})
        for number in range(EACH):
            for tenant in ("acme", "other"):
                group = f"{tenant}#{number % GROUPS}"
                broker.send("orders.fifo", Send(message_body=f'"{tenant}-{number}"', message_group_id=group))

        def replica(place: int) -> Consumer[str]:
            orders = Consumer(
                "orders.fifo",
                context=tenant_of,
                concurrency=Concurrency(total=16, per_tenant=8),
                client=AwsClient(endpoint_url=server.endpoint_url, region="us-east-1"),
            )

            @orders.handler
            async def handle(_order: str, ctx: MessageContext[str]) -> None:
                tenant = ctx.context
                took_part.add(place)
                running[tenant] += 1
                most[tenant] = max(most[tenant], running[tenant])
                # Until the other group's message runs too, or there is none left: so the limit is reached.
                for _ in range(200):
                    if running[tenant] == GROUPS or done[tenant] >= EACH - GROUPS:
                        break
                    await asyncio.sleep(0.002)
                running[tenant] -= 1
                done[tenant] += 1
                if done.total() == 2 * EACH:
                    everything.set()

            return orders

        async with replica(1), replica(2), replica(3), asyncio.timeout(60):
            await everything.wait()
    assert most == {"acme": GROUPS, "other": GROUPS}
    assert done == {"acme": EACH, "other": EACH}
