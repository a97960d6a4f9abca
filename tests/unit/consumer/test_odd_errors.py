"""An error that is no ``Exception`` is a failure of its message like any other, wherever the user's code raises it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from postroom import (
    AckMode,
    Concurrency,
    Consumer,
    Drop,
    Failure,
    Message,
    MessageContext,
    PoolLimits,
    Reject,
    ResourcePool,
    Retry,
    RetryPolicy,
    Visibility,
)
from postroom.events import Event, HandlerStarted, MessageReceived, MessageSettled
from postroom.options import Call
from postroom.payloads import context_from_attributes
from postroom.redaction import describe
from support.world import Order, Tenant, World, in_world, with_world


class Exit(BaseException):
    """What a library ends its own loop with."""


ODD: list[type[BaseException]] = [Exit, GeneratorExit, asyncio.CancelledError, StopAsyncIteration]


NEEDS_EAGER = pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 has eager tasks")


def _eager(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    own: Any = asyncio
    task: asyncio.Task[Any] = own.eager_task_factory(loop, coro, **options)
    return task


class Site:
    """Raises an error for one tenant, wherever it is built in."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error
        self.raised = 0
        self.observers = [self._observe]

    def visit(self, tenant: str) -> None:
        """Raise, if it is that tenant's."""
        if tenant == "bad":
            self.raised += 1
            raise self._error

    def context(self, message: Message) -> Tenant:
        """Fail as ``context=``."""
        self.visit(message.attributes["tenantId"])
        return Tenant(message.attributes["tenantId"])

    def unwrap(self, message: Message) -> Message:
        """Fail as ``unwrap=``."""
        self.visit(message.attributes["tenantId"])
        return message

    def visibility(self, call: Call) -> Visibility:
        """Fail as ``visibility=``."""
        self.visit(call.tenant.tenant_id)
        return Visibility()

    def _observe(self, event: Event) -> None:
        if isinstance(event, HandlerStarted):
            self.visit(event.tenant.tenant_id)

    def retry(self, call: Call) -> RetryPolicy:
        """Fail as ``retry=``."""
        self.visit(call.tenant.tenant_id)
        return RetryPolicy(base=0.5)

    @asynccontextmanager
    async def resources(self, tenant: Tenant) -> AsyncGenerator[str]:
        """Fail as ``resources=``."""
        self.visit(tenant.tenant_id)
        yield tenant.tenant_id


def others_after(error: type[BaseException], place: str, *, fails: bool = False) -> tuple[Site, int, int]:
    """Let something of a consumer raise for one tenant. Return it, the other tenant's messages done, and what is left.

    ``fails``: the handler fails for that tenant as well.
    """

    async def scenario(world: World) -> tuple[Site, int, int]:
        world.create()
        site, done = Site(error), 0
        options: dict[str, Any] = {"context": Tenant, place: getattr(site, place)}
        orders = Consumer("orders", client=world.client, **options)

        @orders.handler
        async def handle(_body: dict[str, Any], ctx: MessageContext[Tenant, Any]) -> None:
            nonlocal done
            if ctx.context.tenant_id == "good":
                done += 1
            elif fails:
                raise ValueError

        async with orders:
            world.send_orders("1", tenant="bad")
            await asyncio.sleep(2)
            world.send_orders("2", "3", "4", tenant="good")
            await asyncio.sleep(2)
        return site, done, sum(world.counts())

    return in_world(scenario)


@pytest.mark.parametrize("error", ODD)
@pytest.mark.parametrize("place", ["context", "unwrap", "resources"])
def test_what_fails_before_the_handler_fails_one_message(place: str, error: type[BaseException]) -> None:
    """The other tenants' messages are handled, and that one is kept, and not called again in a hot loop."""
    site, done, left = others_after(error, place)
    assert done == 3
    assert left == 1
    assert 0 < site.raised < 20


@pytest.mark.parametrize("error", ODD)
def test_a_policy_that_fails_lets_the_default_hold(error: type[BaseException]) -> None:
    """Its message is handled all the same, and so are the others'."""
    site, done, left = others_after(error, "visibility")
    assert (done, left) == (3, 0)
    assert site.raised > 0


@pytest.mark.parametrize("error", ODD)
def test_a_retry_policy_that_fails_lets_the_default_hold(error: type[BaseException]) -> None:
    """The failed message comes back after the default backoff; the consumer goes on."""
    site, done, left = others_after(error, "retry", fails=True)
    assert (done, left) == (3, 1)
    assert site.raised > 1, "it came back"


@pytest.mark.parametrize("error", ODD)
def test_an_observer_that_fails_fails_no_message(error: type[BaseException]) -> None:
    """Observers only watch."""
    site, done, left = others_after(error, "observers")
    assert (done, left) == (3, 0)
    assert site.raised == 1


@pytest.mark.parametrize("error", ODD)
@pytest.mark.parametrize("kind", ["async", "plain", pytest.param("eager", marks=NEEDS_EAGER)])
@with_world
async def test_what_a_handler_raises_is_its_messages_failure(
    world: World, error: type[BaseException], kind: str
) -> None:
    """It is told to ``on_error``, the consumer goes on, and the message comes back after the backoff.

    Also where a task factory of the application's starts tasks eagerly.
    """
    if kind == "eager":
        asyncio.get_running_loop().set_task_factory(_eager)
    world.create()
    site = Site(error)
    told: list[Failure] = []
    orders = Consumer("orders", context=Tenant, client=world.client, on_error=told.append)
    if kind == "plain":

        @orders.handler
        def work(_body: dict[str, Any], ctx: MessageContext[Tenant, None]) -> None:
            site.visit(ctx.context.tenant_id)

    else:

        @orders.handler
        async def handle(_body: dict[str, Any], ctx: MessageContext[Tenant, None]) -> None:
            site.visit(ctx.context.tenant_id)

    async with orders:
        world.send_orders("1", tenant="bad")
        await asyncio.sleep(2)
        world.send_orders("2", tenant="good")
        await asyncio.sleep(1)
    raised, left = site.raised, sum(world.counts())
    assert 1 < raised < 20
    assert len(told) == raised
    assert left == 1


@dataclass
class Later(Retry):
    """An instruction of the application's, which has an ``__init__`` of its own."""

    seconds: float = 3


@dataclass
class MuchLater(Retry):
    """One that says its delay in a way that SQS does not know."""

    delay: Any = timedelta(days=1)


@dataclass(frozen=True)
class Unwanted(Reject):
    """One that is frozen."""

    why: str = "x"


class Done(Drop):
    """One with a reason that cannot be had."""

    def __init__(self) -> None:
        """Say nothing."""

    @property
    def reason(self) -> str:  # type: ignore[override]
        """Fail."""
        raise RuntimeError


@pytest.mark.parametrize(
    ("instruction", "seen", "left", "dead"),
    [(Later, 2, 0, 0), (MuchLater, 2, 0, 0), (Unwanted, 1, 0, 1), (Done, 1, 0, 0)],
)
@pytest.mark.parametrize("place", ["handler", "on_error"])
@with_world
async def test_an_instruction_of_a_class_of_the_applications_is_obeyed(
    world: World, *, instruction: type[Exception], place: str, seen: int, left: int, dead: int
) -> None:
    """It need not call the ``__init__`` that it inherits, and whatever it is made of, it ends no consumer."""
    world.create(dead_letters="dead", receives=10)
    handled: list[str] = []

    def decide(_failure: Any = None) -> None:
        if len(handled) == 1:
            raise instruction

    orders: Consumer[Any, Any] = Consumer(
        "orders", client=world.client, on_error=decide if place == "on_error" else None
    )

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None:
        handled.append(order.order_id)
        if len(handled) == 1:
            if place == "on_error":
                raise ValueError
            decide()

    async with orders:
        world.send_orders("1")
        await asyncio.sleep(10)
        assert orders.running
        assert (len(handled), world.counts(), world.counts("dead")) == (seen, (left, 0), (dead, 0))


@pytest.mark.parametrize("place", ["context", "unwrap", "visibility", "observers"])
def test_sys_exit_ends_the_consumer_from_everywhere(place: str) -> None:
    """It asks for the end of the process, and is no failure of a message."""
    with pytest.raises(SystemExit):
        others_after(SystemExit, place)


@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt()], ids=["exit", "interrupt"])
@pytest.mark.parametrize("ack", [AckMode.ON_SUCCESS, AckMode.ALWAYS])
@pytest.mark.parametrize("place", ["plain", "async", "unwrap", "key"])
@with_world
async def test_a_resolver_that_asks_for_the_end_keeps_no_message_from_others(
    world: World, place: str, ack: AckMode, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer stops in order, and what it had received is visible long before the visibility timeout is over."""
    world.create()
    world.send_orders(*"123")

    def fail(_: Any) -> Any:
        raise error

    async def fail_later(_message: Message) -> Any:
        raise error

    @asynccontextmanager
    async def resources(_: Any) -> AsyncGenerator[None]:
        yield

    choices: dict[str, dict[str, Any]] = {
        "plain": {"context": fail},
        "async": {"context": fail_later},
        "unwrap": {"context": Tenant, "unwrap": fail},
        "key": {"context": Tenant, "resources": ResourcePool(resources, key=fail)},
    }
    orders: Consumer[Any, Any] = Consumer("orders", client=world.client, ack=ack, **choices[place])

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Any, Any]) -> None: ...

    began = asyncio.get_running_loop().time()
    with pytest.raises(type(error)):
        await orders.run()
    while world.counts() != (3, 0):
        await asyncio.sleep(0.1)
    assert (asyncio.get_running_loop().time() - began) < 10
    assert f"The application's code raised {describe(error)}; the consumer of orders stops" in caplog.messages
    assert any(text.startswith("Context resolution failed for message ") for text in caplog.messages)


CHOICES = ["visibility", "retry", "faults", "delay", "weights"]
OF_THE_POOL = ["host", "weight", "provider", "classify", "check"]


@pytest.mark.parametrize("place", ["observers", *CHOICES, *OF_THE_POOL])
@with_world
async def test_a_function_that_asks_for_the_end_keeps_no_message_from_others(
    world: World, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the consumer in order, as a handler does: what was not handled is visible again within seconds.

    In no mode a message is deleted because its tenant's resources asked for the end.
    """
    world.create()
    handled: list[str] = []

    def fail(*_: Any) -> Any:
        raise SystemExit(7)

    @asynccontextmanager
    async def resources(_: Any) -> AsyncGenerator[None]:
        if place == "classify":
            raise ConnectionError
        if place == "provider":
            fail()
        yield

    async def check(_: Any) -> None:
        fail()

    functions: dict[str, Any] = {name: fail for name in ("host", "weight", "classify") if name == place}
    if place == "check":
        functions = {"check": check, "limits": PoolLimits(check_after=0)}
    options: dict[str, dict[str, Any]] = {
        "observers": {"observers": [fail]},
        "delay": {"retry": RetryPolicy(delay=fail)},
        "weights": {"concurrency": Concurrency(weights=fail)},
        **{name: {name: fail} for name in ("visibility", "retry", "faults")},
    }
    orders: Consumer[Any, Any] = Consumer(
        "orders",
        context=Tenant,
        resources=ResourcePool(resources, **functions),
        client=world.client,
        ack=AckMode.ALWAYS if place in OF_THE_POOL else AckMode.ON_SUCCESS,
        **options.get(place, {}),
    )

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None:
        if place in {"retry", "faults", "delay"}:
            raise ValueError
        handled.append(order.order_id)

    async def send() -> None:
        for number in "123":
            world.send_orders(number)
            await asyncio.sleep(1)

    sending = asyncio.create_task(send())
    with pytest.raises(SystemExit):
        await orders.run()
    await sending
    await asyncio.sleep(5)
    assert (len(handled) + world.counts()[0], world.counts()[1]) == (3, 0)
    assert "The application's code raised SystemExit: 7; the consumer of orders stops" in caplog.messages


@with_world
async def test_what_an_observer_sets_reaches_no_other_message(world: World) -> None:
    """Messages are received and settled in tasks that last, or in another message's task."""
    mark: ContextVar[str] = ContextVar("mark", default="none")
    seen: list[tuple[str, str]] = []

    def observe(event: Event) -> None:
        if isinstance(event, MessageReceived | MessageSettled):
            seen.append((type(event).__name__, mark.get()))
            mark.set(event.message.attributes["tenantId"])

    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client, observers=[observe])

    @orders.handler
    async def handle(_body: dict[str, Any], ctx: MessageContext[Tenant, Any]) -> None:
        mark.set(f"set by the handler of {ctx.context.tenant_id}")
        await asyncio.sleep(0.01)

    async with orders:
        for tenant in "abcdefgh":
            world.send_orders("1", "2", tenant=tenant)
        await asyncio.sleep(5)
    assert len(seen) == 32
    assert set(seen) == {("MessageReceived", "none"), ("MessageSettled", "none")}


@with_world
async def test_what_the_unwrap_of_a_resolver_sets_reaches_no_other_message(world: World) -> None:
    """It is the user's code, in the task that receives."""
    mark: ContextVar[str] = ContextVar("mark", default="none")
    seen: list[str] = []

    def unwrap(message: Message) -> Message:
        seen.append(mark.get())
        mark.set(message.id)
        return message

    world.create()
    resolver = context_from_attributes(Tenant, unwrap=unwrap)
    orders = Consumer("orders", context=resolver, client=world.client)

    @orders.handler
    async def handle(_body: dict[str, Any], ctx: MessageContext[Tenant, Any]) -> None: ...

    async with orders:
        world.send_orders("1", "2", "3")
        await asyncio.sleep(5)
    assert seen == ["none"] * 3
