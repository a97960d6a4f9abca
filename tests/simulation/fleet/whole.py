"""Whole consumers of a fleet in virtual time: decisions and outages, through losses of the store and crashes.

The world of ``world.py`` has replicas without their consumers, and many starts. Here every replica is a consumer with
its pool, its queue and its membership, so what an operator decides and what replicas tell each other of hosts takes
the way that it takes in a process. A process dies at random times, or at any chosen await of its calls to the store.
"""

import asyncio
import contextlib
import copy
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final
from unittest.mock import patch

from postroom.fleet.decisions import field_of, verdicts
from postroom.fleet.memory import Store
from postroom.fleet.names import name_of
from simulation.fleet.replica import CAP, LEASE, TICK, Host, Link, Process, task_factory
from support.world import Tenant, World, in_world

TENANTS: Final = tuple("abcdefghijkl")
_SECONDS: Final = 26
"""Of hardships."""
_HINT: Final = 8.0
"""Seconds that a hint lasts at most here: twice the longest pause."""
_RECEIVES: Final = 5
"""After so many SQS makes a dead letter."""
_RANDOM: Final = ("postroom.consumer.", "postroom.scheduling.", "postroom.settlement.")
"""Where random numbers are drawn without a seed."""
_UNDER_WAY: Final = 0.5
"""Seconds for which a try may still begin that was decided before its replica heard of the outage."""
_EVENTS: Final = ("cut off", "deaf", "slow", "store gone", "flush", "restart", "stale restart", "crash", "stop", "host")


@dataclass
class _Known:
    """A decision that the store has written down."""

    value: str | None
    at: float
    witnesses: set[str] | None = None
    """Replicas that knew it when the store lost its memory; None while it has not. Without one it may be lost."""


class Whole:
    """Some replicas, a store, hosts, and an operator."""

    def __init__(self, world: World, seed: int, crash_at: int | None = None) -> None:
        self.world = world
        self.rng = Random(seed)
        self.crash_at = crash_at
        self.loop = asyncio.get_running_loop()
        self.loop.set_task_factory(task_factory())
        self.store = Store(lambda: 9_000.0 + self.loop.time())
        self.hosts = [Host("db1"), Host("db2")]
        for host in self.hosts:
            host.on_try = self._judge_try
            host.on_reached = self._note_reached
        self.replicas: list[Process] = []
        self.ended: list[Process] = []
        self.decided: dict[str, _Known] = {}
        self.wanted: dict[str, tuple[Process, float]] = {}
        """By which replica, and when, each of them was decided last."""
        self.lost_at = -100.0
        self.turns: dict[str, tuple[Link, float]] = {}
        """Which replica has the turn at a host, and since when."""
        self.starts = 0
        self.paused: dict[str, float] = {}
        """Tenants that are paused in calm, and since when every replica has to know."""
        self.sent = 0
        self.facts: Counter[str] = Counter()
        self.broken: list[str] = []
        self._snapshot: Any = {}
        self._count = 0
        for _ in range(3):
            self.add()

    def add(self) -> None:
        """Start a replica."""
        self._count += 1
        link = Link(self.store, Random(self.rng.getrandbits(32)))
        link.on_decided = self._note_decided
        link.on_turn = lambda host: self._judge_turn(link, host)
        link.on_report = lambda host: self.turns.pop(host, None)
        if self._count == 1:
            link.crash_at = self.crash_at
        process = Process(
            f"p{self._count}",
            link,
            self.world.client,
            self.hosts,
            on_start=self._judge_start,
            seed=self.rng.getrandbits(32),
        )
        process.start()
        self.replicas.append(process)

    def alive(self) -> list[Process]:
        """Return the replicas that live, and start another for each that has died."""
        for process in [process for process in self.replicas if not process.alive]:
            self.replicas.remove(process)
            self.ended.append(process)
            self.facts["crash"] += 1
            self._forget(process)
            self.add()
        return [process for process in self.replicas if process.member is not None]

    def _forget(self, process: Process) -> None:
        for known in self.decided.values():
            if known.witnesses is not None:
                known.witnesses.discard(process.name)

    # -- what happens -----------------------------------------------------------------------------------------------

    async def hardships(self) -> None:
        """Let things go wrong while messages come and an operator decides."""
        kinds = [*self.rng.sample(_EVENTS, 3), *["host"] * self.rng.choice([0, 3])]
        for second in range(_SECONDS):
            self._send()
            if second % 2:
                self._snapshot = copy.deepcopy(self.store.fleets)
            if self.rng.random() < 0.5:
                self._decide()
            if self.rng.random() < 0.3:
                await self._happen(self.rng.choice(kinds))
            await asyncio.sleep(self.rng.uniform(0.7, 1.3))

    def _send(self) -> None:
        for _ in range(self.rng.choice([2, 4, 9])):
            self.world.send_orders(str(self.sent), tenant=self.rng.choice(TENANTS), seconds=self.rng.uniform(0.05, 0.4))
            self.sent += 1

    def _decide(self) -> None:
        replicas = self.alive()
        if not replicas:
            return
        tenant = Tenant(self.rng.choice(TENANTS))
        process = self.rng.choice(replicas)
        tenants = process.consumer.tenants
        self.facts["decisions"] += 1
        part = "state"
        match self.rng.randrange(6):
            case 0 | 1:
                tenants.pause(tenant, reason="move")
            case 2 | 3 | 4:
                tenants.resume(tenant)
            case _:
                part = "concurrency"
                tenants.limit(tenant, concurrency=self.rng.choice([1, 2, 3]))
        self.wanted[field_of(part, name_of(tenant))] = (process, self.loop.time())

    async def _happen(self, kind: str) -> None:
        self.facts[kind] += 1
        replicas = self.alive()
        victim = self.rng.choice(replicas) if replicas else None
        if kind in {"flush", "restart", "stale restart"}:
            self._lose_memory(kind)
        elif kind == "host":
            host = self.rng.choice(self.hosts)
            host.down = not host.down
        elif kind == "store gone":
            for process in self.replicas:
                process.link.cut_off = True
            self.loop.call_later(self.rng.choice([2.0, 1.5 * LEASE]), self._join)
        elif victim is not None and kind == "crash":
            victim.crash()
        elif victim is not None and kind == "stop":
            victim.consumer.stop()
            self.replicas.remove(victim)
            self._forget(victim)
            self.ended.append(victim)
            self.add()
        elif victim is not None:
            setattr(victim.link, kind.replace(" ", "_"), True)
            self.loop.call_later(self.rng.choice([2.0, 1.5 * LEASE]), self._join)

    def _join(self) -> None:
        for process in self.replicas:
            if process.alive:
                process.link.cut_off = process.link.deaf = process.link.slow = False

    def _lose_memory(self, how: str) -> None:
        self.lost_at = self.loop.time()
        if how == "restart":
            self.store.restart()
            return
        for field, known in self.decided.items():
            live = self._witnesses(field, known)
            known.witnesses = live if known.witnesses is None else known.witnesses & live
        if how == "flush":
            self.store.flush()
        else:
            self.store.fleets = copy.deepcopy(self._snapshot)
            self.store.restart()

    def _witnesses(self, field: str, known: _Known) -> set[str]:
        """Return the replicas that have read a decision."""
        found: set[str] = set()
        for process in self.replicas:
            member = process.member
            if not process.alive or member is None or member._reached is None:
                continue
            if member._reached > known.at and member._known.fields.get(field) == known.value:
                found.add(process.name)
        return found

    def _note_decided(self, changes: Mapping[str, str | None]) -> None:
        now = self.loop.time()
        for field, value in changes.items():
            self.decided[field] = _Known(value, now)

    # -- calm -----------------------------------------------------------------------------------------------------

    async def calm(self) -> None:
        """Let everything heal, and judge what has to hold then."""
        for process in self.replicas:
            process.link.crash_at = None
        self._join()
        self.alive()
        for host in self.hosts:
            host.down = False
        await asyncio.sleep(2 * LEASE + 2 * TICK)
        self._judge_agreement()
        self._judge_members()
        await self._judge_pause()
        for tenant in TENANTS:
            self.replicas[0].consumer.tenants.resume(Tenant(tenant))
        await asyncio.sleep(_HINT + 3 * LEASE + 30)
        self._judge_messages()
        await self._stop()
        self._judge_ends()

    async def _stop(self) -> None:
        for process in self.replicas:
            process.consumer.stop()
        for process in self.ended:
            if not process.alive:
                await process.bury()  # what its last callbacks began
        await asyncio.gather(*(each.main for each in (*self.replicas, *self.ended) if each.main is not None),
                             return_exceptions=True)  # fmt: skip

    def fail(self, text: str) -> None:
        """Note what was broken."""
        self.broken.append(f"{text}, at {self.loop.time():.3f}")

    # -- oracles --------------------------------------------------------------------------------------------------

    def _judge_start(self, process: Process, tenant: str, running: int) -> None:
        """F1, F11: the slots are those of the store, and nothing of a tenant starts that is paused everywhere."""
        self.starts += 1
        since = self.paused.get(tenant)
        if since is not None and self.loop.time() > since:
            self.fail(f"F11: {process.name} starts {tenant}, which is paused")
        member = process.member
        if member is not None and running > CAP and not member.ledger.is_gone(self.loop.time()):
            self.fail(f"F1: {process.name} runs {running} of {tenant}, of {CAP} in the fleet")

    def _judge_try(self, process: Process, host: Host) -> None:
        """F12: while a hint lasts that this replica has heard of since it reached the host, it tries in its turn."""
        fleet, member, now = self.store.fleets.get("orders"), process.member, self.loop.time()
        self.facts["tries of a host that is down"] += host.down
        if fleet is None or member is None or now < self.lost_at + LEASE:
            return
        name = name_of(host.name)
        until, _cause = fleet.hints.get(name, (0.0, ""))
        if until <= self.store.clock() or process.link.heard.get(name, now) > now - _UNDER_WAY:
            return
        if member._reached is None or member._reached < now - 2 * TICK:
            return
        self.facts["tries under a hint"] += 1
        if process.link.turns.get(name, -LEASE) <= now - LEASE:
            self.fail(f"F12: {process.name} tries {host.name} out of turn")

    @staticmethod
    def _note_reached(process: Process, host: Host) -> None:
        """A replica that has reached the host knows better than what it has heard before, and tells the others soon."""
        process.link.heard.pop(name_of(host.name), None)

    def _judge_turn(self, link: Link, host: str) -> None:
        """F12: one replica has the turn, until it says what it found or a lease is over."""
        other, since = self.turns.get(host, (link, 0.0))
        now = self.loop.time()
        if other is not link and since > max(now - LEASE, self.lost_at):
            self.fail(f"F12: two replicas have the turn at {host}")
        self.turns[host] = (link, now)

    def _judge_agreement(self) -> None:
        """F11: the store has what was decided, unless no replica remembered; every replica shows what it has."""
        fields = self.store.decisions("orders").fields
        for field, known in self.decided.items():
            if known.witnesses is not None and not known.witnesses:
                self.facts["decisions without a witness"] += 1
            elif fields.get(field) != known.value:
                self.fail(f"F11: {field!r} is {fields.get(field)} in the store, it was decided as {known.value}")
        for field, (process, at) in self.wanted.items():
            written = self.decided.get(field)
            if process in self.replicas and process.alive and (written is None or written.at < at):
                self.fail(f"F11: {field!r} was decided by {process.name} and never written down")
        said = verdicts(fields)
        for process in self.alive():
            for tenant in map(Tenant, TENANTS):
                shown, ruling = process.consumer.tenants[tenant], said.get(name_of(tenant))
                is_paused = ruling is not None and ruling.state == "paused"
                cap = None if ruling is None else ruling.concurrency
                if (shown.state == "paused") != is_paused or shown.concurrency != cap:
                    self.fail(f"F11: {process.name} shows {shown.state}, {shown.concurrency} for {tenant.tenant_id}, "
                              f"and {ruling} was decided")  # fmt: skip

    def _judge_members(self) -> None:
        """F10: a replica that died is not counted any longer than a lease."""
        count = len(self.store.replicas("orders"))
        if count != len(self.alive()):
            self.fail(f"F10: {count} replicas are counted, {len(self.alive())} are alive")

    async def _judge_pause(self) -> None:
        """F11: what is decided in calm holds everywhere within a tick."""
        tenant = self.rng.choice(TENANTS)
        self.rng.choice(self.alive()).consumer.tenants.pause(Tenant(tenant))
        self.paused[tenant] = self.loop.time() + TICK + 0.05
        await asyncio.sleep(TICK + 0.05)
        for process in self.alive():
            if process.consumer.tenants[Tenant(tenant)].state != "paused":
                self.fail(f"F11: {process.name} does not know of a pause after a tick")
        for _ in range(4):
            self.world.send_orders(str(self.sent), tenant=tenant, seconds=0.1)
            self.sent += 1
        await asyncio.sleep(3)
        del self.paused[tenant]

    def _judge_messages(self) -> None:
        """F8, F12: no message failed for the store or for a hint, and none waits for what is over."""
        if self.world.counts("dead") != (0, 0):
            self.fail(f"F12: dead letters: {self.world.counts('dead')}")
        if self.world.counts() != (0, 0):
            self.fail(f"F12: {self.world.counts()} messages still wait, long after everything is well again")

    def _judge_ends(self) -> None:
        """F10: everything in the store but decisions has an end that is near, whatever happened before."""
        now = self.store.clock()
        for name, fleet in self.store.fleets.items():
            ends = [*fleet.members.values(), *(until for until, _ in (*fleet.hints.values(), *fleet.probes.values()))]
            ends += [slots.expires for each in fleet.slots.values() for slots in each.values()]
            if max(ends, default=0.0) > now + LEASE + _HINT or fleet.epoch_expires > now + 10 * LEASE:
                self.fail(f"F10: something of {name} lasts until {max(ends) - now:.1f} s from now")


@dataclass(frozen=True)
class Result:
    """What a schedule came to."""

    broken: tuple[str, ...]
    starts: int
    awaits: int
    """Of the first replica's calls to the store."""
    facts: Mapping[str, int]


def run_whole_schedule(seed: int, *, crash_at: int | None = None, receives: int = _RECEIVES) -> Result:
    """Run one schedule with whole consumers; with ``crash_at`` the first replica dies at that await."""

    async def scenario(world: World) -> Result:
        world.create(dead_letters="dead", receives=receives)
        whole = Whole(world, seed, crash_at)
        first = whole.replicas[0].link
        await whole.hardships()
        await whole.calm()
        return Result(tuple(whole.broken), whole.starts, first.awaits, dict(whole.facts))

    with _deterministic(seed):
        return in_world(scenario, seed=seed)


@contextlib.contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Let everything that draws random numbers draw them from the seed."""
    rng = Random(seed ^ 0xD1CE)
    with contextlib.ExitStack() as patches:
        make = patch.object(secrets, "token_hex", lambda size: f"{rng.getrandbits(8 * size):0{2 * size}x}")
        patches.enter_context(make)
        for name, module in list(sys.modules.items()):
            if name.startswith(_RANDOM) and hasattr(module, "Random"):
                patches.enter_context(patch.object(module, "Random", lambda: Random(rng.getrandbits(32))))
        yield


def whole_violations(seed: int) -> tuple[str, ...]:
    """Return what a schedule broke."""
    return run_whole_schedule(seed).broken
