"""What a pool of asyncpg does where the server has no connection left for it: it makes do with those that it has.

asyncpg passes the refusal on to the caller, although the pool's own connections come back in a moment. So a message
would fail, and its tenant count as out, because *other* programs fill the server.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

import asyncpg

T = TypeVar("T")

PAUSE: Final = 1.0
"""Seconds between two tries of a pool to get one more connection from a server that has refused one."""


class Growing(Protocol):
    """A pool of asyncpg."""

    def get_size(self) -> int:
        """Return how many connections exist."""
        ...

    def get_idle_size(self) -> int:
        """Return how many of them are not in use."""
        ...

    def prefer_connected(self) -> None:
        """Let the next ``acquire()`` take a connection that exists."""
        ...


class _Paused(Exception):
    """The server has refused a connection a moment ago."""


class Growth:
    """Whether a pool may grow, and who waits because it may not.

    Args:
        pool: the pool.
    """

    def __init__(self, pool: Growing) -> None:
        self._pool = pool
        self._until = 0.0
        self._returned: asyncio.Future[None] | None = None
        self.refusal: asyncpg.InsufficientResourcesError | None = None
        """What the server said last, until it has room again."""

    @contextmanager
    def trying(self) -> Generator[None]:
        """Make a connection within this block. It is not tried in the pause after a refusal."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._until and self._pool.get_size():
            raise _Paused
        try:
            yield
        except asyncpg.InsufficientResourcesError as refusal:
            self._until, self.refusal = loop.time() + PAUSE, refusal
            raise
        self._until, self.refusal = 0.0, None

    async def patiently(self, acquire: Callable[[], Awaitable[T]]) -> T:
        """Acquire a connection. Where the server refuses another one, wait for one that is in use here.

        Raises:
            asyncpg.InsufficientResourcesError: the server refuses one, and the pool has none.
        """
        while True:
            try:
                return await acquire()
            except (asyncpg.InsufficientResourcesError, _Paused):
                if not self._pool.get_size():
                    if self.refusal is not None:
                        raise self.refusal from None
                    continue  # another call got a connection and lost it: try for one
            self._pool.prefer_connected()
            if not self._pool.get_idle_size():
                await self._return()

    def returned(self) -> None:
        """Wake those who wait: a connection came back, or ended."""
        if self._returned is not None:
            self._returned.set_result(None)
            self._returned = None

    async def _return(self) -> None:
        """Wait for a connection that comes back, and no longer than the pause."""
        if self._returned is None:
            self._returned = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._returned], timeout=PAUSE)
