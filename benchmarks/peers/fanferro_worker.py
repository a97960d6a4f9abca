"""fanferro: consumer engine in Rust, handlers in Python. Its defaults, but for the concurrency."""

import asyncio

import fanferro  # type: ignore[import-not-found]  # in an environment of its own
from benchmarks.peers.orders import Order
from benchmarks.peers.work import Arguments, Work, arguments


async def main(told: Arguments) -> None:
    """Consume until everything is handled and acknowledged, or until a signal comes."""
    client = fanferro.Client(
        region="us-east-1",
        endpoint_url=told.url,
        credentials=fanferro.Credentials("AKIDEXAMPLE", "secret"),
        provisioning=fanferro.Provisioning.assume(),
    )
    work = Work(told.messages, client.stop)

    async def handle(order: Order) -> None:
        await work.do(order.order_id, order.note)

    options = {"shutdown": fanferro.ShutdownPolicy(abort_receives=True)} if told.messages else {}
    queue = client.queue(told.queue, url=told.queue_url)
    client.consumer(queue, handle, concurrency=told.concurrency, **options)
    async with client:
        await client.run()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
