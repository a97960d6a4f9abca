"""``Consumer(unwrap=...)``: messages come out of what they travel in, once, before context and payload are read."""

import asyncio
import base64
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, cast

import msgspec
import pytest

from postroom import (
    ConfigurationError,
    Consumer,
    ContextError,
    DecodeError,
    Drop,
    Message,
    MessageContext,
    PayloadError,
    Retry,
    Router,
    Settlement,
    attribute,
    by_attribute,
)
from postroom.message import MessageAttribute, OutgoingMessage
from postroom.payloads import (
    Contents,
    GzipBody,
    KeyRing,
    S3Event,
    SnsEnvelope,
    context_from_attributes,
    cross_check_group,
    decoder_for,
    sign,
    signed,
    unwrap_cloudevents,
    unwrap_eventbridge,
    unwrap_s3,
    unwrap_ses,
    unwrap_sns,
)
from postroom.testing import Delivered, deliver, run_virtual
from support.envelopes import CLOUD_EVENT, S3_TEST, S3_THROUGH_EVENTBRIDGE, TOPIC, s3, sns
from support.shop import Order, Tenant
from support.world import World, with_world

Ctx = MessageContext[Any, Any]


class Seen:
    """A consumer, and what its handler was given."""

    def __init__(self, unwrap: Any, payload: Any = Order, **options: Any) -> None:
        self.payloads: list[Any] = []
        self.contexts: list[Ctx] = []
        self.consumer: Consumer[Any, Any] = Consumer(
            "orders", **{"context": Tenant, "payload": payload, "unwrap": unwrap, **options}
        )

        @self.consumer.handler
        async def handle(payload: Any, ctx: Ctx) -> None:
            self.payloads.append(payload)
            self.contexts.append(ctx)

    def of(self, body: Any, **attributes: str) -> Delivered:
        """Deliver a message."""
        return run_virtual(deliver(self.consumer, body, attributes=attributes))


def test_context_and_payload_are_read_from_inside() -> None:
    """The handler still sees the message as it was received."""
    seen = Seen(unwrap_sns)
    found = seen.of(sns({"order_id": "1"}, tenantId="acme"), tenantId="outer")
    assert (found.settlement, seen.payloads) == (Settlement.ACKED, [Order("1")])
    assert seen.contexts[0].context == Tenant("acme")
    assert seen.contexts[0].message.attributes["tenantId"] == "outer"
    assert json.loads(seen.contexts[0].message.body)["TopicArn"] == TOPIC


def test_raw_and_wrapped_messages_share_a_queue() -> None:
    """And a context may ask for the topic."""
    seen = Seen([SnsEnvelope(raw=True)])
    assert seen.of(sns({"order_id": "1"}, tenantId="acme")).error is None
    assert seen.of({"order_id": "2"}, tenantId="acme").error is None
    assert seen.payloads == [Order("1"), Order("2")]

    @dataclass(frozen=True)
    class ByTopic:
        topic: Annotated[str, attribute("sns.TopicArn", choices=[TOPIC])]

    by_topic = Seen([SnsEnvelope(raw=True)], context=ByTopic)
    assert by_topic.of(sns({"order_id": "1"})).context == ByTopic(TOPIC)
    assert isinstance(by_topic.of({"order_id": "1"}, **{"sns.TopicArn": TOPIC}).error, ContextError)


def test_envelopes_nest_and_contents_stand_behind_them() -> None:
    """A packed event that came through a topic."""
    packed = base64.b64encode(gzip.compress(b'{"order_id": "1"}')).decode()
    event = {**CLOUD_EVENT, "datacontenttype": "text/plain", "data": packed, "tenantId": "acme"}
    seen = Seen([unwrap_sns, unwrap_cloudevents, GzipBody()])
    assert seen.of(sns(event)).error is None
    assert seen.payloads == [Order("1")]


def test_contents_before_an_envelope_are_unpacked_with_it() -> None:
    """The context stands inside."""
    packed = base64.b64encode(gzip.compress(json.dumps(sns({"order_id": "1"}, tenantId="acme")).encode())).decode()
    seen = Seen([GzipBody(), unwrap_sns])
    assert seen.of(packed).context == Tenant("acme")


class Counting:
    """A step that counts its calls, and may return something large."""

    def __init__(self, change: Callable[[Message], Any]) -> None:
        self.calls = 0
        self.change = change

    def __call__(self, message: Message, /) -> Any:
        """Count, and change the message."""
        self.calls += 1
        return self.change(message)


def test_each_step_is_run_once() -> None:
    """Unless what it returns is so large that it is not kept while the message waits."""
    once = Counting(unwrap_sns)
    assert Seen(once).of(sns({"order_id": "1"}, tenantId="acme")).error is None
    assert once.calls == 1
    large = Counting(lambda message: msgspec.structs.replace(message, body='"' + "x" * 1000 + '"'))
    assert Seen(large, object).of("x", tenantId="acme").error is None
    assert large.calls == 2


def test_the_context_does_not_wait_for_contents() -> None:
    """A message of an unknown tenant is never unpacked."""

    class Never(Contents):
        def __call__(self, message: Message, /) -> Message:
            raise AssertionError("unpacked")

    found = Seen([Never()]).of("x")
    assert isinstance(found.error, ContextError)


def test_async_contents_are_awaited() -> None:
    """An ``async def`` function is one, too; neither runs before the slot is granted."""

    async def fetch(message: Message) -> Message:
        return msgspec.structs.replace(message, body='{"order_id": "fetched"}')

    seen = Seen([unwrap_sns, fetch])
    assert seen.of(sns("pointer", tenantId="acme")).error is None
    assert seen.payloads == [Order("fetched")]


def test_without_a_context_envelopes_are_unwrapped_for_the_payload() -> None:
    """Nothing else asks for them."""
    seen = Seen([unwrap_sns], context=None)
    assert run_virtual(deliver(seen.consumer, sns({"order_id": "1"}))).error is None
    assert seen.payloads == [Order("1")]


def test_a_deliverys_context_replaces_the_one_inside() -> None:
    """``deliver(context=...)`` cannot write into an envelope."""
    seen = Seen([SnsEnvelope(raw=True)])
    found = run_virtual(deliver(seen.consumer, Order("1"), context=Tenant("acme")))
    assert (found.context, seen.payloads) == (Tenant("acme"), [Order("1")])


def test_the_test_event_of_s3_is_dropped() -> None:
    """With and without a context; a real event is handled by the tenant that its bucket says."""
    of_bucket = lambda message: message.attributes["bucket"]  # noqa: E731
    for context in (of_bucket, None):
        seen = Seen(unwrap_s3, S3Event, context=context)
        dropped = seen.of(S3_TEST)
        assert (dropped.settlement, dropped.handled) == (Settlement.ACKED, False)
        assert seen.of(s3("a+b")).error is None
        assert seen.payloads[0].records[0].key == "a b"


def test_a_resolver_may_drop_a_message() -> None:
    """What it raises is obeyed as in a handler."""

    def resolve(message: Message) -> str:
        raise Drop("nothing for us")

    assert Seen(None, object, context=resolve).of("x").settlement is Settlement.ACKED


def test_a_message_that_is_not_in_its_envelope_fails_with_the_step() -> None:
    """As a failed context where there is one, else as a payload that cannot be decoded."""
    found = Seen(unwrap_sns).of({"order_id": "1"}, tenantId="acme")
    assert isinstance(found.error, ContextError)
    assert "not an SNS notification" in str(found.error)
    assert found.settlement is Settlement.RETRIED
    without = Seen(unwrap_sns, context=None)
    assert isinstance(run_virtual(deliver(without.consumer, "{}")).error, PayloadError)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (lambda message: None, "returned NoneType instead of a Message"),
        (
            lambda message: message.no_such,
            r"could not be unwrapped \(AttributeError in .*, test_unwrapping.py line",
        ),
    ],
)
def test_a_step_that_is_wrong_fails_its_message(step: Any, text: str) -> None:
    """Nothing else."""
    found = Seen(step, context=None)
    result = run_virtual(deliver(found.consumer, "x"))
    assert isinstance(result.error, DecodeError)
    with pytest.raises(DecodeError, match=text):
        raise result.error


_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"message_attributes": [("tenantId", "acme")]}, "of list; expected is a mapping"),
    ({"message_attributes": None}, "of NoneType; expected is a mapping"),
    (
        {"message_attributes": {"tenantId": "acme"}},
        r"of str to str; expected is .*MessageAttribute\(string_value=",
    ),
    (
        {"message_attributes": {5: MessageAttribute(string_value="acme")}},
        "of int to MessageAttribute; expected",
    ),
    (
        {"message_attributes": {"tenantId": MessageAttribute(string_value=cast("Any", 5))}},
        "a MessageAttribute with a string_value of int; expected",
    ),
    ({"body": b"{}"}, "a body of bytes; expected is a text"),
]


@pytest.mark.parametrize(("wrong", "text"), _WRONG)
def test_what_a_step_made_wrong_is_told_with_its_name(wrong: dict[str, Any], text: str) -> None:
    """With and without a context, and where the resolver or the decoder unwraps by itself."""

    def relabel(message: Message) -> Message:
        return msgspec.structs.replace(message, **wrong)

    for seen in (
        Seen(relabel),
        Seen(relabel, context=None),
        Seen(None, context=context_from_attributes(Tenant, unwrap=relabel)),
        Seen(None, decoder_for(Order, unwrap=relabel), context=None),
    ):
        error = run_virtual(deliver(seen.consumer, Order("1"))).error
        assert error is not None
        assert re.search(rf"relabel, a step of unwrap=, returned a Message with .*{text}", str(error)), str(error)


@with_world
async def test_contents_that_are_not_there_yet_are_asked_for_again(world: World) -> None:
    """``Retry`` of a step gives the message back: it is no attempt, and the handler is called with the next receive."""

    class Later(Contents):
        def __init__(self) -> None:
            self.asked = 0

        def __call__(self, message: Message, /) -> Message:
            self.asked += 1
            if self.asked == 1:
                raise Retry("not there yet", delay=2)
            return message

    world.create(dead_letters="dead", receives=5)
    attempts: list[int] = []
    orders: Consumer[Any, Any] = Consumer("orders", context=Tenant, unwrap=Later(), client=world.client)

    @orders.handler
    async def handle(body: str, ctx: Ctx) -> None:
        attempts.append(ctx.attempt)
        assert ctx.message.receive_count == 2

    world.send("x", tenant="acme")
    async with orders:
        await asyncio.sleep(10)
    assert attempts == [1]


@pytest.mark.parametrize("receives", [1, 5])
@with_world
async def test_a_dead_letter_tells_for_what_a_step_asked_for_time(world: World, receives: int) -> None:
    """Its tenant could run, and its handler was never called."""

    async def sealed(_message: Message) -> Message:
        raise Retry("the vault is away", delay=1)

    world.create(dead_letters="dead", receives=receives)
    orders: Consumer[Any, Any] = Consumer("orders", context=Tenant, client=world.client, unwrap=sealed)

    @orders.handler
    async def handle(_order: Any, _ctx: MessageContext[Tenant]) -> None: ...

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(60)
    [letter] = await world.broker.receive("dead")
    reason = letter.message_attributes["postroom.reason"].string_value
    assert reason == "not tried: Retry: the vault is away"


def test_steps_are_opened_and_told_what_became_of_messages() -> None:
    """A step that is a context manager lives as long as the consumer runs."""
    diary: list[str] = []

    class Store(Contents):
        async def __aenter__(self) -> None:
            diary.append("open")

        async def __aexit__(self, *error: object) -> None:
            diary.append("close")

        def __call__(self, message: Message, /) -> Message:
            diary.append("unpack")
            return message

        def settled(self, message: Message, settlement: Settlement, /) -> None:
            diary.append(f"{settlement} {message.body}")

    assert Seen(Store(), str).of("x", tenantId="acme").error is None
    assert diary == ["open", "unpack", "acked x", "close"]


def test_a_signature_covers_the_packed_body() -> None:
    """What is signed is what lies in the queue: it is checked before anything is unpacked."""
    keys = KeyRing({"k": b"2" * 32})
    body = base64.b64encode(gzip.compress(b'{"order_id": "1"}')).decode()
    plain = OutgoingMessage(body=body, message_attributes={"tenant_id": MessageAttribute(string_value="acme")})
    resolver = signed(
        lambda message: message.attributes["tenant_id"], keys=keys, queue="orders", attributes=["tenant_id"]
    )
    seen = Seen(GzipBody(), context=resolver)
    message = sign(plain, keys=keys, queue="orders", attributes=["tenant_id"])
    assert run_virtual(deliver(seen.consumer, message)).context == "acme"
    forged = msgspec.structs.replace(message, body=base64.b64encode(gzip.compress(b'{"order_id": "2"}')).decode())
    assert isinstance(run_virtual(deliver(seen.consumer, forged)).error, ContextError)


def test_an_event_of_s3_through_eventbridge_has_a_tenant_by_its_key() -> None:
    """A resolver function reads what the envelope left."""
    seen = Seen(unwrap_eventbridge, dict, context=lambda message: message.attributes["account"])
    assert seen.of(S3_THROUGH_EVENTBRIDGE).context == "111122223333"
    assert seen.payloads[0]["object"]["key"] == "acme/a b+c.txt"


@pytest.mark.parametrize(
    ("unwrap", "text"),
    [
        ("sns", r"takes a function \(Message\) -> Message, such as unwrap_sns, or a list of them; got 'sns'"),
        (5, "or a list of them; got 5"),
        ({unwrap_sns}, "or a list of them; got {<function unwrap_sns"),
        ([5], r"takes a function \(Message\) -> Message; got int"),
        (GzipBody, r"GzipBody is a class: pass an instance, GzipBody\(\)"),
        (lambda: None, r"cannot be called as \(Message\) -> Message"),
    ],
)
def test_what_cannot_unwrap_is_refused(unwrap: Any, text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=text):
        Consumer("orders", unwrap=unwrap)


def test_async_steps_in_front_of_an_envelope_are_refused() -> None:
    """The context is read when the message comes."""

    async def fetch(message: Message) -> Message:
        return message

    with pytest.raises(ConfigurationError, match="is async, so it must stand behind the envelopes"):
        Consumer("orders", unwrap=[fetch, unwrap_sns])


_FROM_SNS = context_from_attributes(Tenant, unwrap=unwrap_sns)
_SIGNED = signed(_FROM_SNS, keys=KeyRing({"k": b"2" * 32}), queue="orders")


@pytest.mark.parametrize("unwrap", [unwrap_sns, [unwrap_sns, unwrap_ses], SnsEnvelope(raw=True)])
@pytest.mark.parametrize(
    "context", [_FROM_SNS, _SIGNED, cross_check_group(_FROM_SNS, tenant=lambda tenant: tenant.tenant_id)]
)
def test_a_resolver_does_not_unwrap_the_same_envelope_again(unwrap: Any, context: Any) -> None:
    """It would find none in what is inside, and every message would fail."""
    with pytest.raises(ConfigurationError, match=r"remove the one in context_from_attributes\(unwrap=...\)"):
        Consumer("orders", context=context, unwrap=unwrap)


def test_a_function_that_lets_others_pass_is_needed_once_too() -> None:
    """Its second run could take what is inside for an envelope: the error says that one place is enough."""

    def own(message: Message) -> Message:
        return unwrap_sns(message) if "TopicArn" in message.body else message

    context = context_from_attributes(Tenant, unwrap=own)
    with pytest.raises(
        ConfigurationError, match=r"\(.*own\): remove .* lets pass what is in no envelope: once is enough"
    ):
        Consumer("orders", context=context, unwrap=own)


def test_a_decoder_does_not_unwrap_the_same_envelope_again() -> None:
    """Neither that of a handler, nor of a batch, nor of a router."""
    again = decoder_for(Order, unwrap=unwrap_sns)

    def orders(**options: Any) -> Consumer[Any, Any]:
        return Consumer("orders", unwrap=unwrap_sns, **options)

    async def handle(_order: Any, _ctx: Any) -> None: ...

    async def handle_all(_orders: list[Any], _batch: Any) -> None: ...

    router: Router[Any, Any] = Router(by_attribute("kind"))
    router.handler("created", payload=again)(handle)
    for register in (
        lambda: orders(payload=again).handler(handle),
        lambda: orders(payload=again).batch_handler()(handle_all),
        lambda: run_virtual(deliver(_with(orders(), router), {})),
    ):
        with pytest.raises(ConfigurationError, match=r"remove the one in decoder_for\(unwrap=...\)"):
            register()


def _with(consumer: Consumer[Any, Any], handler: Any) -> Consumer[Any, Any]:
    consumer.handler(handler)
    return consumer


@pytest.mark.parametrize("unwrap", [unwrap_sns, SnsEnvelope(raw=True)])
def test_a_resolver_that_lets_raw_messages_pass_is_taken(unwrap: Any) -> None:
    """It takes what is inside for one that came without an envelope, as long as it is none."""
    seen = Seen(unwrap, dict, context=context_from_attributes(Tenant, unwrap=SnsEnvelope(raw=True)))
    assert seen.of(sns({"id": "1"}, tenantId="acme")).context == Tenant("acme")


def test_a_resolver_may_unwrap_what_is_inside() -> None:
    """Then the payload is the envelope that the consumer left."""
    seen = Seen(unwrap_sns, dict, context=context_from_attributes(Tenant, unwrap=unwrap_cloudevents))
    assert seen.of(sns({**CLOUD_EVENT, "tenantId": "acme"})).context == Tenant("acme")
    assert seen.payloads[0]["specversion"] == "1.0"


def test_a_step_that_does_not_open_is_a_failed_start() -> None:
    """What was opened before is closed again."""

    class Broken(Contents):
        async def __aenter__(self) -> None:
            raise OSError("no store")

        async def __aexit__(self, *error: object) -> None: ...

        def __call__(self, message: Message, /) -> Message:
            return message

    with pytest.raises(OSError, match="no store"):
        Seen(Broken()).of("x", tenantId="acme")


def test_a_provider_is_asked_after_the_contents_are_there() -> None:
    """A body that cannot be unpacked opens no database."""
    opened: list[str] = []

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncIterator[str]:
        opened.append(tenant.tenant_id)
        yield "db"

    seen = Seen(GzipBody(), resources=database)
    assert isinstance(seen.of("not packed", tenantId="acme").error, DecodeError)
    assert opened == []
