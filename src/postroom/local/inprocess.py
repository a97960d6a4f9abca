"""The broker inside an event loop: its clock is the loop's, its long polls are awaitables."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, Unpack

from postroom.checking import check_kind, listed, shown
from postroom.errors import ClosedError, ConfigurationError, NotOpenError
from postroom.local.broker import Broker
from postroom.local.options import BrokerOptions, Changes, Scope, with_changes
from postroom.local.queue import LocalQueue, Waiter
from postroom.local.sending import entry_of
from postroom.local.shapes import (
    BatchResult,
    ChangeVisibilityEntry,
    DeleteEntry,
    Receive,
    Received,
    Send,
    SendEntry,
    Sent,
    SentBatch,
)
from postroom.message import OutgoingMessage

if TYPE_CHECKING:
    from postroom.local.persist import Log

Deliver = Callable[[list[Received]], None]
_ENTRIES: Final = '[SendEntry(id="1", message_body="hello")]'


class Poll:
    """A long poll that waits. ``cancel()`` ends it; it then delivers nothing."""

    __slots__ = ("_broker", "_deliver", "_queue", "_timer", "_waiter")

    def __init__(self, broker: "LocalBroker", queue: LocalQueue, request: Receive, deliver: Deliver) -> None:
        self._broker = broker
        self._queue = queue
        self._deliver = deliver
        self._waiter: Waiter | None = broker.engine.wait(queue, request, self._served)
        self._timer = broker.call_later(broker.engine.wait_of(queue, request), self._timed_out)

    def _served(self, messages: list[Received]) -> None:
        self._broker.forget(self, self._queue)
        self._timer.cancel()
        self._waiter = None
        self._deliver(messages)

    def _timed_out(self) -> None:
        # What becomes available at this very instant is still delivered, whichever timer of the loop runs first.
        self._broker.engine.tick(self._queue)
        if self._waiter is not None:
            self.cancel()
            self._deliver([])

    def cancel(self) -> None:
        """End the wait. A second call, and one after the delivery, does nothing."""
        if self._waiter is not None:
            self._timer.cancel()
            self._broker.engine.cancel(self._queue, self._waiter)
            self._broker.forget(self, self._queue)
            self._waiter = None

    def end(self) -> None:
        """Deliver nothing, now."""
        if self._waiter is not None:
            self.cancel()
            self._deliver([])


def _request(message: object) -> Send:
    match message:
        case str():
            return Send(message_body=message)
        case OutgoingMessage():
            return entry_of(message)
        case Send():
            return message
        case _:
            text = f"LocalBroker.send(queue, message) takes a text or an OutgoingMessage(...); got {shown(message)}"
            raise ConfigurationError(text)


class LocalBroker:
    """SQS in this process, for the time of an ``async with``.

        async with LocalBroker() as broker:
            broker.create_queue("orders", {"VisibilityTimeout": "30"})
            broker.send("orders", "hello")
            [message] = await broker.receive("orders", wait=20)

    Re-entrant: each ``async with`` counts, the last exit ends all long polls (they get nothing) and closes the
    persistent log. What was in the broker is gone then, unless ``persist`` names a file. It belongs to the event
    loop that entered it; its time is that loop's time, so that it runs in virtual time as well. Another loop is
    refused with ``ConfigurationError``.

    Refusals are ``BrokerError``, with SQS's codes.

    Args:
        options: how it behaves, as ``BrokerOptions``; as SQS by default.
        changes: single options by keyword, such as ``seed=1`` or ``persist="queues.log"``.
    """

    def __init__(self, options: BrokerOptions | None = None, **changes: Unpack[Changes]) -> None:
        self.options: BrokerOptions = with_changes(options, **changes)
        self.polls: set[Poll] = set()
        """The long polls that wait."""
        self._rng = Random(self.options.seed)  # noqa: S311 - ids, not secrets; one for all times that it is entered
        self._engine: Broker | None = None
        self._log: Log | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entered = 0
        self._started = 0.0
        self._offset = 0.0
        self._closed = False
        self._alarms: dict[LocalQueue, tuple[float, asyncio.TimerHandle]] = {}

    @property
    def scope(self) -> Scope:
        """Account and region of queues that are named without them."""
        return self.options.scope

    # -- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if not self._entered:
            self._loop = asyncio.get_running_loop()
            self._started = self._loop.time()
            self._offset = time.time() if self.options.epoch is None else self.options.epoch
            engine = Broker(self._now, self.options, rng=self._rng)
            if self.options.persist is not None:
                from postroom.local.persist import Log  # noqa: PLC0415 - it needs a POSIX system, the rest does not

                self._log = Log(Path(self.options.persist), engine, self._now())
                # The log may be ahead of the clock outside, after a run with time_scale: time here must not go back.
                self._offset = self._log.now
            engine.on_waiting = self._set_alarm
            self._engine = engine
            self._closed = False
        self._check_loop()
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered:
            return
        # Before the engine goes: a poll that ends takes itself out of its queue.
        for poll in list(self.polls):
            poll.end()
        for _, alarm in self._alarms.values():
            alarm.cancel()
        self._alarms.clear()
        self._engine = None
        self._loop = None
        self._closed = True
        # Last, as writing may fail: the broker is closed all the same.
        if self._log is not None:
            log, self._log = self._log, None
            log.close()

    def _check_loop(self) -> None:
        # Its timers and polls are of the other one: what waits here would never be told.
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            text = "this LocalBroker was opened in another event loop: open it in the one that uses it"
            raise ConfigurationError(f"{text}; in tests, give its fixture the scope of their loop")

    @property
    def is_open(self) -> bool:
        """Whether it is inside of its ``async with``."""
        return self._engine is not None

    @property
    def engine(self) -> Broker:
        """The state machine itself. Raises ``NotOpenError`` before ``async with`` and ``ClosedError`` after it."""
        if self._engine is None:
            if self._closed:
                raise ClosedError("this LocalBroker was closed: its `async with` is over")
            raise NotOpenError("this LocalBroker is not open: write `async with LocalBroker() as broker:`")
        return self._engine

    # -- time ----------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        assert self._loop is not None  # noqa: S101 - the engine lives no longer than the loop is known
        return self._offset + (self._loop.time() - self._started) * self.options.time_scale

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call something after some of the broker's seconds."""
        assert self._loop is not None  # noqa: S101 - as above
        return self._loop.call_later(seconds / self.options.time_scale, callback)

    def _set_alarm(self, queue: LocalQueue) -> None:
        """See to it that the engine is asked when a queue with waiting polls has its next event."""
        when = self.engine.next_event(queue)
        alarm = self._alarms.get(queue)
        if alarm is not None:
            if when is not None and alarm[0] <= when:
                return  # an earlier alarm sets the next one
            alarm[1].cancel()
            del self._alarms[queue]
        if when is not None:
            delay = max(0.0, when - self._now())
            self._alarms[queue] = (when, self.call_later(delay, lambda: self._ring(queue)))

    def forget(self, poll: Poll, queue: LocalQueue) -> None:
        """Note that a poll waits no more; without one the queue needs no alarm."""
        self.polls.discard(poll)
        if queue.next_waiter() is None and (alarm := self._alarms.pop(queue, None)) is not None:
            alarm[1].cancel()

    def _ring(self, queue: LocalQueue) -> None:
        self._alarms.pop(queue, None)
        self.engine.tick(queue)

    # -- actions -------------------------------------------------------------------------------------------------

    def create_queue(
        self, name: str, attributes: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
    ) -> LocalQueue:
        """Create a queue; one that exists with the same attributes is returned as it is."""
        return self.engine.create_queue(name, attributes, tags, scope=self.scope)

    def queue(self, name: str | LocalQueue) -> LocalQueue:
        """Return a queue by name, URL or ARN. Raises BrokerError (QueueDoesNotExist)."""
        return name if isinstance(name, LocalQueue) else self.engine.queue(name, self.scope)

    def delete_queue(self, queue: str | LocalQueue) -> None:
        """Delete a queue with all its messages."""
        self.engine.delete_queue(self.queue(queue))

    def list_queues(self, prefix: str = "") -> list[LocalQueue]:
        """Return the queues with names that start with a prefix, by name."""
        return self.engine.list_queues(prefix, scope=self.scope)[0]

    def attributes(self, queue: str | LocalQueue, names: Iterable[str] = ("All",)) -> dict[str, str]:
        """Return attributes of a queue, counts included."""
        return self.engine.get_attributes(self.queue(queue), names)

    def set_attributes(self, queue: str | LocalQueue, attributes: Mapping[str, str]) -> None:
        """Set attributes of a queue."""
        self.engine.set_attributes(self.queue(queue), attributes)

    def purge(self, queue: str | LocalQueue) -> None:
        """Delete all messages of a queue."""
        self.engine.purge_queue(self.queue(queue))

    def send(self, queue: str | LocalQueue, message: str | OutgoingMessage | Send) -> Sent:
        """Send a body, or a message with attributes, delay or group."""
        return self.engine.send(self.queue(queue), _request(message))

    def send_batch(self, queue: str | LocalQueue, entries: Sequence[SendEntry]) -> SentBatch:
        """Send up to ten messages."""
        entries = listed("LocalBroker.send_batch(entries)", _ENTRIES, entries)
        for entry in entries:
            check_kind("LocalBroker.send_batch(entries)", entry, SendEntry, _ENTRIES)
        return self.engine.send_batch(self.queue(queue), entries)

    async def receive(
        self,
        queue: str | LocalQueue,
        *,
        limit: int = 1,
        wait: int | None = None,
        visibility: int | None = None,
        attempt_id: str | None = None,
    ) -> list[Received]:
        """Receive up to ``limit`` messages with all their attributes; wait up to ``wait`` seconds for the first.

        ``None`` means what the queue's attributes say. Cancelled while it waits, it takes nothing; cancelled in the
        very step in which it was served, it leaves the messages in flight, as SQS does.
        """
        request = Receive(
            message_system_attribute_names=["All"],
            message_attribute_names=["All"],
            max_number_of_messages=limit,
            visibility_timeout=visibility,
            wait_time_seconds=wait,
            receive_request_attempt_id=attempt_id,
        )
        self._check_loop()
        future: asyncio.Future[list[Received]] = asyncio.get_running_loop().create_future()

        def deliver(messages: list[Received]) -> None:
            # Cancelled in the step in which it was served: what it got stays in flight, as when SQS's answer is lost.
            if not future.done():
                future.set_result(messages)

        received, poll = self.poll(self.queue(queue), request, deliver)
        if poll is None:
            return received
        try:
            return await future
        finally:
            poll.cancel()

    def poll(self, queue: LocalQueue, request: Receive, deliver: Deliver) -> tuple[list[Received], Poll | None]:
        """Receive; and if there is nothing and the request may wait, wait and call ``deliver`` once.

        Returns what was received at once, or the poll that waits. ``deliver`` is called with nothing when the time
        is over, the queue is deleted or the broker closes.
        """
        engine = self.engine
        received = engine.receive(queue, request)
        if received or not engine.wait_of(queue, request):
            return received, None
        poll = Poll(self, queue, request, deliver)
        self.polls.add(poll)
        return [], poll

    def delete(self, queue: str | LocalQueue, receipt_handle: str) -> None:
        """Delete a message."""
        self.engine.delete(self.queue(queue), receipt_handle)

    def delete_batch(self, queue: str | LocalQueue, entries: Sequence[DeleteEntry]) -> BatchResult:
        """Delete up to ten messages."""
        return self.engine.delete_batch(self.queue(queue), entries)

    def change_visibility(self, queue: str | LocalQueue, receipt_handle: str, timeout: int) -> None:
        """Change the visibility timeout of a message in flight."""
        self.engine.change_visibility(self.queue(queue), receipt_handle, timeout)

    def change_visibility_batch(self, queue: str | LocalQueue, entries: Sequence[ChangeVisibilityEntry]) -> BatchResult:
        """Change up to ten visibility timeouts."""
        return self.engine.change_visibility_batch(self.queue(queue), entries)
