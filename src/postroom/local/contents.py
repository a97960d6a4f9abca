"""What a message may contain, and the MD5s by which SQS lets a client check it.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from hashlib import md5, sha256
from struct import pack

from postroom.local.errors import BrokerError, invalid_parameter, invalid_value
from postroom.local.shapes import AttributeValue

MAX_MESSAGE_BYTES = 1_048_576
"""The largest message, attributes included, and the largest sum of a batch (1 MiB since August 2025)."""
MAX_ATTRIBUTES = 10

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ATTRIBUTE_NAME = re.compile(r"(?!\.)(?!.*\.\.)[\w.-]{1,256}(?<!\.)")  # \w: SQS takes the letters of every script
_RESERVED_NAME = re.compile(r"(?i)(aws|amazon)\.")
_DATA_TYPE = re.compile(r"(String|Number|Binary)(\..*)?", re.DOTALL)
_MAX_DATA_TYPE = 256
_ID = re.compile(r"""[A-Za-z0-9!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}""")
_TRACE_HEADER = "AWSTraceHeader"


def check_text(text: str) -> None:
    """Refuse characters that XML 1.0 cannot carry. Raises InvalidMessageContents."""
    if _has_forbidden(text):
        raise BrokerError("InvalidMessageContents", "Invalid characters found. Valid characters are defined by XML.")


def _has_forbidden(text: str) -> bool:
    return not text.isprintable() and _FORBIDDEN.search(text) is not None


def check_token(name: str, value: str) -> None:
    """Check a message group id, a deduplication id or a receive attempt id (1 to 128 printable characters)."""
    if not _ID.fullmatch(value):
        reason = f"{name} can only include alphanumeric and punctuation characters. 1 to 128 in length."
        raise invalid_value(name, value[:200], reason)


def utf8_size(text: str) -> int:
    """Return the number of bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def message_size(body: str, attributes: Mapping[str, AttributeValue]) -> int:
    """Return what a message counts against the limit: body, attribute names, types and values; not system ones."""
    size = utf8_size(body)
    for name, value in attributes.items():
        size += utf8_size(name) + len(value.data_type)
        size += len(value.binary_value) if value.binary_value is not None else utf8_size(value.string_value or "")
    return size


def check_attributes(attributes: Mapping[str, AttributeValue]) -> None:
    """Check the message attributes of a send: number, names, types and values."""
    if len(attributes) > MAX_ATTRIBUTES:
        text = f"Number of message attributes [{len(attributes)}] exceeds the allowed maximum [{MAX_ATTRIBUTES}]."
        raise invalid_parameter(text)
    for name, value in attributes.items():
        _check_name(name)
        _check_value(name, value)


def _label(name: str) -> str:
    return f"Message (user) attribute '{name}'"


def _check_name(name: str) -> None:
    if not _ATTRIBUTE_NAME.fullmatch(name):
        text = (
            f"Message (user) attribute name {name[:256]!r} is not allowed: up to 256 alphanumeric characters, "
            "underscores, hyphens and periods; no period at the start, at the end, or after another."
        )
        raise invalid_parameter(text)
    if _RESERVED_NAME.match(name):
        raise invalid_parameter(f"Message (user) attribute name {name!r} starts with a reserved prefix.")


def _check_value(name: str, value: AttributeValue) -> None:
    if not value.data_type:
        raise invalid_parameter(f"{_label(name)} must contain a non-empty message attribute type.")
    kind = _DATA_TYPE.fullmatch(value.data_type)
    if kind is None or len(value.data_type) > _MAX_DATA_TYPE or _FORBIDDEN.search(value.data_type):
        text = (
            f"{_label(name)} has an invalid message attribute type, the set of supported type "
            "prefixes is Binary, Number, and String."
        )
        raise invalid_parameter(text)
    if value.string_list_values or value.binary_list_values:
        raise BrokerError("UnsupportedOperation", "Message attribute list values in SendMessage are not supported.")
    if value.string_value is not None and value.binary_value is not None:
        raise invalid_parameter(f"{_label(name)} has multiple values.")
    base = kind.group(1)
    present = value.binary_value if base == "Binary" else value.string_value
    if not present:
        raise invalid_parameter(f"{_label(name)} must contain a non-empty value of type '{base}'.")
    if value.string_value is not None:
        if _has_forbidden(value.string_value):
            raise invalid_parameter(f"{_label(name)} contains characters that are not allowed in a message.")
        if base == "Number":
            _check_number(name, value.string_value)


def _check_number(name: str, text: str) -> None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise invalid_parameter(f"Can't cast the value of message (user) attribute '{name}' to a number.")


def trace_header(attributes: Mapping[str, AttributeValue]) -> str | None:
    """Return the X-Ray trace header among the message system attributes of a send; there is no other one."""
    for name, value in attributes.items():
        if name != _TRACE_HEADER:
            raise invalid_parameter(f"Message system attribute name {name!r} is invalid.")
        if value.data_type != "String" or not value.string_value:
            raise invalid_parameter(f"Message system attribute {name!r} must be a non-empty String.")
        check_text(value.string_value)
        return value.string_value
    return None


def content_id(body: str) -> str:
    """Return the deduplication id that content-based deduplication gives a body."""
    return sha256(body.encode()).hexdigest()


def md5_of_body(body: str) -> str:
    """Return the MD5 of a body, in hexadecimal."""
    return md5(body.encode(), usedforsecurity=False).hexdigest()


def md5_of_attributes(attributes: Mapping[str, AttributeValue]) -> str | None:
    """Return the MD5 of message attributes, in hexadecimal; None when there are none.

    By name in order: length and bytes of the name, of the type, a byte for the kind of transport (1 text, 2 binary),
    length and bytes of the value.
    """
    if not attributes:
        return None
    digest = md5(usedforsecurity=False)
    for name in sorted(attributes):
        value = attributes[name]
        binary = value.data_type.startswith("Binary")
        raw = (value.binary_value or b"") if binary else (value.string_value or "").encode()
        for part in (name.encode(), value.data_type.encode()):
            digest.update(pack(">I", len(part)) + part)
        digest.update((b"\x02" if binary else b"\x01") + pack(">I", len(raw)) + raw)
    return digest.hexdigest()


def selected(attributes: dict[str, AttributeValue], names: Iterable[str]) -> dict[str, AttributeValue]:
    """Return the attributes that a receive asks for: by name, by ``prefix.*``, or all by ``All``, ``.*`` and ``*``."""
    chosen: set[str] = set()
    for name in names:
        if name in {"All", ".*", "*"}:
            return attributes
        if name.endswith(".*"):
            chosen.update(each for each in attributes if each.startswith(name[:-2]))
        elif name in attributes:
            chosen.add(name)
    return {name: value for name, value in attributes.items() if name in chosen}
