"""Operators' decisions as they are written down: one field for each part, so that two of them do not undo each other.

A field is ``state t:acme``, ``diverted_to t:acme``, ``concurrency t:acme`` or ``rate t:acme``; its value is JSON with
what was decided and why. What belongs together, as a diversion and its queue, is written in one call.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

PARTS: Final = ("state", "diverted_to", "concurrency", "rate")


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
    reason: str | None = None


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Field).decode


def field_of(part: str, name: str) -> str:
    """Return the field for one part of what is decided about a tenant."""
    return f"{part} {name}"


def written(value: object, reason: str | None) -> str | None:
    """Return what to write for a decision; None to take it back."""
    return None if value is None else _encode(_Field(value, reason)).decode()


def verdicts(fields: Mapping[str, str]) -> dict[str, Verdict]:
    """Return what was decided, by tenant. What cannot be read, as a later version may have written it, is left out."""
    parts: dict[str, dict[str, Any]] = {}
    for field, text in fields.items():
        part, _, name = field.partition(" ")
        if part not in PARTS or not name:
            continue
        try:
            said = _decode(text)
        except msgspec.DecodeError:
            continue
        known = parts.setdefault(name, {})
        known[part] = said.value
        if said.reason is not None and (part == "state" or "reason" not in known):
            known["reason"] = said.reason
    found: dict[str, Verdict] = {}
    for name, known in parts.items():
        try:
            found[name] = msgspec.convert(known, Verdict)
        except msgspec.ValidationError:
            continue
    return found
