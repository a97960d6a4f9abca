"""The virtual-time loop: time is free, runs repeat, and nothing that goes wrong stays silent."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from postroom.errors import ConfigurationError
from postroom.testing.loop import (
    Deadlock,
    LeftoverTasks,
    UnhandledError,
    VirtualLoop,
    VirtualLoopError,
    run_virtual,
    settle,
)


async def _order_of(count: int) -> list[int]:
    """Start tasks that run at once and report in which order they did."""
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(note(number))
    return order


def test_a_year_of_sleep_takes_no_time() -> None:
    """Sleeping moves the clock exactly and does not wait."""

    async def main() -> float:
        await asyncio.sleep(365 * 86_400)
        return asyncio.get_running_loop().time()

    started = time.perf_counter()
    assert run_virtual(main(), limit=1e9) == 365 * 86_400
    assert time.perf_counter() - started < 5


def test_time_stands_still_while_something_can_run() -> None:
    """A thousand turns at one instant pass before the next timer fires."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        loop.call_later(1, lambda: seen.append(loop.time()))
        for _ in range(1000):
            await asyncio.sleep(0)
        seen.append(loop.time())
        await asyncio.sleep(2)
        return seen

    assert run_virtual(main()) == [0.0, 1.0]


def test_timers_fire_in_order_and_ties_in_the_order_they_were_set() -> None:
    """Without a seed equal times keep the order of registration; cancelled ones never fire."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        fired: list[str] = []
        loop.call_later(2, fired.append, "late")
        loop.call_later(1, fired.append, "first")
        loop.call_later(1, fired.append, "second")
        loop.call_later(1, fired.append, "never").cancel()
        await asyncio.sleep(3)
        return fired

    assert run_virtual(main()) == ["first", "second", "late"]


def test_without_a_seed_the_order_is_asyncios() -> None:
    """Ready callbacks run first in, first out."""
    assert run_virtual(_order_of(10)) == list(range(10))


def test_a_seed_shuffles_and_repeats() -> None:
    """One seed gives one order, other seeds give others."""
    orders = {tuple(run_virtual(_order_of(10), seed=seed)) for seed in range(5)}
    assert len(orders) == 5
    assert run_virtual(_order_of(10), seed=3) == run_virtual(_order_of(10), seed=3)


def test_asyncio_timeouts_work_in_virtual_time() -> None:
    """A timeout fires at its virtual deadline."""

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.get_running_loop().create_future()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 30.0


def test_a_deadlock_says_who_waits_and_where() -> None:
    """Waiting for what will never happen is an error, not a hang."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"'main' at .*main line \d+"):
        run_virtual(main())


def test_a_periodic_task_does_not_hide_a_deadlock() -> None:
    """Virtual time has a limit, so a heartbeat cannot keep a stuck program alive."""

    async def tick() -> None:
        for _ in range(1_000_000):
            await asyncio.sleep(5)

    async def main() -> None:
        ticker = asyncio.create_task(tick(), name="ticker")
        try:
            await asyncio.Event().wait()
        finally:
            ticker.cancel()

    with pytest.raises(Deadlock, match=r"not finished after 100 virtual seconds.*'ticker'"):
        run_virtual(main(), limit=100)


def test_tasks_that_outlive_main_are_reported_by_name() -> None:
    """A forgotten task fails the run and is cancelled."""
    ended: list[str] = []

    async def forgotten() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("cancelled")

    kept: list[asyncio.Task[None]] = []

    async def main() -> None:
        kept.append(asyncio.create_task(forgotten(), name="forgotten one"))
        await asyncio.sleep(1)

    with pytest.raises(LeftoverTasks, match=r"'forgotten one' at .*forgotten line"):
        run_virtual(main())
    assert ended == ["cancelled"]


def test_a_task_that_ends_in_the_same_instant_is_no_leftover() -> None:
    """What only needs its turn gets it."""

    async def soon() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    kept: list[asyncio.Task[None]] = []

    async def main() -> None:
        kept.append(asyncio.create_task(soon()))

    run_virtual(main())
    assert kept[0].done()


def test_mains_own_error_comes_through_with_the_leftovers_as_a_note() -> None:
    """The first problem is the one that is raised."""
    kept: list[asyncio.Task[None]] = []

    async def main() -> None:
        kept.append(asyncio.create_task(asyncio.sleep(9), name="sleeper"))
        await asyncio.sleep(0)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        run_virtual(main())
    assert "'sleeper'" in caught.value.__notes__[0]


def test_what_a_callback_raises_fails_the_run() -> None:
    """An error that asyncio would only log is not lost."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(UnhandledError, match="ZeroDivisionError"):
        run_virtual(main())


def test_a_task_that_ignores_cancellation_is_reported_not_waited_for() -> None:
    """Cleaning up ends, whatever a task does."""

    async def stubborn() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.Event().wait()

    kept: list[asyncio.Task[None]] = []

    async def main() -> None:
        kept.append(asyncio.create_task(stubborn(), name="stubborn"))
        await asyncio.sleep(1)

    with pytest.raises(LeftoverTasks, match=r"did not end.*'stubborn'"):
        run_virtual(main())


def test_functions_in_threads_run_inline() -> None:
    """``asyncio.to_thread`` is deterministic: it runs in its turn and takes no virtual time."""

    async def main() -> tuple[int, float]:
        result = await asyncio.to_thread(int, "42")
        with pytest.raises(ValueError, match="invalid literal"):
            await asyncio.to_thread(int, "x")
        return result, asyncio.get_running_loop().time()

    assert run_virtual(main()) == (42, 0.0)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: asyncio.open_connection("localhost", 1),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.create_subprocess_shell("true"),
    ],
)
def test_real_io_is_refused(attempt: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """A connection or a process fails with a text that says what to do."""
    with pytest.raises(VirtualLoopError, match="no real I/O"):
        run_virtual(attempt())


def test_settle_waits_for_everything_that_can_run_now() -> None:
    """``settle`` returns when all else waits for time, at the same virtual time."""

    async def main() -> tuple[int, float]:
        turns = 0

        async def work() -> None:
            nonlocal turns
            for _ in range(100):
                await asyncio.sleep(0)
                turns += 1
            await asyncio.sleep(1)

        task = asyncio.create_task(work())
        await settle()
        seen = turns, asyncio.get_running_loop().time()
        await task
        return seen

    assert run_virtual(main(), seed=1) == (100, 0.0)


def test_unfinished_async_generators_are_closed() -> None:
    """A generator that was left half-way gets its cleanup on the same loop."""
    closed: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    kept: list[AsyncIterator[int]] = []

    async def main() -> int:
        kept.append(numbers())
        return await anext(kept[0])

    assert run_virtual(main()) == 1
    assert closed == [True]


async def test_it_refuses_to_run_inside_another_loop() -> None:
    """The error says how to call it, and the coroutine is closed, not leaked."""
    with pytest.raises(VirtualLoopError, match="plain `def"):
        run_virtual(_order_of(1))


def test_a_blocked_loop_runs_late_timers_in_one_turn() -> None:
    """Nothing runs while it is blocked; then everything that became due does, at the same time."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen: list[float] = []
        for when in (1.0, 2.0, 6.0):
            loop.call_at(when, lambda: seen.append(loop.time()))
        loop.block(5.0)
        await asyncio.sleep(3)
        return seen

    assert run_virtual(main()) == [5.0, 5.0, 6.0]


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_time_does_not_go_back(seconds: float) -> None:
    """A negative block is refused, and one of no number."""
    loop = VirtualLoop()
    with pytest.raises(VirtualLoopError):
        loop.block(seconds)
    loop.close()


def test_a_delay_is_a_number() -> None:
    """Time would stand still: no time comes before or after what is not a number."""

    async def wait() -> None:
        await asyncio.sleep(math.nan)

    async def call() -> None:
        asyncio.get_running_loop().call_at(math.nan, print)

    for main in (wait, call):
        with pytest.raises(ValueError, match="Invalid delay: NaN"):
            run_virtual(main())


@pytest.mark.parametrize("limit", [math.nan, 0, -1.0, None, "5"])
def test_a_limit_is_a_number(limit: Any) -> None:
    """With one that no time reaches, a run that is stuck would never end."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(ConfigurationError, match=r"run_virtual\(limit=...\) takes seconds, more than 0; got"):
        run_virtual(main(), limit=limit)
