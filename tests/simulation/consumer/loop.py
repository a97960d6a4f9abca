"""The virtual-time loop of a schedule: it replays exactly, and knows whose tasks are whose."""

import asyncio
import itertools
from collections.abc import Coroutine, Generator
from typing import Any

from postroom.testing.loop import VirtualLoop
from simulation.consumer.process import Process, current_process

LIMIT = 20_000.0
"""Virtual seconds after which a schedule counts as stuck."""


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

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimulationLoop(VirtualLoop):
    """A virtual-time loop that knows which process a task belongs to."""

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed, limit=LIMIT)
        self._numbers = itertools.count(1)
        self.set_task_factory(self._make_task)

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future."""
        return _Future(next(self._numbers), self)

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        assert not isinstance(coroutine, Generator)
        context = options.get("context")
        owner = current_process.get() if context is None else context.get(current_process)
        task = _Task(next(self._numbers), owner, coroutine, loop=loop, **options)
        if owner is not None:
            owner.tasks.append(task)
            if not owner.gate.alive:
                task.cancel()
        return task
