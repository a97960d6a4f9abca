"""One message's way through the consumer."""

import asyncio
from enum import Enum
from typing import Any

from postroom.errors import ContextError
from postroom.message import Message
from postroom.scheduling import Ticket
from postroom.settlement import Delivery


class Cancellation(Enum):
    """Why a handler is cancelled. Shown as the message of its ``CancelledError``."""

    LOST = "the message is not ours any more: its visibility timeout is over"
    STOPPING = "the consumer stops and its drain time is over"


class Job(Ticket, eq=False, kw_only=True):
    """A delivery with its place in the scheduler, and how far it got."""

    delivery: Delivery
    message: Message
    """The message as it was received."""
    context: Any = None
    context_error: ContextError | None = None
    payload: Any = None
    task: asyncio.Task[None] | None = None
    turn: asyncio.Future[None] | None = None
    """Set while it waits for a slot a second time, with its resources in hand."""
    since: float = 0.0
    """The loop time at which it got its slot."""
    begun: bool = False
    """Whether its task runs. One that is cancelled before would never get to its own clean-up."""
    probe: float = 0.0
    """Not 0.0: its tenant's handlers failed so often that nothing else of it is tried until this one ends. The loop
    time until which the tenant was left alone: whether that is still the same pause tells a probe from a former one."""
    started: bool = False
    """Whether its handler was called."""
    cancellation: Cancellation | None = None

    def __repr__(self) -> str:
        return f"Job({self.message.id!r}, {self.state.value})"

    def cancel(self, reason: Cancellation) -> None:
        """Cancel the task that works on it, if there is one and it has begun."""
        if self.task is not None and self.begun and not self.task.done():
            self.cancellation = reason
            self.task.cancel(reason.value)
