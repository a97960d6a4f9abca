"""Control of single tenants while a consumer runs."""

import asyncio
import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from postroom.checking import check_queue
from postroom.consumer.facts import QueueFacts
from postroom.consumer.handover import Handover, Probe
from postroom.consumer.statuses import Controlled, TenantState, TenantStatus
from postroom.consumer.tenant_keys import TenantKeys
from postroom.errors import ConfigurationError
from postroom.events import Observers
from postroom.fleet.decisions import LIMITS, PARTS, STATES, Verdict, is_limit
from postroom.fleet.member import Member, Pending
from postroom.log_fields import Log, Step, about
from postroom.redaction import redact
from postroom.resources import ResourcePool, display_key
from postroom.scheduling import LaneStatistics, Pace

_log = Log("postroom.consumer", Step.POLICY)

_KEEP: Any = object()
_QUARANTINE = "tenant in quarantine"
_DECIDED = tuple(map(TenantState, STATES))
_SENT_AWAY = frozenset({TenantState.QUARANTINED, TenantState.DIVERTED})


class Tenants:
    """Pause, limit, divert or quarantine one tenant. Reached as ``consumer.tenants``.

    A tenant is named by its context, or by its key where the pool has ``key=``. Decisions hold in this process only;
    they outlive a restart of the consumer, but not the process. With ``Consumer(fleet=...)`` they hold in all replicas
    within a tick and three calls to the store, and outlive every process; limits are then those of the whole fleet.
    Everything but the coroutines may be called from any thread, such as that of a web route, and takes effect at once
    in the loop's own thread, with the next turn of the loop from another. A ``reason=`` is logged, and shown where the
    tenant is.
    """

    def __init__(self, *, shared: bool = False, keys: TenantKeys | None = None) -> None:
        self._keys = TenantKeys(object, None) if keys is None else keys  # by itself: tenants of any class
        self._rules: dict[Hashable, TenantStatus] = {}
        self.revision: int = 0
        """Changes with every decision."""
        self.ruled: bool = False
        """Whether anything was decided about any tenant, or every tenant has a rate."""
        self._limited: dict[Hashable, str] = {}
        """Why tenants are limited that are, also while they are paused for another reason."""
        self._paces: dict[Hashable, Pace] = {}
        self._lock = threading.Lock()
        self._consumer: Controlled | None = None
        self._pool: ResourcePool[Any, Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._shared = shared
        self._member: Member | None = None
        self._rated = False
        self._probing: set[Hashable] = set()
        self.handover: Handover = Handover(self)
        """What a tenant goes through when its database is moved. For the fleet and the tools that move tenants."""
        self.pending: Pending = {}
        """Decisions that the fleet does not have yet."""

    # -- decisions ----------------------------------------------------------------------------------------------

    def pause(self, key: Hashable, *, reason: str | None = None) -> None:
        """Start no further message of a tenant; those that run go on. The reason is shown with its status.

        What waits here stays ours; of what still comes, a few messages wait here and the rest is deferred, as far as
        the attempts that each message was promised allow.
        """
        self._tell(key, "paused", reason)
        self._decide(key, reason, state=TenantState.PAUSED, diverted_to=None)

    def resume(self, key: Hashable, *, reason: str | None = None) -> None:
        """End a pause, a quarantine or a diversion. Limits stay."""
        self._tell(key, "resumed", reason)
        self._decide(key, None, state=TenantState.ACTIVE, diverted_to=None)

    def quarantine(self, key: Hashable, *, reason: str = _QUARANTINE) -> None:
        """Send a tenant's messages to the dead-letter queue with a reason, until it is resumed.

        They can be redriven from there. Without a dead-letter queue they go back, and come again after the backoff; no
        attempt is counted.
        """
        self._tell(key, "put in quarantine", reason)
        self._decide(key, reason, state=TenantState.QUARANTINED, diverted_to=None)

    def divert(self, key: Hashable, *, queue: str, reason: str = "tenant diverted") -> None:
        """Send a tenant's messages, those that wait and those that come, to another queue until it is resumed.

        They go as they are, with ``postroom.reason`` and what else a dead letter carries, and are deleted here once
        the other queue has taken them. ``postroom dead-letters redrive QUEUE --to ...`` brings them back. A consumer
        of the other queue handles them, also one for which the same decision holds.

        Where the other queue does not exist, or takes nothing, they wait as those of a paused tenant do. The log and
        the tenant's ``reason`` tell the cause, and one message tries it now and then until it works. One that such a
        queue refuses although it takes others comes again after the backoff, and no attempt is counted.

        With a fleet every replica looks the queue up itself: use its URL or ARN where they work in several accounts
        or regions.

        Raises:
            ConfigurationError: no queue is named, or its URL has a password.
        """
        check_queue("divert(queue=...)", queue)
        self._tell(key, f"diverted to {display_key(queue)}", reason)
        self._decide(key, reason, state=TenantState.DIVERTED, diverted_to=queue)

    def limit(
        self,
        key: Hashable,
        *,
        concurrency: int | None = _KEEP,
        rate: float | None = _KEEP,
        reason: str | None = None,
    ) -> None:
        """Limit how many of a tenant's handlers run at once, and how many start per second. None ends a limit.

        ``concurrency`` takes the place of what ``Concurrency`` says of the tenant, ``per_tenant`` and ``overrides``,
        also where it is more: so a tenant that has fallen behind can have more slots for a while.

        With a fleet both are those of all replicas together.

        Raises:
            ConfigurationError: a ``concurrency`` that is no whole number from 1 to 1,000,000, or a ``rate`` that is not
                from 0.000001 to 1e9; use ``pause`` for no handlers at all.
        """
        if concurrency is _KEEP and rate is _KEEP:
            text = "limit() needs a limit: write limit(tenant, concurrency=2) or limit(tenant, rate=10)"
            raise ConfigurationError(text)
        chosen: dict[str, Any] = {"concurrency": concurrency, "rate": rate}
        chosen = {name: value for name, value in chosen.items() if value is not _KEEP}
        check_limits(chosen)
        self._tell(key, _limited(chosen), reason)
        self._decide(key, reason, **chosen)

    def retry_now(self, key: Hashable, *, reason: str | None = None) -> None:
        """End a tenant's wait after failures: one of its messages tries at once, and its end decides as ever.

        It forgets what the pool remembers of the tenant's failed opens. An outage of the tenant's host is not its own:
        that one is tried again when the host's pause is over.
        """
        self._tell(key, "tried again at once", reason)
        self._in_loop(self._retry_now, key)

    async def invalidate(self, key: Hashable, *, reason: str | None = None, timeout: float | None = None) -> None:
        """Stop leasing what is open for a tenant: its next message opens it again. With a fleet, in every replica.

        What is leased closes behind its last lease. Without ``resources=`` it does nothing.

        Raises:
            TimeoutError: not every replica of the fleet has confirmed it within ``timeout`` seconds.
        """
        self._tell(key, "stripped of its open resources", reason)
        await self.handover.everywhere("invalidate", key, timeout)

    async def close(self, key: Hashable, *, timeout: float | None = None) -> None:
        """Do as ``invalidate``, and return when nothing of the tenant is open: here, and in every replica of a fleet.

        For a tenant that was drained; another one's resources are opened again by its next message.

        Raises:
            TimeoutError: something is open after ``timeout`` seconds, or a replica of the fleet has not confirmed it.
                The text says what uses it, such as another consumer of the pool.
            ConfigurationError: a handler of the tenant calls it, here or in another consumer of the pool, and would
                wait for its own end.
        """
        self._check(key)
        self.handover.refuse_own_handler(key)
        await self.handover.everywhere("close", key, timeout)

    async def places(self, key: Hashable, *, timeout: float | None = None) -> list[str]:
        """Return where a tenant's data is, by the registry of this process and of every replica of a fleet.

        Such as ``["db-1:5432/acme"]``; more than one if the registries do not agree. Empty where no provider can
        tell (``Provider.place``).

        Raises:
            TimeoutError: a replica of the fleet has not answered within ``timeout`` seconds.
            Exception: whatever the registry raises, such as ``UnknownTenant``.
        """
        self._check(key)
        return await self.handover.everywhere("place", key, timeout)

    async def drain(self, key: Hashable, *, timeout: float | None = None, reason: str | None = None) -> None:
        """Pause a tenant and return when none of its handlers runs: its database may be moved then.

        With a fleet it returns when every replica has confirmed that. One that the store counts as dead, or that was
        cut off from the store for a lease, is not waited for.

        Raises:
            TimeoutError: some still run after ``timeout`` seconds, or a replica has not confirmed; the tenant stays
                paused.
            ConfigurationError: it was resumed meanwhile, so that its handlers start again; or a handler of the tenant
                calls it, and would wait for its own end.
        """
        self.handover.refuse_own_handler(key, closes=False)
        self.pause(key, reason=reason)
        await self.handover.everywhere("drain", key, timeout)
        self.handover.require_still(key, "drained")

    async def offboard(self, key: Hashable, *, reason: str, timeout: float | None = None) -> None:
        """End a tenant: drain and close it, and send its messages to the dead-letter queue from then on.

        Where several consumers share a pool, ``postroom.console.offboard_tenant`` does it in all of them at once.
        They carry ``tenant offboarded: REASON`` in ``postroom.reason``. ``resume`` takes the tenant back, and
        ``postroom dead-letters redrive`` its messages. When it is cancelled before the end, the tenant is resumed.

        Raises:
            ConfigurationError: there is no dead-letter queue, so its messages would come again and again; or no reason;
                or it was resumed meanwhile, and stays so; or a handler of the tenant calls it.
            TimeoutError: handlers still run after ``timeout`` seconds, or a replica has not confirmed. Its messages go
                to the dead-letter queue all the same, unless it was resumed meanwhile.
        """
        given: Any = reason
        if not isinstance(given, str) or not given.strip():
            raise ConfigurationError(f"offboard(reason=...) takes a text: its dead letters carry it; got {given!r}")
        self._check(key)
        # Before anything is decided: without one, a quarantine would only send its messages around.
        self.handover.require_dead_letters(key)
        self.handover.refuse_own_handler(key)
        text = f"tenant offboarded: {reason}"
        try:
            await self.drain(key, timeout=timeout, reason=text)
            # Drained first: a close waits for leases, and new handlers would go on taking some.
            await self.close(key, timeout=timeout)
            if self[key].state is not TenantState.PAUSED:
                raise ConfigurationError(f"{display_key(key)} was not offboarded: it was resumed meanwhile")
        except ConfigurationError:
            raise
        except asyncio.CancelledError:
            self.resume(key, reason="its offboarding was called off")
            raise
        except BaseException:
            if self[key].state is TenantState.PAUSED:  # else it was resumed meanwhile, which calls it off
                self.quarantine(key, reason=text)
            raise
        self.quarantine(key, reason=text)

    async def probe(self, key: Hashable, *, timeout: float = 30.0, message: bool = True) -> Probe:
        """Try a paused tenant in this process: open its resources, then let one of its messages run, if one waits here.

        Without ``message`` it only opens them. It stays paused: the pause holds again from the moment in which the
        message's handler starts.

        Raises:
            ConfigurationError: the tenant is not paused here.
        """
        self._check(key)
        return await self.handover.probe(key, timeout, message=message)

    # -- a look -------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Hashable) -> TenantStatus:
        """Return what is known of a tenant. An unknown one is active and has nothing here."""
        rule = self._rules.get(key) or _rule_of(key, None if self._member is None else self._member.ruling_of(key))
        figures = self._figures(key)
        # A decision counts for more than an outage: an operator must see the pause that was asked for.
        trouble = None if self._consumer is None else self._consumer.unavailable(key)
        if trouble is not None and rule.state is TenantState.ACTIVE:
            rule = replace(rule, state=TenantState.UNAVAILABLE, reason=trouble[0], since=trouble[1])
        elif trouble is not None and rule.state in _SENT_AWAY:
            rule = replace(rule, reason=f"{rule.reason}; {trouble[0]}", since=trouble[1])
        return replace(
            rule,
            running=figures.running,
            waiting=figures.waiting,
            suspended=figures.suspended,
            handler_seconds=figures.estimate,
            fleet=None if self._member is None else self._member.slots_of(key),
        )

    def __iter__(self) -> Iterator[TenantStatus]:
        """List the tenants that have something here now, and those that something was decided about."""
        # A copy, here and of the rules: other threads may look while the loop changes them.
        here = [] if self._consumer is None else self._consumer.scheduler.tenants()
        return iter([self[key] for key in dict.fromkeys([*here, *list(self._rules)])])

    # -- what the consumer asks ---------------------------------------------------------------------------------

    def ruled_keys(self) -> list[Hashable]:
        """Return the tenants that something was decided about."""
        return list(self._rules)

    def rules(self) -> dict[Hashable, TenantStatus]:
        """Return what was decided, by tenant: a copy. A tenant of which that has changed has another object there."""
        return self._rules.copy()

    def rule_of(self, key: Hashable) -> TenantStatus | None:
        """Return what was decided about a tenant, here or in its fleet, without figures; None: nothing."""
        rule = self._rules.get(key)
        ruling = None if rule is not None or self._member is None else self._member.ruling_of(key)
        return rule if ruling is None else _rule_of(key, ruling)

    def is_ruled(self, key: Hashable) -> bool:
        """Whether anything was decided about a tenant."""
        return key in self._rules

    def is_paused(self, key: Hashable) -> bool:
        """Whether a tenant is paused."""
        rule = self._rules.get(key) if self._rules else None
        return rule is not None and rule.state is TenantState.PAUSED and key not in self._probing

    def is_sent_away(self, key: Hashable) -> bool:
        """Whether a tenant's messages go to another queue: it is in quarantine, or diverted."""
        rule = self._rules.get(key) if self._rules else None
        return rule is not None and rule.state in _SENT_AWAY

    def rate_of(self, key: Hashable) -> float | None:
        """Return how many of a tenant's handlers may start per second; None without such a limit."""
        if self._member is not None:
            return self._member.ledger.rate_of(key)
        rule = self._rules.get(key) if self._rules else None
        return None if rule is None else rule.rate

    def quarantined_because(self, key: Hashable) -> str | None:
        """Return why a tenant is in quarantine; None if it is not."""
        rule = self._rules.get(key) if self._rules else None
        return rule.reason or _QUARANTINE if rule is not None and rule.state is TenantState.QUARANTINED else None

    def kept_back(self, key: Hashable) -> str | None:
        """Return the decision that keeps a tenant's messages from starting, with its reason; None: no decision does."""
        if self.is_paused(key):
            reason = self._rules[key].reason
            return "paused" if reason is None else f"paused: {reason}"
        rate = self.rate_of(key)
        return None if rate is None else f"limited to {rate:g} starts per second"

    def join(self, member: Member) -> None:
        """Share decisions with a fleet, from before the consumer starts."""
        self._member = member
        self._rated = member.fleet.rate is not None
        self.handover.join(member)
        self.ruled = bool(self._rules) or self._rated

    def meter(self, key: Hashable) -> None:
        """Have a tenant's starts metered as the fleet says."""
        if self._consumer is not None:
            self._carry_out(key)

    def unmeter(self, key: Hashable) -> None:
        """Forget the pace of a tenant that has left. What was decided about it stays."""
        if key not in self._rules and self._consumer is not None:
            self._paces.pop(key, None)
            self._consumer.scheduler.control(key)

    def overrule(self, rulings: Mapping[Hashable, Verdict], *, complete: bool) -> None:
        """Take over what was decided in the fleet. What was decided here and is not known there yet stays."""
        with self._lock:
            changed: list[Hashable] = []
            for key in dict.fromkeys([*rulings, *(self._rules if complete else ())]):
                rule = self._with_pending(key, _rule_of(key, rulings.get(key)))
                if rule != self._rules.get(key, TenantStatus(key=key)):
                    self._keep(key, rule)
                    changed.append(key)
        for key in changed:
            # Only a complete answer proves that a rule is gone; a partial one does not mention the
            # others.
            if complete:
                self._carry_out(key)
            elif self._loop is not None:  # in the middle of the scheduler's own work: its rules hold, the rest soon
                self._loop.call_soon(self._carry_out, key)

    def diverted(self, key: Hashable) -> tuple[str, str] | None:
        """Return the queue that a tenant's messages go to, and why; None if it is not diverted."""
        rule = self._rules.get(key) if self._rules else None
        if rule is None or rule.diverted_to is None:
            return None
        return rule.diverted_to, rule.reason or "tenant diverted"

    @property
    def consumer(self) -> Controlled | None:
        """What carries decisions out; None before the first start."""
        return self._consumer

    def let_one_run(self, key: Hashable, *, on: bool) -> None:
        """Let messages of a paused tenant start here, one at a time, or no more. Only a probe does so."""
        if on != (key in self._probing):
            (self._probing.add if on else self._probing.discard)(key)
            self._carry_out(key)

    def attach(
        self,
        consumer: Controlled,
        pool: ResourcePool[Any, Any] | None = None,
        observers: Observers | None = None,
        facts: Callable[[], Iterable[QueueFacts]] = tuple,
    ) -> None:
        """Begin to carry decisions out: the consumer starts, in this thread and loop."""
        self.handover.attach(consumer, pool, Observers() if observers is None else observers, facts)
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        # Before `_consumer`: another thread that sees the consumer must find the thread and the
        # loop.
        self._thread = threading.get_ident()
        self._consumer = consumer
        self._paces.clear()  # their times were those of another loop
        for key in list(self._rules):
            self._carry_out(key)

    def _check(self, key: Hashable) -> None:
        # What was decided before, here or by another release in the fleet, can always be undone.
        if key not in list(self._rules):  # a list: what cannot be hashed has a text of its own
            self._keys.check(key, () if self._consumer is None else self._consumer.scheduler.tenants())

    def _tell(self, key: Hashable, what: str, reason: str | None) -> None:
        _check_reason(reason)
        self._check(key)
        # Without a reason it may be a program's, which limits its tenants each second.
        level, why = (logging.INFO, "") if reason is None else (logging.WARNING, f": {display_key(redact(reason))}")
        _log.log(level, "Tenant %s is %s by an operator%s", display_key(key), what, why, extra=about(tenant=key))

    def _decide(self, key: Hashable, reason: str | None, **changes: Any) -> None:
        with self._lock:  # two threads may each change another part of one rule
            if self._shared:
                for part, value in changes.items():
                    self.pending[key, part] = (None if value is TenantState.ACTIVE else value, reason)
            # In a fleet, what was decided elsewhere about a tenant that has had nothing here yet.
            rule = replace(self.rule_of(key) or TenantStatus(key=key), **changes)
            self._keep(key, replace(rule, reason=self._reason_of(rule, reason, decides="state" in changes)))
        # Outside the lock: the scheduler may start messages here, which ask for the rules again.
        self._in_loop(self._decided, key)

    def _reason_of(self, rule: TenantStatus, reason: str | None, *, decides: bool) -> str | None:
        """Return the reason to keep: that of a pause, a quarantine or a diversion while there is one, else of limits.

        Dead letters carry it, so a limit must not put its own in the place of that of a quarantine.
        """
        if not decides and reason is not None:
            self._limited[rule.key] = reason
        if rule.concurrency is None and rule.rate is None:
            self._limited.pop(rule.key, None)
        if rule.state is TenantState.ACTIVE:
            return self._limited.get(rule.key)
        return reason if decides else rule.reason

    def _decided(self, key: Hashable) -> None:
        self._carry_out(key)
        if self._member is not None:
            self._member.decided()

    def _keep(self, key: Hashable, rule: TenantStatus) -> None:
        self.revision += 1
        # A rule that says nothing is dropped: `ruled` costs every message a look while any is left.
        if replace(rule, reason=None) == TenantStatus(key=key):
            self._rules.pop(key, None)
        else:
            self._rules[key] = rule
        self.ruled = bool(self._rules) or self._rated

    def _with_pending(self, key: Hashable, rule: TenantStatus) -> TenantStatus:
        for part in PARTS:
            if (key, part) in self.pending:
                value, reason = self.pending[key, part]
                chosen: Any = TenantState(value or TenantState.ACTIVE) if part == "state" else value
                rule = replace(rule, **{part: chosen})
                if reason is not None and (rule.state is TenantState.ACTIVE or part not in LIMITS):
                    rule = replace(rule, reason=reason)
        return rule

    def _in_loop(self, work: Callable[[Hashable], None], key: Hashable) -> None:
        loop = self._loop
        # The rule is kept all the same; `attach` carries it out at the next start.
        if loop is None or loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            work(key)
        else:
            loop.call_soon_threadsafe(work, key)

    def _retry_now(self, key: Hashable) -> None:
        consumer, pool = self._consumer, self._pool
        if consumer is None:
            return
        if pool is not None:
            pool.forget_failures(lambda context: bool(pool.key_of(context) == key))
        consumer.retry_now(key)

    def _carry_out(self, key: Hashable) -> None:
        if self._consumer is None:
            return
        rule = self._rules.get(key) or TenantStatus(key=key)
        paused = rule.state is TenantState.PAUSED and key not in self._probing
        cap = rule.concurrency
        if self._member is not None:
            # In a fleet the ledger bounds the lane: a cap here would hold in each replica, and so
            # many times over.
            self._member.ledger.decide(key, concurrency=cap, rate=rule.rate)
            cap = None
        if key in self._probing:
            cap = 1
        pace = self._pace(key, rule.rate)
        # A rate is of starts: what goes to another queue starts nothing, and need not wait for one.
        exempt = self._consumer.is_sent_away if pace is not None and rule.state in _SENT_AWAY else None
        # First the scheduler, then the messages: one that is woken must already find the new rule.
        self._consumer.scheduler.control(key, paused=paused, pace=pace, cap=cap, exempt=exempt)
        self._consumer.decided(key, paused=paused)

    def _pace(self, key: Hashable, rate: float | None) -> Pace | None:
        """Return the tenant's bucket. No decision about it fills it up, nor does another rate."""
        member = self._member
        if member is not None:
            rate = member.ledger.rate_of(key)
        pace = self._paces.get(key)
        if rate is None:
            self._paces.pop(key, None)
            return None
        if pace is None or pace.rate != rate:
            earlier, pace = pace, Pace(rate) if member is None else member.pace_of(key, rate)
            if earlier is not None:
                pace.follow(earlier)
            self._paces[key] = pace
        return pace

    def _figures(self, key: Hashable) -> LaneStatistics:
        return LaneStatistics() if self._consumer is None else self._consumer.scheduler.figures(key)


def _check_reason(reason: object) -> None:
    if reason is not None and not isinstance(reason, str):
        text = f"reason= takes a text for those who ask later why, or None; got {reason!r}"
        raise ConfigurationError(text)


def _limited(chosen: Mapping[str, float | None]) -> str:
    """Return limits as the log says them: ``limited to rate 20``."""
    limits = " and ".join(f"{name} {value:g}" for name, value in chosen.items() if value is not None)
    ended = " and ".join(name for name, value in chosen.items() if value is None)
    return ", ".join([f"limited to {limits}"] * bool(limits) + [f"without a limit of {ended}"] * bool(ended))


def check_limits(chosen: Mapping[str, object]) -> None:
    """Raise ``ConfigurationError`` for what can be no limit: the store of a fleet fails on it, for all tenants."""
    for name, value in chosen.items():
        if value is not None and not is_limit(name, value):
            least, most = LIMITS[name]
            kind = "a whole number" if name == "concurrency" else "a number above 0,"
            text = f"limit({name}=...) takes {kind} from {least:g} to {most:g}, or None for no limit; got {value!r}"
            raise ConfigurationError(f"{text}. See pause()")


def _rule_of(key: Hashable, ruling: Verdict | None) -> TenantStatus:
    """Return what was decided in the fleet.

    A state that a later version may have written is none, and neither is a diversion without its queue.
    """
    if ruling is None:
        return TenantStatus(key=key)
    state = next((state for state in _DECIDED if state == ruling.state), TenantState.ACTIVE)
    queue = ruling.diverted_to if state is TenantState.DIVERTED else None
    return TenantStatus(
        key=key,
        state=TenantState.ACTIVE if state is TenantState.DIVERTED and not queue else state,
        reason=ruling.reason,
        diverted_to=queue,
        concurrency=ruling.concurrency,
        rate=ruling.rate,
    )
