"""A deterministic event loop in virtual time: an hour of timeouts runs in milliseconds, and replays from a seed.

    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    def test_an_hour_passes_at_once() -> None:
        assert run_virtual(main()) == 3600.0

Time stands still while anything can run and jumps to the next timer when nothing can. There is no real I/O: no
sockets, no child processes; a function given to an executor (``asyncio.to_thread`` too) runs inline, in its turn.
"""

import asyncio
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from postroom.checking import is_number
from postroom.errors import ConfigurationError
from postroom.tasks import is_in_loop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

WEEK = 604_800.0


class VirtualLoopError(RuntimeError):
    """The base of what ``run_virtual`` raises by itself."""


class Deadlock(VirtualLoopError):
    """Nothing can run and nothing is scheduled, or time ran past its limit, while ``main`` is not finished."""


class LeftoverTasks(VirtualLoopError):
    """``main`` finished, tasks that it started did not. They were cancelled."""


class UnhandledError(VirtualLoopError):
    """``main`` finished well, but a callback or a forgotten task raised."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop with a clock that moves only when nothing can run.

    Args:
        seed: None runs what is ready in the order in which it became ready, as asyncio does. A number shuffles it,
            reproducibly, which is how races are searched for.
        limit: virtual seconds after which the run counts as deadlocked: a periodic task keeps a stuck ``main`` from
            ever looking idle.
    """

    def __init__(self, *, seed: int | None = None, limit: float = WEEK) -> None:
        super().__init__()
        self._random = None if seed is None else random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._limit = limit
        self._now = 0.0
        self._turn: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._settling: list[asyncio.Future[None]] = []
        self.unhandled: list[dict[str, Any]] = []
        """What callbacks and forgotten tasks raised, as ``call_exception_handler`` was told."""
        self.set_exception_handler(lambda _loop, context: self.unhandled.append(context))

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was made."""
        return self._now

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run ``callback`` in the next turn, at this same virtual time."""
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        self._turn.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback`` ``delay`` virtual seconds from now."""
        return self._schedule(self._now + delay, callback, args, context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback`` at the virtual time ``when``."""
        return self._schedule(when, callback, args, context)

    def _schedule(
        self, when: float, callback: Callable[[Unpack[Ts]], object], args: tuple[*Ts], context: Context | None
    ) -> asyncio.TimerHandle:
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        if math.isnan(when):  # no time comes before or after it: time would stand still
            raise ValueError("Invalid delay: NaN (not a number)")  # as asyncio.sleep says since Python 3.13
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run ``func`` inline in the next turn: threads have no place in a reproducible schedule."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(_run_into, future, func, *args)
        return future

    async def create_connection(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse: there is no real I/O here."""
        self._refuse_io("create_connection")

    async def create_server(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse: there is no real I/O here."""
        self._refuse_io("create_server")

    async def create_datagram_endpoint(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse: there is no real I/O here."""
        self._refuse_io("create_datagram_endpoint")

    async def subprocess_exec(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse: there is no real I/O here."""
        self._refuse_io("subprocess_exec")

    async def subprocess_shell(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse: there is no real I/O here."""
        self._refuse_io("subprocess_shell")

    async def getaddrinfo(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse: there is no real I/O here."""
        self._refuse_io("getaddrinfo")

    def block(self, seconds: float) -> None:
        """Let time pass while nothing runs: a synchronous call that blocks the event loop, or a suspended machine.

        Timers that become due meanwhile are late: all of them run in the next turn.
        """
        if not seconds >= 0:  # NaN is neither
            raise VirtualLoopError(f"block({seconds!r}): time does not go back")
        self._now += seconds

    def settled(self) -> asyncio.Future[None]:
        """Return a future that is done once nothing else can run at this virtual time."""
        future: asyncio.Future[None] = self.create_future()
        self._settling.append(future)
        return future

    def _refuse_io(self, what: str) -> NoReturn:
        raise VirtualLoopError(f"{what}: a virtual-time loop does no real I/O; use asyncio.run for this test")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Ignore it: a cancelled timer is dropped when its time comes."""

    def _run_once(self) -> None:
        """Run one turn: everything that is ready now. ``BaseEventLoop.run_forever`` calls this in a loop."""
        self._make_ready()
        turn = self._turn
        count = len(turn)
        if count > 1 and self._random is not None:
            self._random.shuffle(turn)
        for _ in range(count):  # what it adds belongs to the next turn
            handle = turn.popleft()
            if not handle.cancelled():
                handle._run()  # noqa: SLF001 - running handles is what a loop is for

    def _make_ready(self) -> None:
        timers = self._timers
        if timers and timers[0][0] <= self._now:
            self._collect_due()
        if self._turn:
            return
        self._drop_cancelled()
        if self._settling:
            settling, self._settling = self._settling, []
            for future in settling:
                if not future.done():
                    future.set_result(None)
            return
        if not self._timers:
            raise Deadlock(f"nothing can run and nothing is scheduled at {self._now:g} s; {self._describe_waiting()}")
        if self._timers[0][0] > self._limit:
            raise Deadlock(f"not finished after {self._limit:g} virtual seconds; {self._describe_waiting()}")
        self._now = self._timers[0][0]
        self._collect_due()

    def _collect_due(self) -> None:
        timers, now, turn = self._timers, self._now, self._turn
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                turn.append(handle)

    def _drop_cancelled(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)

    def _describe_waiting(self) -> str:
        return "waiting: " + describe_tasks(asyncio.all_tasks(self))


def _run_into(future: asyncio.Future[T], func: Callable[[Unpack[Ts]], T], *args: *Ts) -> None:
    if future.done():
        return
    try:
        result = func(*args)
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def describe_tasks(tasks: Iterable["asyncio.Task[Any]"]) -> str:
    """Say what each task is called and at which line it waits."""
    lines: list[str] = []
    for task in sorted(tasks, key=lambda task: task.get_name()):
        frames = task.get_stack(limit=1)
        place = f"{frames[0].f_code.co_qualname} line {frames[0].f_lineno}" if frames else "its start"
        lines.append(f"{task.get_name()!r} at {place}")
    return ", ".join(lines) or "no task"


async def settle() -> None:
    """Wait until nothing else can run at this virtual time.

    Raises:
        VirtualLoopError: it is not called under ``run_virtual``.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise VirtualLoopError("settle() works only under run_virtual()")
    await loop.settled()


def run_virtual(main: Coroutine[Any, Any, T], *, seed: int | None = None, limit: float = WEEK) -> T:
    """Run a coroutine to its end on a new virtual-time loop and return its result.

    Time advances only when nothing can run, so that sleeping is free and a run with the same ``seed`` repeats
    exactly. What ``main`` raises comes through.

    Args:
        main: the coroutine.
        seed: shuffles what is ready in each turn; None keeps asyncio's order.
        limit: the virtual seconds that the run may take.

    Raises:
        Deadlock: nothing is ready and nothing is scheduled, or ``limit`` passed. Says who waits where.
        LeftoverTasks: tasks outlived ``main``; they were cancelled. Added to ``main``'s own error as a note.
        UnhandledError: something raised where no caller could see it.
        ConfigurationError: ``limit`` is no number of seconds.
    """
    _refuse_nesting(main)
    if not is_number(limit) or limit <= 0:
        main.close()
        raise ConfigurationError(f"run_virtual(limit=...) takes seconds, more than 0; got {limit!r}")
    loop = VirtualLoop(seed=seed, limit=limit)
    try:
        task = loop.create_task(main, name="main")
        try:
            result = loop.run_until_complete(task)
        except BaseException as error:
            for note in (*_clean_up(loop, task), *_unhandled(loop)):
                error.add_note(note)
            raise
        if left := _clean_up(loop, task):
            raise LeftoverTasks("; ".join(left))
        if loop.unhandled:
            raise UnhandledError("; ".join(_unhandled(loop))) from loop.unhandled[0].get("exception")
        return result
    finally:
        loop.close()


def _refuse_nesting(main: Coroutine[Any, Any, Any]) -> None:
    if is_in_loop():
        main.close()
        text = "run_virtual() runs a loop of its own: call it from a plain `def test_...`, not `async def`"
        raise VirtualLoopError(text)


def _clean_up(loop: VirtualLoop, main: "asyncio.Task[Any]") -> list[str]:
    """Cancel what is left, and say what it was."""
    left: list[str] = []
    try:
        if main.done():  # what ends at this same instant was not left behind
            loop.run_until_complete(loop.settled())
        tasks = asyncio.all_tasks(loop)
        if tasks - {main}:
            left.append("left behind: " + describe_tasks(tasks - {main}))
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except Deadlock as error:
        left.append(f"cancelled, but did not end: {error}")
    return left


def _unhandled(loop: VirtualLoop) -> list[str]:
    return [f"unhandled: {context['message']}: {context.get('exception')!r}" for context in loop.unhandled]
