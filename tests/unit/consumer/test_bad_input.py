"""Bad input gets a clear error that names the step; the slot is freed, polling goes on, and no other message waits."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom import (
    Concurrency,
    Consumer,
    ContextError,
    DecodeError,
    Failure,
    HandlerTimeout,
    Message,
    MessageContext,
    MissingAttribute,
    NotOpenError,
    QueueNotFound,
    ResourceOpenError,
    UnknownTenant,
    ValidationError,
)
from postroom.local.shapes import AttributeValue, Send
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Tenant, Database]
SECRET = "s3cr3t-4711"


class Outcome:
    """What a run with one bad and one good message came to."""

    def __init__(
        self, world: World, databases: Databases, failures: list[Failure], consumer: Consumer[Any, Any]
    ) -> None:
        self.failures = failures
        self.good = databases.rows("good")
        self.opened = databases.diary
        self.counts = world.counts()
        self.statistics = consumer.statistics()

    @property
    def error(self) -> BaseException:
        """The first failure's error."""
        return self.failures[0].error


def outcome_of(send: Callable[[World], object], *, seconds: float = 0.9, **options: Any) -> Outcome:
    """Send something bad, then a good order of another tenant, consume for a moment, and return what came of it."""

    async def scenario(world: World) -> Outcome:
        world.create()
        databases = Databases()
        failures: list[Failure] = []
        arguments: dict[str, Any] = {"context": Tenant, "resources": databases, "on_error": failures.append, **options}
        orders = Consumer("orders", client=world.client, **arguments)

        @orders.handler
        async def record(order: Order, ctx: Ctx) -> None:
            if order.order_id == "raise":
                raise RuntimeError("handler")
            await asyncio.sleep(order.seconds)
            ctx.resources.write(order.order_id)

        send(world)
        world.send_orders("1", tenant="good")
        async with orders:
            await asyncio.sleep(seconds)
            assert orders.statistics().running == 0, "the slot is free again"
            world.send_orders("2", tenant="good")
            await asyncio.sleep(0.2)
        return Outcome(world, databases, failures, orders)

    return in_world(scenario)


@pytest.mark.parametrize(
    ("send", "error", "told"),
    [
        pytest.param(
            lambda world: world.send({"order_id": "x"}, tenant=None), MissingAttribute, "tenantId", id="no attributes"
        ),
        pytest.param(
            lambda world: world.broker.send(
                "orders",
                Send(
                    message_body="{}",
                    message_attributes={"tenantId": AttributeValue(binary_value=b"a", data_type="Binary")},
                ),
            ),
            ContextError,
            "Binary",
            id="binary attribute",
        ),
        pytest.param(
            lambda world: world.send({"order_id": "x"}, tenant="../../etc"), ContextError, "tenantId", id="bad pattern"
        ),
        pytest.param(lambda world: world.send("{not json"), DecodeError, "JSON", id="not json"),
        pytest.param(lambda world: world.send("[]"), ValidationError, "", id="array"),
        pytest.param(lambda world: world.send('"str"'), ValidationError, "", id="string"),
        pytest.param(lambda world: world.send({"order_id": 5}), ValidationError, "order_id", id="wrong type"),
        pytest.param(lambda world: world.send({}), ValidationError, "order_id", id="missing field"),
        pytest.param(
            lambda world: world.send('{"order_id": "' + SECRET * 90_000), DecodeError, "JSON", id="nearly 1 MiB"
        ),
        pytest.param(lambda world: world.send({"order_id": "raise"}), RuntimeError, "handler", id="handler raises"),
    ],
)
def test_a_bad_message_fails_alone(
    send: Callable[[World], object], error: type[Exception], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error's type names the step; the good messages around it are handled at once; nothing is acknowledged."""
    with caplog.at_level(logging.DEBUG):
        outcome = outcome_of(send)
    assert isinstance(outcome.error, error)
    assert told in str(outcome.error) or told in getattr(outcome.error, "path", "")
    assert outcome.good == ["1", "2"]
    assert sum(outcome.counts) == 1, "the bad message is still in the queue"
    assert SECRET not in caplog.text
    assert outcome.statistics.last_poll_age is not None


@pytest.mark.parametrize("body", ["{not json", "[]", '"str"', "{}"])
def test_a_malformed_body_opens_nobodys_database(body: str) -> None:
    """Decoding comes before the lease."""
    outcome = outcome_of(lambda world: world.send(body, tenant="victim"))
    assert "open victim" not in outcome.opened


class Incomparable:
    """A context that looks at a connection that is closed, whenever it is compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise RuntimeError(other)


@pytest.mark.parametrize(
    ("resolver", "told"),
    [
        pytest.param(lambda _message: None, "returned None", id="none"),
        pytest.param(lambda _message: ["a"], "not hashable", id="unhashable"),
        pytest.param(lambda _message: Incomparable(), "a Incomparable, cannot be compared", id="incomparable"),
        pytest.param(lambda message: {}[message.id], "", id="raises"),
    ],
)
def test_a_resolver_that_fails_is_a_context_error(resolver: Callable[[Message], Any], told: str) -> None:
    """Whatever it returns or raises; the message goes on to the error handler."""

    def resolve(message: Message) -> Any:
        if message.attributes["tenantId"] == "good":
            return Tenant("good")
        return resolver(message)

    outcome = outcome_of(lambda world: world.send({"order_id": "x"}), context=resolve)
    assert isinstance(outcome.error, ContextError)
    assert told in str(outcome.error)
    assert outcome.good == ["1", "2"]


def test_an_async_resolver_that_fails_is_a_context_error() -> None:
    """Its exception is kept as the cause."""

    async def resolve(message: Message) -> Tenant:
        await asyncio.sleep(0.01)
        if message.attributes["tenantId"] != "good":
            raise LookupError("unknown tenant")
        return Tenant("good")

    outcome = outcome_of(lambda world: world.send({"order_id": "x"}), context=resolve)
    assert isinstance(outcome.error, ContextError)
    assert isinstance(outcome.error.__cause__, LookupError)
    assert outcome.good == ["1", "2"]


def test_an_async_resolver_that_hangs_gives_up() -> None:
    """After its time limit the message fails like any other; no other message waited for it."""

    async def resolve(message: Message) -> Tenant:
        if message.attributes["tenantId"] != "good":
            await asyncio.Event().wait()
        return Tenant("good")

    outcome = outcome_of(lambda world: world.send({"order_id": "x"}), context=resolve, seconds=31)
    assert isinstance(outcome.error, ContextError)
    assert isinstance(outcome.error.__cause__, TimeoutError)
    assert outcome.good == ["1", "2"]


def test_a_handler_that_hangs_is_cancelled_at_its_timeout() -> None:
    """It has failed with HandlerTimeout, and its slot is free."""
    outcome = outcome_of(
        lambda world: world.send({"order_id": "x", "seconds": 1000}), concurrency=Concurrency(handler_timeout=0.5)
    )
    assert isinstance(outcome.error, HandlerTimeout)
    assert outcome.good == ["1", "2"]


def test_an_on_error_that_raises_changes_nothing() -> None:
    """The message is treated as failed; polling does not notice."""

    def broken(_failure: Failure) -> None:
        raise ZeroDivisionError

    async def broken_async(_failure: Failure) -> None:
        raise ZeroDivisionError

    for on_error in (broken, broken_async):
        outcome = outcome_of(lambda world: world.send("{}"), on_error=on_error)
        assert outcome.good == ["1", "2"]
        assert sum(outcome.counts) == 1


@with_world
async def test_a_handler_that_raises_cancelled_error_has_failed(world: World) -> None:
    """Some library's CancelledError is not ours: the message is retried, and the consumer lives."""
    world.create()
    failures: list[Failure] = []
    orders = Consumer("orders", context=Tenant, on_error=failures.append, client=world.client)

    @orders.handler
    async def leak(order: Order, ctx: MessageContext[Tenant]) -> None:
        if ctx.message.receive_count == 1:
            raise asyncio.CancelledError

    world.send_orders("1")
    async with orders:
        await asyncio.sleep(5)
        succeeded = orders.statistics().succeeded
    assert len(failures) == 1
    assert isinstance(failures[0].error.__cause__, asyncio.CancelledError)
    assert succeeded == 1


@asynccontextmanager
async def yields_twice(tenant: Tenant) -> AsyncIterator[Database]:
    """A provider with a defect."""
    database = Database(tenant)
    yield database
    if tenant.tenant_id != "good":
        yield database


@with_world
async def test_a_provider_that_yields_twice_is_told_at_close_and_stops_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message is handled; the defect is logged when the resource closes."""
    world.create()
    orders = Consumer("orders", context=Tenant, resources=yields_twice, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None: ...

    world.send_orders("1", tenant="bad")
    async with orders:
        await asyncio.sleep(1)
    assert orders.statistics().succeeded == 1
    assert "RuntimeError" in caplog.text


def failing(error: Callable[[], Exception]) -> Callable[[Tenant], Any]:
    """Make a provider that raises for everybody but the good tenant."""

    @asynccontextmanager
    async def provider(tenant: Tenant) -> AsyncIterator[Database]:
        if tenant.tenant_id != "good":
            raise error()
        yield Database(tenant)

    return provider


def test_a_tenant_whose_database_is_down_is_deferred() -> None:
    """Transient: reported as ResourceOpenError with its cause, and seen again later; not acknowledged in any mode."""
    outcome = outcome_of(
        lambda world: world.send({"order_id": "x"}, tenant="down"),
        resources=failing(lambda: ConnectionError(f"password={SECRET}")),
    )
    assert isinstance(outcome.error, ResourceOpenError)
    assert not outcome.error.permanent
    assert isinstance(outcome.error.__cause__, ConnectionError)
    assert SECRET not in str(outcome.error)
    assert sum(outcome.counts) == 1
    assert outcome.statistics.running == 0


def test_an_unknown_tenant_is_a_permanent_failure() -> None:
    """``UnknownTenant`` says that trying again soon cannot help: the failure path applies."""
    outcome = outcome_of(
        lambda world: world.send({"order_id": "x"}, tenant="nobody"), resources=failing(lambda: UnknownTenant("nobody"))
    )
    assert isinstance(outcome.error, ResourceOpenError)
    assert outcome.error.permanent


@with_world
async def test_a_backlog_of_an_unknown_tenant_has_its_attempts_side_by_side(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What is refused at once does not wait for the next look: one message in a minute would take weeks."""
    world.create(dead_letters="dead", receives=3)
    databases = Databases()
    tries: list[str] = []

    def unknown() -> Exception:
        tries.append("gone")
        return UnknownTenant("gone")

    databases.failures["gone"] = unknown
    orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)
    loop = asyncio.get_running_loop()
    late = [0.0]

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        late.append(loop.time() - order.seconds)

    async with orders:
        world.send_orders(*map(str, range(100)), tenant="gone", group="gone")
        for _ in range(60):
            world.send_orders("x", tenant="well", group="well", seconds=loop.time())
            await asyncio.sleep(5)
        assert world.counts() == (0, 0)
    assert len(late) == 61
    dead = world.counts("dead")[0]
    assert max(late) < 1.0
    assert len(tries) <= 5
    assert dead == 100
    assert sum(record.levelname == "ERROR" for record in caplog.records) <= 50


@with_world
async def test_what_comes_after_a_tenant_was_said_not_to_exist_waits_until_that_is_asked_again(world: World) -> None:
    """It costs its only attempt nothing that the tenant was created a moment before it."""
    world.create(dead_letters="dead", receives=1)
    databases = Databases()
    databases.failures["new"] = lambda: UnknownTenant("new")
    orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)
    handled: list[str] = []

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        handled.append(order.order_id)

    async with orders:
        world.send_orders("too early", tenant="new")
        await asyncio.sleep(5)
        del databases.failures["new"]
        world.send_orders("1", "2", tenant="new")
        await asyncio.sleep(70)
    assert (sorted(handled), world.counts("dead")[0]) == (["1", "2"], 1)


@with_world
async def test_a_pool_that_is_closed_fails_messages_not_the_consumer(world: World) -> None:
    """The user closed the pool under the consumer: messages fail with the error that says so."""
    from postroom import ResourcePool

    world.create()
    failures: list[Failure] = []
    pool = ResourcePool(Databases())
    orders = Consumer("orders", context=Tenant, resources=pool, on_error=failures.append, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None: ...

    async with orders:
        await pool.aclose()
        world.send_orders("1")
        await asyncio.sleep(0.5)
    [failure] = failures
    assert type(failure.error).__name__ == "ClosedError"


@with_world
async def test_a_queue_that_does_not_exist_is_told_at_start(world: World) -> None:
    """Before anything runs."""
    orders = Consumer("nowhere", client=world.client)

    @orders.handler
    async def record(order: dict[str, Any], ctx: MessageContext) -> None: ...

    with pytest.raises(QueueNotFound, match="nowhere"):
        await orders.run()
    assert not orders.running
    with pytest.raises(NotOpenError):
        await orders.wait_for_stop()


@with_world
async def test_wrong_messages_do_not_delay_good_ones(world: World) -> None:
    """A flood of messages without attributes shares one lane; a tenant's messages pass it by."""
    world.create()
    times: list[float] = []

    async def slow_report(_failure: Failure) -> None:
        await asyncio.sleep(2)

    orders = Consumer("orders", context=Tenant, on_error=slow_report, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        times.append(asyncio.get_running_loop().time())

    for number in range(40):
        world.send({"order_id": f"bad {number}"}, tenant=None)
    world.send_orders("1", "2", "3")
    async with orders:
        await asyncio.sleep(5)
    assert max(times) < 0.5
