"""What ``postroom check`` says of a fleet: its limits, and a real store."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import Concurrency, Consumer, Fleet, Message, ResourcePool
from postroom.fleet import MemoryState, StoreInfo
from postroom.inspection import Deployment, Level, inspect_consumer
from postroom.inspection.fleets import look_at_fleet
from postroom.testing.valkey import ValkeyServer
from support.valkey import valkey_server


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """Run one server for these tests, which change its settings."""
    yield from valkey_server()


def tenant_of(message: Message) -> str:
    """Return the tenant."""
    return message.group_id or ""


@asynccontextmanager
async def database(tenant: str) -> AsyncGenerator[str]:
    """Open nothing."""
    yield tenant


def consumer(fleet: Fleet, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer with eight slots for each tenant."""
    return Consumer(
        "orders", context=tenant_of, fleet=fleet, concurrency=Concurrency(total=64, per_tenant=8), **options
    )


async def said(fleet: Fleet, *, offline: bool = True, replicas: int = 10, **options: Any) -> list[tuple[str, str]]:
    """Return level and text of what is found."""
    most = options.pop("max_connections", None)
    deployment = Deployment(replicas=replicas, max_connections=most)
    findings = await look_at_fleet(consumer(fleet, **options), deployment, offline=offline)
    return [(str(finding.level), finding.found) for finding in findings]


@pytest.mark.parametrize(
    ("cap", "level", "text"),
    [
        (20, "ok", "at most 20 handlers of one tenant, of 10 x 8"),
        (80, "warning", "10 x 8 handlers of one tenant never reach Fleet(per_tenant=80)"),
        (4, "warning", "Fleet(per_tenant=4) is less than 10 replicas: a busy tenant's slots go round"),
        (None, "warning", "no limit is given, so only decisions and outages are shared"),
    ],
)
async def test_a_limit_is_compared_with_what_the_replicas_may_run(cap: int | None, level: str, text: str) -> None:
    """A limit that never bites, and one that makes slots go round, are worth a word."""
    assert await said(Fleet(MemoryState(), per_tenant=cap)) == [(level, text)]


async def test_a_limit_does_not_bound_the_connections_of_a_tenant() -> None:
    """Every replica with a slot opens the tenant's pool: ten of five connections are more than its server takes."""
    fleet, pool = Fleet(MemoryState(), per_tenant=20), ResourcePool(database, weight=5)
    found = await said(fleet, resources=pool, max_connections=40)
    assert found[-1] == ("error", "one tenant, in 10 replicas, opens 50 connections, and its server takes 40")
    found = await said(fleet, resources=pool, max_connections=60)
    assert found[-1] == ("ok", "one tenant opens at most 50 connections in all replicas, of 60")


async def test_a_store_that_answers_is_looked_at(server: ValkeyServer) -> None:
    """Its policy of eviction, its persistence, its clock and the replicas that are alive; nothing is written."""
    server.command("FLUSHALL")
    server.command("CONFIG", "SET", "maxmemory", "104857600")
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    found = await said(Fleet(server.url, per_tenant=20), offline=False)
    assert ("ok", "the store answers; replicas alive as 'orders' now: 0") in found
    assert ("error", "the store evicts keys when its 100 MiB are full (allkeys-lru)") in found
    [persistence] = [each for each in found if "nothing on disk" in each[1]]
    assert persistence[0] == "warning"
    [clock] = [each for each in found if "clock is off by" in each[1]]
    assert clock[0] == "ok"
    assert server.command("DBSIZE") == ":0"
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.command("CONFIG", "SET", "appendonly", "yes")
    found = await said(Fleet(server.url, per_tenant=20), offline=False)
    assert {level for level, _ in found} == {"ok"}


async def test_a_store_that_cannot_be_used_is_an_error_without_its_password(server: ValkeyServer) -> None:
    """What is shown has the reason and what applies until then, and no secret."""
    host = server.url.rpartition("@")[2]
    report = await inspect_consumer(consumer(Fleet(f"valkey://:s3cret@{host}", per_tenant=20)), Deployment(replicas=2))
    [found] = [each for each in report.findings if each.topic == "fleet" and each.level is Level.ERROR]
    assert "the store cannot be used" in found.found
    assert "fallback='share' applies" in found.advice
    assert "s3cret" not in repr(report)


async def test_figures_of_an_old_or_silent_store_are_judged() -> None:
    """An old version, a slow way and a clock that is far off are told with what to do."""
    from postroom.inspection.fleets import _server

    fleet = Fleet(MemoryState(), per_tenant=20)
    old = StoreInfo(version=(5, 0, 7), policy="volatile-lru", persistent=True, offset=61.0, seconds=0.4)
    found = [(str(each.level), each.found) for each in _server(fleet, old)]
    assert found == [
        ("error", "the store is version 5.0.7"),
        ("warning", "the store evicts nothing while it has no maxmemory; its policy is volatile-lru"),
        ("warning", "an answer takes 400 ms, of a tick of 1 s"),
        ("warning", "an answer takes 400.0 ms; the store's clock is off by +61.0 s from here"),
    ]
    assert [str(each.level) for each in _server(fleet, StoreInfo())] == ["unknown"]
