"""The path of a message: from its attributes to its own tenant's database, and to its settlement."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from postroom import (
    AckMode,
    ConfigurationError,
    Consumer,
    Drop,
    Failure,
    Message,
    MessageContext,
    MessageError,
    NotOpenError,
    Reject,
    ResourcePool,
    Retry,
    RetryPolicy,
    Settlement,
    current_message,
)
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Tenant, Database]


async def consumed(consumer: Consumer[Any, Any], *, seconds: float = 60.0) -> None:
    """Run a consumer for some virtual seconds."""
    async with consumer:
        await asyncio.sleep(seconds)


@with_world
async def test_each_message_meets_its_own_tenants_database(world: World) -> None:
    """Overlapping messages of three tenants, with awaits between all steps, never meet another's (I5)."""
    world.create()
    databases = Databases()
    databases.seconds = 0.2
    orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        await asyncio.sleep(order.seconds)
        assert ctx.resources.tenant == ctx.context
        current = current_message()
        assert current is ctx
        await asyncio.sleep(order.seconds)
        ctx.resources.write(order.order_id)

    for number in range(30):
        tenant = "abc"[number % 3]
        world.send_orders(f"{tenant}{number}", tenant=tenant, seconds=0.01 * (number % 7))
    await consumed(orders)
    assert world.counts() == (0, 0)
    for tenant in "abc":
        assert sorted(databases.rows(tenant)) == sorted(
            f"{tenant}{number}" for number in range(30) if "abc"[number % 3] == tenant
        )
    assert databases.diary.count("open a") == 1


@with_world
async def test_contexts_that_look_alike_when_joined_get_different_databases(world: World) -> None:
    """("a:b", "c") and ("a", "b:c") are two tenants: the context itself is the key, not a joined string."""
    world.create()
    databases = Databases()
    orders = Consumer(
        "orders",
        context=lambda message: Tenant(message.attributes["tenantId"], message.attributes["zone"]),
        resources=databases,
        client=world.client,
    )

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        ctx.resources.write(order.order_id)

    world.send({"order_id": "first"}, tenant="a:b", zone="c")
    world.send({"order_id": "second"}, tenant="a", zone="b:c")
    await consumed(orders)
    assert databases.rows("a:b") == ["first"]
    assert databases.rows("a") == ["second"]


@with_world
async def test_a_failing_handler_is_tried_again_with_backoff(world: World) -> None:
    """ON_SUCCESS leaves the message in the queue; it is seen again after base, then twice that."""
    world.create()
    times: list[float] = []
    retry = RetryPolicy(base=4, jitter=0)
    orders = Consumer("orders", context=Tenant, retry=retry, client=world.client)

    @orders.handler
    async def fail_twice(order: Order, ctx: MessageContext[Tenant]) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 3:
            raise RuntimeError(order.order_id)

    world.send_orders("1")
    await consumed(orders)
    assert world.counts() == (0, 0)
    first, second, third = times
    assert 4.0 <= second - first < 4.5
    assert 8.0 <= third - second < 8.5


@with_world
async def test_always_acknowledges_a_failure(world: World) -> None:
    """ALWAYS: the failure is reported and the message is gone."""
    world.create()
    failures: list[Failure] = []
    orders = Consumer("orders", context=Tenant, ack=AckMode.ALWAYS, on_error=failures.append, client=world.client)

    @orders.handler
    async def fail(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise KeyError(order.order_id)

    world.send_orders("1")
    await consumed(orders)
    assert world.counts() == (0, 0)
    [failure] = failures
    assert isinstance(failure.error, KeyError)
    assert failure.context == Tenant("a")
    assert failure.payload == Order("1")


@with_world
async def test_manual_does_nothing_by_itself(world: World) -> None:
    """MANUAL: what is not acknowledged comes back after its visibility timeout."""
    world.create()
    seen: list[str] = []
    orders = Consumer("orders", context=Tenant, ack=AckMode.MANUAL, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append(order.order_id)
        if seen.count(order.order_id) == 2 or order.order_id == "at once":
            await ctx.ack()

    world.send_orders("at once", "later")
    await consumed(orders, seconds=80)
    assert world.counts() == (0, 0)
    assert sorted(seen) == ["at once", "later", "later"]


@with_world
async def test_a_handler_may_ask_for_a_retry(world: World) -> None:
    """Both ways: raise Retry, or await ctx.retry(). Neither is a failure."""
    world.create()
    seen: list[tuple[str, float]] = []
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def ask(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append((order.order_id, asyncio.get_running_loop().time()))
        if ctx.message.receive_count == 1:
            if order.order_id == "raise":
                raise Retry(delay=7)
            await ctx.retry(delay=7)

    world.send_orders("raise", "await")
    await consumed(orders)
    failures = sum(orders.statistics().failed.values())
    assert world.counts() == (0, 0)
    for name in ("raise", "await"):
        first, second = (time for order, time in seen if order == name)
        assert 7.0 <= second - first < 7.5
    assert failures == 0


@with_world
async def test_a_rejected_message_is_in_the_dead_letter_queue_at_once(world: World) -> None:
    """Reject sends it there with the reason, on the first receive."""
    world.create(dead_letters="dead")
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def refuse(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise Reject(f"no such product in {order.order_id}")

    world.send_orders("1")
    await consumed(orders, seconds=5)
    assert world.counts() == (0, 0)
    [letter] = await world.broker.receive("dead")
    assert letter.message_attributes["postroom.reason"].string_value == "no such product in 1"
    assert letter.message_attributes["tenantId"].string_value == "a"


@pytest.mark.parametrize("instruction", [Reject("never"), Drop("sent by mistake"), Retry(delay=600)])
@with_world
async def test_an_instruction_that_on_error_returns_is_told_of(
    world: World, instruction: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """As a lambda does, which cannot raise: nothing obeys it, and nothing said so."""
    world.create(dead_letters="dead")
    orders = Consumer("orders", context=Tenant, on_error=lambda _: instruction, client=world.client)  # type: ignore[arg-type, return-value]

    @orders.handler
    async def fail(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise ZeroDivisionError

    world.send_orders("1")
    await consumed(orders, seconds=0.5)
    name = type(instruction).__name__
    assert f"on_error returned {name}, which decides nothing: write `raise {name}(...)`" in caplog.text


@with_world
async def test_on_error_may_decide_that_a_failure_is_poison(world: World) -> None:
    """An on_error that raises Reject sends the message to the dead-letter queue."""
    world.create(dead_letters="dead")

    def judge(failure: Failure) -> None:
        if isinstance(failure.error, ZeroDivisionError):
            raise Reject("divided by zero") from failure.error

    orders = Consumer("orders", context=Tenant, on_error=judge, client=world.client)

    @orders.handler
    async def fail(order: Order, ctx: MessageContext[Tenant]) -> None:
        raise ZeroDivisionError

    world.send_orders("1")
    await consumed(orders, seconds=5)
    assert world.counts("dead") == (1, 0)


@with_world
async def test_middleware_goes_around_the_handler_in_order(world: World) -> None:
    """The first is the outermost, and one that raises counts as the handler's failure."""
    world.create()
    diary: list[str] = []

    def layer(name: str) -> Any:
        async def around(payload: Any, ctx: MessageContext[Any, Any], call_next: Any) -> None:
            diary.append(f"{name} in")
            await call_next(payload, ctx)
            diary.append(f"{name} out")

        return around

    orders = Consumer("orders", context=Tenant, middleware=[layer("outer"), layer("inner")], client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        diary.append(order.order_id)

    world.send_orders("1")
    await consumed(orders, seconds=5)
    assert diary == ["outer in", "inner in", "1", "inner out", "outer out"]


@with_world
async def test_a_plain_function_is_a_handler(world: World) -> None:
    """A def handler runs in a thread, with the message's context variable set there."""
    world.create()
    seen: list[tuple[str, bool]] = []
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append((order.order_id, current_message() is ctx))

    world.send_orders("1")
    await consumed(orders, seconds=5)
    assert world.counts() == (0, 0)
    assert seen == [("1", True)]


@with_world
async def test_an_object_with_call_is_a_handler(world: World) -> None:
    """A listener class, as in other frameworks, needs no base class."""

    class Listener:
        """Keeps what it was given."""

        def __init__(self) -> None:
            self.seen: list[Order] = []

        async def __call__(self, order: Order, ctx: MessageContext[Tenant]) -> None:
            self.seen.append(order)

    world.create()
    listener = Listener()
    orders = Consumer("orders", context=Tenant, client=world.client)
    orders.handler(listener)
    world.send_orders("1")
    await consumed(orders, seconds=5)
    assert listener.seen == [Order("1")]


@with_world
async def test_without_context_and_resources_both_are_none(world: World) -> None:
    """A queue of one tenant needs neither; the per-tenant cap does not apply to it."""
    world.create()
    running = most = 0
    seen: list[Any] = []
    orders = Consumer("orders", client=world.client)

    @orders.handler
    async def record(order: dict[str, Any], ctx: MessageContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        seen.append((ctx.context, ctx.resources))

    world.send_orders(*(str(n) for n in range(30)))
    await consumed(orders)
    assert most == 30
    assert set(seen) == {(None, None)}


@with_world
async def test_an_async_resolver_keeps_the_order_of_a_message_group(world: World) -> None:
    """On a FIFO queue, contexts of one group are resolved one after the other, however long each takes."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    seen: list[str] = []
    delays = iter([3.0, 0.0, 1.0, 0.0, 2.0, 0.0])

    async def slow(message: Message) -> Tenant:
        await asyncio.sleep(next(delays))
        return Tenant(message.attributes["tenantId"])

    orders = Consumer[Tenant]("orders.fifo", context=slow, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Any]) -> None:
        seen.append(order.order_id)

    for number in range(6):
        world.send({"order_id": str(number)}, queue="orders.fifo", group="g")
    await consumed(orders)
    assert seen == ["0", "1", "2", "3", "4", "5"]


@with_world
async def test_a_fifo_group_stays_in_order_when_a_message_fails(world: World) -> None:
    """The rest of the group goes back and comes again behind the failed one; other groups go on."""
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    done: list[str] = []
    orders = Consumer("orders.fifo", context=Tenant, retry=RetryPolicy(base=2, jitter=0), client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(0.1)
        if order.order_id == "g1" and ctx.message.receive_count < 3:
            raise RuntimeError
        done.append(order.order_id)

    for number in range(4):
        world.send({"order_id": f"g{number}"}, queue="orders.fifo", group="g")
        world.send({"order_id": f"h{number}"}, queue="orders.fifo", group="h")
    await consumed(orders)
    assert world.counts("orders.fifo") == (0, 0)
    assert [name for name in done if name[0] == "g"] == ["g0", "g1", "g2", "g3"]
    assert [name for name in done if name[0] == "h"] == ["h0", "h1", "h2", "h3"]
    assert done.index("h3") < done.index("g1")


@with_world
async def test_a_handler_of_three_visibility_timeouts_runs_once(world: World) -> None:
    """The heartbeat keeps the message ours; it is deleted once."""
    world.create(VisibilityTimeout="10")
    seen: list[str] = []
    from postroom import Visibility

    orders = Consumer("orders", context=Tenant, visibility=Visibility(timeout=10), client=world.client)

    @orders.handler
    async def slow(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append(order.order_id)
        await asyncio.sleep(30)

    world.send_orders("1")
    await consumed(orders, seconds=60)
    assert world.counts() == (0, 0)
    statistics = orders.statistics()
    assert seen == ["1"]
    assert statistics.settled == {Settlement.ACKED: 1}
    assert statistics.extensions >= 3


def test_a_consumer_without_handler_cannot_be_started() -> None:
    """The error shows the line to write."""
    consumer = Consumer("orders")

    async def scenario(_world: World) -> None:
        with pytest.raises(ConfigurationError, match=r"@consumer\.handler"):
            await consumer.run()

    in_world(scenario)


def test_a_second_handler_is_refused() -> None:
    """One consumer calls one handler."""
    consumer = Consumer("orders")

    @consumer.handler
    async def first(order: dict[str, Any], ctx: MessageContext) -> None: ...

    with pytest.raises(ConfigurationError, match="has a handler already"):

        @consumer.handler
        async def second(order: dict[str, Any], ctx: MessageContext) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"queue": ""}, "name, URL or ARN"),
        ({"queue": 5}, "name, URL or ARN"),
        ({"queue": "q", "resources": Databases()}, "needs context="),
        ({"queue": "q", "context": "tenantId"}, "context="),
        ({"queue": "q", "context": Tenant, "resources": 5}, "resources="),
        ({"queue": "q", "context": Tenant, "cleanup": print}, "cleanup="),
        ({"queue": "q", "concurrency": 10}, r"takes Concurrency\("),
        ({"queue": "q", "retry": 3}, r"takes RetryPolicy\("),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(arguments: dict[str, Any], told: str) -> None:
    """The text names the argument and what it takes."""
    with pytest.raises(ConfigurationError, match=told):
        Consumer(**arguments)


@with_world
async def test_a_pool_that_was_not_entered_is_opened_and_closed_by_its_consumers(world: World) -> None:
    """A caller that uses a pool enters it; the last one out closes it."""
    world.create()
    databases = Databases()
    pool = ResourcePool(databases)
    orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        ctx.resources.write(order.order_id)

    world.send_orders("1")
    await consumed(orders, seconds=5)
    assert databases.diary == ["open a", "close a"]


@with_world
async def test_a_pool_that_you_entered_stays_yours(world: World) -> None:
    """The consumer leaves it open: another user, such as a web route, still has it."""
    world.create()
    databases = Databases()
    async with ResourcePool(databases) as pool:
        orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)

        @orders.handler
        async def record(order: Order, ctx: Ctx) -> None:
            ctx.resources.write(order.order_id)

        world.send_orders("1")
        await consumed(orders, seconds=5)
        assert databases.made[0].open
        async with pool.lease(Tenant("a")) as database:
            assert database.rows == ["1"]
    assert not databases.made[0].open


@with_world
async def test_an_async_function_with_cleanup_is_a_provider(world: World) -> None:
    """The pair of functions of other frameworks works as well as a context manager."""
    world.create()
    diary: list[str] = []

    async def connect(tenant: Tenant) -> Database:
        diary.append(f"open {tenant.tenant_id}")
        return Database(tenant)

    async def disconnect(database: Database) -> None:
        diary.append(f"close {database.tenant.tenant_id} with {database.rows}")

    orders = Consumer("orders", context=Tenant, resources=connect, cleanup=disconnect, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: Ctx) -> None:
        ctx.resources.write(order.order_id)

    world.send_orders("1")
    await consumed(orders, seconds=5)
    assert diary == ["open a", "close a with ['1']"]


@with_world
async def test_a_consumer_can_be_started_again(world: World) -> None:
    """A web application's lifespan may run twice in one process, as test clients do."""
    world.create()
    seen: list[str] = []
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        seen.append(order.order_id)

    for name in ("1", "2"):
        world.send_orders(name)
        await consumed(orders, seconds=5)
    assert seen == ["1", "2"]


def test_statistics_before_the_first_start_are_refused() -> None:
    """The error shows the line to write."""
    with pytest.raises(NotOpenError, match="async with"):
        Consumer("orders").statistics()


@with_world
async def test_an_error_says_which_message_it_is_about(world: World) -> None:
    """Errors that a step raises carry the message id, wherever they were made."""

    @dataclass(frozen=True)
    class Strict:
        """A context that many messages lack."""

        tenant_id: str
        missing: str

    world.create()
    failures: list[Failure] = []
    orders = Consumer("orders", context=Strict, on_error=failures.append, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Strict]) -> None: ...

    sent = world.send({"order_id": "1"})
    async with orders:
        await asyncio.sleep(0.5)
    failure = failures[0]
    assert isinstance(failure.error, MessageError)
    assert failure.error.message_id == sent
    assert failure.context is None
    assert failure.payload is None
