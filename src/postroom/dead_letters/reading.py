"""What a message in a dead-letter queue tells of itself: its tenant, where it came from, and why it is there."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from postroom.checking import check_kind, check_text
from postroom.consumer import Consumer
from postroom.errors import ConfigurationError
from postroom.log_fields import Log, Step
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.redaction import describe
from postroom.resources import display_key
from postroom.settlement import letters
from postroom.settlement.batcher import MAX_BYTES

_log = Log("postroom.dead_letters", Step.DEAD_LETTER)

TOO_MANY_RECEIVES: Final = "received too often"
"""The reason shown for a message that SQS moved: after ``maxReceiveCount`` receives, with no reason of its own."""
REDRIVEN: Final = "postroom.redriven"
"""How often the message was sent home from a dead-letter queue: the one attribute that a redriven message keeps."""
_COUNTER: Final = 40
"""Bytes that this attribute takes, at most."""
_OURS: Final = frozenset({
    letters.REASON, letters.MESSAGE_ID, letters.QUEUE, letters.ATTEMPTS, letters.SENT, letters.FIRST_RECEIVED,
    letters.RECEIVES,
})  # fmt: skip
"""Attributes that were added when the message was rejected."""

TenantOf = Callable[[Message], str | Awaitable[str | None] | None]
"""Names the tenant of a message, as logs show it. None: it cannot be known."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One message in a dead-letter queue. Times are seconds since the epoch."""

    id: str
    """Its message id in the dead-letter queue."""
    message_id: str
    """Its message id in the queue that it came from."""
    tenant: str | None
    """Its tenant, as ``tenant_of=`` says; None where the message does not tell."""
    reason: str
    """Why it was rejected; ``received too often`` where SQS moved it."""
    source: str | None
    """The ARN of the queue that it came from; None if the message does not tell."""
    vouched: bool
    """Whether SQS itself names the source. Otherwise an attribute does, which any sender can write."""
    attempts: int | None
    """Failed attempts that were counted; None where SQS moved it."""
    receives: int | None
    """How often it was received from its source; None where that is not known."""
    sent: float | None
    """When it was first sent."""
    first_received: float | None
    """When it was first received; None where that is not known."""
    redriven: int
    """How often it was sent home before."""
    group_id: str | None
    """Its message group."""
    size: int
    """Bytes that count against SQS's limit."""
    message: Message
    """The message, as it was received from the dead-letter queue."""

    @property
    def attributes(self) -> Mapping[str, MessageAttribute]:
        """The message's own attributes, without those that were added when it was rejected."""
        return {name: value for name, value in self.message.message_attributes.items() if name not in _OURS}

    def going_home(self, *, fifo: bool) -> OutgoingMessage:
        """Return the message as it is sent to its source: as it was first sent, with a count of such returns.

        Its attempts and receives begin again, because SQS gives it a new message id. On a FIFO queue it keeps its
        group. Its deduplication id is made of the dead letter's id: it differs from that of the first sending, and
        sending one letter twice within five minutes has one effect.
        """
        attributes = dict(self.attributes)
        count = MessageAttribute("Number", string_value=str(self.redriven + 1))
        attributes.pop(REDRIVEN, None)
        if len(attributes) < letters.MAX_ATTRIBUTES and self.size + _COUNTER <= MAX_BYTES:
            attributes[REDRIVEN] = count
        return OutgoingMessage(
            body=self.message.body,
            message_attributes=attributes,
            group_id=self.group_id,
            deduplication_id=f"postroom-redrive-{self.id}" if fifo else None,
            trace_header=self.message.trace_header,
        )


def read(message: Message, tenant: str | None) -> DeadLetter:
    """Read what a dead letter tells. What is missing or cannot be read is None."""
    text = _texts(message.message_attributes)
    source = message.system_attributes.get("DeadLetterQueueSourceArn")
    return DeadLetter(
        id=message.id,
        message_id=text.get(letters.MESSAGE_ID, message.id),
        tenant=tenant,
        reason=text.get(letters.REASON, TOO_MANY_RECEIVES if letters.MESSAGE_ID not in text else "rejected"),
        source=source or text.get(letters.QUEUE),
        vouched=source is not None,
        attempts=_count(text.get(letters.ATTEMPTS)),
        receives=_count(text.get(letters.RECEIVES)),
        sent=_moment(text.get(letters.SENT)) or message.sent_at,
        first_received=_moment(text.get(letters.FIRST_RECEIVED)) or message.first_received_at,
        redriven=_count(text.get(REDRIVEN)) or 0,
        group_id=message.group_id,
        size=letters.size_of(message),
        message=message,
    )


def tenant_by_group(message: Message) -> str | None:
    """Return the MessageGroupId: the tenant, where messages are sent as SQS's fair queues want it."""
    return message.group_id


def tenant_by_attribute(name: str) -> TenantOf:
    """Return a function that takes the tenant from one message attribute.

    Raises:
        ConfigurationError: the name is empty.
    """
    check_text("tenant_by_attribute(name)", name, 'tenant_by_attribute("tenantId")')

    def tenant_of(message: Message) -> str | None:
        value = message.message_attributes.get(name)
        return None if value is None else value.string_value

    return tenant_of


def tenant_by_consumer(consumer: Consumer[Any, Any]) -> TenantOf:
    """Return a function that asks a consumer's own resolver, and names the tenant as its log does.

    The message is taken out of its envelope first, as ``Consumer(unwrap=...)`` says. One that an envelope or the
    resolver refuses has no tenant; the log says why, of the first one. The consumer need not run, and is not started.

    Raises:
        ConfigurationError: the consumer has no ``context=``.
    """
    check_kind("tenant_by_consumer(consumer)", consumer, Consumer, "tenant_by_consumer(orders)")
    resolver, unwrap = consumer.resolver, consumer.settings.unwrap
    if resolver is None:
        text = f"the consumer of {consumer.queue!r} has no context=, so its messages have no tenant"
        raise ConfigurationError(text)

    told = False

    async def tenant_of(message: Message) -> str | None:
        nonlocal told
        try:
            # What is beside an envelope was not read when the message came, and names another tenant
            # if its sender likes.
            context = resolver(message if unwrap is None else unwrap.opened(message))
            if inspect.isawaitable(context):
                context = await context
        except Exception as error:  # whatever a step or a resolver raises: it has refused this message
            if not told:
                told = True
                text = "Letter %s has no tenant, for its context cannot be resolved: %s; further ones are not told of"
                _log.warning(text, message.id, describe(error))
            return None
        return display_key(context)

    return tenant_of


def _texts(attributes: Mapping[str, MessageAttribute]) -> dict[str, str]:
    return {name: value.string_value for name, value in attributes.items() if value.string_value}


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else None


def _moment(text: str | None) -> float | None:
    try:
        return None if text is None else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
