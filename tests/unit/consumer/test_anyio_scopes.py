"""A cancelled scope of anyio cancels again with each turn of the loop: for a stop it is one cancellation."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from postroom import Consumer, MessageContext, ResourcePool, Shutdown, serve
from support.world import World, in_world

Ctx = MessageContext[Any, Any]


def scene(world: World, *, handler: float, cleanup: float = 0.0) -> tuple[Consumer[Any, Any], list[str]]:
    """Make a consumer with a message, and the list of what its handler did."""
    world.create()
    world.send({})
    orders: Consumer[Any, Any] = Consumer("orders", client=world.client, shutdown=Shutdown(drain=5, cancel=5))
    did: list[str] = []

    @orders.handler
    async def handle(body: dict[str, Any], ctx: Ctx) -> None:
        try:
            await asyncio.sleep(handler)
            did.append("done")
        finally:
            await asyncio.sleep(cleanup)
            did.append("cleaned up")

    return orders, did


async def _entered(consumer: Consumer[Any, Any]) -> None:
    async with consumer:
        await asyncio.Event().wait()


@pytest.mark.parametrize("runs", [_entered, Consumer.run, serve])
def test_a_cancelled_scope_drains(runs: Callable[..., Any]) -> None:
    """As one cancellation does. It is the way in which programs on anyio obey a signal."""

    async def scenario(world: World) -> tuple[list[str], tuple[int, int]]:
        orders, did = scene(world, handler=3)
        async with anyio.create_task_group() as group:
            group.start_soon(runs, orders)
            await asyncio.sleep(1)
            group.cancel_scope.cancel()
        return did, world.counts()

    assert in_world(scenario) == (["done", "cleaned up"], (0, 0))


def test_a_scope_that_is_cancelled_during_a_stop_hurries_it() -> None:
    """Handlers are cancelled and clean up. Virtual time goes on meanwhile, so the loop has nothing else to do."""

    async def scenario(world: World) -> tuple[list[str], float]:
        orders, did = scene(world, handler=1000, cleanup=3)
        loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as group:
            group.start_soon(orders.run)
            await asyncio.sleep(1)
            orders.stop()
            await asyncio.sleep(1)
            group.cancel_scope.cancel()
            began = loop.time()
        return did, loop.time() - began

    did, seconds = in_world(scenario)
    assert did == ["cleaned up"]
    assert seconds < 4


def test_a_pool_closes_before_a_cancelled_scope_is_left() -> None:
    """Its resources are closed, and not left to a task behind the scope."""

    async def scenario(world: World) -> list[str]:
        closed: list[str] = []

        @asynccontextmanager
        async def provider(tenant: str) -> AsyncGenerator[str]:
            yield tenant
            await asyncio.sleep(2)
            closed.append(tenant)

        with anyio.move_on_after(1):
            async with ResourcePool(provider) as pool, pool.lease("acme"):
                await asyncio.Event().wait()
        return closed

    assert in_world(scenario) == ["acme"]


def test_a_stop_imports_nothing_of_anyio() -> None:
    """It takes time, and a process that has no free file descriptor could not stop."""
    code = """
import asyncio, contextlib, sys
import anyio, postroom

async def main():
    before = set(sys.modules)
    async with postroom.ResourcePool(lambda tenant: contextlib.nullcontext()):
        pass
    return any(name.startswith("anyio.") for name in set(sys.modules) - before)

sys.exit(asyncio.run(main()))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
