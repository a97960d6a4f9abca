"""What one replica holds of its fleet: what to ask for, and what is granted. Pure.

No await, no clock, no I/O: every method takes the time of the replica's own monotonic clock. The scheduler asks
``Ledger.allowed`` with every decision about a tenant, and never waits.

A replica starts a handler only under a slot that is unexpired by its own clock: counted from before the request left,
less a margin for clocks that do not run alike. While a request is out it starts nothing beyond what it said that it
keeps (``hold``), because the store may have given the rest away. So no answer has to arrive for the cap to hold.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Final, NamedTuple, cast

import msgspec

from postroom.fleet.names import name_or_none
from postroom.fleet.options import Fleet
from postroom.fleet.protocol import Answer, Ask, Grant, Request
from postroom.scheduling import Bound
from postroom.scheduling.limits import Chosen

UNLIMITED: Final = 1_000_000
"""The cap of a tenant that has none."""
MARGIN: Final = 0.05
"""The part of a lease that is not used: clocks may differ by so much in speed."""
_GAP: Final = 20
"""Exchanges between two ticks, at most: new tenants that come within one twentieth of a tick go together."""
_RESTLESS: Final = 4
"""A tick is so much shorter while slots are on their way from one replica to another."""
_LINGER: Final = 2
"""Ticks for which an idle tenant's slots stay here while no other replica needs them."""
_NEVER: Final = float("inf")
_PAST: Final = float("-inf")
_PATIENCE: Final = 3
"""An exchange that has had no answer for this part of a lease is given up."""


class Demand(NamedTuple):
    """What a tenant has here now."""

    running: int
    waiting: int
    local: int
    """Handlers of it that this replica may run, whatever the fleet says."""


class Entry(Bound):
    """One tenant, as far as it has work here. ``limit`` is never more than what is granted, nor than the share."""

    __slots__ = (
        "asked",
        "contended",
        "fallback",
        "granted",
        "name",
        "promised",
        "share",
        "tokens",
        "tokens_until",
    )

    def __init__(self, name: str | None) -> None:
        super().__init__()
        self.name: str | None = name
        """None where it has no name that other replicas would know."""
        self.granted: int = 0
        self.share: int = 0
        self.fallback: int | None = 0
        """Handlers that may run when the store is gone; None for any number."""
        self.promised: int = UNLIMITED
        """Handlers that may run while a request is out that said so."""
        self.contended: bool = False
        self.asked: bool = False
        self.tokens: int = 0
        self.tokens_until: float = float("-inf")


class Sent(msgspec.Struct, frozen=True):
    """A request that is out, and the tenants that it is about."""

    request: Request
    at: float
    tenants: tuple[Hashable, ...]
    full: bool


class Ledger:
    """The slots of one replica.

    Args:
        fleet: the options.
        replica: a name that no other replica has, and no later start of this one.
        now: the time of the loop.
        on_newcomer: called, at once and synchronously, with a tenant that is to be asked for soon.
    """

    def __init__(self, fleet: Fleet, replica: str, now: float, on_newcomer: Callable[[Hashable], object]) -> None:
        self.fleet = fleet
        self.replica = replica
        self.replicas: int = 0
        """Replicas that the store last counted; 0 before it was ever reached."""
        self.epoch: str = ""
        self.sent: Sent | None = None
        self.overruns: int = 0
        """Handlers so far that went on after their slots were lost."""
        self.exchanges: int = 0
        self.failures: int = 0
        """Exchanges that failed in a row."""
        self._entries: dict[Hashable, Entry] = {}
        self._newcomers: dict[Hashable, None] = {}
        self._on_newcomer = on_newcomer
        self._limits: dict[Hashable, int] = {}
        self._rates: dict[Hashable, float] = {}
        self._sequence = 0
        self._length = fleet.lease * (1 - MARGIN)
        self._contact = now
        self._careful_until = float("-inf")
        """Until when slots that were claimed by the fallback start nothing: others may not have claimed theirs yet."""
        self._last = float("-inf")
        self._last_full = float("-inf")
        self._looked = float("-inf")
        self._caps = Chosen("Fleet(overrides=...)", fleet.per_tenant, fleet.overrides, whole=True)

    # -- what the scheduler asks --------------------------------------------------------------------------------

    def allowed(self, tenant: Hashable, now: float) -> int | None:
        """Return how many handlers of a tenant may run here now; None for as many as the replica's own limits allow."""
        return self.look(tenant, now)[0]

    def look(self, tenant: Hashable, now: float) -> tuple[int | None, Entry]:
        """Return how many handlers may run, as ``allowed``, and the entry: its limit stays the same until it ends."""
        entry = self._entries.get(tenant)
        if entry is None:
            # Nothing is granted yet, but the tenant is asked for within a twentieth of a tick.
            entry = self._meet(tenant)
        entry.idle = 0  # it is asked about what has work
        if now < entry.expires:
            return entry.limit, entry
        if not self.is_gone(now):
            return 0, entry
        # Only once every slot has run out: before that, another replica may hold what the fallback
        # would use.
        fallback = entry.fallback
        return (fallback if self.sent is None or fallback is None else min(fallback, entry.promised)), entry

    @property
    def gone_at(self) -> float:
        """The time at which every slot has run out, if the store is not reached before."""
        return self._contact + self._length

    def is_gone(self, now: float) -> bool:
        """Whether the store was not reached for so long that every slot has run out."""
        return now >= self._contact + self._length

    def take(self, tenant: Hashable, now: float) -> bool:
        """Take one of the starts that a tenant with a rate was granted. Returns whether there was one."""
        entry = self._entries.get(tenant)
        if entry is None or entry.tokens < 1 or now >= entry.tokens_until:
            return False
        entry.tokens -= 1
        return True

    def give_back(self, tenant: Hashable) -> None:
        """Give a start back that was none. It lapses when it would have if it had not been taken."""
        if (entry := self._entries.get(tenant)) is not None:
            entry.tokens += 1

    def _meet(self, tenant: Hashable) -> Entry:
        entry = self._entries[tenant] = Entry(name_or_none(tenant))
        self._set_limits(tenant, entry)
        self._newcomers[tenant] = None
        self._on_newcomer(tenant)
        return entry

    def _drop(self, tenant: Hashable) -> None:
        """Forget a tenant. Its lane may still have the entry: it looks again."""
        self._entries.pop(tenant).expires = _PAST

    def _set_limits(self, tenant: Hashable, entry: Entry) -> None:
        """Set what holds without the store: its fallback, and everything for a tenant that has no limit or no name."""
        self._set_fallback(tenant, entry)
        if self._is_on_its_own(tenant, entry):
            entry.limit, entry.expires = self._part_of(tenant), _NEVER
            entry.granted = entry.share = 0
            entry.contended = False
        # It has a limit from now on, and no slot under it.
        elif entry.expires == _NEVER:
            entry.limit, entry.expires = 0, _PAST

    def _is_on_its_own(self, tenant: Hashable, entry: Entry) -> bool:
        return entry.name is None or (self.cap_of(tenant) is None and self.rate_of(tenant) is None)

    # -- limits -------------------------------------------------------------------------------------------------

    def cap_of(self, tenant: Hashable) -> int | None:
        """Return a tenant's slots over the whole fleet; None where it has no limit."""
        own = self._limits.get(tenant)
        if own is not None:
            return own
        chosen = cast("int | None", self._caps(tenant))
        return None if chosen is None else min(chosen, UNLIMITED)  # the store cannot count up to just any number

    def rate_of(self, tenant: Hashable) -> float | None:
        """Return a tenant's starts per second over the whole fleet; None where it has no limit."""
        return self._rates.get(tenant, self.fleet.rate)

    def decide(self, tenant: Hashable, *, concurrency: int | None, rate: float | None) -> None:
        """Take over an operator's limits for a tenant; None for what the options say."""
        for known, value in ((self._limits, concurrency), (self._rates, rate)):
            if value is None:
                cast("dict[Hashable, float]", known).pop(tenant, None)
            else:
                cast("dict[Hashable, float]", known)[tenant] = value
        entry = self._entries.get(tenant)
        if entry is not None:
            self._set_limits(tenant, entry)
            self._newcomers[tenant] = None
            self._on_newcomer(tenant)

    def _part_of(self, tenant: Hashable) -> int:
        """Return this replica's part of a limit, without asking."""
        cap = self.cap_of(tenant)
        if cap is None:
            return UNLIMITED
        # One, where the store was never reached: how many replicas there are is not known, and one
        # each is the least that still works.
        return max(1, cap // self.replicas) if self.replicas else 1

    def _set_fallback(self, tenant: Hashable, entry: Entry) -> None:
        if self.fleet.fallback == "share":
            entry.fallback = self._part_of(tenant)
        else:
            entry.fallback = 0 if self.fleet.fallback == "stop" and self.cap_of(tenant) is not None else None

    # -- asking -------------------------------------------------------------------------------------------------

    def due(self, now: float) -> float:
        """Return when to exchange next, or to look whether there is something to say."""
        # Doubles, but at least three tries fall into a lease: a short loss of the store must not
        # end it.
        if self.failures:
            pause = min(self.fleet.tick * 2.0 ** min(self.failures - 1, 10), self.fleet.lease / 3)
            return self._last + pause
        # Newcomers wait for it: each exchange costs the store a call, and tenants arrive in crowds.
        gap = self._last + self.fleet.tick / _GAP
        if self._newcomers:
            return max(now, gap)
        full = self._last_full + self.fleet.tick
        if self._is_restless():
            full = min(full, max(self._last, self._looked) + self.fleet.tick / _RESTLESS)
        return max(full, gap)

    def _is_restless(self) -> bool:
        """Whether slots should change hands soon: one gives some back, or waits for some."""
        return any(entry.contended or entry.granted < entry.share for entry in self._entries.values())

    @property
    def patience(self) -> float:
        """Seconds after which an exchange without an answer is given up."""
        return self.fleet.lease / _PATIENCE

    def ask(self, here: Iterable[Hashable], demand: Callable[[Hashable], Demand], now: float) -> Sent | None:
        """Make the next request; None where it is too soon for one. It is out until ``answered`` or ``failed``."""
        full = bool(self.failures) or now >= self._last_full + self.fleet.tick
        wanted = self._everyone(here) if full else self._in_a_hurry(demand)
        self._looked = now
        if not full and not wanted:
            return None
        asks: list[Ask] = []
        tenants: list[Hashable] = []
        for tenant in wanted:
            entry, has = self._entries[tenant], demand(tenant)
            self._set_limits(tenant, entry)
            entry.idle = 0 if has.running + has.waiting else entry.idle + full
            own = self._is_on_its_own(tenant, entry)
            # Forgotten only when the store has nothing of it either; otherwise it is given back
            # first.
            if entry.idle > _LINGER and (own or (self.is_gone(now) and now >= entry.expires)):
                self._drop(tenant)
            elif not own:
                asks.append(self._ask_for(tenant, entry, has, now))
                tenants.append(tenant)
        if not full and not asks:
            self._newcomers.clear()
            return None
        return self._send(asks, tenants, now, full=full)

    def leave(self, now: float) -> Sent:
        """Make the last request: everything is given back."""
        asks: list[Ask] = []
        for entry in self._entries.values():
            # First here: nothing may start under a slot that the last request gives away.
            entry.granted = entry.limit = 0
            if entry.name is not None and entry.asked:
                asks.append(Ask(entry.name, 1, 0, 0, 0))
        return self._send(asks, [], now, full=True, leaving=True)

    def _everyone(self, here: Iterable[Hashable]) -> list[Hashable]:
        for tenant in here:
            if tenant not in self._entries:
                self._meet(tenant)
        return list(self._entries)

    def _in_a_hurry(self, demand: Callable[[Hashable], Demand]) -> list[Hashable]:
        """Return the tenants for which the next tick is too late."""
        hurry = dict(self._newcomers)
        for tenant, entry in self._entries.items():
            if entry.granted < entry.share:
                hurry[tenant] = None
            elif entry.contended and entry.granted:
                running, waiting, _local = demand(tenant)
                if running < entry.granted and (entry.granted > entry.share or running + waiting < entry.granted):
                    hurry[tenant] = None
        return list(hurry)

    def _ask_for(self, tenant: Hashable, entry: Entry, demand: Demand, now: float) -> Ask:
        running, waiting, local = demand
        chosen = self.cap_of(tenant)
        cap = UNLIMITED if chosen is None else chosen
        need = min(running + waiting, local, cap)
        keeps = need > 0 or (entry.idle <= _LINGER and not entry.contended)
        want = min(local, cap) if keeps else 0
        valid = now < entry.expires
        # Only while others need some: slots that idle here for a moment save an exchange when work
        # comes.
        most = need if valid and entry.contended else want
        hold = max(running, min(self._usable(entry, running, local, now), most))
        if valid or not self.is_gone(now):  # what runs without a slot is no claim
            hold = min(hold, entry.granted if valid else 0)
        entry.promised = hold
        if not valid and entry.granted:
            # They go on, since a handler is not cancelled for its slot; the operator sees how many.
            self.overruns += running
            entry.granted = 0
        elif valid:
            entry.limit = min(entry.limit, hold)  # the store may give the rest away, whether or not an answer comes
            entry.granted = min(entry.granted, hold)
        rate = self.rate_of(tenant) or 0.0
        tokens = waiting if rate and (entry.tokens < 1 or now >= entry.tokens_until - self.fleet.tick) else 0
        return Ask(entry.name or "", cap, hold, need, want, rate, tokens)

    def _usable(self, entry: Entry, running: int, local: int, now: float) -> int:
        """Return how many handlers this replica may run until it has an answer."""
        if now < entry.expires:
            return entry.limit
        if not self.is_gone(now):
            return running
        return local if entry.fallback is None else entry.fallback

    def _send(self, asks: list[Ask], tenants: list[Hashable], now: float, *, full: bool, leaving: bool = False) -> Sent:
        self._newcomers.clear()
        self._sequence += 1
        fleet = self.fleet
        request = Request(self.replica, self._sequence, self.epoch, fleet.lease, fleet.tick, tuple(asks), leaving)
        for tenant in tenants:
            self._entries[tenant].asked = True
        self._last = now
        if full:
            self._last_full = now
        self.sent = Sent(request, now, tuple(tenants), full)
        return self.sent

    # -- hearing ------------------------------------------------------------------------------------------------

    def answered(self, sent: Sent, answer: Answer, now: float) -> list[Hashable]:
        """Take an answer in. Returns the tenants that may run more than before."""
        if sent is not self.sent:
            return []  # it was given up, and what it granted may have changed since
        self.sent = None
        self.failures = 0
        self.exchanges += 1
        was_gone = self.is_gone(now)
        if sent.request.epoch not in {"", answer.epoch} and self.is_gone(sent.at):
            # A store that forgot everything believes what it is told, and this replica, which was cut off, told it
            # what runs by the fallback. Within two ticks it has heard of the slots of all others.
            self._careful_until = now + 2 * self.fleet.tick
        # From when it was sent: the lease began at the store after that, and before the answer
        # came.
        self._contact = sent.at
        self.epoch = answer.epoch
        if answer.replicas != self.replicas:
            self.replicas = answer.replicas
            self._replicas_changed()
        more: list[Hashable] = []
        for tenant, ask, grant in zip(sent.tenants, sent.request.asks, answer.grants, strict=True):
            if self._granted(tenant, ask, grant, sent.at, now) or was_gone:
                more.append(tenant)
        return more

    def _granted(self, tenant: Hashable, ask: Ask, grant: Grant, sent_at: float, now: float) -> bool:
        entry = self._entries[tenant]
        if not ask.need and not grant.slots and tenant not in self._newcomers:
            self._drop(tenant)
            return True  # its lane may have come back meanwhile: then it is met again
        before = entry.limit if now < entry.expires else 0
        entry.granted, entry.share, entry.contended = grant.slots, grant.share, grant.contended
        # More than the share is on its way to another replica: it is held until handlers end, and
        # not used again.
        entry.limit = min(grant.slots, grant.share) if now >= self._careful_until else 0
        # By our clock from before the request left, so that it ends here before it ends at the
        # store.
        entry.expires = sent_at + self._length
        if ask.tokens:
            entry.tokens = grant.tokens  # those that were not used lapse
            # Two ticks, so that the next answer can come late without a pause in between.
            entry.tokens_until = sent_at + 2 * self.fleet.tick
        return entry.limit > before or grant.tokens > 0

    def _replicas_changed(self) -> None:
        for tenant, entry in self._entries.items():
            self._set_limits(tenant, entry)

    def failed(self, sent: Sent) -> None:
        """Note that a request has had no answer. It may have had its effect, or have it later."""
        if sent is self.sent:
            self.sent = None
            self.failures += 1

    # -- a look -------------------------------------------------------------------------------------------------

    def entry(self, tenant: Hashable) -> Entry | None:
        """Return what is known of a tenant that has work here."""
        return self._entries.get(tenant)

    def starved(self, now: float) -> list[Hashable]:
        """Return the tenants that may start nothing here until a slot is given back, here or elsewhere."""
        return [tenant for tenant, entry in self._entries.items() if not entry.limit and now < entry.expires < _NEVER]

    def entries(self) -> Mapping[Hashable, Entry]:
        """Return every tenant that has work here, or had it a moment ago."""
        return self._entries
