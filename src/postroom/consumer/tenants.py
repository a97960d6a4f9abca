"""Control of single tenants while a consumer runs."""

import asyncio
import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

from postroom.errors import ConfigurationError
from postroom.scheduling import LaneStatistics, Pace, Scheduler

_KEEP: Any = object()
_POLL = 0.05


class TenantState(StrEnum):
    """What was decided about a tenant, or what became of it."""

    ACTIVE = "active"
    UNAVAILABLE = "unavailable"
    """Its resources cannot be opened, or its handlers fail: its messages wait. ``reason`` has the cause."""
    PAUSED = "paused"
    """Nothing of it starts: its messages wait, here and deferred in the queue."""
    QUARANTINED = "quarantined"
    """Its messages go to the dead-letter queue, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStatus:
    """One tenant: what was decided about it, and what it has here now."""

    key: Hashable
    state: TenantState = TenantState.ACTIVE
    reason: str | None = None
    """Why it is unavailable, or in quarantine."""
    since: float | None = None
    """For how many seconds it has been unavailable."""
    concurrency: int | None = None
    """Its own limit of running handlers, if it has one."""
    rate: float | None = None
    """Its own limit of handler starts per second, if it has one."""
    running: int = 0
    waiting: int = 0
    suspended: int = 0
    """Messages that wait, without a slot, for its resources."""
    handler_seconds: float = 0.0
    """What one of its messages takes, as a recent average."""


class Controlled(Protocol):
    """The consumer, as far as decisions about its tenants go."""

    @property
    def scheduler(self) -> Scheduler[Any]:
        """Where tenants have their lanes."""
        ...

    def decided(self, tenant: Hashable, *, paused: bool) -> None:
        """Carry out what was decided about a tenant: start, call back, give up resources."""
        ...

    def unavailable(self, tenant: Hashable) -> tuple[str, float] | None:
        """Return why a tenant cannot run, and for how many seconds, if it cannot."""
        ...


class Tenants:
    """Pause, limit or quarantine one tenant. Reached as ``consumer.tenants``.

    A tenant is named by its context, or by its key where the pool has ``key=``. Decisions hold in this process only;
    they outlive a restart of the consumer, but not the process. Everything but :meth:`drain` may be called from any
    thread, such as that of a web route, and takes effect at once in the loop's own thread, with the next turn of the
    loop from another.
    """

    def __init__(self) -> None:
        self._rules: dict[Hashable, TenantStatus] = {}
        self.ruled = False
        """Whether anything was decided about any tenant."""
        self._paces: dict[Hashable, Pace] = {}
        self._lock = threading.Lock()
        self._consumer: Controlled | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    # -- decisions ----------------------------------------------------------------------------------------------

    def pause(self, key: Hashable) -> None:
        """Start no further message of a tenant; those that run go on.

        What waits here stays ours; of what still comes, a few messages wait here and the rest is deferred, as far as
        the attempts that each message was promised allow.
        """
        self._decide(key, state=TenantState.PAUSED, reason=None)

    def resume(self, key: Hashable) -> None:
        """End a pause or a quarantine. Limits stay."""
        self._decide(key, state=TenantState.ACTIVE, reason=None)

    def quarantine(self, key: Hashable, *, reason: str = "tenant in quarantine") -> None:
        """Send a tenant's messages to the dead-letter queue with a reason, until it is resumed.

        They can be redriven from there. Without a dead-letter queue they go back, and come again after the backoff; no
        attempt is counted.
        """
        self._decide(key, state=TenantState.QUARANTINED, reason=reason)

    def limit(self, key: Hashable, *, concurrency: int | None = _KEEP, rate: float | None = _KEEP) -> None:
        """Limit how many of a tenant's handlers run at once, and how many start per second. None ends a limit.

        Raises:
            ConfigurationError: a limit that is not above 0; use :meth:`pause` for none at all.
        """
        for name, value in (("concurrency", concurrency), ("rate", rate)):
            if value is not _KEEP and value is not None and not value > 0:
                text = f"limit({name}=...) takes a number above 0, or None for no limit; got {value!r}. See pause()"
                raise ConfigurationError(text)
        chosen = {"concurrency": concurrency, "rate": rate}
        self._decide(key, **{name: value for name, value in chosen.items() if value is not _KEEP})

    async def drain(self, key: Hashable, *, timeout: float | None = None) -> None:
        """Pause a tenant and return when none of its handlers runs: its database may be moved then.

        Raises:
            TimeoutError: some still run after ``timeout`` seconds; the tenant stays paused.
        """
        self.pause(key)
        async with asyncio.timeout(timeout):
            while self._is_busy(key):  # noqa: ASYNC110
                await asyncio.sleep(_POLL)

    # -- a look -------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Hashable) -> TenantStatus:
        """Return what is known of a tenant. An unknown one is active and has nothing here."""
        rule = self._rules.get(key) or TenantStatus(key=key)
        figures = self._figures(key)
        trouble = None if self._consumer is None else self._consumer.unavailable(key)
        if trouble is not None and rule.state is TenantState.ACTIVE:
            rule = replace(rule, state=TenantState.UNAVAILABLE, reason=trouble[0], since=trouble[1])
        return replace(
            rule,
            running=figures.running,
            waiting=figures.waiting,
            suspended=figures.suspended,
            handler_seconds=figures.estimate,
        )

    def __iter__(self) -> Iterator[TenantStatus]:
        """List the tenants that have something here now, and those that something was decided about."""
        here = [] if self._consumer is None else self._consumer.scheduler.tenants()
        return iter([self[key] for key in dict.fromkeys([*here, *list(self._rules)])])

    # -- what the consumer asks ---------------------------------------------------------------------------------

    def is_paused(self, key: Hashable) -> bool:
        """Whether a tenant is paused."""
        rule = self._rules.get(key) if self._rules else None
        return rule is not None and rule.state is TenantState.PAUSED

    def rate_of(self, key: Hashable) -> float | None:
        """Return how many of a tenant's handlers may start per second; None without such a limit."""
        rule = self._rules.get(key) if self._rules else None
        return None if rule is None else rule.rate

    def quarantined_because(self, key: Hashable) -> str | None:
        """Return why a tenant is in quarantine; None if it is not."""
        rule = self._rules.get(key) if self._rules else None
        return rule.reason if rule is not None and rule.state is TenantState.QUARANTINED else None

    def attach(self, consumer: Controlled) -> None:
        """Begin to carry decisions out: the consumer starts, in this thread and loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._consumer = consumer
        self._paces.clear()  # their times were those of another loop
        for key in list(self._rules):
            self._carry_out(key)

    def _decide(self, key: Hashable, **changes: Any) -> None:
        with self._lock:  # two threads may each change another part of one rule
            rule = replace(self._rules.get(key) or TenantStatus(key=key), **changes)
            if rule == TenantStatus(key=key):
                self._rules.pop(key, None)
            else:
                self._rules[key] = rule
            self.ruled = bool(self._rules)
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self._carry_out(key)
        else:
            loop.call_soon_threadsafe(self._carry_out, key)

    def _carry_out(self, key: Hashable) -> None:
        if self._consumer is None:
            return
        rule = self._rules.get(key) or TenantStatus(key=key)
        paused = rule.state is TenantState.PAUSED
        pace = self._pace(key, rule.rate)
        self._consumer.scheduler.control(key, paused=paused, pace=pace, cap=rule.concurrency)
        self._consumer.decided(key, paused=paused)

    def _pace(self, key: Hashable, rate: float | None) -> Pace | None:
        """Return the tenant's bucket: the same one while its rate stays, or every other decision would fill it up."""
        pace = self._paces.get(key)
        if rate is None:
            self._paces.pop(key, None)
            return None
        if pace is None or pace.rate != rate:
            pace = self._paces[key] = Pace(rate)
        return pace

    def _is_busy(self, key: Hashable) -> bool:
        """Whether anything of a tenant runs, or is about to get its resources."""
        figures = self._figures(key)
        return figures.running > 0 or figures.suspended > 0

    def _figures(self, key: Hashable) -> LaneStatistics:
        return LaneStatistics() if self._consumer is None else self._consumer.scheduler.figures(key)
