"""taskiq with taskiq-aio-sqs. Its messages are in an envelope of its own, which names the task.

Measured runs start the receiver here; otherwise ``taskiq worker`` runs ``broker``, as its users do.
"""

import asyncio

from benchmarks.peers.work import Work, arguments
from pydantic import BaseModel
from taskiq.api import run_receiver_task  # type: ignore[import-not-found]  # in an environment of its own
from taskiq_aio_sqs import SQSBroker  # type: ignore[import-not-found]


class Item(BaseModel):
    """A line of an order."""

    sku: str
    quantity: int


class Order(BaseModel):
    """What a message carries."""

    order_id: str
    customer_id: str
    amount: str
    currency: str
    items: list[Item]
    note: str


told = arguments()
broker = SQSBroker(
    told.queue, endpoint_url=told.url, region_name="us-east-1", max_number_of_messages=10, wait_time_seconds=20,
    enable_heartbeat=True,
)  # fmt: skip
work = Work(told.messages)


@broker.task(task_name="order")  # type: ignore[untyped-decorator]  # taskiq is in an environment of its own
async def handle(order: Order) -> None:
    """Handle one message."""
    await work.do(order.order_id, order.note)


async def main() -> None:
    """Consume until everything is handled."""
    finished = asyncio.Event()
    work.finish = finished.set
    await broker.startup()
    receiver = asyncio.create_task(run_receiver_task(broker, max_async_tasks=told.concurrency, max_prefetch=20))
    await finished.wait()
    await asyncio.sleep(0.2)  # the last acknowledgements: taskiq has no way to wait for them
    receiver.cancel()
    await asyncio.gather(receiver, return_exceptions=True)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
