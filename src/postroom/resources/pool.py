"""``ResourcePool``: typed resources per context, opened once, leased to many, closed once.

The decisions are in ``core``, what follows from them in ``engine``; here is what a user calls.
"""

import asyncio
import functools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sized
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType, TracebackType
from typing import Any, Final, Generic, Self, cast

from msgspec import UNSET, UnsetType

from postroom.checking import answered
from postroom.display import display_key
from postroom.errors import ClosedError, ConfigurationError, NotOpenError, PostroomError
from postroom.events import Observer
from postroom.log_fields import about
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.program_end import ends_the_program
from postroom.resources.arguments import check_arguments
from postroom.resources.core import Core
from postroom.resources.engine import Engine
from postroom.resources.entrances import Entrances
from postroom.resources.entries import Demand, EntryState, Stage, Waiter
from postroom.resources.failures import OpenFailure
from postroom.resources.identity import Identity
from postroom.resources.lease import Held, Lease, LeaseScope
from postroom.resources.owner import MOST_RINGS
from postroom.resources.providers import Opener, connects, known_of, place_of
from postroom.resources.provision import Provision
from postroom.resources.refusals import NoRoom, Refusal, TooLate
from postroom.resources.reporter import log
from postroom.resources.requests import LeaseRequests
from postroom.resources.statistics import PoolStatistics
from postroom.resources.subscribers import Subscribers
from postroom.tasks import clean, told_once
from postroom.types import C, R

_DEBUG: Final = logging.DEBUG
_PRESS: Final = 1.0
"""Seconds between two cancellations of what is left of a pool at the end of its close."""


class ResourcePool(Generic[C, R]):
    """A pool of resources, one per context: opened on the first lease, shared by all, closed when idle or old.

        async with ResourcePool(database) as databases:
            async with databases.lease(tenant) as db:
                await db.execute("...")

    Args:
        provider: returns an async context manager of a context's resources (a function decorated with
            ``@asynccontextmanager``); or is an async function that returns the resources. It is entered and left
            by one and the same task, which belongs to this resource alone.
        cleanup: closes what an async function opened; sync or async. None says that nothing has to be closed; without
            it an async function is worth a warning.
        key: the part of a context that names its resources; None for the whole context. It has to be hashable.
            Keys are the same when they are equal *and* of the same types, field by field: ``1`` is not ``True``. One
            that returns None has failed: it is what look-ups return that find nothing.
        weight: what an entry takes of the budget (connections, not pools), or a function of the context; None for what
            the provider knows of itself (its attribute ``weight``), as those of ``postroom.datasources`` do, and 1 for
            any other. One warning tells of resources that count as 1 and look like a pool of several connections.
        check: the health check; unhealthy when it raises or returns False. It runs while nothing uses the resources,
            and after a use that timed out also beside others, where the weight is more than 1. None for the provider's
            own (its attribute ``check``), if it has one.
        classify: whether a failed open is an outage or says that there is no such tenant; None for
            ``classify_open``.
        outage: which other errors of a use of the resources are outages; asked where ``is_outage`` says no.
        host: which server a context's resources live on. With it, one dead server is found out once, not once
            per context, and ``PoolLimits(per_host=)`` bounds what is open there; None for no such grouping.
        limits: how many contexts and connections may be open, and when idle or old ones are closed.
        timeouts: how many seconds an open, a health check and a close may take.
        backoff: how long the pool waits after a failed open.
        observers: told of ``ResourceOpened``, ``ResourceOpenFailed`` and ``ResourceClosed``; see ``subscribe``.
        name: in logs, errors and task names.
        jitter: the source of randomness; seed it for reproducible ages and pauses.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        provider: Callable[[C], AbstractAsyncContextManager[R]] | Callable[[C], Awaitable[R]],
        *,
        cleanup: Callable[[R], Awaitable[object] | None] | UnsetType | None = UNSET,
        key: Callable[[C], Hashable] | None = None,
        weight: int | Callable[[C], int] | None = None,
        check: Callable[[R], Awaitable[object]] | None = None,
        classify: Callable[[BaseException], OpenFailure] | None = None,
        outage: Callable[[BaseException], bool] | None = None,
        host: Callable[[C], Hashable] | None = None,
        limits: PoolLimits = PoolLimits(),  # noqa: B008 - frozen
        timeouts: PoolTimeouts = PoolTimeouts(),  # noqa: B008 - frozen
        backoff: OpenBackoff = OpenBackoff(),  # noqa: B008 - frozen
        observers: Iterable[Observer] = (),
        name: str = "pool",
        jitter: random.Random | None = None,
    ) -> None:
        observers = tuple(observers) if isinstance(observers, list) else observers
        check_arguments(
            {
                "key": key,
                "check": check,
                "classify": classify,
                "outage": outage,
                "weight": weight if callable(weight) else None,
                "host": host,
                "limits": limits,
                "timeouts": timeouts,
                "backoff": backoff,
                "observers": observers,
                "name": name,
                "jitter": jitter,
            }
        )
        if key is not None and getattr(provider, "scoped", False):
            text = (
                "key= lets contexts share resources, and the provider's scope= is that of one context: leave out key="
            )
            raise ConfigurationError(text)
        own_weight, own_check = known_of(provider)
        weight = own_weight if weight is None else weight
        weight = clean(weight) if callable(weight) else weight
        key = None if key is None else _named_by(clean(key))
        host = None if host is None else clean(host)
        classify = None if classify is None else clean(classify)
        outage = None if outage is None else clean(outage)
        self._check = check = own_check if check is None else check
        self._provision = Provision(Opener(provider, cleanup), check, classify, outage, weight is not None)
        self._requests = LeaseRequests(
            key=key, weight=1 if weight is None else weight, host=host, budget=limits.budget, per_host=limits.per_host
        )
        self._limits = limits
        self._timeouts = timeouts
        self._backoff = backoff
        self._observers = Subscribers(observers)
        self._name = name
        self._jitter = jitter or random.Random()  # noqa: S311 - jitter, not a secret
        self._engine: Engine | None = None
        self._closed = False
        self._closer: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._entrances = Entrances()
        # What the hit path looks at, one step away.
        self._running: Engine | None = None
        self._place = place_of(provider)
        self._connects = connects(provider)
        self._key = key
        self._identify = self._requests.identify.__call__  # calling the instance packs a tuple first
        self._clear()

    def _clear(self) -> None:
        """Start from nothing: no resource, no failure, counters at zero."""
        self._core = Core(
            limits=self._limits,
            backoff=self._backoff,
            probe_deadline=self._timeouts.open + self._timeouts.check,
            jitter=self._jitter,
            checks=self._check is not None,
            name=self._name,
        )
        self._ready = self._core.table.ready
        self._idle = self._core.table.idle
        self._counters = self._core.counters
        self._cooling_keys = self._core.cooling.records
        self.troubles: tuple[Sized, ...] = (self._cooling_keys, self._core.hosts.troubled)
        """Keys, and hosts, that are left alone or have failed since their last success. For code that would ask
        ``troubled`` for every message. Other collections, once the pool was opened again."""

    # -- opening and closing ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the pool. No resource is opened yet.

        Re-entrant: each ``async with`` counts, the last exit closes. So everything that uses a pool enters it, and
        need not know of the other users. A pool that was closed opens again, with fresh state, also on another event
        loop; one that is being closed on this loop is waited for.

        Raises:
            ConfigurationError: it is open in another event loop.
        """
        loop = asyncio.get_running_loop()
        while (engine := self._engine) is not None and not self._is_over(engine):
            if engine.loop is not loop:
                raise ConfigurationError(f"{self._name} is open in another event loop: make one pool per loop")
            if self._closer is None:
                self._entrances.enter()
                return self
            await asyncio.wait([self._closer])  # several may wait here: the first one opens the pool, the others join
        self._start(again=engine is not None)
        self._entrances.enter()
        return self

    def _is_over(self, engine: Engine) -> bool:
        """Return whether nothing is left of an engine: it was closed, or its event loop was."""
        return engine.loop.is_closed() or (self._closer is not None and self._closer.done())

    def _start(self, *, again: bool) -> None:
        if again:
            self._clear()
        self._entrances.start_round()
        self._closed = False
        self._closer = self._grace = None
        self._engine = self._running = Engine(
            self._core, self._provision, timeouts=self._timeouts, observers=self._observers, name=self._name
        )
        self._provision.opener.warn()
        self._sweeper = self._engine.spawn(self._sweep(self._engine), "sweeper")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool, as ``aclose`` with its default grace, if this is the last exit."""
        if self._entrances.leave():
            await self.aclose()

    async def aclose(self, grace: float | None = None) -> None:
        """Close the pool and everything in it.

        From now on leases raise ``ClosedError``, those that wait included. Opens under way are called off. What is
        idle closes at once; what is leased closes behind its last lease, or when the grace is over. Returns when
        nothing is left: no resource, no task, no weight. What a provider raises in leaving is logged and counted.

        It takes at most the grace, ``PoolTimeouts.close`` for what is left then, and 5 s in which that is cancelled
        again and again: 25 s by default. What ignores all of it is abandoned, and the log says so.

        A second call, also at the same time, waits for the same close and may shorten its grace. Cancelling the
        call does not stop the close.

        Args:
            grace: seconds for leases to be given back; None for ``PoolTimeouts.close``.
        """
        self._closed = True
        # Before anything is awaited: the hit path looks only here, and must lease nothing from now
        # on.
        self._running = None
        engine = self._engine
        if engine is None:
            return
        if self._closer is None:
            self._core.shut(engine.loop.time())
            engine.act()
            self._closer = engine.start_close(self._close(engine))
        closer = self._closer
        self._hasten(engine, self._timeouts.close if grace is None else max(0.0, grace))
        # Shielded: all callers wait for one close, and a caller that is cancelled must not end it
        # for the others.
        with told_once():
            await asyncio.shield(closer)

    async def _close(self, engine: Engine) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        await engine.empty.wait()
        engine.close_log()
        if self._grace is not None:
            self._grace.cancel()

    def _hasten(self, engine: Engine, grace: float) -> None:
        deadline = engine.loop.time() + grace
        if engine.empty.is_set() or (self._grace is not None and self._grace.when() <= deadline):
            return
        if self._grace is not None:
            self._grace.cancel()
        self._grace = engine.call_at(deadline, self._end_grace, engine)

    def _end_grace(self, engine: Engine) -> None:
        self._core.force(engine.loop.time())
        engine.act()
        # Everything that is left has had its time then, and its alarm has rung.
        self._grace = engine.call_later(self._timeouts.close + _PRESS, self._press, engine, MOST_RINGS - 1)

    def _press(self, engine: Engine, times: int) -> None:
        """Cancel what swallows its cancellation so many times more, and abandon what is left: a process has to end."""
        if not times:
            engine.give_up()
            return
        engine.press()
        self._grace = engine.call_later(_PRESS, self._press, engine, times - 1)

    async def _sweep(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep)
            self._core.sweep(engine.loop.time())
            engine.act()

    # -- leases -------------------------------------------------------------------------------------------------

    def lease(self, context: C, *, timeout: float | None = None) -> LeaseScope[R]:
        """Lease a context's resources for the length of an ``async with``.

            async with databases.lease(tenant) as db: ...

        Entering raises as ``acquire`` does. An exception that leaves the block is reported to the pool
        (``Lease.report``) and goes on.
        """
        return LeaseScope(self, context, timeout)

    def try_lease(self, context: C) -> Lease[R] | None:
        """Lease a context's resources if that needs no waiting; else return None.

        None means: not open, or being replaced, or idle for so long that it has to be checked first;
        ``acquire`` does what is needed. The caller releases the lease.

        Raises:
            ClosedError, NotOpenError: the pool was closed, or not opened yet.
            ConfigurationError: this is another event loop, or a thread without one.
            ResourceError: ``key=`` failed, or the key cannot be hashed.
        """
        self._check_loop()
        held = self.try_hold(context)
        return None if held is None else held.lease()

    def try_hold(self, context: C) -> Held[R] | None:
        """Lease as ``try_lease`` does, for code that cannot forget the release: nothing warns if it does."""
        engine = self._running
        if engine is None:
            raise self._unusable()
        try:
            entry = self._ready.get(self._identify(context if self._key is None else self._key(context)))
        except BaseException as error:
            if ends_the_program(error):
                raise
            raise self._requests.no_key(context, error) from error
        if entry is None:
            return None
        if entry.doubtful or not entry.leases:
            if self._check is not None and self._core.needs_check(entry, engine.loop.time()):
                return None
            if not entry.leases:
                del self._idle[entry]
        # The same as `Core._grant`, written out here because it runs for every message.
        entry.leases += 1
        self._counters.hits += 1
        if log.isEnabledFor(_DEBUG):
            text = "Resources retrieved from pool for key: %s"
            log.debug(text, display_key(entry.key), extra=about(tenant=entry.key))
        return Held(engine, entry, entry.resource)

    async def acquire(self, context: C, *, timeout: float | None = None) -> Lease[R]:
        """Lease a context's resources, opening them if need be. The caller releases the lease.

        However many calls wait for one key, it is opened once. Cancelling a call leaves the others alone.

        Args:
            context: the owner of the resources.
            timeout: seconds that this call may take; None for ``PoolTimeouts.lease``.

        Raises:
            ResourceOpenError: an outage (``permanent`` is False), or there is no such tenant (True): the provider
                failed, its pause is not over, its host is left alone, or it is still being opened at the deadline.
                ``retry_after`` says when the pool tries again; the provider's exception is the ``__cause__``.
            ResourceUnhealthyError: opened again after a failed health check, and unhealthy still.
            PoolExhaustedError: no budget came free before the deadline.
            ResourceError: ``key=`` failed for this context. ``host=``, ``weight=`` or ``PoolLimits(per_host=)`` that
                failed, or said what cannot work, is an outage: a ``ResourceOpenError``.
            ConfigurationError: the provider is none: what it returns cannot be entered or awaited.
            ClosedError, NotOpenError: the pool was closed, also while this call waited; or not opened yet.
        """
        lease = self.try_lease(context)
        if lease is not None:
            return lease
        outcome = await self._wait(context, self._timeouts.lease if timeout is None else timeout)
        if isinstance(outcome, Lease):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # or the error would keep itself alive through this frame

    @property
    def weight(self) -> int | None:
        """What one tenant's resources weigh; None where a function says that, tenant by tenant."""
        return self._requests.fixed_weight

    @property
    def limits(self) -> PoolLimits:
        """What the pool may hold, as it was made."""
        return self._limits

    @property
    def timeouts(self) -> PoolTimeouts:
        """How long the pool waits for others, as it was made."""
        return self._timeouts

    @property
    def key(self) -> Callable[[C], Hashable] | None:
        """What makes the key of a context: the function given as ``key=``; None where the context itself is the key."""
        return self._key

    def key_of(self, context: C) -> Hashable:
        """Return the part of a context that names its resources: what ``key=`` says, or the whole context."""
        return context if self._key is None else self._key(context)

    def host_of(self, context: C) -> Hashable | None:
        """Return the host that a context's resources live on; None without ``host=``, and where it fails."""
        return self._requests.known_host(context)

    def is_open(self, context: C) -> bool:
        """Whether something is open that may be leased: no opening needs to be waited for. Raises nothing."""
        try:
            return self._identify(self.key_of(context)) in self._ready
        except BaseException as error:  # key= failed, or its answer cannot be hashed: acquire() says so
            if ends_the_program(error):
                raise
            return False

    def keys(self) -> list[Hashable]:
        """Return the keys of everything that is open, opening or closing, and of remembered failures."""
        return list(dict.fromkeys(map(self.key_of, self._contexts())))

    def context_of(self, key: Hashable) -> C | None:
        """Return a context that has the resources of a key; None with ``key=``, where nothing of the key is known."""
        if self._key is None:
            return cast("C", key)
        return next((context for context in self._contexts() if self.key_of(context) == key), None)

    def _contexts(self) -> list[C]:
        known = [entry.context for entry in self._core.table.entries]
        return known + [context for _, context in self._core.cooling.contexts()]

    @property
    def provider(self) -> Callable[[C], Any]:
        """What opens a context's resources."""
        return self._provision.opener.provider

    @property
    def connects(self) -> bool:
        """Whether its resources are connections to a server; not, where the provider says that they are files."""
        return self._connects

    async def place_of(self, context: C) -> str | None:
        """Return where a context's resources are, as the provider's ``place`` says; None where it does not tell."""
        return None if self._place is None else await self._place(context)

    def weight_of(self, key: Hashable) -> int | None:
        """Return the weight of a key's resource; None where nothing is open that may be leased."""
        entry = self._ready.get(self._identify(key))
        return None if entry is None else entry.weight

    def leases_of(self, key: Hashable) -> int | None:
        """Return how many leases of a key's resource are out; None where nothing is open that may be leased."""
        entry = self._ready.get(self._identify(key))
        return None if entry is None else entry.leases

    def leases_out(self, key: Hashable) -> int | None:
        """Return how many leases of a key's resources are out, also of those that close behind their last one.

        None where nothing of the key is open, opening or closing.
        """
        leases = [entry.leases for entry in self._core.table.entries if self.key_of(entry.context) == key]
        return sum(leases) if leases else None

    def retry_after(self, context: C) -> float:
        """Return the seconds for which a context, or its host, is left alone after failures; 0.0 if it is not.

        0.0 also where something is open that may be leased (a failing replacement does not block what it replaces),
        unless a use of it has just met an outage; and where ``key=`` fails. Raises nothing.
        """
        engine = self._running
        if engine is None or not self._core.troubled or (place := self._requests.place(context)) is None:
            return 0.0
        return self._core.retry_after(place, engine.loop.time())

    def unknown_at(self, context: C) -> float | None:
        """Return the loop time at which the provider said that there is no such tenant. Raises nothing.

        None for others, and from when the provider is asked again, which is after ``retry_after`` seconds. Until then
        ``acquire`` refuses such a context at once.
        """
        engine = self._running
        if engine is None or not self._cooling_keys or (place := self._requests.place(context)) is None:
            return None
        return self._core.unknown_at(place, engine.loop.time())

    def unknown(self, key: Hashable) -> tuple[str, float] | None:
        """Return what was said of a key that the provider does not know, and the loop time of that; None for others."""
        if self._running is None or not self._core.troubled:
            return None
        record = self._core.cooling.find(self._requests.identify(key))
        if record is None or not record.permanent or record.cause is None:
            return None
        return f"there is no such tenant ({record.cause.text})", record.since

    @property
    def troubled(self) -> bool:
        """Whether any context or host is left alone now, or has failed since its last success.

        While it is False, ``retry_after`` is 0.0 for every context. It costs next to nothing.
        """
        return any(self.troubles)

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        """Tell one more observer of this pool's events. Returns a function that ends that.

        For a user of a pool that others share: each subscribes for itself. The observer is called as those of
        ``observers=`` are.
        """
        return self._observers.add(observer)

    async def invalidate(self, context: C) -> None:
        """Stop leasing what exists now for a context, and forget its failures.

        What is open closes behind its last lease, what is being opened is called off and opened again for those who
        wait. Effective on return; does not wait for the close.
        """
        self._invalidate([self._requests.identity(context)])

    async def invalidate_where(self, predicate: Callable[[C], bool]) -> None:
        """Do as ``invalidate`` for every context that the predicate accepts.

        It is asked about each entry and each remembered failure. What it raises comes through; nothing was
        invalidated then.
        """
        known = [(entry.identity, entry.context) for entry in self._core.table.entries]
        known += self._core.cooling.contexts()
        self._invalidate([identity for identity, context in known if predicate(context)])

    def forget_failures(self, predicate: Callable[[C], bool]) -> None:
        """Forget the failed opens of every context that the predicate accepts: the next lease tries at once.

        What is open stays, and so does the pause of a host.
        """
        if self._engine is not None:
            for identity, context in self._core.cooling.contexts():
                if predicate(context):
                    self._core.forget_failures(identity)
            self._engine.act()

    def end_pauses(self, contexts: Iterable[C]) -> None:
        """Let contexts, and their hosts, be tried at once: the last chance of a consumer that stops.

        What is remembered of their failures stays: when they fail again, the next pause is as long as it would have
        been.
        """
        if self._engine is not None:
            core, now = self._core, self._engine.loop.time()
            for context in contexts:
                core.cooling.end_pause(self._requests.identity(context), now)
                core.hosts.end_pause(self._requests.known_host(context), now)
            self._engine.act()

    def _invalidate(self, identities: list[Identity]) -> None:
        if self._engine is not None:
            self._core.invalidate(identities, self._engine.loop.time())
            self._engine.act()

    def statistics(self) -> PoolStatistics:
        """Return a snapshot: counters since the pool was made, and gauges of this moment."""
        core, table, counters = self._core, self._core.table, self._core.counters
        counts: dict[str, int] = {name: getattr(counters, name) for name in counters.__slots__ if name != "evictions"}
        return PoolStatistics(
            name=self._name,
            **counts,
            evictions=MappingProxyType(dict(counters.evictions)),
            budget=core.budget.limit,
            weight=core.budget.used,
            live=table.live,
            opening=table.opens,
            ready=table.counts[EntryState.READY] + table.counts[EntryState.CHECKING],
            draining=table.counts[EntryState.DRAINING],
            closing=table.counts[EntryState.CLOSING],
            leased=sum(entry.leases for entry in table.entries),
            waiting=sum(len(demand.waiters) for demand in core.demands.values()),
            cooling=0 if self._engine is None else core.cooling.count(self._engine.loop.time()),
        )

    # -- waiting ------------------------------------------------------------------------------------------------

    async def _wait(self, context: C, seconds: float) -> Lease[R] | PostroomError:
        engine = self._check_loop()
        waiter = Waiter(context, engine.loop.create_future())
        self._counters.misses += 1
        self._core.ask(self._requests.request(context), waiter, engine.loop.time())
        engine.act()
        timer = None
        # Asked first, even without time to wait: so a key that is left alone is refused with its
        # cause, and not with a timeout.
        if seconds <= 0:
            self._expire(waiter, engine)
        elif seconds < math.inf and not waiter.future.done():
            # A timer and not `asyncio.timeout`: grant and expiry both answer through the waiter's
            # future, so that only the first of them counts when both fall into one turn of the
            # loop.
            timer = engine.call_later(seconds, self._expire, waiter, engine)
        try:
            outcome: Lease[R] | PostroomError = await waiter.future
        except asyncio.CancelledError:
            self._withdraw(waiter, engine)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return outcome

    def _withdraw(self, waiter: Waiter, engine: Engine) -> None:
        """Forget a cancelled call. What it was given in the same instant goes back: no other code will do it."""
        self._core.leave(waiter, engine.loop.time())
        if waiter.future.done() and not waiter.future.cancelled():
            outcome = waiter.future.result()
            if isinstance(outcome, Lease):
                outcome.release()
        engine.act()

    def _expire(self, waiter: Waiter, engine: Engine) -> None:
        if waiter.future.done() or waiter.demand is None:
            return
        # Before `leave`, which may drop the demand that the text is about.
        refusal = self._why_late(waiter.demand)
        if isinstance(refusal, NoRoom):
            self._core.note_waiting(waiter.demand, engine.loop.time())
        self._counters.timeouts += 1
        self._core.leave(waiter, engine.loop.time())
        waiter.future.set_result(refusal.error(waiter.context))
        engine.act()

    def _why_late(self, demand: Demand) -> Refusal:
        budget, cause = self._core.budget, self._core.last_cause(demand)
        gate = self._core.gates.find(demand.host)
        if demand.stage is Stage.AT_GATE and gate is not None:
            return NoRoom(demand.key, f"{gate.used} of the budget of {gate.limit} of its host in use", cause)
        if demand.stage is Stage.QUEUED and self._core.lacks_budget(demand):
            return NoRoom(demand.key, f"{budget.used} of the budget of {budget.limit} in use", cause)
        if demand.stage is Stage.QUEUED:
            opens, failed = self._core.table.opens, self._core.table.troubled_opens
            text = f"{opens} opens are under way, the most allowed at once"
            if demand.troubled and opens < self._limits.max_concurrent_opens:
                text = f"{failed} opens of contexts that failed before are under way, the most of these allowed at once"
            return NoRoom(demand.key, text, cause)
        return TooLate(demand.key, _LATE[demand.stage], cause)

    # -- small print --------------------------------------------------------------------------------------------

    def _check_loop(self) -> Engine:
        """Return the engine, in its own event loop.

        Raises:
            ClosedError, NotOpenError: the pool was closed, or not opened yet.
            ConfigurationError: this is another event loop, or a thread without one. An open resource would be used by
                two of them.
        """
        if self._running is None:
            raise self._unusable()
        if self._running.loop is not asyncio._get_running_loop():  # noqa: SLF001 - it raises nothing in a thread
            raise ConfigurationError(f"{self._name} was opened on another event loop: a pool belongs to one")
        return self._running

    def _unusable(self) -> PostroomError:
        if self._closed:
            return ClosedError(f"{self._name} was closed; keep it open for as long as it is used")
        return NotOpenError(f"{self._name} is not open: write `async with pool:` around its use")


_LATE: dict[Any, str] = {
    Stage.PARKED: "its host is being tried with another context first",
    Stage.OPENING: "still opening",
    Stage.CHECKING: "its health check still runs",
}


def _named_by(key: Callable[[C], Hashable]) -> Callable[[C], Hashable]:
    """Refuse None as a key: a look-up that finds nothing would give one resource to all tenants that it misses.

    So are a coroutine and an error that was to be raised: each message would have a resource of its own.
    """

    @functools.wraps(key)
    def name(context: C) -> Hashable:
        if (found := key(context)) is None:
            raise ValueError("it returned None; let it return what names the resources, or raise when nothing does")
        if isinstance(found, BaseException):
            raise TypeError(f"it returned {type(found).__name__}; let it raise that")
        return answered(found)

    return name
