"""What every decoder is, and the decoders that need no JSON."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from postroom.checking import shown
from postroom.errors import DecodeError, Drop, PayloadError, Reject, Retry
from postroom.message import Message, MessageAttribute
from postroom.payloads.problems import not_unicode

_EXPECTED: Final = 'expected is a mapping such as {"tenantId": MessageAttribute(string_value="acme")}'
MARK: Final = "\ufeff"
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
            if self.unwraps is not None:
                message = unwrapped(self.unwraps, message, self.unwraps(message))
            return self._inner(message)
        except (PayloadError, Reject, Drop, Retry):
            raise
        except Exception as error:
            text = f"the body could not be decoded ({type(error).__name__})"
            raise DecodeError(text, message_id=message.id) from error


def unwrapped(step: object, message: Message, found: object) -> Message:
    """Return what a step of the user's has made of a message.

    Raises:
        DecodeError: it is no message, or one that nothing can read. The text names the step, and what is expected.
    """
    if found is message:
        return message
    problem = _problem(found, message.message_attributes)
    if problem is None:
        return cast("Message", found)
    if inspect.iscoroutine(found):
        found.close()  # it would warn that it was never awaited
    raise DecodeError(f"{shown(step)}, a step of unwrap=, returned {problem}", message_id=message.id)


def _problem(found: object, before: object) -> str | None:  # noqa: PLR0911 - one for each thing that is wrong
    if not isinstance(found, Message):
        return f"{type(found).__name__} instead of a Message"
    body, attributes = cast("tuple[object, object]", (found.body, found.message_attributes))
    if not isinstance(body, str):
        return f"a Message with a body of {type(body).__name__}; expected is a text"
    if attributes is before:
        return None
    if not isinstance(attributes, Mapping):
        return f"a Message with message_attributes of {type(attributes).__name__}; {_EXPECTED}"
    for name, value in cast("Mapping[object, object]", attributes).items():
        if not isinstance(name, str) or not isinstance(value, MessageAttribute):
            return f"a Message with message_attributes of {type(name).__name__} to {type(value).__name__}; {_EXPECTED}"
        text = cast("object", value.string_value)
        if text is not None and not isinstance(text, str):
            return f"a Message with a MessageAttribute with a string_value of {type(text).__name__}; {_EXPECTED}"
    return None


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
            problem = None if message.body.startswith(MARK) else self._explain(error, message)
        if problem is None:
            return self(msgspec.structs.replace(message, body=message.body.lstrip(MARK)))
        raise problem
