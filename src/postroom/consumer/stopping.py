"""Says what a stop waits for: which step, how many handlers of which tenants, how many seconds are left."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from postroom.consumer.job import Job
from postroom.display import counted, display_key
from postroom.log_fields import Log, Step, about
from postroom.scheduling import State
from postroom.stacks import waits_at

_log = Log("postroom.consumer", Step.STOP)

_EVERY: Final = 5.0
"""Seconds between two log lines of one stop."""
_NAMED: Final = 5
"""Tenants that a line names."""


class StopDiary:
    """What a stop is doing now. Its lines come when handlers have to be waited for, and every five seconds after that.

    Args:
        name: the queue.
        jobs: the messages that are not done.
        loop: of the consumer.
    """

    def __init__(self, name: str, jobs: Callable[[], Iterable[Job]], loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._about = about(queue=name, step=Step.STOP)
        self._jobs = jobs
        self._loop = loop
        self._began = 0.0
        self._step = ""
        self._said: set[str] = set()
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Note that the stop begins."""
        self._began = self._loop.time()
        self._timer = self._loop.call_later(_EVERY, self._remind)

    def enter(self, step: str, seconds: float) -> None:
        """Note that a step begins, and how long it may take."""
        self._step = step
        self._until = self._loop.time() + seconds

    def waits_for_handlers(self, seconds: float) -> None:
        """Say, once, which handlers the stop waits for."""
        self._wait("handlers finish", seconds, said_of(self._jobs(), nothing="messages that have not started"))

    def waits_for_tenants(self, messages: int, seconds: float) -> None:
        """Say, once, that the stop waits for tenants that cannot run yet."""
        what = f"the next try of the tenants of {counted(messages, 'message')} at the last receive"
        self._wait("tenants are tried again", seconds, what)

    def _wait(self, step: str, seconds: float, what: str) -> None:
        self.enter(step, seconds)
        if step not in self._said:
            self._said.add(step)
            text = "Stopping %s: waiting up to %g s for %s"
            _log.info(text, self._name, round(seconds, 1), what, extra=self._about)

    def end(self) -> float:
        """Note that the stop is over. Returns how many seconds it took."""
        if self._timer is not None:
            self._timer.cancel()
        return self._loop.time() - self._began

    def _remind(self) -> None:
        now = self._loop.time()
        text = "Still stopping %s after %.0f s: %s, %.0f s left; %s"
        left = max(0.0, self._until - now)
        _log.info(text, self._name, now - self._began, self._step, left, said_of(self._jobs()), extra=self._about)
        self._timer = self._loop.call_later(_EVERY, self._remind)


class Closing:
    """Which of the things that a run has opened is being closed."""

    CLIENT: Final = "The client"
    POOL: Final = "The pool"

    def __init__(self) -> None:
        self._begun: list[tuple[str, float]] = []

    def begins(self, what: str) -> None:
        """Note that something is closed from now on."""
        self._begun.append((what, asyncio.get_running_loop().time()))

    def at(self, deadline: float) -> str:
        """Return what had not closed at a time. What closes behind it begins later."""
        return next((what for what, began in reversed(self._begun) if began < deadline), "What was opened")


def said_of(jobs: Iterable[Job], *, nothing: str = "no handler runs") -> str:
    """Return how many handlers run, of which tenants, and how many messages wait: ``3 handlers (acme 2, beta 1)``."""
    started, slot, resources = Counter[str](), 0, 0
    for job in jobs:
        if job.started:
            started["" if job.tenant is None else display_key(job.tenant)] += 1
        elif job.state is State.SUSPENDED:
            resources += 1
        else:
            slot += 1
    names = ", ".join(f"{name} {count}" for name, count in started.most_common(_NAMED) if name)
    more = f" and {counted(len(started) - _NAMED, 'more tenant')}" if len(started) > _NAMED else ""
    parts = [counted(started.total(), "handler") + (f" ({names}{more})" if names else "")] if started else []
    waiting = {"a slot": slot, "resources": resources}
    parts += [
        f"{counted(count, 'message')} that {'waits' if count == 1 else 'wait'} for {what}"
        for what, count in waiting.items()
        if count
    ]
    return " and ".join(parts) or nothing


def where_it_waits(job: Job) -> str:
    """Return where the handler of a message waits, as a line goes on with it; nothing where that is not known."""
    place = waits_at(job.task)
    return f", at {place}" if place else ""
