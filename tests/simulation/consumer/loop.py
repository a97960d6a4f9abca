"""The virtual-time loop of a schedule: it replays exactly, knows the process of each task, and can freeze a process."""

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Callable, Coroutine, Generator
from types import GeneratorType
from typing import Any, cast

from postroom.local import LocalBroker
from postroom.testing.loop import VirtualLoop
from simulation.consumer.process import Process
from simulation.consumer.shared import current_process

LIMIT = 20_000.0
"""Virtual seconds after which a schedule counts as stuck."""


EPOCH = 1_800_000_000.0
"""The time on the wall at the beginning, for the queue and for the processes."""


class _Task(asyncio.Task[Any]):
    """A task with a hash that does not depend on where it lies in memory, so that sets of tasks replay too."""

    def __init__(self, number: int, owner: Process | None, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
        self.number = number
        self.owner = owner
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self.number


class _Future(asyncio.Future[Any]):
    """A future with such a hash."""

    number: int
    """Set by the loop right after it is made: nothing hashes it before."""

    def __hash__(self) -> int:
        return self.number


class SimulationLoop(VirtualLoop):
    """A virtual-time loop that knows which process a task belongs to."""

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed, limit=LIMIT)
        self._numbers = itertools.count(1)
        self.set_task_factory(self._make_task)
        self._frozen: dict[Process, list[asyncio.Handle]] = {}

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future."""
        future = _Future(loop=self)
        future.number = next(self._numbers)
        return future

    def freeze(self, process: Process) -> None:
        """Let nothing of a process run until it thaws. Time goes on, and so do all others."""
        self._frozen.setdefault(process, [])

    def is_frozen(self, process: Process) -> bool:
        """Return whether a process is frozen."""
        return process in self._frozen

    def thaw(self, process: Process) -> None:
        """Let a process go on, and everything that became due meanwhile run late."""
        self._turn.extend(self._frozen.pop(process, []))

    def forget_cancelled(self) -> None:
        """Drop the timers that were cancelled: a handler's own keeps its context, and its message, until it is due."""
        self._timers[:] = [timer for timer in self._timers if not timer[2].cancelled()]
        heapq.heapify(self._timers)

    def _make_ready(self) -> None:
        if not self._frozen:
            super()._make_ready()
            return
        self._set_aside()
        super()._make_ready()
        self._set_aside()

    def _set_aside(self) -> None:
        if not self._frozen or not self._turn:
            return
        turn, self._turn = self._turn, type(self._turn)()
        for handle in turn:
            owner = handle._context.get(current_process)  # type: ignore[attr-defined]
            (self._turn if owner is None else self._frozen.get(owner, self._turn)).append(handle)

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        assert not isinstance(coroutine, GeneratorType)  # the abstract class is asked slowly
        context = options.get("context")
        owner = current_process.get() if context is None else context.get(current_process)
        task = _Task(next(self._numbers), owner, cast("Coroutine[Any, Any, Any]", coroutine), loop=loop, **options)
        if owner is not None:
            owner.add_task(task)
            if not owner.gate.alive:
                task.cancel()
        return task


class Broker(LocalBroker):
    """A broker with timers that belong to no process: they go on when the one that polls is frozen."""

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed, epoch=EPOCH)
        self._home = contextvars.copy_context()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call something after some seconds."""
        return self._home.copy().run(super().call_later, seconds, callback)
