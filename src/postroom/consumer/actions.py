"""What the core wants done: the engine does it."""

import msgspec

from postroom.consumer.job import Job
from postroom.types import Settlement


class GiveBack(msgspec.Struct, frozen=True):
    """Make a message visible again, after a delay."""

    job: Job
    settlement: Settlement
    delay: float = 0.0


class Reject(msgspec.Struct, frozen=True):
    """Send a message to the dead-letter queue, with the reason."""

    job: Job
    reason: str
    delay: float = 30.0
    """Seconds until it is seen again if that is not possible."""


class ReturnGroup(msgspec.Struct, frozen=True):
    """Give back what is still being resolved of a message group: a message before it was not done."""

    group: str
    message_id: str | None = None
    """The message that was not done: where it has come again, it stays."""
    behind: bool = False
    """Something that stood behind it went back already: so does what is behind it where it has come again."""


class RelieveAt(msgspec.Struct, frozen=True):
    """Call ``relieve`` again at a time: it has looked a moment ago."""

    when: float


class GoOnAt(msgspec.Struct, frozen=True):
    """Call ``go_on`` at a time: a message group stands still until then."""

    group: str
    when: float


Action = GiveBack | Reject | ReturnGroup | RelieveAt | GoOnAt
