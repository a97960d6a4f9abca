"""Deduplication: accepted twice, delivered once, within the scope of queue or group."""

import hashlib
from typing import Any

from conformance.sqs.checks import MakeQueue, bodies, nothing, page, receive, receive_one

EXACTLY_ONCE = "FIFO-queues-exactly-once-processing"
BY_ID = "using-messagededuplicationid-property"


def send(sqs: Any, url: str, body: str, identifier: str | None = None, group: str = "g") -> dict[str, Any]:
    """Send a message, with a deduplication id or without."""
    own = {"MessageDeduplicationId": identifier} if identifier else {}
    answer: dict[str, Any] = sqs.send_message(QueueUrl=url, MessageBody=body, MessageGroupId=group, **own)
    assert answer["MessageId"]
    return answer


@page(BY_ID)
def test_same_id(either_sqs: Any, make_queue: MakeQueue) -> None:
    """A second message with the same id is accepted and not delivered."""
    url = make_queue(fifo=True)
    send(either_sqs, url, "first", "d")
    send(either_sqs, url, "second", "d")
    assert bodies(receive(either_sqs, url)) == ["first"]
    assert nothing(either_sqs, url)


@page("API_SendMessage")
def test_same_id_after_the_delete(either_sqs: Any, make_queue: MakeQueue) -> None:
    """The id is remembered after its message was received and deleted."""
    url = make_queue(fifo=True)
    send(either_sqs, url, "first", "d")
    either_sqs.delete_message(QueueUrl=url, ReceiptHandle=receive_one(either_sqs, url)["ReceiptHandle"])
    send(either_sqs, url, "second", "d")
    assert nothing(either_sqs, url)


@page(EXACTLY_ONCE)
def test_same_content(either_sqs: Any, fifo: str) -> None:
    """By content, a second message with the same body is a duplicate, whatever its attributes."""
    send(either_sqs, fifo, "x")
    attributes = {"a": {"DataType": "String", "StringValue": "b"}}
    either_sqs.send_message(QueueUrl=fifo, MessageBody="x", MessageGroupId="g", MessageAttributes=attributes)
    send(either_sqs, fifo, "y")
    assert bodies(receive(either_sqs, fifo)) == ["x", "y"]


@page("API_SendMessage")
def test_id_of_content_is_its_hash(sqs: Any, fifo: str) -> None:
    """The id made from content is the body's SHA-256: returned, and a duplicate when sent as an id."""
    digest = hashlib.sha256("Größe".encode()).hexdigest()
    send(sqs, fifo, "Größe")
    send(sqs, fifo, "another body", digest)
    messages = receive(sqs, fifo, AttributeNames=["MessageDeduplicationId"])
    assert [m["Attributes"]["MessageDeduplicationId"] for m in messages] == [digest]


@page("API_SendMessage")
def test_id_overrides_content(sqs: Any, fifo: str) -> None:
    """An id takes the place of the content's: the same body with two ids is two messages."""
    send(sqs, fifo, "x", "one")
    send(sqs, fifo, "x", "two")
    assert bodies(receive(sqs, fifo)) == ["x", "x"]


@page("API_CreateQueue")
def test_scope_of_the_queue(either_sqs: Any, make_queue: MakeQueue) -> None:
    """With the scope of the queue, which is the default, another group does not make another message."""
    url = make_queue(fifo=True)
    send(either_sqs, url, "first", "d", group="g")
    send(either_sqs, url, "second", "d", group="h")
    assert bodies(receive(either_sqs, url)) == ["first"]


@page("API_CreateQueue")
def test_scope_of_the_group(either_sqs: Any, make_queue: MakeQueue) -> None:
    """With the scope of the message group each group has its own ids."""
    limit = {"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
    url = make_queue(fifo=True, **limit)
    for body, group in (("first", "g"), ("second", "h"), ("third", "g")):
        send(either_sqs, url, body, "d", group=group)
    assert sorted(bodies(receive(either_sqs, url))) == ["first", "second"]


@page("API_CreateQueue")
def test_scope_of_the_group_by_content(sqs: Any, make_queue: MakeQueue) -> None:
    """The scope of the group holds for deduplication by content, too."""
    url = make_queue(fifo=True, DeduplicationScope="messageGroup", ContentBasedDeduplication="true")
    for group in ("g", "h", "g"):
        send(sqs, url, "x", group=group)
    assert bodies(receive(sqs, url)) == ["x", "x"]


@page(EXACTLY_ONCE)
def test_duplicates_in_one_batch(sqs: Any, fifo: str) -> None:
    """Duplicates within one batch all succeed, and one of them is delivered."""
    entries = [{"Id": str(n), "MessageBody": "x", "MessageGroupId": "g"} for n in range(3)]
    answer = sqs.send_message_batch(QueueUrl=fifo, Entries=entries)
    assert len(answer["Successful"]) == 3
    assert bodies(receive(sqs, fifo)) == ["x"]
    assert nothing(sqs, fifo)


@page(EXACTLY_ONCE)
def test_queues_do_not_share_ids(sqs: Any, make_queue: MakeQueue) -> None:
    """An id is known to its queue only."""
    one, other = make_queue(fifo=True), make_queue(fifo=True)
    send(sqs, one, "x", "d")
    send(sqs, other, "x", "d")
    assert bodies(receive(sqs, other)) == ["x"]


@page("API_SetQueueAttributes")
def test_content_can_be_switched_on(sqs: Any, make_queue: MakeQueue) -> None:
    """Deduplication by content can be switched on for an existing queue."""
    url = make_queue(fifo=True)
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"ContentBasedDeduplication": "true"})
    for _ in range(2):
        send(sqs, url, "x")
    assert bodies(receive(sqs, url)) == ["x"]
