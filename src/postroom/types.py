"""Type variables and the small vocabularies that every layer shares."""

from enum import IntEnum, StrEnum
from typing import Final

from typing_extensions import TypeVar

C = TypeVar("C", default=None)
"""A context: which tenant's message is this?"""
R = TypeVar("R", default=None)
"""The resources of one context."""
P = TypeVar("P")
"""A payload: what happened?"""
C_co = TypeVar("C_co", covariant=True, default=None)
R_co = TypeVar("R_co", covariant=True, default=None)


class AckMode(StrEnum):
    """When a consumer acknowledges (deletes) a message.

    A message that found its tenant's resources not to be opened *for now* was not handled at all: it is deferred in
    every mode, never acknowledged.
    """

    ON_SUCCESS = "on_success"
    """After the handler returned. A failure leaves the message in the queue, with backoff."""
    ALWAYS = "always"
    """After the handler returned or failed. A failure is reported to ``on_error`` and is then gone."""
    MANUAL = "manual"
    """Only by ``ctx.ack()``; ``ctx.retry()``, ``Retry`` and ``Reject`` work as well. Nothing else is done."""


class OnInvalid(StrEnum):
    """What becomes of a message with a body that the handler did not ask for.

    A body that cannot be read today cannot be read tomorrow, unless the code is deployed that can.
    """

    FAIL = "fail"
    """It has failed like any other: it comes back with backoff, and ``AckMode`` and the redrive policy apply."""
    DROP = "drop"
    """It is deleted, and the problem is logged."""
    REJECT = "reject"
    """It goes to the dead-letter queue at once, with the problem as the reason. Without such a queue it has failed."""


class Settlement(StrEnum):
    """What became of a message."""

    ACKED = "acked"
    """Deleted from the queue."""
    RETRIED = "retried"
    """Left in the queue after a failure, visible again after the backoff."""
    DEFERRED = "deferred"
    """Not tried: its tenant cannot run for now, or it made room for others. Visible again later."""
    REJECTED = "rejected"
    """Sent to the dead-letter queue with a reason, then deleted."""
    RETURNED = "returned"
    """Given back at once (visibility 0): the consumer stops, or a message before it in its group was not done."""
    LEFT = "left"
    """Nothing was done (MANUAL without ``ctx.ack()``): SQS shows it again after its visibility timeout."""
    LOST = "lost"
    """Ownership was lost: the visibility timeout passed without a confirmed extension."""


class StopReason(StrEnum):
    """Why a consumer stops."""

    REQUESTED = "requested"
    """``consumer.stop()``, or the end of ``async with``."""
    SIGNAL = "signal"
    """SIGTERM or SIGINT."""
    FATAL = "fatal"
    """An error ended the consumer; ``run()`` raises it."""


class ExitCode(IntEnum):
    """Exit codes of ``run`` and of the command line.

    A handler that calls ``sys.exit`` ends the process in order, with the exit code that it says; one that raises
    ``KeyboardInterrupt``, with 130.
    """

    CLEAN = 0
    """Stopped by a signal or by ``consumer.stop()``; whatever had begun was finished. Also when a signal ended the
    start."""
    FATAL = 1
    """A consumer died, or its queue could not be reached in time."""
    CONFIGURATION = 2
    """A consumer cannot be started as it is configured: no handler, no such queue, no permission."""
    CANCELLED_WORK = 3
    """Stopped, but handlers had to be cancelled; their messages are back in the queue."""


class Unresolved:
    """The tenant of messages without a resolvable context. Their lane costs the other tenants nothing."""

    def __repr__(self) -> str:
        return "<unresolved>"


UNRESOLVED: Final = Unresolved()
