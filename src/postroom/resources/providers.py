"""What a user may give as ``resources=``, made into one thing: a function that returns an async context manager."""

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, cast

from postroom.errors import ConfigurationError

Opener = Callable[[Any], AbstractAsyncContextManager[Any]]
"""Returns the async context manager of one context's resources."""

_EXPECTED = (
    "an async context manager function (decorate an async generator with @contextlib.asynccontextmanager), "
    "or an async function that returns the resources, plus cleanup="
)


def adapt_provider(provider: Callable[[Any], Any], cleanup: Callable[[Any], Any] | None) -> Opener:
    """Return an opener for a provider. What cannot work is refused here, or at the first open."""
    if not callable(provider):
        raise ConfigurationError(f"the resource provider is {type(provider).__name__}: it has to be {_EXPECTED}")
    if inspect.isasyncgenfunction(provider) or inspect.isgeneratorfunction(provider):
        raise ConfigurationError(f"the resource provider is a bare generator function: it has to be {_EXPECTED}")
    if cleanup is not None and inspect.isasyncgenfunction(getattr(provider, "__wrapped__", None)):
        raise ConfigurationError("cleanup= goes with an async function; here what follows the yield is the cleanup")

    def opener(context: Any) -> AbstractAsyncContextManager[Any]:
        made = provider(context)
        if cleanup is None and isinstance(made, AbstractAsyncContextManager):
            return cast("AbstractAsyncContextManager[Any]", made)
        if inspect.isawaitable(made):
            return _FromFunction(made, cleanup)
        raise ConfigurationError(f"the resource provider returned {type(made).__name__}: it has to be {_EXPECTED}")

    return opener


def known_of(provider: Any) -> tuple[int, Callable[[Any], Awaitable[object]] | None]:
    """Return what a provider knows of its resources: what one weighs, and how to check its health, if it can.

    Those of ``postroom.datasources`` say both; of any other, a resource counts as 1, and none is checked.
    """
    if hasattr(provider, "weight") and hasattr(provider, "check"):
        return provider.weight, provider.check
    return 1, None


class _FromFunction(AbstractAsyncContextManager[Any]):
    """An async function and its cleanup as one context manager."""

    def __init__(self, opening: Awaitable[Any], cleanup: Callable[[Any], Any] | None) -> None:
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
