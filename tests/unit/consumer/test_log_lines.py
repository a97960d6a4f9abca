"""What the person on call reads: which tenant, which message, which argument, what follows; no secret, and no flood."""

import asyncio
import json
import logging
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from postroom import (
    AccessDenied,
    AckMode,
    ConfigurationError,
    Consumer,
    ContextError,
    Drop,
    Message,
    MessageContext,
    PayloadError,
    PoolLimits,
    PoolTimeouts,
    Reject,
    ResourcePool,
    Retry,
    RetryPolicy,
    UnknownTenant,
    Visibility,
)
from postroom.consumer.tenants import Tenants
from postroom.events import Event, HandlerStarted
from postroom.message import OutgoingMessage
from postroom.options import Call
from postroom.transports.memory import MemoryQueue
from support.world import Order, Tenant, World, in_world, with_world

SECRET = "hunter2-S3CR3T"
DSN = f"postgres://app:{SECRET}@db.internal/acme"


def refuse(*_: object) -> Any:
    """Fail, and quote a connection string."""
    raise RuntimeError(f"cannot connect to {DSN}")


async def refuse_later(*_: object) -> Any:
    """Fail as ``refuse``, but as a coroutine."""
    refuse()


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[str]:
    """Open what a tenant has."""
    yield tenant.tenant_id


@asynccontextmanager
async def no_database(_tenant: Tenant) -> AsyncGenerator[str]:
    """Be refused by the server."""
    refuse()
    yield ""


def lines_of(
    caplog: pytest.LogCaptureFixture,
    *,
    fails: Callable[[], BaseException] | None = None,
    pool: Callable[[], ResourcePool[Any, Any]] | None = None,
    messages: int = 1,
    receives: int = 100,
    **options: Any,
) -> list[logging.LogRecord]:
    """Let a consumer handle some messages of one tenant for 20 s, and return what it logs."""

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead", receives=receives)
        async with AsyncExitStack() as stack:
            if pool is not None:
                options["resources"] = await stack.enter_async_context(pool())
            arguments: dict[str, Any] = {"context": Tenant, **options}
            orders = Consumer("orders", client=world.client, **arguments)

            @orders.handler
            async def handle(_order: Order, ctx: MessageContext[Any, Any]) -> None:
                if fails is not None and ctx.message.attributes["tenantId"] == "acme":
                    raise fails()

            await stack.enter_async_context(orders)
            world.send_orders(*map(str, range(messages)), tenant="acme")
            await asyncio.sleep(20)

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    return caplog.records


def texts(records: list[logging.LogRecord], level: int = logging.WARNING) -> list[str]:
    """Return the texts of the lines of a level, and above it."""
    return [record.getMessage() for record in records if record.levelno >= level]


def test_a_message_that_sqs_makes_a_dead_letter_of_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """SQS moves it without a word: the consumer's line is the only one that says so. Once, and not where it rejects."""
    moved = "failed at its last receive (2 of 2) with ValueError: SQS moves it to the dead-letter queue"
    lines = texts(lines_of(caplog, fails=ValueError, receives=2, retry=RetryPolicy(base=0.1)))
    assert [moved in line for line in lines] == [False, False, True]
    assert "of tenant acme" in lines[2]
    caplog.clear()
    lines = texts(lines_of(caplog, fails=ValueError, receives=2, retry=RetryPolicy(attempts=2, base=0.1)))
    assert lines
    assert not any(moved in line for line in lines)
    caplog.clear()
    lines = texts(lines_of(caplog, fails=ValueError, receives=1, ack=AckMode.MANUAL))
    assert moved.replace("2", "1") in lines[-1]
    caplog.clear()
    [line] = texts(lines_of(caplog, fails=lambda: Retry(delay=1), receives=2))  # which has no other line
    assert moved.replace("ValueError", "Retry") in line


def refuse_context(_: object) -> Any:
    """Find no tenant."""
    raise LookupError("no such tenant")


@pytest.mark.parametrize("options", [{"fails": ValueError}, {"context": refuse_context}])
def test_the_line_of_a_dead_letter_that_sqs_makes_is_of_the_step_dead_letter(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it was no handler that failed."""
    [moved] = [line for line in lines_of(caplog, receives=1, **options) if "failed at its last" in line.getMessage()]
    assert vars(moved)["step"] == "dead_letter"


@pytest.mark.parametrize(("receives", "told"), [(1, 0), (2, 1)])
def test_a_message_that_its_handler_forgets_to_acknowledge_is_named_before_sqs_moves_it(
    receives: int, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its handler returned each time. Where one receive is all, an acknowledgement that comes later is the rule."""
    found = lines_of(caplog, receives=receives, ack=AckMode.MANUAL, visibility=Visibility(timeout=5))
    lines = [line for line in found if line.levelno >= logging.WARNING]
    lines = [line for line in lines if "maxReceiveCount" not in line.getMessage()]
    assert len(lines) == told
    for line in lines:
        text = (
            " of tenant acme:eu-west-1 returned and has not acknowledged it, at its last receive (2 of 2): unless ctx"
        )
        assert text in line.getMessage()
        assert vars(line)["step"] == "dead_letter"


@with_world
async def test_messages_that_are_never_acknowledged_are_told_of_once_for_each_tenant(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a dead-letter queue they come back, and run again, until they expire: nothing else would say so."""
    world.create()
    visibility, ran = Visibility(timeout=5), Counter[str]()
    orders = Consumer("orders", context=Tenant, client=world.client, ack=AckMode.MANUAL, visibility=visibility)
    later = set[asyncio.Task[None]]()

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Tenant, Any]) -> None:
        ran[ctx.context.tenant_id] += 1
        if ctx.context.tenant_id == "good":  # settled after its handler, and tried twice
            later.add(asyncio.create_task(ctx.retry(delay=1) if ctx.message.receive_count == 1 else ctx.ack()))

    async with orders:
        for tenant in ("acme", "bolt", "good"):
            world.send_orders("1", "2", tenant=tenant)
        await asyncio.sleep(600)
    assert ran["acme"] > 100
    assert ran["good"] == 4
    lines = [line for line in caplog.messages if "has not acknowledged it" in line]
    assert [line.split(" of tenant ")[1].split(":")[0] for line in lines] == ["acme", "bolt"]
    assert ", at receive 2, as before: it comes back after each visibility timeout, until ctx.ack() is" in lines[0]


@with_world
async def test_the_reason_of_a_dead_letter_announces_no_next_try(world: World) -> None:
    """None follows."""

    @asynccontextmanager
    async def nowhere(tenant: Tenant) -> AsyncGenerator[str]:
        if tenant.tenant_id == "acme":
            raise UnknownTenant(tenant.tenant_id)
        yield ""

    world.create(dead_letters="dead", receives=1)
    orders = Consumer("orders", context=Tenant, resources=nowhere, client=world.client)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, str]) -> None: ...

    async with orders:
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(10)
    async with world.client as client:
        letters = await (await client.queue("dead")).receive(limit=10, wait=0, visibility=1)
    [reason] = [str(letter.message_attributes["postroom.reason"].string_value) for letter in letters]
    assert reason.startswith("not tried: the resources of 'acme:eu-west-1': there is no such tenant")
    assert "next try" not in reason


@with_world
async def test_a_message_that_is_gone_is_told_from_one_that_another_consumer_has(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue was purged under running handlers: SQS says so, behind the receipt handle."""
    world.create()
    limits = Visibility(timeout=4)
    orders = Consumer("orders", context=Tenant, client=world.client, visibility=limits)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(10)

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(1)
        world.broker.purge("orders")
        await asyncio.sleep(20)
    [line] = [each for each in caplog.messages if each.startswith("Lost message")]
    why = "InvalidParameterValue (Message does not exist or is not available for visibility timeout change)"
    assert f"(InvalidReceiptHandle: SQS refused an entry of extend: {why})" in line


USERS: dict[str, dict[str, Any]] = {
    "context=": {"context": refuse},
    "context=, async": {"context": refuse_later},
    "retry=": {"fails": ValueError, "retry": refuse},
    "faults=": {"fails": ValueError, "faults": refuse},
    "visibility=": {"visibility": refuse},
    "RetryPolicy(delay=)": {"fails": ValueError, "retry": RetryPolicy(delay=refuse)},
    "on_error=": {"fails": ValueError, "on_error": refuse},
    "observers=": {"observers": [refuse]},
    "key=": {"pool": lambda: ResourcePool(database, weight=1, key=refuse)},
    "classify=": {"pool": lambda: ResourcePool(no_database, weight=1, classify=refuse)},
    "Reject": {"fails": lambda: Reject(f"no entry in {DSN}")},
    "Drop": {"fails": lambda: Drop(f"no entry in {DSN}")},
    "Retry": {"fails": lambda: Retry(f"no entry in {DSN}")},
}


@pytest.mark.parametrize("place", USERS)
def test_what_a_users_function_quotes_is_redacted(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is in the log, with its text, and the password of the connection string in it is not."""
    records = lines_of(caplog, **USERS[place])
    written = "\n".join(map(logging.Formatter().format, records))
    assert "db.internal" in written
    assert SECRET not in written


@pytest.mark.parametrize("kind", [ContextError, PayloadError])
def test_what_a_handler_raises_is_told_as_its_own(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    """Also an error of the kinds by which contexts and payloads fail: with its place, and the handler's step."""
    record = lines_of(caplog, fails=lambda: kind("the line items"))[1]
    assert record.getMessage().startswith("Handler failed for message ")
    assert vars(record)["step"] == "handler"
    assert "in handle" in (record.exc_text or "")


def refuse_in_lines(*_: object) -> Any:
    """Fail, and quote what a sender wrote."""
    raise ContextError("no tenant acme\nERROR postroom.consumer: forged")


def refuse_the_body(_message: Message) -> Any:
    """Fail, and quote what a sender wrote."""
    raise PayloadError("no entry acme\nERROR postroom.consumer: forged")


class Unsayable(PayloadError):
    """An error with a text that cannot be had, and an id that cannot be set."""

    @property
    def message_id(self) -> str | None:
        """Return none."""
        return None

    @message_id.setter
    def message_id(self, value: str | None) -> None:
        """Refuse any but none."""
        if value is not None:
            raise AttributeError

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError


@pytest.mark.parametrize(
    "place",
    [
        {"context": refuse_in_lines},
        {"fails": lambda: Reject("no entry acme\nERROR postroom.consumer: forged")},
        {"fails": lambda: Drop("no entry acme\nERROR postroom.consumer: forged")},
        {"fails": lambda: Retry("no entry acme\nERROR postroom.consumer: forged")},
        {"unwrap": refuse_the_body},
    ],
)
def test_what_a_sender_wrote_begins_no_line_of_its_own(place: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A reason or an error may quote a message: with its line breaks it could forge further lines of the log."""
    said = texts(lines_of(caplog, **place), logging.INFO)
    assert any("acme\\nERROR postroom.consumer: forged" in text for text in said)
    assert not [text for text in said if "\n" in text]


def test_an_error_without_a_text_is_told_by_its_type(caplog: pytest.LogCaptureFixture) -> None:
    """Its ``__str__`` raises: that costs neither the line nor the message."""
    assert "Unsayable" in texts(lines_of(caplog, fails=lambda: Unsayable("x")))[0]


def test_a_key_function_that_fails_is_named_with_the_context(caplog: pytest.LogCaptureFixture) -> None:
    """A ``TypeError`` of ``key=`` is not taken for a context that cannot be hashed."""
    records = lines_of(caplog, pool=lambda: ResourcePool(database, weight=1, key=lambda _tenant: len(None)))  # type: ignore[arg-type]
    told = "the pool's key= failed on the context acme:eu-west-1: TypeError: object of type 'NoneType' has no len()"
    assert told in texts(records)[0]


def test_a_key_that_cannot_be_hashed_is_named_with_the_context(caplog: pytest.LogCaptureFixture) -> None:
    """Not the context, which can."""
    records = lines_of(caplog, pool=lambda: ResourcePool(database, weight=1, key=lambda tenant: [tenant]))  # type: ignore[arg-type, return-value]
    assert "the pool's key= of acme:eu-west-1, a list, is not hashable" in texts(records)[0]


def test_a_key_that_is_none_is_named_with_the_context(caplog: pytest.LogCaptureFixture) -> None:
    """A look-up that finds nothing gives it to every tenant that is missing, and they would share one resource."""
    keys: dict[str, str] = {}
    opened: list[Any] = []

    @asynccontextmanager
    async def open_database(tenant: Tenant) -> AsyncGenerator[None]:
        opened.append(tenant)
        yield

    pool = partial(ResourcePool, open_database, weight=1, key=lambda tenant: keys.get(tenant.tenant_id))
    records = lines_of(caplog, pool=pool)
    assert "the pool's key= failed on the context acme:eu-west-1: ValueError: it returned None" in texts(records)[0]
    assert not opened


def nothing(_call: Call) -> Any:
    """Choose nothing that is a policy."""


@pytest.mark.parametrize(
    "options",
    [
        {"observers": [refuse]},
        {"visibility": refuse},
        {"visibility": nothing},
        {"fails": Retry, "retry": RetryPolicy(delay=refuse)},
        {"fails": Retry, "retry": RetryPolicy(delay=lambda _message, _error: math.nan)},
    ],
)
def test_a_function_that_fails_for_every_message_is_told_of_now_and_then(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Two hundred messages of one tenant: a line, and not hundreds with a traceback each."""
    records = lines_of(caplog, messages=200, **options)
    assert 1 <= len(texts(records)) <= 3


def test_a_function_that_fails_is_told_of_again_with_a_count(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute the next failure is logged, with the number of those between."""
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr("postroom.repeats.monotonic", lambda: next(clock))
    records = lines_of(caplog, messages=7, visibility=refuse)
    assert [text.partition("(failed ")[2] for text in texts(records)] == [
        "",
        "2 times more since the last such line)",
        "2 times more since the last such line)",
    ]


def test_a_dead_letter_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """With message, tenant, attempt and reason, although the handler that rejects it logs nothing itself."""
    records = lines_of(caplog, fails=lambda: Reject("no such article"))
    record = next(record for record in records if "dead-letter queue" in record.getMessage())
    text = f"Message {record.message_id} of tenant acme:eu-west-1 was sent to the dead-letter queue"  # type: ignore[attr-defined]
    assert record.getMessage() == f"{text} (attempt 1, receive 1): no such article"
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize(
    ("instruction", "what"),
    [(Reject, "was sent to the dead-letter queue"), (Drop, "is dropped")],
    ids=["Reject", "Drop"],
)
def test_many_that_go_for_one_reason_are_no_flood_of_warnings(
    instruction: type[Exception], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ten are warnings, the tenth says that more follow as INFO; each message has its line."""
    records = lines_of(caplog, fails=lambda: instruction("quarantined"), messages=50)
    lines = [record for record in records if f" {what} (" in record.getMessage()]
    assert len(lines) == 50
    loud = texts(lines)
    assert len(loud) == 10
    assert loud[-1].endswith("quarantined; further ones within a minute are logged as INFO")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"fails": lambda: Retry("later", delay=1)}, "failed at its last receive (2 of 2) with Retry: later"),
        ({"ack": AckMode.MANUAL}, "returned and has not acknowledged it"),
    ],
    ids=["Retry", "MANUAL"],
)
def test_many_that_sqs_makes_dead_letters_of_are_no_flood_of_warnings(
    options: dict[str, Any], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As with those that the consumer sends there: ten are warnings, and each message has its line."""
    records = lines_of(caplog, messages=50, receives=2, visibility=Visibility(timeout=5), **options)
    lines = [record for record in records if what in record.getMessage()]
    assert len(lines) == 50
    loud = texts(lines)
    assert len(loud) == 10
    assert loud[-1].endswith("; further ones within a minute are logged as INFO")


@pytest.mark.parametrize(
    ("mode", "what"),
    [(AckMode.ON_SUCCESS, "failed"), (AckMode.MANUAL, "returned and has not acknowledged it,")],
)
@with_world
async def test_a_message_that_comes_back_after_its_last_receive_is_not_said_to_be_moved(
    world: World, mode: AckMode, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The dead-letter queue was deleted: SQS goes on handing the message out."""
    world.create(dead_letters="dead", receives=2)
    world.broker.delete_queue("dead")
    retry, visibility = RetryPolicy(base=1, cap=1), Visibility(timeout=5)
    orders = Consumer("orders", context=Tenant, client=world.client, ack=mode, retry=retry, visibility=visibility)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Any, Any]) -> None:
        if mode is not AckMode.MANUAL:
            raise ValueError

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(30)
    at_last, *later = [line for line in caplog.messages if f" {what} at " in line]
    assert f" {what} at its last receive (2 of 2)" in at_last
    assert "SQS moves it" in at_last
    assert f" {what} at receive 3 of 2" in later[0]
    for line in later:
        assert ": it comes back, since SQS has not moved it to the dead-letter queue. See whether that exists" in line


def test_what_a_message_failed_of_at_its_last_receive_is_redacted(caplog: pytest.LogCaptureFixture) -> None:
    """The text of a resolver's own ContextError is free text."""

    def resolve(_: Message) -> str:
        raise ContextError(f"cannot connect to {DSN}")

    lines = texts(lines_of(caplog, context=resolve, receives=1))
    assert "failed at its last receive (1 of 1) with ContextError: cannot connect to postgres://app:***@" in lines[-1]
    assert SECRET not in caplog.text


def test_a_retry_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Its reason is for the log; the line says when the message comes back."""
    records = lines_of(caplog, fails=lambda: Retry("the rate is not known yet", delay=900))
    told = [text for text in texts(records, logging.INFO) if text.startswith("Retry asked for message")]
    assert len(told) == 1
    assert told[0].endswith("of tenant acme:eu-west-1 (attempt 1, receive 1), after 900 s: the rate is not known yet")


def test_many_retries_of_one_kind_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Ten have lines of their own, the others are counted: for each tenant, and whatever figures the reasons have."""

    async def scenario(world: World) -> None:
        world.create()
        orders = Consumer("orders", context=Tenant, client=world.client)

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Any, Any]) -> None:
            raise Retry(f"the rate of order {order.order_id} is not known yet", delay=3600)

        async with orders:
            for tenant in ("acme", "bolt"):
                world.send_orders(*map(str, range(400)), tenant=tenant)
            world.send_orders("1", tenant="quiet")
            await asyncio.sleep(100)

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    lines = [each for each in caplog.messages if each.startswith("Retry asked for ")]
    for tenant in ("acme", "bolt", "quiet"):
        named = [line for line in lines if f" of tenant {tenant}:eu-west-1 (attempt" in line]
        shared = [line for line in lines if f"(tenant {tenant}:eu-west-1: the rate of order … is not known" in line]
        told = sum(int(line.split()[3]) for line in shared)
        assert (len(named), told) == ((1, 0) if tenant == "quiet" else (10, 390))
        assert len(shared) <= 3
        assert tenant == "quiet" or named[-1].endswith("; further ones share a line a minute")


@pytest.mark.parametrize("delay", [math.nan, math.inf, -math.inf, "5", True])
@with_world
async def test_a_delay_that_is_no_number_of_seconds_fails_its_own_message(world: World, delay: Any) -> None:
    """SQS would refuse it together with the changes of other tenants' messages in the same batch."""
    world.create()
    errors: dict[str, list[BaseException]] = {}
    done: list[str] = []
    retry = RetryPolicy(base=3, jitter=0)
    orders = Consumer("orders", context=Tenant, client=world.client, ack=AckMode.MANUAL, retry=retry)

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
        tenant = ctx.context.tenant_id
        if ctx.message.receive_count > 1:
            done.append(tenant)
            await ctx.ack()
        elif tenant == "good":
            await ctx.retry(delay=3)
        else:
            for ask in (lambda: Retry(delay=delay), lambda: ctx.retry(delay=delay)):
                try:
                    ask()
                except ConfigurationError as error:
                    errors.setdefault(order.order_id, []).append(error)
            await ctx.retry(delay=3)

    async with orders:
        world.send_orders("1", "2", tenant="bad")
        world.send_orders("3", "4", tenant="good")
        await asyncio.sleep(5)
    assert [len(each) for each in errors.values()] == [2, 2]
    assert sorted(done) == ["bad", "bad", "good", "good"]


@pytest.mark.parametrize(("delay", "seconds"), [(-5, 0.0), (10**400, 43_200.0), (1e300, 43_200.0), (7, 7.0)])
def test_a_delay_beyond_what_sqs_allows_is_cut(delay: float, seconds: float) -> None:
    """From 0 to 12 hours, as with ``RetryPolicy(delay=)``."""
    assert Retry(delay=delay).delay == seconds


def test_dead_letters_that_cannot_be_sent_are_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    """The dead-letter queue was deleted: ten errors a minute, then a line with the number; and nothing is lost."""

    async def scenario(world: World) -> tuple[int, int]:
        world.create(dead_letters="dead", receives=100)
        world.broker.delete_queue("dead")
        orders = Consumer("orders", context=Tenant, client=world.client)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Any, Any]) -> None:
            raise Reject("no such article")

        async with orders:
            for tenant in range(10):
                world.send_orders(*map(str, range(10)), tenant=f"tenant-{tenant}")
            await asyncio.sleep(50)
        return world.counts()

    with caplog.at_level(logging.INFO, "postroom"):
        assert sum(in_world(scenario)) == 100
    lines = [each for each in caplog.messages if "could not be sent" in each]
    assert all(line.startswith("Message ") for line in lines[:10])
    assert "dead does not exist: create it, or correct the redrive policy of the queue; it comes back" in lines[0]
    assert lines[9].endswith("; it comes back; further ones share a line a minute")
    assert len(lines) < 14  # a second after the tenth, at the end of the stop, and once a minute
    told = sum(int(line.split()[0]) for line in lines[10:])
    assert told >= 200
    assert all("QueueNotFound" in line and " of tenant " in line for line in lines[10:])


@pytest.mark.parametrize("fifo", [False, True])
def test_what_cannot_be_sent_at_its_last_receive_is_said_to_be_moved(
    fifo: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The dead-letter queue refuses the consumer, and not SQS: the message does not come back."""

    async def denied(_queue: MemoryQueue, _messages: Sequence[OutgoingMessage]) -> Any:
        raise AccessDenied("no permission", operation="SendMessageBatch")

    async def scenario(world: World) -> int:
        dead, queue = ("dead.fifo", "orders.fifo") if fifo else ("dead", "orders")
        world.broker.create_queue(dead, {"FifoQueue": "true"} if fifo else {})
        policy = {"deadLetterTargetArn": world.broker.attributes(dead)["QueueArn"], "maxReceiveCount": 2}
        more = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}
        world.broker.create_queue(queue, {"RedrivePolicy": json.dumps(policy), **more})
        orders = Consumer(queue, context=Tenant, client=world.client, retry=RetryPolicy(base=1, cap=1))

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Any, Any]) -> None:
            raise Reject("no such article")

        async with orders:
            world.send({"order_id": "1"}, queue=queue, group="a" if fifo else None)
            await asyncio.sleep(60)
        return sum(world.counts(dead))

    monkeypatch.setattr(MemoryQueue, "send", denied)
    with caplog.at_level(logging.WARNING, "postroom.consumer"):
        assert in_world(scenario) == 1
    first, last = [line for line in caplog.messages if " could not be sent to the dead-letter queue" in line]
    assert first.endswith("; it comes back")
    assert last.endswith("; SQS moves it to the dead-letter queue, without a reason, since this was the last receive")
    assert "RetryPolicy" not in caplog.text


def test_many_that_are_rejected_without_a_dead_letter_queue_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Each comes back within seconds and is rejected again: ten lines a minute for each tenant, then their number."""

    async def scenario(world: World) -> None:
        world.create()
        orders = Consumer("orders", context=Tenant, client=world.client, retry=RetryPolicy(base=5, cap=5))

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Any, Any]) -> None:
            raise Reject(f"no such article: {order.order_id}")

        async with orders:
            for tenant in ("acme", "bolt"):
                world.send_orders(*map(str, range(200)), tenant=tenant)
            await asyncio.sleep(50)

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    for tenant in ("acme", "bolt"):
        named = [line for line in caplog.messages if f" of tenant {tenant}:eu-west-1 was rejected" in line]
        of_many = f"orders rejected, too (tenant {tenant}:eu-west-1: no such article: …)"
        shared = [line for line in caplog.messages if of_many in line]
        assert len(named) == 10
        assert named[-1].endswith(", but queue orders has no dead-letter queue; further ones share a line a minute")
        assert 1 <= len(shared) <= 3
        assert sum(int(line.split()[0]) for line in shared) > 200


@with_world
async def test_each_that_is_rejected_and_deleted_is_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without a dead-letter queue, and with ``AckMode.ALWAYS``, its line is all that is left of it."""
    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client, ack=AckMode.ALWAYS)

    @orders.handler
    async def handle(order: Order, _ctx: MessageContext[Any, Any]) -> None:
        raise Reject(f"no such article: {order.order_id}")

    sent = [world.send(Order(str(number))) for number in range(30)]
    async with orders:
        await asyncio.sleep(50)
    assert world.counts() == (0, 0)
    assert not [line for line in caplog.messages if "come back" in line or "share a line" in line]
    named = [line.split()[1] for line in caplog.messages if "was rejected" in line]
    assert sorted(named) == sorted(sent)


def test_an_operators_reason_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A reason with line breaks cannot forge a line of the log."""
    Consumer("orders", context=Tenant).tenants.pause(Tenant("acme"), reason="migration\nERROR all is lost\x1b[31m")
    assert texts(caplog.records) == [
        "Tenant acme:eu-west-1 is paused by an operator: migration\\nERROR all is lost\\x1b[31m"
    ]


@pytest.mark.parametrize(
    "decide",
    [
        lambda tenants, why: tenants.pause(Tenant("acme"), reason=why),
        lambda tenants, why: tenants.resume(Tenant("acme"), reason=why),
        lambda tenants, why: tenants.limit(Tenant("acme"), rate=2, reason=why),
        lambda tenants, why: tenants.quarantine(Tenant("acme"), reason=why),
        lambda tenants, why: tenants.divert(Tenant("acme"), queue="other", reason=why),
    ],
)
def test_an_operators_reason_shows_no_password(
    decide: Callable[[Tenants, str], object], caplog: pytest.LogCaptureFixture
) -> None:
    """It is often what a driver said, copied from a terminal."""
    decide(Consumer("orders", context=Tenant).tenants, "db moved, password=hunter2 is old")
    [told] = texts(caplog.records)
    assert told.endswith("by an operator: db moved, password=*** is old")


def test_a_decision_without_a_reason_is_told_at_info(caplog: pytest.LogCaptureFixture) -> None:
    """What happens to the tenant's messages then would have no cause in the log."""
    caplog.set_level(logging.INFO, "postroom")
    tenants = Consumer("orders", context=Tenant).tenants
    tenants.pause(Tenant("acme"))
    tenants.resume(Tenant("acme"))
    told = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert told == [("INFO", f"Tenant acme:eu-west-1 is {decided} by an operator") for decided in ("paused", "resumed")]


def test_a_budget_that_is_too_small_all_day_is_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each tenant waits for it for a moment, again and again: a line for each of them would be thousands."""

    async def scenario(world: World) -> int:
        world.create()
        small = ResourcePool(database, limits=PoolLimits(budget=2), timeouts=PoolTimeouts(lease=5.0))
        orders = Consumer("orders", context=Tenant, resources=small, client=world.client)
        handled = 0

        @orders.handler
        async def handle(order: Order, ctx: MessageContext[Tenant, str]) -> None:
            nonlocal handled
            handled += 1
            await asyncio.sleep(10.0)

        async with orders:
            for number in range(150):
                world.send_orders("x", tenant=f"tenant-{number % 20}")
                await asyncio.sleep(2.0)
            world.broker.purge("orders")
        return handled

    with caplog.at_level(logging.INFO, "postroom.consumer"):
        assert in_world(scenario) > 50
    lines = texts(caplog.records)
    assert sum("is unavailable; its messages wait" in line for line in lines) == 1
    assert sum("is available again after" in line for line in lines) == 1
    shared = [line for line in lines if line.startswith("No budget, messages wait, ")]
    assert 2 <= len(shared) <= 4
    assert re.match(r"No budget, messages wait, too: \d+ tenants \(tenant-\d", shared[0])


def test_dead_letters_of_one_cause_are_told_of_in_info_though_its_figures_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A reason may say when the next try is: that makes no other cause of it for each message."""

    async def scenario(world: World) -> int:
        world.create(dead_letters="dead", receives=10)
        orders = Consumer("orders", context=Tenant, client=world.client)

        @orders.handler
        async def handle(order: Order, ctx: MessageContext[Tenant]) -> None:
            raise Reject(f"its tenant is unavailable; next try in {float(order.order_id) / 7:.3g} s")

        async with orders:
            world.send_orders(*map(str, range(50)))
            await asyncio.sleep(5)
        return world.counts("dead")[0]

    with caplog.at_level(logging.INFO, "postroom.consumer"):
        assert in_world(scenario) == 50
    told = [record.levelname for record in caplog.records if "was sent to the dead-letter queue" in record.message]
    assert (told.count("WARNING"), told.count("INFO")) == (10, 40)


def test_the_line_of_an_observer_that_fails_says_on_whose_message(caplog: pytest.LogCaptureFixture) -> None:
    """It may fail for the messages of one tenant alone."""

    def observe(event: Event) -> None:
        if isinstance(event, HandlerStarted):
            raise KeyError(event.tenant)

    records = lines_of(caplog, observers=[observe])
    (line,) = [vars(record) for record in records if " failed on HandlerStarted;" in record.getMessage()]
    assert (line["queue"], line["tenant"], line["attempt"], line["step"]) == ("orders", "acme:eu-west-1", 1, "observer")
    assert line["message_id"] is not None


@pytest.mark.parametrize("beyond", [0.02, 0.9, 1.5])
@pytest.mark.parametrize("timeout", [2, 30])
@pytest.mark.parametrize("acknowledges", [False, True])
def test_a_message_that_a_blocked_loop_has_lost_is_told_of_as_that(
    acknowledges: bool, timeout: float, beyond: float, caplog: pytest.LogCaptureFixture
) -> None:
    """However short the block was beyond the visibility timeout: no other cause may be named."""

    async def scenario(world: World) -> None:
        world.create()
        orders = Consumer("orders", context=Tenant, client=world.client, visibility=Visibility(timeout=timeout))

        @orders.handler
        async def handle(_order: Order, ctx: MessageContext[Tenant, Any]) -> None:
            await asyncio.sleep(timeout / 2 - 0.01)  # just before its extension is due
            loop: Any = asyncio.get_running_loop()
            loop.block(timeout / 2 + 0.01 + beyond)
            if acknowledges:
                await ctx.ack()
            await asyncio.sleep(3600)

        world.send_orders("1", tenant="acme")
        async with orders:
            await asyncio.sleep(timeout / 2)
            await asyncio.sleep(0.1)
            orders.stop(now=True)

    with caplog.at_level(logging.WARNING, "postroom"):
        in_world(scenario)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Lost message")]
    assert f" after {timeout + beyond:.1f} s: the event loop, the process or the machine stood still" in line
