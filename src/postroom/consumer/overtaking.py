"""Whether the queue hands out quiet tenants' messages first, told by the queue's own times."""

from collections.abc import Hashable
from typing import Final

from postroom.message import Message

_MARGIN: Final = 0.005
"""Seconds by which a message must have been overtaken: SQS's times are whole milliseconds."""
_REMEMBER: Final = 1_000


class Overtaking:
    """Judges from the order of messages which tenants the queue puts behind the quiet ones.

    A noisy tenant's message that comes after a quiet one, though it was sent before it, was overtaken: the queue knows
    that tenant. Messages of all other tenants are handed out in the order in which they were sent, so a quiet message
    lies about as long as they do: ``depth``. All times compared are the queue's own, so no clock of ours matters
    and no delay on the way; only first receives count, because a message that came back has lost its place.
    """

    def __init__(self) -> None:
        self.depth: float = 0.0
        """Seconds that a quiet message now has to lie in the queue behind noisy ones."""
        self._sent = self._received = self._until = 0.0  # of the quiet message sent last
        self._known: dict[Hashable, float] = {}  # tenant: until when its last overtaking counts

    def found_quiet(self, message: Message, *, until: float) -> float:
        """Note a quiet tenant's message. The queue knows the tenants that it overtook, it is assumed, until a time.

        Returns the seconds that it lay in the queue; 0.0 where that is not known.
        """
        times = _times(message)
        if times is None:
            return 0.0
        sent, received = times
        if sent > self._sent:
            self._sent, self._received, self._until = sent, received, until
        return received - sent

    def found_noisy(self, tenant: Hashable, message: Message, *, now: float) -> bool | None:
        """Note a noisy tenant's message. Returns whether the queue knows its tenant; None if that tells nothing."""
        times = _times(message)
        known = self._known.get(tenant, 0.0) > now
        if times is None and not known:
            return None
        sent, received = times or (0.0, 0.0)
        if now < self._until and received > self._received and sent < self._sent - _MARGIN:
            if len(self._known) >= _REMEMBER:
                self._known.clear()
            self._known[tenant] = self._until
            self.depth = 0.0
        elif known:
            self.depth = 0.0  # such a message comes only when no quiet one lies there
        else:
            self.depth = received - sent
            return False
        return True

    def emptied(self) -> None:
        """Note that a receive brought less than it asked for: nothing else lies there."""
        self.depth = 0.0

    def forget(self) -> None:
        """Forget which tenants the queue knows."""
        self._known.clear()


def _times(message: Message) -> tuple[float, float] | None:
    """Return when a message was sent and when received, both by the queue's clock, if this is its first receive."""
    sent, received = message.sent_at, message.first_received_at
    if sent is None or received is None or message.receive_count != 1:
        return None
    return sent, received
