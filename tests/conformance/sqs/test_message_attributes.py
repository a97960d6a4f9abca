"""Message attributes: types, names, digests, and the filter of a receive."""

from typing import Any

import pytest

from conformance.sqs.checks import (
    MakeQueue,
    binary,
    md5_of_attributes,
    nothing,
    page,
    receive_one,
    refused,
    text,
)
from conformance.sqs.wire import Wire

ALL_KINDS = {
    "string": text("Größe 🎉 <&>"),
    "number": text("-12.5e3", "Number"),
    "binary": binary(bytes(range(256))),
    "string.label": text("x", "String.iso-date"),
    "number_label": text("7", "Number.int"),
    "binary-label": binary(b"GIF", "Binary.gif"),
}


@page("sqs-message-metadata")
def test_all_kinds_come_back(either_sqs: Any, queue: str) -> None:
    """String, Number and Binary, with custom labels or without, come back as they were sent."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=ALL_KINDS)
    assert receive_one(either_sqs, queue, MessageAttributeNames=["All"])["MessageAttributes"] == ALL_KINDS


@page("sqs-message-metadata")
def test_digest(either_sqs: Any, queue: str) -> None:
    """Both sides give the documented digest: sorted names, lengths, types, a byte for the transport type, values."""
    sent = either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=ALL_KINDS)
    message = receive_one(either_sqs, queue, MessageAttributeNames=["All"])
    assert sent["MD5OfMessageAttributes"] == message["MD5OfMessageAttributes"] == md5_of_attributes(ALL_KINDS)


@page("sqs-message-metadata", recorded=True)
def test_known_digest(sqs: Any, queue: str) -> None:
    """Three short attributes have the digest that SQS itself gave for them."""
    attributes = {"Help.Me": text("Me"), "Hello": text("There"), "General": text("Kenobi")}
    sent = sqs.send_message(QueueUrl=queue, MessageBody="msg", MessageAttributes=attributes)
    assert sent["MD5OfMessageAttributes"] == "4c360f3fdafd970e05fae2f149d997f5"


FILTERS = {
    "one": (["bar.one"], {"bar.one"}),
    "several": (["bar.one", "foo"], {"bar.one", "foo"}),
    "unknown": (["nobody"], set()),
    "unknown-too": (["nobody", "foo"], {"foo"}),
    "case": (["FOO"], set()),
    "prefix": (["bar.*"], {"bar.one", "bar.two", "barely"}),
    "prefix-without-dot": (["fo.*"], {"foo"}),
    "two-prefixes": (["fo.*", "bar.t.*"], {"foo", "bar.two"}),
    "all": (["All"], {"bar.one", "bar.two", "barely", "foo"}),
    "pattern-of-all": ([".*"], {"bar.one", "bar.two", "barely", "foo"}),
    "all-and-more": (["All", "foo"], {"bar.one", "bar.two", "barely", "foo"}),
    "no-pattern": (["ba"], set()),
}


@page("API_ReceiveMessage")
@pytest.mark.parametrize("case", FILTERS)
def test_filter(either_sqs: Any, queue: str, case: str) -> None:
    """Names, prefixes and All choose what is returned, and the digest covers what is returned."""
    names, expected = FILTERS[case]
    attributes = {name: text(name) for name in ("bar.one", "bar.two", "barely", "foo")}
    either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    message = receive_one(either_sqs, queue, MessageAttributeNames=names)
    found = message.get("MessageAttributes", {})
    assert found.keys() == expected
    assert message.get("MD5OfMessageAttributes") == (md5_of_attributes(found) if expected else None)


@page("quotas-messages")
def test_ten_attributes(sqs: Any, queue: str) -> None:
    """A message may have ten attributes."""
    attributes = {f"name-{n}": text(str(n)) for n in range(10)}
    sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    assert receive_one(sqs, queue, MessageAttributeNames=["All"])["MessageAttributes"] == attributes


@page("quotas-messages")
def test_eleven_attributes(sqs: Any, queue: str) -> None:
    """An eleventh attribute is refused."""
    attributes = {f"name-{n}": text(str(n)) for n in range(11)}
    refusal = refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    assert refusal.code == "InvalidParameterValue"


@page("sqs-message-metadata")
@pytest.mark.parametrize(
    "name",
    [
        "AWS.mine",
        "aWs.mine",
        "Amazon.mine",
        "AMAZON.mine",
        ".start",
        "end.",
        "two..dots",
        "x" * 257,
        "with space",
        "with!bang",
        "with/slash",
        "",
    ],
    ids=lambda name: name[:12] or "empty",
)
def test_forbidden_names(sqs: Any, queue: str, name: str) -> None:
    """Reserved prefixes, misplaced periods, other characters and longer names are refused."""
    refusal = refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes={name: text("x")})
    assert refusal.code == "InvalidParameterValue"
    assert nothing(sqs, queue)


@page("sqs-message-metadata")
@pytest.mark.parametrize("name", ["x" * 256, "a", "A-Z_a.z-0.9", "AWSmine", "Amazonian"], ids=lambda name: name[:12])
def test_allowed_names(sqs: Any, queue: str, name: str) -> None:
    """A name has up to 256 letters, digits, underscores, hyphens and periods."""
    sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes={name: text("x")})
    assert receive_one(sqs, queue, MessageAttributeNames=[name])["MessageAttributes"] == {name: text("x")}


@page("sqs-message-metadata")
def test_names_are_case_sensitive(sqs: Any, queue: str) -> None:
    """Names that differ in case only are two names."""
    attributes = {"name": text("1"), "NAME": text("2")}
    sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    assert receive_one(sqs, queue, MessageAttributeNames=["All"])["MessageAttributes"] == attributes


@page("API_MessageAttributeValue", recorded=True)
@pytest.mark.parametrize(
    "value",
    [text(""), binary(b""), text("", "Number"), {"DataType": "String"}, {"DataType": "Binary"}, {"DataType": "Number"}],
    ids=["string", "binary", "number", "no-string", "no-binary", "no-number"],
)
def test_empty_values(sqs: Any, queue: str, value: dict[str, Any]) -> None:
    """A value must not be empty or missing."""
    refusal = refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes={"name": value})
    assert refusal.code == "InvalidParameterValue"


@page("API_MessageAttributeValue")
@pytest.mark.parametrize("kind", ["Colour", "string", "Str", "", "String" + "." + "x" * 256], ids=lambda kind: kind[:8])
def test_forbidden_types(sqs: Any, queue: str, kind: str) -> None:
    """A type is String, Number or Binary, in this case, with a label perhaps, and has up to 256 characters."""
    refusal = refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes={"name": text("1", kind)})
    assert refusal.code == "InvalidParameterValue"


@page("API_MessageAttributeValue")
def test_type_and_value_must_agree(sqs: Any, queue: str) -> None:
    """A Number needs a StringValue, a Binary needs a BinaryValue."""
    for value in (binary(b"1", "Number"), text("x", "Binary"), binary(b"x", "String")):
        refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes={"name": value})


@page("API_MessageAttributeValue")
def test_type_is_required(wire: Wire, queue: str) -> None:
    """An attribute without a type is refused."""
    attributes = {"name": {"StringValue": "x"}}
    reply = wire.json("SendMessage", {"QueueUrl": queue, "MessageBody": "x", "MessageAttributes": attributes})
    assert 400 <= reply.status < 500


@page("sqs-message-metadata")
@pytest.mark.parametrize("number", ["many", "1,5", "0x10", "NaN", "--1"])
def test_number_must_be_one(sqs: Any, queue: str, number: str) -> None:
    """A Number is a positive or negative integer or floating-point number."""
    refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes={"name": text(number, "Number")})


@page("sqs-message-metadata")
@pytest.mark.parametrize("number", ["0", "-1", "3.14159", "1e10", "-2.5E-7", "9" * 38, "1e126"])
def test_numbers_that_are(sqs: Any, queue: str, number: str) -> None:
    """A Number may have 38 digits of precision and lie between 10^-128 and 10^126."""
    sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes={"name": text(number, "Number")})
    assert receive_one(sqs, queue, MessageAttributeNames=["All"])["MessageAttributes"]["name"]["DataType"] == "Number"


@page("API_MessageAttributeValue")
@pytest.mark.parametrize("character", ["\x00", "\x08", "\x1f", "\uffff"], ids=ascii)
def test_forbidden_characters(sqs: Any, queue: str, character: str) -> None:
    """A String value has the same restrictions on its content as a body."""
    attributes = {"name": text(f"a{character}b")}
    refused(sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)


@page("API_SendMessage")
def test_attributes_in_fifo_queues(sqs: Any, make_queue: MakeQueue) -> None:
    """A FIFO queue carries attributes as a standard queue does."""
    url = make_queue(fifo=True, ContentBasedDeduplication="true")
    sent = sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="g", MessageAttributes=ALL_KINDS)
    assert sent["MD5OfMessageAttributes"] == md5_of_attributes(ALL_KINDS)
    assert receive_one(sqs, url, MessageAttributeNames=["All"])["MessageAttributes"] == ALL_KINDS
