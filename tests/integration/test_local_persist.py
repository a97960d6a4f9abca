"""Kill -9 under load: what the broker acknowledged is there when it comes back, and nothing that was deleted is."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KILLS = 4
WORKERS = 4


@dataclass
class Ledger:
    """What the clients know. ``maybe`` is what was under way when the broker died: either answer is right."""

    sent: set[str] = field(default_factory=set[str])
    maybe_sent: set[str] = field(default_factory=set[str])
    deleted: set[str] = field(default_factory=set[str])
    maybe_deleted: set[str] = field(default_factory=set[str])


class Gone(Exception):
    """The broker died in the middle of a call."""


class Client:
    """One connection to the broker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def call(self, action: str, **request: Any) -> dict[str, Any]:
        """Call an action. Raises Gone if the answer does not come."""
        body = json.dumps(request).encode()
        head = f"POST / HTTP/1.1\r\nX-Amz-Target: AmazonSQS.{action}\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            self._writer.write(head.encode() + body)
            answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(re.findall(r"content-length: (\d+)", answer)[0])
            content = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Gone from error
        assert answer.startswith("http/1.1 200"), content
        result: dict[str, Any] = json.loads(content or b"{}")
        return result

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """Open a connection for a while."""
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield client
    finally:
        client.close()


def start(log: Path) -> tuple["subprocess.Popen[str]", int]:
    """Run the broker, and return it with its port."""
    command = [sys.executable, "-m", "postroom.cli.local", "--port", "0", "--no-log", "--persist", os.fspath(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline().strip().rpartition(":")[2])


async def send(client: Client, ledger: Ledger, worker: str) -> None:
    """Send until the broker is gone."""
    number = 0
    while True:
        bodies = [f"{worker}-{number + offset}" for offset in range(5)]
        number += 5
        ledger.maybe_sent.update(bodies)
        entries = [{"Id": str(index), "MessageBody": body} for index, body in enumerate(bodies)]
        await client.call("SendMessageBatch", QueueUrl="q", Entries=entries)
        ledger.maybe_sent.difference_update(bodies)
        ledger.sent.update(bodies)


async def consume(client: Client, ledger: Ledger, keep: int) -> None:
    """Receive and delete until the broker is gone; leave every ``keep``-th message alone."""
    while True:
        answer = await client.call("ReceiveMessage", QueueUrl="q", MaxNumberOfMessages=10, WaitTimeSeconds=1)
        doomed = [each for each in answer.get("Messages", []) if int(each["Body"].rpartition("-")[2]) % keep]
        if not doomed:
            continue
        bodies = [each["Body"] for each in doomed]
        ledger.maybe_deleted.update(bodies)
        entries = [{"Id": str(index), "ReceiptHandle": each["ReceiptHandle"]} for index, each in enumerate(doomed)]
        await client.call("DeleteMessageBatch", QueueUrl="q", Entries=entries)
        ledger.maybe_deleted.difference_update(bodies)
        ledger.deleted.update(bodies)


async def under_load(process: "subprocess.Popen[str]", port: int, ledger: Ledger, turn: int) -> None:
    """Send and consume, and kill the broker when enough happened."""
    enough = len(ledger.sent) + 500

    async def work(worker: int) -> None:
        async with connected(port) as client:
            with suppress(Gone):
                await (consume(client, ledger, 7) if worker % 2 else send(client, ledger, f"{turn}.{worker}"))

    workers = [asyncio.create_task(work(worker), name=f"worker-{worker}") for worker in range(WORKERS)]
    while len(ledger.sent) < enough:
        assert not any(worker.done() for worker in workers)
        await asyncio.sleep(0)
    process.send_signal(signal.SIGKILL)
    await asyncio.gather(*workers)
    process.communicate()


async def drained(port: int) -> set[str]:
    """Receive and delete everything that is there."""
    found: set[str] = set()
    async with connected(port) as client:
        while True:
            attributes = (await client.call("GetQueueAttributes", QueueUrl="q", AttributeNames=["All"]))["Attributes"]
            names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
            if not sum(int(attributes[name]) for name in names):
                return found
            answer = await client.call("ReceiveMessage", QueueUrl="q", MaxNumberOfMessages=10, WaitTimeSeconds=3)
            for each in answer.get("Messages", []):
                assert each["Body"] not in found, "delivered again after it was received and deleted"
                found.add(each["Body"])
                await client.call("DeleteMessage", QueueUrl="q", ReceiptHandle=each["ReceiptHandle"])


@pytest.mark.timeout(120)
async def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Killed again and again under load, the broker keeps every send and every delete that it answered."""
    log = tmp_path / "queues.log"
    ledger = Ledger()
    for turn in range(KILLS):
        process, port = start(log)
        async with connected(port) as client:
            await client.call("CreateQueue", QueueName="q", Attributes={"VisibilityTimeout": "2"})
        await under_load(process, port, ledger, turn)
    process, port = start(log)
    try:
        found = await drained(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert len(ledger.sent) >= KILLS * 500
    assert ledger.deleted
    lost = ledger.sent - ledger.deleted - ledger.maybe_deleted - found
    assert not lost, f"{len(lost)} of {len(ledger.sent)} acknowledged messages are lost"
    assert not found & ledger.deleted, "a deleted message came back"
    assert not found - ledger.sent - ledger.maybe_sent, "a message came from nowhere"


async def churn(client: Client, kept: set[str], maybe: set[str]) -> None:
    """Send large messages and delete all but the last fifty, until the broker is gone."""
    for number in range(100_000):
        body = f"{number}:" + "x" * 200_000
        maybe.add(body)
        await client.call("SendMessage", QueueUrl="q", MessageBody=body)
        kept.add(body)
        maybe.discard(body)
        if number < 50:
            continue
        [each] = (await client.call("ReceiveMessage", QueueUrl="q"))["Messages"]
        kept.discard(each["Body"])
        maybe.add(each["Body"])
        await client.call("DeleteMessage", QueueUrl="q", ReceiptHandle=each["ReceiptHandle"])
        maybe.discard(each["Body"])


async def kill_when(process: "subprocess.Popen[str]", path: Path) -> None:
    """Kill the broker in the moment in which a file appears."""
    while not path.exists():  # noqa: ASYNC240 - the moment is short, so it is watched closely
        await asyncio.sleep(0)
    process.send_signal(signal.SIGKILL)


@pytest.mark.timeout(120)
async def test_killed_while_the_log_is_rewritten(tmp_path: Path) -> None:
    """A kill in the middle of rewriting the log loses nothing: the old log stands until the new one is whole."""
    log = tmp_path / "queues.log"
    kept: set[str] = set()
    maybe: set[str] = set()
    process, port = start(log)
    async with connected(port) as client:
        await client.call("CreateQueue", QueueName="q", Attributes={"VisibilityTimeout": "2"})
        killer = asyncio.create_task(kill_when(process, log.with_name("queues.log.new")), name="killer")
        with suppress(Gone):
            await churn(client, kept, maybe)
        await killer
    process.communicate()
    process, port = start(log)
    try:
        found = await drained(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert kept <= found, "an acknowledged message is lost"
    assert found - kept <= maybe, "a deleted message came back"
