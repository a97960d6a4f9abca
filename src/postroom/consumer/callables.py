"""Checks of the functions that a user hands over, made when they are handed over and not by each message."""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from postroom.checking import called_and_wrapped, find_misfit
from postroom.errors import ConfigurationError
from postroom.payloads.handlers import is_context

_GENERATOR = "it is a generator function, which would never run: remove the `yield`"


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling it makes a coroutine: a coroutine function, or an object with such a ``__call__``.

    What is wrapped in a ``functools.partial``, a ``staticmethod`` or a bound method counts as what is wrapped.
    """
    target = _unpacked(function)
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(_unpacked(_call_of(target)))


def check_handler(function: object) -> None:
    """Refuse what cannot be called as ``handler(payload, ctx)``, or would not run when it is."""
    name = name_of(function)
    if isinstance(function, classmethod):
        text = f"handler {name} is not bound: register it after the class, as consumer.handler(Class.{name})"
        raise ConfigurationError(text)
    if not callable(function):
        text = f"@consumer.handler takes a function (payload, ctx); got {type(function).__name__}"
        raise ConfigurationError(text)
    if isinstance(function, type):
        text = f"handler {name} is a class: register an instance of it, {name}(...)"
        raise ConfigurationError(text)
    _refuse_generators(f"handler {name}", function)
    hint = _method_hint(function, name)
    remedy = f"; write `def {name.rpartition('.')[2]}(payload, ctx)`"
    _check_binds(f"handler {name}", "(payload, ctx)", function, 2, hint=hint, remedy=remedy)
    _refuse_swapped(function, name)


def check_callable(what: str, call: str, function: object, arguments: int) -> None:
    """Refuse what is not a function, cannot take so many arguments by position, or is a generator function.

    Args:
        what: the argument of ours, such as ``Consumer(on_error=...)``.
        call: how it is called, such as ``(Failure)``.
        function: what was passed.
        arguments: how many arguments it is called with.
    """
    if not callable(function):
        text = f"{what} takes a function {call}; got {type(function).__name__}"
        raise ConfigurationError(text)
    _refuse_generators(f"{what}: {name_of(function)}", function)
    _check_binds(f"{what}: {name_of(function)}", call, function, arguments)


def check_sync(what: str, call: str, function: object) -> None:
    """Refuse what is not a plain function of one argument: what an ``async def`` makes would not be awaited."""
    check_callable(what, call, function, 1)
    if callable(function) and is_async(function):
        text = f"{what}: {name_of(function)} is async: it is called, not awaited; write it as a plain `def`"
        raise ConfigurationError(text)


def check_provider(function: object) -> None:
    """Refuse what cannot be a provider of resources. A plain ``def`` may return a context manager, so it may pass."""
    remedy = (
        "a provider is an async context manager function (`async def` with a `yield`, decorated with "
        "@contextlib.asynccontextmanager), or an async function that returns the resources, plus cleanup="
    )
    what = f"Consumer(resources=...): {name_of(function)}"
    if not callable(function):
        kind = type(function).__name__
        if hasattr(function, "__aenter__") or inspect.isawaitable(function):
            text = "Consumer(resources=...) takes the provider itself, not what a call of it returns: remove the ()"
            raise ConfigurationError(f"{text}; got {kind}")
        if isinstance(function, str):
            remedy = "write resources=asyncpg_pool(Registry({...})), see docs/datasources.md"
        text = f"Consumer(resources=...) takes a provider function or a ResourcePool; got {kind}: {remedy}"
        raise ConfigurationError(text)
    if isinstance(function, contextlib.AsyncContextDecorator):
        text = "Consumer(resources=...) takes the provider itself, not what a call of it returns: remove the ()"
        raise ConfigurationError(text)
    if _makes_generator(_outermost(function)) or any(inspect.isgeneratorfunction(layer) for layer in _layers(function)):
        text = f"{what} is a bare generator function; {remedy}"
        raise ConfigurationError(text)
    if isinstance(function, type) and not _may_be_opened(function):
        text = f"{what} is a class, and its instances cannot be opened; {remedy}"
        raise ConfigurationError(text)
    _check_binds(what, "(context)", function, 1)


def name_of(function: object) -> str:
    """Return what a function is called, for an error's text."""
    inner = _unpacked(function)
    return getattr(inner, "__qualname__", None) or type(inner).__qualname__


def _may_be_opened(kind: type) -> bool:
    made_by_itself = "__new__" not in {name for base in kind.__mro__[:-1] for name in vars(base)}
    if not made_by_itself or type(kind) is not type:
        return True  # calling it may return anything
    return hasattr(kind, "__await__") or (hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"))


def _refuse_generators(what: str, function: object) -> None:
    """Refuse generator functions. An ``async def`` around one may drive it; a plain function can only return it."""
    if is_async(_as_callable(function)):
        return
    if any(_makes_generator(layer) for layer in _layers(function)):
        text = f"{what}: {_GENERATOR}"
        raise ConfigurationError(text)


def _refuse_swapped(function: Any, name: str) -> None:
    """Refuse a handler with the context as its first parameter: it would be given the payload."""
    try:
        first, second, *_ = inspect.signature(function).parameters.values()
    except (TypeError, ValueError, NameError):  # written in C, or with *args
        return
    if is_context(first.annotation) and not is_context(second.annotation):
        text = f"handler {name} has its parameters swapped: the payload comes first"
        right = f"`{name}({second.name}, {first.name})`"
        raise ConfigurationError(f"{text}, and then the context: write {right}")


def _check_binds(what: str, call: str, function: object, arguments: int, *, hint: str = "", remedy: str = "") -> None:
    if (misfit := find_misfit(_as_callable(function), arguments)) is not None:
        raise ConfigurationError(f"{what} cannot be called as {call}, by position: {misfit[1]}{hint or remedy}")
    if hint:
        text = f"{what} cannot be called as {call}{hint}"
        raise ConfigurationError(text)


def _method_hint(function: object, name: str) -> str:
    """Return what to write instead, if it is a method that was registered inside of its class."""
    functions = [layer for layer, _ in called_and_wrapped(_as_callable(function)) if inspect.isfunction(layer)]
    if isinstance(function, staticmethod) or not any(_first_name(layer) in {"self", "cls"} for layer in functions):
        return ""
    last = name.rpartition(".")[2]
    if hasattr(function, "register"):
        return "; it is a functools.singledispatchmethod: register a method (payload, ctx) that calls it, or a Router"
    return f"; it looks like a method that is not bound: register the bound one, consumer.handler(service.{last})"


def _first_name(function: types.FunctionType) -> str:
    code = function.__code__
    return code.co_varnames[0] if code.co_argcount else ""


def _makes_generator(function: object) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _layers(function: object) -> Iterator[object]:
    """Yield a callable and all that it wraps: partials, bound methods, decorated functions, ``__call__``."""
    seen: set[int] = set()
    layer: object = function
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        yield layer
        layer = _inner(layer) or getattr(layer, "__wrapped__", None) or _call_of(layer)


def _unpacked(function: object) -> Any:
    """Return what is called in the end, without what only binds arguments to it."""
    while (inner := _inner(function)) is not None:
        function = inner
    return function


def _outermost(function: object) -> Any:
    """Return the function of which the body runs first."""
    target = _unpacked(function)
    return target if inspect.isroutine(target) or isinstance(target, type) else _unpacked(_call_of(target))


def _inner(function: object) -> Any:
    if isinstance(function, functools.partial):
        return function.func  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType] - of anything
    if isinstance(function, staticmethod) or inspect.ismethod(function):
        return function.__func__  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return None


def _call_of(function: object) -> Any:
    """Return the ``__call__`` that an object's class defines; None for functions and classes."""
    if inspect.isroutine(function) or isinstance(function, type):
        return None
    return getattr(type(function), "__call__", None)  # noqa: B004 - the method itself is wanted


def _as_callable(function: object) -> Callable[..., Any]:
    if not callable(function):  # asked before
        raise TypeError(function)
    return function
