"""What keeps a message from running: what its tenant lacks, or what was decided about it."""

from collections.abc import Hashable

from postroom.consumer.availability import Availability, Obstacle, ObstacleKind, Outage
from postroom.consumer.job import Job
from postroom.consumer.tenants import Tenants
from postroom.options import Polling
from postroom.scheduling import Scheduler


class Obstacles:
    """Names what is in the way of a message, of all that knows about its tenant."""

    def __init__(
        self, scheduler: Scheduler[Job], availability: Availability, tenants: Tenants, *, polling: Polling
    ) -> None:
        self._scheduler = scheduler
        self._availability = availability
        self._tenants = tenants
        self._lane = polling.lane

    def is_sent_away(self, job: Job) -> bool:
        """Whether a message goes to another queue: what is where its tenant is diverted to is handled there."""
        if not self._tenants.is_sent_away(job.tenant):
            return False
        diverted = self._tenants.diverted(job.tenant)
        return diverted is None or not job.source.is_called(diverted[0])

    def of(self, job: Job, now: float) -> Obstacle | None:
        """Return what a message that arrives would wait for, beside a slot; None where that is nothing."""
        tenant = job.tenant
        # It goes to another queue and needs nothing of what its tenant lacks.
        if self.is_sent_away(job):
            is_down = self._availability.is_undivertable(tenant)
            return Obstacle(ObstacleKind.DIVERSION, tenant) if is_down else None
        if self._tenants.is_paused(tenant) or self._scheduler.is_withheld(tenant):
            return Obstacle(ObstacleKind.DECISION, tenant)
        wait = self._availability.wait(job, now)
        if wait is not None:
            return wait.obstacle
        rate = self._tenants.rate_of(tenant)
        if rate is not None and self._scheduler.figures(tenant).waiting >= max(self._lane, 2 * rate):
            return Obstacle(ObstacleKind.DECISION, tenant)  # no more of them could start for two seconds
        return None

    def outage(self, tenant: Hashable) -> Outage | None:
        """Return why a tenant's messages cannot run, or go where they are sent, if they cannot."""
        sent_away = self._tenants.is_sent_away(tenant)
        outage = self._availability.outage(tenant, sent_away=sent_away)
        return outage if outage is not None or sent_away else self._availability.unknown(tenant)
