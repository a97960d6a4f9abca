"""Asks for messages as the receive policy says."""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Final, Protocol

from postroom.consumer.core import Core
from postroom.consumer.demand import Answer, Pause, ReceivePolicy
from postroom.consumer.loop_watch import LoopWatch
from postroom.consumer.source import Source
from postroom.errors import ServiceUnavailable, TransportError, in_words
from postroom.events import PollFailed, PollFinished
from postroom.log_fields import Log, Step, about
from postroom.message import Message
from postroom.settlement import Moment
from postroom.settlement.trouble import Trouble
from postroom.tasks import Tasks, has_to_leave
from postroom.transports.protocol import checked_messages

_log = Log("postroom.consumer", Step.RECEIVE)

_OVERDUE: Final = 10.0
"""Seconds beyond its wait after which a receive without an answer is told of."""
_REPEAT: Final = 60.0
"""Seconds between two lines that tell that receives still fail."""


class Admits(Protocol):
    """Where received messages go."""

    def admit(self, messages: Sequence[Message], arrived: Moment) -> tuple[int, int]:
        """Take the messages of one receive in. Returns how many lack nothing but a slot, and how many were held before.

        ``arrived`` is the earliest moment at which SQS can have handed them out.
        """
        ...


class Receiver:
    """Sends receives to one queue, and keeps what became of them."""

    def __init__(self, source: Source, tasks: Tasks, *, watch: LoopWatch) -> None:
        self._source = source
        self._tasks = tasks
        self._watch = watch
        self._polling = source.settings.polling
        self._observers = source.settings.observers
        self._timeout = source.settings.first_visibility.timeout
        self.started_at: float | None = None
        """The loop time at which the first receive was sent."""
        self.last_success: float | None = None
        """The loop time of the last receive that SQS answered, with or without messages."""
        self.failing_since: float | None = None
        """The loop time from which on every receive has failed; None while they are answered."""
        self._trouble = Trouble(
            f"Receiving from {source.name}", "tried again until it works", tasks=tasks, queue=source.name, log=_log
        )
        self._look: asyncio.TimerHandle | None = None
        """Looks for receives that are overdue: one timer for all of them, as nearly every one is answered in time."""
        self._told = -math.inf
        """When the log last told that receives fail."""
        self.failing_with: str = ""
        """The type of the last failure's error."""
        self._out: dict[int, tuple[float, float]] = {}
        """When the receives that are out were sent, and until when they wait, by poller."""
        self.failures: int = 0
        self.receives: int = 0

    @property
    def asked_at(self) -> float | None:
        """When the oldest receive that is out was sent; None when none is out."""
        return min((sent for sent, _ in tuple(self._out.values())), default=None)  # another thread may ask

    @property
    def last_asked_at(self) -> float:
        """When the latest receive that is out was sent; far in the past when none is out."""
        return max((sent for sent, _ in self._out.values()), default=-math.inf)

    @property
    def out_until(self) -> float:
        """Until when a receive that is out may bring what is in the queue; far in the past when none is out."""
        return max((until for _, until in self._out.values()), default=-math.inf)

    def moment(self) -> Moment:
        """Return the time at which a receive is sent."""
        return self._source.settler.heartbeat.moment()

    def arrived(self, asked: Moment) -> Moment:
        """Return the earliest moment at which SQS can have handed out what is read now.

        The answer to a long poll may have waited in a socket while the process was frozen or the loop blocked, and
        its visibility timeout began to run before that.
        """
        return Moment(max(asked.time, self._watch.unread_since()), asked.slept)

    async def receive(self, limit: int, wait: float, number: int) -> list[Message]:
        """Send a receive of poller ``number``. Raises what the transport raises, and where no delete works."""
        now, task = self._tasks.time(), asyncio.current_task()
        if self.started_at is None:
            self.started_at = now
        # Before the await: health asks how long the oldest receive has been out.
        self._out[number] = now, now + wait
        if self._look is None:
            self._look = self._tasks.call_later(wait + _OVERDUE, self._look_for_overdue)
        try:
            # Before it is sent: what can be handled and not deleted comes back until it is a dead letter.
            await self._source.settler.check_deletes()
            self.receives += 1
            queue = self._source.queue
            messages = checked_messages(await queue.receive(limit=limit, wait=wait, visibility=self._timeout))
        except BaseException as error:
            if isinstance(error, Exception) or has_to_leave(error, task):
                raise
            # Its cancellation, or what it derives from no Exception, is its failure, and not the poller's end.
            raise ServiceUnavailable(f"the transport raised {type(error).__name__}") from error
        finally:
            del self._out[number]
        self.last_success = self._tasks.time()
        self.failing_since = None
        self._trouble.worked()
        return messages

    def _look_for_overdue(self) -> None:
        """Say that a receive is not answered, long before the transport gives it up."""
        self._look = None
        # Time in which the loop stood still does not count: the answer may be in the socket.
        now = self._watch.unread_since()
        late = [now - asked for asked, until in self._out.values() if until + _OVERDUE <= now]
        if late:
            what = f"brings no answer: SQS has been silent for {max(late):.0f} s"
            self._trouble.note(what, failed=0, cause="silence")
        if len(late) < len(self._out):
            due = min(until for _, until in self._out.values() if until + _OVERDUE > now) + _OVERDUE
            self._look = self._tasks.call_later(max(due - now, 1.0), self._look_for_overdue)

    def close(self) -> None:
        """End the timer: the event loop may go on without the consumer, which the timer would keep in memory."""
        if self._look is not None:
            self._look.cancel()

    def failed(self, error: Exception, pause: float, began: float) -> None:
        """Note that a receive failed, and log it. The next one follows after ``pause`` seconds."""
        self.failures += 1
        if isinstance(error, TransportError) and error.code == "OverLimit":
            # SQS gives no more because too much is in flight: nothing more may be hidden for some
            # time.
            self._source.facts.over_limit()
        now = self._tasks.time()
        if self.failing_since is None:
            self.failing_since = began
        self.failing_with = type(error).__name__
        what = f"next try in {pause:g} s: {in_words(error)}"
        # An error once, and a line a minute: an outage of an hour is one thing that happened, and not a thousand, also
        # where every second receive goes well.
        if self._trouble.note(f"failed, {what}", logging.ERROR, cause=type(error).__name__):
            self._told = now
        elif now >= self._told + _REPEAT:
            self._told = now
            name = self._source.name
            _log.info("Receiving from %s still fails, %s", name, what, extra=about(queue=name))
        if self._observers:
            self._observers.tell(PollFailed(self._source.name, error, pause, now - began))


class Poller(Receiver):
    """Keeps receives outstanding as the policy says. Every ``run`` is one poller."""

    def __init__(
        self, source: Source, core: Core, policy: ReceivePolicy, admits: Admits, tasks: Tasks, *, watch: LoopWatch
    ) -> None:
        super().__init__(source, tasks, watch=watch)
        self._core = core
        self._policy = policy
        self._admits = admits
        self._stopping = False
        self._waiters: dict[int, asyncio.Future[None]] = {}
        """What the pollers wait for that found nothing to ask for, by number."""
        self._paused: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Look again whether there is room: a message ended, or the queue turned busy."""
        if not self._waiters:
            return
        if len(self._waiters) > 1 and not self._stopping and self._policy.is_quiet(self._core):
            # Poller 0 alone asks an idle queue: each of the others would wake up only to wait
            # again.
            waiters = [] if (first := self._waiters.pop(0, None)) is None else [first]
        else:
            waiters, self._waiters = list(self._waiters.values()), {}
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
                await self._woken(number, step.seconds)
                continue
            asked = self.moment()
            began = asked.time
            # Before the await: the other pollers decide meanwhile, and must see that this room is
            # taken.
            self._policy.asked(step)
            try:
                messages = await self.receive(step.limit, self._polling.wait, number)
            except Exception as error:  # whatever a transport raises: a failed receive, not the poller's end
                self._policy.failed(step)
                self.failed(error, pause, began)
                await self._back_off(pause)
                pause = min(pause * 2, self._polling.max_backoff)
                self.wake()  # another poller may have waited for the room that this one had asked for
                continue
            except BaseException:
                # The room that it asked for is free again, whatever ended the receive.
                self._policy.failed(step)
                raise
            pause = self._polling.backoff
            # Before `answered`: what arrived must count as taken when the next receive is decided.
            runnable, again = self._admits.admit(messages, self.arrived(asked)) if messages else (0, 0)
            now = time()
            self._policy.answered(Answer(step, len(messages), runnable, now - began, again), now)
            if self._observers:
                self._observers.tell(PollFinished(self._source.name, len(messages), now - began))
            del messages  # their bodies must not stay in memory until the next receive ends
            if not step.scouting or self._policy.wants_company():
                self.wake()  # there is more room, or more to fetch: another poller may have waited for it

    async def _woken(self, number: int, seconds: float | None) -> None:
        # One future for each poller: an event that all wait for would wake all of them each time.
        self._waiters[number] = waiter = self._tasks.loop.create_future()
        timer = None if seconds is None else self._tasks.call_later(seconds, self._wake_one, number)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _wake_one(self, number: int) -> None:
        waiter = self._waiters.pop(number, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _back_off(self, pause: float) -> None:
        # A future and not a sleep: a stop ends the pause at once.
        ended = self._tasks.loop.create_future()
        self._paused.add(ended)
        try:
            await asyncio.wait([ended], timeout=pause)
        finally:
            self._paused.discard(ended)
