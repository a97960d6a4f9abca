"""What a stop and an outage of SQS do with a message at its last receive: one dead letter at most."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from postroom import (
    AckMode,
    Concurrency,
    Consumer,
    Fleet,
    MessageContext,
    OpenBackoff,
    Polling,
    ResourcePool,
    ServiceUnavailable,
    Shutdown,
    Visibility,
)
from postroom.resources.breaker import Cooling
from postroom.transports.memory import MemoryQueue
from support.fleet import Diary, FaultyState, replica
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Tenant]
QUICK = Shutdown(poll=0.1, drain=0.5, cancel=0.5, flush=2)


def dead_letters_of_a_stop(work: Callable[[Ctx], Awaitable[object]], **options: Any) -> int:
    """Stop while a message is handled at its last receive, and return how many dead letters there are then."""

    async def scenario(world: World) -> int:
        world.create(dead_letters="dead", receives=1)
        orders = Consumer("orders", context=Tenant, client=world.client, shutdown=QUICK, **options)

        @orders.handler
        async def handle(_order: Order, ctx: Ctx) -> None:
            await work(ctx)

        async with orders:
            world.send_orders("1")
            await asyncio.sleep(1)
        await asyncio.sleep(60)
        return sum(world.counts("dead"))

    return in_world(scenario)


async def sleep_through(seconds: float, cancellations: int) -> None:
    """Sleep, and ignore some cancellations."""
    for _ in range(cancellations):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(seconds)
    await asyncio.sleep(seconds)


def test_what_was_acknowledged_by_hand_is_no_dead_letter() -> None:
    """Its handler goes on, and ignores that it is cancelled."""

    async def work(ctx: Ctx) -> None:
        await ctx.ack()
        await sleep_through(5, 1)

    assert dead_letters_of_a_stop(work, ack=AckMode.MANUAL) == 0


def test_a_handler_that_obeys_the_second_cancellation_makes_one_dead_letter() -> None:
    """The first one is on its way already."""
    assert dead_letters_of_a_stop(lambda _ctx: sleep_through(30, 1)) == 1


@with_world
async def test_an_outage_of_sqs_that_ends_in_time_makes_no_dead_letter(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message waits for a slot at its last receive. SQS is back 3 s before its visibility timeout is over."""
    world.create(dead_letters="dead", receives=1)
    one = Concurrency(total=1)
    orders = Consumer("orders", context=Tenant, client=world.client, concurrency=one, polling=Polling(wait=1))
    handled: list[str] = []

    @orders.handler
    async def handle(order: Order, _ctx: Ctx) -> None:
        await asyncio.sleep(1 if handled else 80)
        handled.append(order.order_id)

    async def gone(*_arguments: object, **_options: object) -> Any:
        await asyncio.sleep(0.05)
        raise ServiceUnavailable("gone")

    async with orders:
        world.send_orders("1", "2")
        await asyncio.sleep(25)
        with monkeypatch.context() as patch:
            for call in ("receive", "change_visibility", "delete", "send"):
                patch.setattr(MemoryQueue, call, gone)
            await asyncio.sleep(32)
        await asyncio.sleep(60)
    assert (handled, sum(world.counts("dead"))) == (["1", "2"], 0)


async def ignore(_order: Order, _ctx: MessageContext[Tenant, Database]) -> None:
    """Handle a message."""


class Stopped:
    """What a stop did with messages of tenants that could not run when it began."""

    def __init__(self, world: World, handled: list[str], began: float) -> None:
        self.handled = handled
        self.dead = sum(world.counts("dead"))
        self.seconds = asyncio.get_running_loop().time() - began


def stop_while_tenant_is_down(*, down_for: float, drain: float = 10.0) -> Stopped:
    """Stop a consumer 3 s after its tenant's database went down, of which one message waits at its last receive."""

    async def scenario(world: World) -> Stopped:
        world.create(dead_letters="dead", receives=1)
        databases, handled = Databases(), list[str]()
        databases.failures["a"] = lambda: ConnectionRefusedError("down")
        orders = Consumer(
            "orders", context=Tenant, resources=databases, client=world.client, shutdown=Shutdown(drain=drain)
        )

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant, Database]) -> None:
            handled.append(order.order_id)

        async with orders:
            world.send_orders("1")
            await asyncio.sleep(3)
            asyncio.get_running_loop().call_later(down_for - 3, databases.failures.clear)
            began = asyncio.get_running_loop().time()
        return Stopped(world, handled, began)

    return in_world(scenario, seed=1)


def test_a_stop_waits_for_the_next_try_of_a_tenant(caplog: pytest.LogCaptureFixture) -> None:
    """Its database is back one second after the stop began, when nothing runs any longer."""
    caplog.set_level(logging.INFO, logger="postroom")
    stopped = stop_while_tenant_is_down(down_for=4)
    assert (stopped.handled, stopped.dead) == (["1"], 0)
    text = "Stopping orders: waiting up to 10 s for the next try of the tenants of 1 message at the last receive"
    assert caplog.text.count(text) == 1
    assert "0 handlers" not in caplog.text


def test_a_stop_tries_a_tenant_again_while_a_handler_of_another_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    """Its database is back one second after the stop began; the handler does not end before the drain does."""

    async def scenario(world: World) -> Stopped:
        world.create(dead_letters="dead", receives=1)
        databases, handled = Databases(), list[str]()
        databases.failures["a"] = lambda: ConnectionRefusedError("down")
        pool: ResourcePool[Tenant, Database] = ResourcePool(databases, backoff=OpenBackoff(base=10_000, cap=10_000))
        orders = Consumer(
            "orders", context=Tenant, resources=pool, client=world.client, shutdown=Shutdown(drain=10, cancel=1)
        )

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant, Database]) -> None:
            await asyncio.sleep(order.seconds)
            handled.append(order.order_id)

        loop = asyncio.get_running_loop()
        async with pool, orders:
            world.send_orders("1")
            world.send_orders("2", tenant="b", seconds=1000)
            await asyncio.sleep(3)
            loop.call_later(1, databases.failures.clear)
            began = loop.time()
        return Stopped(world, handled, began)

    caplog.set_level(logging.INFO, logger="postroom")
    stopped = in_world(scenario, seed=1)
    assert (stopped.handled, stopped.dead) == (["1"], 1)
    assert caplog.text.count("waiting up to 10 s for 1 handler") == 1


def test_a_stop_does_not_wait_for_a_try_that_it_has_no_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries every two seconds while its drain lasts, and ends with the last of these tries."""
    monkeypatch.setattr(Cooling, "_pause", lambda *_: 60.0)
    stopped = stop_while_tenant_is_down(down_for=1000)
    assert (stopped.handled, stopped.dead) == ([], 1)
    assert 8 < stopped.seconds < 9


def test_a_stop_does_not_wait_for_a_paused_tenant() -> None:
    """It was paused while its database was opened, which failed: it has a next try, and would not run then either."""

    async def scenario(world: World) -> Stopped:
        world.create(dead_letters="dead", receives=1)
        databases = Databases()
        databases.seconds = 2.0
        databases.failures["a"] = lambda: ConnectionRefusedError("down")
        orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)
        orders.handler(ignore)
        async with orders:
            world.send_orders("1")
            await asyncio.sleep(10)
            while not databases.opening:
                await asyncio.sleep(0.1)
            orders.tenants.pause(Tenant("a"))
            await asyncio.sleep(2.1)
            began = asyncio.get_running_loop().time()
        return Stopped(world, [], began)

    stopped = in_world(scenario, seed=1)
    assert stopped.dead == 1
    assert stopped.seconds < 0.5


def stop_while_host_is_down(
    tenants: int,
    back_after: float,
    *,
    before: float,
    seconds: float = 0.0,
    backoff: OpenBackoff | None = None,
    **options: Any,
) -> Stopped:
    """Stop a consumer with one message of each tenant at its last receive, all on one host that is down.

    Args:
        tenants: how many.
        back_after: seconds from the beginning of the stop until the host is back; below 0 the stop begins when the
            first message was handled.
        before: seconds from the beginning of the outage.
        seconds: that a handler takes.
        backoff: of the pool.
        options: of the consumer.
    """

    async def scenario(world: World) -> Stopped:
        world.create(dead_letters="dead", receives=1)
        databases, handled = Databases(), list[str]()
        names = [f"t{number}" for number in range(tenants)]
        databases.failures |= dict.fromkeys(names, lambda: ConnectionRefusedError("down"))
        pool: ResourcePool[Tenant, Database] = ResourcePool(
            databases, host=lambda _tenant: "db-1", backoff=backoff or OpenBackoff()
        )
        orders = Consumer("orders", context=Tenant, resources=pool, client=world.client, **options)

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant, Database]) -> None:
            await asyncio.sleep(seconds)
            handled.append(order.order_id)

        loop = asyncio.get_running_loop()
        async with pool, orders:
            for name in names:
                world.send_orders(name, tenant=name)
            await asyncio.sleep(before)
            loop.call_later(max(0.0, back_after), databases.failures.clear)
            while back_after < 0 and not handled:
                await asyncio.sleep(0.01)
            began = loop.time()
        return Stopped(world, handled, began)

    return in_world(scenario, seed=1)


@pytest.mark.parametrize("back_after", [1.0, -0.01])
def test_in_a_stop_the_tenants_of_a_host_that_is_back_take_no_turns(back_after: float) -> None:
    """Turns keep the receives going, of which there are none. It is back so long after the stop began, or before."""
    few: dict[str, Any] = {"concurrency": Concurrency(total=1), "shutdown": Shutdown(drain=4)}
    stopped = stop_while_host_is_down(8, back_after, before=5, seconds=0.05, **few)
    assert (len(stopped.handled), stopped.dead) == (8, 0)
    assert stopped.seconds < 3


@with_world
async def test_what_a_stop_waits_for_is_not_deleted_by_its_queue_meanwhile(world: World) -> None:
    """A message may start after 100 s, and is kept for 60: it becomes a dead letter, with its reason, before that."""
    world.create(dead_letters="dead", receives=1, MessageRetentionPeriod="60")
    handled = list[str]()
    orders = Consumer("orders", context=Tenant, client=world.client, shutdown=Shutdown(drain=110))

    @orders.handler
    async def handle(order: Order, _ctx: Ctx) -> None:
        handled.append(order.order_id)

    async with orders:
        orders.tenants.limit(Tenant("a"), rate=0.01)
        world.send_orders("1", "2")
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
    stopped = Stopped(world, handled, began)
    assert (len(stopped.handled), stopped.dead) == (1, 1)
    assert stopped.seconds < 60


@pytest.mark.parametrize("down_for", [3.0, 9.0])
@pytest.mark.parametrize("tenants", [1, 5])
def test_a_stop_ends_the_pauses_of_an_outage(down_for: float, tenants: int) -> None:
    """The next try of a tenant, or of the host of several, would be minutes after their database is back."""
    backoff = OpenBackoff(base=10_000, cap=10_000)
    stopped = stop_while_host_is_down(tenants, down_for - 3, before=3, backoff=backoff)
    assert (len(stopped.handled), stopped.dead) == (tenants, 0)
    assert stopped.seconds < down_for


@with_world
async def test_a_stop_lets_a_rate_go_on(world: World) -> None:
    """Nine messages at two per second: all are started in the drain."""
    world.create(dead_letters="dead", receives=1)
    handled = list[str]()
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def handle(order: Order, _ctx: Ctx) -> None:
        handled.append(order.order_id)

    async with orders:
        orders.tenants.limit(Tenant("a"), rate=2)
        world.send_orders(*"123456789")
        await asyncio.sleep(0.1)
        assert len(handled) < 4
        began = asyncio.get_running_loop().time()
    stopped = Stopped(world, handled, began)
    assert (len(stopped.handled), stopped.dead) == (9, 0)
    assert stopped.seconds < 5


@pytest.mark.parametrize("seconds", [0.2, 5.0])
@with_world
async def test_a_stop_waits_for_a_slot_of_the_fleet(world: World, seconds: float) -> None:
    """Another replica has the tenant's only slot when the stop begins, so many seconds after the message came."""
    world.create()
    world.create("more", dead_letters="dead", receives=1)
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=1, name="shop")
    async with replica(world, diary, fleet, "other"):
        world.send_orders("1", seconds=8.0)
        await asyncio.sleep(0.5)
        async with replica(world, diary, fleet, "one", queue="more", shutdown=Shutdown(drain=12)):
            world.send({"order_id": "2"}, queue="more")
            await asyncio.sleep(seconds)
    assert ([who for _, who, _ in diary.starts], sum(world.counts("dead"))) == (["other", "one"], 0)


def test_a_stop_lets_all_tenants_of_a_host_go_on_that_is_back() -> None:
    """As slots become free, and not only after the pause that each of them was given."""
    few: dict[str, Any] = {"concurrency": Concurrency(total=2), "shutdown": Shutdown(drain=5.5)}
    backoff = OpenBackoff(base=0.5, cap=1.0)
    stopped = stop_while_host_is_down(9, 1.0, before=4, seconds=0.1, backoff=backoff, **few)
    assert (len(stopped.handled), stopped.dead) == (9, 0)
    assert stopped.seconds < 4


@with_world
async def test_what_a_stop_holds_becomes_a_dead_letter_with_its_reason_before_it_is_lost(world: World) -> None:
    """Its tenant is paused, another one's handler runs on, and its visibility can be extended no longer."""
    world.create(dead_letters="dead", receives=1)
    more: dict[str, Any] = {"visibility": Visibility(timeout=10, max_extension=20), "shutdown": Shutdown(drain=40)}
    orders = Consumer("orders", context=Tenant, client=world.client, **more)

    @orders.handler
    async def handle(order: Order, _ctx: Ctx) -> None:
        await asyncio.sleep(order.seconds)

    async with orders:
        orders.tenants.pause(Tenant("a"))
        world.send_orders("held")
        await asyncio.sleep(10)
        world.send_orders("long", tenant="b", seconds=18)
        await asyncio.sleep(1)
    assert await reasons(world) == ["not tried: it could be held no longer and its tenant is paused"]


class ServerShutsDown(Exception):
    """What a driver raises while its server ends."""

    sqlstate = "57P01"


STOPPED = "the consumer stopped, at its last receive, not tried by this consumer; its tenant "


@pytest.mark.parametrize(
    ("lack", "reason"),
    [
        ("paused", "is paused: maintenance"),
        ("opening", "waits for its resources"),
        ("met", "is unavailable: ServerShutsDown"),
    ],
)
@with_world
async def test_the_dead_letter_of_a_stop_tells_what_its_tenant_lacked(world: World, lack: str, reason: str) -> None:
    """Also where its resources are open, and its handlers meet an outage all the same."""
    world.create(dead_letters="dead", receives=1)
    databases, shutdown = Databases(), Shutdown(drain=2)
    orders = Consumer("orders", context=Tenant, resources=databases, client=world.client, shutdown=shutdown)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, Database]) -> None:
        raise ServerShutsDown

    if lack == "paused":
        orders.tenants.pause(Tenant("a"), reason="maintenance")
    elif lack == "opening":
        databases.hanging.add("a")
    async with orders:
        world.send_orders("1")
        await asyncio.sleep(3)
    assert await reasons(world) == [STOPPED + reason]


@with_world
async def test_the_dead_letter_of_a_stop_tells_that_the_fleet_had_no_slot(world: World) -> None:
    """Another replica has the tenant's only one for longer than the drain."""
    world.create()
    world.create("more", dead_letters="dead", receives=1)
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=1, name="shop")
    async with replica(world, diary, fleet, "other"):
        world.send_orders("1", seconds=12.0)
        await asyncio.sleep(0.5)
        async with replica(world, diary, fleet, "one", queue="more", shutdown=Shutdown(drain=1)):
            world.send({"order_id": "2"}, queue="more")
            await asyncio.sleep(5)
    assert await reasons(world) == [STOPPED + "has no slot of the fleet"]


async def reasons(world: World) -> list[str]:
    """Return why messages are dead letters."""
    async with world.client as client:
        letters = await (await client.queue("dead")).receive(limit=10, wait=0, visibility=1)
    return [letter.message_attributes["postroom.reason"].string_value or "" for letter in letters]
