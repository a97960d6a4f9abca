"""From queue to queue: everything goes along, nothing is lost, what cannot go does not stand in the way."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any, NoReturn

import msgspec
import pytest

from postroom import (
    AccessDenied,
    ConfigurationError,
    Message,
    MessageAttribute,
    OutgoingMessage,
    QueueNotFound,
    TransportError,
)
from postroom.sending import Relayed, relay
from postroom.testing.faults import ClientFaults, FaultyClient
from postroom.transports.memory import MemoryQueue
from support.world import World, in_world, with_world


async def _all(world: World, queue: str) -> list[Message]:
    async with world.client:
        opened = await world.client.queue(queue)
        found: list[Message] = []
        while batch := await opened.receive(limit=10, wait=0, visibility=3600):
            found += batch
        return found


async def _put(world: World, queue: str, *messages: OutgoingMessage) -> None:
    async with world.client:
        opened = await world.client.queue(queue)
        for message in messages:
            await opened.send([message])


@with_world
async def test_everything_goes_along(world: World) -> None:
    """Body, attributes of every type, the group, the trace header."""
    whole = OutgoingMessage(
        body="body",
        message_attributes={
            "tenantId": MessageAttribute(string_value="a"),
            "count": MessageAttribute("Number.int", string_value="3"),
            "raw": MessageAttribute("Binary", binary_value=b"\0x"),
        },
        group_id="a",
        trace_header="Root=1-67891233-abcdef012345678912345678",
    )
    world.create("here")
    world.create("there")
    await _put(world, "here", whole)
    done = await relay("here", "there", client=world.client)
    [message] = await _all(world, "there")
    assert world.counts("here") == (0, 0)
    assert done == Relayed(1, 0)
    assert (message.body, message.group_id, message.trace_header) == ("body", "a", whole.trace_header)
    assert message.message_attributes == whole.message_attributes


@with_world
async def test_it_sends_no_more_than_it_was_told(world: World) -> None:
    """The rest stays visible."""
    world.create("here")
    world.create("there")
    for number in range(40):
        world.send(str(number), queue="here")
    done = await relay("here", "there", limit=25, client=world.client)
    assert (done, world.counts("here"), world.counts("there")) == (Relayed(25, 0), (15, 0), (25, 0))


@with_world
async def test_what_its_target_refuses_stays_and_blocks_nothing(world: World) -> None:
    """It is visible again at the end, and the log says why."""
    world.create("here")
    world.create("there", MaximumMessageSize="1024")
    for number in range(30):
        world.send("x" * (2000 if number % 3 == 0 else 10), queue="here")
    done = await relay("here", "there", client=world.client)
    assert (done, world.counts("here"), len(await _all(world, "there"))) == (Relayed(20, 10), (10, 0), 20)


@with_world
async def test_a_target_that_takes_none_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With how many messages it left: a line for each would say the same forty times."""

    async def denied(self: MemoryQueue, messages: Sequence[OutgoingMessage]) -> NoReturn:
        raise AccessDenied("allow sqs:SendMessage")

    world.create("here")
    world.create("there")
    for number in range(40):
        world.send(str(number), queue="here")
    monkeypatch.setattr(MemoryQueue, "send", denied)
    assert (await relay("here", "there", client=world.client), world.counts("here")) == (Relayed(0, 40), (40, 0))
    [said] = caplog.messages
    assert said == (
        "Relayed none of 40 messages to queue there, which takes none; they stay in queue here: "
        "AccessDenied (allow sqs:SendMessage)"
    )


@pytest.mark.parametrize("answers", [True, False])
@with_world
async def test_one_that_is_cancelled_shows_what_it_has_in_hand(
    world: World, monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    """At once, and not after two minutes. A queue that does not answer keeps it for five seconds at most."""
    sending = asyncio.Event()

    async def hangs(*_: object) -> NoReturn:
        sending.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.create("here")
    world.create("there")
    for number in range(40):
        world.send(str(number), queue="here")
    monkeypatch.setattr(MemoryQueue, "send", hangs)
    if not answers:
        monkeypatch.setattr(MemoryQueue, "change_visibility", hangs)
    moving = asyncio.create_task(relay("here", "there", parallel=2, client=world.client))
    await sending.wait()
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert asyncio.get_running_loop().time() - began == pytest.approx(0 if answers else 5)
    assert world.counts("here") == ((40, 0) if answers else (20, 20))


@with_world
async def test_a_change_may_rewrite_and_may_keep(world: World) -> None:
    """None keeps the message."""

    def change(message: Message, copy: OutgoingMessage) -> OutgoingMessage | None:
        return None if message.body == "keep" else msgspec.structs.replace(copy, body=copy.body.upper())

    world.create("here")
    world.create("there")
    world.send("keep", queue="here")
    world.send("move", queue="here")
    done = await relay("here", "there", change=change, client=world.client)
    assert (done, [message.body for message in await _all(world, "there")], world.counts("here")) == (
        Relayed(1, 1),
        ["MOVE"],
        (1, 0),
    )


@pytest.mark.parametrize("seed", range(8))
def test_under_faults_nothing_is_lost(seed: int) -> None:
    """Refused entries, lost answers, throttling: each body arrives, and is gone at its source."""

    async def scenario(world: World) -> None:
        world.create("here")
        world.create("there")
        for number in range(100):
            world.send(str(number), queue="here")
        faults = ClientFaults(throttled=0.1, unavailable=0.1, lost=0.1, refused=0.1)
        client = FaultyClient(world.client, Random(seed), faults)
        for _ in range(50):
            with suppress(TransportError):
                await relay("here", "there", client=client)
            await asyncio.sleep(121)  # what was sent and could not be deleted is visible again
            if world.counts("here") == (0, 0):
                break
        assert world.counts("here") == (0, 0)
        assert {message.body for message in await _all(world, "there")} == {str(number) for number in range(100)}

    in_world(scenario, seed=seed)


@with_world
async def test_the_order_of_each_group_is_kept(world: World) -> None:
    """On FIFO queues, although entries are refused meanwhile."""
    world.create("here.fifo", FifoQueue="true")
    world.create("there.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    for number in range(30):
        message = OutgoingMessage(body=str(number), group_id="abc"[number % 3], deduplication_id=str(number))
        await _put(world, "here.fifo", message)
    client = FaultyClient(world.client, Random(3), ClientFaults(refused=0.3))
    assert await relay("here.fifo", "there.fifo", client=client) == Relayed(30, 0)
    async with world.client:
        queue = await world.client.queue("there.fifo")
        found: list[Message] = []
        while batch := await queue.receive(limit=10, wait=0, visibility=3600):
            found += batch
            await queue.delete([message.receipt_handle for message in batch])
    for group in "abc":
        bodies = [int(message.body) for message in found if message.group_id == group]
        assert bodies == sorted(bodies)
        assert len(bodies) == 10


async def _change(_: Message, copy: OutgoingMessage) -> OutgoingMessage:
    return copy


def _fail(*_: object) -> Any:
    raise KeyError("a mistake")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"change": _fail}, KeyError),
        ({"change": lambda _, __: "text"}, ConfigurationError),
        ({"target": _fail}, KeyError),
        ({"target": lambda _: 5}, ConfigurationError),
    ],
)
@with_world
async def test_a_function_that_fails_leaves_everything_visible(
    world: World, options: dict[str, Any], error: type[Exception]
) -> None:
    """It ends the relay, and the source's messages can be received at once."""
    world.create("here")
    world.create("there")
    for _ in range(12):
        world.send("x", queue="here")
    with pytest.raises(error):
        await relay("here", **{"target": "there", **options}, parallel=1, client=world.client)
    assert world.counts("here") == (12, 0)


@with_world
async def test_a_message_is_not_sent_to_the_queue_that_it_is_in(world: World) -> None:
    """It would be received and sent again without an end."""
    world.create("here")
    world.send("x", queue="here")
    async with asyncio.timeout(600):
        assert (await relay("here", lambda _: "here", client=world.client), world.counts("here")) == (
            Relayed(0, 1),
            (1, 0),
        )


@with_world
async def test_wrong_arguments_are_refused(world: World) -> None:
    """Before anything is received; a target that does not exist as well."""
    world.create("here")
    world.send("x", queue="here")
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"limit": 0}, "from 1"),
        ({"wait": 0}, "1 to 20"),
        ({"parallel": True}, "from 1"),
        ({"change": 1}, "function"),
        ({"change": _change}, "_change is async"),
    ]
    for wrong, text in wrongs:
        with pytest.raises(ConfigurationError, match=text):
            await relay("here", "there", client=world.client, **wrong)
    with pytest.raises(ConfigurationError, match="name, URL or ARN"):
        await relay("here", "", client=world.client)
    with pytest.raises(ConfigurationError, match="relay\\(target\\) is the source itself"):
        await relay("here", "here", client=world.client)
    with pytest.raises(QueueNotFound):
        await relay("here", "there", client=world.client)
    assert world.counts("here") == (1, 0)
