"""What is sent with a context is read back with it, and its tenant is the message group."""

from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import pytest

from postroom import ConfigurationError, Consumer, ContextError, MessageContext
from postroom.sending import outgoing, send
from support.world import Order, Tenant, World, with_world


class Named(NamedTuple):
    """A context as a tuple."""

    tenant_id: str


class Struct(msgspec.Struct, frozen=True):
    """A context as a struct."""

    tenant_id: str


@pytest.mark.parametrize("context", [Named("t1"), Struct("t1")])
def test_the_tenant_is_the_message_group(context: object) -> None:
    """So that SQS's fair queues know the tenant of a message."""
    message = outgoing({"a": 1}, context)
    assert (message.group_id, message.body) == ("t1", '{"a":1}')
    assert message.message_attributes["tenant_id"].string_value == "t1"


def test_a_group_may_be_chosen_and_attributes_are_added() -> None:
    """The tenant stays beside them."""
    message = outgoing("text", Tenant("t1"), group="mine", attributes={"traceparent": "00-1-2-01"})
    assert (message.group_id, list(message.message_attributes), message.body) == (
        "mine",
        ["tenant_id", "region", "traceparent"],
        "text",
    )


@with_world
async def test_a_consumer_reads_the_context_back(world: World) -> None:
    """Sent with the helper, handled with the same context."""
    world.create()
    seen: list[tuple[Tenant, str | None]] = []
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append((ctx.context, ctx.message.group_id))
        orders.stop()

    async with world.client:
        await send(await world.client.queue("orders"), Order("1"), Tenant("t1", "us-east-1"))
    await orders.run()
    assert seen[0] == (Tenant("t1", "us-east-1"), "t1/us-east-1")


def test_a_context_that_would_not_be_read_back_is_refused() -> None:
    """Better here than in every consumer."""

    @dataclass(frozen=True)
    class Odd:
        """A context with a value that its consumer refuses."""

        tenant_id: str

    with pytest.raises(ContextError, match="tenant_id"):
        outgoing("", Odd("no spaces allowed"))
    with pytest.raises(ConfigurationError, match="dataclass"):
        outgoing("", "tenant")
