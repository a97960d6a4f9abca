"""Which payload a handler asks for: the annotation of its first parameter."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Final, cast

from postroom.errors import ConfigurationError
from postroom.payloads.problems import unaliased

_PLACES: Final = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})
_CONTEXTS: Final = frozenset({"MessageContext", "BatchContext"})


def payload_type_of(handler: Callable[..., Any]) -> Any:
    """Return the annotation of the handler's first parameter; ``object`` (decoded JSON) where there is none.

    Works for functions, bound methods, also those of generic classes, partials, objects with ``__call__`` and functions
    wrapped with ``functools.wraps``. Annotations written as text (``from __future__ import annotations``) are evaluated
    where the function was defined; only the first one needs to exist at run time.

    Raises:
        ConfigurationError: the handler takes no payload, or its annotation names something that does not exist at
            run time, such as an import under ``TYPE_CHECKING``.
    """
    name = getattr(handler, "__qualname__", None) or repr(handler)
    if isinstance(handler, type):
        raise ConfigurationError(f"handler {name} is a class: register an instance of it, {name}(...)")
    parameter = _payload_parameter(handler, name)
    if parameter.annotation is inspect.Parameter.empty:
        return object
    wanted = unaliased(_evaluated(parameter.annotation, handler, name))
    return _filled_in(wanted, _given(handler)) if _variables_of(wanted) else wanted


def _payload_parameter(handler: Callable[..., Any], name: str) -> inspect.Parameter:
    """Return the first parameter, or the one before the context, if a decorator gives the function more arguments."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError, NameError) as error:
        raise ConfigurationError(
            f"the parameters of handler {name} cannot be read ({error}): say payload=... where you make the consumer"
        ) from error
    if not parameters or parameters[0].kind in {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}:
        raise ConfigurationError(f"handler {name} takes no payload: write it as `async def {name}(payload, ctx)`")
    places = [each for each in parameters if each.kind in _PLACES]
    context = next((place for place, each in enumerate(places) if _is_context_of(handler, each.annotation)), None)
    if context is None and sum(each.default is inspect.Parameter.empty for each in places) > 2:
        raise ConfigurationError(
            f"handler {name} takes more than a payload and a context: annotate the context behind the payload as "
            "`ctx: MessageContext[...]`, or say payload=... where you make the consumer"
        )
    return parameters[0] if context is None else places[max(0, context - 1)]


def is_context(annotation: Any) -> bool:
    """Return whether an annotation is that of a handler's context; one that is text is read as it is spelt."""
    if isinstance(annotation, str):
        return annotation.partition("[")[0].rpartition(".")[2] in _CONTEXTS
    kind = typing.get_origin(annotation) or annotation
    return isinstance(kind, type) and kind.__name__ in _CONTEXTS


def _is_context_of(handler: Callable[..., Any], annotation: Any) -> bool:
    try:
        return is_context(unaliased(_hint(annotation, handler)))
    except Exception:  # it exists for type checkers only
        return is_context(annotation)


def _evaluated(annotation: Any, handler: Callable[..., Any], name: str) -> Any:
    try:
        return _hint(annotation, handler)
    except Exception as error:
        shown = annotation if isinstance(annotation, str) else repr(annotation)
        raise ConfigurationError(
            f"the payload type {shown} of handler {name} cannot be read at run time ({type(error).__name__}: {error}). "
            "Import it outside `if TYPE_CHECKING:` and define it outside functions, or say payload=... where you make "
            "the consumer"
        ) from error


def _hint(annotation: Any, handler: Callable[..., Any]) -> Any:
    function = _function(handler)
    holder = types.SimpleNamespace(__annotations__={"payload": annotation})
    return typing.get_type_hints(holder, _globals(function), _locals(function), include_extras=True)["payload"]


def _function(handler: Any) -> Any:
    """Dig out the function that shows its signature: the annotation is evaluated among its names."""
    while True:
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif inspect.ismethod(handler):
            handler = handler.__func__
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif inspect.isfunction(handler) or inspect.isbuiltin(handler):
            return handler
        elif inspect.ismethod(call := getattr(handler, "__call__", None)):  # noqa: B004 - the method itself is wanted
            handler = call
        else:
            return handler


def _variables_of(hint: Any) -> tuple[Any, ...]:
    return (hint,) if isinstance(hint, typing.TypeVar) else getattr(hint, "__parameters__", ())


def _filled_in(hint: Any, given: dict[Any, Any]) -> Any:
    """Return an annotation with types in the places of its type variables, as far as they are known."""
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, hint)
    variables = _variables_of(hint)
    return hint[tuple(given.get(each, each) for each in variables)] if given.keys() & {*variables} else hint


def _given(handler: Any) -> dict[Any, Any]:
    """Return what the type variables of a method stand for: ``Base[Order]``, or a class that is derived from it."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    owner: Any = handler.__self__ if inspect.ismethod(handler) else handler
    kind = cast("Any", type(owner))
    name = getattr(handler, "__name__", "") if inspect.ismethod(handler) else "__call__"
    home = next((each for each in kind.__mro__ if name in vars(each)), None)
    made = typing.get_args(getattr(owner, "__orig_class__", None))
    return {} if home is None else _arguments(kind, home, dict(zip(_variables_of(kind), made, strict=False)))


def _arguments(kind: Any, home: type, given: dict[Any, Any]) -> dict[Any, Any]:
    """Return what the type variables of a base class stand for, from what those of a class stand for."""
    if kind is home:
        return given
    own = cast("dict[str, Any]", vars(kind))
    bases = cast("tuple[Any, ...]", own.get("__orig_bases__", kind.__bases__))
    for base in bases:
        origin: Any = typing.get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, home):
            types_ = [_filled_in(each, given) for each in typing.get_args(base)]
            return _arguments(origin, home, dict(zip(_variables_of(origin), types_, strict=False)))
    return {}


def _globals(function: Any) -> dict[str, Any]:
    return getattr(function, "__globals__", {})


def _locals(function: Any) -> dict[str, Any]:
    """Names of the enclosing functions that the handler uses, and its type parameters."""
    names = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is not None and cells:
        for name, cell in zip(code.co_freevars, cells, strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
    return names
