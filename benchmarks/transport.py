"""What the AWS transport costs: CPU per 1,000 messages, and how long an ack takes beside many long polls.

Every client receives ten messages and deletes them in one batch, eight at a time, against the stub server in a
process of its own. Runs alternate, and medians are compared: what disturbs the machine disturbs all of them. Ratios
come first, because milliseconds are this machine's. It takes a minute (``python -m benchmarks.transport``).
"""

import argparse
import asyncio
import os
import platform
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from unittest import mock

import aiohttp
import boto3
import botocore.config
import psutil
from aiobotocore.session import get_session
from benchmarks.stub_server import StubServer

from postroom.message import Message
from postroom.transports import AwsClient, Queue
from postroom.transports.aws import conditions, connection
from postroom.transports.aws.http import HttpPool

CONCURRENCY = 8
POLLERS = 64
Step = Callable[[], Awaitable[int]]
"""Receives and deletes once; returns the number of messages."""


def isolate(stub: StubServer) -> None:
    """Set the environment that every client reads."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.pop("REQUESTS_CA_BUNDLE", None)
    os.environ.update(
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE",
        AWS_SECRET_ACCESS_KEY="secret",  # noqa: S106 - the stub does not look
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_CA_BUNDLE=stub.certificate,
    )


# The clients. Each opens itself, gives a step, and closes.


@asynccontextmanager
async def postroom_step(url: str, *, hot_path: bool) -> AsyncIterator[Step]:
    """Postroom's transport."""
    async with AwsClient(endpoint_url=url, hot_path=hot_path) as client:
        queue = await client.queue("bench")

        async def step() -> int:
            messages = await queue.receive(limit=10, wait=20, visibility=60)
            failures = await queue.delete([message.receipt_handle for message in messages])
            assert not failures
            return len(messages)

        yield step


@asynccontextmanager
async def by_hand_step(url: str) -> AsyncIterator[Step]:
    """Use aiobotocore as most people do."""
    async with get_session().create_client("sqs", endpoint_url=url) as sqs:
        queue_url = StubServer.queue_url()

        async def step() -> int:
            answer: Any = await sqs.receive_message(
                QueueUrl=queue_url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=20,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            messages = answer["Messages"]
            entries = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(messages)]
            deleted: Any = await sqs.delete_message_batch(QueueUrl=queue_url, Entries=entries)
            assert not deleted["Failed"]
            return len(messages)

        yield step


@asynccontextmanager
async def boto3_step(url: str) -> AsyncIterator[Step]:
    """Use boto3 in threads."""
    config = botocore.config.Config(max_pool_connections=CONCURRENCY)
    sqs: Any = boto3.client("sqs", endpoint_url=url, config=config)
    queue_url = StubServer.queue_url()

    def blocking() -> int:
        messages = sqs.receive_message(
            QueueUrl=queue_url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=20,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )["Messages"]
        entries = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(messages)]
        assert not sqs.delete_message_batch(QueueUrl=queue_url, Entries=entries)["Failed"]
        return len(messages)

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        loop = asyncio.get_running_loop()
        yield lambda: loop.run_in_executor(threads, blocking)
    sqs.close()


CLIENTS: dict[str, Callable[[str], Any]] = {
    "postroom, hot path": lambda url: postroom_step(url, hot_path=True),
    "postroom, ordinary": lambda url: postroom_step(url, hot_path=False),
    "aiobotocore by hand": by_hand_step,
    "boto3 in threads": boto3_step,
}


# The layers below: the same request by two HTTP layers, nothing else.

RECEIVE = (
    b'{"QueueUrl":"http://127.0.0.1/000000000000/bench","MaxNumberOfMessages":10,"WaitTimeSeconds":20,'
    b'"MessageAttributeNames":["All"],"MessageSystemAttributeNames":["All"]}'
)
HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "AmazonSQS.ReceiveMessage",
    "X-Amz-Date": "20251123T000000Z",
    "Authorization": "AWS4-HMAC-SHA256 " + "x" * 160,
    "User-Agent": "postroom",
}


def _trusting(url: str) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"]) if url.startswith("https") else None


@asynccontextmanager
async def aiohttp_layer(url: str) -> AsyncIterator[Step]:
    """Exchange by an aiohttp session, with everything off that can be."""
    connector = aiohttp.TCPConnector(limit=64, ssl=_trusting(url) or True)
    skip = ("Accept", "Accept-Encoding")
    async with aiohttp.ClientSession(connector=connector, skip_auto_headers=skip, auto_decompress=False) as session:

        async def step() -> int:
            async with session.post(url, data=RECEIVE, headers=HEADERS) as answer:
                await answer.read()
            return 10

        yield step


@asynccontextmanager
async def protocol_layer(url: str) -> AsyncIterator[Step]:
    """Exchange by the hot path's own layer: httptools on a bare asyncio protocol."""
    port = int(url.rsplit(":", 1)[-1])
    pool = HttpPool("127.0.0.1", port, tls=_trusting(url), connect_timeout=5, timeout=25)
    lines = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{lines}Content-Length: {len(RECEIVE)}\r\n\r\n".encode()

    async def step() -> int:
        await pool.exchange(head + RECEIVE)
        return 10

    yield step
    await pool.aclose()


LAYERS: dict[str, Callable[[str], Any]] = {"httptools on a protocol": protocol_layer, "aiohttp": aiohttp_layer}


@dataclass(frozen=True)
class Run:
    """One run of one client, per 1,000 messages."""

    cpu: float
    """Milliseconds of CPU of this process."""
    wall: float
    """Milliseconds."""
    server: float
    """Milliseconds of CPU of the server."""


async def run(opened: Any, messages: int, server: psutil.Process) -> Run:
    """Run one client, after a warm-up."""
    async with opened as step:
        left = messages

        async def work() -> None:
            nonlocal left
            while left > 0:
                count = await step()  # in a line of its own: `left -= await` would read `left` before the wait
                left -= count

        await asyncio.gather(*(step() for _ in range(CONCURRENCY)))
        at_server, cpu, wall = sum(server.cpu_times()[:2]), time.process_time(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        at_server = sum(server.cpu_times()[:2]) - at_server
    return Run(*(seconds * 1e6 / messages for seconds in (cpu, wall, at_server)))


def compare(clients: dict[str, Callable[[str], Any]], url: str, options: argparse.Namespace, server: Any) -> None:
    """Run all clients in turn, and print the ratios to the first one and the medians."""
    runs: dict[str, list[Run]] = {name: [] for name in clients}
    for _ in range(options.rounds):
        for name, make in clients.items():
            runs[name].append(asyncio.run(run(make(url), options.messages, server)))
    first = next(iter(clients))
    print(f"{'':26}{'first is ... of it':>20}{'CPU ms/1,000':>14}{'spread':>16}{'messages/s':>12}{'stub CPU':>10}")
    for name, taken in runs.items():
        ratios = [mine.cpu / theirs.cpu for mine, theirs in zip(runs[first], taken, strict=True)]
        cpus = [one.cpu for one in taken]
        print(
            f"{name:26}{statistics.median(ratios):>19.2f}x{statistics.median(cpus):>14.1f}"
            f"{f'{min(cpus):.1f}-{max(cpus):.1f}':>16}{1e6 / statistics.median(one.wall for one in taken):>12,.0f}"
            f"{statistics.median(one.server for one in taken):>10.1f}"
        )
    print()


# An ack beside long polls.


Call = Callable[[], Coroutine[Any, Any, object]]


async def ack_latencies(acknowledge: Call, poll: Call) -> str:
    """Time 300 acks while 64 long polls wait, and return the percentiles."""
    polls: list[asyncio.Task[object]] = [
        asyncio.create_task(poll(), name=f"poll-{number}") for number in range(POLLERS)
    ]
    await asyncio.sleep(1)  # until all that can be sent has been
    taken: list[float] = []
    for _ in range(300):
        started = time.perf_counter()
        await acknowledge()
        taken.append((time.perf_counter() - started) * 1000)
    for task in polls:
        task.cancel()
    await asyncio.gather(*polls, return_exceptions=True)
    cuts = statistics.quantiles(taken, n=100)
    return f"p50 {cuts[49]:8.2f} ms   p99 {cuts[98]:8.2f} ms   longest {max(taken):8.2f} ms"


async def beside_polls(url: str) -> None:
    """Print the latencies of each client."""
    async with AsyncExitStack() as stack:
        for name, hot_path in (("postroom, hot path", True), ("postroom, ordinary", False)):
            client = await stack.enter_async_context(AwsClient(endpoint_url=url, hot_path=hot_path))
            queue: Queue = await client.queue("bench")
            idle: Queue = await client.queue("idle")
            messages: list[Message] = await queue.receive(limit=10, wait=0, visibility=60)
            handles = [message.receipt_handle for message in messages]

            async def delete(queue: Queue = queue, handles: Sequence[str] = handles) -> object:
                return await queue.delete(handles)

            async def poll(idle: Queue = idle) -> object:
                return await idle.receive(limit=10, wait=20, visibility=60)

            print(f"{name:26}{await ack_latencies(delete, poll)}")
        sqs: Any = await stack.enter_async_context(get_session().create_client("sqs", endpoint_url=url))
        entries = [{"Id": "0", "ReceiptHandle": "handle"}]

        async def delete_by_hand() -> object:
            return await sqs.delete_message_batch(QueueUrl=StubServer.queue_url(), Entries=entries)

        async def poll_by_hand() -> object:  # two seconds, or this would take a quarter of an hour
            return await sqs.receive_message(QueueUrl=StubServer.queue_url("idle"), WaitTimeSeconds=2)

        print(f"{'aiobotocore by hand (2 s)':26}{await ack_latencies(delete_by_hand, poll_by_hand)}")


def trust_the_stub() -> AsyncExitStack:
    """Let the hot path be taken over TLS: it takes no other authority than the default, which the stub's is not."""
    stack = AsyncExitStack()
    stack.enter_context(mock.patch.object(conditions, "custom_authority", return_value=False))
    stack.enter_context(mock.patch.object(connection, "default_tls", return_value=_trusting("https")))
    return stack


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each client; medians are printed")
    parser.add_argument("--messages", type=int, default=4000, help="messages per run")
    parser.add_argument("--pin", action="store_true", help="keep this process and the stub on a CPU each (Linux)")
    options = parser.parse_args()
    if options.pin:
        os.sched_setaffinity(0, {0})
    versions = ", ".join(f"{name} {version(name)}" for name in ("aiobotocore", "aiohttp", "httptools", "boto3"))
    print(f"Python {platform.python_version()} on {platform.machine()}, {os.cpu_count()} CPUs; {versions}\n")
    with StubServer(tls=True, cpu=1 if options.pin else None) as stub, mock.patch.dict(os.environ):
        isolate(stub)
        trust_the_stub()
        server = psutil.Process(stub.pid)
        for title, url in (("TLS", stub.tls_url), ("plain", stub.url)):
            print(f"Receive 10 and delete 10, {CONCURRENCY} at a time, {title}")
            compare(CLIENTS, url, options, server)
        for title, url in (("TLS", stub.tls_url), ("plain", stub.url)):
            print(f"The HTTP layer alone: one receive, {title}")
            compare(LAYERS, url, options, server)
        print(f"An ack beside {POLLERS} long polls")
        asyncio.run(beside_polls(stub.url))


if __name__ == "__main__":
    main()
