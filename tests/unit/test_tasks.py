"""How tasks are started."""

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from postroom.program_end import end_with_the_program
from postroom.tasks import Tasks, clean, message_variable


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


def _eager(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    own: Any = asyncio
    task: asyncio.Task[Any] = own.eager_task_factory(loop, coro, **options)
    return task


needs_eager = pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 has eager tasks")


@needs_eager
async def test_no_task_is_kept_that_was_over_at_once() -> None:
    """With a task factory that starts them eagerly, in a way that cannot be seen."""
    tasks = Tasks(lambda error: None)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_eager)
    try:
        assert tasks.start(work(), "one").done()
        assert tasks.spawn(work(), "two").done()
    finally:
        loop.set_task_factory(None)
    assert not len(tasks)


@needs_eager
@pytest.mark.parametrize("made", [False, True], ids=["asyncio's own", "made by asyncio"])
async def test_tasks_of_postroom_do_not_start_eagerly(made: bool) -> None:
    """The end of one message starts the next: they would run inside each other."""
    own: Any = asyncio
    tasks = Tasks(lambda error: None)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(own.create_eager_task_factory(asyncio.Task) if made else own.eager_task_factory)
    try:
        task = tasks.start(work(), "one")
        assert not task.done()
        assert await task == "one"
    finally:
        loop.set_task_factory(None)


def test_an_event_loop_that_ends_before_what_was_to_end_with_it_is_forgotten() -> None:
    """As that of a consumer which was not stopped: what is to end knows its loop."""

    class Run:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()

        def end(self, error: BaseException) -> None: ...

    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        run = Run()
        end_with_the_program(run.end)
        return weakref.ref(run.loop)

    gone = asyncio.run(main())
    gc.collect()
    assert gone() is None


async def test_what_outlives_a_message_inherits_the_applications_variables_and_not_the_message() -> None:
    """A pool or a consumer that a handler opens works for all messages."""
    of_message = message_variable("of_message")
    of_application: ContextVar[str] = ContextVar("of_application")
    of_message.set("m-1")
    of_application.set("1.0")

    @clean
    def seen() -> tuple[Any, str]:
        return of_message.get(), of_application.get()

    async def look() -> tuple[Any, str]:
        return of_message.get(), of_application.get()

    tasks = Tasks(lambda error: None)
    assert [seen(), await tasks.spawn(look(), "look"), tasks.run_clean(seen)] == [(None, "1.0")] * 3
    assert of_message.get() == "m-1"
