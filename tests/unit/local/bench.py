"""A broker with a clock that the test moves by hand, and short words for what tests do all the time."""

from typing import Any

import msgspec

from postroom.local import Broker, BrokerOptions, LocalQueue
from postroom.local.shapes import AttributeValue, Receive, Received, Send

START = 1_700_000_000.0


class Bench:
    """A broker, its clock, and short words for what tests do all the time."""

    def __init__(self, **options: Any) -> None:
        self.now = START
        self.broker = Broker(lambda: self.now, BrokerOptions(seed=7, **options))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def queue(self, name: str = "orders", **attributes: str) -> LocalQueue:
        """Create a queue; the suffix makes it a FIFO queue."""
        if name.endswith(".fifo"):
            attributes = {"FifoQueue": "true", **attributes}
        return self.broker.create_queue(name, attributes)

    def pair(self, *, fifo: bool = False, max_receives: int = 1, **attributes: str) -> tuple[LocalQueue, LocalQueue]:
        """Create a queue and its dead-letter queue."""
        suffix = ".fifo" if fifo else ""
        dead = self.queue(f"dead{suffix}", **attributes)
        policy = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": max_receives}
        return self.queue(f"source{suffix}", RedrivePolicy=msgspec.json.encode(policy).decode(), **attributes), dead

    def send(self, queue: LocalQueue, *bodies: str, group: str | None = None, **options: Any) -> None:
        """Send bodies one by one; on a FIFO queue each with a deduplication id of its own."""
        for body in bodies:
            if queue.fifo and not queue.settings.content_based:
                options["message_deduplication_id"] = f"id-{self.broker.ids.seq}"
            self.broker.send(queue, Send(message_body=body, message_group_id=group, **options))

    def take(self, queue: LocalQueue, limit: int = 10, **options: Any) -> list[Received]:
        """Receive with all attributes, without waiting."""
        request = Receive(
            max_number_of_messages=limit,
            message_attribute_names=["All"],
            message_system_attribute_names=["All"],
            wait_time_seconds=0,
            **options,
        )
        return self.broker.receive(queue, request)

    def bodies(self, queue: LocalQueue, limit: int = 10, **options: Any) -> list[str]:
        """Receive, and return the bodies."""
        return [message.body for message in self.take(queue, limit, **options)]

    def delete(self, queue: LocalQueue, *messages: Received) -> None:
        """Delete messages."""
        for message in messages:
            self.broker.delete(queue, message.receipt_handle)

    def back(self, queue: LocalQueue, *messages: Received, seconds: int = 0) -> None:
        """Change the visibility timeout of messages."""
        for message in messages:
            self.broker.change_visibility(queue, message.receipt_handle, seconds)

    def counts(self, queue: LocalQueue) -> tuple[int, int, int]:
        """Return (available, in flight, delayed), as GetQueueAttributes tells them."""
        attributes = self.broker.get_attributes(queue, ["All"])
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
            int(attributes["ApproximateNumberOfMessagesDelayed"]),
        )


def text(value: str) -> AttributeValue:
    """Make a String attribute."""
    return AttributeValue(data_type="String", string_value=value)
