"""Checks of arguments that every layer shares. Each refusal names the argument and says what to write."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

from postroom.errors import ConfigurationError


def check_function(what: str, call: str, value: object, *, arguments: int = 1) -> None:
    """Refuse what cannot be called with so many arguments by position.

    Args:
        what: the argument, such as ``ResourcePool(key=...)``.
        call: how it is called, and what it returns: ``(context) -> key``.
        value: what was passed.
        arguments: how many it is called with.
    """
    if not callable(value):
        raise ConfigurationError(f"{what} takes a function {call}; got {shown(value)}")
    if is_error_class(value):
        raise ConfigurationError(f"{what} takes a function {call}; got {shown(value)} itself")
    try:
        inspect.signature(cast("Callable[..., Any]", value)).bind(*(None,) * arguments)
    except TypeError as error:
        raise ConfigurationError(f"{what} cannot be called as {call}, by position: {error}") from None
    except ValueError:  # written in C: it shows no parameters
        return


def check_kind(what: str, value: object, kind: type, example: str) -> None:
    """Refuse what is not of a kind. ``example`` is what to write: ``PoolLimits(budget=100)``."""
    if not isinstance(value, kind):
        if isinstance(value, type) and issubclass(value, kind):
            raise ConfigurationError(f"{what} takes an instance: write {example}; got the class")
        raise ConfigurationError(f"{what} takes {kind.__name__}: write {example}; got {shown(value)}")


def is_error_class(value: object) -> bool:
    """Whether a class of errors was passed where a function that raises one is meant."""
    return isinstance(value, type) and issubclass(value, BaseException)


def listed(what: str, example: str, values: Any) -> tuple[Any, ...]:
    """Return the elements of a list; refuse a single value. ``example`` is what to write: ``observers=[print]``."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigurationError(f"{what} takes a list: write {example}; got {shown(values)}")
    return tuple(values)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - checked one by one


def shown(value: object) -> str:
    """Return what an argument is called in a refusal: a number as it is, anything else by its type.

    A text may be a connection string with its password.
    """
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = getattr(value, "__qualname__", None)
    return f"the function {name}" if callable(value) and name else type(value).__name__
