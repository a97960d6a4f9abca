"""Run it with ``python -m examples.django_app.main``: it brings its own SQS and one SQLite file for each tenant.

It migrates the tenants' databases, sends orders, runs ``manage.py run_postroom`` as a process of its own, and stops
that with SIGTERM once the orders are handled.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

from examples.django_app.shop.messages import OrderPlaced, Tenant

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


async def manage(*words: str) -> asyncio.subprocess.Process:
    """Start ``manage.py`` with a command."""
    command = (sys.executable, "-m", "examples.django_app.manage", *words)
    return await asyncio.create_subprocess_exec(*command)


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
        await (await manage("migrate_tenants")).wait()
        await send_orders()
        worker = await manage("run_postroom")
        while worker.returncode is None and any(sqs.counts("orders")):  # noqa: ASYNC110 - the queue is asked until it is empty
            await asyncio.sleep(0.1)
        worker.send_signal(signal.SIGTERM)  # as a deployment does
        print(f"the worker drained and exited with {await worker.wait()}", flush=True)
        await (await manage("migrate_tenants")).wait()


if __name__ == "__main__":
    asyncio.run(main())
