"""A received message, as SQS describes it.

Messages are msgspec structs: frozen like a dataclass, made in a tenth of the time. A million of them pass through
one process, and nothing else does as often. Encoded, their fields carry SQS's names, so that an answer of SQS is
decoded straight into them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final, cast

import msgspec

from postroom.display import Discreet
from postroom.errors import ConfigurationError, MissingAttribute

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_SHOWN: Final = 20


class MessageAttribute(msgspec.Struct, frozen=True, gc=False):
    """One message attribute with its SQS data type.

    Data types: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
    """

    data_type: str = msgspec.field(default="String", name="DataType")
    """``String``, ``Number`` or ``Binary``, optionally with a custom label: ``Number.float``."""
    string_value: str | None = msgspec.field(default=None, name="StringValue")
    """The value of a String or Number attribute; a Number travels as its decimal text."""
    binary_value: bytes | None = msgspec.field(default=None, name="BinaryValue")
    """The value of a Binary attribute."""


def names_of(attributes: Mapping[str, MessageAttribute]) -> str:
    """Return the names of a message's attributes for an error: those that SQS allows, and as many as can be read.

    Out of an envelope they are keys of a body: there may be any number of them, with any text.
    """
    shown = sorted(repr(name) for name in attributes if _NAME.fullmatch(name))[:_SHOWN]
    left = len(attributes) - len(shown)
    if not left:
        return ", ".join(shown) or "none"
    return f"{', '.join(shown)}, and {left} more" if shown else f"{left}, not shown"


class Attributes(Mapping[str, str]):
    """The String and Number attributes of a message as a read-only mapping of text.

    ``attributes["tenantId"]`` raises ``MissingAttribute`` with a text that can be shown as it
    is, when the attribute is missing, empty or Binary. Binary values are in ``Message.message_attributes``.
    """

    __slots__ = ("_attributes", "_message_id")

    def __init__(self, attributes: Mapping[str, MessageAttribute], message_id: str | None = None) -> None:
        self._attributes = attributes
        self._message_id = message_id

    def __getitem__(self, name: str) -> str:
        attribute = self._attributes.get(name)
        if attribute is not None and attribute.string_value:
            return attribute.string_value
        if attribute is None:
            problem = "is missing"
        elif attribute.binary_value is not None:
            problem = "is Binary, expected String or Number"
        else:
            problem = "is empty"
        text = f"message attribute {name!r} {problem} (attributes of this message: {names_of(self._attributes)})"
        raise MissingAttribute(text, name=name, message_id=self._message_id)

    def __iter__(self) -> Iterator[str]:
        return (name for name, attribute in self._attributes.items() if attribute.string_value)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Attributes({sorted(self)!r})"


class Message(Discreet, msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True, gc=False):
    """One message, as it was received. It never changes: a second receive of it is another ``Message``."""

    id: str = msgspec.field(name="MessageId")
    """The message id. A standard queue may deliver it more than once."""
    body: str = msgspec.field(name="Body")
    """The body as it was sent."""
    receipt_handle: str = msgspec.field(default="", name="ReceiptHandle")
    """What deletes this receive of the message or changes its visibility."""
    message_attributes: Mapping[str, MessageAttribute] = msgspec.field(
        default_factory=dict[str, MessageAttribute], name="MessageAttributes"
    )
    """Every message attribute, with its data type."""
    system_attributes: Mapping[str, str] = msgspec.field(default_factory=dict[str, str], name="Attributes")
    """SQS's own attributes, such as ``ApproximateReceiveCount`` and ``MessageGroupId``."""
    queue: str = ""
    """The name of the queue that it came from."""

    @property
    def attributes(self) -> Attributes:
        """The String and Number message attributes as text. Missing ones raise ``MissingAttribute``."""
        return Attributes(self.message_attributes, self.id)

    @property
    def receive_count(self) -> int:
        """How often it has been received, this time included (``ApproximateReceiveCount``; 1 if unknown)."""
        said = self.system_attributes.get("ApproximateReceiveCount")
        if said == "1":  # as for nearly every message
            return 1
        count = _number(said)
        return 1 if count is None else max(1, int(count))

    @property
    def is_counted(self) -> bool:
        """Whether it says how often it has been received: some local servers count, and do not say it."""
        return _number(self.system_attributes.get("ApproximateReceiveCount")) is not None

    @property
    def sent_at(self) -> float | None:
        """When it was sent, in seconds since the epoch (``SentTimestamp``); None if unknown."""
        return _seconds(self.system_attributes.get("SentTimestamp"))

    @property
    def first_received_at(self) -> float | None:
        """When it was first received, in seconds since the epoch; None if unknown."""
        return _seconds(self.system_attributes.get("ApproximateFirstReceiveTimestamp"))

    @property
    def group_id(self) -> str | None:
        """The message group: the unit of order on a FIFO queue, the tenant of SQS's fair queues on a standard one."""
        return self.system_attributes.get("MessageGroupId")

    @property
    def deduplication_id(self) -> str | None:
        """The deduplication id on a FIFO queue."""
        return self.system_attributes.get("MessageDeduplicationId")

    @property
    def trace_header(self) -> str | None:
        """The X-Ray trace header of the sender (``AWSTraceHeader``); None if there is none."""
        return self.system_attributes.get("AWSTraceHeader")

    def __repr__(self) -> str:  # never the body: it is the tenant's
        return (
            f"Message(id={self.id!r}, queue={self.queue!r}, attributes={sorted(self.message_attributes)!r}, "
            f"receive_count={self.receive_count}, body=<{len(self.body)} characters>)"
        )


def _seconds(milliseconds: object) -> float | None:
    value = None if milliseconds is None else _number(milliseconds)
    return None if value is None else value / 1000


def _number(value: object) -> float | None:
    # Some local servers answer "1.0", "" or a JSON number where SQS answers "1".
    if value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class OutgoingMessage(Discreet, msgspec.Struct, frozen=True, kw_only=True):
    """A message to send."""

    body: str
    """Text of 1 byte to 1 MiB, attributes included (quotas-messages.html)."""
    message_attributes: Mapping[str, MessageAttribute] = {}
    """Up to ten, by name."""
    delay: int | None = None
    """Seconds until it becomes visible, 0 to 900; None for the queue's default. Not on FIFO queues."""
    group_id: str | None = None
    """Required on FIFO queues; on standard ones it makes the queue a fair one, with this as the tenant."""
    deduplication_id: str | None = None
    """FIFO queues only: SQS drops a second message with the same id within five minutes. None where the queue makes one
    of the body."""
    trace_header: str | None = None
    """The X-Ray trace header to send along (``AWSTraceHeader``). It takes none of the ten message attributes."""

    def __post_init__(self) -> None:
        body, attributes = cast("tuple[object, object]", (self.body, self.message_attributes))
        if not isinstance(body, str):
            text = "OutgoingMessage(body=...) takes a text, such as JSON; a Sender makes one of any payload"
            raise ConfigurationError(f"{text}; got {type(body).__name__}")
        if isinstance(attributes, Mapping):
            found = list(cast("Mapping[object, object]", attributes).values())
        else:
            found = [attributes]
        for each in found:
            if not isinstance(each, MessageAttribute):
                text = 'message_attributes={"tenantId": MessageAttribute(string_value="acme")}'
                raise ConfigurationError(f"OutgoingMessage(...) takes {text}; got {type(each).__name__}")

    def __repr__(self) -> str:
        return f"OutgoingMessage(group_id={self.group_id!r}, body=<{len(self.body)} characters>)"
