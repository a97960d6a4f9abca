"""``kill -9`` of the consumer at random times while a producer runs, then the ledger: nothing lost, nobody else's.

POSTROOM_KILLS says how many kills (2 in the test suite).
"""

import asyncio
import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from integration.test_processes import Site
from postroom.local import LocalBroker, LocalServer

KILLS = int(os.environ.get("POSTROOM_KILLS", "2"))
TENANTS = ("tenant-a", "tenant-b", "tenant-c")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A local SQS over HTTP."""
    async with LocalBroker() as broker, LocalServer(broker) as server:
        broker.create_queue("orders", {"VisibilityTimeout": "30"})
        yield Site(broker, server.endpoint_url, tmp_path)


async def _produce(site: Site, sent: list[tuple[str, str]], rng: Random) -> None:
    while True:
        tenant = rng.choice(TENANTS)
        order = f"{tenant}-{len(sent)}"
        site.send(order, tenant=tenant, seconds=rng.choice((0.0, 0.01, 0.1)))
        sent.append((tenant, order))
        await asyncio.sleep(0.03)


@pytest.mark.timeout(120 + 30 * KILLS)
async def test_killed_at_random_times_it_loses_nothing(site: Site) -> None:
    """At least once, in the tenant's own database, and once for nearly all of them."""
    rng = Random(2026)
    sent: list[tuple[str, str]] = []
    producing = asyncio.create_task(_produce(site, sent, rng), name="produce")
    for number in range(KILLS):
        before = sum(line.startswith("done") for line in site.diary())
        async with site.worker(VISIBILITY="2") as worker:
            await site.diary_has(before + 1 + number % 3, "done")
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            worker.kill()
            await worker.communicate()
        assert worker.returncode == -9
    producing.cancel()
    await asyncio.wait([producing])
    async with site.worker(VISIBILITY="2") as worker:
        await site.empty()
        worker.terminate()
        await worker.communicate()
    assert worker.returncode == 0
    rows = {tenant: Counter(_rows(site, tenant)) for tenant in TENANTS}
    for tenant in TENANTS:
        assert set(rows[tenant]) == {order for owner, order in sent if owner == tenant}
    twice = sum(count > 1 for counter in rows.values() for count in counter.values())
    print(f"{KILLS} kills, {len(sent)} orders, {twice} handled twice, 0 lost, 0 astray")
    assert twice <= 60 * KILLS  # at most what ran or waited to be acknowledged at each kill


def _rows(site: Site, tenant: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(site.directory / f"{tenant}.db")) as connection:
        return [row for (row,) in connection.execute("SELECT order_id FROM orders")]
