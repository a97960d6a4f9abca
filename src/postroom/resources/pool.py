"""``ResourcePool``: typed resources per context, opened once, leased to many, closed once.

The decisions are in ``core``, what follows from them in ``engine``; here is what a user calls.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType, TracebackType
from typing import Any, Final, Generic, Self

from postroom.errors import ClosedError, ConfigurationError, NotOpenError, PostroomError
from postroom.events import Observer, Observers
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.resources.core import Core
from postroom.resources.engine import Engine, log
from postroom.resources.entries import Demand, Stage, State, Waiter
from postroom.resources.failures import Failure, classify_open
from postroom.resources.identity import Identity, display_key
from postroom.resources.lease import Lease, LeaseScope
from postroom.resources.owner import MOST_RINGS
from postroom.resources.providers import adapt_provider, known_of
from postroom.resources.refusals import Exhausted, Refusal, TooLate
from postroom.resources.statistics import PoolStatistics
from postroom.resources.tickets import Tickets
from postroom.types import C, R

_DEBUG: Final = logging.DEBUG


class ResourcePool(Generic[C, R]):
    """A pool of resources, one per context: opened on the first lease, shared by all, closed when idle or old.

    ::

        async with ResourcePool(database) as databases:
            async with databases.lease(tenant) as db:
                await db.execute("...")

    Args:
        provider: returns an async context manager of a context's resources (a function decorated with
            ``@asynccontextmanager``); or is an async function that returns the resources. It is entered and left
            by one and the same task, which belongs to this resource alone.
        cleanup: closes what an async function opened; sync or async.
        key: the part of a context that names its resources; None for the whole context. It has to be hashable.
            Keys are the same when they are equal *and* of the same types, field by field: ``1`` is not ``True``.
        weight: what an entry takes of the budget (connections, not pools), or a function of the context; None for what
            the provider knows of itself, as those of ``postroom.datasources`` do, and 1 for any other.
        check: the health check; unhealthy when it raises or returns False. None for the provider's own, if it has one.
        classify: whether a failed open is worth trying again soon; None for :func:`classify_open`.
        host: which server a context's resources live on. With it, one dead server is found out once, not once
            per context; None for no such grouping.
        limits, timeouts, backoff: how much, how long, how often.
        observers: told of ``ResourceOpened``, ``ResourceOpenFailed`` and ``ResourceClosed``.
        name: in logs, errors and task names.
        jitter: the source of randomness; seed it for reproducible ages and pauses.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        provider: Callable[[C], AbstractAsyncContextManager[R]] | Callable[[C], Awaitable[R]],
        *,
        cleanup: Callable[[R], Awaitable[object] | None] | None = None,
        key: Callable[[C], Hashable] | None = None,
        weight: int | Callable[[C], int] | None = None,
        check: Callable[[R], Awaitable[object]] | None = None,
        classify: Callable[[BaseException], Failure] | None = None,
        host: Callable[[C], Hashable] | None = None,
        limits: PoolLimits = PoolLimits(),  # noqa: B008 - frozen
        timeouts: PoolTimeouts = PoolTimeouts(),  # noqa: B008 - frozen
        backoff: OpenBackoff = OpenBackoff(),  # noqa: B008 - frozen
        observers: Iterable[Observer] = (),
        name: str = "pool",
        jitter: random.Random | None = None,
    ) -> None:
        self._opener = adapt_provider(provider, cleanup)
        own_weight, own_check = known_of(provider)
        weight = own_weight if weight is None else weight
        self._tickets = Tickets(key=key, weight=weight, host=host, budget=limits.budget)
        self._check = check = own_check if check is None else check
        self._classify = classify or classify_open
        self._limits = limits
        self._timeouts = timeouts
        self._observers = Observers(observers)
        self._name = name
        self._core = Core(
            limits=limits,
            backoff=backoff,
            probe_deadline=timeouts.open + timeouts.check,
            jitter=jitter or random.Random(),  # noqa: S311 - jitter, not a secret
            checks=check is not None,
            name=name,
        )
        self._engine: Engine | None = None
        self._closed = False
        self._closer: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._entered = 0
        # What the hit path looks at, one step away.
        self._running: Engine | None = None
        self._key = key
        self._identify = self._tickets.identify
        self._ready = self._core.table.ready
        self._idle = self._core.table.idle
        self._counters = self._core.counters

    # -- opening and closing ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the pool. No resource is opened yet.

        Re-entrant: each ``async with`` counts, the last exit closes. So whoever uses a pool enters it, and nobody
        needs to know who else does.

        Raises:
            ClosedError: it was closed: make a new one.
            ConfigurationError: it is open in another event loop.
        """
        if self._closed:
            raise ClosedError(f"{self._name} was closed: make a new ResourcePool")
        if self._engine is not None:
            if self._engine.loop is not asyncio.get_running_loop():
                raise ConfigurationError(f"{self._name} is open in another event loop: make one pool per loop")
            self._entered += 1
            return self
        self._entered = 1
        self._engine = self._running = Engine(
            self._core,
            self._opener,
            check=self._check,
            classify=self._classify,
            timeouts=self._timeouts,
            observers=self._observers,
            name=self._name,
        )
        self._sweeper = self._engine.spawn(self._sweep(self._engine), "sweeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool, as :meth:`aclose` with its default grace, if this is the last exit."""
        self._entered -= 1
        if self._entered <= 0:
            await self.aclose()

    async def aclose(self, grace: float | None = None) -> None:
        """Close the pool and everything in it.

        From now on leases raise ``ClosedError``, those that wait included. Opens under way are called off. What is
        idle closes at once; what is leased closes behind its last lease, or when the grace is over. Returns when
        nothing is left: no resource, no task, no weight. What a provider raises in leaving is logged and counted.

        A second call, also at the same time, waits for the same close and may shorten its grace. Cancelling the
        call does not stop the close.

        Args:
            grace: seconds for leases to be given back; None for ``PoolTimeouts.close``.
        """
        self._closed = True
        self._running = None
        engine = self._engine
        if engine is None:
            return
        if self._closer is None:
            self._core.shut(engine.loop.time())
            engine.act()
            self._closer = engine.loop.create_task(self._close(engine), name=f"{self._name}: closing")
        self._hasten(engine, self._timeouts.close if grace is None else max(0.0, grace))
        await asyncio.shield(self._closer)

    async def _close(self, engine: Engine) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        await engine.empty.wait()
        if self._grace is not None:
            self._grace.cancel()

    def _hasten(self, engine: Engine, grace: float) -> None:
        deadline = engine.loop.time() + grace
        if engine.empty.is_set() or (self._grace is not None and self._grace.when() <= deadline):
            return
        if self._grace is not None:
            self._grace.cancel()
        self._grace = engine.loop.call_at(deadline, self._end_grace, engine)

    def _end_grace(self, engine: Engine) -> None:
        self._core.force(engine.loop.time())
        engine.act()
        longest = max(self._timeouts.open, self._timeouts.close, self._timeouts.check)
        self._grace = engine.loop.call_later((MOST_RINGS + 1) * longest, engine.give_up)

    async def _sweep(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep)
            self._core.sweep(engine.loop.time())
            engine.act()

    # -- leases -------------------------------------------------------------------------------------------------

    def lease(self, context: C, *, timeout: float | None = None) -> LeaseScope[R]:
        """Lease a context's resources for the length of an ``async with``.

        ::

            async with databases.lease(tenant) as db: ...

        Entering raises as :meth:`acquire` does. An exception that leaves the block is reported to the pool
        (:meth:`Lease.report`) and goes on.
        """
        return LeaseScope(self, context, timeout)

    def try_lease(self, context: C) -> Lease[R] | None:
        """Lease a context's resources if that needs no waiting; else return None.

        None means: not open, or being replaced, or idle for so long that it has to be checked first;
        :meth:`acquire` does what is needed. The caller releases the lease.

        Raises:
            ClosedError, NotOpenError: the pool was closed, or not opened yet.
            ResourceError: ``key=`` failed, or the key cannot be hashed.
        """
        engine = self._running
        if engine is None:
            raise self._unusable()
        try:
            entry = self._ready.get(self._identify(context if self._key is None else self._key(context)))
        except Exception as error:
            raise self._tickets.no_key(context, error) from error
        if entry is None:
            return None
        if not entry.leases:
            if self._check is not None and self._core.needs_check(entry, engine.loop.time()):
                return None
            del self._idle[entry]
        entry.leases += 1
        self._counters.hits += 1
        if log.isEnabledFor(_DEBUG):
            log.debug("Resources retrieved from pool for key: %s", display_key(entry.key))
        return Lease(engine, entry)

    async def acquire(self, context: C, *, timeout: float | None = None) -> Lease[R]:
        """Lease a context's resources, opening them if need be. The caller releases the lease.

        However many calls wait for one key, it is opened once. Cancelling a call leaves the others alone.

        Args:
            context: whose resources.
            timeout: seconds that this call may take; None for ``PoolTimeouts.lease``.

        Raises:
            ResourceOpenError: the provider failed, its pause is not over, its host is left alone, or it is still
                being opened at the deadline. ``retry_after`` and ``permanent`` say what to do.
            ResourceUnhealthyError: opened anew after a failed health check, and unhealthy still.
            PoolExhaustedError: no budget came free before the deadline.
            ConfigurationError: the weight of this context is more than the whole budget.
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

    def key_of(self, context: C) -> Hashable:
        """Return the part of a context that names its resources: what ``key=`` says, or the whole context."""
        return context if self._key is None else self._key(context)

    def host_of(self, context: C) -> Hashable | None:
        """Return the host that a context's resources live on, as ``host=`` says; None without one."""
        return self._tickets.ticket(context).host

    def is_open(self, context: C) -> bool:
        """Whether something is open that may be leased: no opening needs to be waited for."""
        return self._identify(self.key_of(context)) in self._ready

    def retry_after(self, context: C) -> float:
        """Return the seconds for which a context, or its host, is left alone after failures; 0.0 if it is not.

        0.0 also where something is open that may be leased: a failing replacement does not block what it replaces.
        """
        engine = self._engine
        return 0.0 if engine is None else self._core.retry_after(self._tickets.ticket(context), engine.loop.time())

    async def invalidate(self, context: C) -> None:
        """Lease nothing any more of what exists now for a context, and forget its failures.

        What is open closes behind its last lease, what is being opened is called off and opened anew for those who
        wait. Effective on return; does not wait for the close.
        """
        self._invalidate([self._tickets.identity(context)])

    async def invalidate_where(self, predicate: Callable[[C], bool]) -> None:
        """Do as :meth:`invalidate` for every context that the predicate accepts.

        It is asked about each entry and each remembered failure. What it raises comes through; nothing was
        invalidated then.
        """
        known = [(entry.identity, entry.context) for entry in self._core.table.entries]
        known += self._core.cooling.contexts()
        self._invalidate([identity for identity, context in known if predicate(context)])

    def _invalidate(self, identities: list[Identity]) -> None:
        if self._engine is not None:
            self._core.invalidate(identities, self._engine.loop.time())
            self._engine.act()

    def statistics(self) -> PoolStatistics:
        """Return a snapshot: counters since the pool was made, and gauges of this moment."""
        core, table, counters = self._core, self._core.table, self._core.counters
        counts: dict[str, int] = {name: getattr(counters, name) for name in counters.__slots__ if name != "evictions"}
        return PoolStatistics(
            **counts,
            evictions=MappingProxyType(dict(counters.evictions)),
            budget=core.budget.limit,
            weight=core.budget.used,
            live=table.live,
            opening=table.opens,
            ready=table.counts[State.READY] + table.counts[State.CHECKING],
            draining=table.counts[State.DRAINING],
            closing=table.counts[State.CLOSING],
            leased=sum(entry.leases for entry in table.entries),
            waiting=sum(len(demand.waiters) for demand in core.demands.values()),
            cooling=0 if self._engine is None else core.cooling.count(self._engine.loop.time()),
        )

    # -- waiting ------------------------------------------------------------------------------------------------

    async def _wait(self, context: C, seconds: float) -> Lease[R] | PostroomError:
        engine = self._engine_here()
        waiter = Waiter(context, engine.loop.create_future())
        self._counters.misses += 1
        self._core.ask(self._tickets.ticket(context), waiter, engine.loop.time())
        engine.act()
        timer = None
        if seconds <= 0:
            self._expire(waiter, engine)
        elif seconds < math.inf and not waiter.future.done():
            timer = engine.loop.call_later(seconds, self._expire, waiter, engine)
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
        """Forget a cancelled call. What it was given in the same instant goes back: nobody else will do it."""
        self._core.leave(waiter, engine.loop.time())
        if waiter.future.done() and not waiter.future.cancelled():
            outcome = waiter.future.result()
            if isinstance(outcome, Lease):
                outcome.release()
        engine.act()

    def _expire(self, waiter: Waiter, engine: Engine) -> None:
        if waiter.future.done() or waiter.demand is None:
            return
        refusal = self._why_late(waiter.demand)
        self._counters.timeouts += 1
        self._core.leave(waiter, engine.loop.time())
        waiter.future.set_result(refusal.error(waiter.context))
        engine.act()

    def _why_late(self, demand: Demand) -> Refusal:
        budget = self._core.budget
        if demand.stage is Stage.QUEUED and budget.free < demand.weight:
            return Exhausted(demand.key, f"{budget.used} of the budget of {budget.limit} in use")
        if demand.stage is Stage.QUEUED:
            return Exhausted(demand.key, f"{self._core.table.opens} opens are under way, the most allowed at once")
        return TooLate(demand.key, _LATE[demand.stage])

    # -- small print --------------------------------------------------------------------------------------------

    def _engine_here(self) -> Engine:
        if self._running is None:
            raise self._unusable()
        if self._running.loop is not asyncio.get_running_loop():
            raise ConfigurationError(f"{self._name} was opened on another event loop: a pool belongs to one")
        return self._running

    def _unusable(self) -> PostroomError:
        if self._closed:
            return ClosedError(f"{self._name} was closed")
        return NotOpenError(f"{self._name} is not open: write `async with pool:` around its use")


_LATE: dict[Any, str] = {
    Stage.PARKED: "its host is being tried with another context first",
    Stage.OPENING: "still opening",
    Stage.CHECKING: "its health check still runs",
}
