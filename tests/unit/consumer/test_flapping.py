"""What a consumer's log says of outages that begin and end again and again."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import Consumer, Faults, MessageContext, PoolLimits, ResourcePool, RetryPolicy, ServiceUnavailable
from postroom.transports.memory import MemoryQueue
from support.world import Order, Tenant, World, in_world

MINUTES = 5


def fails(seconds: float = 10.0) -> bool:
    """Whether what comes and goes is away at this moment."""
    return int(asyncio.get_running_loop().time() / seconds) % 2 == 1


def lines(caplog: pytest.LogCaptureFixture, *but: str) -> list[str]:
    """Return the lines that a person reads, but for some."""
    loud = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    return [line for line in loud if not any(each in line for each in but)]


def run(caplog: pytest.LogCaptureFixture, tenants: int, handle: Any, **options: Any) -> None:
    """Let a consumer handle a message of each tenant every other second."""

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead", receives=100)
        orders = Consumer("orders", client=world.client, retry=RetryPolicy(base=0.5, cap=2.0), **options)
        orders.handler(handle)
        async with orders:
            for second in range(30 * MINUTES):
                for number in range(tenants):
                    world.send_orders(str(second), tenant=f"t{number}")
                await asyncio.sleep(2)

    with caplog.at_level(logging.WARNING, "postroom"):
        in_world(scenario)


async def do_nothing(_order: Order, _ctx: MessageContext[Any, Any]) -> None:
    """Handle a message."""


def test_tenants_that_break_and_work_again_are_told_of_together(caplog: pytest.LogCaptureFixture) -> None:
    """Their handlers fail for ten seconds of twenty, each opens its breaker and closes it."""

    async def handle(_order: Order, _ctx: MessageContext[Any, Any]) -> None:
        if fails():
            raise ValueError

    run(caplog, 12, handle, context=Tenant, faults=Faults(breaker_after=3, messages=1))
    found = lines(caplog, "Handler failed")
    assert len(found) <= 6 * MINUTES
    assert any(line.startswith("Handlers fail in a row, again and again: 12 tenants") for line in found)


def test_resources_that_come_and_go_are_told_of_together(caplog: pytest.LogCaptureFixture) -> None:
    """By the pool, and by the consumer, where messages wait."""

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncGenerator[str]:
        if fails():
            raise ConnectionRefusedError(111, "refused")
        yield tenant.tenant_id

    run(
        caplog,
        12,
        do_nothing,
        context=Tenant,
        resources=ResourcePool(provide, limits=PoolLimits(budget=5)),
    )
    found = lines(caplog)
    assert len(found) <= 12 * MINUTES
    assert any(line.startswith("Tenant unavailable, messages wait, again and again: 12 tenants") for line in found)
    assert sum("is unavailable; its messages wait" in line for line in found) <= 15
    assert "next try" not in found[-1]


def test_a_resolver_that_comes_and_goes_is_told_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """It fails for every message, for 37 s, and works for as long."""

    def context(_message: object) -> str:
        if fails(37.0):
            raise ValueError
        return "a"

    run(caplog, 4, do_nothing, context=context)
    found = [line for line in lines(caplog) if line.startswith("The context resolver")]
    assert sum("has failed in orders" in line for line in found) == 1
    assert sum("works again in orders" in line for line in found) == 1
    assert 1 <= sum("The context resolver fails, again and again: queue orders" in line for line in found) <= 4


def test_calls_that_come_and_go_are_told_of_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS answers for ten seconds, and then for ten seconds not: receives and deletes fail."""
    for name in ("receive", "delete"):
        call = getattr(MemoryQueue, name)

        async def sometimes(self: MemoryQueue, *arguments: Any, _call: Any = call, **more: Any) -> Any:
            if fails():
                await asyncio.sleep(0.05)
                raise ServiceUnavailable("down")
            return await _call(self, *arguments, **more)

        monkeypatch.setattr(MemoryQueue, name, sometimes)
    run(caplog, 5, do_nothing, context=Tenant)
    found = lines(caplog)
    assert sum("Receiving from orders failed" in line for line in found) <= 2
    assert sum("Deleting messages of orders failed" in line for line in found) == 1
    assert len([line for line in found if "again and again" in line]) <= 14
    assert len(found) <= 4 * MINUTES


def test_a_tenant_that_was_well_for_an_hour_is_news_again(caplog: pytest.LogCaptureFixture) -> None:
    """What was remembered of it is forgotten by then."""

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncGenerator[str]:
        time = asyncio.get_running_loop().time()
        if (time < 300 and fails()) or 2 * 3600 < time < 2 * 3600 + 10:
            raise ConnectionRefusedError(111, "refused")
        yield tenant.tenant_id

    async def scenario(world: World) -> None:
        world.create()
        pool = ResourcePool(provide, limits=PoolLimits(idle=1, sweep=1))
        orders = Consumer("orders", client=world.client, context=Tenant, resources=pool)
        orders.handler(do_nothing)
        async with orders:
            for _ in range(2 * 720 + 12):
                world.send_orders("1", tenant="a")
                await asyncio.sleep(5)

    with caplog.at_level(logging.WARNING, "postroom"):
        in_world(scenario)
    assert sum(record.exc_text is not None for record in caplog.records) == 2
    assert sum("no more for" in line for line in caplog.messages) == 2
    assert sum("is unavailable; its messages wait" in line for line in caplog.messages) == 2
    assert sum("is available again after" in line for line in caplog.messages) == 2
