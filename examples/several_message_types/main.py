"""Several kinds of messages on one queue. Run it with ``python -m examples.several_message_types.main``.

A message attribute names the kind. Each kind has a handler with a payload type of its own. A kind that has no handler
goes to the dead-letter queue, with the reason.
"""

import asyncio
import json
from dataclasses import dataclass

from examples.running import run_example

from postroom import Consumer, MessageContext, Router, by_attribute
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.transports.memory import MemoryClient


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str


@dataclass(frozen=True)
class OrderCreated:
    """The payload of ``order.created``."""

    order_id: str
    amount: int


@dataclass(frozen=True)
class OrderClosed:
    """The payload of ``order.cancelled`` and ``order.expired``."""

    order_id: str
    reason: str


router: Router[Tenant, None] = Router(by_attribute("kind"))


@router.handler("order.created")
async def created(order: OrderCreated, ctx: MessageContext[Tenant]) -> None:
    """Handle a new order."""
    print(f"{ctx.context.tenant_id}: order {order.order_id} over {order.amount} created")


@router.handler("order.cancelled", "order.expired")
def closed(order: OrderClosed, ctx: MessageContext[Tenant]) -> None:
    """Handle the end of an order. A plain function runs in a thread, and stands beside ``async def``."""
    print(f"{ctx.context.tenant_id}: order {order.order_id} closed: {order.reason}")


def create_queues(broker: LocalBroker) -> None:
    """Create the queue and its dead-letter queue."""
    dead = broker.create_queue("orders-dlq")
    redrive = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": 5}
    broker.create_queue("orders", {"RedrivePolicy": json.dumps(redrive)})


async def main() -> None:
    """Send four kinds of messages, one of which has no handler."""
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        create_queues(broker)
        queue = await client.queue("orders")
        for kind, payload in (
            ("order.created", OrderCreated("7", 250)),
            ("order.cancelled", OrderClosed("5", "out of stock")),
            ("order.expired", OrderClosed("3", "not paid in 30 days")),
            ("order.printed", {"order_id": "7", "pages": 2}),
        ):
            await send(queue, payload, Tenant("acme"), attributes={"kind": kind})
        orders = Consumer("orders", context=Tenant, client=client)
        orders.handler(router)
        async with orders:
            while sum(orders.statistics().settled.values()) < 4:  # noqa: ASYNC110 - an example waits for what it shows
                await asyncio.sleep(0.05)
        dead = await client.queue("orders-dlq")
        for letter in await dead.receive(limit=10, wait=0, visibility=30):
            print(f"dead letter: {letter.message_attributes['postroom.reason'].string_value}")


if __name__ == "__main__":
    run_example(main)
