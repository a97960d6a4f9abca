"""Are the oracles any good? Each mutant breaks the consumer in one place; searching has to notice.

``python -m simulation.consumer.mutants`` searches for each of them and prints the table of docs/proof.md.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from postroom.consumer.faults import FaultWatch
from postroom.consumer.parking import Parking

from postroom.consumer import lifecycle
from postroom.consumer.intake import Intake
from postroom.consumer.job import Cancellation, Job
from postroom.consumer.pipeline import Pipeline
from postroom.consumer.poller import Poller
from postroom.resources import Lease
from postroom.scheduling import Scheduler
from postroom.settlement import Delivery, Heartbeat, Settler, batcher
from postroom.types import Settlement
from simulation.consumer.schedule import run_consumer_schedule

Patch = AbstractContextManager[Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect, planted."""

    name: str
    plant: Callable[[], Patch]
    seed: int
    """A seed that kills it, found by searching from 0."""


def _swap(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], Patch]:
    """Replace an attribute by what ``make`` does with the original."""
    return lambda: patch.object(owner, name, make(getattr(owner, name)))


def _nothing(*_args: Any, **_options: Any) -> None:
    """Do nothing."""


async def _nothing_later(*_args: Any, **_options: Any) -> None:
    """Do nothing, when awaited."""


def _ack_first(run_handler: Any) -> Any:
    async def mutant(self: Any, job: Job, *, resources: Any) -> None:
        self._settler.ack(job.delivery)
        await asyncio.sleep(0.15)
        await run_handler(self, job, resources=resources)

    return mutant


def _shared_context(run_handler: Any) -> Any:
    async def mutant(self: Any, job: Job, *, resources: Any) -> None:
        self.shared = resources
        await asyncio.sleep(0)
        await run_handler(self, job, resources=self.shared)

    return mutant


def _early_release(run_handler: Any) -> Any:
    async def mutant(self: Any, job: Job, *, resources: Any) -> None:
        for lease in list(_LEASES):
            if lease.resource is resources:
                _LEASES.remove(lease)
                lease.release()
                break
        await run_handler(self, job, resources=resources)

    return mutant


_LEASES: list[Any] = []


@contextlib.contextmanager
def _released_before_the_handler() -> Iterator[None]:
    _LEASES.clear()
    leases = Lease.__init__

    def remember(self: Any, *args: Any) -> None:
        leases(self, *args)
        _LEASES.append(self)

    with (
        patch.object(Lease, "__init__", remember),
        patch.object(Pipeline, "_run_handler", _early_release(Pipeline._run_handler)),
    ):
        yield


def _drop_unstarted(_close: Any) -> Any:
    async def mutant(self: Any) -> None:
        self._closed = True
        for batch in tuple(self._batches):
            self._withdraw(batch)
        self._scheduler.withdraw_waiting()

    return mutant


def _wait_in_the_slot(_lease: Any) -> Any:
    async def mutant(self: Any, job: Job, pool: Any) -> Any:
        return await pool.acquire(job.context)

    return mutant


def _slot_per_batch(free: Any) -> Any:
    def mutant(self: Any, job: Job) -> None:
        self.jobs.pop(job.delivery, None)
        self.ended = [*getattr(self, "ended", []), job]
        if not self.jobs:
            ended, self.ended = self.ended, []
            for each in ended:
                free(self, each)

    return mutant


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


def _another_message(resolve: Any) -> Any:
    def mutant(self: Any, delivery: Delivery) -> Any:
        last, self.last = getattr(self, "last", delivery), delivery
        return resolve(self, last)

    return mutant


def _defers_as_failure(_defer: Any) -> Any:
    def mutant(self: Any, job: Job, error: Any) -> None:
        self._settle_failure(job, error)

    return mutant


def _acks_failures(_settle: Any) -> Any:
    def mutant(self: Any, job: Job, _error: Any) -> None:
        self._settler.ack(job.delivery)

    return mutant


def _deletes_rejects(reject: Any) -> Any:
    async def mutant(self: Any, delivery: Delivery, reason: str) -> bool:
        try:
            return bool(await reject(self, delivery, reason))
        except Exception:
            self.ack(delivery)
            return True

    return mutant


def _without_reason(_cancel: Any) -> Any:
    def mutant(self: Job, _reason: Cancellation) -> None:
        if self.task is not None and self.begun and not self.task.done():
            self.task.cancel()

    return mutant


def _ignores_newer(_renew: Any) -> Any:
    def mutant(self: Delivery, _message: Any, *, received_at: float, visibility: float) -> None:
        self.deadline = received_at + visibility

    return mutant


def _counts_from_the_answer(extend: Any) -> Any:
    async def mutant(self: Any, batch: Sequence[tuple[Delivery, int]]) -> None:
        before = [delivery.deadline for delivery, _ in batch]
        await extend(self, batch)
        now = asyncio.get_running_loop().time()
        for (delivery, seconds), deadline in zip(batch, before, strict=True):
            if delivery.deadline != deadline:
                delivery.deadline = now + seconds

    return mutant


def _one_more(grant: Any) -> Any:
    def mutant(self: Any, *args: Any) -> Any:
        self._total += 1
        try:
            return grant(self, *args)
        finally:
            self._total -= 1

    return mutant


def _wakes_nobody(_receive: Any) -> Any:
    async def mutant(self: Any, limit: int) -> Any:
        self._asked_for += limit
        try:
            return await self._queue.receive(limit=limit, wait=self._polling.wait, visibility=self._visibility.timeout)
        finally:
            self._asked_for -= limit

    return mutant


def _refuses_for_good(refused: Any) -> Any:
    def mutant(self: Any, delivery: Delivery, *, final: bool) -> None:
        refused(self, delivery, final=True)

    return mutant


def _says_returned(_give_back: Any) -> Any:
    def mutant(self: Any, delivery: Delivery, settlement: Settlement, *, delay: float) -> None:
        if settlement is Settlement.RETURNED:
            self.leave(delivery)
        else:
            _give_back(self, delivery, settlement, delay=delay)

    return mutant


def _keeps_its_turn(end_probe: Any) -> Any:
    def mutant(self: Any, job: Job) -> None:
        if job.turn is None:  # not while it waits for a slot with its resources in hand
            end_probe(self, job)

    return mutant


def _sleeps_lightly(sleep: Any) -> Any:
    def mutant(self: Any, tenant: Any, until: float) -> None:
        if until < float("inf"):
            sleep(self, tenant, until)

    return mutant


def _wakes_for_late_failures(failed: Any) -> Any:
    def mutant(self: Any, *args: Any, probe: bool) -> Any:
        return failed(self, *args, probe=probe or args[3] >= self.until(args[0]) > 0)

    return mutant


def _forgets_successes(succeeded: Any) -> Any:
    def mutant(self: Any, tenant: Any, message: str) -> Any:
        result = succeeded(self, tenant, message)
        if (known := self._tenants.get(tenant)) is not None:
            known.succeeded += 2
        return result

    return mutant


def _spends_the_last_receive(_spares: Any) -> Any:
    return lambda _self, _delivery: True


def _fails_duplicates(_was_handled: Any) -> Any:
    def mutant(self: Any, job: Job) -> None:
        self._settle_failure(job, ValueError("handled before"))

    return mutant


def _starts_the_paused(control: Any) -> Any:
    def mutant(self: Any, tenant: Any, *, paused: bool, **options: Any) -> None:
        control(self, tenant, paused=False, **options)

    return mutant


MUTANTS = (
    Mutant("acknowledges before the handler returned", _swap(Pipeline, "_run_handler", _ack_first), 0),
    Mutant("shares one context object", _swap(Pipeline, "_run_handler", _shared_context), 101),
    Mutant("gives the lease back before the handler", _released_before_the_handler, 1),
    Mutant("extends after the backoff was sent", _swap(Heartbeat, "release", lambda _: _nothing), 0),
    Mutant("sends the backoff beside an extension", _swap(Heartbeat, "quiesce", lambda _: _nothing_later), 13),
    Mutant("drops what was not started, at stop", _swap(Intake, "close", _drop_unstarted), 46),
    Mutant("leaves to the timeout what it should return", _swap(Settler, "give_back", _says_returned), 38),
    Mutant("waits for resources in a slot", _swap(Pipeline, "_lease_without_slot", _wait_in_the_slot), 0),
    Mutant("frees slots per batch", _swap(Pipeline, "_free_slot", _slot_per_batch), 0),
    Mutant("acknowledges what it lost", _swap(Settler, "ack", _acks_the_lost), 2),
    Mutant("acknowledges twice", _swap(Settler, "ack", _acks_twice), 2),
    Mutant("does not return the group of a failure", _swap(Pipeline, "_return_group", lambda _: _nothing), 1),
    Mutant("forgets the group in the resolver", _swap(Intake, "withdraw", lambda _: _nothing), 3),
    Mutant("resolves another message's context", _swap(Intake, "_resolve", _another_message), 0),
    Mutant("acknowledges a deferral (ALWAYS)", _swap(Pipeline, "_defer", _defers_as_failure), 2),
    Mutant("acknowledges failures (ON_SUCCESS)", _swap(Pipeline, "_settle_failure", _acks_failures), 0),
    Mutant("deletes a reject that nobody took", _swap(Settler, "reject", _deletes_rejects), 16),
    Mutant("sends an entry twelve times", _swap(batcher, "ATTEMPTS", lambda _: 12), 66),
    Mutant("cancels without a reason", _swap(Job, "cancel", _without_reason), 8),
    Mutant("cancels without a drain", _swap(lifecycle.Run, "_drain_handlers", lambda _: _nothing_later), 7),
    Mutant("starts handlers while it stops", _swap(lifecycle.Run, "_return_unstarted", lambda _: _nothing_later), 4),
    Mutant("uses an older receipt handle", _swap(Delivery, "renew", _ignores_newer), 0),
    Mutant("counts an extension from its answer", _swap(Heartbeat, "_extend", _counts_from_the_answer), 7),
    Mutant("grants one slot too many", _swap(Scheduler, "grant", _one_more), 4),
    Mutant("wakes no poller after a receive", _swap(Poller, "_receive", _wakes_nobody), 18),
    Mutant("takes every refusal for a loss", _swap(Heartbeat, "_refused", _refuses_for_good), 1),
    Mutant("leaves the heartbeat running", _swap(lifecycle.Run, "_end_heartbeat", lambda _: _nothing_later), 0),
    Mutant("does not flush", _swap(Settler, "drain", lambda _: _nothing_later), 38),
    Mutant("forgets nothing at stop", _swap(Settler, "abandon", lambda _: _nothing_later), 222),
    Mutant("keeps the probe's turn while it opens", _swap(Pipeline, "_end_probe", _keeps_its_turn), 13),
    Mutant("lets a broken tenant have two probes", _swap(Scheduler, "sleep", _sleeps_lightly), 5),
    Mutant("opens the breaker anew for a late failure", _swap(FaultWatch, "failed", _wakes_for_late_failures), 270),
    Mutant("takes one success for three", _swap(FaultWatch, "succeeded", _forgets_successes), 3),
    Mutant("puts off with the last receive", _swap(Parking, "spares", _spends_the_last_receive), 0),
    Mutant("takes duplicates for failures", _swap(Pipeline, "_was_handled_before", _fails_duplicates), 6),
    Mutant("starts what is paused", _swap(Scheduler, "control", _starts_the_paused), 14),
)


def killed_by(mutant: Mutant, seed: int) -> str | None:
    """Return what a schedule says against a mutant; None if it notices nothing."""
    with mutant.plant():
        violations = run_consumer_schedule(seed).violations
    return violations[0] if violations else None


def search(mutant: Mutant, most: int) -> tuple[int, str] | None:
    """Return the first seed that kills a mutant, and what was broken."""
    for seed in range(most):
        if (verdict := killed_by(mutant, seed)) is not None:
            return seed, verdict
    return None


def main() -> int:
    """Search for every mutant; 1 if one survives."""
    survivors = 0
    print("| mutant | killed by seed | oracle |\n|---|---|---|")
    for mutant in MUTANTS:
        found = search(mutant, 2_000)
        survivors += found is None
        print(
            f"| {mutant.name} | {'**survives**' if found is None else found[0]} | {'' if found is None else found[1]} |"
        )
        sys.stdout.flush()
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
