"""The ``memory`` transport: the local broker in this process, behind the same protocol as Amazon SQS.

Public, because users' tests need it as much as ours: what a consumer does to its queue can be looked at in the broker.
"""

import asyncio
from collections.abc import Mapping, Sequence
from math import ceil
from types import TracebackType
from typing import Self

from postroom.checking import check_kind
from postroom.errors import (
    AccessDenied,
    ClosedError,
    InvalidReceiptHandle,
    InvalidRequest,
    NotOpenError,
    QueueNotFound,
    ServiceUnavailable,
    Throttled,
    TransportError,
)
from postroom.local.attributes import parse_redrive
from postroom.local.errors import BrokerError
from postroom.local.inprocess import LocalBroker
from postroom.local.queue import LocalQueue
from postroom.local.sending import entry_of
from postroom.local.shapes import (
    BatchResult,
    ChangeVisibilityEntry,
    DeleteEntry,
    Received,
    SentBatch,
)
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.transports.calls import Calls
from postroom.transports.protocol import (
    EntryFailure,
    QueueInfo,
    RedrivePolicy,
    SendResult,
    VisibilityChange,
    changes_of,
    handles_of,
    messages_of,
)

_ERRORS: Mapping[str, type[TransportError]] = {
    "QueueDoesNotExist": QueueNotFound,
    "ReceiptHandleIsInvalid": InvalidReceiptHandle,
    "AccessDeniedException": AccessDenied,
    "InvalidSecurity": AccessDenied,
    "OverLimit": Throttled,
    "RequestThrottled": Throttled,
}


def _transport_error(error: BrokerError, operation: str) -> TransportError:
    kind = _ERRORS.get(error.kind, ServiceUnavailable if error.status >= 500 else InvalidRequest)
    return kind(f"{operation}: {error}", operation=operation, code=error.code)


class MemoryClient:
    """A client of a ``LocalBroker`` in this process.

        async with LocalBroker() as broker, MemoryClient(broker) as client:
            queue = await client.queue("orders")

    Re-entrant, as the protocol asks. It neither opens nor closes the broker: entering it with a broker that is not
    open raises ``NotOpenError``.
    """

    def __init__(self, broker: LocalBroker) -> None:
        check_kind("MemoryClient(broker)", broker, LocalBroker, "MemoryClient(LocalBroker())")
        self._broker = broker
        self._entered = 0
        self._was_entered = False
        self._calls = Calls("MemoryClient")

    async def __aenter__(self) -> Self:
        if not self._broker.is_open:
            text = (
                "the LocalBroker of this MemoryClient is not open: "
                "write `async with LocalBroker() as broker, MemoryClient(broker) as client:`"
            )
            raise NotOpenError(text)
        if not self._entered:
            self._calls = Calls("MemoryClient")
        self._entered += 1
        # So that a later call can say which it was: never opened, or closed already.
        self._was_entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self._calls.end()

    @property
    def calls(self) -> Calls:
        """The calls that wait; the last exit ends them."""
        return self._calls

    @property
    def broker(self) -> LocalBroker:
        """The broker. Raises ``NotOpenError`` or ``ClosedError`` outside of ``async with``."""
        if not self._entered:
            if self._was_entered:
                raise ClosedError("this MemoryClient was closed: its last `async with` is over")
            raise NotOpenError("this MemoryClient is not open: write `async with MemoryClient(broker) as client:`")
        return self._broker

    async def queue(self, name: str) -> "MemoryQueue":
        """Open a queue by name, URL or ARN. Raises ``QueueNotFound`` with what to check."""
        broker = self.broker
        await asyncio.sleep(0)
        try:
            queue = broker.queue(name)
        except BrokerError as error:
            if error.kind != "QueueDoesNotExist":
                raise _transport_error(error, "GetQueueUrl") from error
            text = (
                f"queue {name!r} does not exist in this LocalBroker (account {broker.scope.account}, "
                f"region {broker.scope.region}): write `broker.create_queue({name!r})` first"
            )
            raise QueueNotFound(text, operation="GetQueueUrl", code=error.code) from error
        return MemoryQueue(self, queue)


class MemoryQueue:
    """One queue of a ``MemoryClient``. Usable until that client is closed."""

    cancellable_after: float = 0.0
    """A receive that is cancelled while it waits takes nothing."""

    def __init__(self, client: MemoryClient, queue: LocalQueue) -> None:
        self._client = client
        self._queue = queue
        attributes = client.broker.attributes(queue)
        redrive = parse_redrive(attributes["RedrivePolicy"]) if "RedrivePolicy" in attributes else None
        self._info = QueueInfo(
            name=queue.name,
            url=f"memory://local/{queue.scope.account}/{queue.name}",
            arn=queue.arn,
            fifo=queue.fifo,
            visibility_timeout=queue.settings.visibility,
            redrive=None if redrive is None else RedrivePolicy(redrive.target_arn, redrive.max_receives),
            attributes=attributes,
        )

    @property
    def info(self) -> QueueInfo:
        """What the queue said of itself when it was opened."""
        return self._info

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive up to ``limit`` messages; wait up to ``wait`` seconds for the first. Part seconds are rounded up.

        Cancelled while it waits, it takes nothing.
        """
        broker = await self._turn()
        try:
            received = await self._client.calls.make(
                f"ReceiveMessage on queue {self._queue.name!r}",
                broker.receive,
                self._queue,
                limit=limit,
                wait=ceil(wait),
                visibility=ceil(visibility),
                attempt_id=attempt_id,
            )
        except BrokerError as error:
            raise _transport_error(error, "ReceiveMessage") from error
        return [_message(each, self._queue.name) for each in received]

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete up to 10 messages. Returns what was refused."""
        receipt_handles = handles_of(receipt_handles)
        broker = await self._turn()
        entries = [DeleteEntry(id=str(index), receipt_handle=each) for index, each in enumerate(receipt_handles)]
        try:
            return _failures(broker.delete_batch(self._queue, entries))
        except BrokerError as error:
            raise _transport_error(error, "DeleteMessageBatch") from error

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change the visibility timeout of up to 10 messages. Returns what was refused."""
        changes = changes_of(changes)
        broker = await self._turn()
        entries = [
            ChangeVisibilityEntry(
                id=str(index), receipt_handle=change.receipt_handle, visibility_timeout=change.timeout
            )
            for index, change in enumerate(changes)
        ]
        try:
            return _failures(broker.change_visibility_batch(self._queue, entries))
        except BrokerError as error:
            raise _transport_error(error, "ChangeMessageVisibilityBatch") from error

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send up to 10 messages. Returns one result per message, in order."""
        messages = messages_of(messages)
        broker = await self._turn()
        entries = [entry_of(message, str(index)) for index, message in enumerate(messages)]
        try:
            result = broker.send_batch(self._queue, entries)
        except BrokerError as error:
            raise _transport_error(error, "SendMessageBatch") from error
        results: list[SendResult | EntryFailure] = [
            SendResult(int(sent.id), sent.message_id, sent.sequence_number) for sent in result.sent
        ]
        return sorted([*results, *_failures(result)], key=lambda each: each.index)

    async def attributes(self) -> Mapping[str, str]:
        """Ask for all queue attributes again, approximate counts included."""
        broker = await self._turn()
        try:
            return broker.attributes(self._queue)
        except BrokerError as error:
            raise _transport_error(error, "GetQueueAttributes") from error

    async def _turn(self) -> LocalBroker:
        """Let others run first, as any call over a network does; then check that the queue is still there.

        A queue is its name: one that was deleted and made again is the same, as it is by its URL.
        """
        await asyncio.sleep(0)
        broker = self._client.broker
        if self._queue.deleted:
            try:
                self._queue = broker.queue(self._info.arn)
            except BrokerError as error:
                text = f"queue {self._queue.name!r} was deleted"
                raise QueueNotFound(text, code="AWS.SimpleQueueService.NonExistentQueue") from error
        return broker


def _message(received: Received, queue: str) -> Message:
    attributes = {
        name: MessageAttribute(value.data_type, value.string_value, value.binary_value)
        for name, value in received.message_attributes.items()
    }
    return Message(
        id=received.message_id,
        body=received.body,
        receipt_handle=received.receipt_handle,
        message_attributes=attributes,
        system_attributes=received.attributes,
        queue=queue,
    )


def _failures(result: BatchResult | SentBatch) -> list[EntryFailure]:
    return [EntryFailure(int(each.id), each.code, each.message, each.sender_fault) for each in result.failed]
