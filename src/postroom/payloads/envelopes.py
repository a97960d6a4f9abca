"""Messages that travel inside another service's envelope: Amazon SNS and Amazon EventBridge.

The functions take a message and return the one that was inside: its body, and attributes made of what the envelope
says. Everything else (id, receipt handle, system attributes, queue) stays the outer message's, and the outer
message's own attributes are dropped, so that nobody can mix the two. Give them to ``decoder_for(unwrap=...)`` and
``context_from_attributes(unwrap=...)``, or call them in a resolver of your own.

An envelope proves nothing: whoever may call SendMessage can write one. Let the queue's policy admit the topic or
the rule only.
"""

import base64
import binascii
from typing import Any, Final

import msgspec

from postroom.errors import DecodeError, PayloadError, ValidationError
from postroom.message import Message, MessageAttribute
from postroom.payloads import problems
from postroom.payloads.decoder import Decoder
from postroom.payloads.native import native_decoder
from postroom.payloads.problems import Problem


class _SnsAttribute(msgspec.Struct):
    type: str = msgspec.field(name="Type")
    value: str = msgspec.field(name="Value")


class SnsNotification(msgspec.Struct, tag_field="Type", tag="Notification"):
    """What is read of the JSON that SNS delivers."""

    message: str = msgspec.field(name="Message")
    attributes: dict[str, _SnsAttribute] = msgspec.field(
        name="MessageAttributes", default_factory=dict[str, _SnsAttribute]
    )


class EventBridgeEvent(msgspec.Struct):
    """What is read of an EventBridge event."""

    id: str
    source: str
    account: str
    region: str
    time: str
    detail_type: str = msgspec.field(name="detail-type")
    detail: msgspec.Raw


_sns: Final = native_decoder(SnsNotification)
_event: Final = native_decoder(EventBridgeEvent)


def unwrap_sns(message: Message, /) -> Message:
    """Take a message out of the JSON that SNS delivers unless raw message delivery is on.

    The body becomes SNS's ``Message``, the attributes its ``MessageAttributes``; a ``String.Array`` stays JSON text.
    Format: https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html

    Raises:
        PayloadError: the body is not an SNS notification. With raw message delivery there is no envelope.
    """
    notification: SnsNotification = _opened(
        message, _sns, "an SNS notification (is raw message delivery on? then unwrap nothing)"
    )
    attributes = {name: _sns_attribute(found, message) for name, found in notification.attributes.items()}
    return msgspec.structs.replace(message, body=notification.message, message_attributes=attributes)


def unwrap_eventbridge(message: Message, /) -> Message:
    """Take the ``detail`` out of an EventBridge event.

    The body becomes the JSON of ``detail``, character by character, so that no number is rounded. ``id``,
    ``source``, ``account``, ``region``, ``time`` and ``detail-type`` become String attributes.
    Format: https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-events-structure.html

    Raises:
        PayloadError: the body is not an EventBridge event.
    """
    event: EventBridgeEvent = _opened(message, _event, "an EventBridge event")
    said = {name: getattr(event, name) for name in ("id", "source", "account", "region", "time")}
    said["detail-type"] = event.detail_type
    attributes = {name: MessageAttribute(string_value=value) for name, value in said.items()}
    return msgspec.structs.replace(message, body=bytes(event.detail).decode(), message_attributes=attributes)


def _sns_attribute(found: _SnsAttribute, message: Message) -> MessageAttribute:
    if found.type != "Binary":
        return MessageAttribute(data_type=found.type, string_value=found.value)
    try:
        return MessageAttribute(data_type="Binary", binary_value=base64.b64decode(found.value, validate=True))
    except binascii.Error:
        problem = Problem("$.MessageAttributes[...].Value", "not base64")
    raise problems.not_valid("SnsNotification", [problem], message.id)


def _opened(message: Message, decode: Decoder, expected: str) -> Any:
    try:
        return decode(message)
    except PayloadError as error:
        kind = DecodeError if isinstance(error, DecodeError) else ValidationError
        text = f"the message is not {expected}: {error}"
        refused = kind(text, path=error.path, message_id=error.message_id)
    raise refused  # outside the except block: one error says it all
