"""From ``module:consumer`` to consumers."""

import inspect
import sys
from collections.abc import Coroutine
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from postroom.consumer.consumer import Consumer
from postroom.errors import ConfigurationError
from postroom.log_fields import Log, Step

_log = Log("postroom.cli", Step.START)


class WrongName(ConfigurationError):
    """It names no consumer. The text says what to write."""


class NoModule(WrongName):
    """It names a module that cannot be found. How another place is named is the caller's to say."""


def check_each_once(consumers: list[Consumer[Any, Any]]) -> None:
    """Refuse a consumer that several names lead to, such as one that stands in a list as well. Raises ``WrongName``."""
    for number, consumer in enumerate(consumers):
        if any(consumer is each for each in consumers[:number]):
            raise WrongName(f"the consumer of {consumer.queue!r} is named twice: name each once")


def load_consumers(name: str) -> list[Consumer[Any, Any]]:
    """Import the consumers that ``module:attribute`` names: one, a list of them, or a function that makes them.

    Raises:
        WrongName: there is no such module or attribute, or it is something else. What the module itself raises when it
            is imported comes through.
    """
    found = _find(name)
    if callable(found) and not isinstance(found, Consumer):
        found = _made(name, found)
    if isinstance(found, Coroutine):
        found.close()
        raise WrongName(f"{name!r} is an async function: write it as a plain `def` that returns the consumers")
    several: list[Any] = list(cast("list[Any]", found)) if isinstance(found, list | tuple) else [found]
    for consumer in several:
        if not isinstance(consumer, Consumer):
            kind = type(consumer).__name__
            text = f"{name!r} is a {kind}, not a Consumer, a list of them or a function that makes them"
            raise WrongName(f"{text}{_offered(name)}")
    _log.debug("Loaded %s", name)
    return several


def _made(name: str, function: Any) -> Any:
    """Call a function that makes consumers; refuse what is no such function before it does something."""
    module = sys.modules[name.partition(":")[0]]
    for other, consumer in _consumers_of(module):
        if consumer.handles is function:
            raise WrongName(f"{name!r} is the handler of a consumer: write {module.__name__}:{other}")
    if isinstance(function, type):
        raise WrongName(f"{name!r} is a class, not a Consumer{_offered(name)}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise WrongName(f"{name!r} cannot be called without arguments ({error}){_offered(name)}") from None
    except ValueError:  # written in C
        pass
    return function()


def _consumers_of(module: ModuleType) -> list[tuple[str, Consumer[Any, Any]]]:
    return [(name, value) for name, value in vars(module).items() if isinstance(value, Consumer)]


def _offered(name: str) -> str:
    """Return which consumers a module has, as the end of a refusal."""
    module = sys.modules.get(name.partition(":")[0])
    names = [] if module is None else [f"{module.__name__}:{other}" for other, _ in _consumers_of(module)]
    return f"; write {' or '.join(names)}" if names else ""


def _find(name: str) -> Any:
    module, colon, path = name.partition(":")
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").replace("/", ".").lstrip(".")
        raise WrongName(f"{name!r} names a file: write the module, {dotted}:{path or 'consumer'}")
    if not colon or not module or not path:
        raise WrongName(f"{name!r} is not MODULE:CONSUMER, such as shop.orders:orders")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not, and its traceback says where
        raise NoModule(f"there is no module {module!r} in {sys.path[0] or Path.cwd()}") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise WrongName(f"{module!r} has no {path!r}{_offered(name)}")
        found = getattr(found, attribute)
    return found
