"""What fails for every message before its handler: a mistake of a deployment must not make dead letters of a queue."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from postroom import (
    AckMode,
    Concurrency,
    Consumer,
    ContextError,
    Drop,
    MessageContext,
    Queues,
    Reject,
    Retry,
    UnknownTenant,
)
from postroom.consumer.settings import Failure
from postroom.local.shapes import Send
from postroom.message import Message
from postroom.options import Polling
from postroom.payloads import Decoder
from support.world import Order, Tenant, World, in_world, with_world


class Deployment:
    """A consumer with a resolver that misses something until it is there, and what its handler got."""

    def __init__(self, world: World, *, receives: int, error: type[Exception] = KeyError, **more: Any) -> None:
        world.create(dead_letters="dead", receives=receives)
        self.broken = True
        self.bad: set[str] = set()
        self.good = "none"
        self.handled: list[str] = []
        self._error = error
        self.consumer: Consumer[Tenant, None] = Consumer("orders", context=self._context, client=world.client, **more)

        @self.consumer.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
            self.handled.append(order.order_id)

    def _context(self, message: Message) -> Tenant:
        broken = self.broken and self.good not in message.body
        if broken or any(f'"{name}"' in message.body for name in self.bad):
            raise self._error("DSN")
        return Tenant("a")


def consumer_of_thirty(world: World, context: Callable[[Message], Tenant]) -> Consumer[Tenant, None]:
    """Return a consumer with a resolver, and with a handler that does nothing, of a queue with thirty orders."""
    world.create(dead_letters="dead")
    world.send_orders(*map(str, range(30)))
    consumer: Consumer[Tenant, None] = Consumer("orders", context=context, client=world.client)

    @consumer.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None: ...

    return consumer


@pytest.mark.parametrize("receives", [2, 3, 5, 10])
def test_a_missing_variable_makes_no_dead_letters_within_ten_minutes(
    receives: int, caplog: pytest.LogCaptureFixture
) -> None:
    """All receives of nearly all messages were used up within half a minute. Then they are handled."""

    async def scenario(world: World) -> tuple[tuple[int, int], int]:
        there = Deployment(world, receives=receives)
        world.send_orders(*map(str, range(200)))
        async with there.consumer:
            await asyncio.sleep(590)
            dead = world.counts("dead")
            there.broken = False
            await asyncio.sleep(590)
            return dead, len(set(there.handled))

    with caplog.at_level(logging.WARNING):
        assert in_world(scenario) == ((0, 0), 200)
    told = [text for text in caplog.messages if text.startswith("The context resolver")]
    assert "has failed in orders for 10 messages in a row (last: KeyError: 'DSN')" in told[0]
    assert "works again in orders" in told[1]
    assert len(told) == 2


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "the context resolver returned None"),
        ({}, "is not hashable"),
        (UnknownTenant("acme"), "returned UnknownTenant, which is no context: write `raise UnknownTenant(...)`"),
        (Reject("no tenant"), "returned Reject, which is no context: write `raise Reject(...)`"),
    ],
)
@with_world
async def test_a_resolver_that_returns_no_context_makes_no_dead_letters_within_ten_minutes(
    world: World, found: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says no less than by an error that it is broken: a lookup in an empty table returns None for everything."""
    world.create(dead_letters="dead", receives=5)
    consumer: Consumer[object, None] = Consumer("orders", context=lambda _message: found, client=world.client)

    @consumer.handler
    async def handle(order: Order, _ctx: MessageContext[object]) -> None:
        raise AssertionError(order)

    world.send_orders(*map(str, range(50)))
    async with consumer:
        await asyncio.sleep(590)
        assert world.counts("dead") == (0, 0)
    told = [text for text in caplog.messages if text.startswith("The context resolver has failed in orders for 10")]
    assert len(told) == 1
    assert said in told[0]


@with_world
async def test_no_message_is_hidden_until_the_end_of_its_retention_period(world: World) -> None:
    """SQS would delete it then. It comes back before, and is a dead letter when its attempts are used up."""
    there = Deployment(world, receives=5)
    world.broker.set_attributes("orders", {"MessageRetentionPeriod": "120"})
    world.send_orders(*map(str, range(50)))
    async with there.consumer:
        await asyncio.sleep(300)
    assert (world.counts("orders"), world.counts("dead")) == ((0, 0), (50, 0))


@with_world
async def test_some_bad_messages_among_good_ones_are_tried_again_as_ever(world: World) -> None:
    """They end as dead letters soon, and one context ends a row of failures."""
    there = Deployment(world, receives=3)
    there.broken = False
    there.bad = {str(number) for number in range(0, 60, 2)}
    async with there.consumer:
        for number in range(60):
            world.send_orders(str(number))
            await asyncio.sleep(0.1)
        await asyncio.sleep(60)
        assert (sum(world.counts("dead")), len(there.handled)) == (30, 30)


@with_world
async def test_what_a_message_lacks_is_its_own_fault(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A resolver that says so by a ``ContextError`` is well, also where every message lacks it."""
    there = Deployment(world, receives=3, error=ContextError)
    world.send_orders(*map(str, range(30)))
    async with there.consumer:
        await asyncio.sleep(60)
        assert sum(world.counts("dead")) == 30
    assert not [text for text in caplog.messages if "messages in a row" in text]


@pytest.mark.parametrize("part", ["all", "half"])
@with_world
async def test_a_payload_type_that_fits_no_body_makes_no_dead_letters_within_ten_minutes(
    world: World, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that fits some of them does: the others are bad."""
    world.create(dead_letters="dead", receives=5)
    consumer: Consumer[Tenant, None] = Consumer("orders", context=Tenant, client=world.client)
    handled: list[int] = []

    @consumer.handler
    async def handle(order: dict[str, int], _ctx: MessageContext[Tenant]) -> None:
        handled.append(order["order"])

    async with consumer:
        for number in range(100):
            world.send({"order": "a text" if part == "all" or number % 2 else number}, tenant="a")
            await asyncio.sleep(0.1)
        await asyncio.sleep(550)
        assert (world.counts("dead"), len(handled)) == (((0, 0), 0) if part == "all" else ((50, 0), 50))
    told = [text for text in caplog.messages if text.startswith("The payload type has failed in orders")]
    assert len(told) == (part == "all")


def test_what_waits_is_called_back_when_the_step_works_again() -> None:
    """A message of a queue with ``maxReceiveCount`` 2 waited for ten minutes."""

    async def scenario(world: World) -> tuple[int, int]:
        there = Deployment(world, receives=2)
        world.send_orders(*map(str, range(200)))
        async with there.consumer:
            await asyncio.sleep(60)
            there.broken = False
            before = len(there.handled)
            world.send_orders("new")  # nothing else shows that it works
            await asyncio.sleep(10)
            return before, len(set(there.handled))

    assert in_world(scenario) == (0, 201)


@with_world
async def test_what_has_no_receive_left_is_not_called_back_first(world: World) -> None:
    """The first messages used up both of theirs before their row was one. They kept the others waiting for 15 s."""
    there = Deployment(world, receives=2)
    async with there.consumer:
        for number in range(60):
            world.send_orders(str(number))
            await asyncio.sleep(0.3)
        there.broken = False
        world.send_orders("new")
        await asyncio.sleep(4)
        assert len(there.handled) == 52


@with_world
async def test_one_that_goes_well_is_proof_after_half_a_minute(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """On a queue with little to do there may be no others: the log must not say that it fails for hours."""
    there = Deployment(world, receives=2)
    world.send_orders(*map(str, range(12)))
    async with there.consumer:
        await asyncio.sleep(700)  # they are dead letters
        there.broken = False
        world.send_orders("good")
        await asyncio.sleep(40)
        assert len(there.handled) == 1
    assert [text for text in caplog.messages if "works again in orders after 730" in text]


@with_world
async def test_one_message_of_twenty_that_goes_well_ends_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """One tenant needs nothing of what is missing. Some of the others became dead letters, and many lines said so."""
    there = Deployment(world, receives=5)
    there.good = '-0"'
    async with there.consumer:
        for number in range(600):
            world.send_orders(f"{number}-{number % 20}")
            await asyncio.sleep(0.2)
        await asyncio.sleep(300)
        dead, handled = world.counts("dead")[0], len(there.handled)
    assert handled == 30
    assert dead == 0
    assert len([text for text in caplog.messages if "messages in a row" in text]) == 1


@with_world
async def test_a_stop_calls_nothing_back_that_a_step_fails_for(world: World) -> None:
    """A process that starts and fails again and again would use up all attempts within seconds."""
    there = Deployment(world, receives=3)
    world.send_orders(*map(str, range(100)))
    for _ in range(4):
        async with there.consumer:
            await asyncio.sleep(10)
    assert (world.counts("orders"), world.counts("dead")) == ((0, 100), (0, 0))


@pytest.mark.parametrize(
    "raised", [Drop("not for us"), Reject("not for us"), Retry("not yet"), ContextError("no tenant")]
)
@with_world
async def test_what_a_resolver_says_of_a_message_is_no_failure_of_its_own(
    world: World, raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A filter that dropped ten messages in a row was called a mistake of the deployment."""

    def context(message: Message) -> Tenant:
        try:
            return Tenant(message.attributes["customer"])
        except KeyError as error:
            raise raised from error

    async with consumer_of_thirty(world, context):
        await asyncio.sleep(60)
        assert sum(world.counts()) == 0
    assert not [text for text in caplog.messages if "messages in a row" in text]


@with_world
async def test_a_resolver_that_returns_nothing_for_any_message_fails(world: World) -> None:
    """One that forgot its ``return``, or looked in a mapping that is empty in this deployment."""
    tenants: dict[str, Tenant] = {}

    def context(message: Message) -> Tenant:
        return tenants.get(message.attributes["tenantId"])  # type: ignore[return-value] # as it may be

    async with consumer_of_thirty(world, context):
        await asyncio.sleep(590)
        assert world.counts("dead") == (0, 0)


@with_world
async def test_bodies_that_fit_are_no_failures_while_their_handlers_run(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Every second body was bad. All these had failed before the first handler of the others returned."""
    world.create(dead_letters="dead")
    consumer: Consumer[Tenant, None] = Consumer(
        "orders", context=Tenant, client=world.client, concurrency=Concurrency(total=60, per_tenant=60)
    )

    @consumer.handler
    async def handle(_order: dict[str, int], _ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(10)

    for number in range(60):
        world.send({"order": number if number % 2 else "a text"})
    async with consumer:
        await asyncio.sleep(60)
        assert sum(world.counts("dead")) == 30
    assert not [text for text in caplog.messages if "messages in a row" in text]


@pytest.mark.parametrize("several", [1, 20])
@with_world
async def test_tenants_that_need_nothing_of_what_is_missing_call_nothing_back(world: World, several: int) -> None:
    """Each of their messages called one back, or twenty all of them, and that used its attempts up in a minute."""
    there = Deployment(world, receives=5)
    there.good = "-good"
    world.send_orders(*map(str, range(10)))
    async with there.consumer:
        for number in range(400):
            world.send_orders(f"{number}-good" if number // several % 2 else f"{number}-bad")
            await asyncio.sleep(0.2)
        await asyncio.sleep(400)
        assert (world.counts("dead"), len(there.handled)) == ((0, 0), 200)


class _Registry(Decoder):
    """Decodes by what a schema registry says, which is down until it is not."""

    down = True

    def __call__(self, message: Message, /) -> str:
        if self.down:
            raise OSError("registry")
        return message.body


@pytest.mark.parametrize("receives", [2, 3])
@with_world
async def test_groups_that_back_off_here_go_on_when_the_step_works_again(world: World, receives: int) -> None:
    """They waited until the ten minutes were over, with what was behind them."""
    policy = {"deadLetterTargetArn": world.broker.create_queue("dead.fifo", _FIFO).arn}
    policy["maxReceiveCount"] = str(receives)
    world.broker.create_queue("orders.fifo", {**_FIFO, "RedrivePolicy": msgspec.json.encode(policy).decode()})
    registry = _Registry()
    handled: dict[str, list[str]] = {}
    consumer: Consumer[None, None] = Consumer("orders.fifo", payload=registry, client=world.client)

    @consumer.handler
    async def handle(body: str, ctx: MessageContext[None]) -> None:
        handled.setdefault(str(ctx.message.group_id), []).append(body)

    def send(body: str, group: str) -> None:
        request = Send(message_body=body, message_group_id=group, message_deduplication_id=f"{group}-{body}")
        world.broker.send("orders.fifo", request)

    async with consumer:
        for group in range(10):
            send("a", str(group))
        await asyncio.sleep(1)
        for number in range(80):
            send("abcd"[number % 4], f"{number // 4}-more")
        await asyncio.sleep(60)
        registry.down = False
        handled.clear()
        send("a", "new")
        await asyncio.sleep(45)
        assert ({group: bodies for group, bodies in handled.items() if "more" in group}) == {
            f"{number}-more": ["a", "b", "c", "d"] for number in range(20)
        }


_FIFO = {"FifoQueue": "true"}


@with_world
async def test_a_bare_retry_of_on_error_is_as_late_as_the_backoff_is(world: World) -> None:
    """Where the payload type failed it came by the retry policy alone."""
    world.create(dead_letters="dead")

    def on_error(_failure: Failure) -> None:
        raise Retry("it may go well")

    consumer: Consumer[None, None] = Consumer("orders", client=world.client, on_error=on_error)

    @consumer.handler
    async def handle(_order: dict[str, int], _ctx: MessageContext[None]) -> None: ...

    for _ in range(30):
        world.send({"order": "a text"})
    async with consumer:
        await asyncio.sleep(590)
        assert world.counts("dead") == (0, 0)


@pytest.mark.parametrize(
    ("mode", "waits"), [(AckMode.ON_SUCCESS, True), (AckMode.ALWAYS, False), (AckMode.MANUAL, False)]
)
@with_world
async def test_the_line_tells_of_a_wait_where_there_is_one(
    world: World, mode: AckMode, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``AckMode.ALWAYS`` the messages were deleted, and the line said that they wait."""
    world.create(dead_letters="dead")

    def context(_message: Message) -> Tenant:
        raise KeyError("DSN")

    consumer: Consumer[Tenant, None] = Consumer("orders", context=context, ack=mode, client=world.client)

    @consumer.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None: ...

    world.send_orders(*map(str, range(30)))
    async with consumer:
        await asyncio.sleep(5)
    (told,) = [text for text in caplog.messages if "messages in a row" in text]
    assert ("waits 300 s, until it works again" in told) == waits


@pytest.mark.parametrize("well", [0, 1])
def test_many_queues_with_a_few_messages_each_are_looked_at_together(
    well: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 30 queues each had five: no row of ten, and all were dead letters. Not so where another queue is well."""

    async def scenario(world: World) -> tuple[int, int]:
        names = [f"orders-{number}" for number in range(30)]
        arn = world.broker.create_queue("dead").arn
        policy = msgspec.json.encode({"deadLetterTargetArn": arn, "maxReceiveCount": "5"}).decode()
        for name in names:
            world.broker.create_queue(name, {"RedrivePolicy": policy})
            for number in range(5):
                world.send({"order_id": f"{name}-{number}"}, queue=name)
        broken = True
        handled: set[str] = set()

        def context(message: Message) -> Tenant:
            if broken and not (well and "orders-0" in message.body):
                raise KeyError("DSN")
            return Tenant("a")

        consumer: Consumer[Tenant, None] = Consumer(queues=names, context=context, client=world.client)

        @consumer.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
            handled.add(order.order_id)

        async with consumer:
            await asyncio.sleep(410)  # they were tried three times, and are at 600
            broken = False
            world.send({"order_id": "new"}, queue="orders-0")
            await asyncio.sleep(180)
            return world.counts("dead")[0], len(handled)

    dead, handled = in_world(scenario)
    assert (dead, handled) == (0, 151)
    told = [text for text in caplog.messages if text.startswith("The context resolver")]
    assert len(told) == 2


def test_a_queue_that_fails_is_seen_beside_others_that_are_well(caplog: pytest.LogCaptureFixture) -> None:
    """What sends to one queue changed its bodies: that is for the others no reason to wait."""

    async def scenario(world: World) -> tuple[int, int]:
        arn = world.broker.create_queue("dead").arn
        policy = msgspec.json.encode({"deadLetterTargetArn": arn, "maxReceiveCount": "5"}).decode()
        for name in ("good", "bad"):
            world.broker.create_queue(name, {"RedrivePolicy": policy})
        consumer: Consumer[Tenant, None] = Consumer(queues=["good", "bad"], context=Tenant, client=world.client)
        handled: set[int] = set()

        @consumer.handler
        async def handle(order: dict[str, int], _ctx: MessageContext[Tenant]) -> None:
            handled.add(order["order"])

        async with consumer:
            for number in range(100):
                world.send({"order": number}, queue="good")
                world.send({"order": "a text"}, queue="bad")
                await asyncio.sleep(0.1)
            await asyncio.sleep(500)
            return world.counts("dead")[0], len(handled)

    dead, handled = in_world(scenario)
    assert (dead, handled) == (0, 100)
    told = [text for text in caplog.messages if text.startswith("The payload type has failed in")]
    assert len(told) == 1
    assert told[0].startswith("The payload type has failed in bad for 10 messages")


def test_a_queue_that_was_closed_and_comes_back_is_known(caplog: pytest.LogCaptureFixture) -> None:
    """What waits of it is called back when the step works again, and the log says so."""

    async def scenario(world: World) -> set[str]:
        for name in ("good", "bad"):
            world.create(name, dead_letters=f"dead-{name}", receives=5)
        listed, broken = ["good", "bad"], True
        handled: set[str] = set()

        def context(message: Message) -> Tenant:
            if broken and "bad" in message.body:
                raise KeyError("DSN")
            return Tenant("a")

        queues = Queues(lambda: list(listed), every=1)
        consumer: Consumer[Tenant, None] = Consumer(queues=queues, context=context, client=world.client)

        @consumer.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
            handled.add(order.order_id)

        async with consumer:
            for number in range(20):
                world.send({"order_id": f"bad-{number}"}, queue="bad")
                world.send({"order_id": f"good-{number}"}, queue="good")
                await asyncio.sleep(0.1)
            await asyncio.sleep(40)
            listed.remove("bad")
            await asyncio.sleep(30)  # a long poll is out
            listed.append("bad")
            await asyncio.sleep(5)
            broken = False
            world.send({"order_id": "bad-20"}, queue="bad")
            await asyncio.sleep(40)  # they were to wait for 200
        return handled

    with caplog.at_level(logging.INFO, "postroom"):
        assert len(in_world(scenario)) == 41
    assert "Queue bad is closed" in caplog.messages
    told = [text for text in caplog.messages if text.startswith("The context resolver") and " in bad" in text]
    assert [text.startswith("The context resolver works again in bad") for text in told] == [False, True]


@with_world
async def test_with_one_slot_what_waits_is_called_back_one_after_the_other_without_long_pauses(world: World) -> None:
    """A receive of one message waits for it, and counts as slow: the pauses grew to 13 s."""
    there = Deployment(world, receives=3, concurrency=Concurrency(total=1), polling=Polling(prefetch=0))
    async with there.consumer:
        world.send_orders(*map(str, range(20)))
        for number in range(20, 60):
            await asyncio.sleep(5)
            world.send_orders(str(number))
        there.broken = False
        world.send_orders("new")
        await asyncio.sleep(90)
        assert len(set(there.handled)) == 61
