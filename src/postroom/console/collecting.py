"""What happens in one consumer, by tenant: gathered while a page is open, and only then."""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Final, cast

import msgspec

from postroom.consumer import Consumer
from postroom.events import Event, HandlerFinished, MessageFailed, MessageReceived, MessageSettled
from postroom.resources import display_key
from postroom.types import Settlement

REMEMBER: Final = 20_000
"""Tenants of which figures are kept; the one that was idle for longest is forgotten first."""
_WINDOW: Final = 10.0
"""Seconds over which rates and shares are averaged: what is older weighs less, by half after 7 s."""
_SAMPLES: Final = 200
"""Handler durations of each tenant from which its percentiles are taken: the latest ones."""
_MOST_AWAY: Final = 60_000
_MOST_NOTED: Final = 10_000
"""Handlers that have ended, and are not counted yet."""


class Tally:
    """The figures of one tenant since they are gathered."""

    __slots__ = ("_at", "dead", "error", "failed", "rate", "seconds", "shown", "times")

    def __init__(self, now: float) -> None:
        self._at = now
        self.rate: float = 0.0
        """Handlers that ended per second, lately."""
        self.seconds: float = 0.0
        """Handler seconds per second, lately."""
        self.times: deque[float] = deque(maxlen=_SAMPLES)
        self.error: str = ""
        self.failed: int = 0
        self.dead: int = 0
        self.shown: tuple[float, float] | None = None
        """The percentiles, until another handler ends."""

    def fade(self, now: float) -> None:
        """Let what was counted weigh less."""
        passed = now - self._at
        if passed > 0:
            # Faded when it is touched, so that 20,000 idle tenants need no timer.
            factor = math.exp(-passed / _WINDOW)
            self.rate *= factor
            self.seconds *= factor
            self._at = now

    def handled(self, seconds: float, now: float) -> None:
        """Note the end of a handler."""
        self.add(seconds, now)
        self.times.append(seconds)
        self.shown = None

    def add(self, seconds: float, now: float) -> None:
        """Count the end of a handler, and keep nothing else of it."""
        self.fade(now)
        self.rate += 1.0 / _WINDOW
        self.seconds += seconds / _WINDOW

    def percentiles(self) -> tuple[float, float] | None:
        """Return p50 and p99 of the latest handlers; None before the first one."""
        if self.shown is None and self.times:
            ordered = sorted(self.times)
            last = len(ordered) - 1
            self.shown = ordered[round(last * 0.5)], ordered[round(last * 0.99)]
        return self.shown


class Collector:
    """Listens to a consumer from ``start`` to ``stop``. Costs nothing at other times.

    Args:
        consumer: the consumer.
    """

    def __init__(self, consumer: Consumer[Any, Any]) -> None:
        self.consumer = consumer
        self.tallies: OrderedDict[Hashable, Tally] = OrderedDict()
        self.total: Tally = Tally(0.0)
        """Handlers of all tenants together."""
        self.heard: set[Hashable] = set()
        """The tenants with messages that something was heard of since the last look."""
        self.began: float = 0.0
        """The loop time since when it listens."""
        self.away: dict[Hashable, int] = {}
        """Messages of each tenant that were parked or deferred, and are invisible now, as far as it was seen."""
        self._clock: Callable[[], float] = time.monotonic
        self._names: dict[Hashable, str] = {}
        self._ended: list[tuple[Hashable, float]] = []
        self._counted = 0.0
        self._absent: dict[str, tuple[Hashable, float]] = {}
        self._leave: Callable[[], None] | None = None

    @property
    def active(self) -> bool:
        """Whether it listens."""
        return self._leave is not None

    def name_of(self, tenant: Hashable) -> str:
        """Return a tenant's name, as the log shows it."""
        name = self._names.get(tenant)
        if name is None:
            if len(self._names) >= REMEMBER:
                self._names.clear()
            name = self._names[tenant] = display_key(tenant)
        return name

    def start(self) -> None:
        """Begin to listen."""
        if self._leave is None:
            self._clock = asyncio.get_running_loop().time
            self.began = self._counted = self._clock()
            self.total = Tally(self.began)
            self._leave = self.consumer.subscribe(self._tell)

    def seen(self) -> float:
        """Return which part of its average a tenant's rate can have by now: it has not listened for long."""
        return 1.0 - math.exp(-max(1.0, self._clock() - self.began) / _WINDOW)

    def stop(self) -> None:
        """Listen no longer, and forget everything."""
        if self._leave is not None:
            self._leave()
            self._leave = None
        self._names.clear()
        self.tallies.clear()
        self._ended.clear()
        self.heard.clear()
        self.away.clear()
        self._absent.clear()

    def tidy(self) -> None:
        """Count the handlers that have ended, and forget messages that were away and have reappeared by now."""
        now = self._clock()
        ended, self._ended = self._ended, []
        middle = now - (now - self._counted) / 2  # when they have ended, on average
        self._counted = now
        for tenant, seconds in ended:
            self._tally(tenant, middle).handled(seconds, middle)
            self.total.add(seconds, middle)
        for message_id in [key for key, (_, until) in self._absent.items() if until <= now]:
            self._came_back(message_id)

    def _tell(self, event: Event) -> None:
        """Hear an event. Most are of handlers that ended: they are only noted, and counted at the next look."""
        kind = type(event)
        if kind is HandlerFinished:
            finished = cast("HandlerFinished", event)
            self._ended.append((finished.tenant, finished.seconds))
            if len(self._ended) >= _MOST_NOTED:
                self.tidy()
        elif kind is MessageReceived:
            if self._absent:
                self._came_back(cast("MessageReceived", event).message.id)
        elif kind is MessageSettled:
            settled = cast("MessageSettled", event)
            if settled.settlement is not Settlement.ACKED:
                self._settled(settled)
        elif kind is MessageFailed:
            self._failed(cast("MessageFailed", event))

    def _settled(self, event: MessageSettled) -> None:
        tenant = event.tenant
        if event.settlement is Settlement.REJECTED:
            self._tally(tenant, self._clock()).dead += 1
        elif event.settlement is Settlement.DEFERRED and len(self._absent) < _MOST_AWAY:
            self._absent[event.message.id] = tenant, self._clock() + event.delay
            self.away[tenant] = self.away.get(tenant, 0) + 1

    def _failed(self, event: MessageFailed) -> None:
        if event.context is not None:
            tally = self._tally(self._key(event.context), self._clock())
            tally.error = type(event.error).__name__
            tally.failed += 1

    def _key(self, context: Any) -> Hashable:
        pool = self.consumer.pool
        return context if pool is None else pool.key_of(context)

    def _tally(self, tenant: Hashable, now: float) -> Tally:
        self.heard.add(tenant)
        tally = self.tallies.get(tenant)
        if tally is None:
            if len(self.tallies) >= REMEMBER:
                self.tallies.popitem(last=False)
            tally = self.tallies[tenant] = Tally(now)
        else:
            self.tallies.move_to_end(tenant)
        return tally

    def _came_back(self, message_id: str) -> None:
        tenant, _ = self._absent.pop(message_id, (None, 0.0))
        left = self.away.get(tenant, 0) - 1
        if left > 0:
            self.away[tenant] = left
        else:
            self.away.pop(tenant, None)


class Row(msgspec.Struct, omit_defaults=True):
    """One tenant of one consumer, as the page shows it. Short names: there may be ten thousand of them."""

    q: int
    """The place of its consumer among those that are shown."""
    n: str
    """Its name, as the log shows it."""
    s: str = "active"
    w: float | None = None
    """When its oldest message that waits here was sent, in seconds since the epoch."""
    run: int = 0
    cap: int = 0
    rl: float | None = None
    """Its own limit of starts per second."""
    cl: int | None = None
    """Its own limit of running handlers."""
    fl: tuple[int, int] | None = None
    """What it may run here of what it may run in the whole fleet, where that is limited."""
    wait: int = 0
    held: int = 0
    away: int = 0
    rate: float = 0.0
    p50: float | None = None
    p99: float | None = None
    share: float = 0.0
    """Its part of the handler seconds, 0 to 1."""
    pool: int | None = None
    """Leases of its resource; None where nothing is open."""
    why: str = ""
    """Why it cannot run, or why an operator decided something about it."""
    since: float | None = None
    """When its outage began, in seconds since the epoch."""
    next: float | None = None
    """When it is tried again, in seconds since the epoch."""
    err: str = ""
    fail: int = 0
    dead: int = 0
