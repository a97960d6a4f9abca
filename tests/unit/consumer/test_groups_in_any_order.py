"""A message group in random orders of events: nothing overtakes what went back, and nothing is stranded."""

from random import Random

import pytest

from postroom.consumer.actions import GiveBack, GoOnAt, Reject
from postroom.consumer.job import Job
from postroom.types import Settlement
from support.core_scene import Scene

MOST = 3
SEEDS = 2_000


class Group:
    """Messages of one group, received together, and what the engine would do for them."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.scene = Scene(fifo=True, most=MOST, retention=100_000.0)
        self.core = self.scene.core
        count = rng.randrange(2, 6)
        self.jobs = [self.scene.job(str(n), group="g", receives=rng.choice([1, 1, 2, MOST])) for n in range(count)]
        for job in self.jobs:
            job.deadline = rng.choice([60.0, 60.0, 1e5])
        self.now = 53.0
        self.letters: list[Job] = []
        self.ends: list[GoOnAt] = []
        self.went_back: set[int] = set()
        """Places of messages that SQS will give out again."""
        self.running: Job | None = None
        self.scene.arrive(*self.jobs)
        self.act()

    def act(self) -> None:
        """Do what the core decided."""
        while self.core.actions:
            match self.core.actions.pop(0):
                case Reject(job):
                    self.letters.append(job)
                case GiveBack(job, settlement) if job.settlement is None and not job.lost:
                    job.settlement = settlement
                    self.goes_back(job)
                case GoOnAt() as end:
                    self.ends.append(end)
                case _:
                    pass

    def goes_back(self, job: Job) -> None:
        """Note that a message is visible again, unless SQS makes a dead letter of it then."""
        if job.receives < MOST:
            self.went_back.add(self.jobs.index(job))

    def grant(self) -> None:
        """Start what may start: nothing before it may have gone back."""
        if self.running is None and (job := self.core.next(self.now)) is not None:
            overtaken = {place for place in self.went_back if place < self.jobs.index(job)}
            assert not overtaken, f"{job} overtakes {overtaken}"
            job.running = job.started = job.tried = True
            self.running = job

    def end(self, *, well: bool) -> None:
        """End the handler that runs."""
        if (job := self.running) is None:
            return
        self.running = None
        if well:
            job.settlement = job.settlement or Settlement.ACKED
            self.core.succeeded(job, self.now)
        elif job.lost or job.settlement:
            self.core.give_group_back(job)
        else:
            self.core.retry(job, ValueError(), 700.0, self.now, tried=True)
        self.core.finish(job, self.now)

    def answer(self, *, taken: bool) -> None:
        """Let the dead-letter queue answer a letter."""
        if self.letters:
            job = self.letters.pop(self.rng.randrange(len(self.letters)))
            job.settlement = job.settlement or (Settlement.REJECTED if taken else Settlement.RETRIED)
            if not taken:
                self.goes_back(job)
            self.core.rejected(job, self.now, taken=taken)

    def lose(self) -> None:
        """Let the visibility timeout of a message be over."""
        job = self.rng.choice(self.jobs)
        if job.settlement is None and not job.lost:
            job.lost = True
            self.goes_back(job)
            self.core.lost(job, self.now)

    def happen(self, *, stops: bool) -> None:
        """Let one thing happen."""
        self.scene.now = self.scene.facts.now = self.now
        match self.rng.choice(["grant", "well", "fails", "sweep", "letter", "pause", "loss", "time", "stop"]):
            case "grant":
                self.grant()
            case "well" | "fails" as how:
                self.end(well=how == "well")
            case "sweep":
                self.core.sweep(self.now)
            case "letter":
                self.answer(taken=self.rng.random() < 0.7)
            case "pause":
                self.scene.scheduler.control(0, paused=self.rng.random() < 0.5)
            case "loss" if self.rng.random() < 0.2:
                self.lose()
            case "time":
                self.now += self.rng.choice([0.5, 2.0])
            case "stop" if stops and not self.core.closing and self.rng.random() < 0.3:
                self.core.close()
            case _:
                pass
        self.act()

    def finish(self) -> None:
        """Let everything go well from now on: then nothing may be left."""
        self.scene.scheduler.control(0, paused=False)
        for _ in range(60):
            self.answer(taken=True)
            self.act()
            while self.ends:
                end = self.ends.pop()
                self.core.go_on(end.group, end.when, end.when)
                self.act()
            self.grant()
            self.end(well=True)
            self.act()
        assert (self.core.halted, self.scene.scheduler.size) == (0, 0)


@pytest.mark.parametrize("stops", [False, True])
def test_nothing_overtakes_what_went_back_and_nothing_is_stranded(*, stops: bool) -> None:
    """Whatever ends, slips, is lost, paused or stopped in whatever order, letters in the air."""
    for seed in range(SEEDS):
        group = Group(Random(seed))
        try:
            for _ in range(40):
                group.happen(stops=stops)
            group.finish()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
