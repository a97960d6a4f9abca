"""Workers as processes of their own, and the local SQS that they work for."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import msgspec

from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send

WORKER = Path(__file__).with_name("worker.py")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Site:
    """A local SQS with the queue ``orders``, a directory for the databases, and worker processes."""

    def __init__(self, broker: LocalBroker, endpoint: str, directory: Path) -> None:
        self.broker = broker
        self.directory = directory
        self.endpoint = endpoint
        self.log: int | IO[bytes] = asyncio.subprocess.PIPE
        """Where workers log to. One that says much needs a file."""

    def send(self, order_id: str, *, tenant: str = "tenant-a", seconds: float = 0.0) -> None:
        """Send an order of a tenant."""
        body = msgspec.json.encode({"order_id": order_id, "seconds": seconds}).decode()
        attributes = {"tenantId": AttributeValue(string_value=tenant, data_type="String")}
        self.broker.send("orders", Send(message_body=body, message_attributes=attributes))

    @asynccontextmanager
    async def worker(self, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a worker; kill it at the end if it still runs."""
        settings = {"ENDPOINT": self.endpoint, "DIRECTORY": str(self.directory), **environment}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(WORKER),
            env={**os.environ, **CREDENTIALS, **settings},
            stderr=self.log,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    def diary(self) -> list[str]:
        """Return what the workers wrote down, in order."""
        path = self.directory / "diary"
        return path.read_text().splitlines() if path.exists() else []

    async def diary_has(self, count: int, word: str, *, seconds: float = 40.0) -> None:
        """Wait until the diary has so many lines that begin with a word."""
        async with asyncio.timeout(seconds):
            while sum(line.startswith(word) for line in self.diary()) < count:
                await asyncio.sleep(0.02)

    def counts(self) -> tuple[int, int]:
        """Return how many messages are visible and how many are in flight."""
        said = self.broker.attributes("orders")
        return int(said["ApproximateNumberOfMessages"]), int(said["ApproximateNumberOfMessagesNotVisible"])

    async def empty(self, *, seconds: float = 40.0) -> None:
        """Wait until the queue is empty."""
        async with asyncio.timeout(seconds):
            while self.counts() != (0, 0):
                await asyncio.sleep(0.02)

    def rows(self, tenant: str) -> list[str]:
        """Read a tenant's database."""
        connection = sqlite3.connect(self.directory / f"{tenant}.db")
        try:
            return [row for (row,) in connection.execute("SELECT order_id FROM orders")]
        finally:
            connection.close()
