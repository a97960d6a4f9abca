"""What the log says of messages that leave their queue unhandled, and of others that come in thousands."""

import logging
import re
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from postroom.consumer.attempts import REMEMBER
from postroom.consumer.job import Job
from postroom.errors import QueueNotFound, in_words
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.redaction import redact
from postroom.settlement import Refusals, SharedLines
from postroom.tasks import Tasks
from postroom.types import UNRESOLVED

_log = Log("postroom.consumer", Step.DEAD_LETTER)

_LOUD: Final = 10
"""Loud lines for one tenant and cause in ``_PERIOD``; a tenant in quarantine may have a million messages."""
_PERIOD: Final = 60.0
_NUMBER: Final = re.compile(r"\d\S*")
_MOST: Final = 1_000
"""Tenants and causes that are remembered."""


_UNSENT: Final = "%s of {} could not be sent {}, either (%s, as in the lines before); {}. Messages: %s"
_MOVES: Final = "SQS moves {} to the dead-letter queue, without a reason, since this was the last receive"
_RETRIED: Final = "Retry asked for %s of {} more, as in the lines before (%s). Messages: %s"
_UNACKNOWLEDGED: Final = "The handler of message %s of %s returned and has not acknowledged it"
_OVERDUE: Final = (
    "it comes back, since SQS has not moved it to the dead-letter queue. See whether that exists, and takes messages "
    "from this queue (redriveAllowPolicy)"
)
_NOWHERE: Final = "%s of {} rejected, too (%s), and it has no dead-letter queue; they come back. Messages: %s"


class Rejections:
    """Names each message, and what became of it: loudly, or, where many go for the same reason, in lines of level INFO.

    Of those that could not be sent, many share a line: they come back, and fail again, for as long as that lasts.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._time = tasks.time
        self._counts: dict[tuple[Hashable, str], tuple[float, int]] = {}
        self._shared = SharedLines(tasks)
        self._alone: OrderedDict[str, None] = OrderedDict()
        """Messages that their handlers left alone, by id; those that were left longest ago are forgotten first."""
        self._forgetful: set[tuple[str, Hashable]] = set()
        """The queues and tenants of which it was told that messages are not acknowledged."""

    def sent(self, job: Job, reason: str) -> None:
        """Log that the dead-letter queue has taken a message."""
        self._left(job, "was sent to the dead-letter queue", reason, Step.DEAD_LETTER)

    def dropped(self, job: Job, reason: str) -> None:
        """Log that a message is deleted because ``Drop`` was raised."""
        self._left(job, "is dropped", reason, Step.HANDLER)

    def _left(self, job: Job, what: str, reason: str, step: Step) -> None:
        # At a stop a message may go before its context was asked for.
        asked = job.tenant is not None or not job.source.resolves
        tenant = tenant_in_words(job.tenant if asked else UNRESOLVED)
        text = f"Message %s of %s {what} (attempt %d, receive %d): %s"
        arguments = (job.message.id, tenant, job.attempt, job.receives, redact(reason))
        self._warn(job, f"{what}: {reason}", text, *arguments, step=step)

    def failed_at_last(self, job: Job, cause: str) -> None:
        """Log that a message failed at its last receive, and of what: SQS moves it without a word."""
        what, most = "failed at its last receive", job.source.facts.max_receives
        text = (
            f"Message %s of %s {what} (%d of %d) with %s: SQS moves it to the dead-letter queue, without a reason. "
            f"RetryPolicy(attempts={most}) or fewer would send it there with one"
        )
        if job.source.attempts.is_overdue(job):
            what, text = "failed after that", f"Message %s of %s failed at receive %d of %d with %s: {_OVERDUE}"
        arguments = (job.message.id, tenant_in_words(job.tenant), job.receives, most, redact(cause))
        self._warn(job, f"{what}: {cause}", text, *arguments, step=Step.DEAD_LETTER)

    def unacknowledged(self, job: Job) -> None:
        """Log that a handler left its message alone, where that is no longer likely to be on purpose.

        That is at its last receive, and once for each tenant where a message came back because of it.
        """
        if job.source.attempts.is_last(job):
            if job.receives > 1:  # where one receive is all that there is, an acknowledgement may always come later
                self._unacknowledged_at_last(job)
            return
        origin, message = (job.source.name, job.tenant), job.message.id
        if origin in self._forgetful:
            return
        if message not in self._alone:
            self._alone[message] = None
            if len(self._alone) > REMEMBER:
                self._alone.popitem(last=False)
            return
        if len(self._forgetful) >= _MOST:
            self._forgetful.clear()
        self._forgetful.add(origin)
        text = (
            f"{_UNACKNOWLEDGED}, at receive %d, as before: it comes back after each visibility timeout, until "
            "ctx.ack() is called. Further ones of its tenant are not logged"
        )
        _log.warning(text, message, tenant_in_words(job.tenant), job.receives, extra=about(job, step=Step.HANDLER))

    def settled_by_hand(self, job: Job) -> None:
        """Note that a handler's own call has settled a message that it may have left alone before."""
        self._alone.pop(job.message.id, None)

    def _unacknowledged_at_last(self, job: Job) -> None:
        text = (
            f"{_UNACKNOWLEDGED}, at its last receive (%d of %d): unless ctx.ack() comes in time, SQS moves it to the "
            "dead-letter queue, without a reason"
        )
        if job.source.attempts.is_overdue(job):
            text = f"{_UNACKNOWLEDGED}, at receive %d of %d: {_OVERDUE}"
        arguments = (job.message.id, tenant_in_words(job.tenant), job.receives, job.source.facts.max_receives)
        self._warn(job, text, text, *arguments, step=Step.DEAD_LETTER)

    def _warn(self, job: Job, cause: str, text: str, *arguments: object, step: Step) -> None:
        # Without what differs from message to message, such as the seconds until the next try.
        level, count = logging.WARNING, self._count(job.tenant, _NUMBER.sub("", cause.replace(job.message.id, "")))
        if count > _LOUD:
            level = logging.INFO
        elif count == _LOUD:
            text += "; further ones within a minute are logged as INFO"
        _log.log(level, text, *arguments, extra=about(job, step=step))

    def failed(self, job: Job, reason: str, error: BaseException, *, diverted: bool = False) -> None:
        """Log that another queue has not taken a message, so that it comes back, or is moved by SQS."""
        cause, name = type(error).__name__, job.source.name
        # Not by tenant: what takes nothing takes nothing of a thousand tenants.
        where = "where its tenant is diverted" if diverted else "to the dead-letter queue"
        # At its last receive SQS moves it by itself, unless it could not before, or there is no such queue.
        attempts = job.source.attempts
        moves = attempts.is_last(job) and not (attempts.is_overdue(job) or isinstance(error, QueueNotFound))
        count = self._count((name, where, moves), cause)
        if count > _LOUD:
            follows = _MOVES.format("them") if moves else "they come back"
            self._sharing(_UNSENT.format(name, where, follows), name).add(cause, job.message.id, job.tenant)
            return
        text = (
            f"Message %s of %s could not be sent {where} (%s): %s; {_MOVES.format('it') if moves else 'it comes back'}"
        )
        if count == _LOUD:
            text += "; further ones share a line a minute"
        arguments = (job.message.id, tenant_in_words(job.tenant), redact(reason), in_words(error))
        _log.error(text, *arguments, extra=about(job, step=Step.DEAD_LETTER))

    def retried(self, job: Job, reason: str, delay: float | None) -> None:
        """Log that a handler wants a message to come back after so many seconds, or after its backoff (None)."""
        tenant, why, name = tenant_in_words(job.tenant), redact(reason), job.source.name
        kind = _NUMBER.sub("…", why)
        count = self._count(job.tenant, f"retried from {name}: {kind}") if why else 0
        if count > _LOUD:
            shared = self._sharing(_RETRIED.format(name), name, logging.INFO)
            shared.add(f"{tenant}: {kind}", job.message.id, job.tenant)
            return
        text = "Retry asked for message %s of %s (attempt %d, receive %d), after %s: %s"
        if count == _LOUD:
            text += "; further ones share a line a minute"
        after = "its backoff" if delay is None else f"{delay:g} s"
        arguments = (job.message.id, tenant, job.attempt, job.receives, after, why or "no reason given")
        _log.log(logging.INFO if why else logging.DEBUG, text, *arguments, extra=about(job, step=Step.HANDLER))

    def nowhere(self, job: Job, reason: str, *, comes_back: bool) -> None:
        """Log that a message is rejected, and that there is no dead-letter queue. What comes back may be again."""
        tenant, why, name = tenant_in_words(job.tenant), redact(reason), job.source.name
        kind = _NUMBER.sub("…", why)
        count = self._count(job.tenant, f"rejected in {name}: {kind}") if comes_back else 0
        if count > _LOUD:
            self._sharing(_NOWHERE.format(name), name).add(f"{tenant}: {kind}", job.message.id, job.tenant)
            return
        text = "Message %s of %s was rejected (%s), but queue %s has no dead-letter queue"
        if count == _LOUD:
            text += "; further ones share a line a minute"
        _log.warning(text, job.message.id, tenant, why, name, extra=about(job))

    def level(self, job: Job, cause: str) -> int:
        """Return at which level to log a failed attempt that says nothing of its message, but of its tenant."""
        return logging.ERROR if self._count(job.tenant, cause) <= _LOUD else logging.DEBUG

    def flush(self) -> None:
        """Tell now of what was collected: the consumer has stopped."""
        self._shared.flush()

    def _sharing(self, text: str, name: str, level: int = logging.WARNING) -> Refusals:
        return self._shared.line(text, queue=name, log=_log, level=level)

    def _count(self, key: Hashable, cause: str) -> int:
        """Return which message this is with the same key and cause, in a period that begins with the first one."""
        now = self._time()
        until, count = self._counts.get((key, cause), (0.0, 0))
        if now >= until:
            if len(self._counts) >= _MOST:
                self._counts.clear()
            until, count = now + _PERIOD, 0
        self._counts[key, cause] = until, count + 1
        return count + 1
