"""One receive of a message, from the moment it is ours until it is not."""

import math

from postroom.message import Message
from postroom.types import Settlement


class Delivery:
    """A received message and what is known of our hold on it.

    Only a local clock tells who owns a message: SQS answers success when a message is deleted with an expired
    receipt handle, and deletes nothing.
    """

    __slots__ = (
        "beating",
        "covered",
        "deadline",
        "due_with",
        "lost",
        "message",
        "receipt_handle",
        "received_at",
        "receives",
        "settlement",
    )

    def __init__(self, message: Message, *, received_at: float, visibility: float) -> None:
        self.message = message
        self.receipt_handle = message.receipt_handle
        self.receives = message.receive_count
        """Which receive the receipt handle is of, as SQS counts them."""
        self.received_at = received_at
        self.deadline = received_at + visibility
        """The loop time at which it is visible to others, unless an extension is confirmed before."""
        self.covered = False
        """Whether the heartbeat extends it."""
        self.beating = False
        """Whether an extension of it is on its way to SQS."""
        self.due_with: list[Delivery] | None = None
        """The deliveries that the heartbeat looks at next together with this one, itself included."""
        self.lost = False
        """Whether the deadline passed: whatever is done with the message now is not ours to do."""
        self.settlement: Settlement | None = None
        """What was decided to become of it; None while nobody has."""

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
        self.receives = message.receive_count
        self.receipt_handle = message.receipt_handle
        self.received_at = received_at
        self.deadline = received_at + visibility

    def extension(self, now: float, *, timeout: float, max_extension: float) -> int:
        """Return the whole seconds to ask for now; 0 when the longest total is reached."""
        left = self.received_at + max_extension - now
        return max(0, min(math.ceil(timeout), math.floor(left)))
