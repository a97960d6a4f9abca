"""Acknowledge by hand. Run it with ``python -m examples.manual_ack.main``.

The handler collects rows and returns. Rows are written together, and only then are their messages acknowledged. What
is not acknowledged in time comes back by itself.
"""

import asyncio
from dataclasses import dataclass

from examples.running import run_example

from postroom import AckMode, Consumer, MessageContext, Visibility
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.transports.memory import MemoryClient


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str


@dataclass(frozen=True)
class Reading:
    """The payload."""

    value: int


class Writer:
    """Writes readings in groups of five, then acknowledges their messages."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self._waiting: list[tuple[Reading, MessageContext[Tenant]]] = []

    async def add(self, reading: Reading, ctx: MessageContext[Tenant]) -> None:
        """Take a reading."""
        self._waiting.append((reading, ctx))
        if len(self._waiting) >= 5:
            group, self._waiting = self._waiting, []
            self.written += [reading.value for reading, _ in group]  # a real one writes to a database here
            await asyncio.gather(*(ctx.ack() for _, ctx in group))
            print(f"wrote and acknowledged {len(group)} readings")


async def main() -> None:
    """Write ten readings in two groups."""
    writer = Writer()
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        broker.create_queue("readings")
        queue = await client.queue("readings")
        for value in range(10):
            await send(queue, Reading(value), Tenant("acme"))
        readings = Consumer(
            "readings", context=Tenant, ack=AckMode.MANUAL, visibility=Visibility(timeout=120), client=client
        )
        readings.handler(writer.add)
        async with readings:
            while len(writer.written) < 10:  # noqa: ASYNC110 - an example waits for what it shows
                await asyncio.sleep(0.05)
        left = broker.attributes("readings", ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"])
        print(f"left in the queue: {sum(map(int, left.values()))}")


if __name__ == "__main__":
    run_example(main)
