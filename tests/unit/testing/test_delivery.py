"""``deliver`` takes one message through the whole path and says what became of it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from postroom import (
    AckMode,
    ConfigurationError,
    Consumer,
    ContextError,
    Drop,
    Failure,
    MessageContext,
    OutgoingMessage,
    Reject,
    ResourceOpenError,
    Retry,
    RetryPolicy,
    Settlement,
    Shutdown,
    UnknownTenant,
    ValidationError,
    attribute,
)
from postroom.local import LocalBroker
from postroom.testing import Delivered, assert_no_leaks, deliver, run_virtual
from postroom.transports.memory import MemoryClient
from support.virtual import in_virtual_time

Ctx = MessageContext[Any, Any]


@dataclass(frozen=True)
class Tenant:
    """The context of the tests."""

    tenant_id: Annotated[str, attribute("tenantId")]


@dataclass
class Order:
    """The payload of the tests."""

    order_id: str


def consumer_of(action: Callable[[Order, Ctx], Any] | None = None, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer with an async handler that does something."""
    consumer: Consumer[Any, Any] = Consumer("orders", **{"context": Tenant, **options})

    @consumer.handler
    async def handle(order: Order, ctx: Ctx) -> None:
        if action is not None:
            action(order, ctx)

    return consumer


async def _never(_tenant: Tenant) -> list[str]:
    raise AssertionError("the test brings the resources")


def raises(error: BaseException) -> Callable[[Order, Ctx], None]:
    """Make a handler that raises."""

    def action(_order: Order, _ctx: Ctx) -> None:
        raise error

    return action


def of(consumer: Consumer[Any, Any], payload: Any = Order("1"), **options: Any) -> Delivered:  # noqa: B008 - read only
    """Deliver a payload in virtual time."""
    return run_virtual(deliver(consumer, payload, **{"context": Tenant("acme"), **options}))


def test_a_handled_message_is_acknowledged() -> None:
    """The handler gets payload, context and the resources that the test brings."""
    rows: list[str] = []
    consumer = consumer_of(
        lambda order, ctx: ctx.resources.append(f"{order.order_id} of {ctx.context.tenant_id}"), resources=_never
    )
    found = of(consumer, resources=rows)
    assert rows == ["1 of acme"]
    assert (found.settlement, found.handled, found.attempt, found.error) == (Settlement.ACKED, True, 1, None)
    assert (found.context, found.reason) == (Tenant("acme"), None)
    assert found.message.queue == "orders"


def test_a_failed_message_comes_back_with_its_backoff() -> None:
    """The error is the handler's own; the attempt is the one that the receives say."""
    error = KeyError("price")
    consumer = consumer_of(raises(error), retry=RetryPolicy(base=4, jitter=0))
    found = of(consumer, receives=3)
    assert (found.settlement, found.attempt, found.error, found.delay) == (Settlement.RETRIED, 3, error, 16.0)


@pytest.mark.parametrize(
    ("error", "settlement", "reason"),
    [
        (Reject("no such article"), Settlement.REJECTED, "no such article"),
        (Drop("a test event"), Settlement.ACKED, None),
        (Retry("later", delay=7), Settlement.RETRIED, None),
    ],
)
def test_instructions_are_followed_and_told(error: Exception, settlement: Settlement, reason: str | None) -> None:
    """``error`` is the instruction itself."""
    found = of(consumer_of(raises(error)))
    assert (found.settlement, found.error, found.reason) == (settlement, error, reason)
    assert found.delay == (7.0 if isinstance(error, Retry) else 0.0)


def test_a_body_of_another_shape_does_not_reach_the_handler() -> None:
    """And ``on_error`` decides, as it does in production."""
    told: list[Failure] = []

    def on_error(failure: Failure) -> None:
        told.append(failure)
        raise Reject("of another shape")

    found = of(consumer_of(on_error=on_error), {"orderId": 1})
    assert isinstance(found.error, ValidationError)
    assert (found.settlement, found.handled, found.reason) == (Settlement.REJECTED, False, "of another shape")
    assert len(told) == 1


@pytest.mark.parametrize("fails", [True, False])
def test_a_middleware_may_keep_a_message_from_its_handler(fails: bool) -> None:
    """Then it was not handled, although its context is known."""

    async def keeps(payload: Any, ctx: Ctx, call_next: Any) -> None:
        if fails:
            raise ValueError("not today")

    found = of(consumer_of(middleware=[keeps]))
    assert (found.handled, found.context) == (False, Tenant("acme"))
    assert found.settlement is (Settlement.RETRIED if fails else Settlement.ACKED)


def test_the_delay_of_a_message_is_over() -> None:
    """By the time at which it is received; also where it was received before."""
    consumer: Consumer[Any, Any] = Consumer("orders")

    @consumer.handler
    async def handle(body: str, ctx: Ctx) -> None: ...

    for receives in (1, 4):
        found = run_virtual(deliver(consumer, OutgoingMessage(body="x", delay=100), receives=receives))
        assert (found.settlement, found.attempt) == (Settlement.ACKED, receives)


def test_a_queue_may_have_any_name() -> None:
    """Also the one that people like for dead letters."""
    consumer: Consumer[Any, Any] = Consumer("dead-letters")

    @consumer.handler
    async def handle(body: str, ctx: Ctx) -> None: ...

    assert run_virtual(deliver(consumer, "x")).settlement is Settlement.ACKED


def test_without_a_context_the_resolver_reads_the_attributes() -> None:
    """Those that the test names, and no others."""
    found = run_virtual(deliver(consumer_of(), Order("1"), attributes={"tenantId": "acme"}))
    assert found.context == Tenant("acme")
    refused = run_virtual(deliver(consumer_of(), Order("1")))
    assert isinstance(refused.error, ContextError)
    assert not refused.handled


class Line(BaseModel):
    """A pydantic model in another payload."""

    model_config = ConfigDict(alias_generator=to_camel)
    line_id: str


@dataclass
class Parcel:
    """A payload with a pydantic model inside."""

    lines: list[Line]


class Command(StrEnum):
    """An Enum of texts."""

    START = "start"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (list[Line], [Line.model_validate({"lineId": "1"})]),
        (dict[str, Line], {"a": Line.model_validate({"lineId": "1"})}),
        (Parcel, Parcel([Line.model_validate({"lineId": "1"})])),
        (Command, Command.START),
    ],
)
def test_what_a_sender_sends_is_delivered(kind: Any, payload: object) -> None:
    """And decoded again."""
    seen: list[object] = []
    consumer: Consumer[Any, Any] = Consumer("orders", context=Tenant, payload=kind)
    consumer.handler(lambda payload, ctx: seen.append(payload))
    assert of(consumer, payload).settlement is Settlement.ACKED
    assert seen == [payload]


def test_a_context_takes_the_place_of_a_resolver_function() -> None:
    """A function cannot be run backwards."""
    consumer = consumer_of(context=lambda message: message.attributes["x"])
    assert of(consumer, context="acme").context == "acme"


class Region(Enum):
    """An Enum among the fields."""

    EU = "eu"


@dataclass(frozen=True)
class Wide:
    """A context with fields of every kind."""

    name: str
    number: int
    flag: bool
    key: UUID
    region: Region
    note: str | None = None


def test_a_context_is_written_as_its_class_reads_it() -> None:
    """Fields of every kind come back as they were."""
    wide = Wide("a", 7, flag=True, key=UUID(int=5), region=Region.EU)
    found = of(consumer_of(context=Wide), context=wide)
    assert found.context == wide
    assert found.message.attributes["flag"] == "true"


def test_a_message_whose_resources_cannot_be_opened_is_not_waited_for() -> None:
    """It is an outage: the error says so, no attempt is counted, and the message goes back."""

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncIterator[str]:
        if tenant.tenant_id:
            raise ConnectionRefusedError(tenant.tenant_id)
        yield ""

    found = of(consumer_of(resources=database))
    assert isinstance(found.error, ResourceOpenError)
    assert (found.settlement, found.handled) == (Settlement.RETURNED, False)


def test_an_unknown_tenant_is_a_failure() -> None:
    """It is no outage: the message is retried, and ends in the dead-letter queue at its last receive."""

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncIterator[str]:
        if tenant.tenant_id:
            raise UnknownTenant(tenant.tenant_id)
        yield ""

    found = of(consumer_of(resources=database))
    assert isinstance(found.error, ResourceOpenError)
    assert found.error.permanent
    assert found.settlement is Settlement.RETRIED


def test_decisions_about_a_tenant_apply() -> None:
    """A message of a paused tenant waits and is returned; one in quarantine becomes a dead letter."""
    consumer = consumer_of()
    consumer.tenants.pause(Tenant("acme"))
    found = of(consumer)
    assert (found.settlement, found.handled, found.error) == (Settlement.RETURNED, False, None)
    consumer.tenants.resume(Tenant("acme"))
    consumer.tenants.quarantine(Tenant("acme"), reason="under investigation")
    assert of(consumer).reason == "under investigation"


def test_manual_mode_leaves_what_is_not_acknowledged() -> None:
    """As it does in production."""
    assert of(consumer_of(ack=AckMode.MANUAL)).settlement is Settlement.LEFT


@in_virtual_time
async def test_pydantic_models_and_ready_messages_are_sent() -> None:
    """A model under its aliases; a message as it is."""

    class Model(BaseModel):
        model_config = ConfigDict(alias_generator=to_camel)
        order_id: str

    consumer: Consumer[Any, Any] = Consumer("orders")
    seen: list[str] = []

    @consumer.handler
    async def handle(model: Model, ctx: Ctx) -> None:
        seen.append(model.order_id)

    assert (await deliver(consumer, Model.model_validate({"orderId": "1"}))).error is None
    assert (await deliver(consumer, OutgoingMessage(body='{"orderId": "2"}'))).error is None
    assert seen == ["1", "2"]


def test_fifo_queues_and_arns_are_understood() -> None:
    """The queue is made as its name says."""
    consumer: Consumer[Any, Any] = Consumer("arn:aws:sqs:eu-west-1:123456789012:orders.fifo")

    @consumer.handler
    async def handle(body: str, ctx: Ctx) -> None:
        assert ctx.message.group_id == "g"

    found = run_virtual(deliver(consumer, "x", group="g"))
    assert (found.settlement, found.message.queue) == (Settlement.ACKED, "orders.fifo")


def test_a_plain_handler_is_delivered_to_in_real_time_within_a_moment() -> None:
    """In its thread; and nothing of the run is left. An idle stop waits for no long poll, which may last 20 s here."""
    consumer: Consumer[Any, Any] = Consumer("orders", context=Tenant, shutdown=Shutdown(poll=60))

    @consumer.handler
    def handle(order: Order, ctx: Ctx) -> None:
        ctx.ack()

    async def main() -> Delivered:
        async with assert_no_leaks(consumer):
            return await deliver(consumer, Order("1"), context=Tenant("acme"))

    began = time.monotonic()
    assert asyncio.run(main()).settlement is Settlement.ACKED
    assert time.monotonic() - began < 10


@in_virtual_time
async def test_an_idle_consumer_of_the_memory_transport_stops_at_once() -> None:
    """Its long poll is not waited for: cancelled, it takes nothing."""
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        consumer = consumer_of(client=MemoryClient(broker))
        async with consumer:
            while not broker.polls:
                await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
        assert (asyncio.get_running_loop().time() - began) < 0.5


@in_virtual_time
async def test_a_handler_that_hangs_is_a_timeout() -> None:
    """It says what the message waits for."""
    consumer: Consumer[Any, Any] = Consumer("orders")

    @consumer.handler
    async def handle(body: str, ctx: Ctx) -> None:
        await asyncio.sleep(1000)

    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError, match=r"deliver\(timeout=5\).*its handler still runs"):
        await deliver(consumer, "x", timeout=5)
    assert (asyncio.get_running_loop().time() - began) < 6  # the stop does not wait for the handler


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"context": "acme"}, "a context of type Tenant is to be sent; got str"),
        ({"context": Tenant("no/slash")}, "no message can carry this Tenant as its context"),
        ({"receives": 0}, r"deliver\(receives=...\) takes a whole number from 1 up"),
        ({"max_receives": 0}, r"deliver\(max_receives=...\) takes a whole number from 1 to 1000"),
        ({"max_receives": 1001}, r"deliver\(max_receives=...\) takes a whole number from 1 to 1000"),
        ({"receives": 3, "max_receives": 2}, "it is a dead letter then"),
        ({"payload": object()}, "a payload of type object cannot be sent as JSON"),
        ({"payload": ""}, "SQS would not take this message"),
        ({"payload": "x" * 2_000_000}, "SQS would not take this message"),
        ({"payload": b"\xff"}, "sent as UTF-8 text, and these bytes are none"),
        ({"attributes": None}, r"deliver\(attributes=...\) takes texts by name"),
        ({"attributes": {"a": 5}}, r"deliver\(attributes=...\) takes texts by name"),
        ({"group": 5}, r"deliver\(group=...\) takes a text"),
        ({"timeout": None}, r"deliver\(timeout=...\) takes seconds"),
        ({"timeout": math.nan}, r"deliver\(timeout=...\) takes seconds"),
        ({"queue": "two words"}, "no queue can be called 'two words'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=text):
        of(consumer_of(), **options)


def test_what_is_no_consumer_or_has_no_context_is_refused() -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match="first argument is a Consumer; got str"):
        run_virtual(deliver("orders", "x"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="this consumer has no context="):
        of(consumer_of(context=None))
    with pytest.raises(ConfigurationError, match="this consumer has no resources="):
        of(consumer_of(), resources={})
    assert of(consumer_of(), resources=None).error is None


@in_virtual_time
async def test_a_running_consumer_is_refused() -> None:
    """Its queue is where messages for it go."""
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        consumer = consumer_of(client=MemoryClient(broker))
        async with consumer:
            with pytest.raises(ConfigurationError, match="takes a consumer that is not running"):
                await deliver(consumer, Order("1"))


def test_the_consumer_is_as_it_was_afterwards() -> None:
    """It can be started, and has no statistics of the delivery."""
    consumer = consumer_of()
    assert of(consumer).settlement is Settlement.ACKED
    assert not consumer.running
    assert consumer.settings.client is None
    with pytest.raises(Exception, match="not running"):
        consumer.statistics()
