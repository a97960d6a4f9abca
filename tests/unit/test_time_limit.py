"""A time limit that does not keep alive what its code works on."""

import asyncio
import gc
import weakref
from contextvars import ContextVar

import pytest

from postroom.tasks import TimeLimit

_held: ContextVar[object] = ContextVar("held")


class Body:
    """Something large."""


async def test_its_timer_keeps_no_context() -> None:
    """What a context variable held is gone with the task, long before the time would have been over."""

    async def work() -> weakref.ref[Body]:
        body = Body()
        _held.set(body)
        async with TimeLimit(3600):
            await asyncio.sleep(0)
        return weakref.ref(body)

    earlier = asyncio.get_running_loop().call_later(60, gc.collect)  # a cancelled timer that is next goes at once
    found = await asyncio.create_task(work())
    await asyncio.sleep(0)  # the future of the task goes
    gc.collect()
    earlier.cancel()
    assert found() is None


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
