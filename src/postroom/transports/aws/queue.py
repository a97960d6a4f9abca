"""One SQS queue."""

from collections.abc import Mapping, Sequence

from postroom.message import Message, OutgoingMessage
from postroom.transports.aws import wire
from postroom.transports.aws.connection import Connection
from postroom.transports.protocol import EntryFailure, QueueInfo, SendResult, VisibilityChange


class AwsQueue:
    """A queue on SQS; made by ``AwsClient.queue``, usable until that client is closed.

    Every method raises ``TransportError``, or ``ClosedError`` once the client is closed.
    """

    __slots__ = ("_connection", "_info", "_subject")

    def __init__(self, connection: Connection, info: QueueInfo) -> None:
        self._connection = connection
        self._info = info
        self._subject = f"queue {info.name!r}"

    @property
    def info(self) -> QueueInfo:
        """What the queue said of itself when it was opened."""
        return self._info

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive up to ``limit`` messages, waiting up to ``wait`` seconds for the first.

        Fractions of a second are rounded up, as SQS knows whole seconds only. Cancelling it may strand messages
        that SQS already handed out until their visibility timeout.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
        """
        parameters = wire.receive_parameters(
            self._info.url, limit=limit, wait=wait, visibility=visibility, attempt_id=attempt_id
        )
        answer = await self._connection.receive(parameters, subject=self._subject)
        return wire.messages_of(answer, self._info.name)

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete up to 10 messages in one call; return what SQS did not confirm.

        Deleting again is no error, and neither is an expired receipt handle: SQS then says yes and deletes nothing.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessageBatch.html
        """
        if not receipt_handles:
            return []
        parameters = wire.delete_parameters(self._info.url, receipt_handles)
        answer = await self._call("DeleteMessageBatch", parameters)
        return wire.failures_of(answer, len(receipt_handles))

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change the visibility timeout of up to 10 messages in one call; return what SQS did not confirm.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html
        """
        if not changes:
            return []
        parameters = wire.visibility_parameters(self._info.url, changes)
        answer = await self._call("ChangeMessageVisibilityBatch", parameters)
        return wire.failures_of(answer, len(changes))

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send up to 10 messages in one call; return one result per message, in order.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
        """
        if not messages:
            return []
        answer = await self._call("SendMessageBatch", wire.send_parameters(self._info.url, messages))
        return wire.send_results_of(answer, len(messages))

    async def attributes(self) -> Mapping[str, str]:
        """Ask for all queue attributes anew, approximate counts included.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
        """
        answer = await self._call("GetQueueAttributes", wire.attribute_parameters(self._info.url))
        attributes: Mapping[str, str] = answer.get("Attributes") or {}
        return attributes

    async def _call(self, operation: str, parameters: wire.Parameters) -> wire.Parameters:
        return await self._connection.call(operation, parameters, subject=self._subject)

    def __repr__(self) -> str:
        return f"AwsQueue({self._info.url!r})"
