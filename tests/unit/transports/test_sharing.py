"""What the queues of one client share, and what they do not: room, connections, contexts, and their end."""

import asyncio
import calendar
import contextvars
import gc
import logging
import re
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from postroom.errors import ClosedError
from postroom.message import OutgoingMessage
from postroom.transports import AwsClient, VisibilityChange
from postroom.transports.aws.http import HttpPool
from postroom.transports.aws.queue import AwsQueue
from unit.transports.fake_sqs import FakeSqs, Request, Script, connection_of, healthy, holds

paths = pytest.mark.parametrize("hot", [True, False])


def poll(queue: AwsQueue) -> asyncio.Task[Any]:
    """Start a long poll."""
    return asyncio.create_task(queue.receive(limit=10, wait=20, visibility=30), name="poll")


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def only_of(name: str, script: Script) -> Script:
    """Return a script that does this to one queue and is healthy to the others."""

    async def chosen(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body["QueueUrl"].endswith(f"/{name}"):
            await script(request, writer)
        else:
            writer.write(healthy(request))

    return chosen


@paths
async def test_idle_queues_starve_no_other(sqs: FakeSqs, *, hot: bool) -> None:
    """A message of the last of seventy queues is received while all the others wait for theirs."""

    async def idle(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body["QueueUrl"].endswith("/last"):
            writer.write(healthy(request))
        else:
            await holds(request, writer)

    sqs.scripts["ReceiveMessage"] = idle
    async with sqs.client(hot_path=hot) as client:
        polls = [poll(await client.queue(f"idle-{number}")) for number in range(70)]
        await sqs.wait_for("ReceiveMessage", 70)
        last = await client.queue("last")
        async with asyncio.timeout(20):
            assert len(await last.receive(limit=10, wait=20, visibility=30)) == 2
            assert await last.delete(["handle"]) == []
        await end(polls)


@paths
async def test_a_queue_that_hangs_keeps_no_other_waiting(sqs: FakeSqs, *, hot: bool) -> None:
    """Deletes and sends have room in each queue of its own, too."""
    sqs.scripts["DeleteMessageBatch"] = only_of("stuck", holds)
    async with sqs.client(hot_path=hot, connections=2) as client:
        stuck, good = await client.queue("stuck"), await client.queue("good")
        out = [asyncio.create_task(stuck.delete(["handle"]), name="delete") for _ in range(5)]
        await sqs.wait_for("DeleteMessageBatch", 2)
        async with asyncio.timeout(20):
            assert await good.delete(["handle"]) == []
            assert len(await good.send([OutgoingMessage(body="x")])) == 1
        await end(out)


@paths
async def test_calls_of_one_kind_that_hang_keep_no_other_kind_waiting(sqs: FakeSqs, *, hot: bool) -> None:
    """Deletes that are not answered stop neither heartbeats nor sends."""
    sqs.scripts["DeleteMessageBatch"] = holds
    async with sqs.client(hot_path=hot, connections=2) as client:
        queue = await client.queue("orders")
        out = [asyncio.create_task(queue.delete(["handle"]), name="delete") for _ in range(5)]
        await sqs.wait_for("DeleteMessageBatch", 2)
        async with asyncio.timeout(20):
            assert await queue.change_visibility([VisibilityChange("handle", 30)]) == []
            assert len(await queue.send([OutgoingMessage(body="x")])) == 1
        await end(out)


async def test_a_bound_of_the_users_leaves_connections_for_the_rest(sqs: FakeSqs) -> None:
    """Where AioConfig allows few connections, long polls do not take the last one of them."""
    sqs.scripts["ReceiveMessage"] = holds
    async with sqs.client(hot_path=False, config=AioConfig(max_pool_connections=4)) as client:
        polls = [poll(await client.queue(f"idle-{number}")) for number in range(10)]
        await sqs.wait_for("ReceiveMessage", 2)
        queue = await client.queue("orders")
        async with asyncio.timeout(20):
            assert await queue.delete(["handle"]) == []
            assert await queue.change_visibility([VisibilityChange("handle", 30)]) == []
        assert len(sqs.made("ReceiveMessage")) == 2
        await end(polls)


async def test_a_receive_that_waits_for_its_turn_is_told(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more pollers than ``connections``, one warning names the queue, the number and the option."""
    monkeypatch.setattr("postroom.transports.aws.room.PATIENCE", 0.0)
    sqs.scripts["ReceiveMessage"] = holds
    async with sqs.client(connections=1) as client:
        queue = await client.queue("orders")
        polls = [poll(queue) for _ in range(3)]
        while not caplog.messages:
            await asyncio.sleep(0)
        await end(polls)
    (text,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert text.startswith("A receive from queue 'orders' waits for more than 0 s for its turn: 1 receives are out")
    assert "AwsClient(connections=...)" in text


Action = Callable[[AwsQueue], Awaitable[Any]]


async def receive(queue: AwsQueue) -> Any:
    """Receive once."""
    return await queue.receive(limit=10, wait=20, visibility=30)


ACTIONS: dict[str, Action] = {
    "ReceiveMessage": receive,
    "DeleteMessageBatch": lambda queue: queue.delete(["handle"]),
    "ChangeMessageVisibilityBatch": lambda queue: queue.change_visibility([VisibilityChange("handle", 30)]),
    "SendMessageBatch": lambda queue: queue.send([OutgoingMessage(body="x")]),
    "GetQueueAttributes": lambda queue: queue.attributes(),
}


@paths
@pytest.mark.parametrize("operation", ACTIONS)
async def test_closing_ends_what_is_out_and_what_waits(sqs: FakeSqs, operation: str, *, hot: bool) -> None:
    """A call under way, and those that wait for its room, are told at once that the client was closed."""
    async with sqs.client(hot_path=hot, connections=1, max_attempts=10) as client:
        queue = await client.queue("orders")
        asked = len(sqs.made(operation))
        sqs.scripts[operation] = holds

        async def act() -> None:
            await ACTIONS[operation](queue)

        out = [asyncio.create_task(act(), name=f"call-{number}") for number in range(3)]
        await sqs.wait_for(operation, asked + 1)
    async with asyncio.timeout(20):
        for call in out:
            with pytest.raises(ClosedError, match=f"{operation} on queue 'orders': its AwsClient was closed"):
                await call
    with pytest.raises(ClosedError, match="async with client"):
        await ACTIONS[operation](queue)


@pytest.mark.parametrize("operation", ["GetQueueUrl", "GetQueueAttributes"])
async def test_opening_a_queue_ends_with_its_client(sqs: FakeSqs, operation: str) -> None:
    """And it can be cancelled: an endpoint that accepts and never answers holds back no caller."""
    sqs.scripts[operation] = holds
    async with sqs.client(max_attempts=10) as client:
        first = asyncio.create_task(client.queue("orders"), name="first")
        second = asyncio.create_task(client.queue("orders"), name="second")
        await sqs.wait_for(operation, 2)
        async with asyncio.timeout(20):
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
    async with asyncio.timeout(20):
        with pytest.raises(ClosedError):
            await first


async def test_opening_a_client_can_be_cancelled_while_credentials_do_not_come(
    sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who wait for the opener go on to open it themselves, and may be cancelled as well."""
    session, asked = AioSession(), asyncio.Event()

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(session, "get_credentials", never)
    client = sqs.client(session=session)

    async def use() -> None:
        async with client:
            pytest.fail("it never opens")

    users = [asyncio.create_task(use(), name=f"user-{number}") for number in range(3)]
    async with asyncio.timeout(20):
        for user in users:
            await asked.wait()
            asked.clear()
            user.cancel()
            with pytest.raises(asyncio.CancelledError):
                await user


async def test_a_connection_under_way_ends_with_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not accept keeps neither the caller nor the pool, and what connects too late is closed."""
    dialling, loop = asyncio.Event(), asyncio.get_running_loop()

    async def never(*_: Any, **__: Any) -> Any:
        dialling.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(loop, "create_connection", never)
    pool = HttpPool("192.0.2.1", 80, tls=None, connect_timeout=3600, timeout=3600)
    call = asyncio.create_task(pool.exchange(b""), name="call")
    await dialling.wait()
    async with asyncio.timeout(20):
        await pool.aclose()
        with pytest.raises(Exception, match="the pool was closed"):
            await call
        with pytest.raises(Exception, match="the pool is closed"):
            await pool.exchange(b"")


class _Secret:
    """What a message leaves in its context."""


_of_a_message: contextvars.ContextVar[_Secret] = contextvars.ContextVar("of_a_message")


async def test_a_connection_keeps_nothing_of_the_message_that_opened_it(sqs: FakeSqs) -> None:
    """It lives on for others; the context of the task that needed it first does not live on with it."""
    async with sqs.client() as client:
        queue = await client.queue("orders")

        async def settle() -> weakref.ref[_Secret]:
            secret = _Secret()
            _of_a_message.set(secret)
            await queue.delete(["handle"])
            return weakref.ref(secret)

        reference = await asyncio.create_task(settle(), name="handler")
        assert client.statistics().hot_connections == 1
        await asyncio.sleep(0)  # the step in which the task ended still holds its context
        gc.collect()
        assert reference() is None


SKEWED = '{"__type": "com.amazon.coral.service#InvalidSignatureException", "message": "Signature expired"}'


async def test_the_hot_path_follows_the_clock_of_sqs(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one refusal it signs for the server's time; once the clock is right, for that again. Both are told once."""
    caplog.set_level(logging.INFO, "postroom.transports")
    ahead = [0.0]

    async def strict(request: Request, writer: asyncio.StreamWriter) -> None:
        now = time.time() + ahead[0]
        stamp = time.strptime(request.head["x-amz-date"], "%Y%m%dT%H%M%SZ")
        if abs(calendar.timegm(stamp) - now) < 300:
            writer.write(healthy(request))
            return
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
        head = f"HTTP/1.1 403 Forbidden\r\nDate: {date}\r\nContent-Length: {len(SKEWED)}\r\n\r\n"
        writer.write((head + SKEWED).encode())

    for operation in ("DeleteMessageBatch", "SendMessageBatch"):
        sqs.scripts[operation] = strict
    async with sqs.client() as client:
        queue = await client.queue("orders")
        assert await queue.delete(["handle"]) == []
        for wrong in (1800.0, -3600.0):
            ahead[0] = wrong
            with pytest.raises(Exception, match="check this machine's clock") as caught:
                await queue.delete(["handle"])
            assert caught.value.retryable  # type: ignore[attr-defined]
            assert await queue.delete(["handle"]) == []
            assert sqs.made("DeleteMessageBatch")[-1].hot
        ahead[0] = 0.0
        assert await queue.delete(["handle"]) == [], "the ordinary client makes it"
        assert await queue.delete(["handle"]) == []
        assert sqs.made("DeleteMessageBatch")[-1].hot
    told, over = [text for text in caplog.messages if "clock" in text]
    assert re.match(r"The clock of this machine differs from SQS's by (1799|1800) s: receives, deletes and ext", told)
    assert over == "The clock of this machine is right again"


async def test_a_client_of_two_regions_closes_both(sqs: FakeSqs) -> None:
    """No connection of any region is left."""
    client = sqs.client()
    async with client:
        for region in ("us-east-1", "eu-west-1"):
            queue = await client.queue(f"arn:aws:sqs:{region}:123456789012:orders")
            assert await queue.delete(["handle"]) == []
        opened = [connection_of(client, region) for region in ("us-east-1", "eu-west-1")]
        assert client.statistics().hot_connections == 2
        assert client.statistics().hot_calls == 2
    assert [one.statistics().hot_connections for one in opened] == [0, 0]
    assert isinstance(client, AwsClient)
