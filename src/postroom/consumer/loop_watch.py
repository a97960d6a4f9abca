"""Notices that the event loop is blocked, and says which task blocks it, and for which message."""

import asyncio
import contextvars
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final

import msgspec

from postroom.log_fields import Described, Log, Step, about, tenant_in_words
from postroom.stacks import innermost_frame, place_in
from postroom.tasks import Tasks

_log = Log("postroom.consumer", Step.LOOP)

TICK: Final = 0.5
"""Seconds between two signs of life of the loop, and between two looks at them."""
LATE: Final = 1.0
"""Seconds by which a sign of life is late when the loop counts as blocked."""
SLACK: Final = 0.25
"""Seconds by which signs of life may be late before what is read counts as having waited to be read."""
CONFIRM: Final = 0.05
"""Seconds that a loop which is late is given, before a task is blamed for it."""
QUIET: Final = 60.0
"""Seconds for which further blocks at the same place are counted, and not logged."""

_ASYNCIO: Final = asyncio.__path__[0]


class LoopWatch:
    """One consumer's share in watching its event loop.

    All watches of a loop share one timer in it, and all loops of the process one thread. Only a loop in real time is
    watched: in virtual time nothing is ever late.

    Args:
        tasks: those of the consumer; their loop is watched.
        running: what is handled now, by the names of the tasks.
        here: how many messages are handled now, or wait for that. All of them wait while the loop is blocked.
    """

    def __init__(self, tasks: Tasks, running: Callable[[], Mapping[str, Described]], here: Callable[[], int]) -> None:
        self._loop = tasks.loop
        self.running = running
        self.here = here
        self._watched: _WatchedLoop | None = None
        self.max_lag: float = 0.0
        """The longest that the loop did not run, in seconds; 0.0 where it was never late."""

    def start(self) -> None:
        """Begin to watch."""
        # Loops in virtual time have a clock of their own: compared with the real one it would
        # always be late.
        if self._watched is None and abs(self._loop.time() - time.monotonic()) < LATE:
            self._watched = _thread.enter(self._loop, self)

    def silence(self) -> float:
        """Return for how many seconds the loop has given no sign of life, asked from another thread.

        Asked from within the loop it is 0.0, because the loop runs.
        """
        watched = self._watched
        if watched is None or watched.thread_id == threading.get_ident():
            return 0.0
        return watched.silence(time.monotonic())

    def unread_since(self) -> float:
        """Return the earliest loop time at which what is read now can have arrived.

        That is now, unless the loop stood still: what had arrived before the sign of life before the last one had
        been read by the last one.
        """
        now = self._loop.time()
        watched = self._watched
        return now if watched is None else now - watched.stood_still(time.monotonic())

    def close(self) -> None:
        """Watch no more. The last watch of the process ends the thread."""
        if self._watched is not None:
            _thread.leave(self._watched, self)
            self._watched = None


class _Block(msgspec.Struct):
    """A loop that did not run for a while, and what was seen of it."""

    task: str
    place: str
    logged: bool
    fields: dict[str, object]
    """Those of the message that is handled there."""


class _WatchedLoop:
    """One event loop: the time of its next sign of life, and what to say when that is late."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.watches: list[LoopWatch] = []
        self.thread_id = threading.get_ident()
        self._due = time.monotonic() + TICK
        self._before = self._due - TICK
        """When the sign of life before the last one was given."""
        self._block: _Block | None = None
        self._told: dict[str, tuple[float, int]] = {}
        self._timer = self._next_tick()

    def end(self) -> None:
        """Give no more signs of life."""
        self._timer.cancel()

    def silence(self, now: float) -> float:
        """Return for how many seconds a sign of life has been due."""
        return max(0.0, now - self._due)

    def stood_still(self, now: float) -> float:
        """Return the seconds since the sign of life before the last one; 0.0 while the signs come in time."""
        since = now - self._before
        return since if since > 2 * TICK + SLACK else 0.0

    def look(self, now: float) -> None:
        """Look whether the loop is late. Called in the watching thread."""
        due = self._due
        if now - due <= LATE or self._block is not None or self.loop.is_closed():
            return
        time.sleep(CONFIRM)  # a process that was stopped goes on: let the loop give its sign of life first
        frames = _frames(innermost_frame(self.thread_id))
        # Unchanged: the sign of life did not come while the stack was read, so the stack is the
        # culprit's.
        if self._due == due and frames:
            self._began(now - due, frames, now)

    def _began(self, lag: float, frames: list[FrameType], now: float) -> None:
        # The blocked loop cannot change it meanwhile, although this is another thread.
        task = asyncio.current_task(self.loop)
        name = "a callback" if task is None else task.get_name()
        running = {task: each for watch in self.watches for task, each in watch.running().items()}
        others, fields = sum(watch.here() for watch in self.watches), about()
        if (handled := running.get(name)) is not None:
            others -= 1
            name, fields = f"{name} of {tenant_in_words(handled.tenant)}", about(handled)
        place = place_in(frames)
        quiet_until, unsaid = self._told.get(place, (0.0, 0))
        logged = now >= quiet_until
        # By place and not by task: each message has a task of its own, and all block at the same
        # line.
        self._told[place] = (now + QUIET, 0) if logged else (quiet_until, unsaid + 1)
        if logged:
            more = f"; {unsaid} more blocks there were not logged" if unsaid else ""
            text = (
                "The event loop is blocked for %.1f s by %s, at %s: %d other messages and all heartbeats wait. "
                "Await there, or call it with asyncio.to_thread%s"
            )
            _log.warning(text, lag, name, place, others, more, extra=fields)
        self._block = _Block(name, place, logged, fields)  # last: the loop may run again at any time

    def _next_tick(self) -> asyncio.TimerHandle:
        # An empty context: the timer lives as long as the loop, and would keep alive what a request
        # has set.
        return self.loop.call_later(TICK, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        now = time.monotonic()
        lag = now - self._due
        self._before = self._due - TICK
        self._due = now + TICK
        # Taken out in one step: the thread may look at this very moment.
        block, self._block = self._block, None
        if lag > LATE:
            for watch in self.watches:
                watch.max_lag = max(watch.max_lag, lag)
            self._ended(lag, block)
        self._timer = self._next_tick()

    def _ended(self, lag: float, block: _Block | None) -> None:
        if block is None:
            text = "The event loop did not run for %.1f s: it was blocked, or the process was stopped or without a CPU"
            _log.warning(text, lag)
        elif block.logged:
            text = "The event loop runs again; it was blocked for %.1f s by %s"
            _log.warning(text, lag, block.task, extra=block.fields)
        else:
            text = "The event loop was blocked for %.1f s by %s, at %s"
            _log.debug(text, lag, block.task, block.place, extra=block.fields)


class _WatchingThread:
    """The one thread that looks at all watched loops of the process. It ends with the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loops: list[_WatchedLoop] = []
        self._stop: threading.Event | None = None

    def enter(self, loop: asyncio.AbstractEventLoop, watch: LoopWatch) -> _WatchedLoop:
        """Begin to watch a loop. Called in the loop."""
        with self._lock:
            # A loop that was closed without `leave` would count as blocked for good.
            self._loops = [known for known in self._loops if not known.loop.is_closed()]
            watched = next((known for known in self._loops if known.loop is loop), None)
            if watched is None:
                watched = _WatchedLoop(loop)
                self._loops.append(watched)
            # A list of its own each time: the thread may be going through the old one.
            watched.watches = [*watched.watches, watch]
            if self._stop is None:
                self._stop = threading.Event()
                name = "postroom-loop-watch"
                threading.Thread(target=self._run, args=(self._stop,), name=name, daemon=True).start()
        return watched

    def leave(self, watched: _WatchedLoop, watch: LoopWatch) -> None:
        """Watch a loop for one less. Called in the loop."""
        with self._lock:
            watched.watches = [other for other in watched.watches if other is not watch]
            if not watched.watches:
                watched.end()
                self._loops = [known for known in self._loops if known is not watched]
            if not self._loops and self._stop is not None:
                self._stop.set()
                self._stop = None

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(TICK):
            for watched in self._loops:  # replaced as a whole, never changed
                try:
                    watched.look(time.monotonic())
                except Exception:  # as of a running() that meets a change: the next look is soon
                    _log.debug("Looking at the event loop failed", exc_info=True)


_thread = _WatchingThread()


def _frames(innermost: FrameType | None) -> list[FrameType]:
    """Return the frames that block the loop, from the inside out. None if the loop only waits for events."""
    frames: list[FrameType] = []
    frame = innermost
    while frame is not None and not frame.f_code.co_filename.startswith(_ASYNCIO):
        frames.append(frame)
        frame = frame.f_back
    # A handler may wait in a selector too, as subprocess.run does; then there is more than one frame.
    waits = len(frames) == 1 and frames[0].f_code.co_filename == selectors.__file__
    return [] if waits else frames
