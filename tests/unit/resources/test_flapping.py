"""What a pool's log says of outages that begin and end again and again."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from random import Random

import pytest

from postroom.errors import ResourceError
from postroom.options import PoolLimits, PoolTimeouts
from postroom.resources import ResourcePool
from postroom.testing.loop import run_virtual

HOUR = 3600.0


async def use(pool: ResourcePool[str, str], tenant: str) -> None:
    """Lease a tenant's resources for a moment."""
    try:
        async with pool.lease(tenant):
            await asyncio.sleep(0.01)
    except ResourceError as error:
        await asyncio.sleep(getattr(error, "retry_after", 0.1))


def loud(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the lines that a person reads."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    """Count the lines with a traceback."""
    return sum(record.exc_text is not None for record in caplog.records)


def test_a_health_check_that_comes_and_goes_is_a_handful_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    """It fails every three seconds; the resources open, and are healthy again a moment later."""

    @asynccontextmanager
    async def provide(tenant: str) -> AsyncGenerator[str]:
        yield tenant

    async def main() -> None:
        time = asyncio.get_running_loop().time

        async def check(_resource: str) -> bool:
            return int(time() / 1.5) % 2 == 0

        async with ResourcePool(provide, check=check, limits=PoolLimits(check_after=0)) as pool:
            while time() < HOUR / 3:
                await use(pool, "a")
                await asyncio.sleep(0.2)

    with caplog.at_level(logging.INFO):
        run_virtual(main())
    assert tracebacks(caplog) == 1
    assert sum("Resources created" in record.message for record in caplog.records) <= 4
    assert sum("Resources closed" in record.message for record in caplog.records) <= 4
    assert len(loud(caplog)) <= 16
    assert "Resources not available, again and again: key a, " in caplog.text
    assert "Resources unhealthy, again and again: key a, " in caplog.text


def test_opens_that_fail_at_random_are_told_of_for_all_tenants_together(caplog: pytest.LogCaptureFixture) -> None:
    """One of five fails, of a hundred tenants with room for ten: thousands of outages, and each tenant is counted."""
    rng, failed = Random(1), set[str]()

    @asynccontextmanager
    async def provide(tenant: str) -> AsyncGenerator[str]:
        await asyncio.sleep(0.02)
        if rng.random() < 0.2:
            failed.add(tenant)
            raise ConnectionRefusedError(111, "refused")
        yield tenant

    async def main() -> None:
        async with ResourcePool(provide, limits=PoolLimits(budget=10)) as pool:

            async def work(tenant: str) -> None:
                for _ in range(60):
                    await use(pool, tenant)
                    await asyncio.sleep(rng.random() * 6)

            await asyncio.gather(*(work(f"t{number}") for number in range(105)))
            minutes = asyncio.get_running_loop().time() / 60
            assert pool.statistics().open_failures / minutes > 200
            assert len(loud(caplog)) / minutes <= 12
            assert tracebacks(caplog) / minutes <= 4

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    assert len(failed) > 95  # by chance, some may open each time
    first_minute = [record for record in loud(caplog) if record.levelno == logging.ERROR][:10]
    assert len({vars(record)["tenant"] for record in first_minute}) == 10
    summary = re.compile(r"Resources not available, again and again: (\d+) keys")
    counts = [int(found[1]) for record in loud(caplog) if (found := summary.match(record.message))]
    assert max(counts) > 90  # those that failed since the line before; few at the end, where most have done their work


def test_a_host_that_comes_and_goes_is_told_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the host nor the tenants that find it down are a line each time."""

    @asynccontextmanager
    async def provide(tenant: str) -> AsyncGenerator[str]:
        if int(asyncio.get_running_loop().time() / 10) % 2:
            raise ConnectionRefusedError(111, "refused")
        yield tenant

    async def main() -> None:
        rng, time = Random(1), asyncio.get_running_loop().time
        async with ResourcePool(provide, limits=PoolLimits(budget=10), host=lambda _: "db") as pool:

            async def work(tenant: str) -> None:
                while time() < HOUR / 4:
                    await use(pool, tenant)
                    await asyncio.sleep(rng.random() * 6)

            await asyncio.gather(*(work(f"t{number}") for number in range(30)))

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    assert sum("Host not available: db" in record.message for record in caplog.records) == 1
    assert "Host not available, again and again: host db" in caplog.text
    assert tracebacks(caplog) <= 19
    assert len(loud(caplog)) <= 60


def test_a_repair_that_did_not_help_is_news(caplog: pytest.LogCaptureFixture) -> None:
    """The tenant's failures were forgotten because of it: the next one is told of in full."""

    @asynccontextmanager
    async def provide(tenant: str) -> AsyncGenerator[str]:
        if asyncio.get_running_loop().time() < 60:
            raise ConnectionRefusedError(111, "refused")
        yield tenant

    async def main() -> None:
        async with ResourcePool(provide) as pool:
            await use(pool, "a")
            await pool.invalidate("a")
            await use(pool, "a")
            pool.forget_failures(lambda tenant: tenant == "a")
            await use(pool, "a")
            await asyncio.sleep(60)
            await use(pool, "a")

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    assert tracebacks(caplog) == 3
    assert "available again" in caplog.messages[-1]
    assert len(caplog.messages) == 4


def test_the_close_of_a_pool_tells_of_what_was_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing of the log stays behind in the event loop."""

    @asynccontextmanager
    async def provide(tenant: str) -> AsyncGenerator[str]:
        if int(asyncio.get_running_loop().time()) % 2 == 0:
            raise ConnectionRefusedError(111, "refused")
        yield tenant

    async def main() -> None:
        async with ResourcePool(provide, limits=PoolLimits(idle=0.2, sweep=0.1)) as pool:
            while asyncio.get_running_loop().time() < 7:
                await use(pool, "a")
                await asyncio.sleep(0.5)

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    assert "again and again: key a, " in caplog.messages[-1]


def test_providers_that_ignore_their_cancellation_are_a_handful_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    """One function opens the resources of all tenants, and each try of each of them ignores it."""

    @asynccontextmanager
    async def provide(tenant: str) -> AsyncGenerator[str]:
        end = asyncio.get_running_loop().time() + 60
        while asyncio.get_running_loop().time() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        yield tenant

    async def main() -> None:
        time = asyncio.get_running_loop().time

        async def go_on(tenant: str) -> None:
            while time() < HOUR:
                await use(pool, tenant)

        async with ResourcePool(provide, timeouts=PoolTimeouts(open=5)) as pool:
            await asyncio.gather(*(go_on(f"t{number}") for number in range(50)))

    run_virtual(main())
    lines = [record.message for record in loud(caplog)]
    assert any("ignores its cancellation" in line and " at " in line for line in lines)
    assert any(line.startswith("Resources ignore a cancellation, again and again: ") for line in lines)
    assert sum("cancellation" in line for line in lines) < 60
