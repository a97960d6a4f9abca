"""One replica of a fleet as a process: each handler writes into its tenant's own database what that database runs.

Configured by the environment: ENDPOINT, DSN (of which ``-tenant`` makes a tenant's), STORE, CAP, LEASE, TICK, FALLBACK,
NAME. Its input takes orders, one a line: ``pause TENANT`` and ``resume TENANT``. At its end it prints what it did.
Each start is stamped where the scheduler decides it, with what allowed it: handlers are entered a moment later.
"""

import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, cast

from postroom import (
    AwsClient,
    Concurrency,
    Consumer,
    Fleet,
    MessageContext,
    Polling,
    PoolLimits,
    ResourcePool,
    Shutdown,
    Visibility,
    run,
)
from postroom.datasources import asyncpg_pool
from postroom.fleet import Answer, Fallback
from postroom.fleet.decisions import verdicts
from postroom.fleet.ledger import Entry
from postroom.fleet.member import Member
from postroom.scheduling import Scheduler

NAME = os.environ["NAME"]
BEGIN = """
INSERT INTO runs (replica, order_id, part, decided, pid, others)
SELECT $1, $2, $3, to_timestamp($4), pg_backend_pid(), ARRAY(
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND (
        query LIKE '%INSERT INTO runs%' OR query LIKE 'SELECT pg_sleep%'
        OR (query LIKE 'UPDATE runs%' AND state = 'active')
    )
) RETURNING id
"""
"""A handler begins: the database itself counts which other sessions of this tenant are in a handler now."""


@dataclass(frozen=True)
class Tenant:
    """The tenant of a message."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """What to do, and how long the database takes for it."""

    order_id: int
    seconds: float


@dataclass(frozen=True)
class Start:
    """A start, as it was decided."""

    at: float
    part: int | None
    """How many handlers of the tenant the fallback let this replica run; None if it was under a slot."""


starts: dict[str, Start] = {}
"""Starts that were decided, by message, until their handler is entered."""


def stamp_starts() -> None:
    """Write down when the scheduler decides each start, and what allowed it."""
    original = Scheduler[Any].grant

    def grant(self: Any, now: float = 0.0) -> Any:
        job = original(self, now)
        if job is not None:
            bound = job.lane.bound
            assert isinstance(bound, Entry)
            starts[job.message.id] = Start(time.time(), None if now < bound.expires else bound.fallback)
        return job

    Scheduler.grant = grant  # type: ignore[method-assign]


def tell_pauses() -> None:
    """Log when this replica learns that a tenant is paused, when that was decided, and how long the calls took."""
    original, log = Member._settle_decisions, logging.getLogger("trial")
    known: dict[str, int] = {}

    async def settle(self: Member, answer: Answer) -> None:
        await original(self, answer)
        said = self._known
        paused = {name: said.stamps.get(f"state {name}", 0) for name, ruling in verdicts(said.fields).items()
                  if ruling.state == "paused"}  # fmt: skip
        sent = self.ledger.sent
        for name in paused.keys() - known.keys():
            calls = 0.0 if sent is None else self._time() - sent.at
            log.warning("PAUSED %s", json.dumps([name, time.time(), paused[name] / 1_000, calls]))
        known.clear()
        known.update(paused)

    Member._settle_decisions = settle  # type: ignore[method-assign]


def dsn_of(tenant: Tenant) -> str:
    """Return the tenant's own database."""
    return f"{os.environ['DSN']}-{tenant.tenant_id}"


consumer: Consumer[Tenant, Any] = Consumer(
    "orders",
    context=Tenant,
    resources=ResourcePool(asyncpg_pool(dsn_of, max_size=8), limits=PoolLimits(budget=256)),
    concurrency=Concurrency(total=24, per_tenant=8),
    polling=Polling(wait=1.0, scout=False, prefetch=8),
    visibility=Visibility(timeout=30.0),
    shutdown=Shutdown(within=10),
    client=AwsClient(region="us-east-1", endpoint_url=os.environ["ENDPOINT"]),
    fleet=Fleet(
        os.environ["STORE"],
        per_tenant=int(os.environ["CAP"]),
        lease=float(os.environ["LEASE"]),
        tick=float(os.environ["TICK"]),
        fallback=cast("Fallback", os.environ["FALLBACK"]),
    ),
)


@consumer.handler
async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
    """Run in the tenant's database for a while, which writes down from when to when."""
    start = starts.pop(ctx.message.id)
    async with ctx.resources.acquire() as connection:
        number = await connection.fetchval(BEGIN, NAME, order.order_id, start.part, start.at)
        await connection.execute("SELECT pg_sleep($1)", order.seconds)
        await connection.execute("UPDATE runs SET ended = clock_timestamp() WHERE id = $1", number)


def obey() -> None:
    """Carry out orders until the input ends. A thread: decisions may be made from any."""
    for line in sys.stdin:
        what, tenant = line.split()
        getattr(consumer.tenants, what)(Tenant(tenant), reason="the trial says so")


def told() -> str:
    """Return what this replica did, for who started it."""
    said = consumer.statistics()
    fleet = said.fleet
    assert fleet is not None
    return json.dumps({
        "succeeded": said.succeeded, "failed": dict(said.failed), "settled": dict(said.settled),
        "cancelled": said.cancelled, "overruns": fleet.overruns, "exchanges": fleet.exchanges,
        "failed_exchanges": fleet.failed_exchanges,
    })  # fmt: skip


if __name__ == "__main__":
    stamp_starts()
    tell_pauses()
    threading.Thread(target=obey, daemon=True).start()
    run(consumer)
    print(told(), flush=True)
