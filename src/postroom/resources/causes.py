"""Failures that are remembered: the exception, what it says without secrets, and how long its traceback is kept."""

from collections import deque
from typing import Any, Final

from postroom.errors import ConfigurationError
from postroom.redaction import describe, describe_at_length, hidden_values

MOST_TRACEBACKS: Final = 100
"""Remembered errors that keep their tracebacks: each keeps frames, and what their variables name, in memory."""


class Unhealthy(Exception):
    """The health check of a new resource failed. Stays inside the pool: waiters get ``ResourceUnhealthyError``."""


class NotAProvider(ConfigurationError):
    """What the pool was given as a provider returned something that cannot be entered or awaited."""

    def __init__(self, text: str, *, always: bool) -> None:
        super().__init__(text)
        self.always = always
        """It has never returned anything else: the provider is wrong, not one tenant's answer."""


class Cause:
    """Why an open, or a use, failed. One object for the record, the log and everyone who is refused for it."""

    __slots__ = ("_context", "_text", "error", "unhealthy")

    def __init__(self, error: BaseException, context: Any) -> None:
        self.unhealthy: bool = isinstance(error, Unhealthy)
        self.error: BaseException = (error.__cause__ or error) if self.unhealthy else error
        """What the provider raised, or the health check."""
        self._context = context
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The error as one line, without secrets. Made once: in an outage many are refused for one cause."""
        if self._text is None:
            self._text = describe(self.error, hidden_values(self._context))
        return self._text

    def at_length(self) -> str:
        """Return the traceback, without secrets."""
        return describe_at_length(self.error, hidden_values(self._context))

    def forget_traceback(self) -> None:
        """Keep the error and its text, and let go of the frames."""
        _ = self.text
        seen: set[int] = set()
        rest: list[BaseException] = [self.error]
        while rest:
            each = rest.pop()
            seen.add(id(each))
            each.__traceback__ = None
            inner: list[BaseException | None] = [each.__cause__, each.__context__]
            if isinstance(each, BaseExceptionGroup):
                inner += _members(each)
            rest += [other for other in inner if other is not None and id(other) not in seen]


def _members(group: Any) -> tuple[BaseException, ...]:
    members: tuple[BaseException, ...] = group.exceptions
    return members


class Causes:
    """Lets the older of the remembered causes forget their tracebacks (I10)."""

    def __init__(self) -> None:
        self._recent: deque[Cause] = deque()

    def keep(self, cause: Cause) -> Cause:
        """Remember a cause as the newest one."""
        self._recent.append(cause)
        if len(self._recent) > MOST_TRACEBACKS:
            oldest = self._recent.popleft()
            # One exception may be the cause of several failures: the newest of them still needs its
            # frames.
            if all(oldest.error is not other.error for other in self._recent):
                oldest.forget_traceback()
        return cause
