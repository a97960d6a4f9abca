"""A queue with answers that a test scripts: for unit tests of what stands between the consumer and SQS."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from postroom.message import Message, OutgoingMessage
from postroom.transports.protocol import EntryFailure, Queue, QueueInfo, SendResult, VisibilityChange

DeleteScript = Callable[[Sequence[str]], Awaitable[list[EntryFailure]]]
ChangeScript = Callable[[Sequence[VisibilityChange]], Awaitable[list[EntryFailure]]]


def answer(
    *failures: EntryFailure, after: float = 0.0, error: Exception | None = None
) -> Callable[[Sequence[Any]], Awaitable[list[EntryFailure]]]:
    """Script one answer to every call: an error, or what failed of a batch, after some seconds."""

    async def answered(_entries: Sequence[Any]) -> list[EntryFailure]:
        if after:
            await asyncio.sleep(after)
        if error is not None:
            raise error
        return list(failures)

    return answered


class ScriptedQueue:
    """Records every call with its time; answers as scripted, by default that all went well."""

    def __init__(self, *, fifo: bool = False) -> None:
        self._info = QueueInfo(name="orders", url="memory://orders", arn="arn:orders", fifo=fifo)
        self.deletes: list[tuple[float, list[str]]] = []
        self.changes: list[tuple[float, list[tuple[str, int]]]] = []
        self.sent: list[OutgoingMessage] = []
        self.on_delete: DeleteScript | None = None
        self.on_change: ChangeScript | None = None
        self.send_failure: str | None = None
        self.batches: list[list[Message] | Exception] = []
        self.receives: list[int] = []
        self.arrived = asyncio.Event()

    @property
    def info(self) -> QueueInfo:
        """What the queue says of itself."""
        return self._info

    @property
    def deleted(self) -> list[str]:
        """Every receipt handle that was asked to be deleted, in order."""
        return [handle for _, handles in self.deletes for handle in handles]

    @property
    def changed(self) -> list[tuple[str, int]]:
        """Every visibility change that was asked for, in order."""
        return [change for _, changes in self.changes for change in changes]

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Return the next scripted batch, or wait like an empty long poll."""
        del visibility, attempt_id
        self.receives.append(limit)
        if not self.batches:
            self.arrived.clear()
            try:
                async with asyncio.timeout(wait):
                    await self.arrived.wait()
            except TimeoutError:
                return []
        batch = self.batches.pop(0)
        if isinstance(batch, Exception):
            raise batch
        return batch

    def offer(self, *batches: list[Message] | Exception) -> None:
        """Script the answers of the next receives."""
        self.batches.extend(batches)
        self.arrived.set()

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Record it and answer as scripted."""
        self.deletes.append((asyncio.get_running_loop().time(), list(receipt_handles)))
        return await self.on_delete(receipt_handles) if self.on_delete else []

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Record it and answer as scripted."""
        now = asyncio.get_running_loop().time()
        self.changes.append((now, [(change.receipt_handle, change.timeout) for change in changes]))
        return await self.on_change(changes) if self.on_change else []

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Record it and answer as scripted."""
        if self.send_failure is not None:
            return [EntryFailure(index, self.send_failure) for index, _ in enumerate(messages)]
        self.sent.extend(messages)
        return [SendResult(index, f"sent-{index}") for index, _ in enumerate(messages)]

    async def attributes(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}


class OneQueue:
    """A client of one queue, whatever the name of that is."""

    def __init__(self, queue: Any) -> None:
        self._queue: Queue = queue

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def queue(self, name: str) -> Queue:
        """Return the queue."""
        return self._queue


def message(number: int | str, *, receive_count: int = 1, body: str = "{}", group: str | None = None) -> Message:
    """Make a message with its number in its id and receipt handle."""
    system = {"ApproximateReceiveCount": str(receive_count)}
    if group is not None:
        system["MessageGroupId"] = group
    return Message(id=f"m{number}", body=body, receipt_handle=f"r{number}", system_attributes=system, queue="orders")
