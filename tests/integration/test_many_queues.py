"""One consumer of several queues against the local SQS over HTTP."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from postroom import AwsClient, Concurrency, Consumer, MessageContext, Queues
from postroom.local import LocalBroker, LocalServer
from postroom.message import MessageAttribute, OutgoingMessage
from support.aws import isolate_aws


async def test_thirty_queues_of_which_some_come_later_are_emptied_by_one_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over HTTP, with fewer watched queues than there are: nothing is lost, and slots are those of one consumer."""
    isolate_aws(monkeypatch)
    names = [f"orders-{number}" for number in range(30)]
    async with LocalBroker() as broker, LocalServer(broker) as server:
        for name in names:
            broker.create_queue(name)
        client = AwsClient(endpoint_url=server.endpoint_url, region="us-east-1")
        listed, done, everything = names[:20], Counter[str](), asyncio.Event()
        running = most = 0
        queues = Queues(lambda: list(listed), every=1, watched=8, rest=2)
        consumer: Consumer[Any, Any] = Consumer(
            queues=queues,
            context=lambda message: message.attributes["tenant"],
            client=client,
            concurrency=Concurrency(total=5),
        )

        @consumer.handler
        async def handle(payload: int, ctx: MessageContext[str, None]) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            done[ctx.queue] += 1
            if done.total() == 30 * 12:
                everything.set()

        async with client, consumer:
            for name in names:
                queue = await client.queue(name)
                for start in (0, 6):
                    bodies = [msgspec.json.encode(start + number).decode() for number in range(6)]
                    tenant = {"tenant": MessageAttribute(string_value=name)}
                    await queue.send([OutgoingMessage(body=body, message_attributes=tenant) for body in bodies])
            listed.extend(names[20:])
            async with asyncio.timeout(30):
                await everything.wait()
        assert done == dict.fromkeys(names, 12)
        assert most <= 5
        for name in names:
            said = broker.attributes(name)
            assert (said["ApproximateNumberOfMessages"], said["ApproximateNumberOfMessagesNotVisible"]) == ("0", "0")
