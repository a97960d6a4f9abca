"""Metrics of consumers: durations as they happen, everything else from statistics when it is collected."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Final

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from postroom.consumer import ConsumerStatistics
from postroom.events import (
    ConsumerStarted,
    ConsumerStopped,
    HandlerFinished,
    HandlerStarted,
    PollFailed,
    PollFinished,
    ResourceOpened,
)
from postroom.integrations.otel import names
from postroom.integrations.otel.names import Instrument
from postroom.integrations.otel.spans import is_failure
from postroom.integrations.otel.tenants import Busiest, Figures, TopTenants
from postroom.types import Settlement

_TICK: Final = 0.5
"""Seconds between two looks at how late the event loop is."""
_TRIES: Final = 5
_FRESH: Final = 0.05
"""Seconds for which statistics serve all instruments: one collection asks for them dozens of times."""
_ATTEMPT_BOUNDS: Final = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)

Labels = dict[str, str]
Statistics = Callable[[], ConsumerStatistics]
_Key = tuple[str, str, str]
"""What is counted: the field, a label's value, and the queue where a consumer has several."""
_OF_EACH_QUEUE: Final = (
    "received",
    "receives",
    "poll_failures",
    "extensions",
    "settlement_failures",
    "group_mismatches",
)


class _Queue:
    """The consumers of one queue in this process: those that run, and what those that stopped have counted."""

    def __init__(self, name: str) -> None:
        self.labels: Labels = {names.SYSTEM: names.SQS, names.DESTINATION: name}
        self.process: Labels = {**self.labels, names.OPERATION_NAME: names.PROCESS}
        self.receive: Labels = {**self.labels, names.OPERATION_NAME: names.RECEIVE, names.OPERATION_TYPE: names.RECEIVE}
        self._run: list[Statistics] = []
        self._past: Counter[_Key] = Counter()
        self._several: dict[tuple[Statistics, str], Counter[_Key]] = {}
        """Of each queue of a consumer that has several: what was counted last, also if the queue is closed by now."""
        self._seen: dict[Statistics, ConsumerStatistics] = {}
        self._seen_at = 0.0
        self._lock = threading.Lock()

    def begin(self, statistics: Statistics) -> None:
        """Take in a run."""
        with self._lock:
            # A list of its own each time: a collecting thread may be going through the old one.
            self._run = [*self._run, statistics]
            self._seen_at = 0.0

    def end(self, statistics: Statistics) -> None:
        """Keep what a run has counted: counters never go back when a consumer is started again."""
        with self._lock:
            if statistics in self._run:
                self._run = [each for each in self._run if each != statistics]
                # The last figures, taken while the run can still be asked: a counter that fell
                # would look like a restart.
                self._past.update(self._counts(statistics, statistics()))
                for key in [key for key in self._several if key[0] == statistics]:
                    del self._several[key]
                self._seen_at = 0.0

    @property
    def has_consumer(self) -> bool:
        """Whether one runs or has run: others are only sent to, or are one of several of a consumer."""
        return bool(self._run or self._past)

    def now(self) -> list[ConsumerStatistics]:
        """Return the statistics of the consumers that run. Called in whatever thread collects."""
        with self._lock:
            # All instruments of one collection see the same moment, or their sums would not fit
            # together.
            if time.monotonic() - self._seen_at > _FRESH:
                self._seen = {each: found for each in self._run if (found := _asked(each)) is not None}
                self._seen_at = time.monotonic()
            return list(self._seen.values())

    def total(self) -> Counter["_Key"]:
        """Return what all runs have counted."""
        self.now()
        with self._lock:
            total = Counter(self._past)
            for run, each in self._seen.items():
                total.update(self._counts(run, each))
            return total

    def _counts(self, run: Statistics, now: ConsumerStatistics) -> Counter["_Key"]:
        """Return what one run has counted: where it has several queues, the figures of each by its own name."""
        counts = _counts(now)
        if not now.queues or set(now.queues) == {self.labels[names.DESTINATION]}:
            return counts
        for name, figures in now.queues.items():
            own = Counter({(field, "", name): getattr(figures, field) for field in _OF_EACH_QUEUE})
            own.update({("settled", each.value, name): figures.settled.get(each, 0) for each in Settlement})
            self._several[run, name] = own
        for key in [key for key in counts if key[0] in _OF_EACH_QUEUE or key[0] == "settled"]:
            del counts[key]
        for (of_run, _), own in self._several.items():
            if of_run == run:
                counts.update(own)
        return counts


def _asked(statistics: Statistics) -> ConsumerStatistics | None:
    for _ in range(_TRIES):
        try:
            return statistics()
        except RuntimeError:  # something changed while it was looked at, in the thread of the event loop
            continue
    return None


def _counts(now: ConsumerStatistics) -> Counter[_Key]:
    counts = Counter({(field, "", ""): getattr(now, field) for field in ("received", *names.COUNTERS)})
    # Each from 0 on: the increase from nothing to 1 is seen by no query.
    counts.update({("settled", settlement.value, ""): now.settled.get(settlement, 0) for settlement in Settlement})
    counts.update({("failed", kind, ""): count for kind, count in now.failed.items()})
    return counts


class Metrics:
    """Records the metrics of all consumers that tell it their events.

    Args:
        meter: makes instruments.
        tenants: whether, and for how many, busy tenants have metrics of their own.
    """

    def __init__(self, meter: Meter, tenants: TopTenants | None) -> None:
        self._queues: dict[str, _Queue] = {}
        self._busiest = None if tenants is None else Busiest(tenants)
        self._waited: dict[int, float] = {}
        self._last_opened: ResourceOpened | None = None
        self._lags: dict[asyncio.AbstractEventLoop, _LoopLag] = {}
        self._process = _histogram(meter, names.PROCESS_DURATION, names.SECONDS)
        self._operation = _histogram(meter, names.OPERATION_DURATION, names.SECONDS)
        self._wait = _histogram(meter, names.WAIT, names.LONG_SECONDS)
        self._attempts = _histogram(meter, names.ATTEMPTS, _ATTEMPT_BOUNDS)
        self._lease = _histogram(meter, names.LEASE_DURATION, names.LONG_SECONDS)
        self._open = _histogram(meter, names.OPEN_DURATION, names.SECONDS)
        self._lag = _histogram(meter, names.LOOP_LAG, names.SECONDS)
        self._sent = meter.create_counter(names.SENT.name, names.SENT.unit, names.SENT.text)
        self._observe(meter)

    # -- events -------------------------------------------------------------------------------------------------

    def began(self, event: ConsumerStarted) -> None:
        """Collect from a consumer from now on, and watch its event loop."""
        if event.statistics is not None:
            self._queue(event.queue).begin(event.statistics)
        loop = asyncio.get_running_loop()
        lag = self._lags.get(loop)
        if lag is None:
            lag = self._lags[loop] = _LoopLag(loop, self._lag)
        lag.users += 1

    def ended(self, event: ConsumerStopped) -> None:
        """Keep what a consumer has counted."""
        if event.statistics is not None:
            self._queue(event.queue).end(event.statistics)
        loop = asyncio.get_running_loop()
        lag = self._lags.get(loop)
        if lag is not None:
            lag.users -= 1
            if not lag.users:
                self._lags.pop(loop).close()

    def polled(self, event: PollFinished) -> None:
        """Record a receive that was answered."""
        self._operation.record(event.seconds, self._queue(event.queue).receive)

    def poll_failed(self, event: PollFailed) -> None:
        """Record a receive that failed."""
        labels = {**self._queue(event.queue).receive, names.ERROR_TYPE: type(event.error).__name__}
        self._operation.record(event.seconds, labels)

    def sent(self, queue: str, count: int, seconds: float, error: BaseException | None) -> None:
        """Record a send."""
        labels = {**self._queue(queue).labels, names.OPERATION_NAME: names.SEND, names.OPERATION_TYPE: names.SEND}
        if error is not None:
            labels[names.ERROR_TYPE] = type(error).__name__
        self._operation.record(seconds, labels)
        self._sent.add(count, labels)

    def started(self, event: HandlerStarted) -> None:
        """Record what a message waited for."""
        queue = self._queue(event.message.queue)
        self._wait.record(event.waited, queue.labels)
        self._attempts.record(event.attempt, queue.labels)
        if event.leasing > 0:
            self._lease.record(event.leasing, queue.labels)
        if self._busiest is not None:
            self._waited[id(event.message)] = event.waited

    def finished(self, event: HandlerFinished) -> None:
        """Record how long a handler ran, and how it ended."""
        labels = self._queue(event.message.queue).process
        failed = is_failure(event.error)
        if failed:
            labels = {**labels, names.ERROR_TYPE: type(event.error).__name__}
        self._process.record(event.seconds, labels)
        if self._busiest is not None:
            waited = self._waited.pop(id(event.message), 0.0)
            if event.tenant is not None:
                self._busiest.ran(event.tenant, event.seconds, waited, time.monotonic(), failed=failed)

    def opened(self, event: ResourceOpened) -> None:
        """Record how long an open took, once: every consumer of a shared pool hands its events on."""
        if event is not self._last_opened:
            self._last_opened = event
            self._open.record(event.seconds, {})

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(name)
        return queue

    # -- collecting ---------------------------------------------------------------------------------------------

    def _observe(self, meter: Meter) -> None:
        """Make the instruments that are asked when metrics are collected."""
        for field, instrument in {"received": names.CONSUMED, **names.COUNTERS}.items():
            _counter(meter, instrument, self._counting(field))
        _counter(meter, names.SETTLEMENTS, self._counting("settled", names.SETTLEMENT))
        _counter(meter, names.FAILURES, self._counting("failed", names.ERROR_TYPE))
        for field, instrument in names.GAUGES.items():
            _gauge(meter, instrument, self._gauging(field))
        _gauge(meter, names.WAITING, self._waiting)
        _gauge(meter, names.CONSUMERS, self._consumers)
        for field, instrument in names.POOL_COUNTERS.items():
            _counter(meter, instrument, self._pooling(field))
        for field, instrument in names.POOL_GAUGES.items():
            _gauge(meter, instrument, self._pooling(field))
        for field, instrument in names.FLEET_COUNTERS.items():
            _counter(meter, instrument, self._of_fleets(field))
        for field, instrument in names.FLEET_GAUGES.items():
            _gauge(meter, instrument, self._of_fleets(field))
        if self._busiest is not None:
            _counter(meter, names.TENANT_MESSAGES, self._of_tenants(lambda each: each.messages))
            _counter(meter, names.TENANT_FAILURES, self._of_tenants(lambda each: each.failures))
            _counter(meter, names.TENANT_SECONDS, self._of_tenants(lambda each: each.seconds))
            _counter(meter, names.TENANT_WAIT, self._of_tenants(lambda each: each.waited))

    def _counting(self, field: str, label: str | None = None) -> "_Callback":
        def callback(_options: CallbackOptions) -> Iterator[Observation]:
            for queue in list(self._queues.values()):
                for (name, value, own), count in queue.total().items():
                    if name == field:
                        labels = {**queue.labels, names.DESTINATION: own} if own else queue.labels
                        yield Observation(count, labels if label is None else {**labels, label: value})

        return callback

    def _gauging(self, field: str) -> "_Callback":
        # Of ages the worst counts: their sum over several consumers means nothing.
        worst = field in {"oldest_wait", "oldest_wait_within_share", "last_poll_age"}

        def callback(_options: CallbackOptions) -> Iterator[Observation]:
            for queue in list(self._queues.values()):
                found = [value for each in queue.now() if (value := getattr(each, field)) is not None]
                if found:
                    yield Observation(max(found) if worst else sum(found), queue.labels)

        return callback

    def _waiting(self, _options: CallbackOptions) -> Iterator[Observation]:
        for queue in list(self._queues.values()):
            if seen := queue.now():
                slot, resources = sum(each.waiting for each in seen), sum(each.suspended for each in seen)
                yield Observation(slot, {**queue.labels, names.STATE: "slot"})
                yield Observation(resources, {**queue.labels, names.STATE: "resources"})

    def _consumers(self, _options: CallbackOptions) -> Iterator[Observation]:
        for queue in list(self._queues.values()):
            if queue.has_consumer:  # else an alert would tell that its consumer is gone
                yield Observation(len(queue.now()), queue.labels)

    def _pooling(self, field: str) -> "_Callback":
        def callback(_options: CallbackOptions) -> Iterator[Observation]:
            found: dict[str, float] = {}  # consumers may share a pool: each tells of it
            for queue in list(self._queues.values()):
                for pool in (each.pool for each in queue.now() if each.pool is not None):
                    found[pool.name] = max(found.get(pool.name, 0), getattr(pool, field))
            for name, value in found.items():
                yield Observation(value, {names.POOL: name})

        return callback

    def _of_fleets(self, field: str) -> "_Callback":
        is_a_sum = field in names.FLEET_COUNTERS or field in {"degraded", "slots", "starved"}

        def callback(_options: CallbackOptions) -> Iterator[Observation]:
            found: dict[str, float] = {}  # of several consumers of one fleet, each tells of the replicas
            for queue in list(self._queues.values()):
                for fleet in (each.fleet for each in queue.now() if each.fleet is not None):
                    value, before = getattr(fleet, field), found.get(fleet.name, 0)
                    if value is not None:
                        found[fleet.name] = before + value if is_a_sum else max(before, value)
            for name, value in found.items():
                yield Observation(value, {names.FLEET: name})

        return callback

    def _of_tenants(self, read: Callable[[Figures], float]) -> "_Callback":
        def callback(_options: CallbackOptions) -> Iterator[Observation]:
            assert self._busiest is not None  # noqa: S101 - the instrument is made only where tenants are counted
            for label, figures in self._busiest.figures():
                yield Observation(read(figures), {names.TENANT: label})

        return callback


_Callback = Callable[[CallbackOptions], Iterable[Observation]]


class _LoopLag:
    """Records, twice a second, by how much an event loop ran a timer too late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, histogram: Histogram) -> None:
        self._loop = loop
        self._histogram = histogram
        self.users = 0
        self._timer = self._next()

    def close(self) -> None:
        """Record no more."""
        self._timer.cancel()

    def _next(self) -> asyncio.TimerHandle:
        due = self._loop.time() + _TICK
        # An empty context: the timer outlives the span that happens to be current now.
        return self._loop.call_at(due, self._tick, due, context=Context())

    def _tick(self, due: float) -> None:
        self._histogram.record(max(0.0, self._loop.time() - due))
        self._timer = self._next()


def _histogram(meter: Meter, instrument: Instrument, bounds: Iterable[float]) -> Histogram:
    name, unit, text = instrument
    return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=list(bounds))


def _counter(meter: Meter, instrument: Instrument, callback: _Callback) -> None:
    meter.create_observable_counter(instrument.name, [callback], instrument.unit, instrument.text)


def _gauge(meter: Meter, instrument: Instrument, callback: _Callback) -> None:
    meter.create_observable_gauge(instrument.name, [callback], instrument.unit, instrument.text)
