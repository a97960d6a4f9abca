"""Of which kind a message is, by a field of its body, without decoding the rest."""

import re
from typing import Any, Final

import msgspec

from postroom.message import Message
from postroom.payloads.decoder import MARK

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,127}")


class FieldReader:
    """Reads one text field of a JSON object, and skips everything else."""

    __slots__ = ("_decode", "name")

    def __init__(self, name: str) -> None:
        fields: list[Any] = [("kind", Any, msgspec.field(default=None, name=name))]
        self.name: str = name
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Kind", fields)).decode

    def __call__(self, message: Message, /) -> str | None:
        """Return the text of the field; None where there is none, or the body is no JSON object."""
        try:
            kind = self._decode(message.body.lstrip(MARK)).kind  # type: ignore[attr-defined]
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return None
        return kind if isinstance(kind, str) else None


def in_words(kind: str) -> str:
    """Return a kind as a log line shows it: as it is if it is a name, such as EventBridge's with spaces."""
    return kind if _NAME.fullmatch(kind) else "(not shown)"
