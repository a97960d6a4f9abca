"""A message context without a consumer behind it."""

import asyncio
from typing import Any

from postroom import Message, MessageContext
from postroom.tasks import TimeLimit
from postroom.transactions import MessageKey


class Recorded:
    """Settles nothing, and records what it was asked for; raises ``error`` if there is one."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.transactions = 0
        self.written: set[MessageKey] | None = None
        self.committed = 0
        self.limit: TimeLimit | None = None
        self.idle = 0.0
        self.lost = False
        self.loop = asyncio.get_running_loop()
        self.asked: list[tuple[str, float | None]] = []
        self.error = error
        self.gate: asyncio.Event | None = None

    def tell_half_done(self) -> None:
        """Record nothing."""

    async def acknowledge(self) -> None:
        """Record it."""
        await self._record("ack", None)

    async def give_back(self, delay: float | None) -> None:
        """Record it."""
        await self._record("retry", delay)

    async def extend(self, seconds: float) -> None:
        """Record it."""
        await self._record("extend", seconds)

    async def _record(self, what: str, number: float | None) -> None:
        assert asyncio.get_running_loop() is self.loop
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.asked.append((what, number))


def context_of(settles: Recorded, *, tenant: object = "acme", attempt: int = 1) -> MessageContext[Any, Any]:
    """Make the context of a message."""
    message = Message(id="0f8fad5b", body="{}")
    return MessageContext(message, tenant, None, tenant, attempt, settles)
