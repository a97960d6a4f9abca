"""What an operator sees of a tenant that does not exist: the same as the log says."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from postroom import Consumer, MessageContext, TenantState, UnknownTenant
from support.world import Order, Tenant, World, with_world


@with_world
async def test_a_tenant_that_does_not_exist_is_shown_as_unavailable(world: World) -> None:
    """Its messages back off, and are tried once a minute. Once it exists it is active."""
    known: set[str] = set()

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncGenerator[str]:
        if tenant.tenant_id not in known:
            raise UnknownTenant(tenant.tenant_id)
        yield tenant.tenant_id

    world.create()
    orders = Consumer("orders", context=Tenant, resources=database, client=world.client)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, str]) -> None: ...

    async with orders:
        world.send_orders(*map(str, range(20)), tenant="acme")
        await asyncio.sleep(30)
        status = orders.tenants[Tenant("acme")]
        assert status.state is TenantState.UNAVAILABLE
        assert status.reason == "there is no such tenant (UnknownTenant: acme)"
        assert status.since is not None
        assert 25 < status.since < 35
        orders.tenants.divert(Tenant("acme"), queue="aside", reason="closed account")
        assert orders.tenants[Tenant("acme")].reason == "closed account"
        orders.tenants.resume(Tenant("acme"))
        known.add("acme")
        await asyncio.sleep(70)
        assert orders.tenants[Tenant("acme")].state is TenantState.ACTIVE
        assert orders.tenants[Tenant("other")].state is TenantState.ACTIVE
