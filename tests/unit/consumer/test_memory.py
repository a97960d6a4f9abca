"""What is left of a message when it is done: nothing, and at once."""

import asyncio
import gc
from random import Random

from postroom import Consumer, MessageContext, ResourcePool, Visibility
from postroom.consumer.job import Job
from postroom.settlement import Delivery
from postroom.testing.faults import ClientFaults, FaultyClient
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world


def test_a_message_that_is_done_leaves_nothing_for_the_garbage_collector() -> None:
    """No circle of references keeps it, nor does the heartbeat: its memory is free when its delete is confirmed."""

    async def scenario(world: World) -> list[str]:
        world.create()
        orders: Consumer[Tenant, object] = Consumer(
            "orders", context=Tenant, resources=Databases(), client=world.client
        )

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant, object]) -> None:
            await asyncio.sleep(0.1)

        world.send_orders(*(f"order-{number}" for number in range(30)))
        gc.collect()
        kept = (Job, Delivery, MessageContext)
        others = {id(thing) for thing in gc.get_objects() if issubclass(type(thing), kept)}  # of tests that ran before
        gc.disable()
        try:
            async with orders:
                await asyncio.sleep(5)
                assert orders.statistics().succeeded == 30
                left = [thing for thing in gc.get_objects() if issubclass(type(thing), kept)]
                return [type(thing).__name__ for thing in left if id(thing) not in others]
        finally:
            gc.enable()

    assert in_world(scenario) == []


@with_world
async def test_a_body_does_not_wait_for_an_extension_that_hangs(world: World) -> None:
    """The call keeps what it was sent for, and may hang for a minute: ten messages of up to 1 MiB."""
    world.create()
    client = FaultyClient(world.client, Random(1), ClientFaults(hung=1.0))
    orders: Consumer[Tenant, None] = Consumer(
        "orders", context=Tenant, client=client, visibility=Visibility(timeout=30)
    )
    seen: list[str] = []

    @orders.handler
    async def record(text: str, ctx: MessageContext[Tenant, None]) -> None:
        await asyncio.sleep(20)
        seen.append(text)

    for number in range(3):
        world.send(f"body {number}")
    others = all_jobs()  # of tests that ran before; kept, so that no new one gets the identity of an old one
    async with orders:
        await asyncio.sleep(25)
        known = {id(job) for job in others}
        jobs = [job for job in all_jobs() if id(job) not in known]
        assert [job.beating for job in jobs] == [True] * 3
        assert sorted(seen) == ["body 0", "body 1", "body 2"]
        assert [job.payload for job in jobs] == [None] * 3
        assert [job.message.body for job in jobs] == ["", "", ""]


@with_world
async def test_a_body_does_not_wait_for_a_host_that_stays_down(world: World) -> None:
    """Its message tried the host last, and was given up since: the next one may come in an hour, or never."""
    world.create(MessageRetentionPeriod="60")
    databases = Databases()
    tenants = [f"{host}-{number}" for host in range(4) for number in range(6)]
    databases.failures |= dict.fromkeys(tenants, ConnectionRefusedError)
    pool = ResourcePool(databases, host=lambda tenant: tenant.tenant_id.partition("-")[0])
    orders: Consumer[Tenant, Database] = Consumer("orders", context=Tenant, resources=pool, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        pass

    for tenant in tenants:
        world.send_orders("1", tenant=tenant)
    others = all_jobs()
    async with pool, orders:
        await asyncio.sleep(120)
        # Each host, and five tenants of it that failed before it was known to be down.
        assert (orders.statistics().held, orders.statistics().outages) == (0, 4 * (1 + 5))
        gc.collect()
        known = {id(job) for job in others}
        assert [job for job in all_jobs() if id(job) not in known] == []


def all_jobs() -> list[Job]:
    """All of this process. By their type: `isinstance` asks an object, and a lazy one of another library wakes up."""
    return [thing for thing in gc.get_objects() if type(thing) is Job]
