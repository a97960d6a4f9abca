"""Purge: everything goes, once a minute."""

from typing import Any

from conformance.sqs.checks import attribute, eventually, page, receive_one, refused, send_all

COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")


@page("API_PurgeQueue")
def test_everything_goes(either_sqs: Any, queue: str) -> None:
    """Available, in-flight and delayed messages are all deleted."""
    send_all(either_sqs, queue, ["a", "b", "c"])
    either_sqs.send_message(QueueUrl=queue, MessageBody="later", DelaySeconds=900)
    receive_one(either_sqs, queue)
    either_sqs.purge_queue(QueueUrl=queue)
    eventually(lambda: [attribute(either_sqs, queue, name) for name in COUNTS], ["0", "0", "0"])


@page("API_PurgeQueue")
def test_once_a_minute(either_sqs: Any, queue: str) -> None:
    """A second purge within 60 seconds raises PurgeQueueInProgress, with status 403."""
    either_sqs.purge_queue(QueueUrl=queue)
    refusal = refused(either_sqs.purge_queue, QueueUrl=queue)
    assert isinstance(refusal.error, either_sqs.exceptions.PurgeQueueInProgress)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.PurgeQueueInProgress", 403)


@page("API_PurgeQueue")
def test_missing_queue(either_sqs: Any, queue: str) -> None:
    """Purging a missing queue raises QueueDoesNotExist."""
    refusal = refused(either_sqs.purge_queue, QueueUrl=queue + "-never")
    assert isinstance(refusal.error, either_sqs.exceptions.QueueDoesNotExist)


@page("API_PurgeQueue", recorded=True)
def test_deduplication_starts_anew(sqs: Any, fifo: str) -> None:
    """After a purge a FIFO queue takes a body that it had seen before."""
    sqs.send_message(QueueUrl=fifo, MessageBody="x", MessageGroupId="g")
    sqs.purge_queue(QueueUrl=fifo)
    sqs.send_message(QueueUrl=fifo, MessageBody="x", MessageGroupId="g")
    assert receive_one(sqs, fifo)["Body"] == "x"
