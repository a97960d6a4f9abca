"""The local broker in the stub's place: queues that really keep their messages."""

import json
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import boto3
from benchmarks.peers.environments import Peer

from postroom.local.threaded import ThreadedServer

VISIBILITY = 30
"""Seconds."""


class Queue:
    """One run's queue, with messages in the peer's envelope."""

    def __init__(self, sqs: Any, peer: Peer, scenario: str) -> None:
        name = f"{scenario}-{peer.name}".replace(" ", "-").replace(",", "")
        self.url = str(sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": str(VISIBILITY)})["QueueUrl"])
        self._sqs = sqs
        self._peer = peer

    def send(self, notes: Mapping[str, str]) -> None:
        """Send orders by name, with the note that tells the handler what to do."""
        self.send_bodies([self._body(name, note) for name, note in notes.items()])

    def send_bodies(self, bodies: Sequence[str]) -> None:
        """Send bodies as they are, with the attributes of a tenant."""
        tenant = {"DataType": "String", "StringValue": "tenant-1"}
        region = {"DataType": "String", "StringValue": "eu-central-1"}
        for start in range(0, len(bodies), 10):
            entries = [
                {"Id": str(number), "MessageBody": body, "MessageAttributes": {"tenantId": tenant, "region": region}}
                for number, body in enumerate(bodies[start : start + 10])
            ]
            self._sqs.send_message_batch(QueueUrl=self.url, Entries=entries)

    def counts(self) -> tuple[int, int]:
        """Return how many messages are visible, and how many are hidden."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return int(found[names[0]]), int(found[names[1]])

    def _body(self, name: str, note: str) -> str:
        order = {"order_id": name, "customer_id": "c", "amount": "1", "currency": "EUR", "items": [], "note": note}
        if self._peer.envelope == "run":
            return json.dumps(order)
        task = {"task_id": name, "task_name": "order", "labels": {}, "labels_types": {}}
        return json.dumps({**task, "args": [order], "kwargs": {}})


class Emulator:
    """postroom's local server in a thread of this process, with the interface of ``StubServer``."""

    certificate = ""
    pid = os.getpid()

    def __init__(self, *, cpu: int | None = None) -> None:
        self._cpu = cpu
        self._server = ThreadedServer()
        self._queues: dict[str, tuple[Queue, int]] = {}
        self._sqs: Any = None

    @property
    def url(self) -> str:
        """The endpoint."""
        return self._server.endpoint_url

    def queue_url(self, name: str) -> str:
        """Return a queue's URL."""
        return self._queues[name][0].url

    def prepare(self, name: str, peer: Peer, messages: int) -> None:
        """Create a queue with so many messages in it, and forget the last one's."""
        for old, _ in self._queues.values():
            self._sqs.delete_queue(QueueUrl=old.url)
        queue = Queue(self._sqs, peer, name)
        queue.send(dict.fromkeys((f"order-{number}" for number in range(messages)), "x" * 700))
        self._queues = {name: (queue, messages)}

    def report(self, name: str) -> dict[str, Any]:
        """Return how many messages of a run's queue were deleted."""
        queue, messages = self._queues[name]
        return {"deleted": messages - sum(queue.counts())}

    def __enter__(self) -> Self:
        if self._cpu is not None:
            os.sched_setaffinity(0, {self._cpu})  # the workers have the other one
        self._server.__enter__()
        self._sqs = boto3.client("sqs", **self._server.client_options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sqs.close()
        self._server.__exit__(kind, error, traceback)
