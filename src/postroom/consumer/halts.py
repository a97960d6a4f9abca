"""Message groups that stand still for a while: what comes of them waits here, in order, without a slot."""

from collections.abc import Iterable
from typing import Final

import msgspec

from postroom.consumer.availability import Obstacle
from postroom.consumer.job import Job
from postroom.scheduling import State

MOST_HALTED: Final = 1_000
"""Groups in which a message may back off here: they hold their messages, and take no room of others."""


class Halt(msgspec.Struct, eq=False):
    """A message group of which something is on its way to the dead-letter queue, or that waits for a time."""

    out: int = 0
    """Messages on their way to the dead-letter queue."""
    refused: set[str] = msgspec.field(default_factory=set[str])
    """Messages that the dead-letter queue did not take."""
    jobs: list[Job] = msgspec.field(default_factory=list[Job])
    """What waits for the end of that, in order."""
    until: float | None = None
    """The time that it waits for."""
    first: Job | None = None
    """The first of ``jobs`` where it has failed, and backs off until then."""
    backoff: float = 0.0
    """Seconds for which it does."""
    obstacle: Obstacle | None = None
    """What it waits for instead, where a step failed for it: the end of that lets the group go on."""
    left: Job | None = None
    """A message at its last receive that may be acknowledged until then."""

    def add(self, job: Job) -> None:
        """Take in a message that came, or was withdrawn from its lane.

        It is in order by itself if all that was here is lost: then SQS begins the group again.
        """
        if all(each.lost for each in self.jobs):
            self.jobs.clear()
        job.state = State.NEW
        self.jobs.append(job)

    def take(self, jobs: Iterable[Job]) -> None:
        """Take in what was withdrawn from its lane, in order."""
        for job in jobs:
            self.add(job)

    @property
    def is_over(self) -> bool:
        """Whether the group may go on."""
        return not self.out and self.until is None
