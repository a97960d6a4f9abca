"""The server over HTTP against a naive model of a queue: thousands of random operations."""

from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from urllib3 import HTTPConnectionPool

from postroom.local import LocalBroker
from postroom.local.threaded import ThreadedServer
from properties.local_model import MAX_RECEIVES, RETENTION, VISIBILITY, QueueMachine, Refused


class StoppedClock(LocalBroker):
    """A broker with a clock that moves only when the test says so."""

    moved = 0.0

    def _now(self) -> float:
        return 1_700_000_000.0 + self.moved


class HttpDriver:
    """Reaches the queue over HTTP in AWS JSON; only the clock is moved in the server's thread."""

    def __init__(self, server: ThreadedServer, pool: HTTPConnectionPool, number: int) -> None:
        self.server = server
        self.pool = pool
        self.names = {"source": f"source-{number}", "dead": f"dead-{number}"}
        common = {"VisibilityTimeout": str(VISIBILITY), "MessageRetentionPeriod": str(RETENTION)}
        self.call("CreateQueue", "dead", QueueName=self.names["dead"], Attributes=common)
        arn = f"arn:aws:sqs:us-east-1:000000000000:{self.names['dead']}"
        policy = msgspec.json.encode({"deadLetterTargetArn": arn, "maxReceiveCount": MAX_RECEIVES}).decode()
        attributes = {**common, "RedrivePolicy": policy}
        self.call("CreateQueue", "source", QueueName=self.names["source"], Attributes=attributes)

    def call(self, action: str, queue: str, **request: Any) -> dict[str, Any]:
        """Call an action. Raises Refused with the code from the header."""
        request["QueueUrl"] = f"http://localhost/000000000000/{self.names[queue]}"
        headers = {"X-Amz-Target": f"AmazonSQS.{action}", "Content-Type": "application/x-amz-json-1.0"}
        answer = self.pool.request("POST", "/", body=msgspec.json.encode(request), headers=headers)
        if answer.status != 200:
            raise Refused(answer.headers["x-amzn-query-error"].partition(";")[0])
        result: dict[str, Any] = msgspec.json.decode(answer.data or b"{}")
        return result

    def send(self, bodies: list[str], delay: int) -> None:
        """Send one body alone, several in a batch."""
        if len(bodies) == 1:
            self.call("SendMessage", "source", MessageBody=bodies[0], DelaySeconds=delay)
            return
        entries = [{"Id": body, "MessageBody": body, "DelaySeconds": delay} for body in bodies]
        assert "Failed" not in self.call("SendMessageBatch", "source", Entries=entries)

    def receive(self, queue: str, limit: int, visibility: int | None) -> list[tuple[str, str, int]]:
        """Receive without waiting."""
        options: dict[str, Any] = {} if visibility is None else {"VisibilityTimeout": visibility}
        names = ["ApproximateReceiveCount"]
        answer = self.call(
            "ReceiveMessage", queue, MaxNumberOfMessages=limit, MessageSystemAttributeNames=names, **options
        )
        return [
            (each["Body"], each["ReceiptHandle"], int(each["Attributes"][names[0]]))
            for each in answer.get("Messages", [])
        ]

    def delete(self, queue: str, handle: str) -> None:
        """Delete."""
        self.call("DeleteMessage", queue, ReceiptHandle=handle)

    def change(self, queue: str, handle: str, seconds: int) -> None:
        """Change a visibility timeout, in a batch of one."""
        entry = {"Id": "0", "ReceiptHandle": handle, "VisibilityTimeout": seconds}
        answer = self.call("ChangeMessageVisibilityBatch", queue, Entries=[entry])
        for failed in answer.get("Failed", []):
            raise Refused(failed["Code"])

    def purge(self) -> None:
        """Purge the source queue."""
        self.call("PurgeQueue", "source")

    def counts(self, queue: str) -> tuple[int, int, int]:
        """Ask for the three counts."""
        attributes = self.call("GetQueueAttributes", queue, AttributeNames=["All"])["Attributes"]
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
            int(attributes["ApproximateNumberOfMessagesDelayed"]),
        )

    def wait(self, seconds: float) -> None:
        """Move the clock."""

        def move(broker: LocalBroker) -> None:
            assert isinstance(broker, StoppedClock)
            broker.moved += seconds

        self.server.call(move)

    def close(self) -> None:
        """Delete the queues."""
        for queue in ("source", "dead"):
            self.call("DeleteQueue", queue)


def test_server_over_http() -> None:
    """Whatever is done to it over HTTP, the server says what the model says."""
    made = 0
    with ThreadedServer(StoppedClock) as server:
        port = int(server.endpoint_url.rpartition(":")[2])
        with HTTPConnectionPool("127.0.0.1", port, retries=False) as pool:

            class HttpMachine(QueueMachine):
                """The model against the server."""

                def make(self) -> HttpDriver:
                    """Use queues of this run's own on the one server."""
                    nonlocal made
                    made += 1
                    return HttpDriver(server, pool, made)

            machine = HttpMachine.TestCase
            machine.settings = settings(
                max_examples=15, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
            )
            machine("runTest").runTest()
