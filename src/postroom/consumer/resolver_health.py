"""How the context resolver of a queue does: one that fails for everything is no fault of the messages."""

from typing import Final

from postroom.consumer.failing import raised_by_the_user
from postroom.consumer.job import Job
from postroom.errors import ContextError, in_words
from postroom.log_fields import Log, Step, about
from postroom.redaction import redact

_log = Log("postroom.consumer", Step.CONTEXT)

_ROW: Final = 10
"""Messages in a row, each of which fails here for the first time, from which on it fails for everything: as many
failures as the default of ``Faults(breaker_after=)``. Bad messages that come again are no such row."""
_LAST: Final = 600.0
"""Seconds for which the attempts of a message last then: a deployment with a mistake is noticed, and taken back."""
_UNCOUNTED: Final = 11
"""Attempts among which they are shared where the queue counts no receives: one a minute."""


class ResolverHealth:
    """Whether a queue's resolver fails for every message, for which no tenant's breaker can stand.

    Only what a function of the user's raises counts, such as a ``KeyError`` of an environment variable that is missing,
    or the time-out of a service that it asks. An attribute that is missing is the message's own fault.

    Args:
        queue: its name.
    """

    __slots__ = ("_queue", "_since", "failures")

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self.failures: int = 0
        """Messages in a row. One context ends it."""
        self._since = 0.0

    @property
    def fails(self) -> bool:
        """Whether it fails for everything."""
        return self.failures >= _ROW

    def failed(self, job: Job, error: ContextError, now: float) -> None:
        """Note that there is no context for a message."""
        if job.source.attempts.known(job) or raised_by_the_user(error.__cause__) is None:
            return
        self._since = self._since if self.failures else now
        self.failures += 1
        if self.failures == _ROW:
            text = (
                "The context resolver fails for everything in %s, for %d messages in a row (last: %s): a mistake of "
                "this deployment, or what it asks is down. Attempts are %.0f s apart until it works again"
            )
            arguments = self._queue, self.failures, redact(in_words(error)), self.spacing(job)
            _log.error(text, *arguments, extra=about(job, step=Step.CONTEXT))

    def succeeded(self, now: float) -> None:
        """Note a context."""
        if self.fails:
            text = "The context resolver works again in %s after %.1f s"
            _log.warning(text, self._queue, now - self._since, extra=about(queue=self._queue))
        self.failures = 0

    def spacing(self, job: Job) -> float:
        """Return the least seconds between two attempts of a message."""
        if not self.fails:
            return 0.0
        return _LAST / max(1, (job.source.attempts.promised(job) or _UNCOUNTED) - 1)
