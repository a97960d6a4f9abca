"""What a handler is given beside its payload."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final, Generic, Protocol, overload

import msgspec

from postroom.checking import is_number
from postroom.consumer.confirmation import Confirmation, confirmed, settling_later
from postroom.consumer.transacting import Counts, MessageTransaction
from postroom.display import Discreet, display_key
from postroom.errors import ConfigurationError, PostroomError, retry_delay
from postroom.fleet.names import Unnamable, name_of
from postroom.message import Message
from postroom.options import MAX_VISIBILITY
from postroom.tasks import TimeLimit, message_variable
from postroom.transactions import EitherTransactional, MessageKey, SyncTransactional, SyncTx, Transactional, Tx
from postroom.types import C_co, R_co

__all__ = [
    "Confirmation",
    "MessageContext",
    "Settles",
    "current_message",
    "enter_message",
    "settles_of",
    "settling_later",
]

_LONGEST_KEY: Final = 500


class Settles(Counts, Protocol):
    """What stands behind ``ctx.ack()``, ``ctx.retry()`` and ``ctx.extend()`` in one call of a handler."""

    idle: float
    """Seconds of this call of the handler that do not count: in them it waited for its batch."""

    @property
    def limit(self) -> TimeLimit | None:
        """The time limit of this call of the handler; None where it has none."""
        ...

    @limit.setter
    def limit(self, limit: TimeLimit | None, /) -> None: ...

    @property
    def lost(self) -> bool:
        """Whether another consumer may have the message by now."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the consumer: what follows is called there."""
        ...

    async def acknowledge(self) -> None:
        """Delete the message and return when that is confirmed."""
        ...

    async def give_back(self, delay: float | None) -> None:
        """Leave the message in the queue and return when that is confirmed."""
        ...

    async def extend(self, seconds: float) -> None:
        """Keep the message for so long from now, and return when that is confirmed."""
        ...


class MessageContext(Discreet, msgspec.Struct, Generic[C_co, R_co], frozen=True):
    """The tenant of a message, and what was leased for it. Frozen; every message has its own.

    ``MessageContext`` is covariant: a handler may ask for a Protocol that the resources fulfil.

    ``ack``, ``retry`` and ``extend`` are awaited in an ``async def`` handler. In a plain ``def`` handler,
    which runs in a thread, they are just called: they return when SQS has confirmed it, and raise when it has not.
    """

    message: Message
    """The message as it was received."""
    context: C_co
    """What the resolver made of it; None when the consumer has no ``context=``."""
    resources: R_co
    """What the pool leased for the context; None when the consumer has no ``resources=``. Valid until the handler
    returns."""
    tenant: Any
    """The tenant, as ``consumer.tenants[...]`` calls it: the key of the pool, or the context. None when the consumer
    has no ``context=``."""
    attempt: int
    """Which attempt this is: 1 plus the runs of your code for this message that ended in failure. Receives that
    postroom spent otherwise are not counted; ``message.receive_count`` counts all."""
    _settles: Settles

    def __repr__(self) -> str:  # of the resources their type: they may show a password
        resources = None if self.resources is None else f"<{type(self.resources).__name__}>"
        shown = f"message={self.message!r}, tenant={display_key(self.tenant)!r}, resources={resources}"
        return f"MessageContext({shown}, attempt={self.attempt})"

    @property
    def queue(self) -> str:
        """The name of the queue that the message came from: where it is acknowledged, too."""
        return self.message.queue

    def ack(self) -> Confirmation:
        """Delete the message now, and return when SQS has confirmed it.

        Raises:
            OwnershipLost: the visibility timeout is over.
            TransportError: SQS refused the delete, or could not be reached; the message will come back.
            PostroomError: the message was settled before, a transaction of it is not committed yet, or the consumer
                has stopped.
        """
        return self._confirmed("ack", self._acknowledge)

    def retry(self, *, delay: float | None = None) -> Confirmation:
        """Leave the message in the queue, visible again after ``delay`` seconds, and return when SQS confirmed it.

        Args:
            delay: seconds from 0 to 43,200, rounded up to whole ones: what is beyond is cut. None for the consumer's
                backoff.

        Raises: as ``ack``; ``ConfigurationError`` when ``delay`` is no finite number.
        """
        seconds = retry_delay("ctx.retry(delay=...)", delay)
        return self._confirmed("retry", lambda: self._settles.give_back(seconds))

    def extend(self, seconds: float) -> Confirmation:
        """Keep the message for ``seconds`` from now, and return when SQS has confirmed it.

        While a handler runs, the heartbeat does this by itself. Call it where there is none: with
        ``Visibility(heartbeat=False)``, or under ``AckMode.MANUAL`` after the handler returned.

        Args:
            seconds: more than 0, at most 43,200; SQS ends it 12 hours after the receive in any case.

        Raises: as ``ack``.
        """
        if not is_number(seconds) or not 0 < seconds <= MAX_VISIBILITY:
            text = f"ctx.extend(seconds) takes more than 0 and at most {MAX_VISIBILITY:,} s; got {seconds!r}"
            raise ConfigurationError(text)
        return self._confirmed("extend", lambda: self._settles.extend(seconds))

    @overload
    def transaction(
        self: "MessageContext[Any, EitherTransactional[Tx, SyncTx]]", *, key: str | None = None
    ) -> MessageTransaction[Tx, SyncTx]: ...

    @overload
    def transaction(
        self: "MessageContext[Any, Transactional[Tx]]", *, key: str | None = None
    ) -> AbstractAsyncContextManager[Tx]: ...

    @overload
    def transaction(
        self: "MessageContext[Any, SyncTransactional[SyncTx]]", *, key: str | None = None
    ) -> AbstractContextManager[SyncTx]: ...

    def transaction(self, *, key: str | None = None) -> Any:
        """Work in a transaction of the tenant's database that begins with this message's row in its inbox.

            async with ctx.transaction() as tx:  # in a plain def handler: with ctx.transaction() as tx:
                await tx.execute("INSERT INTO orders VALUES ($1)", order.order_id)

        SQS delivers at least once; what is done in the block is done exactly once. It is committed when the block is
        left, and rolled back, with the row, when an exception or a cancellation leaves it. A duplicate finds the row
        and is acknowledged, in every mode, without an effect: the block is not entered, the handler is left. One that
        comes while the first is in its block waits for it.

        Which of the two statements works, the resources say: those of ``asyncpg_inbox`` are for ``async def``
        handlers, those of ``psycopg_sync_inbox`` for plain ``def`` handlers, and ``SqliteDatabase`` is for both.

        Args:
            key: by what a duplicate is recognised; 1 to 500 characters. None for the message id, which is the same in
                every receive of one message. A business key, such as an order number, also recognises what was sent
                twice. It counts within the queue and the tenant, which the message's ``context`` names, also where a
                pool's ``key=`` lets tenants share resources: by its class, and its fields that are compared. What
                belongs to the message alone, such as a trace id, is a ``field(compare=False)`` of a dataclass.

        Raises:
            AlreadyHandled: the message is a duplicate. Not an ``Exception``; let it pass.
            ConfigurationError: the resources have no inbox, or none for this kind of handler, or the key is none; or
                this call of the handler has entered one with the same key before; or there is a business key, and the
                context is made of other things than texts, numbers, dates, UUIDs, enums, and records or tuples of them.
        """
        transaction: MessageTransaction[Any, Any]
        transaction = MessageTransaction(self._settles, self.resources, _key_of(self.message, self.context, key))
        return transaction

    def _confirmed(self, method: str, work: Callable[[], Coroutine[Any, Any, None]]) -> Confirmation:
        # One object for both kinds of handlers: a coroutine that a thread forgets to await would do
        # nothing.
        return confirmed(self._settles.loop, work, f"ctx.{method}() for message {self.message.id}", self)

    async def _acknowledge(self) -> None:
        if self._settles.transactions:
            # A delete before the commit loses the message if the commit fails.
            text = "ctx.ack() inside of ctx.transaction(): nothing is committed yet; acknowledge after the block"
            raise PostroomError(text)
        await self._settles.acknowledge()


def _key_of(message: Message, context: Any, key: Any) -> MessageKey:
    if key is None:
        return MessageKey(message.queue, message.id)
    if not isinstance(key, str):  # its value is of the payload: it is not shown
        text = f"ctx.transaction(key=...) takes a text: write key=str(order.id); got {type(key).__name__}"
        raise ConfigurationError(text)
    if not 0 < len(key) <= _LONGEST_KEY or "\0" in key:
        text = f"ctx.transaction(key=...) takes 1 to {_LONGEST_KEY} characters, none of them NUL; got {len(key)}"
        raise ConfigurationError(text)
    if context is None:
        return MessageKey(message.queue, f"key:{key}")  # no message id looks like that
    # With the tenant: two of them may have an order of one number, and one database. By the context and not by
    # `ctx.tenant`: a pool's `key=` makes one of all tenants that share a resource.
    try:
        tenant = f"{type(context).__name__}:{name_of(context)}"
    except Unnamable as error:
        text = (
            f"ctx.transaction(key=...) counts within the tenant, and its context has no name of its own: {error}. Make "
            "it a frozen dataclass of texts, numbers and UUIDs; what else it holds is a field(compare=False)"
        )
        raise ConfigurationError(text) from error
    return MessageKey(message.queue, f"tenant:{len(tenant)}:{tenant}:{key}")


_current: ContextVar[MessageContext[Any, Any] | None] = message_variable("postroom_message")


def current_message() -> MessageContext[Any, Any] | None:
    """Return the context of the message that the calling code handles; None outside of a handler.

    It is set in the handler, in its middleware, and in what they call: threads of plain ``def`` handlers,
    ``asyncio.to_thread``, and tasks that they start, which keep it for as long as they run. Resolvers, providers and
    observers are not part of a handler.

    For log and trace correlation only, such as a ``logging.Filter`` that adds the message id: what a handler needs, it
    is given as an argument, and the resources are valid only until the handler returns.
    """
    return _current.get()


# Itself, and not a function around it: it is called for every message.
enter_message: Final[Callable[[MessageContext[Any, Any]], object]] = _current.set
"""Make a context the current one, in the message's own task. The task ends with its message: nothing is reset."""


def settles_of(context: MessageContext[Any, Any]) -> Settles:
    """Return what stands behind a context: nothing for handlers."""
    return context._settles  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
