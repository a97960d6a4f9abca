"""What is left of a message when it is done: nothing, and at once."""

import asyncio
import gc

from postroom import Consumer, MessageContext
from postroom.consumer.job import Job
from postroom.settlement import Delivery
from support.world import Databases, Order, Tenant, World, in_world


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
