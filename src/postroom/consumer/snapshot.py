"""Takes the snapshot of one run of a consumer."""

from typing import TYPE_CHECKING, Any

from postroom.consumer.inlet import Inlet
from postroom.consumer.job import Job
from postroom.consumer.statistics import ConsumerStatistics

if TYPE_CHECKING:
    from postroom.consumer.lifecycle import Run


def snapshot_of(run: "Run[Any, Any]", now: float) -> ConsumerStatistics:
    """Return what a run did so far, and what it holds."""
    scheduler, core, pipeline = run.scheduler, run.core, run.pipeline
    gauges = scheduler.statistics()
    queues = {inlet.name: inlet.statistics(now) for inlet in run.inlets}
    total = run.past
    for each in queues.values():
        total = total.plus(each)
    return ConsumerStatistics(
        received=total.received,
        receives=total.receives,
        scouting_receives=run.scouting.receives,
        succeeded=pipeline.succeeded,
        duplicates=pipeline.duplicates,
        failed=dict(pipeline.failed),
        settled=dict(total.settled),
        settlement_failures=total.settlement_failures,
        extensions=total.extensions,
        poll_failures=total.poll_failures,
        cancelled=run.cancelled,
        slots=scheduler.total,
        running=gauges.running,
        waiting=gauges.waiting,
        oldest_wait=_oldest_wait(run, now),
        suspended=gauges.suspended,
        held=total.held,
        held_bytes=run.tally.bytes,
        tenants=gauges.tenants,
        parked=core.parked,
        deferred=core.deferred,
        away=len(core.away),
        scouting_stopped=_scouting_stopped(run, now),
        outages=core.availability.outages,
        breakers=core.availability.breakers,
        group_mismatches=total.group_mismatches,
        last_poll_age=total.last_poll_age,
        loop_lag=run.watch.max_lag,
        pool=None if run.pool is None else run.pool.statistics(),
        utilisation=gauges.running / scheduler.total,
        oldest_wait_within_share=max((_wait_of(job, now) for job in scheduler.heads_within_share()), default=0.0),
        queues=queues,
        fleet=None if run.member is None else run.member.statistics(),
    )


def _wait_of(job: Job, now: float) -> float:
    """Return for how long a message has waited: since it was sent, if it was not tried before."""
    since_received = now - job.received_at
    age = job.source.facts.age(job) if job.receives == 1 else None
    return since_received if age is None else max(age, since_received)


def _oldest_wait(run: "Run[Any, Any]", now: float) -> float:
    """Return for how long the message has waited that was received first of tenants that can run."""
    blocked = run.scheduler.is_blocked
    held = [job for inlet in run.inlets for job in list(inlet.settler.deliveries.values())]
    return now - min((job.received_at for job in held if not job.started and not blocked(job.tenant)), default=now)


def _scouting_stopped(run: "Run[Any, Any]", now: float) -> str | None:
    inlets: list[Inlet] = run.inlets
    if inlets and all(inlet.source.fifo for inlet in inlets):
        return "a FIFO queue hands out the next message of a group only when the last one is done"
    refusals = (inlet.facts.why_full() for inlet in inlets)
    return run.scouting.said(now) or next((said for said in refusals if said is not None), None)
