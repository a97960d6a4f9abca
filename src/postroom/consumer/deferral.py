"""Whether a message that cannot run makes room for others, and for how long it goes away."""

from collections.abc import Iterator
from random import Random
from typing import Final

from postroom.consumer.availability import Availability, Obstacle
from postroom.consumer.away import Away
from postroom.consumer.job import Job
from postroom.options import Polling
from postroom.scheduling import Scheduler

PATIENCE: Final = 0.25
"""Seconds that a tenant's resources may take to open before its messages have to make room for others."""
MOST_BLOCKED: Final = 10_000
"""Messages of tenants that cannot run now. Beyond these, a message is deferred although that costs an attempt that it
was promised, but never its last receive."""
MOST_HELD: Final = 1_000
"""The same for one such tenant."""
MOST_LAST: Final = 30_000
"""Messages of such tenants which take no room from others: those at their last receive can only wait here."""
LANES: Final = 1_000
"""Messages of all such tenants together that may wait here although they could be deferred."""
_CROWDED: Final = (900.0, 2700.0)
"""Seconds, at random between these, for which a message is deferred at the cost of a promised attempt. It is called
back when the obstacle is over. Sooner, a tenant that stays away would use up every receive of its backlog in minutes,
and then only the room that others need is left for it."""
_SURPLUS: Final = (1.0, 5.0)
"""Seconds, at random between these, for which a message is away because it had to make room."""


class Deferral:
    """Weighs the room that others need against the receives of a message that cannot run. The core defers it."""

    def __init__(
        self, scheduler: Scheduler[Job], availability: Availability, away: Away, *, polling: Polling, rng: Random
    ) -> None:
        self._scheduler = scheduler
        self._availability = availability
        self._away = away
        self._lane = polling.lane
        self._rng = rng

    @staticmethod
    def most_waiting(capacity: int) -> int:
        """Return how many messages of tenants that cannot run take no room from others."""
        return max(MOST_LAST, capacity)

    def opens_enough(self) -> bool:
        """Whether as many messages wait for their tenants' resources as may."""
        return self._scheduler.suspended >= MOST_BLOCKED

    def has_enough(self, job: Job) -> bool:
        """Whether so many messages of a tenant wait here that another one could go away.

        Some stay: when the obstacle is over, the tenant goes on at once, not after a receive.
        """
        return self._scheduler.figures(job.tenant).waiting >= self._lane_limit()

    def _lane_limit(self) -> int:
        lanes = self._scheduler.blocked_lanes
        # The more tenants are blocked, the fewer messages of each: a region that fails must not
        # fill the memory.
        return max(1, min(self._lane, LANES // lanes)) if lanes else self._lane

    def pause(self, job: Job, obstacle: Obstacle, now: float, *, soon: bool, full: bool) -> float | None:
        """Return the seconds for which a message is deferred because of an obstacle; None if it has to wait here.

        ``soon`` tells that its tenant may well be able to run: only an open is missing. ``full`` tells that bodies
        take all the memory that they may.
        """
        attempts, scheduler = job.source.attempts, self._scheduler
        free = attempts.may_defer(job)
        if not free:
            too_many = scheduler.blocked >= MOST_BLOCKED or scheduler.figures(job.tenant).waiting >= MOST_HELD
            if not (too_many or full) or attempts.is_last(job):
                return None
        if not self.may_leave(job):
            return None
        # At least a second: each deferral costs a receive and a change of visibility.
        pause = max(self._availability.delay(obstacle, now), 1.0)
        return pause if free or soon else max(pause, self._rng.uniform(*_CROWDED))

    def shed(self, now: float) -> Iterator[tuple[Job, Obstacle | None, float]]:
        """Take out what blocked tenants hold too much of, with what it waits for, and for how many seconds."""
        keep, blocked_before = self._lane_limit(), now - PATIENCE
        for job in self._scheduler.shed(keep=keep, blocked_before=blocked_before, may_go=self._may_be_shed):
            wait = self._availability.wait(job, now)
            delay = self._rng.uniform(*_SURPLUS)
            if wait is not None and wait.until is not None:
                # Not before its tenant may be tried: it would only be deferred again.
                delay = max(delay, wait.until - now)
            yield job, None if wait is None else wait.obstacle, min(delay, job.source.facts.seconds_left(job))

    def _may_be_shed(self, job: Job) -> bool:
        """Whether a message that waits may be deferred. One that has a task has its resources in hand."""
        if job.task is not None or not self.may_leave(job):
            return False
        return job.source.attempts.may_defer(job) and job.source.facts.seconds_left(job) >= 1.0

    def may_leave(self, job: Job) -> bool:
        """Whether one more message may be away, and the queue has room for it in flight."""
        return not self._away.is_full and job.source.facts.refusal() is None
