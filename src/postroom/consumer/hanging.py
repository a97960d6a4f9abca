"""Tells of handlers that do not end: nothing else would say so.

Of those that keep messages of their tenant, or of their message group, waiting, and of those that ignore that they
were cancelled; of ``on_error`` too.
"""

from collections.abc import Hashable, Iterable
from typing import Final

from postroom.consumer.core import Core
from postroom.consumer.job import Job
from postroom.consumer.stopping import said_of, where_it_waits
from postroom.display import counted
from postroom.log_fields import Log, Step, about, tenant_in_words

_log = Log("postroom.consumer", Step.HANDLER)

_LONG: Final = 300.0
"""Seconds after which handlers that do not end are told of."""
_TIMES: Final = 4
"""Or so many times what a handler of the tenant takes on average, if that is more: long work is no standstill."""
CLEANUP: Final = 30.0
"""Seconds that a function of the user's may take to end once it was cancelled, before it is told of."""


class Hanging:
    """Which handlers run on. Each tenant that stands still is told of once, each stubborn handler too, and the end."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._since: dict[Hashable, float] = {}
        """Tenants that were told of, and since when none of their handlers has ended."""
        self._cancelled: dict[Job, tuple[float, str]] = {}
        """What was cancelled and runs on, by its message: since when that is known, and what was told of it, if it was.
        """

    def look(self, jobs: Iterable[Job], now: float) -> None:
        """Compare the running handlers with what was told."""
        running: dict[Hashable, list[Job]] = {}
        cancelled: list[Job] = []
        for job in jobs:
            if job.started:
                running.setdefault(job.tenant, []).append(job)
            if (job.started or job.reporting) and _was_cancelled(job):
                cancelled.append(job)
        if not self._core.closing:  # a stop tells of each by itself
            self._look_at_cancelled(cancelled, now)
        standing = {tenant: all_of for tenant, all_of in running.items() if self._stands(tenant, all_of, now)}
        over = [tenant for tenant in self._since if tenant not in standing]
        if over and not self._core.closing:
            seconds = now - min(self._since[tenant] for tenant in over)
            text = "Handlers of %s end again, after %.0f s"
            _log.warning(text, _named(over), seconds, extra=_about(over))
        fresh = [tenant for tenant in standing if tenant not in self._since]
        self._since = {tenant: max(job.since for job in all_of) for tenant, all_of in standing.items()}
        if fresh and not self._core.closing:
            self._tell(fresh, [job for tenant in fresh for job in standing[tenant]], now)

    def _look_at_cancelled(self, jobs: list[Job], now: float) -> None:
        for job in self._cancelled.keys() - set(jobs):
            since, told = self._cancelled.pop(job)
            if told:
                text = "%s of message %s of %s has ended, %.0f s after it was cancelled"
                _log.warning(text, told, job.message.id, tenant_in_words(job.tenant), now - since, extra=about(job))
        for job in jobs:
            since, told = self._cancelled.setdefault(job, (now, ""))
            if told or now - since < CLEANUP:
                continue
            what = "on_error" if job.reporting else "The handler"
            self._cancelled[job] = since, what
            why = "its time limit" if job.cancellation is None else job.cancellation.value
            text = (
                "%s of message %s of %s (attempt %d, receive %d) still runs, %.0f s after it was cancelled "
                "(%s), and keeps its slot%s. Let it pass CancelledError on; a thread has to limit what it waits for"
            )
            arguments = (
                what,
                job.message.id,
                tenant_in_words(job.tenant),
                job.attempt,
                job.receives,
                now - since,
                why,
                where_it_waits(job),
            )
            step = Step.ON_ERROR if job.reporting else Step.HANDLER
            _log.warning(text, *arguments, extra=about(job, step=step))

    def _stands(self, tenant: Hashable, jobs: list[Job], now: float) -> bool:
        scheduler = self._core.scheduler
        figures = scheduler.figures(tenant)
        if now - max(job.since for job in jobs) < max(_LONG, _TIMES * figures.estimate):
            return False
        if tenant in self._since:  # what waited may have gone back meanwhile: its handlers run on all the same
            return True
        others_wait = self._core.free <= 0 and self._core.waiting > 0
        if others_wait or (figures.waiting > 0 and not scheduler.is_blocked(tenant)):
            return True
        return any(scheduler.behind_of(job) for job in jobs)  # its lane holds the heads of message groups alone

    def _tell(self, tenants: list[Hashable], jobs: list[Job], now: float) -> None:
        first = min(jobs, key=lambda job: job.since)
        waiting = counted(len(self._core.scheduler.waiting_tickets()), "message")
        text = (
            "No handler of %s has ended for %.0f s: %s, the longest for %.0f s (message %s of %s%s); %s wait here in "
            "all. Look at what they wait for, and limit it: there, or by Concurrency(handler_timeout=...)"
        )
        arguments = (
            _named(tenants),
            now - max(job.since for job in jobs),
            said_of(jobs),
            now - first.since,
            first.message.id,
            tenant_in_words(first.tenant),
            where_it_waits(first),
            waiting,
        )
        _log.warning(text, *arguments, extra=about(first) if len(tenants) == 1 else None)


def _was_cancelled(job: Job) -> bool:
    """Whether the consumer cancelled a handler that still runs. What its own code does with its task is its own."""
    late = job.cancellation is not None or (job.limit is not None and job.limit.expired())
    return late and job.task is not None and job.task.cancelling() > 0


def _named(tenants: list[Hashable]) -> str:
    return tenant_in_words(tenants[0]) if len(tenants) == 1 else counted(len(tenants), "tenant")


def _about(tenants: list[Hashable]) -> dict[str, object] | None:
    return about(tenant=tenants[0]) if len(tenants) == 1 else None
