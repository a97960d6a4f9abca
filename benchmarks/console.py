"""What the console costs: a real ASGI server, real viewers in processes of their own, and 1,000 tenants under load.

    python -m benchmarks.console [--tenants 1000] [--seconds 15]

Prints the part of a core that one viewer adds, by how many tenants it is shown; and what no viewer costs.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from typing import Any

import uvicorn

from postroom import Concurrency, Consumer, MessageContext, Polling
from postroom.console import console
from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.transports.memory import MemoryClient

VIEWER = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("GET", f"/events?top={sys.argv[2]}")
answer, size = connection.getresponse(), 0
while line := answer.readline():
    size += len(line)
    print(size, flush=True)
"""


def send(broker: LocalBroker, tenant: int) -> None:
    """Send a message of a tenant."""
    named = {"tenantId": AttributeValue(string_value=f"tenant-{tenant:05}", data_type="String")}
    broker.send("orders", Send(message_body="{}", message_attributes=named))


async def load(broker: LocalBroker, tenants: int) -> None:
    """Send 200 messages a second, of all tenants in turn."""
    number = 0
    while True:
        for _ in range(20):
            send(broker, number % tenants)
            number += 1
        await asyncio.sleep(0.1)


async def busy(seconds: float) -> float:
    """Return the part of a core that this process used."""
    began, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.perf_counter() - began)


async def watched(port: int, top: int, seconds: float) -> tuple[float, float]:
    """Return the part of a core that this process uses with one viewer, and the bytes per second it sends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VIEWER, str(port), str(top), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    sizes: list[int] = []

    async def read() -> None:
        assert process.stdout is not None
        sizes.append(0)
        async for line in process.stdout:
            sizes[0] = int(line)

    reading = asyncio.create_task(read())
    try:
        await asyncio.sleep(3)
        before = sizes[0]
        used = await busy(seconds)
        return used, (sizes[0] - before) / seconds
    finally:
        process.kill()
        await process.wait()
        await reading


async def main(tenants: int, seconds: float, rounds: int) -> None:
    """Measure, each time beside the same load without a viewer."""
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        orders: Consumer[str, None] = Consumer(
            "orders",
            context=lambda message: message.attributes["tenantId"],
            client=MemoryClient(broker),
            concurrency=Concurrency(total=50, per_tenant=5),
            polling=Polling(wait=1.0, scout=False),
        )

        @orders.handler
        async def handle(_: dict[str, Any], ctx: MessageContext[str, None]) -> None:
            await asyncio.sleep(0.05)

        config = uvicorn.Config(console(orders), port=0, log_level="warning", lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it has no event for that
            await asyncio.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with orders:
            for tenant in range(tenants):
                orders.tenants.limit(f"tenant-{tenant:05}", rate=1000.0)
            loading = asyncio.create_task(load(broker, tenants))
            await asyncio.sleep(3)
            found: dict[str, list[float]] = {}
            for _ in range(rounds):
                none = await busy(seconds)
                found.setdefault("none", []).append(none)
                for top in (100, tenants):
                    used, sent = await watched(port, top, seconds)
                    found.setdefault(f"first {top}", []).append(used - none)
                    found.setdefault(f"first {top}, bytes/s", []).append(sent)
            loading.cancel()
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    none = statistics.median(found.pop("none"))
    print(f"{tenants} tenants, 200 messages/s without a viewer: {none:.1%} of a core")
    for name, values in found.items():
        value = statistics.median(values)
        print(
            f"{name}: {value:,.0f}" if name.endswith("bytes/s") else f"one viewer of the {name}: {value:+.2%} of a core"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.tenants, given.seconds, given.rounds))
