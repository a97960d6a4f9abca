"""What the servers of a test share: they run for as long as they are entered, by ``with`` or by ``async with``."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import Self

from postroom.tasks import told_once


class Entered(ABC):
    """A server that is started when it is entered, and stopped when it is left. Async, both run in a thread."""

    @abstractmethod
    def start(self) -> Self:
        """Start the server."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the server and remove its files."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.create_task(asyncio.to_thread(self.start), name=f"postroom-{type(self).__name__}-start")
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread cannot be cancelled: what it started would be left behind.
            while not starting.done():  # however often this is cancelled
                with suppress(asyncio.CancelledError), told_once():
                    await asyncio.wait([starting])
            self.stop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)
