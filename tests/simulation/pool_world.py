"""The world outside a pool in simulation: providers that fail in every way, and the oracles that watch.

Every oracle is named after the invariant of docs/design.md that it watches. The world counts for itself; it
believes the pool only where the text says so.
"""

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from postroom.errors import UnknownTenant
from postroom.events import Event, ResourceClosed, ResourceOpened, ResourceOpenFailed
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts

EPSILON = 1e-6


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Tenant:
    """The context of the simulation. Numbers, texts and flags that Python calls equal are different tenants."""

    name: Any
    number: int = field(default=0, compare=False)
    """What the world knows it by: as keys of a plain dict, 1 and True would be one tenant."""

    def __str__(self) -> str:
        return f"tenant {self.number}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one schedule does, drawn from its seed."""

    limits: PoolLimits
    timeouts: PoolTimeouts
    backoff: OpenBackoff
    tenants: tuple[Tenant, ...]
    weights: dict[int, int]
    hosts: dict[int, int] | None
    per_host: int | None
    provider: str
    with_check: bool
    trouble: float
    """How much goes wrong, 0 to 1."""
    down: frozenset[int]
    """Hosts on which nothing opens, for a time."""
    up_at: float


def draw_plan(rng: random.Random) -> Plan:
    """Draw everything that stays fixed during one schedule."""
    names: list[Any] = ["a", "b", "c:d", ("c", "d"), 1, 1.0, True, "1", ("a", "b"), "a:b", None, "é"]
    rng.shuffle(names)
    tenants = tuple(Tenant(name, number) for number, name in enumerate(names[: rng.choice([1, 3, 6, 12])]))
    budget = rng.randint(1, 8)
    heavy = rng.random() < 0.3
    hosts = rng.choice([0, 0, 1, 2])
    weights = {tenant.number: rng.randint(1, min(3, budget)) if heavy else 1 for tenant in tenants}
    per_host = rng.randint(max(weights.values()), budget) if hosts and rng.random() < 0.5 else None
    return Plan(
        limits=PoolLimits(
            budget=budget,
            per_host=per_host,
            max_concurrent_opens=rng.choice([1, 2, 3, 16]),
            idle=rng.choice([None, 0.5, 3.0]),
            max_age=rng.choice([None, 0.7, 2.0]),
            check_after=rng.choice([0.0, 0.2, 1.0]),
            sweep=rng.choice([0.1, 0.3]),
            patience=rng.choice([0.0, 0.1, 0.5]),
            remember=rng.choice([1, 3, 100]),
        ),
        timeouts=PoolTimeouts(
            lease=rng.choice([0.5, 2.0, 5.0]), open=rng.choice([0.3, 1.0]), close=rng.choice([0.2, 0.5]), check=0.2
        ),
        backoff=OpenBackoff(base=rng.choice([0.01, 0.1]), cap=rng.choice([0.1, 1.0]), permanent=rng.choice([0.1, 2.0])),
        tenants=tenants,
        weights=weights,
        hosts={tenant.number: rng.randint(1, hosts) for tenant in tenants} if hosts else None,
        per_host=per_host,
        provider=rng.choice(["generator", "class", "function"]),
        with_check=rng.random() < 0.5,
        trouble=rng.choice([0.0, 0.1, 0.4]),
        down=frozenset({1}) if rng.random() < 0.4 else frozenset(),
        up_at=rng.choice([0.5, 1.5, 9.0]),
    )


@dataclass(eq=False, slots=True)
class Resource:
    """One resource, as the outside world sees it."""

    tenant: Tenant
    number: int
    """When its open began, as a sequence number."""
    opener: Any
    alive: bool = True
    holders: int = 0
    closes: int = 0
    good_at: float = 0.0
    """When it was last opened, given back, or found healthy."""
    idle_since: float = 0.0
    suspect_at: int | None = None
    """When it was reported, as a sequence number."""
    doubted_at: tuple[float, int] | None = None
    """When a use of it timed out: the time, and a sequence number."""
    checked_at: float = -1.0
    """When it was last found healthy."""
    cancelled: bool = False
    """Its owner was cancelled from outside: it may close under a lease."""
    checking: int = 0


@dataclass(eq=False, slots=True)
class Opening:
    """One provider being entered."""

    tenant: Tenant
    number: int
    concluded: bool = False
    """It was told to give up, or said what came of it: another may open for the same key."""


@dataclass(eq=False)
class World:
    """Providers, and what they saw."""

    plan: Plan
    rng: random.Random
    now: Any = None
    sequence: int = 0
    resources: list[Resource] = field(default_factory=list[Resource])
    openings: dict[Opening, None] = field(default_factory=dict[Opening, None])
    weight: int = 0
    weight_on: Counter[int] = field(default_factory=Counter[int])
    counts: Counter[str] = field(default_factory=Counter[str])
    digest: int = 0
    invalidated: dict[int, int] = field(default_factory=dict[int, int])
    left_alone_until: dict[int, float] = field(default_factory=dict[int, float])
    failed_on: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    tripped_at: dict[int, int] = field(default_factory=dict[int, int])
    on_opened: Callable[[], object] | None = None
    """Disturbs the very instant in which leases are handed out."""
    host_seen: dict[int, float] = field(default_factory=dict[int, float])
    violations: list[str] = field(default_factory=list[str])
    grace_over: bool = False
    closed: bool = False

    def tick(self) -> int:
        """Return the next sequence number."""
        self.sequence += 1
        return self.sequence

    def weigh(self, tenant: Tenant) -> int:
        """Return the weight of a tenant."""
        return self.plan.weights[tenant.number]

    def note(self, what: str, tenant: Tenant | None = None) -> None:
        """Count an event, and fold it into the digest that proves a replay."""
        self.counts[what] += 1
        line = f"{self.now():.9f} {what} {-1 if tenant is None else tenant.number}"
        self.digest = zlib.crc32(line.encode(), self.digest)

    def require(self, holds: bool, invariant: str, text: object) -> None:
        """Raise if an invariant does not hold. Remembered too: the pool handles what a provider raises."""
        if not holds:
            self.violations.append(f"{invariant}: {text} (at {self.now():.3f} s)")
            raise Violation(self.violations[-1])

    def chance(self, probability: float) -> bool:
        """Return True now and then, more often in troubled schedules."""
        return self.rng.random() < probability * self.plan.trouble

    # -- providers ----------------------------------------------------------------------------------------------

    def provider(self) -> dict[str, Any]:
        """Return the arguments of ``ResourcePool`` that open and close resources."""
        if self.plan.provider == "function":
            return {"provider": self.open, "cleanup": self.close}
        if self.plan.provider == "class":
            return {"provider": lambda tenant: _Manager(self, tenant)}
        return {"provider": self.generate}

    @asynccontextmanager
    async def generate(self, tenant: Tenant) -> AsyncIterator[Resource]:
        """Open and close as a generator does: no ``finally``, and now and then a second yield."""
        resource = await self.open(tenant)
        yield resource
        await self.close(resource)
        if self.chance(0.1):
            yield resource

    async def open(self, tenant: Tenant) -> Resource:
        """Open a resource, slowly or not at all."""
        opening = self._begin(tenant)
        try:
            await self._enter(tenant, opening)
        except BaseException:
            self.take(tenant, -1)
            raise
        finally:
            del self.openings[opening]
        resource = Resource(tenant, opening.number, asyncio.current_task())
        resource.good_at = resource.idle_since = self.now()
        self.resources.append(resource)
        self.note("open", tenant)
        return resource

    def _begin(self, tenant: Tenant) -> Opening:
        rivals = [other for other in self.openings if other.tenant is tenant and not other.concluded]
        self.require(not rivals, "I1", f"{tenant} is opened twice at once")
        opening = Opening(tenant, self.tick())
        self.openings[opening] = None
        self.take(tenant, 1)
        limits = self.plan.limits
        host = self.host_of(tenant)
        if host and self.plan.per_host is not None:
            text = f"{self.weight_on[host]} of {self.plan.per_host} in use on host {host}"
            self.require(self.weight_on[host] <= self.plan.per_host, "I3", text)
        self.require(self.weight <= limits.budget, "I3", f"{self.weight} of {limits.budget} in use")
        self.require(len(self.openings) <= limits.max_concurrent_opens, "I3", f"{len(self.openings)} opens at once")
        self.require(not self.closed, "I8", f"{tenant} is opened after the close")
        if limits.remember > len(self.plan.tenants):  # a shorter memory may forget which keys to leave alone
            alone = self.left_alone_until.get(tenant.number, 0.0)
            self.require(self.now() >= alone - EPSILON, "I9", f"{tenant} was to be left alone until {alone:.3f} s")
            self._watch_probe(opening)
        self.note("begin", tenant)
        return opening

    def _watch_probe(self, opening: Opening) -> None:
        host = self.host_of(opening.tenant)
        memory = 2 * max(self.plan.backoff.cap, self.plan.backoff.permanent)
        if self.now() - self.host_seen.get(host, 0.0) > memory:  # the pool may have forgotten this host
            self.failed_on.pop(host, None)
            self.tripped_at.pop(host, None)
        self.host_seen[host] = self.now()
        tripped = self.tripped_at.get(host)
        if tripped is None:
            return
        probes = [
            other
            for other in self.openings
            if other is not opening
            and not other.concluded
            and other.number > tripped
            and self.host_of(other.tenant) == host
        ]
        self.require(not probes, "I9", f"a second probe of host {host}: {opening.tenant}")

    async def _enter(self, tenant: Tenant, opening: Opening) -> None:
        rng = self.rng
        try:
            await asyncio.sleep(rng.random() * 0.2)
            if self.host_of(tenant) in self.plan.down and self.now() < self.plan.up_at:
                raise ConnectionRefusedError("down")
            if self.chance(0.3):
                raise rng.choice([OSError("no"), UnknownTenant("no"), asyncio.CancelledError(), RuntimeError("no")])
            if self.chance(0.2):
                await asyncio.sleep(rng.choice([0.5, 100.0]))
        except asyncio.CancelledError:
            opening.concluded = True
            if self.chance(0.5):
                await asyncio.sleep(rng.random() * 0.3)
            if not self.chance(0.3):  # else it swallows its cancellation, and opens all the same
                raise

    async def close(self, resource: Resource) -> None:
        """Close a resource, slowly or badly."""
        tenant = resource.tenant
        resource.closes += 1
        self.require(resource.closes == 1, "I4", f"{tenant} is closed {resource.closes} times")
        self.require(asyncio.current_task() is resource.opener, "I4", f"{tenant} is closed by another task")
        excused = self.grace_over or resource.cancelled
        self.require(excused or not resource.holders, "I2", f"{tenant} is closed under {resource.holders} lease(s)")
        resource.alive = False
        self.note("close", tenant)
        try:
            await asyncio.sleep(self.rng.random() * 0.1)
            if self.chance(0.2):
                raise OSError("will not close")
            if self.chance(0.2):
                await asyncio.sleep(100)
        finally:
            self.take(tenant, -1)

    def take(self, tenant: Tenant, times: int) -> None:
        """Count the weight of what is open, opening or closing, here and on each host."""
        self.weight += times * self.weigh(tenant)
        self.weight_on[self.host_of(tenant)] += times * self.weigh(tenant)

    async def check(self, resource: Resource) -> bool | None:
        """Say whether a resource is healthy, late or never."""
        self.require(resource.alive, "I2", f"{resource.tenant} is checked after it was closed")
        resource.checking += 1
        try:
            await asyncio.sleep(self.rng.random() * 0.05)
            if self.chance(0.15):
                await asyncio.sleep(100)
            if self.chance(0.2):
                raise ConnectionResetError("gone")
        finally:
            resource.checking -= 1
        resource.good_at = resource.checked_at = self.now()
        return not self.chance(0.2)

    # -- what is seen -------------------------------------------------------------------------------------------

    def host_of(self, tenant: Tenant) -> int:
        """Return the host of a tenant; 0 where the pool was told of none."""
        return 0 if self.plan.hosts is None else self.plan.hosts[tenant.number]

    def observe(self, event: Event) -> None:
        """Watch the pool's events; now and then fail, which must not matter."""
        if isinstance(event, ResourceOpenFailed):
            self._failed(event)
        elif isinstance(event, ResourceOpened):
            host = self.host_of(self._tenant(event.key))
            self.failed_on.pop(host, None)
            self.tripped_at.pop(host, None)
            if self.on_opened is not None:
                self.on_opened()
        elif isinstance(event, ResourceClosed):
            self.note("closed", self._tenant(event.key))
        if self.chance(0.05):
            raise RuntimeError("an observer fails")

    def _failed(self, event: ResourceOpenFailed) -> None:
        tenant = self._tenant(event.key)
        self.conclude(tenant)
        self.left_alone_until[tenant.number] = max(
            self.left_alone_until.get(tenant.number, 0.0), self.now() + event.retry_after
        )
        host = self.host_of(tenant)
        if host and not event.permanent:
            failed = self.failed_on.setdefault(host, set())
            failed.add(tenant.number)
            if len(failed) >= 5:
                self.tripped_at.setdefault(host, self.sequence)
                self.counts["tripped"] += 1

    def conclude(self, tenant: Tenant) -> None:
        """Note that the pool gave up what is being opened for a tenant."""
        for opening in self.openings:
            if opening.tenant is tenant:
                opening.concluded = True

    def conclude_all(self) -> None:
        """Note that the pool gives up everything that is being opened."""
        for opening in self.openings:
            opening.concluded = True

    def _tenant(self, key: object) -> Tenant:
        return next(tenant for tenant in self.plan.tenants if tenant is key)

    def handed_out(self, tenant: Tenant, resource: Resource, asked_at: int) -> None:
        """Watch a lease being handed out."""
        self.require(resource.tenant is tenant, "I5", f"{tenant} was given the resource of {resource.tenant}")
        excused = self.grace_over or resource.cancelled
        self.require(excused or resource.alive, "I2", f"{tenant} was given a closed resource")
        begun = self.invalidated.get(tenant.number, 0)
        self.require(asked_at < begun or resource.number > begun, "I5", f"{tenant} was given what was invalidated")
        reported = resource.suspect_at
        self.require(reported is None or asked_at < reported, "I5", f"{tenant} was given what was reported broken")
        rest = self.now() - resource.good_at
        tired = self.plan.with_check and not resource.holders and rest > self.plan.limits.check_after + EPSILON
        self.require(not tired, "health", f"{tenant} was given a resource unchecked for {rest:.3f} s")
        self.require(not self._is_doubtful(resource, asked_at), "health", f"{tenant} was given what timed out")
        resource.holders += 1
        self.note("lease", tenant)

    def _is_doubtful(self, resource: Resource, asked_at: int) -> bool:
        """Whether a use timed out before a lease was asked for, and no check has found the resource healthy since."""
        if resource.doubted_at is None or not self.plan.with_check:
            return False
        when, number = resource.doubted_at
        can_be_asked = not resource.holders or self.weigh(resource.tenant) > 1
        return can_be_asked and number < asked_at and resource.checked_at < when

    def given_back(self, resource: Resource) -> None:
        """Watch a lease being released."""
        resource.holders -= 1
        if not resource.holders:
            resource.good_at = resource.idle_since = self.now()
        self.note("release", resource.tenant)

    def at_the_end(self) -> None:
        """Watch what is left when the pool is closed."""
        left = [resource.tenant for resource in self.resources if resource.closes != 1]
        self.require(not left, "I4", f"never closed: {left}")
        self.require(not self.openings, "I8", f"still opening: {[opening.tenant for opening in self.openings]}")
        self.require(self.weight == 0, "I8", f"weight left: {self.weight}")


class _Manager:
    """A provider as a plain class."""

    def __init__(self, world: World, tenant: Tenant) -> None:
        self._world = world
        self._tenant = tenant
        self._resource: Resource | None = None

    async def __aenter__(self) -> Resource:
        self._resource = await self._world.open(self._tenant)
        return self._resource

    async def __aexit__(self, *_error: object) -> None:
        assert self._resource is not None
        await self._world.close(self._resource)
