"""Delays: of a message, of a queue, and of a queue that changes its mind."""

import time
from typing import Any

from conformance.sqs.checks import (
    PROMPT,
    MakeQueue,
    attribute,
    bodies,
    collect,
    eventually,
    nothing,
    page,
    receive,
    receive_one,
)

DELAYED = "ApproximateNumberOfMessagesDelayed"


@page("sqs-message-timers")
def test_delay_of_a_message(sqs: Any, queue: str) -> None:
    """A delayed message cannot be received before its time, and can then; it was not received meanwhile."""
    start = time.monotonic()
    sqs.send_message(QueueUrl=queue, MessageBody="x", DelaySeconds=1)
    assert nothing(sqs, queue)
    message = receive_one(sqs, queue, AttributeNames=["ApproximateReceiveCount"])
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


@page("sqs-delay-queues")
def test_delay_of_a_queue(sqs: Any, make_queue: MakeQueue) -> None:
    """A delay queue delays every message that says nothing else."""
    url = make_queue(DelaySeconds=1)
    start = time.monotonic()
    sqs.send_message(QueueUrl=url, MessageBody="x")
    assert nothing(sqs, url)
    assert receive_one(sqs, url)["Body"] == "x"
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT


@page("sqs-message-timers")
def test_message_overrides_its_queue(either_sqs: Any, make_queue: MakeQueue) -> None:
    """A message's own delay takes the place of its queue's, 0 included."""
    url = make_queue(DelaySeconds=900)
    either_sqs.send_message(QueueUrl=url, MessageBody="now", DelaySeconds=0)
    either_sqs.send_message(QueueUrl=url, MessageBody="later")
    assert receive_one(either_sqs, url, wait=1)["Body"] == "now"
    assert nothing(either_sqs, url)


@page("API_SendMessageBatch")
def test_delays_of_a_batch(sqs: Any, make_queue: MakeQueue) -> None:
    """In a batch each entry has its own delay, or its queue's."""
    url = make_queue(DelaySeconds=900)
    entries = [
        {"Id": "a", "MessageBody": "now", "DelaySeconds": 0},
        {"Id": "b", "MessageBody": "soon", "DelaySeconds": 1},
        {"Id": "c", "MessageBody": "later"},
    ]
    sqs.send_message_batch(QueueUrl=url, Entries=entries)
    assert bodies(receive(sqs, url)) == ["now"]
    assert bodies(collect(sqs, url, 1)) == ["soon"]
    assert nothing(sqs, url)


@page("sqs-delay-queues")
def test_delay_of_a_fifo_queue(sqs: Any, make_queue: MakeQueue) -> None:
    """A FIFO queue's delay applies to all its messages, and keeps their order."""
    url = make_queue(fifo=True, ContentBasedDeduplication="true", DelaySeconds=1)
    start = time.monotonic()
    for body in ("a", "b"):
        sqs.send_message(QueueUrl=url, MessageBody=body, MessageGroupId="g")
    assert nothing(sqs, url)
    first = receive_one(sqs, url)
    assert first["Body"] == "a"
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT


@page("sqs-delay-queues")
def test_change_on_a_standard_queue(sqs: Any, make_queue: MakeQueue) -> None:
    """On a standard queue a new delay does not touch the messages that are there already."""
    url = make_queue(DelaySeconds=900)
    sqs.send_message(QueueUrl=url, MessageBody="old")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"DelaySeconds": "0"})
    eventually(lambda: attribute(sqs, url, "DelaySeconds"), "0")
    sqs.send_message(QueueUrl=url, MessageBody="new")
    assert bodies(receive(sqs, url)) == ["new"]
    assert nothing(sqs, url)
    eventually(lambda: attribute(sqs, url, DELAYED), "1")


@page("sqs-delay-queues")
def test_change_on_a_fifo_queue(sqs: Any, make_queue: MakeQueue) -> None:
    """On a FIFO queue a new delay holds for the messages that are there already."""
    url = make_queue(fifo=True, ContentBasedDeduplication="true", DelaySeconds=900)
    sqs.send_message(QueueUrl=url, MessageBody="old", MessageGroupId="g")
    assert nothing(sqs, url)
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"DelaySeconds": "0"})
    assert receive_one(sqs, url)["Body"] == "old"
