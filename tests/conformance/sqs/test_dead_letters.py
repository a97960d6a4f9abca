"""Dead letters: moved after too many receives, only where both queues agree."""

import json
from typing import Any

import pytest

from conformance.sqs.checks import (
    SETTLE,
    MakeQueue,
    arn,
    attribute,
    bodies,
    eventually,
    nothing,
    page,
    receive,
    receive_one,
    refused,
    text,
    unique,
)

CONFIGURE = "sqs-configure-dead-letter-queue"
RETENTION = "setting-up-dead-letter-queue-retention"


def redrive(dead_arn: str, count: Any = 1) -> str:
    """Return a redrive policy."""
    return json.dumps({"deadLetterTargetArn": dead_arn, "maxReceiveCount": count})


def exhaust(sqs: Any, url: str) -> dict[str, Any]:
    """Receive the message once and let a second receive find it spent; return what came the first time."""
    message = receive_one(sqs, url, AttributeNames=["All"])
    assert receive(sqs, url, wait=0) == []
    return message


@page("sqs-dead-letter-queues")
def test_spent_message_moves(either_sqs: Any, make_queue: MakeQueue) -> None:
    """Received more often than maxReceiveCount, a message moves, with its id, body and attributes."""
    dead = make_queue()
    url = make_queue(VisibilityTimeout=0, RedrivePolicy=redrive(arn(either_sqs, dead), 2))
    attributes = {"kind": text("x")}
    sent = either_sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=attributes)
    for _ in range(2):
        assert receive_one(either_sqs, url)["Body"] == "x"
    assert receive(either_sqs, url, wait=0) == []
    message = receive_one(either_sqs, dead, MessageAttributeNames=["All"])
    assert (message["MessageId"], message["Body"]) == (sent["MessageId"], "x")
    assert message["MessageAttributes"] == attributes
    assert attribute(either_sqs, url, "ApproximateNumberOfMessages") == "0"


@page("API_ReceiveMessage", recorded=True)
def test_count_and_origin_of_a_dead_letter(sqs: Any, make_queue: MakeQueue) -> None:
    """The receive count goes on across queues, and DeadLetterQueueSourceArn names the origin."""
    dead = make_queue()
    url = make_queue(VisibilityTimeout=0, RedrivePolicy=redrive(arn(sqs, dead)))
    sqs.send_message(QueueUrl=url, MessageBody="x")
    exhaust(sqs, url)
    found = receive_one(sqs, dead, AttributeNames=["All"])["Attributes"]
    assert found["ApproximateReceiveCount"] == "2"
    assert found["DeadLetterQueueSourceArn"] == arn(sqs, url)


@page(RETENTION)
def test_time_of_a_standard_dead_letter(sqs: Any, make_queue: MakeQueue) -> None:
    """On standard queues the time at which it was enqueued stays what it was."""
    dead = make_queue()
    url = make_queue(VisibilityTimeout=1, RedrivePolicy=redrive(arn(sqs, dead)))
    sqs.send_message(QueueUrl=url, MessageBody="x")
    before = receive_one(sqs, url, AttributeNames=["All"])["Attributes"]
    assert receive(sqs, url, wait=2) == []
    after = receive_one(sqs, dead, AttributeNames=["All"])["Attributes"]
    assert after["SentTimestamp"] == before["SentTimestamp"]


def fifo_pair(sqs: Any, make_queue: MakeQueue) -> tuple[str, str]:
    """Create a FIFO queue with messages that die at the second receive, and its dead-letter queue."""
    dead = make_queue(fifo=True)
    policy = redrive(arn(sqs, dead))
    return dead, make_queue(fifo=True, ContentBasedDeduplication="true", VisibilityTimeout=1, RedrivePolicy=policy)


@page("sqs-dead-letter-queues")
def test_fifo_dead_letter(sqs: Any, make_queue: MakeQueue) -> None:
    """On FIFO queues a dead letter keeps its group, and the next message of that group follows."""
    dead, url = fifo_pair(sqs, make_queue)
    for body in ("spent", "next"):
        sqs.send_message(QueueUrl=url, MessageBody=body, MessageGroupId="g")
    assert receive_one(sqs, url)["Body"] == "spent"
    assert receive_one(sqs, url)["Body"] == "next"
    message = receive_one(sqs, dead, AttributeNames=["All"])
    assert (message["Body"], message["Attributes"]["MessageGroupId"]) == ("spent", "g")


@page(RETENTION)
def test_time_of_a_fifo_dead_letter(sqs: Any, make_queue: MakeQueue) -> None:
    """On FIFO queues the time at which it was enqueued starts again; SentTimestamp is where a client sees it."""
    dead, url = fifo_pair(sqs, make_queue)
    sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="g")
    before = receive_one(sqs, url, AttributeNames=["All"])["Attributes"]
    assert receive(sqs, url, wait=2) == []
    after = receive_one(sqs, dead, AttributeNames=["All"])["Attributes"]
    assert int(after["SentTimestamp"]) > int(before["SentTimestamp"])


@page(CONFIGURE)
@pytest.mark.parametrize("count", [1, 1000, "7"], ids=repr)
def test_policy_is_kept(sqs: Any, make_queue: MakeQueue, count: Any) -> None:
    """A maxReceiveCount is 1 to 1,000, as a number or as a text."""
    dead_arn = arn(sqs, make_queue())
    url = make_queue(RedrivePolicy=redrive(dead_arn, count))
    found = json.loads(attribute(sqs, url, "RedrivePolicy") or "{}")
    assert (found["deadLetterTargetArn"], int(found["maxReceiveCount"])) == (dead_arn, int(count))


@page(CONFIGURE)
@pytest.mark.parametrize("count", [0, 1001, -1, "many", 1.5], ids=repr)
def test_count_is_bounded(sqs: Any, make_queue: MakeQueue, count: Any) -> None:
    """Any other maxReceiveCount is refused."""
    policy = redrive(arn(sqs, make_queue()), count)
    refused(sqs.create_queue, QueueName=unique(), Attributes={"RedrivePolicy": policy})


@page("API_CreateQueue")
@pytest.mark.parametrize(
    "policy",
    ["{not json", "[]", "{}", '{"maxReceiveCount": 3}', redrive("not an arn"), redrive("arn:aws:sqs:us-east-1:1:")],
)
def test_malformed_policy(sqs: Any, queue: str, policy: str) -> None:
    """A policy without a target that is a queue's ARN is refused."""
    refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes={"RedrivePolicy": policy})
    assert attribute(sqs, queue, "RedrivePolicy") is None


@page(CONFIGURE)
def test_target_must_exist(sqs: Any, queue: str) -> None:
    """The dead-letter queue must exist."""
    policy = redrive(arn(sqs, queue) + "-never")
    refused(sqs.create_queue, QueueName=unique(), Attributes={"RedrivePolicy": policy})


@page("API_CreateQueue")
def test_target_must_be_of_the_same_type(sqs: Any, queue: str, fifo: str) -> None:
    """The dead-letter queue of a FIFO queue is a FIFO queue, that of a standard queue a standard queue."""
    to_fifo, to_standard = {"RedrivePolicy": redrive(arn(sqs, fifo))}, {"RedrivePolicy": redrive(arn(sqs, queue))}
    refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes=to_fifo)
    refused(sqs.set_queue_attributes, QueueUrl=fifo, Attributes=to_standard)


@page("API_SetQueueAttributes", recorded=True)
def test_empty_policy_removes_it(sqs: Any, make_queue: MakeQueue) -> None:
    """An empty policy removes the policy."""
    url = make_queue(RedrivePolicy=redrive(arn(sqs, make_queue())))
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": ""})
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert "RedrivePolicy" not in found


@page("API_ListDeadLetterSourceQueues")
def test_sources(either_sqs: Any, make_queue: MakeQueue) -> None:
    """The sources of a dead-letter queue are listed, and a queue that is none has none."""
    dead = make_queue()
    sources = {make_queue(RedrivePolicy=redrive(arn(either_sqs, dead))) for _ in range(2)}
    answer = either_sqs.list_dead_letter_source_queues(QueueUrl=dead)
    assert set(answer["queueUrls"]) == sources
    assert not answer.get("NextToken")
    assert not either_sqs.list_dead_letter_source_queues(QueueUrl=sources.pop()).get("queueUrls")


@page("API_ListDeadLetterSourceQueues")
def test_sources_in_pages(sqs: Any, make_queue: MakeQueue) -> None:
    """MaxResults and NextToken walk over all sources, each once."""
    dead = make_queue()
    sources = sorted(make_queue(RedrivePolicy=redrive(arn(sqs, dead))) for _ in range(3))
    first = sqs.list_dead_letter_source_queues(QueueUrl=dead, MaxResults=2)
    assert len(first["queueUrls"]) == 2
    rest = sqs.list_dead_letter_source_queues(QueueUrl=dead, MaxResults=2, NextToken=first["NextToken"])
    assert sorted(first["queueUrls"] + rest["queueUrls"]) == sources
    assert not rest.get("NextToken")


@page("API_ListDeadLetterSourceQueues")
def test_sources_of_a_missing_queue(either_sqs: Any, queue: str) -> None:
    """Asking for the sources of a missing queue raises QueueDoesNotExist."""
    refusal = refused(either_sqs.list_dead_letter_source_queues, QueueUrl=queue + "-never")
    assert isinstance(refusal.error, either_sqs.exceptions.QueueDoesNotExist)


def allow(permission: str, sources: list[str] | None = None) -> str:
    """Return a redrive-allow policy."""
    return json.dumps({"redrivePermission": permission, **({"sourceQueueArns": sources} if sources else {})})


@page("API_CreateQueue")
def test_deny_all(sqs: Any, make_queue: MakeQueue) -> None:
    """With denyAll no queue can name this queue as its dead-letter queue."""
    dead = make_queue(RedriveAllowPolicy=allow("denyAll"))
    policy = redrive(arn(sqs, dead))
    refused(sqs.create_queue, QueueName=unique(), Attributes={"RedrivePolicy": policy})


@page("API_CreateQueue")
def test_allow_all(sqs: Any, make_queue: MakeQueue) -> None:
    """With allowAll, which is the default, every queue can."""
    dead = make_queue(RedriveAllowPolicy=allow("allowAll"))
    make_queue(RedrivePolicy=redrive(arn(sqs, dead)))
    assert json.loads(attribute(sqs, dead, "RedriveAllowPolicy") or "{}") == {"redrivePermission": "allowAll"}


@page("API_CreateQueue")
def test_allow_by_queue(sqs: Any, make_queue: MakeQueue) -> None:
    """With byQueue only the queues named can."""
    friend, stranger = make_queue(), make_queue()
    dead = make_queue(RedriveAllowPolicy=allow("byQueue", [arn(sqs, friend)]))
    policy = {"RedrivePolicy": redrive(arn(sqs, dead))}
    sqs.set_queue_attributes(QueueUrl=friend, Attributes=policy)
    refused(sqs.set_queue_attributes, QueueUrl=stranger, Attributes=policy)


@page("API_CreateQueue")
@pytest.mark.parametrize(
    "policy",
    [
        "{not json",
        allow("perhaps"),
        allow("allowAll", ["arn:aws:sqs:us-east-1:123456789012:some"]),
        allow("denyAll", ["arn:aws:sqs:us-east-1:123456789012:some"]),
        allow("byQueue", [f"arn:aws:sqs:us-east-1:123456789012:q{n}" for n in range(11)]),
    ],
    ids=["malformed", "unknown", "list-with-allowAll", "list-with-denyAll", "eleven"],
)
def test_malformed_allow_policy(sqs: Any, queue: str, policy: str) -> None:
    """The permission is one of three, and a list of up to ten sources goes with byQueue only."""
    refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes={"RedriveAllowPolicy": policy})


@page("sqs-dead-letter-queues")
def test_raised_limit_holds_for_waiting_messages(sqs: Any, make_queue: MakeQueue) -> None:
    """The limit in force at the receive decides: with the policy gone the message stays."""
    dead = make_queue()
    url = make_queue(VisibilityTimeout=0, RedrivePolicy=redrive(arn(sqs, dead)))
    sqs.send_message(QueueUrl=url, MessageBody="x")
    assert bodies(receive(sqs, url)) == ["x"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": ""})
    assert bodies(receive(sqs, url)) == ["x"]
    assert nothing(sqs, dead)


@page("sqs-dead-letter-queues")
def test_dead_letters_can_be_deleted(sqs: Any, make_queue: MakeQueue) -> None:
    """A dead letter is a message like others: received, deleted, gone."""
    dead = make_queue()
    url = make_queue(VisibilityTimeout=0, RedrivePolicy=redrive(arn(sqs, dead)))
    sqs.send_message(QueueUrl=url, MessageBody="x")
    exhaust(sqs, url)
    sqs.delete_message(QueueUrl=dead, ReceiptHandle=receive_one(sqs, dead, wait=int(SETTLE))["ReceiptHandle"])
    eventually(lambda: attribute(sqs, dead, "ApproximateNumberOfMessagesNotVisible"), "0")
