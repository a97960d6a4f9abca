"""Message move tasks: dead letters back to where they came from, or elsewhere."""

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from conformance.sqs.checks import (
    MakeQueue,
    arn,
    bodies,
    collect,
    eventually,
    page,
    receive,
    receive_one,
    refused,
    send_all,
)

START = "API_StartMessageMoveTask"
LIST = "API_ListMessageMoveTasks"
CANCEL = "API_CancelMessageMoveTask"


@dataclass(frozen=True)
class Pair:
    """Hold a dead-letter queue and a source of it."""

    dead: str
    dead_arn: str
    source: str
    source_arn: str


@pytest.fixture
def pair(sqs: Any, make_queue: MakeQueue) -> Pair:
    """Give a dead-letter queue with one source."""
    dead = make_queue()
    source = make_source(sqs, make_queue, dead)
    return Pair(dead, arn(sqs, dead), source, arn(sqs, source))


def make_source(sqs: Any, make_queue: MakeQueue, dead: str) -> str:
    """Create a queue with messages that die at the second receive."""
    policy = json.dumps({"deadLetterTargetArn": arn(sqs, dead), "maxReceiveCount": 1})
    return make_queue(VisibilityTimeout=0, RedrivePolicy=policy)


def kill(sqs: Any, source: str, texts: list[str]) -> None:
    """Send messages to the source and let them die."""
    send_all(sqs, source, texts)
    seen: set[str] = set()
    while len(seen) < len(texts):
        seen |= set(bodies(receive(sqs, source)))
    assert receive(sqs, source, wait=0) == []


def latest(sqs: Any, source_arn: str) -> dict[str, Any]:
    """Return the most recent task of the queue."""
    results: list[dict[str, Any]] = sqs.list_message_move_tasks(SourceArn=source_arn)["Results"]
    return results[0]


def finished(sqs: Any, source_arn: str) -> dict[str, Any]:
    """Wait until the most recent task is complete and return it."""
    eventually(lambda: latest(sqs, source_arn)["Status"], "COMPLETED", within=10)
    return latest(sqs, source_arn)


@page(START)
def test_back_to_the_source(either_sqs: Any, sqs: Any, pair: Pair) -> None:
    """Without a destination the messages go back to their source."""
    kill(sqs, pair.source, ["a", "b"])
    assert either_sqs.start_message_move_task(SourceArn=pair.dead_arn)["TaskHandle"]
    task = finished(either_sqs, pair.dead_arn)
    assert sorted(bodies(collect(sqs, pair.source, 2, VisibilityTimeout=30))) == ["a", "b"]
    assert task["SourceArn"] == pair.dead_arn
    assert "DestinationArn" not in task
    assert "TaskHandle" not in task
    assert (task["ApproximateNumberOfMessagesMoved"], task["ApproximateNumberOfMessagesToMove"]) == (2, 2)


@page(LIST)
def test_time_of_the_start(sqs: Any, pair: Pair) -> None:
    """StartedTimestamp is when the task started, in epoch milliseconds."""
    kill(sqs, pair.source, ["a"])
    before = time.time() * 1000
    sqs.start_message_move_task(SourceArn=pair.dead_arn)
    assert abs(finished(sqs, pair.dead_arn)["StartedTimestamp"] - before) < 60_000


@page("sqs-configure-dead-letter-queue-redrive")
def test_moved_message_is_new(sqs: Any, pair: Pair) -> None:
    """A moved message counts as new: another id, and no receives so far."""
    kill(sqs, pair.source, ["a"])
    old = receive_one(sqs, pair.dead, VisibilityTimeout=0)["MessageId"]
    sqs.start_message_move_task(SourceArn=pair.dead_arn)
    message = receive_one(sqs, pair.source, AttributeNames=["All"])
    assert message["MessageId"] != old
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert "DeadLetterQueueSourceArn" not in message["Attributes"]


@page(START)
def test_each_to_its_own_source(sqs: Any, make_queue: MakeQueue, pair: Pair) -> None:
    """With several sources each message goes back to its own."""
    other = make_source(sqs, make_queue, pair.dead)
    kill(sqs, pair.source, ["one"])
    kill(sqs, other, ["other"])
    sqs.start_message_move_task(SourceArn=pair.dead_arn)
    assert bodies(collect(sqs, pair.source, 1)) == ["one"]
    assert bodies(collect(sqs, other, 1)) == ["other"]


@page(START)
def test_to_another_queue(either_sqs: Any, sqs: Any, make_queue: MakeQueue, pair: Pair) -> None:
    """With a destination the messages go there, and the task says so."""
    destination = make_queue()
    kill(sqs, pair.source, ["a"])
    either_sqs.start_message_move_task(SourceArn=pair.dead_arn, DestinationArn=arn(sqs, destination))
    assert bodies(collect(sqs, destination, 1)) == ["a"]
    assert finished(either_sqs, pair.dead_arn)["DestinationArn"] == arn(sqs, destination)


@page(START, recorded=True)
def test_source_must_be_a_dead_letter_queue(sqs: Any, queue: str) -> None:
    """A queue that is no queue's dead-letter queue is refused."""
    refusal = refused(sqs.start_message_move_task, SourceArn=arn(sqs, queue))
    assert refusal.code == "InvalidParameterValue"


@page(START)
def test_missing_queues(either_sqs: Any, pair: Pair) -> None:
    """A missing source or destination raises ResourceNotFoundException, with status 404."""
    refusal = refused(either_sqs.start_message_move_task, SourceArn=pair.dead_arn + "-never")
    assert isinstance(refusal.error, either_sqs.exceptions.ResourceNotFoundException)
    assert (refusal.code, refusal.status) == ("ResourceNotFoundException", 404)
    parameters = {"SourceArn": pair.dead_arn, "DestinationArn": pair.source_arn + "-never"}
    refusal = refused(either_sqs.start_message_move_task, **parameters)
    assert isinstance(refusal.error, either_sqs.exceptions.ResourceNotFoundException)
    refusal = refused(either_sqs.list_message_move_tasks, SourceArn=pair.dead_arn + "-never")
    assert isinstance(refusal.error, either_sqs.exceptions.ResourceNotFoundException)


@page(START)
@pytest.mark.parametrize("rate", [0, 501, -1])
def test_rate_is_bounded(sqs: Any, pair: Pair, rate: int) -> None:
    """MaxNumberOfMessagesPerSecond is 1 to 500."""
    refused(sqs.start_message_move_task, SourceArn=pair.dead_arn, MaxNumberOfMessagesPerSecond=rate)


@page(START, recorded=True)
def test_one_task_at_a_time(sqs: Any, pair: Pair) -> None:
    """While one task runs a second one for the same queue is refused."""
    kill(sqs, pair.source, [str(n) for n in range(5)])
    task = sqs.start_message_move_task(SourceArn=pair.dead_arn, MaxNumberOfMessagesPerSecond=1)
    refusal = refused(sqs.start_message_move_task, SourceArn=pair.dead_arn)
    assert refusal.code == "InvalidParameterValue"
    sqs.cancel_message_move_task(TaskHandle=task["TaskHandle"])


@page(CANCEL)
def test_cancel(either_sqs: Any, sqs: Any, pair: Pair) -> None:
    """A running task can be cancelled: what it moved stays moved, the rest stays."""
    texts = [str(n) for n in range(8)]
    kill(sqs, pair.source, texts)
    started = either_sqs.start_message_move_task(SourceArn=pair.dead_arn, MaxNumberOfMessagesPerSecond=1)
    running = latest(either_sqs, pair.dead_arn)
    assert (running["Status"], running["TaskHandle"]) == ("RUNNING", started["TaskHandle"])
    assert running["MaxNumberOfMessagesPerSecond"] == 1
    answer = either_sqs.cancel_message_move_task(TaskHandle=started["TaskHandle"])
    assert 0 <= answer["ApproximateNumberOfMessagesMoved"] < 8
    eventually(lambda: latest(either_sqs, pair.dead_arn)["Status"], "CANCELLED", within=10)
    left = int(sqs.get_queue_attributes(QueueUrl=pair.dead, AttributeNames=["All"])["Attributes"][COUNT])
    assert left > 0
    assert latest(either_sqs, pair.dead_arn)["ApproximateNumberOfMessagesMoved"] == 8 - left


COUNT = "ApproximateNumberOfMessages"


@page(CANCEL)
def test_cancel_a_finished_task(sqs: Any, pair: Pair) -> None:
    """Only a running task can be cancelled."""
    kill(sqs, pair.source, ["a"])
    task = sqs.start_message_move_task(SourceArn=pair.dead_arn)
    finished(sqs, pair.dead_arn)
    refused(sqs.cancel_message_move_task, TaskHandle=task["TaskHandle"])


@page(CANCEL, recorded=True)
def test_cancel_garbage(sqs: Any) -> None:
    """A handle that is none is refused."""
    refusal = refused(sqs.cancel_message_move_task, TaskHandle="garbage")
    assert refusal.code in {"InvalidParameterValue", "ResourceNotFoundException"}


@page(LIST)
def test_newest_first(sqs: Any, pair: Pair) -> None:
    """One task is listed unless more are asked for, the most recent one first."""
    for number in range(3):
        kill(sqs, pair.source, [str(number)])
        sqs.start_message_move_task(SourceArn=pair.dead_arn)
        finished(sqs, pair.dead_arn)
        collect(sqs, pair.source, 1, VisibilityTimeout=300)
    assert len(sqs.list_message_move_tasks(SourceArn=pair.dead_arn)["Results"]) == 1
    many = sqs.list_message_move_tasks(SourceArn=pair.dead_arn, MaxResults=10)["Results"]
    started = [task["StartedTimestamp"] for task in many]
    assert len(started) == 3
    assert started == sorted(started, reverse=True)


@page(LIST)
def test_no_tasks(either_sqs: Any, pair: Pair) -> None:
    """A queue without tasks has none to list."""
    assert not either_sqs.list_message_move_tasks(SourceArn=pair.dead_arn).get("Results")


@page(LIST)
@pytest.mark.parametrize("limit", [0, 11])
def test_limit_is_bounded(sqs: Any, pair: Pair, limit: int) -> None:
    """MaxResults is 1 to 10."""
    refused(sqs.list_message_move_tasks, SourceArn=pair.dead_arn, MaxResults=limit)
