"""Fair queues: tenants on a standard queue, and quiet ones first."""

import threading
import time
from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, bodies, collect, page, receive, receive_one, refused, send_all

DETAILED = "sqs-fair-queues-detailed"
DETECTION = 15.0
"""Seconds within which a noisy neighbour must have been noticed: the page promises no time, only that it happens."""


@page("sqs-fair-queues")
def test_group_comes_back(either_sqs: Any, queue: str) -> None:
    """A standard queue takes a MessageGroupId and returns it, without a sequence number."""
    answer = either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageGroupId="tenant-1")
    assert "SequenceNumber" not in answer
    found = receive_one(either_sqs, queue, AttributeNames=["All"])["Attributes"]
    assert found["MessageGroupId"] == "tenant-1"
    assert not {"SequenceNumber", "MessageDeduplicationId"} & found.keys()


@page("sqs-fair-queues")
def test_group_of_a_batch_entry(either_sqs: Any, queue: str) -> None:
    """In a batch each entry has its own group, or none."""
    entries = [
        {"Id": "a", "MessageBody": "a", "MessageGroupId": "tenant-1"},
        {"Id": "b", "MessageBody": "b", "MessageGroupId": "tenant-2"},
        {"Id": "c", "MessageBody": "c"},
    ]
    assert not either_sqs.send_message_batch(QueueUrl=queue, Entries=entries).get("Failed")
    messages = collect(either_sqs, queue, 3, AttributeNames=["MessageGroupId"])
    found = {message["Body"]: message.get("Attributes", {}).get("MessageGroupId") for message in messages}
    assert found == {"a": "tenant-1", "b": "tenant-2", "c": None}


@page("API_SendMessage")
def test_groups_do_not_lock(sqs: Any, queue: str) -> None:
    """Messages of one group can be in flight at the same time."""
    send_all(sqs, queue, ["a", "b", "c"], MessageGroupId="tenant-1")
    seen = [receive_one(sqs, queue)["Body"] for _ in range(3)]
    assert sorted(seen) == ["a", "b", "c"]


@page("API_SendMessage")
def test_no_deduplication(sqs: Any, queue: str) -> None:
    """Equal messages of one group are all delivered."""
    send_all(sqs, queue, ["same"] * 3, MessageGroupId="tenant-1")
    assert bodies(collect(sqs, queue, 3)) == ["same"] * 3


@page("quotas-messages", recorded=True)
@pytest.mark.parametrize("group", ["x" * 129, "with space", ""], ids=["129-characters", "space", "empty"])
def test_forbidden_groups(sqs: Any, queue: str, group: str) -> None:
    """A group has 1 to 128 letters, digits and signs of punctuation."""
    refusal = refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageGroupId=group)
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)


def quiet_comes_first(sqs: Any, url: str, noisy: str, quiet: dict[str, str]) -> bool:
    """Send a backlog of the noisy tenant, then one message of a quiet one, and tell which is received first."""
    send_all(sqs, url, ["noisy"] * 10, MessageGroupId=noisy)
    sqs.send_message(QueueUrl=url, MessageBody="quiet", **quiet)
    first: str = receive_one(sqs, url, VisibilityTimeout=300)["Body"]
    if first != "quiet":
        clear(sqs, url)
    return first == "quiet"


def clear(sqs: Any, url: str) -> None:
    """Take what is there out of the way, so that the next attempt starts with an empty queue."""
    while messages := receive(sqs, url, wait=0, VisibilityTimeout=300):
        entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(messages)]
        sqs.delete_message_batch(QueueUrl=url, Entries=entries)


def noticed(sqs: Any, url: str, noisy: str, tenants: list[dict[str, str]]) -> bool:
    """Tell whether quiet tenants come to be served first, three times in a row so that chance is no answer."""
    deadline = time.monotonic() + DETECTION
    pause = threading.Event()
    row = 0
    while row < 3 and time.monotonic() < deadline:
        row = row + 1 if quiet_comes_first(sqs, url, noisy, tenants[row % len(tenants)]) else 0
        if not row:
            pause.wait(1)
    return row == 3


def occupy(sqs: Any, url: str, tenant: str, count: int) -> None:
    """Bring that many messages of the tenant in flight, for long."""
    send_all(sqs, url, ["held"] * count, MessageGroupId=tenant)
    assert len(collect(sqs, url, count, VisibilityTimeout=600)) == count


@page(DETAILED)
def test_noisy_by_concurrency(sqs: Any, queue: str) -> None:
    """A tenant with 40 messages in flight, all that are, waits until quiet tenants are served."""
    occupy(sqs, queue, "noisy", 40)
    assert noticed(sqs, queue, "noisy", [{"MessageGroupId": f"quiet-{n}"} for n in range(3)])


@page(DETAILED)
def test_messages_without_a_group_are_quiet(sqs: Any, queue: str) -> None:
    """A message without a group is a tenant of its own, and so comes before a noisy tenant's."""
    occupy(sqs, queue, "noisy", 40)
    assert noticed(sqs, queue, "noisy", [{}])


@page(DETAILED)
def test_noisy_tenant_is_served_when_alone(sqs: Any, make_queue: MakeQueue) -> None:
    """A noisy tenant is not throttled: without quiet messages its own are delivered."""
    url = make_queue()
    occupy(sqs, url, "noisy", 40)
    send_all(sqs, url, ["more"] * 20, MessageGroupId="noisy")
    assert bodies(collect(sqs, url, 20, VisibilityTimeout=600)) == ["more"] * 20


@page(DETAILED)
def test_noisy_by_processing_time(sqs: Any, queue: str) -> None:
    """A tenant with few but slow messages, which take nearly all processing time, is noisy too."""
    send_all(sqs, queue, ["slow"] * 3, MessageGroupId="slow")
    held = collect(sqs, queue, 3, VisibilityTimeout=600)
    for number in range(5):
        sqs.send_message(QueueUrl=queue, MessageBody="quick", MessageGroupId=f"quick-{number}")
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=receive_one(sqs, queue)["ReceiptHandle"])
    assert receive(sqs, queue, wait=2) == []
    for message in held:
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    assert noticed(sqs, queue, "slow", [{"MessageGroupId": f"quick-{n}"} for n in range(3)])
