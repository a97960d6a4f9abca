"""Wrong cores: each takes one promise away. The schedules have to notice every one of them.

``python -m simulation.core.mutants`` prints the table of docs/proof.md.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from postroom.consumer import attempts as attempts_module
from postroom.consumer.actions import GiveBack
from postroom.consumer.attempts import Attempts
from postroom.consumer.availability import Availability, Obstacle
from postroom.consumer.away import Away
from postroom.consumer.core import Core
from postroom.consumer.crowd import Crowd
from postroom.consumer.deferral import Deferral
from postroom.consumer.job import Job
from postroom.scheduling import Scheduler
from postroom.scheduling.groups import Groups
from postroom.scheduling.tickets import Lane
from postroom.types import Settlement
from simulation.core.outside import ModelFacts
from simulation.core.schedules import run_core_schedule

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, tuple[Callable[[Patch], None], int]] = {}
"""By name: what plants the defect, and the seed that finds it."""
SEEDS = 2_000


def mutant(seed: int) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a mutant under the name of its function, with the seed that finds it."""

    def register(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS[apply.__name__] = apply, seed
        return apply

    return register


# -- the scheduler ----------------------------------------------------------------------------------------------


@mutant(0)
def grants_one_slot_too_many(patch: Patch) -> None:
    """One handler more than there are slots."""
    grant = Scheduler.grant

    def more(self: Scheduler[Any], now: float = 0.0) -> Any:
        self.total += 1
        try:
            return grant(self, now)
        finally:
            self.total -= 1

    patch.setattr(Scheduler, "grant", more)


@mutant(0)
def ignores_the_cap_of_a_tenant(patch: Patch) -> None:
    """A lane may run whatever it has."""
    grant = Scheduler.grant

    def uncapped(self: Scheduler[Any], now: float = 0.0) -> Any:
        for lane in self.lanes():
            lane.cap = self.total
        return grant(self, now)

    patch.setattr(Scheduler, "grant", uncapped)
    patch.setattr(Scheduler, "_look_up", lambda self, lane: None)


@mutant(0)
def starts_what_is_paused(patch: Patch) -> None:
    """A paused lane is granted slots."""
    patch.setattr(Lane, "blocked", property(lambda self: self.suspended > 0 or self.asleep))


@mutant(1)
def forgets_the_order_of_a_group(patch: Patch) -> None:
    """Every message of a group is its head."""
    patch.setattr(Groups, "enter", lambda self, name, ticket: self._groups.setdefault(name, _group(ticket)) or True)
    patch.setattr(Groups, "next", lambda self, name: self._groups.pop(name, None) and None)
    patch.setattr(Groups, "strike_off", lambda self, ticket: [])
    patch.setattr(Groups, "holds", lambda self, ticket, check: check(ticket))


def _group(ticket: Any) -> Any:
    return [ticket]


@mutant(1)
def loses_count_of_what_waits(patch: Patch) -> None:
    """A message that is put back is not counted."""
    put_back = Scheduler.put_back

    def uncounted(self: Scheduler[Any], ticket: Any, *, seconds: float | None = None) -> None:
        put_back(self, ticket, seconds=seconds)
        self.waiting -= 1

    patch.setattr(Scheduler, "put_back", uncounted)


@mutant(0)
def keeps_lanes_that_are_empty(patch: Patch) -> None:
    """A lane stays when its last message has gone."""
    patch.setattr(Scheduler, "_forget_if_empty", lambda self, lane: None)


@mutant(0)
def does_not_offer_what_wakes(patch: Patch) -> None:
    """A lane that wakes stands in no line."""

    def wake(self: Scheduler[Any], lane: Lane[Any]) -> None:
        was_blocked = lane.blocked
        lane.asleep, lane.asleep_until = False, None
        self._note_blocked(lane, was_blocked=was_blocked, now=lane.blocked_since)

    patch.setattr(Scheduler, "_wake", wake)


# -- attempts ---------------------------------------------------------------------------------------------------


@mutant(5)
def promises_one_attempt_less(patch: Patch) -> None:
    """A quarter of the receives and one more are its own to spend."""
    patch.setattr(attempts_module, "default_promise", lambda most: max(1, most - 1 - max(1, most // 4)))


@mutant(2)
def parks_at_any_receive(patch: Patch) -> None:
    """A message can be parked again and again."""
    patch.setattr(Attempts, "may_park", lambda self, job: True)


@mutant(5)
def defers_without_counting(patch: Patch) -> None:
    """Every receive may be spent."""
    patch.setattr(Attempts, "may_defer", lambda self, job: True)


@mutant(48)
def defers_with_the_last_receive(patch: Patch) -> None:
    """Crowded, it spends what is left."""
    patch.setattr(Attempts, "is_last", lambda self, job: False)


@mutant(12)
def returns_the_last_receive(patch: Patch) -> None:
    """A stop gives back what becomes a dead letter by that."""
    patch.setattr(Attempts, "is_short_of", lambda self, job: False)
    patch.setattr(Attempts, "is_last", lambda self, job: False)


@mutant(7)
def rejects_too_early(patch: Patch) -> None:
    """One attempt before the promised ones are over."""

    def over(self: Attempts, job: Job) -> bool:
        wanted = job.source.retry_of(job).attempts
        return wanted is not None and max(self.known(job), self.number(job) - 1) >= wanted - 1

    patch.setattr(Attempts, "is_over", over)


@mutant(48)
def never_rejects_what_has_had_its_attempts(patch: Patch) -> None:
    """And says nothing when a message's receives were spent otherwise."""
    patch.setattr(Attempts, "is_cut_short", lambda self, job: False)


@mutant(3)
def remembers_what_is_gone(patch: Patch) -> None:
    """Counts stay when their message has been deleted."""
    patch.setattr(Attempts, "forget", lambda self, job: None)


# -- availability -----------------------------------------------------------------------------------------------


@mutant(159)
def lets_two_probes_run(patch: Patch) -> None:
    """A breaker that is half open lets everything through."""
    wait = Availability.wait

    def wide(self: Availability, job: Job, now: float) -> Any:
        breaker = self._open.get(job.tenant)
        if breaker is not None and breaker.until is not None and breaker.until <= now:
            return None
        return wait(self, job, now)

    patch.setattr(Availability, "wait", wide)
    patch.setattr(Availability, "is_half_open", lambda self, job: job.tenant in self._open)


@mutant(0)
def opens_a_breaker_that_holds_nothing(patch: Patch) -> None:
    """Nothing waits for the pause of a breaker."""

    def wait(self: Availability, job: Job, now: float) -> Any:
        saved, self._open = self._open, {}
        try:
            return real(self, job, now)
        finally:
            self._open = saved

    real = Availability.wait
    patch.setattr(Availability, "wait", wait)
    patch.setattr(Availability, "is_half_open", lambda self, job: False)


@mutant(302)
def never_ends_a_probe(patch: Patch) -> None:
    """A probe that told nothing goes on to keep the others waiting."""
    patch.setattr(Core, "probe_ended", lambda self, job: None)


@mutant(13)
def asks_no_pool(patch: Patch) -> None:
    """What the pool leaves alone gets slots all the same."""
    patch.setattr(Availability, "troubled", property(lambda self: bool(self._open)))


@mutant(11)
def never_ends_an_outage(patch: Patch) -> None:
    """Outages stay when their resources are open."""
    patch.setattr(Availability, "recovered", lambda self, tenant, host, now, invited=(): ([], []))


@mutant(0)
def keeps_the_breaker_of_what_works(patch: Patch) -> None:
    """A success closes no breaker."""
    patch.setattr(Availability, "succeeded", lambda self, job, now: False)


@mutant(22)
def probes_with_whatever_comes_next(patch: Patch) -> None:
    """The probe is the next message, whatever was tried before."""
    patch.setattr(Scheduler, "waiting_of", lambda self, tenant: [])


@mutant(350_479_981)
def lets_a_probe_wait_behind_others(patch: Patch) -> None:
    """A probe that waits for its slot, with its resources, behind messages that wait for its end."""
    patch.setattr(Core, "_has_waiting_probe", lambda self, tenant: False)
    # It waits for long enough only where its tenant's rate makes it wait twice for one start.
    patch.setattr(Scheduler, "unspend", lambda self, ticket: None)


@mutant(11)
def sleeps_without_an_end(patch: Patch) -> None:
    """A tenant with resources that were refused sleeps until it is woken."""
    refused = Availability.refused

    def endless(self: Availability, job: Job, error: BaseException, now: float) -> Any:
        wait = refused(self, job, error, now)
        return type(wait)(wait.obstacle, None)

    patch.setattr(Availability, "refused", endless)


@mutant(260)
def remembers_every_breaker(patch: Patch) -> None:
    """Nothing is forgotten."""
    patch.setattr(Availability, "_forget_oldest", lambda self: None)


# -- the core ---------------------------------------------------------------------------------------------------


@mutant(50)
def parks_equal_tenants(patch: Patch) -> None:
    """Whatever comes is proof."""
    patch.setattr(Crowd, "is_proved", lambda self, now: True)
    patch.setattr(Crowd, "is_noisy", lambda self, tenant: True)


@mutant(108)
def takes_its_group_along(patch: Patch) -> None:
    """What is behind a message that fails spends a receive each time."""
    patch.setattr(Core, "_backs_off_here", lambda _self, _job, _delay, _now: False)


@mutant(1)
def forgets_the_backoff_of_a_group(patch: Patch) -> None:
    """A message that fails and stays is tried again at once."""
    back_off = Core._back_off

    def at_once(self: Core, job: Job, _delay: float, now: float) -> None:
        back_off(self, job, 0.0, now)

    patch.setattr(Core, "_back_off", at_once)


@mutant(108)
def tries_what_stays_without_end(patch: Patch) -> None:
    """What is tried again without a receive never has had all its attempts."""

    def is_over(self: Attempts, job: Job) -> bool:
        wanted = job.source.retry_of(job).attempts
        return wanted is not None and self.known(job) >= wanted

    patch.setattr(Attempts, "is_over", is_over)


@mutant(1)
def gives_no_group_back(patch: Patch) -> None:
    """What waits behind a message that failed is started."""
    patch.setattr(Core, "give_group_back", lambda self, job: None)


@mutant(1)
def gives_a_group_back_untold(patch: Patch) -> None:
    """What is still being resolved of a group goes on."""

    def give_group_back(self: Core, job: Job) -> None:
        if job.group is not None:
            for other in self.scheduler.withdraw_group(job):
                self.actions.append(GiveBack(other, Settlement.RETURNED))

    patch.setattr(Core, "give_group_back", give_group_back)


@mutant(38)
def forgets_retention(patch: Patch) -> None:
    """Nothing looks at what SQS is about to delete."""
    patch.setattr(Core, "sweep", lambda self, now, waiting=None: self.away.tidy(now) or ((), ()))


@mutant(7)
def waits_for_a_slot_until_the_end(patch: Patch) -> None:
    """What lacks nothing but a slot waits for one until SQS deletes it."""
    patch.setattr(ModelFacts, "is_last_call", lambda _self, _job: False)


@mutant(0)
def starts_handlers_while_it_stops(patch: Patch) -> None:
    """A stop leaves what waits in its lanes."""

    def close(self: Core) -> None:
        self.closing = True

    patch.setattr(Core, "close", close)


@mutant(74)
def abandons_nothing(patch: Patch) -> None:
    """What is left at the end of a stop stays."""
    patch.setattr(Core, "abandon", lambda self: None)


@mutant(3322)
def leaves_what_was_lost(patch: Patch) -> None:
    """A message that is not ours stays in its lane."""
    patch.setattr(Core, "lost", lambda self, job, now: None)


@mutant(3)
def sheds_whatever_is_away(patch: Patch) -> None:
    """Room is made beyond what may be away, and while the queue is full."""
    patch.setattr(Deferral, "_may_be_shed", lambda self, job: job.task is None and job.source.attempts.may_defer(job))


@mutant(48)
def counts_no_spent_receive(patch: Patch) -> None:
    """A receive that was spent without an attempt is not noted."""
    patch.setattr(Attempts, "spent", lambda self, job: None)


@mutant(258)
def hides_messages_past_their_end(patch: Patch) -> None:
    """A message is away for longer than SQS keeps it."""
    give_back = Core.give_back

    def longer(self: Core, job: Job, settlement: Settlement, delay: float = 0.0) -> None:
        give_back(self, job, settlement, delay + 120.0 if settlement is Settlement.DEFERRED else delay)

    patch.setattr(Core, "give_back", longer)


@mutant(11)
def loses_track_of_what_is_away(patch: Patch) -> None:
    """What an obstacle kept away is not called back, and not counted."""

    def over(self: Away, obstacle: Obstacle) -> bool:
        return bool(self._behind.pop(obstacle, None))

    patch.setattr(Away, "over", over)


@mutant(159)
def never_tidies(patch: Patch) -> None:
    """What has reappeared stays in the book."""
    patch.setattr(Away, "_drop_past", lambda self, absent, now: None)


def first_catch(limit: int = SEEDS) -> tuple[int, str] | None:
    """Return the first seed that finds something, and what it finds."""
    for seed in range(limit):
        violation = run_core_schedule(seed).violation
        if violation is not None:
            return seed, violation
    return None


def main() -> int:
    """Print each mutant with the seed and the oracle that find it; 0 if none survives."""
    survivors = 0
    for name, (plant, _) in MUTANTS.items():
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            found = first_catch()
        if found is None:
            survivors += 1
            print(f"| {name.replace('_', ' ')} | survived {SEEDS:,} seeds | |", flush=True)
        else:
            seed, text = found
            print(
                f"| {name.replace('_', ' ')} | {seed} | {text.strip().splitlines()[-1].partition(':')[0]} |", flush=True
            )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
