"""How fast is the local broker? Prints a table of messages per second, wake-up latency and memory.

    python benchmarks/local_broker.py [--seconds 3] [--clients 16] [--persist] [--peers]

The server runs in a process of its own, as ``postroom local`` does; the clients share this process and speak plain
HTTP over kept-alive connections, so that what is measured is the server rather than an SDK. One "message" is a send,
a receive and a delete. A backlog of the given size lies in the queue all the time. Bounded: about a minute in all.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

BODY = json.dumps({"order_id": "order-001", "customer_id": "cust-123", "amount": 99.99, "note": "x" * 120})
ATTRIBUTES = {"tenantId": {"DataType": "String", "StringValue": "tenant-a"}}

AIOHTTP_FRONT = """
import asyncio
from aiohttp import web
from postroom.local import LocalBroker
from postroom.local.front import Front
from postroom.local.http import Request, Response

async def main():
    async with LocalBroker() as broker:
        front = Front(broker, lambda: "http://127.0.0.1", None)
        async def handle(request):
            headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
            future = asyncio.get_running_loop().create_future()
            answer = front(Request(request.method, request.path, headers, await request.read()), future.set_result)
            if not isinstance(answer, Response):
                answer = await future
            return web.Response(status=answer.status, body=answer.body, content_type="application/x-amz-json-1.0")
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print("http://127.0.0.1:%d" % runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Client:
    """One kept-alive connection that sends one request at a time."""

    def __init__(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._port = port
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> "Client":
        """Open a connection."""
        return cls(port, *await asyncio.open_connection("127.0.0.1", port, limit=4_000_000))

    async def call(self, action: str, request: dict[str, Any]) -> dict[str, Any]:
        """Call an action and return its result."""
        body = json.dumps(request).encode()
        head = (
            f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Amz-Target: AmazonSQS.{action}\r\n"
            "Content-Type: application/x-amz-json-1.0\r\nX-Amz-Date: 20260101T000000Z\r\n"
            "Authorization: AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/sqs/aws4_request, "
            f"SignedHeaders=host, Signature={'0' * 64}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        head_bytes = await self._reader.readuntil(b"\r\n\r\n")
        lower = head_bytes.lower()
        at = lower.index(b"content-length:") + 15
        answer = await self._reader.readexactly(int(lower[at : lower.index(b"\r", at)]))
        if b"connection: close" in lower:  # as some servers do after every answer
            self._writer.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=4_000_000)
        if b" 200 " not in head_bytes[:16]:
            raise RuntimeError(answer.decode())
        return json.loads(answer) if answer else {}

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class Server:
    """The server process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def rss(self) -> float:
        """Return its resident memory in MB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    def cpu(self) -> float:
        """Return the CPU seconds that it has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


@asynccontextmanager
async def serving(*, persist: Path | None = None, aiohttp: bool = False) -> AsyncIterator[Server]:
    """Run a server for a while."""
    command = [sys.executable, "-m", "postroom.cli.local", "--port", "0", "--no-log"]
    if persist is not None:
        command += ["--persist", str(persist)]
    if aiohttp:
        command = [sys.executable, "-c", AIOHTTP_FRONT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - nothing else runs yet
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    try:
        yield Server(process, int(line.strip().rsplit(":", 1)[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


async def fill(client: Client, url: str, count: int) -> None:
    """Put a backlog into a queue."""
    for start in range(0, count, 10):
        await client.call("SendMessageBatch", batch(url, min(10, count - start)))


def batch(url: str, size: int) -> dict[str, Any]:
    """Return a send batch."""
    entries = [{"Id": str(n), "MessageBody": BODY, "MessageAttributes": ATTRIBUTES} for n in range(size)]
    return {"QueueUrl": url, "Entries": entries}


async def cycle(client: Client, url: str, size: int) -> int:
    """Send, receive and delete ``size`` messages; return how many were deleted."""
    receive = {
        "QueueUrl": url,
        "MaxNumberOfMessages": size,
        "MessageAttributeNames": ["All"],
        "MessageSystemAttributeNames": ["All"],
    }
    if size == 1:
        await client.call("SendMessage", {"QueueUrl": url, "MessageBody": BODY, "MessageAttributes": ATTRIBUTES})
        messages = (await client.call("ReceiveMessage", receive))["Messages"]
        await client.call("DeleteMessage", {"QueueUrl": url, "ReceiptHandle": messages[0]["ReceiptHandle"]})
        return 1
    await client.call("SendMessageBatch", batch(url, size))
    messages = (await client.call("ReceiveMessage", receive))["Messages"]
    entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(messages)]
    done = await client.call("DeleteMessageBatch", {"QueueUrl": url, "Entries": entries})
    return len(done["Successful"])


async def throughput(server: Server, *, clients: int, backlog: int, size: int, seconds: float) -> tuple[float, float]:
    """Return messages per second that were sent, received and deleted, and the server's CPU ms per 1,000 of them."""
    connections = [await Client.connect(server.port) for _ in range(clients)]
    name = f"bench-{uuid.uuid4().hex[:8]}"
    created = await connections[0].call("CreateQueue", {"QueueName": name})
    url = created["QueueUrl"]
    await fill(connections[0], url, backlog)
    end = time.perf_counter() + seconds
    done = 0

    async def work(client: Client) -> None:
        nonlocal done
        while time.perf_counter() < end:
            count = await cycle(client, url, size)
            done += count  # not before the await: the others count meanwhile

    started, used = time.perf_counter(), server.cpu()
    await asyncio.gather(*(work(client) for client in connections))
    elapsed, used = time.perf_counter() - started, server.cpu() - used
    await connections[0].call("DeleteQueue", {"QueueUrl": url})
    for client in connections:
        client.close()
    return done / elapsed, used * 1e6 / done


async def wake_up(server: Server, rounds: int = 200) -> tuple[float, float, float]:
    """Return p50, p99 and maximum of milliseconds from sending to the answer of a parked poll."""
    poller, sender = await Client.connect(server.port), await Client.connect(server.port)
    url = (await sender.call("CreateQueue", {"QueueName": "wake"}))["QueueUrl"]
    times: list[float] = []
    for _ in range(rounds):
        poll = asyncio.create_task(poller.call("ReceiveMessage", {"QueueUrl": url, "WaitTimeSeconds": 20}))
        await asyncio.sleep(0.005)  # the poll is parked by then
        started = time.perf_counter()
        send = asyncio.create_task(sender.call("SendMessage", {"QueueUrl": url, "MessageBody": BODY}))
        messages = (await poll)["Messages"]
        times.append((time.perf_counter() - started) * 1000)
        await send
        await sender.call("DeleteMessage", {"QueueUrl": url, "ReceiptHandle": messages[0]["ReceiptHandle"]})
    poller.close()
    sender.close()
    times.sort()
    return statistics.median(times), times[int(len(times) * 0.99) - 1], times[-1]


async def row(label: str, options: argparse.Namespace, **kind: Any) -> None:
    """Measure one kind of server, and print its lines."""
    async with serving(**kind) as server:
        idle = server.rss()
        p50, p99, worst = await wake_up(server)
        print(f"{label}: idle {idle:.0f} MB; wake-up of a parked poll p50 {p50:.2f} ms, p99 {p99:.2f}, max {worst:.2f}")
        for backlog in options.backlogs:
            for size in (10, 1):
                runs = [
                    await throughput(
                        server, clients=options.clients, backlog=backlog, size=size, seconds=options.seconds
                    )
                    for _ in range(options.repeat)
                ]
                rate, cpu = max(runs)
                calls = f"batches of {size}" if size > 1 else "single calls"
                print(
                    f"{label} | backlog {backlog:>7,} | {calls:<13} | {rate:>8,.0f} messages/s "
                    f"| {cpu:4.0f} CPU ms per 1,000 | {server.rss():4.0f} MB"
                )


PEERS = {
    "ministack": (["--from", "ministack==1.5.33", "ministack"], {"GATEWAY_PORT": "{port}"}),
    "moto": (["--from", "moto[server]==5.2.5", "moto_server", "--port", "{port}"], {}),
}


@asynccontextmanager
async def peer(name: str) -> AsyncIterator[int]:
    """Run another local SQS for a while, in an environment of its own; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    arguments, settings = PEERS[name]
    uv = shutil.which("uv") or str(Path(__file__).parent.parent / ".uv" / "bin" / "uv")
    command = [uv, "tool", "run", *(part.format(port=port) for part in arguments)]
    environment = {**os.environ, **{key: value.format(port=port) for key, value in settings.items()}}
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        async with asyncio.timeout(120):
            while True:
                with suppress(OSError):
                    (await Client.connect(port)).close()
                    break
                await asyncio.sleep(0.2)
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


async def rate(port: int, *, clients: int, seconds: float) -> float:
    """Return messages per second with single calls, beside a backlog of 100."""
    connections = [await Client.connect(port) for _ in range(clients)]
    url = (await connections[0].call("CreateQueue", {"QueueName": f"bench-{uuid.uuid4().hex[:8]}"}))["QueueUrl"]
    await fill(connections[0], url, 100)
    started = time.perf_counter()
    end = started + seconds
    done = 0

    async def work(client: Client) -> None:
        nonlocal done
        while time.perf_counter() < end:
            count = await cycle(client, url, 1)
            done += count

    await asyncio.gather(*(work(client) for client in connections))
    elapsed = time.perf_counter() - started
    for client in connections:
        client.close()
    return done / elapsed


async def side_by_side(options: argparse.Namespace) -> None:
    """Measure the peers in the same minutes, turn by turn, and print ratios: those hold on a busy machine too."""
    async with AsyncExitStack() as stack:
        ports = {"postroom": (await stack.enter_async_context(serving())).port}
        for name in PEERS:
            ports[name] = await stack.enter_async_context(peer(name))
        rounds = [
            {name: await rate(port, clients=4, seconds=options.seconds) for name, port in ports.items()}
            for _ in range(max(3, options.repeat))
        ]
    for name in ports:
        rates = [each[name] for each in rounds]
        ratio = statistics.median(each["postroom"] / each[name] for each in rounds)
        print(
            f"single calls | {name:<9} | {min(rates):>6,.0f} to {max(rates):>6,.0f} messages/s "
            f"| postroom is {ratio:.1f} times as fast"
        )


async def main(options: argparse.Namespace) -> None:
    """Measure, and print."""
    if options.peers:
        await side_by_side(options)
        return
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"{options.clients} clients, best of {options.repeat} x {options.seconds} s")  # fmt: skip
    await row("postroom local", options)
    if options.persist:
        with tempfile.TemporaryDirectory() as folder:
            await row("  with --persist", options, persist=Path(folder) / "queues.log")
    if options.aiohttp:
        await row("  behind aiohttp", options, aiohttp=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=1, help="measure so often, and show the best, on a busy machine")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--backlogs", type=int, nargs="+", default=[100, 10_000, 100_000])
    parser.add_argument("--persist", action="store_true", help="measure with --persist as well")
    parser.add_argument("--peers", action="store_true", help="measure ministack and moto side by side, and only that")
    parser.add_argument("--aiohttp", action="store_true", help="measure the same broker behind aiohttp.web as well")
    asyncio.run(main(parser.parse_args()))
