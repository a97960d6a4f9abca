"""One receive of a message, from the moment it is ours until it is not."""

import math
from typing import Self

import msgspec

from postroom.message import Message
from postroom.types import Settlement


class Delivery(msgspec.Struct, eq=False):
    """A received message and what is known of our hold on it.

    Only a local clock tells who owns a message: SQS answers success when a message is deleted with an expired
    receipt handle, and deletes nothing.
    """

    message: Message
    receipt_handle: str
    """Of the newest receive."""
    received_at: float
    deadline: float
    """The loop time at which it is visible to others, unless an extension is confirmed before."""
    covered: bool = False
    """Whether the heartbeat extends it."""
    beating: bool = False
    """Whether an extension of it is on its way to SQS."""
    due_with: "list[Delivery] | None" = None
    """The deliveries that the heartbeat looks at next together with this one, itself included."""
    lost: bool = False
    """Whether the deadline passed: whatever is done with the message now is not ours to do."""
    settlement: Settlement | None = None
    """What was decided to become of it; None while nobody has."""
    confirmed: bool = False
    """Whether SQS has confirmed that."""
    renewal: Message | None = None
    """The newest receive, where that is not the first."""

    @classmethod
    def of(cls, message: Message, *, received_at: float, visibility: float) -> Self:
        """Begin to hold a message that was received at a loop time, for ``visibility`` seconds."""
        return cls(message, message.receipt_handle, received_at, received_at + visibility)

    @property
    def receives(self) -> int:
        """How often the message was received, as SQS counts it, the newest receive included."""
        return (self.renewal or self.message).receive_count

    @property
    def may_be_renewed(self) -> bool:
        """Whether a second receive of the message belongs to this one: it is still ours, and not given back."""
        return not self.lost and self.settlement in {None, Settlement.ACKED, Settlement.REJECTED}

    def renew(self, message: Message, *, received_at: float, visibility: float) -> None:
        """Take over a second receive of the same message: the newest receipt handle is the one that counts.

        The answers of two receives may arrive in the wrong order; then there is nothing to take over.
        """
        if message.receive_count < self.receives:
            return
        self.renewal = message
        self.receipt_handle = message.receipt_handle
        self.received_at = received_at
        self.deadline = received_at + visibility

    def extension(self, now: float, *, timeout: float, max_extension: float) -> int:
        """Return the whole seconds to ask for now; 0 when the longest total is reached."""
        left = self.received_at + max_extension - now
        return max(0, min(math.ceil(timeout), math.floor(left)))

    def __repr__(self) -> str:
        return f"Delivery({self.message.id!r}, {self.settlement})"
