"""Several kinds of messages on one queue: by attribute, by field, by type; and what becomes of unknown ones."""

import asyncio
import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgspec
import pytest
from pydantic import BaseModel, BeforeValidator, Field

from postroom import (
    ConfigurationError,
    Consumer,
    Drop,
    Failure,
    Message,
    MessageContext,
    RetryPolicy,
    Router,
    UnknownKind,
    ValidationError,
    by_attribute,
    by_field,
)
from postroom.payloads import decoder_for
from support.world import Tenant, World, in_world, with_world


@dataclass
class Created:
    """One kind."""

    order_id: str


@dataclass
class Paid:
    """Another kind."""

    amount: int


class Tagged(msgspec.Struct, tag_field="type", tag="tagged"):
    """A kind with a tag."""

    value: int


class Other(msgspec.Struct, tag_field="type", tag="other"):
    """Another kind with a tag."""

    value: int


class Card(BaseModel):
    """A kind of pydantic's."""

    kind: Literal["card"]
    number: int


class Cash(BaseModel):
    """Another one."""

    kind: Literal["cash"]


@dataclass
class Ran:
    """What a consumer of a router did."""

    seen: list[Any]
    settled: dict[str, int]
    counts: tuple[int, int]
    dead: tuple[int, int]
    errors: list[Failure]


def _ran(router: Router[Tenant, None], *bodies: tuple[object, str | None], seen: list[Any], until: int = 1) -> Ran:
    """Let a consumer of the router work until so many messages were settled."""

    async def scenario(world: World) -> Ran:
        world.create(dead_letters="dead", receives=5)
        errors: list[Failure] = []
        orders: Consumer[Tenant, None] = Consumer(
            "orders",
            context=Tenant,
            client=world.client,
            on_error=errors.append,
            retry=RetryPolicy(base=1, attempts=2),
        )
        orders.handler(router)
        for body, kind in bodies:
            world.send(body, **({} if kind is None else {"kind": kind}))
        async with orders:
            while sum(orders.statistics().settled.values()) < until:
                await asyncio.sleep(0.5)
            settled = {str(name): count for name, count in orders.statistics().settled.items()}
        return Ran(seen, settled, world.counts(), world.counts("dead"), errors)

    return in_world(scenario)


def _router(kind: Any, **options: Any) -> tuple[Router[Tenant, None], list[Any]]:
    router: Router[Tenant, None] = Router(kind, **options)
    seen: list[Any] = []

    @router.handler("order.created", "order.copied")
    async def created(payload: Created, ctx: MessageContext[Tenant]) -> None:
        seen.append((payload, ctx.context.tenant_id))

    @router.handler("order.paid")
    def paid(payload: Paid, ctx: MessageContext[Tenant]) -> None:
        seen.append((payload, ctx.context.tenant_id))

    return router, seen


def test_only_a_router_can_be_included() -> None:
    """With what was given instead."""
    with pytest.raises(ConfigurationError, match=r"router.include\(\) takes another Router; got int"):
        Router(by_attribute("kind")).include(5)  # type: ignore[arg-type]


def test_a_handler_is_chosen_by_an_attribute() -> None:
    """Each with its own payload type; `async def` and `def` side by side, and two kinds for one of them."""
    router, seen = _router(by_attribute("kind"))
    bodies = [({"order_id": "1"}, "order.created"), ({"amount": 2}, "order.paid"), ({"order_id": "3"}, "order.copied")]
    ran = _ran(router, *bodies, seen=seen, until=3)
    assert sorted(map(repr, ran.seen)) == sorted(map(repr, [(Created("1"), "a"), (Paid(2), "a"), (Created("3"), "a")]))
    assert ran.settled == {"acked": 3}


def test_a_handler_is_chosen_by_a_field() -> None:
    """Without decoding the rest; a body that is none of JSON has no kind, and is rejected."""
    router, seen = _router(by_field("event-type"))
    bodies = [({"event-type": "order.paid", "amount": 2}, None), ("no JSON", None), ({"event-type": 5}, None)]
    ran = _ran(router, *bodies, seen=seen, until=3)
    assert ran.seen == [(Paid(2), "a")]
    assert ran.settled == {"acked": 1, "rejected": 2}
    assert ran.dead == (2, 0)


def test_a_byte_order_mark_hides_no_field() -> None:
    """The message would be rejected, although its handler could read it."""
    router, seen = _router(by_field("event-type"))
    ran = _ran(router, ('\ufeff{"event-type": "order.paid", "amount": 2}', None), seen=seen)
    assert ran.seen == [(Paid(2), "a")]
    assert ran.settled == {"acked": 1}


def test_a_function_says_the_kind() -> None:
    """Of anything in the message."""
    router, seen = _router(lambda message: "order.paid" if "amount" in message.body else None)
    assert _ran(router, ({"amount": 1}, None), seen=seen).seen == [(Paid(1), "a")]


@pytest.mark.parametrize("types", [(Tagged, Other), (Card, Cash)])
def test_a_handler_is_chosen_by_its_type(types: tuple[Any, Any]) -> None:
    """Of tagged structs, or of models with a discriminator."""
    router: Router[Tenant, None] = Router()
    seen: list[Any] = []
    for kind in types:

        async def handle(payload: Any, ctx: MessageContext[Tenant]) -> None:
            seen.append(("first" if isinstance(payload, types[0]) else "second", payload))

        router.handler(payload=kind)(handle)
    bodies: list[Any] = (
        [{"type": "tagged", "value": 1}, {"type": "other", "value": 2}]
        if types[0] is Tagged
        else [{"kind": "card", "number": 1}, {"kind": "cash"}]
    )
    ran = _ran(router, *((body, None) for body in bodies), seen=seen, until=2)
    assert sorted(name for name, _ in ran.seen) == ["first", "second"]


@pytest.mark.parametrize(
    ("kinds", "body"), [((Tagged, Other), '{"type": "new"}'), ((Card, Cash), '{"kind": "new", "number": 1}')]
)
def test_an_unknown_type_has_a_policy(kinds: tuple[Any, Any], body: str) -> None:
    """Of tagged structs, and of models that a field tells apart."""
    router: Router[Tenant, None] = Router(unknown="drop")
    for kind in kinds:
        router.handler(payload=kind)(_nothing)
    with pytest.raises(Drop, match="of none that has a handler"):
        router.decode(Message(id="1", body=body))


class Ordered(BaseModel):
    """A kind of pydantic's with a default, which a sender may leave out."""

    kind: Literal["ordered"] = "ordered"
    order: int


class Shouted(BaseModel):
    """One that takes its kind in capitals, too."""

    kind: Annotated[Literal["shouted"], BeforeValidator(str.lower)]


class InEuro(BaseModel):
    """One with a second field of which another kind has another value."""

    currency: Literal["EUR"]
    kind: Literal["euro"]


class InDollars(BaseModel):
    """That other kind."""

    currency: Literal["USD"]
    kind: Literal["dollars"]


@pytest.mark.parametrize(
    ("kinds", "body", "payload"),
    [
        ((Ordered, Cash), '{"order": 1}', Ordered(order=1)),
        ((Shouted, Cash), '{"kind": "SHOUTED"}', Shouted(kind="shouted")),
    ],
)
def test_models_take_what_pydantic_takes(kinds: tuple[Any, Any], body: str, payload: Any) -> None:
    """Whatever it is that tells whether a kind is unknown."""
    router: Router[Tenant, None] = Router(unknown="drop")
    for kind in kinds:
        router.handler(payload=kind)(_nothing)
    router.start()
    assert router.decode(Message(id="1", body=body)).payload == payload


@pytest.mark.parametrize(
    ("kinds", "body"),
    [
        ((InEuro, InDollars), '{"kind": "euro", "currency": "CHF"}'),
        ((Ordered, Cash), '{"kind": "ordered", "order": "one"}'),
        ((Card, Cash), '{"number": 1}'),
    ],
)
def test_a_wrong_message_of_a_known_kind_is_not_of_an_unknown_one(kinds: tuple[Any, Any], body: str) -> None:
    """It would be deleted. Of several fields that differ it is not known which one is the kind."""
    router: Router[Tenant, None] = Router(unknown="drop")
    for kind in kinds:
        router.handler(payload=kind)(_nothing)
    with pytest.raises(ValidationError):
        router.decode(Message(id="1", body=body))


class Several(msgspec.Struct, tag_field="type", tag="several"):
    """A kind with a part that may be of two types."""

    part: Tagged | Other


class Paying(BaseModel):
    """A kind of pydantic's with such a part."""

    by: Annotated[Card | Cash, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("kinds", "body"),
    [
        ((Several, Other), '{"type": "several", "part": {"type": "new"}}'),
        ((Paying, Cash), '{"by": {"kind": "new"}}'),
    ],
)
def test_a_part_of_an_unknown_type_makes_no_unknown_kind(kinds: tuple[Any, Any], body: str) -> None:
    """The message is of a kind that has a handler, and it fails: it is not deleted as one without a handler."""
    router: Router[Tenant, None] = Router(unknown="drop")
    for kind in kinds:
        router.handler(payload=kind)(_nothing)
    with pytest.raises(ValidationError, match="not one of the allowed tags"):
        router.decode(Message(id="1", body=body))


@pytest.mark.parametrize(
    ("policy", "settled", "dead", "errors"),
    [
        ("reject", {"rejected": 1}, 1, 0),
        ("drop", {"acked": 1}, 0, 0),
        ("leave", {"retried": 1}, 0, 0),
        ("retry", {"retried": 1}, 0, 1),
    ],
)
def test_an_unknown_kind_has_a_policy(
    policy: Any, settled: dict[str, int], dead: int, errors: int, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log names it, if it is a plain word."""
    router, seen = _router(by_attribute("kind"), unknown=policy, delay=3600)
    ran = _ran(router, ({}, "order.lost"), seen=seen)
    assert (ran.settled, ran.dead[0], len(ran.errors)) == (settled, dead, errors)
    assert ran.seen == []
    if policy in {"drop", "retry"}:
        assert "no handler for messages of kind order.lost" in caplog.text
    if errors:
        assert isinstance(ran.errors[0].error, UnknownKind)
        assert "order.created, order.paid" in str(ran.errors[0].error)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("EC2 Instance State-change Notification", "EC2 Instance State-change Notification"),
        ("shop/order.created:v2", "shop/order.created:v2"),
        ("order\nfaked line", "(not shown)"),
        ("x" * 200, "(not shown)"),
    ],
)
def test_an_unknown_kind_is_named_if_it_is_a_name(kind: str, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    """Those of EventBridge have spaces. Other text of a message does not get into the log."""
    router, seen = _router(by_attribute("kind"), unknown="drop")
    _ran(router, ({}, kind), seen=seen)
    assert f"no handler for messages of kind {shown}" in caplog.text


def test_an_unknown_tag_has_the_same_policy() -> None:
    """Of a router by types; a known tag with a wrong value is an error of the payload."""
    router: Router[Tenant, None] = Router(unknown="drop")
    seen: list[Any] = []

    @router.handler
    async def tagged(payload: Tagged, ctx: MessageContext[Tenant]) -> None:
        seen.append(payload)

    @router.handler()
    async def other(payload: Other, ctx: MessageContext[Tenant]) -> None:
        seen.append(payload)

    ran = _ran(router, ({"type": "new"}, None), ({"type": "other", "value": "x"}, None), seen=seen, until=2)
    assert ran.settled == {"acked": 1, "retried": 1}
    assert [type(failure.error) for failure in ran.errors] == [ValidationError]


def test_everything_else_may_have_a_handler() -> None:
    """Then no kind is unknown. Routers of other modules are included."""
    router, seen = _router(by_attribute("kind"))
    more: Router[Tenant, None] = Router(by_attribute("ignored"))

    @more.otherwise
    async def rest(payload: dict[str, Any], ctx: MessageContext[Tenant]) -> None:
        seen.append(payload)

    router.include(more)
    assert _ran(router, ({"a": 1}, "anything"), seen=seen).seen == [{"a": 1}]
    with pytest.raises(ConfigurationError, match="was started"):
        router.handler("late")(rest)


@with_world
async def test_middleware_and_on_error_see_the_payload_itself(world: World) -> None:
    """Not the route."""
    world.create()
    told: list[Any] = []
    router: Router[Tenant, None] = Router(by_attribute("kind"))

    @router.handler("paid")
    async def paid(payload: Paid, ctx: MessageContext[Tenant]) -> None:
        raise ValueError

    async def layer(payload: Any, ctx: Any, call_next: Any) -> None:
        told.append(payload)
        await call_next(payload, ctx)

    def on_error(failure: Failure) -> None:
        told.append(failure.payload)
        orders.stop()

    orders: Consumer[Tenant, None] = Consumer(
        "orders", context=Tenant, client=world.client, middleware=[layer], on_error=on_error
    )
    orders.handler(router)
    world.send({"amount": 1}, kind="paid")
    await orders.run()
    assert told == [Paid(1), Paid(1)]


async def test_a_router_is_called_in_a_unit_test_as_a_handler_is() -> None:
    """With a payload of the message's kind."""
    router, seen = _router(by_attribute("kind"))
    attributes = {"kind": {"DataType": "String", "StringValue": "order.paid"}}
    message = msgspec.convert({"MessageId": "1", "Body": '{"amount":1}', "MessageAttributes": attributes}, Message)
    outcome = router(None, MessageContext(message, Tenant("a"), None, Tenant("a"), 1, None))  # type: ignore[arg-type]
    assert outcome is None
    assert seen == [(Paid(1), "a")]


def _do_nothing(payload: Paid, ctx: MessageContext[Tenant]) -> None:
    """Handle nothing."""


_nothing: Any = _do_nothing
_any: Any = Router


def _twice() -> None:
    router, _ = _router(by_attribute("kind"))
    router.handler("order.paid")(_nothing)


async def _take_a_list(payload: list[int], ctx: MessageContext[Tenant]) -> None:
    """Take no class."""


_list: Any = _take_a_list


def _alike() -> None:
    router: Router[Tenant, None] = Router()

    @router.handler
    async def created(payload: Created, ctx: MessageContext[Tenant]) -> None: ...

    @router.handler
    async def paid(payload: Paid, ctx: MessageContext[Tenant]) -> None: ...

    router.start()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: _any("kind"), "takes a function"),
        (lambda: _any(unknown="ignore"), "'reject', 'drop', 'leave', 'retry'"),
        (lambda: _any(delay=-1), "seconds from 0"),
        (lambda: by_attribute(""), "name of a message attribute"),
        (lambda: by_field(cast("str", 3)), "name of a field"),
        (lambda: _any().handler("paid")(_nothing), "Router\\(by_attribute"),
        (lambda: _any(by_field("x")).handler(_nothing), "say of which kind"),
        (lambda: _any(by_field("x")).handler(3)(_nothing), "kinds as texts"),
        (lambda: _any().handler(_list), "takes one class; got list"),
        (lambda: _any().otherwise(_nothing), "needs a kind"),
        (_twice, "has a handler already"),
        (_alike, "cannot tell Created, Paid apart"),
        (lambda: _any(by_field("x")).start(), "no handlers"),
        (lambda: _any().include(_any(by_field("x"))), "cannot be put together"),
        (lambda: cast("Any", Consumer("q", payload=Paid)).handler(_router(by_field("x"))[0]), "say it of each"),
    ],
)
def test_mistakes_are_told_when_the_router_is_made(wrong: Any, text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=text):
        wrong()


@with_world
async def test_a_consumer_of_an_empty_router_does_not_start(world: World) -> None:
    """It says what is missing."""
    world.create()
    orders: Consumer[Tenant, None] = Consumer("orders", context=Tenant, client=world.client)
    orders.handler(Router[Tenant, None](by_attribute("kind")))
    with pytest.raises(ConfigurationError, match="no handlers"):
        await orders.run()


def test_a_handler_may_be_registered_with_parentheses() -> None:
    """``@consumer.handler()`` is the same as without; a second handler is told of the router."""
    orders: Consumer[None, None] = Consumer("orders")

    @orders.handler()
    async def handle(payload: Paid, ctx: MessageContext) -> None: ...

    assert inspect.iscoroutinefunction(handle)
    with pytest.raises(ConfigurationError, match="with a Router"):
        orders.handler(handle)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (Tagged | Other, "Tagged | Other"),
        (Annotated[Card | Cash, Field(discriminator="kind")], "Card | Cash"),
        (list[Tagged | Other] | None, "list[Tagged | Other] | None"),
    ],
)
def test_errors_show_a_union_as_it_was_written(kind: Any, shown: str) -> None:
    """Without modules, and without pydantic's notes."""
    with pytest.raises(ValidationError) as caught:
        decoder_for(kind)(Message(id="1", body='{"type": "secret", "kind": "secret"}'))
    assert f"the body is not a valid {shown}: " in str(caught.value)
    assert "secret" not in str(caught.value)
