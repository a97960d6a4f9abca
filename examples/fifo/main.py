"""Order per account. Run it with ``python -m examples.fifo.main``.

A FIFO queue keeps the order within a message group. The consumer works on one message of a group at a time and on many
groups at once. When a message fails, what follows it in its group waits; the other groups go on.
"""

import asyncio
from dataclasses import dataclass

from examples.running import run_example

from postroom import Consumer, MessageContext, RetryPolicy
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.transports.memory import MemoryClient


@dataclass(frozen=True)
class Account:
    """The context; also the message group."""

    account_id: str


@dataclass(frozen=True)
class Booking:
    """The payload."""

    number: int


async def main() -> None:
    """Book three times on each of two accounts; the first try of one booking fails."""
    booked: dict[str, list[int]] = {"alice": [], "bob": []}
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        broker.create_queue("bookings.fifo", {"FifoQueue": "true"})
        queue = await client.queue("bookings.fifo")
        for number in (1, 2, 3):
            for account in booked:
                name = f"{account}-{number}"
                await send(queue, Booking(number), Account(account), deduplication_id=name)
        bookings = Consumer("bookings.fifo", context=Account, retry=RetryPolicy(base=0.2), client=client)

        @bookings.handler
        async def book(booking: Booking, ctx: MessageContext[Account]) -> None:
            account = ctx.context.account_id
            if account == "bob" and booking.number == 2 and ctx.attempt == 1:
                print("bob: booking 2 fails; booking 3 waits behind it")
                raise ConnectionError("the ledger did not answer")
            booked[account].append(booking.number)
            print(f"{account}: booking {booking.number}")

        async with bookings:
            while sum(map(len, booked.values())) < 6:  # noqa: ASYNC110 - an example waits for what it shows
                await asyncio.sleep(0.05)
    print(booked)


if __name__ == "__main__":
    run_example(main)
