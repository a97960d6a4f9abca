"""``python -m examples.fastapi_app``: three tenants, real PostgreSQL, uvicorn, SIGTERM under load, nothing lost.

Everything runs on this machine and is removed at the end. ``--outage`` adds an outage of SQS, which takes 15 s.
``--show`` runs it with its telemetry, and prints traces, metrics and the log.
``--wrong`` lets ``postroom check`` look at set-ups that are wrong.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from examples.fastapi_app.main import prepare
from examples.running import run_example

from postroom import ExitCode
from postroom.local import LocalBroker
from postroom.local.threaded import ThreadedServer
from postroom.testing.postgres import PostgresServer

TENANTS = ("acme", "beta", "coral")
ORDERS = 30
"""Orders that wait when the service starts, per tenant."""
REFUSED = "order \0"
"""PostgreSQL stores no NUL in a text."""
SHOW = "--show" in sys.argv
FACTORY = f"examples.fastapi_app.{'observed' if SHOW else 'main'}:create_app"
METRICS = (
    "postroom_settlements_total", "postroom_message_attempts_count", "messaging_process_duration_seconds_count",
    "postroom_slots_limit", "postroom_poll_age_seconds", "postroom_pool_weight", "postroom_pool_opened_total",
)  # fmt: skip
"""The metrics that are shown of some forty."""


@dataclass
class Site:
    """What the service needs, and how to talk to it."""

    sqs: ThreadedServer
    dsns: dict[str, str]
    port: int
    http: httpx.AsyncClient
    log: Path
    accepted: dict[str, list[str]] = field(default_factory=lambda: {tenant: [] for tenant in TENANTS})

    @property
    def environment(self) -> dict[str, str]:
        """What the service is told."""
        return {
            **os.environ,
            "ORDERS_DATABASES": json.dumps(self.dsns),
            "ORDERS_POLL": "1",
            "AWS_ENDPOINT_URL_SQS": self.sqs.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }

    @asynccontextmanager
    async def service(self) -> AsyncGenerator[asyncio.subprocess.Process]:
        """Run the service under uvicorn, as a process of its own."""
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "uvicorn", "--factory", FACTORY, "--port", str(self.port),
                "--timeout-graceful-shutdown", "5", "--no-access-log", "--log-level", "warning",
                env=self.environment, stderr=None if "--log" in sys.argv else log,
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
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "service.log"
        yield Site(sqs, dsns, port, await stack.enter_async_context(http), log)


async def first_life(here: Site) -> None:
    """Start, idle, overload, and SIGTERM while orders come and are handled."""
    async with here.service() as process:
        say("before the start", await here.ready())
        say("started, idle", await here.ready_is("200"))
        if SHOW:
            await show_traces(here)
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
        if SHOW:
            await show_metrics(here)
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
    return wrong + dead - SHOW  # the order that is refused


async def show_traces(here: Site) -> None:
    """Place two orders, one that the database refuses, and print their traces."""
    tenant = TENANTS[0]
    await here.place(tenant, f"{tenant}-traced", 0.05)
    await here.place(tenant, REFUSED)
    here.accepted[tenant].remove(REFUSED)
    while await here.orders(tenant) != here.accepted[tenant] or here.sqs.counts("orders-dead") != (1, 0, 0):  # noqa: ASYNC110 - the service is asked
        await asyncio.sleep(0.05)
    text = (await here.http.get("/traces")).text
    print("Traces, from the request to the handler:", *text.splitlines(), sep="\n  ", flush=True)


async def show_metrics(here: Site) -> None:
    """Scrape the service, and print a part of it."""
    lines = (await here.http.get("/metrics")).text.splitlines()
    shown = [line for line in lines if line.startswith(METRICS) and not line.endswith(" 0.0")]
    short = [re.sub(r'(otel|messaging)_\w+="[^"]*",?', "", line) for line in shown]
    print(f"{len(lines)} lines scraped, some of them, with their own labels:", *short, sep="\n  ", flush=True)


def show_log(here: Site) -> None:
    """Print what the consumer logged, its tracebacks cut."""
    print("The log:", flush=True)
    for line in here.log.read_text(encoding="utf-8").splitlines():
        record: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if record.get("logger") == "postroom.consumer" or record.get("level") == "ERROR":
            shown = {name: text[:60] + "..." if name == "exception" else text for name, text in record.items()}
            print(" ", json.dumps(shown), flush=True)


async def check_wrong(here: Site) -> int:
    """Let ``postroom check`` look at six set-ups, and print what it finds. Returns how many it passes."""
    passed = 0
    for name in ("misspelt", "twice", "unpromised", "killed", "greedy", "mistyped"):
        command = ["check", f"examples.fastapi_app.wrong:{name}", "--replicas", "10", "--attribute", "tenantId=acme"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "postroom", *command, env=here.environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        table, _, _ = output.decode().partition("\n\nThe least IAM policy")
        found = [line for line in table.splitlines() if line and not line.startswith(("OK", "UNKNOWN"))]
        print(f"{name}: exit code {process.returncode}", *found[1:], "", sep="\n", flush=True)
        passed += process.returncode != int(ExitCode.CONFIGURATION)
    return passed


def say(when: str, what: str) -> None:
    """Print one line."""
    print(f"  /readyz {when:<20} {what}", flush=True)


async def main() -> int:
    """Run both lives. Returns 0 if nothing was lost."""
    async with site() as here:
        if "--wrong" in sys.argv:
            return await check_wrong(here)
        print("First life: SIGTERM under load", flush=True)
        await first_life(here)
        print("Second life: what was left", flush=True)
        wrong = await second_life(here)
        if SHOW:
            show_log(here)
        return wrong


if __name__ == "__main__":
    run_example(main)
