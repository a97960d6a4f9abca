"""Makes a message of a payload and the context that it belongs to. Attributes are added, never replaced in silence."""

import dataclasses
import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast, get_origin

import msgspec

from postroom.checking import check_kind, shown
from postroom.errors import ConfigurationError, InvalidRequest
from postroom.log_fields import Log, Step
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.payloads import AttributeResolver, context_from_attributes
from postroom.payloads.attributes import camel_case
from postroom.payloads.encoding import Encode
from postroom.payloads.signing import SIGNATURE
from postroom.redaction import log_error
from postroom.sending.batches import MAX_ATTRIBUTES, MAX_BYTES, size_of, size_of_attributes

_log = Log("postroom.sending", Step.SEND)

AttributeInput = str | int | float | bool | bytes | MessageAttribute
"""The value of an attribute: text, a number, true or false, bytes, or the attribute itself."""
Inject = Callable[[dict[str, str]], object]
"""Writes the present trace context into a mapping, as OpenTelemetry's ``propagate.inject`` does."""

LONGEST_DELAY: Final = 900
"""Seconds (API_SendMessage.html)."""
_GROUP: Final = re.compile(r"[!-~]{1,128}")
"""Letters, digits and punctuation (API_SendMessage.html)."""
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
_NAME: Final = re.compile(r"(?!(?i:aws|amazon)\.)(?=.{1,256}$)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_ORDER: Final = ("traceparent", "tracestate")
"""What of a trace context goes first where there is not room for all of it."""


class ContextWriter:
    """Writes a context as message attributes, so that the consumer's resolver reads it back, and as a message group.

    Args:
        context: a class that is filled from attributes; a function (context) -> attributes; None: each context is
            written by its own class.
        group: the message group of a context; None: all of its attributes' values, joined by "/".
    """

    def __init__(self, context: Any, group: Callable[[Any], str] | None) -> None:
        self._resolvers: dict[type[Any], AttributeResolver[Any]] = {}
        self._function: Callable[[Any], Mapping[str, str]] | None = None
        self._group = group
        if isinstance(get_origin(context) or context, type):
            self._resolvers[cast("type[Any]", context)] = context_from_attributes(cast("type[Any]", context))
            self._only = True
        else:
            self._function = context
            self._only = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the attributes that the resolver of the class looks at; empty where there is no class."""
        return next(iter(self._resolvers.values())).names if self._only else ()

    def attributes(self, context: Any) -> dict[str, str]:
        """Return the attributes of a context.

        Raises:
            ConfigurationError: they would not be read back as this context.
            ContextError: a field has a value that no consumer would accept.
        """
        if context is None:
            return {}
        if self._function is not None:
            return _texts(self._function(context))
        kind = cast("type[Any]", type(context))
        resolver = next(iter(self._resolvers.values())) if self._only else self._resolvers.get(kind)
        if resolver is None:
            if not _has_fields(kind):
                text = (
                    f"a context to send is a frozen dataclass, a Struct or a NamedTuple; got {kind.__name__}. For "
                    "another one, say Sender(context=<a function (context) -> attributes>)"
                )
                raise ConfigurationError(text)
            resolver = self._resolvers[kind] = context_from_attributes(kind)
        return resolver.write(context)

    def group(self, context: Any, attributes: Mapping[str, str]) -> str | None:
        """Return the message group of a context: the tenant of SQS's fair queues."""
        if self._group is not None:
            return None if context is None else check_group(self._group(context), "Sender(group=...)")
        joined = "/".join(attributes.values())
        if not joined or _GROUP.fullmatch(joined) is not None:
            return joined or None
        return hashlib.sha256(joined.encode(errors="surrogatepass")).hexdigest()  # it only tells tenants apart


def make(
    encode: Encode,
    writer: ContextWriter,
    payload: Any,
    context: Any,
    *,
    attributes: Mapping[str, AttributeInput] | None,
    group: str | None,
    delay: int | None,
    deduplication_id: str | None,
) -> OutgoingMessage:
    """Make a message. What it cannot be is refused here, before anything is sent.

    Raises:
        ConfigurationError: an attribute is named twice, is none that SQS takes, or there are more than ten; a delay
            or a group that SQS does not take; the context would not be read back; the payload has no JSON form, or is
            a message.
    """
    named = writer.attributes(context)
    made = {name: MessageAttribute(string_value=value) for name, value in named.items()}
    if attributes is not None:
        check_kind("attributes=", attributes, Mapping, 'attributes={"priority": "high"}')
    spelled = {camel_case(name): name for name in named}  # a consumer reads either, and refuses two that differ
    for name, value in (attributes or {}).items():
        attribute = to_attribute(name, value)
        if made.setdefault(name, attribute) != attribute or made[spelled.get(name, name)] != attribute:
            text = f"attributes={{{name!r}: ...}} would replace the context's own attribute of that name"
            raise ConfigurationError(text)
    check_delay(delay)
    return OutgoingMessage(
        body=_body(encode, payload),
        message_attributes=made,
        group_id=writer.group(context, named) if group is None else check_group(group, "group="),
        delay=delay,
        deduplication_id=deduplication_id,
    )


def _body(encode: Encode, payload: object) -> str:
    if isinstance(payload, OutgoingMessage):
        raise ConfigurationError("the payload is an OutgoingMessage, which is sent as it is with send_messages()")
    if isinstance(payload, Message):
        text = "the payload is a Message that was received: to send its body on, pass its .body"
        raise ConfigurationError(text)
    body = cast("object", encode(payload))
    if not isinstance(body, str):
        raise ConfigurationError(f"Sender(encode=...) returns the body as a text; it returned {type(body).__name__}")
    return body


def _texts(attributes: object) -> dict[str, str]:
    """Check what a user's function made of a context."""
    if isinstance(attributes, Mapping):
        found = dict(cast("Mapping[object, object]", attributes))
        if all(isinstance(part, str) for pair in found.items() for part in pair):
            return cast("dict[str, str]", found)
    text = 'Sender(context=...) returns the attributes as texts, {"tenantId": "acme"}; it returned '
    raise ConfigurationError(text + shown(cast("object", attributes)))


_LARGEST: Final = 1e126
"""The largest value of a Number attribute (sqs-message-metadata.html). It also leaves out what is not a number."""


def to_attribute(name: str, value: object) -> MessageAttribute:
    """Return an attribute as SQS takes it. Raises ``ConfigurationError`` with what it takes."""
    given: Any = name
    if not isinstance(given, str) or _NAME.fullmatch(given) is None:
        text = (
            f"attributes={{{name!r}: ...}}: SQS allows 1 to 256 letters, digits, '_', '-' and '.' in the name of a "
            "message attribute, not beginning with 'AWS.' or 'Amazon.', see sqs-message-metadata.html"
        )
        raise ConfigurationError(text)
    match value:
        case MessageAttribute():
            return value
        case bool():
            return MessageAttribute(string_value=str(value).lower())
        case int() | float() if abs(value) <= _LARGEST:
            return MessageAttribute("Number", string_value=str(value))
        case bytes() if value:
            return MessageAttribute("Binary", binary_value=value)
        case str() if value:
            return MessageAttribute(string_value=value)
        case _:
            text = f"attributes={{{name!r}: ...}} takes text that is not empty, a number, bytes or a MessageAttribute"
            raise ConfigurationError(f"{text}; got {type(value).__name__}")


def add_trace(message: OutgoingMessage, inject: Inject, *, keep: int) -> OutgoingMessage:
    """Return the message with the present trace context, as far as SQS's ten attributes and 1 MiB have room for it.

    What the message has already stays. What ``inject`` raises is logged: a trace is no reason not to send.

    Args:
        message: with all of its other attributes. One that is larger than 1 MiB is made smaller later.
        inject: writes the trace context.
        keep: attributes that are added later, for which there must be room.
    """
    carrier: dict[str, str] = {}
    try:
        inject(carrier)
    except Exception as error:
        text = "The trace context could not be written; the message is sent without it"
        log_error(_log, logging.ERROR, text, error=error)
        return message
    attributes = dict(message.message_attributes)
    size = size_of(message)
    longest = MAX_BYTES if size <= MAX_BYTES else math.inf
    for name in sorted(carrier, key=lambda each: (each not in _ORDER, each)):
        value = carrier[name]
        if name in attributes or not value or _NAME.fullmatch(name) is None:
            continue
        attribute = {name: MessageAttribute(string_value=value)}
        size += size_of_attributes(attribute)
        if len(attributes) + keep >= MAX_ATTRIBUTES or size > longest:
            _log.debug("Left out %s of the trace context: the message has no room for it", name)
            break
        attributes |= attribute
    return msgspec.structs.replace(message, message_attributes=attributes)


def check_attributes(message: OutgoingMessage, *, keep: int) -> None:
    """Refuse a message with more attributes than SQS takes. Raises ``ConfigurationError``."""
    names = sorted(message.message_attributes)
    if len(names) + keep > MAX_ATTRIBUTES:
        signature = f" and {SIGNATURE!r}" if keep else ""
        text = f"SQS takes {MAX_ATTRIBUTES} attributes per message (quotas-messages.html); these are {names}{signature}"
        raise ConfigurationError(text)


def check_size(message: OutgoingMessage, limit: int) -> None:
    """Refuse a message that is too large for its queue. Raises ``InvalidRequest``."""
    size = size_of(message)
    if size > limit:
        text = f"the message has {size:,} bytes, attributes included, and its queue takes {limit:,}"
        raise InvalidRequest(text, operation="SendMessage", code="InvalidParameterValue")


def check_group(group: object, where: str) -> str:
    """Return a message group. Raises ``ConfigurationError`` for what SQS does not take."""
    if not isinstance(group, str) or _GROUP.fullmatch(group) is None:
        raise ConfigurationError(
            f"{where} takes 1 to 128 letters, digits or punctuation marks, see API_SendMessage.html"
        )
    return group


def check_delay(delay: object) -> None:
    """Refuse a delay that SQS does not take. Raises ``ConfigurationError``."""
    if delay is None or (isinstance(delay, int) and not isinstance(delay, bool) and 0 <= delay <= LONGEST_DELAY):
        return
    raise ConfigurationError(
        f"delay= takes whole seconds from 0 to {LONGEST_DELAY} (API_SendMessage.html); got {delay!r}"
    )


def _has_fields(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct) or hasattr(kind, "_fields")
