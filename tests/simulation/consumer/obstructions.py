"""Calls of one kind that do not get through for a time: they hang, are slow, denied, throttled, or refused one by one.

``ClientFaults`` are of every call alike. Here a policy lacks one action, or one operation of SQS has trouble, while
all others work.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, TypeVar

from postroom.errors import AccessDenied, Throttled
from postroom.message import OutgoingMessage
from postroom.transports.protocol import Client, EntryFailure, Queue, SendResult, VisibilityChange
from simulation.consumer.plan import How, Obstruction, Operation
from support.passing import PassingClient, PassingQueue

T = TypeVar("T")

SLOWEST = 8.0
"""Seconds that a slow answer takes at most."""
_BEYOND = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]"


class Obstacles:
    """Is in the way of calls of one process, as the plan says."""

    def __init__(self, planned: Sequence[Obstruction], seed: str) -> None:
        self._planned = planned
        self._rng = Random(seed)

    def of(self, call: Operation, queue: str) -> Obstruction | None:
        """Return what is in the way of a call now."""
        now = asyncio.get_running_loop().time()
        for each in self._planned:
            if each.call is call and queue.startswith(each.queue) and each.start <= now < each.end:
                return each if self._rng.random() < each.part else None
        return None

    async def pass_on(self, call: Operation, queue: str, work: Callable[[], Awaitable[T]]) -> T:
        """Make a call, or let it hang or fail. Entries that are refused one by one are not its business."""
        met = self.of(call, queue)
        if met is None:
            return await work()
        match met.how:
            case How.DENIED:
                raise AccessDenied(
                    f"{call.value}: not allowed by any policy", operation=call.value, code="AccessDenied"
                )
            case How.THROTTLED:
                raise Throttled(f"{call.value}: too many requests", operation=call.value, code="RequestThrottled")
            case How.SLOW:
                await asyncio.sleep(self._rng.uniform(0.0, SLOWEST))
            case How.HANGS if self._rng.random() < 0.5:
                answer = await work()
                await self._over(met)
                return answer
            case How.HANGS:
                await self._over(met)
            case _:
                pass
        return await work()

    def refused(self, call: Operation, queue: str, count: int) -> list[EntryFailure]:
        """Return what each entry of a call is refused with, where that is so."""
        met = self.of(call, queue)
        if met is None or met.how not in {How.REFUSED, How.BEYOND}:
            return []
        if met.how is How.REFUSED:
            return [EntryFailure(place, "InternalError", "try again") for place in range(count)]
        return [EntryFailure(place, "InvalidParameterValue", _BEYOND, sender_fault=True) for place in range(count)]

    async def _over(self, met: Obstruction) -> None:
        await asyncio.sleep(max(0.0, met.end - asyncio.get_running_loop().time()))


class ObstructedClient(PassingClient):
    """A client of which some calls do not get through."""

    def __init__(self, inner: Client, obstacles: Obstacles) -> None:
        super().__init__(inner)
        self._obstacles = obstacles

    async def queue(self, name: str) -> "ObstructedQueue":
        """Open a queue."""
        opens = super().queue
        inner = await self._obstacles.pass_on(Operation.OPEN, name.rpartition(":")[2], lambda: opens(name))
        return ObstructedQueue(inner, self._obstacles)


class ObstructedQueue(PassingQueue):
    """One queue of it."""

    def __init__(self, inner: Queue, obstacles: Obstacles) -> None:
        super().__init__(inner)
        self._obstacles = obstacles

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Delete."""
        return await self._pass(Operation.DELETE, len(receipt_handles), lambda: self._inner.delete(receipt_handles))

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Change. The name of the calling task tells an extension from a decision."""
        task = asyncio.current_task()
        call = Operation.EXTEND if task is not None and "extend" in task.get_name() else Operation.CHANGE
        return await self._pass(call, len(changes), lambda: self._inner.change_visibility(changes))

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send."""
        return await self._pass(Operation.SEND, len(messages), lambda: self._inner.send(messages))

    async def _pass(self, call: Operation, count: int, work: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        name = self._inner.info.name
        return self._obstacles.refused(call, name, count) or await self._obstacles.pass_on(call, name, work)
