"""What a plain ``def`` handler calls in its thread reaches the event loop in the loop's own thread."""

import asyncio
import threading
from pathlib import Path

import pytest

from postroom import Consumer, MessageContext
from postroom.datasources import sqlite_database, tenant_file
from postroom.local import LocalBroker
from postroom.message import OutgoingMessage
from postroom.outbox import SQLITE_OUTBOX, OutboxRelay
from postroom.tasks import Home
from postroom.transports.memory import MemoryClient


def test_work_from_another_thread_is_done_in_the_loops_own() -> None:
    """With the next turn of the loop; in that thread at once; after its end not at all."""
    homes: list[Home] = []
    done: list[int] = []

    def work() -> None:
        done.append(threading.get_ident())

    async def main() -> None:
        homes.append(Home())
        homes[0].call(work)
        assert len(done) == 1
        await asyncio.to_thread(homes[0].call, work)
        await asyncio.sleep(0)
        assert done == [threading.get_ident()] * 2

    asyncio.run(main())
    caller = threading.Thread(target=homes[0].call, args=(work,))
    caller.start()
    caller.join()
    assert len(done) == 2


async def test_a_thread_may_stop_a_consumer_and_wake_a_relay_in_debug_mode(tmp_path: Path) -> None:
    """In its debug mode asyncio refuses what is not thread-safe: nothing is refused, and the stop ends the run."""
    asyncio.get_running_loop().set_debug(True)
    async with LocalBroker() as broker:
        for name in ("orders", "invoices"):
            broker.create_queue(name)
        client = MemoryClient(broker)

        def path_of(tenant: str) -> Path:
            return tenant_file(tmp_path, tenant)

        databases = sqlite_database(path_of, create=True, schema=SQLITE_OUTBOX.schema)
        relay = OutboxRelay(databases, tenants=["a"], outbox=SQLITE_OUTBOX, client=client)
        orders: Consumer[None, None] = Consumer("orders", client=client)
        refused: list[RuntimeError] = []

        @orders.handler
        def handle(_order: str, _ctx: MessageContext[None, None]) -> None:
            try:
                relay.wake("a")
                relay.wake()
                orders.stop()
            except RuntimeError as error:
                refused.append(error)

        async with relay:
            await (await client.queue("orders")).send([OutgoingMessage(body='"x"')])
            async with asyncio.timeout(20):
                await orders.run()
            await asyncio.to_thread(relay.stop)
            async with asyncio.timeout(5):
                await relay.wait_for_stop()
        assert refused == []


@pytest.mark.parametrize("now", [False, True])
async def test_a_stop_after_a_run_does_nothing(now: bool) -> None:
    """From another thread as well: the next start is not ended by it."""
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        orders: Consumer[None, None] = Consumer("orders", client=MemoryClient(broker))

        @orders.handler
        async def handle(_order: str, _ctx: MessageContext[None, None]) -> None: ...

        async with orders:
            pass
        await asyncio.to_thread(orders.stop, now=now)
        async with orders:
            assert not (await asyncio.wait([asyncio.ensure_future(orders.wait_for_stop())], timeout=0))[0]
