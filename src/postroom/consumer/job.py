"""One message on its way through the consumer."""

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from postroom.errors import MessageError
from postroom.message import Attributes, Message
from postroom.resources import Lease
from postroom.settlement import Delivery
from postroom.tasks import TimeLimit

if TYPE_CHECKING:
    from postroom.consumer.source import Source


class Cancellation(Enum):
    """Why a handler is cancelled. Shown as the message of its ``CancelledError``."""

    LOST = "the message is not ours any longer: its visibility timeout is over"
    STOPPING = "the consumer stops and its drain time is over"


class Job(Delivery, eq=False, kw_only=True):
    """A delivery, and how far the consumer got with it. The only place that knows what becomes of a message.

    Three layers share this object: the scheduler its place in line (``state``), the settler our hold on the message
    (``deadline``, ``settlement``), the consumer what it found out about it.
    """

    source: "Source"
    """The queue that it came from, with what settles and handles its messages."""
    context: Any = None
    problem: MessageError | None = None
    """Why it cannot be handled: its context could not be resolved."""
    slow: bool = False
    """Whether its resolver has kept it waiting for so long that it takes no room of others."""
    inner: Message | None = None
    """The message out of its envelope, from its context to its payload; see ``Consumer(unwrap=...)``."""
    attributes: Attributes | None = None
    """Those that stood in its envelope, as soon as it was opened."""
    payload: Any = None
    decoded: bool = False
    lease: Lease[Any] | None = None
    """Its tenant's resources, while it waits for a slot with them in hand."""
    leasing: float = 0.0
    """Seconds for which it waited for its tenant's resources."""
    task: asyncio.Task[None] | None = None
    turn: asyncio.Future[bool] | None = None
    """Set while it waits for a slot with its resources in hand: True for its turn, False to go back without them."""
    since: float = 0.0
    """The loop time at which it got its slot."""
    running: bool = False
    """Whether its task has begun. One that is cancelled before that would never get to its own clean-up."""
    probe: bool = False
    """Whether its outcome decides if its tenant's breaker closes."""
    leads: bool = False
    """Whether it is the one that tries whether its tenant's resources can be opened again; the others wait for it."""
    started: bool = False
    """Whether its handler was called."""
    met_outage: bool = False
    """Whether its handler failed because its tenant's resources are out."""
    reported: bool = False
    """Whether ``on_error`` was told that it waits for its tenant's resources: once is enough."""
    reporting: bool = False
    """Whether ``on_error`` runs for it."""
    parted: bool = False
    """Whether it was lost, and what was behind it in its message group went back then."""
    rejecting: bool = False
    """Whether it is on its way to the dead-letter queue."""
    cancellation: Cancellation | None = None
    """Why it was cancelled, if the consumer did so."""
    limit: TimeLimit | None = None
    """The time limit of the last call of its handler, or of ``on_error``, where that has one."""
    counted: bool = False
    """Whether a failed attempt was counted: a receive is one attempt, however often it is said to have failed."""
    tries: int = 0
    """Failed attempts of this receive before the present one."""
    away_from: Any = None
    """The obstacle for which it was given back, if it was: the end of that obstacle calls it back."""

    def begin_again(self) -> None:
        """Be as it came, but for its attempts: it is tried once more without another receive."""
        self.lane = None
        # Decoded once more: the handler that failed may have changed its payload.
        self.payload, self.decoded = None, False
        self.leasing = 0.0
        self.tries += self.counted
        self.started = self.counted = self.met_outage = False
        self.away_from = None

    def forget_body(self) -> None:
        """Keep of the message only what says which one it was: it is over, and its body is large."""
        self.message = msgspec.structs.replace(self.message, body="")
        self.renewal = self.inner = self.payload = None

    def cancel(self, reason: Cancellation) -> None:
        """Cancel the task that works on it, if there is one and it has begun."""
        if self.task is not None and self.running and not self.task.done():
            self.cancellation = reason
            self.task.cancel(reason.value)

    def __repr__(self) -> str:
        return f"Job({self.message.id!r}, {self.state.value})"
