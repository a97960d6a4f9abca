"""Dead-letter queues: redrive policies, what a moved message keeps, and message move tasks."""

from typing import Any

import msgspec
import pytest

from postroom.local import BrokerError, LocalQueue
from postroom.local.mover import KEPT
from postroom.local.moves import CHUNK, Move
from unit.local.bench import Bench


def move_handle(source_arn: str) -> str:
    """Return the handle of a task that does not exist."""
    return Move("10f57157-fc38-4da9-a113-4de7e12d05dd", source_arn, None, None, 0.0, 0).handle


def kill(bench: Bench, source: LocalQueue, *bodies: str, group: str | None = None) -> None:
    """Send messages and receive them until they are in the dead-letter queue."""
    bench.send(source, *bodies, group=group)
    while source.messages:
        bench.take(source, visibility_timeout=0)


@pytest.mark.parametrize("max_receives", [1, 3])
def test_received_too_often(bench: Bench, max_receives: int) -> None:
    """A message is delivered maxReceiveCount times; the next receive finds it in the dead-letter queue instead."""
    source, dead = bench.pair(max_receives=max_receives)
    bench.send(source, "bad")
    for _ in range(max_receives):
        assert bench.bodies(source, visibility_timeout=0) == ["bad"]
    assert bench.counts(dead) == (0, 0, 0)
    bench.send(source, "good")
    assert bench.bodies(source) == ["good"]
    assert bench.counts(dead) == (1, 0, 0)


def test_what_a_dead_letter_keeps(bench: Bench) -> None:
    """Id, body, attributes, age and receive count stay; the source's ARN is added."""
    source, dead = bench.pair()
    bench.send(source, "bad")
    [before] = bench.take(source, visibility_timeout=0)
    bench.wait(5)
    assert bench.bodies(source) == []
    [after] = bench.take(dead)
    assert (after.message_id, after.body) == (before.message_id, "bad")
    assert after.attributes["DeadLetterQueueSourceArn"] == source.arn
    assert after.attributes["ApproximateReceiveCount"] == "2"
    for name in ("SentTimestamp", "ApproximateFirstReceiveTimestamp"):
        assert after.attributes[name] == before.attributes[name]


def test_age_in_a_dead_letter_queue(bench: Bench) -> None:
    """A standard dead letter expires by the age it had; a FIFO one is as new when it arrives."""
    source, dead = bench.pair(MessageRetentionPeriod="60")
    fifo_source, fifo_dead = bench.pair(fifo=True, MessageRetentionPeriod="60")
    bench.send(source, "bad")
    bench.send(fifo_source, "bad", group="g")
    bench.wait(50)
    for queue in (source, fifo_source):
        bench.take(queue, visibility_timeout=0)
        bench.take(queue)
    bench.wait(10)
    assert (bench.counts(dead), bench.counts(fifo_dead)) == ((0, 0, 0), (1, 0, 0))


def test_fifo_group_goes_on_after_a_dead_letter(bench: Bench) -> None:
    """The next message of the group is delivered by the very receive that moves the one before it."""
    source, dead = bench.pair(fifo=True)
    bench.send(source, "bad", "good", group="g")
    bench.take(source, 1, visibility_timeout=0)
    assert bench.bodies(source, 1) == ["good"]
    [moved] = bench.take(dead)
    assert (moved.body, moved.attributes["MessageGroupId"]) == ("bad", "g")


def test_counts_of_each_queue(bench: Bench) -> None:
    """A chain of dead-letter queues counts receives queue by queue."""
    last = bench.queue("last")
    policy = msgspec.json.encode({"deadLetterTargetArn": last.arn, "maxReceiveCount": 2}).decode()
    middle = bench.queue("middle", RedrivePolicy=policy)
    policy = msgspec.json.encode({"deadLetterTargetArn": middle.arn, "maxReceiveCount": 1}).decode()
    first = bench.queue("first", RedrivePolicy=policy)
    bench.send(first, "x")
    for queue, expected in ((first, ["x"]), (first, []), (middle, ["x"]), (middle, ["x"]), (middle, []), (last, ["x"])):
        assert bench.bodies(queue, visibility_timeout=0) == expected


def test_deleted_dead_letter_queue(bench: Bench) -> None:
    """Without its dead-letter queue a message stays where it is, received as often as it may be."""
    source, dead = bench.pair()
    bench.send(source, "bad")
    bench.broker.delete_queue(dead)
    for _ in range(3):
        assert bench.bodies(source, visibility_timeout=0) == ["bad"]


def test_sources(bench: Bench) -> None:
    """The sources of a dead-letter queue are listed by name, page by page."""
    source, dead = bench.pair()
    bench.queue("other", RedrivePolicy=source.attributes["RedrivePolicy"])
    page, token = bench.broker.dead_letter_sources(dead, max_results=1)
    rest, end = bench.broker.dead_letter_sources(dead, max_results=1, token=token)
    assert [queue.name for queue in page + rest] == ["other", "source"]
    assert end is None


@pytest.mark.parametrize(
    ("allow", "accepted"),
    [
        ({"redrivePermission": "allowAll"}, True),
        ({"redrivePermission": "denyAll"}, False),
        ({"redrivePermission": "byQueue", "sourceQueueArns": ["arn:aws:sqs:us-east-1:000000000000:source"]}, True),
        ({"redrivePermission": "byQueue", "sourceQueueArns": ["arn:aws:sqs:us-east-1:000000000000:else"]}, False),
    ],
)
def test_redrive_allow_policy(bench: Bench, allow: dict[str, object], *, accepted: bool) -> None:
    """A dead-letter queue says who may use it."""
    dead = bench.queue("dead", RedriveAllowPolicy=msgspec.json.encode(allow).decode())
    policy = msgspec.json.encode({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 1}).decode()
    if accepted:
        bench.queue("source", RedrivePolicy=policy)
    else:
        with pytest.raises(BrokerError) as caught:
            bench.queue("source", RedrivePolicy=policy)
        assert caught.value.code == "InvalidParameterValue"


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("not json", "InvalidAttributeValue"),
        ("[]", "InvalidAttributeValue"),
        ('{"maxReceiveCount": 1}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": "DEAD"}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": "DEAD", "maxReceiveCount": null}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": "DEAD", "maxReceiveCount": ""}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": 1, "maxReceiveCount": 1}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": "DEAD", "maxReceiveCount": 0}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": "DEAD", "maxReceiveCount": 1001}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": "DEAD", "maxReceiveCount": "x"}', "InvalidParameterValue"),
        ('{"deadLetterTargetArn": "DEAD", "maxReceiveCount": 1, "more": 1}', "InvalidAttributeValue"),
        (
            '{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:nowhere", "maxReceiveCount": 1}',
            "InvalidParameterValue",
        ),
        (
            '{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:f.fifo", "maxReceiveCount": 1}',
            "InvalidParameterValue",
        ),
    ],
)
def test_wrong_policies(bench: Bench, policy: str, code: str) -> None:
    """A redrive policy must be complete, in range, and name a queue of the same type."""
    dead = bench.queue("dead")
    bench.queue("f.fifo")
    with pytest.raises(BrokerError) as caught:
        bench.queue("source", RedrivePolicy=policy.replace("DEAD", dead.arn).replace("ARN:", dead.arn[:-4]))
    assert caught.value.code == code


# -- move tasks --------------------------------------------------------------------------------------------------


def test_back_to_where_they_came_from(bench: Bench) -> None:
    """Without a destination every message goes back to its own source, as a new message."""
    source, dead = bench.pair()
    other = bench.queue("other", RedrivePolicy=source.attributes["RedrivePolicy"])
    kill(bench, source, "s")
    kill(bench, other, "o")
    ids = {message.id for message in dead.messages.values()}
    bench.wait(5)
    bench.broker.start_move(dead.arn)
    [moved] = bench.take(source)
    assert bench.bodies(other) == ["o"]
    assert moved.body == "s"
    assert moved.message_id not in ids
    assert moved.attributes["ApproximateReceiveCount"] == "1"
    assert moved.attributes["SentTimestamp"] == str(int(bench.now * 1000))
    [task] = bench.broker.list_moves(dead.arn)
    assert (task.status, task.approximate_number_of_messages_moved, task.task_handle) == ("COMPLETED", 2, None)


def test_to_a_destination(bench: Bench) -> None:
    """A destination takes everything, also what never came from a source."""
    source, dead = bench.pair()
    kill(bench, source, "a")
    bench.send(dead, "sent by hand")
    target = bench.queue("target")
    bench.broker.start_move(dead.arn, target.arn)
    assert bench.bodies(target) == ["a", "sent by hand"]


def test_unknown_origin(bench: Bench) -> None:
    """A message that came from nowhere stops a task without a destination, and stays."""
    _, dead = bench.pair()
    bench.send(dead, "sent by hand")
    bench.broker.start_move(dead.arn)
    [task] = bench.broker.list_moves(dead.arn)
    assert (task.status, task.failure_reason) == ("FAILED", "CouldNotDetermineMessageSource")
    assert bench.bodies(dead) == ["sent by hand"]


def test_rate(bench: Bench) -> None:
    """A rate is kept: so many messages in every second."""
    source, dead = bench.pair()
    kill(bench, source, *map(str, range(10)))
    handle = bench.broker.start_move(dead.arn, None, 2)
    for seconds, moved in ((0.4, 0), (0.1, 1), (0.5, 2), (1.0, 4)):
        bench.wait(seconds)
        assert bench.counts(source) == (moved, 0, 0)
    [task] = bench.broker.list_moves(dead.arn)
    assert (task.status, task.task_handle, task.approximate_number_of_messages_to_move) == ("RUNNING", handle, 10)
    assert task.max_number_of_messages_per_second == 2


def test_large_task_goes_in_chunks(bench: Bench) -> None:
    """A task without a rate moves a chunk at a time."""
    source, dead = bench.pair()
    kill(bench, source, *map(str, range(CHUNK + 10)))
    bench.broker.start_move(dead.arn)
    assert bench.counts(source)[0] == CHUNK
    bench.wait(0.01)
    assert bench.counts(source)[0] == CHUNK + 10


def test_cancel(bench: Bench) -> None:
    """A cancelled task moves nothing any longer; what was moved stays; it cannot be cancelled twice."""
    source, dead = bench.pair()
    kill(bench, source, *map(str, range(5)))
    handle = bench.broker.start_move(dead.arn, None, 1)
    bench.wait(2)
    assert bench.broker.cancel_move(handle).approximate_number_of_messages_moved == 2
    bench.wait(10)
    assert (bench.counts(source), bench.counts(dead)) == ((2, 0, 0), (3, 0, 0))
    with pytest.raises(BrokerError) as caught:
        bench.broker.cancel_move(handle)
    assert caught.value.kind == "UnsupportedOperation"


@pytest.mark.parametrize(
    ("handle", "code", "status"),
    [
        ("foobared", "InvalidParameterValue", 400),
        ("\xe9", "InvalidParameterValue", 400),
        ("e30=", "InvalidParameterValue", 400),
        (move_handle("arn:aws:sqs:us-east-1:000000000000:none"), "ResourceNotFoundException", 404),
        (move_handle("no arn"), "ResourceNotFoundException", 404),
        (move_handle("arn:aws:sqs:us-east-1:000000000000:q"), "ResourceNotFoundException", 404),
    ],
)
def test_task_handles_of_no_task(bench: Bench, handle: str, code: str, status: int) -> None:
    """A text that is no task handle is an invalid value; one of another queue or of another task finds nothing."""
    bench.queue("q")
    with pytest.raises(BrokerError) as caught:
        bench.broker.cancel_move(handle)
    assert (caught.value.code, caught.value.status) == (code, status)


@pytest.mark.parametrize("named", [True, False])
def test_a_destination_that_is_deleted_while_a_task_runs(bench: Bench, named: bool) -> None:
    """The task fails with the reason, named or found by its messages, and what it did not move stays."""
    source, dead = bench.pair()
    target = bench.queue("target") if named else source
    kill(bench, source, *map(str, range(5)))
    bench.queue("also", RedrivePolicy=source.attributes["RedrivePolicy"])
    bench.broker.start_move(dead.arn, target.arn if named else None, 1)
    bench.wait(2)
    bench.broker.tick(dead)
    bench.broker.delete_queue(target)
    bench.wait(1)
    [task] = bench.broker.list_moves(dead.arn)
    assert (task.status, task.failure_reason) == ("FAILED", "AWS.SimpleQueueService.NonExistentQueue")
    assert task.approximate_number_of_messages_moved == 2
    assert bench.counts(dead) == (3, 0, 0)


def test_refused_tasks(bench: Bench) -> None:
    """One task at a time, out of a dead-letter queue, to another queue of its type, at a rate that SQS knows."""
    source, dead = bench.pair()
    fifo = bench.queue("f.fifo")
    kill(bench, source, "a", "b")
    refused: dict[str, list[tuple[Any, ...]]] = {
        "InvalidParameterValue": [(source.arn, None, None), (dead.arn, fifo.arn, None), (dead.arn, dead.arn, None),
                                  (dead.arn, None, 0), (dead.arn, None, 501)],
        "ResourceNotFoundException": [("arn:aws:sqs:us-east-1:000000000000:no", None, None), (dead.arn, "no", None)],
        "MissingParameter": [(None, None, None)],
    }  # fmt: skip
    for code, calls in refused.items():
        for call in calls:
            with pytest.raises(BrokerError) as caught:
                bench.broker.start_move(*call)
            assert caught.value.code == code
    bench.broker.start_move(dead.arn, None, 1)
    with pytest.raises(BrokerError) as caught:
        bench.broker.start_move(dead.arn)
    assert caught.value.code == "InvalidParameterValue"


def test_latest_tasks(bench: Bench) -> None:
    """The newest task comes first; one is listed unless more are asked for; ten are remembered."""
    source, dead = bench.pair()
    for number in range(KEPT + 2):
        kill(bench, source, *map(str, range(number + 1)))
        bench.broker.start_move(dead.arn)
        bench.wait(1)
        bench.broker.list_moves(dead.arn)
        bench.broker.purge_queue(source)
        bench.wait(60)
    assert [task.approximate_number_of_messages_to_move for task in bench.broker.list_moves(dead.arn)] == [KEPT + 2]
    assert len(bench.broker.list_moves(dead.arn, 10)) == KEPT
    with pytest.raises(BrokerError):
        bench.broker.list_moves(dead.arn, 11)


def test_queue_deleted_under_a_task(bench: Bench) -> None:
    """A task fails when its queue is deleted, and holds up no other."""
    source, dead = bench.pair()
    kill(bench, source, "a", "b")
    bench.broker.start_move(dead.arn, None, 1)
    bench.broker.delete_queue(dead)
    bench.wait(1)
    bench.send(source, "c")
    assert bench.bodies(source) == ["c"]
    assert bench.broker.mover.active == []
