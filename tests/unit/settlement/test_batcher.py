"""Entries leave in batches, refused ones are retried a bounded number of times, and each ends once."""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from postroom.errors import (
    AccessDenied,
    ClosedError,
    InvalidReceiptHandle,
    PostroomError,
    QueueNotFound,
    ServiceUnavailable,
    Throttled,
)
from postroom.settlement.batcher import ANSWER, PATIENCE, Batcher, Fate
from postroom.settlement.trouble import Trouble
from postroom.tasks import Tasks
from postroom.transports.protocol import EntryFailure
from support.virtual import in_virtual_time

Answer = Callable[[Sequence[int]], list[EntryFailure]]


class Recorder:
    """Sends to nowhere, answers as told, and writes down what happened."""

    def __init__(self, answer: Answer | None = None, **options: Any) -> None:
        self.sent: list[tuple[float, list[int]]] = []
        self.ended: list[tuple[int, PostroomError | None]] = []
        self.answer = answer
        self.over: set[int] = set()
        self.waiting: set[int] = set()
        self.takes = 0.0
        tasks = Tasks(_fatal)
        self.batcher = Batcher[int](
            "delete",
            self,
            tasks=tasks,
            linger=0.1,
            trouble=Trouble("Deleting", "tried again", tasks=tasks),
            rng=Random(1),
            **options,
        )

    async def send(self, entries: Sequence[int]) -> list[EntryFailure]:
        """Take a batch."""
        self.sent.append((asyncio.get_running_loop().time(), list(entries)))
        if self.takes:
            await asyncio.sleep(self.takes)
        return self.answer(entries) if self.answer else []

    def fate(self, entry: int, now: float) -> Fate:
        """Send what is not over."""
        return Fate.OVER if entry in self.over else Fate.WAIT if entry in self.waiting else Fate.SEND

    def done(self, entries: Sequence[int], error: PostroomError | None) -> None:
        """Take an end."""
        self.ended += [(entry, error) for entry in entries]


def _fatal(error: BaseException) -> None:
    raise error


def _raise(error: Exception) -> list[EntryFailure]:
    raise error


@in_virtual_time
async def test_ten_entries_leave_at_once() -> None:
    """A full batch does not wait."""
    recorder = Recorder()
    for number in range(10):
        recorder.batcher.add(number)
    await recorder.batcher.drain()
    assert recorder.sent == [(0.0, list(range(10)))]


@in_virtual_time
async def test_fewer_leave_after_a_short_wait() -> None:
    """Entries that come within the interval share a call."""
    recorder = Recorder()
    recorder.batcher.add(1)
    await asyncio.sleep(0.05)
    recorder.batcher.add(2)
    await asyncio.sleep(1)
    assert recorder.sent == [(0.1, [1, 2])]


@in_virtual_time
async def test_each_batch_waits_from_its_own_first_entry() -> None:
    """One timer serves many batches: it neither hurries the later ones nor keeps them."""
    recorder = Recorder()
    for number in range(10):
        recorder.batcher.add(number)
    await asyncio.sleep(0.05)
    for number in range(10, 21):
        recorder.batcher.add(number)
    await asyncio.sleep(0.02)
    recorder.batcher.add(21)
    await asyncio.sleep(0.05)
    recorder.batcher.add(22, urgent=True)
    await asyncio.sleep(0.07)
    recorder.batcher.add(23)
    await asyncio.sleep(1)
    recorder.batcher.add(24)
    await asyncio.sleep(1)
    assert [(round(at, 9), entries) for at, entries in recorder.sent] == [
        (0.0, [*range(10)]),
        (0.05, [*range(10, 20)]),
        (0.12, [20, 21, 22]),
        (0.29, [23]),
        (1.29, [24]),
    ]
    assert recorder.batcher.pending == 0


@in_virtual_time
async def test_an_urgent_entry_takes_the_others_along() -> None:
    """What waits leaves with it, in this turn of the loop."""
    recorder = Recorder()
    recorder.batcher.add(1)
    recorder.batcher.add(2, urgent=True)
    await asyncio.sleep(1)
    assert recorder.sent == [(0.0, [1, 2])]


@in_virtual_time
async def test_a_refused_entry_is_sent_again_and_the_others_are_not() -> None:
    """Only what failed goes again, after a pause."""
    answers = [[EntryFailure(1, "InternalError")], []]
    recorder = Recorder(lambda _entries: answers.pop(0))
    for number in range(3):
        recorder.batcher.add(number)
    await recorder.batcher.drain()
    assert [entries for _, entries in recorder.sent] == [[0, 1, 2], [1]]
    assert sorted(entry for entry, error in recorder.ended if error is None) == [0, 1, 2]


@in_virtual_time
async def test_a_sender_fault_ends_at_once() -> None:
    """An entry that will be refused again is not sent again."""
    recorder = Recorder(lambda _entries: [EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True)])
    recorder.batcher.add(1)
    await recorder.batcher.drain()
    assert len(recorder.sent) == 1
    assert [(entry, type(error)) for entry, error in recorder.ended] == [(1, InvalidReceiptHandle)]


@in_virtual_time
async def test_entries_that_are_refused_for_long_are_tried_at_a_bounded_pace() -> None:
    """A minute of refusals of each single entry costs few calls, and then everything ends well."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(
        lambda entries: [EntryFailure(i, "InternalError") for i in range(len(entries))] if loop.time() < 60 else []
    )
    for number in range(1000):
        recorder.batcher.add(number)
    await asyncio.sleep(80)
    assert sorted(entry for entry, error in recorder.ended if error is None) == list(range(1000))
    assert len([time for time, _ in recorder.sent if 0 < time < 60]) < 40


@in_virtual_time
async def test_one_bad_entry_does_not_slow_the_others_down() -> None:
    """It is refused again and again; what comes meanwhile leaves as ever."""
    recorder = Recorder(lambda entries: [EntryFailure(i, "InternalError") for i, e in enumerate(entries) if e == 0])
    for number in range(200):
        recorder.batcher.add(number)
        await asyncio.sleep(0.05)
    recorder.over.add(0)
    await recorder.batcher.drain()
    assert sorted(entry for entry, _ in recorder.ended) == list(range(1, 200))
    assert len([entries for _, entries in recorder.sent if 0 in entries]) < 15


@in_virtual_time
async def test_a_denied_call_is_tried_slowly_and_for_minutes() -> None:
    """Credentials that are renewed after a minute save everything, at a call every half minute at the slowest."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(lambda _entries: _raise(AccessDenied("expired")) if loop.time() < 60 else [])
    for number in range(40):
        recorder.batcher.add(number)
    await asyncio.sleep(120)
    assert [error for _, error in recorder.ended] == [None] * 40
    assert len([time for time, _ in recorder.sent if 0 < time < 60]) < 8


@in_virtual_time
async def test_a_call_that_stays_denied_ends_every_entry_after_minutes() -> None:
    """The calls are few, and so is the time."""
    recorder = Recorder(lambda _entries: _raise(AccessDenied("no")))
    for number in range(25):
        recorder.batcher.add(number)
    await asyncio.sleep(PATIENCE + 60)
    assert [type(error) for _, error in recorder.ended] == [AccessDenied] * 25
    assert len(recorder.sent) < 25


@pytest.mark.parametrize("before", [0.0, 0.5, 2.0, 30.0])
@in_virtual_time
async def test_a_call_that_stays_denied_does_not_hold_a_stop_up(before: float) -> None:
    """At most five calls, at most 2.5 s, however long it was denied before."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(lambda _entries: _raise(AccessDenied("no")))
    for number in range(25):
        recorder.batcher.add(number)
    await asyncio.sleep(before)
    started, calls = loop.time(), len(recorder.sent)
    await recorder.batcher.drain()
    took = loop.time() - started
    assert len(recorder.ended) == 25
    assert took <= 2.5
    assert len(recorder.sent) - calls <= 5


@in_virtual_time
async def test_a_permanent_error_of_the_call_ends_every_entry() -> None:
    """A queue that does not exist is not asked again."""
    recorder = Recorder(lambda _entries: _raise(QueueNotFound("no")))
    for number in range(4):
        recorder.batcher.add(number)
    await recorder.batcher.drain()
    assert len(recorder.sent) == 1
    assert [type(error) for _, error in recorder.ended] == [QueueNotFound] * 4


@in_virtual_time
async def test_a_passing_error_of_the_call_is_tried_again() -> None:
    """ServiceUnavailable is retried with growing pauses; the entries end well."""
    failures = [ServiceUnavailable("later"), ServiceUnavailable("later")]

    def fail_twice(_entries: Sequence[int]) -> list[EntryFailure]:
        if failures:
            raise failures.pop()
        return []

    recorder = Recorder(fail_twice)
    recorder.batcher.add(1)
    await recorder.batcher.drain()
    times = [time for time, _ in recorder.sent]
    assert len(times) == 3
    assert times[2] - times[1] > times[1] - times[0]
    assert recorder.ended == [(1, None)]


@in_virtual_time
async def test_what_gathered_in_an_outage_does_not_go_out_all_at_once() -> None:
    """One call at a time while it lasts, then two more for each that goes well."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(lambda _entries: _raise(Throttled("slow down")) if loop.time() < 20 else [])
    recorder.takes = 0.05
    for number in range(2000):
        recorder.batcher.add(number)
        await asyncio.sleep(0.005)
    await asyncio.sleep(30)
    assert len([entry for entry, error in recorder.ended if error is None]) == 2000
    assert len([time for time, _ in recorder.sent if 1 < time < 20]) < 15
    first = min(time for time, _ in recorder.sent if time >= 20)
    assert len([time for time, _ in recorder.sent if first <= time < first + 0.05]) <= 2


@in_virtual_time
async def test_a_call_that_hangs_does_not_keep_others_from_leaving() -> None:
    """Also while calls fail: after each pause one goes in any case."""
    recorder = Recorder()
    answers = iter(["down", "hang"])

    async def send(entries: Sequence[int]) -> list[EntryFailure]:
        match next(answers, "well"):
            case "down":
                raise Throttled("slow down")
            case "hang":
                await asyncio.Event().wait()
        return []

    recorder.send = send  # type: ignore[method-assign]
    for number in range(30):
        recorder.batcher.add(number)
    await asyncio.sleep(5)
    early = len(recorder.ended)
    assert early == 20
    await asyncio.sleep(120)
    assert len(recorder.ended) == 30


@pytest.mark.parametrize("obeys", [True, False])
@in_virtual_time
async def test_a_call_is_given_up_a_minute_after_it_left(obeys: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Each by its own time. Its entries are sent again; one that does not let itself be cancelled is cancelled once."""
    recorder = Recorder()
    started: list[float] = []
    cancelled: list[float] = []
    time = asyncio.get_running_loop().time

    async def send(entries: Sequence[int]) -> list[EntryFailure]:
        started.append(time())
        hangs = len(started) <= 2
        while hangs and time() < 300:
            try:
                await asyncio.sleep(300)
            except asyncio.CancelledError:
                cancelled.append(time())
                if obeys:
                    raise
        return []

    recorder.send = send  # type: ignore[method-assign]
    recorder.batcher.add(1, urgent=True)
    await asyncio.sleep(10)
    recorder.batcher.add(2, urgent=True)
    await asyncio.sleep(190)
    assert cancelled == [ANSWER, 10 + ANSWER]
    assert not obeys or "ServiceUnavailable: SQS did not answer within 60 s;" in caplog.text
    await recorder.batcher.cancel()
    await asyncio.sleep(400)
    assert [entry for entry, error in recorder.ended if error is None] == ([1, 2] if obeys else [])
    assert [round(at) for at in started] == ([0, 10, 60, 70] if obeys else [0, 10])


@in_virtual_time
async def test_an_entry_that_has_to_wait_leaves_when_it_is_told_to() -> None:
    """The others of its batch do not wait for it."""
    recorder = Recorder()
    recorder.waiting.add(1)
    recorder.batcher.add(1)
    recorder.batcher.add(2, urgent=True)
    await asyncio.sleep(1)
    recorder.waiting.clear()
    recorder.batcher.resume(1)
    await recorder.batcher.drain()
    assert recorder.sent == [(0.0, [2]), (1.0, [1])]


@in_virtual_time
async def test_a_batch_is_bounded_in_bytes_where_that_matters() -> None:
    """Four entries of 400 kB take two calls."""
    recorder = Recorder(size=lambda _entry: 400_000)
    for number in range(4):
        recorder.batcher.add(number)
    await recorder.batcher.drain()
    assert [entries for _, entries in recorder.sent] == [[0, 1], [2, 3]]


@in_virtual_time
async def test_memory_is_bounded_while_calls_fail() -> None:
    """Past a number of waiting entries further ones are given up with the error that the calls end with."""
    recorder = Recorder(lambda _entries: _raise(Throttled("slow down")), most=50)
    for number in range(10):
        recorder.batcher.add(number)
    await asyncio.sleep(0.01)
    for number in range(10, 100):
        recorder.batcher.add(number)
    assert [entry for entry, _ in recorder.ended] == list(range(50, 100))
    assert {type(error) for _, error in recorder.ended} == {Throttled}


class _Body:
    """An entry that can be watched."""


@in_virtual_time
async def test_what_was_forgotten_is_not_kept_until_calls_work_again() -> None:
    """Each entry holds the body of its message: messages that are lost in an outage would fill the memory."""
    recorder = Recorder(lambda _entries: _raise(ServiceUnavailable("away")))
    entries: list[Any] = [_Body() for _ in range(100)]
    alive = [weakref.ref(entry) for entry in entries]
    for entry in entries:
        recorder.batcher.add(entry)
    await asyncio.sleep(20)  # what was on its way has failed, and waits with the rest
    recorder.sent.clear()
    while len(entries) > 8:
        recorder.batcher.forget(entries.pop())
    assert sum(each() is not None for each in alive) <= 10


@in_virtual_time
async def test_what_a_failed_call_carried_is_not_kept_by_its_error() -> None:
    """The frames of a traceback hold the batch, and with it the bodies: the last error is remembered without them."""
    recorder = Recorder(lambda _entries: _raise(ValueError("a bug")))
    recorder.batcher.add(1)
    await asyncio.sleep(0.2)
    error = recorder.batcher.last_error
    recorder.batcher.close()
    cause = None if error is None else error.__cause__
    assert error is not None
    assert cause is not None
    assert error.__traceback__ is cause.__traceback__ is None


@in_virtual_time
async def test_a_drain_without_entries_takes_no_time() -> None:
    """Nor does one with entries that wait for company."""
    recorder = Recorder()
    await recorder.batcher.drain()
    recorder.batcher.add(1)
    await recorder.batcher.drain()
    assert recorder.ended == [(1, None)]
    assert asyncio.get_running_loop().time() == 0.0


@pytest.mark.parametrize("obeys", [True, False])
@in_virtual_time
async def test_cancel_gives_up_what_is_on_its_way(obeys: bool) -> None:
    """A call that never answers does not hold a stop up, even if it does not let itself be cancelled."""
    recorder = Recorder()

    async def hang(entries: Sequence[int]) -> list[EntryFailure]:
        until = asyncio.get_running_loop().time() + 30
        while (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                if obeys:
                    raise
        return []

    recorder.send = hang  # type: ignore[method-assign]
    recorder.batcher.add(1, urgent=True)
    await asyncio.sleep(0.01)
    recorder.batcher.add(2)
    left = await recorder.batcher.cancel()
    took = asyncio.get_running_loop().time()
    await asyncio.sleep(60)
    assert left == [1, 2]
    assert took < 1.1
    assert recorder.ended == []


@in_virtual_time
async def test_a_closed_batcher_takes_nothing_in() -> None:
    """What comes too late is told so at once."""
    recorder = Recorder()
    await recorder.batcher.cancel()
    recorder.batcher.add(1)
    assert [type(error) for _, error in recorder.ended] == [ClosedError]
