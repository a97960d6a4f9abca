"""Run it with ``python -m examples.django_app.main``: it brings its own SQS and one SQLite file for each tenant.

It migrates the tenants' databases, sends orders, runs ``manage.py run_postroom`` as a process of its own, and stops
that with SIGTERM once the orders are handled.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

from examples.django_app.shop.messages import OrderPlaced, Tenant
from examples.running import run_example

from postroom import Sender
from postroom.local.threaded import ThreadedServer

TENANTS = ("acme", "globex")


def database(file: Path) -> dict[str, object]:
    """Return a tenant's entry, as it would stand in ``DATABASES``. A write waits for another one, then goes on."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(file),
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }


@asynccontextmanager
async def manage(*words: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run ``manage.py`` with a command. What still runs at the end of the block gets SIGTERM, as in a deployment."""
    command = (sys.executable, "-m", "examples.django_app.manage", *words)
    # A session of its own: Ctrl-C in the terminal is for this process, which then stops the other one.
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def send_orders() -> None:
    """Send three orders of each tenant, one of them twice."""
    async with Sender("orders", context=Tenant) as sender:
        for tenant in TENANTS:
            for number in (1, 2, 3, 2):
                await sender.send(OrderPlaced(f"order-{number}", Decimal("9.50")), context=Tenant(tenant))


async def main() -> None:
    """Migrate, send, consume, stop, and look."""
    with tempfile.TemporaryDirectory() as directory, ThreadedServer() as sqs:
        sqs.create_queue("orders-dlq")
        redrive = {"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:orders-dlq", "maxReceiveCount": "5"}
        sqs.create_queue("orders", {"RedrivePolicy": json.dumps(redrive)})
        os.environ |= {
            "SHOP_TENANTS": json.dumps({tenant: database(Path(directory, f"{tenant}.db")) for tenant in TENANTS}),
            "AWS_ENDPOINT_URL_SQS": sqs.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }
        async with manage("migrate_tenants") as migration:
            await migration.wait()
        await send_orders()
        async with manage("run_postroom") as worker:
            while worker.returncode is None and any(sqs.counts("orders")):  # noqa: ASYNC110 - the queue is asked until it is empty
                await asyncio.sleep(0.1)
        print(f"the worker drained and exited with {worker.returncode}", flush=True)
        async with manage("migrate_tenants") as migration:
            await migration.wait()


if __name__ == "__main__":
    run_example(main)
