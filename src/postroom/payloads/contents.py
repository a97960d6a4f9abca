"""Bodies that are packed: in base64, compressed, or stored elsewhere.

They are unpacked behind the context, right before the payload is decoded: a message that waits is kept as it came.
"""

import base64
import binascii
import zlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

import msgspec

from postroom.checking import check_flag
from postroom.errors import DecodeError
from postroom.message import Message
from postroom.options import check_count
from postroom.payloads.decoder import MARK
from postroom.types import Settlement

MOST: Final = 16 * 1024 * 1024
"""Bytes that a body may have unpacked, unless ``most=`` says otherwise: sixteen times what SQS takes."""
_GZIP: Final = "H4sI"
"""How the base64 of every gzip begins."""
_PART: Final = 4096
"""Bytes that are inflated at once."""


class Contents(ABC):
    """A step of ``Consumer(unwrap=...)`` that changes the body alone.

    Derive from it for a packing of your own, such as an encryption. Steps of this kind stand behind the envelopes; the
    resolver of the context does not see what they return. One that is an async context manager is entered when a
    consumer starts and left after it has stopped.
    """

    @abstractmethod
    def __call__(self, message: Message, /) -> Message | Awaitable[Message]:
        """Return the message with its body unpacked, now or later.

        Raises:
            PayloadError: the body is not packed so. ``Retry`` for what may be there later.
        """

    def settled(self, message: Message, settlement: Settlement, /) -> None:  # noqa: B027 - few steps need it
        """Note what became of a message, as it was received. Called in the event loop; it must be quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base64Body(Contents):
    """Unpacks a body of base64, padded or not, to the UTF-8 text that it stands for.

    Args:
        raw: whether a body that is no base64 is taken as it is. JSON never is base64, unless it is a single word.
    """

    raw: bool = False

    def __post_init__(self) -> None:
        check_flag("Base64Body(raw=...)", self.raw)

    def __call__(self, message: Message, /) -> Message:
        """Return the message with its body unpacked. Raises ``DecodeError``."""
        packed = _decoded(message.body)
        if packed is None:
            if self.raw:
                return message
            raise DecodeError("the body is not base64", message_id=message.id)
        return _with(message, packed, "base64")


@dataclass(frozen=True, slots=True, kw_only=True)
class GzipBody(Contents):
    """Unpacks a body that is the base64 of a gzip: SQS takes text only.

    Args:
        most: bytes that the body may have unpacked. What is larger is refused before it takes the memory.
        raw: whether a body that does not begin as one is taken as it is. No JSON begins so.

    Raises:
        ConfigurationError: ``most`` is no whole number from 1 up.
    """

    most: int = MOST
    raw: bool = False

    def __post_init__(self) -> None:
        check_count("GzipBody", "most", self.most)
        check_flag("GzipBody(raw=...)", self.raw)

    def __call__(self, message: Message, /) -> Message:
        """Return the message with its body unpacked. Raises ``DecodeError``."""
        if self.raw and not message.body.lstrip(MARK).startswith(_GZIP):
            return message
        packed = _decoded(message.body)
        if packed is None:
            raise DecodeError("the body is not the base64 of a gzip", message_id=message.id)
        return _with(message, self._inflated(packed, message), "gzip")

    def _inflated(self, packed: bytes, message: Message) -> bytes:
        text = "the body is the base64 of something else than a whole gzip"
        # In parts, into one buffer: a gzip may have some ten thousand members, and for each of them
        # all that follows it, and all that was found before it, would be copied.
        found, rest, inflate = bytearray(), memoryview(packed), zlib.decompressobj(wbits=31)
        try:
            while rest:
                part = rest[:_PART]
                found += inflate.decompress(part, self.most - len(found) + 1)
                if len(found) > self.most:
                    text = f"the body is larger than GzipBody(most={self.most}) when it is unpacked"
                    break
                rest = rest[len(part) - len(inflate.unused_data) :]
                if inflate.eof:
                    if not rest:
                        return bytes(found)
                    inflate = zlib.decompressobj(wbits=31)
        except zlib.error:
            pass
        raise DecodeError(text, message_id=message.id)


def _decoded(body: str) -> bytes | None:
    text = "".join(body.lstrip(MARK).split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True) if text else None
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return None


def _with(message: Message, body: bytes, kind: str) -> Message:
    try:
        return msgspec.structs.replace(message, body=body.decode())
    except UnicodeDecodeError as error:
        text = f"what the {kind} of the body stands for is no UTF-8 text (byte {error.start})"
    raise DecodeError(text, message_id=message.id)
