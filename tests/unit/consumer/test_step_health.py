"""What fails for every message before its handler: a mistake of a deployment must not make dead letters of a queue."""

import asyncio
import logging

import pytest

from postroom import Consumer, ContextError, MessageContext
from postroom.message import Message
from support.world import Order, Tenant, World, in_world


class Deployment:
    """A consumer with a resolver that misses something until it is there, and what its handler got."""

    def __init__(self, world: World, *, receives: int, error: type[Exception] = KeyError) -> None:
        world.create(dead_letters="dead", receives=receives)
        self.broken = True
        self.bad: set[str] = set()
        self.good = "none"
        self.handled: list[str] = []
        self._error = error
        self.consumer: Consumer[Tenant, None] = Consumer("orders", context=self._context, client=world.client)

        @self.consumer.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
            self.handled.append(order.order_id)

    def _context(self, message: Message) -> Tenant:
        broken = self.broken and self.good not in message.body
        if broken or any(f'"{name}"' in message.body for name in self.bad):
            raise self._error("DSN")
        return Tenant("a")


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
    assert "fails for everything in orders, for 10 messages in a row (last: KeyError: 'DSN')" in told[0]
    assert "works again in orders" in told[1]
    assert len(told) == 2


@pytest.mark.parametrize(("found", "said"), [(None, "the context resolver returned None"), ({}, "is not hashable")])
def test_a_resolver_that_returns_no_context_makes_no_dead_letters_within_ten_minutes(
    found: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says no less than by an error that it is broken: a lookup in an empty table returns None for everything."""

    async def scenario(world: World) -> tuple[int, int]:
        world.create(dead_letters="dead", receives=5)
        consumer: Consumer[object, None] = Consumer("orders", context=lambda _message: found, client=world.client)

        @consumer.handler
        async def handle(order: Order, _ctx: MessageContext[object]) -> None:
            raise AssertionError(order)

        world.send_orders(*map(str, range(50)))
        async with consumer:
            await asyncio.sleep(590)
            return world.counts("dead")

    assert in_world(scenario) == (0, 0)
    told = [text for text in caplog.messages if text.startswith("The context resolver fails for everything in orders")]
    assert len(told) == 1
    assert said in told[0]


def test_no_message_is_hidden_until_the_end_of_its_retention_period() -> None:
    """SQS would delete it then. It comes back before, and is a dead letter when its attempts are used up."""

    async def scenario(world: World) -> tuple[tuple[int, int], tuple[int, int]]:
        there = Deployment(world, receives=5)
        world.broker.set_attributes("orders", {"MessageRetentionPeriod": "120"})
        world.send_orders(*map(str, range(50)))
        async with there.consumer:
            await asyncio.sleep(300)
        return world.counts("orders"), world.counts("dead")

    assert in_world(scenario) == ((0, 0), (50, 0))


def test_some_bad_messages_among_good_ones_are_tried_again_as_ever() -> None:
    """They end as dead letters soon, and one context ends a row of failures."""

    async def scenario(world: World) -> tuple[int, int]:
        there = Deployment(world, receives=3)
        there.broken = False
        there.bad = {str(number) for number in range(0, 60, 2)}
        async with there.consumer:
            for number in range(60):
                world.send_orders(str(number))
                await asyncio.sleep(0.1)
            await asyncio.sleep(60)
            return sum(world.counts("dead")), len(there.handled)

    assert in_world(scenario) == (30, 30)


def test_what_a_message_lacks_is_its_own_fault(caplog: pytest.LogCaptureFixture) -> None:
    """A resolver that says so by a ``ContextError`` is well, also where every message lacks it."""

    async def scenario(world: World) -> int:
        there = Deployment(world, receives=3, error=ContextError)
        world.send_orders(*map(str, range(30)))
        async with there.consumer:
            await asyncio.sleep(60)
            return sum(world.counts("dead"))

    assert in_world(scenario) == 30
    assert not [text for text in caplog.messages if "fails for everything" in text]


@pytest.mark.parametrize("part", ["all", "half"])
def test_a_payload_type_that_fits_no_body_makes_no_dead_letters_within_ten_minutes(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that fits some of them does: the others are bad."""

    async def scenario(world: World) -> tuple[tuple[int, int], int]:
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
            return world.counts("dead"), len(handled)

    assert in_world(scenario) == (((0, 0), 0) if part == "all" else ((50, 0), 50))
    told = [text for text in caplog.messages if text.startswith("The payload type fails for everything in orders")]
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


def test_one_that_goes_well_is_proof_after_half_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """On a queue with little to do there may be no others: the log must not say that it fails for hours."""

    async def scenario(world: World) -> int:
        there = Deployment(world, receives=2)
        world.send_orders(*map(str, range(12)))
        async with there.consumer:
            await asyncio.sleep(700)  # they are dead letters
            there.broken = False
            world.send_orders("good")
            await asyncio.sleep(40)
            return len(there.handled)

    assert in_world(scenario) == 1
    assert [text for text in caplog.messages if "works again in orders after 730" in text]


def test_one_message_of_twenty_that_goes_well_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One tenant needs nothing of what is missing. Some of the others became dead letters, and many lines said so."""

    async def scenario(world: World) -> tuple[int, int]:
        there = Deployment(world, receives=5)
        there.good = '-0"'
        async with there.consumer:
            for number in range(600):
                world.send_orders(f"{number}-{number % 20}")
                await asyncio.sleep(0.2)
            await asyncio.sleep(300)
            return world.counts("dead")[0], len(there.handled)

    dead, handled = in_world(scenario)
    assert handled == 30
    assert dead == 0
    assert len([text for text in caplog.messages if "fails for everything" in text]) == 1


def test_a_stop_calls_nothing_back_that_a_step_fails_for() -> None:
    """A process that starts and fails again and again would use up all attempts within seconds."""

    async def scenario(world: World) -> tuple[tuple[int, int], tuple[int, int]]:
        there = Deployment(world, receives=3)
        world.send_orders(*map(str, range(100)))
        for _ in range(4):
            async with there.consumer:
                await asyncio.sleep(10)
        return world.counts("orders"), world.counts("dead")

    assert in_world(scenario) == ((0, 100), (0, 0))
