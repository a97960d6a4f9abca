"""From a payload type to the decoder for it, built once when a handler is registered."""

import inspect
import typing
from typing import Any

from postroom.checking import check_plain
from postroom.errors import ConfigurationError
from postroom.message import Message
from postroom.payloads.decoder import (
    BytesDecoder,
    Decoder,
    GuardedDecoder,
    JsonDecoder,
    MessageDecoder,
    TextDecoder,
    Unwrap,
)
from postroom.payloads.native import native_decoder
from postroom.payloads.problems import unaliased
from postroom.payloads.renaming import Rename

_PYDANTIC = frozenset({"pydantic", "pydantic_core", "annotated_types"})


def decoder_for(payload_type: Any, *, rename: Rename | None = None, unwrap: Unwrap | None = None) -> Decoder:
    """Build the decoder for a payload type.

    ========================================================  ====================================================
    type                                                      payload
    ========================================================  ====================================================
    ``Message``                                               the message itself, nothing is decoded
    ``str``, ``bytes``                                        the body as it is, its UTF-8
    ``Any``, ``object``, ``dict``, ``list``                   decoded JSON
    dataclass, msgspec Struct, TypedDict, NamedTuple, and     decoded and validated by msgspec, strictly: ``"5"`` is
    unions and containers of them                             no ``int``. Numbers become ``Decimal`` exactly
    anything that mentions pydantic                           decoded and validated by pydantic, as the model says
    a ``Decoder``                                        whatever it returns
    ========================================================  ====================================================

    Args:
        payload_type: what the handler asks for.
        rename: ``"camel"`` when the JSON spells the fields of dataclasses ``orderId`` and Python ``order_id``.
            Structs and pydantic models say it themselves: ``rename="camel"``, ``alias_generator=to_camel``.
        unwrap: takes the message out of an envelope first, such as ``unwrap_sns``.

    Raises:
        ConfigurationError: no body can be decoded into this type. The text says what to use instead.
    """
    if unwrap is not None:
        check_plain("decoder_for(unwrap=...)", "(Message) -> Message", unwrap)
    if _is_instance(payload_type):
        name = type(payload_type).__name__
        raise ConfigurationError(f"a payload type is a class: write payload={name}, not an instance of it")
    decoder = _decoder(payload_type, rename)
    return decoder if unwrap is None else GuardedDecoder(decoder, unwrap)


def _decoder(payload_type: Any, rename: Rename | None) -> Decoder:
    plain = without_notes(payload_type)
    if isinstance(plain, Decoder):
        special: Decoder | None = plain if isinstance(plain, _OURS) else GuardedDecoder(plain, None)
    else:
        special = _SPECIAL.get(plain) if isinstance(plain, type) else None
    if special is None and mentions_pydantic(plain):
        if rename is not None:
            raise ConfigurationError(
                "decoder_for(rename=...) does not rename pydantic models: "
                "write `model_config = ConfigDict(alias_generator=to_camel)` in the model"
            )
        from postroom.payloads.models import model_decoder  # noqa: PLC0415 - pydantic is an extra

        return model_decoder(plain)
    if special is None:
        return native_decoder(plain, rename=rename)
    if rename is not None:
        raise ConfigurationError("decoder_for(rename=...) renames the fields of dataclasses only")
    return special


# These raise nothing but PayloadError by themselves.
_OURS = (JsonDecoder, GuardedDecoder, MessageDecoder, TextDecoder, BytesDecoder)
_SPECIAL: dict[type, Decoder] = {Message: MessageDecoder(), str: TextDecoder(), bytes: BytesDecoder()}


def without_notes(payload_type: Any) -> Any:
    """Return a type without names of types, and without ``Annotated`` notes that neither msgspec nor pydantic reads."""
    payload_type = unaliased(payload_type)
    if typing.get_origin(payload_type) is not typing.Annotated:
        return payload_type
    inner, *notes = typing.get_args(payload_type)
    heard = _PYDANTIC | {"msgspec"}
    return payload_type if any(_package(type(note)) in heard for note in notes) else without_notes(inner)


def _is_instance(payload_type: Any) -> bool:
    """Whether it is a value of a type that could be decoded."""
    marks = ("__dataclass_fields__", "__struct_fields__", "__pydantic_validator__")
    return not isinstance(payload_type, Decoder | type) and any(hasattr(payload_type, mark) for mark in marks)


def _package(kind: Any) -> str:
    return str(kind.__module__).partition(".")[0]


def mentions_pydantic(kind: Any) -> bool:
    """Return whether pydantic decodes and writes this type: it, or a type inside it, is pydantic's."""
    return _mentions_pydantic(kind, {})


def _mentions_pydantic(kind: Any, seen: dict[int, Any]) -> bool:
    """Whether pydantic must decode this type: it, a type inside it, or an annotation of one, is pydantic's."""
    kind = unaliased(kind)
    if id(kind) in seen:
        return False
    seen[id(kind)] = kind  # kept alive, so that no other type gets its id
    if typing.get_origin(kind) is typing.Annotated:
        inner, *notes = typing.get_args(kind)
        return any(_package(type(note)) in _PYDANTIC for note in notes) or _mentions_pydantic(inner, seen)
    parts = [typing.get_origin(kind), *typing.get_args(kind), getattr(kind, "__supertype__", None)]
    if isinstance(kind, typing.TypeVar):  # decoded as its bound, or as one of its constraints
        parts += [kind.__bound__, *kind.__constraints__]
    if inspect.isclass(kind):
        if _package(kind) in _PYDANTIC or hasattr(kind, "__get_pydantic_core_schema__"):
            return True
        if hasattr(kind, "__pydantic_validator__"):  # a pydantic dataclass
            return True
        parts += _field_types(kind)
    return any(_mentions_pydantic(part, seen) for part in parts if part is not None)


def _field_types(kind: Any) -> list[Any]:
    marks = ("__dataclass_fields__", "__struct_fields__", "__total__", "_fields")  # __total__: TypedDict
    if not any(hasattr(kind, mark) for mark in marks):
        return []
    try:
        return list(typing.get_type_hints(kind, include_extras=True).values())
    except Exception:  # a name that is not defined: the decoder's own construction tells it better
        return []
