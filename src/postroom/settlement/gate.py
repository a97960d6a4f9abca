"""When the next call of one kind may go to a queue that refuses them. Pure."""

from dataclasses import dataclass
from random import Random

_SHORTEST = 0.2
"""Seconds between two calls, at least, that leave while it is not known whether calls work again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Seconds between two calls while they fail: ``first``, doubling up to ``cap``."""

    first: float = 0.2
    cap: float = 5.0

    def after(self, pause: float | None, rng: Random) -> tuple[float, float]:
        """Return the pause after one of ``pause`` seconds (None: there was none), without and with its jitter."""
        longest = self.first if pause is None else min(self.cap, max(self.first, 2 * pause))
        return longest, longest * (1.0 - 0.3 * rng.random())


class Gate:
    """One backoff for all calls of one kind to one queue, however many batches wait.

    Open, it lets everything through. After a failure one call goes at a time, after growing pauses. When one succeeds,
    each success lets two more through until it is open again: what has gathered does not go out all at once.
    A call that is never answered does not block the others: after each pause one call goes in any case.
    """

    _OPEN_AT = 8
    """Calls that may go at once in the recovery, from which on it is over."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._pause: float | None = None
        self._closed_at = 0.0
        self._until = 0.0
        self._permits = 0
        self.is_open: bool = True
        self.failing_since: float | None = None
        """When the first call failed since one went well; None while they go well."""

    @property
    def opens_at(self) -> float:
        """The time at which a call may go in any case. Meaningful while it is not open."""
        return self._until

    def admits(self, now: float) -> bool:
        """Return whether a call may go now."""
        return self.is_open or self._permits > 0 or now >= self._until

    def take(self, now: float) -> None:
        """Note that a call goes, which ``admits`` has allowed."""
        if self.is_open:
            return
        if self._permits > 0:
            self._permits -= 1
        else:
            # The next one goes after the pause, answered or not: a call that hangs must not keep
            # the gate closed.
            self._until = now + (self._pause or _SHORTEST)

    def failed(self, pauses: Pauses, *, sent_at: float, now: float) -> None:
        """Note that a call failed. Calls that left before the last failure was known tell nothing new."""
        if not self.is_open and sent_at < self._closed_at:
            return
        self._pause, pause = pauses.after(None if self.is_open else self._pause, self._rng)
        self.is_open = False
        if self.failing_since is None:
            self.failing_since = now
        self._permits = 0
        self._closed_at = now
        self._until = now + pause

    def succeeded(self) -> None:
        """Note that a call went well."""
        self.failing_since = None
        if not self.is_open:
            # A failure during the recovery must not cost the longest pause again.
            self._pause = None if self._pause is None else min(self._pause, 1.0)
            self._permits += 2
            self.is_open = self._permits >= self._OPEN_AT

    def hurry(self, now: float) -> None:
        """Let the next call go at once, and start with short pauses again: there is not much time left."""
        if not self.is_open:
            self._until = now
            self._pause = None
