"""Batches: ten entries at most, distinct well-formed ids, one result for each entry."""

from collections.abc import Callable
from typing import Any

import pytest

from conformance.sqs.checks import (
    MIB,
    MakeQueue,
    binary,
    bodies,
    collect,
    md5,
    md5_of_attributes,
    nothing,
    page,
    refused,
    text,
)

ACTIONS = ["SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"]
Batch = Callable[..., Any]


def action(sqs: Any, name: str) -> Batch:
    """Return the client's method of this batch action."""
    methods = ["send_message_batch", "delete_message_batch", "change_message_visibility_batch"]
    found: Batch = getattr(sqs, dict(zip(ACTIONS, methods, strict=True))[name])
    return found


def entry(name: str, identifier: str) -> dict[str, Any]:
    """Return an entry of the action, with an id and all that is required."""
    if name == "SendMessageBatch":
        return {"Id": identifier, "MessageBody": "x"}
    if name == "DeleteMessageBatch":
        return {"Id": identifier, "ReceiptHandle": "garbage"}
    return {"Id": identifier, "ReceiptHandle": "garbage", "VisibilityTimeout": 1}


def failures(answer: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return each failed entry's code and whether it blames the sender."""
    return {entry["Id"]: (entry["Code"], entry["SenderFault"]) for entry in answer.get("Failed", [])}


def successes(answer: dict[str, Any]) -> list[str]:
    """Return the ids of the entries that succeeded."""
    return sorted(entry["Id"] for entry in answer.get("Successful", []))


@page("API_SendMessageBatch")
def test_ten_entries(either_sqs: Any, queue: str) -> None:
    """Ten entries are accepted, and each has its id, message id and digest in the answer."""
    entries = [{"Id": f"e_{n}-", "MessageBody": f"body {n} €"} for n in range(10)]
    answer = either_sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    assert not answer.get("Failed")
    found = {entry["Id"]: entry["MD5OfMessageBody"] for entry in answer["Successful"]}
    assert found == {f"e_{n}-": md5(f"body {n} €") for n in range(10)}
    assert len({entry["MessageId"] for entry in answer["Successful"]}) == 10
    came = collect(either_sqs, queue, 10)
    assert sorted(bodies(came)) == [f"body {n} €" for n in range(10)]


@page("API_SendMessageBatch")
def test_each_entry_has_its_own_attributes(either_sqs: Any, queue: str) -> None:
    """Attributes and delays belong to their entry alone."""
    attributes = {"kind": text("a"), "blob": binary(b"\x00\xff")}
    entries = [
        {"Id": "plain", "MessageBody": "plain"},
        {"Id": "dressed", "MessageBody": "dressed", "MessageAttributes": attributes},
        {"Id": "late", "MessageBody": "late", "DelaySeconds": 900},
    ]
    answer = either_sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    digests = {entry["Id"]: entry.get("MD5OfMessageAttributes") for entry in answer["Successful"]}
    assert digests == {"plain": None, "dressed": md5_of_attributes(attributes), "late": None}
    came = {m["Body"]: m.get("MessageAttributes") for m in collect(either_sqs, queue, 2, MessageAttributeNames=["All"])}
    assert came == {"plain": None, "dressed": attributes}


@page("quotas-messages")
@pytest.mark.parametrize("name", ACTIONS)
def test_eleven_entries(either_sqs: Any, queue: str, name: str) -> None:
    """More than ten entries raise TooManyEntriesInBatchRequest."""
    entries = [entry(name, str(n)) for n in range(11)]
    refusal = refused(action(either_sqs, name), QueueUrl=queue, Entries=entries)
    assert isinstance(refusal.error, either_sqs.exceptions.TooManyEntriesInBatchRequest)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", 400)


@page("API_SendMessageBatch")
@pytest.mark.parametrize("name", ACTIONS)
def test_no_entries(sqs: Any, queue: str, name: str) -> None:
    """A batch without entries raises EmptyBatchRequest."""
    refusal = refused(action(sqs, name), QueueUrl=queue, Entries=[])
    assert isinstance(refusal.error, sqs.exceptions.EmptyBatchRequest)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.EmptyBatchRequest", 400)


@page("API_SendMessageBatch")
@pytest.mark.parametrize("name", ACTIONS)
def test_equal_ids(either_sqs: Any, queue: str, name: str) -> None:
    """Two entries with one id raise BatchEntryIdsNotDistinct."""
    refusal = refused(action(either_sqs, name), QueueUrl=queue, Entries=[entry(name, "a"), entry(name, "a")])
    assert isinstance(refusal.error, either_sqs.exceptions.BatchEntryIdsNotDistinct)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.BatchEntryIdsNotDistinct", 400)


@page("quotas-messages")
@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("identifier", ["x" * 81, "a.b", "a b", "ä"], ids=["81-characters", "dot", "space", "umlaut"])
def test_malformed_ids(sqs: Any, queue: str, name: str, identifier: str) -> None:
    """An id that is too long or has other characters raises InvalidBatchEntryId."""
    refusal = refused(action(sqs, name), QueueUrl=queue, Entries=[entry(name, identifier)])
    assert isinstance(refusal.error, sqs.exceptions.InvalidBatchEntryId)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.InvalidBatchEntryId", 400)


@page("quotas-messages")
def test_longest_id(sqs: Any, queue: str) -> None:
    """An id may have 80 letters, digits, hyphens and underscores."""
    identifier = ("aZ09-_" * 20)[:80]
    answer = sqs.send_message_batch(QueueUrl=queue, Entries=[entry("SendMessageBatch", identifier)])
    assert successes(answer) == [identifier]


@page("API_SendMessageBatch")
def test_whole_batch_of_one_mebibyte(sqs: Any, queue: str) -> None:
    """All messages of a batch together may be 1,048,576 bytes."""
    entries = [{"Id": str(n), "MessageBody": "x" * (MIB // 4)} for n in range(4)]
    assert successes(sqs.send_message_batch(QueueUrl=queue, Entries=entries)) == ["0", "1", "2", "3"]


@page("API_SendMessageBatch")
def test_whole_batch_too_long(sqs: Any, queue: str) -> None:
    """One byte more raises BatchRequestTooLong, and nothing of the batch is sent."""
    entries = [{"Id": "a", "MessageBody": "x" * (MIB // 2)}, {"Id": "b", "MessageBody": "x" * (MIB // 2 + 1)}]
    refusal = refused(sqs.send_message_batch, QueueUrl=queue, Entries=entries)
    assert isinstance(refusal.error, sqs.exceptions.BatchRequestTooLong)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.BatchRequestTooLong", 400)
    assert nothing(sqs, queue)


@page("API_SendMessageBatch")
def test_attributes_count_in_a_batch(sqs: Any, queue: str) -> None:
    """Attributes count towards the size of a batch."""
    attributes = {"a": text("x" * 1000)}
    entries = [{"Id": str(n), "MessageBody": "x" * (MIB // 2 - 500), "MessageAttributes": attributes} for n in range(2)]
    refusal = refused(sqs.send_message_batch, QueueUrl=queue, Entries=entries)
    assert isinstance(refusal.error, sqs.exceptions.BatchRequestTooLong)


@page("API_SendMessageBatch")
def test_one_bad_body(sqs: Any, queue: str) -> None:
    """An entry with a forbidden character fails by itself; the others are sent."""
    entries = [{"Id": "good", "MessageBody": "good"}, {"Id": "bad", "MessageBody": "b\x01d"}]
    answer = sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    assert failures(answer) == {"bad": ("InvalidMessageContents", True)}
    assert successes(answer) == ["good"]
    assert bodies(collect(sqs, queue, 1)) == ["good"]


@page("API_SendMessageBatch", recorded=True)
@pytest.mark.parametrize(
    "fault",
    [
        {"MessageBody": "x" * 1025},
        {"DelaySeconds": 901},
        {"MessageAttributes": {"AWS.mine": text("x")}},
        {"MessageAttributes": {"number": text("many", "Number")}},
        {"MessageDeduplicationId": "for FIFO queues only"},
    ],
    ids=["too-long", "delay", "attribute-name", "attribute-value", "deduplication-id"],
)
def test_one_bad_entry(either_sqs: Any, make_queue: MakeQueue, fault: dict[str, Any]) -> None:
    """An entry with an invalid value fails by itself, by its sender's fault; the others are sent."""
    url = make_queue(MaximumMessageSize=1024)
    entries = [{"Id": "good", "MessageBody": "good"}, {"Id": "bad", "MessageBody": "bad", **fault}]
    answer = either_sqs.send_message_batch(QueueUrl=url, Entries=entries)
    assert failures(answer) == {"bad": ("InvalidParameterValue", True)}
    assert successes(answer) == ["good"]
    assert bodies(collect(either_sqs, url, 1)) == ["good"]


@page("API_DeleteMessageBatch")
def test_delete_some(either_sqs: Any, queue: str) -> None:
    """A receipt handle that is none fails by itself; the other messages are deleted."""
    either_sqs.send_message_batch(QueueUrl=queue, Entries=[{"Id": str(n), "MessageBody": str(n)} for n in range(3)])
    handles = [message["ReceiptHandle"] for message in collect(either_sqs, queue, 3)]
    entries = [{"Id": str(n), "ReceiptHandle": handle} for n, handle in enumerate([*handles, "garbage"])]
    answer = either_sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
    assert successes(answer) == ["0", "1", "2"]
    assert failures(answer) == {"3": ("ReceiptHandleIsInvalid", True)}


@page("API_DeleteMessageBatch")
def test_delete_one_message_twice(sqs: Any, queue: str) -> None:
    """Two entries may delete the same message: deleting is idempotent."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = collect(sqs, queue, 1)[0]["ReceiptHandle"]
    entries = [{"Id": "a", "ReceiptHandle": handle}, {"Id": "b", "ReceiptHandle": handle}]
    answer = sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
    assert successes(answer) == ["a", "b"]
    assert not answer.get("Failed")


@page("API_ChangeMessageVisibilityBatch")
def test_change_some(either_sqs: Any, queue: str) -> None:
    """Each entry has its own timeout; one beyond the bounds and one without a message fail by themselves."""
    either_sqs.send_message_batch(QueueUrl=queue, Entries=[{"Id": str(n), "MessageBody": str(n)} for n in range(3)])
    held = {m["Body"]: m["ReceiptHandle"] for m in collect(either_sqs, queue, 3)}
    entries = [
        {"Id": "back", "ReceiptHandle": held["0"], "VisibilityTimeout": 0},
        {"Id": "kept", "ReceiptHandle": held["1"], "VisibilityTimeout": 100},
        {"Id": "long", "ReceiptHandle": held["2"], "VisibilityTimeout": 43_201},
        {"Id": "none", "ReceiptHandle": "garbage", "VisibilityTimeout": 1},
    ]
    answer = either_sqs.change_message_visibility_batch(QueueUrl=queue, Entries=entries)
    assert successes(answer) == ["back", "kept"]
    assert failures(answer) == {"long": ("InvalidParameterValue", True), "none": ("ReceiptHandleIsInvalid", True)}
    assert bodies(collect(either_sqs, queue, 1)) == ["0"]


@page("API_SendMessageBatch")
@pytest.mark.parametrize("name", ACTIONS)
def test_missing_queue(sqs: Any, queue: str, name: str) -> None:
    """A batch for a missing queue raises QueueDoesNotExist."""
    refusal = refused(action(sqs, name), QueueUrl=queue + "-never", Entries=[entry(name, "a")])
    assert isinstance(refusal.error, sqs.exceptions.QueueDoesNotExist)
