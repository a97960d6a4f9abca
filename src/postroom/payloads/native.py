"""Payload types that msgspec decodes: dataclasses, Structs, TypedDicts, NamedTuples, containers, plain JSON."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from postroom.errors import ConfigurationError, PayloadError
from postroom.message import Message
from postroom.payloads import problems
from postroom.payloads.decoder import JsonDecoder
from postroom.payloads.problems import Problem
from postroom.payloads.renaming import Rename, renamed

_PATH: Final = re.compile(r"(?s)(?P<text>.*) - at (?P<key>`key` in )?`(?P<path>\$[^`]*)`")
_STEP: Final = re.compile(r"\[(?P<index>\d+)\]|\[(?P<any>\.\.\.)\]|\.(?P<name>[^.\[]+)")
_QUOTED: Final = re.compile(r"`([^`]*)`")
_BYTE: Final = re.compile(r"\(byte \d+\)$")

# msgspec's texts that are made of the type and of JSON's own type names only.
_SAFE: Final = re.compile(
    r"(?s)Expected `[^`]*`(?:, got `[\w ]+`| [^`]*)?"
    r"|Object missing required field `.*`"
    r"|(?:Integer value|Number|Duration is) out of range"
    r"|Invalid (?:RFC3339 encoded \w+|ISO8601 duration|UUID|base64 encoded string|decimal string|epoch timestamp)"
)
# Those that quote the input, and what is said instead.
_RETOLD: Final = (
    ("Invalid enum value", "not one of the allowed values"),
    ("Invalid value", problems.UNKNOWN_TAG),
    ("Object contains unknown field", "unknown field"),
)


def native_decoder(payload_type: Any, *, rename: Rename | None = None) -> JsonDecoder:
    """Build a decoder that msgspec runs.

    Raises:
        ConfigurationError: the type, or a type inside it, has no JSON form.
    """
    name = problems.type_name(payload_type)
    if rename is not None:
        wire_type, build = renamed(payload_type, rename)
    else:
        wire_type, build = payload_type, None
    try:
        words = frozenset(_words(wire_type, name))
        decode = msgspec.json.Decoder(wire_type, dec_hook=_keep).decode
    except ConfigurationError:
        raise
    except Exception as error:
        raise _undecodable(name, str(error)) from error
    explain = _Explainer(name, words).explain
    if build is None:
        return JsonDecoder(decode, explain)
    return JsonDecoder(lambda body: build(decode(body)), explain)


def _keep(_: type, value: Any) -> Any:  # the only custom type that is let through is object: any JSON
    return value


def _words(payload_type: Any, name: str) -> Iterator[str]:
    """Every field name that the type declares, as JSON spells it. Refuses types without a JSON form."""
    for part in _parts(inspect.type_info(payload_type), set()):
        if isinstance(part, inspect.CustomType) and part.cls is not object:
            raise _undecodable(name, f"{problems.type_name(part.cls)} has no JSON form")
        if isinstance(part, inspect.Field):
            yield part.encode_name
        tag = getattr(part, "tag_field", None)
        if isinstance(tag, str):
            yield tag


def _parts(info: msgspec.Struct, seen: set[int]) -> Iterator[msgspec.Struct]:
    if id(info) in seen:  # a type may contain itself
        return
    seen.add(id(info))
    yield info
    for name in info.__struct_fields__:
        for part in _each(getattr(info, name)):
            if isinstance(part, inspect.Type | inspect.Field):
                yield from _parts(part, seen)


def _each(value: object) -> Iterable[object]:
    return cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)


def _undecodable(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"no payload of type {name} can be decoded: {why}. Use a dataclass, a msgspec Struct, a pydantic model, a "
        "TypedDict, dict, str, bytes or Message, or pass a Decoder of your own as payload="
    )


class _Explainer:
    """Tells what msgspec found, in words of the type."""

    __slots__ = ("_name", "_words")

    def __init__(self, name: str, words: frozenset[str]) -> None:
        self._name = name
        self._words = words

    def explain(self, error: Exception, message: Message) -> PayloadError:
        """Return the error to raise instead of what msgspec, or code of the payload type, raised."""
        if isinstance(error, msgspec.ValidationError):
            return problems.not_valid(self._name, [self._problem(error)], message.id)
        if isinstance(error, msgspec.DecodeError):
            return _not_json(str(error), message)
        if isinstance(error, RecursionError):
            return problems.recursed(self._name, error, message.id)
        if isinstance(error, UnicodeEncodeError) and error.object is message.body:
            return problems.not_unicode(error, message.id)
        if isinstance(error, ValueError | TypeError):  # a dataclass's own check, while it is built
            return problems.not_valid(self._name, [Problem("$", _own_check(error))], message.id)
        return problems.refused(self._name, error, message.id)

    def _problem(self, error: msgspec.ValidationError) -> Problem:
        text, steps = str(error), []
        located = _PATH.fullmatch(text)
        if located is not None:
            text, steps = located["text"], self._steps(located["path"])
        told = _own_check(error.__cause__) if error.__cause__ is not None else _retold(text)
        suffix = " (in a key)" if located is not None and located["key"] else ""
        return Problem(problems.json_path(steps), told + suffix)

    def _steps(self, path: str) -> list[str | int | None]:
        steps: list[str | int | None] = []
        for step in _STEP.finditer(path):
            if step["index"]:
                steps.append(int(step["index"]))
            else:
                steps.append(step["name"] if step["name"] in self._words else None)
        return steps


def _retold(text: str) -> str:
    for start, instead in _RETOLD:
        if text.startswith(start):
            return instead
    if _SAFE.fullmatch(text) is None:
        return "not accepted"
    plain = _QUOTED.sub(r"\1", text)
    if plain.startswith("Object missing required field "):
        return f"missing required field {plain.removeprefix('Object missing required field ')!r}"
    return plain[0].lower() + plain[1:] if plain.startswith("Expected") else plain


def _own_check(error: BaseException) -> str:
    if isinstance(error, problems.OwnWords):
        return str(error)
    return f"refused by the type's own check ({type(error).__name__})"


def _not_json(text: str, message: Message) -> PayloadError:
    if not message.body.strip():
        return problems.empty(message.id)
    if _BYTE.search(text):
        return problems.not_json(text.removeprefix("JSON is malformed: "), message.id)
    if text == "Input data was truncated":
        return problems.not_json(f"it ends too early (byte {len(message.body.encode())})", message.id)
    return problems.not_json("it is malformed", message.id)
