"""What the servers of a test share."""

import asyncio
import threading
from typing import Self

import pytest

from postroom.testing._servers import Entered


class Server(Entered):
    """A server with a start that takes as long as the test says."""

    def __init__(self) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.running = False

    def start(self) -> Self:
        """Start it."""
        self.begun.set()
        assert self.goes_on.wait(10)
        self.running = True
        return self

    def stop(self) -> None:
        """Stop it."""
        self.running = False


@pytest.mark.parametrize("times", [1, 3])
async def test_a_start_that_is_cancelled_leaves_nothing_behind(times: int) -> None:
    """However often it is cancelled, as by a second Ctrl-C."""
    server = Server()
    entering = asyncio.create_task(server.__aenter__(), name="enter")
    await asyncio.to_thread(server.begun.wait)
    for _ in range(times):
        entering.cancel()
        await asyncio.wait([entering], timeout=0)
    server.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not server.running
