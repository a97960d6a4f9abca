"""What makes two contexts the same tenant, and how a context is shown.

Python calls ``1``, ``1.0`` and ``True`` equal, and a named tuple equals a plain one. A provider that builds a
database name from them does not. So the pool keys its entries by value *and* by the type of every field: contexts
share a resource only when no code could tell them apart.
"""

import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import unicodedata
import uuid
from collections.abc import Callable, Hashable, Iterable
from operator import attrgetter
from typing import Any, Final, cast

Identity = Hashable
"""A key as its type, the types of its fields, and its value: equal only if all three are."""

_MOST_KNOWN: Final = 1_024
"""Types, and combinations of field types, known by a tag: a program has a handful, an attack may have many."""

_IMMUTABLE: Final[frozenset[type]] = frozenset({
    str, int, float, bool, bytes, complex, decimal.Decimal, uuid.UUID, dt.date, dt.datetime, dt.time, dt.timedelta,
    type(None),
})  # fmt: skip
"""Types that neither change nor contain anything: what a key usually is made of."""

_SHOWN_AS_TEXT: Final = (
    str, int, float, bool, bytes, complex, decimal.Decimal, uuid.UUID, dt.date, dt.time, pathlib.PurePath,
    type(None),
)  # fmt: skip
_LONGEST: Final = 200
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


Reader = Callable[[Any], Iterable[object]]


class Identifier:
    """Turns keys into identities. Knows types and combinations of field types by a tag, so that a hit stays quick.

    What is known is never forgotten, because identities are made of it; what does not fit any more goes the slow way.
    """

    __slots__ = ("_types",)

    def __init__(self) -> None:
        self._types: dict[type, tuple[Reader | None, dict[tuple[type, ...], object] | None]] = {}

    def __call__(self, key: Hashable) -> Identity:
        """Return the identity of ``key``. It is hashable if ``key`` is."""
        kind: type[Any] = type(key)
        try:
            reader, tags = self._types[kind]
        except KeyError:
            reader, tags = self._learn(kind)
        if tags is None:
            return Pinned((kind, key if reader is None else _shape_of(key), key))
        if reader is None:
            return (kind, key)
        fields = reader(key)
        kinds = tuple(map(type, fields))
        tag = tags.get(kinds) or self._tag(tags, kinds)
        return Pinned((kind, _shape_of(key), key)) if tag is None else (tag, fields)

    def _learn(self, kind: type[Any]) -> tuple[Reader | None, dict[tuple[type, ...], object] | None]:
        reader = _reader_of(kind)
        quick = kind in _IMMUTABLE if reader is None else _is_plain_record(kind)
        if len(self._types) >= _MOST_KNOWN:
            return reader, None
        learnt = self._types[kind] = reader, ({} if quick else None)
        return learnt

    @staticmethod
    def _tag(tags: dict[tuple[type, ...], object], kinds: tuple[type, ...]) -> object | None:
        if len(tags) >= _MOST_KNOWN or not _IMMUTABLE.issuperset(kinds):
            return None
        tag = tags[kinds] = object()
        return tag


class Pinned:
    """An identity that keeps its hash, whatever becomes of the objects in it.

    A context of a user's class may change while it is in use. It has to be found again all the same, by the very
    object that was filed: a dictionary compares by ``is`` before it compares by ``==``.
    """

    __slots__ = ("_hash", "_identity")

    def __init__(self, identity: tuple[object, ...]) -> None:
        self._identity = identity
        self._hash = hash(identity)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pinned) and self._identity == other._identity

    def __repr__(self) -> str:
        return f"Pinned({display_key(self._identity[-1])})"


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields that make up a record: dataclass, msgspec, attrs or pydantic; else none."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.compare)
    for attribute in ("__struct_fields__", "__attrs_attrs__", "__pydantic_fields__"):
        fields = getattr(kind, attribute, None)
        if fields:
            return tuple(getattr(field, "name", field) for field in fields)
    return ()


def _reader_of(kind: type[Any]) -> Reader | None:
    if issubclass(kind, tuple | frozenset):
        return tuple
    names = field_names(kind)
    # The doubled name makes attrgetter return a tuple for a record of one field too.
    return attrgetter(*names, names[0]) if names else None


def _is_plain_record(kind: type[Any]) -> bool:
    """Return whether a value equals another exactly when their fields do: they may stand for it, and hash faster."""
    if kind is tuple:
        return True
    if not dataclasses.is_dataclass(kind) or kind.__hash__ is None:
        return False
    generated = getattr(getattr(kind.__eq__, "__code__", None), "co_filename", "") == "<string>"
    return generated and all(field.hash is not False for field in dataclasses.fields(kind))


def _shape_of(value: object) -> object:
    if isinstance(value, frozenset):
        items = cast("frozenset[object]", value)
        return (frozenset, frozenset((_shape_of(item), item) for item in items))
    reader = _reader_of(type(value))
    return type(value) if reader is None else (type(value), *map(_shape_of, reader(value)))


def display_key(context: object) -> str:
    """Return a context or key as one line of text for logs: ``tenant-a:us-east-1``.

    The fields of a record or tuple are joined by ``:``. Control and invisible characters are escaped, long texts
    cut, fields declared with ``repr=False`` left out, objects of unknown types named by their type only. Different
    keys may look the same here: never use it as a key.
    """
    text = _escape(_text_of(context))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _text_of(value: object) -> str:
    if isinstance(value, enum.Enum):
        return _text_of(value.value)
    if isinstance(value, str):
        return value[: 2 * _LONGEST]
    if isinstance(value, tuple):
        return ":".join(map(_text_of, cast("tuple[object, ...]", value)))
    if isinstance(value, frozenset):
        return ":".join(sorted(map(_text_of, cast("frozenset[object]", value))))
    if isinstance(value, _SHOWN_AS_TEXT):
        return str(value)[: 2 * _LONGEST]
    names = _shown_names(type(value))
    return ":".join(_text_of(getattr(value, name)) for name in names) if names else f"<{type(value).__name__}>"


def _shown_names(kind: type[Any]) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.repr)
    hidden = {field.name for field in getattr(kind, "__attrs_attrs__", ()) if not field.repr}
    hidden |= {name for name, field in getattr(kind, "__pydantic_fields__", {}).items() if not field.repr}
    return tuple(name for name in field_names(kind) if name not in hidden)


def _escape(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _HIDDEN_CATEGORIES
        else character
        for character in text
    )
