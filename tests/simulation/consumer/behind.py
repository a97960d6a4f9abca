"""Oracle *expense*, behind a dead letter: what follows in its message group waits, and is not received again and again.

SQS gives out nothing of a group while its first message is in flight. But that one may be lost while its letter is on
its way. Then what follows comes, and may not be started; given back at once, it would come again at once.
"""

from collections import Counter

MOST = 2
"""Receives that a message behind one letter may cost: one when the letter was not taken, and one that was on
its way."""


class Behind:
    """Counts what comes and goes back behind letters of one process."""

    def __init__(self) -> None:
        self._letters: dict[str, tuple[str, float]] = {}
        """Message to its group, and to when its letter was sent first."""
        self._returned: Counter[tuple[str, str]] = Counter()
        self._failures: Counter[str] = Counter()
        """By group, how often a message of it went back for itself: what is behind that one goes with it."""

    def offers(self, message: str, group: str | None, now: float) -> None:
        """Note that a letter is sent."""
        if group is not None:
            self._letters.setdefault(message, (group, now))

    def is_out(self, group: str) -> bool:
        """Return whether a letter of a group is on its way."""
        return any(each == group for each, _ in self._letters.values())

    def ends(self, message: str) -> None:
        """Note that it was decided what becomes of a message."""
        group, _ = self._letters.pop(message, ("", 0.0))
        if group and not self.is_out(group):
            for key in [key for key in self._returned if key[0] == group]:
                del self._returned[key]
            del self._failures[group]

    def gives_back(self, message: str, group: str | None, received_at: float, *, failed: bool) -> str | None:
        """Judge that a message is given back. ``failed`` tells that it goes back for itself."""
        if group is None or message in self._letters:
            return None
        if failed:
            self._failures[group] += self.is_out(group)
            return None
        if not any(each == group and since < received_at for each, since in self._letters.values()):
            return None
        self._returned[group, message] += 1
        if self._returned[group, message] <= MOST + self._failures[group]:
            return None
        times = self._returned[group, message]
        return f"gives {message[:4]} back {times} times while a letter of its group is on its way"
