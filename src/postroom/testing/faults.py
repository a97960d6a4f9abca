"""A client that misbehaves as SQS and networks do, reproducibly: for tests of what survives it.

    async with LocalBroker(seed=1) as broker, MemoryClient(broker) as client:
        faulty = FaultyClient(client, Random(7), ClientFaults(throttled=0.1, duplicated=0.05))
        async with Consumer("orders", context=Tenant, client=faulty) as orders: ...

Under ``run_virtual`` its latencies cost nothing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Self

from postroom.errors import AccessDenied, ClosedError, ServiceUnavailable, Throttled, TransportError
from postroom.message import Message, OutgoingMessage
from postroom.transports.protocol import Client, EntryFailure, Queue, QueueInfo, SendResult, VisibilityChange


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFaults:
    """How often what goes wrong: probabilities per call, from 0 to 1, unless it says otherwise.

    Args:
        latency: the longest usual way of a request, and of an answer, in seconds.
        slow: answers that take up to ``slowest`` seconds.
        slowest: see there.
        throttled: requests that are refused; nothing happened.
        unavailable: requests that do not reach the queue; nothing happened.
        lost: answers that are lost: it happened, but the caller gets an error.
        refused: entries of a batch, each, that are refused although the next try may succeed.
        duplicated: received messages, each, that the queue hands out once more, at once. Never on a FIFO queue.
        reordered: receives with their messages in any order. Never on a FIFO queue.
        foreign: calls that raise an error which the protocol does not name (``OSError``, ``RuntimeError``,
            ``TimeoutError``; ``ClosedError`` from everything but a receive), as a proxy or a driver with a bug does:
            before the request left, or after it took effect.
        hung: visibility changes that get no answer for ``hang`` seconds; they take effect before that, or after it.
        hang: see there.
        denied: reads of queue attributes that are refused with ``AccessDenied``.
        opening: the longest that opening a queue takes, in seconds.
    """

    latency: float = 0.01
    slow: float = 0.0
    slowest: float = 5.0
    throttled: float = 0.0
    unavailable: float = 0.0
    lost: float = 0.0
    refused: float = 0.0
    duplicated: float = 0.0
    reordered: float = 0.0
    foreign: float = 0.0
    hung: float = 0.0
    hang: float = 60.0
    denied: float = 0.0
    opening: float = 0.0


_FOREIGN: tuple[Callable[[str], Exception], ...] = (
    lambda text: OSError(104, text),
    RuntimeError,
    TimeoutError,
    ClosedError,
)
"""Errors that no queue should raise. The last one means, out of a receive, that there is nothing left to poll."""

CALM = ClientFaults()
"""A short way to the queue, and nothing goes wrong."""


class FaultyClient:
    """A client around a client. Re-entrant like that one, which it enters and leaves with itself.

    Args:
        inner: the real client.
        rng: decides everything: the same seed and the same calls give the same faults.
        faults: what goes wrong. ``client.faults = CALM`` ends it at once, also for queues that are open.
    """

    def __init__(self, inner: Client, rng: Random, faults: ClientFaults = CALM) -> None:
        self._inner = inner
        self.rng = rng
        self.faults = faults

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, traceback)

    async def queue(self, name: str) -> "FaultyQueue":
        """Open a queue. It takes ``ClientFaults.opening`` and does not fail by itself, so that a test can start."""
        if self.faults.opening:
            await asyncio.sleep(self.rng.random() * self.faults.opening)
        return FaultyQueue(self, await self._inner.queue(name))


class FaultyQueue:
    """One queue of a ``FaultyClient``."""

    def __init__(self, client: FaultyClient, inner: Queue) -> None:
        self._client = client
        self._inner = inner

    @property
    def info(self) -> QueueInfo:
        """What the queue said of itself when it was opened."""
        return self._inner.info

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive. A lost answer leaves its messages invisible until their visibility timeout."""
        await self._request("ReceiveMessage")
        messages = await self._inner.receive(limit=limit, wait=wait, visibility=visibility, attempt_id=attempt_id)
        await self._duplicate(messages)
        await self._answer("ReceiveMessage")
        if not self.info.fifo and self._happens(self._client.faults.reordered):
            self._client.rng.shuffle(messages)
        return messages

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete what is not refused."""
        await self._request("DeleteMessageBatch")
        refused, passed = self._refuse(len(receipt_handles))
        if passed:
            failures = await self._inner.delete([receipt_handles[index] for index in passed])
            refused += _placed(failures, passed)
        await self._answer("DeleteMessageBatch")
        return refused

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change what is not refused."""
        await self._request("ChangeMessageVisibilityBatch")
        hangs = self._happens(self._client.faults.hung)
        takes_effect_late = hangs and self._happens(0.5)
        if takes_effect_late:
            await asyncio.sleep(self._client.faults.hang)
        refused, passed = self._refuse(len(changes))
        if passed:
            failures = await self._inner.change_visibility([changes[index] for index in passed])
            refused += _placed(failures, passed)
        if hangs and not takes_effect_late:
            await asyncio.sleep(self._client.faults.hang)
        await self._answer("ChangeMessageVisibilityBatch")
        return refused

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send, all or nothing."""
        await self._request("SendMessageBatch")
        results = await self._inner.send(messages)
        await self._answer("SendMessageBatch")
        return results

    async def attributes(self) -> Mapping[str, str]:
        """Ask for all queue attributes again."""
        await self._request("GetQueueAttributes")
        if self._happens(self._client.faults.denied):
            text = "GetQueueAttributes: the role may not read the attributes of this queue"
            raise AccessDenied(text, operation="GetQueueAttributes", code="AccessDenied")
        attributes = await self._inner.attributes()
        await self._answer("GetQueueAttributes")
        return attributes

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._client.rng.random() < probability

    async def _travel(self) -> None:
        faults, rng = self._client.faults, self._client.rng
        longest = faults.slowest if self._happens(faults.slow) else faults.latency
        await asyncio.sleep(rng.random() * longest)

    async def _request(self, operation: str) -> None:
        await self._travel()
        faults = self._client.faults
        if self._happens(faults.throttled):
            raise Throttled(f"{operation}: too many requests", operation=operation, code="RequestThrottled")
        if self._happens(faults.unavailable):
            raise _unavailable(operation)
        self._be_foreign(operation, part=0.5)

    async def _answer(self, operation: str) -> None:
        await self._travel()
        if self._happens(self._client.faults.lost):
            raise _unavailable(operation)
        self._be_foreign(operation, part=0.5)

    def _be_foreign(self, operation: str, *, part: float) -> None:
        """Raise what the protocol does not name, at times; a call has two places where it may."""
        if self._happens(self._client.faults.foreign * part):
            kinds = _FOREIGN[:-1] if operation == "ReceiveMessage" else _FOREIGN
            raise self._client.rng.choice(kinds)(f"{operation}: not an error that a queue should raise")

    async def _duplicate(self, messages: Sequence[Message]) -> None:
        """Let the queue forget that it has just handed a message out: the next to ask gets it, too."""
        if self.info.fifo or not self._client.faults.duplicated:
            return
        again = [each for each in messages if self._happens(self._client.faults.duplicated)]
        if again:
            await self._inner.change_visibility([VisibilityChange(each.receipt_handle, 0) for each in again])

    def _refuse(self, count: int) -> tuple[list[EntryFailure], list[int]]:
        """Return the entries that are refused, and the places of the others."""
        refused: list[EntryFailure] = []
        passed: list[int] = []
        for index in range(count):
            if self._happens(self._client.faults.refused):
                refused.append(EntryFailure(index, "InternalError", "try again"))
            else:
                passed.append(index)
        return refused, passed


def _placed(failures: Sequence[EntryFailure], places: Sequence[int]) -> list[EntryFailure]:
    return [EntryFailure(places[each.index], each.code, each.text, each.sender_fault) for each in failures]


def _unavailable(operation: str) -> TransportError:
    return ServiceUnavailable(f"{operation}: no answer", operation=operation, code="ServiceUnavailable")
