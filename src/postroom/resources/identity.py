"""What makes two contexts the same tenant.

Python calls ``1``, ``1.0`` and ``True`` equal, and a named tuple equals a plain one. A provider that builds a
database name from them does not. So the pool keys its entries by value *and* by the type of every field: contexts
share a resource only when no code could tell them apart.
"""

import dataclasses
import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Hashable, Iterable
from operator import attrgetter
from typing import Any, Final, cast

from postroom.display import display_key, field_names

Identity = Hashable
"""A key as its type, the types of its fields, and its value: equal only if all three are."""

_MOST_KNOWN: Final = 1_024
"""Types, and combinations of field types, known by a tag: a program has a handful, an attack may have many."""

_IMMUTABLE: Final[frozenset[type]] = frozenset({
    str, int, float, bool, bytes, complex, decimal.Decimal, uuid.UUID, dt.date, dt.datetime, dt.time, dt.timedelta,
    type(None),
})  # fmt: skip
"""Types that neither change nor contain anything: what a key usually is made of."""


Reader = Callable[[Any], Iterable[object]]


class Identifier:
    """Turns keys into identities. Knows types and combinations of field types by a tag, so that a hit stays quick.

    What is known is never forgotten, because identities are made of it; what does not fit any longer goes the slow way.
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
        # Made again each time: a key that is remembered would keep all that it has, and ``frozen`` does not keep
        # ``object.__setattr__`` from making another tenant's of it.
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
