"""How tasks are started."""

import asyncio
from typing import Any

from postroom.tasks import Tasks


async def work() -> str:
    """Tell what the task is called."""
    task = asyncio.current_task()
    return "" if task is None else task.get_name()


async def test_a_task_has_the_name_that_it_was_given() -> None:
    """With and without a look at how it ends."""
    tasks = Tasks(lambda error: None)
    assert await tasks.start(work(), "one") == "one"
    assert await tasks.spawn(work(), "two") == "two"


async def test_a_task_factory_makes_every_task() -> None:
    """One that is set while a consumer runs, for tracing perhaps, misses none of its tasks."""
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        made.append(task.get_name())
        return task

    tasks = Tasks(lambda error: None)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        await tasks.start(work(), "one")
        await tasks.spawn(work(), "two")
    finally:
        loop.set_task_factory(None)
    await tasks.start(work(), "three")
    # On Python 3.11 the loop names a task only after its factory has made it.
    assert len(made) == 2
