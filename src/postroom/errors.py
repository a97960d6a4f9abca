"""Every error that postroom raises.

    PostroomError
    ├─ ConfigurationError (ValueError)   an option or a combination of options cannot work
    ├─ MessageError                      one message could not be handled; says which step failed
    │  ├─ ContextError                   the resolver raised, returned nothing, or something unhashable
    │  │  └─ MissingAttribute (KeyError) the message lacks an attribute that its context needs
    │  ├─ PayloadError                   the body is not what the handler asks for
    │  │  ├─ DecodeError                 not JSON, not text
    │  │  └─ ValidationError             JSON, but of another shape; says where
    │  ├─ ResourceError                  the tenant's resources could not be leased
    │  │  ├─ ResourceOpenError           an outage, or an unknown tenant; now, or while the pool leaves it alone
    │  │  ├─ ResourceUnhealthyError      the health check failed
    │  │  └─ PoolExhaustedError          no budget came free by the deadline
    │  ├─ HandlerTimeout (TimeoutError)  the handler ran longer than ``Concurrency.handler_timeout``
    │  └─ OwnershipLost                  the visibility timeout passed without a confirmed extension
    ├─ TransportError                    SQS refused, or could not be reached; ``retryable`` has the last word
    │  ├─ QueueNotFound, AccessDenied, InvalidReceiptHandle, InvalidRequest      trying again does not help
    │  ├─ Throttled, ServiceUnavailable                                          trying again later does
    │  └─ SendFailed                     messages were not sent; says which ones, and why
    ├─ UnknownTenant (LookupError)       a provider or a registry says that there is no such tenant
    ├─ ClosedError                       you used it after you closed it
    └─ NotOpenError                      you forgot ``async with``

``__cause__`` is kept, except where it would carry the tenant's data: validators quote their input, so there is no
validator's exception behind a ``PayloadError``. No text here contains a payload body, a DSN or a password: where a
provider's own exception is quoted, ``postroom.redaction`` has removed the secrets. The exception itself is the
``__cause__``, unchanged.
"""

from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from postroom.display import hide_passwords
from postroom.redaction import describe

_LONGEST_DELAY: Final = 43_200
"""SQS hides a message for 12 hours at most."""


class PostroomError(Exception):
    """The base of every error of postroom."""


class ConfigurationError(PostroomError, ValueError):
    """An option, or a combination of options, cannot work. The text says what to change.

    It quotes what was given; the password of a URL is left out.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(hide_passwords(each) if isinstance(each, str) else each for each in arguments))


def in_words(error: BaseException) -> str:
    """Return an error in one line: postroom's own by their text, others without the secrets that they may quote."""
    if isinstance(error, PostroomError):
        with suppress(Exception):  # of a class of the application's, with a `__str__` of its own
            return str(error)
    return describe(error)


class MessageError(PostroomError):
    """One message could not be handled. The subclass says which step failed."""

    def __init__(self, text: str, *, message_id: str | None = None) -> None:
        super().__init__(text)
        self.message_id = message_id
        """The SQS message id, where one is known (a pool that is used without SQS knows none)."""


class ContextError(MessageError):
    """The context of a message could not be resolved, so its tenant is not known.

    It counts as a failed attempt. Have the sender write what the resolver reads, or change ``context=``. What can
    never be resolved, reject in ``on_error``.
    """


class MissingAttribute(ContextError, KeyError):
    """The message lacks an attribute that its context needs, or has it empty or as Binary.

    Have the sender write it, or give the field of the context a default.
    """

    def __init__(self, text: str, *, name: str, message_id: str | None = None) -> None:
        super().__init__(text, message_id=message_id)
        self.name = name
        """The name of the attribute."""

    def __str__(self) -> str:  # KeyError would show the repr of the text
        return str(self.args[0])


class PayloadError(MessageError):
    """The body of a message is not what the handler asks for.

    ``Consumer(invalid=)`` decides what becomes of such a message; by default it has failed, because a later release
    may be able to read it.
    """

    def __init__(self, text: str, *, path: str = "$", message_id: str | None = None) -> None:
        super().__init__(text, message_id=message_id)
        self.path = path
        """Where in the body, as a JSON path: ``$.items[2].amount``; ``$`` is the whole body."""


class DecodeError(PayloadError):
    """The body is not JSON, or not text that JSON allows."""


class ValidationError(PayloadError):
    """The body is JSON of another shape than the payload type. ``path`` says where."""


class ResourceError(MessageError):
    """The resources of a context could not be leased."""

    def __init__(self, text: str, *, context: Any, message_id: str | None = None) -> None:
        super().__init__(text, message_id=message_id)
        self.context = context
        """The context that resources were asked for."""


class ResourceOpenError(ResourceError):
    """The resources cannot be had: an outage, or an unknown tenant.

    The provider failed now, or so recently that the pool leaves the context or its host alone. The provider's
    exception is the ``__cause__``, of the first refusal and of every later one.

    A consumer has its messages wait, and no attempt is counted. Elsewhere try again after ``retry_after`` seconds.
    With ``permanent``, create the tenant, and ``invalidate`` it so that the pool asks again.
    """

    def __init__(
        self,
        text: str,
        *,
        context: Any,
        permanent: bool = False,
        retry_after: float = 0.0,
        host: Hashable | None = None,
        message_id: str | None = None,
    ) -> None:
        super().__init__(text, context=context, message_id=message_id)
        self.permanent = permanent
        """True for an unknown tenant: trying again soon cannot help. False for an outage."""
        self.retry_after = retry_after
        """Seconds until the pool tries again."""
        self.host = host
        """The host that is left alone, where that is the reason: it concerns every context on it."""


class ResourceUnhealthyError(ResourceOpenError):
    """The resource opened but its health check failed.

    It was opened again, and checked once more. Treat it as an outage, or look at ``check=`` if it is wrong.
    """


class PoolExhaustedError(ResourceError):
    """No budget came free before the deadline of the lease.

    Raise ``PoolLimits(budget=)`` or ``max_concurrent_opens``, or lease for less time. The log names the keys that
    hold most.
    """


class HandlerTimeout(MessageError, TimeoutError):
    """The handler ran longer than ``Concurrency.handler_timeout`` and was cancelled.

    The message has failed and comes back. Give the handler more time, or its calls a shorter timeout of their own.
    """


class OwnershipLost(MessageError):
    """The visibility timeout passed without a confirmed extension: the message may be with another consumer.

    Let it leave the handler: nothing that is done for this receive counts any longer. Where it happens often, look
    for code that blocks the event loop, or raise ``Visibility(timeout=)``.
    """


class TransportError(PostroomError):
    """SQS refused a request, or could not be reached."""

    retryable: bool = False
    """Whether the same request may succeed later. An error may say so against the habit of its class: access that is
    denied because a token expired, or because of the clock, comes back; a missing permission does not."""

    def __init__(self, text: str, *, operation: str = "", code: str = "", retryable: bool | None = None) -> None:
        super().__init__(text)
        if retryable is not None:
            self.retryable = retryable
        self.operation = operation
        """The SQS action, such as ``ReceiveMessage``."""
        self.code = code
        """The error code that SQS answered, such as ``AWS.SimpleQueueService.NonExistentQueue``."""


class QueueNotFound(TransportError):
    """The queue does not exist in this account and region.

    Check the name, the account and the region. A queue of another account or region is named by its URL or ARN.
    """


class AccessDenied(TransportError):
    """The credentials are missing, wrong, expired, or lack a permission.

    ``retryable`` tells them apart: True for what a refresh of the credentials or a set clock cures.
    """


class InvalidReceiptHandle(TransportError):
    """SQS does not know this receipt handle: the message was deleted or received again.

    There is nothing to do for this message: it is settled, or another consumer has it.
    """


class InvalidRequest(TransportError):
    """SQS understood the request and refuses it; the same request will be refused again.

    Change the request; the text has SQS's reason.
    """


class Throttled(TransportError):
    """Too many requests, or the in-flight limit of the queue is reached.

    A consumer tries again by itself. A queue may have 120,000 messages in flight: lower ``Concurrency`` or
    ``Polling(prefetch=)`` where that limit is met.
    """

    retryable = True


class ServiceUnavailable(TransportError):
    """SQS could not be reached, did not answer in time, or answered with a server error.

    A consumer tries again by itself. The request may have taken effect all the same.
    """

    retryable = True


@dataclass(frozen=True, slots=True)
class Unsent:
    """One message that was not sent, as far as is known."""

    index: int
    """Its place in the call that should have sent it, from 0."""
    code: str
    """SQS's error code, or the name of the error of the call."""
    reason: str
    """Why, in a sentence. It quotes no body."""
    retryable: bool
    """Whether the same message may be accepted later."""
    behind: bool = False
    """Whether it was not tried: a message before it in its group was not sent, or no call was answered any longer."""


class SendFailed(TransportError):
    """Messages were not sent. ``unsent`` names each; all others of the call were sent.

    A call that SQS did not answer may have sent its messages all the same. They count as unsent.

    Send those again that are ``retryable``.
    """

    def __init__(self, text: str, *, unsent: Sequence[Unsent], message_ids: Sequence[str | None]) -> None:
        code = unsent[0].code if unsent else ""
        super().__init__(text, operation="SendMessageBatch", code=code, retryable=all(e.retryable for e in unsent))
        self.unsent: tuple[Unsent, ...] = tuple(unsent)
        """What was not sent, in the order of the call."""
        self.message_ids: tuple[str | None, ...] = tuple(message_ids)
        """The id of each message of the call, by its place; None for those that were not sent."""


class UnknownTenant(PostroomError, LookupError):
    """There is no such tenant. Raise it in a provider or a registry.

    It is the one way for a provider to say so: whatever else it raises is an outage, and its messages wait. A registry
    of ``postroom.datasources`` may also return None or raise a ``LookupError``, such as the ``KeyError`` of a table of
    tenants.
    """


class ClosedError(PostroomError):
    """It was used after it was closed.

    Enter it again with ``async with``, or keep it open for longer.
    """


class NotOpenError(PostroomError):
    """It was used before it was opened. The text shows the line to write."""


def _check_retry(reason: object) -> None:
    if isinstance(reason, int | float):
        text = f"Retry({reason!r}): the first argument is the reason; write Retry(delay={reason!r})"
        raise ConfigurationError(text)


def retry_delay(what: str, delay: object) -> float | None:
    """Return the delay of a retry within what SQS allows, 0 to 43,200 s. ``what`` names the argument.

    Raises:
        ConfigurationError: it is no finite number. SQS would refuse it, together with the other messages of its batch.
    """
    if delay is None:
        return None
    if not isinstance(delay, int | float) or isinstance(delay, bool) or delay - delay != 0:  # NaN, infinity
        raise ConfigurationError(f"{what} takes a finite number of seconds, or None for the backoff; got {delay!r}")
    return float(min(_LONGEST_DELAY, max(0, delay)))


class Retry(Exception):
    """Raise it in a handler or in ``on_error`` to leave the message in the queue and see it again.

    It counts as a failed attempt, unless the message was not tried.

    Args:
        delay: seconds until it is visible again, at least 0 and at most 43,200: what is beyond is cut. None for the
            consumer's backoff.
        reason: for the log.

    Raises:
        ConfigurationError: ``delay`` is no finite number.
    """

    delay: float | None = None  # also of a class derived from it that does not call this `__init__`

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        _check_retry(reason)
        super().__init__(reason)
        self.delay = retry_delay("Retry(delay=...)", delay)


class Reject(Exception):
    """Raise it in a handler or in ``on_error`` to send the message to the dead-letter queue at once.

    The reason travels in the message attribute ``postroom.reason``. Without a dead-letter queue the message has
    failed, and ``AckMode`` decides what becomes of it.

    Args:
        reason: why, for the people who read dead letters. It is logged, so keep secrets out of it.
    """

    reason: str = "no reason given"  # of a class derived from it that does not call this `__init__`

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)


class Drop(Exception):
    """Raise it in a handler or in ``on_error`` to delete the message although it was not handled.

    For what can never be handled and is not worth a dead letter. It applies in every ``AckMode``.

    Args:
        reason: why. It is logged, so keep secrets out of it.
    """

    reason: str = "no reason given"  # of a class derived from it that does not call this `__init__`

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)


class AlreadyHandled(BaseException):
    """The instruction that leaves a handler when its message turns out to be a duplicate: it is acknowledged.

    ``ctx.transaction()`` raises it, and ``on_error`` may. Like ``asyncio.CancelledError`` it is not an ``Exception``: a
    handler's broad ``except Exception`` must not make a failure of it. A handler that catches it all the same loses
    nothing: no effect was made, and the handler's outcome decides as usual.
    """
