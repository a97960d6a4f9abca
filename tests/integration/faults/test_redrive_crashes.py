"""``kill -9`` of a redrive at random times, then the ledger: nothing is lost, and no other tenant's letter is touched.

POSTROOM_KILLS says how many kills (1 in the test suite).
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from postroom.local import LocalBroker, LocalServer
from postroom.local.shapes import Send

KILLS = int(os.environ.get("POSTROOM_KILLS", "1"))
LETTERS = 60 + 45 * KILLS
pytestmark = [pytest.mark.long, pytest.mark.timeout(120 + 10 * KILLS)]


@pytest.fixture
async def site() -> AsyncIterator[tuple[LocalBroker, str]]:
    """A queue where all messages of two tenants have become dead letters."""
    async with LocalBroker() as broker, LocalServer(broker) as server:
        arn = broker.create_queue("dead").arn
        policy = msgspec.json.encode({"deadLetterTargetArn": arn, "maxReceiveCount": "1"}).decode()
        broker.create_queue("orders", {"RedrivePolicy": policy, "VisibilityTimeout": "0"})
        for number in range(LETTERS):
            tenant = "acme" if number % 3 else "other"
            broker.send("orders", Send(message_body=f"{tenant}-{number}", message_group_id=tenant))
        while broker.attributes("orders")["ApproximateNumberOfMessages"] != "0":
            await take(broker, "orders")
        yield broker, server.endpoint_url


async def take(broker: LocalBroker, queue: str, *, visibility: int = 0) -> list[str]:
    """Receive once, and return the bodies."""
    from postroom.transports.memory import MemoryClient

    async with MemoryClient(broker) as client:
        opened = await client.queue(queue)
        return [message.body for message in await opened.receive(limit=10, wait=0, visibility=visibility)]


def waiting(broker: LocalBroker, queue: str) -> int:
    """Count what is in a queue, invisible messages included."""
    said = broker.attributes(queue)
    return int(said["ApproximateNumberOfMessages"]) + int(said["ApproximateNumberOfMessagesNotVisible"])


async def redrive(endpoint: str, journal: Path) -> asyncio.subprocess.Process:
    """Start a redrive of one tenant as a process of its own."""
    words = ["dead-letters", "redrive", "dead", "--tenant", "acme", "--yes", "--reason", "fixed", "--rate", "400"]
    words += ["--hold", "2", "--journal", str(journal), "--endpoint-url", endpoint]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "postroom", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def test_a_redrive_that_is_killed_loses_nothing(site: tuple[LocalBroker, str], tmp_path: Path) -> None:
    """Each letter is at home at least once; at most one batch of ten per kill is there twice."""
    broker, endpoint = site
    rng, journal = Random(2026), tmp_path / "journal"
    wanted = {f"acme-{number}" for number in range(LETTERS) if number % 3}
    effective = 0
    for _ in range(KILLS):
        process = await redrive(endpoint, journal)
        before = waiting(broker, "orders")
        target = before + rng.randrange(1, 45)
        while process.returncode is None and waiting(broker, "orders") < min(target, len(wanted)):
            await asyncio.sleep(0.001)
        await asyncio.sleep(rng.uniform(0.0, 0.05))  # not only between a send and its answer
        if process.returncode is None:
            process.kill()
            effective += 1
        await process.communicate()
        assert waiting(broker, "dead") + waiting(broker, "orders") >= LETTERS, "a message was lost"
    assert effective == KILLS
    while int(broker.attributes("dead")["ApproximateNumberOfMessagesNotVisible"]):
        await asyncio.sleep(0.05)  # what the last one had received is visible again after --hold
    process = await redrive(endpoint, journal)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    home: Counter[str] = Counter()
    while found := await take(broker, "orders", visibility=300):
        home.update(found)
    dead: Counter[str] = Counter()
    while found := await take(broker, "dead", visibility=300):
        dead.update(found)
    assert set(home) == wanted
    assert dead == {f"other-{number}": 1 for number in range(0, LETTERS, 3)}
    twice = sum(count - 1 for count in home.values())
    print(f"{KILLS} kills, {len(wanted)} letters sent home, 0 lost, {twice} twice, {len(dead)} of others untouched")
    assert twice <= 10 * KILLS
