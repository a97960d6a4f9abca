"""A ``MessageContext`` for a unit test that calls a handler itself, without a queue."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, overload

import msgspec

from postroom.checking import check_kind
from postroom.consumer.confirmation import Confirmation
from postroom.consumer.context import MessageContext
from postroom.errors import ConfigurationError
from postroom.message import Message, MessageAttribute
from postroom.options import check_count
from postroom.tasks import TimeLimit, is_in_loop, run_now
from postroom.transactions import MessageKey
from postroom.types import C, C_co, R, R_co

_NONE: Any = None


class _Recorder(msgspec.Struct, eq=False):
    """Stands behind ``ctx.ack()`` and its like, and notes what was asked for."""

    transactions: int = 0
    written: set[MessageKey] | None = None
    committed: int = 0
    limit: TimeLimit | None = None
    idle: float = 0.0
    lost: bool = False
    acknowledged: bool = False
    retries: list[float | None] = msgspec.field(default_factory=list[float | None])
    extensions: list[float] = msgspec.field(default_factory=list[float])

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def tell_half_done(self) -> None:
        return None

    async def acknowledge(self) -> None:
        self.acknowledged = True

    async def give_back(self, delay: float | None) -> None:
        self.retries.append(delay)

    async def extend(self, seconds: float) -> None:
        self.extensions.append(seconds)


class RecordedContext(MessageContext[C_co, R_co], frozen=True):
    """A ``MessageContext`` that no consumer stands behind. Made by ``context``.

    What the handler asks for is noted here. In an ``async def`` handler it is noted when it is awaited, so that a
    forgotten ``await`` shows; in a plain ``def`` handler, which is called without an event loop or in a thread, at
    once.
    """

    @property
    def acked(self) -> bool:
        """Whether ``ctx.ack()`` was called."""
        return self._recorder.acknowledged

    @property
    def retries(self) -> list[float | None]:
        """The ``delay`` of each ``ctx.retry()``."""
        return self._recorder.retries

    @property
    def extensions(self) -> list[float]:
        """The seconds of each ``ctx.extend()``."""
        return self._recorder.extensions

    @property
    def _recorder(self) -> _Recorder:
        settles = self._settles
        assert isinstance(settles, _Recorder)  # noqa: S101 - context() makes no other
        return settles

    def _confirmed(self, method: str, work: Callable[[], Coroutine[Any, Any, None]]) -> Confirmation:
        confirmation = Confirmation(work, f"ctx.{method}() for message {self.message.id}", self)
        if not is_in_loop():
            run_now(confirmation)
        return confirmation


@overload
def context(
    *, tenant: Any = ..., message: Message | None = ..., attributes: Mapping[str, str] = ..., attempt: int = ...
) -> RecordedContext[None, None]: ...


@overload
def context(
    context: C,
    *,
    tenant: Any = ...,
    message: Message | None = ...,
    attributes: Mapping[str, str] = ...,
    attempt: int = ...,
) -> RecordedContext[C, None]: ...


@overload
def context(
    context: C,
    resources: R,
    *,
    tenant: Any = ...,
    message: Message | None = ...,
    attributes: Mapping[str, str] = ...,
    attempt: int = ...,
) -> RecordedContext[C, R]: ...


def context(
    context: Any = None,
    resources: Any = None,
    *,
    tenant: Any = _NONE,
    message: Message | None = None,
    attributes: Mapping[str, str] = {},
    attempt: int = 1,
) -> RecordedContext[Any, Any]:
    """Make a ``MessageContext`` for a test that calls a handler directly.

        ctx = context(Tenant("acme"), FakeDatabase())
        await record(OrderCreated("order-1"), ctx)
        assert not ctx.acked

    Args:
        context: becomes ``ctx.context``.
        resources: becomes ``ctx.resources``.
        tenant: becomes ``ctx.tenant``; None for the context.
        message: becomes ``ctx.message``; None for one with an empty body and the attributes.
        attributes: String attributes of that message.
        attempt: becomes ``ctx.attempt``, the first one being 1. The message was received as often.

    Raises:
        ConfigurationError: both ``message`` and ``attributes`` are given, or an attempt below 1.
    """
    check_count("context", "attempt", attempt)
    check_kind("context(attributes=...)", attributes, Mapping, 'attributes={"tenantId": "acme"}')
    if message is not None and attributes:
        text = "context() takes message= or attributes=, not both: put the attributes into the message"
        raise ConfigurationError(text)
    if message is None:
        made = {name: MessageAttribute(string_value=value) for name, value in attributes.items()}
        count = {"ApproximateReceiveCount": str(attempt)}
        message = Message(id="test", body="", message_attributes=made, system_attributes=count, queue="test")
    owner = context if tenant is None else tenant
    return RecordedContext(message, context, resources, owner, attempt, _Recorder())
