"""One SQS queue."""

import math
import uuid
from collections.abc import Mapping, Sequence

from postroom.message import Message, OutgoingMessage
from postroom.transports.aws import wire
from postroom.transports.aws.addresses import is_loopback
from postroom.transports.aws.connection import Connection, Request
from postroom.transports.aws.errors import Subject
from postroom.transports.aws.room import Room
from postroom.transports.protocol import (
    EntryFailure,
    QueueInfo,
    SendResult,
    VisibilityChange,
    changes_of,
    handles_of,
    messages_of,
)


class AwsQueue:
    """A queue on SQS; made by ``AwsClient.queue``, usable until that client is closed.

    Every method raises ``TransportError``, or ``ClosedError`` once the client is closed.

    Args:
        connection: to the queue's region.
        info: what the queue said of itself.
        calls: receives at once, and as many calls of each other kind. Each kind has its own room, so that a heartbeat
            never waits for a long poll or for deletes that hang; each queue has its own, so that no queue waits for
            another one.
    """

    __slots__ = ("_changes", "_connection", "_deletes", "_info", "_others", "_receives", "_subject")

    def __init__(self, connection: Connection, info: QueueInfo, *, calls: int) -> None:
        self._connection = connection
        self._info = info
        self._subject = subject_of(info.name, info.arn, rotating=connection.rotating)
        self._receives = Room(calls, _waits(f"A receive from {self._subject.text}", "receives"))
        self._deletes = Room(calls, _waits(f"A delete on {self._subject.text}", "deletes"))
        self._changes = Room(calls, _waits(f"A visibility change for {self._subject.text}", "such calls"))
        self._others = Room(calls, _waits(f"A send to {self._subject.text}", "such calls"))

    @property
    def info(self) -> QueueInfo:
        """What the queue said of itself when it was opened."""
        return self._info

    @property
    def cancellable_after(self) -> float:
        """Seconds after which a receive may be cancelled with nothing stranded: half a second on this machine.

        A server here sees at once that the caller of a long poll is gone. AWS does not.
        """
        return 0.5 if is_loopback(self._connection.endpoint_url) else math.inf

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive up to ``limit`` messages, waiting up to ``wait`` seconds for the first.

        Fractions of a second are rounded up, as SQS knows whole seconds only. Cancelling it may strand messages
        that SQS already handed out until their visibility timeout.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
        """
        if attempt_id is None and self._info.fifo:
            # If an answer is lost, the next attempt of the same call gets the same messages again.
            attempt_id = uuid.uuid4().hex
        url, name = self._info.url, self._info.name
        parameters = wire.receive_parameters(url, limit=limit, wait=wait, visibility=visibility, attempt_id=attempt_id)
        return await self._connection.call_hot(
            self._request("ReceiveMessage", parameters),
            lambda answer: wire.read_messages(answer, name),
            lambda body: wire.decode_messages(body, name),
            room=self._receives,
        )

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete up to 10 messages in one call; return what SQS did not confirm.

        Deleting again is no error, and neither is an expired receipt handle: SQS then says yes and deletes nothing.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessageBatch.html
        """
        receipt_handles = handles_of(receipt_handles)
        parameters = wire.delete_parameters(self._info.url, receipt_handles)
        return await self._batch("DeleteMessageBatch", parameters, len(receipt_handles), self._deletes)

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change the visibility timeout of up to 10 messages in one call; return what SQS did not confirm.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html
        """
        changes = changes_of(changes)
        parameters = wire.visibility_parameters(self._info.url, changes)
        return await self._batch("ChangeMessageVisibilityBatch", parameters, len(changes), self._changes)

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send up to 10 messages in one call; return one result per message, in order.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
        """
        messages = messages_of(messages)
        count = len(messages)
        return await self._connection.call(
            self._request("SendMessageBatch", wire.send_parameters(self._info.url, messages)),
            lambda answer: wire.read_send_results(answer, count),
            room=self._others,
        )

    async def attributes(self) -> Mapping[str, str]:
        """Ask for all queue attributes again, approximate counts included.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
        """
        return await self._connection.call(
            self._request("GetQueueAttributes", wire.attribute_parameters(self._info.url)),
            wire.read_attributes,
            room=self._others,
        )

    async def _batch(self, operation: str, parameters: wire.Parameters, count: int, room: Room) -> list[EntryFailure]:
        return await self._connection.call_hot(
            self._request(operation, parameters),
            lambda answer: wire.read_failures(answer, count),
            lambda body: wire.decode_failures(body, count),
            room=room,
        )

    def _request(self, operation: str, parameters: wire.Parameters) -> Request:
        return Request(operation=operation, parameters=parameters, subject=self._subject)

    def __repr__(self) -> str:
        return f"AwsQueue({self._info.url!r})"


def subject_of(name: str, arn: str, *, rotating: bool) -> Subject:
    """Return what errors call a queue."""
    return Subject(text=f"queue {name!r}", resource=arn or "the queue", rotating=rotating)


def _waits(what: str, which: str) -> str:
    escaped = what.replace("%", "%%")
    return (
        f"{escaped} waits for more than %g s for its turn: %d {which} are out, and AwsClient(connections=...) allows "
        "no more; raise it, or run fewer pollers"
    )
