"""Queues of one name in several regions or accounts, consumed by one consumer."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from postroom.message import Message, OutgoingMessage
from postroom.transports.protocol import (
    EntryFailure,
    Queue,
    QueueInfo,
    SendResult,
    VisibilityChange,
    checked_messages,
)


def are_same(one: QueueInfo, other: QueueInfo) -> bool:
    """Whether two queues are one: an endpoint of one's own may give two regions one URL."""
    return one.url == other.url and (one.arn == other.arn or not one.arn or not other.arn)


def told_apart(queue: Queue, opened: Collection[Queue]) -> Queue:
    """Return a queue, called by its ARN in messages, lines and statistics if others of those opened have its name."""
    names = Counter(each.info.name for each in opened)
    return _Namesake(queue) if names[queue.info.name] > 1 else queue


class _Namesake:
    """A queue with its ARN in place of its name."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.info: QueueInfo = msgspec.structs.replace(queue.info, name=queue.info.arn or queue.info.url)

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive messages, and say in each where it comes from."""
        answer = await self._queue.receive(limit=limit, wait=wait, visibility=visibility, attempt_id=attempt_id)
        return [msgspec.structs.replace(each, queue=self.info.name) for each in checked_messages(answer)]

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete messages."""
        return await self._queue.delete(receipt_handles)

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change visibility timeouts."""
        return await self._queue.change_visibility(changes)

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send messages."""
        return await self._queue.send(messages)

    async def attributes(self) -> Mapping[str, str]:
        """Ask for all queue attributes again."""
        return await self._queue.attributes()

    def __repr__(self) -> str:
        return repr(self._queue)

    def __getattr__(self, name: str) -> Any:
        """Return what a transport has beside the protocol, such as ``cancellable_after``."""
        return getattr(self._queue, name)
