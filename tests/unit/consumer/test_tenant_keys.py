"""A decision about a key that no message can have is refused: it would change nothing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, NewType, cast

import pytest

from postroom import (
    Concurrency,
    ConfigurationError,
    Consumer,
    Fleet,
    Message,
    MessageContext,
    Reject,
    ResourcePool,
    TenantState,
)
from postroom.fleet import MemoryState
from postroom.payloads import context_from_attributes
from support.world import Tenant, World, in_world

TenantId = NewType("TenantId", str)


class Plan(StrEnum):
    """A context that is a text."""

    FREE = "free"


class Pair(NamedTuple):
    """A context that is a tuple."""

    tenant_id: str
    region: str


@dataclass(frozen=True)
class Place:
    """A context of which only a part names the tenant."""

    tenant_id: str
    region: str


async def nothing(context: Any) -> None:
    """Provide no resources."""


def of_message(message: Message) -> TenantId:
    """Resolve to a text with a name of its own."""
    return TenantId(message.attributes["tenantId"])


async def later(message: Message) -> Tenant | int:
    """Resolve to one of two classes."""
    return 1


class Resolver:
    """A resolver that is an object."""

    def __call__(self, message: Message) -> int:
        """Resolve to a number."""
        return 1


@pytest.mark.parametrize(
    ("consumer", "key", "text"),
    [
        (
            lambda: Consumer("q", context=Tenant),
            "acme",
            r"write Tenant\(tenant_id=\.\.\., region=\.\.\.\) in place of 'acme' \(str\)",
        ),
        (
            lambda: Consumer("q", context=context_from_attributes(Place)),
            "acme",
            r"write Place\(tenant_id=\.\.\., region=",
        ),
        (lambda: Consumer("q", context=Pair), "acme", r"write Pair\("),
        (lambda: Consumer("q", context=of_message), Tenant("acme"), r"write a str in place of"),
        (
            lambda: Consumer("q", context=cast("Any", later)),
            "acme",
            r"write Tenant\(tenant_id=\.\.\., region=\.\.\.\) or a int",
        ),
        (lambda: Consumer("q", context=Resolver()), "acme", r"write a int in place of"),
        (lambda: Consumer("q"), "acme", r"no context="),
        (lambda: Consumer("q", context=Place, resources=by_region()), Place("acme", "eu"), r"names this tenant 'eu'"),
        (
            lambda: Consumer("q", context=Place, resources=by_annotation()),
            Place("acme", "eu"),
            r"names this tenant 'eu'",
        ),
        (
            lambda: Consumer("q", context=Place, resources=by_annotation()),
            1,
            r"key= makes of its context, which is str",
        ),
    ],
)
@pytest.mark.parametrize("act", ["pause", "resume", "quarantine", "retry_now"])
def test_a_key_of_another_class_is_refused(
    consumer: Callable[[], Consumer[Any, Any]], key: Any, text: str, act: str
) -> None:
    """The text says what to write; nothing is decided or kept."""
    made = consumer()
    with pytest.raises(ConfigurationError, match=text):
        getattr(made.tenants, act)(key)
    assert list(made.tenants) == []


@pytest.mark.parametrize("act", ["limit", "divert", "invalidate", "close", "places", "drain", "offboard", "probe"])
async def test_every_decision_looks_at_its_key(act: str) -> None:
    """Those that take more arguments, and the coroutines, refuse it as ``pause`` does."""
    more: dict[str, dict[str, Any]] = {
        "limit": {"rate": 1},
        "divert": {"queue": "aside"},
        "offboard": {"reason": "left"},
    }
    tenants = Consumer("q", context=Tenant).tenants

    async def call() -> None:
        done: Awaitable[object] | None = getattr(tenants, act)("acme", **more.get(act, {}))
        if done is not None:
            await done

    with pytest.raises(ConfigurationError, match="named by its context"):
        await call()
    assert list(tenants) == []


@pytest.mark.parametrize("number", ["overrides", "weights"])
@pytest.mark.parametrize(
    ("more", "key", "text", "right"),
    [
        ({"context": Tenant}, "acme", r"named by its context: write Tenant\(.* in place of 'acme'", Tenant("acme")),
        ({"context": of_message}, Tenant("acme"), r"write a str in place of", "acme"),
        ({}, "acme", r"no context=", None),
    ],
)
def test_the_number_of_what_can_be_no_tenant_is_refused(
    more: dict[str, Any], key: Any, text: str, right: Any, number: str
) -> None:
    """It would change nothing. When the consumer is made, and when it is changed."""

    def of(tenant: object) -> Concurrency:
        numbers: dict[str, Any] = {number: {tenant: 2}}
        return Concurrency(**numbers)

    with pytest.raises(ConfigurationError, match=rf"Concurrency\({number}=\.\.\.\): .*{text}"):
        Consumer("q", concurrency=of(key), **more)
    made: Consumer[Any, Any] = Consumer("q", concurrency=of(right), **more)
    with pytest.raises(ConfigurationError, match=text):
        made.adjust(of(key))
    assert getattr(made.settings.concurrency, number) == {right: 2}


def test_the_number_of_what_can_be_no_tenant_is_refused_of_a_fleet_too() -> None:
    """What all replicas share changes nothing either."""
    with pytest.raises(ConfigurationError, match=r"Fleet\(overrides=\.\.\.\): .*named by its context"):
        Consumer("q", context=Tenant, fleet=Fleet(MemoryState(), overrides={"acme": 2}))
    Consumer("q", context=Tenant, fleet=Fleet(MemoryState(), overrides={Tenant("acme"): 2}))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (lambda _: None, "ValueError: it returned None"),
        (lambda _: KeyError("acme"), "TypeError: it returned KeyError; let it raise that"),
        (lambda tenant: nothing([tenant]), "TypeError: it returned an awaitable, which nothing awaits"),
        (dict[Any, str]().__getitem__, "KeyError: "),
    ],
)
def test_a_context_that_the_pool_has_no_key_for_is_refused(key: Any, said: str) -> None:
    """In words that tell which function failed, and on what."""
    pool = ResourcePool(nothing, cleanup=None, key=key)
    text = rf"the pool's key= names the tenants, and failed on 'acme:eu-west-1' \(Tenant\): {said}"
    with pytest.raises(ConfigurationError, match=text):
        Consumer("q", context=Tenant, resources=pool).tenants.pause(Tenant("acme"))
    with pytest.raises(ConfigurationError, match=rf"Concurrency\(overrides=\.\.\.\): {text}"):
        Consumer("q", context=Tenant, resources=pool, concurrency=Concurrency(overrides={Tenant("acme"): 2}))


def test_a_mapping_that_looks_up_a_part_of_a_tenant_is_accepted() -> None:
    """Its keys are no tenants."""

    class ByName(dict[str, int]):
        def get(self, key: Any, default: Any = None) -> Any:
            return super().get(key.tenant_id, default)

    numbers = cast("dict[Any, int]", ByName(acme=2))
    made: Consumer[Tenant, None] = Consumer("q", context=Tenant, concurrency=Concurrency(overrides=numbers))
    assert made.settings.concurrency.overrides is numbers


def by_region() -> ResourcePool[Place, None]:
    """Name tenants by a function without annotations."""
    return ResourcePool(nothing, cleanup=None, key=lambda place: place.region)


def by_annotation() -> ResourcePool[Place, None]:
    """Name tenants by a function that says what it returns."""

    def region(place: Place) -> str:
        return place.region

    return ResourcePool(nothing, cleanup=None, key=region)


def unreadable(message: Message) -> "NotThere":  # type: ignore[name-defined]  # noqa: F821
    """Resolve to what only type checkers know."""
    return None  # pyright: ignore[reportReturnType]


def literal(message: Message) -> Literal["a", "b"]:
    """Resolve to one of two texts."""
    return "a"


def number(message: Message) -> float:
    """Resolve to a number that other classes equal."""
    return 1.0


@pytest.mark.parametrize(
    ("consumer", "key"),
    [
        (lambda: Consumer("q", context=Tenant), Tenant("acme")),
        (lambda: Consumer("q", context=Pair), ("acme", "eu")),
        (lambda: Consumer("q", context=of_message), "acme"),
        (lambda: Consumer("q", context=cast("Any", later)), 2),
        (lambda: Consumer("q", context=lambda message: message.group_id), "acme"),
        (lambda: Consumer("q", context=cast("Any", unreadable)), "acme"),
        (lambda: Consumer("q", context=literal), "b"),
        (lambda: Consumer("q", context=number), 1),
        (lambda: Consumer("q", context=lambda message: Plan.FREE), "free"),
        (lambda: Consumer("q"), None),
        (lambda: Consumer("q", context=Place, resources=by_region()), "eu"),
        (lambda: Consumer("q", context=Place, resources=by_annotation()), "eu"),
    ],
)
def test_a_key_that_a_message_may_have_is_taken_before_the_first_message(
    consumer: Callable[[], Consumer[Any, Any]], key: Any
) -> None:
    """Also one that only equals such a key, and one about which the annotations do not tell."""
    made = consumer()
    made.tenants.pause(key)
    assert made.tenants[key].state is TenantState.PAUSED


@pytest.mark.parametrize(("key", "warned"), [("acme", True), (Tenant("other"), False)])
def test_a_key_unlike_those_seen_is_warned_of(key: Any, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing else tells the class of a context, the tenants that are here do."""

    async def scenario(world: World) -> None:
        world.create()
        orders: Consumer[Any] = Consumer(
            "orders", context=lambda message: Tenant(message.attributes["tenantId"]), client=world.client
        )

        @orders.handler
        async def record(order: dict[str, Any], ctx: MessageContext[Any]) -> None:
            orders.tenants.pause(key)

        world.send_orders("1", tenant="a")
        async with orders:
            await asyncio.sleep(1)
            assert orders.statistics().succeeded == 1

    caplog.set_level(logging.WARNING)
    in_world(scenario)
    lines = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert bool(lines) is warned
    if warned:
        expected = "A decision about tenant acme, a str, will have no effect: tenants here are each a Tenant"
        assert lines == [f"{expected}, such as 'a:eu-west-1'"]


def test_a_rejection_names_the_tenant_of_a_message_that_was_handled(caplog: pytest.LogCaptureFixture) -> None:
    """By the pool's key, also where that is one for all contexts."""

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead")
        pool = ResourcePool(nothing, cleanup=None, key=lambda _: "all")
        orders: Consumer[Any, None] = Consumer("orders", context=Tenant, resources=pool, client=world.client)

        @orders.handler
        async def record(order: dict[str, Any], ctx: MessageContext[Any, None]) -> None:
            raise Reject("no use")

        world.send_orders("1", tenant="a")
        async with pool, orders:
            await asyncio.sleep(1)

    caplog.set_level(logging.WARNING)
    in_world(scenario)
    (line,) = [record.getMessage() for record in caplog.records if "was sent to the dead-letter" in record.getMessage()]
    assert "of tenant all was" in line
