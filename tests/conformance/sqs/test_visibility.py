"""Visibility: hidden while in flight, back in time, changed at will."""

import time
from contextlib import suppress
from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, bodies, eventually, nothing, page, receive, receive_one, refused
from conformance.sqs.wire import Wire


def back_after(sqs: Any, url: str, start: float) -> float:
    """Wait for the message and return the seconds since `start` at which it came."""
    receive_one(sqs, url, wait=10)
    return time.monotonic() - start


def change(sqs: Any, url: str, message: dict[str, Any], seconds: int) -> None:
    """Set the message's visibility timeout."""
    handle = message["ReceiptHandle"]
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=seconds)


@page("sqs-visibility-timeout")
def test_queue_timeout(sqs: Any, make_queue: MakeQueue) -> None:
    """A received message is hidden for the queue's timeout, and then comes back."""
    url = make_queue(VisibilityTimeout=1)
    sqs.send_message(QueueUrl=url, MessageBody="x")
    start = time.monotonic()
    receive_one(sqs, url)
    assert nothing(sqs, url)
    assert 0.9 <= back_after(sqs, url, start) < 2.5


@page("API_ReceiveMessage")
def test_timeout_of_the_request(sqs: Any, queue: str) -> None:
    """The VisibilityTimeout of a receive takes the place of the queue's."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    start = time.monotonic()
    receive_one(sqs, queue, VisibilityTimeout=1)
    assert nothing(sqs, queue)
    assert 0.9 <= back_after(sqs, queue, start) < 2.5


@page("sqs-visibility-timeout")
def test_zero_gives_back_at_once(either_sqs: Any, queue: str) -> None:
    """A timeout of 0 makes the message available at once."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    change(either_sqs, queue, receive_one(either_sqs, queue), 0)
    assert receive_one(either_sqs, queue, wait=1)["Body"] == "x"


@page("API_ChangeMessageVisibility")
def test_longer(sqs: Any, make_queue: MakeQueue) -> None:
    """A longer timeout counts from the moment of the change."""
    url = make_queue(VisibilityTimeout=1)
    sqs.send_message(QueueUrl=url, MessageBody="x")
    message = receive_one(sqs, url)
    start = time.monotonic()
    change(sqs, url, message, 2)
    assert 1.9 <= back_after(sqs, url, start) < 3.5


@page("API_ChangeMessageVisibility")
def test_shorter(sqs: Any, queue: str) -> None:
    """A shorter timeout counts from the moment of the change, too."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    message = receive_one(sqs, queue)
    start = time.monotonic()
    change(sqs, queue, message, 1)
    assert nothing(sqs, queue)
    assert 0.9 <= back_after(sqs, queue, start) < 2.5


@page("API_ChangeMessageVisibility")
def test_change_is_not_remembered(sqs: Any, make_queue: MakeQueue) -> None:
    """The next receive has the queue's timeout again."""
    url = make_queue(VisibilityTimeout=1)
    sqs.send_message(QueueUrl=url, MessageBody="x")
    change(sqs, url, receive_one(sqs, url), 100)
    change(sqs, url, receive_again(sqs, url), 0)
    start = time.monotonic()
    receive_one(sqs, url)
    assert 0.9 <= back_after(sqs, url, start) < 2.5


def receive_again(sqs: Any, url: str) -> dict[str, Any]:
    """Send a second message and return it received, so that a change can be made to another message too."""
    sqs.send_message(QueueUrl=url, MessageBody="y")
    return receive_one(sqs, url)


@page("sqs-visibility-timeout")
def test_twelve_hours(sqs: Any, queue: str) -> None:
    """A message may be hidden for 12 hours."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    receive_one(sqs, queue, VisibilityTimeout=43_200)
    assert nothing(sqs, queue)


@page("API_ChangeMessageVisibility")
@pytest.mark.parametrize("seconds", [-1, 43_201])
def test_change_is_bounded(either_sqs: Any, queue: str, seconds: int) -> None:
    """VisibilityTimeout is 0 to 43,200."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(either_sqs, queue)["ReceiptHandle"]
    refusal = refused(
        either_sqs.change_message_visibility, QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=seconds
    )
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)


@page("API_ChangeMessageVisibility")
def test_twelve_hours_in_all(sqs: Any, make_queue: MakeQueue) -> None:
    """The 12 hours count from the receive: more than what is left of them is refused."""
    url = make_queue()
    sqs.send_message(QueueUrl=url, MessageBody="x")
    message = receive_one(sqs, url)
    assert receive(sqs, url, wait=2) == []
    handle = message["ReceiptHandle"]
    refused(sqs.change_message_visibility, QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=43_200)
    change(sqs, url, message, 43_100)


@page("API_ChangeMessageVisibility", recorded=True)
def test_change_of_a_deleted_message(sqs: Any, queue: str) -> None:
    """The visibility of a deleted message cannot be changed."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(sqs, queue)["ReceiptHandle"]
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=handle)
    refusal = refused(sqs.change_message_visibility, QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=5)
    assert refusal.code == "InvalidParameterValue"


@page("API_ChangeMessageVisibility", recorded=True)
def test_change_after_the_timeout(sqs: Any, queue: str) -> None:
    """On a standard queue the last handle still changes a message after its timeout has passed."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    message = receive_one(sqs, queue, VisibilityTimeout=1)
    count = ["ApproximateNumberOfMessages"]
    eventually(lambda: sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=count)["Attributes"], {count[0]: "1"})
    change(sqs, queue, message, 100)
    assert nothing(sqs, queue)


@page("API_ChangeMessageVisibility")
def test_change_of_a_message_not_in_flight(either_sqs: Any, queue: str) -> None:
    """A message that was given back is not in flight: MessageNotInflight, if it is not simply done."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    message = receive_one(either_sqs, queue)
    change(either_sqs, queue, message, 0)
    with suppress(either_sqs.exceptions.MessageNotInflight):
        change(either_sqs, queue, message, 5)
        assert nothing(either_sqs, queue)


@page("API_ChangeMessageVisibility")
def test_timeout_is_required(wire: Wire, sqs: Any, queue: str) -> None:
    """A change without a timeout misses a parameter."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(sqs, queue)["ReceiptHandle"]
    reply = wire.json("ChangeMessageVisibility", {"QueueUrl": queue, "ReceiptHandle": handle})
    assert reply.status == 400
    assert "MissingParameter" in reply.headers.get("x-amzn-query-error", "")


@page("API_ChangeMessageVisibility")
def test_change_in_a_missing_queue(sqs: Any, queue: str) -> None:
    """Changing in a missing queue raises QueueDoesNotExist."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(sqs, queue)["ReceiptHandle"]
    missing = queue + "-never"
    refusal = refused(sqs.change_message_visibility, QueueUrl=missing, ReceiptHandle=handle, VisibilityTimeout=5)
    assert isinstance(refusal.error, sqs.exceptions.QueueDoesNotExist)


@page("sqs-visibility-timeout")
def test_other_messages_stay_available(sqs: Any, queue: str) -> None:
    """A message in flight does not hide another one of a standard queue."""
    for body in ("a", "b"):
        sqs.send_message(QueueUrl=queue, MessageBody=body)
    first = receive_one(sqs, queue)
    assert {first["Body"], *bodies(receive(sqs, queue))} == {"a", "b"}
