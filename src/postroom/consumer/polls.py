"""The receives that are out, and how a stop lets them end."""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from postroom.consumer.inlet import Inlet
from postroom.display import counted
from postroom.errors import AccessDenied
from postroom.log_fields import Log, Step
from postroom.tasks import has_to_leave
from postroom.transports.protocol import Queue

_log = Log("postroom.consumer", Step.STOP)

_ANSWER: Final = 0.5
"""Seconds for servers on this machine to answer. A stop has little time."""
_TIMES: Final = 4
"""How often a receive is cancelled that goes on all the same."""


class Polls:
    """The tasks that receive, of all queues of a consumer.

    Args:
        inlets: the queues that are consumed now.
        loop: of the consumer.
    """

    def __init__(self, inlets: Callable[[], Sequence[Inlet]], loop: asyncio.AbstractEventLoop) -> None:
        self._inlets = inlets
        self._loop = loop
        self.tasks: set[asyncio.Task[None]] = set()
        self._cut_at = -math.inf
        """When polls were cut off that a server may not have noticed."""
        self.end_by = -math.inf
        """When a stop ends the polls that are out."""

    @property
    def out(self) -> set[asyncio.Task[None]]:
        """The tasks that have not ended."""
        return {task for task in self.tasks if not task.done()}

    def out_until(self, queue: Queue) -> float:
        """Return until when polls of a queue may take messages: also one that is overdue, which may be a second try."""
        out = (inlet.receiver.out_until for inlet in self._inlets() if inlet.queue is queue)
        now = self._loop.time()
        overdue = max(now, self.end_by)
        return max((self._cut_at, *(overdue if until <= now else until for until in out if until > -math.inf)))

    def may_bring_the_last(self, until: float) -> bool:
        """Whether a poll that is out may bring a message that cannot go back before a time: a queue counts receives."""
        counts = any(inlet.facts.redrive is not None or not inlet.facts.known for inlet in self._inlets())
        return counts and self._loop.time() < until and bool(self.out)

    async def let_end(self, moment: float) -> None:
        """Let so many seconds pass in which polls of a busy queue end, and end those that may be dropped by then.

        What goes back while a poll is out is hidden until that is over: SQS would serve it to the poll, here and once
        more, or to one that nothing listens to any longer.
        """
        if not (polls := self.out):
            return
        inlets = self._inlets()
        after = max((getattr(inlet.queue, "cancellable_after", math.inf) for inlet in inlets), default=0.0)
        asked_at = max((inlet.receiver.last_asked_at for inlet in inlets), default=-math.inf)
        seconds = 0.0 if asked_at == -math.inf else max(0.0, asked_at + after - self._loop.time())
        _, out = await asyncio.wait(polls, timeout=min(seconds, moment))
        if seconds <= moment:
            await self.end()
            # A server sees that a caller is gone, but not in this instant; in memory there is none.
            if out and after > 0 and not await self._is_noticed():
                self._cut_at = self._loop.time()

    async def _is_noticed(self) -> bool:
        """Return whether the servers know that polls were cut off: they answer what was asked after that."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(_ANSWER):
                for inlet in self._inlets():
                    with suppress(AccessDenied):
                        await inlet.queue.attributes()
        except BaseException as error:  # whatever a transport raises
            if has_to_leave(error, task):
                raise
            return False
        return True

    async def finish(self, seconds: float) -> None:
        """Wait so many seconds for polls to end. What they bring is given back."""
        if polls := self.out:
            await asyncio.wait(polls, timeout=max(seconds, 0.0))

    async def end(self) -> None:
        """Give up the polls that are out."""
        for _ in range(_TIMES):
            if not (polls := self.out):
                return
            for poll in polls:
                poll.cancel()
            await asyncio.wait(polls, timeout=_ANSWER)
        if polls := self.out:
            text = "%s did not end when cancelled, %d times: a transport swallows cancellations. The stop goes on"
            _log.error(text, counted(len(polls), "receive"), _TIMES)
