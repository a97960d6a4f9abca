"""Collects entries into batch calls, and tries refused ones again at a pace that the queue can bear."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from random import Random
from typing import Final, Generic, Protocol

from typing_extensions import TypeVar

from postroom.errors import (
    AccessDenied,
    ClosedError,
    InvalidReceiptHandle,
    InvalidRequest,
    PostroomError,
    QueueNotFound,
    ServiceUnavailable,
    TransportError,
)
from postroom.options import MAX_BATCH
from postroom.redaction import quote
from postroom.settlement.gate import Gate, Pauses
from postroom.settlement.trouble import Trouble
from postroom.tasks import Tasks, has_to_leave
from postroom.transports.protocol import EntryFailure

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)

REFUSED: Final = Pauses(first=0.2, cap=5.0)
"""Between two calls while they are throttled, or SQS cannot be reached."""
DENIED: Final = Pauses(first=2.0, cap=30.0)
"""Between two calls while they are denied: credentials that are being renewed need seconds, a policy minutes."""
HURRIED: Final = Pauses(first=0.2, cap=1.0)
"""Between two calls in a stop."""
DENIED_AT_STOP: Final = Pauses(first=1.6, cap=1.6)
"""Between two calls that are denied, in a stop."""
PATIENCE: Final = 300.0
"""Seconds for which a call that is denied is tried again: renewing credentials takes no longer."""
CHANGEABLE: Final = (AccessDenied, QueueNotFound, InvalidRequest)
"""Refusals of a whole call that may end: a queue is not known for a while after it was made, and AWS gives the deletion
of one up to 60 s; an endpoint may answer wrongly while it is replaced."""
MAX_BYTES: Final = 1_048_576
"""The largest message, and the largest sum of a batch (quotas-messages.html)."""
ANSWER: Final = 60.0
"""Seconds after which a call that is not answered counts as failed."""
MOST_WAITING: Final = 10_000
"""Entries that wait while calls fail; further ones are given up at once, so that memory is bounded."""
_PATIENCE_AT_STOP: Final = 1.0
"""Seconds for which a call that is denied is tried again in a stop."""
_YOUNG: Final = 1.0
"""Seconds for which a call that is not answered counts as one that may be."""
_ROUNDS: Final = 3
"""Calls in a row in which each single entry was refused, after which it is the queue and not the entries."""


class Fate(Enum):
    """What is to be done with an entry now."""

    SEND = "send"
    WAIT = "wait"
    """It may not be sent before ``Batcher.resume``."""
    OVER = "over"
    """It has ended already: it is dropped."""


# Looked up for every message: on Python 3.11 the member of an enum costs as much as a call.
_SEND = Fate.SEND


class Work(Protocol[E_contra]):
    """What a batcher does its sending for."""

    async def send(self, entries: Sequence[E_contra]) -> Sequence[EntryFailure]:
        """Send one batch and return the entries that were refused, by their place."""
        ...

    def fate(self, entry: E_contra, now: float, /) -> Fate:
        """Return what to do with an entry that is about to be sent at a time of the loop."""
        ...

    def done(self, entries: Sequence[E_contra], error: PostroomError | None) -> None:
        """Learn that entries ended: well, or with the error that ended all of them."""
        ...


class Batcher(Generic[E]):
    """Sends entries in batches of ten, by size or after a short interval.

    An entry that SQS refuses as the sender's fault, and every entry of a call that SQS will refuse again, ends at
    once. The rest is tried again until ``Work.fate`` says that it is over: what is to be done while a message is
    ours is worth trying as long as it is. A call that is denied is tried for ``patience`` seconds, in a stop once:
    credentials may be about to be renewed. However much waits, the calls that fail follow one backoff.

    Args:
        name: what is sent, for task names.
        work: sends, and is told how each entry ended.
        tasks: start the calls, and the timers.
        linger: seconds that an entry waits for company.
        trouble: says in the log that calls fail, and that they work again.
        pauses: between two calls while they fail.
        denied: between two calls while they are denied.
        patience: seconds for which a call that is denied is tried again.
        denials: errors of a whole call that count as denied.
        most: entries that may wait while calls fail; None for no bound.
        at_once: calls that leave before others are answered, so that a refusal is known before all have left. A call
            counts for a second: one that hangs keeps nothing from leaving. None for no bound.
        size: returns the bytes of an entry, where the sum of a batch is bounded.
        rng: for the jitter of pauses.
    """

    def __init__(
        self,
        name: str,
        work: Work[E],
        *,
        tasks: Tasks,
        linger: float,
        trouble: Trouble,
        pauses: Pauses = REFUSED,
        denied: Pauses = DENIED,
        patience: float = PATIENCE,
        denials: tuple[type[PostroomError], ...] = (AccessDenied,),
        most: int | None = MOST_WAITING,
        at_once: int | None = None,
        size: Callable[[E], int] | None = None,
        rng: Random | None = None,
    ) -> None:
        self._name = name
        self._work = work
        self._tasks = tasks
        self._time = tasks.time
        self._linger = linger
        self._trouble = trouble
        self._pauses = pauses
        self._denied_pauses = denied
        self._patience = patience
        self._denials = denials
        self._most = most
        self._at_once = at_once
        self._size = size
        self._rng = rng or Random()  # noqa: S311 - jitter, not secrecy
        self._gate = Gate(self._rng)
        self._open: dict[E, int] = {}
        """Every entry that has not ended, and how often it was refused by itself."""
        self._buffer: list[E] = []
        self._ready: deque[E] = deque()
        self._aside: dict[E, None] = {}
        self._resting: dict[asyncio.TimerHandle, list[E]] = {}
        self._forgotten = 0
        """Entries that were dropped and may still stand in a line: each keeps its message's body."""
        self._leave_at = 0.0
        """When what waits for company leaves at the latest: timed from the first of it."""
        self._linger_timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Handle | None = None
        self._gate_timer: asyncio.TimerHandle | None = None
        self._calls: dict[asyncio.Task[None], float] = {}
        """The calls that are not answered, and when they left, in that order."""
        self._late: set[asyncio.Task[None]] = set()
        """Calls that were cancelled because their answer took too long."""
        self._lateness: asyncio.TimerHandle | None = None
        self._refused_in_a_row = 0
        self._denied_since: float | None = None
        self.last_error: PostroomError | None = None
        """What the last call that failed ended with."""
        self._draining = 0
        self._idle: list[asyncio.Future[None]] = []
        self.closed: bool = False

    @property
    def pending(self) -> int:
        """Entries that have not ended, those on their way included."""
        return len(self._open)

    @property
    def failing_since(self) -> float | None:
        """The loop time at which the first call failed since one went well; None while they go well."""
        return self._gate.failing_since

    @property
    def refused_alone(self) -> bool:
        """Whether SQS answers, and refuses no more than a batch of single entries: they may be all that fails."""
        return self._refused_in_a_row > 0 and len(self._open) <= MAX_BATCH

    def works(self) -> None:
        """Note that such a call, sent by another, went well: what waits goes on."""
        self._went_well()
        self._pump()

    def add(self, entry: E, urgent: bool = False) -> None:  # noqa: FBT001, FBT002 - a call with names costs more
        """Take an entry in. An urgent one leaves in this turn of the loop, with what is there."""
        if (self.closed or not self._gate.is_open) and (error := self._no_room()) is not None:
            self._work.done((entry,), error)
            return
        self._open[entry] = 0
        buffer = self._buffer
        buffer.append(entry)
        if len(buffer) >= MAX_BATCH:
            self.flush()
        elif urgent or self._draining:
            # Not in this very call: what else is decided in this turn of the loop shares the
            # request.
            if self._flushing is None:
                self._flushing = self._tasks.call_soon(self.flush)
        elif len(buffer) == 1 and self._flushing is None:
            # Timed from the first entry: restarted by every entry, a steady trickle would postpone
            # it without end.
            self._leave_at = self._time() + self._linger
            # One timer for many batches: nearly all of them are full before it rings.
            if self._linger_timer is None:
                self._set_linger_timer()

    def _set_linger_timer(self) -> None:
        self._linger_timer = self._tasks.call_at(self._leave_at, self._look_for_company, self._leave_at)

    def _look_for_company(self, due: float) -> None:
        """Send what has waited for company until a time. Not by the clock: a loop's may be coarse, and rings early."""
        self._linger_timer = None
        if self._buffer and self._leave_at <= due:
            self.flush()
        elif self._buffer:  # what the timer was set for has left, and others came
            self._set_linger_timer()

    def flush(self) -> None:
        """Send what waits for company now."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._ready.extend(self._buffer)
        self._buffer.clear()
        self._pump()

    def resume(self, entry: E) -> None:
        """Send an entry that had to wait."""
        if entry in self._aside:
            del self._aside[entry]
            self._ready.append(entry)
            self._pump()

    def forget(self, entry: E) -> None:
        """Drop an entry that has ended: it is not sent any longer, and not reported."""
        if self._open.pop(entry, None) is None:
            return
        self._aside.pop(entry, None)
        # Not each by itself: taking one out of the middle of a line costs a search.
        self._forgotten += 1
        if self._forgotten > len(self._open) // 8:
            self._drop_ended()
        self._tell_idle()

    def hasten(self) -> None:
        """Let nothing wait from now on, until ``relax``: a stop has little time."""
        self._draining += 1
        self._gate.hurry(self._time())
        for timer in tuple(self._resting):
            timer.cancel()
            self._again(self._resting.pop(timer))
        self.flush()

    def relax(self) -> None:
        """End what ``hasten`` began."""
        self._draining -= 1

    async def idle(self) -> None:
        """Return when every entry has ended, retries included."""
        while self._open:
            # In a loop: `Work.done` of the last entry may have added another before this coroutine
            # runs again.
            idle = self._tasks.loop.create_future()
            self._idle.append(idle)
            await idle

    async def drain(self) -> None:
        """Send everything now, and return when every entry has ended."""
        self.hasten()
        try:
            await self.idle()
        finally:
            self.relax()

    async def cancel(self, grace: float = 1.0) -> list[E]:
        """Send nothing any longer, give calls up that are not answered, and return the entries that have not ended.

        It returns within ``grace`` seconds, also where a transport does not let itself be cancelled.
        """
        self.close()
        if calls := tuple(self._calls):
            await asyncio.wait(calls, timeout=grace)
        return self.give_up()

    def give_up(self) -> list[E]:
        """Send nothing any longer, and return the entries that have not ended: their calls are not listened to."""
        self.close()
        left, self._open = list(self._open), {}
        self._tell_idle()
        return left

    def close(self) -> None:
        """Send nothing any longer, and give calls up that are not answered."""
        self.closed = True
        if self._flushing is not None:
            self._flushing.cancel()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        if self._gate_timer is not None:
            self._gate_timer.cancel()
        if self._lateness is not None:
            self._lateness.cancel()
        for timer in self._resting:
            timer.cancel()
        for call in tuple(self._calls):
            call.cancel()
        self._resting.clear()
        self._buffer.clear()
        self._ready.clear()
        self._aside.clear()

    def _no_room(self) -> PostroomError | None:
        """Return why nothing can be taken in; None where it can."""
        if self.closed:
            return _closed(self._name)
        full = self._most is not None and len(self._open) >= self._most and not self._gate.is_open
        return self.last_error if full else None

    def _pump(self) -> None:
        """Send what may leave now; the rest goes when the gate lets it."""
        while self._ready and not self.closed:
            now = self._time()
            if (opens_at := self._closed_until(now)) > now:
                self._wake_at(opens_at)
                return
            # Formed before the permission is taken: a batch that turns out to be over must not use it up.
            if batch := self._next_batch(now):
                self._gate.take(now)
                call = self._tasks.spawn(self._call(batch), f"postroom-{self._name}-batch")
                if call.done():  # a task factory started it eagerly, and it did not wait
                    continue
                self._calls[call] = now
                if self._lateness is None:  # one timer for all of them: nearly every call is answered in time
                    self._lateness = self._tasks.call_at(now + ANSWER, self._look_for_late_ones)

    def _look_for_late_ones(self) -> None:
        """Give calls up that are not answered within ``ANSWER`` seconds."""
        self._lateness = None
        now = self._time()
        for call, left in tuple(self._calls.items()):
            if left + ANSWER > now:
                self._lateness = self._tasks.call_at(left + ANSWER, self._look_for_late_ones)
                return
            if call not in self._late:
                self._late.add(call)
                call.cancel()

    def _closed_until(self, now: float) -> float:
        """Return when the next call may leave: now, or later."""
        if not self._gate.admits(now):
            return self._gate.opens_at
        if self._at_once is None or len(self._calls) < self._at_once:
            return now
        young = [left for left in self._calls.values() if left + _YOUNG > now]
        return now if len(young) < self._at_once else young[0] + _YOUNG

    def _next_batch(self, now: float) -> list[E]:
        batch: list[E] = []
        ready, fate, size = self._ready, self._work.fate, self._size
        room = MAX_BYTES
        while ready and len(batch) < MAX_BATCH:
            if size is not None:
                room -= size(ready[0])
                # A single entry leaves whatever its size: SQS refuses it by name, and the others
                # are not held up.
                if batch and room < 0:
                    break
            entry = ready.popleft()
            if entry not in self._open:  # it was forgotten while it waited
                continue
            decided = fate(entry, now)
            if decided is _SEND:
                batch.append(entry)
            elif decided is Fate.WAIT:
                self._aside[entry] = None
            else:
                self.forget(entry)
        return batch

    def _wake_at(self, when: float) -> None:
        if self._gate_timer is not None:
            self._gate_timer.cancel()
        self._gate_timer = self._tasks.call_at(when, self._wake)

    def _wake(self) -> None:
        self._gate_timer = None
        self._pump()

    async def _call(self, batch: list[E]) -> None:
        sent_at, task = self._time(), asyncio.current_task()
        try:
            failures = await self._work.send(batch)
        except asyncio.CancelledError:
            # `cancelling()` counts requests. One of them is ours if the answer was late; any other
            # means it.
            late = task in self._late
            if self.closed or (task is not None and task.cancelling() > late):
                raise
            # A transport's own cancellation is its failure, and not ours to obey.
            self._call_failed(batch, _unanswered() if late else named(asyncio.CancelledError()), sent_at)
        except BaseException as error:
            if has_to_leave(error, task):
                raise
            self._call_failed(batch, named(error), sent_at)
        else:
            self._answered(batch, failures, sent_at)
        finally:
            if task is not None:
                self._calls.pop(task, None)
                self._late.discard(task)
        self._pump()

    def _call_failed(self, batch: list[E], error: PostroomError, sent_at: float) -> None:
        self.last_error = _without_frames(error)
        now = self._time()
        if isinstance(error, self._denials):
            self._denied(batch, error, sent_at, now)
        elif _may_pass(error):
            self._trouble.failed(len(batch), error)
            self._gate.failed(HURRIED if self._draining else self._pauses, sent_at=sent_at, now=now)
            self._again(batch)
        else:
            self._end_all(batch, error)

    def _denied(self, batch: list[E], error: PostroomError, sent_at: float, now: float) -> None:
        self._denied_since = now if self._denied_since is None else self._denied_since
        patience = min(self._patience, _PATIENCE_AT_STOP) if self._draining else self._patience
        self._gate.failed(DENIED_AT_STOP if self._draining else self._denied_pauses, sent_at=sent_at, now=now)
        if now - self._denied_since >= patience:
            # All that waits would be denied as well, call by call.
            self._end_all([*batch, *self._ready, *self._buffer], error)
        else:
            self._trouble.failed(len(batch), error)
            self._again(batch)

    def _answered(self, batch: list[E], failures: Sequence[EntryFailure], sent_at: float) -> None:
        if not failures:  # as of nearly every call
            self._end(batch, None)
            self._went_well()
            return
        refused = {failure.index: failure for failure in failures}
        again: list[E] = []
        self._end([entry for index, entry in enumerate(batch) if index not in refused], None)
        for index, failure in sorted(refused.items()):
            if failure.sender_fault:
                self._end(batch[index : index + 1], error_of(failure, self._name))
            else:
                again.append(batch[index])
        if again:
            self._entries_refused(again, refused, sent_at, all_of_them=len(again) == len(batch))
        else:
            self._went_well()

    def _went_well(self) -> None:
        self._refused_in_a_row = 0
        self._denied_since = None
        self._gate.succeeded()
        self._trouble.worked()

    def _entries_refused(
        self, again: list[E], refused: dict[int, EntryFailure], sent_at: float, *, all_of_them: bool
    ) -> None:
        error = error_of(next(each for each in refused.values() if not each.sender_fault), self._name)
        self.last_error = _without_frames(error)
        self._trouble.failed(len(again), error)
        self._refused_in_a_row = self._refused_in_a_row + 1 if all_of_them else 0
        if self._refused_in_a_row >= _ROUNDS:
            self._gate.failed(HURRIED if self._draining else self._pauses, sent_at=sent_at, now=self._time())
            self._again(again)
            return
        if not all_of_them:
            # Some entries passed: the queue works, and only these wait.
            self._gate.succeeded()
        # 2 ** 8 times the first pause is beyond every cap: a bound for the exponent, not for the
        # tries.
        tries = min(max(self._open.get(entry, 0) for entry in again), 8)
        for entry in again:
            if entry in self._open:
                self._open[entry] += 1
        pauses = HURRIED if self._draining else self._pauses
        # With jitter: replicas that were refused in one instant must not return in one instant.
        pause = min(pauses.cap, pauses.first * 2.0**tries) * (1.0 - 0.3 * self._rng.random())
        timer = self._tasks.call_later(pause, lambda: self._wake_resting(timer))
        self._resting[timer] = again

    def _wake_resting(self, timer: asyncio.TimerHandle) -> None:
        self._again(self._resting.pop(timer))
        self._pump()

    def _again(self, entries: Sequence[E]) -> None:
        if not self.closed:
            # To the front and in their old order: their deadlines are the nearest.
            self._ready.extendleft(entry for entry in reversed(entries) if entry in self._open)

    def _end_all(self, entries: Sequence[E], error: PostroomError) -> None:
        self._end(entries, error)
        self._drop_ended()

    def _drop_ended(self) -> None:
        self._forgotten = 0
        for waiting in (self._ready, self._buffer, *self._resting.values()):
            if waiting:
                kept = [entry for entry in waiting if entry in self._open]
                waiting.clear()
                waiting.extend(kept)

    def _end(self, entries: Sequence[E], error: PostroomError | None) -> None:
        is_open = self._open.pop
        # Taken out before any of them is told of: each ends once.
        if ended := [entry for entry in entries if is_open(entry, None) is not None]:
            self._work.done(ended, error)
            if self._idle:
                self._tell_idle()

    def _tell_idle(self) -> None:
        if not self._open and self._idle:
            waiting, self._idle = self._idle, []
            for idle in waiting:
                if not idle.done():
                    idle.set_result(None)


def error_of(failure: EntryFailure, operation: str) -> TransportError:
    """Return the error that an entry was refused with."""
    # A receipt handle that is too old is an InvalidParameterValue that names it, in AWS's recorded answers.
    said = failure.code + (failure.text if failure.code == "InvalidParameterValue" else "")
    handle = "ReceiptHandle" in said or "MessageNotInflight" in failure.code
    kind = InvalidReceiptHandle if handle else InvalidRequest if failure.sender_fault else ServiceUnavailable
    # Of a change its words say which limit it is; those of other calls may quote what was sent.
    words = f" ({failure.text})" if failure.text and operation == "change" and not handle else ""
    # Behind the handle stands why it is refused: that the message is gone, say.
    if handle and (why := failure.text.partition(". Reason: ")[2]):
        words = f" ({quote(why).rstrip('.')})"
    return kind(f"SQS refused an entry of {operation}: {failure.code}{words}", operation=operation, code=failure.code)


def named(error: BaseException) -> PostroomError:
    """Return an error of a transport as one of postroom's.

    What the protocol does not name is a proxy's or a driver's defect, which may pass.
    """
    if isinstance(error, PostroomError):
        return error
    made = ServiceUnavailable(f"the transport raised {type(error).__name__}", code=type(error).__name__)
    made.__cause__ = error
    return made


def _unanswered() -> ServiceUnavailable:
    return ServiceUnavailable(f"SQS did not answer within {ANSWER:g} s", code="TimeoutError")


def _without_frames(error: PostroomError) -> PostroomError:
    """Return an error that may be remembered: the frames of its traceback hold the bodies of its batch."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _may_pass(error: PostroomError) -> bool:
    # A TransportError of no kind is one that the transport could not name.
    return isinstance(error, TransportError) and (error.retryable or type(error) is TransportError)


def _closed(name: str) -> ClosedError:
    return ClosedError(f"{name}: the consumer has stopped; the message comes back after its visibility timeout")
