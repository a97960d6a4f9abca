"""Queue attributes: which exist, what they may be, and what they are by default.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from postroom.local.contents import MAX_MESSAGE_BYTES
from postroom.local.errors import BrokerError, invalid_parameter, invalid_value

COUNTS = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)
READ_ONLY = (*COUNTS, "CreatedTimestamp", "LastModifiedTimestamp", "QueueArn")

DEFAULTS: Mapping[str, str] = {
    "VisibilityTimeout": "30",
    "MaximumMessageSize": str(MAX_MESSAGE_BYTES),
    "MessageRetentionPeriod": "345600",
    "DelaySeconds": "0",
    "ReceiveMessageWaitTimeSeconds": "0",
    "SqsManagedSseEnabled": "true",
}
FIFO_DEFAULTS: Mapping[str, str] = {
    "FifoQueue": "true",
    "ContentBasedDeduplication": "false",
    "DeduplicationScope": "queue",
    "FifoThroughputLimit": "perQueue",
}
_RANGES = {
    "VisibilityTimeout": (0, 43_200),
    "MaximumMessageSize": (1_024, MAX_MESSAGE_BYTES),
    "MessageRetentionPeriod": (60, 1_209_600),
    "DelaySeconds": (0, 900),
    "ReceiveMessageWaitTimeSeconds": (0, 20),
    "KmsDataKeyReusePeriodSeconds": (60, 86_400),
}
_BOOLEAN = ("true", "false")
_CHOICES = {
    "FifoQueue": _BOOLEAN,
    "ContentBasedDeduplication": _BOOLEAN,
    "DeduplicationScope": ("queue", "messageGroup"),
    "FifoThroughputLimit": ("perQueue", "perMessageGroupId"),
    "SqsManagedSseEnabled": _BOOLEAN,
}
_ONLY_FIFO = frozenset({"DeduplicationScope", "FifoThroughputLimit"})
"""Attributes that a standard queue refuses with the reason; the other two are simply unknown there."""
_REMOVABLE = frozenset({"Policy", "RedrivePolicy", "RedriveAllowPolicy", "KmsMasterKeyId"})
_SETTABLE = frozenset({*_RANGES, *_CHOICES, *_REMOVABLE})
ALL_NAMES = frozenset({"All", *READ_ONLY, *_SETTABLE})

_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
_MAX_RECEIVE_COUNT = 1_000
_MAX_SOURCES = 10
_MAX_POLICY_BYTES = 8_192


class Redrive(NamedTuple):
    """A redrive policy: where messages go after how many receives."""

    target_arn: str
    max_receives: int


class RedriveAllow(NamedTuple):
    """A redrive-allow policy: which queues may use this one as their dead-letter queue."""

    permission: str = "allowAll"
    sources: tuple[str, ...] = ()

    def allows(self, source_arn: str) -> bool:
        """Whether a queue may name this one in its redrive policy."""
        return self.permission == "allowAll" or (self.permission == "byQueue" and source_arn in self.sources)


def check_queue_name(name: str, *, fifo: bool) -> None:
    """Check the name of a new queue. Raises InvalidParameterValue."""
    if fifo:
        if len(name) > 80 or not name.endswith(".fifo") or not _NAME.fullmatch(name.removesuffix(".fifo")):
            text = (
                "The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, "
                "must end with .fifo suffix and be 1 to 80 in length."
            )
            raise invalid_parameter(text)
    elif not _NAME.fullmatch(name):
        raise invalid_parameter("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length.")


def is_fifo(attributes: Mapping[str, str]) -> bool:
    """Whether the attributes of a CreateQueue ask for a FIFO queue."""
    value = attributes.get("FifoQueue")
    if value is None:
        return False
    if _choice("FifoQueue", value) == "false":  # SQS does not know it on a standard queue, not even to deny it
        raise unknown_attribute("FifoQueue")
    return True


def unknown_attribute(name: str) -> BrokerError:
    """Make the error for an attribute that this queue does not have."""
    return BrokerError("InvalidAttributeName", f"Unknown Attribute {name}.")


def validated(attributes: Mapping[str, str], *, fifo: bool) -> dict[str, str]:
    """Check attributes to set and return them as they are stored; an empty text means: remove it.

    Raises InvalidAttributeName or InvalidAttributeValue. What depends on other queues is checked by the broker.
    """
    stored: dict[str, str] = {}
    for name, value in attributes.items():
        if name in _ONLY_FIFO and not fifo:
            raise BrokerError("InvalidAttributeName", f"You can specify the {name} only when FifoQueue is set to true.")
        if name not in _SETTABLE or (name in FIFO_DEFAULTS and not fifo):
            raise unknown_attribute(name)
        stored[name] = _normal(name, value)
    return stored


def _normal(name: str, value: str) -> str:
    if name in _RANGES:
        return _in_range(name, value)
    if name in _CHOICES:
        return _choice(name, value)
    if not value:
        return ""
    checks: dict[str, Callable[[str], str]] = {
        "RedrivePolicy": _redrive_text,
        "RedriveAllowPolicy": _redrive_allow_text,
        "Policy": _policy_text,
    }
    check = checks.get(name)
    return value if check is None else check(value)


def invalid_attribute(name: str, why: str = "") -> BrokerError:
    """Make the error for a value that an attribute cannot have."""
    reason = f" Reason: {why}" if why else ""
    return BrokerError("InvalidAttributeValue", f"Invalid value for the parameter {name}.{reason}")


def _in_range(name: str, value: str) -> str:
    low, high = _RANGES[name]
    try:
        number = int(value)
    except ValueError:
        raise invalid_attribute(name, f"Must be an integer between {low} and {high}.") from None
    if not low <= number <= high:
        raise invalid_attribute(name, f"Must be between {low} and {high}.")
    return str(number)


def _choice(name: str, value: str) -> str:
    """Return a value of a closed set; a boolean may be written as Python and Java write it, ``True``."""
    choices = _CHOICES[name]
    if choices is _BOOLEAN:
        value = value.lower()
    if value not in choices:
        raise invalid_attribute(name, f"Must be one of {', '.join(choices)}.")
    return value


def _document(name: str, text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise invalid_attribute(name, "Must be a JSON object.") from None


def parse_redrive(text: str) -> Redrive:
    """Read a redrive policy. ``maxReceiveCount`` may be a number or its text. Raises InvalidParameterValue.

    A text that is no JSON object at all raises InvalidAttributeValue.
    """
    name = "RedrivePolicy"
    document = _document(name, text)
    for key in ("maxReceiveCount", "deadLetterTargetArn"):
        if document.get(key) in (None, ""):
            raise invalid_value(name, text, f"Redrive policy does not contain mandatory attribute: {key}.")
    if unknown := document.keys() - {"deadLetterTargetArn", "maxReceiveCount"}:
        raise invalid_attribute(name, f"Unknown key {min(unknown)}.")
    target, count = document["deadLetterTargetArn"], document["maxReceiveCount"]
    if not isinstance(target, str):
        raise invalid_value(name, text, "deadLetterTargetArn must be the ARN of a queue.")
    try:
        number = int(count) if isinstance(count, int | str) and not isinstance(count, bool) else 0
    except ValueError:
        number = 0
    if not 1 <= number <= _MAX_RECEIVE_COUNT:
        limits = f"valid values are from 1 to {_MAX_RECEIVE_COUNT} both inclusive."
        raise invalid_value(name, text, f"Invalid value for maxReceiveCount: {count}, {limits}")
    return Redrive(target, number)


def _redrive_text(text: str) -> str:
    policy = parse_redrive(text)
    document = {"deadLetterTargetArn": policy.target_arn, "maxReceiveCount": policy.max_receives}
    return msgspec.json.encode(document).decode()


def parse_redrive_allow(text: str) -> RedriveAllow:
    """Read a redrive-allow policy. Raises InvalidAttributeValue."""
    name = "RedriveAllowPolicy"
    document = _document(name, text)
    permission = document.get("redrivePermission")
    sources = document.get("sourceQueueArns", [])
    if permission not in {"allowAll", "denyAll", "byQueue"}:
        raise invalid_attribute(name, "redrivePermission must be allowAll, denyAll or byQueue.")
    try:
        arns = msgspec.convert(sources, tuple[str, ...])
    except msgspec.ValidationError:
        raise invalid_attribute(name, "sourceQueueArns must be a list of ARNs.") from None
    if (permission == "byQueue") != bool(arns):
        raise invalid_attribute(name, "sourceQueueArns belongs to redrivePermission byQueue, and only to it.")
    if len(arns) > _MAX_SOURCES:
        raise invalid_attribute(name, f"At most {_MAX_SOURCES} source queues.")
    return RedriveAllow(str(permission), arns)


def _redrive_allow_text(text: str) -> str:
    parse_redrive_allow(text)
    return text


def _policy_text(text: str) -> str:
    statements = _document("Policy", text).get("Statement", [])
    for each in cast("list[object]", statements if isinstance(statements, list) else [statements]):
        if not isinstance(each, dict):
            raise invalid_attribute("Policy", "Each Statement must be a JSON object.")
    if len(text.encode()) > _MAX_POLICY_BYTES:
        raise invalid_attribute("Policy", f"At most {_MAX_POLICY_BYTES} bytes.")
    return text


def check_combination(present: Mapping[str, str], changes: Mapping[str, str]) -> None:
    """Check attributes that are right alone but not together: those of a queue, and those that it is to get."""
    together = {**present, **changes}
    scope = together.get("DeduplicationScope", "queue")
    if together.get("FifoThroughputLimit") == "perMessageGroupId" and scope != "messageGroup":
        why = "perMessageGroupId is allowed only when DeduplicationScope is messageGroup."
        raise invalid_attribute("FifoThroughputLimit", why)
    # A key that is set later takes the place of SQS's own keys; SQS's own keys do not take that of a key.
    if together.get("KmsMasterKeyId") and changes.get("SqsManagedSseEnabled") == "true":
        text = (
            "You can use one type of server-side encryption (SSE) at one time. "
            "You can either enable KMS SSE or SQS SSE."
        )
        raise BrokerError("InvalidAttributeName", text)
