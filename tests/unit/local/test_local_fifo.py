"""FIFO queues: order and locks of groups, deduplication, sequence numbers, attempt ids."""

import pytest

from postroom.local import BrokerError, delivery
from postroom.local.shapes import Receive, Send
from unit.local.bench import Bench


def test_as_much_of_one_group_as_possible(bench: Bench) -> None:
    """A receive fills itself from one group, in order, before it turns to the next."""
    queue = bench.queue("q.fifo")
    for number in range(3):
        bench.send(queue, f"a{number}", group="a")
        bench.send(queue, f"b{number}", group="b")
    assert bench.bodies(queue, 4) == ["a0", "a1", "a2", "b0"]


def test_locked_while_in_flight(bench: Bench) -> None:
    """Nothing of a group comes while one of it is in flight; other groups are not held up."""
    queue = bench.queue("q.fifo")
    bench.send(queue, "a0", "a1", group="a")
    bench.send(queue, "b0", group="b")
    [a0] = bench.take(queue, 1)
    assert bench.bodies(queue) == ["b0"]
    assert bench.bodies(queue) == []
    bench.delete(queue, a0)
    assert bench.bodies(queue) == ["a1"]


def test_all_in_flight_must_go(bench: Bench) -> None:
    """What comes after several messages in flight waits for the last of them."""
    queue = bench.queue("q.fifo")
    bench.send(queue, "a", "b", "c", group="g")
    a, b = bench.take(queue, 2)
    bench.delete(queue, a)
    assert bench.bodies(queue) == []
    bench.delete(queue, b)
    assert bench.bodies(queue) == ["c"]


def test_back_in_its_place(bench: Bench) -> None:
    """Messages come again after their timeout in the order in which they were sent."""
    queue = bench.queue("q.fifo", VisibilityTimeout="10")
    bench.send(queue, "a", "b", "c", group="g")
    bench.take(queue, 2)
    bench.wait(10)
    assert bench.bodies(queue) == ["a", "b", "c"]


def test_nothing_overtakes_what_is_in_flight(bench: Bench) -> None:
    """The first of two given back may come again, the second may not before the first."""
    queue = bench.queue("q.fifo")
    bench.send(queue, "a", "b", "c", group="g")
    a, b = bench.take(queue, 2)
    bench.back(queue, b)
    assert bench.bodies(queue) == []
    bench.back(queue, a)
    [a, b] = bench.take(queue, 2)
    bench.back(queue, a)
    assert bench.bodies(queue) == ["a"]
    assert bench.bodies(queue) == []
    bench.delete(queue, b)
    assert bench.bodies(queue) == []


def test_groups_take_turns(bench: Bench) -> None:
    """A group with a backlog does not keep the others waiting."""
    queue = bench.queue("q.fifo")
    bench.send(queue, *(f"a{number}" for number in range(30)), group="a")
    bench.send(queue, "b0", group="b")
    bench.delete(queue, *bench.take(queue))
    assert bench.bodies(queue, 1) == ["b0"]


def test_a_delay_keeps_the_order(bench: Bench) -> None:
    """A group with a delayed first message waits for it; a new delay holds for what was never received."""
    queue = bench.queue("q.fifo", DelaySeconds="60", VisibilityTimeout="100")
    bench.send(queue, "a", group="g")
    bench.wait(30)
    bench.broker.set_attributes(queue, {"DelaySeconds": "0"})
    assert bench.counts(queue) == (1, 0, 0)
    bench.broker.set_attributes(queue, {"DelaySeconds": "40"})
    bench.send(queue, "b", group="g")
    assert bench.bodies(queue) == []
    bench.wait(10)
    assert bench.bodies(queue) == ["a"]
    bench.wait(30)
    assert bench.counts(queue) == (1, 1, 0)


def test_a_new_delay_leaves_received_messages_alone(bench: Bench) -> None:
    """What was received once is not delayed again."""
    queue = bench.queue("q.fifo", VisibilityTimeout="1")
    bench.send(queue, "a", group="g")
    bench.take(queue)
    bench.broker.set_attributes(queue, {"DelaySeconds": "900"})
    bench.wait(1)
    assert bench.bodies(queue) == ["a"]


def test_deleted_while_it_lay(bench: Bench) -> None:
    """Messages that expire in the middle of a group leave no gap that stops it."""
    queue = bench.queue("q.fifo", MessageRetentionPeriod="60", VisibilityTimeout="100")
    bench.send(queue, "a", group="g")
    bench.wait(30)
    bench.send(queue, "b", group="g")
    bench.take(queue, 1)
    bench.wait(30)
    assert bench.bodies(queue) == ["b"]


def test_deduplicated_for_five_minutes(bench: Bench) -> None:
    """The same id within five minutes answers as the first send did and stores nothing, also after a delete."""
    queue = bench.queue("q.fifo")
    first = bench.broker.send(queue, Send(message_body="x", message_group_id="g", message_deduplication_id="1"))
    bench.delete(queue, *bench.take(queue))
    bench.wait(299.9)
    again = bench.broker.send(queue, Send(message_body="y", message_group_id="h", message_deduplication_id="1"))
    assert (again.message_id, again.sequence_number) == (first.message_id, first.sequence_number)
    assert bench.counts(queue) == (0, 0, 0)
    bench.wait(0.1)
    third = bench.broker.send(queue, Send(message_body="y", message_group_id="h", message_deduplication_id="1"))
    assert third.message_id != first.message_id
    assert bench.bodies(queue) == ["y"]


def test_deduplicated_by_content(bench: Bench) -> None:
    """With content-based deduplication the body is the id, unless the send brings one."""
    queue = bench.queue("q.fifo", ContentBasedDeduplication="true")
    bench.send(queue, "x", "x", "y", group="g")
    bench.send(queue, "x", group="g", message_deduplication_id="own")
    assert bench.bodies(queue) == ["x", "y", "x"]


def test_deduplicated_in_the_group(bench: Bench) -> None:
    """In the scope of message groups two groups may use one id."""
    queue = bench.queue("q.fifo", DeduplicationScope="messageGroup", FifoThroughputLimit="perMessageGroupId")
    for group in ("a", "b", "a"):
        bench.broker.send(queue, Send(message_body=group, message_group_id=group, message_deduplication_id="1"))
    assert sorted(bench.bodies(queue)) == ["a", "b"]


def test_sequence_numbers_grow(bench: Bench) -> None:
    """Sequence numbers have 20 digits and grow, across groups."""
    queue = bench.queue("q.fifo")
    numbers = []
    for number in range(5):
        request = Send(message_body="x", message_group_id=str(number % 2), message_deduplication_id=str(number))
        numbers.append(bench.broker.send(queue, request).sequence_number or "")
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 5
    assert {len(number) for number in numbers} == {20}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Send(message_body="x", message_deduplication_id="1"), "MissingParameter"),
        (Send(message_body="x", message_group_id="g"), "InvalidParameterValue"),
        (Send(message_body="x", message_group_id="g g", message_deduplication_id="1"), "InvalidParameterValue"),
        (Send(message_body="x", message_group_id="g", message_deduplication_id="x" * 129), "InvalidParameterValue"),
        (
            Send(message_body="x", message_group_id="g", message_deduplication_id="1", delay_seconds=1),
            "InvalidParameterValue",
        ),
    ],
)
def test_refused_sends(bench: Bench, request_: Send, code: str) -> None:
    """A group and a deduplication id are needed, within their limits; a delay of its own is not possible."""
    queue = bench.queue("q.fifo")
    with pytest.raises(BrokerError) as caught:
        bench.broker.send(queue, request_)
    assert caught.value.code == code


def test_deduplication_belongs_to_fifo(bench: Bench) -> None:
    """A standard queue refuses a deduplication id."""
    with pytest.raises(BrokerError, match="not valid for this queue type"):
        bench.broker.send(bench.queue(), Send(message_body="x", message_deduplication_id="1"))


def test_expired_handle(bench: Bench) -> None:
    """After the timeout the handle neither deletes nor changes anything, and says so."""
    queue = bench.queue("q.fifo", VisibilityTimeout="1")
    bench.send(queue, "a", group="g")
    [message] = bench.take(queue)
    bench.wait(1)
    with pytest.raises(BrokerError, match="has expired"):
        bench.delete(queue, message)
    with pytest.raises(BrokerError, match="has expired"):
        bench.back(queue, message, seconds=5)
    assert bench.bodies(queue) == ["a"]


def attempt(name: str, visibility: int | None = None) -> Receive:
    """Make a receive with an attempt id."""
    return Receive(max_number_of_messages=2, receive_request_attempt_id=name, visibility_timeout=visibility)


def test_attempt_repeated(bench: Bench) -> None:
    """The same attempt id returns the same messages and handles, uncounted, and starts their timeout again."""
    queue = bench.queue("q.fifo", VisibilityTimeout="30")
    bench.send(queue, "a", "b", "c", group="g")
    first = bench.broker.receive(queue, attempt("1"))
    bench.wait(20)
    again = bench.broker.receive(queue, attempt("1"))
    assert [(each.body, each.receipt_handle) for each in again] == [(each.body, each.receipt_handle) for each in first]
    bench.wait(20)
    assert bench.counts(queue) == (1, 2, 0)
    bench.wait(10)
    assert bench.take(queue)[0].attributes["ApproximateReceiveCount"] == "2"


@pytest.mark.parametrize("change", ["delete", "back", "extend", "expire"])
def test_attempt_after_a_change(bench: Bench, change: str) -> None:
    """Once one of its messages was deleted, changed or came back, an attempt id is like a new one."""
    queue = bench.queue("q.fifo", VisibilityTimeout="30")
    bench.send(queue, "a", "b", group="g")
    bench.send(queue, "z", group="other")
    a, b = bench.broker.receive(queue, attempt("1"))
    if change == "delete":
        bench.delete(queue, a)
    elif change == "expire":
        bench.wait(30)
    else:
        bench.back(queue, b, seconds=0 if change == "back" else 60)
    handles = [each.receipt_handle for each in bench.broker.receive(queue, attempt("1"))]
    assert a.receipt_handle not in handles
    assert b.receipt_handle not in handles


def test_attempt_is_forgotten(bench: Bench) -> None:
    """An attempt id counts for five minutes."""
    queue = bench.queue("q.fifo")
    bench.send(queue, "a", "b", group="g")
    bench.send(queue, "z", group="other")
    bench.broker.receive(queue, attempt("1", 600))
    bench.wait(301)
    assert [each.body for each in bench.broker.receive(queue, attempt("1"))] == ["z"]


def test_in_flight_limit_is_silent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit a FIFO queue returns nothing, without an error."""
    monkeypatch.setattr(delivery, "MAX_IN_FLIGHT", 1)
    queue = bench.queue("q.fifo")
    bench.send(queue, "a", group="a")
    bench.send(queue, "b", group="b")
    assert bench.bodies(queue) == ["a"]
    assert bench.bodies(queue) == []


def test_purge_starts_anew(bench: Bench) -> None:
    """A purge unlocks groups and forgets what was sent."""
    queue = bench.queue("q.fifo", ContentBasedDeduplication="true")
    bench.send(queue, "a", "b", group="g")
    [held] = bench.take(queue, 1)
    bench.broker.purge_queue(queue)
    bench.send(queue, "a", group="g")
    bench.delete(queue, held)
    assert bench.bodies(queue) == ["a"]


def test_groups_are_forgotten(bench: Bench) -> None:
    """A queue that saw many groups remembers none of those that are empty."""
    queue = bench.queue("q.fifo")
    for number in range(100):
        bench.send(queue, "x", group=str(number))
        bench.delete(queue, *bench.take(queue))
    assert queue.order._groups == {}  # type: ignore[attr-defined]
