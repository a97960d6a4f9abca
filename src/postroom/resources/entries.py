"""The nouns of the pool: entries (resources and their lives), demands (keys that wait), waiters (calls that wait)."""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from postroom.resources.identity import Identity


class EntryState(StrEnum):
    """Where an entry is in its life."""

    OPENING = "opening"
    """Its provider is being entered."""
    READY = "ready"
    """It may be leased."""
    CHECKING = "checking"
    """Ready, but idle for long: its health check runs, and it is not leased."""
    DRAINING = "draining"
    """No longer leased; it closes behind its last lease."""
    CLOSING = "closing"
    """Its provider is being left."""
    UNWINDING = "unwinding"
    """Its provider failed or was called off while it was entered, and has not ended yet."""


class Reason(StrEnum):
    """Why an entry was closed."""

    IDLE = "idle"
    AGE = "age"
    CAPACITY = "capacity"
    INVALIDATED = "invalidated"
    SUSPECT = "suspect"
    UNHEALTHY = "unhealthy"
    SHUTDOWN = "shutdown"
    CALLED_OFF = "called off"
    """It opened after its open had been given up."""
    CANCELLED = "cancelled"
    """Its owner task was cancelled from outside, as the end of ``asyncio.run`` does."""


class Entry:
    """One resource, from the decision to open it until its close has finished. Holds budget all that time."""

    __slots__ = (
        "admitted", "checked_at", "close_error", "context", "doubtful", "expires_at", "host", "host_limit", "identity",
        "idle_since", "key",
        "leases", "opened", "pinned",
        "probe", "reason", "resource", "since", "stamp", "started_at", "state", "stop", "task", "troubled", "verify",
        "weight",
    )  # fmt: skip

    def __init__(self, demand: "Demand", now: float) -> None:
        self.identity: Identity = demand.identity
        self.key: Hashable = demand.key
        self.context: Any = demand.context
        self.host: Hashable = demand.host
        self.host_limit: int | None = demand.host_limit
        self.weight: int = demand.weight
        self.admitted: bool = False
        """It holds budget of its host."""
        self.troubled: bool = demand.troubled
        self.state: EntryState = EntryState.OPENING
        self.reason: Reason | None = None
        self.resource: Any = None
        self.stamp: Identity | None = None
        """The context that the resource belongs to: set with the resource, compared when it is handed out (I5)."""
        self.opened: bool = False
        self.verify: bool = False
        """It has yet to pass a check before it is leased, as the one before it broke."""
        self.probe: bool = False
        self.leases: int = 0
        self.pinned: bool = False
        """A health check uses it."""
        self.started_at: float = now
        self.since: float = now
        """When it last became ready: the longest tenure gives way first."""
        self.idle_since: float = now
        self.checked_at: float = now
        self.doubtful: bool = False
        """A use of it, or several of its host, timed out: check it before the next lease."""
        self.expires_at: float = math.inf
        self.close_error: BaseException | None = None
        self.task: Any = None
        self.stop: Any = None

    @property
    def busy(self) -> bool:
        """Whether it is in use."""
        return self.leases > 0 or self.pinned


class Stage(StrEnum):
    """What a demand waits for."""

    QUEUED = "queued"
    """Its place in the line: budget, and a free opening."""
    PARKED = "parked"
    """Its host: the breaker admits no more opens for now."""
    AT_GATE = "at gate"
    """The budget of its host."""
    OPENING = "opening"
    CHECKING = "checking"


class Waiter:
    """One ``acquire()`` that waits. ``future`` gets a lease, or the error to raise."""

    __slots__ = ("context", "demand", "future")

    def __init__(self, context: Any, future: Any) -> None:
        self.context: Any = context
        self.future: Any = future
        self.demand: Demand | None = None


class Demand:
    """One key that is wanted and not there. However many calls wait for it, it has one place in the line (I9)."""

    __slots__ = (
        "admitted", "context", "host", "host_limit", "identity", "key", "overtaken", "replaces", "sequence", "since",
        "stage", "troubled", "waiters", "weight",
    )  # fmt: skip

    def __init__(self, request: "LeaseRequest", now: float) -> None:
        self.identity: Identity = request.identity
        self.key: Hashable = request.key
        self.context: Any = request.context
        self.weight: int = request.weight
        self.host: Hashable = request.host
        self.host_limit: int | None = request.host_limit
        self.admitted: bool = False
        """It has taken its weight of the host's budget, and opens nothing yet."""
        self.since: float = now
        self.waiters: dict[Waiter, None] = {}
        self.stage: Stage = Stage.QUEUED
        self.replaces: bool = False
        """No lease waits: it makes the successor of a busy entry that is too old."""
        self.troubled: bool = False
        """Its last open failed: it may not take all the openings."""
        self.overtaken: int = 0
        self.sequence: int = 0


class LeaseRequest(msgspec.Struct, frozen=True):
    """What an ``acquire()`` asks for."""

    identity: Identity
    key: Hashable
    context: Any
    weight: int
    host: Hashable
    host_limit: int | None = None
    """What may be open on this host at once; None for no limit."""


class Table:
    """Every entry of a pool, by what can be done with it. Keeps the groups and the sums consistent."""

    def __init__(self) -> None:
        self.entries: dict[Entry, None] = {}
        self.ready: dict[Identity, Entry] = {}
        """What a lease may take at once. The hit path looks only here."""
        self.idle: OrderedDict[Entry, None] = OrderedDict()
        """Ready (or being checked) without a lease, the least recently used first."""
        self.revivable: dict[Identity, Entry] = {}
        """Draining only because the budget is needed: may become ready again."""
        self.counts: dict[EntryState, int] = dict.fromkeys(EntryState, 0)
        self.returning: dict[Entry, float] = {}
        """Budget on its way back: entries while their provider is being left, and since when."""
        self.draining_weight: int = 0
        """Budget that comes back behind the last lease: revivable entries."""
        self.troubled_opens: int = 0

    @property
    def opens(self) -> int:
        """Providers being entered, those that were called off included."""
        return self.counts[EntryState.OPENING] + self.counts[EntryState.UNWINDING]

    @property
    def live(self) -> int:
        """Resources that were opened and are not yet closed."""
        return sum(entry.opened for entry in self.entries)

    def add(self, entry: Entry) -> None:
        """Add a new entry, in state OPENING."""
        self.entries[entry] = None
        self.counts[entry.state] += 1
        self.troubled_opens += entry.troubled

    def coming(self, patience: float, now: float) -> tuple[int, float]:
        """Return the weight of the closes that are no older than ``patience``, and when the first of them will be.

        Older ones hang: they are not worth waiting for while there is something else to evict.
        """
        recent = [(begun + patience, entry.weight) for entry, begun in self.returning.items() if begun + patience > now]
        return sum(weight for _, weight in recent), min((until for until, _ in recent), default=math.inf)

    def move(self, entry: Entry, state: EntryState, now: float) -> None:
        """Change the state of an entry and keep the groups right."""
        before, entry.state = entry.state, state
        self.counts[before] -= 1
        self.counts[state] += 1
        if before is EntryState.READY:
            del self.ready[entry.identity]
        if state in {EntryState.DRAINING, EntryState.CLOSING}:
            self.idle.pop(entry, None)
            self.unrevive(entry)
        if state is EntryState.READY:
            self.ready[entry.identity] = entry
            self.unrevive(entry)
        if state in _RETURNING:
            self.returning.setdefault(entry, now)
        if before in _ENTERING and state not in _ENTERING:
            self.troubled_opens -= entry.troubled

    def remove(self, entry: Entry) -> None:
        """Remove an entry that has ended."""
        self.entries.pop(entry)
        self.counts[entry.state] -= 1
        self.returning.pop(entry, None)
        self.troubled_opens -= entry.troubled and entry.state in _ENTERING

    def make_revivable(self, entry: Entry) -> None:
        """Note that a draining entry may become ready again."""
        self.revivable[entry.identity] = entry
        self.draining_weight += entry.weight

    def unrevive(self, entry: Entry) -> None:
        """Note that an entry stays draining, or no longer drains."""
        if self.revivable.get(entry.identity) is entry:
            del self.revivable[entry.identity]
            self.draining_weight -= entry.weight

    def evictable(self) -> Iterator[Entry]:
        """Yield the ready entries without a lease, the least recently used first."""
        return (entry for entry in self.idle if entry.state is EntryState.READY)

    def evictable_weight(self, enough: int) -> int:
        """Return the budget that evicting would bring, counted until it is enough."""
        weight = 0
        for entry in self.evictable():
            weight += entry.weight
            if weight >= enough:
                break
        return weight

    def busy(self) -> Iterator[Entry]:
        """Yield the ready entries with a lease."""
        return (entry for entry in self.ready.values() if entry.leases)


_ENTERING = frozenset({EntryState.OPENING, EntryState.UNWINDING})
_RETURNING = frozenset({EntryState.CLOSING, EntryState.UNWINDING})
