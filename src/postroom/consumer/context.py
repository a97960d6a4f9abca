"""What a handler is given beside its payload."""

from contextvars import ContextVar
from typing import Any, Generic, Protocol

import msgspec

from postroom.message import Message
from postroom.types import C_co, R_co


class Settles(Protocol):
    """What stands behind ``ctx.ack()`` and ``ctx.retry()``."""

    async def acknowledge(self) -> None:
        """Delete the message and return when that is confirmed."""
        ...

    async def give_back(self, delay: float | None) -> None:
        """Leave the message in the queue and return when that is confirmed."""
        ...


class MessageContext(msgspec.Struct, Generic[C_co, R_co], frozen=True):
    """Whose message it is, and what was leased for it. Frozen, and made anew for every message.

    ``MessageContext`` is covariant: a handler may ask for a Protocol that the resources fulfil.
    """

    message: Message
    """The message as it was received."""
    context: C_co
    """What the resolver made of it; None when the consumer has no ``context=``."""
    resources: R_co
    """What the pool leased for the context; None when the consumer has no ``resources=``. Valid until the handler
    returns."""
    _settles: Settles

    async def ack(self) -> None:
        """Delete the message now, and return when SQS has confirmed it.

        Raises:
            OwnershipLost: the visibility timeout is over.
            TransportError: SQS refused the delete, or could not be reached; the message will come back.
            PostroomError: the message was settled before.
        """
        await self._settles.acknowledge()

    async def retry(self, *, delay: float | None = None) -> None:
        """Leave the message in the queue, visible again after ``delay`` seconds, and return when SQS confirmed it.

        Args:
            delay: seconds from 0 to 43,200, rounded up to whole ones; None for the consumer's backoff.

        Raises: as :meth:`ack`.
        """
        await self._settles.give_back(delay)


_current: ContextVar[MessageContext[Any, Any] | None] = ContextVar("postroom_message", default=None)


def current_message() -> MessageContext[Any, Any] | None:
    """Return the context of the message that the calling task handles; None outside of a handler.

    For log and trace correlation only: what a handler needs, it is given as an argument.
    """
    return _current.get()


def enter_message(context: MessageContext[Any, Any]) -> None:
    """Make a context the current one of this task. The task ends with its message, so nothing is reset."""
    _current.set(context)
