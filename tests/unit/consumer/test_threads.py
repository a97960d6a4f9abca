"""Plain ``def`` handlers run in threads that cannot be cancelled: what becomes of them, and of the process."""

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from postroom.consumer.threads import DaemonPool, Threads
from support.virtual import in_virtual_time

LONG = 20.0
"""Seconds after which a test that should not wait has failed."""


class Work:
    """A call that shows its begin, and ends when the test says so."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()
        self.thread = ""

    def __call__(self, result: object = "done") -> object:
        """Return the result, or raise it, when it is released."""
        self.thread = threading.current_thread().name
        self.begun.set()
        assert self.release.wait(LONG)
        if isinstance(result, BaseException):
            raise result
        return result

    async def has_begun(self) -> None:
        """Wait for its thread."""
        assert await asyncio.to_thread(self.begun.wait, LONG)


@contextlib.asynccontextmanager
async def threads(limit: int = 4) -> AsyncIterator[Threads]:
    """Make threads, and leave none behind."""
    made = Threads(limit)
    try:
        yield made
    finally:
        made.close()


async def turns(number: int = 5) -> None:
    """Let everything that can run do so."""
    for _ in range(number):
        await asyncio.sleep(0)


def fail(error: BaseException) -> None:
    """Raise it."""
    raise error


@pytest.mark.parametrize(
    ("raised", "seen", "text"),
    [
        (ValueError("broken"), ValueError, "broken"),
        (StopIteration(), RuntimeError, "StopIteration"),
        (StopAsyncIteration(), RuntimeError, "StopAsyncIteration"),
        (TimeoutError("a query"), TimeoutError, "a query"),
        (SystemExit(3), SystemExit, "3"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (GeneratorExit(), GeneratorExit, "^$"),
        (asyncio.CancelledError("of its own"), asyncio.CancelledError, "of its own"),
    ],
)
async def test_whatever_a_call_raises_is_its_outcome(
    raised: BaseException, seen: type[BaseException], text: str
) -> None:
    """No error is lost in the future between thread and loop, or tears the loop down."""
    async with threads() as pool:
        outcome = await pool.run(fail, raised)
        assert pool.busy() == 0
        with pytest.raises(seen, match=text) as caught:
            outcome.unwrap()
    assert caught.value is raised or caught.value.__cause__ is raised


async def test_a_call_runs_in_a_copy_of_the_callers_context() -> None:
    """It sees the caller's variables and leaves none behind."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nothing")

    def change() -> str:
        before = name.get()
        name.set("the thread's")
        return before

    async with threads(limit=1) as pool:
        name.set("the caller's")
        assert (await pool.run(change)).unwrap() == "the caller's"
        assert name.get() == "the caller's"
        name.set("another's")
        assert (await pool.run(change)).unwrap() == "another's"


async def test_threads_are_made_when_they_are_needed_and_no_more_than_allowed() -> None:
    """Calls beyond the limit wait; a free thread is used again."""
    async with threads(limit=2) as pool:
        work = [Work() for _ in range(3)]
        calls = [asyncio.create_task(pool.run(each), name="call") for each in work]
        await work[0].has_begun()
        await work[1].has_begun()
        await turns()
        assert not work[2].begun.is_set()
        assert pool.busy() == 3
        work[0].release.set()
        await calls[0]
        await work[2].has_begun()
        assert work[2].thread == work[0].thread
        for each in work:
            each.release.set()
        await asyncio.gather(*calls)


async def test_more_threads_are_made_for_what_waits_when_there_may_be_more() -> None:
    """A change takes effect at once; fewer are allowed when calls have ended."""
    async with threads(limit=1) as pool:
        work = [Work() for _ in range(3)]
        calls = [asyncio.create_task(pool.run(each), name="call") for each in work]
        await work[0].has_begun()
        pool.resize(3)
        await work[1].has_begun()
        await work[2].has_begun()
        pool.resize(1)
        for each in work:
            each.release.set()
        await asyncio.gather(*calls)
        after = [Work() for _ in range(2)]
        calls = [asyncio.create_task(pool.run(each), name="call") for each in after]
        await after[0].has_begun()
        await turns()
        assert not after[1].begun.is_set()
        for each in after:
            each.release.set()
        await asyncio.gather(*calls)


@pytest.mark.parametrize("cancellations", [1, 2, 5])
@pytest.mark.parametrize("result", ["done", ValueError("broken")])
async def test_a_cancelled_call_counts_with_its_real_outcome(cancellations: int, result: object) -> None:
    """Its thread is waited for, however often it is cancelled: it still uses its resources."""
    async with threads() as pool:
        work = Work()
        call = asyncio.create_task(pool.run(work, result), name="call")
        await work.has_begun()
        for _ in range(cancellations):
            call.cancel()
            await turns()
        assert not call.done()
        assert pool.busy() == 1
        work.release.set()
        outcome = await call
        assert outcome.result == "done" or outcome.error is result
        assert pool.busy() == 0


async def test_a_call_that_is_cancelled_before_it_began_never_begins() -> None:
    """It is not waited for, and its handler is not called behind the back of its message."""
    async with threads(limit=1) as pool:
        first, second = Work(), Work()
        running = asyncio.create_task(pool.run(first), name="first")
        await first.has_begun()
        waiting = asyncio.create_task(pool.run(second), name="second")
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        first.release.set()
        await running
        assert (await pool.run(lambda: "free")).unwrap() == "free"
        assert not second.begun.is_set()


async def test_quiet_returns_as_soon_as_all_threads_have() -> None:
    """What is waited for is the last thread, not the time."""
    async with threads() as pool:
        work = Work()
        call = asyncio.create_task(pool.run(work), name="call")
        await work.has_begun()
        quiet = asyncio.create_task(pool.quiet(timeout=1000), name="quiet")
        await turns()
        assert not quiet.done()
        work.release.set()
        assert await quiet == 0
        assert (await call).unwrap() == "done"


@pytest.mark.parametrize("cancelled_before", [True, False])
async def test_threads_that_do_not_return_in_time_are_given_up(cancelled_before: bool) -> None:
    """Their calls end with a cancellation; how many there are is told."""
    async with threads() as pool:
        work = Work()
        call = asyncio.create_task(pool.run(work), name="call")
        await work.has_begun()
        if cancelled_before:
            call.cancel("the consumer stops")
            await turns()
        assert await pool.quiet(timeout=0.01) == 1
        if not cancelled_before:
            call.cancel("the consumer stops")
        with pytest.raises(asyncio.CancelledError, match="the consumer stops"):
            await call
        assert pool.busy() == 1
        work.release.set()


async def test_without_calls_there_is_nothing_to_wait_for() -> None:
    """An idle pool of threads is quiet, and closing twice is closing once."""
    async with threads() as pool:
        assert (await pool.run(lambda: 1)).unwrap() == 1
        assert await pool.quiet(timeout=1000) == 0
        pool.close()
    with pytest.raises(RuntimeError, match="stopped"):
        await pool.run(lambda: 1)


@in_virtual_time
async def test_in_virtual_time_a_call_runs_inline() -> None:
    """Threads have no place in a reproducible schedule."""
    async with threads() as pool:
        name = (await pool.run(lambda: threading.current_thread().name)).unwrap()
        error = (await pool.run(fail, StopIteration())).error
    assert name == threading.current_thread().name
    assert isinstance(error, StopIteration)


HANGS = """
import asyncio, threading
from postroom.consumer.threads import Threads

async def main():
    pool = Threads(2)
    begun = threading.Event()
    hang = lambda: begun.set() or threading.Event().wait()
    call = asyncio.create_task(pool.run(hang))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    {end}

asyncio.run(main())
print("ended")
"""


@pytest.mark.parametrize("end", ["await pool.quiet(0.05); pool.close()", "pool.close()"])
def test_a_thread_that_hangs_does_not_keep_the_process(end: str) -> None:
    """Python's own executor joins its threads at exit; these are not waited for."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", HANGS.format(end=end)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)


RETURNS_LATE = """
import asyncio, threading, time
from postroom.consumer.threads import Threads

release, returned = threading.Event(), threading.Event()

async def main():
    pool = Threads(1)
    begun = threading.Event()
    def work():
        begun.set()
        release.wait()
        returned.set()
    call = asyncio.create_task(pool.run(work))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    await pool.quiet(0.01)
    pool.close()

asyncio.run(main())
thread = next(each for each in threading.enumerate() if each.name.startswith("postroom-handler"))
release.set()
thread.join(5)
print(returned.is_set(), thread.is_alive())
"""


def test_a_thread_that_returns_after_the_loop_was_closed_says_nothing() -> None:
    """Its future is forgotten: no traceback of a callback in a loop that is gone, and its thread ends."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", RETURNS_LATE], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_what_a_thread_ran_is_not_kept_by_it() -> None:
    """An idle thread holds neither payload nor resources of the message that it ran."""
    import gc
    import weakref

    class Payload:
        pass

    async def main() -> bool:
        async with threads(limit=1) as pool:
            payload = Payload()
            kept = weakref.ref(payload)
            function: Callable[[Any], None] = lambda _payload: None  # noqa: E731
            await pool.run(function, payload)
            del payload
            await pool.run(lambda: None)
            gc.collect()
            return kept() is not None

    assert asyncio.run(main()) is False


async def test_the_default_executor_of_a_worker_does_what_any_does() -> None:
    """Results, errors and keyword arguments come through; nothing is taken after its end."""
    pool = DaemonPool()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(pool)
    assert await asyncio.to_thread(dict, a=1) == {"a": 1}
    with pytest.raises(ValueError, match="broken"):
        await asyncio.to_thread(fail, ValueError("broken"))
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
    await loop.shutdown_default_executor()
    with pytest.raises(RuntimeError):
        pool.submit(abs, -1)
