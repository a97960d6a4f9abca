"""When to leave the hot path alone: a plain function of what happened, and of the time."""


class Breaker:
    """Pauses a path after a throttle, or after several misses in a row.

    While it is paused nothing is let through; after the pause one call is, and tells whether to go on.

    Args:
        misses: misses in a row that pause it.
        pause: seconds of the first pause; each further one in a row is twice as long.
        longest: seconds of the longest pause.
    """

    __slots__ = ("_first", "_limit", "_longest", "_misses", "_pause", "_probing", "_until")

    def __init__(self, *, misses: int = 3, pause: float = 5.0, longest: float = 300.0) -> None:
        self._limit = misses
        self._first = self._pause = pause
        self._longest = longest
        self._misses = 0
        self._until: float | None = None
        self._probing = False

    def allows(self, now: float) -> bool:
        """Whether this call may take the path. After a pause the first one that asks is the probe."""
        if self._until is None:
            return True
        if now < self._until:
            return False
        self._probing = True
        self._until = now + self._pause  # a probe that never reports must not close the path for good
        return True

    def hit(self) -> bool:
        """Take note of a success; return whether it ended a pause.

        While it is paused and nothing probes, a success is of a call from before the pause, and proves nothing.
        """
        self._misses = 0
        if self._until is None or not self._probing:
            return False
        self._until = None
        self._probing = False
        self._pause = self._first
        return True

    def miss(self, now: float, *, throttled: bool = False) -> float | None:
        """Take note of a failure; return the seconds of the pause if one begins."""
        self._misses += 1
        if self._until is not None and not self._probing:
            return None  # of a call from before the pause
        if not (throttled or self._probing or self._misses >= self._limit):
            return None
        pause = self._pause
        self._until = now + pause
        self._probing = False
        self._pause = min(2 * pause, self._longest)
        return pause
