"""What the log says of messages on their way to the dead-letter queue, and of others that come in thousands."""

import logging
import re
from collections.abc import Callable, Hashable
from typing import Final

from postroom.consumer.job import Job
from postroom.errors import in_words
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.redaction import redact
from postroom.types import UNRESOLVED

_log = Log("postroom.consumer", Step.DEAD_LETTER)

_LOUD: Final = 10
"""Loud lines for one tenant and cause in ``_PERIOD``; a tenant in quarantine may have a million messages."""
_PERIOD: Final = 60.0
_NUMBER: Final = re.compile(r"\d\S*")
_MOST: Final = 1_000
"""Tenants and causes that are remembered."""


class Rejections:
    """Names each message, and what became of it: loudly, or, where many go for the same reason, in lines of level INFO.

    Args:
        time: tells the loop's time.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._counts: dict[tuple[Hashable, str], tuple[float, int]] = {}

    def sent(self, job: Job, reason: str) -> None:
        """Log that the dead-letter queue has taken a message."""
        # At a stop a message may go before its context was asked for. A resolver may also answer None.
        asked = job.tenant is not None or job.started or not job.source.resolves
        tenant = tenant_in_words(job.tenant if asked else UNRESOLVED)
        attempt = job.attempt if asked else job.source.attempts.number(job)
        text = "Message %s of %s was sent to the dead-letter queue (attempt %d, receive %d): %s"
        arguments = (job.message.id, tenant, attempt, job.receives, redact(reason))
        self._log(logging.WARNING, job, reason, text, arguments)

    def failed(self, job: Job, reason: str, error: BaseException, *, diverted: bool = False) -> None:
        """Log that another queue has not taken a message, so that it comes back."""
        where = "where its tenant is diverted" if diverted else "to the dead-letter queue"
        text = f"Message %s of %s could not be sent {where} (%s): %s; it comes back"
        arguments = (job.message.id, tenant_in_words(job.tenant), redact(reason), in_words(error))
        self._log(logging.ERROR, job, type(error).__name__, text, arguments)

    def level(self, job: Job, cause: str) -> int:
        """Return at which level to log a failed attempt that says nothing of its message, but of its tenant."""
        return logging.ERROR if self._count(job.tenant, cause) <= _LOUD else logging.DEBUG

    def _log(self, level: int, job: Job, cause: str, text: str, arguments: tuple[object, ...]) -> None:
        # Without what differs from message to message, such as the seconds until the next try.
        count = self._count(job.tenant, _NUMBER.sub("", cause))
        if count > _LOUD:
            level = logging.INFO
        elif count == _LOUD:
            text += "; further ones within a minute are logged as INFO"
        _log.log(level, text, *arguments, extra=about(job, step=Step.DEAD_LETTER))

    def _count(self, tenant: Hashable, cause: str) -> int:
        """Return which message of a tenant this is, with the same cause, in a period that begins with the first one."""
        now = self._time()
        until, count = self._counts.get((tenant, cause), (0.0, 0))
        if now >= until:
            if len(self._counts) >= _MOST:
                self._counts.clear()
            until, count = now + _PERIOD, 0
        self._counts[tenant, cause] = until, count + 1
        return count + 1
