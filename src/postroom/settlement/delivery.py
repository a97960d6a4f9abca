"""One receive of a message, from the moment it is ours until it is not."""

import asyncio
import math
from typing import Any, Final, Self

import msgspec

from postroom.display import Discreet
from postroom.message import Message
from postroom.options import MAX_VISIBILITY, Visibility
from postroom.scheduling import Ticket
from postroom.types import Settlement

_ON_THE_WAY: Final = 5
"""Seconds of the 12 hours that are left to calls on their way, which SQS counts and the local clock does not know."""


class Delivery(Discreet, Ticket, eq=False, kw_only=True):
    """A received message and what is known of our hold on it. It is the scheduler's ticket as well.

    Only a local clock tells who owns a message: SQS answers success when a message is deleted with an expired
    receipt handle, and deletes nothing.
    """

    message: Message
    receipt_handle: str
    """Of the newest receive."""
    received_at: float
    deadline: float
    """The loop time at which it is visible to others, unless an extension is confirmed before."""
    visibility: Visibility | None = None
    """The policy of its tenant, once that is known; None for the consumer's own."""
    attempt: int = 1
    """Which attempt this is, the first one being 1."""
    tried: bool = False
    """Whether the user's code has run for it: otherwise this attempt was not made."""
    covered: bool = False
    """Whether the heartbeat extends it."""
    beating: bool = False
    """Whether an extension of it is on its way to SQS."""
    due_with: "dict[Delivery, None] | None" = None
    """The deliveries that the heartbeat looks at next together with this one, itself included."""
    lost: bool = False
    """Whether the deadline passed: whatever is done with the message now is not ours to do."""
    settlement: Settlement | None = None
    """What was decided to become of it; None while nothing is decided."""
    confirmed: bool = False
    """Whether SQS has confirmed that."""
    decision: "Decision | None" = None
    """The decision while it is on its way to SQS."""
    told: bool = False
    """Whether the listener was told what became of it."""
    receives: int = 1
    """How often the message was received, as SQS counts it, the newest receive included."""
    renewal: Message | None = None
    """The newest receive, where that is not the first."""
    trouble: str | None = None
    """Why its last extension was not confirmed."""
    out_of_reach: bool = False
    """Whether that was SQS's fault, and not a refusal: nothing else can be sent to it either."""
    overdue: str | None = None
    """Why its time is over, where that was seen while the answer to what had left before was still to come."""
    slept: float = 0.0
    """Seconds that the machine was suspended in all, when the deadline was last set right."""

    @classmethod
    def of(cls, message: Message, received_at: float, visibility: float) -> Self:
        """Begin to hold a message that was received at a loop time, for ``visibility`` seconds."""
        return cls(
            message=message,
            receipt_handle=message.receipt_handle,
            received_at=received_at,
            deadline=received_at + visibility,
            receives=message.receive_count,
        )

    def is_again(self, earlier: Ticket) -> bool:
        """Whether this is a later receive of the same message."""
        return isinstance(earlier, Delivery) and self.message.id == earlier.message.id

    @property
    def may_be_renewed(self) -> bool:
        """Whether a second receive of the message belongs to this one: it is still ours, and not given back."""
        return not self.lost and self.settlement in {None, Settlement.ACKED, Settlement.REJECTED}

    def renew(self, message: Message, *, received_at: float, visibility: float) -> None:
        """Take over a second receive of the same message: the newest receipt handle is the one that counts.

        The answers of two receives may arrive in the wrong order; then there is nothing to take over.
        """
        receives = message.receive_count
        if receives < self.receives:
            return
        self.receives = receives
        # The body is the same: there is no need for a second one in memory.
        self.renewal = msgspec.structs.replace(message, body=self.message.body)
        self.receipt_handle = message.receipt_handle
        self.received_at = received_at
        self.deadline = received_at + visibility
        self.overdue = None
        self.covered = True  # a refusal to extend the older receive says nothing of this one

    def account_for_sleep(self, slept: float) -> None:
        """Bring the deadline forward by what the machine slept: the loop's clock stood still, SQS's did not."""
        missed, self.slept = slept - self.slept, slept
        self.received_at -= missed
        self.deadline -= missed

    def extension(self, now: float, *, timeout: float, max_extension: float) -> int:
        """Return the whole seconds to ask for now; 0 when the longest total is reached."""
        left = self.received_at + max_extension - now
        return max(0, min(math.ceil(timeout), math.floor(left)))

    def allowed(self, seconds: int, now: float) -> int:
        """Return how much of a delay SQS takes now: it allows 12 hours in all, counted from its own receive."""
        return min(seconds, max(1, math.floor(self.received_at + MAX_VISIBILITY - _ON_THE_WAY - now)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message.id!r}, {self.settlement})"


class Ending(msgspec.Struct, frozen=True, eq=False):
    """What became of one delivery."""

    delivery: Any
    settlement: Settlement
    delay: float = 0.0
    """Seconds until the message is visible again."""


class Decision(msgspec.Struct, eq=False):
    """What was decided about one delivery, on its way to SQS."""

    delivery: Delivery
    delay: float = 0.0
    """Seconds until the message is visible again, or that it is extended by."""
    waiter: asyncio.Future[None] | None = None
    """The call that waits for the answer."""
    extends: bool = False
    """Whether it asks for more time, and settles nothing."""
    sent_handle: str = ""
    """The receipt handle that it was sent with last; empty while it was never sent."""
    on_its_way: bool = False
    """Whether a call with it is not answered yet."""
    over: bool = False
    """Whether it has ended, however that was."""

    def answer(self, error: Exception | None = None) -> None:
        """Tell the call that waits."""
        self.over = True
        waiter = self.waiter
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
            # Its caller may have been cancelled in this very turn: then the error is read by nothing else.
            waiter.exception()
