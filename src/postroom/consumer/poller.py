"""Asks for messages as the receive policy says."""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Protocol

from postroom.consumer.core import Core
from postroom.consumer.demand import Answer, Ask, Pause, ReceivePolicy
from postroom.consumer.loop_watch import LoopWatch
from postroom.consumer.source import Source
from postroom.errors import PostroomError, TransportError
from postroom.events import PollFailed, PollFinished
from postroom.log_fields import Log, Step, about
from postroom.message import Message
from postroom.options import Visibility
from postroom.settlement import Moment
from postroom.tasks import Tasks

_log = Log("postroom.consumer", Step.RECEIVE)


class Admits(Protocol):
    """Where received messages go."""

    def admit(self, messages: Sequence[Message], arrived: Moment) -> int:
        """Take the messages of one receive in. Returns how many of them lack nothing but a slot.

        ``arrived`` is the earliest moment at which SQS can have handed them out.
        """
        ...


class Poller:
    """Keeps receives outstanding as the policy says. Every ``run`` is one poller."""

    def __init__(
        self, source: Source, core: Core, policy: ReceivePolicy, admits: Admits, tasks: Tasks, *, watch: LoopWatch
    ) -> None:
        self._source = source
        self._core = core
        self._policy = policy
        self._admits = admits
        self._tasks = tasks
        self._watch = watch
        self._polling = source.settings.polling
        self._observers = source.settings.observers
        visibility = source.settings.visibility
        self._timeout = Visibility().timeout if callable(visibility) else visibility.timeout
        self._stopping = False
        self._waiters: list[asyncio.Future[None]] = []
        self._paused: set[asyncio.Future[None]] = set()
        self.started_at: float | None = None
        """The loop time at which the first receive was sent."""
        self.last_success: float | None = None
        """The loop time of the last receive that SQS answered, with or without messages."""
        self.failing_since: float | None = None
        """The loop time from which on every receive has failed; None while they are answered."""
        self.failing_with = ""
        """The type of the last failure's error."""
        self._out: dict[int, float] = {}
        """When the receives that are out were sent, by poller."""
        self.failures = 0
        self.receives = 0

    @property
    def asked_at(self) -> float | None:
        """When the oldest receive that is out was sent; None when none is out."""
        return min(tuple(self._out.values()), default=None)  # another thread may ask

    @property
    def last_asked_at(self) -> float:
        """When the latest receive that is out was sent; far in the past when none is out."""
        return max(self._out.values(), default=-math.inf)

    def wake(self) -> None:
        """Look again whether there is room: a message ended, or the queue turned busy."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def stop(self) -> None:
        """Start no further receive. Those that are outstanding go on: their messages must not be stranded."""
        self._stopping = True
        self.wake()
        for pause in self._paused:
            if not pause.done():
                pause.set_result(None)

    async def run(self, number: int) -> None:
        """Receive until stopped. Number 0 also polls while the queue is idle."""
        time = self._tasks.time
        pause = self._polling.backoff
        while not self._stopping:
            step = self._policy.next(number, self._core, time())
            if isinstance(step, Pause):
                await self._woken(step.seconds)
                continue
            asked = self._source.settler.heartbeat.moment()
            began = asked.time
            try:
                messages = await self._receive(step, number)
            except Exception as error:  # whatever a transport raises: a failed receive, not the poller's end
                await self._back_off(error, pause, began)
                pause = min(pause * 2, self._polling.max_backoff)
                continue
            pause = self._polling.backoff
            runnable = self._admits.admit(messages, self._arrived(asked)) if messages else 0
            now = time()
            self._policy.answered(Answer(step, len(messages), runnable, now - began), now)
            if self._observers:
                self._observers.tell(PollFinished(self._source.name, len(messages), now - began))
            del messages  # their bodies must not stay in memory until the next receive ends
            if not step.scouting or self._policy.wants_company():
                self.wake()  # there is more room, or more to fetch: another poller may have waited for it

    def _arrived(self, asked: Moment) -> Moment:
        """Return the earliest moment at which SQS can have handed out what is read now.

        The answer to a long poll may have waited in a socket while the process was frozen or the loop blocked, and
        its visibility timeout began to run before that.
        """
        return Moment(max(asked.time, self._watch.unread_since()), asked.slept)

    async def _woken(self, seconds: float | None) -> None:
        waiter = self._tasks.loop.create_future()
        self._waiters.append(waiter)
        timer = None if seconds is None else self._tasks.call_later(seconds, self._wake_one, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _wake_one(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            self._waiters.remove(waiter)
            waiter.set_result(None)

    async def _receive(self, ask: Ask, number: int) -> list[Message]:
        now = self._tasks.time()
        if self.started_at is None:
            self.started_at = now
        self.receives += 1
        self._out[number] = now
        self._policy.asked(ask)
        try:
            messages = await self._source.queue.receive(
                limit=ask.limit, wait=self._polling.wait, visibility=self._timeout
            )
        except BaseException:
            self._policy.failed(ask)
            raise
        finally:
            del self._out[number]
        self.last_success = self._tasks.time()
        if self.failing_since is not None:
            self.failing_since = None
            text, name = "Receiving from %s works again after %d failures", self._source.name
            _log.info(text, name, self.failures, extra=about(queue=name))
        return messages

    async def _back_off(self, error: Exception, pause: float, began: float) -> None:
        self.failures += 1
        if isinstance(error, TransportError) and error.code == "OverLimit":
            self._source.facts.over_limit()
        level = logging.ERROR if self.failing_since is None else logging.INFO
        if self.failing_since is None:
            self.failing_since = began
        self.failing_with = type(error).__name__
        what = error if isinstance(error, PostroomError) else f"{type(error).__name__}: {error}"
        text, name = "Receiving from %s failed, next try in %g s: %s", self._source.name
        _log.log(level, text, name, pause, what, extra=about(queue=name))
        if self._observers:
            self._observers.tell(PollFailed(self._source.name, error, pause, self._tasks.time() - began))
        ended = self._tasks.loop.create_future()
        self._paused.add(ended)
        try:
            await asyncio.wait([ended], timeout=pause)
        finally:
            self._paused.discard(ended)
