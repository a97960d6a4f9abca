"""Payload errors that say what is wrong and where, and never what was in the body.

Validators quote their input: pydantic prints ``input_value=...``, msgspec prints the value that is not in an enum.
So their texts are not passed on. Each problem is told again from what the *type* says; where a validator's words
are used, they come from a list of words that were checked. Paths name only fields that the payload type declares:
a key of a ``dict[str, ...]`` is input, and is shown as ``[...]``.
"""

import re
import traceback
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from postroom.errors import DecodeError, PayloadError, ValidationError

_SHOWN: Final = 3
UNKNOWN_TAG: Final = "not one of the allowed tags"
"""What is said of an object with a tag of no type of its union."""
_DECODING: Final = frozenset({"postroom", "pydantic", "msgspec"})
"""The packages that are at work when deeply nested JSON exhausts the stack."""
_SIMPLE_NAME: Final = re.compile(r"[A-Za-z_$][\w$-]*", re.ASCII)


class OwnWords(ValueError):
    """What a check of one of this package's types says: it quotes nothing, so it may be shown."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a body."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def not_json(text: str, message_id: str | None) -> DecodeError:
    """Return the error for a body that is not JSON; ``text`` says why and at which byte."""
    return DecodeError(f"the body is not JSON: {text}", message_id=message_id)


def empty(message_id: str | None) -> DecodeError:
    """Return the error for a body without anything in it."""
    return DecodeError("the body is empty, expected JSON", message_id=message_id)


def too_deep(message_id: str | None) -> DecodeError:
    """Return the error for JSON that would exhaust the stack."""
    return DecodeError("the body cannot be decoded: its JSON is nested too deeply", message_id=message_id)


def not_unicode(error: UnicodeError, message_id: str | None) -> DecodeError:
    """Return the error for a body with lone surrogates, which are no Unicode text."""
    where = f" (character {error.start})" if isinstance(error, UnicodeEncodeError) else ""
    return DecodeError(f"the body is not valid Unicode: it has a lone surrogate{where}", message_id=message_id)


def not_valid(payload: str, problems: Iterable[Problem], message_id: str | None) -> ValidationError:
    """Return the error for JSON that is not a ``payload``. It shows the first few problems."""
    found = list(problems)
    shown = "; ".join(map(str, found[:_SHOWN]))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ValidationError(
        f"the body is not a valid {payload}: {shown}{more}", path=found[0].path, message_id=message_id
    )


def refused(payload: str, error: Exception, message_id: str | None) -> ValidationError:
    """Return the error for a check in the payload type that broke. The check's own exception is its cause."""
    problem = Problem("$", f"the type's own code raised {type(error).__name__}")
    invalid = not_valid(payload, [problem], message_id)
    invalid.__cause__ = error
    return invalid


def recursed(payload: str, error: RecursionError, message_id: str | None) -> PayloadError:
    """Return the error for a stack that was exhausted: by the JSON, or by the payload type's own code."""
    frames = traceback.walk_tb(error.__traceback__)
    packages = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames}
    return too_deep(message_id) if packages <= _DECODING else refused(payload, error, message_id)


def json_path(steps: Iterable[str | int | None]) -> str:
    """Write a path: names, indexes, and None for a key that must not be shown."""
    return "$" + "".join(map(_step, steps))


def _step(step: str | int | None) -> str:
    if step is None:
        return "[...]"
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _SIMPLE_NAME.fullmatch(step) else f"[{step!r}]"


def unaliased(kind: Any) -> Any:
    """Return what a name of a ``type`` statement stands for, and anything else as it is."""
    while type(kind).__name__ == "TypeAliasType":  # that of `typing`, or of typing_extensions
        kind = kind.__value__
    return kind


def type_name(payload_type: object) -> str:
    """Return how a payload type is called in a text: as its user wrote it, without modules and notes."""
    if typing.get_origin(payload_type) is typing.Annotated:
        return type_name(typing.get_args(payload_type)[0])
    if isinstance(payload_type, type) and not hasattr(payload_type, "__origin__"):
        return payload_type.__name__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(payload_type).replace("<locals>.", ""))
