"""What the log says of a failed attempt: the step, the message, its tenant, the cause, and where in the user's code."""

from typing import Final

from postroom.consumer.job import Job
from postroom.errors import ContextError, PayloadError, ResourceError, in_words
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.redaction import describe, log_error, redact
from postroom.settlement import SharedLines
from postroom.tasks import Tasks
from postroom.tracebacks import raised_by_the_user

_log = Log("postroom.consumer", Step.HANDLER)
_of_contexts = Log("postroom.consumer", Step.CONTEXT)
_of_payloads = Log("postroom.consumer", Step.PAYLOAD)

_WHAT_FAILED: Final[tuple[tuple[type[BaseException], str, Step], ...]] = (
    (ContextError, "Context resolution failed", Step.CONTEXT),
    (PayloadError, "Payload decoding failed", Step.PAYLOAD),
    (ResourceError, "Resource provisioning failed", Step.RESOURCES),
)
_UNRESOLVED: Final = "The context resolution of %s of {} failed, too, as in the lines before: %s. Messages: %s"
_UNDECODED: Final = "The payload decoding of %s of {} failed, too, as in the lines before: %s. Messages: %s"


class FailureLog:
    """Tells of each failed attempt; of a step that fails for everything, after some lines, in one for many."""

    def __init__(self, tasks: Tasks) -> None:
        self._shared = SharedLines(tasks)
        """Where resolvers and payload types fail."""

    def tell(self, job: Job, error: BaseException, level: int) -> None:
        """Log that an attempt failed."""
        tenant = tenant_in_words(job.tenant)
        for kind, what, step in _WHAT_FAILED:
            if isinstance(error, kind) and (kind is ResourceError or not job.started):  # else the handler raised it
                cause = raised_by_the_user(error.__cause__)
                if kind is not ResourceError and self._is_one_of_many(job, error, cause):
                    return
                text, extra = "%s for message %s of %s (attempt %d, receive %d): %s", about(job, step=step)
                shown = redact(in_words(error))  # an application may raise these, too
                arguments = (what, job.message.id, tenant, job.attempt, job.receives, shown)
                if cause is None:
                    _log.log(level, text, *arguments, extra=extra)
                else:
                    log_error(_log, level, text, *arguments, error=cause, extra=extra)
                return
        if _log.isEnabledFor(level):
            text = "Handler failed for message %s of %s (attempt %d, receive %d): %s"
            said = (job.message.id, tenant, job.attempt, job.receives, describe(error))
            log_error(_log, level, text, *said, error=error, extra=about(job))

    def flush(self) -> None:
        """Tell now of what was collected: the consumer has stopped."""
        self._shared.flush()

    def _is_one_of_many(self, job: Job, error: BaseException, cause: BaseException | None) -> bool:
        """Whether a message shares a line: what a resolver asks may be down, for every message of every tenant.

        A payload type that fits no message is such a case only while it is known to fail for everything.
        """
        of_payload = isinstance(error, PayloadError)
        if cause is None and not of_payload:
            return False
        kind = type(error if of_payload else cause).__name__
        text, log = (_UNDECODED, _of_payloads) if of_payload else (_UNRESOLVED, _of_contexts)
        step = (job.source.decoder if of_payload else job.source.resolver).failing
        name = step.queue  # of all queues together, where it fails for all: there may be one for each tenant
        shared = self._shared.line(text.format(name), queue=name, log=log)
        if shared.is_among_the_first() or (of_payload and (job.decoded or not step.fails)):
            return False
        shared.add(kind if of_payload else f"ContextError from {kind}", job.message.id, job.tenant)
        return True
