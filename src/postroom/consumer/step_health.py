"""What comes before a handler, the context and the payload: where it fails for everything, no message is bad."""

from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from postroom.consumer.availability import Obstacle, ObstacleKind
from postroom.consumer.job import Job
from postroom.errors import MessageError, in_words
from postroom.log_fields import Log, Step, about
from postroom.outages import Kind, Outages, cause_of
from postroom.redaction import redact
from postroom.types import AckMode

_log = Log("postroom.consumer", Step.CONTEXT)

_ROW: Final = 10
"""Messages in a row, each of which fails here for the first time, from which on it fails for everything: as many
failures as the default of ``Faults(breaker_after=)``. Bad messages that come again are no such row. As many that go
well in a row, and are tried again, end it."""
_OTHERS: Final = 10
"""Messages that go well at their first attempt which prove as much as one that is tried again: half of them may go well
also with the mistake."""
_PROVEN: Final = 30.0
"""Seconds after which one that goes well ends it, if none fails meanwhile: there may be no others."""
_LAST: Final = 600.0
"""Seconds for which the attempts of a message last then: a deployment with a mistake is noticed, and taken back."""
_UNCOUNTED: Final = 11
"""Attempts among which they are shared where the queue counts no receives: one a minute."""


def is_tried_again(job: Job) -> bool:
    """Whether a message has failed before: if it goes well now, that is no chance."""
    return job.source.attempts.number(job) > 1


class StepHealth:
    """Whether a step fails for every message of a queue, or of all: no tenant's breaker can stand for that.

    Args:
        what: the step, for the log.
        why: what it may be, for the log.
        queue: what the queue, or all of them together, are called.
        step: for the log.
        whole: the same of all queues of the consumer, where it has several: each may have a message or two.
        outages: what the log says of steps that fail and work again.
    """

    def __init__(
        self,
        what: str,
        why: str,
        *,
        queue: str,
        step: Step,
        whole: "StepHealth | None" = None,
        outages: Outages,
    ) -> None:
        self._what = what
        self._why = why
        self._outages = outages
        self._kind = Kind(f"{what} fails", "queue", _log, step, "queue")
        self.queue: str = queue
        """What the queue, or all of them together, are called."""
        self._step = step
        self._whole = whole
        self.parts: WeakValueDictionary[str, StepHealth] = WeakValueDictionary()
        """Those of single queues, by their name, where this is that of all of them."""
        if whole is not None:
            whole.parts[queue] = self
        self.obstacle: Obstacle = Obstacle(ObstacleKind.STEP, self)
        self.listens: bool = whole is not None and whole.listens
        """Whether it has to be told that the step went well."""
        self.fails: bool = False
        """Whether it fails for everything."""
        self._told = False
        self._failures = self._works = 0
        """Messages in a row."""
        self._since = self._worked_at = 0.0

    def part(self, queue: str) -> "StepHealth":
        """Return the same of one queue.

        One that was closed and comes back has the same as before, as long as messages of it are away because of it.
        """
        return self.parts.get(queue) or StepHealth(
            self._what, self._why, queue=queue, step=self._step, whole=self, outages=self._outages
        )

    @property
    def levels(self) -> "tuple[StepHealth, ...]":
        """All that it counts for, the widest first."""
        return (self,) if self._whole is None else (self._whole, self)

    @property
    def failing(self) -> "StepHealth":
        """The widest of them for which everything fails; itself where that is none."""
        return next((each for each in self.levels if each.fails), self)

    def failed(self, job: Job, error: MessageError, now: float) -> None:
        """Note that the step failed for a message, before that counts as an attempt."""
        if self._whole is not None:
            self._whole.failed(job, error, now)
        self._works = 0
        if self.fails or job.source.attempts.known(job):
            self._tell(job, error, now)
            return
        for each in (self, *self.parts.values()) if not self.listens else ():
            each.listens = True
        self._since = self._since if self._failures else now
        self._failures += 1
        self.fails = self._failures >= _ROW
        self._tell(job, error, now)

    def _tell(self, job: Job, error: MessageError, now: float) -> None:
        if not self.fails or self._told or self.failing is not self:  # that of all queues tells of it
            return
        shown = redact(in_words(error))
        cause = cause_of(error.__cause__ or error)
        self._told = self._outages.failed(self._kind, self.queue, cause, shown, now).is_told
        if not self._told:
            return
        text = "%s has failed in %s for %d messages in a row (last: %s): %s"
        said: tuple[object, ...] = (self._what, self.queue, self._failures, shown, self._why)
        if job.source.settings.ack is AckMode.ON_SUCCESS:  # in the other modes nothing is tried again
            text += ". What is tried again waits %.0f s, until it works again"
            said = (*said, self.spacing(job))
        _log.error(text, *said, extra=about(job, step=self._step))

    def succeeded(self, job: Job, now: float) -> None:
        """Note that the step went well for a message."""
        self._worked_at = self._worked_at if self._works else now
        self._works += _OTHERS if is_tried_again(job) else 1
        if self._works >= _ROW * _OTHERS or not self.fails:
            self._end(now)

    def works(self, now: float) -> bool:
        """Whether the step went well when it was called last. After half a minute that is proof, too."""
        if self.fails and self._works and now >= self._worked_at + _PROVEN:
            self._end(now)
        return self._works > 0 or not self.fails

    def _end(self, now: float) -> None:
        if self._outages.worked(self._kind, self.queue, now) or self._told:
            extra = about(queue=self.queue, step=self._step)
            _log.warning("%s works again in %s after %.1f s", self._what, self.queue, now - self._since, extra=extra)
        self.fails = self._told = False
        self.listens = self._whole is not None and self._whole.listens
        self._failures = self._works = 0

    def spacing(self, job: Job) -> float:
        """Return the least seconds between two attempts of a message: it has to be back within its retention period."""
        if not self.fails:
            return 0.0
        seconds = _LAST / max(1, (job.source.attempts.promised(job) or _UNCOUNTED) - 1)
        return min(seconds, max(0.0, job.source.facts.seconds_left(job) / 2))


class Steps(NamedTuple):
    """What comes before a handler."""

    resolver: StepHealth
    decoder: StepHealth


def steps_of(queue: str, whole: Steps | None = None, *, outages: Outages) -> Steps:
    """Return what is known of the steps of a queue, or of several; ``whole`` is that of all queues of the consumer."""
    if whole is not None:
        return Steps(whole.resolver.part(queue), whole.decoder.part(queue))
    return Steps(
        StepHealth(
            "The context resolver",
            "a mistake of this deployment, or what it asks is down, unless all of these are bad",
            queue=queue,
            step=Step.CONTEXT,
            outages=outages,
        ),
        StepHealth(
            "The payload type",
            "a mistake of this deployment or of what sends them, or what it asks is down",
            queue=queue,
            step=Step.PAYLOAD,
            outages=outages,
        ),
    )
