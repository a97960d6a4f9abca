"""One queue of a running consumer: what takes its messages in, and what settles them."""

import asyncio
from typing import Any, cast

from postroom.consumer.diversions import Diversions
from postroom.consumer.engine import Engine
from postroom.consumer.facts import QueueFacts
from postroom.consumer.grouping import Grouping
from postroom.consumer.intake import Intake, UnwrappingIntake
from postroom.consumer.job import Job
from postroom.consumer.poller import Receiver
from postroom.consumer.settings import Settings
from postroom.consumer.source import Source
from postroom.consumer.statistics import QueueStatistics
from postroom.consumer.step_health import Steps
from postroom.resources import ResourcePool
from postroom.settlement import DeadLetters, Settler, Tally
from postroom.transports.protocol import Client, Queue


class Inlet:
    """What a consumer has for one of its queues: the source with its settler, the intake, and what was received.

    Args:
        settings: what the consumer was configured with.
        queue: the queue, opened.
        engine: of the consumer.
        pool: where resources are leased.
        client: opens the dead-letter queue, and those that tenants are diverted to.
        tally: counts the bytes that are held, of all queues of the consumer.
        steps: what is known of the steps before a handler, of all queues, where there are several.
        alone: whether it is the only queue.
    """

    receiver: Receiver
    """Set once, by what receives from the queue."""

    def __init__(
        self,
        settings: Settings[Any, Any],
        queue: Queue,
        engine: Engine,
        pool: ResourcePool[Any, Any] | None,
        *,
        client: Client,
        tally: Tally,
        steps: Steps | None = None,
        alone: bool = True,
    ) -> None:
        tasks = engine.tasks
        self._tasks = tasks
        self.queue = queue
        self.name: str = queue.info.name
        self.facts: QueueFacts = QueueFacts(queue, tasks)
        self.source: Source = Source(
            settings, queue, self.facts, tally=tally, steps=steps, outages=tasks.outages, alone=alone
        )
        source = self.source
        source.diversions = Diversions(client.queue, tasks=tasks)
        self.settler: Settler[Job] = Settler(
            queue,
            settings.first_visibility,
            tasks=tasks,
            listener=engine,
            dead_letters=DeadLetters(self.facts, client.queue, tasks=tasks),
            observers=settings.observers,
            kind=cast("type[Job]", source),
            tally=tally,
        )
        source.settler = self.settler
        # On a FIFO queue the group is the unit of order, not a tenant.
        fair = settings.resolver is not None and not source.fifo
        self.grouping: Grouping | None = Grouping(clock=tasks.time) if fair else None
        intake = Intake if settings.unwrap is None else UnwrappingIntake
        self.intake: Intake = intake(source, engine.core, engine, pool, self.grouping)
        self.heartbeat: asyncio.Task[None] | None = None

    def begin(self, number: int | None = None) -> None:
        """Start the heartbeat. ``number`` tells those of several queues apart."""
        name = "postroom-heartbeat" if number is None else f"postroom-heartbeat-{number}"
        self.heartbeat = self._tasks.spawn(self.settler.heartbeat.run(), name)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the queue is here, or on its way: no message, no decision, no receive."""
        return not self.settler.held and not self.settler.unconfirmed and self.receiver.asked_at is None

    @property
    def held_bytes(self) -> int:
        """Bytes of the bodies that are held of this queue alone."""
        return sum(len(job.message.body) for job in self.settler.deliveries.values())

    async def close(self) -> None:
        """Give up what is left, and end the heartbeat."""
        self.receiver.close()
        await self.settler.abandon()
        if self.heartbeat is not None:
            self.heartbeat.cancel()

    def statistics(self, now: float) -> QueueStatistics:
        """Return a snapshot."""
        last, settler = self.receiver.last_success, self.settler
        return QueueStatistics(
            received=self.intake.received,
            receives=self.receiver.receives,
            poll_failures=self.receiver.failures,
            settled=settler.counts(),
            settlement_failures=settler.failures,
            extensions=settler.heartbeat.extended,
            held=settler.held,
            group_mismatches=0 if self.grouping is None else self.grouping.mismatches,
            last_poll_age=None if last is None else now - last,
        )
