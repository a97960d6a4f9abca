"""A consumer as a process of its own, over the real protocol: signals, kill -9, and what is left in the queue."""

import asyncio
import signal
from collections import Counter
from typing import Any

from integration.workers import Site


async def test_sigterm_lets_the_running_finish_and_returns_the_rest(site: Site) -> None:
    """30 messages of 6 s, 10 slots: exit 0, 10 are deleted, 20 are visible again, the database closes last."""
    for number in range(30):
        site.send(str(number), seconds=6)
    async with site.worker() as worker:
        await site.diary_has(10, "start")
        worker.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):  # before the ten have finished
            while site.counts() != (20, 10):
                await asyncio.sleep(0.02)
        async with asyncio.timeout(20):
            _, log = await worker.communicate()
    assert worker.returncode == 0, log.decode()
    assert site.counts() == (20, 0)
    diary = site.diary()
    assert sum(line.startswith("done") for line in diary) == 10
    assert sum(line.startswith("start") for line in diary) == 10
    assert diary[-1] == "close tenant-a"
    assert "draining" in log.decode()


async def test_a_second_signal_cancels_at_once(site: Site) -> None:
    """Exit code 3 says that work was cancelled; the message is visible again."""
    site.send("slow", seconds=600)
    async with site.worker(DRAIN="600") as worker:
        await site.diary_has(1, "start")
        worker.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert worker.stderr is not None
            while b"waiting up to" not in await worker.stderr.readline():
                pass
            worker.send_signal(signal.SIGTERM)
            await worker.communicate()
    assert worker.returncode == 3
    assert site.counts() == (1, 0)


async def test_kill_9_loses_nothing(site: Site) -> None:
    """Every message is handled after its visibility timeout by the next worker, in its own tenant's database."""
    names = {f"{tenant}-{number}" for tenant in ("tenant-a", "tenant-b") for number in range(30)}
    for name in sorted(names, key=lambda name: name[::-1]):
        site.send(name, tenant=name[:8], seconds=0.05)
    async with site.worker(VISIBILITY="2") as first:
        await site.diary_has(12, "done")
        first.kill()
        await first.communicate()
    async with site.worker(VISIBILITY="2") as second:
        await site.empty()
        second.send_signal(signal.SIGTERM)
        await second.communicate()
    for tenant in ("tenant-a", "tenant-b"):
        assert set(site.rows(tenant)) == {name for name in names if name.startswith(tenant)}


async def test_a_handler_of_three_visibility_timeouts_runs_once(site: Site) -> None:
    """Over the real protocol: the heartbeat keeps it, it is deleted once."""
    site.send("slow", seconds=3)
    async with site.worker(VISIBILITY="1") as worker:
        await site.empty()
        worker.send_signal(signal.SIGTERM)
        await worker.communicate()
    assert Counter(site.diary())["start slow"] == 1
    assert site.rows("tenant-a") == ["slow"]


async def test_alike_contexts_get_different_databases_on_the_wire(site: Site) -> None:
    """Tenants with names that would collide when joined with their messages' other parts stay apart."""
    pairs: dict[str, Any] = {"a:b": "first", "a": "second", "a.b": "third", "A": "fourth"}
    for tenant, order in pairs.items():
        site.send(order, tenant=tenant)
    async with site.worker() as worker:
        await site.empty()
        worker.send_signal(signal.SIGTERM)
        await worker.communicate()
    assert {tenant: site.rows(tenant) for tenant in pairs} == {tenant: [order] for tenant, order in pairs.items()}


async def test_a_queue_that_does_not_exist_is_exit_code_2(site: Site) -> None:
    """The log says what to check."""
    async with site.worker(QUEUE="nowhere") as worker:
        _, log = await worker.communicate()
    assert worker.returncode == 2
    assert "nowhere" in log.decode()
