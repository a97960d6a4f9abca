"""Dead letters by tenant, on a local broker in virtual time: chosen, sent home as they were, or deleted."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from postroom import Consumer, MessageContext, Polling, Reject
from postroom.dead_letters import (
    TOO_MANY_RECEIVES,
    DeadLetter,
    DeadLetterQueue,
    Journal,
    LetterFilter,
    TenantOf,
    open_dead_letters,
    tenant_by_attribute,
    tenant_by_consumer,
    tenant_by_group,
)
from postroom.errors import AccessDenied, ConfigurationError, InvalidRequest, QueueNotFound, ServiceUnavailable
from postroom.local.shapes import AttributeValue, Send
from postroom.message import Message, MessageAttribute
from postroom.payloads import unwrap_sns
from postroom.settlement import letters
from postroom.transports.memory import MemoryQueue
from postroom.transports.protocol import EntryFailure
from support.envelopes import S3_TEST, sns
from support.world import Order, Tenant, World, in_world, with_world

HOLD = 30.0
BY_TENANT_ID = tenant_by_attribute("tenantId")


async def desk(world: World, *, tenant_of: TenantOf = BY_TENANT_ID) -> DeadLetterQueue:
    """Open the dead-letter queue."""
    return await open_dead_letters(world.client, "dead", tenant_of=tenant_of, hold=HOLD)


async def reject_all(world: World, reasons: dict[str, str]) -> None:
    """Run a consumer that rejects every order, with the reason for its tenant, until the queue is empty."""
    consumer: Consumer[Tenant, None] = Consumer("orders", context=Tenant, client=world.client, polling=Polling(wait=1))

    @consumer.handler
    async def refuse(order: Order, ctx: MessageContext[Tenant, None]) -> None:
        raise Reject(reasons[ctx.context.tenant_id])

    async with consumer:
        while world.counts() != (0, 0):
            await asyncio.sleep(0.1)


async def moved_by_sqs(world: World, queue: str = "orders") -> None:
    """Receive everything once too often: SQS moves it."""
    opened = await world.client.queue(queue)
    while True:
        got = await opened.receive(limit=10, wait=0, visibility=0)
        if not got and world.counts(queue) == (0, 0):
            return


async def everything(queue: DeadLetterQueue, where: LetterFilter = LetterFilter()) -> list[DeadLetter]:  # noqa: B008 - frozen
    """Return all letters that are meant."""
    return [letter async for letter in queue.letters(where)]


async def bodies(world: World, queue: str) -> list[Message]:
    """Receive what is in a queue."""
    opened = await world.client.queue(queue)
    found: list[Message] = []
    while got := await opened.receive(limit=10, wait=1, visibility=300):
        found += got
    return found


def letter(**changes: Any) -> DeadLetter:
    """Make a letter."""
    made = DeadLetter(
        id="1", message_id="2", tenant="acme", reason="Payload: bad", source="arn", vouched=True, attempts=1,
        receives=2, sent=1000.0, first_received=None, redriven=0, group_id=None, size=10,
        message=Message(id="1", body=""),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


async def in_the_world(world: World) -> DeadLetterQueue:
    """Three letters that a consumer rejected, of two tenants."""
    await world.client.__aenter__()
    world.create(dead_letters="dead")
    world.send_orders("a-1", "a-2", tenant="a", group="a")
    world.send_orders("b-1", tenant="b", group="b")
    await reject_all(world, {"a": "no such product", "b": "closed account"})
    return await desk(world)


@with_world
async def test_a_letter_tells_whose_it_is_why_it_is_there_and_where_it_came_from(world: World) -> None:
    """Rejected ones by their attributes."""
    queue = await in_the_world(world)
    found = sorted(await everything(queue), key=lambda each: each.message.body)
    assert [each.tenant for each in found] == ["a", "a", "b"]
    assert {each.reason for each in found} == {"no such product", "closed account"}
    assert all(each.source is not None and each.source.endswith(":orders") and not each.vouched for each in found)
    assert all(each.attempts == 1 and each.redriven == 0 and each.sent is not None for each in found)
    assert set(found[0].attributes) == {"tenantId", "region"}
    assert world.counts("dead") == (3, 0)  # visible again, at once


@with_world
async def test_what_sqs_moved_has_a_reason_too_and_sqs_vouches_for_its_source(world: World) -> None:
    """Such a letter has no attribute of postroom."""
    async with world.client:
        world.create(dead_letters="dead", receives=1)
        world.send_orders("a-1", group="acme")
        await moved_by_sqs(world)
        [found] = await everything(await desk(world, tenant_of=tenant_by_group))
        assert (found.tenant, found.reason, found.vouched) == ("acme", TOO_MANY_RECEIVES, True)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (LetterFilter(tenant="a"), 2),
        (LetterFilter(tenant="none"), 0),
        (LetterFilter(reason="CLOSED"), 1),
        (LetterFilter(reason="no*product"), 2),
        (LetterFilter(tenant="a", reason="closed"), 0),
        (LetterFilter(newer_than=3600), 3),
        (LetterFilter(older_than=3600), 0),
    ],
)
@with_world
async def test_letters_are_chosen_by_tenant_reason_and_age(world: World, where: LetterFilter, expected: int) -> None:
    """Every condition has to hold; a dry run counts, and changes nothing."""
    queue = await in_the_world(world)
    outcome = await queue.redrive(where)
    assert (outcome.seen, outcome.matched, outcome.done, outcome.dry_run) == (3, expected, expected, True)
    assert world.counts("dead") == (3, 0)
    assert world.counts("orders") == (0, 0)


def test_one_letter_is_chosen_by_either_of_its_ids() -> None:
    """By its id here, and by the id that the log of the consumer had."""
    assert LetterFilter(ids=["1"]).matches(letter(), now=0)
    assert LetterFilter(ids={"2"}).matches(letter(), now=0)
    assert not LetterFilter(ids=["3"]).matches(letter(), now=0)


def test_a_letter_of_unknown_age_matches_no_age() -> None:
    """Neither old nor new."""
    assert not LetterFilter(older_than=0).matches(letter(sent=None), now=2000)
    assert not LetterFilter(newer_than=9999).matches(letter(sent=None), now=2000)
    assert LetterFilter(older_than=1000).matches(letter(), now=2000)
    assert not LetterFilter(older_than=1001).matches(letter(), now=2000)


def test_a_bracket_in_a_reason_is_only_a_bracket() -> None:
    """No pattern of a shell."""
    assert LetterFilter(reason="[x]").matches(letter(reason="index [x] of list"), now=0)
    assert not LetterFilter(reason="[x]").matches(letter(reason="x"), now=0)


@with_world
async def test_a_redriven_message_is_as_it_was_first_sent(world: World) -> None:
    """Body, attributes and group; no attribute of the rejection, its attempts reset, and a count of its returns."""
    queue = await in_the_world(world)
    outcome = await queue.redrive(LetterFilter(tenant="a"), dry_run=False, reason="product is back")
    assert (outcome.done, outcome.matched, outcome.kept) == (2, 2, {})
    assert world.counts("dead") == (1, 0)
    for message in await bodies(world, "orders"):
        assert set(message.message_attributes) == {"tenantId", "region", "postroom.redriven"}
        assert message.attributes["postroom.redriven"] == "1"
        assert message.group_id == "a"
        assert message.receive_count == 1
        assert msgspec.json.decode(message.body)["order_id"].startswith("a-")


@with_world
async def test_the_count_of_returns_survives_another_rejection(world: World) -> None:
    """Twice redriven, it says so; and the reason is the last one."""
    queue = await in_the_world(world)
    await queue.redrive(LetterFilter(tenant="b"), dry_run=False, reason="try")
    await reject_all(world, {"b": "still closed"})
    [found] = await everything(queue, LetterFilter(tenant="b"))
    assert (found.redriven, found.reason) == (1, "still closed")
    await queue.redrive(LetterFilter(tenant="b"), dry_run=False, reason="try again")
    [message] = await bodies(world, "orders")
    assert message.attributes["postroom.redriven"] == "2"


def test_what_fails_again_at_once_is_not_sent_home_twice_by_one_run() -> None:
    """The redrive of a tenant that is still broken ends."""

    async def scenario(world: World) -> None:
        queue = await in_the_world(world)
        consumer = asyncio.create_task(reject_again(world))
        outcome = await queue.redrive(dry_run=False, reason="try", rate=2)
        assert outcome.done == 3
        consumer.cancel()
        await asyncio.wait([consumer])
        assert sum(map(sum, (world.counts("dead"), world.counts("orders")))) == 3

    async def reject_again(world: World) -> None:
        while True:
            await asyncio.sleep(0.05)
            if world.counts() != (0, 0):
                await reject_all(world, {"a": "still", "b": "still"})

    in_world(scenario)


@with_world
async def test_the_rate_is_kept(world: World) -> None:
    """Thirty letters at five per second take about six seconds."""
    async with world.client:
        world.create(dead_letters="dead", receives=1)
        world.send_orders(*map(str, range(30)), group="a")
        await moved_by_sqs(world)
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome = await (await desk(world)).redrive(dry_run=False, reason="try", rate=5)
        assert outcome.done == 30
        assert 4.0 <= loop.time() - began <= 10.0


@with_world
async def test_a_purge_deletes_what_is_meant_and_nothing_else(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """For good. The log has the reason, without a secret."""
    caplog.set_level(logging.INFO, "postroom")
    queue = await in_the_world(world)
    assert (await queue.purge(LetterFilter(tenant="a"))).done == 2
    assert world.counts("dead") == (3, 0)
    assert (await queue.purge(LetterFilter(tenant="a"), dry_run=False, reason="has left, token=hunter2")).done == 2
    assert "(has left, token=***" in caplog.text
    assert [each.tenant for each in await everything(queue)] == ["b"]
    assert world.counts("orders") == (0, 0)


@with_world
async def test_a_source_that_only_an_attribute_names_has_to_own_this_dead_letter_queue(world: World) -> None:
    """Anyone who may send could otherwise have a message sent to any queue; the operator may name one."""
    async with world.client:
        world.create(dead_letters="dead")
        other = world.broker.create_queue("secret").arn
        values = {"tenantId": "a", letters.QUEUE: other, letters.MESSAGE_ID: "x", letters.REASON: "forged"}
        attributes = {k: AttributeValue(string_value=v, data_type="String") for k, v in values.items()}
        world.broker.send("dead", Send(message_body="{}", message_attributes=attributes))
        queue = await desk(world)
        outcome = await queue.redrive(dry_run=False, reason="try")
        assert outcome.done == 0
        assert "does not name this queue" in next(iter(outcome.kept))
        assert world.counts("secret") == (0, 0)
        assert world.counts("dead") == (1, 0)
        assert (await queue.redrive(dry_run=False, reason="try", to="secret")).done == 1


@with_world
async def test_a_letter_without_a_source_stays_until_a_queue_is_named(world: World) -> None:
    """It was sent to the dead-letter queue by hand."""
    async with world.client:
        world.create(dead_letters="dead")
        world.send("{}", queue="dead")
        outcome = await (await desk(world)).redrive()
        assert dict(outcome.kept) == {"it does not tell which queue it came from; name one with to= (--to)": 1}


@with_world
async def test_a_fifo_letter_keeps_its_group_and_its_place_in_it(world: World) -> None:
    """The deduplication id is new, or SQS would swallow it; the order of the group is the old one."""
    async with world.client:
        arn = world.broker.create_queue("dead.fifo", {"FifoQueue": "true"}).arn
        policy = msgspec.json.encode({"deadLetterTargetArn": arn, "maxReceiveCount": "1"}).decode()
        world.broker.create_queue("orders.fifo", {"FifoQueue": "true", "RedrivePolicy": policy})
        for number in range(23):
            group = "even" if number % 2 == 0 else "odd"
            request = Send(message_body=str(number), message_group_id=group, message_deduplication_id=str(number))
            world.broker.send("orders.fifo", request)
        await moved_by_sqs(world, "orders.fifo")
        queue = await open_dead_letters(world.client, "dead.fifo", hold=HOLD)
        outcome = await queue.redrive(dry_run=False, reason="try", rate=1000)
        assert (outcome.done, dict(outcome.kept)) == (23, {})
        opened = await world.client.queue("orders.fifo")
        order: dict[str | None, list[int]] = {"even": [], "odd": []}
        while got := await opened.receive(limit=10, wait=0, visibility=300):
            for message in got:
                order[message.group_id].append(int(message.body))
            await opened.delete([message.receipt_handle for message in got])
        assert order == {"even": list(range(0, 23, 2)), "odd": list(range(1, 23, 2))}


@with_world
async def test_letters_are_not_received_again_while_a_long_walk_lasts(world: World) -> None:
    """What was seen is kept invisible, and visible again at the end."""
    async with world.client:
        world.create(dead_letters="dead", receives=1)
        world.send_orders(*map(str, range(25)), group="a")
        world.send_orders(*map(str, range(25)), tenant="b", group="b")
        await moved_by_sqs(world)
        queue = await desk(world)
        outcome = await queue.redrive(LetterFilter(tenant="a"), dry_run=False, reason="try", rate=0.25)  # 100 s
        assert (outcome.seen, outcome.done) == (50, 25)
        assert world.counts("dead") == (25, 0)


@with_world
async def test_it_stops_when_asked_to_and_says_so(world: World) -> None:
    """With the batch that is under way done, and the rest visible."""
    async with world.client:
        world.create(dead_letters="dead", receives=1)
        world.send_orders(*map(str, range(50)), group="a")
        await moved_by_sqs(world)
        queue = await desk(world)
        outcome = await queue.redrive(dry_run=False, reason="try", progress=lambda _: queue.stop())
        assert outcome.stopped
        assert (outcome.done, world.counts("dead")) == (10, (40, 0))


@with_world
async def test_a_run_that_was_stopped_before_its_first_batch_does_nothing(world: World) -> None:
    """Ctrl-C while ids are looked up: which letters are meant was not known by then."""
    async with world.client:
        world.create(dead_letters="dead", receives=1)
        world.send_orders(*map(str, range(5)), group="a")
        await moved_by_sqs(world)
        queue = await desk(world)
        queue.stop()
        outcome = await queue.purge(dry_run=False, reason="try")
        assert outcome.stopped
        assert (outcome.done, world.counts("dead")) == (0, (5, 0))


@with_world
async def test_a_journal_lets_a_run_go_on_where_a_killed_one_stood(world: World, tmp_path: Path) -> None:
    """What was sent is not sent again: it is only deleted."""
    queue = await in_the_world(world)
    found = await everything(queue, LetterFilter(tenant="a"))
    path = tmp_path / "journal"
    with Journal(path) as journal:
        await journal.write("sent", queue=queue.arn, letters=[found[0].id])
    with path.open("ab") as file:
        file.write(b'{"event":"sent","queue":"')  # killed while it wrote
    with Journal(path) as journal:
        outcome = await queue.redrive(LetterFilter(tenant="a"), dry_run=False, reason="go on", journal=journal)
    assert (outcome.finished, outcome.done) == (1, 1)
    assert world.counts("orders") == (1, 0)
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]
    assert [line["event"] for line in lines] == ["sent", "begin", "deleted", "sent", "deleted", "end"]
    assert lines[-1]["reason"] == "go on"
    assert lines[-1]["operator"]
    assert b"order_id" not in path.read_bytes()  # nothing of a body


def test_two_runs_do_not_write_to_one_journal(tmp_path: Path) -> None:
    """The second one is told so."""
    with Journal(tmp_path / "j"), pytest.raises(ConfigurationError, match="another process writes to"):
        Journal(tmp_path / "j").__enter__()


def test_a_journal_that_cannot_be_written_is_refused_before_anything_is_moved(tmp_path: Path) -> None:
    """With what to do."""
    with pytest.raises(ConfigurationError, match="Name another file"):
        Journal(tmp_path / "none" / "j").__enter__()


@with_world
async def test_a_queue_with_a_dead_letter_queue_is_refused(world: World) -> None:
    """To look at its messages would spend their receives: it is a source, not a dead-letter queue."""
    async with world.client:
        world.create(dead_letters="dead")
        with pytest.raises(ConfigurationError, match="Name the dead-letter queue, not its source"):
            await open_dead_letters(world.client, "orders")


@with_world
async def test_a_send_that_sqs_refuses_for_now_is_tried_again(world: World) -> None:
    """And where it goes on, the error says so, with everything visible again."""
    queue = await in_the_world(world)
    home = await world.client.queue("orders")
    send = home.send
    refusals = [ServiceUnavailable("busy")] * 3

    async def refusing(messages: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await send(messages)

    async def open_queue(_: str) -> Any:
        return home

    home.send = refusing  # type: ignore[method-assign]
    queue._open_queue = open_queue
    assert (await queue.redrive(LetterFilter(tenant="a"), dry_run=False, reason="try")).done == 2
    refusals += [ServiceUnavailable("busy")] * 50
    with pytest.raises(ServiceUnavailable):
        await queue.redrive(dry_run=False, reason="try")
    assert world.counts("dead") == (1, 0)


@pytest.mark.parametrize(
    ("refusal", "of_queue"),
    [
        (AccessDenied("no sqs:SendMessage"), True),
        (QueueNotFound("queue 'orders' was deleted"), True),
        (InvalidRequest("the key is disabled", code="KMS.DisabledException"), True),
        (InvalidRequest("an attribute is invalid", code="InvalidParameterValue"), False),
    ],
)
@with_world
async def test_a_letter_that_cannot_go_home_holds_up_no_other(
    world: World, refusal: Exception, monkeypatch: pytest.MonkeyPatch, *, of_queue: bool
) -> None:
    """Neither what a queue refuses altogether those of other queues, nor one bad entry those of its call."""
    send, refused = MemoryQueue.send, 0

    async def refusing(queue: MemoryQueue, messages: Any) -> Any:
        nonlocal refused
        if queue.info.name == "orders" and (of_queue or any(each.body == "bad" for each in messages)):
            refused += 1
            raise refusal
        return await send(queue, messages)

    async with world.client:
        for name in ("orders", "others"):
            world.create(name, dead_letters="dead", receives=1)
            world.send("bad", queue=name)
            for number in range(14):
                world.send(str(number), queue=name)
            await moved_by_sqs(world, name)
        monkeypatch.setattr(MemoryQueue, "send", refusing)
        outcome = await (await desk(world)).redrive(dry_run=False, reason="try")
        assert world.counts("others") == (15, 0)
        stay = 15 if of_queue else 1
        assert (world.counts(), world.counts("dead")) == ((15 - stay, 0), (stay, 0))
        said = str(refusal) if of_queue else "InvalidParameterValue"
        assert outcome.kept == {f"queue orders refused it: {said}": stay}
        assert not of_queue or refused == 1  # what it refuses for good is not asked for again


@with_world
async def test_what_went_home_alone_is_not_sent_again_where_the_next_one_ends_the_run(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bad entry has each of its call sent by itself, and then the queue takes nothing any longer."""
    send, sent, most = MemoryQueue.send, list[str](), 4

    async def refusing(queue: MemoryQueue, messages: Any) -> Any:
        if any(each.body == "bad" for each in messages):
            raise InvalidRequest("an attribute is invalid", code="InvalidParameterValue")
        if len(sent) == most:
            raise ServiceUnavailable("down")
        sent.extend(each.body for each in messages)
        return await send(queue, messages)

    async with world.client:
        world.create(dead_letters="dead", receives=1)
        for body in (*"0123456", "bad"):
            world.send(body)
        await moved_by_sqs(world, "orders")
        monkeypatch.setattr(MemoryQueue, "send", refusing)
        with pytest.raises(ServiceUnavailable):
            await (await desk(world)).redrive(dry_run=False, reason="try")
        most = 100
        await (await desk(world)).redrive(dry_run=False, reason="try")
        assert (sorted(sent), world.counts("dead")) == ([*"0123456"], (1, 0))


@with_world
async def test_a_group_of_a_queue_that_refuses_it_holds_up_no_group_of_that_name_elsewhere(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups are named after tenants, on each queue."""
    send = MemoryQueue.send

    async def refusing(queue: MemoryQueue, messages: Any) -> Any:
        if queue.info.name == "orders.fifo":
            raise AccessDenied("no sqs:SendMessage")
        return await send(queue, messages)

    async with world.client:
        fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
        arn = world.broker.create_queue("dead.fifo", fifo).arn
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "1"})
        for name in ("orders.fifo", "others.fifo"):
            world.broker.create_queue(name, {**fifo, "RedrivePolicy": policy})
            for number in range(3):
                world.send(f"{name} {number}", queue=name, group="acme")
            await moved_by_sqs(world, name)
        monkeypatch.setattr(MemoryQueue, "send", refusing)
        outcome = await (await open_dead_letters(world.client, "dead.fifo")).redrive(dry_run=False, reason="try")
        assert (world.counts("others.fifo"), world.counts("dead.fifo")) == ((3, 0), (3, 0))
        assert outcome.kept.total() == 3


@with_world
async def test_a_letter_that_sqs_does_not_delete_is_not_counted_as_gone(world: World) -> None:
    """It was refused for good in a call in which another one was refused for now, and then deleted."""
    queue = await in_the_world(world)
    delete = queue._queue.delete
    refusals = [[EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True), EntryFailure(1, "InternalError")]]

    async def refusing(handles: Any) -> Any:
        return refusals.pop() if refusals else await delete(handles)

    queue._queue.delete = refusing  # type: ignore[assignment, method-assign]
    outcome = await queue.purge(LetterFilter(tenant="a"), dry_run=False, reason="tenant has left")
    assert (outcome.done, dict(outcome.kept)) == (1, {"it could not be deleted: ReceiptHandleIsInvalid": 1})
    assert world.counts("dead") == (2, 0)


@with_world
async def test_a_cancelled_redrive_deletes_what_it_has_sent(world: World) -> None:
    """Sending and deleting stay together."""
    queue = await in_the_world(world)
    home = await world.client.queue("orders")
    send, sent = home.send, asyncio.Event()

    async def slow(messages: Any) -> Any:
        results = await send(messages)
        sent.set()
        await asyncio.sleep(1)
        return results

    async def open_queue(_: str) -> Any:
        return home

    home.send = slow  # type: ignore[method-assign]
    queue._open_queue = open_queue
    work = asyncio.create_task(queue.redrive(LetterFilter(tenant="a"), dry_run=False, reason="try"))
    await sent.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    in_both = sum(world.counts("orders")) + sum(world.counts("dead"))
    assert in_both == 3  # none lost, none twice


@with_world
async def test_a_consumers_own_resolver_tells_whose_a_letter_is(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """By the name that its log shows; a message that it refuses has no tenant, and the log says why of the first."""
    await in_the_world(world)
    first = world.send("{}", tenant=None, queue="dead")
    world.send("{}", tenant=None, queue="dead")
    consumer: Consumer[Tenant, None] = Consumer("orders", context=Tenant)
    queue = await desk(world, tenant_of=tenant_by_consumer(consumer))
    found = [each.tenant for each in await everything(queue)]
    assert sorted(map(str, found)) == ["None", "None", "a:eu-west-1", "a:eu-west-1", "b:eu-west-1"]
    [told] = [each for each in caplog.messages if "has no tenant" in each]
    assert first in told
    assert "or 'tenantId' is missing" in told


@with_world
async def test_the_tenant_of_a_letter_stands_in_its_envelope(world: World) -> None:
    """Where the consumer looks for it. What any sender wrote beside the envelope would delete another tenant's."""
    await world.client.__aenter__()
    world.create("dead")
    for body in (sns("x", tenantId="b", region="eu-west-1"), "no envelope", S3_TEST):
        world.send(body, tenant="a", queue="dead")
    consumer: Consumer[Tenant, None] = Consumer("orders", context=Tenant, unwrap=unwrap_sns)
    queue = await desk(world, tenant_of=tenant_by_consumer(consumer))
    assert [each.tenant for each in await everything(queue)] == ["b:eu-west-1", None, None]
    assert not await everything(queue, LetterFilter(tenant="a:eu-west-1"))


def test_a_message_without_room_is_sent_home_without_the_count() -> None:
    """Ten attributes are all that SQS takes."""
    ten = {f"a{number}": MessageAttribute(string_value="x") for number in range(10)}
    full = letter(message=Message(id="1", body="", message_attributes=ten))
    assert set(full.going_home(fifo=False).message_attributes) == set(ten)
    large = letter(size=1_048_570)
    assert large.going_home(fifo=False).message_attributes == {}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LetterFilter(tenant=""), "takes text that is not empty"),
        (lambda: LetterFilter(reason=3), "takes text"),  # type: ignore[arg-type]
        (lambda: LetterFilter(older_than=-1), "takes seconds, at least 0"),
        (lambda: LetterFilter(newer_than=float("nan")), "takes seconds"),
        (lambda: LetterFilter(older_than=60, newer_than=60), "no letter is older than 60 s and newer than 60 s"),
        (lambda: LetterFilter(ids="abc"), "takes a list: write ids="),
        (lambda: tenant_by_attribute(""), "takes a text: write tenant_by_attribute"),
        (lambda: tenant_by_consumer(Consumer("orders")), "has no context="),
    ],
)
def test_a_wrong_argument_says_what_to_write(make: Callable[[], object], text: str) -> None:
    """Before anything is received."""
    with pytest.raises(ConfigurationError, match=text):
        make()


@with_world
async def test_acting_needs_a_reason_and_a_rate(world: World) -> None:
    """Both are refused before a letter is received."""
    queue = await in_the_world(world)
    with pytest.raises(ConfigurationError, match="needs reason="):
        await queue.purge(dry_run=False)
    with pytest.raises(ConfigurationError, match="above 0"):
        await queue.redrive(rate=0)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"where": "acme"}, r"redrive\(where\) takes LetterFilter"),
        ({"rate": "5"}, "above 0"),
        ({"dry_run": "no"}, "takes True or False"),
        ({"dry_run": False, "reason": None}, "needs reason="),
        ({"journal": "redrive.jsonl"}, "takes Journal"),
        ({"to": 5}, "name, URL or ARN"),
    ]
    for arguments, text in wrong:
        with pytest.raises(ConfigurationError, match=text):
            await queue.redrive(**arguments)
    with pytest.raises(ConfigurationError, match="is the dead-letter queue itself"):
        await queue.redrive(to="dead")
    for hold in (0, "5"):
        with pytest.raises(ConfigurationError, match="from 1 to 43200"):
            await open_dead_letters(world.client, "dead", hold=hold)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"tenant_of=\.\.\.\) takes a function"):
        await open_dead_letters(world.client, "dead", tenant_of="acme")  # type: ignore[arg-type]


def test_a_broken_attribute_is_read_as_unknown() -> None:
    """Attributes come from outside."""
    bad = {letters.ATTEMPTS: "many", letters.SENT: "yesterday", letters.RECEIVES: "9" * 40, letters.REASON: "r"}
    attributes = {name: MessageAttribute(string_value=value) for name, value in bad.items()}
    from postroom.dead_letters.reading import read

    found = read(Message(id="1", body="", message_attributes=attributes), None)
    assert (found.attempts, found.receives, found.sent, found.reason) == (None, None, None, "r")
    assert replace(LetterFilter(), tenant="x").described() == "tenant 'x'"
