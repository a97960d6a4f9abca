"""``assert_no_leaks`` names what a block left behind."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import ConfigurationError, Consumer, ResourcePool
from postroom.local import LocalBroker
from postroom.testing import assert_no_leaks, run_virtual
from postroom.transports.memory import MemoryClient
from support.virtual import in_virtual_time


@asynccontextmanager
async def database(name: str) -> AsyncIterator[str]:
    """Provide a resource."""
    yield name


@in_virtual_time
async def test_what_ends_with_the_block_is_no_leak() -> None:
    """Tasks that end within the grace, leases that were released."""
    async with ResourcePool(database) as pool, assert_no_leaks(pool):
        asyncio.get_running_loop().create_task(asyncio.sleep(0.5))
        async with pool.lease("acme"):
            pass


@asynccontextmanager
async def lively(name: str) -> AsyncIterator[str]:
    """Provide a resource with a task and a thread of its own, as the drivers' pools have them."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name=f"thread of {name}", daemon=True)
    thread.start()
    task = asyncio.create_task(asyncio.Event().wait(), name=f"task of {name}")
    try:
        yield name
    finally:
        task.cancel()
        await asyncio.sleep(0.5)  # the close of a driver's pool takes its time
        ended.set()
        thread.join()


@in_virtual_time
async def test_what_belongs_to_open_resources_is_no_leak() -> None:
    """Their tasks and threads end with them."""
    async with ResourcePool(lively) as pool:
        async with assert_no_leaks(pool), pool.lease("acme"):
            pass
        async with pool.lease("acme") as resource:
            assert resource == "acme"


def test_a_leak_beside_open_resources_is_named_alone() -> None:
    """The resources' own tasks and threads are not."""

    async def main() -> None:
        task = None
        try:
            async with ResourcePool(lively) as pool, assert_no_leaks(pool), pool.lease("acme"):
                task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
        finally:
            assert task is not None
            task.cancel()

    with pytest.raises(AssertionError, match=r"^left behind: tasks 'forgotten' at Event\.wait line \d+$"):
        run_virtual(main())


@in_virtual_time
async def test_resources_without_tasks_and_threads_stay_open() -> None:
    """There is nothing to find out."""
    async with ResourcePool(database) as pool:
        async with assert_no_leaks(pool), pool.lease("acme"):
            pass
        assert pool.is_open("acme")


def test_a_task_is_named_with_its_line() -> None:
    """The task that does not end."""

    async def main() -> None:
        task = None
        try:
            async with assert_no_leaks():
                task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
        finally:
            assert task is not None
            task.cancel()

    with pytest.raises(AssertionError, match=r"left behind: tasks 'forgotten' at Event\.wait line \d+"):
        run_virtual(main())


def test_a_lease_is_counted() -> None:
    """Of the pool that is watched."""

    async def main() -> None:
        async with ResourcePool(database) as pool:
            lease = None
            try:
                async with assert_no_leaks(pool):
                    lease = await pool.acquire("acme")
            finally:
                assert lease is not None
                lease.release()

    with pytest.raises(AssertionError, match="pool with 1 leased"):
        run_virtual(main())


def test_a_thread_is_named() -> None:
    """One that still runs after the grace."""
    release = threading.Event()

    async def main() -> None:
        async with assert_no_leaks(grace=0.05):
            threading.Thread(target=release.wait, name="importer", daemon=True).start()

    try:
        with pytest.raises(AssertionError, match="threads 'importer'"):
            run_virtual(main())
    finally:
        release.set()


@pytest.mark.parametrize("grace", [math.nan, None, "x", -1])
def test_a_grace_is_a_number_of_seconds(grace: Any) -> None:
    """With one that no time reaches it would wait for good."""

    async def main() -> None:
        async with assert_no_leaks(grace=grace):
            pass

    with pytest.raises(ConfigurationError, match=r"assert_no_leaks\(grace=...\) takes seconds, at least 0; got"):
        run_virtual(main())


def test_a_running_consumer_is_named() -> None:
    """It was not stopped."""

    async def main() -> None:
        async with LocalBroker() as broker:
            broker.create_queue("orders")
            consumer: Consumer[Any, Any] = Consumer("orders", client=MemoryClient(broker))
            consumer.handler(lambda payload, ctx: None)
            try:
                async with assert_no_leaks(consumer):
                    await consumer.__aenter__()
            finally:
                await consumer.end()

    with pytest.raises(AssertionError, match="<Consumer of 'orders', running>"):
        run_virtual(main())


def test_an_error_of_the_block_goes_on() -> None:
    """Whatever is left: the error is what matters."""

    async def main() -> None:
        async with assert_no_leaks():
            raise KeyError("own")

    with pytest.raises(KeyError):
        run_virtual(main())


def test_only_pools_and_consumers_are_watched() -> None:
    """Anything else is a mistake."""

    async def main() -> None:
        async with assert_no_leaks("orders"):  # type: ignore[arg-type]
            pass

    with pytest.raises(ConfigurationError, match="watches pools and consumers; got str"):
        run_virtual(main())
