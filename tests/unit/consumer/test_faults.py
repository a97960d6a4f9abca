"""A poison message goes to the dead letters; a broken tenant pauses, and is tried with one message at a time."""

import asyncio
import itertools
from random import Random
from typing import Any

import pytest

from postroom import Concurrency, Consumer, MessageContext, PoolLimits, ResourcePool, Retry, RetryPolicy
from postroom.consumer.attempts import Attempts
from postroom.consumer.availability import REMEMBER, Availability
from postroom.consumer.job import Job
from postroom.options import Faults
from support.jobs import job, source
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

ERROR = ValueError("boom")


class Watch:
    """An availability with jobs that are remembered by number."""

    def __init__(self, **options: Any) -> None:
        self.options = Faults(**options)
        self.availability = Availability(None, Random(1))
        self._jobs: dict[tuple[str, int], Job] = {}

    def job(self, tenant: str, number: int) -> Job:
        """Return a message of a tenant, always the same for one number."""
        return self._jobs.setdefault((tenant, number), job(tenant, number))

    def failed(self, tenant: str, number: int, now: float, *, probe: bool = False) -> float | None:
        """Let a message fail."""
        failing = self.job(tenant, number)
        if probe:
            self.availability.probe(failing)
        return self.availability.failed(failing, ERROR, self.options, now)

    def until(self, tenant: str, now: float) -> float | None:
        """Return the time before which a tenant may not run."""
        wait = self.availability.wait(job(tenant, 99), now)
        return None if wait is None else wait.until


def test_failures_of_one_message_open_no_breaker() -> None:
    """One bad message is not a broken tenant, however often it fails."""
    watch = Watch(breaker_after=3, messages=2)
    for _ in range(50):
        watch.failed("a", 1, 0.0)
    assert watch.until("a", 0.0) is None


def test_failures_of_several_messages_in_a_row_open_it_and_a_success_closes_it() -> None:
    """The pause grows with each failed probe; other tenants are not concerned."""
    watch = Watch(breaker_after=4, messages=2, base=2.0, cap=100.0)
    for number in range(4):
        watch.failed("a", number, 10.0)
    first = watch.until("a", 10.0)
    assert first is not None
    assert 11.0 <= first <= 12.0
    assert watch.until("b", 10.0) is None
    assert watch.failed("a", 9, first - 0.5) is None  # it ran already when the breaker opened
    assert watch.failed("a", 8, first + 0.1) is None  # this one too, and it took longer: only a probe decides
    again = watch.failed("a", 5, first, probe=True)
    assert again is not None
    assert 2.0 <= again - first <= 4.0
    watch.availability.probe(watch.job("a", 6))
    assert watch.availability.succeeded(watch.job("a", 6), again)
    assert not watch.availability.troubled


def test_a_success_in_between_keeps_the_breaker_closed() -> None:
    """Failures count in a row."""
    watch = Watch(breaker_after=3, messages=1)
    for number in range(20):
        watch.failed("a", number, 0.0)
        watch.availability.succeeded(watch.job("a", 100 + number), 0.0)
    assert watch.until("a", 0.0) is None


def test_while_a_probe_runs_no_other_message_of_its_tenant_may() -> None:
    """When it ends without telling anything, the next one is the probe."""
    watch = Watch(breaker_after=1, messages=1, base=1.0)
    until = watch.failed("a", 1, 0.0)
    assert until is not None
    first, second = watch.job("a", 2), watch.job("a", 3)
    assert watch.availability.wait(first, until) is None
    assert watch.availability.is_half_open(first)
    watch.availability.probe(first)
    wait = watch.availability.wait(second, until)
    assert wait is not None
    assert wait.until is None
    assert watch.availability.probe_ended(first)
    assert watch.availability.wait(second, until) is None


def test_a_message_is_poison_when_others_succeed_while_it_fails() -> None:
    """Both counts have to be reached."""
    options = Faults(poison_after=3, poison_others=5)
    queue = source(max_receives=100, faults=options)
    attempts = Attempts(queue.facts)
    bad = job("a", 0, of=queue)
    for _ in range(5):
        attempts.failed(bad)
        assert attempts.poison(bad, options) is None
    for number in range(1, 6):
        attempts.succeeded(job("a", number, of=queue))
    attempts.failed(bad)
    assert attempts.poison(bad, options) == "poison: 6 failed attempts while 5 other messages of its tenant succeeded"
    assert attempts.poison(bad, options) is not None  # it was lost before it was rejected, and has come back


def test_a_message_that_succeeded_is_no_poison() -> None:
    """It was lost before it was deleted, and fails when it comes back: it is judged from the beginning."""
    options = Faults(poison_after=2, poison_others=1)
    queue = source(max_receives=100, faults=options)
    attempts = Attempts(queue.facts)
    message, other = job("a", 0, of=queue), job("a", 1, of=queue)
    assert attempts.poison(message, options) is None
    attempts.succeeded(message)
    attempts.succeeded(other)
    assert attempts.poison(message, options) is None


def test_a_message_is_poison_also_after_successes_were_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tenants than are remembered succeed while it waits: its tenant's count begins again."""
    monkeypatch.setattr("postroom.consumer.attempts.REMEMBER", 50)
    options = Faults(poison_after=3, poison_others=5)
    queue = source(max_receives=100, faults=options)
    attempts = Attempts(queue.facts)
    bad, number = job("a", 0, of=queue), itertools.count(1)
    attempts.poison(job("b", next(number), of=queue), options)  # from now on successes are counted
    for _ in range(30):
        attempts.succeeded(job("a", next(number), of=queue))
    attempts.poison(bad, options)
    for tenant in range(60):
        attempts.succeeded(job(tenant, next(number), of=queue))
    for _ in range(5):
        attempts.succeeded(job("a", next(number), of=queue))
    attempts.poison(bad, options)
    for _ in range(5):
        attempts.succeeded(job("a", next(number), of=queue))
    assert attempts.poison(bad, options) == "poison: 3 failed attempts while 5 other messages of its tenant succeeded"


def test_memory_is_bounded() -> None:
    """Floods of failing tenants push the oldest out (I10)."""
    watch = Watch(breaker_after=1, messages=1)
    for number in range(REMEMBER + 500):
        watch.availability.failed(job(number, number), ERROR, watch.options, 0.0)
    assert len(watch.availability.failing) == len(watch.availability._open) == REMEMBER


@with_world
async def test_a_poison_message_is_dead_lettered_while_its_tenant_goes_on(world: World) -> None:
    """With the reason, before the queue's own maxReceiveCount would have done it without one."""
    world.create(dead_letters="dead", receives=20)
    orders: Consumer[Tenant] = Consumer(
        "orders",
        context=Tenant,
        client=world.client,
        retry=RetryPolicy(base=1, jitter=0),
        faults=Faults(poison_after=3, poison_others=5),
    )
    done: list[str] = []

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        if order.order_id == "bad":
            raise ValueError
        done.append(order.order_id)

    async with orders:
        world.send_orders("bad")
        for number in range(20):
            world.send_orders(str(number))
            await asyncio.sleep(1)
    [letter] = await world.broker.receive("dead")
    reason = letter.message_attributes["postroom.reason"].string_value
    assert reason is not None
    assert reason.startswith("poison: 4 failed attempts")
    assert len(done) == 20


@with_world
async def test_a_broken_tenant_is_tried_with_one_message_per_pause_and_burns_no_receives(world: World) -> None:
    """Five minutes of failures: few calls, nothing dead-lettered but what really failed, and all is well after."""
    world.create(dead_letters="dead", receives=30)
    orders: Consumer[Tenant] = Consumer(
        "orders",
        context=Tenant,
        client=world.client,
        concurrency=Concurrency(total=20),
        faults=Faults(breaker_after=6, messages=3, base=4, cap=30),
    )
    broken = True
    calls = running = most = 0
    done: set[str] = set()
    well = 0

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        nonlocal calls, running, most, well
        if ctx.context.tenant_id == "well":
            well += 1
            return
        if broken:
            calls += 1
            running += 1
            if orders.statistics().received > 100:
                most = max(most, running)
            await asyncio.sleep(0.1)
            running -= 1
            raise ConnectionError
        done.add(order.order_id)

    world.send_orders(*map(str, range(60)), tenant="broken")
    async with orders:
        for number in range(300):
            world.send_orders(str(number), tenant="well")
            await asyncio.sleep(1)
        broken = False
        await asyncio.sleep(1000)
    dead = world.counts("dead")
    assert calls < 60
    assert most <= 1
    assert (well, len(done), dead) == (300, 60, (0, 0))


@pytest.mark.parametrize("how", ["suspect resource", "asks for a retry", "bad body", "resource is down"])
@with_world
async def test_a_probe_that_tells_nothing_leaves_its_tenant_to_the_next_one(world: World, how: str) -> None:
    """Its resource has to be opened again, or it ends neither well nor badly: the tenant is never left asleep."""
    world.create()
    databases = Databases()
    healed = False
    asked: set[str] = set()
    options = Faults(breaker_after=4, messages=2, base=1.0, cap=1.0)
    retry = RetryPolicy(base=1, cap=1, jitter=0)
    orders = Consumer("orders", context=Tenant, resources=databases, faults=options, retry=retry, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        if not healed:
            if how == "suspect resource":
                raise ConnectionError  # the pool opens a new one for the probe
            raise ValueError
        if how == "asks for a retry" and order.order_id not in asked:
            asked.add(order.order_id)
            raise Retry(delay=1)
        ctx.resources.write(order.order_id)

    world.send_orders(*map(str, range(12)))
    async with orders:
        await asyncio.sleep(3)
        healed = True
        if how == "bad body":
            world.send("{no json")
        if how == "resource is down":
            databases.failures["a"] = ConnectionRefusedError
            assert orders.pool is not None
            await orders.pool.invalidate(Tenant("a"))
            await asyncio.sleep(5)
            databases.failures.clear()
        await asyncio.sleep(90)
    assert set(databases.rows("a")) == {str(number) for number in range(12)}


def test_a_tenant_that_is_left_alone_keeps_no_place_in_the_budget() -> None:
    """Its messages got their resources when its breaker was open: another tenant needs their place."""

    async def scenario(world: World) -> tuple[list[str], int]:
        world.create(receives=10)
        databases = Databases()
        databases.seconds = 0.2  # so that two messages wait for one open
        pool = ResourcePool(databases, limits=PoolLimits(budget=1, patience=0.0))
        orders = Consumer(
            "orders",
            context=Tenant,
            resources=pool,
            faults=Faults(breaker_after=1, messages=1, base=100, cap=1000),
            client=world.client,
        )
        done: list[str] = []

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
            await asyncio.sleep(order.seconds)
            if ctx.context.tenant_id == "broken":
                raise ValueError
            done.append(order.order_id)

        async with pool, orders:
            world.send_orders("1", tenant="broken", seconds=1)
            await asyncio.sleep(0.4)
            world.send_orders("first", tenant="well")
            await asyncio.sleep(0.1)
            world.send_orders("2", "3", tenant="broken")  # they wait for its place, too
            await asyncio.sleep(5)
            world.send_orders("second", tenant="well")
            await asyncio.sleep(15)
            return done, pool.statistics().leased

    assert in_world(scenario) == (["first", "second"], 0)
