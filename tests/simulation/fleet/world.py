"""A fleet of ledgers around one store, with everything that goes wrong, in simulated time.

Whole replicas without their consumers: each has its own clock, its own scheduler (a count of what runs and waits), and
the real :class:`~postroom.fleet.ledger.Ledger`; the store is the real :class:`~postroom.fleet.memory.Store`. Requests
take time, get lost on either way, or arrive long after they were given up. Replicas crash, freeze, stop and start;
the store is cut off, loses everything, or starts again with what it knew a moment ago.
"""

import copy
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from postroom.fleet import Answer, Fleet, MemoryState, Request
from postroom.fleet.ledger import Demand, Ledger, Sent
from postroom.fleet.memory import Store

NAME = "orders"
LONGEST = 1.5
"""How much longer a handler may run than it does on average."""


MORE_HARDSHIPS = ("late answers", "deaf", "partition", "slow for a while")
"""Those that only odd seeds draw: the even ones repeat what was found before these were thought of."""


def rng_of_more(seed: int) -> Random:
    """Return what decides about the hardships of odd seeds."""
    return Random(seed * 31 + 7)


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class Plan:
    """What one schedule does; made of a seed."""

    seed: int
    replicas: int
    tenants: int
    cap: int
    local: int
    lease: float
    tick: float
    fallback: str
    rate: float | None
    handler: float
    seconds: float
    hardships: tuple[str, ...]

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """Draw a plan."""
        rng = Random(seed)
        every = ("slow", "lost requests", "lost answers", "late requests", "cut off", "store gone", "flush", "restart",
                 "stale restart", "crash", "freeze", "stop", "clocks", "cap changes")  # fmt: skip
        lease = rng.choice([4.0, 15.0])
        later = rng_of_more(seed)
        more = later.sample(MORE_HARDSHIPS, later.choice([1, 1, 2])) if seed % 2 else []
        return cls(
            seed=seed,
            replicas=rng.choice([1, 2, 3, 3, 4, 6, 9]),
            tenants=rng.choice([1, 2, 4, 7]),
            cap=rng.choice([1, 2, 3, 5, 7, 12, 20]),
            local=rng.choice([1, 2, 4, 8]),
            lease=lease,
            tick=rng.choice([0.5, 1.0]),
            fallback=rng.choice(["share", "share", "stop"]),
            rate=rng.choice([None, None, None, 0.5, 4.0, 20.0]),
            handler=rng.choice([0.05, 0.3, 1.0, 3.0]),
            seconds=5 * lease + 10,
            hardships=(*rng.sample(every, rng.choice([0, 1, 2, 3])), *more),
        )


@dataclass
class Handler:
    """One handler that runs."""

    tenant: str
    ends: float
    claimed: bool = False
    """Whether the fallback let it start when the store had just lost its memory: it is taken for one with a slot there,
    and what others hold is not known there until they exchange."""


@dataclass(eq=False)
class Replica:
    """One process."""

    world: "World"
    name: str
    offset: float
    pace: float
    """Seconds of its own clock in one of the world's."""
    running: list[Handler] = field(default_factory=list)
    waiting: Counter[str] = field(default_factory=Counter)
    alive: bool = True
    frozen_until: float = 0.0
    stopping: bool = False
    cut_off: bool = False
    deaf: bool = False
    """Whether its requests arrive and no answer comes back: a network that is cut in one direction."""
    met: dict[str, float] = field(default_factory=dict)
    timer: int = 0

    def __post_init__(self) -> None:
        self.fleet = self.world.fleet
        self.ledger = Ledger(self.fleet, self.name, self.clock(), self._met)

    def clock(self) -> float:
        """Return its own time."""
        return self.offset + self.world.now * self.pace

    def running_of(self, tenant: str) -> int:
        """Return how many handlers of a tenant run here."""
        return sum(each.tenant == tenant for each in self.running)

    def here(self) -> list[str]:
        """Return the tenants with work here."""
        return [*{each.tenant for each in self.running}, *(tenant for tenant, count in self.waiting.items() if count)]

    def demand(self, tenant: Any) -> Demand:
        """Return what a tenant has here."""
        return Demand(self.running_of(tenant), self.waiting[tenant], self.world.plan.local)

    def _met(self, tenant: Any) -> None:
        self.met[tenant] = self.world.now
        self.world.wake(self)


class World:
    """The fleet, its store, and time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = Random(plan.seed * 7_919 + 1)
        self.now = 0.0
        self.cap = plan.cap
        self.caps_since: list[tuple[float, int]] = [(0.0, plan.cap)]
        self.store_pace = self._pace()
        self.store = Store(lambda: 50_000.0 + self.now * self.store_pace)
        self.fleet = Fleet(
            MemoryState(),
            rate=plan.rate,
            overrides=lambda _tenant: self.cap,
            lease=plan.lease,
            tick=plan.tick,
            fallback=plan.fallback,  # type: ignore[arg-type]
        )
        self.replicas: list[Replica] = []
        self.store_gone = False
        self.slow_until = -1.0
        self.lost_memory_until = -1.0
        self.lost_at = -1e9
        """Until then slots may be out that the store does not know."""
        self.hard = True
        self.starts = 0
        self.covered_starts = 0
        self.calls = 0
        self.crashed: dict[str, float] = {}
        self.rated: dict[str, list[float]] = defaultdict(list)
        self.had: dict[str, set[str]] = defaultdict(set)
        self.history: list[str] = []
        self.keep_history = False
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._names = itertools.count(1)
        self._snapshot: tuple[float, Any] = (0.0, {})
        for _ in range(plan.replicas):
            self.add_replica()

    # -- time -----------------------------------------------------------------------------------------------------

    def at(self, seconds: float, function: Callable[[], object]) -> None:
        """Do something later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), function))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, function = heapq.heappop(self._events)
            function()
        self.now = until

    def note(self, text: str) -> None:
        """Write the history, when it is read."""
        if self.keep_history:
            self.history.append(f"{self.now:9.3f} {text}")

    def _pace(self) -> float:
        return self.rng.uniform(0.99, 1.01) if "clocks" in self.plan.hardships else 1.0

    # -- replicas ---------------------------------------------------------------------------------------------------

    def add_replica(self) -> Replica:
        """Start a process."""
        replica = Replica(self, f"r{next(self._names):03}", self.rng.uniform(0, 9_000), self._pace())
        self.replicas.append(replica)
        self.wake(replica)
        self.at(0.0, lambda: self._arrive(replica))
        return replica

    def wake(self, replica: Replica) -> None:
        """Let a replica look again what is due."""
        replica.timer += 1
        number = replica.timer
        now = replica.clock()
        due = replica.ledger.due(now)
        if not replica.ledger.is_gone(now) and replica.ledger.failures:
            due = min(due, replica.ledger.gone_at)
        self.at(max(0.0, due - now) / replica.pace, lambda: self._due(replica, number))

    def _due(self, replica: Replica, number: int) -> None:
        if not replica.alive or number != replica.timer:
            return
        if self.now < replica.frozen_until:
            self.at(replica.frozen_until - self.now, lambda: self._due(replica, number))
            return
        ledger, now = replica.ledger, replica.clock()
        self.pump(replica)
        if ledger.sent is not None:
            return
        if now >= ledger.due(now) - 1e-9:
            sent = ledger.ask(replica.here(), replica.demand, now)
            if sent is not None:
                self._send(replica, sent)
                return
        self.at(0.0005, lambda: self.wake(replica))

    def _arrive(self, replica: Replica) -> None:
        if not replica.alive or replica.stopping:
            return
        tenant = f"t{self.rng.randrange(self.plan.tenants)}"
        if replica.waiting[tenant] < 30:
            replica.waiting[tenant] += self.rng.choice([1, 1, 2, 6])
        self.pump(replica)
        self.at(self.rng.expovariate(1.0) * self.plan.handler * 0.4 + 0.02, lambda: self._arrive(replica))

    def pump(self, replica: Replica) -> None:
        """Start what the ledger lets start: the scheduler, in a few lines."""
        if self.now < replica.frozen_until or not replica.alive:
            return
        for tenant in list(replica.waiting):
            running = replica.running_of(tenant)
            while replica.waiting[tenant] and running < self.plan.local:
                now = replica.clock()
                allowed = replica.ledger.allowed(tenant, now)
                if allowed is not None and running >= allowed:
                    break
                if self.plan.rate is not None and not replica.ledger.is_gone(now):
                    if not replica.ledger.take(tenant, now):
                        break
                    self.rated[tenant].append(self.now)
                self._start(replica, tenant, running)
                running += 1
            if not replica.waiting[tenant]:
                del replica.waiting[tenant]

    def _start(self, replica: Replica, tenant: str, running: int) -> None:
        replica.waiting[tenant] -= 1
        ends = self.now + self.rng.uniform(0.5, LONGEST) * self.plan.handler
        is_new = self.now < self.lost_at + self.plan.lease
        handler = Handler(tenant, ends, claimed=is_new and replica.ledger.is_gone(replica.clock()))
        replica.running.append(handler)
        self.starts += 1
        self.had[tenant].add(replica.name)
        self.at(handler.ends - self.now, lambda: self._end(replica, handler))
        self.note(f"{replica.name} starts {tenant}, {running + 1} of {replica.ledger.allowed(tenant, replica.clock())}")
        self._judge_start(replica, tenant, running + 1)

    def _end(self, replica: Replica, handler: Handler) -> None:
        if not replica.alive:
            return
        if self.now < replica.frozen_until:
            self.at(replica.frozen_until - self.now, lambda: self._end(replica, handler))
            return
        if handler in replica.running:
            replica.running.remove(handler)
        self.pump(replica)
        if replica.stopping and not replica.running:
            self._leave(replica)

    # -- the network --------------------------------------------------------------------------------------------------

    def _send(self, replica: Replica, sent: Sent) -> None:
        self.calls += 1
        if self.calls % 200 == 0:
            self.judge_cost()
        rng, hard = self.rng, self.plan.hardships if self.hard else ()
        there = rng.uniform(0.0002, 0.002)
        if "slow" in hard or self.now < self.slow_until:
            there = rng.choice([there, there, rng.uniform(0.0, 1.2 * replica.ledger.patience)])
        lost = replica.cut_off or self.store_gone or ("lost requests" in hard and rng.random() < 0.15)
        if "late requests" in hard and rng.random() < 0.2:  # given up, and processed long after that
            self.at(rng.uniform(0.3, 2.0) * self.plan.lease, lambda: self._process(sent.request))
            lost = True
        answer_lost = "lost answers" in hard and rng.random() < 0.2
        patience = replica.ledger.patience / replica.pace
        self.at(patience, lambda: self._given_up(replica, sent))
        if not lost:
            self.at(there, lambda: self._arrived(replica, sent, answer_lost=answer_lost))

    def _arrived(self, replica: Replica, sent: Sent, *, answer_lost: bool) -> None:
        if self.store_gone or replica.cut_off:
            return
        answer = self._process(sent.request)
        if answer_lost or replica.deaf:
            return
        back = self.rng.uniform(0.0002, 0.002)
        if self.hard and "late answers" in self.plan.hardships and self.rng.random() < 0.3:
            back = self.rng.uniform(0.0, 1.5 * replica.ledger.patience)  # some come after they were given up
        self.at(back, lambda: self._heard(replica, sent, answer))

    def _process(self, request: Request) -> Answer:
        fleet = self.store.fleets.get(NAME)
        had_memory = fleet is not None and fleet.epoch != ""
        answer = self.store.exchange(NAME, request)
        if not had_memory and not request.epoch:
            # The first replica that a store without memory hears of knows no better: what others hold is not known.
            self.lost_memory_until = max(self.lost_memory_until, self.now + 1.1 * self.plan.lease)
        self._judge_store()
        return answer

    def _heard(self, replica: Replica, sent: Sent, answer: Answer) -> None:
        if not replica.alive:
            return
        if self.now < replica.frozen_until:
            self.at(replica.frozen_until - self.now, lambda: self._heard(replica, sent, answer))
            return
        replica.ledger.answered(sent, answer, replica.clock())
        self.pump(replica)
        self.wake(replica)

    def _given_up(self, replica: Replica, sent: Sent) -> None:
        if not replica.alive or replica.ledger.sent is not sent:
            return
        if self.now < replica.frozen_until:
            self.at(replica.frozen_until - self.now, lambda: self._given_up(replica, sent))
            return
        replica.ledger.failed(sent)
        self.wake(replica)

    # -- hardships ------------------------------------------------------------------------------------------------

    def crash(self, replica: Replica) -> None:
        """Kill a process: its handlers are gone, its slots are not."""
        self.note(f"{replica.name} crashes")
        replica.alive = False
        replica.running.clear()
        self.crashed[replica.name] = self.now
        self.replicas.remove(replica)
        self.at(self.rng.uniform(0.5, 8), self.add_replica)

    def stop(self, replica: Replica) -> None:
        """Ask a process to stop."""
        self.note(f"{replica.name} stops")
        replica.stopping = True
        replica.waiting.clear()
        if not replica.running:
            self._leave(replica)

    def _leave(self, replica: Replica) -> None:
        if not replica.alive:
            return
        sent = replica.ledger.leave(replica.clock())
        replica.alive = False
        self.replicas.remove(replica)
        if not (self.store_gone or replica.cut_off):
            self._process(sent.request)
        self.at(self.rng.uniform(0.5, 3), self.add_replica)

    def snapshot(self) -> None:
        """Remember what the store knows now, as a disk that is written a moment later does."""
        self._snapshot = (self.now, copy.deepcopy(self.store.fleets))
        self.at(self.rng.uniform(0.5, 1.5), self.snapshot)

    def lose_memory(self, how: str) -> None:
        """Let the store forget: everything, or what it learnt since the last snapshot."""
        self.note(f"the store: {how}")
        self.lost_at = self.now
        if how == "stale restart":
            self.store.fleets = copy.deepcopy(self._snapshot[1])
            self.store.restart()
        else:
            self.store.restart(flushed=how == "flush" or self.rng.random() < 0.5)

    def change_cap(self) -> None:
        """Let an operator change the cap."""
        self.cap = self.rng.choice([1, 2, 4, 8])
        self.caps_since.append((self.now, self.cap))
        self.note(f"the cap is {self.cap}")

    # -- oracles --------------------------------------------------------------------------------------------------

    def cap_lately(self) -> int:
        """Return the highest cap that may still be in use: what runs under an old one is not interrupted."""
        since = self.now - 20 * self.plan.handler - 2.5 * self.plan.lease
        caps = [cap for at, cap in self.caps_since if at >= since]
        before = [cap for at, cap in self.caps_since if at < since]
        return max([*caps, *before[-1:]])

    def _judge_store(self) -> None:
        """F1: the unexpired slots of a tenant, by the store's clock, are within the cap."""
        for tenant, (used, _) in self.store.usage(NAME).items():
            if used > self.cap_lately():
                text = f"F1: {used} slots of {tenant} are granted, of {self.cap_lately()}, at {self.now:.3f}"
                raise Violation(text)

    def _judge_start(self, replica: Replica, tenant: str, running: int) -> None:
        ledger, now = replica.ledger, replica.clock()
        entry = ledger.entry(tenant)
        if ledger.is_gone(now):
            self._judge_fallback(replica, tenant, running)
            return
        self.covered_starts += 1
        if self.now < self.lost_memory_until:
            return
        if entry is None or now >= entry.expires:
            text = f"F7: {replica.name} started {tenant} without a slot at {self.now:.3f}"
            raise Violation(text)
        self._judge_slot(replica, tenant, running)
        running -= self._claimed(replica, tenant)
        others = sum(
            other.running_of(tenant) - self._claimed(other, tenant)
            for other in self.replicas
            if other is not replica and self._is_covered(other, tenant)
        )
        if running + others > self.cap_lately():
            text = f"F1: {running + others} handlers of {tenant} under slots, of {self.cap_lately()}, at {self.now:.3f}"
            raise Violation(text)

    def _judge_slot(self, replica: Replica, tenant: str, running: int) -> None:
        """F2: the slot is unexpired by the store's own clock, unless the store has lost its memory."""
        fleet = self.store.fleets.get(NAME)
        store_now = self.store.clock()
        slot = None if fleet is None else fleet.slots.get(f"t:{tenant}", {}).get(replica.name)
        if fleet is None or store_now < fleet.quiet_until or not fleet.epoch.startswith(f"{self.store.run}:"):
            return
        if fleet.epoch != replica.ledger.epoch:
            return
        if slot is None or slot.expires <= store_now or slot.granted < running:
            text = f"F2: {replica.name} started the {running}th of {tenant} under {slot} at {self.now:.3f}"
            raise Violation(text)

    @staticmethod
    def _claimed(replica: Replica, tenant: str) -> int:
        return sum(each.claimed for each in replica.running if each.tenant == tenant)

    def _is_covered(self, replica: Replica, tenant: str) -> bool:
        """Whether what runs of a tenant runs under slots: F7 lets it go on without, and F8 starts it without."""
        entry, now = replica.ledger.entry(tenant), replica.clock()
        return (
            entry is not None and now < entry.expires and replica.running_of(tenant) <= max(entry.granted, entry.limit)
        )

    def _judge_fallback(self, replica: Replica, tenant: str, running: int) -> None:
        """F8: without the store a replica starts no more than its part."""
        if self.plan.fallback == "stop":
            text = f"F8: {replica.name} started {tenant} with fallback stop at {self.now:.3f}"
            raise Violation(text)
        part = max(1, self.cap_lately() // max(1, replica.ledger.replicas)) if replica.ledger.replicas else 1
        if running > part:
            text = f"F8: {replica.name} runs {running} of {tenant}, its part is {part}, at {self.now:.3f}"
            raise Violation(text)

    def judge_cost(self) -> None:
        """F6: exchanges are counted by ticks, not by messages."""
        ticks = self.now / self.plan.tick + 5
        most = (len(self.replicas) + len(self.crashed) + 12) * ticks * 8
        if self.calls > most:
            text = f"F6: {self.calls} exchanges in {ticks:.0f} ticks of {len(self.replicas)} replicas at {self.now:.3f}"
            raise Violation(text)

    def judge_rates(self) -> None:
        """F9: in no window more starts than the rate allows, and two times two ticks."""
        rate, tick = self.plan.rate, self.plan.tick
        if rate is None:
            return
        for tenant, starts in self.rated.items():
            for window in (0.2, 3.0, 10.0):
                most = rate * (window + 4.2 * tick) * 1.02 + 2
                first = 0
                for last, at in enumerate(starts):
                    while starts[first] < at - window:
                        first += 1
                    if last - first + 1 > most:
                        text = f"F9: {last - first + 1} starts of {tenant} within {window} s, of {most:.1f}"
                        raise Violation(text)
