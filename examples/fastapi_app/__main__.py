"""``python -m examples.fastapi_app``: three tenants, real PostgreSQL, uvicorn, SIGTERM under load, nothing lost.

Everything runs on this machine and is removed at the end. ``--outage`` adds an outage of SQS, which takes 15 s.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import asyncpg
import httpx
from examples.fastapi_app.main import prepare

from postroom.local import LocalBroker
from postroom.local.threaded import ThreadedServer
from postroom.testing.postgres import PostgresServer

TENANTS = ("acme", "beta", "coral")
ORDERS = 30
"""Orders that wait when the service starts, per tenant."""


@dataclass
class Site:
    """What the service needs, and how to talk to it."""

    sqs: ThreadedServer
    dsns: dict[str, str]
    port: int
    http: httpx.AsyncClient
    accepted: dict[str, list[str]] = field(default_factory=lambda: {tenant: [] for tenant in TENANTS})

    @asynccontextmanager
    async def service(self) -> AsyncGenerator[asyncio.subprocess.Process]:
        """Run the service under uvicorn, as a process of its own."""
        environment = {
            **os.environ,
            "ORDERS_DATABASES": json.dumps(self.dsns),
            "ORDERS_POLL": "1",
            "AWS_ENDPOINT_URL_SQS": self.sqs.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uvicorn", "--factory", "examples.fastapi_app.main:create_app",
            "--port", str(self.port), "--timeout-graceful-shutdown", "5", "--no-access-log",
            env=environment, stderr=None if "--log" in sys.argv else asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def place(self, tenant: str, order: str, seconds: float = 0.0) -> bool:
        """Place an order. Returns whether the service took it."""
        try:
            answer = await self.http.post(
                "/orders", json={"order_id": order, "seconds": seconds}, headers={"x-tenant": tenant}
            )
        except httpx.TransportError:
            return False
        if answer.status_code == 202:
            self.accepted[tenant].append(order)
            return True
        return False

    async def ready(self) -> str:
        """Return what ``/readyz`` says now."""
        try:
            answer = await self.http.get("/postroom/readyz")
        except httpx.TransportError:
            return "no answer: it does not listen"
        reasons = [reason for each in answer.json().get("consumers", ()) for reason in each.get("reasons", ())]
        return " ".join([str(answer.status_code), *reasons])

    async def ready_is(self, beginning: str) -> str:
        """Wait until ``/readyz`` says something."""
        while not (said := await self.ready()).startswith(beginning):  # noqa: ASYNC110 - the service is asked
            await asyncio.sleep(0.05)
        return said

    async def orders(self, tenant: str) -> list[str]:
        """Look into a tenant's own database."""
        connection: asyncpg.Connection = await asyncpg.connect(self.dsns[tenant])
        try:
            return sorted(row["order_id"] for row in await connection.fetch("SELECT order_id FROM orders"))
        finally:
            await connection.close()

    @contextmanager
    def outage(self) -> Generator[None]:
        """Let SQS answer nothing."""
        over = threading.Event()

        def answer_nothing(_: LocalBroker) -> None:
            over.wait()

        freeze = threading.Thread(target=self.sqs.call, args=(answer_nothing,), daemon=True)
        freeze.start()
        try:
            yield
        finally:
            over.set()
            freeze.join()


@asynccontextmanager
async def site() -> AsyncGenerator[Site]:
    """Start PostgreSQL, with a database per tenant, and a local SQS. An own server is named by ``ORDERS_SERVER``."""
    async with contextlib.AsyncExitStack() as stack:
        server = os.environ.get("ORDERS_SERVER")
        if server is None:
            postgres = await asyncio.to_thread(stack.enter_context, PostgresServer())
            server = postgres.dsn("postgres").removesuffix("/postgres")
        maintenance = await asyncpg.connect(f"{server}/postgres")
        dsns = {tenant: f"{server}/fastapi_{tenant}" for tenant in TENANTS}
        for tenant in TENANTS:
            await maintenance.execute(f"DROP DATABASE IF EXISTS fastapi_{tenant} WITH (FORCE)")
            await maintenance.execute(f"CREATE DATABASE fastapi_{tenant}")
            await prepare(dsns[tenant])
        await maintenance.close()
        sqs = stack.enter_context(ThreadedServer())
        sqs.create_queue("orders-dead", {"MessageRetentionPeriod": "1209600"})
        redrive = {"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:orders-dead", "maxReceiveCount": "10"}
        sqs.create_queue("orders", {"RedrivePolicy": json.dumps(redrive)})
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False)
        yield Site(sqs, dsns, port, await stack.enter_async_context(http))


async def first_life(here: Site) -> None:
    """Start, idle, overload, and SIGTERM while orders come and are handled."""
    async with here.service() as process:
        say("before the start", await here.ready())
        say("started, idle", await here.ready_is("200"))
        if "--outage" in sys.argv:
            with here.outage():
                began = time.monotonic()
                said = await here.ready_is("503")
                say(f"SQS silent for {time.monotonic() - began:.0f} s", said)
            say("SQS answers again", await here.ready_is("200"))
        await asyncio.gather(
            *(here.place(tenant, f"{tenant}-{number}", 0.05) for tenant in TENANTS for number in range(ORDERS))
        )
        say("overload", await here.ready())
        stream = asyncio.create_task(keep_ordering(here), name="orders")
        while sum([len(await here.orders(tenant)) for tenant in TENANTS]) < ORDERS // 3:  # noqa: ASYNC110 - the service is asked
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        await process.wait()
        say("stopped by SIGTERM", await here.ready())
        stream.cancel()
        await asyncio.wait([stream])
    done = {tenant: len(await here.orders(tenant)) for tenant in TENANTS}
    visible, in_flight, _ = here.sqs.counts("orders")
    print(f"  orders in the databases: {done}; in the queue: {visible} visible, {in_flight} in flight", flush=True)


async def keep_ordering(here: Site) -> None:
    """Place orders without a pause, whatever becomes of them."""
    number = 0
    while True:
        number += 1
        for tenant in TENANTS:
            await here.place(tenant, f"{tenant}-late-{number}", 0.02)
        await asyncio.sleep(0.005)


async def second_life(here: Site) -> int:
    """Start again, drain the queue, and compare what was accepted with what is in the databases."""
    async with here.service() as process:
        await here.ready_is("200")
        while here.sqs.counts("orders") != (0, 0, 0):  # noqa: ASYNC110 - the service is asked
            await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        await process.wait()
    wrong = 0
    for tenant in TENANTS:
        found, accepted = await here.orders(tenant), sorted(here.accepted[tenant])
        wrong += found != accepted
        print(f"  {tenant}: {len(accepted)} orders accepted, {len(found)} in its database", flush=True)
    dead = sum(here.sqs.counts("orders-dead"))
    print(f"  dead letters: {dead}; lost or doubled: {wrong}", flush=True)
    return wrong + dead


def say(when: str, what: str) -> None:
    """Print one line."""
    print(f"  /readyz {when:<20} {what}", flush=True)


async def main() -> int:
    """Run both lives. Returns 0 if nothing was lost."""
    async with site() as here:
        print("First life: SIGTERM under load", flush=True)
        await first_life(here)
        print("Second life: what was left", flush=True)
        return await second_life(here)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
