"""Which payload a handler asks for: the annotation of its first parameter."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Final, cast

from typing_extensions import NoDefault

from postroom.errors import ConfigurationError
from postroom.payloads.generics import arguments_of, filled_in, variables_of
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
    if isinstance(wanted, typing.ParamSpecArgs):
        raise ConfigurationError(
            f"the decorator around handler {name} hides its parameters: use functools.wraps in the decorator, or say "
            "payload=... where you make the consumer"
        )
    return _of_its_class(wanted, handler, name) if variables_of(wanted) else wanted


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


def _of_its_class(hint: Any, handler: Any, name: str) -> Any:
    """Return an annotation with types in the places of the variables of the class that the handler is a method of.

    ``Base[Order]()`` says them, or a class that is derived from ``Base[Order]``. A variable of a function alone stays.
    """
    handler = _within(handler)
    owner: Any = handler.__self__ if inspect.ismethod(handler) else handler
    kind = cast("Any", owner if isinstance(owner, type) else type(owner))
    method = getattr(handler, "__name__", "") if inspect.ismethod(handler) else "__call__"
    home = next((each for each in kind.__mro__ if method in vars(each)), None)
    if home is None:
        return hint
    made = typing.get_args(getattr(owner, "__orig_class__", None))
    known = arguments_of(kind, home, dict(zip(variables_of(kind), made, strict=False)))
    asked = [each for each in variables_of(home) if each in variables_of(hint)]
    return filled_in(hint, {each: _closed(known.get(each, each), kind, name) for each in asked})


def _closed(hint: Any, kind: Any, name: str) -> Any:
    """Return a type with the defaults of variables that nothing has filled in; those with a bound are decoded as it."""
    for variable in variables_of(hint):
        default = getattr(variable, "__default__", NoDefault)
        if default is not NoDefault:
            hint = filled_in(hint, {variable: _closed(default, kind, name)})
        elif variable.__bound__ is None and not variable.__constraints__:
            raise ConfigurationError(
                f"handler {name} does not say its payload type: {kind.__name__} leaves {variable.__name__} open, or "
                f"does not keep it, as a class that is frozen or has slots. Derive a class from {kind.__name__}[...], "
                "or say payload=... where you make the consumer"
            )
    return hint


def _within(handler: Any) -> Any:
    """Return the method or object that the payload is asked for by, without what is around it."""
    while True:
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif not inspect.ismethod(handler) and hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        else:
            return handler


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
