"""The one way in which postroom starts tasks and timers: in a clean context, named, and supervised."""

import asyncio
import contextlib
import contextvars
import functools
import logging
import math
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from postroom.display import counted
from postroom.log_fields import Log, Step
from postroom.outages import Outages
from postroom.program_end import ends_the_program
from postroom.redaction import log_error

_log = Log("postroom", Step.LOOP)


F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_OF_MESSAGES: Final[list[ContextVar[Any]]] = []


def message_variable(name: str) -> ContextVar[Any]:
    """Make a context variable that tells which message is handled; None by default. ``home_context`` leaves it out."""
    variable = ContextVar[Any](name, default=None)
    _OF_MESSAGES.append(variable)
    return variable


def home_context() -> contextvars.Context:
    """Return a copy of the context of this moment, for what outlives the message that may be handled in it.

    It names no message, and so keeps none in memory. The application's own variables are as they were.
    """
    home = contextvars.copy_context()
    for variable in _OF_MESSAGES:
        home.run(variable.set, None)
    return home


def clean(function: F) -> F:
    """Wrap a user's function: it runs in a copy of the context of this moment, whatever message its caller works on.

    So it neither sees nor leaves context variables of another message.
    """
    home = home_context()

    @functools.wraps(function)
    def in_home(*arguments: Any) -> Any:
        return home.copy().run(function, *arguments)

    return cast("F", in_home)


class TimeLimit:
    """As ``asyncio.timeout``, for code that runs while a message is handled.

    asyncio keeps a timer that was cancelled until its time, or until a hundred of them have gathered, and with it the
    context of the task: that holds the message and its body. This timer has an empty context.
    """

    __slots__ = ("_left", "_timeout", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        """How long it was when it began; None for no limit."""
        self._left = seconds
        """Seconds that were left when it began to count last; None where it counts no longer."""
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        """Begin to count."""
        await self._timeout.__aenter__()
        self.resume()
        return self

    def pause(self) -> float | None:
        """Let the time that follows not count, until ``resume``. Returns what is left; None without a limit."""
        when = self._timeout.when()
        if when is not None and self._left is not None and not self._timeout.expired():
            self._left = when - asyncio.get_running_loop().time()
            self._timeout.reschedule(None)
            return self._left
        return None

    def resume(self) -> None:
        """Count again, from where ``pause`` left off."""
        if self._left is not None and not self._timeout.expired():
            when = asyncio.get_running_loop().time() + self._left
            contextvars.Context().run(self._timeout.reschedule, when)

    def end(self) -> None:
        """Let the time be over now."""
        self._left = 0.0
        self.resume()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raise ``TimeoutError`` in the place of the cancellation if the time was over."""
        self._left = None
        await self._timeout.__aexit__(kind, error, traceback)

    def expired(self) -> bool:
        """Whether the time was over."""
        return self._timeout.expired()


def is_in_loop() -> bool:
    """Return whether this thread runs an event loop at this moment."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, without an event loop, and return what it returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine that was not to wait has suspended")


def is_cancelled() -> bool:
    """Return whether the current task was cancelled, as opposed to code that raised CancelledError."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def told_once() -> contextlib.AbstractContextManager[object]:
    """Return a block in which a scope of anyio that is cancelled already does not cancel the current task again.

    It would do so with each turn of the loop, as long as the task is in the scope. Code that waits for a stop could not
    tell that from a second cancellation, and would keep the processor busy.
    """
    # Not loaded: then there is no scope, and nothing must be imported now, which takes time and file descriptors.
    anyio = sys.modules.get("anyio") if "anyio._backends._asyncio" in sys.modules else None
    if anyio is None or anyio.current_effective_deadline() > -math.inf:
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[object]", anyio.CancelScope(shield=True))


def has_to_leave(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Return whether an error of foreign code, such as a transport's, must leave the code that called it, too.

    It must when it ends the program, when ``task``, which made the call, was cancelled, and when the coroutine is
    closed because its loop is gone: then it may await nothing. Anything else is a failed call. ``task`` has to be asked
    for before the call: a coroutine that is closed has no current task, or another one.
    """
    if isinstance(error, asyncio.CancelledError):
        return task is None or task.cancelling() > 0
    if isinstance(error, GeneratorExit):
        return not runs_as(task)
    return ends_the_program(error)


def goes_on() -> bool:
    """Return whether a loop that calls foreign code goes on: asked each time, since it may swallow a cancellation.

    ``asyncio.wait_for`` of Python 3.11 does: it returns its result, and no error tells of the cancellation.
    """
    task = asyncio.current_task()
    return task is None or not task.cancelling()


def runs_as(task: asyncio.Task[Any] | None) -> bool:
    """Return whether this code runs as that task, as opposed to being closed from outside."""
    try:
        return task is not None and asyncio.current_task() is task
    except RuntimeError:
        return False


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return what tells a loop's time. asyncio's own loops tell the monotonic clock's, which costs less to ask."""
    return monotonic if getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time else loop.time


def is_eager(factory: object) -> bool:
    """Return whether a task factory is ``asyncio.eager_task_factory``, or made by ``create_eager_task_factory``."""
    eager = getattr(asyncio, "eager_task_factory", None)  # since Python 3.12
    return eager is not None and getattr(factory, "__code__", None) is eager.__code__


class Home:
    """The event loop and the thread of this moment: what other threads ask for is done there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def call(self, work: Callable[..., object], *arguments: object) -> None:
        """Do some work: at once in the loop's own thread, from another one with the loop's next turn."""
        if threading.get_ident() == self._thread:
            work(*arguments)
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it what the work is for
            self._loop.call_soon_threadsafe(work, *arguments, context=contextvars.Context())


class Tasks:
    """Starts the tasks and timers of one component, and ends them with it.

    A task inherits the context variables of whatever code starts it. In a consumer that code often runs for another
    message, and its variables (a tenant, a request id) must not be visible in the new task. So every task and timer
    starts in a copy of the context in which the component was opened.

    An error that leaves a task or a timer is a defect, or news that the component cannot go on. It is logged, and
    ``on_fatal`` is called with it; a component that lost a task must not look alive.

    Args:
        on_fatal: called, in the event loop, with an error that left a task or a timer.
    """

    def __init__(self, on_fatal: Callable[[BaseException], None]) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.time: Callable[[], float] = clock_of(self.loop)
        """Tells the loop's time."""
        create = getattr(self.loop.create_task, "__func__", None)
        self._plain = create is asyncio.BaseEventLoop.create_task and not self.loop.get_debug()
        self._home = home_context()
        self._on_fatal = on_fatal
        self._tasks: set[asyncio.Task[Any]] = set()
        # The set's own method, and no call around it: it is called for every message.
        self.ended: Callable[[asyncio.Task[Any]], object] = self._tasks.discard
        """Notes that a task is at its end."""
        self.outages: Outages = Outages(self)
        """What the log says of what fails and works again, in this component."""

    def __len__(self) -> int:
        """Count the tasks that have not ended."""
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        """Yield the tasks that have not ended."""
        return iter(tuple(self._tasks))

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task. It ends itself, or with ``close``."""
        task = self.start(work, name)
        self.watch(task)
        return task

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task that nothing watches: it calls ``ended`` as its last step, and ``watch`` if an error leaves it.

        For work that is done for each message, where a callback of each task would cost as much as starting it.
        """
        loop = self.loop
        factory = loop.get_task_factory()
        # What `create_task` of asyncio's own loops does, less two calls: this runs for every message. Never eager: the
        # end of one message starts the next one, and a thousand of them inside each other end in a RecursionError.
        if (self._plain and factory is None) or is_eager(factory):
            task = asyncio.Task(work, loop=loop, name=name, context=self._home.copy())
        else:
            task = loop.create_task(work, name=name, context=self._home.copy())
        if not task.done():  # a factory of the user's own may start it eagerly, and its end has been noted then
            self._tasks.add(task)
        return task

    def watch(self, task: asyncio.Task[Any]) -> None:
        """See to it that an error which leaves a task is noticed."""
        task.add_done_callback(self._done, context=self._home)

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> asyncio.Handle:
        """Call a function in the next turn of the loop."""
        return self.loop.call_soon(self._call, function, *arguments, context=self._home)

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        return self.loop.call_later(seconds, self._call, function, *arguments, context=self._home)

    def call_at(self, when: float, function: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """Call a function at a time of the loop's clock."""
        return self.loop.call_at(when, self._call, function, *arguments, context=self._home)

    def run_clean(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a user's function now, so that it neither sees nor leaves context variables of another message."""
        return self._home.copy().run(function, *arguments)

    async def close(self, *, grace: float) -> None:
        """Cancel every task, and wait up to ``grace`` seconds until all have ended.

        A task that ignores its cancellation for longer is named in the log, and abandoned.
        """
        self.outages.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        fresh = [task for task in tasks if not task.cancelling()]  # the others have had their time
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.sleep(0)
            if fresh:
                await asyncio.wait(fresh, timeout=grace)
            if stubborn := [task for task in tasks if not task.done()]:
                names = ", ".join(sorted(task.get_name() for task in stubborn)[:5])
                _log.error("Abandoned %s, which ignored the cancellation: %s", counted(len(stubborn), "task"), names)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            if ends_the_program(error):
                raise
            log_error(_log, logging.CRITICAL, "A timer of postroom failed", error=error)
            self._on_fatal(error)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not task.cancelling():  # its own code raised it: nothing else would tell that the task is gone
                _log.critical("Task %s ended by a CancelledError that its own code raised", task.get_name())
                self._on_fatal(RuntimeError(f"task {task.get_name()} ended by a CancelledError of its own"))
        elif (error := task.exception()) is not None:
            log_error(_log, logging.CRITICAL, "Task %s died", task.get_name(), error=error)
            self._on_fatal(error)
