"""The pool that a consumer makes of a provider knows what the provider knows."""

import asyncio

from postroom import Consumer, MessageContext
from postroom.datasources import Provider
from support.world import Database, Databases, Order, Tenant, World, with_world


@with_world
async def test_a_datasource_counts_its_connections_and_is_checked_in_the_consumers_own_pool(world: World) -> None:
    """As in the pool that the provider itself would make: its weight, and its health check after a long pause."""
    world.create()
    checked: list[Database] = []

    async def check(database: Database) -> bool:
        checked.append(database)
        return True

    provider = Provider(Databases(), weight=4, check=check)
    orders = Consumer("orders", context=Tenant, resources=provider, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        ctx.resources.write(order.order_id)

    async with orders:
        world.send_orders("1", tenant="a")
        world.send_orders("1", tenant="b")
        await asyncio.sleep(40)
        world.send_orders("2", tenant="a")
        await asyncio.sleep(1)
        assert orders.pool is not None
        weight, checks, done = orders.pool.statistics().weight, len(checked), orders.statistics().succeeded
    assert weight == 8
    assert checks > 0
    assert done == 3


@with_world
async def test_a_provider_that_says_its_weight_is_believed(world: World) -> None:
    """Also one that says nothing else of itself."""
    world.create()
    databases = Databases()
    vars(databases)["weight"] = 9
    orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        ctx.resources.write(order.order_id)

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(40)
        assert orders.pool is not None
        assert orders.pool.statistics().weight == 9
