"""FIFO queues: order, groups that lock, sequence numbers, attempt ids."""

import time
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError

from conformance.sqs.checks import (
    PROMPT,
    MakeQueue,
    bodies,
    nothing,
    page,
    receive,
    receive_one,
    refused,
    send_all,
)

LOGIC = "FIFO-queues-understanding-logic"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def send(sqs: Any, url: str, group: str, *texts: str) -> None:
    """Send the bodies to the group, in order."""
    send_all(sqs, url, texts, MessageGroupId=group)


def delete(sqs: Any, url: str, *messages: dict[str, Any]) -> None:
    """Delete the messages."""
    for message in messages:
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def back(sqs: Any, url: str, message: dict[str, Any]) -> None:
    """Give the message back."""
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)


@page(LOGIC)
def test_order(either_sqs: Any, fifo: str) -> None:
    """Messages of a group come in the order in which they were sent, one after the other."""
    for number in range(12):
        either_sqs.send_message(QueueUrl=fifo, MessageBody=str(number), MessageGroupId="g")
    seen: list[str] = []
    while len(seen) < 12:
        messages = receive(either_sqs, fifo, 5)
        assert messages
        seen += bodies(messages)
        delete(either_sqs, fifo, *messages)
    assert seen == [str(number) for number in range(12)]


@page(LOGIC)
def test_one_receive_takes_more_of_a_group(sqs: Any, fifo: str) -> None:
    """A receive returns as many messages of one group as it can, in their order."""
    send(sqs, fifo, "g", "a", "b", "c")
    assert bodies(receive(sqs, fifo)) == ["a", "b", "c"]


@page(LOGIC)
def test_group_in_flight_is_locked(either_sqs: Any, fifo: str) -> None:
    """While a message of a group is in flight no other of that group is returned; other groups are."""
    send(either_sqs, fifo, "g", "a", "b")
    send(either_sqs, fifo, "h", "c")
    assert receive_one(either_sqs, fifo)["Body"] == "a"
    assert bodies(receive(either_sqs, fifo)) == ["c"]
    assert nothing(either_sqs, fifo)


@page(LOGIC)
def test_new_message_waits_behind_the_lock(sqs: Any, fifo: str) -> None:
    """A message sent to a locked group waits for the one in flight."""
    send(sqs, fifo, "g", "a")
    first = receive_one(sqs, fifo)
    send(sqs, fifo, "g", "b")
    assert nothing(sqs, fifo)
    delete(sqs, fifo, first)
    assert bodies(receive(sqs, fifo)) == ["b"]


@page(LOGIC, recorded=True)
def test_part_of_what_is_in_flight(sqs: Any, fifo: str) -> None:
    """The group stays locked until all of its messages in flight are deleted."""
    send(sqs, fifo, "g", "a", "b", "c")
    first, second = receive(sqs, fifo, 2)
    delete(sqs, fifo, first)
    assert nothing(sqs, fifo)
    delete(sqs, fifo, second)
    assert bodies(receive(sqs, fifo)) == ["c"]


@page(LOGIC)
def test_after_the_timeout(sqs: Any, fifo: str) -> None:
    """When the timeout ends the group starts again from its first message, in the same order."""
    send(sqs, fifo, "g", "a", "b", "c")
    assert bodies(receive(sqs, fifo, 2, VisibilityTimeout=1)) == ["a", "b"]
    assert nothing(sqs, fifo)
    assert bodies(receive(sqs, fifo, wait=5)) == ["a", "b", "c"]


@page(LOGIC)
def test_given_back(either_sqs: Any, fifo: str) -> None:
    """A message given back comes before those that were sent after it."""
    send(either_sqs, fifo, "g", "a", "b")
    back(either_sqs, fifo, receive_one(either_sqs, fifo))
    assert bodies(receive(either_sqs, fifo)) == ["a", "b"]


@page(LOGIC, recorded=True)
def test_first_of_two_given_back(sqs: Any, fifo: str) -> None:
    """Given back, the first of two in flight can be received again, but nothing beyond the other one."""
    send(sqs, fifo, "g", "a", "b", "c")
    first, second = receive(sqs, fifo, 2)
    assert second["Body"] == "b"
    back(sqs, fifo, first)
    assert bodies(receive(sqs, fifo)) == ["a"]
    assert nothing(sqs, fifo)


@page(LOGIC, recorded=True)
def test_second_of_two_given_back(sqs: Any, fifo: str) -> None:
    """The second of two in flight, given back, waits for the first: order comes before availability."""
    send(sqs, fifo, "g", "a", "b")
    first, second = receive(sqs, fifo, 2)
    back(sqs, fifo, second)
    assert nothing(sqs, fifo)
    delete(sqs, fifo, first)
    assert bodies(receive(sqs, fifo)) == ["b"]


@page("API_SendMessage")
def test_groups_do_not_wait_for_each_other(sqs: Any, fifo: str) -> None:
    """Ten groups can be in flight at once, and within each of them the order holds."""
    for number in range(10):
        send(sqs, fifo, f"g{number}", f"g{number}-a", f"g{number}-b")
    held: list[dict[str, Any]] = []
    while messages := receive(sqs, fifo, 1, wait=0):
        held += messages
    assert sorted(bodies(held)) == [f"g{number}-a" for number in range(10)]
    delete(sqs, fifo, *held)
    seen = [body for _ in range(10) for body in bodies(receive(sqs, fifo, 1))]
    assert sorted(seen) == [f"g{number}-b" for number in range(10)]


@page("API_SendMessage", recorded=True)
def test_group_is_required(either_sqs: Any, fifo: str) -> None:
    """A message without a group is refused."""
    refusal = refused(either_sqs.send_message, QueueUrl=fifo, MessageBody="x")
    assert (refusal.code, refusal.status) == ("MissingParameter", 400)


@page("API_SendMessage", recorded=True)
def test_deduplication_is_required(either_sqs: Any, make_queue: MakeQueue) -> None:
    """Without deduplication by content a message needs a deduplication id."""
    url = make_queue(fifo=True)
    refusal = refused(either_sqs.send_message, QueueUrl=url, MessageBody="x", MessageGroupId="g")
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)


@page("API_SendMessageBatch")
def test_batch_without_a_group(sqs: Any, fifo: str) -> None:
    """An entry without a group is not enqueued, whether it fails alone or with its batch."""
    with suppress(ClientError):
        answer = sqs.send_message_batch(QueueUrl=fifo, Entries=[{"Id": "a", "MessageBody": "x"}])
        assert [entry["Id"] for entry in answer["Failed"]] == ["a"]
    assert nothing(sqs, fifo)


@page("API_SendMessage", recorded=True)
def test_no_delay_of_a_message(either_sqs: Any, fifo: str) -> None:
    """A message of a FIFO queue has no delay of its own, but 0 is accepted."""
    refusal = refused(either_sqs.send_message, QueueUrl=fifo, MessageBody="x", MessageGroupId="g", DelaySeconds=2)
    assert refusal.code == "InvalidParameterValue"
    either_sqs.send_message(QueueUrl=fifo, MessageBody="x", MessageGroupId="g", DelaySeconds=0)
    assert bodies(receive(either_sqs, fifo)) == ["x"]


@page("quotas-messages", recorded=True)
@pytest.mark.parametrize(
    "wrong", ["x" * 129, "with space", "tab\t", "ümlaut"], ids=["129-characters", "space", "tab", "umlaut"]
)
@pytest.mark.parametrize("parameter", ["MessageGroupId", "MessageDeduplicationId"])
def test_forbidden_ids(sqs: Any, fifo: str, parameter: str, wrong: str) -> None:
    """Both ids have 1 to 128 letters, digits and signs of punctuation."""
    parameters = {"MessageGroupId": "g", "MessageDeduplicationId": "d", parameter: wrong}
    refusal = refused(sqs.send_message, QueueUrl=fifo, MessageBody="x", **parameters)
    assert refusal.code == "InvalidParameterValue"


@page("quotas-messages")
def test_longest_ids(either_sqs: Any, fifo: str) -> None:
    """All documented punctuation, up to 128 characters, comes back as it was sent."""
    identifier = (PUNCTUATION + "aZ09" * 40)[:128]
    parameters = {"MessageGroupId": identifier, "MessageDeduplicationId": identifier}
    either_sqs.send_message(QueueUrl=fifo, MessageBody="x", **parameters)
    found = receive_one(either_sqs, fifo, AttributeNames=["All"])["Attributes"]
    assert parameters.items() <= found.items()


@page("API_SendMessage")
def test_sequence_numbers(either_sqs: Any, fifo: str) -> None:
    """Sequence numbers grow within a group, and a receive returns the one that the send had."""
    sent = [
        either_sqs.send_message(QueueUrl=fifo, MessageBody=str(n), MessageGroupId="g")["SequenceNumber"]
        for n in range(3)
    ]
    assert [int(number) for number in sent] == sorted({int(number) for number in sent})
    got = [m["Attributes"]["SequenceNumber"] for m in receive(either_sqs, fifo, AttributeNames=["All"])]
    assert got == sent


@page("API_SendMessageBatch")
def test_batch_keeps_its_order(sqs: Any, fifo: str) -> None:
    """The messages of a batch are enqueued in their order, with growing sequence numbers."""
    entries = [{"Id": str(9 - n), "MessageBody": str(n), "MessageGroupId": "g"} for n in range(10)]
    answer = sqs.send_message_batch(QueueUrl=fifo, Entries=entries)
    numbers = {entry["Id"]: int(entry["SequenceNumber"]) for entry in answer["Successful"]}
    in_order = [numbers[entry["Id"]] for entry in entries]
    assert in_order == sorted(set(in_order))
    assert bodies(receive(sqs, fifo)) == [str(n) for n in range(10)]


ATTEMPT = "using-receiverequestattemptid-request-parameter"


@page(ATTEMPT)
def test_same_attempt(either_sqs: Any, fifo: str) -> None:
    """A receive repeated with its attempt id returns the same messages under the same handles."""
    send(either_sqs, fifo, "g", "a", "b")
    first = receive(either_sqs, fifo, ReceiveRequestAttemptId="attempt-1")
    again = receive(either_sqs, fifo, ReceiveRequestAttemptId="attempt-1")
    assert bodies(first) == ["a", "b"]
    assert [m["ReceiptHandle"] for m in again] == [m["ReceiptHandle"] for m in first]
    assert bodies(again) == bodies(first)


@page(ATTEMPT)
def test_other_attempt(sqs: Any, fifo: str) -> None:
    """Another attempt id, or none, does not return what is in flight."""
    send(sqs, fifo, "g", "a")
    receive_one(sqs, fifo, ReceiveRequestAttemptId="attempt-1")
    assert receive(sqs, fifo, wait=0, ReceiveRequestAttemptId="attempt-2") == []
    assert receive(sqs, fifo, wait=0) == []


@page("API_ReceiveMessage")
def test_same_attempt_starts_the_timeout_anew(sqs: Any, fifo: str) -> None:
    """Repeating a receive resets the visibility timeout."""
    send(sqs, fifo, "g", "a")
    receive_one(sqs, fifo, VisibilityTimeout=2, ReceiveRequestAttemptId="attempt")
    assert receive(sqs, fifo, wait=1) == []
    start = time.monotonic()
    receive_one(sqs, fifo, VisibilityTimeout=2, ReceiveRequestAttemptId="attempt")
    assert receive_one(sqs, fifo)["Body"] == "a"
    assert 1.9 <= time.monotonic() - start < 2 + PROMPT


@page("API_ReceiveMessage")
def test_same_attempt_after_a_delete(sqs: Any, fifo: str) -> None:
    """Once a message of the attempt was deleted the attempt cannot bring it back."""
    send(sqs, fifo, "g", "a", "b")
    first = receive(sqs, fifo, ReceiveRequestAttemptId="attempt")
    delete(sqs, fifo, first[0])
    assert "a" not in bodies(receive(sqs, fifo, wait=0, ReceiveRequestAttemptId="attempt"))


@page("API_ReceiveMessage")
@pytest.mark.parametrize("wrong", ["x" * 129, "with space"], ids=["129-characters", "space"])
def test_forbidden_attempt_ids(sqs: Any, fifo: str, wrong: str) -> None:
    """An attempt id has up to 128 letters, digits and signs of punctuation."""
    refused(sqs.receive_message, QueueUrl=fifo, ReceiveRequestAttemptId=wrong)
