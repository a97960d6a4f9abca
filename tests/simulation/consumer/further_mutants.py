"""Would the schedules of ``further.py`` notice? Each mutant breaks the consumer in one place, as in ``mutants.py``.

``python -m simulation.consumer.further_mutants`` searches for each of them. With ``--table`` it prints the table of
docs/proof.md, of the seeds that are kept here.
"""

import asyncio
import math
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from postroom import Reject
from postroom.consumer import engine, pipeline, source
from postroom.consumer.away import Away
from postroom.consumer.core import Core, Scene
from postroom.consumer.engine import Engine
from postroom.consumer.facts import QueueFacts
from postroom.consumer.job import Job
from postroom.consumer.lifecycle import Run
from postroom.consumer.obstacles import Obstacles
from postroom.consumer.pipeline import Pipeline
from postroom.consumer.poller import Poller
from postroom.consumer.source import Source
from postroom.consumer.step_health import StepHealth
from postroom.consumer.tenants import Tenants
from postroom.scheduling import Scheduler
from postroom.settlement import DeadLetters, settler
from postroom.settlement.batcher import Fate
from postroom.types import Settlement
from simulation.consumer.further import further_violations
from simulation.consumer.planting import Mutant, does_nothing_later, says, search, swap

FIRST = 300_000_000
"""Where the search begins."""


def _when_read(_: Any) -> Any:
    """Take the time at which an answer is read for the time at which it came."""
    return lambda poller, asked: asked._replace(time=poller._tasks.time())


def _from_the_first(received: Any) -> Any:
    """Learn from the first message of a receive only."""

    def mutant(self: QueueFacts, jobs: Sequence[Job], now: float) -> None:
        received(self, jobs[:1], now)

    return mutant


def _sent_away(_: Any) -> Any:
    """Take what is where its tenant is diverted to for what goes away."""

    def mutant(self: Obstacles, job: Job) -> bool:
        return self._tenants.is_sent_away(job.tenant)

    return mutant


def _takes_errors_for_failures(did_fail: Any) -> Any:
    """Let what was cut off have failed, if it ended with an error."""

    async def mutant(self: Pipeline, job: Job, error: BaseException) -> None:
        if isinstance(error, Exception):
            await self._decide(job, error)
        else:
            await did_fail(self, job, error)

    return mutant


def _any_cancellation(was_cancelled: Any) -> Any:
    """Take a cancellation by the handler's own code for the consumer's."""

    async def mutant(self: Pipeline, job: Job, error: asyncio.CancelledError) -> None:
        if job.task is not None and job.task.cancelling():
            self._return(job)
        else:
            await was_cancelled(self, job, error)

    return mutant


def _sends_what_it_lost(_: Any) -> Any:
    """Send a letter for a message that another consumer may have."""
    return lambda _self, entry, _now: Fate.OVER if entry.waiter.done() else Fate.SEND


def _goes_back_behind(arrive: Any) -> Any:
    """Give back what comes behind a letter that is on its way."""

    def mutant(self: Core, job: Job, now: float, scene: Scene | None = None) -> bool:
        if job.group in self._halts:
            self.return_behind(job)
            return False
        runs: bool = arrive(self, job, now, scene)
        return runs

    return mutant


def _returns_behind(give_group_back: Any) -> Any:
    """Give back at once what waits behind a message while that is sent to the dead-letter queue."""

    def mutant(self: Core, job: Job) -> None:
        rejecting, job.rejecting = job.rejecting, False
        give_group_back(self, job)
        job.rejecting = rejecting

    return mutant


def _rejects_in_quarantine(send_away: Any) -> Any:
    """Send what is in quarantine to the dead-letter queue as any other message, whether or not that takes it."""

    async def mutant(self: Pipeline, job: Job, instruction: Any, reason: str, target: DeadLetters) -> None:
        if isinstance(instruction, Reject):
            self._core.reject(job, reason, self._backoff(job, instruction))
            self._engine.act()
        else:
            await send_away(self, job, instruction, reason, target)

    return mutant


def _waits_for_anything(settled: Any) -> Any:
    """Call back also what waits for its own backoff."""

    def mutant(self: Core, job: Job, settlement: Settlement, delay: float, now: float) -> None:
        if settlement is Settlement.RETRIED:
            job.away_from = job.away_from or job.source.resolver.obstacle
        settled(self, job, settlement, delay, now)

    return mutant


def _each_for_itself(steps_of: Any) -> Any:
    """Know nothing of a step in other queues."""
    return lambda queue, _whole=None, **more: steps_of(queue, **more)


def _calls_all_back(_: Any) -> Any:
    """Call back at a stop also what a step has failed for."""

    def mutant(self: Away) -> None:
        for obstacle in tuple(self._behind):
            self.over(obstacle)

    return mutant


MUTANTS: tuple[Mutant, ...] = (
    Mutant("looks every five seconds", lambda: patch.object(engine, "_SWEEP_PART", math.inf), 300_000_174, "attempts"),
    Mutant("waits for resources until it is lost", says(Source, "patience", math.inf), 300_000_132, "attempts"),
    Mutant("looks at no last receive", says(Source, "is_slipping", answer=False), 300_000_018, "attempts"),
    Mutant("learns from the first message only", swap(QueueFacts, "received", _from_the_first), 300_001_046, "no loss"),
    Mutant("learns no time", says(QueueFacts, "_ahead", 0.0), 300_000_015, "no loss"),
    Mutant("pauses nothing in its own queue", swap(Obstacles, "is_sent_away", _sent_away), 300_000_380, "breaker"),
    Mutant("starts what is diverted", says(Tenants, "diverted", None), 300_000_001, "control"),
    Mutant("takes errors for failures", swap(Pipeline, "_did_fail", _takes_errors_for_failures), 300_000_019, "blame"),
    Mutant(
        "takes any cancellation for its own", swap(Pipeline, "_was_cancelled", _any_cancellation), 300_000_016, "blame"
    ),
    Mutant(
        "takes the loss of any message for its own",
        lambda: patch.object(pipeline, "_tells_of", lambda _job, _error: True),
        300_000_000,
        "attempts",
    ),
    Mutant("sends letters of what it lost", swap(DeadLetters, "fate", _sends_what_it_lost), 300_000_108, "S4"),
    Mutant("lets nothing wait behind a letter", swap(Core, "arrive", _goes_back_behind), 300_000_147, "expense"),
    Mutant(
        "returns what waits behind a letter", swap(Core, "give_group_back", _returns_behind), 300_002_822, "expense"
    ),
    Mutant("looks at nothing behind a letter", says(Core, "_reject_halted", None), 870_000_111, "attempts"),
    Mutant("gives deletes up", lambda: patch.object(settler, "MAX_VISIBILITY", 5.0), 300_000_000, "S5"),
    Mutant("ends a stop before the next try", says(Scheduler, "startable_before", 0), 300_000_392, "poison"),
    Mutant("keeps no quarantine", swap(Pipeline, "_send_away", _rejects_in_quarantine), 300_002_210, "attempts"),
    Mutant(
        "ends a stop before what follows in a group",
        does_nothing_later(Run, "_let_acknowledgements_bring_more"),
        300_000_097,
        "poison",
    ),
    Mutant("spaces no attempts", says(StepHealth, "spacing", 0.0), 300_000_012, "spacing"),
    Mutant("calls nothing back when a step works", says(Engine, "_call_back", None), 300_000_012, "spacing"),
    Mutant("lets each queue learn for itself", swap(source, "steps_of", _each_for_itself), 300_000_236, "spacing"),
    Mutant("calls back what backs off", swap(Core, "settled", _waits_for_anything), 300_000_167, "S1"),
    Mutant("calls back all at a stop", swap(Away, "all_over", _calls_all_back), 300_000_255, "spacing"),
    Mutant("counts a late answer from when it reads it", swap(Poller, "arrived", _when_read), 300_000_025, "owner"),
)


if __name__ == "__main__":
    sys.exit(search(MUTANTS, violations=further_violations, first=FIRST))
