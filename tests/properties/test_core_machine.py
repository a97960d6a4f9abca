"""Whatever is done to the core in whatever order, the oracles of its schedules hold, and everything ends."""

import logging
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from postroom.consumer.job import Job
from simulation.core.outside import Letter
from simulation.core.plan import draw_plan, small_limits
from simulation.core.schedules import PATIENCE
from simulation.core.watch import Watch

TENANTS = st.integers(0, 1)


@pytest.fixture(autouse=True)
def _quiet() -> Generator[None]:
    """Keep the consumer from logging thousands of failures."""
    logger = logging.getLogger("postroom.consumer")
    logger.disabled = True
    yield
    logger.disabled = False


class CoreMachine(RuleBasedStateMachine):
    """The world of the schedules; Hypothesis decides instead of the seed what happens, and makes it short."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = ExitStack()
        self.world: Watch

    @initialize(
        seed=st.integers(0, 50),
        fifo=st.booleans(),
        most=st.sampled_from([None, 1, 2, 5, 8]),
        total=st.integers(1, 3),
        lane=st.sampled_from([1, 4]),
    )
    def begin(self, seed: int, *, fifo: bool, most: int | None, total: int, lane: int) -> None:
        """Start a consumer of two tenants."""
        drawn = draw_plan(Random(seed))
        polling = replace(drawn.polling, lane=lane, scout=False if fifo else drawn.polling.scout)
        plan = replace(drawn, fifo=fifo, most=most, total=total, tenants=2, polling=polling, trouble=0.0, known=True)
        self.limits.enter_context(small_limits(plan))
        self.world = Watch(plan, Random(seed))

    @rule(tenant=TENANTS, count=st.integers(1, 4), tries=st.integers(1, 3), grouped=st.booleans())
    def send(self, tenant: int, count: int, tries: int, *, grouped: bool) -> None:
        """Messages arrive that succeed at one of their first tries."""
        world = self.world
        tries = min(tries, max(1, world.promised() or tries))
        for _ in range(count):
            group = f"g{tenant}" if grouped or world.plan.fifo else None
            world.queue.send(Letter(0, tenant, group, world.now, tries))
        world.poke()

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 5.0, 100.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        world = self.world
        until = world.now + seconds
        while world.step(until):
            world.check()

    @rule(tenant=TENANTS, name=st.sampled_from(["pause", "resume", "quarantine"]))
    def decide(self, tenant: int, name: str) -> None:
        """A tenant is paused, resumed, or put in quarantine."""
        self.world.decide(tenant, name)

    @rule(tenant=TENANTS, rate=st.sampled_from([None, 0.5, 20.0]), concurrency=st.sampled_from([None, 1]))
    def limit(self, tenant: int, rate: float | None, concurrency: int | None) -> None:
        """A tenant is limited."""
        self.world.decide(tenant, "limit", rate=rate, concurrency=concurrency)

    @rule(tenant=TENANTS, seconds=st.sampled_from([1.0, 60.0]))
    def break_handlers(self, tenant: int, seconds: float) -> None:
        """Everything of a tenant fails for a time."""
        self.world.broken[tenant] = self.world.now + seconds

    @rule(tenant=TENANTS, seconds=st.sampled_from([0.0, 1.0, 60.0]), of_host=st.booleans())
    def break_resources(self, tenant: int, seconds: float, *, of_host: bool) -> None:
        """A tenant's resources close, and cannot be opened for a time."""
        world = self.world
        pool, until = world.pool, world.now + seconds
        host = pool.tenants[tenant].host
        pool.close(tenant)
        if of_host and host is not None:
            pool.host_down[host] = until
        else:
            pool.tenants[tenant].broken_until = until

    @rule(total=st.integers(1, 3), per_tenant=st.integers(1, 3))
    def adjust(self, total: int, per_tenant: int) -> None:
        """Concurrency changes."""
        self.world.adjust(total, per_tenant)

    @precondition(lambda self: self.world.held)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A visibility timeout passes."""
        held: list[Job] = list(self.world.held.values())
        self.world.lose(held[data.draw(st.integers(0, len(held) - 1))])

    @rule(seconds=st.sampled_from([0.0, 30.0]))
    def stop_and_start(self, seconds: float) -> None:
        """The consumer stops, leaves nothing behind, and another one starts."""
        world = self.world
        world.stop(seconds)
        self.wait(seconds + 45.0)
        self.wait(60.0)
        world.close()
        world.nothing_is_left("stop")
        world.start()

    @invariant()
    def the_table_is_right(self) -> None:
        """The scheduler's gauges are what the states of the messages add up to."""
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """Let everything work again: every message ends, and nothing is left or remembered."""
        try:
            if hasattr(self, "world"):
                self._end()
        finally:
            self.limits.close()

    def _end(self) -> None:
        world = self.world
        world.pool.heal()
        world.broken.clear()
        world.healed = True
        world.healed_at = world.now
        world.last.clear()
        for tenant in (0, 1):
            world.decide(tenant, "resume")
            world.decide(tenant, "limit", rate=None, concurrency=None)
        until = world.now + PATIENCE
        while (world.queue.open or world.jobs) and world.step(until):
            pass
        assert not world.queue.open, "liveness"
        self.wait(200.0)
        world.nothing_is_left("memory")
        world.nothing_is_remembered()


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
