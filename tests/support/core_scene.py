"""A core of a consumer that is driven by hand."""

from dataclasses import replace
from random import Random

from postroom.consumer.job import Job
from postroom.message import Message
from simulation.core.outside import ModelFacts
from simulation.core.plan import Plan, draw_plan
from simulation.core.world import World


class Scene(World):
    """A core that is driven by hand, with everything at rest around it."""

    def __init__(self, **changes: object) -> None:
        plan = draw_plan(Random(1))
        calm: dict[str, object] = {"fifo": False, "most": 8, "known": True, "with_pool": False, "trouble": 0.0}
        calm |= {"total": 4, "per_tenant": 4, "reserved": 0, "caps": None, "weight": 0, "remember": 10_000}
        made: Plan = replace(plan, **(calm | changes))  # type: ignore[arg-type]
        super().__init__(made, Random(1))

    def job(self, name: str, *, tenant: int = 0, group: str | None = None, receives: int = 1, sent: float = 0.0) -> Job:
        """Make a message that was received."""
        system = {"ApproximateReceiveCount": str(receives), "SentTimestamp": str(int(sent * 1000))}
        message = Message(id=name, body="", system_attributes=system)
        made = self.source.of(message, received_at=self.now, visibility=60.0)
        made.tenant = made.context = tenant
        made.group = group
        self.source.resolved(made)
        return made

    def arrive(self, *jobs: Job) -> None:
        """Hand messages to the core."""
        for job in jobs:
            self.core.arrive(job, self.now)

    @property
    def known(self) -> ModelFacts:
        """What is known of the queue."""
        return self.facts
