"""Checks of arguments that every layer shares. Each refusal names the argument and says what to write."""

import inspect
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any, Final, TypeGuard, TypeVar, cast
from urllib.parse import urlsplit

from postroom.display import hide_passwords
from postroom.errors import ConfigurationError

T = TypeVar("T")

_QUEUE: Final = re.compile(r"[A-Za-z0-9_-]+(\.fifo)?")
_LONGEST_QUEUE: Final = 80
"""https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html"""


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number; infinity is one, True and NaN are none."""
    # Compared with itself: `math.isnan` fails on an integer that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124


def answered(answer: T) -> T:
    """Return what a function of the user's answered. A coroutine is none, and would pass for True, or for a name."""
    if isinstance(answer, Awaitable):
        if inspect.iscoroutine(cast("object", answer)):
            cast("Any", answer).close()
        raise TypeError("it returned an awaitable, which nothing awaits; let it answer at once, without `async`")
    return answer


class _Some:
    """A default value, as it is shown: its own text may be long, or secret."""

    def __repr__(self) -> str:
        return "..."


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
    if (misfit := find_misfit(value, arguments)) is not None:
        bare = [
            each.replace(annotation=each.empty, default=each.empty if each.default is each.empty else _Some())
            for each in misfit[0].parameters.values()
        ]
        taken = f"takes {inspect.Signature(bare)}" if bare else "takes no argument"
        raise ConfigurationError(f"{what} cannot be called as {call}, by position: {shown(value)} {taken}")


def find_misfit(function: Callable[..., Any], arguments: int) -> tuple[inspect.Signature, TypeError] | None:
    """Return the signature that so many places do not fit, of what is called or of what it wraps, and the error."""
    for layer, only_too_few in called_and_wrapped(function):
        try:
            signature = inspect.signature(layer, follow_wrapped=False)
        except (ValueError, TypeError):  # written in C, or with a signature of its own: it shows no parameters
            return None
        try:
            (signature.bind_partial if only_too_few else signature.bind)(*(None,) * arguments)
        except TypeError as error:
            return signature, error
    return None


def called_and_wrapped(function: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], bool]]:
    """Yield what is called, and what its decorators pass all of ``*args`` on to.

    A decorator may add arguments of its own; so of what is wrapped only too few places are a mistake.
    """
    layer: Any = function
    if isinstance(function, staticmethod):
        layer = function.__func__  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    yield layer, False
    bound, layer = (layer.__self__, layer.__func__) if inspect.ismethod(layer) else (None, layer)
    seen = {id(layer)}
    while _passes_on(layer):
        layer = layer.__wrapped__
        if id(layer) in seen:
            return
        seen.add(id(layer))
        yield layer if bound is None else MethodType(layer, bound), True


def _passes_on(function: Any) -> bool:
    inner = getattr(function, "__wrapped__", None)
    if not inspect.isfunction(function) or not callable(inner):
        return False
    if hasattr(function, "__signature__") or hasattr(inner, "__signature__"):
        return False  # it says by itself how it is called
    return bool(function.__code__.co_flags & inspect.CO_VARARGS) and not function.__code__.co_argcount


def check_plain(what: str, call: str, value: object, *, arguments: int = 1) -> None:
    """Refuse what is no plain function: what an ``async def`` makes would not be awaited. As ``check_function``."""
    check_function(what, call, value, arguments=arguments)
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None)):  # noqa: B004
        raise ConfigurationError(
            f"{what}: {shown(value)} is async: it is called, not awaited; write it as a plain `def`"
        )


def check_optional(what: str, call: str, value: object, *, arguments: int = 1) -> None:
    """Refuse what is neither None nor a function; as ``check_function``."""
    if value is not None:
        check_function(what, call, value, arguments=arguments)


def check_choice(what: str, call: str, value: object, *, arguments: int = 1) -> None:
    """Refuse what is neither None nor a mapping nor a function; as ``check_function``."""
    if value is None or isinstance(value, Mapping):
        return
    if not callable(value):
        raise ConfigurationError(f"{what} takes a mapping by tenant or a function of it; got {shown(value)}")
    check_plain(what, call, value, arguments=arguments)


def check_flag(what: str, value: object) -> None:
    """Refuse what is neither True nor False: a text such as "no" would count as True."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{what} takes True or False; got {shown(value)}")


def check_queue(what: str, name: object) -> None:
    """Refuse what cannot be the name, URL or ARN of a queue; and a URL with a password, which logs would show."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"{what} takes the name, URL or ARN of a queue; got {name!r}")
    if hide_passwords(name) != name:
        text = f"{what} takes a URL without user and password: SQS asks for credentials of AWS, which the client has"
        raise ConfigurationError(f"{text}; got {name!r}")
    own = name.rstrip("/").rpartition("/")[2] if "://" in name else name
    own = own.rpartition(":")[2] if own.startswith("arn:") else own
    if len(own) > _LONGEST_QUEUE or not _QUEUE.fullmatch(own):
        text = (
            f"{what} takes the name, URL or ARN of a queue, and a name has at most {_LONGEST_QUEUE} letters (a to z), "
            "digits, hyphens and underscores; that of a FIFO queue ends in .fifo"
        )
        raise ConfigurationError(f"{text}; got {name!r}")


def check_path(what: str, value: object, example: str) -> None:
    """Refuse what is no path of a file. ``example`` is what to write: ``Journal("redrive.jsonl")``."""
    if not isinstance(value, str | os.PathLike) or not str(cast("object", value)):
        raise ConfigurationError(f"{what} takes a file: write {example}; got {shown(cast('object', value))}")


def check_optional_path(what: str, value: object, example: str) -> None:
    """Refuse what is neither None nor a ``Path``. ``example`` is what to write: ``directory=Path("/var/tmp")``."""
    if value is not None and not isinstance(value, Path):
        raise ConfigurationError(f"{what} takes a Path: write {example}; got {shown(value)}")


def check_number(what: str, value: object) -> None:
    """Refuse what is no number, or none that can be compared."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 - not a number
        raise ConfigurationError(f"{what} takes a number; got {shown(value)}")


def check_text(what: str, value: object, example: str) -> None:
    """Refuse what is no text, or an empty one. ``example`` is what to write: ``"eu-west-1"``."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{what} takes a text: write {example}; got {shown(value) if value else repr(value)}")


def check_options(what: str, value: object, example: str) -> None:
    """Refuse what is neither None nor a mapping by name. ``example`` is what to write: ``options={"x": 1}``."""
    if value is None:
        return
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in cast("Mapping[Any, Any]", value)):
        return
    raise ConfigurationError(f"{what} takes a mapping by name: write {example}; got {shown(cast('object', value))}")


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


def check_endpoint(name: str, url: object) -> None:
    """Raise ConfigurationError unless a text is the URL of a server: ``http://`` or ``https://``, and a host.

    Args:
        name: what the text is given as: ``AwsClient(endpoint_url=...)``, ``AWS_ENDPOINT_URL``.
        url: the text.
    """
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or half of an IPv6 address
        good = False
    if not good:
        said = repr(url) if isinstance(url, str) and "@" not in url else "another text"  # it may have a password
        raise ConfigurationError(f"{name} begins with http:// or https://, such as http://127.0.0.1:4566; got {said}")


def check_endpoint_variables(service: str) -> None:
    """Check the endpoint that the environment names for a service, where botocore would take it.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html

    Args:
        service: as in the name of the variable: ``SQS``, ``S3``, ``SFN``.
    """
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return
    names = (f"AWS_ENDPOINT_URL_{service}", "AWS_ENDPOINT_URL")
    if name := next(filter(os.environ.get, names), None):
        check_endpoint(name, os.environ[name])


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
