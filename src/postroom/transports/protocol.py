"""What postroom asks of a queue: one small protocol, so that everything above it runs on AWS and in memory alike.

Errors: every method raises only ``TransportError`` (and ``ClosedError`` / ``NotOpenError``; opening a queue also
``ConfigurationError``, and so does one entry in place of a list). When the client is closed, calls that are out end
with ``ClosedError``.
Batches are positional: an entry is named by its place in the call, never by a message id, because a standard queue
may hand out one message id twice.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast, runtime_checkable

import msgspec

from postroom.checking import listed, shown
from postroom.errors import ConfigurationError
from postroom.message import Message, OutgoingMessage

T = TypeVar("T")

NO_HANDLE: Final = "postroom-check"
"""No receipt handle: SQS looks at the permission first, and then refuses it. No message is touched."""


_MAX_RECEIVE_COUNT: Final = 10
"""What SQS takes where a redrive policy says no ``maxReceiveCount`` (API_SetQueueAttributes.html)."""


class EntryFailure(msgspec.Struct, frozen=True):
    """One entry of a batch that SQS refused; the others took effect."""

    index: int
    """The place of the entry in the call."""
    code: str
    """SQS's error code."""
    text: str = ""
    """SQS's own words."""
    sender_fault: bool = False
    """True: the same entry will be refused again."""


class VisibilityChange(msgspec.Struct, frozen=True):
    """One entry of a visibility batch."""

    receipt_handle: str
    """The handle of the latest receive of the message."""
    timeout: int
    """Seconds from now until the message is visible again, 0 to 43,200."""


class SendResult(msgspec.Struct, frozen=True):
    """One entry of a send that was accepted."""

    index: int
    """The place of the entry in the call."""
    message_id: str
    """The id that SQS gave the message."""
    sequence_number: str | None = None
    """Its place in the order of a FIFO queue; None on standard queues."""


class RedrivePolicy(msgspec.Struct, frozen=True):
    """Where a queue's messages go after too many receives."""

    dead_letter_queue: str
    """The ARN of the dead-letter queue."""
    max_receive_count: int
    """Receives after which SQS moves a message, 1 to 1,000."""

    @classmethod
    def parse(cls, text: str | None) -> "RedrivePolicy | None":
        """Read the queue attribute ``RedrivePolicy``. None where there is none, or none that can be read."""
        try:
            parsed: dict[str, Any] = json.loads(text) if text else {}
            target, most = parsed["deadLetterTargetArn"], parsed.get("maxReceiveCount")
            # AWS returns the count as a number, CloudFormation as text, an emulator as a fraction or not at all.
            return cls(target, int(float(most or _MAX_RECEIVE_COUNT))) if target else None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue says of itself (GetQueueAttributes), read once when it is opened."""

    name: str
    """The last part of its ARN."""
    url: str
    """The URL that calls name it by."""
    arn: str
    """``arn:aws:sqs:region:account:name``."""
    fifo: bool = False
    """Whether it keeps the order of message groups."""
    visibility_timeout: int = 30
    """Its own default in seconds. A consumer asks for ``Visibility(timeout=)`` instead."""
    redrive: RedrivePolicy | None = None
    """Its dead-letter queue; None without one."""
    attributes: Mapping[str, str] = {}
    """Every attribute as SQS returned it."""
    attributes_known: bool = True
    """False: the attributes could not be read, because the permission ``sqs:GetQueueAttributes`` is missing. Then
    ``redrive`` and ``retention`` are None and ``visibility_timeout`` is SQS's default, and none of them is a fact."""

    @property
    def retention(self) -> int | None:
        """Seconds after which a message expires (``MessageRetentionPeriod``); None if that is not known."""
        text = self.attributes.get("MessageRetentionPeriod", "")
        return int(text) if text.isdecimal() else None


@runtime_checkable
class Queue(Protocol):
    """One queue. Made by ``Client.queue``; usable until that client is closed."""

    @property
    def info(self) -> QueueInfo:
        """What the queue said of itself when it was opened."""
        ...

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive up to ``limit`` (1 to 10) messages; wait up to ``wait`` (0 to 20) seconds for the first.

        Message attributes and system attributes are all asked for. ``attempt_id`` is FIFO's
        ReceiveRequestAttemptId. Cancelling it may strand messages that SQS already handed out until their
        visibility timeout: finish a poll rather than cancel it. A queue where that cannot happen once a receive has
        been out for some seconds may say so by an attribute ``cancellable_after``; then a stop waits no longer.
        """
        ...

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete up to 10 messages in one call. Returns what was refused; empty means all are deleted."""
        ...

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change the visibility timeout of up to 10 messages in one call. Returns what was refused."""
        ...

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send up to 10 messages in one call. Returns one result per message, in order."""
        ...

    async def attributes(self) -> Mapping[str, str]:
        """Ask for all queue attributes again, approximate counts included."""
        ...


@runtime_checkable
class Client(Protocol):
    """A connection to a message service, shared by any number of consumers.

    Re-entrant: each ``async with`` counts, the last exit closes. So each user enters it, and none needs to know of
    the others.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def queue(self, name: str) -> Queue:
        """Open a queue by name, URL or ARN. Raises ``QueueNotFound`` with what to check."""
        ...


def messages_of(messages: Any) -> Sequence[OutgoingMessage]:
    """Return what is to be sent. Raises ``ConfigurationError`` where that is no list of messages."""
    return _entries("Queue.send(messages)", "[OutgoingMessage(body=...)]", messages, OutgoingMessage)


def handles_of(receipt_handles: Any) -> Sequence[str]:
    """Return what is to be deleted. Raises ``ConfigurationError`` where that is no list of texts."""
    return _entries("Queue.delete(receipt_handles)", "[message.receipt_handle]", receipt_handles, str)


def changes_of(changes: Any) -> Sequence[VisibilityChange]:
    """Return what is to be changed. Raises ``ConfigurationError`` where that is no list of changes."""
    example = "[VisibilityChange(message.receipt_handle, 30)]"
    return _entries("Queue.change_visibility(changes)", example, changes, VisibilityChange)


def _entries(what: str, example: str, entries: Any, kind: type[T]) -> Sequence[T]:
    found: tuple[T, ...] = listed(what, example, entries)
    for each in set(map(type, found)):  # by their types, of which there is one: this runs for every delete
        if not issubclass(each, kind):
            raise ConfigurationError(
                f"{what} takes a list of {kind.__name__}: write {example}; got {each.__name__} in it"
            )
    return found


def checked_messages(answer: Any) -> list[Message]:
    """Return what a receive brought; None is nothing.

    Raises:
        TypeError: a transport of the user's returned something else. That fails the call, and nothing behind it.
    """
    found: list[Any] = _listed(answer)
    # By its types, of which there is one: this runs for every message.
    if not all(issubclass(kind, Message) for kind in set(map(type, found))):
        raise TypeError("the transport returned a list of something else than Message")
    return found


def checked_failures(answer: Any, count: int) -> Sequence[EntryFailure]:
    """Return what was refused of a batch of ``count``; None is nothing.

    Raises:
        TypeError: a transport of the user's returned something else. That fails the call, and nothing behind it.
    """
    if not answer:  # as of nearly every call
        return ()
    found: list[Any] = _listed(answer)
    if not all(isinstance(each, EntryFailure) and each.index in range(count) for each in found):
        raise TypeError("the transport returned a list of something else than EntryFailure, or of no place in the call")
    return found


def checked_results(answer: Any, count: int) -> list[SendResult | EntryFailure]:
    """Return what became of each of ``count`` messages that were sent, with its place as the index of a failure.

    Raises:
        TypeError: a transport of the user's returned something else. Then nothing counts as sent.
    """
    found: list[Any] = _listed(answer)
    if len(found) != count or not all(isinstance(each, SendResult | EntryFailure) for each in found):
        raise TypeError("the transport returned something else than one SendResult or EntryFailure for each message")
    for place, each in enumerate(found):
        if isinstance(each, EntryFailure) and each.index != place:  # they are in order
            found[place] = msgspec.structs.replace(each, index=place)
    return found


def _listed(answer: Any) -> list[Any]:
    if answer is None or isinstance(answer, list | tuple):
        return list(cast("Sequence[Any]", answer or ()))
    raise TypeError(f"the transport returned {shown(answer)} where a list is due")


def is_of_key(code: str) -> bool:
    """Return whether SQS could not use the key that encrypts a queue, such as ``KMS.DisabledException``."""
    return "kms" in code.lower()


def check_client(owner: str, client: Any) -> Client | None:
    """Refuse what is no client, and return what is one. Raises ``ConfigurationError`` with what to write."""
    fits = client is None or (hasattr(client, "queue") and hasattr(client, "__aenter__"))
    # A `LocalBroker` has queues, too: what makes queues and returns them at once is where a client leads to.
    is_broker = hasattr(client, "create_queue") and not inspect.iscoroutinefunction(getattr(client, "queue", None))
    if not fits or is_broker or isinstance(client, type):
        text = f"{owner}(client=...) takes a client: write client=AwsClient(region=..., endpoint_url=...)"
        raise ConfigurationError(f"{text} or client=MemoryClient(broker); got {shown(client)}")
    return cast("Client | None", client)
