"""Are the oracles any good? Each mutant breaks the consumer in one place; searching has to notice.

``python -m simulation.consumer.mutants`` searches for each of them from seed 0 on. With ``--table`` it prints the
table of docs/proof.md, of the seeds that are kept here.
"""

import asyncio
import math
import sys
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import PropertyMock, patch

from postroom.consumer import choices, deferral, lifecycle
from postroom.consumer.attempts import Attempts
from postroom.consumer.availability import Availability, Obstacle, ObstacleKind, _Breaker
from postroom.consumer.core import Core
from postroom.consumer.crowd import Crowd
from postroom.consumer.deferral import Deferral
from postroom.consumer.demand import AdaptivePolicy
from postroom.consumer.endings import Endings
from postroom.consumer.engine import Engine
from postroom.consumer.facts import QueueFacts
from postroom.consumer.intake import Intake
from postroom.consumer.job import Cancellation, Job
from postroom.consumer.pipeline import Pipeline
from postroom.consumer.poller import Poller
from postroom.consumer.tenants import Tenants
from postroom.resources import ResourcePool
from postroom.scheduling import Scheduler
from postroom.settlement import Delivery, Heartbeat, Settler, batcher, dead_letters
from postroom.settlement.letters import REASON
from postroom.settlement.sending import Changes
from postroom.tasks import Tasks
from postroom.transports.protocol import EntryFailure
from postroom.types import Settlement
from simulation.consumer.planting import Mutant, Patch, does_nothing_later, says, search, swap
from simulation.consumer.schedule import run_consumer_schedule

PROVED = ("attempts", "context", "liveness", "expense", "bytes", "owner", "no loss", "pace")
"""Oracles that have to notice two planted defects or more."""


def _all(*plants: Callable[[], Patch]) -> Callable[[], Patch]:
    """Plant several changes that are one defect."""

    def plant() -> Patch:
        stack = ExitStack()
        for each in plants:
            stack.enter_context(each())
        return stack

    return plant


def _keeps_all_of_them(original: Any) -> Any:
    def keep_returns(self: Engine, out_until: Any, seconds: float) -> None:
        original(self, out_until, seconds)
        self._kept_until = -math.inf

    return keep_returns


def _does_nothing(owner: Any, name: str) -> Callable[[], Patch]:
    """Let a method do nothing."""
    return says(owner, name, None)


def _and_then_says(answer: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function do what it does, and answer something else."""

    def change(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **named: Any) -> Any:
            original(*arguments, **named)
            return answer

        return changed

    return change


def _property(owner: Any, name: str, answer: Any) -> Callable[[], Patch]:
    """Let a property always have one value."""
    return lambda: patch.object(owner, name, PropertyMock(return_value=answer))


def _now(_: Any) -> Any:
    """Take the time at which an answer is read for the time at which it came."""
    return lambda poller, asked: asked._replace(time=poller._tasks.time())


# -- handlers and their resources --------------------------------------------------------------------------------------


def _ack_first(run_handler: Any) -> Any:
    async def mutant(self: Any, job: Job, resources: Any) -> None:
        job.source.settler.ack(job)
        await asyncio.sleep(0.15)
        await run_handler(self, job, resources)

    return mutant


def _shared_context(run_handler: Any) -> Any:
    async def mutant(self: Any, job: Job, resources: Any) -> None:
        self.shared = resources
        await asyncio.sleep(0)
        await run_handler(self, job, self.shared)

    return mutant


def _released_before_the_handler(try_hold: Any) -> Any:
    def mutant(self: Any, context: Any) -> Any:
        held = try_hold(self, context)
        if held is not None:
            held.release()
        return held

    return mutant


def _wait_in_the_slot(_lease: Any) -> Any:
    async def mutant(_self: Any, job: Job, pool: Any) -> Any:
        return await pool.acquire(job.context)

    return mutant


def _slot_per_batch(ended: Any) -> Any:
    def mutant(self: Any, job: Job, _defect: object = None) -> None:
        self.over = [*getattr(self, "over", []), job]
        if len(self.over) == len(self.jobs):
            over, self.over = self.over, []
            for each in over:
                ended(self, each)

    return mutant


def _without_reason(_cancel: Any) -> Any:
    def mutant(self: Job, _reason: Cancellation) -> None:
        if self.task is not None and self.running and not self.task.done():
            self.task.cancel()

    return mutant


def _one_more(adjust: Any) -> Any:
    def mutant(self: Any, **limits: Any) -> None:
        adjust(self, **limits)
        self.total += 1

    return mutant


@contextmanager
def _starts_the_paused() -> Generator[None]:
    """Neither its lane nor the message that has a slot knows of a pause."""
    control = Scheduler.control

    def mutant(self: Any, tenant: Any, *, paused: bool, **options: Any) -> None:
        control(self, tenant, paused=False, **options)

    with patch.object(Scheduler, "control", mutant), patch.object(Tenants, "is_paused", lambda *_: False):
        yield


# -- settling ----------------------------------------------------------------------------------------------------------


def _acks_the_lost(ack: Any) -> Any:
    def mutant(self: Any, delivery: Delivery) -> None:
        delivery.lost = False
        delivery.deadline = float("inf")
        ack(self, delivery)

    return mutant


def _acks_twice(ack: Any) -> Any:
    def mutant(self: Any, delivery: Delivery) -> None:
        ack(self, delivery)
        if delivery.settlement is Settlement.ACKED:
            delivery.settlement = None
            ack(self, delivery)

    return mutant


def _says_returned(give_back: Any) -> Any:
    def mutant(self: Any, delivery: Delivery, settlement: Settlement, *, delay: float) -> None:
        if settlement is Settlement.RETURNED:
            self.leave(delivery)
        else:
            give_back(self, delivery, settlement, delay=delay)

    return mutant


def _without_a_reason(write: Any) -> Any:
    def mutant(*args: Any, **options: Any) -> Any:
        letter = write(*args, **options)
        letter.outgoing.message_attributes.pop(REASON, None)
        return letter

    return mutant


def _beside_an_extension(_fate: Any) -> Any:
    def mutant(self: Any, entry: Any, now: float) -> Any:
        return self._desk.fate(entry, now)

    return mutant


def _ignores_newer(_renew: Any) -> Any:
    def mutant(self: Delivery, _message: Any, *, received_at: float, visibility: float) -> None:
        self.deadline = received_at + visibility

    return mutant


def _counts_from_the_answer(send: Any) -> Any:
    async def mutant(self: Any, entries: Sequence[Delivery]) -> Sequence[EntryFailure]:
        before = [delivery.deadline for delivery in entries]
        sent_at = asyncio.get_running_loop().time()
        failures: Sequence[EntryFailure] = await send(self, entries)
        took = asyncio.get_running_loop().time() - sent_at
        for delivery, deadline in zip(entries, before, strict=True):
            if delivery.deadline != deadline:
                delivery.deadline += took
        return failures

    return mutant


def _refuses_for_good(send: Any) -> Any:
    async def mutant(self: Any, entries: Sequence[Delivery]) -> Sequence[EntryFailure]:
        failures: Sequence[EntryFailure] = await send(self, entries)
        for failure in failures:
            self._give_up(entries[failure.index], "an extension was refused")
        return failures

    return mutant


# -- what becomes of a message -----------------------------------------------------------------------------------------


def _drop_unstarted(_close: Any) -> Any:
    def mutant(self: Any) -> None:
        self.closing = True
        self.scheduler.withdraw_waiting()

    return mutant


def _another_message(resolve: Any) -> Any:
    def mutant(self: Any, job: Job) -> Any:
        last, self.last = getattr(self, "last", job), job
        return resolve(self, last)

    return mutant


def _waits_as_failure(_wait: Any) -> Any:
    async def mutant(self: Any, job: Job, error: BaseException) -> None:
        await self._report(job, error)
        self._settle_failure(job, error)

    return mutant


def _acks_failures(_settle: Any) -> Any:
    def mutant(self: Any, job: Job, _error: Any) -> None:
        job.source.settler.ack(job)

    return mutant


def _fails_duplicates(_was_handled: Any) -> Any:
    def mutant(self: Any, job: Job) -> None:
        self._settle_failure(job, ValueError("handled before"))

    return mutant


def _ends_pauses(recovered: Any) -> Any:
    def mutant(self: Any, tenant: Any, host: Any, now: float, invited: Any = ()) -> Any:
        self.met.pop(Obstacle(ObstacleKind.TENANT, tenant), None)
        return recovered(self, tenant, host, now, invited)

    return mutant


def _blames_outages(wait: Any) -> Any:
    async def mutant(self: Any, job: Job, error: BaseException) -> None:
        job.source.attempts.failed(job)
        await wait(self, job, error)

    return mutant


def _tried_all_the_same(retry: Any) -> Any:
    def mutant(self: Any, job: Job, error: BaseException, delay: float, now: float, *, tried: bool) -> None:
        retry(self, job, error, delay, now, tried=True)

    return mutant


def _sheds_anything(relieve: Any) -> Any:
    def mutant(self: Any, now: float) -> None:
        with patch.object(Deferral, "_may_be_shed", lambda _self, job: job.task is None):
            relieve(self, now)

    return mutant


def _counts_receives(_number: Any) -> Any:
    def mutant(_self: Any, job: Job) -> int:
        return max(1, job.receives)

    return mutant


def _three_for_one(succeeded: Any) -> Any:
    def mutant(self: Any, job: Job) -> None:
        for _ in range(3):
            succeeded(self, job)

    return mutant


# -- who may run -------------------------------------------------------------------------------------------------------


def _sleeps_lightly(sleep: Any) -> Any:
    def mutant(self: Any, tenant: Any, until: float | None, **options: Any) -> None:
        if until is not None:
            sleep(self, tenant, until, **options)

    return mutant


def _trips_for_late_failures(failed: Any) -> Any:
    def mutant(self: Any, job: Job, error: BaseException, options: Any, now: float) -> float | None:
        until: float | None = failed(self, job, error, options, now)
        known = self.failing[job.tenant]
        if until is None and known.until is not None:
            until = self._trip(job, known, error, options, now)
        return until

    return mutant


def _leads_on(ended: Any) -> Any:
    def mutant(self: Any, job: Job) -> None:
        job.leads = False
        ended(self, job)

    return mutant


def _sleeps_for_long(sleep: Any) -> Any:
    def mutant(self: Any, lane: Any, now: float, until: float | None) -> None:
        sleep(self, lane, now, None)

    return mutant


# -- context -----------------------------------------------------------------------------------------------------------


def _inherits(_start: Any) -> Any:
    def mutant(self: Any, work: Coroutine[Any, Any, Any], name: str) -> Any:
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        return task

    return mutant


def _one_task_for_a_group(_resolve: Any) -> Any:
    async def mutant(self: Any, batch: Any) -> None:
        while batch.waiting:
            job, awaitable = batch.waiting[-1]
            found = await self._bounded(job, awaitable)
            if not batch.waiting:
                return
            batch.waiting.pop()
            self._no_longer_resolves(job)
            self._enter(job, found, self._engine.tasks.loop.time())
            self._engine.dispatch()

    return mutant


def _run_as_it_is(_run: Any) -> Any:
    def mutant(_self: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    return mutant


# -- asking for messages -----------------------------------------------------------------------------------------------


def _quiet_after_a_receive(receive: Any) -> Any:
    async def mutant(self: Any, *asked: Any) -> Any:
        found = await receive(self, *asked)
        self.wake = partial(_wakes_from_now_on, self)
        return found

    return mutant


def _wakes_from_now_on(poller: Any) -> None:
    """Skip one call."""
    del poller.wake


# -- memory ------------------------------------------------------------------------------------------------------------


def _remembers_jobs(settled: Any) -> Any:
    def mutant(self: Any, job: Job, settlement: Settlement, delay: float, now: float) -> None:
        if settlement is Settlement.DEFERRED:
            self.remembered = [*getattr(self, "remembered", []), job]
        settled(self, job, settlement, delay, now)

    return mutant


def _as_it_is(_without_frames: Any) -> Any:
    return lambda error: error


def _gives_blocked_groups_little_room(taken: Any) -> Any:
    def mutant(self: Core, capacity: int) -> int:
        found: int = taken(self, capacity)
        blocked = self.scheduler.blocked + self.unresolved
        return found + max(0, blocked - capacity) if self.fifo else found

    return mutant


def _keeps_successes(succeeded: Any) -> Any:
    def mutant(self: Any, job: Job, now: float) -> None:
        self.remembered = [*getattr(self, "remembered", []), job.message]
        succeeded(self, job, now)

    return mutant


MUTANTS = (
    Mutant("acknowledges before the handler returned", swap(Pipeline, "_run_handler", _ack_first), 0, "S2"),
    Mutant("shares one context object", swap(Pipeline, "_run_handler", _shared_context), 27, "isolation"),
    Mutant(
        "gives the lease back before the handler",
        swap(ResourcePool, "try_hold", _released_before_the_handler),
        3,
        "I2",
    ),
    Mutant("extends after the backoff was sent", _does_nothing(Heartbeat, "uncover"), 5, "S3"),
    Mutant("sends the backoff beside an extension", swap(Changes, "fate", _beside_an_extension), 36, "S3"),
    Mutant("drops what was not started, at stop", swap(Core, "close", _drop_unstarted), 62, "S7"),
    Mutant("leaves to the timeout what it should return", swap(Settler, "give_back", _says_returned), 62, "S7"),
    Mutant("waits for resources in a slot", swap(Pipeline, "_lease_without_slot", _wait_in_the_slot), 1, "slots"),
    Mutant("frees slots per batch", swap(Engine, "ended", _slot_per_batch), 3, "slots"),
    Mutant("acknowledges what it lost", swap(Settler, "ack", _acks_the_lost), 2, "S4"),
    Mutant("acknowledges twice", swap(Settler, "ack", _acks_twice), 2, "S1"),
    Mutant("does not return the group of a failure", _does_nothing(Core, "give_group_back"), 8, "S8"),
    Mutant("forgets the group in the resolver", _does_nothing(Intake, "withdraw"), 13, "S8"),
    Mutant("resolves another message's context", swap(Intake, "_resolve", _another_message), 1, "isolation"),
    Mutant("takes an outage for a failure", swap(Pipeline, "_wait", _waits_as_failure), 2, "S2"),
    Mutant("acknowledges failures (ON_SUCCESS)", swap(Pipeline, "_settle_failure", _acks_failures), 0, "S2"),
    Mutant("cancels without a reason", swap(Job, "cancel", _without_reason), 7, "I6"),
    Mutant("cancels without a drain", does_nothing_later(lifecycle.Run, "_drain_handlers"), 12, "I6"),
    Mutant("starts handlers while it stops", does_nothing_later(lifecycle.Run, "_return_unstarted"), 4, "S7"),
    Mutant("uses an older receipt handle", swap(Delivery, "renew", _ignores_newer), 11, "S6"),
    Mutant("counts an extension from its answer", swap(Heartbeat, "send", _counts_from_the_answer), 96, "S4"),
    Mutant("grants one slot too many", swap(Scheduler, "adjust", _one_more), 6, "slots"),
    Mutant("wakes no poller after a receive", swap(Poller, "receive", _quiet_after_a_receive), 400, "liveness"),
    Mutant("takes every refusal for a loss", swap(Heartbeat, "send", _refuses_for_good), 14, "I6"),
    Mutant("leaves the heartbeat running", does_nothing_later(lifecycle.Run, "_end_heartbeat"), 0, "I8"),
    Mutant("does not flush", does_nothing_later(Settler, "drain"), 62, "S7"),
    Mutant("forgets nothing at stop", does_nothing_later(Settler, "abandon"), 89, "I8"),
    Mutant(
        "lets a broken tenant have two probes",
        _all(swap(Scheduler, "sleep", _sleeps_lightly), _property(_Breaker, "probed", answer=False)),
        13,
        "breaker",
    ),
    Mutant(
        "opens the breaker again for a late failure",
        swap(Availability, "failed", _trips_for_late_failures),
        270,
        "breaker",
    ),
    Mutant("takes one success for three", swap(Attempts, "succeeded", _three_for_one), 177, "poison"),
    Mutant("defers with the last receive", says(Attempts, "may_defer", answer=True), 5, "expense"),
    Mutant("takes duplicates for failures", swap(Pipeline, "_was_handled_before", _fails_duplicates), 6, "liveness"),
    Mutant("starts what is paused", _starts_the_paused, 0, "control"),
    # -- attempts
    Mutant(
        "never sees that a receive is the last",
        _all(*(says(Attempts, name, answer=False) for name in ("is_short_of", "is_last"))),
        5,
        "attempts",
    ),
    Mutant("retries an unknown tenant's last receive", swap(Core, "retry", _tried_all_the_same), 5, "attempts"),
    Mutant("counts receives as attempts", swap(Attempts, "number", _counts_receives), 2, "attempts"),
    Mutant("counts an outage as an attempt", swap(Pipeline, "_wait", _blames_outages), 278, "attempts"),
    Mutant("says no reason", swap(dead_letters, "write", _without_a_reason), 5, "poison"),
    Mutant("returns at a stop what has no receive left", says(Core, "keeps", answer=False), 152, "poison"),
    # -- context
    Mutant("starts tasks in any context", swap(Tasks, "start", _inherits), 0, "context"),
    Mutant("resolves a group in one task", swap(Intake, "_resolve_in_order", _one_task_for_a_group), 3, "context"),
    Mutant("calls options in any context", swap(choices, "clean", lambda _: lambda function: function), 25, "context"),
    Mutant("resolves in the poller's context", swap(Tasks, "run_clean", _run_as_it_is), 1, "context"),
    # -- liveness
    Mutant("makes no room when a message ends", _does_nothing(Engine, "make_room"), 4, "liveness"),
    Mutant(
        "gives blocked groups little room",
        swap(Core, "taken", _gives_blocked_groups_little_room),
        3602,
        "liveness",
    ),
    Mutant("never ends a probe", says(Availability, "probe_ended", answer=False), 256, "liveness"),
    Mutant(
        "never ends a lead",
        _all(_does_nothing(Core, "leased"), swap(Core, "probe_ended", _leads_on)),
        644,
        "liveness",
    ),
    Mutant("lets no lane wake by itself", swap(Scheduler, "_sleep", _sleeps_for_long), 13, "liveness"),
    # -- expense
    Mutant("spends the receives of a crowd", lambda: patch.object(deferral, "_CROWDED", (0.0, 0.0)), 35, "expense"),
    Mutant(
        "needs no proof of a crowd",
        _all(*(says(Crowd, name, answer=True) for name in ("is_suspected", "is_proved", "is_noisy"))),
        27,
        "expense",
    ),
    Mutant(
        "parks at every receive",
        _all(says(AdaptivePolicy, "is_surplus", answer=True), says(Attempts, "may_park", answer=True)),
        5,
        "poison",
    ),
    Mutant("makes room with promised receives", swap(Core, "relieve", _sheds_anything), 278, "expense"),
    # -- bytes
    Mutant("shows to its own polls what goes back", says(Engine, "_hidden", answer=0.0), 78, "expense"),
    Mutant(
        "keeps what a stop returns until others may have it",
        swap(Engine, "keep_returns", _keeps_all_of_them),
        610_007_432,
        "expense",
    ),
    Mutant("remembers what it deferred", swap(Core, "settled", _remembers_jobs), 152, "bytes"),
    Mutant("remembers what it handled", swap(Core, "succeeded", _keeps_successes), 6, "bytes"),
    Mutant("keeps what ended for a call that hangs", _does_nothing(Job, "forget_body"), 350_055_756, "bytes"),
    Mutant("remembers an error with its frames", swap(batcher, "_without_frames", _as_it_is), 5093, "bytes"),
    # -- owner
    Mutant("starts what it lost", says(Settler, "ours", answer=True), 41, "owner"),
    Mutant("counts what it reads late from when it reads it", swap(Poller, "arrived", _now), 41, "owner"),
    Mutant("does not cancel what it lost", _does_nothing(Engine, "lost"), 24, "owner"),
    Mutant("watches no deadline", _does_nothing(Heartbeat, "_expire"), 24, "owner"),
    # -- no loss
    Mutant("sweeps nothing", says(Core, "sweep", ((), ())), 5623, "no loss"),
    Mutant("lets resources in hand expire", swap(Core, "sweep", _and_then_says(((), ()))), 92000664, "no loss"),
    Mutant(
        "lets what is too old expire",
        _all(says(Endings, "expires", None), says(Endings, "_is_too_late", answer=False)),
        21,
        "no loss",
    ),
    Mutant("waits for a slot until the end", says(QueueFacts, "is_last_call", answer=False), 5623, "no loss"),
    Mutant("knows no retention period", says(QueueFacts, "seconds_left", answer=1e6), 21, "no loss"),
    # -- pace
    Mutant("makes no pause for handlers", says(Availability, "_pause_after", answer=0.0), 5, "pace"),
    Mutant("ends that pause with an open", swap(Availability, "recovered", _ends_pauses), 104, "pace"),
)


def consumer_violations(seed: int) -> tuple[str, ...]:
    """Return what was broken in one schedule."""
    return run_consumer_schedule(seed).violations


if __name__ == "__main__":
    sys.exit(search(MUTANTS, violations=consumer_violations))
