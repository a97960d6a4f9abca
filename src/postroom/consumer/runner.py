"""Run consumers as the main job of a process: signals, a start that waits for SQS, and exit codes."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from random import Random
from types import FrameType
from typing import Any, Final

from postroom.checking import check_kind
from postroom.consumer.consumer import Consumer, captured
from postroom.consumer.threads import DaemonPool
from postroom.display import queue_name
from postroom.errors import AccessDenied, ConfigurationError, NotOpenError, QueueNotFound, TransportError
from postroom.log_fields import Log, Step, about
from postroom.redaction import log_error
from postroom.stacks import frames_in, place_in
from postroom.tasks import told_once
from postroom.types import ExitCode, StopReason

_log = Log("postroom.consumer", Step.STOP)

_NOT_AS_CONFIGURED = (ConfigurationError, NotOpenError, QueueNotFound, AccessDenied)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED: Final = 130
"""The exit code of what Ctrl-C ended, by the convention of shells: 128 and the signal's number."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0
_BEING_MADE: Final = 10.0
"""Seconds for which a queue may be missing once SQS answers a start that had to wait for it: a local one has just come
up, and is still given its queues."""
_GIVE_UP: Final = 4.0
"""Seconds in which a start that was given up has to close what it opened, and what still runs at the end has to end."""
_MOMENT: Final = 0.1
"""Seconds in which a thread ends that is about to."""
_LEAVE: Final = 5.0
"""Seconds that threads which hang have after the main thread has ended, with what it still had to do."""


def run(
    *consumers: Consumer[Any, Any],
    wait: float | None = None,
    beside: AbstractAsyncContextManager[object] | None = None,
) -> None:
    """Run consumers until SIGINT or SIGTERM, then stop them in order. The last line of a worker's main module.

    The first signal drains and says what it waits for; the second cancels handlers at once. A signal during the start
    ends the start. When one consumer stops, for whatever reason, all do. What is loaded when they run is frozen
    (``gc.freeze``), see ``serve``.

    Args:
        consumers: what to run.
        wait: how many seconds a start waits for a queue that cannot be reached yet, see ``serve``.
        beside: what is entered before the consumers start and left after they stopped, such as a ``HealthServer``.

    Raises:
        ConfigurationError: it is called in an event loop that runs.
        SystemExit: with 1 when a consumer died, 2 when it could not be started as configured, 3 when handlers had to
            be cancelled, and with its own code when a handler called ``sys.exit``. A clean stop returns.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        text = "run() starts an event loop of its own, and one runs here already: write `async with consumer:`"
        raise ConfigurationError(f"{text}, or `await serve(consumer)` where it should listen to signals")
    if not logging.getLogger().handlers:
        # Only where the application has configured nothing: a worker that says nothing cannot be
        # operated.
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = run_to_exit(consumers, wait=wait, beside=beside)
    if code is not ExitCode.CLEAN:
        sys.exit(int(code))


def run_to_exit(
    consumers: Sequence[Consumer[Any, Any]],
    *,
    wait: float | None,
    beside: AbstractAsyncContextManager[object] | None = None,
) -> ExitCode:
    """Run consumers in an event loop of their own, as the only job of the process, and return the exit code.

    Threads of ``asyncio.to_thread`` that hang are not waited for at the end, nor are tasks that ignore their
    cancellation for seconds. Other threads that hang after a stop that had to cancel handlers are waited for until five
    seconds after the end of the main thread.
    """

    async def main() -> ExitCode:
        # Threads of the standard executor are joined at exit: one that hangs would keep the process
        # alive until SIGKILL.
        asyncio.get_running_loop().set_default_executor(DaemonPool())
        try:
            async with AsyncExitStack() as stack:
                try:
                    if beside is not None and not await _has_opened(stack.enter_async_context(beside)):
                        return ExitCode.CLEAN
                except ConfigurationError as error:
                    _log.critical("Cannot start: %s", error, extra=about(step=Step.START))
                    return ExitCode.CONFIGURATION
                return await serve(*consumers, freeze=True, wait=wait)
        finally:
            await _end_tasks()

    code = asyncio.run(main())
    if code is ExitCode.CANCELLED_WORK and (hung := _hung_threads()):
        _leave_behind(hung, code)
    return code


def _hung_threads() -> list[threading.Thread]:
    """Name the threads that Python would wait for at the end of a process: those of anyio, and of the application."""
    hung: list[threading.Thread] = []
    for thread in threading.enumerate():
        if thread.daemon or thread is threading.main_thread():
            continue
        thread.join(_MOMENT)
        frames = frames_in(thread.ident) if thread.is_alive() else []
        if frames and not _waits_for_work(thread, frames[0]):
            text = "Thread %s hangs at %s; the process ends without it: give what hangs there a time limit of its own"
            _log.error(text, thread.name, place_in(frames), extra=about(step=Step.STOP))
            hung.append(thread)
    return hung


def _leave_behind(hung: Sequence[threading.Thread], code: ExitCode) -> None:
    """End the process some seconds after its main thread, if threads still hang then: Python would wait forever."""
    ending = threading.Event()

    def end() -> None:
        ending.wait()
        deadline = time.monotonic() + _LEAVE
        for thread in hung:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in hung):
            with suppress(AttributeError, OSError, ValueError):  # there may be none, or it is closed
                sys.stdout.flush()
            os._exit(int(code))

    threading.Thread(target=end, name="postroom-end", daemon=True).start()
    # As concurrent.futures does, which joins its threads there: after it there is no other place before they are waited
    # for.
    with suppress(AttributeError, RuntimeError):
        threading._register_atexit(ending.set)  # type: ignore[attr-defined]  # noqa: SLF001


def _waits_for_work(thread: threading.Thread, frame: FrameType) -> bool:
    """Return whether it is a thread of an executor that has no work: Python ends it."""
    of_threads = frame.f_code.co_name == "_worker" and frame.f_globals.get("__name__") == "concurrent.futures.thread"
    return of_threads or not getattr(thread, "pending_work_items", True)  # which the thread of a process pool has


async def _has_opened(work: Awaitable[object]) -> bool:
    """Open what is beside the consumers. Returns False where a signal came first, which PID 1 would not hear else.

    A second signal ends the process at once, also where what is opened blocks the loop.
    """
    loop, task, gave_up = asyncio.get_running_loop(), asyncio.current_task(), False

    def give_up(name: str) -> None:
        _log.info("%s: the start is given up (what runs beside the consumers is opened)", name)
        if task is not None:
            task.cancel()

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal gave_up
        if gave_up:
            sys.exit(128 + number)
        gave_up = True
        loop.call_soon_threadsafe(give_up, signal.Signals(number).name)

    with _listening(hear):
        try:
            await work
            if gave_up:
                await asyncio.sleep(0)  # what opened in that very moment was not cancelled yet
        except asyncio.CancelledError:
            if not gave_up or task is None or task.cancelling() > 1:
                raise
    if gave_up and task is not None:
        task.uncancel()
    return not gave_up


@contextmanager
def _listening(hear: Callable[[int, FrameType | None], object]) -> Generator[None]:
    """Listen to signals in the midst of any code, in the main thread."""
    before: dict[signal.Signals, Any] = {}
    try:
        for number in _SIGNALS if threading.current_thread() is threading.main_thread() else ():
            before[number] = signal.signal(number, hear)
            _heard.add(number)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            _heard.discard(number)


async def _end_tasks() -> None:
    """Cancel what still runs in the loop, and forget what ignores that: ``asyncio.run`` would wait for it forever."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_GIVE_UP)
    for task in tasks:
        if not task.done():
            _log.error("Task %s ignores its cancellation; the process ends without it", task.get_name())
            # A part of the documented interface for other implementations of tasks.
            asyncio._unregister_task(task)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
            setattr(task, "_log_destroy_pending", False)  # noqa: B010 - it was said


async def serve(*consumers: Consumer[Any, Any], freeze: bool = False, wait: float | None = None) -> ExitCode:
    """Do what ``run`` does inside a running event loop, and return the exit code.

    Signal handlers are installed in the main thread only, and removed at the end. If the caller is cancelled, the
    consumers drain; cancelled once more, their handlers are cancelled; then the cancellation goes on.

    Args:
        consumers: what to run.
        freeze: whether the garbage collector leaves alone, until the end, what is loaded when all consumers run. It
            would look through the whole AWS client every 20,000 messages or so, which stops the loop for a tenth of
            a second. For processes with no other job: cycles that exist at that moment stay until the end.
        wait: how many seconds a start waits for a queue that cannot be reached yet: a connection that is refused, a
            name that is not known, a server error. None waits until it answers, 0 not at all. Refusals are not waited
            for: missing permissions, a queue that does not exist. Where SQS itself had to be waited for, the queue has
            10 s more: a local SQS that has just come up is still given its queues.

    Raises:
        SystemExit: a handler called ``sys.exit``, or raised ``KeyboardInterrupt``; everything was stopped in order.
        ConfigurationError: ``wait`` is not a number of seconds.
    """
    if wait is not None and (isinstance(wait, bool) or not wait >= 0):
        text = f"serve(wait=...) takes seconds, at least 0, or None; got {wait!r}"
        raise ConfigurationError(text)
    for each in consumers:
        check_kind("run(consumers)", each, Consumer, "run(orders), where orders = Consumer(...)")
    if not consumers:
        _log.critical("Nothing to run: pass at least one consumer", extra=about(step=Step.START))
        return ExitCode.CONFIGURATION
    process = _Process(consumers, freeze=freeze, wait=wait)
    with _signals(process):
        await process.live()
    return _verdict(process.started, process.problems)


class _Process:
    """Consumers that live and end together."""

    def __init__(self, consumers: Sequence[Consumer[Any, Any]], *, freeze: bool, wait: float | None) -> None:
        self._consumers = consumers
        self._freeze = freeze
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._starts: set[asyncio.Task[BaseException | None]] = set()
        self._stopping = asyncio.Event()
        self._reason = StopReason.REQUESTED
        self._signalled = False
        self.started: list[Consumer[Any, Any]] = []
        """Those that ran."""
        self.problems: list[BaseException] = []
        """What ended consumers, or kept them from starting."""

    async def live(self) -> None:
        """Start all, wait until one is asked to stop, and stop all. They start and drain at the same time."""
        lives = [asyncio.create_task(self._life(each), name=f"postroom-run-{each.queue}") for each in self._consumers]
        cancelled: asyncio.CancelledError | None = None
        try:
            while not all(life.done() for life in lives):
                try:
                    with told_once():
                        await asyncio.wait(lives)  # unlike an await, it does not cancel them with us
                except asyncio.CancelledError as error:
                    self.stop(now=cancelled is not None)
                    cancelled = error
        finally:
            if self._freeze:
                gc.unfreeze()
        if cancelled is not None:
            raise cancelled

    def stop(self, *, now: bool = False, reason: StopReason = StopReason.REQUESTED) -> None:
        """Stop what runs, and give up what starts."""
        if not self._stopping.is_set():
            self._reason = reason
            self._stopping.set()
        for consumer in self._consumers:
            if consumer.running:
                consumer.stop(now=now, reason=self._reason)
        for start in self._starts:
            start.cancel()

    def on_signal(self, number: signal.Signals) -> None:
        """Stop; cancel what runs when it is not the first signal."""
        again, self._signalled = self._signalled, True
        if again:
            _log.warning("%s again: cancelling what runs (%s)", number.name, self._what_runs())
        elif self._starts:
            _log.info("%s: the start is given up (%s)", number.name, self._what_runs())
        else:
            _log.info("%s: draining (%s); send it again to cancel running handlers", number.name, self._what_runs())
        self.stop(now=again, reason=StopReason.SIGNAL)

    async def _life(self, consumer: Consumer[Any, Any]) -> None:
        # Before the start, which would fail: a consumer that the application runs itself is not
        # ours to stop.
        another_runs_it = consumer.running
        problem = await self._begin(consumer)
        if problem is None and consumer.running and not another_runs_it:
            self.started.append(consumer)
            # Once all have started: what a start leaves behind is garbage, and must not be frozen.
            if self._freeze and all(each.running for each in self._consumers):
                gc.freeze()
            # A signal came during the last step of the start, where nothing could be given up any
            # longer.
            if self._stopping.is_set():
                consumer.stop(reason=self._reason)
            await captured(consumer.wait_for_stop)
            self.stop()
            # After `stop`, so that the other consumers drain at the same time.
            problem = await _what_ended(consumer)
        if problem is not None and not isinstance(problem, asyncio.CancelledError):
            self.problems.append(problem)
        self.stop()

    async def _begin(self, consumer: Consumer[Any, Any]) -> BaseException | None:
        """Start a consumer, as often as it takes. Return why it does not run, if it does not."""
        patience = _Patience(consumer.queue, self._wait, began=self._loop.time())
        while not self._stopping.is_set():
            work = captured(consumer.__aenter__)
            start = asyncio.create_task(work, name=f"postroom-start-{consumer.queue}")
            self._starts.add(start)
            try:
                problem = await self._ended(start, consumer)
            finally:
                self._starts.discard(start)
            if problem is None or (pause := patience.pause_after(problem, self._loop.time())) is None:
                return problem
            await _within(pause, self._stopping.wait())
        return None

    async def _ended(
        self, start: "asyncio.Task[BaseException | None]", consumer: Consumer[Any, Any]
    ) -> BaseException | None:
        """Wait for a start. One that was given up may close what it opened, within a limit."""
        stopping = asyncio.create_task(self._stopping.wait(), name=f"postroom-stopping-{consumer.queue}")
        try:
            await asyncio.wait([start, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if not start.done():
            await asyncio.wait([start], timeout=_GIVE_UP)
        if not start.done():
            text = "The start of %s did not end within %g s after it was given up"
            _log.error(text, consumer.queue, _GIVE_UP, extra=about(queue=queue_name(consumer.queue), step=Step.START))
            start.cancel()
            return None
        return None if start.cancelled() else start.result()  # cancelled: given up in its last step

    def _what_runs(self) -> str:
        parts: list[str] = []
        for consumer in self._consumers:
            if not consumer.running:
                continue
            now = consumer.statistics()
            running = "1 handler runs" if now.running == 1 else f"{now.running} handlers run"
            more = max(0, now.held - now.running)  # for a slot, for their tenant, or for SQS to confirm their end
            waits = "1 more message waits" if more == 1 else f"{more} more messages wait"
            parts.append(f"{consumer.queue}: {running}, {waits}")
        return "; ".join(parts) or "no consumer runs"


class _Patience:
    """How long a start waits for a queue that cannot be reached yet, and what it says meanwhile."""

    def __init__(self, queue: str, wait: float | None, *, began: float) -> None:
        self._queue = queue
        self._deadline = None if wait is None else began + wait
        self._pause = _FIRST_PAUSE
        self._said = ""
        self._missing_until: float | None = None
        self._rng = Random()  # noqa: S311 - jitter, not secrecy

    def pause_after(self, problem: BaseException, now: float) -> float | None:
        """Return how many seconds to wait before the next try; None when there is none."""
        deadline = self._deadline_for(problem, now)
        if deadline is not None and now >= deadline:
            return None
        # One line for each kind of trouble, and not one every five seconds.
        if (state := f"{type(problem).__name__} {getattr(problem, 'code', '')}") != self._said:
            self._said = state
            limit = "until it answers" if deadline is None else f"for {deadline - now:.0f} s more"
            text = "Queue %s cannot be reached yet; the start tries again %s: %s"
            _log.warning(text, self._queue, limit, problem, extra=about(queue=queue_name(self._queue), step=Step.START))
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        # With jitter: after an outage all replicas start in the same second.
        pause *= self._rng.uniform(0.5, 1.0)
        return pause if deadline is None else min(pause, deadline - now)

    def _deadline_for(self, problem: BaseException, now: float) -> float | None:
        """Return until when it pays to wait for the end of a problem; None where there is no limit."""
        if isinstance(problem, QueueNotFound) and self._said:
            if self._missing_until is None:
                self._pause = _FIRST_PAUSE
                until = now + _BEING_MADE
                self._missing_until = until if self._deadline is None else min(until, self._deadline)
            return self._missing_until
        if not isinstance(problem, TransportError) or not problem.retryable:
            return now
        return self._deadline


async def _what_ended(consumer: Consumer[Any, Any]) -> BaseException | None:
    try:
        return await consumer.end()
    except BaseException as error:
        return error


async def _within(seconds: float, work: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return


def _verdict(started: Sequence[Consumer[Any, Any]], problems: Sequence[BaseException]) -> ExitCode:
    for problem in problems:
        # First of all verdicts: a handler chose the exit code, and errors beside it are the
        # consequence.
        if isinstance(problem, SystemExit):
            _log.critical("Stopped: a handler called sys.exit(%r)", problem.code)
            raise SystemExit(problem.code)
        if isinstance(problem, KeyboardInterrupt):
            _log.critical("Stopped: a handler raised KeyboardInterrupt")
            raise SystemExit(_INTERRUPTED)
    for problem in problems:
        if isinstance(problem, TransportError) and not isinstance(problem, _NOT_AS_CONFIGURED):
            _log.critical("Stopped: %s", problem)  # its text says what to check; a traceback would hide it
            return ExitCode.FATAL
        if not isinstance(problem, _NOT_AS_CONFIGURED):
            log_error(_log, logging.CRITICAL, "Stopped by an error", error=problem)
            return ExitCode.FATAL
    for problem in problems:
        _log.critical("Cannot start: %s", problem, extra=about(step=Step.START))
        return ExitCode.CONFIGURATION
    cancelled = any(consumer.statistics().cancelled for consumer in started)
    return ExitCode.CANCELLED_WORK if cancelled else ExitCode.CLEAN


_heard: set[signal.Signals] = set()
"""The signals that consumers of this process listen to."""


@contextmanager
def _signals(process: _Process) -> Generator[None]:
    loop = asyncio.get_running_loop()
    installed: list[signal.Signals] = []
    try:
        for number in _SIGNALS:
            try:
                loop.add_signal_handler(number, process.on_signal, number)
            except (NotImplementedError, ValueError, RuntimeError):  # not the main thread, or not on this platform
                break
            installed.append(number)
            _heard.add(number)
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
            _heard.discard(number)


def _leave_signals_to_the_child() -> None:
    """Have a forked child, such as one of ``multiprocessing`` in a handler, end at a signal as any program does.

    It has the handlers of its parent, which end nothing there, and writes to the pipe by which the parent's loop hears
    signals: one that is meant for the child would stop the parent's consumers.
    """
    if _heard:
        signal.set_wakeup_fd(-1)
    for number in _heard:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _heard.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_signals_to_the_child)
