"""What a message may contain, and the digests of it, computed here a second time from the documentation."""

import hashlib
import struct

import pytest

from postroom.local import BrokerError
from postroom.local.shapes import AttributeValue, Receive, Send
from unit.local.bench import Bench, text


def documented_digest(attributes: dict[str, AttributeValue]) -> str:
    """Compute the MD5 of message attributes as the developer guide describes it."""

    def part(raw: bytes) -> bytes:
        return struct.pack("!i", len(raw)) + raw

    encoded = b""
    for name, value in sorted(attributes.items()):
        binary = value.data_type.partition(".")[0] == "Binary"
        raw = value.binary_value if binary else (value.string_value or "").encode()
        encoded += part(name.encode()) + part(value.data_type.encode()) + bytes([2 if binary else 1]) + part(raw or b"")
    return hashlib.md5(encoded, usedforsecurity=False).hexdigest()


ATTRIBUTES = {
    "tenantId": text("tenant-ä"),
    "count": AttributeValue(data_type="Number.int", string_value="-1.5e10"),
    "blob": AttributeValue(data_type="Binary.png", binary_value=b"\0\xff"),
    "a.b": text("dotted"),
}


@pytest.mark.parametrize("body", ["x", "é🎉", "\t\n\r\ud7ff\ue000\ufffd\U00010000", "x" * 1_048_576])
def test_md5_of_the_body(bench: Bench, body: str) -> None:
    """Sending and receiving tell the MD5 of the body in UTF-8."""
    queue = bench.queue()
    sent = bench.broker.send(queue, Send(message_body=body))
    [received] = bench.take(queue)
    assert received.body == body
    assert sent.md5_of_body == received.md5_of_body == hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()


def test_md5_of_attributes(bench: Bench) -> None:
    """Sending tells the digest of all attributes, receiving that of the returned ones."""
    queue = bench.queue(VisibilityTimeout="0")
    sent = bench.broker.send(queue, Send(message_body="x", message_attributes=ATTRIBUTES))
    assert sent.md5_of_attributes == documented_digest(ATTRIBUTES)
    assert bench.take(queue)[0].md5_of_message_attributes == documented_digest(ATTRIBUTES)
    [some] = bench.broker.receive(queue, Receive(message_attribute_names=["count", "missing"]))
    assert some.message_attributes == {"count": ATTRIBUTES["count"]}
    assert some.md5_of_message_attributes == documented_digest({"count": ATTRIBUTES["count"]})
    [none] = bench.broker.receive(queue, Receive())
    assert (none.message_attributes, none.md5_of_message_attributes) == ({}, None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["All"], {"a.b", "blob", "count", "tenantId"}),
        ([".*"], {"a.b", "blob", "count", "tenantId"}),
        (["a.*"], {"a.b"}),
        (["t.*", "blob"], {"tenantId", "blob"}),
        (["tenantid"], set()),
    ],
)
def test_names_of_attributes(bench: Bench, names: list[str], expected: set[str]) -> None:
    """Attributes are chosen by name, by prefix, or all; names are case-sensitive."""
    queue = bench.queue()
    bench.send(queue, "x", message_attributes=ATTRIBUTES)
    [received] = bench.broker.receive(queue, Receive(message_attribute_names=names))
    assert set(received.message_attributes) == expected


def test_trace_header(bench: Bench) -> None:
    """The trace header travels as a system attribute, has a digest of its own, and yields to one of the message."""
    queue = bench.queue()
    own = {"AWSTraceHeader": text("Root=1-own")}
    sent = bench.broker.send(queue, Send(message_body="x", message_system_attributes=own), trace="Root=1-request")
    assert sent.md5_of_system_attributes == documented_digest(own)
    bench.broker.send(queue, Send(message_body="y"), trace="Root=1-request")
    headers = [message.attributes["AWSTraceHeader"] for message in bench.take(queue)]
    assert headers == ["Root=1-own", "Root=1-request"]


@pytest.mark.parametrize("body", ["\0", "\x0b", "a\x1f", "\ufffe", "\uffff", "\ud800"])
def test_characters_that_no_xml_has(bench: Bench, body: str) -> None:
    """A character outside of XML 1.0 is refused, in a body and, with another code, in an attribute."""
    queue = bench.queue()
    requests = {
        "InvalidMessageContents": Send(message_body=body),
        "InvalidParameterValue": Send(message_body="x", message_attributes={"a": text(body)}),
    }
    for code, request in requests.items():
        with pytest.raises(BrokerError) as caught:
            bench.broker.send(queue, request)
        assert caught.value.code == code


@pytest.mark.parametrize("body", ["", None])
def test_empty_body(bench: Bench, body: str | None) -> None:
    """A body has at least one character."""
    with pytest.raises(BrokerError) as caught:
        bench.broker.send(bench.queue(), Send(message_body=body))
    assert caught.value.code == "MissingParameter"


def test_size_counts_bytes_of_everything(bench: Bench) -> None:
    """Body, names, types and values of attributes count, in bytes of UTF-8; the trace header does not."""
    queue = bench.queue(MaximumMessageSize="1024")
    attributes = {"n": AttributeValue(data_type="Binary", binary_value=b"x" * 10)}  # 1 + 6 + 10
    trace = {"AWSTraceHeader": text("Root=1")}
    fits = "é" * 503 + "x"
    bench.send(queue, fits, message_attributes=attributes, message_system_attributes=trace)
    with pytest.raises(BrokerError, match="shorter than 1024 bytes"):
        bench.send(queue, fits + "x", message_attributes=attributes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", text("x")),
        ("x" * 257, text("x")),
        (".a", text("x")),
        ("a.", text("x")),
        ("a..b", text("x")),
        ("a b", text("x")),
        ("AWS.x", text("x")),
        ("amazon.x", text("x")),
        ("a", text("")),
        ("a", AttributeValue(string_value="x")),
        ("a", AttributeValue(data_type="Text", string_value="x")),
        ("a", AttributeValue(data_type="String." + "x" * 250, string_value="x")),
        ("a", AttributeValue(data_type="String.\ud800", string_value="x")),
        ("a", AttributeValue(data_type="Number", string_value="twelve")),
        ("a", AttributeValue(data_type="Number", string_value="nan")),
        ("a", AttributeValue(data_type="Binary", string_value="x")),
        ("a", AttributeValue(data_type="Binary", binary_value=b"")),
        ("a", AttributeValue(data_type="String", string_value="x", binary_value=b"x")),
        ("a", AttributeValue(data_type="String", string_list_values=["x"])),
    ],
)
def test_wrong_attributes(bench: Bench, name: str, value: AttributeValue) -> None:
    """Attributes have names, types and values within their rules, or the send is refused."""
    with pytest.raises(BrokerError) as caught:
        bench.broker.send(bench.queue(), Send(message_body="x", message_attributes={name: value}))
    assert caught.value.sender_fault
    assert caught.value.code in {"InvalidParameterValue", "AWS.SimpleQueueService.UnsupportedOperation"}


@pytest.mark.parametrize("name", ["a", "x" * 256, "AWSome", "a.b-c_1", "String"])
def test_right_names(bench: Bench, name: str) -> None:
    """Names that look odd but keep the rules are taken."""
    queue = bench.queue()
    bench.send(queue, "x", message_attributes={name: text("v")})
    assert list(bench.take(queue)[0].message_attributes) == [name]


def test_ten_attributes(bench: Bench) -> None:
    """A message has at most ten attributes."""
    queue = bench.queue()
    bench.send(queue, "x", message_attributes={f"a{n}": text("x") for n in range(10)})
    with pytest.raises(BrokerError, match=r"\[11\] exceeds"):
        bench.send(queue, "x", message_attributes={f"a{n}": text("x") for n in range(11)})


@pytest.mark.parametrize(
    "attributes",
    [{"Other": text("x")}, {"AWSTraceHeader": AttributeValue(data_type="Binary", binary_value=b"x")}],
)
def test_wrong_system_attributes(bench: Bench, attributes: dict[str, AttributeValue]) -> None:
    """The only system attribute of a send is the trace header, a String."""
    with pytest.raises(BrokerError):
        bench.broker.send(bench.queue(), Send(message_body="x", message_system_attributes=attributes))
