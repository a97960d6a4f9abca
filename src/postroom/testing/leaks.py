"""Whether a test left something behind: tasks, threads, leases, resources."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from postroom.consumer import Consumer
from postroom.errors import ConfigurationError
from postroom.options import check_seconds
from postroom.resources import PoolStatistics, ResourcePool
from postroom.testing.loop import describe_tasks

_LOOPS_OWN: Final = "asyncio_"
"""How the threads of an event loop's default executor are called. They live as long as the loop."""
_GAUGES: Final = ("leased", "waiting", "opening", "closing", "draining")


@asynccontextmanager
async def assert_no_leaks(
    *watched: ResourcePool[Any, Any] | Consumer[Any, Any], grace: float = 1.0
) -> AsyncGenerator[None]:
    """Fail if the block leaves tasks, threads, leases or running consumers behind.

        async with assert_no_leaks(databases):
            await deliver(orders, OrderCreated("order-1"), context=Tenant("acme"))

    An exception of the block goes on, and nothing is checked.

    Args:
        watched: pools, of which nothing may be leased, waited for, opened or closed at the end, but resources may stay
            open in them; and consumers, which must have stopped. Where tasks or threads are left, the pools close what
            is open, since these may be its own.
        grace: seconds that tasks and threads may take to end after the block.

    Raises:
        AssertionError: says what was left, and where it waits.
        ConfigurationError: something else than pools and consumers is to be watched, or ``grace`` is no number of
            seconds.
    """
    check_seconds("assert_no_leaks", "grace", grace)
    for each in watched:
        _check(each)
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    yield
    opened = [each for each in watched if isinstance(each, ResourcePool) and each.statistics().live]

    async def left() -> list[str]:
        return [*await _tasks(tasks, grace, opened=bool(opened)), *await _threads(threads, grace)]

    found = await left()
    if found and opened:
        # Drivers' pools have tasks and threads. Only the end of their resources tells them from what was forgotten.
        await _close_what_is_open(opened, grace)
        found = await left()
    for each in watched:
        found += _of_consumer(each) if isinstance(each, Consumer) else _of_pool(each.statistics())
    if found:
        raise AssertionError(f"left behind: {'; '.join(found)}")


def _check(watched: object) -> None:
    if not isinstance(watched, ResourcePool | Consumer):
        text = f"assert_no_leaks() watches pools and consumers; got {type(watched).__name__}"
        raise ConfigurationError(text)


async def _tasks(before: set["asyncio.Task[Any]"], grace: float, *, opened: bool) -> Iterable[str]:
    left = {task for task in asyncio.all_tasks() - before if not (opened and _owns_a_resource(task))}
    if left:
        _ended, left = await asyncio.wait(left, timeout=grace)
    return [f"tasks {describe_tasks(left)}"] if left else []


async def _close_what_is_open(pools: Iterable[ResourcePool[Any, Any]], grace: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + grace
    for pool in pools:
        await pool.invalidate_where(lambda _: True)
        while pool.statistics().closing:
            if loop.time() >= end:
                return  # what still closes is told
            await asyncio.sleep(0.01)


async def _threads(before: set[threading.Thread], grace: float) -> Iterable[str]:
    loop = asyncio.get_running_loop()
    end = loop.time() + grace
    while left := [each for each in threading.enumerate() if each not in before and not _is_of_loop(each)]:
        if loop.time() >= end:
            return [f"threads {', '.join(sorted(repr(each.name) for each in left))}"]
        await asyncio.sleep(0.01)
    return []


def _owns_a_resource(task: "asyncio.Task[Any]") -> bool:
    """Whether a task is a pool's: what is open in it may stay open."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith("postroom.resources")


def _is_of_loop(thread: threading.Thread) -> bool:
    return thread.name.startswith(_LOOPS_OWN)


def _of_consumer(consumer: Consumer[Any, Any]) -> Iterable[str]:
    return [f"{consumer!r}"] if consumer.running else []


def _of_pool(pool: PoolStatistics) -> Iterable[str]:
    counts = [f"{getattr(pool, name)} {name}" for name in _GAUGES if getattr(pool, name)]
    return [f"pool with {', '.join(counts)}"] if counts else []
