"""A shared state in memory: for tests, simulations, and several consumers in one process.

The same rules as the script that Valkey runs, in Python, over a clock that is passed in. Both run one suite of tests.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping

import msgspec

from postroom.fleet.protocol import PASSING, REMEMBERED, REMEMBERED_MOST, Answer, Ask, Decisions, Grant, Hint, Request
from postroom.fleet.shares import Claim, Share, share_of

_TRIED = "a replica tries it"
_MANY = 10_000
"""Tenants with a rate after which those are forgotten that have not used any of it for long."""


class _Slots(msgspec.Struct):
    """What one replica has of one tenant."""

    granted: int
    need: int
    want: int
    expires: float
    sequence: int
    since: float
    """When it began to wait for its turn, or when its last turn began."""
    had_turn: bool = False


class _Fleet(msgspec.Struct):
    """Everything under one name."""

    epoch: str = ""
    born: float = 0.0
    quiet_until: float = 0.0
    """Until then nothing is granted that was not held: leases may be out that are not remembered here."""
    epoch_expires: float = 0.0
    members: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    tidied: float = 0.0
    """When all slots were looked at last for those that have run out."""
    slots: dict[str, dict[str, _Slots]] = msgspec.field(default_factory=dict[str, dict[str, _Slots]])
    tats: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Theoretical arrival times: when a tenant with a rate has used up what it had."""
    version: int = 0
    decided: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    stamps: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    undone: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """The version in which a decision was taken back."""
    hints: dict[str, tuple[float, str]] = msgspec.field(default_factory=dict[str, tuple[float, str]])
    probes: dict[str, tuple[float, str]] = msgspec.field(default_factory=dict[str, tuple[float, str]])


class Store:
    """The rules, synchronously. Every method takes effect as a whole, as a script in Valkey does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.fleets: dict[str, _Fleet] = {}
        self.run: int = 1
        """Counts the starts of this store: one that starts again may have lost its last writes."""

    def flush(self) -> None:
        """Lose everything."""
        self.fleets.clear()

    def restart(self, *, flushed: bool = False) -> None:
        """Start again, as a server does, with or without what it knew."""
        self.run += 1
        if flushed:
            self.flush()

    def exchange(self, name: str, request: Request) -> Answer:
        """Renew, return and grant slots."""
        now, fleet = self.clock(), self._fleet(name)
        self._enter_epoch(fleet, request, now)
        self._count_members(fleet, request, now)
        grants = tuple(self._grant(fleet, request, ask, now) for ask in request.asks)
        self._forget_expired(fleet, request, now)
        hints = tuple(Hint(host, until - now, cause) for host, (until, cause) in sorted(fleet.hints.items()))
        return Answer(fleet.epoch, fleet.version, len(fleet.members), grants, hints)

    def _enter_epoch(self, fleet: _Fleet, request: Request, now: float) -> None:
        """Notice that the memory was lost, wholly or in part. Then nothing new is granted for a lease."""
        known = fleet.epoch if fleet.epoch_expires > now else ""
        if not known or not known.startswith(f"{self.run}:"):
            # A first start has nothing to wait for. After a loss, leases are out there that nothing
            # here knows of.
            fleet.quiet_until = now + request.lease if known or request.epoch else 0.0
            fleet.epoch, fleet.born = f"{self.run}:{now:.3f}", now
        elif request.epoch and request.epoch != known and now - fleet.born < request.lease:
            fleet.quiet_until = max(fleet.quiet_until, fleet.born + request.lease)
        # Long beyond any lease: an epoch that ended is a loss of memory, and costs a lease without
        # grants.
        fleet.epoch_expires = max(fleet.epoch_expires, now + 10 * request.lease)

    @staticmethod
    def _count_members(fleet: _Fleet, request: Request, now: float) -> None:
        fleet.members = {replica: until for replica, until in fleet.members.items() if until > now}
        if request.leaving:
            fleet.members.pop(request.replica, None)
        else:
            fleet.members[request.replica] = now + request.lease

    @staticmethod
    def _forget_expired(fleet: _Fleet, request: Request, now: float) -> None:
        fleet.hints = {host: hint for host, hint in fleet.hints.items() if hint[0] > now}
        fleet.probes = {host: probe for host, probe in fleet.probes.items() if probe[0] > now}
        if now < fleet.tidied + request.lease:  # not at every call: there may be thousands of tenants
            return
        fleet.tidied = now
        for tenant, slots in list(fleet.slots.items()):
            for replica in [replica for replica, other in slots.items() if other.expires <= now]:
                del slots[replica]
            if not slots:
                del fleet.slots[tenant]

    def _grant(self, fleet: _Fleet, request: Request, ask: Ask, now: float) -> Grant:
        me, slots = request.replica, fleet.slots.setdefault(ask.tenant, {})
        for replica in [replica for replica, other in slots.items() if other.expires <= now]:
            del slots[replica]
        mine = slots.get(me)
        # A request that was delayed, or sent twice: applying it would take back what a later one
        # has set.
        if mine is not None and request.sequence <= mine.sequence:
            return Grant(mine.granted, mine.granted)
        others = {replica: other for replica, other in slots.items() if replica != me}
        room = ask.cap - sum(other.granted for other in others.values())
        # What runs is kept even beyond the cap, as after a cap was lowered: handlers are not
        # cancelled for it.
        keep = max(0, min(ask.hold, max(0 if mine is None else mine.granted, room)))
        share, hope, is_turn = self._share(request, ask, others, mine, now)
        granted = keep
        if share > keep and now >= fleet.quiet_until:
            granted = min(share, max(keep, room))
        if granted or ask.need:
            since, had_turn = (now, False) if mine is None else (mine.since, mine.had_turn)
            if is_turn and granted >= share and not (had_turn and _is_same_period(since, now, request.lease)):
                since, had_turn = now, True
            expires = now + request.lease
            slots[me] = _Slots(granted, ask.need, ask.want, expires, request.sequence, since, had_turn)
        else:
            slots.pop(me, None)
        if not slots:
            del fleet.slots[ask.tenant]
        tokens = self._take(fleet, request, ask, 1 + sum(other.need > 0 for other in others.values()), now)
        contended = any(other.need > other.granted for other in others.values())
        return Grant(granted, hope, contended, tokens)

    @staticmethod
    def _share(request: Request, ask: Ask, others: Mapping[str, _Slots], mine: _Slots | None, now: float) -> Share:
        """Return a replica's share. A turn lasts for the period in which it began; then the longest wait is first."""
        me = request.replica
        claims = {replica: Claim(other.need, other.want, other.granted) for replica, other in others.items()}
        claims[me] = Claim(ask.need, max(ask.need, ask.want), ask.hold)

        def place(replica: str) -> tuple[bool, float, str]:
            slots = mine if replica == me else others[replica]
            if slots is None:
                return (True, now, replica)
            has_turn = slots.had_turn and _is_same_period(slots.since, now, request.lease)
            return (not has_turn, slots.since, replica)

        return share_of(me, {replica: claims[replica] for replica in sorted(claims, key=place)}, ask.cap)

    @staticmethod
    def _take(fleet: _Fleet, request: Request, ask: Ask, hungry: int, now: float) -> int:
        """Take starts for one tick out of a tenant's rate (GCRA): what is there, divided by those who need some."""
        if not ask.rate or not ask.tokens:
            return 0
        interval = 1.0 / ask.rate
        tat = max(fleet.tats.get(ask.tenant, now), now)
        there = math.floor((now + max(interval, 2 * request.tick) - tat) / interval + 1e-6)
        taken = max(0, min(ask.tokens, there, math.ceil(there / hungry)))
        # Not at every call: going through all of them takes time in proportion.
        if len(fleet.tats) > _MANY:
            fleet.tats = {tenant: until for tenant, until in fleet.tats.items() if until > now}
        if taken:
            fleet.tats[ask.tenant] = tat + taken * interval
        return taken

    def decide(self, name: str, changes: Mapping[str, str | None]) -> int:
        """Write decisions down."""
        fleet, now = self._fleet(name), self.clock()
        fleet.version = max(fleet.version + 1, int(now * 1_000))
        for field, value in changes.items():
            self._write(fleet, field, value, fleet.version)
        self._forget_undone(fleet, now)
        return fleet.version

    @staticmethod
    def _write(fleet: _Fleet, field: str, value: str | None, version: int) -> None:
        for known in (fleet.decided, fleet.stamps, fleet.undone):
            known.pop(field, None)
        if value is not None:
            fleet.decided[field], fleet.stamps[field] = value, version
        elif not field.startswith(PASSING):
            fleet.undone[field] = version

    @staticmethod
    def _forget_undone(fleet: _Fleet, now: float) -> None:
        latest = sorted(fleet.undone.items(), key=lambda undone: (undone[1], undone[0]))[-REMEMBERED_MOST:]
        fleet.undone = {field: stamp for field, stamp in latest if stamp > (now - REMEMBERED) * 1_000}

    def decisions(self, name: str) -> Decisions:
        """Return all decisions."""
        fleet = self._fleet(name)
        is_known = fleet.epoch_expires > self.clock() and fleet.epoch.startswith(f"{self.run}:")
        epoch = fleet.epoch if is_known else ""
        return Decisions(fleet.version, dict(fleet.decided), dict(fleet.stamps), dict(fleet.undone), epoch)

    def restore(self, name: str, decisions: Decisions) -> int:
        """Write down again what is not known here, or known as it was before."""
        fleet, now = self._fleet(name), self.clock()
        before = dict(fleet.stamps)
        for field, stamp in decisions.undone.items():
            if stamp >= fleet.stamps.get(field, 0) and stamp > fleet.undone.get(field, -1):
                self._write(fleet, field, None, stamp)
        for field, value in decisions.fields.items():
            stamp = decisions.stamps.get(field, 0)
            if stamp > fleet.stamps.get(field, -1) and stamp > fleet.undone.get(field, -1):
                self._write(fleet, field, value, stamp)
        self._forget_undone(fleet, now)
        if fleet.stamps != before or fleet.version < decisions.version:
            fleet.version = max(fleet.version + 1, decisions.version + 1, int(now * 1_000))
        return fleet.version

    def report(self, name: str, host: str, cause: str | None, seconds: float) -> None:
        """Note that a host is down, or back."""
        fleet = self._fleet(name)
        if cause is None:
            fleet.probes.pop(host, None)
            fleet.hints.pop(host, None)
        else:
            now = self.clock()
            fleet.hints[host] = (now + seconds, cause)
            # Half of it: by then one replica may try, before the hint lapses and all of them would.
            fleet.probes[host] = (now + seconds / 2, "")

    def claim_probe(self, name: str, host: str, replica: str, seconds: float) -> bool:
        """Let one replica try a host."""
        fleet, now = self._fleet(name), self.clock()
        until, owner = fleet.probes.get(host, (0.0, ""))
        if until > now and owner != replica:  # a failed try belongs to no replica: every one waits for a while
            return False
        fleet.probes[host] = (now + seconds, replica)
        ends, cause = fleet.hints.get(host, (0.0, _TRIED))
        fleet.hints[host] = (max(ends, now + seconds), cause)
        return True

    def replicas(self, name: str) -> list[str]:
        """Return the replicas that are alive."""
        now = self.clock()
        return [replica for replica, until in self._fleet(name).members.items() if until > now]

    def usage(self, name: str) -> dict[str, tuple[int, int]]:
        """Return the slots in use, and the replicas that hold them, by tenant."""
        now = self.clock()
        live = {
            tenant: [each.granted for each in slots.values() if each.expires > now and each.granted]
            for tenant, slots in self._fleet(name).slots.items()
        }
        return {tenant: (sum(each), len(each)) for tenant, each in live.items() if each}

    def _fleet(self, name: str) -> _Fleet:
        return self.fleets.setdefault(name, _Fleet())


def _is_same_period(first: float, second: float, lease: float) -> bool:
    """Whether two times are in the same of the periods, each as long as a lease, after which turns end."""
    return first // lease == second // lease


class MemoryState:
    """A shared state in this process. Pass one and the same to every ``Fleet`` that should meet there.

    Args:
        clock: the time in seconds; by default the monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.store: Store = Store(clock)

    async def exchange(self, fleet: str, request: Request) -> Answer:
        """See ``SharedState``."""
        return self.store.exchange(fleet, request)

    async def decide(self, fleet: str, changes: Mapping[str, str | None]) -> int:
        """See ``SharedState``."""
        return self.store.decide(fleet, changes)

    async def decisions(self, fleet: str) -> Decisions:
        """See ``SharedState``."""
        return self.store.decisions(fleet)

    async def restore(self, fleet: str, decisions: Decisions) -> int:
        """See ``SharedState``."""
        return self.store.restore(fleet, decisions)

    async def report(self, fleet: str, host: str, cause: str | None, seconds: float) -> None:
        """See ``SharedState``."""
        self.store.report(fleet, host, cause, seconds)

    async def claim_probe(self, fleet: str, host: str, replica: str, seconds: float) -> bool:
        """See ``SharedState``."""
        return self.store.claim_probe(fleet, host, replica, seconds)

    async def replicas(self, fleet: str) -> Collection[str]:
        """See ``SharedState``."""
        return self.store.replicas(fleet)

    async def usage(self, fleet: str) -> Mapping[str, tuple[int, int]]:
        """See ``SharedState``."""
        return self.store.usage(fleet)

    async def aclose(self) -> None:
        """Do nothing: it may have other users."""
