"""What a process that only consumes tells the garbage collector."""

import gc
from collections.abc import Iterator

import pytest

from postroom import Consumer, ExitCode, MessageContext, serve
from support.world import Databases, Order, Tenant, World, with_world


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """Let the collector see what the test suite hides from it, until the end of the test."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.parametrize("freeze", [True, False])
@with_world
async def test_what_is_loaded_is_frozen_only_on_request_and_only_until_the_end(world: World, *, freeze: bool) -> None:
    """While handlers run, the collector leaves alone what was loaded before; afterwards all is as it was."""
    seen: list[int] = []
    world.create()
    orders: Consumer[Tenant, object] = Consumer("orders", context=Tenant, resources=Databases(), client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, object]) -> None:
        seen.append(gc.get_freeze_count())
        orders.stop()

    world.send_orders("one")
    assert await serve(orders, freeze=freeze) is ExitCode.CLEAN
    assert [count > 0 for count in seen] == [freeze]
    assert gc.get_freeze_count() == 0
