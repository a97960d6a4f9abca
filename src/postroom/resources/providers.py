"""What a user may give as ``resources=``, made into one thing: a function that returns an async context manager."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, cast

from msgspec import UNSET, UnsetType

from postroom.checking import check_function, check_optional
from postroom.errors import ConfigurationError
from postroom.log_fields import Log, Step
from postroom.redaction import describe
from postroom.resources.causes import NotAProvider

_log = Log("postroom.pool", Step.RESOURCES)

_LARGEST_POOL: Final = 10_000
"""A larger number means that there is no bound."""
_DEEPEST: Final = 8
Cleanup = Callable[[Any], Any]
_EXPECTED: Final = (
    "an async context manager function (decorate an async generator with @contextlib.asynccontextmanager), "
    "or an async function that returns the resources, plus cleanup="
)


class Opener:
    """Makes the async context manager of one context's resources, whatever kind of provider there is.

    Args:
        provider: what the user gave.
        cleanup: what closes what an async function opened. None says that there is nothing to close; UNSET that
            nothing was said, which is worth a warning.

    Raises:
        ConfigurationError: it cannot be a provider. What only a call can show is found out by the first open.
    """

    def __init__(self, provider: Callable[[Any], Any], cleanup: Cleanup | UnsetType | None) -> None:
        if not callable(provider):
            raise ConfigurationError(f"the resource provider is {type(provider).__name__}: it has to be {_EXPECTED}")
        if inspect.isasyncgenfunction(provider) or inspect.isgeneratorfunction(provider):
            raise ConfigurationError(f"the resource provider is a bare generator function: it has to be {_EXPECTED}")
        check_function("ResourcePool(provider)", "(context)", provider)
        self.provider = provider
        self._cleanup = None if isinstance(cleanup, UnsetType) else cleanup
        self._unsaid = cleanup is UNSET
        self._worked = False
        if self._cleanup is not None and inspect.isasyncgenfunction(getattr(provider, "__wrapped__", None)):
            text = "cleanup= goes with an async function; here what follows the yield is the cleanup"
            raise ConfigurationError(text)
        check_optional("ResourcePool(cleanup=...)", "(resources)", self._cleanup)

    def __call__(self, context: Any) -> AbstractAsyncContextManager[Any]:
        """Return what opens and closes the resources of ``context``."""
        made = self.provider(context)
        if self._cleanup is None and isinstance(made, AbstractAsyncContextManager):
            self._worked = True
            return cast("AbstractAsyncContextManager[Any]", made)
        if inspect.isawaitable(made):
            self._worked = True
            self._warn()
            return _FromFunction(made, self._cleanup)
        return _Refused(made, always=made is not None and not self._worked)

    def warn(self) -> None:
        """Say, once, that an async function has no ``cleanup=``, if it can be seen from outside."""
        by_class = getattr(type(self.provider), "__call__", None)  # noqa: B004 - not whether, but how it is called
        if inspect.iscoroutinefunction(self.provider) or inspect.iscoroutinefunction(by_class):
            self._warn()

    def _warn(self) -> None:
        if self._unsaid:
            self._unsaid = False
            name = getattr(self.provider, "__qualname__", type(self.provider).__name__)
            _log.warning(
                "The provider %s is an async function without cleanup=: what it opens is never closed. Pass cleanup=, "
                "or cleanup=None if nothing has to be closed",
                name,
            )


def known_of(provider: Any) -> tuple[int | Callable[[Any], int] | None, Callable[[Any], Awaitable[object]] | None]:
    """Return what a provider knows of its resources: what one weighs, and how to check its health.

    Any callable may have the attributes ``weight`` (a number, or a function of the context) and ``check``; what is
    wrapped by ``functools.partial`` or a decorator that keeps ``__wrapped__`` is asked too. None: it does not know.
    """
    weight: Any = None
    check: Any = None
    for _ in range(_DEEPEST):
        if provider is None or inspect.isclass(provider):  # a class's attributes are those of its instances
            break
        weight = getattr(provider, "weight", None) if weight is None else weight
        check = getattr(provider, "check", None) if check is None else check
        inner = provider.func if isinstance(provider, functools.partial) else getattr(provider, "__wrapped__", None)
        provider = cast("Any", inner)
    if not (callable(weight) or (isinstance(weight, int) and not isinstance(weight, bool))):
        weight = None
    return cast("Any", weight), cast("Any", check) if callable(check) else None


def place_of(provider: Any) -> Callable[[Any], Awaitable[str]] | None:
    """Return what tells where a provider's resources are: its attribute ``place``, if that is a coroutine function."""
    for _ in range(_DEEPEST):
        if provider is None or inspect.isclass(provider):
            return None
        place = getattr(provider, "place", None)
        if inspect.iscoroutinefunction(place):
            return cast("Callable[[Any], Awaitable[str]]", place)
        inner = provider.func if isinstance(provider, functools.partial) else getattr(provider, "__wrapped__", None)
        provider = cast("Any", inner)
    return None


def connects(provider: Any) -> bool:
    """Return whether a provider's resources are connections to a server, as its attribute ``connects`` says."""
    return getattr(provider, "connects", True) is not False


def connections_of(resource: object) -> int:
    """Return how many connections a resource may hold, if it looks like a pool of them; 1 for any other.

    Known: the pools of asyncpg, psycopg, SQLAlchemy (an engine, or a session maker bound to one), aiomysql and redis,
    also as the fields of a tuple, a mapping or a record.
    """
    try:
        return max(1, sum(_size_of(part) for part in _parts_of(resource)))
    except Exception:  # it was a guess: an object that does not like to be looked at counts as one
        return 1


def _parts_of(resource: Any) -> list[Any]:
    if isinstance(resource, Mapping):
        return list(cast("dict[Any, Any]", resource).values())
    if isinstance(resource, tuple | list):
        return list(cast("list[Any]", resource))
    if _size_of(resource) > 1 or not hasattr(resource, "__dataclass_fields__"):
        return [resource]
    return [getattr(resource, name) for name in resource.__dataclass_fields__]


def _size_of(thing: Any, depth: int = 3) -> int:
    """Return the size of a pool by the names that the drivers use for it; 0 for what is none, or has no bound."""
    if depth <= 0:  # an object that answers everything has no end
        return 0
    is_pool = hasattr(thing, "acquire") or hasattr(thing, "getconn") or "pool" in type(thing).__name__.lower()
    for name in ("get_max_size", "max_size", "maxsize", "_maxsize", "max_connections") if is_pool else ():
        if 0 < (size := _number(getattr(thing, name, None))) <= _LARGEST_POOL:
            return size
    for inner in ("connection_pool", "sync_engine"):
        if (held := getattr(thing, inner, None)) is not None:
            return _size_of(held, depth - 1)
    bound: Any = getattr(thing, "kw", None)
    if isinstance(bound, Mapping) and "bind" in bound:
        return _size_of(cast("Mapping[str, Any]", bound)["bind"], depth - 1)
    pool = getattr(thing, "pool", None)
    if pool is not None and hasattr(pool, "size"):
        return _number(pool.size) + max(0, _number(getattr(pool, "_max_overflow", 0)))
    return 0


def _number(value: Any) -> int:
    value = value() if callable(value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


class _Refused(AbstractAsyncContextManager[Any]):
    """What a provider returned that is none: entering closes it, if it can be closed, and says what is wrong."""

    def __init__(self, made: Any, *, always: bool) -> None:
        self._made = made
        self._always = always

    async def __aenter__(self) -> Any:
        kind = type(self._made).__name__
        await _close_if_possible(self._made)
        raise NotAProvider(f"the resource provider returned {kind}: it has to be {_EXPECTED}", always=self._always)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing: it is never entered."""


async def _close_if_possible(made: Any) -> None:
    for name in ("aclose", "close"):
        close = getattr(made, name, None)
        if callable(close):
            try:
                ending = close()
                if inspect.isawaitable(ending):
                    await ending
            except Exception as error:
                _log.warning("Closing what the provider returned failed: %s", describe(error))
            return


class _FromFunction(AbstractAsyncContextManager[Any]):
    """An async function and its cleanup as one context manager."""

    def __init__(self, opening: Awaitable[Any], cleanup: Cleanup | None) -> None:
        self._opening = opening
        self._cleanup = cleanup
        self._resource: Any = None

    async def __aenter__(self) -> Any:
        self._resource = await self._opening
        return self._resource

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._cleanup is not None:
            ending = self._cleanup(self._resource)
            if inspect.isawaitable(ending):
                await ending
