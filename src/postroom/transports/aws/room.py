"""How many calls of a queue may be out at once."""

import asyncio
from types import TracebackType
from typing import Final

from postroom.log_fields import Log, Step
from postroom.transports.aws.clean import CLEAN

_log: Final = Log("postroom.transports", Step.CLIENT)

PATIENCE: Final = 1.0
"""Seconds that a call waits for room before a warning says so."""


class Room:
    """Room for so many calls at once. It is entered for each call, and warns once when a call waits long for it.

    Args:
        size: calls at once.
        warning: what to log.
    """

    __slots__ = ("_free", "_size", "_warned", "_warning")

    def __init__(self, size: int, warning: str) -> None:
        self._free = asyncio.Semaphore(size)
        self._size = size
        self._warning = warning
        self._warned = False

    async def __aenter__(self) -> None:
        if self._warned or not self._free.locked():
            await self._free.acquire()
            return
        timer = asyncio.get_running_loop().call_later(PATIENCE, self._warn, context=CLEAN.copy())
        try:
            await self._free.acquire()
        finally:
            timer.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._free.release()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(self._warning, PATIENCE, self._size)
