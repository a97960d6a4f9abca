"""Messages that travel inside another service's envelope: SNS, EventBridge, SES, CloudEvents.

The functions take a message and return the one that was inside: its body, and attributes made of what the envelope
says. Everything else (id, receipt handle, system attributes, queue) stays the outer message's, and the outer
message's own attributes are dropped, so that the two cannot be mixed. Give them to ``Consumer(unwrap=...)``, one or
several in a row, the outermost first.

An envelope proves nothing: any sender with SendMessage can write one. Let the queue's policy admit the topic or the
rule only.
"""

import base64
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from postroom.checking import check_flag, listed
from postroom.errors import ConfigurationError, DecodeError, Drop, PayloadError, ValidationError
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
    id: str | None = msgspec.field(name="MessageId", default=None)
    topic_arn: str | None = msgspec.field(name="TopicArn", default=None)
    subject: str | None = msgspec.field(name="Subject", default=None)
    attributes: dict[str, _SnsAttribute] = msgspec.field(
        name="MessageAttributes", default_factory=dict[str, _SnsAttribute]
    )


class EventBridgeEvent(msgspec.Struct):
    """What is read of an EventBridge event."""

    id: str
    source: str
    region: str
    time: str
    detail_type: str = msgspec.field(name="detail-type")
    detail: msgspec.Raw
    account: str | None = None
    """None of moto alone."""


class SesMail(msgspec.Struct, rename="camel"):
    """What is read of the ``mail`` of an SES notification."""

    source: str | None = None
    message_id: str | None = None
    sending_account_id: str | None = None
    tags: dict[str, list[str]] = msgspec.field(default_factory=dict[str, list[str]])


class SesNotice(msgspec.Struct, rename="camel"):
    """What is read of what SES says of a mail."""

    mail: SesMail | None = None
    notification_type: str | None = None
    event_type: str | None = None


class _Kind(msgspec.Struct):
    kind: object = msgspec.field(name="Type", default=None)


_Simple: TypeAlias = str | int | bool | None
_sns: Final = native_decoder(SnsNotification)
_event: Final = native_decoder(EventBridgeEvent)
_ses: Final = native_decoder(SesNotice)
_kind: Final = native_decoder(_Kind)
_cloud_event: Final = native_decoder(dict[str, msgspec.Raw])

_NOTIFICATION: Final = "Notification"
_SNS_SAYS: Final = {
    _NOTIFICATION: "it is an SNS notification: unwrap_sns belongs in front",
    "SubscriptionConfirmation": (
        "SNS asks to confirm the subscription of this queue: nothing comes through it until the SubscribeURL in the "
        "body was called"
    ),
    "UnsubscribeConfirmation": (
        "SNS says that the subscription of this queue has ended: the SubscribeURL in the body begins it again"
    ),
}
"""What SNS writes by its ``Type``, and what follows where something else is expected."""
_TOPIC: Final = re.compile(r"arn:[\w-]+:sns:[\w-]+:\d{12}:[\w-]+(\.fifo)?", re.ASCII)
_OURS: Final = "sns."
_SES_SAYS: Final = ("source", "messageId", "sendingAccountId", "type")
_SES_ON: Final = "Successfully validated SNS topic for Amazon SES event publishing."
"""What SES publishes once for a destination of events; for an identity it is a notification of the next type."""
_SES_SUBSCRIBED: Final = "AmazonSnsSubscriptionSucceeded"
_PREFIXES: Final = ("ce-", "ce_", "cloudEvents_")
"""Of HTTP and of Kafka, and AMQP's where a colon is not allowed: there is no binding for SQS."""
_CONTENT_TYPES: Final = ("content-type", "Content-Type", "contentType")
_REQUIRED: Final = ("specversion", "id", "source", "type")
_DATA: Final = ("data", "data_base64")


def unwrap_sns(message: Message, /) -> Message:
    """Take a message out of the JSON that SNS delivers unless raw message delivery is on.

    The body becomes SNS's ``Message``, the attributes its ``MessageAttributes``; a ``String.Array`` stays JSON text.
    Attributes with names such as ``sns.TopicArn`` are dropped: ``SnsEnvelope`` says them in the name of SNS.
    Format: https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html

    Raises:
        PayloadError: the body is not an SNS notification. With raw message delivery there is no envelope: see
            ``SnsEnvelope``.
    """
    return _sns_inner(message, _notification(message), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class SnsEnvelope:
    """Takes messages out of SNS's JSON as ``unwrap_sns`` does, checks the topic, and lets raw ones pass.

    What SNS says of a notification becomes String attributes: ``sns.TopicArn``, ``sns.MessageId`` and, where there is
    one, ``sns.Subject``. Attributes of those names that a sender wrote are dropped.

    Args:
        topics: the ARNs of the topics to accept notifications of; None for any. A sender with SendMessage can
            write any ARN, so this finds mistakes; the queue's policy (``aws:SourceArn``) keeps strangers out.
        raw: whether a message that is no notification is taken as it is: one that was sent to the queue itself, or by
            a subscription with raw message delivery. It has no ``sns.TopicArn``, so ``topics`` does not apply to it.

    Raises:
        ConfigurationError: ``topics`` is a single text, is empty, or has something else than ARNs of topics.
    """

    topics: Collection[str] | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        check_flag("SnsEnvelope(raw=...)", self.raw)
        if self.topics is None:
            return
        example = "topics=['arn:aws:sns:eu-west-1:123456789012:orders']"
        topics = listed("SnsEnvelope(topics=...)", example, self.topics)
        if not topics or not all(isinstance(topic, str) and _TOPIC.fullmatch(topic) for topic in topics):
            text = f"SnsEnvelope(topics=...) takes ARNs of topics: write {example}; got {self.topics!r}"
            raise ConfigurationError(text)
        object.__setattr__(self, "topics", topics)

    def __call__(self, message: Message, /) -> Message:
        """Return the message that was inside, or the message itself where it is raw.

        Raises:
            PayloadError: it is no notification and ``raw`` is False, or it is a notification of another topic.
        """
        # A search in the text first: parsing every raw body only to refuse it would double the
        # work.
        if self.raw and not _may_be_sns(message.body):
            return _without_ours(message)
        try:
            found = _notification(message)
        except PayloadError:
            # A notification that is broken must fail: taken as raw, it would pass without a check
            # of its topic.
            if self.raw and _type_of(message) not in _SNS_SAYS:
                return _without_ours(message)
            raise
        if self.topics is not None and found.topic_arn not in self.topics:
            text = "the SNS notification is of a topic that SnsEnvelope(topics=...) does not name"
            raise ValidationError(text, path="$.TopicArn", message_id=message.id)
        said = {"TopicArn": found.topic_arn, "MessageId": found.id, "Subject": found.subject}
        return _sns_inner(message, found, {_OURS + name: value for name, value in said.items() if value})


def unwrap_eventbridge(message: Message, /) -> Message:
    """Take the ``detail`` out of an EventBridge event.

    The body becomes the JSON of ``detail``, character by character, so that no number is rounded. ``id``,
    ``source``, ``account``, ``region``, ``time`` and ``detail-type`` become String attributes.
    Format: https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-events-structure.html

    Raises:
        PayloadError: the body is not an EventBridge event.
    """
    event: EventBridgeEvent = opened(message, _event, "an EventBridge event")
    said = {name: getattr(event, name) for name in ("id", "source", "account", "region", "time")}
    said["detail-type"] = event.detail_type
    named = {name: value for name, value in said.items() if value is not None}
    return msgspec.structs.replace(message, body=bytes(event.detail).decode(), message_attributes=texts(named))


def unwrap_ses(message: Message, /) -> Message:
    """Read what Amazon SES says of a mail: a notification, a published event, or a received mail.

    The body stays as it is. These become String attributes: ``type`` (``notificationType`` or ``eventType``, such as
    ``Bounce``), ``source``, ``messageId``, ``sendingAccountId``, and each message tag of the mail under its name,
    which is where a sender writes the tenant. A tag with several values is left out.
    Format: https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html. SES delivers to SNS; write
    ``unwrap=[unwrap_sns, unwrap_ses]``.

    Raises:
        Drop: it is what SES sends once, when notifications or events are switched on.
        PayloadError: the body is nothing that SES writes.
    """
    if message.body.strip() == _SES_ON:
        raise Drop("the events of Amazon SES were switched on")
    notice: SesNotice = opened(message, _ses, "a notification of Amazon SES")
    kind, mail = notice.notification_type or notice.event_type, notice.mail
    if kind == _SES_SUBSCRIBED:
        raise Drop(f"{kind}: notifications of Amazon SES were switched on")
    if kind is None or mail is None:
        lacks = "mail" if kind is not None else "notificationType and eventType"
        raise _refused(message, "a notification of Amazon SES", ValidationError(f"it lacks {lacks}"))
    # With several values, which of them names the tenant would be a guess.
    tags = {name: values[0] for name, values in mail.tags.items() if len(values) == 1 and name not in _SES_SAYS}
    said = {"source": mail.source, "messageId": mail.message_id, "sendingAccountId": mail.sending_account_id}
    named = {**tags, **{name: value for name, value in said.items() if value is not None}, "type": kind}
    return msgspec.structs.replace(message, message_attributes=texts(named))


def unwrap_cloudevents(message: Message, /) -> Message:
    """Take the data out of a CloudEvent, in structured or in binary mode.

    The body becomes the data: the JSON of ``data`` character by character, or the text of ``data_base64``. The
    context attributes, extensions such as ``tenantid`` included, become String attributes under their own names.

    In structured mode the body is the event in JSON. In binary mode the body is the data, and each context attribute
    is a message attribute with the prefix ``ce-``, ``ce_`` or ``cloudEvents_``; ``content-type`` is the type of the
    data. Format: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md

    Raises:
        PayloadError: it is no CloudEvent of version 1.0, or one with data that is no text.
    """
    binary = _binary_attributes(message)
    if binary is not None:
        return msgspec.structs.replace(message, message_attributes=texts(binary))
    event: dict[str, msgspec.Raw] = opened(message, _cloud_event, "a CloudEvent")
    if "specversion" not in event:
        raise _refused(message, "a CloudEvent", ValidationError("it lacks specversion"))
    said = {name: _plain(name, value, message) for name, value in event.items() if name not in _DATA}
    named = {name: value for name, value in said.items() if value is not None}
    _check_cloud_event(named, message)
    return msgspec.structs.replace(message, body=_data(event, message), message_attributes=texts(named))


def texts(values: Mapping[str, str]) -> dict[str, MessageAttribute]:
    """Make String attributes of texts."""
    return {name: MessageAttribute(string_value=value) for name, value in values.items()}


# -- SNS --------------------------------------------------------------------------------------------------------------


def _notification(message: Message) -> SnsNotification:
    found: SnsNotification = opened(message, _sns, "an SNS notification")
    return found


def _sns_inner(message: Message, found: SnsNotification, said: Mapping[str, str]) -> Message:
    # A publisher may write any attribute: these names are kept for what SNS itself says.
    own = {name: value for name, value in found.attributes.items() if not name.startswith(_OURS)}
    attributes = {name: _sns_attribute(value, message) for name, value in own.items()} | texts(said)
    return msgspec.structs.replace(message, body=found.message, message_attributes=attributes)


def _may_be_sns(body: str) -> bool:
    """Whether it is worth to read a body as what SNS writes."""
    return '"Type"' in body and '"TopicArn"' in body


def _type_of(message: Message) -> str | None:
    """Return what a message says that it is of what SNS writes: if that is broken, it is not raw."""
    try:
        kind = _kind(message).kind
    except PayloadError:
        return None
    return kind if isinstance(kind, str) else None


def _without_ours(message: Message) -> Message:
    """Drop attributes that only SNS may say something with."""
    if not any(name.startswith(_OURS) for name in message.message_attributes):
        return message
    kept = {name: value for name, value in message.message_attributes.items() if not name.startswith(_OURS)}
    return msgspec.structs.replace(message, message_attributes=kept)


def _sns_attribute(found: _SnsAttribute, message: Message) -> MessageAttribute:
    if found.type != "Binary":
        return MessageAttribute(data_type=found.type, string_value=found.value)
    try:
        return MessageAttribute(data_type="Binary", binary_value=base64.b64decode(found.value, validate=True))
    except ValueError:  # binascii.Error is one; that of a text that is not ASCII is plain
        problem = Problem("$.MessageAttributes[...].Value", "not base64")
    raise problems.not_valid("SnsNotification", [problem], message.id)


def opened(message: Message, decode: Decoder, expected: str) -> Any:
    """Read an envelope. Raises ``PayloadError``, which says what the message is where that is known."""
    try:
        return decode(message)
    except PayloadError as error:
        refused = _refused(message, expected, error, raw=decode is _sns)
    raise refused  # outside the except block: one error says it all


def _refused(message: Message, expected: str, error: PayloadError, *, raw: bool = False) -> PayloadError:
    """Return the error for a message that is no envelope of some kind; ``raw``: of SNS, which may be left out."""
    said, why = _type_of(message), str(error)
    if said in _SNS_SAYS and not (raw and said == _NOTIFICATION):
        why = _SNS_SAYS[said]
    elif raw and said != _NOTIFICATION:
        why += " (is raw message delivery on? then use SnsEnvelope(raw=True))"
    kind = DecodeError if isinstance(error, DecodeError) else ValidationError
    return kind(f"the message is not {expected}: {why}", path=error.path, message_id=message.id)


# -- CloudEvents ------------------------------------------------------------------------------------------------------


def _binary_attributes(message: Message) -> dict[str, str] | None:
    """Return the context attributes of an event in binary mode; None for a message that is none."""
    found = message.message_attributes
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}specversion" in found), None)
    if prefix is None:
        return None
    said = {name.removeprefix(prefix): value.string_value for name, value in found.items() if name.startswith(prefix)}
    named = {name: value for name, value in said.items() if value is not None}
    kind = next((found[name].string_value for name in _CONTENT_TYPES if name in found), None)
    if kind is not None:
        named["datacontenttype"] = kind
    _check_cloud_event(named, message)
    return named


def _check_cloud_event(named: Mapping[str, str], message: Message) -> None:
    missing = [name for name in _REQUIRED if not named.get(name)]
    if missing:
        text = f"the message is not a CloudEvent: it lacks {', '.join(missing)}"
        raise ValidationError(text, message_id=message.id)
    if not named["specversion"].startswith("1."):
        text = "the message is a CloudEvent of another version than 1.0"
        raise ValidationError(text, path="$.specversion", message_id=message.id)


def _plain(name: str, value: msgspec.Raw, message: Message) -> str | None:
    """Return a context attribute as text. JSON null means that it is absent."""
    try:
        found = msgspec.json.decode(value, type=_Simple)
    except msgspec.ValidationError:
        path = problems.json_path([name if name in _REQUIRED else None])
    else:
        return str(found).lower() if isinstance(found, bool) else None if found is None else str(found)
    raise problems.not_valid("CloudEvent", [Problem(path, "expected a text, a whole number or a bool")], message.id)


def _data(event: Mapping[str, msgspec.Raw], message: Message) -> str:
    if "data" in event:
        kind = event.get("datacontenttype")
        data = bytes(event["data"]).decode()
        # JSON stays as it was written: decoded and encoded again, its numbers could change.
        if kind is None or b"json" in bytes(kind) or not data.startswith('"'):
            return data
        return str(msgspec.json.decode(event["data"]))  # text of another kind stands in a JSON string
    if "data_base64" not in event:
        return ""
    try:
        return base64.b64decode(msgspec.json.decode(event["data_base64"], type=str), validate=True).decode()
    except (ValueError, msgspec.ValidationError):
        problem = Problem("$.data_base64", "not the base64 of UTF-8 text")
    raise problems.not_valid("CloudEvent", [problem], message.id)
