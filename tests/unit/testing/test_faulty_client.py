"""A client that misbehaves on purpose: each fault does what it says, and nothing happens without one."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from postroom.errors import AccessDenied, ClosedError, ServiceUnavailable, Throttled
from postroom.message import OutgoingMessage
from postroom.testing.faults import ClientFaults, FaultyClient, FaultyQueue
from postroom.transports.protocol import SendResult, VisibilityChange
from support.world import World, in_world


def with_queue(
    scenario: Callable[[World, FaultyClient, FaultyQueue], Awaitable[None]], *, name: str = "orders", **attributes: Any
) -> None:
    """Run a scenario with a faulty client's queue."""

    async def run(world: World) -> None:
        world.create(name, **attributes)
        async with FaultyClient(world.client, Random(1)) as client:
            await scenario(world, client, await client.queue(name))

    in_world(run)


def test_in_a_calm_nothing_goes_wrong() -> None:
    """Send, receive, extend, delete, and ask for attributes."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        [sent] = await queue.send([OutgoingMessage(body="x")])
        assert isinstance(sent, SendResult)
        [message] = await queue.receive(limit=10, wait=0, visibility=30)
        assert await queue.change_visibility([VisibilityChange(message.receipt_handle, 60)]) == []
        assert (await queue.attributes())["ApproximateNumberOfMessagesNotVisible"] == "1"
        assert await queue.delete([message.receipt_handle]) == []
        assert world.counts() == (0, 0)

    with_queue(scenario)


@pytest.mark.parametrize(
    ("faults", "error"), [(ClientFaults(throttled=1), Throttled), (ClientFaults(unavailable=1), ServiceUnavailable)]
)
def test_a_refused_request_has_no_effect(faults: ClientFaults, error: type[Exception]) -> None:
    """Throttled or not reached: the message is still there."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        world.send("x")
        client.faults = faults
        with pytest.raises(error):
            await queue.receive(limit=1, wait=0, visibility=30)
        assert world.counts() == (1, 0)

    with_queue(scenario)


def test_a_lost_answer_had_its_effect() -> None:
    """The message is invisible although no consumer got it; a delete took place although it failed."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        world.send("x")
        world.send("y")
        [message] = await queue.receive(limit=1, wait=0, visibility=30)
        client.faults = ClientFaults(lost=1)
        with pytest.raises(ServiceUnavailable):
            await queue.receive(limit=1, wait=0, visibility=30)
        assert world.counts() == (0, 2)
        with pytest.raises(ServiceUnavailable):
            await queue.delete([message.receipt_handle])
        assert world.counts() == (0, 1)

    with_queue(scenario)


def test_refused_entries_are_named_by_their_place() -> None:
    """About half of twenty are refused; exactly the others are deleted."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        for number in range(10):
            world.send(str(number))
        messages = await queue.receive(limit=10, wait=0, visibility=30)
        client.faults = ClientFaults(refused=0.5)
        refused = await queue.delete([each.receipt_handle for each in messages])
        assert 0 < len(refused) < 10
        left = {messages[failure.index].body for failure in refused}
        assert {each.body for each in world.broker.queue("orders").messages.values()} == left
        assert not any(failure.sender_fault for failure in refused)

    with_queue(scenario)


def test_a_duplicate_is_handed_out_again_at_once() -> None:
    """On a standard queue; a FIFO queue does not."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        world.send("x", group="g", queue=queue.info.name)
        client.faults = ClientFaults(duplicated=1, reordered=1)
        await queue.receive(limit=1, wait=0, visibility=30)
        again = await queue.receive(limit=1, wait=0, visibility=30)
        assert len(again) == (0 if queue.info.fifo else 1)

    with_queue(scenario)
    with_queue(scenario, name="orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")


def test_a_foreign_error_is_none_that_the_protocol_names() -> None:
    """Before the request left, or after it took effect; a receive never says that the client is closed."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "receive": lambda: queue.receive(limit=1, wait=0, visibility=30),
            "delete": lambda: queue.delete(["?"]),
            "change": lambda: queue.change_visibility([VisibilityChange("?", 0)]),
            "send": lambda: queue.send([OutgoingMessage(body="x")]),
            "attributes": queue.attributes,
        }
        client.faults = ClientFaults(foreign=1)
        seen: dict[str, set[type[Exception]]] = {name: set() for name in calls}
        for name, call in calls.items():
            for _ in range(60):
                try:
                    await call()
                except Exception as error:
                    seen[name].add(type(error))
        assert seen["receive"] == {ConnectionResetError, RuntimeError, TimeoutError}
        for name in ("delete", "change", "send", "attributes"):
            assert seen[name] == {ConnectionResetError, RuntimeError, TimeoutError, ClosedError}
        assert world.counts() != (0, 0)  # some sends took effect all the same

    with_queue(scenario)


def test_a_hung_visibility_change_takes_effect_before_or_after_it_hangs() -> None:
    """The answer comes after ``hang`` seconds; other calls do not wait."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        client.faults = ClientFaults(hung=1, hang=40)
        loop = asyncio.get_running_loop()
        visible: set[bool] = set()
        for _ in range(12):
            world.send("x")
            [message] = await queue.receive(limit=1, wait=0, visibility=30)
            began = loop.time()
            await queue.change_visibility([VisibilityChange(message.receipt_handle, 60)])
            assert 40 <= loop.time() - began < 41
            visible.add(world.counts() == (0, 1))
            if world.counts() == (1, 0):
                [message] = await queue.receive(limit=1, wait=0, visibility=30)
            await queue.delete([message.receipt_handle])
        assert visible == {True}

    with_queue(scenario)


def test_attributes_may_be_denied_and_an_open_may_be_slow() -> None:
    """Only these two: everything else goes on."""

    async def scenario(world: World, client: FaultyClient, queue: FaultyQueue) -> None:
        client.faults = ClientFaults(denied=1, opening=1_000)
        with pytest.raises(AccessDenied):
            await queue.attributes()
        assert await queue.receive(limit=1, wait=0, visibility=30) == []
        before = asyncio.get_running_loop().time()
        await client.queue("orders")
        assert 1 < asyncio.get_running_loop().time() - before <= 1_000

    with_queue(scenario)
