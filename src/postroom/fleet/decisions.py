"""Operators' decisions as they are written down: one field for each part, so that two of them do not undo each other.

A field is ``state t:acme``, ``diverted_to t:acme``, ``concurrency t:acme`` or ``rate t:acme``; its value is JSON with
what was decided and why. What belongs together, as a diversion and its queue, is written in one call.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from postroom.checking import check_queue, is_number, shown
from postroom.errors import ConfigurationError

PARTS: Final = ("state", "diverted_to", "concurrency", "rate")
STATES: Final = ("paused", "quarantined", "diverted")
LIMITS: Final = {"concurrency": (1, 1_000_000), "rate": (1e-6, 1e9)}
"""The least and the most of each limit: the store fails on what is beyond, for all tenants."""


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that was decided about one tenant."""

    state: str | None = None
    diverted_to: str | None = None
    concurrency: int | None = None
    rate: float | None = None
    reason: str | None = None
    """Why, in the words of the operator who decided last."""


class _Field(msgspec.Struct, omit_defaults=True):
    value: Any = None
    reason: Any = None


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Field).decode


def field_of(part: str, name: str) -> str:
    """Return the field for one part of what is decided about a tenant."""
    return f"{part} {name}"


def written(value: object, reason: str | None) -> str | None:
    """Return what to write for a decision; None to take it back."""
    return None if value is None else _encode(_Field(value, reason)).decode()


def is_limit(part: str, value: object) -> bool:
    """Whether a value can be a tenant's ``concurrency``, a whole number, or its ``rate``."""
    least, most = LIMITS[part]
    whole = part == "concurrency"
    return is_number(value) and least <= value <= most and (not whole or isinstance(value, int))


def verdicts(fields: Mapping[str, str], refuse: Callable[[str, str], object] | None = None) -> dict[str, Verdict]:
    """Return what was decided, by tenant.

    What cannot be used, as a later version or a person may have written it, costs only itself: the
    other parts of what was decided about that tenant hold.

    Args:
        fields: what the store has.
        refuse: told of each field that cannot be used, and why.
    """
    parts: dict[str, dict[str, Any]] = {}
    for field, text in fields.items():
        part, _, name = field.partition(" ")
        if part not in PARTS or not name:
            continue
        try:
            said = _decode(text)
            value = _usable(part, said.value)
        except (ConfigurationError, msgspec.DecodeError, RecursionError, UnicodeError) as error:
            if refuse is not None:
                refuse(field, str(error) or type(error).__name__)
            continue
        known = parts.setdefault(name, {})
        known[part] = value
        reason = said.reason
        if isinstance(reason, str) and (part == "state" or "reason" not in known):
            known["reason"] = reason
    return {name: Verdict(**known) for name, known in parts.items()}


def _usable(part: str, value: Any) -> Any:
    """Return the value of a part. Raises ``ConfigurationError`` if it can be none."""
    if part == "diverted_to":
        check_queue("diverted_to", value)
    elif part == "state":
        if value not in STATES:
            found = repr(value) if isinstance(value, str) else shown(value)
            raise ConfigurationError(f"this version knows the states {', '.join(STATES)}; got {found}")
    else:
        least, most = LIMITS[part]
        if part == "concurrency" and isinstance(value, float) and value.is_integer() and value <= most:
            value = int(value)  # as other languages write whole numbers
        if not is_limit(part, value):
            raise ConfigurationError(f"{part} takes a number from {least:g} to {most:g}; got {shown(value)}")
    return value
