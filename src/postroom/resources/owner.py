"""The task that owns one resource: it enters the provider, waits, and leaves it, all by itself.

One task for both ends, so that a provider may hold task groups, cancel scopes and context variables across its
``yield``; and no cancellation but the pool's own ever reaches a provider.
"""

import asyncio
import contextlib
import inspect
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import CodeType
from typing import Any, Final, Protocol

from postroom.options import PoolTimeouts
from postroom.program_end import heed
from postroom.resources.causes import Unhealthy
from postroom.resources.entries import Entry
from postroom.resources.providers import Opener
from postroom.stacks import waits_at
from postroom.tasks import runs_as

MOST_RINGS: Final = 5
"""How often a provider that swallows its cancellation is cancelled again."""

HealthCheck = Callable[[Any], Any]


class Alarm:
    """Cancels the current task after a time, and again each time it does not obey.

    Args:
        ignored: called with what takes too long, and where it waits, when it has ignored the first cancellation.
    """

    def __init__(self, ignored: Callable[["Alarm"], None]) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an alarm rings a task: there is none")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._ignored = ignored
        self.option: str = ""
        """What takes so long, as ``PoolTimeouts`` calls it."""
        self.seconds: float = 0.0
        """How long it may take."""
        self.rang: int = 0
        self.rang_at: str = ""
        """Where the task waited when it rang first."""

    def set(self, option: str, seconds: float, tell: Callable[[], None] | None = None) -> None:
        """Ring after ``seconds``; call ``tell`` first, the first time."""
        self.clear()
        self.option, self.seconds, self.rang = option, seconds, 0
        self._handle = self._loop.call_later(seconds, self._ring, tell)

    def clear(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self, tell: Callable[[], None] | None) -> None:
        if not self.rang:
            self.rang_at = waits_at(self._task)
        elif self.rang == 1:
            self._ignored(self)
        self.rang += 1
        if tell is not None:
            tell()
        # More than once, unlike `asyncio.timeout`: some drivers catch the cancellation while they
        # clean up, and then go on as if nothing had been asked of them.
        self._task.cancel("postroom: timed out")
        again = self.rang < MOST_RINGS
        self._handle = self._loop.call_later(self.seconds, self._ring, None) if again else None


class Reports(Protocol):
    """What an owner task tells what happens."""

    def opened(self, entry: Entry, resource: Any) -> bool:
        """The provider was entered. False: it is not wanted after all."""
        ...

    def usable(self, entry: Entry) -> None:
        """The resource may be handed out."""
        ...

    def open_failed(self, entry: Entry, error: BaseException) -> None:
        """The provider failed, hangs, or opened something unhealthy."""
        ...

    def died(self, entry: Entry) -> None:
        """Other code cancelled the owner task."""
        ...

    def ignores(self, entry: Entry, alarm: Alarm) -> None:
        """What takes longer than it may has ignored its cancellation, and runs on."""
        ...


async def own(
    entry: Entry, opener: Opener, check: HealthCheck | None, reports: Reports, timeouts: PoolTimeouts
) -> None:
    """Enter the provider, keep it open until ``entry.stop`` is set, leave it. Raises nothing of the provider's."""
    alarm = Alarm(partial(reports.ignores, entry))
    task = asyncio.current_task()
    manager: AbstractAsyncContextManager[Any] | None = None
    # The alarm itself reports the failure: a provider that swallows its cancellation must not keep
    # callers from their answer.
    alarm.set(
        "open",
        timeouts.open,
        lambda: reports.open_failed(entry, _late("open", "open", timeouts.open, alarm.rang_at)),
    )
    try:
        manager = opener(entry.context)
        async with manager as resource:
            alarm.clear()
            # False: while the provider opened, the pool was closed, the entry was invalidated, or time ran out.
            if reports.opened(entry, resource):
                await _keep(entry, check, reports, alarm, timeouts)
            else:
                await _absorb_cancellation()
            alarm.set("close", timeouts.close)  # set inside the block: leaving it is the provider's cleanup
    except BaseException as error:  # the provider is user code, and a cancellation may be the alarm's
        _name_generator(error)
        if not entry.opened:
            reports.open_failed(entry, error)
        else:
            entry.close_error = _late("close", "close", timeouts.close, alarm.rang_at) if alarm.rang else error
            await _finish_generator(manager)
        if isinstance(error, GeneratorExit) and not runs_as(task):
            raise  # it ends the coroutine, and is not about this resource
        heed(error)
    finally:
        alarm.clear()


async def _keep(
    entry: Entry, check: HealthCheck | None, reports: Reports, alarm: Alarm, timeouts: PoolTimeouts
) -> None:
    """Stay until told to stop. A cancellation from outside ends the stay; the provider is still left properly."""
    if entry.verify and check is not None:
        problem = await examine(check, entry.resource, alarm, timeouts.check)
        if problem is not None:
            unhealthy = Unhealthy("unhealthy when it was opened")
            unhealthy.__cause__ = problem
            reports.open_failed(entry, unhealthy)
            return
    reports.usable(entry)
    try:
        await entry.stop
    except asyncio.CancelledError:
        # Not passed on to the provider: thrown in at its yield, it would skip a cleanup that has no `finally`.
        reports.died(entry)


async def examine(check: HealthCheck, resource: Any, alarm: Alarm, seconds: float) -> BaseException | None:
    """Run a health check. Returns what is wrong, or None."""
    alarm.set("check", seconds)
    task = asyncio.current_task()
    try:
        verdict = check(resource)
        if inspect.isawaitable(verdict):
            verdict = await verdict
    except asyncio.CancelledError as error:
        # Whether the alarm rang tells our own timeout from a check that cancelled itself.
        return _late("answer its health check", "check", seconds, alarm.rang_at) if alarm.rang else error
    except BaseException as error:
        if isinstance(error, GeneratorExit) and not runs_as(task):
            raise
        heed(error)
        return error
    finally:
        alarm.clear()
    return Unhealthy("the health check returned False") if verdict is False else None


async def _absorb_cancellation() -> None:
    """Take the cancellation that a provider caused for itself, before it can hit the provider's cleanup."""
    try:
        await asyncio.sleep(0)  # a cancellation that was asked for arrives at the next await
    except asyncio.CancelledError:
        return


def _name_generator(error: BaseException) -> None:
    """Say which function it is that yields never or twice: no line of it is in the traceback of contextlib's error."""
    if not isinstance(error, RuntimeError) or error.__traceback__ is None:
        return
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    generator = getattr(frame.f_locals.get("self"), "gen", None)
    code = getattr(generator, "ag_code", None) or getattr(generator, "gi_code", None)
    if frame.f_code.co_filename == contextlib.__file__ and isinstance(code, CodeType):
        error.add_note(f"the generator is {code.co_qualname}, {code.co_filename}:{code.co_firstlineno}")


async def _finish_generator(manager: object) -> None:
    """End a provider that yielded twice, or it would be left to the garbage collector."""
    generator = getattr(manager, "gen", None)
    if inspect.isasyncgen(generator):
        try:
            await generator.aclose()
        except (Exception, asyncio.CancelledError):
            return


def _late(what: str, option: str, seconds: float, place: str) -> TimeoutError:
    where = f"; it waited at {place}" if place else ""
    return TimeoutError(f"did not {what} within {seconds:g} s, PoolTimeouts({option}=...){where}")
