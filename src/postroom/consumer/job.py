"""One message's way through the consumer."""

import asyncio
from collections.abc import Hashable
from enum import Enum
from typing import Any

from postroom.errors import ContextError
from postroom.scheduling import Ticket
from postroom.settlement import Delivery


class Cancellation(Enum):
    """Why a handler is cancelled. Shown as the message of its ``CancelledError``."""

    LOST = "the message is not ours any more: its visibility timeout is over"
    STOPPING = "the consumer stops and its drain time is over"


class Job(Ticket):
    """A delivery with its place in the scheduler, and how far it got."""

    __slots__ = (
        "begun",
        "cancellation",
        "context",
        "context_error",
        "delivery",
        "message",
        "payload",
        "probe",
        "since",
        "started",
        "task",
        "turn",
    )

    def __init__(self, delivery: Delivery, tenant: Hashable, group: str | None, context: Any) -> None:
        super().__init__(tenant, group)
        self.delivery = delivery
        self.message = delivery.message
        """The message as it was received."""
        self.context = context
        self.context_error: ContextError | None = None
        self.payload: Any = None
        self.task: asyncio.Task[None] | None = None
        self.turn: asyncio.Future[None] | None = None
        """Set while it waits for a slot a second time, with its resources in hand."""
        self.since = 0.0
        """The loop time at which it got its slot."""
        self.begun = False
        """Whether its task runs. One that is cancelled before would never get to its own clean-up."""
        self.probe = False
        """Whether its tenant's handlers failed so often that nothing else of it is tried until this one ends."""
        self.started = False
        """Whether its handler was called."""
        self.cancellation: Cancellation | None = None

    def cancel(self, reason: Cancellation) -> None:
        """Cancel the task that works on it, if there is one and it has begun."""
        if self.task is not None and self.begun and not self.task.done():
            self.cancellation = reason
            self.task.cancel(reason.value)
