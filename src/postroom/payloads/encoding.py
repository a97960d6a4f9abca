"""From a payload to the body that carries it: the other direction of ``decoder_for``."""

import dataclasses
import functools
import json
import operator
import sys
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any, Final, cast

import msgspec

from postroom.errors import ConfigurationError
from postroom.message import Message
from postroom.payloads.decoder import Decoder
from postroom.payloads.decoding import mentions_pydantic, without_notes
from postroom.payloads.problems import type_name
from postroom.payloads.renaming import Rename

Encode = Callable[[Any], str]
"""Makes the body of a payload."""

ODD_FLOAT: Final = "it would have null for NaN or an infinity, which JSON does not have: send None, or a text"
_LEAVES: Final = frozenset({str, int, float, bool, type(None)})
_MOST_KNOWN: Final = 256
"""Payload types of which the encoder is kept; the oldest go first."""
_known: Final[dict[type[Any], Encode]] = {}


def encode_payload(payload: Any) -> str:
    """Return the body of a payload, as a consumer of its type decodes it.

    Text and bytes are the body as they are. Everything that mentions pydantic is written by pydantic, with its aliases;
    the rest as JSON by msgspec.

    Raises:
        ConfigurationError: the payload, or something in it, has no JSON form, such as NaN. The text names types and no
            values.
    """
    kind = cast("type[Any]", type(payload))
    encode = _known.get(kind)
    if encode is None:
        if len(_known) >= _MOST_KNOWN:
            _known.pop(next(iter(_known)), None)
        encode = _known[kind] = _encoder_of(kind)
    return encode(payload)


def encoder_for(payload_type: Any, *, rename: Rename | None = None) -> Encode:
    """Build the encoder of a payload type.

    Args:
        payload_type: as a handler names it; unions and containers too.
        rename: ``"camel"`` writes the fields of dataclasses ``orderId``, as ``decoder_for(rename="camel")`` reads them.

    Raises:
        ConfigurationError: pydantic knows no schema of the type, or ``rename`` is not ``"camel"``.
    """
    if rename is not None and rename != "camel":
        raise ConfigurationError(f'encoder_for(rename=...) takes "camel" or None; got {rename!r}')
    if rename is not None:
        return lambda payload: to_json(_camelled(payload))
    plain = without_notes(payload_type)
    if isinstance(plain, Decoder) or (isinstance(plain, type) and issubclass(plain, (str, bytes, Message))):
        return encode_payload
    if not mentions_pydantic(payload_type):
        return _encode_json
    from postroom.payloads.models import model_encoder  # noqa: PLC0415 - pydantic is an extra

    return model_encoder(payload_type)


def _encode_json(payload: Any) -> str:
    """Write a payload of a type that is decoded from JSON: also if it is a text."""
    return to_json(payload) if isinstance(payload, str | bytes) else encode_payload(payload)


def _encoder_of(kind: type[Any]) -> Encode:
    if issubclass(kind, Enum):  # also one of texts: it is decoded from JSON
        return to_json
    if issubclass(kind, str):
        return str
    if issubclass(kind, bytes):
        return _text_of_bytes
    if issubclass(kind, Message):
        return _body_of
    if mentions_pydantic(kind):
        return encoder_for(kind)
    return to_json


def _text_of_bytes(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        pass
    raise ConfigurationError("a payload of bytes is sent as UTF-8 text, and these bytes are none: send them as base64")


def _body_of(payload: Message) -> str:
    return payload.body


def to_json(payload: Any) -> str:
    """Return a payload as JSON: text and bytes, too. Raises ``ConfigurationError``, as ``encode_payload``."""
    kind = cast("type[Any]", type(payload))
    try:
        if "pydantic.dataclasses" in sys.modules:
            payload = _by_pydantic(payload)
        body = msgspec.json.encode(payload, enc_hook=_foreign)
        if b"null" not in body or not has_odd_float(msgspec.to_builtins(payload, str_keys=True, enc_hook=_left_out)):
            return body.decode()
        problem = ConfigurationError(f"a payload of type {type_name(kind)} cannot be sent as JSON ({ODD_FLOAT})")
    except ConfigurationError:
        raise
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        problem = _unsendable(kind, type(error).__name__)
    raise problem  # outside the except block: an error may quote the payload


def has_odd_float(value: object) -> bool:
    """Return whether there is a float that JSON has no number for, in what is made of JSON's own types."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return True
    return False


def _foreign(value: Any) -> Any:
    """Write what msgspec does not know: a pydantic model inside of a list or a dict."""
    pydantic = sys.modules.get("pydantic")  # not imported: then the value is none of its models
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return msgspec.Raw(encode_payload(value).encode())
    raise TypeError(type_name(cast("object", type(value))))


def _by_pydantic(value: Any) -> Any:
    """Write the pydantic dataclasses in a payload. msgspec does not ask for them, and writes them without aliases."""
    if isinstance(value, dict):
        entries = cast("dict[Any, Any]", value)
        made = _all_by_pydantic(entries.values())
        return entries if made is None else dict(zip(entries, made, strict=True))
    if isinstance(value, list | tuple | set | frozenset):
        made = _all_by_pydantic(cast("list[Any]", value))
        return cast("Any", value) if made is None else made
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    if hasattr(value, "__pydantic_validator__"):
        return msgspec.Raw(encode_payload(value).encode())
    names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    made = _all_by_pydantic([getattr(value, name) for name in names])
    return value if made is None else dict(zip(names, made, strict=True))


def _all_by_pydantic(values: Collection[Any]) -> list[Any] | None:
    """Return what ``_by_pydantic`` makes of values; None where it changes none of them."""
    if _LEAVES.issuperset(map(type, values)):
        return None
    made = [_by_pydantic(each) for each in values]
    return made if any(map(operator.is_not, made, values)) else None


def _left_out(_value: object) -> None:
    """Stand for a pydantic model, which was looked at when it was written."""


@functools.lru_cache(_MOST_KNOWN)
def _camel_names(fields: tuple[str, ...]) -> dict[str, str]:
    """Return how msgspec, by which ``decoder_for(rename="camel")`` reads them, spells the names of fields."""
    struct = msgspec.defstruct("Camel", [(field, object) for field in fields], rename="camel")
    return {field.name: field.encode_name for field in msgspec.structs.fields(struct)}


def _camelled(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = _camel_names(tuple(field.name for field in dataclasses.fields(value)))
        return {name: _camelled(getattr(value, field)) for field, name in names.items()}
    if isinstance(value, dict):
        return {key: _camelled(each) for key, each in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_camelled(each) for each in cast("list[Any]", value)]
    return value


def _unsendable(kind: type[Any], why: str) -> ConfigurationError:
    return ConfigurationError(
        f"a payload of type {type_name(kind)} cannot be sent as JSON ({why}): use a dataclass, a msgspec Struct, a "
        "pydantic model, a TypedDict, dict, list, str or bytes, or write the text yourself, as Sender(encode=...) does"
    )
