"""A call waits for room in its queue's own allowance, and a long wait is told once."""

import asyncio
import logging

import pytest

from postroom.transports.aws.room import Room
from support.virtual import in_virtual_time

WARNING = "A receive waits for more than %g s: %d are out"


async def hold(room: Room, seconds: float) -> None:
    """Take room for some seconds."""
    async with room:
        await asyncio.sleep(seconds)


@in_virtual_time
async def test_a_long_wait_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many wait, and however long."""
    room = Room(2, WARNING)
    await asyncio.gather(*(hold(room, 20) for _ in range(8)))
    assert asyncio.get_running_loop().time() == 80
    assert caplog.messages == ["A receive waits for more than 1 s: 2 are out"]
    assert caplog.records[0].levelno == logging.WARNING


@in_virtual_time
async def test_a_short_wait_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """Nor is one that was cancelled in time."""
    room = Room(1, WARNING)
    await asyncio.gather(hold(room, 0.9), hold(room, 0.9))
    holder = asyncio.create_task(hold(room, 20), name="holder")
    await asyncio.sleep(0)
    waiter = asyncio.create_task(hold(room, 20), name="waiter")
    await asyncio.sleep(0.5)
    waiter.cancel()
    await asyncio.wait([holder, waiter])
    assert caplog.messages == []
