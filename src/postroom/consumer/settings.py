"""What a consumer was configured with, in one frozen value."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic

from msgspec import UnsetType

from postroom.consumer.context import MessageContext
from postroom.consumer.queues import Queues
from postroom.consumer.unwrapping import Unwrapping
from postroom.events import Observers
from postroom.fleet import Fleet
from postroom.message import Message
from postroom.options import Concurrency, Faults, PerCall, Polling, RetryPolicy, Shutdown, Visibility
from postroom.redaction import describe
from postroom.resources import ResourcePool
from postroom.transports.protocol import Client
from postroom.types import AckMode, C, OnInvalid, R

Handle = Callable[[Any, MessageContext[Any, Any]], Awaitable[Any]]
"""A handler with everything around it: middleware, thread hop, timeout."""
CallNext = Callable[[Any, MessageContext[Any, Any]], Awaitable[None]]
Middleware = Callable[[Any, MessageContext[Any, Any], CallNext], Awaitable[None]]
"""Called around the handler: ``async def middleware(payload, ctx, call_next)``. What it raises counts as the handler's
exception; a payload or context that it hands on replaces the present one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What ``on_error`` is told: the error, the message, and whatever was reached before it failed."""

    error: BaseException
    """Its type tells which step failed: ``ContextError``, ``PayloadError``, ``ResourceError``, ``HandlerTimeout``, or
    the handler's own exception."""
    message: Message
    """The message, as it was received."""
    context: Any = None
    """None when it was not resolved."""
    payload: Any = None
    """None when it was not decoded."""

    def __repr__(self) -> str:  # without the payload, and what the error quotes: it is the tenant's
        return f"Failure(error=<{describe(self.error)}>, message={self.message!r}, context={self.context!r})"


OnError = Callable[[Failure], Awaitable[None] | None]
Provider = Callable[[C], AbstractAsyncContextManager[R]] | Callable[[C], Awaitable[R]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Generic[C, R]):
    """The arguments of a consumer, checked."""

    queue: str
    """The queue as it was named, or the title of several."""
    resolver: Callable[[Message], C | Awaitable[C]] | None
    resources: Provider[C, R] | ResourcePool[C, R] | None
    cleanup: Callable[[R], Awaitable[object] | None] | UnsetType | None
    unwrap: Unwrapping | None
    payload: Any
    ack: AckMode
    invalid: OnInvalid
    concurrency: Concurrency
    polling: Polling
    visibility: PerCall[Visibility]
    retry: PerCall[RetryPolicy]
    shutdown: Shutdown
    faults: PerCall[Faults]
    on_error: OnError | None
    middleware: Sequence[Middleware]
    observers: Observers
    client: Client | None
    fleet: Fleet | None = None
    queues: Queues | None = None
    """Several queues; None where ``queue`` is the only one."""

    @property
    def first_visibility(self) -> Visibility:
        """The policy that a message is received with: where the option is a function, it is asked after that."""
        return Visibility() if callable(self.visibility) else self.visibility
