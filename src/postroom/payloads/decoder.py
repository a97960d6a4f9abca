"""What every decoder is, and the decoders that need no JSON."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import msgspec

from postroom.errors import DecodeError, Drop, PayloadError, Reject, Retry
from postroom.message import Message
from postroom.payloads.problems import not_unicode

_MARK: Final = "\ufeff"
"""The byte order mark that .NET writes first. It carries no meaning, and RFC 8259 lets a parser ignore it."""

Unwrap = Callable[[Message], Message]
"""Takes a message out of its envelope: ``unwrap_sns``, ``unwrap_eventbridge``, or your own."""


class Decoder(ABC):
    """Turns a message into the payload that a handler asks for.

    Call it with a ``Message``. It returns the payload, or raises
    ``DecodeError`` or ``ValidationError`` with the message's id, and
    never quotes the body. It keeps no state between messages and may be called from several threads.

    Derive from it for a format of your own (Avro, Protobuf): an instance is accepted wherever a payload type is.
    Raise ``DecodeError`` for a body that you cannot read.
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self, message: Message, /) -> Any:
        """Decode the payload of one message."""


class MessageDecoder(Decoder):
    """Hands out the message as it is: the payload type is ``Message``."""

    __slots__ = ()

    def __call__(self, message: Message, /) -> Message:
        """Return the message."""
        return message


class TextDecoder(Decoder):
    """Hands out the body as it is: the payload type is ``str``."""

    __slots__ = ()

    def __call__(self, message: Message, /) -> str:
        """Return the body."""
        return message.body


class BytesDecoder(Decoder):
    """Hands out the body's UTF-8: the payload type is ``bytes``."""

    __slots__ = ()

    def __call__(self, message: Message, /) -> bytes:
        """Return the body's UTF-8, or raise ``DecodeError`` for a lone surrogate."""
        try:
            return message.body.encode()
        except UnicodeEncodeError as error:
            problem = not_unicode(error, message.id)
        raise problem  # outside the except block: the UnicodeEncodeError holds the whole body


class GuardedDecoder(Decoder):
    """Runs code of the user's, a decoder or an unwrapping: whatever it raises becomes a ``PayloadError``.

    Unless it is an instruction: ``Reject``, ``Drop`` or ``Retry``.
    """

    __slots__ = ("_inner", "unwraps")

    def __init__(self, inner: Decoder, unwrap: Unwrap | None) -> None:
        self._inner = inner
        self.unwraps: Unwrap | None = unwrap
        """What takes messages out of an envelope first; None: they are decoded as they are."""

    def __call__(self, message: Message, /) -> Any:
        """Unwrap the message and decode what was in it."""
        try:
            return self._inner(message if self.unwraps is None else self.unwraps(message))
        except (PayloadError, Reject, Drop, Retry):
            raise
        except Exception as error:
            text = f"the body could not be decoded ({type(error).__name__})"
            raise DecodeError(text, message_id=message.id) from error


Explain = Callable[[Exception, Message], PayloadError]


class JsonDecoder(Decoder):
    """Decodes the body as JSON with a validator; what the validator raises is explained without the input.

    The explanation is raised outside the ``except`` block on purpose: validators keep and quote the input in their
    own exceptions, so those must not hang on ours as ``__context__``, where a logged traceback would print them.
    """

    __slots__ = ("_decode", "_explain")

    def __init__(self, decode: Callable[[str], Any], explain: Explain) -> None:
        self._decode = decode
        self._explain = explain

    def __call__(self, message: Message, /) -> Any:
        """Decode the body, or raise ``DecodeError`` or ``ValidationError``. A leading byte order mark is skipped."""
        try:
            return self._decode(message.body)
        except Exception as error:
            problem = None if message.body.startswith(_MARK) else self._explain(error, message)
        if problem is None:
            return self(msgspec.structs.replace(message, body=message.body.lstrip(_MARK)))
        raise problem
