"""When a message has no time left to wait here, and what its dead letter tells of it."""

from typing import Final

from postroom.consumer.availability import Availability
from postroom.consumer.job import Job
from postroom.consumer.obstacles import Obstacles
from postroom.consumer.tenants import Tenants
from postroom.display import counted, without_next_try
from postroom.scheduling import Scheduler

_CANNOT: Final = "its tenant cannot run"
"""What is told of a message that its tenant keeps from running, where nothing more is known."""
_EXPIRES: Final = "its retention period is nearly over"
_SLIPS: Final = "it could be held no longer"


class Endings:
    """Says why a message that was not handled has to be rejected. The core carries that out.

    SQS deletes a message at the end of its retention period, and moves one that is lost at its last receive. It tells
    no reason for either. So it is rejected here shortly before, with what is known of it.
    """

    def __init__(
        self, scheduler: Scheduler[Job], availability: Availability, tenants: Tenants, *, obstacles: Obstacles
    ) -> None:
        self._scheduler = scheduler
        self._availability = availability
        self._tenants = tenants
        self._obstacles = obstacles

    # -- time ---------------------------------------------------------------------------------------------------

    def has_no_time(self, job: Job, now: float) -> bool:
        """Whether a message has to be rejected soon, or SQS would delete it or move it, and tell nothing."""
        job.source.facts.keep_up(now)
        return self.waited(job, now) is not None

    def waited(self, job: Job, now: float, obstacle: str | None = None) -> str | None:
        """Return why a message that waits here has to be rejected; None while it has time.

        ``obstacle`` tells what it waits for, where that is neither its tenant nor a slot.
        """
        late = self._is_too_late(job)
        if not (late or self._is_slipping(job, now)):
            return None
        if obstacle is None:
            obstacle = _CANNOT if self._scheduler.is_blocked(job.tenant) else "no slot was free for it"
        return self._given_up(job, _EXPIRES if late else _SLIPS, obstacle)

    def slips(self, job: Job, now: float) -> str | None:
        """Return why a message has to be rejected that its tenant keeps from running, at its last receive."""
        return self._given_up(job, _SLIPS, _CANNOT) if self._is_slipping(job, now) else None

    def expires(self, job: Job) -> str | None:
        """Return why a message has to be rejected that SQS would delete before it can be tried; None if it is kept.

        Some seconds too soon, to be sure.
        """
        return self._given_up(job, _EXPIRES, _CANNOT) if job.source.facts.seconds_left(job) < 1.0 else None

    def _is_too_late(self, job: Job) -> bool:
        facts = job.source.facts
        return facts.seconds_left(job) < 1.0 if self._scheduler.is_blocked(job.tenant) else facts.is_last_call(job)

    @staticmethod
    def _is_slipping(job: Job, now: float) -> bool:
        return job.source.attempts.is_last(job) and job.source.is_slipping(job, now)

    # -- words --------------------------------------------------------------------------------------------------

    def _given_up(self, job: Job, end: str, obstacle: str) -> str | None:
        if job.source.facts.redrive is None:
            return None
        if (outage := self._obstacles.outage(job.tenant)) is not None and not self._tenants.is_paused(job.tenant):
            obstacle = f"{obstacle}: {without_next_try(outage.cause)}"
        elif obstacle == _CANNOT and (kept_back := self._tenants.kept_back(job.tenant)) is not None:
            obstacle = f"its tenant is {kept_back}"
        tried = "not tried again" if job.source.attempts.known(job) else "not tried"
        return f"{tried}: {end} and {obstacle}"

    def at_last_receive(self, job: Job, why: str) -> str:
        """Return what is told of a message that cannot be given back now, and what its tenant lacks."""
        known = job.source.attempts.known(job)
        tried = f"after {counted(known, 'failed attempt')}" if known else "not tried by this consumer"
        if job.started:
            tried = f"in the middle of its handler{f', {tried}' if known else ''}"
        lack = self._lack_of(job)
        return f"{why}, at its last receive, {tried if lack is None else f'{tried}; its tenant {lack}'}"

    def _lack_of(self, job: Job) -> str | None:
        """Return what the tenant of a message lacks, as far as that is known."""
        outage = self._obstacles.outage(job.tenant)
        cause = self._availability.last_met(job.tenant) if outage is None else outage.cause
        if cause is not None and not self._tenants.is_paused(job.tenant):
            return f"is unavailable: {without_next_try(cause)}"
        if job.started:
            return None
        if (kept_back := self._tenants.kept_back(job.tenant)) is not None:
            return f"is {kept_back}"
        if job.lane is not None and job.lane.withheld:
            return "has no slot of the fleet"
        return "waits for its resources" if self._scheduler.figures(job.tenant).suspended else None
