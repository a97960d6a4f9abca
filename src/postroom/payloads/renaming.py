"""Dataclasses with other names in JSON: ``orderId`` for ``order_id``.

msgspec renames the fields of its own Structs only. So each dataclass gets a Struct as its wire form, with the fields
renamed, and is built from it after decoding: exact numbers, strict types and paths stay msgspec's.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from postroom.errors import ConfigurationError
from postroom.payloads.problems import type_name, unaliased

Rename = Literal["camel"]
Build = Callable[[Any], Any]
"""Makes the payload of its wire form."""


def renamed(payload_type: Any, rename: Rename) -> tuple[Any, Build | None]:
    """Return the wire form of a type, and what builds the type from it (None: it is the same).

    Raises:
        ConfigurationError: the type has no dataclass in it, or one that cannot be renamed.
    """
    if rename != "camel":
        raise ConfigurationError(f'decoder_for(rename=...) takes "camel" or None; got {rename!r}')
    wire, build = _Renaming(rename).form(payload_type)
    if build is None:
        raise ConfigurationError(
            f"decoder_for(rename=...) renames the fields of dataclasses, and {type_name(payload_type)} has none. "
            'A msgspec Struct takes `rename="camel"` itself, a pydantic model `alias_generator=to_camel`'
        )
    return wire, build


class _Renaming:
    """The wire forms of one payload type; each dataclass gets one."""

    def __init__(self, rename: Rename) -> None:
        self._rename: Rename = rename
        self._forms: dict[type, tuple[type, Build]] = {}
        self._open: set[Any] = set()

    def form(self, kind: Any) -> tuple[Any, Build | None]:
        """Return the wire form of any type, and how to build the type from it."""
        if (meant := unaliased(getattr(kind, "__supertype__", kind))) is not kind:
            return self._aliased(kind, meant)
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            return self._dataclass(kind)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated:
            wire, build = self.form(arguments[0])
            return typing.Annotated[(wire, *arguments[1:])], build
        if origin is None or origin is Literal:
            return kind, None
        if dataclasses.is_dataclass(origin):
            raise _cannot(kind, "it is generic; derive a plain class from it")
        return self._container(kind, origin, arguments)

    def _aliased(self, name: Any, kind: Any) -> tuple[Any, Build | None]:
        if name in self._open:
            raise _cannot(name, "it contains itself")
        self._open.add(name)
        try:
            return self.form(kind)
        finally:
            self._open.discard(name)

    def _container(self, kind: Any, origin: Any, arguments: tuple[Any, ...]) -> tuple[Any, Build | None]:
        forms = [(item, None) if item is Ellipsis else self.form(item) for item in arguments]
        if all(build is None for _, build in forms):
            return kind, None
        wires = tuple(wire for wire, _ in forms)
        if origin in {typing.Union, types.UnionType}:
            return typing.Union[wires], _build_union(forms)  # noqa: UP007 - made of values, not written down
        return origin[wires], _build_container(origin, [build for _, build in forms], variadic=Ellipsis in arguments)

    def _dataclass(self, kind: type) -> tuple[type, Build]:
        if kind in self._open:
            raise _cannot(kind, "it contains itself")
        if kind not in self._forms:
            # Before its fields: a class that contains itself would otherwise recurse without an
            # end.
            self._open.add(kind)
            self._forms[kind] = self._wire(kind)
            self._open.discard(kind)
        return self._forms[kind]

    def _wire(self, kind: type) -> tuple[type, Build]:
        hints = _hints(kind)
        fields: list[tuple[str, Any, Any] | tuple[str, Any]] = []
        builds: list[tuple[str, Build | None]] = []
        for field in dataclasses.fields(kind):
            if not field.init:
                continue
            wire, build = self.form(hints[field.name])
            builds.append((field.name, build))
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                fields.append((field.name, wire))
            else:  # absent stays absent, so that the dataclass's own default applies
                fields.append((field.name, typing.Union[wire, msgspec.UnsetType], msgspec.UNSET))  # noqa: UP007
        struct = msgspec.defstruct(kind.__name__, fields, rename=self._rename, kw_only=True, frozen=True)
        return struct, _build_dataclass(kind, builds)


def _hints(kind: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception as error:
        raise _cannot(kind, f"its annotations cannot be read ({error})") from error
    if any(isinstance(hint, dataclasses.InitVar) for hint in hints.values()):
        raise _cannot(kind, "it has an InitVar")
    return hints


def _cannot(kind: Any, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the fields of {type_name(kind)} cannot be renamed: {why}. Use a msgspec Struct with `rename=` for it"
    )


def _build_dataclass(kind: Callable[..., Any], builds: list[tuple[str, Build | None]]) -> Build:
    def build(wire: Any) -> Any:
        values: dict[str, Any] = {}
        for name, make in builds:
            value = getattr(wire, name)
            if value is not msgspec.UNSET:
                values[name] = value if make is None else make(value)
        return kind(**values)

    return build


def _build_union(forms: list[tuple[Any, Build | None]]) -> Build:
    # One kind of JSON value fits at most one member: msgspec refuses other unions.
    makers = [(_class(wire), make) for wire, make in forms if make is not None]

    def build(value: Any) -> Any:
        if isinstance(value, str):  # a str is a Sequence, too
            return value
        for wire, make in makers:
            if isinstance(value, wire):
                return make(value)
        return value

    return build


def _class(wire: Any) -> type:
    if typing.get_origin(wire) is typing.Annotated:
        wire = typing.get_args(wire)[0]
    kind: type = typing.get_origin(wire) or wire
    return kind


def _build_container(origin: Any, makes: list[Build | None], *, variadic: bool) -> Build:
    if issubclass(origin, typing.Mapping):
        make_value = typing.cast("Build", makes[1])  # a key is a JSON string, never a dataclass

        def build_mapping(value: Any) -> Any:
            return {key: make_value(item) for key, item in value.items()}

        return build_mapping
    if issubclass(origin, tuple) and not variadic:

        def build_tuple(value: Any) -> Any:
            return tuple(make(v) if make else v for make, v in zip(makes, value, strict=True))

        return build_tuple
    make_item = typing.cast("Build", makes[0])

    def build_items(value: Any) -> Any:
        return type(value)(map(make_item, value))

    return build_items
