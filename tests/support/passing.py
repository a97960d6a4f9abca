"""A client and its queues that pass every call on to real ones: what a test does with the calls is all it adds."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from postroom import Message, OutgoingMessage
from postroom.transports.protocol import Client, EntryFailure, Queue, QueueInfo, SendResult, VisibilityChange


class PassingQueue:
    """A queue that passes on. Calls have the names of its methods."""

    def __init__(self, inner: Queue) -> None:
        self._inner = inner

    async def before(self, call: str) -> None:
        """Do something before a call; what it raises fails the call."""

    async def after(self, call: str) -> None:
        """Do something before the answer of a call arrives."""

    @property
    def info(self) -> QueueInfo:
        """What the queue says of itself."""
        return self._inner.info

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive."""
        await self.before("receive")
        messages = await self._inner.receive(limit=limit, wait=wait, visibility=visibility, attempt_id=attempt_id)
        await self.after("receive")
        return messages

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete."""
        await self.before("delete")
        failures = await self._inner.delete(receipt_handles)
        await self.after("delete")
        return failures

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change visibility."""
        await self.before("change_visibility")
        failures = await self._inner.change_visibility(changes)
        await self.after("change_visibility")
        return failures

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send."""
        await self.before("send")
        results = await self._inner.send(messages)
        await self.after("send")
        return results

    async def attributes(self) -> Mapping[str, str]:
        """Ask."""
        await self.before("attributes")
        attributes = await self._inner.attributes()
        await self.after("attributes")
        return attributes


class PassingClient:
    """A client that is open as long as the one that it passes on to."""

    def __init__(self, inner: Client) -> None:
        self._inner = inner
        self.open = 0
        """Entries that were not left yet."""

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        self.open += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.open -= 1
        await self._inner.__aexit__(kind, error, traceback)

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        return await self._inner.queue(name)
