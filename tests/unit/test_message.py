"""A message shows its attributes as text, says what is missing, and never shows its body."""

from typing import Any

import pytest

from postroom import ConfigurationError, Message, MessageAttribute, MissingAttribute, OutgoingMessage


def message(**attributes: MessageAttribute) -> Message:
    """Make a message with attributes."""
    return Message(id="m1", body="the tenant's secret", message_attributes=attributes, queue="orders")


def test_attributes_are_text() -> None:
    """String and Number attributes are there under their names, labelled types included."""
    made = message(
        tenantId=MessageAttribute("String", string_value="a"),
        weight=MessageAttribute("Number.float", string_value="1.5"),
    )
    assert dict(made.attributes) == {"tenantId": "a", "weight": "1.5"}
    assert "tenantId" in made.attributes
    assert made.attributes.get("region", "nowhere") == "nowhere"
    assert len(made.attributes) == 2


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        (None, "is missing"),
        (MessageAttribute("String", string_value=""), "is empty"),
        (MessageAttribute("Binary", binary_value=b"a"), "is Binary"),
    ],
)
def test_an_attribute_that_is_not_text_says_so(attribute: MessageAttribute | None, told: str) -> None:
    """The error names the attribute, the problem and what is there, and reads well as it is."""
    made = message(**({} if attribute is None else {"tenantId": attribute}), other=MessageAttribute("String", "x"))
    with pytest.raises(MissingAttribute, match=told) as caught:
        made.attributes["tenantId"]
    assert str(caught.value).startswith("message attribute 'tenantId'")
    assert "'other'" in str(caught.value)
    assert caught.value.message_id == "m1"
    assert isinstance(caught.value, KeyError)
    assert "tenantId" not in made.attributes


def test_the_body_is_not_in_the_repr() -> None:
    """A log line with a message in it shows no tenant's data."""
    assert "secret" not in repr(message())


def test_system_attributes_have_names() -> None:
    """Times in seconds since the epoch, counts as numbers, absent ones as None."""
    made = Message(
        id="m1",
        body="",
        system_attributes={
            "ApproximateReceiveCount": "3",
            "SentTimestamp": "1700000000123",
            "ApproximateFirstReceiveTimestamp": "1700000001000",
            "MessageGroupId": "g",
            "MessageDeduplicationId": "d",
            "AWSTraceHeader": "Root=1-2-3",
        },
    )
    assert made.receive_count == 3
    assert made.sent_at == 1_700_000_000.123
    assert made.first_received_at == 1_700_000_001.0
    assert (made.group_id, made.deduplication_id, made.trace_header) == ("g", "d", "Root=1-2-3")
    bare = Message(id="m2", body="")
    assert (bare.receive_count, bare.sent_at, bare.group_id, bare.trace_header) == (1, None, None, None)


@pytest.mark.parametrize(
    ("value", "count", "seconds"),
    [
        ("2", 2, 0.002),
        ("2.0", 2, 0.002),
        (" 3 ", 3, 0.003),
        (4, 4, 0.004),
        ("", 1, None),
        (None, 1, None),
        ("NaN", 1, None),
        ("Infinity", 1, None),
        ("1e999", 1, None),
        ("many", 1, None),
        ("0", 1, 0.0),
        ("-5", 1, -0.005),
        ([], 1, None),
    ],
)
def test_odd_system_attributes_are_read_as_far_as_they_make_sense(
    value: Any, count: int, seconds: float | None
) -> None:
    """Some local servers write a fraction, nothing or a number in place of a text; reading a message never raises."""
    odd = Message(id="m", body="", system_attributes={"ApproximateReceiveCount": value, "SentTimestamp": value})
    assert (odd.receive_count, odd.sent_at) == (count, seconds)
    assert f"receive_count={count}" in repr(odd)


def test_a_message_is_frozen() -> None:
    """What was received cannot be changed."""
    with pytest.raises(AttributeError):
        message().body = "other"  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"body": {"n": 1}}, r"body=.*takes a text.*got dict"),
        ({"body": b"x"}, "got bytes"),
        ({"body": "x", "message_attributes": {"tenantId": "acme"}}, r"MessageAttribute\(string_value=.*got str"),
        ({"body": "x", "message_attributes": None}, "got NoneType"),
    ],
)
def test_a_message_to_send_is_checked_where_it_is_written(options: dict[str, Any], told: str) -> None:
    """And not in the middle of a send, by an attribute that an object of the user's has not."""
    with pytest.raises(ConfigurationError, match=told):
        OutgoingMessage(**options)
