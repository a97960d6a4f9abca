"""One look at consumers: the figures above, and the row of each tenant."""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

from postroom.console.collecting import Collector, Row, Tally
from postroom.console.ranking import SHORT, Lanes, Ranking, oldest_of
from postroom.consumer import Consumer, TenantState
from postroom.consumer.facts import LIMIT
from postroom.consumer.statuses import Controlled
from postroom.display import queue_name, without_next_try
from postroom.scheduling.tickets import Lane
from postroom.types import Settlement

RECEIVE_PRICE: Final = 0.40 / 1_000_000
"""Dollars of one request (SQS pricing, us-east-1, standard queues, after the first million of a month)."""
_LONGEST: Final = 200
_WHOSE: Final = re.compile(r"(^|: )the resources of .{1,300}?: (?=could|cannot|were|are|is|it|host|their)")


class Snapshot:
    """The tenants of several consumers at one moment. Rows are made when they are asked for, each once.

    Args:
        collectors: one per consumer.
        ranking: their order, up to the last look.
        wall: the time in seconds since the epoch.
        loop: the event loop's time at the same moment.
    """

    def __init__(self, collectors: Sequence[Collector], ranking: Ranking, *, wall: float, loop: float) -> None:
        self._collectors = collectors
        self._wall = wall
        self._loop = loop
        self._lanes: list[Lanes] = [_lanes(collector.consumer) for collector in collectors]
        self._rows: dict[tuple[int, Hashable], Row] = {}
        for collector in collectors:
            collector.total.fade(loop)
        ranking.update(self._lanes, wall=wall, loop=loop)

    def row(self, number: int, key: Hashable) -> Row:
        """Return the row of a tenant of one consumer."""
        row = self._rows.get((number, key))
        if row is None:
            row = self._rows[number, key] = self._make(number, key)
        return row

    def _make(self, number: int, key: Hashable) -> Row:
        collector = self._collectors[number]
        consumer = collector.consumer
        row = Row(q=number, n=collector.name_of(key))
        self._add_state(row, consumer, key)
        row.away = collector.away.get(key, 0)
        lane = self._lanes[number].get(key)
        if lane is not None:
            self._add_lane(row, lane)
        if (tally := collector.tallies.get(key)) is not None:
            tally.fade(self._loop)
            _add_tally(row, tally, collector)
        if consumer.pool is not None:
            row.pool = consumer.pool.leases_of(key)
        if consumer.settings.fleet is not None:
            slots = consumer.tenants[key].fleet
            if slots is not None and slots.cap is not None:
                row.fl = (slots.slots or 0, slots.cap)
        return row

    def _add_state(self, row: Row, consumer: Consumer[Any, Any], key: Hashable) -> None:
        """Add what was decided, or why it cannot run: from its parts, as a ``TenantStatus`` for each row costs more."""
        state, why = TenantState.ACTIVE, ""
        if (rule := consumer.tenants.rule_of(key)) is not None:
            state, why = rule.state, rule.reason or ""
            row.rl, row.cl, row.cap = rule.rate, rule.concurrency, rule.concurrency or 0
        control = consumer.tenants.consumer
        # A decision comes before an outage: an operator must see the pause that they asked for.
        shown = state in {TenantState.ACTIVE, TenantState.DIVERTED}
        if shown and control is not None and (trouble := control.unavailable(key)) is not None:
            diverted = state is TenantState.DIVERTED
            why = f"{why}; {trouble[0]}" if diverted else trouble[0]
            state = state if diverted else TenantState.UNAVAILABLE
            row.since = round(self._wall - trouble[1])
        row.s, row.why = str(state), _short(why) if why else ""
        if rule is not None and state is TenantState.DIVERTED:
            row.why = f"to {rule.diverted_to}: {row.why}"

    def _add_lane(self, row: Row, lane: Lane[Any]) -> None:
        oldest = oldest_of(lane)
        row.w = None if oldest is None or self._wall - oldest < SHORT else round(oldest)
        row.run = lane.running
        row.cap = lane.cap
        if lane.blocked:
            row.held = len(lane.waiting) + lane.suspended
        else:
            row.wait = len(lane.waiting)
        if lane.asleep_until is not None and lane.asleep_until > self._loop:
            row.next = round(self._wall + lane.asleep_until - self._loop)


def strip(collector: Collector, said: Mapping[str, str]) -> dict[str, Any]:
    """Return the figures of one consumer that are not a tenant's. ``said`` is what SQS says of the queue."""
    consumer = collector.consumer
    shown: dict[str, Any] = {"queue": queue_name(consumer.queue), "running": consumer.running}
    if not consumer.running:
        return shown
    now = consumer.statistics()
    control = consumer.tenants.consumer
    pool = now.pool
    return {
        **shown,
        "queues": len(now.queues),
        "unreachable": list(consumer.health().unreachable),
        "slots": _slots(control),
        "busy": now.running,
        "waiting": now.waiting,
        "suspended": now.suspended,
        "held": now.held,
        "away": now.away,
        "tenants": now.tenants,
        "visible": _number(said.get("ApproximateNumberOfMessages")),
        "in_flight": _number(said.get("ApproximateNumberOfMessagesNotVisible")),
        "in_flight_limit": LIMIT,
        "scouting": now.scouting_stopped,
        "scouting_receives": now.scouting_receives,
        "receives": now.receives,
        "dollars": round(now.receives * RECEIVE_PRICE, 4),
        "succeeded": now.succeeded,
        "failed": sum(now.failed.values()),
        "dead": now.settled.get(Settlement.REJECTED, 0),
        "lag": round(now.loop_lag, 3),
        "poll_age": None if now.last_poll_age is None else round(now.last_poll_age),
        "pool": None if pool is None else [pool.weight, pool.budget, pool.live, pool.opening, pool.cooling],
    }


def _add_tally(row: Row, tally: Tally, collector: Collector) -> None:
    row.rate = round(tally.rate / collector.seen(), 1)
    total = collector.total.seconds
    row.share = round(min(1.0, tally.seconds / total), 3) if total > 0 else 0.0
    if (percentiles := tally.percentiles()) is not None:
        row.p50, row.p99 = (float(f"{value:.3g}") for value in percentiles)
    row.err, row.fail, row.dead = tally.error, tally.failed, tally.dead


def _short(reason: str) -> str:
    """Return why a tenant cannot run, without its name and its next try: the row has both."""
    return without_next_try(_WHOSE.sub(r"\1", reason))[:_LONGEST]


def _lanes(consumer: Consumer[Any, Any]) -> Lanes:
    control = consumer.tenants.consumer if consumer.running else None
    return {} if control is None else {lane.tenant: lane for lane in control.scheduler.lanes()}


def _slots(control: Controlled | None) -> int:
    return 0 if control is None else control.scheduler.total


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
