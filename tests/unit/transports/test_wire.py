"""Both readers of SQS's answers give the same, whatever the answer holds."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postroom.transports.aws import wire
from postroom.transports.protocol import EntryFailure

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
attributes = st.dictionaries(
    texts,
    st.one_of(
        st.fixed_dictionaries({"DataType": st.just("String"), "StringValue": texts}),
        st.fixed_dictionaries({"DataType": st.just("Number.int"), "StringValue": st.integers().map(str)}),
        st.fixed_dictionaries({"DataType": st.just("Binary"), "BinaryValue": st.binary(max_size=20)}),
    ),
    max_size=4,
)
messages = st.fixed_dictionaries(
    {"MessageId": texts, "ReceiptHandle": texts, "Body": texts},
    optional={
        "Attributes": st.dictionaries(texts, texts, max_size=3),
        "MessageAttributes": attributes,
        "MD5OfBody": texts,
        "Novelty": st.one_of(st.none(), st.integers(), st.lists(texts, max_size=2)),
    },
)
receives = st.fixed_dictionaries({}, optional={"Messages": st.lists(messages, max_size=5), "Novelty": texts})
entries = st.lists(st.integers(min_value=0, max_value=9), unique=True, max_size=10)


def as_json(value: Any) -> bytes:
    """Write as SQS does: bytes in Base64."""
    return json.dumps(value, default=lambda data: base64.b64encode(data).decode()).encode()


@settings(max_examples=300)
@given(answer=receives)
def test_messages_are_read_alike(answer: dict[str, Any]) -> None:
    """From botocore's dictionaries and from the bytes come equal messages."""
    assert wire.decode_messages(as_json(answer), "orders") == wire.read_messages(answer, "orders")


@settings(max_examples=300)
@given(indexes=entries, data=st.data())
def test_batches_are_read_alike_and_name_every_entry(indexes: list[int], data: st.DataObject) -> None:
    """Whatever an answer confirms, refuses or forgets, each entry is confirmed or in the list, in order."""
    count = 10
    refused = data.draw(st.sets(st.sampled_from(indexes))) if indexes else set[int]()
    answer = {
        "Successful": [{"Id": str(index)} for index in indexes if index not in refused],
        "Failed": [{"Id": str(index), "Code": "C", "SenderFault": True, "Message": "m"} for index in refused],
    }
    failures = wire.read_failures(answer, count)
    assert wire.decode_failures(as_json(answer), count) == failures
    assert [failure.index for failure in failures] == sorted(set(range(count)) - (set(indexes) - refused))
    assert {failure.index for failure in failures if failure.code == "C"} == refused


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"5", b'"Messages"', b"{", b'{"Messages": [{}]}', b"\xff", b"<html>"]
)
def test_what_is_not_sqs_is_not_read(body: bytes) -> None:
    """It raises, so that the caller asks again, rather than to pass for an empty answer."""
    with pytest.raises((ValueError, LookupError, msgspec.DecodeError)):
        wire.decode_messages(body, "orders")


@pytest.mark.parametrize("value", ["!", "AP8", "AP8=AP8=", "ä"])
def test_binary_that_is_not_base64_is_not_read(value: str, caplog: pytest.LogCaptureFixture) -> None:
    """Half a binary value would be a wrong one. It is told, also of a message that is the only one of its receive."""
    answer = {"Messages": [{"MessageId": "1", "Body": None, "MessageAttributes": {"a": {"BinaryValue": value}}}]}
    assert wire.decode_messages(as_json(answer), "orders") == []
    (text,) = caplog.messages
    assert text.startswith("Left out 1 message of a receive from orders that cannot be read (")


@pytest.mark.parametrize(
    "odd",
    [
        {"MessageId": "2", "MessageAttributes": {"b": {"DataType": "Binary", "BinaryValue": "AQI"}}},
        {"MessageId": "2", "MessageAttributes": {"b": "secret"}},
        {"MessageId": "2", "MessageAttributes": {"b": None}},
        {"MessageId": "2", "Attributes": "secret"},
        {"Body": "secret"},
        "secret",
        None,
    ],
)
def test_one_odd_message_takes_no_other_with_it(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out and named in the log, without its contents."""
    answer = {"Messages": [{"MessageId": "1", "Body": "b"}, odd, {"MessageId": "3", "Body": "b"}]}
    assert [message.id for message in wire.decode_messages(as_json(answer), "orders")] == ["1", "3"]
    (text,) = caplog.messages
    assert text.startswith("Left out 1 message of a receive from orders that cannot be read (")
    assert "secret" not in text


def test_half_a_surrogate_pair_takes_no_message_with_it() -> None:
    """Some local servers store what is not Unicode. The decoder of the payload says what is wrong with such a body."""
    answer = {"Messages": [{"MessageId": "1", "Body": "\ud800"}, {"MessageId": "2", "Body": "b"}]}
    assert [message.body for message in wire.decode_messages(as_json(answer), "orders")] == ["\ud800", "b"]


def test_a_clean_batch_has_no_failures() -> None:
    """The list is empty; that is what the layers above look at."""
    answer = {"Successful": [{"Id": "0"}, {"Id": "1"}], "Failed": []}
    assert wire.decode_failures(as_json(answer), 2) == []
    assert wire.decode_failures(as_json(answer), 3) == [
        EntryFailure(2, wire.UNCONFIRMED, "SQS's answer does not name this entry")
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "m"}', "QueueDoesNotExist"),
        (b'{"__type": "Throttling"}', "Throttling"),
        (b"{}", ""),
        (b"", ""),
        (b"<html>", ""),
        (b"[1]", ""),
        (b'{"__type": 5}', ""),
    ],
)
def test_error_codes_are_found(body: bytes, code: str) -> None:
    """Without one the status has to do."""
    assert wire.error_code_of(body) == code


@pytest.mark.parametrize(("seconds", "whole"), [(0, 0), (0.001, 1), (1, 1), (19.5, 20), (20.0, 20), (43_200.0, 43_200)])
def test_seconds_are_rounded_up(seconds: float, whole: int) -> None:
    """A message must not come back before the time that was asked for."""
    assert wire.whole_seconds(seconds) == whole


def test_a_message_of_sqs_is_what_a_message_is_encoded_as() -> None:
    """The structs carry SQS's own names."""
    (message,) = wire.decode_messages(as_json({"Messages": [{"MessageId": "1", "Body": "b"}]}), "orders")
    assert msgspec.to_builtins(message) == {
        "MessageId": "1",
        "Body": "b",
        "ReceiptHandle": "",
        "MessageAttributes": {},
        "Attributes": {},
        "queue": "orders",
    }
