"""Seeded schedules of the consumer's core, in virtual time and without asyncio.

``run_core_schedule(seed)`` runs one and says what it saw; the same seed repeats it exactly. From a shell, for many::

    python -m simulation.core.schedules 0 100000
"""

import gc
import logging
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from postroom.consumer.job import Job
from postroom.scheduling import State
from simulation.core.outside import Letter, Violation
from simulation.core.plan import draw_plan, small_limits
from simulation.core.watch import Watch
from simulation.garbage import one_collection

PATIENCE: Final = 4 * 3600.0
"""Seconds after which every message has to have ended, once everything works again."""
_CHECK_EVERY: Final = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one schedule did."""

    seed: int
    counts: dict[str, int]
    digest: int
    """Equal for equal runs; 0 where it was not asked for."""
    violation: str | None = None
    history: tuple[str, ...] = ()
    plan: str = ""


def run_core_schedule(seed: int, *, history: bool = False, digest: bool = True) -> Outcome:
    """Run the schedule of one seed, and hash what happened. Never raises: what went wrong is in the outcome."""
    with one_collection():
        outcome = _run(seed, history=history, digest=digest)
        gc.collect(1)
    return outcome


def _run(seed: int, *, history: bool, digest: bool) -> Outcome:
    rng = random.Random(seed)
    plan = draw_plan(rng)
    logger = logging.getLogger("postroom.consumer")
    logger.disabled = True
    problem = None
    world: Watch | None = None
    try:
        with small_limits(plan):
            world = Watch(plan, rng)
            Schedule(world).run()
    except Violation as violation:
        problem = str(violation)
    except Exception as error:
        problem = "".join(traceback.format_exception(error))
    finally:
        logger.disabled = False
    if world is None:
        return Outcome(seed, {}, 0, problem)
    lines = tuple(world.history()) if history else ()
    return Outcome(seed, dict(world.counts), world.digest() if digest else 0, problem, lines, str(plan))


def core_violations(seed: int) -> tuple[str, ...]:
    """Run the schedule of one seed, and return what was broken."""
    violation = run_core_schedule(seed, digest=False).violation
    return () if violation is None else (violation,)


class Schedule:
    """Sends messages, disturbs, heals, and waits for the end."""

    def __init__(self, world: Watch) -> None:
        self.world = world
        self.plan = world.plan
        self.rng = world.rng
        self._steps = 0

    def run(self) -> None:
        """Run the schedule to its end."""
        world, rng = self.world, self.rng
        self.send_first()
        for _ in range(self.plan.stops):
            self.disturb(rng.uniform(2.0, 20.0), rng.choice([3, 10]))
            self.stop_and_start()
        self.disturb(rng.uniform(5.0, 40.0), rng.choice([3, 10, 16]))
        if self.plan.retention < 10_000.0 and rng.random() < 0.7:
            self.outlast_retention()
        elif rng.random() < 0.1:
            self.disturb(rng.choice([200.0, 1_000.0]), 5)
        self.heal()
        self.until(world.now + PATIENCE, over=self.is_over)
        self.judge()

    # -- time ---------------------------------------------------------------------------------------------------

    def until(self, when: float, *, over: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is due before a time."""
        world = self.world
        check = world.check
        while world.step(when):
            self._steps += 1
            if not self._steps % _CHECK_EVERY:
                check()
                self.watch_slots()
            if over is not None and over():
                return
        check()

    def watch_slots(self) -> None:
        """Watch, when nothing is about to happen at this very time, that no slot is free for a lane that may run."""
        world = self.world
        events = world._events
        if not world._acting and (not events or events[0][0] > world.now):
            world.watch_slots()

    def is_over(self) -> bool:
        """Whether every message has ended, in the queue and here."""
        world = self.world
        return not world.queue.open and not world.jobs and all(job.state is State.DONE for job in world.alive)

    # -- messages -----------------------------------------------------------------------------------------------

    def send_first(self) -> None:
        """Send what is there at the beginning."""
        plan, rng = self.plan, self.rng
        if plan.crowd:
            for _ in range(rng.choice([15, 25, 40])):
                self.send(0)
            for _ in range(rng.choice([3, 8])):
                self.send(rng.randrange(1, plan.tenants), delay=rng.uniform(0.0, 10.0))
            if plan.equal:
                for _ in range(25):
                    self.send(rng.randrange(plan.tenants))
            return
        for _ in range(rng.choice([2, 4, 8, 12, 25])):
            self.send(rng.randrange(plan.tenants), delay=rng.choice([0.0, 0.0, rng.uniform(0.0, 10.0)]))

    def send(self, tenant: int, *, delay: float = 0.0) -> None:
        """Send one message."""
        plan, rng, world = self.plan, self.rng, self.world
        hard = 1
        if rng.random() < plan.hard:
            most = world.promised() or 4
            hard = rng.randint(1, max(1, most))
        group = None
        if plan.fifo:
            group = f"g{rng.randrange(3)}"
        elif rng.random() < 0.9 or plan.crowd:
            group = f"t{tenant}"
        letter = Letter(0, tenant, group, world.now + delay, hard, problem=rng.random() < 0.05 * plan.trouble)
        if plan.fifo:
            letter.tenant = int(group[1:]) % plan.tenants if group else 0
            letter.sent_at = world.now
        world.queue.send(letter)
        world.poke()

    # -- trouble ------------------------------------------------------------------------------------------------

    def disturb(self, seconds: float, times: int) -> None:
        """Do something at random moments."""
        world, rng = self.world, self.rng
        end = world.now + seconds
        for when in sorted(rng.uniform(world.now, end) for _ in range(times)):
            self.until(when)
            self.act()
        self.until(end)

    def outlast_retention(self) -> None:
        """Let a tenant wait for longer than SQS keeps its messages."""
        world, tenant = self.world, self.rng.randrange(self.plan.tenants)
        extra = random.Random(repr(self.plan))
        if extra.random() < 0.3:  # its handlers keep the slots for as long
            world.hanging, world.hang = tenant, 1.1 * self.plan.retention
            for _ in range(extra.choice([2, 8])):
                self.send(tenant)
        elif self.rng.random() < 0.5:
            world.decide(tenant, "pause")
        else:
            world.pool.tenants[tenant].broken_until = world.now + 2 * self.plan.retention
            world.pool.close(tenant)
        self.send(tenant)
        self.until(world.now + 1.2 * self.plan.retention)
        world.hanging = None

    def act(self) -> None:
        """Do one thing."""
        rng, world, plan = self.rng, self.world, self.plan
        tenant = rng.randrange(plan.tenants)
        kind = rng.random()
        if kind < 0.2:
            for _ in range(rng.choice([1, 4])):
                self.send(tenant)
        elif kind < 0.55:
            self.break_something(tenant)
        elif kind < 0.8:
            self.decide(tenant)
        elif kind < 0.87:
            world.adjust(rng.choice([1, 2, 4]), rng.choice([1, 2, 8]))
        elif kind < 0.93 and plan.trouble:
            self.lose_something()
        elif plan.changes:
            self.change_policy()
        else:
            world.facts.full_until = world.now + rng.choice([0.0, 30.0])

    def break_something(self, tenant: int) -> None:
        """Break handlers, databases, hosts, or SQS's answers, for a time."""
        rng, world, plan = self.rng, self.world, self.plan
        until = world.now + rng.choice([0.5, 5.0, 60.0, 400.0])
        kind = rng.random()
        if kind < 0.3:
            world.broken[tenant] = until
            world.note("broken", tenant)
        elif kind < 0.5:
            world.pool.tenants[tenant].broken_until = until
            world.pool.close(tenant)
            world.note("unreachable", tenant)
        elif kind < 0.7 and plan.hosts:
            host = tenant % plan.hosts
            world.pool.host_down[host] = until
            for other in range(plan.tenants):
                if other % plan.hosts == host and rng.random() < 0.7:
                    world.pool.close(other)
            world.note("host down", host)
        elif kind < 0.8:
            world.pool.exhausted_until = until
        elif kind < 0.9:
            world.pool.close(tenant)
        elif plan.trouble:
            world.settling_fails_until = world.now + rng.choice([1.0, 10.0, 90.0])
            world.rejecting_fails = rng.random() < 0.3

    def decide(self, tenant: int) -> None:
        """Decide something about a tenant."""
        rng, world = self.rng, self.world
        match rng.choice(["pause", "pause", "resume", "resume", "quarantine", "rate", "concurrency", "free"]):
            case "rate":
                world.decide(tenant, "limit", rate=rng.choice([0.2, 1.0, 20.0]))
            case "concurrency":
                world.decide(tenant, "limit", concurrency=rng.choice([1, 2]))
            case "free":
                world.decide(tenant, "limit", rate=None, concurrency=None)
            case name:
                world.decide(tenant, name)

    def lose_something(self) -> None:
        """Lose a message, or let SQS hand it out twice."""
        rng, world = self.rng, self.world
        held: list[Job] = list(world.held.values())
        if not held:
            return
        job = rng.choice(held)
        if rng.random() < 0.6:
            world.lose(job)
        elif not self.plan.fifo and not job.told:
            world.queue.show(job.receipt_handle, world.now, world.now)
            letter, most = world.letter(job), world.queue.most
            last = most is not None and letter.receives >= most  # SQS makes a dead letter of it, under our hands
            letter.excused = max(letter.excused + 1, letter.receives if last else 0)
            world.note("duplicate", job.message.id)
            world.poke()

    def change_policy(self) -> None:
        """Change the redrive policy. The consumer learns of it later."""
        rng, world = self.rng, self.world
        world.change_policy(rng.choice([None, 2, 3, 5, 6, 10]))

    def stop_and_start(self) -> None:
        """Stop in order, watch that nothing is left, and start another consumer."""
        world, rng = self.world, self.rng
        world.stop(rng.choice([0.0, 0.5, 40.0]))
        self.until(world.now + 45.0)
        for _ in range(3):
            self.until(world.now + 45.0)
            if not world.jobs and not world.rejecting:
                break
        if any(not job.told and job.settlement is not None for job in world.held.values()):
            self.until(world.now + 6.0)  # SQS refused what was decided, which is tried again every five seconds
        world.close()
        world.nothing_is_left("stop")
        held = [job for job in world.held.values() if not job.told]
        world.require(not held, "stop", f"{len(held)} messages are held after the stop: {held[:3]}")
        self.until(world.now + rng.choice([0.0, 5.0]))
        world.start()

    # -- the end ------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Let everything work again."""
        world = self.world
        world.note("everything works again")
        world.pool.heal()
        world.broken.clear()
        world.settling_fails_until = 0.0
        world.rejecting_fails = False
        for letter in world.queue.open.values():
            letter.problem = False
        for tenant in range(self.plan.tenants):
            world.decide(tenant, "resume")
            world.decide(tenant, "limit", rate=None, concurrency=None)
        world.healed = True
        world.healed_at = world.now
        world.last.clear()

    def judge(self) -> None:
        """Watch liveness, and what is left."""
        world = self.world
        left = list(world.queue.open.values())
        text = (
            f"{len(left)} messages have not ended {PATIENCE:.0f} s after everything works again, the first: {left[:1]}"
        )
        world.require(not left, "liveness", text)
        self.until(world.now + 200.0)
        world.nothing_is_left("memory")
        world.nothing_is_remembered()


def main(arguments: list[str]) -> int:
    """Run a range of seeds; 0 if nothing was broken."""
    first, last = int(arguments[0]), int(arguments[1])
    began = time.process_time()
    broken = 0
    for seed in range(first, last):
        violation = run_core_schedule(seed).violation
        if violation is not None:
            broken += 1
            print(f"seed {seed}: {violation}", flush=True)
    seconds = time.process_time() - began
    print(f"{last - first} schedules, {broken} broken, {(last - first) / seconds:.0f}/s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
