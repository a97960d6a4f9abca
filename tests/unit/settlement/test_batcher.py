"""Entries leave in batches, refused ones are retried a bounded number of times, and each ends once."""

import asyncio
from collections.abc import Callable, Sequence

from postroom.errors import AccessDenied, InvalidReceiptHandle, ServiceUnavailable, TransportError
from postroom.settlement.batcher import ATTEMPTS, Batcher
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure

Answer = Callable[[Sequence[int]], list[EntryFailure]]


class Recorder:
    """Sends to nowhere, answers as told, and writes down what happened."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.sent: list[tuple[float, list[int]]] = []
        self.ended: list[tuple[int, TransportError | None]] = []
        self.answer = answer
        self.batcher = Batcher[int]("delete", send=self.send, done=self.done, linger=0.1)

    async def send(self, entries: Sequence[int]) -> list[EntryFailure]:
        """Take a batch."""
        self.sent.append((asyncio.get_running_loop().time(), list(entries)))
        return self.answer(entries) if self.answer else []

    def done(self, entry: int, error: TransportError | None) -> None:
        """Take an end."""
        self.ended.append((entry, error))


def test_ten_entries_leave_at_once() -> None:
    """A full batch does not wait."""

    async def main() -> Recorder:
        recorder = Recorder()
        for number in range(10):
            recorder.batcher.add(number)
        await recorder.batcher.drain()
        return recorder

    assert run_virtual(main()).sent == [(0.0, list(range(10)))]


def test_fewer_leave_after_a_short_wait() -> None:
    """Entries that come within the interval share a call."""

    async def main() -> Recorder:
        recorder = Recorder()
        recorder.batcher.add(1)
        await asyncio.sleep(0.05)
        recorder.batcher.add(2)
        await asyncio.sleep(1)
        return recorder

    assert run_virtual(main()).sent == [(0.1, [1, 2])]


def test_an_urgent_entry_takes_the_others_along() -> None:
    """What waits leaves with it, in this turn of the loop."""

    async def main() -> Recorder:
        recorder = Recorder()
        recorder.batcher.add(1)
        recorder.batcher.add(2, urgent=True)
        await asyncio.sleep(1)
        return recorder

    assert run_virtual(main()).sent == [(0.0, [1, 2])]


def test_a_refused_entry_is_sent_again_and_the_others_are_not() -> None:
    """Only what failed goes again, after a pause."""
    answers = [[EntryFailure(1, "InternalError")], []]

    async def main() -> Recorder:
        recorder = Recorder(lambda _entries: answers.pop(0))
        for number in range(3):
            recorder.batcher.add(number)
        await recorder.batcher.drain()
        return recorder

    recorder = run_virtual(main())
    assert [entries for _, entries in recorder.sent] == [[0, 1, 2], [1]]
    assert sorted(entry for entry, error in recorder.ended if error is None) == [0, 1, 2]


def test_a_sender_fault_ends_at_once() -> None:
    """An entry that will be refused again is not sent again."""

    async def main() -> Recorder:
        recorder = Recorder(lambda _entries: [EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True)])
        recorder.batcher.add(1)
        await recorder.batcher.drain()
        return recorder

    recorder = run_virtual(main())
    assert len(recorder.sent) == 1
    assert [(entry, type(error)) for entry, error in recorder.ended] == [(1, InvalidReceiptHandle)]


def test_calls_are_bounded_whatever_is_answered() -> None:
    """A failure that never ends costs a fixed number of calls, and drain returns."""

    async def main() -> Recorder:
        recorder = Recorder(lambda entries: [EntryFailure(i, "InternalError") for i in range(len(entries))])
        for number in range(25):
            recorder.batcher.add(number)
        await recorder.batcher.drain()
        return recorder

    recorder = run_virtual(main())
    assert len(recorder.sent) == 3 * ATTEMPTS
    assert sorted(entry for entry, _ in recorder.ended) == list(range(25))


def test_a_permanent_error_of_the_call_ends_every_entry() -> None:
    """AccessDenied is not tried again."""

    def deny(_entries: Sequence[int]) -> list[EntryFailure]:
        raise AccessDenied("no")

    async def main() -> Recorder:
        recorder = Recorder(deny)
        for number in range(4):
            recorder.batcher.add(number)
        await recorder.batcher.drain()
        return recorder

    recorder = run_virtual(main())
    assert len(recorder.sent) == 1
    assert [type(error) for _, error in recorder.ended] == [AccessDenied] * 4


def test_a_passing_error_of_the_call_is_tried_again() -> None:
    """ServiceUnavailable is retried with growing pauses; the entries end well."""
    failures = [ServiceUnavailable("later"), ServiceUnavailable("later")]

    def fail_twice(_entries: Sequence[int]) -> list[EntryFailure]:
        if failures:
            raise failures.pop()
        return []

    async def main() -> Recorder:
        recorder = Recorder(fail_twice)
        recorder.batcher.add(1)
        await recorder.batcher.drain()
        return recorder

    recorder = run_virtual(main())
    times = [time for time, _ in recorder.sent]
    assert len(times) == 3
    assert times[2] - times[1] > times[1] - times[0]
    assert recorder.ended == [(1, None)]


def test_equal_entries_are_kept_apart() -> None:
    """The same value twice in one batch is two entries: places count, not names."""

    async def main() -> Recorder:
        recorder = Recorder(lambda _entries: [EntryFailure(1, "Gone", sender_fault=True)])
        recorder.batcher.add(7)
        recorder.batcher.add(7)
        await recorder.batcher.drain()
        return recorder

    assert [error is None for _, error in run_virtual(main()).ended] == [True, False]


def test_cancel_gives_up_what_is_on_its_way() -> None:
    """A call that never answers does not hold a stop up, and its entries are not reported as ended."""

    async def main() -> tuple[int, Recorder]:
        recorder = Recorder()
        never = asyncio.Event()

        async def hang(_entries: Sequence[int]) -> list[EntryFailure]:
            await never.wait()
            return []

        batcher = Batcher[int]("delete", send=hang, done=recorder.done, linger=0.1)
        batcher.add(1, urgent=True)
        await asyncio.sleep(0.01)
        batcher.add(2)
        return await batcher.cancel(), recorder

    given_up, recorder = run_virtual(main())
    assert given_up == 1
    assert recorder.ended == []
