"""Sending: digests, sizes, allowed characters, what may accompany a message."""

from typing import Any

import pytest

from conformance.sqs.checks import MIB, MakeQueue, bodies, md5, nothing, page, receive, receive_one, refused, text
from conformance.sqs.wire import Wire

TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
TRACE_HEADER = {"AWSTraceHeader": {"DataType": "String", "StringValue": TRACE}}
ODD_BODIES = {
    "emoji": "🎉 party 👩‍👩‍👧‍👦 flag 🇪🇺",
    "scripts": "Größe naïve Ωμέγα привет 値 عربى",
    "edges": "\t\n\r \ud7ff\ue000\ufffd\U00010000\U0010ffff",
    "white space": "  leading and trailing \r\n\t ",
    "xml": "<a b='c'>&amp; \"quoted\" ]]></a>",
    "json": '{"a": ["b", null, 1.5e3], "c": "\\u00e9\\n"}',
    "form": "a=b&c=d+e%20f;g?h#i",
    "digits": "0012",
}


@page("API_SendMessage")
def test_answer(either_sqs: Any, queue: str) -> None:
    """SendMessage answers with an id and the body's MD5, and without a sequence number on a standard queue."""
    answer = either_sqs.send_message(QueueUrl=queue, MessageBody="hello")
    assert answer["MessageId"]
    assert answer["MD5OfMessageBody"] == "5d41402abc4b2a76b9719d911017c592"
    assert not {"SequenceNumber", "MD5OfMessageAttributes", "MD5OfMessageSystemAttributes"} & answer.keys()


@page("sqs-queue-message-identifiers")
def test_ids_are_unique(sqs: Any, queue: str) -> None:
    """Every message has an id of its own, equal bodies or not."""
    ids = {sqs.send_message(QueueUrl=queue, MessageBody="same")["MessageId"] for _ in range(20)}
    assert len(ids) == 20
    assert max(map(len, ids)) <= 100


@page("API_SendMessage")
@pytest.mark.parametrize("kind", ODD_BODIES)
def test_body_comes_back_unchanged(either_sqs: Any, queue: str, kind: str) -> None:
    """Every allowed character comes back as it was sent, and the MD5 is that of its UTF-8."""
    body = ODD_BODIES[kind]
    sent = either_sqs.send_message(QueueUrl=queue, MessageBody=body)
    message = receive_one(either_sqs, queue)
    assert message["Body"] == body
    assert sent["MD5OfMessageBody"] == message["MD5OfBody"] == md5(body)


@page("API_SendMessage")
@pytest.mark.parametrize("character", ["\x00", "\x08", "\x0b", "\x0c", "\x1f", "\ufffe", "\uffff"], ids=ascii)
def test_forbidden_characters(sqs: Any, queue: str, character: str) -> None:
    """A body with a character outside the allowed set raises InvalidMessageContents."""
    refusal = refused(sqs.send_message, QueueUrl=queue, MessageBody=f"before{character}after")
    assert isinstance(refusal.error, sqs.exceptions.InvalidMessageContents)
    assert (refusal.status, refusal.sender) == (400, True)


@page("API_SendMessage")
def test_lone_surrogate(wire: Wire, queue: str) -> None:
    """A lone surrogate, which JSON can spell, is outside the allowed set too."""
    reply = wire.json("SendMessage", b'{"QueueUrl": "%s", "MessageBody": "a\\ud800b"}' % queue.encode())
    assert 400 <= reply.status < 500


@page("quotas-messages", recorded=True)
def test_empty_body(either_sqs: Any, queue: str) -> None:
    """A message has at least one character: an empty body counts as a missing parameter."""
    assert refused(either_sqs.send_message, QueueUrl=queue, MessageBody="").code == "MissingParameter"


@page("quotas-messages")
def test_one_mebibyte(sqs: Any, queue: str) -> None:
    """A message may be 1,048,576 bytes."""
    body = "x" * MIB
    sqs.send_message(QueueUrl=queue, MessageBody=body)
    assert receive_one(sqs, queue)["Body"] == body


@page("quotas-messages", recorded=True)
def test_one_byte_more(either_sqs: Any, queue: str) -> None:
    """One byte more is refused as InvalidParameterValue."""
    refusal = refused(either_sqs.send_message, QueueUrl=queue, MessageBody="x" * (MIB + 1))
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)


@page("sqs-message-metadata")
def test_attributes_count(sqs: Any, queue: str) -> None:
    """Name, type and value of every attribute count towards the size."""
    attributes = {"name": text("value" * 10), "blob": {"DataType": "Binary.zip", "BinaryValue": b"\x00" * 100}}
    extra = len("name" + "String" + "value" * 10) + len("blob" + "Binary.zip") + 100
    sqs.send_message(QueueUrl=queue, MessageBody="x" * (MIB - extra), MessageAttributes=attributes)
    too_long = "x" * (MIB - extra + 1)
    refused(sqs.send_message, QueueUrl=queue, MessageBody=too_long, MessageAttributes=attributes)


@page("sqs-message-metadata")
def test_system_attributes_do_not_count(sqs: Any, queue: str) -> None:
    """The size of a message system attribute does not count towards the size of the message."""
    sqs.send_message(QueueUrl=queue, MessageBody="x" * MIB, MessageSystemAttributes=TRACE_HEADER)


@page("API_CreateQueue")
def test_queue_has_its_own_maximum(either_sqs: Any, make_queue: MakeQueue) -> None:
    """MaximumMessageSize bounds what its queue accepts."""
    url = make_queue(MaximumMessageSize=1024)
    either_sqs.send_message(QueueUrl=url, MessageBody="x" * 1024)
    refused(either_sqs.send_message, QueueUrl=url, MessageBody="x" * 1025)


@page("API_CreateQueue")
def test_size_is_counted_in_bytes(sqs: Any, make_queue: MakeQueue) -> None:
    """A character counts with as many bytes as it has in UTF-8."""
    url = make_queue(MaximumMessageSize=1024)
    sqs.send_message(QueueUrl=url, MessageBody="€" * 341)
    refused(sqs.send_message, QueueUrl=url, MessageBody="€" * 342)
    refused(sqs.send_message, QueueUrl=url, MessageBody="🎉" * 257)


@page("API_SendMessage")
@pytest.mark.parametrize("delay", [-1, 901])
def test_delay_is_bounded(either_sqs: Any, queue: str, delay: int) -> None:
    """DelaySeconds is 0 to 900."""
    refusal = refused(either_sqs.send_message, QueueUrl=queue, MessageBody="x", DelaySeconds=delay)
    assert refusal.code == "InvalidParameterValue"


@page("API_SendMessage")
def test_longest_delay(sqs: Any, queue: str) -> None:
    """A message may be delayed by 900 seconds."""
    sqs.send_message(QueueUrl=queue, MessageBody="x", DelaySeconds=900)
    assert nothing(sqs, queue)


@page("API_SendMessage")
def test_missing_queue(either_sqs: Any, queue: str) -> None:
    """Sending to a missing queue raises QueueDoesNotExist."""
    refusal = refused(either_sqs.send_message, QueueUrl=queue + "-never", MessageBody="x")
    assert isinstance(refusal.error, either_sqs.exceptions.QueueDoesNotExist)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.NonExistentQueue", 400)


@page("API_SendMessage", recorded=True)
def test_deduplication_id_on_a_standard_queue(sqs: Any, queue: str) -> None:
    """A deduplication id applies to FIFO queues only."""
    refusal = refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageDeduplicationId="d")
    assert refusal.code == "InvalidParameterValue"


@page("API_SendMessage", recorded=True)
def test_digest_of_the_trace_header(either_sqs: Any, queue: str) -> None:
    """A trace header has a digest of its own, computed as that of message attributes."""
    answer = either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageSystemAttributes=TRACE_HEADER)
    assert answer["MD5OfMessageSystemAttributes"] == "5ae4d5d7636402d80f4eb6d213245a88"
    assert "MD5OfMessageAttributes" not in answer


@page("API_SendMessage")
@pytest.mark.parametrize(
    "attributes",
    [{"Colour": TRACE_HEADER["AWSTraceHeader"]}, {"AWSTraceHeader": text("1", "Number")}],
    ids=["other-name", "other-type"],
)
def test_other_system_attributes(sqs: Any, queue: str, attributes: dict[str, Any]) -> None:
    """AWSTraceHeader is the only system attribute that can be sent, and it is a String."""
    refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageSystemAttributes=attributes)


@page("standard-queues")
def test_order_of_a_standard_queue(sqs: Any, queue: str) -> None:
    """A standard queue delivers each of a few messages, whatever their order."""
    for number in range(5):
        sqs.send_message(QueueUrl=queue, MessageBody=str(number))
    found: list[str] = []
    while len(found) < 5:
        came = bodies(receive(sqs, queue, 2))
        assert came
        found += came
    assert sorted(found) == ["0", "1", "2", "3", "4"]
