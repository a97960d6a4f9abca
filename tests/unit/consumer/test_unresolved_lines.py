"""What the log says of a resolver that fails: where in the user's code, and no line for each message of an outage."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import Consumer, ContextError, Message, MessageContext, ResourcePool
from postroom.log_fields import Log, Step
from postroom.settlement import Refusals, SharedLines
from postroom.tasks import Tasks
from postroom.testing.loop import run_virtual
from support.world import Order, Tenant, World, in_world


def lines_of(
    caplog: pytest.LogCaptureFixture,
    context: Callable[[Message], Any],
    *,
    messages: int = 1,
    bodies: Sequence[object] = (),
    pool: ResourcePool[Any, Any] | None = None,
) -> list[logging.LogRecord]:
    """Consume messages for half a minute, and return what the log says of them."""

    async def scenario(world: World) -> None:
        world.create()
        orders = Consumer("orders", context=context, client=world.client, resources=pool)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Any, Any]) -> None: ...

        async with orders:
            world.send_orders(*map(str, range(messages)), tenant="acme")
            for body in bodies:
                world.send(body, tenant="acme")
            await asyncio.sleep(30)

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    return [each for each in caplog.records if each.levelno > logging.INFO and "dead-letter" not in each.getMessage()]


def look_up(_: Message) -> str:
    """Fail as a resolver does when its registry is not there."""
    raise ConnectionRefusedError("registry refused: postgres://app:hunter2@db")


def test_a_resolver_that_raises_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The line alone, KeyError: 'tenant', would not tell where."""
    first = lines_of(caplog, look_up)[0]
    assert first.getMessage().endswith(
        "(attempt 1, receive 1): ConnectionRefusedError: registry refused: postgres://app:***@db"
    )
    assert first.exc_text is not None
    assert "in look_up" in first.exc_text
    assert "hunter2" not in first.exc_text


def test_a_pools_key_that_raises_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """It is the user's function, as the resolver is."""

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncGenerator[str]:
        yield tenant.tenant_id

    def pick(_: Tenant) -> str:
        raise KeyError("region")

    pool = ResourcePool(database, weight=1, key=pick)
    first = lines_of(caplog, lambda _: Tenant("acme"), pool=pool)[0]
    assert first.exc_text is not None
    assert "in pick" in first.exc_text


def test_a_pools_host_that_raises_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """The pool's line has the traceback; that its messages wait has the place."""

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncGenerator[str]:
        yield tenant.tenant_id

    def pick(_: Tenant) -> str:
        raise KeyError("region")

    pool = ResourcePool(database, weight=1, host=pick)
    failed, waits = lines_of(caplog, lambda _: Tenant("acme"), pool=pool)
    assert "in pick" in (failed.exc_text or "")
    assert "KeyError: 'region' (in pick, test_unresolved_lines.py line " in waits.getMessage()


@pytest.mark.parametrize("context", [lambda _: None, lambda _: ["acme"]])
def test_what_a_sentence_says_has_no_traceback(
    caplog: pytest.LogCaptureFixture, context: Callable[[Message], Any]
) -> None:
    """A resolver that returned something wrong: frames of the library would tell nothing more."""
    records = lines_of(caplog, context)
    assert records
    assert not any(record.exc_text for record in records)


def test_a_registry_that_is_down_is_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    """Ten lines a minute, one that tells of it, and one with the number of the others, their cause and some ids."""
    records = lines_of(caplog, look_up, messages=500)
    single = [each for each in records if each.getMessage().startswith("Context resolution failed for message ")]
    told, *others = [each.getMessage() for each in records if each not in single]
    assert len(single) == 10
    assert told.startswith("The context resolver has failed in orders")
    assert 1 <= len(others) <= 3
    assert sum(int(line.split()[4]) for line in others) > 400
    assert "failed, too, as in the lines before: ContextError from ConnectionRefusedError. Messages: " in others[0]


def test_what_senders_do_wrong_is_told_of_each_message(caplog: pytest.LogCaptureFixture) -> None:
    """It is no outage: each message lacks what it needs by itself."""

    def resolve(message: Message) -> str:
        raise ContextError(f"message {message.id} names no tenant", message_id=message.id)

    assert len(lines_of(caplog, resolve, messages=20)) >= 20


def test_a_payload_type_that_fits_no_message_is_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    """A deployment with another type: as with a resolver that fails for everything."""
    records = lines_of(caplog, lambda _: "acme", messages=0, bodies=[{"order": number} for number in range(500)])
    single = [each for each in records if each.getMessage().startswith("Payload decoding failed for message ")]
    told, *others = [each.getMessage() for each in records if each not in single]
    assert len(single) == 10
    assert told.startswith("The payload type has failed in orders")
    assert 1 <= len(others) <= 3
    assert sum(int(line.split()[4]) for line in others) > 400
    assert "failed, too, as in the lines before: ValidationError. Messages: " in others[0]
    assert " of tenant acme" in others[0]
    assert {getattr(each, "step", None) for each in records} == {"payload"}


@pytest.mark.parametrize("what", ["resolver", "payload type"])
def test_what_fails_in_many_queues_is_no_flood(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """A queue for each tenant, with a few messages each: each queue had ten lines a minute."""

    async def scenario(world: World) -> None:
        names = [f"orders-{number}" for number in range(60)]
        for name in names:
            world.create(name)
            for number in range(5):
                world.send({"order_id": str(number)} if what == "resolver" else {"order": number}, queue=name)
        context = look_up if what == "resolver" else (lambda _: "acme")
        orders: Consumer[str, None] = Consumer(queues=names, context=context, client=world.client)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Any, Any]) -> None: ...

        async with orders:
            await asyncio.sleep(50)

    with caplog.at_level(logging.ERROR, "postroom"):
        in_world(scenario)
    told = [text for text in caplog.messages if " failed for message " in text]
    assert 10 <= len(told) <= 20


def test_lines_of_queues_that_are_gone_are_forgotten() -> None:
    """The list of queues may change every minute. What there is to tell is still told."""

    async def scenario() -> tuple[int, bool]:
        lines = SharedLines(Tasks(lambda error: pytest.fail(str(error))))
        log = Log("postroom.consumer", Step.CONTEXT)

        def line(number: int) -> Refusals:
            return lines.line(f"%s of orders-{number}: %s, %s", queue=f"orders-{number}", log=log)

        last = line(0)
        last.add("ValueError", "1")
        for number in range(1, 1_000):
            assert line(number).is_among_the_first()
            await asyncio.sleep(2)
            last.add("ValueError", "1")
        kept = line(0) is last
        lines.flush()
        return len(lines._lines), kept

    count, kept = run_virtual(scenario())
    assert count <= 250
    assert kept


def test_bodies_that_do_not_fit_among_others_that_do_are_told_each(caplog: pytest.LogCaptureFixture) -> None:
    """They are bad by themselves, as a sender's mistakes are."""
    good = {"order_id": "1"}
    bodies = [body for number in range(20) for body in (good, {"order": number})]
    records = lines_of(caplog, lambda _: "acme", messages=0, bodies=bodies)
    said = [each.getMessage() for each in records]
    assert len({each.split()[5] for each in said if each.startswith("Payload decoding failed for message ")}) == 20
