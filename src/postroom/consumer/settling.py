"""What a handler's own calls do with its message."""

import asyncio
from random import Random

import msgspec

from postroom.consumer.engine import Engine
from postroom.consumer.job import Job
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.settlement import exponential
from postroom.tasks import TimeLimit
from postroom.transactions import MessageKey
from postroom.types import Settlement

_log = Log("postroom.consumer", Step.HANDLER)


class Settling(msgspec.Struct, eq=False):
    """What stands behind ``ctx.ack()``, ``ctx.retry()`` and ``ctx.extend()`` of one message."""

    _job: Job
    _engine: Engine
    transactions: int = 0
    written: set[MessageKey] | None = None
    committed: int = 0
    idle: float = 0.0

    def tell_half_done(self) -> None:
        """Say that one transaction of a message was rolled back behind another one that was committed."""
        job = self._job
        text = (
            "A ctx.transaction() of message %s of %s was rolled back after another one of it was committed. When the "
            "message comes again, the other one raises AlreadyHandled: where the handler lets that out, the message is "
            "acknowledged without this one. Use one block, or catch AlreadyHandled around each"
        )
        _log.warning(text, job.message.id, tenant_in_words(job.tenant), extra=about(job))

    @property
    def limit(self) -> TimeLimit | None:
        """The time limit of this call of the handler."""
        return self._job.limit

    @limit.setter
    def limit(self, limit: TimeLimit | None) -> None:
        self._job.limit = limit

    @property
    def lost(self) -> bool:
        """Whether another consumer may have the message by now."""
        job = self._job
        return job.settlement is None and not job.source.settler.ours(job)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The consumer's loop."""
        return self._engine.tasks.loop

    async def acknowledge(self) -> None:
        """Delete the message and return when that is confirmed."""
        await self._job.source.settler.ack_now(self._job)
        self._engine.settled_by_hand(self._job)

    async def give_back(self, delay: float | None) -> None:
        """Leave the message in the queue and return when that is confirmed."""
        job = self._job
        if delay is None:
            delay = exponential(job.source.retry_of(job), job.attempt, Random())  # noqa: S311 - jitter
        attempts = job.source.attempts
        attempts.failed(job)
        if (reason := attempts.why_over(job, "ctx.retry()")) is not None and await job.source.settler.reject(
            job, reason
        ):
            self._engine.rejections.sent(job, reason)
        else:
            delay = self._engine.delay_of(job, delay)
            await job.source.settler.give_back_now(job, Settlement.RETRIED, delay=delay)
            if attempts.is_last(job):
                self._engine.rejections.failed_at_last(job, "ctx.retry()")
        self._engine.settled_by_hand(job)

    async def extend(self, seconds: float) -> None:
        """Keep the message invisible for so many seconds from now, and return when that is confirmed."""
        await self._job.source.settler.extend_now(self._job, seconds)
