"""One open botocore client: makes calls, raises postroom's errors, keeps long polls from starving the rest."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from postroom.errors import ClosedError
from postroom.transports.aws.errors import translate
from postroom.transports.aws.wire import Parameters

_METHODS: Final = {
    "ReceiveMessage": "receive_message",
    "DeleteMessageBatch": "delete_message_batch",
    "ChangeMessageVisibilityBatch": "change_message_visibility_batch",
    "SendMessageBatch": "send_message_batch",
    "GetQueueUrl": "get_queue_url",
    "GetQueueAttributes": "get_queue_attributes",
}


class Connection:
    """What an open :class:`AwsClient` and its queues share.

    Args:
        sqs: the botocore client.
        stack: closes the botocore client.
        receives: receives outstanding at once. The pool below holds twice as many connections, so that a delete or
            a heartbeat never waits for a long poll to end.
    """

    __slots__ = ("_receive_gate", "_sqs", "_stack", "closed")

    def __init__(self, sqs: Any, stack: AsyncExitStack, *, receives: int) -> None:
        self._sqs = sqs
        self._stack = stack
        self._receive_gate = asyncio.Semaphore(receives)
        self.closed = False

    async def call(self, operation: str, parameters: Parameters, *, subject: str) -> Parameters:
        """Make one call by the ordinary client, its retries included, and return the parsed answer."""
        if self.closed:
            raise ClosedError(f"{operation} on {subject}: its AwsClient is closed; use it inside `async with client:`")
        method: Callable[..., Awaitable[Parameters]] = getattr(self._sqs, _METHODS[operation])
        try:
            return await method(**parameters)
        except Exception as error:
            if self.closed:
                raise ClosedError(f"{operation} on {subject}: its AwsClient was closed meanwhile") from error
            raise translate(error, operation=operation, subject=subject) from error

    async def receive(self, parameters: Parameters, *, subject: str) -> Parameters:
        """Make one receive, which holds its connection for as long as it waits."""
        async with self._receive_gate:
            return await self.call("ReceiveMessage", parameters, subject=subject)

    async def aclose(self) -> None:
        """Close the botocore client. Calls that are under way fail; later ones raise ``ClosedError``."""
        self.closed = True
        await self._stack.aclose()
