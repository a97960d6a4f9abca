"""What the seeded schedules of the core found, one test for each."""

from dataclasses import replace
from random import Random

from postroom.consumer.core import GiveBack, Reject, ReturnGroup
from postroom.consumer.job import Job
from postroom.message import Message
from postroom.types import Settlement
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

    def job(self, name: str, *, tenant: int = 0, group: str | None = None, receives: int = 1) -> Job:
        """Make a message that was received."""
        message = Message(id=name, body="", system_attributes={"ApproximateReceiveCount": str(receives)})
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


def test_a_message_behind_a_failed_one_of_its_group_ends_with_a_reason() -> None:
    """At its last receive it would become a dead letter that was never tried: it is rejected instead."""
    scene = Scene(fifo=True, most=3)
    head = scene.job("head", group="g")
    last, fresh = scene.job("last", group="g", receives=3), scene.job("fresh", group="g")
    scene.arrive(head, last, fresh)
    assert scene.core.next(0.0) is head
    scene.core.retry(head, ValueError(), 1.0)
    retried, rejected, returned, group = scene.core.actions
    assert isinstance(retried, GiveBack)
    assert isinstance(rejected, Reject)
    assert rejected.job is last
    assert "a message before it in its group was not done" in rejected.reason
    assert returned == GiveBack(fresh, Settlement.RETURNED)
    assert group == ReturnGroup("g")
