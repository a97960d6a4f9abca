"""What a rejected message looks like in the dead-letter queue."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.redaction import redact
from postroom.settlement.batcher import MAX_BYTES
from postroom.settlement.delivery import Delivery
from postroom.transports.protocol import QueueInfo

MAX_ATTRIBUTES: Final = 10
"""Message attributes per message (quotas-messages.html)."""
ROOM: Final = 4_096
"""Bytes that the attributes of a dead letter take at most, beside those of the message itself."""

REASON: Final = "postroom.reason"
"""Why the message was sent to the dead-letter queue."""
MESSAGE_ID: Final = "postroom.message_id"
"""Its message id in the queue that it came from: the copy has one of its own."""
QUEUE: Final = "postroom.queue"
"""The ARN of that queue."""
ATTEMPTS: Final = "postroom.attempts"
"""How many attempts were made to handle it."""
SENT: Final = "postroom.sent"
"""When it was sent, in ISO 8601."""
FIRST_RECEIVED: Final = "postroom.first_received"
"""When it was first received, in ISO 8601."""
RECEIVES: Final = "postroom.receives"
"""How often it was received."""

_LONGEST_REASON: Final = 500


class Letter(msgspec.Struct):
    """A message for the dead-letter queue, and what of its reason it has no room for."""

    outgoing: OutgoingMessage
    unsaid: str | None = None
    """The whole reason, where it is missing or shortened."""


def write(delivery: Delivery, reason: str, *, source: QueueInfo, target: QueueInfo) -> Letter:
    """Return what is sent: body and attributes as they were, then the reason, then who it was while there is room."""
    message = delivery.message
    attributes = dict(message.message_attributes)
    room = _limit(target) - size_of(message)
    text = readable(redact(reason))  # often the text of another library's error
    unsaid: str | None = None
    if REASON in attributes:  # of an earlier rejection: the room that it took is free
        room += _size(REASON, attributes.pop(REASON))
    shown = _shortened(text, room - _size(REASON, MessageAttribute(string_value="")))
    if len(attributes) >= MAX_ATTRIBUTES or not shown:
        unsaid = text
    else:
        unsaid = None if shown == text else text
        attributes[REASON] = MessageAttribute(string_value=shown)
        room -= _size(REASON, attributes[REASON])
    for name, value in _identity(delivery, source):
        cost = _size(name, value)
        if name in attributes:
            room += _size(name, attributes.pop(name))
        if len(attributes) < MAX_ATTRIBUTES and cost <= room:
            attributes[name] = value
            room -= cost
    return Letter(
        OutgoingMessage(
            body=message.body,
            message_attributes=attributes,
            group_id=message.group_id,
            deduplication_id=message.id if target.fifo else None,
            trace_header=message.trace_header,
        ),
        unsaid,
    )


def readable(text: str) -> str:
    """Return text as a String attribute may carry it: not empty, not long, no control characters."""
    shown = "".join(character if character.isprintable() else " " for character in text[:_LONGEST_REASON]).strip()
    return shown or "rejected"


def size_of(message: Message) -> int:
    """Return what a message counts against the limit: body, and names, types and values of its attributes."""
    return _bytes(message.body) + sum(_size(name, value) for name, value in message.message_attributes.items())


def _identity(delivery: Delivery, source: QueueInfo) -> Iterator[tuple[str, MessageAttribute]]:
    """Tell who the message was, the most useful first."""
    message = delivery.message
    yield MESSAGE_ID, MessageAttribute(string_value=message.id)
    yield QUEUE, MessageAttribute(string_value=source.arn or source.name)
    yield (
        ATTEMPTS,
        MessageAttribute("Number", string_value=str(delivery.attempt if delivery.tried else delivery.attempt - 1)),
    )
    for name, moment in ((SENT, "SentTimestamp"), (FIRST_RECEIVED, "ApproximateFirstReceiveTimestamp")):
        if (shown := _moment(message.system_attributes, moment)) is not None:
            yield name, MessageAttribute(string_value=shown)
    yield RECEIVES, MessageAttribute("Number", string_value=str(delivery.receives))


def _moment(attributes: Mapping[str, str], name: str) -> str | None:
    try:
        return datetime.fromtimestamp(int(attributes[name]) / 1000, UTC).isoformat(timespec="milliseconds")
    except (KeyError, ValueError, TypeError, OverflowError, OSError):
        return None  # an emulator's odd answer is no reason to keep the message


def _limit(target: QueueInfo) -> int:
    try:
        return min(MAX_BYTES, int(target.attributes.get("MaximumMessageSize", MAX_BYTES)))
    except (ValueError, TypeError):
        return MAX_BYTES


def _shortened(text: str, room: int) -> str:
    """Return as much of a text as fits into so many bytes, marked where it was cut."""
    if _bytes(text) <= room:
        return text
    mark = "..."
    if room <= 2 * len(mark):
        return ""
    return text.encode(errors="replace")[: room - len(mark)].decode(errors="ignore") + mark


def _size(name: str, value: MessageAttribute) -> int:
    content = len(value.binary_value) if value.binary_value is not None else _bytes(value.string_value or "")
    return _bytes(name) + len(value.data_type) + content


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
