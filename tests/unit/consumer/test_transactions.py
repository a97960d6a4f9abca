"""``ctx.transaction()``: what the consumer makes of duplicates, whatever stands behind the transaction."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import pytest

from postroom import (
    AckMode,
    AlreadyHandled,
    CallNext,
    ConfigurationError,
    Consumer,
    Failure,
    MessageContext,
    MessageError,
    PostroomError,
    ResourcePool,
    RetryPolicy,
    Transactional,
)
from postroom.consumer.context import _key_of
from postroom.events import Event, HandlerFinished, MessageFailed
from postroom.message import Message
from postroom.transactions import MessageKey
from support.world import Order, Tenant, World, in_world, with_world


class Ledger:
    """A tenant's database as the protocol describes it: rows and effects that are committed together."""

    def __init__(self) -> None:
        self.keys: list[MessageKey] = []
        self.effects: list[str] = []
        self.lock = asyncio.Lock()

    @asynccontextmanager
    async def transaction_for(self, key: MessageKey, /) -> AsyncIterator[list[str]]:
        """Let one in at a time; keep what it wrote when it leaves without an error."""
        async with self.lock:
            if key in self.keys:
                raise AlreadyHandled
            effects: list[str] = []
            yield effects
            self.keys.append(key)
            self.effects += effects


Ctx = MessageContext[Tenant, Ledger]


class Office:
    """A consumer over one ledger per tenant, and what happened."""

    def __init__(self, world: World, **options: Any) -> None:
        self.ledgers: dict[Tenant, Ledger] = {}
        self.events: list[Event] = []
        self.failures: list[Failure] = []
        self.calls: Counter[str] = Counter()
        self.consumer: Consumer[Tenant, Ledger] = Consumer(
            "orders",
            context=Tenant,
            resources=self.ledger,
            client=world.client,
            retry=RetryPolicy(base=1.0),
            observers=[self.events.append],
            on_error=self.failures.append,
            **options,
        )

    @asynccontextmanager
    async def ledger(self, tenant: Tenant) -> AsyncIterator[Ledger]:
        """Open a tenant's ledger. It survives its resource, as a database does."""
        yield self.ledgers.setdefault(tenant, Ledger())

    @property
    def effects(self) -> list[str]:
        """What was committed, in all ledgers."""
        return [effect for ledger in self.ledgers.values() for effect in ledger.effects]

    async def run(self, handler: Callable[[Order, Ctx], Any], *, seconds: float = 120.0) -> None:
        """Consume with a handler, and count its calls by order."""

        async def counting(order: Order, ctx: Ctx) -> None:
            self.calls[order.order_id] += 1
            await handler(order, ctx)

        self.consumer.handler(counting)
        async with self.consumer:
            await asyncio.sleep(seconds)


async def record(order: Order, ctx: Ctx) -> None:
    """Write the order once."""
    async with ctx.transaction() as effects:
        await asyncio.sleep(order.seconds)
        effects.append(order.order_id)


def handled_twice(handler: Callable[[Order, Ctx], Any], **options: Any) -> Office:
    """Let a handler commit and fail afterwards, so that its message comes again; return what became of it."""

    async def scenario(world: World) -> Office:
        world.create()
        office = Office(world, **options)
        world.send_orders("1")

        async def handle(order: Order, ctx: Ctx) -> None:
            await handler(order, ctx)
            if office.calls[order.order_id] == 1:
                raise ConnectionError("after the commit")

        await office.run(handle)
        assert world.counts() == (0, 0)
        return office

    return in_world(scenario)


def test_a_duplicate_is_acknowledged_without_an_effect() -> None:
    """The first receive committed and failed afterwards; the second finds that out."""
    office = handled_twice(record)
    assert office.effects == ["1"]
    assert office.calls == {"1": 2}
    assert [type(failure.error) for failure in office.failures] == [ConnectionError]


async def _one_after_the_other(ctx: Ctx) -> None:
    async with ctx.transaction() as effects:
        effects.append("first")
    async with ctx.transaction() as effects:
        effects.append("second")


async def _one_in_the_other(ctx: Ctx) -> None:
    async with ctx.transaction(), ctx.transaction() as effects:
        effects.append("inner")


async def _both_at_once(ctx: Ctx) -> None:
    async def work() -> None:
        async with ctx.transaction() as effects:
            await asyncio.sleep(1)
            effects.append("one")

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        group.create_task(work())


@pytest.mark.parametrize("handler", [_one_after_the_other, _one_in_the_other, _both_at_once])
def test_a_second_block_with_the_same_key_is_refused(handler: Callable[[Ctx], Any]) -> None:
    """It would count as a duplicate, and what it was to do would be left out without a word."""
    refused: list[BaseException] = []

    async def handle(_: Order, ctx: Ctx) -> None:
        try:
            await handler(ctx)
        except BaseException as error:
            refused.append(error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error)

    handled_twice(handle)
    assert isinstance(refused[0], ConfigurationError)
    assert "Put everything into it; or give each part a key= of its own, and catch AlreadyHandled" in str(refused[0])


def test_blocks_with_other_keys_and_one_that_was_rolled_back_are_no_duplicates() -> None:
    """A loop that tries again after a conflict, and a key for each part."""

    async def handle(_: Order, ctx: Ctx) -> None:
        for key in ("a", "b"):
            for attempt in (1, 2):
                with suppress(ZeroDivisionError):
                    async with ctx.transaction(key=key) as effects:
                        if attempt == 1:
                            raise ZeroDivisionError
                        effects.append(key)

    assert handled_twice(handle).effects == ["a", "b"]


@pytest.mark.parametrize("careful", [False, True])
def test_a_block_that_is_rolled_back_behind_another_one_is_told(
    careful: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message is acknowledged without it where the other one's ``AlreadyHandled`` leaves the handler."""
    calls: list[int] = []

    async def handle(_: Order, ctx: Ctx) -> None:
        calls.append(ctx.attempt)
        for key in ("a", "b"):
            with suppress(AlreadyHandled) if careful else nullcontext():
                async with ctx.transaction(key=key) as effects:
                    effects.append(key)
                    if key == "b" and len(calls) == 1:
                        raise ZeroDivisionError

    assert handled_twice(handle).effects == (["a", "b"] if careful else ["a"])
    assert sum("was rolled back after another one of it was committed" in text for text in caplog.messages) == 1


def test_a_duplicate_is_told_to_observers_and_is_no_failure() -> None:
    """``HandlerFinished`` carries it; ``MessageFailed``, ``on_error`` and the log do not."""
    office = handled_twice(record)
    finished = [event.error for event in office.events if isinstance(event, HandlerFinished)]
    assert [type(error) for error in finished] == [ConnectionError, AlreadyHandled]
    assert sum(isinstance(event, MessageFailed) for event in office.events) == 1
    assert office.consumer.statistics().failed == {"ConnectionError": 1}


def test_a_broad_except_lets_it_pass() -> None:
    """It is not an ``Exception``: a duplicate does not become a failure forever."""

    async def careful(order: Order, ctx: Ctx) -> None:
        try:
            await record(order, ctx)
        except Exception as error:
            raise MessageError("wrapped") from error

    assert handled_twice(careful).effects == ["1"]


def test_who_swallows_it_has_lost_nothing() -> None:
    """No effect was made; the handler returned, so the message is acknowledged."""

    async def greedy(order: Order, ctx: Ctx) -> None:
        try:
            await record(order, ctx)
        except BaseException:
            logging.getLogger("test").info("swallowed")

    assert handled_twice(greedy).effects == ["1"]


def test_it_leaves_a_task_group() -> None:
    """A group of nothing else is a duplicate as well."""

    async def grouped(order: Order, ctx: Ctx) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(record(order, ctx))
            group.create_task(asyncio.sleep(1))

    assert handled_twice(grouped).effects == ["1"]


@with_world
async def test_a_failure_beside_it_in_a_group_counts(world: World) -> None:
    """Something that was to be done beside the transaction was not done: the message comes again."""

    async def beside() -> None:
        raise OSError

    world.create(dead_letters="dead")
    office = Office(world)
    world.send_orders("1")

    async def grouped(order: Order, ctx: Ctx) -> None:
        if office.calls[order.order_id] == 1:
            await record(order, ctx)
        async with asyncio.TaskGroup() as group:
            group.create_task(beside())
            group.create_task(record(order, ctx))

    await office.run(grouped)
    assert world.counts("dead") == (1, 0)
    assert office.effects == ["1"]
    errors = [failure.error for failure in office.failures]
    assert [type(error) for error in errors] == [ExceptionGroup] * 3
    assert not any(cast("BaseExceptionGroup[Any]", error).subgroup(AlreadyHandled) for error in errors)


@pytest.mark.parametrize("ack", AckMode)
@with_world
async def test_it_is_acknowledged_in_every_mode(world: World, ack: AckMode) -> None:
    """With MANUAL too: its work is done, and the handler that would say so is not reached."""
    world.create()
    office = Office(world, ack=ack)
    world.send_orders("1")

    async def handle(order: Order, ctx: Ctx) -> None:
        async with ctx.transaction() as effects:
            effects.append(order.order_id)
        if office.calls[order.order_id] == 1:
            await ctx.retry(delay=1)

    await office.run(handle)
    assert world.counts() == (0, 0)
    assert office.effects == ["1"]


@with_world
async def test_a_concurrent_duplicate_waits_for_the_first(world: World) -> None:
    """Two consumers have the message at the same time, because its visibility timeout ran out under the first."""
    world.create()
    offices = [Office(world), Office(world)]
    offices[1].ledgers = offices[0].ledgers
    world.send_orders("1", seconds=20.0)

    async def handle(order: Order, ctx: Ctx) -> None:
        if ctx.message.receive_count == 1:
            world.broker.change_visibility("orders", ctx.message.receipt_handle, 0)
        await record(order, ctx)

    await asyncio.gather(*(office.run(handle) for office in offices))
    assert world.counts() == (0, 0)
    assert offices[0].effects == ["1"]
    assert sum(office.calls["1"] for office in offices) == 2


@with_world
async def test_a_business_key_recognises_what_was_sent_twice(world: World) -> None:
    """Within the tenant's own ledger: another tenant's order of the same number is another."""

    async def record_once(order: Order, ctx: Ctx) -> None:
        async with ctx.transaction(key=order.order_id) as effects:
            effects.append(order.order_id)

    world.create()
    office = Office(world)
    world.send_orders("1", "1", "2")
    world.send_orders("1", tenant="b")
    await office.run(record_once)
    assert world.counts() == (0, 0)
    assert sorted(office.effects) == ["1", "1", "2"]
    # With the tenant's name: two tenants of one database may have an order of one number.
    named = 'tenant:47:Tenant:j:{"region":"eu-west-1","tenant_id":"b"}:1'
    assert office.ledgers[Tenant("b")].keys == [MessageKey("orders", named)]


def raised_by(use: Callable[[Order, Any], Any]) -> list[BaseException]:
    """Return what the handlers of one message raised."""

    async def scenario(world: World) -> Office:
        world.create()
        office = Office(world, ack=AckMode.ALWAYS)
        world.send_orders("1")
        await office.run(use)
        return office

    office = in_world(scenario)
    assert office.effects == []
    return [failure.error for failure in office.failures]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("", "1 to 500 characters"),
        ("k" * 501, "1 to 500 characters"),
        ("a\0b", "1 to 500 characters"),
        (4711, "write key=str(order.id); got int"),
        (UUID(int=1), "write key=str(order.id); got UUID"),
    ],
)
def test_a_key_that_no_database_could_keep_is_refused(key: Any, text: str) -> None:
    """Before anything is begun."""

    async def handle(_: Order, ctx: Ctx) -> None:
        async with ctx.transaction(key=key):
            raise AssertionError

    (error,) = raised_by(handle)
    assert isinstance(error, ConfigurationError)
    assert text in str(error)


def test_an_acknowledgement_before_the_commit_is_refused() -> None:
    """The message would be gone, and the commit can still fail. After the block it is welcome."""

    async def handle(order: Order, ctx: Ctx) -> None:
        async with ctx.transaction() as effects:
            effects.append(order.order_id)
            await ctx.ack()

    (error,) = raised_by(handle)
    assert isinstance(error, PostroomError)
    assert "after the block" in str(error)


@with_world
async def test_an_acknowledgement_after_the_commit_is_confirmed(world: World) -> None:
    """In MANUAL mode, as ever; also after a transaction that failed."""
    world.create()
    office = Office(world, ack=AckMode.MANUAL)
    world.send_orders("1")

    async def handle(order: Order, ctx: Ctx) -> None:
        with pytest.raises(KeyError):
            async with ctx.transaction():
                raise KeyError
        await record(order, ctx)
        await ctx.ack()
        assert world.counts() == (0, 0)

    await office.run(handle)
    assert office.effects == ["1"]
    assert office.failures == []


@with_world
async def test_resources_without_an_inbox_are_refused(world: World) -> None:
    """The error says what to provide."""
    world.create()
    failures: list[Failure] = []
    orders = Consumer("orders", client=world.client, ack=AckMode.ALWAYS, on_error=failures.append)

    @orders.handler
    async def handle(_: Order, ctx: MessageContext) -> None:
        cast("MessageContext[Any, Transactional[Any]]", ctx).transaction()

    world.send_orders("1")
    async with orders:
        await asyncio.sleep(10)
    (failure,) = failures
    assert isinstance(failure.error, ConfigurationError)
    assert "asyncpg_inbox" in str(failure.error)


def test_middleware_sees_it_pass() -> None:
    """What stands around the handler may look at it, as at any exception."""
    seen: list[type[BaseException]] = []

    async def watch(payload: Any, ctx: MessageContext[Any, Any], call_next: CallNext) -> None:
        try:
            await call_next(payload, ctx)
        except BaseException as error:
            seen.append(type(error))
            raise

    assert handled_twice(record, middleware=[watch]).effects == ["1"]
    assert seen == [ConnectionError, AlreadyHandled]


@dataclass(frozen=True)
class Shop:
    """A tenant of another kind, with a mark of its message beside the name."""

    tenant_id: str
    trace: str = field(default="", compare=False)


@dataclass(frozen=True)
class Branch:
    """A tenant with the same fields."""

    tenant_id: str


def test_business_keys_of_two_tenants_are_never_equal() -> None:
    """Whatever stands in their names and keys: in a shared database the second message would be left out."""
    message = Message(id="1", body="", queue="orders")
    pairs: list[tuple[object, str]] = [
        ("a:b", "c"),
        ("a", "b:c"),
        ("a", "c"),
        (None, "c"),
        (None, "3:t:a:c"),
        (None, "7:str:t:a:c"),
    ]
    pairs += [(Shop("a"), "c"), (Branch("a"), "c")]
    assert len({_key_of(message, context, key) for context, key in pairs}) == len(pairs)


def test_what_does_not_count_in_a_context_does_not_count_in_a_business_key() -> None:
    """A trace id that differs from message to message would let no duplicate be recognised."""
    message = Message(id="1", body="", queue="orders")
    assert _key_of(message, Shop("a", trace="1"), "c") == _key_of(message, Shop("a", trace="2"), "c")


def test_a_business_key_of_a_tenant_without_a_name_is_refused() -> None:
    """It would count for all of them, and the second one's order would be left out."""
    with pytest.raises(ConfigurationError, match="Make it a frozen dataclass of texts"):
        _key_of(Message(id="1", body="", queue="orders"), object(), "c")


@with_world
async def test_tenants_that_share_a_resource_have_business_keys_of_their_own(world: World) -> None:
    """``key=`` of the pool makes one key of them: an order 4711 of the second one is no duplicate."""
    world.create()
    shared = Ledger()

    @asynccontextmanager
    async def provide(_: Tenant) -> AsyncIterator[Ledger]:
        yield shared

    pool = ResourcePool(provide, key=lambda _: "shared")
    orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)

    @orders.handler
    async def handle(order: Order, ctx: Ctx) -> None:
        async with ctx.transaction(key=order.order_id) as effects:
            effects.append(f"{ctx.context.tenant_id}:{order.order_id}")

    world.send_orders("4711", "4711")
    world.send_orders("4711", tenant="b")
    async with orders:
        await asyncio.sleep(10)
    assert world.counts() == (0, 0)
    assert sorted(shared.effects) == ["a:4711", "b:4711"]
