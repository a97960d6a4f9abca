"""Payload types that pydantic decodes. Imported only for a type that mentions pydantic, so it stays an extra."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import msgspec
import pydantic

from postroom.errors import ConfigurationError, PayloadError
from postroom.message import Message
from postroom.payloads import problems
from postroom.payloads.decoder import JsonDecoder
from postroom.payloads.encoding import ODD_FLOAT, has_odd_float
from postroom.payloads.problems import Problem

# The codes with texts that consist of the type's words (https://docs.pydantic.dev/latest/errors/validation_errors/).
# All others, a validator's own ValueError above all, may quote the input: of them only the code is told.
# fmt: off
_SAFE: Final = frozenset(
    {
        "missing", "extra_forbidden", "none_required", "finite_number", "multiple_of", "literal_error", "enum",
        "model_type", "model_attributes_type", "dataclass_type", "named_tuple_type", "dict_type",
        "mapping_type", "list_type", "tuple_type", "set_type", "frozen_set_type", "bool_type", "int_type",
        "float_type", "string_type", "bytes_type", "date_type", "time_type", "datetime_type", "time_delta_type",
        "decimal_type", "uuid_type", "url_type", "bool_parsing", "int_parsing", "int_parsing_size",
        "int_from_float", "float_parsing", "decimal_parsing", "greater_than", "greater_than_equal", "less_than",
        "less_than_equal", "too_short", "too_long", "string_too_short", "string_too_long",
        "string_pattern_mismatch", "string_not_ascii", "bytes_too_short", "bytes_too_long",
        "decimal_max_digits", "decimal_max_places", "decimal_whole_digits", "date_from_datetime_inexact",
        "date_past", "date_future", "datetime_past", "datetime_future", "timezone_naive", "timezone_aware",
        "union_tag_not_found", "uuid_version", "url_too_long", "url_scheme",
    }
)
# fmt: on
_WHERE: Final = re.compile(r" at line \d+ column \d+$")
_JSON_NAMES: Final = {"dict": "object", "list": "array", "NoneType": "null"}
_UNREADABLE: Final = object()
_WITH_COMPUTED: Final = frozenset({"model-fields", "dataclass-args"})
_NO_SCHEMAS: Final = frozenset({"config", "default", "expected", "metadata"})
"""Parts of a schema that are none, but values: those of a default may contain themselves."""
_HIDDEN: Final = "**********"
"""What pydantic writes for a secret."""


def model_decoder(payload_type: Any) -> JsonDecoder:
    """Build a decoder that pydantic runs.

    Raises:
        ConfigurationError: pydantic cannot make a schema of the type, or a name in it is not defined.
    """
    name = problems.type_name(payload_type)
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(payload_type)
        if not adapter.pydantic_complete:
            adapter.rebuild(raise_errors=True)
        words = frozenset(_words(adapter.core_schema))
    except Exception as error:
        raise ConfigurationError(
            f"pydantic cannot decode a payload of type {name}: {error}. Define every type that it names before the "
            "handler is registered, and give pydantic a schema for types of your own"
        ) from error
    return JsonDecoder(adapter.validate_json, _Explainer(name, words).explain)


def model_encoder(payload_type: Any) -> Callable[[Any], str]:
    """Build an encoder that pydantic runs: it writes aliases, which are what the decoder reads.

    Raises:
        ConfigurationError: pydantic cannot make a schema of the type.
    """
    name = problems.type_name(payload_type)
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(payload_type)
    except Exception as error:
        raise ConfigurationError(f"pydantic cannot write a payload of type {name}: {error}") from error

    exact = _is_exact(getattr(adapter, "core_schema", None))

    def encode(payload: Any) -> str:
        try:
            body = adapter.dump_json(payload, by_alias=True, round_trip=exact, warnings="error").decode()
            why = _lost(adapter, payload, body, exact=exact)
        except Exception as error:  # it quotes the payload, so it does not stay as the cause
            body, why = "", type(error).__name__
        if why is not None:
            raise ConfigurationError(f"a payload of type {name} cannot be sent ({why})")
        return body

    return encode


def _is_exact(schema: object, *, forbids: bool = False) -> bool:
    """Whether a decoder refuses what pydantic writes by default: JSON that was a text, fields that are computed.

    Args:
        schema: pydantic's, or a part of it.
        forbids: whether the model that it is a part of takes no further fields, and so refuses computed ones.
    """
    if isinstance(schema, Mapping):
        parts = cast("Mapping[object, Any]", schema)
        kind = parts.get("type")
        if "cls" in parts:
            forbids = parts.get("config", {}).get("extra_fields_behavior") == "forbid"
        if kind == "json" or (forbids and kind in _WITH_COMPUTED and parts.get("computed_fields")):
            return True
        beside = _NO_SCHEMAS if isinstance(kind, str) else ()  # else they are the names of fields
        return any(_is_exact(part, forbids=forbids) for name, part in parts.items() if name not in beside)
    return isinstance(schema, list | tuple) and any(
        _is_exact(part, forbids=forbids) for part in cast("list[object]", schema)
    )


def _lost(adapter: "pydantic.TypeAdapter[Any]", payload: Any, body: str, *, exact: bool) -> str | None:
    """Return what pydantic has written as something else, without a word; None where it is all there."""
    if "null" in body:
        plain = adapter.dump_python(payload, mode="json", by_alias=True, round_trip=exact)
        if has_odd_float(plain) and _is_lost(plain, json.loads(body)):
            return ODD_FLOAT
    if _HIDDEN in body and _is_hidden(adapter.dump_python(payload, round_trip=exact), json.loads(body)):
        return "pydantic writes its secrets as asterisks: give the model a field_serializer, or send a str"
    return None


def _is_lost(value: Any, written: Any) -> bool:
    """Whether a float was written as null. A model may say ``ser_json_inf_nan="strings"``."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return any(_is_lost(each, written[name]) for name, each in pairs)
    if isinstance(value, list):
        return any(map(_is_lost, cast("list[Any]", value), written))
    return isinstance(value, float) and written is None


def _is_hidden(value: Any, written: Any) -> bool:
    """Whether a secret was written as asterisks. A model may write it as it is, beside asterisks of another field."""
    if isinstance(value, Mapping):
        value = list(cast("Mapping[Any, Any]", value).values())
        written = list(cast("dict[str, Any]", written).values()) if isinstance(written, dict) else written
    if isinstance(value, list | tuple | set | frozenset):
        members = cast("list[Any]", value)
        parts = cast("list[Any]", written) if isinstance(written, list) else []
        if isinstance(value, set | frozenset) or len(parts) != len(members):
            parts = [cast("Any", written)] * len(members)  # without an order, or of another form: looked at as a whole
        return any(map(_is_hidden, members, parts))
    return hasattr(value, "get_secret_value") and _HIDDEN in json.dumps(written)


def _words(schema: object) -> Iterator[str]:
    """Every string in a schema. They come from the type, never from a message."""
    if isinstance(schema, str):
        yield schema
    elif isinstance(schema, Mapping):
        for key, value in cast("Mapping[object, object]", schema).items():
            yield from _words(key)
            yield from _words(value)
    elif isinstance(schema, list | tuple):
        for value in cast("list[object]", schema):
            yield from _words(value)


class _Explainer:
    """Tells what pydantic found, in words of the type."""

    __slots__ = ("_name", "_words")

    def __init__(self, name: str, words: frozenset[str]) -> None:
        self._name = name
        self._words = words

    def explain(self, error: Exception, message: Message) -> PayloadError:
        """Return the error to raise instead of what pydantic, or a validator of the payload type, raised."""
        if isinstance(error, pydantic.ValidationError):
            return self._invalid(error, message)
        if isinstance(error, RecursionError):
            return problems.recursed(self._name, error, message.id)
        return problems.refused(self._name, error, message.id)

    def _invalid(self, error: pydantic.ValidationError, message: Message) -> PayloadError:
        details = error.errors(include_url=False, include_input=False)
        first = details[0]
        if first["type"] == "json_invalid":
            return _not_json(str(first.get("ctx", {}).get("error", "")), message)
        document = _document(message.body)
        if isinstance(document, UnicodeEncodeError):
            return problems.not_unicode(document, message.id)
        found = [self._problem(detail["type"], detail["loc"], detail["msg"], document) for detail in details]
        return problems.not_valid(self._name, found, message.id)

    def _problem(self, code: str, location: tuple[int | str, ...], text: str, document: object) -> Problem:
        steps, value = self._walk(location, document)
        if code == "union_tag_invalid":
            told = problems.UNKNOWN_TAG
        else:
            told = text[0].lower() + text[1:] if code in _SAFE else f"refused ({code})"
        if code.endswith("_type") and value is not _UNREADABLE:
            told += f", got {_json_name(value)}"
        return Problem(problems.json_path(steps), told)

    def _walk(self, location: tuple[int | str, ...], document: object) -> tuple[list[str | int | None], object]:
        """Follow a location of pydantic's through the document; parts that are labels of unions lead nowhere."""
        steps: list[str | int | None] = []
        for part in location:
            inside, document = document, _UNREADABLE
            if isinstance(part, int) and isinstance(inside, list):
                items = cast("list[object]", inside)
                steps.append(part)
                document = items[part] if part < len(items) else _UNREADABLE
            elif isinstance(part, str) and self._leads_on(part, inside, last=part is location[-1]):
                steps.append(part if part in self._words else None)
                document = cast("dict[str, object]", inside).get(part, _UNREADABLE)
            else:
                document = inside
        return steps, document

    def _leads_on(self, part: str, inside: object, *, last: bool) -> bool:
        """Whether a name is a field that is there, or one that is missing, and not the label of a union."""
        return isinstance(inside, dict) and (part in inside or (last and part in self._words))


def _json_name(value: object) -> str:
    name = type(value).__name__
    return _JSON_NAMES.get(name, name)


def _document(body: str) -> object:
    try:
        return msgspec.json.decode(body)
    except UnicodeEncodeError as error:
        return error
    except Exception:  # pydantic reads a little more than JSON (NaN): then there are no paths
        return _UNREADABLE


def _not_json(text: str, message: Message) -> PayloadError:
    if not message.body.strip():
        return problems.empty(message.id)
    if "recursion limit" in text:
        return problems.too_deep(message.id)
    where = _WHERE.search(text)
    if where is None:
        return problems.not_json("it is malformed", message.id)
    return problems.not_json(text, message.id)
