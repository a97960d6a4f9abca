"""What is kept in memory after a task has ended."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

_held: ContextVar[object] = ContextVar("held")


class Body:
    """Something large."""


async def is_kept(work: Callable[[], Awaitable[object]]) -> bool:
    """Whether what a context variable holds outlives a task that does some work.

    asyncio keeps a timer that was cancelled, and the context that it was made in, until its time.
    """

    async def run() -> weakref.ref[Body]:
        body = Body()
        _held.set(body)
        await work()
        return weakref.ref(body)

    earlier = asyncio.get_running_loop().call_later(60, gc.collect)  # a cancelled timer that is next goes at once
    found = await asyncio.create_task(run())
    await asyncio.sleep(0)  # the future of the task goes
    gc.collect()
    earlier.cancel()
    return found() is not None
