"""What the integrations of web frameworks share: starting what an application needs, and refusals in terms of HTTP."""

import inspect
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

from postroom.errors import (
    ConfigurationError,
    PoolExhaustedError,
    ResourceOpenError,
    ResourceUnhealthyError,
)

Part = AbstractAsyncContextManager[Any]
"""What an application enters: a consumer, a pool, a client."""
Made = Part | Sequence[Part] | Mapping[str, Part]
Factory = Callable[[Any], Made | Awaitable[Made]]
"""Makes the parts of one application in the process, and the event loop, that they are used in."""

REFUSALS: Final = (ResourceOpenError, ResourceUnhealthyError, PoolExhaustedError)
"""What a lease raises when the resources cannot be had. Anything else is a defect, and an error 500."""
_RETRY_AFTER: Final = 1.0
"""Seconds that a client is asked to wait where the pool does not say."""


def check_parts(parts: Sequence[Any]) -> None:
    """Raise ``ConfigurationError`` for what can neither be entered nor make parts."""
    if not parts:
        raise ConfigurationError("lifespan() takes pools and consumers, or a function that makes them; got nothing")
    for part in parts:
        if not isinstance(part, AbstractAsyncContextManager) and (len(parts) > 1 or not callable(part)):
            text = "lifespan() takes pools and consumers (async context managers), or one function that makes them"
            raise ConfigurationError(f"{text}; got {type(cast('object', part)).__name__}")


@asynccontextmanager
async def started(parts: Sequence[Any], app: Any) -> AsyncGenerator[dict[str, Any]]:
    """Enter all parts in order and leave them in reverse. Yields those that a factory named."""
    made: Any = parts
    if not isinstance(parts[0], AbstractAsyncContextManager):
        made = parts[0](app)
        made = await made if inspect.isawaitable(made) else made
    named: dict[str, Any] = dict(cast("Mapping[str, Any]", made)) if isinstance(made, Mapping) else {}
    is_one = isinstance(made, AbstractAsyncContextManager) or not isinstance(made, Iterable)
    several: list[Any] = list(named.values()) or ([made] if is_one else list(cast("Iterable[Any]", made)))
    if wrong := [part for part in several if not isinstance(part, AbstractAsyncContextManager)]:
        raise ConfigurationError(f"the function of lifespan() makes {type(wrong[0]).__name__}, which cannot be entered")
    async with AsyncExitStack() as stack:
        for part in several:
            await stack.enter_async_context(part)
        yield named


def check_tenant(tenant: object) -> None:
    """Refuse a request without a tenant: all such requests would share what is opened for None.

    Raises:
        ConfigurationError: the function that says a request's tenant returned None.
    """
    if tenant is None:
        text = "the context function of leased() returned None; let it return the tenant, or raise, such as a 401"
        raise ConfigurationError(text)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request cannot have its tenant's resources, in terms of HTTP."""

    status: int
    detail: str
    headers: dict[str, str] = field(default_factory=dict[str, str])


def refusal_of(error: Exception) -> Refusal:
    """Return 404 where there is no such tenant, else 503 with ``Retry-After``. No text of a driver goes out."""
    if isinstance(error, ResourceOpenError) and error.permanent:
        return Refusal(404, "there is no such tenant")
    seconds = getattr(error, "retry_after", None) or _RETRY_AFTER
    return Refusal(503, "the tenant's resources are not available", {"Retry-After": str(math.ceil(seconds))})
