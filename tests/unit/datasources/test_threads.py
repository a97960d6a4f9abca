"""A thread of its own for what may hang."""

import asyncio

import pytest

from postroom.datasources._threads import in_thread


async def test_a_stop_iteration_in_a_thread_is_told() -> None:
    """A listener of connections may let one out, by ``next()``: who opens the tenant would wait for good."""

    def work() -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration") as raised:
        await asyncio.wait_for(in_thread(work), 10)
    assert isinstance(raised.value.__cause__, StopIteration)
