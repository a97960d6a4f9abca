"""A sender: what it writes, what it refuses, and what it says when not everything was sent."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field, Json, SecretStr, computed_field, field_serializer
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType

from postroom import (
    ConfigurationError,
    Consumer,
    ContextError,
    InvalidRequest,
    Message,
    MessageAttribute,
    MessageContext,
    NotOpenError,
    OutgoingMessage,
    Sender,
    SendFailed,
    SendRetry,
    Signing,
    Throttled,
    attribute,
)
from postroom.local import LocalBroker
from postroom.payloads import KeyRing, context_from_attributes, decoder_for, signed
from postroom.payloads.encoding import encode_payload, encoder_for
from postroom.sending import AttributeInput
from postroom.sending.posting import Outcome
from postroom.transports.memory import MemoryClient, MemoryQueue
from postroom.transports.protocol import EntryFailure, Queue, QueueInfo, SendResult
from support.bodies import message as a_message
from support.scripted import OneQueue
from support.virtual import in_virtual_time
from support.world import Order, Tenant, World, in_world, with_world


class Item(BaseModel):
    """A pydantic model with aliases."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    sku_code: str
    price: Decimal


class Basket(BaseModel):
    """A pydantic model of models."""

    items: list[Item]


class Strict(BaseModel):
    """A model that takes no further fields, and has one that is computed and one with JSON in it."""

    model_config = ConfigDict(extra="forbid")
    count: int
    more: Json[dict[str, int]]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        """Something that is no input."""
        return 2 * self.count


class Closed(BaseModel):
    """A model that takes no further fields, and has none that is computed."""

    model_config = ConfigDict(extra="forbid")
    count: int


class Open(BaseModel):
    """One that takes further fields, and has one that is computed."""

    closed: Closed
    more: dict[str, Any] = {"type": "json"}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        """Something that those who read it may want."""
        return 2 * self.closed.count


class Sealed(Open):
    """One that takes no further fields."""

    model_config = ConfigDict(extra="forbid")


@dataclass
class Holder:
    """A dataclass that holds a model."""

    item: Item


@pydantic_dataclass
class Checked:
    """A dataclass of pydantic's."""

    count: int


@pydantic_dataclass(config=ConfigDict(alias_generator=to_camel, populate_by_name=True, ser_json_inf_nan="strings"))
class Line:
    """A dataclass of pydantic's with aliases, and with NaN as a text."""

    sku_code: str
    most: float = 1.0


@dataclass
class Loose:
    """A dataclass that does not say what it holds."""

    lines: Any


class Created(msgspec.Struct, tag="created", rename="camel"):
    """One of two tagged structs."""

    order_id: str


class Gone(msgspec.Struct, tag="gone"):
    """The other one."""

    order_id: str


class Card(BaseModel):
    """One of two models that a field tells apart."""

    kind: Literal["card"] = "card"


class Cash(BaseModel):
    """The other one."""

    kind: Literal["cash"] = "cash"


class Point(NamedTuple):
    """A tuple with names."""

    x: int
    y: int


class Note(TypedDict):
    """A dict with names."""

    text: str


@dataclass
class Nested:
    """Dataclasses in a container."""

    big_orders: list[Order] = field(default_factory=list[Order])


PATIENT = SendRetry()


class Level(StrEnum):
    """An Enum of texts: JSON to who reads it."""

    HIGH = "high"


ITEM = Item(sku_code="a", price=Decimal("9.90"))


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (Basket(items=[ITEM]), Basket),
        (ITEM, Item),
        (Holder(ITEM), Holder),
        ([ITEM], list[Item]),
        ({"a": ITEM}, dict[str, Item]),
        (Strict.model_validate({"count": 1, "more": '{"a": 1}'}), Strict),
        (Sealed(closed=Closed(count=1)), Sealed),
        ([Sealed(closed=Closed(count=1)), None], list[Sealed | None]),
        (Checked(3), Checked),
        (Line("a"), Line),
        ([Line("a"), Line("b", float("inf"))], list[Line]),
        ({"a": [(Line("a"), None)]}, dict[str, list[tuple[Line, None]]]),
        (Card(), Annotated[Card | Cash, Field(discriminator="kind")]),
        (Created("1"), Created | Gone),
        (Gone("1"), Created | Gone),
        (Order("1", 0.5), Order),
        (Point(1, 2), Point),
        ({"text": "x"}, Note),
        ([1, "a", None], list),
        ("plain \N{EURO SIGN}", str),
        ("ä".encode(), bytes),
        (UUID(int=5), UUID),
        (Decimal("99.99"), Decimal),
        (Level.HIGH, Level),
    ],
)
def test_what_can_be_decoded_can_be_sent(payload: object, kind: Any) -> None:
    """A consumer of the type reads the same payload back, whether or not the sender knows the type."""
    decode = decoder_for(kind)
    assert decode(Message(id="1", body=encode_payload(payload))) == payload
    assert decode(Message(id="1", body=encoder_for(kind)(payload))) == payload


Raw = TypeAliasType("Raw", Annotated[str, "a note"])
Name = NewType("Name", str)


@pytest.mark.parametrize(
    ("payload", "kind", "body"),
    [
        ("a", Raw, "a"),
        ("a", str | None, '"a"'),
        (None, str | None, "null"),
        ("a", Literal["a", "b"], '"a"'),
        (Name("a"), Name, '"a"'),
        ("a", Annotated[str, msgspec.Meta(max_length=3)], '"a"'),
        ("a", object, '"a"'),
        ("a", Order | str, '"a"'),
        (b"a", bytes | None, '"YQ=="'),
        (Level.HIGH, Level | None, '"high"'),
    ],
)
def test_a_text_is_the_body_itself_for_text_alone(payload: object, kind: Any, body: str) -> None:
    """A consumer of any other type reads JSON."""
    encode = encoder_for(kind)
    assert encode(payload) == body
    assert decoder_for(kind)(Message(id="1", body=body)) == payload


def test_a_decoder_in_place_of_a_type_says_nothing_of_the_body() -> None:
    """A text is sent as it is."""
    assert encoder_for(decoder_for(str))("a") == "a"


def test_a_computed_field_is_written_where_it_can_be_read() -> None:
    """Others may want it, whatever a part of the payload forbids, or a default looks like."""
    body = encoder_for(Open)(Open(closed=Closed(count=1)))
    assert body == '{"closed":{"count":1},"more":{"type":"json"},"twice":2}'


def test_a_dataclass_of_pydantics_is_written_by_it_wherever_it_is() -> None:
    """Also behind a type that does not name it. What holds none stays as it is."""
    assert encode_payload(Loose([{"a": Line("b")}])) == '{"lines":[{"a":{"skuCode":"b","most":1.0}}]}'
    assert encode_payload([Loose([1, Order("1")])]) == '[{"lines":[1,{"order_id":"1","seconds":0.0}]}]'


def test_camel_case_is_written_as_it_is_read() -> None:
    """Of dataclasses in dataclasses too."""
    body = encoder_for(Nested, rename="camel")(Nested([Order("1")]))
    assert body == '{"bigOrders":[{"orderId":"1","seconds":0.0}]}'
    assert decoder_for(Nested, rename="camel")(Message(id="1", body=body)) == Nested([Order("1")])


@pytest.mark.parametrize("name", ["order_id", "from_", "_id", "line_2b", "user_ID", "order__id"])
def test_each_name_in_camel_case_is_written_as_it_is_read(name: str) -> None:
    """Also one that camel case may spell in several ways."""
    kind = make_dataclass("Odd", [(name, int)])
    body = encoder_for(kind, rename="camel")(kind(1))
    assert decoder_for(kind, rename="camel")(Message(id="1", body=body)) == kind(1)


@pytest.mark.parametrize("payload", [object(), {"a": object()}, b"\xff secret", {("secret",): 1}])
def test_a_payload_without_a_form_is_refused_and_not_quoted(payload: object) -> None:
    """With what can be sent instead, and without the library's exception, which may quote it."""
    with pytest.raises(ConfigurationError, match="sent as") as caught:
        encode_payload(payload)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


class Measured(BaseModel):
    """A model with a number, and with one that may be absent."""

    value: float
    other: float | None = None


class Spelled(Measured):
    """A model that says what NaN is written as."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Login(BaseModel):
    """A model with a secret, which pydantic writes as asterisks."""

    passwords: dict[str, list[SecretStr]]


class Told(Login):
    """A model that writes its secrets all the same."""

    @field_serializer("passwords", when_used="json")
    def _tell(self, passwords: dict[str, list[SecretStr]]) -> dict[str, list[str]]:
        return {name: [each.get_secret_value() for each in secrets] for name, secrets in passwords.items()}


class Masked(Told):
    """A model that writes its secrets, and asterisks in another field."""

    card: str = "**********1234"
    tags: set[str] = {"**********"}


class Mixed(Masked):
    """One that writes a secret as asterisks beside them."""

    pin: frozenset[SecretStr] = frozenset({SecretStr("hunter2")})


NAN = float("nan")
SECRETS = {"acme": [SecretStr("hunter2")]}


@pytest.mark.parametrize(
    ("payload", "kind", "why"),
    [
        (Order("1", NAN), Order, "NaN or an infinity"),
        ({"values": [1.0, float("-inf")]}, dict[str, list[float]], "NaN or an infinity"),
        (Measured(value=NAN), Measured, "NaN or an infinity"),
        ([Measured(value=NAN)], list[Measured], "NaN or an infinity"),
        (Login(passwords=SECRETS), Login, "secrets as asterisks"),
        ([Login(passwords=SECRETS)], list[Login], "secrets as asterisks"),
        (Mixed(passwords=SECRETS), Mixed, "secrets as asterisks"),
    ],
)
def test_what_would_be_written_as_something_else_is_refused(payload: object, kind: Any, why: str) -> None:
    """A consumer would find null, or asterisks: the libraries write both without a word."""
    for encode in (encode_payload, encoder_for(kind)):
        with pytest.raises(ConfigurationError, match=why) as caught:
            encode(payload)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"null": None, "text": "null"}, dict[str, str | None]),
        ([Measured(value=1.5), "**********"], list[Measured | str]),
        (Spelled(value=float("inf")), Spelled),
        ([Spelled(value=float("inf"))], list[Spelled]),
        (Told(passwords=SECRETS), Told),
        (Masked(passwords=SECRETS), Masked),
        ({"text": "**********"}, Note),
    ],
)
def test_null_and_asterisks_themselves_are_sent(payload: object, kind: Any) -> None:
    """Where nothing is lost behind them."""
    decode = decoder_for(kind)
    assert decode(Message(id="1", body=encode_payload(payload))) == payload
    assert decode(Message(id="1", body=encoder_for(kind)(payload))) == payload


class Plan(Enum):
    """A plan."""

    FREE = "free"


@dataclass(frozen=True)
class Rich:
    """A context with every kind of field."""

    tenant_id: Annotated[str, attribute("tenantId")]
    number: int
    trial: bool
    account: UUID
    plan: Plan
    region: Literal["eu", "us"] = "eu"
    note: str | None = None


RICH = Rich("acme", 7, trial=True, account=UUID(int=1), plan=Plan.FREE)


def test_a_context_is_written_as_its_resolver_reads_it() -> None:
    """By the names that attribute() gives, each value in its one spelling, None left out."""
    message = Sender("orders", context=Rich).message({}, context=RICH)
    texts = {name: value.string_value for name, value in message.message_attributes.items()}
    assert texts == {
        "tenantId": "acme",
        "number": "7",
        "trial": "true",
        "account": str(UUID(int=1)),
        "plan": "free",
        "region": "eu",
    }
    read = context_from_attributes(Rich)(Message(id="", body="", message_attributes=message.message_attributes))
    assert read == RICH
    assert message.group_id == f"acme/7/true/{UUID(int=1)}/free/eu"


def test_attributes_are_added_and_never_replace_one() -> None:
    """Numbers, bytes and attributes of any type; one of the context's name is refused."""
    sender = Sender("orders", context=Tenant)
    given: dict[str, AttributeInput] = {
        "count": 3,
        "raw": b"x",
        "flag": True,
        "own": MessageAttribute("Number.int", string_value="4"),
    }
    made = sender.message("", context=Tenant("acme"), attributes=given).message_attributes
    assert set(made) == {"tenant_id", "region", *given}
    assert (made["count"].data_type, made["raw"].binary_value, made["flag"].string_value) == ("Number", b"x", "true")
    with pytest.raises(ConfigurationError, match="would replace the context's own attribute"):
        sender.message("", context=Tenant("acme"), attributes={"tenant_id": "other"})
    # A consumer reads either spelling, and refuses two that differ.
    with pytest.raises(ConfigurationError, match="would replace the context's own attribute"):
        sender.message("", context=Tenant("acme"), attributes={"tenantId": "other"})
    sender.message("", context=Tenant("acme"), attributes={"tenantId": "acme"})
    with pytest.raises(ConfigurationError, match="letters, digits"):
        sender.message("", context=Tenant("acme"), attributes={1: "x"})  # type: ignore[dict-item]


def test_a_context_of_any_kind_is_written_by_a_function() -> None:
    """And grouped by another one."""
    sender = Sender[str]("orders", context=lambda tenant: {"tenant": tenant}, group=lambda tenant: f"g-{tenant}")
    message = sender.message("", context="acme")
    assert (message.message_attributes["tenant"].string_value, message.group_id) == ("acme", "g-acme")
    assert (
        Sender[str]("orders", context=lambda tenant: {"t": tenant}, fair=False).message("", context="a").group_id
        is None
    )


def test_a_tenant_that_is_no_group_is_hashed() -> None:
    """SQS takes 128 characters; the group only tells tenants apart."""
    sender = Sender[str]("orders", context=lambda tenant: {"tenant": tenant})
    long, other = (sender.message("", context=name * 200).group_id for name in "ab")
    assert long is not None
    assert long != other
    assert len(long) == 64


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sender(""), "name, URL or ARN"),
        (lambda: Sender("q", context=3), "a class, or a function"),  # type: ignore[arg-type]
        (lambda: Sender("q", group="x"), "takes a function"),  # type: ignore[arg-type]
        (lambda: Sender("q", encode=str, payload=Order), "leave out payload="),
        (lambda: Sender("q", payload=Order, rename="snake"), '"camel"'),  # type: ignore[arg-type]
        (lambda: Sender("q", signing="key"), "Signing"),  # type: ignore[arg-type]
        (lambda: Sender("q", signing=Signing(keys=KeyRing({"k": b"x" * 32}))), "must name the attributes"),
        (lambda: Sender("q", context=Tenant).message(""), "say context="),
        (lambda: Sender("q", context=Tenant).message("", context="a"), "of type Tenant is to be sent; got str"),  # type: ignore[arg-type]
        (lambda: Sender[Any]("q").message("", context="a"), "dataclass"),
        (lambda: Sender("q").message("", delay=901), "0 to 900"),
        (lambda: Sender("q").message("", attributes={"AWS.x": "1"}), "not beginning with"),
        (lambda: Sender("q").message("", attributes={"x": ""}), "not empty"),
        (lambda: Sender("q").message("", attributes={"x": None}), "got NoneType"),  # type: ignore[dict-item]
        (lambda: Sender("q").message("", group="a b"), "1 to 128"),
        (lambda: Sender("q").message("", attributes={f"a{n}": "1" for n in range(11)}), "10 attributes"),
        (lambda: Sender("q.fifo", context=Tenant).message("", context=Tenant("a")), "Sender\\(group=lambda"),
        (lambda: Sender("q.fifo", group=lambda _: "a").message(""), "context= for the message"),
        (lambda: Sender("q.fifo").message("", group="a", delay=1), "DelaySeconds"),
        (lambda: Sender("q").message(OutgoingMessage(body="x")), "send_messages\\(\\)"),
        (lambda: Sender("q").message(a_message("x")), "pass its .body"),
        (lambda: Sender("q", encode=lambda _: None).message(1), "as a text; it returned NoneType"),  # type: ignore[arg-type, return-value]
        (lambda: Sender("q", encode=lambda _: b"{}").message(1), "as a text; it returned bytes"),  # type: ignore[arg-type, return-value]
        (lambda: Sender[Any]("q", context=lambda _: {"a": 5}).message(1, context="x"), "as texts"),  # type: ignore[dict-item]
        (lambda: Sender[Any]("q", context=lambda _: None).message(1, context="x"), "it returned None"),  # type: ignore[arg-type, return-value]
        (lambda: SendRetry(attempts=0), "whole number from 1"),
        (lambda: SendRetry(base=float("nan")), "seconds"),
    ],
)
def test_wrong_arguments_say_what_to_write(make: Any, text: str) -> None:
    """When the sender or the message is made, not when it is sent."""
    with pytest.raises(ConfigurationError, match=text):
        make()


async def test_one_text_is_not_taken_for_many_payloads() -> None:
    """Its characters would be sent."""
    with pytest.raises(ConfigurationError, match="several payloads"):
        await Sender("q").send_many("text")
    with pytest.raises(ConfigurationError, match="several payloads"):
        await Sender("q").send_many(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [[{"id": 1}], ["x"], OutgoingMessage(body="x"), None, "x"])
async def test_only_messages_are_sent_as_messages(wrong: Any) -> None:
    """A payload is made a message first; nothing of the rest is sent before it is seen."""
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        async with Sender("orders", client=MemoryClient(broker)) as sender:
            for send in (sender.send_messages, sender.post):
                with pytest.raises(ConfigurationError, match=send.__name__):
                    await send(wrong)
        assert broker.attributes("orders")["ApproximateNumberOfMessages"] == "0"


def test_a_transform_that_returns_no_message_is_told_so() -> None:
    """It is wrong for good: an outbox does not try it again and again."""

    def transform(message: OutgoingMessage) -> Any:
        return None if message.body == "b" else message

    (unsent,) = _posted(Refusing(), transform, ("a", "g"), ("b", "g"), ("c", "g")).unsent.values()
    assert (unsent.index, unsent.code, unsent.retryable) == (1, "ConfigurationError", False)
    assert unsent.reason == "Sender(transform=...) returns the OutgoingMessage that is sent; got NoneType"


def test_values_that_no_consumer_accepts_are_refused() -> None:
    """And not quoted."""
    with pytest.raises(ContextError, match="not a safe id") as caught:
        Sender("q", context=Tenant).message("", context=Tenant("no spaces"))
    assert "no spaces" not in str(caught.value)


def test_a_message_too_large_is_refused_before_it_is_sent() -> None:
    """Attributes count."""
    sender = Sender("q")
    assert sender.message("x" * 1_048_576).body
    with pytest.raises(InvalidRequest, match="1,048,580 bytes"):
        sender.message("x" * 1_048_570, attributes={"abc": "d"})


def _trace(carrier: dict[str, str]) -> None:
    carrier.update({"baggage": "b", "tracestate": "s", "traceparent": "00-a-b-01"})


def test_a_trace_goes_along_as_far_as_there_is_room() -> None:
    """Its parent first; what the message has already stays, and so does the place of the signature."""
    keys = KeyRing({"k": b"x" * 32})
    plain = Sender("q", trace=_trace)
    assert set(plain.message("").message_attributes) == {"traceparent", "tracestate", "baggage"}
    assert plain.message("", attributes={"traceparent": "own"}).message_attributes["traceparent"].string_value == "own"
    full = plain.message("", attributes={f"a{n}": "1" for n in range(8)}).message_attributes
    assert set(full) - {f"a{n}" for n in range(8)} == {"traceparent", "tracestate"}
    sender = Sender("q", context=Tenant, trace=_trace, signing=Signing(keys=keys))
    names = sender.message("", context=Tenant("a"), attributes={f"a{n}": "1" for n in range(6)}).message_attributes
    assert "traceparent" in names
    assert len(names) == 9


async def test_a_trace_keeps_no_message_back_that_a_transform_moves_elsewhere() -> None:
    """The pointer of a claim check needs an attribute, and a body that is stored has room for the trace."""

    async def stored(message: OutgoingMessage) -> OutgoingMessage:
        pointer = {**message.message_attributes, "size": MessageAttribute("Number", "1")}
        return msgspec.structs.replace(message, body="pointer", message_attributes=pointer)

    async with LocalBroker() as broker, MemoryClient(broker) as client:
        broker.create_queue("q")
        sender = Sender("q", trace=_trace, transform=stored, client=client)
        async with sender:
            await sender.send("x" * 2_000_000, attributes={f"a{n}": "1" for n in range(8)})
            [message] = await (await client.queue("q")).receive(limit=1, wait=0, visibility=30)
    assert set(message.message_attributes) == {*(f"a{n}" for n in range(8)), "size", "traceparent"}


def test_a_trace_that_cannot_be_written_keeps_no_message_back(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""

    def broken(carrier: dict[str, str]) -> None:
        raise RuntimeError("no tracer")

    assert Sender("q", trace=broken).message("x").body == "x"
    assert "sent without it" in caplog.text


@with_world
async def test_a_consumer_handles_what_a_sender_signed(world: World) -> None:
    """Of a pydantic model, with context, group and signature; the extra attribute is there too."""
    keys = KeyRing({"2026-11": b"k" * 32})
    world.create()
    seen: list[object] = []
    resolver = signed(context_from_attributes(Tenant), keys=keys, queue="orders")
    orders = Consumer("orders", context=resolver, client=world.client)

    @orders.handler
    async def record(basket: Basket, ctx: MessageContext[Tenant]) -> None:
        seen.extend([basket, ctx.context, ctx.message.group_id, ctx.message.attributes["traceparent"]])
        orders.stop()

    sender = Sender("orders", context=Tenant, signing=Signing(keys=keys), trace=_trace, client=world.client)
    async with sender:
        await sender.send(Basket(items=[ITEM]), context=Tenant("acme"))
    await orders.run()
    assert seen == [Basket(items=[ITEM]), Tenant("acme"), "acme/eu-west-1", "00-a-b-01"]


@with_world
async def test_many_are_sent_in_batches_and_their_ids_returned_in_order(world: World) -> None:
    """Ten at a time."""
    world.create()
    async with Sender("orders", context=Tenant, client=world.client) as sender, world.client:
        assert sender.info.name == "orders"
        ids = await sender.send_many([Order(str(n)) for n in range(25)], context=Tenant("acme"))
        queue = await world.client.queue("orders")
        found: dict[str, str] = {}
        while batch := await queue.receive(limit=10, wait=0, visibility=30):
            found |= {msgspec.json.decode(message.body)["order_id"]: message.id for message in batch}
    received, counts = [found[str(n)] for n in range(25)], world.counts()
    assert ids == received
    assert counts == (0, 25)


@with_world
async def test_a_transform_changes_what_is_signed_and_sent(world: World) -> None:
    """Such as one that moves the body elsewhere; it may be async."""
    keys = KeyRing({"k": b"x" * 32})

    async def shorten(message: OutgoingMessage) -> OutgoingMessage:
        return msgspec.structs.replace(message, body="pointer")

    world.create()
    sender = Sender("orders", context=Tenant, signing=Signing(keys=keys), transform=shorten, client=world.client)
    async with sender, world.client:
        await sender.send("x" * 2_000_000, context=Tenant("acme"))
        [message] = await (await world.client.queue("orders")).receive(limit=1, wait=0, visibility=30)
        signed(context_from_attributes(Tenant), keys=keys, queue="orders", clock=lambda: 0.0)(message)
    assert message.body == "pointer"


@with_world
async def test_a_sender_is_opened_before_it_is_used_and_again_after(world: World) -> None:
    """By several users at once; the last one closes it."""
    world.create()
    sender = Sender("orders", client=world.client)
    with pytest.raises(NotOpenError, match="async with sender"):
        await sender.send("x")
    async with sender:
        async with sender:
            await sender.send("x")
        await sender.send("x")
    async with sender:
        await sender.send("x")
    with pytest.raises(NotOpenError):
        await sender.send("x")
    assert world.counts() == (3, 0)


class Refusing:
    """A queue that refuses entries as told, and writes down what was sent in which order."""

    def __init__(self, *, fifo: bool = False, refuse: dict[str, list[str]] | None = None, fail: int = 0) -> None:
        self.info = QueueInfo(name="orders", url="u", arn="a", fifo=fifo)
        self.refuse = refuse or {}
        self.fail = fail
        self.calls: list[list[str]] = []
        self.taken: list[str] = []
        self.ids: list[str | None] = []

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Take what is not to be refused; a refusal is used up."""
        self.calls.append([message.body for message in messages])
        if self.fail:
            self.fail -= 1
            raise Throttled("slow down", code="RequestThrottled")
        results: list[SendResult | EntryFailure] = []
        for index, message in enumerate(messages):
            if left := self.refuse.get(message.body):
                code = left.pop(0)
                results.append(EntryFailure(index, code, sender_fault=code == "Never"))
            else:
                self.taken.append(message.body)
                self.ids.append(message.deduplication_id)
                results.append(SendResult(index, f"id-{message.body}"))
        return results


def _sent(queue: Refusing, *bodies: tuple[str, str], retry: SendRetry = PATIENT) -> SendFailed | list[str]:
    async def scenario(world: World) -> SendFailed | list[str]:
        name = "orders.fifo" if queue.info.fifo else "orders"
        async with Sender(name, retry=retry, client=OneQueue(queue)) as sender:
            try:
                return await sender.send_messages([sender.message(body, group=group) for body, group in bodies])
            except SendFailed as error:
                return error

    return in_world(scenario)


def test_what_is_refused_for_now_is_tried_again() -> None:
    """It alone, and the others once."""
    queue = Refusing(refuse={"b": ["Throttled", "InternalError"]})
    assert _sent(queue, ("a", "1"), ("b", "1"), ("c", "1")) == ["id-a", "id-b", "id-c"]
    assert queue.calls == [["a", "b", "c"], ["b"], ["b"]]


def test_a_failure_names_what_was_not_sent_and_the_ids_of_the_rest() -> None:
    """What SQS will refuse again is sent once; what it goes on refusing, four times."""
    queue = Refusing(refuse={"b": ["Never"], "c": ["Throttled"] * 9})
    error = _sent(queue, ("a", "1"), ("b", "1"), ("c", "1"))
    assert isinstance(error, SendFailed)
    assert [(each.index, each.code, each.retryable) for each in error.unsent] == [
        (1, "Never", False),
        (2, "Throttled", True),
    ]
    assert error.message_ids == ("id-a", None, None)
    assert not error.retryable
    assert re.search("2 of 3 messages not sent to queue 'orders': entry 1: Never; entry 2", str(error))
    assert [len(call) for call in queue.calls] == [3, 1, 1, 1]


def test_a_call_that_fails_is_tried_again_within_bounds() -> None:
    """Both of attempts and of time."""
    assert _sent(Refusing(fail=2), ("a", "1")) == ["id-a"]
    for retry, calls in ((SendRetry(attempts=2), 2), (SendRetry(attempts=99, base=1, cap=1, within=5), 6)):
        queue = Refusing(fail=50)
        error = _sent(queue, ("a", "1"), retry=retry)
        assert isinstance(error, SendFailed)
        assert error.retryable
        assert calls <= len(queue.calls) <= 2 * calls


@pytest.mark.parametrize("fifo", [False, True])
@with_world
async def test_many_messages_do_not_wait_one_by_one_for_a_queue_that_does_not_answer(
    world: World, *, fifo: bool
) -> None:
    """Each call would take a minute: the first one behind the time limit is the last one."""

    class Silent(Refusing):
        async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
            if self.taken:
                await asyncio.sleep(3600)
            return await super().send(messages)

    began = asyncio.get_running_loop().time()
    name = "orders.fifo" if fifo else "orders"
    async with Sender(name, client=OneQueue(Silent(fifo=fifo))) as sender:
        outcome = await sender.post([sender.message(str(number), group=str(number % 20)) for number in range(100)])
    seconds = asyncio.get_running_loop().time() - began
    assert seconds <= 60.1
    assert [each is not None for each in outcome.message_ids] == [True] * 10 + [False] * 90
    assert [outcome.unsent[number].behind for number in range(10, 100)] == [False] * 10 + [True] * 80
    assert all(each.retryable for each in outcome.unsent.values())
    assert outcome.unsent[89].reason == "not tried: entry 10 was not sent, and 30 s were over"


def test_nothing_overtakes_in_a_group_of_a_fifo_queue() -> None:
    """A batch has one message of each group; behind one that was not sent nothing of its group is sent."""
    queue = Refusing(fifo=True, refuse={"a2": ["Throttled"], "b2": ["Never"]})
    error = _sent(queue, *((f"{group}{n}", group) for n in (1, 2, 3) for group in "abc"))
    assert isinstance(error, SendFailed)
    for group, sent in (("a", ["a1", "a2", "a3"]), ("b", ["b1"]), ("c", ["c1", "c2", "c3"])):
        assert [body for body in queue.taken if body[0] == group] == sent
    assert {each.index: each.reason for each in error.unsent}[7] == "entry 4 of its message group was not sent"
    assert all(len({body[0] for body in call}) == len(call) for call in queue.calls)


def _posted(queue: Refusing, transform: Any, *bodies: tuple[str, str]) -> Outcome:
    async def scenario(world: World) -> Outcome:
        async with Sender("orders", transform=transform, client=OneQueue(queue)) as sender:
            return await sender.post([OutgoingMessage(body=body, group_id=group) for body, group in bodies])

    return in_world(scenario)


@pytest.mark.parametrize(("fifo", "taken"), [(True, ["a1", "b1", "b2", "b3"]), (False, ["a1", "b1", "a3", "b2", "b3"])])
def test_nothing_overtakes_what_a_transform_failed_for(taken: list[str], *, fifo: bool) -> None:
    """On a FIFO queue, in its group; elsewhere it keeps back none."""

    def transform(message: OutgoingMessage) -> OutgoingMessage:
        if message.body == "a2":
            raise OSError("the bucket is away")
        return message

    queue = Refusing(fifo=fifo)
    bodies = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b"), ("b3", "b")]
    unsent = _posted(queue, transform, *bodies).unsent
    assert queue.taken == taken
    assert {index: (each.retryable, each.behind) for index, each in unsent.items()} == (
        {2: (True, False), 3: (True, True)} if fifo else {2: (True, False)}
    )


def test_a_transform_that_hangs_costs_its_time_once() -> None:
    """And not for each of the messages: they wait for the next try."""
    asked: list[str] = []

    async def transform(message: OutgoingMessage) -> OutgoingMessage:
        asked.append(message.body)
        async with asyncio.timeout(20):
            await asyncio.Event().wait()
        return message

    unsent = _posted(Refusing(), transform, *((str(number), "g") for number in range(100))).unsent
    assert asked == ["0", "1"]
    assert (len(unsent), all(each.retryable for each in unsent.values())) == (100, True)


def test_each_message_of_a_fifo_queue_has_an_id_that_its_tries_share() -> None:
    """Unless the queue makes one of the body."""
    queue = Refusing(fifo=True, fail=1)
    _sent(queue, ("a", "1"), ("b", "1"))
    assert len(set(queue.ids)) == 2
    assert None not in queue.ids
    queue = Refusing(fifo=True)
    queue.info = msgspec.structs.replace(queue.info, attributes={"ContentBasedDeduplication": "true"})
    _sent(queue, ("a", "1"))
    assert queue.ids == [None]


def test_large_messages_make_small_batches() -> None:
    """Of 1 MiB in all."""
    queue = Refusing()
    _sent(queue, *(("x" * 400_000, "1") for _ in range(5)))
    assert [len(call) for call in queue.calls] == [2, 2, 1]


def test_a_queue_with_a_smaller_limit_is_respected() -> None:
    """``MaximumMessageSize``."""
    queue = Refusing()
    queue.info = msgspec.structs.replace(queue.info, attributes={"MaximumMessageSize": "1024"})
    with pytest.raises(InvalidRequest, match="takes 1,024"):
        _sent(queue, ("x" * 1025, "1"))
    assert queue.calls == []


@in_virtual_time
async def test_a_send_that_is_never_answered_ends_all_the_same() -> None:
    """A transport that hangs does not hold its caller for longer than a minute."""

    class Silent:
        def __init__(self, queue: Queue) -> None:
            self.info = queue.info

        async def send(self, _messages: Sequence[OutgoingMessage]) -> None:
            await asyncio.Event().wait()

    class Client(MemoryClient):
        async def queue(self, name: str) -> Any:
            return Silent(await super().queue(name))

    began = asyncio.get_running_loop().time()
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        async with Sender[Any]("orders", client=Client(broker)) as sender:
            with pytest.raises(SendFailed, match="no answer within 60 s"):
                await sender.send("x")
            assert (asyncio.get_running_loop().time() - began) <= 60.1


@pytest.mark.parametrize("wrong", [{"retry": 3}, {"client": "aws"}, {"client": MemoryClient}])
def test_a_sender_refuses_what_is_no_retry_and_no_client(wrong: dict[str, Any]) -> None:
    """The text says what to write."""
    with pytest.raises(ConfigurationError, match=r"Sender\("):
        Sender("orders", **wrong)


@pytest.mark.parametrize("shared", [True, False])
@with_world
async def test_a_send_that_outlives_its_block_ends_with_the_client(
    world: World, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    """It goes on while another user keeps the client open; otherwise it has failed, and nothing was sent."""
    send = MemoryQueue.send

    async def slow(queue: MemoryQueue, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        await asyncio.sleep(2)
        return await send(queue, messages)

    monkeypatch.setattr(MemoryQueue, "send", slow)
    world.create()
    async with AsyncExitStack() as stack:
        client = MemoryClient(world.broker)
        if shared:
            await stack.enter_async_context(client)
        async with Sender("orders", client=client) as sender:
            sending = asyncio.create_task(sender.send("x"), name="send")
            await asyncio.sleep(1)
        await asyncio.wait([sending])
    if sending.exception() is not None:
        assert isinstance(sending.exception(), SendFailed)
    assert (sending.exception() is None, world.counts()[0]) == ((True, 1) if shared else (False, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_number_that_sqs_does_not_take_is_refused_before_it_is_sent(value: float) -> None:
    """It would be refused there, with the whole message."""
    sender = Sender[None]("orders")
    with pytest.raises(ConfigurationError, match=r"attributes={'price': \.\.\.} takes text that is not empty"):
        sender.message("x", attributes={"price": value})
