"""Messages come out of SNS's and EventBridge's envelopes with their bodies and attributes."""

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from postroom.errors import DecodeError, PayloadError, ValidationError
from postroom.message import Message, MessageAttribute
from postroom.payloads import context_from_attributes, decoder_for, unwrap_eventbridge, unwrap_sns
from support.shop import Tenant

SECRET = "s3cr3t-4711"


@dataclass
class Order:
    """The payload."""

    amount: Decimal


def message(body: object) -> Message:
    """Make a message as SQS hands it out, with an attribute of its own."""
    return Message(
        id="m-1",
        body=body if isinstance(body, str) else json.dumps(body),
        receipt_handle="r-1",
        message_attributes={"outer": MessageAttribute(string_value="x")},
        system_attributes={"MessageGroupId": "g"},
        queue="orders",
    )


SNS: dict[str, Any] = {
    "Type": "Notification",
    "MessageId": "950a823d-501f-5137-a9a3-d0246f6094b6",
    "TopicArn": "arn:aws:sns:eu-west-1:123456789012:orders",
    "Message": '{"amount": 99.990}',
    "Timestamp": "2026-11-23T10:00:00.000Z",
    "SignatureVersion": "1",
    "MessageAttributes": {
        "tenantId": {"Type": "String", "Value": "tenant-a"},
        "shard": {"Type": "Number", "Value": "7"},
        "tags": {"Type": "String.Array", "Value": '["a", null]'},
        "raw": {"Type": "Binary", "Value": "AAEC"},
    },
}

EVENT: dict[str, Any] = {
    "version": "0",
    "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
    "detail-type": "Order created",
    "source": "shop.orders",
    "account": "123456789012",
    "time": "2026-11-23T10:00:00Z",
    "region": "eu-west-1",
    "resources": [],
    "detail": {"tenantId": "tenant-a"},
}


def test_an_sns_notification_is_unwrapped() -> None:
    """The body is SNS's Message, the attributes its MessageAttributes; the rest is the outer message's."""
    inner = unwrap_sns(message(SNS))
    assert inner.body == '{"amount": 99.990}'
    assert inner.message_attributes == {
        "tenantId": MessageAttribute(string_value="tenant-a"),
        "shard": MessageAttribute(data_type="Number", string_value="7"),
        "tags": MessageAttribute(data_type="String.Array", string_value='["a", null]'),
        "raw": MessageAttribute(data_type="Binary", binary_value=b"\x00\x01\x02"),
    }
    assert (inner.id, inner.receipt_handle, inner.queue, inner.group_id) == ("m-1", "r-1", "orders", "g")


def test_an_sns_notification_without_attributes_has_none() -> None:
    """The outer message's attributes do not stand in for them."""
    bare = {name: value for name, value in SNS.items() if name != "MessageAttributes"}
    assert unwrap_sns(message(bare)).message_attributes == {}


def test_an_eventbridge_event_is_unwrapped() -> None:
    """The body is the detail, character by character; what the event says of itself are the attributes."""
    event = json.dumps(EVENT).replace('{"tenantId": "tenant-a"}', '{"amount":  1.10000000000000000001}')
    inner = unwrap_eventbridge(message(event))
    assert inner.body == '{"amount":  1.10000000000000000001}'
    assert dict(inner.attributes) == {
        "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
        "source": "shop.orders",
        "account": "123456789012",
        "region": "eu-west-1",
        "time": "2026-11-23T10:00:00Z",
        "detail-type": "Order created",
    }
    assert inner.receipt_handle == "r-1"


def test_context_and_payload_are_read_from_inside() -> None:
    """``unwrap=`` is all that a consumer behind a topic needs."""
    received = message(SNS)
    assert context_from_attributes(Tenant, unwrap=unwrap_sns)(received) == Tenant("tenant-a")
    assert decoder_for(Order, unwrap=unwrap_sns)(received) == Order(Decimal("99.990"))


def test_envelopes_nest() -> None:
    """An event that went through a topic is unwrapped twice."""
    wrapped = message({**SNS, "Message": json.dumps(EVENT)})
    assert unwrap_eventbridge(unwrap_sns(wrapped)).body == '{"tenantId": "tenant-a"}'


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("{not json", DecodeError, "not an SNS notification"),
        ("[]", ValidationError, "expected object, got array"),
        (f'{{"amount": "{SECRET}"}}', ValidationError, "raw message delivery"),
        ({**SNS, "Type": "Other"}, ValidationError, r"\$\.Type"),
        ({**SNS, "Message": {"amount": SECRET}}, ValidationError, r"\$\.Message: expected str, got object"),
        (
            {**SNS, "MessageAttributes": {SECRET: {"Type": "String"}}},
            ValidationError,
            r"missing required field 'Value'",
        ),
        ({**SNS, "MessageAttributes": {SECRET: {"Type": "Binary", "Value": "?"}}}, ValidationError, "not base64"),
        ({**SNS, "MessageAttributes": {SECRET: {"Type": "Binary", "Value": "é"}}}, ValidationError, "not base64"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_sns_notification_is_refused(body: object, error: type[PayloadError], text: str) -> None:
    """The error says what was expected and where, and asks for raw delivery; it does not quote the body."""
    with pytest.raises(error, match=text) as caught:
        unwrap_sns(message(body))
    assert SECRET not in str(caught.value)
    assert caught.value.message_id == "m-1"


def test_an_event_of_moto_is_unwrapped() -> None:
    """It names no account."""
    event = {name: value for name, value in EVENT.items() if name != "account"}
    inner = unwrap_eventbridge(message(json.dumps(event)))
    assert inner.body == '{"tenantId": "tenant-a"}'
    assert set(inner.message_attributes) == {"id", "source", "region", "time", "detail-type"}


@pytest.mark.parametrize(
    "body", ["", "5", {**EVENT, "detail-type": 5}, {"detail": SECRET}, SNS], ids=lambda v: str(v)[:20]
)
def test_what_is_no_eventbridge_event_is_refused(body: object) -> None:
    """The error says what was expected, and does not quote the body."""
    with pytest.raises(PayloadError, match="not an EventBridge event") as caught:
        unwrap_eventbridge(message(body))
    assert SECRET not in str(caught.value)
