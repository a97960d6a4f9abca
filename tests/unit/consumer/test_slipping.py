"""A message at its last receive that SQS extends no longer: it is rejected, with the reason, while there is time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import Concurrency, Consumer, MessageContext, PoolTimeouts, ResourcePool, Visibility
from postroom.options import OpenBackoff
from postroom.transports.memory import MemoryQueue
from postroom.transports.protocol import EntryFailure
from support.world import Order, Tenant, World, in_world

BEYOND = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]"
NO_LONGER = "not tried: it could be held no longer and "
Scenario = Callable[[Consumer[Any, Any], World], Awaitable[None]]


async def beyond(_queue: object, changes: Sequence[object]) -> list[EntryFailure]:
    """Refuse every extension, as for messages that were held for twelve hours."""
    return [EntryFailure(place, "InvalidParameterValue", BEYOND, sender_fault=True) for place in range(len(changes))]


def reasons(scenario: Scenario, **options: Any) -> list[str | None]:
    """Run a scenario with a queue that gives a message out once, and return the reasons of its dead letters."""

    async def main(world: World) -> list[str | None]:
        world.create(dead_letters="dead", receives=1)
        orders: Consumer[Any, Any] = Consumer("orders", context=Tenant, client=world.client, **options)

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant, Any]) -> None:
            await asyncio.sleep(order.seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MemoryQueue, "change_visibility", beyond)
            async with orders:
                await scenario(orders, world)
        async with world.client as client:
            found = await (await client.queue("dead")).receive(limit=10, wait=0, visibility=1)
        said = [each.message_attributes.get("postroom.reason") for each in found]
        return [None if why is None else why.string_value for why in said]

    return in_world(main)


@asynccontextmanager
async def never(_tenant: Tenant) -> AsyncIterator[None]:
    """Connect to a database that does not answer."""
    await asyncio.sleep(1_000)
    yield


async def send_one(_orders: Consumer[Any, Any], world: World) -> None:
    """Send a message, and wait for a minute."""
    world.send_orders("1")
    await asyncio.sleep(60)


@pytest.mark.parametrize("timeout", [2, 5, 20, 30])
def test_it_is_looked_at_often_enough_however_short_its_timeout_is(timeout: int) -> None:
    """It waits for its tenant, which is paused."""

    async def scenario(orders: Consumer[Any, Any], world: World) -> None:
        orders.tenants.pause(Tenant("a"))
        await asyncio.sleep(6.5)
        world.send_orders("1")
        await asyncio.sleep(2 * timeout)

    assert reasons(scenario, visibility=Visibility(timeout=timeout)) == [f"{NO_LONGER}its tenant is paused"]


@pytest.mark.parametrize(
    ("timeouts", "backoff"),
    [
        (PoolTimeouts(open=3), OpenBackoff(base=0.01, cap=0.02)),
        (PoolTimeouts(open=600, lease=600), OpenBackoff()),
    ],
    ids=["one-open-after-another", "one-long-open"],
)
def test_it_is_looked_at_while_it_tries_an_outage(timeouts: PoolTimeouts, backoff: OpenBackoff) -> None:
    """It is hardly a moment in its lane, or waits for its tenant's resources for longer than its timeout."""
    pool = ResourcePool(never, timeouts=timeouts, backoff=backoff)
    (reason,) = reasons(send_one, visibility=Visibility(timeout=30), resources=pool)
    assert str(reason).startswith(f"{NO_LONGER}its tenant cannot run: the resources of ")


def test_it_is_looked_at_while_it_waits_for_a_slot_with_its_resources_in_hand() -> None:
    """Another tenant's message has taken the only slot meanwhile."""

    async def provide(tenant: Tenant) -> Tenant:
        await asyncio.sleep(1 if tenant.tenant_id == "a" else 0)
        return tenant

    async def scenario(_orders: Consumer[Any, Any], world: World) -> None:
        world.send_orders("open", tenant="b")
        await asyncio.sleep(1)
        world.send_orders("1", tenant="a")
        await asyncio.sleep(0.5)
        world.send_orders("long", tenant="b", seconds=29)
        await asyncio.sleep(60)

    more: dict[str, Any] = {"resources": provide, "cleanup": None, "concurrency": Concurrency(total=1)}
    assert reasons(scenario, visibility=Visibility(timeout=30), **more) == [f"{NO_LONGER}no slot was free for it"]
