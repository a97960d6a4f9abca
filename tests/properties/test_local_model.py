"""The engine against a naive model: thousands of random operations, on a clock moved by hand."""

import msgspec
from hypothesis import settings

from postroom.local import Broker, BrokerError, BrokerOptions
from postroom.local.shapes import Receive, SendEntry
from properties.local_model import MAX_RECEIVES, RETENTION, VISIBILITY, QueueMachine, Refused


class EngineDriver:
    """Reaches the engine directly."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.broker = Broker(lambda: self.now, BrokerOptions(seed=3))
        common = {"VisibilityTimeout": str(VISIBILITY), "MessageRetentionPeriod": str(RETENTION)}
        dead = self.broker.create_queue("dead", common)
        policy = msgspec.json.encode({"deadLetterTargetArn": dead.arn, "maxReceiveCount": MAX_RECEIVES}).decode()
        self.broker.create_queue("source", {**common, "RedrivePolicy": policy})

    def send(self, bodies: list[str], delay: int) -> None:
        """Send bodies in one batch."""
        entries = [SendEntry(id=body, message_body=body, delay_seconds=delay) for body in bodies]
        assert not self.broker.send_batch(self.broker.queue("source"), entries).failed

    def receive(self, queue: str, limit: int, visibility: int | None) -> list[tuple[str, str, int]]:
        """Receive without waiting."""
        request = Receive(max_number_of_messages=limit, visibility_timeout=visibility, attribute_names=["All"])
        messages = self.broker.receive(self.broker.queue(queue), request)
        return [(each.body, each.receipt_handle, int(each.attributes["ApproximateReceiveCount"])) for each in messages]

    def delete(self, queue: str, handle: str) -> None:
        """Delete."""
        self.broker.delete(self.broker.queue(queue), handle)

    def change(self, queue: str, handle: str, seconds: int) -> None:
        """Change a visibility timeout."""
        try:
            self.broker.change_visibility(self.broker.queue(queue), handle, seconds)
        except BrokerError as error:
            raise Refused(error.code) from error

    def purge(self) -> None:
        """Purge the source queue."""
        self.broker.purge_queue(self.broker.queue("source"))

    def counts(self, queue: str) -> tuple[int, int, int]:
        """Ask for the three counts."""
        attributes = self.broker.get_attributes(self.broker.queue(queue), ["All"])
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
            int(attributes["ApproximateNumberOfMessagesDelayed"]),
        )

    def wait(self, seconds: float) -> None:
        """Move the clock."""
        self.now += seconds

    def close(self) -> None:
        """Nothing is open."""


class EngineMachine(QueueMachine):
    """The model against the engine."""

    def make(self) -> EngineDriver:
        """Make a broker with a clock of its own."""
        return EngineDriver()


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)
