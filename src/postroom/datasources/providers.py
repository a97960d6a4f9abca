"""Providers that know what their resources weigh, and how to check them."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Unpack

from typing_extensions import TypeVar

from postroom.errors import ConfigurationError
from postroom.resources import ResourcePool
from postroom.resources.arguments import PoolArguments, check_names
from postroom.types import C, R

M = TypeVar("M", default=Any)


@dataclass(frozen=True, slots=True)
class Provider(Generic[C, R]):
    """A provider of resources: call it with a context for an async context manager of that context's resources.

    A ``ResourcePool`` of it, and a consumer that it is passed to, count its connections and check
    its health.
    """

    enter: Callable[[C], AbstractAsyncContextManager[R]] = field(repr=False)
    weight: int = 1
    """What one resource costs in the pool's budget: the connections that it may hold."""
    check: Callable[[R], Awaitable[bool]] | None = field(default=None, repr=False)
    """The health check for the pool: returns True, or raises what is wrong."""
    place: Callable[[C], Awaitable[str]] | None = field(default=None, repr=False)
    """Tells where the resources of a context are, such as ``db-1:5432/acme``, without a password: how a move of a
    tenant is verified."""
    connects: bool = True
    """Whether its resources are connections to a server, which takes only so many of them. Files are none."""
    scoped: bool = False
    """Whether its resources keep to one context's part of a database (``scope=``): contexts must not share them."""

    def __call__(self, context: C) -> AbstractAsyncContextManager[R]:
        """Return what opens and closes the resources of ``context``."""
        return self.enter(context)

    def pool(self, **options: Unpack[PoolArguments[C]]) -> ResourcePool[C, R]:
        """Make a ``ResourcePool`` of this provider.

        Args:
            options: the keywords of ``ResourcePool``: ``limits``, ``timeouts``, ``backoff``, ``key``,
                ``host``, ``classify``, ``outage``, ``observers``, ``name``, ``jitter``, ``weight``,
                ``check``.

        Raises:
            ConfigurationError: it has no such keyword, or one has a value that cannot work.
        """
        check_names("pool()", options)
        return ResourcePool(self, **options)

    def map(self, function: Callable[[R], M], /) -> "Provider[C, M]":
        """Return a provider of ``function(resource)``, with this one's weight, check, place and ``connects``.

            sessions = sqlalchemy_engine(registry).map(async_sessionmaker)  # handlers get an async_sessionmaker

        The resource stays open for as long as what was made of it is in use. What has no
        ``transaction_for`` has no
        inbox: let your own class pass that of the resource on.

        Args:
            function: a plain function or class. It is called once for each opened resource; if it
                raises, opening fails.

        Raises:
            ConfigurationError: ``function`` is asynchronous; at opening: it makes a session or a connection of
                SQLAlchemy.
        """
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(_NOT_PLAIN)
        return _Mapping(self, function).provider()


_NOT_PLAIN: Final = (
    "map() takes a plain function of the resource; what has to be awaited or closed is a provider's work: write one "
    "around this provider"
)


_OF_ONE_USER: Final = frozenset({"AsyncSession", "Session", "AsyncConnection", "Connection"})
"""Of SQLAlchemy: one for all handlers of a tenant would mix their transactions."""


def _refuse_session(mapped: object) -> None:
    for kind in type(mapped).__mro__:
        if kind.__module__.startswith("sqlalchemy.") and kind.__name__ in _OF_ONE_USER:
            text = f"map() made one {kind.__name__}, and all handlers of a tenant would share its transaction"
            remedy = (
                "write map(async_sessionmaker), or map(sessionmaker), and let each handler open a session of its own"
            )
            raise ConfigurationError(f"{text}: {remedy}")


class _Mapping(Generic[C, R, M]):
    """Remembers of which resource each mapped one was made: the health check is asked of the former."""

    def __init__(self, inner: Provider[C, R], function: Callable[[R], M]) -> None:
        self._inner = inner
        self._function = function
        # By identity, because what a user makes need not be hashable. Entries live as long as the object does. A
        # function may return the same object twice, hence the lists.
        self._made_of: dict[int, list[R]] = {}

    def provider(self) -> Provider[C, M]:
        check = None if self._inner.check is None else self._check
        inner = self._inner
        return Provider(
            self._enter,
            weight=inner.weight,
            check=check,
            place=inner.place,
            connects=inner.connects,
            scoped=inner.scoped,
        )

    @asynccontextmanager
    async def _enter(self, context: C) -> AsyncGenerator[M]:
        async with self._inner(context) as resource:
            mapped = self._function(resource)
            if inspect.iscoroutine(mapped):  # of a lambda around an async function
                mapped.close()
                raise ConfigurationError(_NOT_PLAIN)
            _refuse_session(mapped)
            self._made_of.setdefault(id(mapped), []).append(resource)
            try:
                yield mapped
            finally:
                self._forget(id(mapped), resource)

    def _forget(self, key: int, resource: R) -> None:
        left = [each for each in self._made_of.pop(key) if each is not resource]
        if left:
            self._made_of[key] = left

    async def _check(self, mapped: M) -> bool:
        check = self._inner.check
        return check is None or all([await check(resource) for resource in self._made_of.get(id(mapped), [])])
