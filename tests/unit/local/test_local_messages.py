"""Standard queues: send, receive, delete, visibility, delay, retention, handles and limits."""

import pytest

from postroom.local import BrokerError, delivery
from postroom.local.receiving import MAX_IN_FLIGHT
from postroom.local.shapes import ChangeVisibilityEntry, DeleteEntry, Receive, SendEntry
from unit.local.bench import START, Bench


def test_received_once_until_the_timeout(bench: Bench) -> None:
    """A received message is hidden for the visibility timeout and comes again after it, not before."""
    queue = bench.queue(VisibilityTimeout="30")
    bench.send(queue, "a")
    assert bench.bodies(queue) == ["a"]
    bench.wait(29.999)
    assert bench.bodies(queue) == []
    bench.wait(0.001)
    assert bench.bodies(queue) == ["a"]


def test_oldest_first(bench: Bench) -> None:
    """Messages come in the order in which they became available; after its timeout one is back in its place."""
    queue = bench.queue(VisibilityTimeout="10")
    bench.send(queue, "a", "b", "c")
    assert bench.bodies(queue, 2) == ["a", "b"]
    bench.send(queue, "d")
    bench.wait(10)
    assert bench.bodies(queue) == ["a", "b", "c", "d"]


def test_given_back_goes_to_the_end(bench: Bench) -> None:
    """A message that its receiver gave back goes behind those that wait, and stays there."""
    queue = bench.queue(VisibilityTimeout="10")
    bench.send(queue, "a", "b", "c")
    [first] = bench.take(queue, 1)
    bench.broker.change_visibility(queue, first.receipt_handle, 0)
    assert bench.bodies(queue) == ["b", "c", "a"]
    bench.wait(10)
    assert bench.bodies(queue) == ["b", "c", "a"]


def test_counts(bench: Bench) -> None:
    """The three approximate counts tell exactly where the messages are."""
    queue = bench.queue()
    bench.send(queue, "a", "b", "c")
    bench.send(queue, "later", delay_seconds=5)
    bench.take(queue, 1)
    assert bench.counts(queue) == (2, 1, 1)
    bench.wait(5)
    assert bench.counts(queue) == (3, 1, 0)
    bench.wait(25)
    assert bench.counts(queue) == (4, 0, 0)


def test_attributes_of_a_receive(bench: Bench) -> None:
    """Receive counts and timestamps tell the story of the message; times are milliseconds since 1970."""
    queue = bench.queue(VisibilityTimeout="1")
    bench.send(queue, "a")
    bench.wait(2)
    first = bench.take(queue)[0].attributes
    bench.wait(3)
    second = bench.take(queue)[0].attributes
    assert (first["ApproximateReceiveCount"], second["ApproximateReceiveCount"]) == ("1", "2")
    assert first["SentTimestamp"] == second["SentTimestamp"] == str(int(START * 1000))
    assert second["ApproximateFirstReceiveTimestamp"] == str(int((START + 2) * 1000))


def test_only_what_was_asked_for(bench: Bench) -> None:
    """A receive that names one system attribute gets that one; one that names none gets none."""
    queue = bench.queue(VisibilityTimeout="0")
    bench.send(queue, "a")
    named = bench.broker.receive(queue, Receive(attribute_names=["SentTimestamp"]))
    assert list(named[0].attributes) == ["SentTimestamp"]
    assert bench.broker.receive(queue, Receive())[0].attributes == {}


def test_deleted_for_good(bench: Bench) -> None:
    """A deleted message never comes again, and deleting it twice is no error."""
    queue = bench.queue(VisibilityTimeout="1")
    bench.send(queue, "a")
    [message] = bench.take(queue)
    bench.delete(queue, message)
    bench.delete(queue, message)
    bench.wait(100)
    assert bench.bodies(queue) == []
    assert queue.messages == {}


def test_stale_handle_deletes_nothing(bench: Bench) -> None:
    """Once another consumer received the message, the old handle answers success and deletes nothing."""
    queue = bench.queue(VisibilityTimeout="1")
    bench.send(queue, "a")
    [old] = bench.take(queue)
    bench.wait(1)
    [new] = bench.take(queue)
    bench.delete(queue, old)
    assert bench.counts(queue) == (0, 1, 0)
    bench.delete(queue, new)
    assert bench.counts(queue) == (0, 0, 0)


def test_expired_but_latest_handle_deletes(bench: Bench) -> None:
    """After the timeout, as long as it was not received since, the handle still deletes the message."""
    queue = bench.queue(VisibilityTimeout="1")
    bench.send(queue, "a", "b")
    [first] = bench.take(queue, 1)
    bench.wait(1)
    bench.delete(queue, first)
    assert bench.bodies(queue) == ["b"]


@pytest.mark.parametrize("handle", ["garbage", "AQEB" + "A" * 32, "AQEB" + "é" * 32, "x" * 36])
def test_garbage_handle(bench: Bench, handle: str) -> None:
    """What is no receipt handle is refused as such."""
    queue = bench.queue()
    with pytest.raises(BrokerError) as caught:
        bench.broker.delete(queue, handle)
    assert caught.value.kind == "ReceiptHandleIsInvalid"


def test_handle_of_another_queue(bench: Bench) -> None:
    """A handle of one queue is none in another."""
    queue, other = bench.queue("a"), bench.queue("b")
    bench.send(queue, "x")
    [message] = bench.take(queue)
    with pytest.raises(BrokerError) as caught:
        bench.broker.delete(other, message.receipt_handle)
    assert caught.value.kind == "ReceiptHandleIsInvalid"


def test_visibility_counts_from_the_change(bench: Bench) -> None:
    """A changed timeout counts from the change, shorter or longer than what was left."""
    queue = bench.queue(VisibilityTimeout="30")
    bench.send(queue, "a")
    [message] = bench.take(queue)
    bench.back(queue, message, seconds=100)
    bench.wait(99)
    assert bench.bodies(queue) == []
    bench.back(queue, message, seconds=2)
    bench.wait(1.5)
    assert bench.bodies(queue) == []
    bench.wait(0.5)
    assert bench.bodies(queue) == ["a"]


def test_changed_timeout_is_for_this_receive_only(bench: Bench) -> None:
    """The next receive hides the message for the queue's own timeout again."""
    queue = bench.queue(VisibilityTimeout="10")
    bench.send(queue, "a")
    bench.back(queue, *bench.take(queue), seconds=500)
    bench.wait(500)
    bench.take(queue)
    bench.wait(10)
    assert bench.bodies(queue) == ["a"]


def test_twelve_hours_in_all(bench: Bench) -> None:
    """No change may hide a message for longer than twelve hours after it was received."""
    queue = bench.queue()
    bench.send(queue, "a")
    [message] = bench.take(queue, visibility_timeout=43_200)
    bench.wait(3_600)
    with pytest.raises(BrokerError, match="Total VisibilityTimeout"):
        bench.back(queue, message, seconds=43_200 - 3_599)
    bench.back(queue, message, seconds=43_200 - 3_600)
    bench.wait(43_200 - 3_600)
    assert bench.bodies(queue) == ["a"]


def test_given_back_is_not_in_flight(bench: Bench) -> None:
    """A timeout of 0 gives the message back at once; its handle then changes nothing any longer."""
    queue = bench.queue()
    bench.send(queue, "a")
    [message] = bench.take(queue)
    bench.back(queue, message)
    with pytest.raises(BrokerError) as caught:
        bench.back(queue, message, seconds=10)
    assert caught.value.kind == "MessageNotInflight"
    assert bench.bodies(queue) == ["a"]


def test_extended_after_the_timeout(bench: Bench) -> None:
    """The latest handle hides a message again after its timeout, and it comes once after that."""
    queue = bench.queue(VisibilityTimeout="1")
    bench.send(queue, "a", "b")
    [message] = bench.take(queue, 1)
    bench.wait(1)
    bench.back(queue, message, seconds=10)
    assert bench.counts(queue) == (1, 1, 0)
    assert bench.bodies(queue, visibility_timeout=100) == ["b"]
    bench.wait(10)
    assert bench.bodies(queue) == ["a"]
    assert bench.bodies(queue) == []


def test_receive_with_timeout_zero(bench: Bench) -> None:
    """A receive with a visibility timeout of 0 counts, returns each message once, and hides none."""
    queue = bench.queue()
    bench.send(queue, "a", "b")
    assert bench.bodies(queue, visibility_timeout=0) == ["a", "b"]
    assert bench.counts(queue) == (2, 0, 0)
    assert bench.take(queue, 1)[0].attributes["ApproximateReceiveCount"] == "2"


@pytest.mark.parametrize(("own", "expected"), [(None, 7), (0, 0), (3, 3)])
def test_delay(bench: Bench, own: int | None, expected: int) -> None:
    """The queue's delay holds for messages that have none of their own."""
    queue = bench.queue(DelaySeconds="7")
    bench.send(queue, "a", delay_seconds=own)
    if expected:
        bench.wait(expected - 0.01)
        assert bench.bodies(queue) == []
        bench.wait(0.01)
    assert bench.bodies(queue) == ["a"]


def test_new_delay_is_for_new_messages(bench: Bench) -> None:
    """On a standard queue a changed delay leaves alone what is there already."""
    queue = bench.queue(DelaySeconds="100")
    bench.send(queue, "old")
    bench.broker.set_attributes(queue, {"DelaySeconds": "0"})
    bench.send(queue, "new")
    assert bench.bodies(queue) == ["new"]


def test_retention(bench: Bench) -> None:
    """A message is gone after the retention period, wherever it is by then."""
    queue = bench.queue(MessageRetentionPeriod="60", VisibilityTimeout="1000", DelaySeconds="900")
    bench.send(queue, "delayed")
    bench.send(queue, "lying", "flying", delay_seconds=0)
    bench.take(queue, 1)
    bench.wait(59)
    assert bench.counts(queue) == (1, 1, 1)
    bench.wait(1)
    assert bench.counts(queue) == (0, 0, 0)
    assert queue.messages == {}


def test_shorter_retention_holds_at_once(bench: Bench) -> None:
    """A changed retention period holds for the messages that are there."""
    queue = bench.queue(MessageRetentionPeriod="3600")
    bench.send(queue, "a")
    bench.wait(120)
    bench.broker.set_attributes(queue, {"MessageRetentionPeriod": "60"})
    assert bench.counts(queue) == (0, 0, 0)


def test_in_flight_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit a short poll is refused, a long poll gets nothing; a delete makes room."""
    assert MAX_IN_FLIGHT == 120_000
    monkeypatch.setattr(delivery, "MAX_IN_FLIGHT", 12)
    queue = bench.queue()
    bench.send(queue, *map(str, range(20)))
    taken = bench.take(queue) + bench.take(queue)
    assert len(taken) == 12
    with pytest.raises(BrokerError) as caught:
        bench.take(queue)
    assert caught.value.kind == "OverLimit"
    assert bench.broker.receive(queue, Receive(wait_time_seconds=1)) == []
    bench.delete(queue, taken[0])
    assert bench.bodies(queue) == ["12"]


def test_batch_of_sends_fails_in_part(bench: Bench) -> None:
    """Each entry of a batch is accepted or refused on its own, in order."""
    queue = bench.queue(MaximumMessageSize="1024")
    entries = [
        SendEntry(id="good", message_body="a"),
        SendEntry(id="large", message_body="x" * 1025),
        SendEntry(id="late", message_body="b", delay_seconds=901),
        SendEntry(id="fine", message_body="c"),
    ]
    result = bench.broker.send_batch(queue, entries)
    assert [sent.id for sent in result.sent] == ["good", "fine"]
    assert [(failed.id, failed.code, failed.sender_fault) for failed in result.failed] == [
        ("large", "InvalidParameterValue", True),
        ("late", "InvalidParameterValue", True),
    ]
    assert bench.bodies(queue) == ["a", "c"]


def test_batch_of_deletes_fails_in_part(bench: Bench) -> None:
    """A bad handle fails its own entry only; two entries for one message both succeed."""
    queue = bench.queue()
    bench.send(queue, "a")
    [message] = bench.take(queue)
    handles = {"a": message.receipt_handle, "bad": "nonsense", "again": message.receipt_handle}
    entries = [DeleteEntry(id=name, receipt_handle=handle) for name, handle in handles.items()]
    result = bench.broker.delete_batch(queue, entries)
    assert [done.id for done in result.done] == ["a", "again"]
    assert [(failed.id, failed.code) for failed in result.failed] == [("bad", "ReceiptHandleIsInvalid")]


def test_batch_of_changes_fails_in_part(bench: Bench) -> None:
    """A timeout out of range fails its own entry only."""
    queue = bench.queue()
    bench.send(queue, "a", "b")
    first, second = bench.take(queue)
    entries = [
        ChangeVisibilityEntry(id="1", receipt_handle=first.receipt_handle, visibility_timeout=0),
        ChangeVisibilityEntry(id="2", receipt_handle=second.receipt_handle, visibility_timeout=43_201),
    ]
    result = bench.broker.change_visibility_batch(queue, entries)
    assert ([done.id for done in result.done], [failed.id for failed in result.failed]) == (["1"], ["2"])
    assert bench.bodies(queue) == ["a"]


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([], "EmptyBatchRequest"),
        ([str(n) for n in range(11)], "TooManyEntriesInBatchRequest"),
        (["a", "a"], "BatchEntryIdsNotDistinct"),
        (["a b"], "InvalidBatchEntryId"),
        (["x" * 81], "InvalidBatchEntryId"),
    ],
)
def test_batch_refused_as_a_whole(bench: Bench, ids: list[str], kind: str) -> None:
    """Wrong sizes and wrong ids refuse the whole batch; nothing of it takes effect."""
    queue = bench.queue()
    with pytest.raises(BrokerError) as caught:
        bench.broker.send_batch(queue, [SendEntry(id=each, message_body="x") for each in ids])
    assert caught.value.kind == kind
    assert bench.counts(queue) == (0, 0, 0)


def test_batch_too_long(bench: Bench) -> None:
    """The messages of a batch together may have 1 MiB, not a byte more."""
    queue = bench.queue()
    half = "x" * 524_288
    fits = [SendEntry(id=each, message_body=half) for each in "ab"]
    assert len(bench.broker.send_batch(queue, fits).sent) == 2
    with pytest.raises(BrokerError) as caught:
        bench.broker.send_batch(queue, [*fits, SendEntry(id="c", message_body="y")])
    assert caught.value.kind == "BatchRequestTooLong"


@pytest.mark.parametrize(
    "request_",
    [
        Receive(max_number_of_messages=0),
        Receive(max_number_of_messages=11),
        Receive(wait_time_seconds=21),
        Receive(visibility_timeout=-1),
        Receive(receive_request_attempt_id="a"),
    ],
)
def test_receive_out_of_range(bench: Bench, request_: Receive) -> None:
    """Parameters of a receive have their ranges; an attempt id belongs to FIFO queues."""
    queue = bench.queue()
    with pytest.raises(BrokerError) as caught:
        bench.broker.receive(queue, request_)
    assert caught.value.code == "InvalidParameterValue"


def test_purge(bench: Bench) -> None:
    """A purge removes everything, whatever its state; the next one must wait a minute."""
    queue = bench.queue()
    bench.send(queue, "a", "b")
    bench.send(queue, "c", delay_seconds=10)
    [held] = bench.take(queue, 1)
    bench.broker.purge_queue(queue)
    assert bench.counts(queue) == (0, 0, 0)
    bench.delete(queue, held)
    bench.wait(59)
    with pytest.raises(BrokerError) as caught:
        bench.broker.purge_queue(queue)
    assert caught.value.kind == "PurgeQueueInProgress"
    bench.wait(1)
    bench.broker.purge_queue(queue)
    bench.send(queue, "new")
    assert bench.bodies(queue) == ["new"]


def test_memory_does_not_grow_with_what_is_gone(bench: Bench) -> None:
    """Heaps of deadlines hold little more than the messages that live, however many came and went."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, "stays")
    [stays] = bench.take(queue)
    for _ in range(2_000):
        bench.send(queue, "goes")
        bench.delete(queue, *bench.take(queue))
        bench.back(queue, stays, seconds=40_000)
        bench.wait(0.01)
    assert len(queue._due) < 100
    assert len(queue._kept) < 100
