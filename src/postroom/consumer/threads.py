"""Threads for plain ``def`` handlers: few, made when needed, and never in the way of the end of the process."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import msgspec

from postroom.stacks import in_threads


class Outcome(msgspec.Struct, frozen=True):
    """How a call in a thread ended.

    It travels as a value: asyncio's futures refuse a StopIteration, and let a SystemExit out of the event loop.
    """

    result: Any = None
    error: BaseException | None = None

    def unwrap(self) -> Any:
        """Return the result, or raise what the call raised."""
        error = self.error
        if error is None:
            return self.result
        if isinstance(error, StopIteration | StopAsyncIteration):
            # A coroutine must not raise these: iteration machinery would take them for its own.
            text = f"the handler raised {type(error).__name__}"
            raise RuntimeError(text) from error  # noqa: TRY004 - as Python does
        raise error


class _Call:
    """A call on its way into a thread. It is begun or withdrawn, never both."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        # Here, in the task of the message: the thread has no context of its own.
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._decided = False
        self.thread: int | None = None
        """The thread that runs it, once it has begun."""

    def __call__(self) -> Outcome:
        """Run in a thread, unless it was withdrawn."""
        if not self._decide():
            return Outcome(error=asyncio.CancelledError())
        self.thread = threading.get_ident()
        try:
            return Outcome(self._context.run(self._function, *self._arguments))
        except BaseException as error:
            return Outcome(error=error)

    def withdraw(self) -> bool:
        """Make sure that it does not begin. False: it has begun."""
        return self._decide()

    def _decide(self) -> bool:
        with self._lock:
            # Under the lock, since the thread begins and the loop withdraws at the same time.
            first, self._decided = not self._decided, True
        return first


_Work = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class _Daemons(Executor):
    """Runs functions in daemon threads: Python's own executor joins its threads when the process ends."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._made = 0
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_options: Any) -> "Future[Any]":
        """Run a function in a free thread, or in a new one if there may be another."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                text = "the consumer has stopped: it has no threads for handlers now"
                raise RuntimeError(text)
            if self._idle:
                self._idle -= 1  # that thread is spoken for
            elif self._threads < self._limit:
                self._add_thread()
            self._work.put((future, fn, args))
        return future

    def resize(self, limit: int) -> None:
        """Change how many threads there may be. Threads that are too many end after their present call."""
        with self._lock:
            self._limit = limit
            # Work that waits already gets its threads now; `submit` makes one only for new work.
            for _ in range(min(self._work.qsize(), limit - self._threads)):
                self._add_thread()

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - inherited
        """Let threads end when they have nothing to do. None is waited for."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                # One for each thread: each of them takes exactly one, and ends.
                self._work.put(None)

    def _add_thread(self) -> None:
        self._made += 1
        thread = threading.Thread(target=self._run, name=f"{self._name}-{self._made}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the machine gives no more threads: those that there are do the work
            if not self._threads:
                raise
        else:
            self._threads += 1

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            _do(work)
            del work  # an idle thread keeps nothing of a message
            with self._lock:
                if self._threads > self._limit:
                    self._threads -= 1
                    return
                # Otherwise this thread takes work that is queued already. `submit` has not counted
                # on an idle thread for that.
                if self._work.empty():
                    self._idle += 1


class DaemonPool(ThreadPoolExecutor):
    """A default executor of an event loop that keeps no process from ending.

    ``asyncio.to_thread`` and name look-ups use the default executor. One that hangs, in a database or in a name server
    that does not answer, would keep the process for as long as it hangs. asyncio takes only ``ThreadPoolExecutor``.
    """

    def __init__(self) -> None:
        super().__init__()  # which starts no thread before it is asked to
        self._daemons = _Daemons(self._max_workers, "postroom-default")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run a function in a daemon thread."""
        return self._daemons.submit(partial(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - inherited
        """Let threads end when they have nothing to do. None is waited for."""
        self._daemons.shutdown()


def _do(work: _Work) -> None:
    future, function, arguments = work
    # It was cancelled while it waited for a thread: its message is settled, and must not run.
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*arguments)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class Threads:
    """Where plain ``def`` handlers run. Made and used in one event loop.

    A thread cannot be cancelled. So a cancelled call is waited for until its thread returns, because it still uses the
    resources of its message, and how it ended counts. When the time for cancelled handlers is over, ``quiet`` or
    ``give_up`` ends these waits; a thread that hangs then hangs alone.

    Args:
        limit: how many threads there may be.
    """

    def __init__(self, limit: int) -> None:
        self._executor = _Daemons(limit, "postroom-handler")
        self._calls: dict[asyncio.Future[Outcome], _Call] = {}
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def busy(self) -> int:
        """Count the calls that have not returned."""
        return len(self._calls)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Outcome:
        """Run a function in a thread, in a copy of the calling task's context, and return how it ended.

        Raises ``CancelledError`` only when the call had not begun, or when its thread was given up.
        """
        work = _Call(function, arguments)
        call = asyncio.get_running_loop().run_in_executor(self._executor, work)
        self._calls[call] = work
        call.add_done_callback(self._returned)
        task = asyncio.current_task()
        if task is not None:
            in_threads[task] = work
        try:
            return await self._ended(call, work, task)
        finally:
            if task is not None:
                in_threads.pop(task, None)

    async def _ended(self, call: "asyncio.Future[Outcome]", work: _Call, task: "asyncio.Task[Any] | None") -> Outcome:
        """Return how a call ended that a task waits for."""
        cancelled: asyncio.CancelledError | None = None
        while not call.done():
            ends: list[asyncio.Future[Any]] = [call] if cancelled is None else [call, self._given_up]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)  # it does not cancel them with us
            except asyncio.CancelledError as error:
                cancelled = error
                # Not begun: it can be cancelled like any coroutine. Once begun, its end has to be
                # awaited.
                if work.withdraw():
                    call.cancel()
                    raise
            if cancelled is not None and self._given_up.done() and not call.done():
                raise cancelled
        while cancelled is not None and task is not None and task.uncancel():
            continue  # it was not cut off: what it raises is its own
        return call.result()

    async def quiet(self, timeout: float) -> int:
        """Wait for threads to return, at most so long. Then give up, and return how many have not returned.

        Resources are closed after it, and not before: until then a thread may be using them.
        """
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=timeout)
        self.give_up()
        return len(self._calls)

    def give_up(self) -> None:
        """Wait for cancelled calls no more: they end with ``CancelledError``, their threads go on alone."""
        if not self._given_up.done():
            self._given_up.set_result(None)

    def resize(self, limit: int) -> None:
        """Change how many threads there may be."""
        self._executor.resize(limit)

    def close(self) -> None:
        """Let idle threads end, and forget those that hang."""
        self.give_up()
        self._executor.shutdown()
        for call, work in list(self._calls.items()):
            work.withdraw()
            call.cancel()  # or its thread, returning one day, would look for a loop that is gone

    def _returned(self, call: "asyncio.Future[Outcome]") -> None:
        self._calls.pop(call, None)
