"""A time limit that does not keep alive what its code works on."""

import asyncio

import pytest

from postroom.tasks import TimeLimit
from support.kept import is_kept
from support.virtual import in_virtual_time


async def test_its_timer_keeps_no_context() -> None:
    """What a context variable held is gone with the task, long before the time would have been over."""

    async def work() -> None:
        async with TimeLimit(3600):
            await asyncio.sleep(0)

    assert not await is_kept(work)


async def test_it_ends_what_takes_too_long() -> None:
    """With a TimeoutError, and it says that it was so."""
    limit = TimeLimit(0.0)
    with pytest.raises(TimeoutError):
        async with limit:
            await asyncio.get_running_loop().create_future()
    assert limit.expired()


async def test_without_seconds_there_is_no_limit() -> None:
    """Nothing happens."""
    async with TimeLimit(None) as limit:
        await asyncio.sleep(0)
    assert not limit.expired()


@in_virtual_time
async def test_a_pause_does_not_count() -> None:
    """What was left before it is left after it; once the time is over, or the block left, a pause changes nothing."""

    async def work(limit: TimeLimit) -> None:
        async with limit:
            await asyncio.sleep(1)
            limit.pause()
            await asyncio.sleep(10)
            limit.resume()
            await asyncio.sleep(3600)

    time = asyncio.get_running_loop().time
    began, limit = time(), TimeLimit(3.0)
    with pytest.raises(TimeoutError):
        await work(limit)
    assert time() - began == pytest.approx(13.0)
    limit.pause()
    limit.resume()
    assert limit.expired()
