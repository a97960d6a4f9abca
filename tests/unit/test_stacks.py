"""The log says where a task waits."""

import asyncio
import sysconfig
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from postroom.stacks import waits_at

NEVER = 1_000_000.0


async def deep() -> None:
    """Wait."""
    await asyncio.sleep(NEVER)


@asynccontextmanager
async def opening() -> AsyncGenerator[None]:
    """Hang before the yield."""
    await deep()
    yield


async def opens() -> None:
    """Enter a context manager that is made of a generator."""
    async with opening():
        raise AssertionError


async def numbers() -> AsyncGenerator[int]:
    """Hang before the first one."""
    await deep()
    yield 1


async def iterates() -> None:
    """Ask a generator for something."""
    async for _ in numbers():
        raise AssertionError


class Awaitable:
    """Waits in a generator of its own."""

    def __await__(self) -> Generator[Any, Any, None]:
        """Hang."""
        yield from deep().__await__()


async def awaits() -> None:
    """Wait for an object of a class."""
    await Awaitable()


async def waits_for_a_task() -> None:
    """Wait for what another task does."""
    await asyncio.create_task(deep())


async def nested(levels: int = 300) -> None:
    """Wait deeper than is looked."""
    await (nested(levels - 1) if levels else deep())


class Gone:
    """Stands for something else, as the proxies of web frameworks do, out of the time in which there is one."""

    def __getattribute__(self, name: str) -> Any:
        """Raise."""
        raise RuntimeError("working outside of a request")


class Iterator:
    """An awaitable that is its own iterator, and has a proxy."""

    def __init__(self) -> None:
        self._gone = Gone()
        self._future: Any = asyncio.get_running_loop().create_future().__await__()

    def __await__(self) -> Any:
        """Hang."""
        return self

    def __iter__(self) -> "Iterator":
        """Be an iterator."""
        return self

    def __next__(self) -> Any:
        """Wait for the future."""
        return next(self._future)


async def place(work: Callable[[], Coroutine[Any, Any, None]]) -> str:
    """Return where some work waits."""
    task = asyncio.create_task(work())
    for _ in range(3):
        await asyncio.sleep(0)
    try:
        return waits_at(task)
    finally:
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()


@pytest.mark.parametrize("work", [deep, opens, iterates, awaits, waits_for_a_task])
async def test_where_a_task_waits_is_the_innermost_line_of_the_users(work: Callable[[], Any]) -> None:
    """Through generators, awaitable objects and other tasks; and what is called there."""
    line = deep.__code__.co_firstlineno + 2
    found = await place(work)
    assert found.endswith(f" in sleep, called at {__file__}:{line} in deep"), found
    assert Path(found.partition(":")[0]).name == "tasks.py"


async def test_a_task_that_waits_very_deep_is_told_without_going_on_for_long() -> None:
    """A recursion has no end that anyone wants to read."""
    assert f"{__file__}:" in await place(nested)


async def test_a_task_in_which_no_code_of_the_user_waits_tells_no_place() -> None:
    """A line of asyncio helps no one; nor does a task that has ended, or none."""
    assert not await place(lambda: asyncio.sleep(NEVER))
    ended = asyncio.create_task(asyncio.sleep(0))
    await ended
    assert (waits_at(ended), waits_at(None)) == ("", "")


async def test_an_application_that_is_installed_as_a_package_is_told_by_what_was_called() -> None:
    """Its files are where those of its libraries are, as in many a container."""

    def installed(name: str, source: str, **names: Any) -> Any:
        exec(compile(source, f"{sysconfig.get_path('purelib')}/{name}.py", "exec"), names)  # noqa: S102
        return names["work"]

    driver = installed("driver", "async def work():\n    await deep()", deep=lambda: asyncio.sleep(NEVER))
    app = installed("app", "async def work():\n    await query()", query=driver)
    assert (await place(app)).endswith(f", called at {sysconfig.get_path('purelib')}/app.py:2 in work")


async def test_objects_that_raise_when_they_are_looked_at_raise_nothing() -> None:
    """This runs where a time limit is kept, which would not be kept then."""

    async def waits() -> None:
        await Iterator()

    assert (await place(waits)).endswith(" in waits")
