"""Receipt handles: which of them delete, on standard and on FIFO queues."""

import time
from typing import Any

from conformance.sqs.checks import (
    MakeQueue,
    attribute,
    bodies,
    eventually,
    nothing,
    page,
    receive,
    receive_one,
    refused,
)
from conformance.sqs.wire import Wire

AVAILABLE = "ApproximateNumberOfMessages"
HELD = "ApproximateNumberOfMessagesNotVisible"


def expired(sqs: Any, url: str) -> dict[str, Any]:
    """Receive one message and return it when its visibility timeout of one second has passed."""
    message = receive_one(sqs, url, VisibilityTimeout=1)
    eventually(lambda: (attribute(sqs, url, AVAILABLE), attribute(sqs, url, HELD)), ("1", "0"))
    return message


@page("API_DeleteMessage")
def test_delete(either_sqs: Any, queue: str) -> None:
    """The handle of the receive deletes the message, for good."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(either_sqs, queue)["ReceiptHandle"]
    either_sqs.delete_message(QueueUrl=queue, ReceiptHandle=handle)
    eventually(lambda: (attribute(either_sqs, queue, AVAILABLE), attribute(either_sqs, queue, HELD)), ("0", "0"))


@page("API_DeleteMessage", recorded=True)
def test_garbage(either_sqs: Any, queue: str) -> None:
    """A handle that is none raises ReceiptHandleIsInvalid, with status 404, from both actions."""
    refusal = refused(either_sqs.delete_message, QueueUrl=queue, ReceiptHandle="garbage")
    assert isinstance(refusal.error, either_sqs.exceptions.ReceiptHandleIsInvalid)
    assert (refusal.code, refusal.status) == ("ReceiptHandleIsInvalid", 404)
    parameters = {"QueueUrl": queue, "ReceiptHandle": "garbage", "VisibilityTimeout": 5}
    refusal = refused(either_sqs.change_message_visibility, **parameters)
    assert isinstance(refusal.error, either_sqs.exceptions.ReceiptHandleIsInvalid)


@page("API_DeleteMessage")
def test_message_id_is_no_handle(sqs: Any, queue: str) -> None:
    """The message id does not delete its message."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    identifier = receive_one(sqs, queue)["MessageId"]
    refusal = refused(sqs.delete_message, QueueUrl=queue, ReceiptHandle=identifier)
    assert isinstance(refusal.error, sqs.exceptions.ReceiptHandleIsInvalid)


@page("API_DeleteMessage")
def test_handle_of_another_queue(sqs: Any, make_queue: MakeQueue) -> None:
    """A handle belongs to its queue: another queue refuses it, and the message stays."""
    one, other = make_queue(), make_queue()
    sqs.send_message(QueueUrl=one, MessageBody="x")
    handle = receive_one(sqs, one)["ReceiptHandle"]
    refusal = refused(sqs.delete_message, QueueUrl=other, ReceiptHandle=handle)
    assert refusal.code in {"ReceiptHandleIsInvalid", "InvalidParameterValue"}
    refused(sqs.change_message_visibility, QueueUrl=other, ReceiptHandle=handle, VisibilityTimeout=0)
    assert attribute(sqs, one, HELD) == "1"


@page("API_DeleteMessage")
def test_old_handle_on_a_standard_queue(either_sqs: Any, queue: str) -> None:
    """With an old handle the request succeeds, whether or not it deletes; the newest handle deletes."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    old = receive_one(either_sqs, queue, VisibilityTimeout=0)["ReceiptHandle"]
    new = receive_one(either_sqs, queue)["ReceiptHandle"]
    assert old != new
    either_sqs.delete_message(QueueUrl=queue, ReceiptHandle=old)
    either_sqs.delete_message(QueueUrl=queue, ReceiptHandle=new)
    eventually(lambda: (attribute(either_sqs, queue, AVAILABLE), attribute(either_sqs, queue, HELD)), ("0", "0"))


@page("API_DeleteMessage", recorded=True)
def test_delete_twice(either_sqs: Any, queue: str) -> None:
    """Deleting again with the same handle succeeds."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(either_sqs, queue)["ReceiptHandle"]
    for _ in range(3):
        either_sqs.delete_message(QueueUrl=queue, ReceiptHandle=handle)


@page("API_DeleteMessage", recorded=True)
def test_expired_handle_on_a_standard_queue(sqs: Any, queue: str) -> None:
    """After the timeout, if no other consumer received the message, its handle still deletes it."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    message = expired(sqs, queue)
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    assert nothing(sqs, queue)


@page("API_ReceiveMessage", recorded=True)
def test_expired_handle_on_a_fifo_queue(sqs: Any, fifo: str) -> None:
    """After the timeout a FIFO queue refuses the handle, and the message stays."""
    sqs.send_message(QueueUrl=fifo, MessageBody="x", MessageGroupId="g")
    message = expired(sqs, fifo)
    refusal = refused(sqs.delete_message, QueueUrl=fifo, ReceiptHandle=message["ReceiptHandle"])
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)
    assert bodies(receive(sqs, fifo)) == ["x"]


@page("API_ReceiveMessage")
def test_old_handle_on_a_fifo_queue(sqs: Any, fifo: str) -> None:
    """A FIFO queue refuses a handle when a newer one was given out, and the newer one deletes."""
    sqs.send_message(QueueUrl=fifo, MessageBody="x", MessageGroupId="g")
    old = receive_one(sqs, fifo, VisibilityTimeout=0)["ReceiptHandle"]
    new = receive_one(sqs, fifo)["ReceiptHandle"]
    refused(sqs.delete_message, QueueUrl=fifo, ReceiptHandle=old)
    assert attribute(sqs, fifo, HELD) == "1"
    sqs.delete_message(QueueUrl=fifo, ReceiptHandle=new)
    eventually(lambda: attribute(sqs, fifo, HELD), "0")


@page("API_ReceiveMessage", recorded=True)
def test_extended_handle_on_a_fifo_queue(sqs: Any, fifo: str) -> None:
    """Extending the timeout keeps the handle good beyond the first timeout."""
    sqs.send_message(QueueUrl=fifo, MessageBody="x", MessageGroupId="g")
    handle = receive_one(sqs, fifo, VisibilityTimeout=1)["ReceiptHandle"]
    sqs.change_message_visibility(QueueUrl=fifo, ReceiptHandle=handle, VisibilityTimeout=30)
    start = time.monotonic()
    while time.monotonic() - start < 1.2:
        assert receive(sqs, fifo, wait=1) == []
    sqs.delete_message(QueueUrl=fifo, ReceiptHandle=handle)
    eventually(lambda: attribute(sqs, fifo, HELD), "0")


@page("API_DeleteMessage")
def test_delete_from_a_missing_queue(either_sqs: Any, queue: str) -> None:
    """Deleting from a missing queue raises QueueDoesNotExist."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(either_sqs, queue)["ReceiptHandle"]
    refusal = refused(either_sqs.delete_message, QueueUrl=queue + "-never", ReceiptHandle=handle)
    assert isinstance(refusal.error, either_sqs.exceptions.QueueDoesNotExist)


@page("API_DeleteMessage")
def test_handle_is_required(wire: Wire, queue: str) -> None:
    """A delete without a handle misses a parameter."""
    reply = wire.json("DeleteMessage", {"QueueUrl": queue})
    assert reply.status == 400
    assert "MissingParameter" in reply.headers.get("x-amzn-query-error", "")
