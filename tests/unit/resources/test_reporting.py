"""What a pool says: statistics, log lines, events."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import pytest

from postroom.errors import ResourceError
from postroom.events import Event, ResourceClosed, ResourceOpened, ResourceOpenFailed
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.resources import PoolStatistics, ResourcePool
from postroom.testing.loop import run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, Databases, Tenant

PASSWORD = "hunter2"


@dataclass(frozen=True)
class Secretive:
    """A context with a field that must stay secret."""

    name: str
    password: str = field(repr=False, default=PASSWORD)


def test_the_log_reads_as_a_story(caplog: pytest.LogCaptureFixture) -> None:
    """Created, retrieved, closed, each with the key and, for the close, the reason."""
    databases = Databases()
    tenant = Tenant("tenant-a", "us-east-1")

    async def main() -> None:
        async with ResourcePool(databases.provide) as pool:
            async with pool.lease(tenant):
                pass
            async with pool.lease(tenant):
                pass

    with caplog.at_level(logging.DEBUG, logger="postroom.pool"):
        run_virtual(main())
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "Resources created for key: tenant-a:us-east-1"),
        ("DEBUG", "Resources retrieved from pool for key: tenant-a:us-east-1"),
        ("INFO", "Resources closed for key: tenant-a:us-east-1 (shutdown)"),
    ]


def test_hits_are_logged_only_for_those_who_want_debugging(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO a hit writes nothing."""
    databases = Databases()

    async def main() -> None:
        async with ResourcePool(databases.provide) as pool:
            for _ in range(3):
                async with pool.lease(A):
                    pass

    with caplog.at_level(logging.INFO, logger="postroom.pool"):
        run_virtual(main())
    assert "retrieved" not in caplog.text


def test_an_outage_is_one_error_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """What the provider said is told, but neither a password nor a hidden field, in log, error and repr."""

    async def provide(context: Secretive) -> str:
        raise OSError(f"postgresql://app:{context.password}@db")

    async def main() -> None:
        async with ResourcePool(provide, cleanup=None) as pool:
            with pytest.raises(Exception, match="OSError") as caught:
                await pool.acquire(Secretive("a"))
            assert PASSWORD not in str(caught.value)
            assert PASSWORD not in repr(pool.statistics())

    with caplog.at_level(logging.DEBUG, logger="postroom.pool"):
        run_virtual(main())
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    what = "Resources not available for key: a (outage: OSError: postgresql://app:***@db); next try in"
    assert record.message.startswith(what)
    assert "Traceback (most recent call last)" in caplog.text
    assert "in provide" in caplog.text
    assert PASSWORD not in caplog.text


def test_a_forged_log_line_stays_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Control characters in a tenant's name are escaped."""
    databases = Databases()

    async def main() -> None:
        async with ResourcePool(databases.provide) as pool, pool.lease(Tenant("a\nINFO forged")):
            pass

    with caplog.at_level(logging.DEBUG, logger="postroom.pool"):
        run_virtual(main())
    assert all("\n" not in record.message for record in caplog.records)


def test_a_failed_close_and_a_suspect_are_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """What a person should look at is at WARNING."""
    databases = Databases(close_errors={A: OSError("text of the driver")})

    async def main() -> None:
        async with ResourcePool(databases.provide) as pool:
            lease = await pool.acquire(A)
            lease.report(ConnectionResetError("text of the driver"))
            lease.release()
            await asyncio.sleep(1.0)

    with caplog.at_level(logging.WARNING, logger="postroom.pool"):
        run_virtual(main())
    assert [record.message for record in caplog.records] == [
        "Resources suspect for key: a:us-east-1 (ConnectionResetError: text of the driver); replaced by the next lease",
        "Resources closed with an error for key: a:us-east-1 (suspect; OSError: text of the driver)",
    ]


def test_what_a_health_check_failed_from_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The line has no traceback: what the check was raised from would be nowhere in the log."""
    databases = Databases()

    async def check(_database: object) -> None:
        try:
            raise ConnectionResetError(104, "db-1: reset")
        except OSError as error:
            text = "no answer"
            raise RuntimeError(text) from error

    async def main() -> None:
        async with ResourcePool(databases.provide, check=check) as pool:
            async with pool.lease(A):
                pass
            await asyncio.sleep(60)

    with caplog.at_level(logging.WARNING, logger="postroom.pool"):
        run_virtual(main())
    [line] = caplog.messages
    assert "(RuntimeError: no answer; from ConnectionResetError: [Errno 104] db-1: reset); replaced" in line


def test_an_outage_that_health_checks_find_is_no_line_for_each_try(caplog: pytest.LogCaptureFixture) -> None:
    """Connections open, and no check passes: "created" would say that all is well, again and again."""
    databases, well = Databases(), [True]

    async def check(_database: object) -> bool:
        return well[0]

    async def main() -> None:
        async with ResourcePool(databases.provide, check=check) as pool:
            async with pool.lease(A):
                pass
            well[0] = False
            await asyncio.sleep(60)
            for _ in range(600):
                await asyncio.sleep(1)
                with suppress(ResourceError):
                    async with pool.lease(A):
                        pass
            well[0] = True
            await asyncio.sleep(60)
            async with pool.lease(A):
                pass

    with caplog.at_level(logging.INFO, logger="postroom.pool"):
        run_virtual(main())
    assert len(databases.opened) > 10
    said = [line.partition(" key: ")[0] for line in caplog.messages]
    assert said == [
        "Resources created for",
        "Resources unhealthy for",
        "Resources closed for",
        "Resources not available for",
        "Resources created for",
        "Resources available again for",
        "Resources closed for",
    ]


def test_what_takes_too_long_is_told_with_the_option_that_limits_it(caplog: pytest.LogCaptureFixture) -> None:
    """The open of a tenant, a health check, a close."""
    stuck = asyncio.Event()

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncGenerator[Tenant]:
        if tenant == B:
            await stuck.wait()
        yield tenant
        await stuck.wait()

    async def check(_tenant: Tenant) -> None:
        await stuck.wait()

    async def main() -> None:
        timeouts = PoolTimeouts(open=7, check=3, close=2)
        async with ResourcePool(provide, check=check, timeouts=timeouts) as pool:
            async with pool.lease(A):
                pass
            with suppress(ResourceError):
                await pool.acquire(B)
            await asyncio.sleep(60)

    with caplog.at_level(logging.WARNING, logger="postroom.pool"):
        run_virtual(main())
    opened, checked, closed = caplog.messages
    assert "b:us-east-1 (outage: TimeoutError: did not open within 7 s, PoolTimeouts(open=...); it " in opened
    assert "(TimeoutError: did not answer its health check within 3 s, PoolTimeouts(check=...); it " in checked
    assert "TimeoutError: did not close within 2 s, PoolTimeouts(close=...); it " in closed
    for told, function in ((opened, "provide"), (checked, "check"), (closed, "provide")):
        assert re.search(rf"; it waited at .*locks.py:\d+ in wait, called at {__file__}:\d+ in {function}\)", told)


@in_virtual_time
async def test_observers_are_told_and_cannot_do_harm() -> None:
    """Opened, failed, closed; an observer that raises is logged and nothing more."""
    databases = Databases(errors={B: OSError("down")})
    events: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("observer")

    async with ResourcePool(databases.provide, observers=[broken, events.append]) as pool:
        async with pool.lease(A):
            pass
        with pytest.raises(Exception, match="could not be opened"):
            await pool.acquire(B)
    opened, failed, closed = events
    assert isinstance(opened, ResourceOpened)
    assert (opened.key, opened.seconds) == (A, 0.1)
    assert isinstance(failed, ResourceOpenFailed)
    assert (failed.key, failed.error, failed.permanent) == (B, databases.errors[B], False)
    assert closed == ResourceClosed(A, "shutdown", None)


@in_virtual_time
async def test_an_observer_may_use_the_pool() -> None:
    """Called in the middle of things, it finds a pool in order."""
    databases = Databases()
    seen: list[PoolStatistics] = []

    def look(event: Event) -> None:
        seen.append(pool.statistics())
        lease = pool.try_lease(A) if isinstance(event, ResourceOpened) else None
        if lease is not None:
            lease.release()

    pool = ResourcePool(databases.provide, observers=[look])
    async with pool, pool.lease(A):
        pass
    assert [(statistics.opened, statistics.closed) for statistics in seen] == [(1, 0), (1, 1)]


@in_virtual_time
async def test_statistics_count_and_gauge() -> None:
    """Counters grow, gauges move, and opened - closed == live at every moment."""
    databases = Databases(errors={B: LookupError("unknown")})
    snapshots: list[PoolStatistics] = []
    limits = PoolLimits(budget=1, idle=None)
    async with ResourcePool(databases.provide, limits=limits, backoff=OpenBackoff(permanent=9.0)) as pool:

        async def look() -> None:
            await settle()
            snapshots.append(pool.statistics())

        await look()
        waiter = asyncio.create_task(pool.acquire(A))
        await look()
        lease = await waiter
        waiter = asyncio.create_task(pool.acquire(B))
        await look()
        lease.release()
        await look()
        await asyncio.wait([waiter])
        await look()
        assert waiter.exception() is not None
    await look()
    shown = [(s.opening, s.ready, s.closing, s.leased, s.waiting, s.weight, s.live, s.cooling) for s in snapshots]
    assert shown == [
        (0, 0, 0, 0, 0, 0, 0, 0),
        (1, 0, 0, 0, 1, 1, 0, 0),
        (0, 1, 0, 1, 1, 1, 1, 0),
        (0, 0, 1, 0, 1, 1, 1, 0),
        (0, 0, 0, 0, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, 0, 0, 1),
    ]
    assert all(s.opened - s.closed == s.live for s in snapshots)
    last = snapshots[-1]
    assert (last.opened, last.closed, last.misses, last.waits, last.open_failures) == (1, 1, 2, 1, 1)
    assert last.evictions == {"capacity": 1}


@in_virtual_time
async def test_a_snapshot_does_not_change() -> None:
    """Statistics are frozen; what happens later is not in them."""
    databases = Databases()
    async with ResourcePool(databases.provide) as pool:
        before: Any = pool.statistics()
        async with pool.lease(A):
            pass
        assert before.opened == 0
        with pytest.raises(FrozenInstanceError):
            before.opened = 5
        with pytest.raises(TypeError):
            before.evictions["idle"] = 5


def test_every_task_has_a_name() -> None:
    """A dump of tasks says what each of them is for."""
    databases = Databases()

    async def main() -> None:
        async with ResourcePool(databases.provide, name="databases") as pool, pool.lease(A):
            names = sorted(task.get_name() for task in asyncio.all_tasks())
            assert names == ["databases: owner of a:us-east-1", "databases: sweeper", "main"]

    run_virtual(main())
