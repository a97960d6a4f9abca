"""A consumer's membership in its fleet: the one task that talks to the store, a tick at a time.

Nothing here is awaited by a message. The scheduler looks at what ``Member.bounds`` returns, synchronously; this task
keeps it current.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final, Protocol

from postroom.display import counted, display_key
from postroom.errors import ConfigurationError, in_words
from postroom.events import FleetReachable, FleetUnreachable, Observers
from postroom.fleet.decisions import Verdict, field_of, verdicts, written
from postroom.fleet.hints import MOST, Hints
from postroom.fleet.ledger import Demand, Entry, Ledger, Sent
from postroom.fleet.names import Unnamable, name_of, name_or_none, shown
from postroom.fleet.options import Fleet
from postroom.fleet.orders import Orders, Report
from postroom.fleet.protocol import REMEMBERED, Answer, Decisions
from postroom.fleet.statistics import FleetStatistics, TenantSlots
from postroom.fleet.valkey import ValkeyState
from postroom.log_fields import Log, Step, about
from postroom.outages import Kind, cause_of
from postroom.scheduling import Pace
from postroom.tasks import Tasks, goes_on, has_to_leave

_log = Log("postroom.fleet", Step.FLEET)

_STORES: Final = Kind("The store of a fleet cannot be reached", "fleet", _log, Step.FLEET)

_OPENING: Final = 2.0
"""Seconds that the first exchange may take; the consumer starts without the store if it takes longer."""
_CLOSING: Final = 1.0
"""Seconds that giving everything back may take at a stop; what is not given back runs out with its lease."""
_NONE: Final = Verdict()
Pending = dict[tuple[Hashable, str], tuple[Any, str | None]]
"""Decisions, with their reasons, by tenant and the part of what is decided about it."""


class Crew(Protocol):
    """The consumer, as far as its fleet has to know it."""

    def here(self) -> Iterable[Hashable]:
        """Return the tenants that have something here."""
        ...

    def demand(self, tenant: Hashable) -> Demand:
        """Return what a tenant has here."""
        ...

    def offer(self, tenants: Iterable[Hashable]) -> None:
        """Look again whether messages of some tenants may start."""
        ...

    def starve(self, tenants: Iterable[Hashable], now: float) -> None:
        """Let messages of tenants without a slot here make room for those of others; of all others no longer."""
        ...

    def meter(self, tenant: Hashable) -> None:
        """Have a tenant's starts metered, before any of it can start."""
        ...

    def overrule(self, rulings: Mapping[Hashable, Verdict], *, complete: bool) -> None:
        """Take over what was decided in the fleet; ``complete`` says that nothing else is."""
        ...

    async def carry_out(self, what: str, name: str) -> str | None:
        """Carry out what another replica ordered for the tenant of this name."""
        ...


class Member:
    """One replica of a fleet, from the consumer's start to its stop.

    Args:
        fleet: the options.
        name: under which name the replicas meet.
        tasks: where the task of the membership is started.
        crew: the consumer.
        hints: what replicas tell each other of hosts.
        observers: told when the store is lost and when it is back.
        pending: decisions made here that the store does not have yet.
    """

    def __init__(
        self, fleet: Fleet, name: str, tasks: Tasks, crew: Crew, *, hints: Hints, observers: Observers, pending: Pending
    ) -> None:
        self.fleet = fleet
        self.name: str = fleet.name or name
        self.pending = pending
        self._state = fleet.state
        self._tasks = tasks
        self._crew = crew
        self._observers = observers
        self._time = tasks.time
        self.ledger: Ledger = Ledger(fleet, secrets.token_hex(8), self._time(), self._met)
        self.bounds: LedgerBounds = LedgerBounds(self.ledger, self._time)
        """What the scheduler looks at."""
        self.hints = hints
        self._orders = Orders(self.name, self.ledger.replica, self._state, crew, tasks)
        self._wake = asyncio.Event()
        self._known = Decisions(0, {})
        self._read_in, self._read_at = "", 0.0
        self._rulings: dict[str, Verdict] = {}
        self._odd: dict[str, str] = {}
        """Decisions that cannot be used, as they are in the store."""
        self._met_rulings: dict[Hashable, Verdict] = {}
        self._unnamed: set[type] = set()
        self._task: asyncio.Task[None] | None = None
        self._holds = False
        self._was_gone = False
        self._failed = 0
        self._seconds = 0.0
        self._reached: float | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Meet the others and learn what was decided, if the store answers soon. Never raises because it does not."""
        self._hold(holds=True)
        sent = self.ledger.ask((), self._crew.demand, self._time())
        if sent is not None:
            await self._exchange(sent, _OPENING)

    def begin(self) -> None:
        """Start to exchange."""
        self._task = self._tasks.spawn(self._run(), "postroom-fleet")

    async def close(self) -> None:
        """Give everything back at once. What cannot be given back runs out with its lease."""
        task = asyncio.current_task()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CLOSING)
        # A store that does not answer would only delay the stop.
        if self._holds and self.ledger.exchanges and not self.ledger.failures:
            sent = self.ledger.leave(self._time())
            try:
                async with asyncio.timeout(_CLOSING):
                    await self._state.exchange(self.name, sent.request)
            except BaseException as error:  # whatever a client raises: slots run out by themselves
                if has_to_leave(error, task):
                    raise
                _log.info("Fleet %s: slots were not returned, they run out: %s", self.name, in_words(error))
        try:
            # Also after a failure: a connection that stays open keeps its socket until the process
            # ends.
            self._hold(holds=False)
            await self._state.aclose()
        except BaseException as error:
            if has_to_leave(error, task):
                raise
            _log.info("Fleet %s: closing the connection failed: %s", self.name, in_words(error))

    def _hold(self, *, holds: bool) -> None:
        """Keep the connection open while this member uses it: consumers with one ``Fleet`` share it."""
        if isinstance(self._state, ValkeyState) and holds != self._holds:
            (self._state.hold if holds else self._state.release)()
        self._holds = holds

    async def _run(self) -> None:
        while goes_on():
            await self._sleep()
            now = self._time()
            self._look_at_fallback(now)
            if now < self.ledger.due(now):
                continue
            sent = self.ledger.ask(self._crew.here(), self._crew.demand, now)
            if sent is not None:
                await self._exchange(sent, self.ledger.patience)

    async def _sleep(self) -> None:
        """Sleep until the next exchange is due, or something makes it more urgent."""
        # Before the look at what is due: a wake that comes after it must not be lost.
        self._wake.clear()
        now = self._time()
        until = self.ledger.due(now)
        if not self._was_gone and self.ledger.failures:
            # The fallback begins at that moment, and no answer will wake this task for it.
            until = min(until, self.ledger.gone_at)
        if until <= now:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            pass

    # -- one exchange -----------------------------------------------------------------------------------------------

    async def _exchange(self, sent: Sent, patience: float) -> None:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(patience):
                answer = await self._state.exchange(self.name, sent.request)
                # Within the same limit: a store that answers one call and hangs in the next is lost
                # as well.
                await self._settle_decisions(answer)
                await self._settle_hints()
        except BaseException as error:  # whatever a client raises
            if has_to_leave(error, task):
                raise
            self._lost(sent, error)
            return
        self._heard(sent, answer)

    def _heard(self, sent: Sent, answer: Answer) -> None:
        now = self._time()
        lost_for = None if not self.ledger.failures or self._reached is None else now - self._reached
        was_failing = bool(self.ledger.failures)
        # Before the log and the events: what observers see must be the new state.
        offered = self.ledger.answered(sent, answer, now)
        self._seconds, self._reached = now - sent.at, sent.at
        self._was_gone = False
        self.hints.learn(answer.hints, sent.at, now)
        if was_failing:
            gone = "" if lost_for is None else f" after {lost_for:.1f} s"
            level = logging.WARNING if self._tasks.outages.worked(_STORES, self.name, now) else logging.DEBUG
            text, replicas = "Fleet %s: the store answers again%s; %s", counted(answer.replicas, "replica")
            _log.log(level, text, self.name, gone, replicas)
            if self._observers:
                self._observers.tell(FleetReachable(self.name, answer.replicas))
        # Before the offer: the messages of starved tenants make room for those that may start.
        self._crew.starve(self.ledger.starved(now), now)
        if offered:
            self._crew.offer(offered)

    def _lost(self, sent: Sent, error: BaseException) -> None:
        first = not self.ledger.failures
        self.ledger.failed(sent)
        self._failed += 1
        now = self._time()
        telling = self._tasks.outages.failed(_STORES, self.name, cause_of(error), in_words(error), now)
        left = max(0.0, self.ledger.gone_at - now)
        text = "Fleet %s: the store cannot be reached; slots held here last %.1f s more, then fallback=%r applies: %s"
        level = logging.WARNING if telling.is_told else logging.DEBUG
        _log.log(level, text, self.name, left, self.fleet.fallback, in_words(error))
        # Once: an outage of the store is one event, however many exchanges fail in it.
        if first and self._observers:
            self._observers.tell(FleetUnreachable(self.name, error, left))

    def _look_at_fallback(self, now: float) -> None:
        """Once the slots have run out, let go on what the fallback lets."""
        gone = self.ledger.is_gone(now)
        if gone and not self._was_gone:
            self._was_gone = True
            self._crew.starve((), now)
            self._crew.offer(list(self.ledger.entries()))

    # -- what the scheduler asks --------------------------------------------------------------------------------

    def pace_of(self, tenant: Hashable, rate: float) -> Pace:
        """Return what meters the starts of a tenant with a rate."""
        return _FleetPace(self, tenant, rate)

    def _met(self, tenant: Hashable) -> None:
        """A tenant is to be asked for soon. What was decided about it holds before anything of it can start."""
        entry = self.ledger.entry(tenant)
        name = None if entry is None else entry.name
        if entry is not None and name is None and type(tenant) not in self._unnamed:
            self._unnamed.add(type(tenant))
            text = (
                "Fleet %s: a tenant of type %s cannot be named alike in every replica, so each works with its part; "
                "use a text, or a frozen dataclass of texts and numbers, as the context"
            )
            _log.error(text, self.name, type(tenant).__name__, extra=about(tenant=tenant))
        ruling = self._rulings.get(name) if name is not None and self._rulings else None
        if ruling is not None and tenant not in self._met_rulings:
            self._met_rulings[tenant] = ruling
            self._crew.overrule({tenant: ruling}, complete=False)
        if self.ledger.rate_of(tenant) is not None:
            self._crew.meter(tenant)
        self._wake.set()

    # -- decisions --------------------------------------------------------------------------------------------------

    def decided(self) -> None:
        """Write down soon what was decided here."""
        if self.pending:
            self._tasks.spawn(self._publish_now(), "postroom-fleet-decision")

    async def everywhere(self, what: str, tenant: Hashable, waiting: Callable[[int, int], None]) -> list[Report]:
        """Have every replica carry out an order for a tenant, and return what they say. The caller sets the limit.

        Raises:
            ConfigurationError: the tenant cannot be named alike in every replica.
        """
        try:
            name = name_of(tenant)
        except Unnamable as error:
            text = f"tenant {display_key(tenant)} cannot be named alike in every replica of the fleet: {error}"
            raise ConfigurationError(text) from error
        said = await self._orders.everywhere(what, name, publish=self._publish, waiting=waiting)
        return list(said.values())

    async def _publish_now(self) -> None:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self.ledger.patience):
                await self._publish()
        except BaseException as error:
            if has_to_leave(error, task):
                raise
            text = "Fleet %s: a decision holds in this replica only until the store can be reached: %s"
            _log.warning(text, self.name, in_words(error))

    async def _publish(self) -> None:
        # A copy: another thread may decide while this one is being sent.
        sending = dict(self.pending)
        changes: dict[str, str | None] = {}
        for (tenant, part), (value, reason) in sending.items():
            if (name := name_or_none(tenant)) is not None:
                changes[field_of(part, name)] = written(value, reason)
                # Met by its decision: a list of what was decided here must not lose it with the next exchange.
                self._met_rulings.setdefault(tenant, _NONE)
        if changes:
            await self._state.decide(self.name, changes)
        for key, decision in sending.items():
            # Unless it was decided again meanwhile; then the newer decision is still to be sent.
            if self.pending.get(key) is decision:
                del self.pending[key]

    async def _settle_decisions(self, answer: Answer) -> None:
        """Write down what is decided here, and learn what was decided elsewhere."""
        known, sent_at = self._known, self._time()
        if known.version and self._may_have_forgotten(answer):
            await self._state.restore(self.name, known)
        elif answer.version == known.version and not self.pending:
            self._read_in, self._read_at = answer.epoch, sent_at
            return
        if self.pending:
            await self._publish()
        # After the publish: read before it, the own decision would be overruled by the old state
        # for one tick.
        said = await self._state.decisions(self.name)
        if said.epoch != answer.epoch:
            return  # it lost its memory meanwhile: what is known here is to be restored, and not to be forgotten
        self._known, self._read_in, self._read_at = said, answer.epoch, sent_at
        self._rulings = self._understood(self._known.fields)
        named = {self._key_of(name): ruling for name, ruling in self._rulings.items()}
        met = {tenant: entry.name for tenant, entry in self.ledger.entries().items()}
        met |= {tenant: name_of(tenant) for tenant in self._met_rulings}
        found = {tenant: self._rulings[name] for tenant, name in met.items() if name in self._rulings}
        self._met_rulings = {tenant: ruling for tenant, ruling in found.items() if not isinstance(tenant, str)}
        rulings: dict[Hashable, Verdict] = {key: ruling for key, ruling in named.items() if key is not None}
        self._crew.overrule(rulings | found, complete=True)
        self._orders.learn(self._known.fields)

    def _understood(self, fields: Mapping[str, str]) -> dict[str, Verdict]:
        """Return what was decided. Each decision that cannot be used is logged once, for as long as it is there."""
        odd: dict[str, str] = {}
        found = verdicts(fields, odd.__setitem__)
        for field, why in odd.items():
            if self._odd.get(field) != fields[field]:
                part, _, name = field.partition(" ")
                text = "Fleet %s: the %s decided for tenant %s cannot be used and is left out: %s. Decide it again"
                tenant = display_key(shown(name))
                _log.error(text, self.name, part, tenant, display_key(why), extra=about(tenant=tenant))
        self._odd = {field: fields[field] for field in odd}
        return found

    def _may_have_forgotten(self, answer: Answer) -> bool:
        """Whether the store may have lost decisions that are known here, wholly or in part."""
        if answer.version < self._known.version:
            return True
        return answer.epoch != self._read_in and self._time() - self._read_at < REMEMBERED / 2

    @staticmethod
    def _key_of(name: str) -> str | None:
        """Return the tenant of a name, where the name tells."""
        return shown(name) if name.startswith("t:") else None

    def ruling_of(self, tenant: Hashable) -> Verdict | None:
        """Return what was decided about a tenant, which need not have been seen here."""
        if not self._rulings:
            return None
        name = name_or_none(tenant)
        return None if name is None else self._rulings.get(name)

    # -- outages ------------------------------------------------------------------------------------------------------

    async def _settle_hints(self) -> None:
        for host, report in self.hints.reports(now := self._time()):
            await self._state.report(self.name, host, report.cause, min(MOST, report.until - now))
            self.hints.told(host, report)
        for host in self.hints.claims():
            asked = self._time()
            # One replica tries the host for all: a server that comes back must not meet every
            # replica at once.
            if await self._state.claim_probe(self.name, host, self.ledger.replica, self.hints.turn):
                self.hints.claimed(host, asked)
            self.hints.asked(host)

    # -- a look -----------------------------------------------------------------------------------------------------

    def statistics(self) -> FleetStatistics:
        """Return a snapshot."""
        now = self._time()
        entries = self.ledger.entries().values()
        live = [entry for entry in entries if entry.name is not None and entry.expires != float("inf")]
        slots = [entry.limit if now < entry.expires else 0 for entry in live]
        return FleetStatistics(
            name=self.name,
            reachable=self._reached is not None and not self.ledger.failures,
            degraded=self.ledger.is_gone(now),
            replicas=self.ledger.replicas,
            slots=sum(slots),
            tenants=len(live),
            starved=sum(not each for each in slots),
            overruns=self.ledger.overruns,
            exchanges=self.ledger.exchanges,
            failed_exchanges=self._failed,
            last_exchange_age=None if self._reached is None else now - self._reached,
            last_exchange_seconds=self._seconds,
            decisions=self._known.version,
            hosts_down=len(self.hints),
        )

    def slots_of(self, tenant: Hashable) -> TenantSlots:
        """Return what this replica has of one tenant's limits."""
        entry, now = self.ledger.entry(tenant), self._time()
        ruling = self.ruling_of(tenant) or _NONE
        cap = ruling.concurrency or self.ledger.cap_of(tenant)
        rate = ruling.rate or self.ledger.rate_of(tenant)
        if entry is None:
            return TenantSlots(cap=cap, rate=rate, slots=None if cap is None else 0, share=0, contended=False)
        slots = None if cap is None else entry.limit if now < entry.expires else 0
        return TenantSlots(cap=cap, rate=rate, slots=slots, share=entry.share, contended=entry.contended)


class LedgerBounds:
    """How many handlers of a tenant may run here now. The scheduler keeps what it found here with the tenant's lane."""

    def __init__(self, ledger: Ledger, time: Callable[[], float]) -> None:
        self._ledger = ledger
        self.time: Callable[[], float] = time

    def look(self, tenant: Hashable) -> tuple[int | None, Entry]:
        """Return how many may run, None for no bound; and what says so while it is valid."""
        return self._ledger.look(tenant, self.time())


class _FleetPace(Pace):
    """Meters a tenant's starts: as many as the store granted until the next exchange."""

    __slots__ = ("_granted", "_member", "_tenant")

    def __init__(self, member: Member, tenant: Hashable, rate: float) -> None:
        super().__init__(rate)
        self._member = member
        self._tenant = tenant
        self._granted = False
        """Whether the last start that was taken was one of those that the store granted."""

    def take(self, now: float, part: float = 1.0) -> float:
        """Take a start and return 0.0; or take none, and return the seconds until there may be one."""
        ledger = self._member.ledger
        if ledger.take(self._tenant, now):
            self._granted = True
            return 0.0
        if ledger.is_gone(now) and ledger.fleet.fallback != "stop":
            replicas = max(1, ledger.replicas) if ledger.fleet.fallback == "share" else 1
            pause = super().take(now, part / replicas)
            if not pause:
                self._granted = False
            return pause
        return ledger.fleet.tick

    def give_back(self) -> None:
        """Give a start back that was none."""
        if self._granted:
            self._member.ledger.give_back(self._tenant)
        else:
            super().give_back()
