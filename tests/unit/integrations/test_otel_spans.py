"""Spans: what a handler's span tells, what it refers to, and that it never disturbs the work."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from postroom import (
    AlreadyHandled,
    Concurrency,
    ConfigurationError,
    Consumer,
    Drop,
    Message,
    MessageAttribute,
    MessageContext,
    ResourcePool,
    Retry,
    Shutdown,
)
from postroom.integrations.otel import Telemetry, TopTenants, inject
from postroom.integrations.otel.propagation import extract, xray_context
from postroom.payloads import SnsEnvelope, unwrap_cloudevents, unwrap_sns
from support.envelopes import CLOUD_EVENT, sns
from support.telemetry import Recorded
from support.world import Databases, Order, Tenant, World, in_world, with_world

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
XRAY = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"


@pytest.fixture
def recorded() -> Recorded:
    """Spans and metrics in memory."""
    return Recorded()


def handled(
    recorded: Recorded, handler: Any, *messages: dict[str, Any], telemetry: dict[str, Any] | None = None, **options: Any
) -> None:
    """Consume messages by a handler, until as many runs of it have ended."""

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead")
        observers = [recorded.telemetry(**(telemetry or {}))]
        orders: Consumer[Any, Any] = Consumer("orders", client=world.client, observers=observers, **options)
        orders.handler(handler)
        for message in messages:
            world.send(message.pop("body", {"order_id": "1"}), **message)
        async with orders:
            await asyncio.sleep(1)

    in_world(scenario)


async def fine(order: Order, ctx: MessageContext[Any, Any]) -> None:
    """Succeed."""


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return a span's attributes."""
    return dict(span.attributes or {})


def test_a_handler_is_a_span_with_what_the_conventions_ask_for(recorded: Recorded) -> None:
    """Its name, its kind, and the attributes that samplers decide by."""
    handled(recorded, fine, {"tenant": "acme"}, context=Tenant)
    [span] = recorded.spans()
    assert (span.name, span.kind, span.status.status_code) == ("process orders", SpanKind.CONSUMER, StatusCode.UNSET)
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    said = attributes(span)
    assert len(said.pop("messaging.message.id")) == 36
    assert said.pop("postroom.waited") >= 0
    assert said == {
        "messaging.system": "aws_sqs",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders",
        "postroom.tenant": "acme:eu-west-1",
        "postroom.attempt": 1,
        "postroom.receives": 1,
    }


def test_spans_and_threads_of_the_handler_are_its_children(recorded: Recorded) -> None:
    """The span is the current one in the handler, in threads and in tasks that it starts."""
    tracer = recorded.tracer_provider.get_tracer("shop")

    def query(name: str) -> None:
        tracer.start_span(name).end()

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        query("in the handler")
        await asyncio.gather(asyncio.to_thread(query, "in a thread"), asyncio.create_task(in_a_task()))

    async def in_a_task() -> None:
        query("in a task")

    handled(recorded, handler, {})
    [process] = recorded.spans("process")
    assert process.context is not None
    children = recorded.spans("in a") + recorded.spans("in the")
    assert {span.name for span in children} == {"in the handler", "in a thread", "in a task"}
    assert all(span.parent is not None and span.parent.span_id == process.context.span_id for span in children)


def test_a_plain_function_in_a_thread_has_the_span_too(recorded: Recorded) -> None:
    """It is the same handler in another place."""
    seen: list[int] = []

    def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)

    handled(recorded, handler, {})
    [process] = recorded.spans()
    assert process.context is not None
    assert seen == [process.context.span_id]


def test_no_span_outlives_its_handler_in_the_tasks_of_the_consumer(recorded: Recorded) -> None:
    """The next message's span, or a resource's, is no child of the one before."""
    seen: list[bool] = []
    databases = Databases()

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        seen.append(trace.get_current_span().get_span_context().is_valid)

    async def on_error(_failure: object) -> None:
        raise AssertionError

    handled(
        recorded, handler, {"tenant": "a"}, {"tenant": "b"}, {"tenant": "a"}, context=Tenant, resources=databases,
        on_error=on_error,
    )  # fmt: skip
    assert seen == [True, True, True]
    assert all(span.parent is None for span in recorded.spans("process"))
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("where", ["traceparent", "AWSTraceHeader"])
def test_it_is_linked_to_the_span_in_which_the_message_was_sent(
    recorded: Recorded, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the message's own attributes, else by what AWS itself wrote; in a trace of its own."""
    if where == "AWSTraceHeader":
        monkeypatch.setattr("postroom.integrations.otel.spans.extract", _extract_from_aws)
        handled(recorded, fine, {})
    else:
        handled(recorded, fine, {"traceparent": PARENT, "tracestate": "vendor=1"})
    [span] = recorded.spans()
    [link] = span.links
    assert span.context is not None
    assert span.parent is None
    assert link.context.trace_id != span.context.trace_id
    expected = 0xB7AD6B7169203331 if where == "traceparent" else 0x53995C3F42CD8AD8
    assert link.context.span_id == expected


def _extract_from_aws(message: Message, inside: Any) -> Context:
    return extract(Message(id=message.id, body=message.body, system_attributes={"AWSTraceHeader": XRAY}), inside)


@pytest.mark.parametrize(
    ("unwrap", "body"),
    [
        (SnsEnvelope(), sns({"order_id": "1"}, traceparent=PARENT)),
        (unwrap_cloudevents, {**CLOUD_EVENT, "data": {"order_id": "1"}, "traceparent": PARENT}),
    ],
)
@pytest.mark.parametrize("outer", [None, "00-0af7651916cd43dd8448eb211c80319c-00000000000000aa-01"])
@pytest.mark.parametrize("fails", [False, True])
def test_it_is_linked_to_the_span_that_its_envelope_names(
    recorded: Recorded, unwrap: Any, body: dict[str, Any], outer: str | None, *, fails: bool
) -> None:
    """Where the message itself names none."""
    message = {"body": body, **({"traceparent": outer} if outer else {})}
    if fails:  # as a payload
        handled(recorded, fine, message, unwrap=unwrap, payload=int)
    else:
        handled(recorded, fine, message, unwrap=unwrap)
    [link] = recorded.spans()[0].links
    assert link.context.span_id == (0xAA if outer else 0xB7AD6B7169203331)


def test_a_context_that_fails_is_linked_to_the_span_that_its_envelope_names(recorded: Recorded) -> None:
    """The envelope was opened for it."""
    handled(recorded, fine, {"body": sns("{}", traceparent=PARENT)}, unwrap=unwrap_sns, context=Tenant)
    [link] = recorded.spans()[0].links
    assert link.context.span_id == 0xB7AD6B7169203331


def test_the_attributes_go_before_the_header_of_aws() -> None:
    """They say which span sent the message; the header says which one of AWS carried it."""
    named = {"traceparent": MessageAttribute(string_value=PARENT)}
    message = Message(id="1", body="", message_attributes=named, system_attributes={"AWSTraceHeader": XRAY})
    assert trace.get_current_span(extract(message)).get_span_context().span_id == 0xB7AD6B7169203331


def test_a_producer_may_be_the_parent_on_request(recorded: Recorded) -> None:
    """Then the handler continues its trace, and has its baggage."""
    seen: list[object] = []

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        seen.append(baggage.get_baggage("customer"))

    sent = {"traceparent": PARENT, "baggage": "customer=7"}
    handled(recorded, handler, dict(sent), telemetry={"producer": "parent"})
    handled(recorded, handler, dict(sent))
    child, linked = recorded.spans()
    assert child.context is not None
    assert child.parent is not None
    assert (child.context.trace_id, child.parent.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    assert (child.links, linked.parent) == ((), None)
    assert seen == ["7", None]


@pytest.mark.parametrize(
    ("error", "failed"),
    [(ValueError("no"), True), (Retry("later"), True), (Drop("not ours"), False), (AlreadyHandled(), False)],
)
def test_how_a_handler_ended(recorded: Recorded, error: BaseException, *, failed: bool) -> None:
    """A failure has its type; a message that was dropped, or handled before, is none."""

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        raise error

    handled(recorded, handler, {})
    span = recorded.spans()[0]
    assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert attributes(span).get("error.type") == (type(error).__name__ if failed else None)
    assert [event.name for event in span.events] == (["exception"] if failed else [])


def test_a_span_shows_no_secret_of_an_error(recorded: Recorded) -> None:
    """Spans leave the process: what a log line may not have, they may not have either."""

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        raise OSError("postgresql://app:hunter2secret@db/acme refused")

    handled(recorded, handler, {})
    span = recorded.spans()[0]
    [event] = span.events
    assert "hunter2secret" not in f"{span.status.description} {dict(event.attributes or {})}"
    assert "OSError" in str(dict(event.attributes or {})["exception.stacktrace"])


def test_the_end_of_a_handler_that_ran_too_long_is_a_timeout(recorded: Recorded) -> None:
    """Not the cancellation that ended it, which is what middleware would see."""

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        await asyncio.sleep(3_600)

    handled(recorded, handler, {}, concurrency=Concurrency(handler_timeout=0.2), shutdown=Shutdown(drain=0))
    assert attributes(recorded.spans()[0])["error.type"] == "HandlerTimeout"


def test_a_message_that_never_reached_its_handler_has_a_span_if_it_is_its_own_fault(recorded: Recorded) -> None:
    """So its producer's trace shows that it was not understood. Outages, which may hit thousands, have none."""
    databases = Databases()
    databases.failures["down"] = lambda: ConnectionRefusedError("no database")
    messages = ({"body": "no JSON", "tenant": "a"}, {"tenant": None}, {"tenant": "down"})
    handled(recorded, fine, *messages, context=Tenant, resources=databases, shutdown=Shutdown(drain=0))
    kinds = {attributes(span)["error.type"] for span in recorded.spans("process")}
    assert kinds <= {"DecodeError", "ContextError", "MissingAttribute", "PayloadError"}
    assert len(kinds) == 2


def test_the_wait_for_resources_is_a_span_that_came_before(recorded: Recorded) -> None:
    """Only where there was a wait: a lease that is there costs nothing, in the trace neither."""
    databases = Databases()
    databases.seconds = 0.25
    handled(recorded, fine, {"tenant": "a"}, {"tenant": "a"}, context=Tenant, resources=databases)
    processes = recorded.spans("process")
    leases = recorded.spans("lease")
    assert len(processes) == 2
    assert 1 <= len(leases) <= 2
    for lease in leases:
        assert lease.parent is not None
        assert lease.start_time is not None
        assert lease.end_time is not None
        assert (lease.end_time - lease.start_time) / 1e9 == pytest.approx(0.25, abs=0.05)
        assert attributes(lease)["postroom.tenant"] == "a:eu-west-1"


def test_a_settlement_is_a_span_on_request(recorded: Recorded) -> None:
    """By the consumer after the handler, or by the handler itself: a child of its span in any case."""

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        if order.order_id == "itself":
            await ctx.ack()

    telemetries: list[Telemetry] = []
    made = recorded.telemetry

    def kept(**options: Any) -> Telemetry:
        telemetries.append(made(**options))
        return telemetries[0]

    recorded.telemetry = kept  # type: ignore[method-assign]
    messages = ({"body": {"order_id": "1"}}, {"body": {"order_id": "itself"}})
    handled(recorded, handler, *messages, telemetry={"settle_spans": True})
    assert not telemetries[0]._spans._open
    assert not telemetries[0]._spans._done
    processes, settles = recorded.spans("process"), recorded.spans("settle")
    assert {span.context.span_id for span in processes if span.context} == {
        span.parent.span_id for span in settles if span.parent
    }
    assert [span.kind for span in settles] == [SpanKind.CLIENT] * 2
    assert {attributes(span)["postroom.settlement"] for span in settles} == {"acked"}


# -- propagation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sending() -> Iterator[None]:
    """A span that is the current one, with state and baggage."""
    carrier = {"traceparent": PARENT, "tracestate": "vendor=1", "baggage": "customer=7"}
    token = context.attach(propagate.extract(carrier))
    yield
    context.detach(token)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (0, {"traceparent", "baggage", "tracestate"}),
        (7, {"traceparent", "baggage", "tracestate"}),
        (8, {"traceparent", "baggage"}),
        (9, {"traceparent"}),
        (10, set()),
    ],
)
@pytest.mark.usefixtures("sending")
def test_what_does_not_fit_into_ten_attributes_is_left_out(taken: int, expected: set[str]) -> None:
    """The trace itself goes last. What the message has is never left out for it."""
    own = {f"own-{number}": "x" for number in range(taken)}
    carrier = dict(own)
    inject(carrier)
    assert carrier.keys() - own.keys() == expected
    assert own.items() <= carrier.items()


@pytest.mark.usefixtures("sending")
def test_a_field_that_is_there_stays() -> None:
    """A message that is relayed keeps the trace in which it was sent."""
    carrier = {"traceparent": "its own"}
    inject(carrier)
    assert carrier["traceparent"] == "its own"


def test_nothing_is_written_without_a_span() -> None:
    """No empty attribute, which SQS would refuse."""
    carrier: dict[str, str] = {}
    inject(carrier)
    assert carrier == {}


def test_a_propagator_that_fails_stops_neither_send_nor_handler(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace is no reason not to do the work."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(propagate, "inject", fail)
    monkeypatch.setattr(propagate, "extract", fail)
    carrier: dict[str, str] = {}
    inject(carrier)
    assert carrier == {}
    handled(recorded, fine, {"traceparent": PARENT})
    assert len(recorded.spans("process")) == 1


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (XRAY, True),
        ("Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0", True),
        ("Root=1-5759e988-bd862e3fe1be46a994272793", False),
        ("Root=2-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8", False),
        ("Root=1-5759e988-zz862e3fe1be46a994272793;Parent=53995c3f42cd8ad8", False),
        ("Root=1-00000000-000000000000000000000000;Parent=0000000000000000", False),
        ("Self=1;;=;nonsense", False),
        ("", False),
    ],
)
def test_a_trace_header_of_aws_is_read_or_is_none(header: str, *, valid: bool) -> None:
    """It comes from outside, and may be anything."""
    found = xray_context(header)
    assert (found is not None) is valid
    if found is not None:
        assert found.trace_id == 0x5759E988BD862E3FE1BE46A994272793
        assert found.trace_flags.sampled is header.endswith("1")


# -- the object -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"producer": "child"}, r'takes "link" or "parent"'),
        ({"tenants": 20}, r"takes TopTenants\(20\)"),
        ({"tenants": True}, r"takes TopTenants\(20\)"),
    ],
)
def test_a_wrong_argument_says_what_to_write(options: dict[str, Any], text: str) -> None:
    """When it is made."""
    with pytest.raises(ConfigurationError, match=text):
        Telemetry(**options)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 501}, {"count": True}, {"count": "20"}, {"every": 0}, {"every": "1 min"}]
)
def test_a_wrong_number_of_tenants_says_what_to_write(wrong: dict[str, Any]) -> None:
    """When it is made."""
    with pytest.raises(ConfigurationError, match="TopTenants"):
        TopTenants(**wrong)


@with_world
async def test_without_an_sdk_it_does_nothing_and_costs_little(world: World) -> None:
    """The API alone is installed with the extra: no SDK, no exporter, no error."""
    world.create()
    pool = ResourcePool(Databases())
    orders: Consumer[Any, Any] = Consumer(
        "orders", context=Tenant, resources=pool, client=world.client, observers=[Telemetry()]
    )
    orders.handler(fine)
    async with orders:
        world.send_orders("1", "2")
        await asyncio.sleep(1)
        assert orders.statistics().succeeded == 2


def test_nothing_is_logged_by_a_day_of_work(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    """An observer that fails is logged, and OpenTelemetry logs what it is given wrongly: there is neither."""
    caplog.set_level(logging.WARNING)

    async def handler(order: Order, ctx: MessageContext[Any, Any]) -> None:
        await asyncio.sleep(order.seconds)

    slow = {"body": {"order_id": "slow", "seconds": 60}}
    handled(recorded, handler, {}, {}, slow, shutdown=Shutdown(drain=0), telemetry={"settle_spans": True})
    said = [record.getMessage() for record in caplog.records if not record.name.startswith("postroom.consumer")]
    assert said == []
    assert attributes(recorded.spans("process")[-1])["error.type"] == "CancelledError"
