"""What an engine tells the keeper of its state: facts, after they were decided and before they are answered."""

from postroom.local.messages import Stored
from postroom.local.moves import Move
from postroom.local.queue import LocalQueue


class Journal:
    """Takes down what happened. ``flush`` returns when everything noted before it is kept.

    This one forgets everything: the state lives as long as the engine.
    """

    def queue(self, queue: LocalQueue) -> None:
        """A queue was made, or its attributes or tags changed."""

    def queue_gone(self, queue: LocalQueue) -> None:
        """A queue was deleted."""

    def purged(self, queue: LocalQueue) -> None:
        """All messages of a queue are gone."""

    def stored(self, queue: LocalQueue, message: Stored) -> None:
        """A message came into a queue."""

    def sent_once(self, queue: LocalQueue, key: tuple[str, str], message: Stored) -> None:
        """A message was sent under a deduplication key."""

    def changed(self, queue: LocalQueue, message: Stored) -> None:
        """A message was received, or its visibility timeout was changed."""

    def gone(self, queue: LocalQueue, message: Stored) -> None:
        """A message left a queue: deleted, expired or moved."""

    def move(self, move: Move) -> None:
        """A move task was started, or ended."""

    def flush(self) -> None:
        """Keep what was noted. Raises OSError if that is impossible; the client is then told of a failure."""
