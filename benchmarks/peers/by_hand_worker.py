"""aiobotocore by hand, done well: receivers, slots that are freed one by one, acknowledgements in batches of ten.

What most teams write in the end. It has no heartbeat, no retry of a refused delete, no orderly stop and no tenants.
"""

import asyncio
import contextlib
import logging
from typing import Any

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from benchmarks.peers.orders import Order
from benchmarks.peers.work import Arguments, Work, arguments

RECEIVERS = 4
LINGER = 0.05
log = logging.getLogger("worker")
decoder = msgspec.json.Decoder(Order)


class Loop:
    """One queue's consumer."""

    def __init__(self, sqs: Any, told: Arguments, *, gone: Work) -> None:
        self._sqs = sqs
        self._gone = gone
        self._queue_url = told.queue_url
        self._work = Work(told.messages)
        self._slots = asyncio.Semaphore(told.concurrency)
        self._acks: asyncio.Queue[str] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()

    async def receive(self) -> None:
        """Receive forever, and start a task for each message as soon as there is a slot."""
        while True:
            answer = await self._sqs.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=20,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            for message in answer.get("Messages", ()):
                await self._slots.acquire()
                task = asyncio.create_task(self._handle(message))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _handle(self, message: dict[str, Any]) -> None:
        try:
            order = decoder.decode(message["Body"])
            await self._work.do(order.order_id, order.note)
            self._acks.put_nowait(message["ReceiptHandle"])
        except Exception:
            log.exception("message %s failed", message["MessageId"])
        finally:
            self._slots.release()

    async def acknowledge(self) -> None:
        """Delete forever what was handled, ten at a time or after a moment."""
        while True:
            handles = [await self._acks.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    while len(handles) < 10:
                        handles.append(await self._acks.get())
            await self._delete(handles)

    async def _delete(self, handles: list[str]) -> None:
        entries = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handles)]
        await self._sqs.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
        for _ in handles:
            self._gone.count()


async def main(told: Arguments) -> None:
    """Consume until everything is acknowledged, or forever."""
    finished = asyncio.Event()
    config = AioConfig(max_pool_connections=32, read_timeout=30)
    async with get_session().create_client("sqs", endpoint_url=told.url, config=config) as sqs:
        loop = Loop(sqs, told, gone=Work(told.messages, finished.set))
        tasks = [asyncio.create_task(loop.receive()) for _ in range(RECEIVERS)]
        tasks += [asyncio.create_task(loop.acknowledge()) for _ in range(2)]
        ended = asyncio.create_task(finished.wait())
        await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, *tasks):
            task.cancel()
        await asyncio.gather(ended, *tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(arguments()))
