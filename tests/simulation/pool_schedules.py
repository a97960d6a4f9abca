"""Seeded fault schedules of a pool, in virtual time.

``run_pool_schedule(seed)`` runs one and says what it saw; the same seed repeats it exactly, shuffled task order
included. From a shell, for many::

    python -m simulation.pool_schedules 0 100000
"""

import asyncio
import logging
import random
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from postroom.errors import ClosedError, PoolExhaustedError, ResourceOpenError
from postroom.resources import Lease, ResourcePool
from postroom.resources.entries import Demand, EntryState, Stage
from postroom.testing.loop import run_virtual, settle
from simulation.pool_world import EPSILON, Resource, Tenant, World, draw_plan

Pool = ResourcePool[Tenant, Resource]


class ServerFullError(Exception):
    """PostgreSQL has no connection left."""

    sqlstate = "53300"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one schedule did."""

    seed: int
    counts: dict[str, int]
    digest: int
    """Equal for equal runs."""
    violation: str | None = None
    """What went wrong, with the place; None if nothing did."""


def run_pool_schedule(seed: int) -> Outcome:
    """Run the schedule of one seed. Never raises: what went wrong is in the outcome."""
    rng = random.Random(seed)
    world = World(draw_plan(rng), rng)
    loggers = [logging.getLogger("postroom.pool"), logging.getLogger("postroom")]
    for logger in loggers:
        logger.disabled = True
    problems = world.violations
    try:
        run_virtual(_Schedule(world).run(), seed=seed, limit=1_000.0)
    except Exception as error:
        problems.append("".join(traceback.format_exception(error)))
    finally:
        for logger in loggers:
            logger.disabled = False
    return Outcome(seed, dict(world.counts), world.digest, problems[0] if problems else None)


class _Schedule:
    """Users who lease, and chaos that disturbs them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan = world.plan
        self.rng = world.rng
        self.late = random.Random(str(self.rng.getstate()))  # of its own: older seeds mean what they did
        self.cancelled: set[asyncio.Task[None]] = set()
        self.pool: Pool = ResourcePool(
            **world.provider(),
            weight=world.weigh,
            host=None if world.plan.hosts is None else world.host_of,
            check=world.check if world.plan.with_check else None,
            limits=world.plan.limits,
            timeouts=world.plan.timeouts,
            backoff=world.plan.backoff,
            observers=[world.observe],
            jitter=random.Random(world.rng.random()),
        )

    async def run(self) -> None:
        """Run the schedule to its end and watch what is left."""
        loop = asyncio.get_running_loop()
        self.world.now = loop.time
        _watch_line(self.pool, self.world)
        await self.pool.__aenter__()
        users = [loop.create_task(self.user(), name=f"user {n}") for n in range(self.rng.choice([3, 6, 10, 20]))]
        self.world.on_opened = lambda: self.rng.random() < 0.1 and loop.call_soon(self.cancel, self.rng.choice(users))
        others = [loop.create_task(self.chaos(users), name="chaos"), loop.create_task(self.monitor(), name="monitor")]
        if self.rng.random() < 0.5:
            await asyncio.wait(users)
        else:
            await asyncio.sleep(self.rng.random() * 3)
        await self.close()
        await asyncio.wait(users)
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        self.judge(users, others)
        self.at_the_end()

    def judge(self, users: list[asyncio.Task[None]], others: list[asyncio.Task[None]]) -> None:
        """I6: no task gets a CancelledError that was not its own; and no other error is lost."""
        for task in users:
            if task.cancelled():
                self.world.require(
                    task in self.cancelled, "I6", f"{task.get_name()} was cancelled, although no one asked for it"
                )
        for task in [*users, *others]:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    # -- users --------------------------------------------------------------------------------------------------

    async def user(self) -> None:
        """Lease a few times, as a handler would."""
        await asyncio.sleep(self.rng.random() * 2)
        for _ in range(self.rng.randint(1, 3)):
            tenant = self.rng.choice(self.plan.tenants)
            asked_at = self.world.tick()
            lease = await self.acquire(tenant)
            if lease is None:
                continue
            await self.use(tenant, lease, asked_at)

    async def acquire(self, tenant: Tenant) -> Lease[Resource] | None:
        """Ask for a lease; watch the deadline and the errors."""
        started = self.world.now()
        seconds = self.rng.choice([None, 0.0, 0.1, 1.0])
        limit = self.plan.timeouts.lease if seconds is None else seconds
        try:
            lease = self.pool.try_lease(tenant)
            if lease is None and self.rng.random() < 0.9:
                lease = await self.pool.acquire(tenant, timeout=seconds)
        except (ResourceOpenError, PoolExhaustedError) as error:
            self.world.require(error.context is tenant, "I6", f"{tenant} got the error of {error.context}")
            self.world.note(type(error).__name__, tenant)
            lease = None
        except ClosedError:
            self.world.require(self.pool._closed, "I8", "refused as closed while open")
            lease = None
        took = self.world.now() - started
        self.world.require(took <= limit + EPSILON, "I7", f"{tenant} waited {took:.3f} of {limit} s")
        return lease

    async def use(self, tenant: Tenant, lease: Lease[Resource], asked_at: int) -> None:
        """Hold a lease for a while, report now and then, release once or twice."""
        resource = lease.resource
        self.world.handed_out(tenant, resource, asked_at)
        try:
            await asyncio.sleep(self.rng.choice([0.0, self.rng.random() * 0.3, self.rng.random() * 2]))
            excused = self.world.grace_over or resource.cancelled
            self.world.require(excused or resource.alive, "I2", f"{tenant} was closed under a lease")
            if self.world.chance(0.3) and lease.report(ConnectionResetError("gone")):
                resource.suspect_at = self.world.tick()
            elif self.world.chance(0.2):
                self.meet_outage(tenant, lease, resource)
            elif self.late.random() < 0.15:
                lease.report(TimeoutError())
                resource.doubted_at = self.world.now(), self.world.tick()
        finally:
            self.world.given_back(resource)
            lease.release()
            if self.rng.random() < 0.2:
                lease.release()

    def meet_outage(self, tenant: Tenant, lease: Lease[Resource], resource: Resource) -> None:
        """Find the server full: it is an outage, which the pool knows of, and closes nothing that is in use."""
        self.world.require(lease.report(ServerFullError()), "outage", f"{tenant} is to blame for a full server")
        self.world.require(resource.alive or self.world.grace_over or resource.cancelled, "I2", f"{tenant} was closed")
        self.world.require(self.pool.troubled, "outage", f"{tenant} met an outage, and the pool knows of none")
        self.world.note("server full", tenant)

    # -- disturbances -------------------------------------------------------------------------------------------

    async def chaos(self, users: list[asyncio.Task[None]]) -> None:
        """Cancel, invalidate, murder, at random moments."""
        while True:
            await asyncio.sleep(self.rng.random() * 0.3)
            deed = self.rng.random()
            if deed < 0.3:
                self.cancel(self.rng.choice(users))
            elif deed < 0.45:
                await self.invalidate([self.rng.choice(self.plan.tenants)])
            elif deed < 0.5:
                await self.invalidate([tenant for tenant in self.plan.tenants if self.rng.random() < 0.5])
            elif deed < 0.55:
                self.murder()

    def cancel(self, user: "asyncio.Task[None]") -> None:
        """Cancel a user, whatever it waits for."""
        if not user.done():
            self.cancelled.add(user)
            user.cancel()
            self.world.note("cancel")

    async def invalidate(self, tenants: list[Tenant]) -> None:
        """Invalidate, and remember from when on the old must not be seen."""
        for tenant in tenants:
            self.world.invalidated[tenant.number] = self.world.tick()
            self.world.left_alone_until.pop(tenant.number, None)
            self.world.conclude(tenant)
            self.world.note("invalidate", tenant)
        if len(tenants) == 1:
            await self.pool.invalidate(tenants[0])
        else:
            await self.pool.invalidate_where(lambda tenant: any(tenant is other for other in tenants))

    def murder(self) -> None:
        """Cancel an owner task from outside, as the end of ``asyncio.run`` does to all tasks."""
        # In the order in which they were begun: two owners of one key have the same name.
        tasks = () if self.pool._engine is None else self.pool._engine._tasks
        owners = [task for task in tasks if "owner of" in task.get_name()]
        if owners and self.plan.trouble:
            victim = self.rng.choice(sorted(owners, key=lambda task: task.get_name()))
            for resource in self.world.resources:
                resource.cancelled |= resource.opener is victim
            victim.cancel()
            self.world.note("murder")

    async def close(self) -> None:
        """Close the pool, sometimes twice at once, sometimes impatiently; watch what is left of it."""
        world = self.world
        grace = self.rng.choice([None, 0.0, 0.3, 5.0])
        seconds = self.plan.timeouts.close if grace is None else grace
        loop = asyncio.get_running_loop()
        world.conclude_all()
        world.grace_over = seconds == 0.0
        over = loop.call_later(max(0.0, seconds - EPSILON), setattr, world, "grace_over", True)
        closers = [loop.create_task(self.pool.aclose(grace), name="close")]
        if self.rng.random() < 0.3:
            closers.append(loop.create_task(self.pool.aclose(9.0), name="close too"))
        if self.rng.random() < 0.2:
            closers[0].cancel()
            world.grace_over = True  # the close below may be more hasty than either
        await asyncio.wait(closers)
        await self.pool.aclose()
        over.cancel()
        world.closed = True
        self.at_the_end()

    # -- oracles over time --------------------------------------------------------------------------------------

    async def monitor(self) -> None:
        """Look at the pool's own books, whenever everything stands still."""
        while True:
            await asyncio.sleep(0.02 + self.rng.random() * 0.3)
            await settle()
            self.watch_statistics()
            self.watch_progress()
            self.watch_memory()
            self.watch_idle()

    def watch_statistics(self) -> None:
        """I3 and the arithmetic of the counters."""
        self.watch_gates()
        seen, world = self.pool.statistics(), self.world
        alive = sum(1 for resource in world.resources if resource.closes == 0)
        world.require(seen.weight <= seen.budget, "I3", f"weight {seen.weight} of {seen.budget}")
        world.require(seen.weight >= world.weight, "I3", f"weight {seen.weight} booked, {world.weight} in use")
        world.require(seen.opened - seen.closed == seen.live, "statistics", seen)
        settled = seen.ready + seen.draining + seen.closing
        world.require(settled <= seen.live <= settled + seen.opening, "statistics", seen)
        world.require(seen.ready + seen.draining <= alive <= seen.live, "I4", seen)
        holders = sum(resource.holders for resource in world.resources)
        excused = world.grace_over or world.counts["murder"] > 0
        world.require(excused or seen.leased == holders, "I2", seen)
        ready = [entry.identity for entry in self.pool._core.table.entries if entry.state is EntryState.READY]
        world.require(len(ready) == len(set(ready)), "I1", "two ready entries of one key")

    def watch_gates(self) -> None:
        """I3, host by host: what is booked on a host is what is there, and what was admitted to open."""
        core, world = self.pool._core, self.world
        for host in {world.host_of(tenant) for tenant in self.plan.tenants} - {0}:
            gate = core.gates.find(host)
            booked = 0 if gate is None else gate.used
            admitted = sum(demand.weight for demand in core.demands.values() if demand.admitted and demand.host == host)
            entries = sum(entry.weight for entry in core.table.entries if entry.host == host)
            if self.plan.per_host is None:
                world.require(gate is None, "I3", f"host {host} has no budget and is counted")
            else:
                world.require(booked == admitted + entries, "I3", f"{booked} booked on host {host}")
                world.require(booked >= world.weight_on[host], "I3", f"{booked} booked on host {host}, more in use")
                world.require(booked <= self.plan.per_host, "I3", f"{booked} of {self.plan.per_host} on host {host}")

    def watch_progress(self) -> None:
        """I9: no lease waits for what is there."""
        core = self.pool._core
        if core.shut_down:
            return
        head = next(iter(core.line), None)
        if head is not None and head.waiters and not head.troubled:
            stuck = core.budget.free >= head.weight and core.table.opens < self.plan.limits.max_concurrent_opens
            self.world.require(not stuck, "I9", f"{head.key} waits for what is free")
        for demand in core.gates.heads():
            gate = core.gates.find(demand.host)
            if gate is not None and gate.limit is not None and demand.waiters:
                stuck = gate.used + demand.weight <= gate.limit
                self.world.require(not stuck, "I9", f"{demand.key} waits at the gate of a host that has room")
                closing = any(entry in core.table.returning for entry in gate.entries)
                idle = [entry.weight for entry in gate.entries if entry.state is EntryState.READY and not entry.busy]
                short = gate.used + demand.weight - gate.limit
                self.world.require(
                    closing or sum(idle) < short, "I9", f"{demand.key} waits, and its host's idle stay open"
                )
        for demand in core.demands.values():
            if demand.stage is Stage.PARKED:
                host = core.hosts.find(demand.host)  # forgotten where it has no opens, and others were to be remembered
                runs = host is not None and host.running > 0
                tried = runs or any(d.host == demand.host for d in core.line)
                self.world.require(tried, "I9", f"{demand.key} waits for a host that no key tries")

    def watch_memory(self) -> None:
        """I10: nothing is remembered without bound, and no demand outlives its waiters."""
        core, remember = self.pool._core, self.plan.limits.remember
        self.world.require(len(core.cooling) <= remember, "I10", f"{len(core.cooling)} failures remembered")
        bound = remember + self.plan.limits.max_concurrent_opens
        self.world.require(len(core.hosts) <= bound, "I10", f"{len(core.hosts)} hosts remembered")
        for demand in core.line:
            self.world.require(bool(demand.waiters) or demand.replaces, "I10", f"no lease waits for {demand.key}")

    def watch_idle(self) -> None:
        """What is not in use is closed in time."""
        limits = self.plan.limits
        if limits.idle is None or self.pool._closed:
            return
        slack = limits.idle + limits.sweep + 2 * self.plan.timeouts.check + EPSILON
        for resource in self.world.resources:
            rest = self.world.now() - resource.idle_since
            unused = resource.alive and not resource.holders and not resource.cancelled
            if unused and not resource.checking and rest > slack:
                self.world.require(False, "idle", f"{resource.tenant} was not used for {rest:.3f} s")

    def at_the_end(self) -> None:
        """I4 and I8: nothing is left."""
        self.world.at_the_end()
        seen = self.pool.statistics()
        self.world.require(len(self.pool._core.gates) == 0, "I10", "gates are left after the close")
        left = (seen.live, seen.opening, seen.weight, seen.waiting, seen.ready, seen.draining, seen.closing)
        self.world.require(not any(left), "I8", seen)
        own = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("pool: ")]
        self.world.require(not own, "I8", f"tasks left after the close: {own}")
        self.world.require(seen.opened == len(self.world.resources), "I4", f"{seen.opened} opens counted")
        reached = {"revived": seen.revived, "too late": seen.timeouts, "unhealthy": seen.check_failures}
        reached |= {"suspect": seen.evictions.get("suspect", 0), "aged": seen.evictions.get("age", 0)}
        self.world.counts.update(reached)


def _watch_line(pool: Pool, world: World) -> None:
    """I9: an open passes no key that waits longer and asks for no more."""
    core = pool._core
    start = core._start

    def watched(demand: Demand, overtaken: Iterable[Demand], now: float) -> None:
        for other in core.line:
            passed = other.since < demand.since and other.weight <= demand.weight
            # A key that its host admitted late has lost its place; one that failed may use only half of the
            # openings; one that lost its turn is put to the front, with a number below zero.
            if passed and demand.sequence > 0 and (demand.troubled or not other.troubled) and demand.host is None:
                world.require(False, "I9", f"{demand.key} passed {other.key}, who waited longer")
        start(demand, overtaken, now)

    core._start = watched  # type: ignore[method-assign]  # a watch on the one place where opens begin


def main(first: int, count: int) -> int:
    """Run many seeds and print those that found something."""
    bad = 0
    for seed in range(first, first + count):
        outcome = run_pool_schedule(seed)
        if outcome.violation is not None:
            bad += 1
            print(f"seed {seed}: {outcome.violation}")
    print(f"{count} schedules, {bad} violations")
    return bad


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[2]))))
