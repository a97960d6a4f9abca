"""What the type variables of a generic class stand for, in a class that is derived from it."""

import typing
from typing import Any, cast

from postroom.payloads.problems import unaliased


def variables_of(hint: Any) -> tuple[Any, ...]:
    """Return the type variables of a hint, or of a generic class."""
    return (hint,) if isinstance(hint, typing.TypeVar) else getattr(hint, "__parameters__", ())


def filled_in(hint: Any, given: dict[Any, Any]) -> Any:
    """Return an annotation with types in the places of its type variables, as far as they are known."""
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, hint)
    variables = variables_of(hint)
    return hint[tuple(given.get(each, each) for each in variables)] if given.keys() & {*variables} else hint


def arguments_of(kind: Any, home: type, given: dict[Any, Any]) -> dict[Any, Any]:
    """Return what the type variables of a base class stand for, from what those of a class stand for."""
    if kind is home:
        return given
    own = cast("dict[str, Any]", vars(kind))
    bases = cast("tuple[Any, ...]", own.get("__orig_bases__", kind.__bases__))
    for base in bases:
        origin: Any = typing.get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, home):
            types_ = [filled_in(each, given) for each in typing.get_args(base)]
            return arguments_of(origin, home, dict(zip(variables_of(origin), types_, strict=False)))
    return {}


def written_out(kind: Any) -> Any:
    """Return what a name of a ``type`` statement stands for, with the types that are given to it in brackets."""
    while type(origin := typing.get_origin(kind := unaliased(kind))).__name__ == "TypeAliasType":
        kind = filled_in(origin.__value__, dict(zip(origin.__type_params__, typing.get_args(kind), strict=False)))
    return kind
