"""Moving and offboarding a tenant in virtual time: each step fails, takes too long or is cancelled."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

from postroom import Concurrency, Consumer, Fleet, MessageContext, Polling, ResourcePool, TenantState
from postroom.console import (
    ConsoleError,
    ConsoleServer,
    MoveFailed,
    MoveStep,
    RemoteConsole,
    allow_token,
    move_tenant,
    offboard_tenant,
)
from postroom.datasources.providers import Provider
from postroom.errors import ConfigurationError
from support.fleet import FaultyState
from support.shop import tenant_of
from support.world import Order, World, with_world

TOKEN = "correct horse battery"


class Shop:
    """Replicas that write each order into the database that the registry names."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.registry = {"acme": "old", "beta": "old"}
        self.rows: dict[str, list[str]] = {"old": [], "new": []}
        self.open: list[str] = []
        self.broken: set[str] = set()
        self.calls: list[str] = []
        self.steps: list[MoveStep] = []
        self.fail: str | None = None
        self.hang: str | None = None
        self.poison = False
        self.pool: ResourcePool[str, list[str]] | None = None
        """What a web route leases from as well."""

    @asynccontextmanager
    async def database(self, tenant: str) -> AsyncIterator[list[str]]:
        """Open the database of a tenant."""
        place = self.registry[tenant]
        if place in self.broken:
            raise ConnectionRefusedError(place)
        self.open.append(place)
        try:
            yield self.rows[place]
        finally:
            self.open.remove(place)

    async def place(self, tenant: str) -> str:
        """Say where a tenant's data is."""
        return self.registry[tenant]

    def replica(self, fleet: Fleet | None = None) -> Consumer[str, list[str]]:
        """Make a consumer."""
        consumer: Consumer[str, list[str]] = Consumer(
            "orders",
            context=tenant_of,
            resources=self.pool or Provider(self.database, place=self.place),
            client=self.world.client,
            concurrency=Concurrency(total=4, per_tenant=2),
            polling=Polling(wait=1.0, scout=False),
            fleet=fleet,
        )

        @consumer.handler
        async def handle(order: Order, ctx: MessageContext[str, list[str]]) -> None:
            await asyncio.sleep(order.seconds)
            if self.poison and ctx.resources is self.rows["new"]:
                raise ValueError("no such table")
            ctx.resources.append(order.order_id)

        return consumer

    async def switch(self) -> None:
        """Copy the rows and point the registry elsewhere."""
        await self._step("switch", "new")

    async def back(self) -> None:
        """Point the registry to the old database again."""
        await self._step("back", "old")

    async def _step(self, name: str, place: str) -> None:
        assert not self.open or name == "back", "something is open while the database is moved"
        self.calls.append(name)
        if self.pool is not None:
            async with self.pool.lease("acme"):
                pass
        if self.hang == name:
            await asyncio.Event().wait()
        if self.fail != f"{name} early":
            if name == "switch":
                self.rows["new"] += self.rows["old"]
            else:
                self.rows["new"].clear()
            self.registry["acme"] = place
        if self.fail in {name, f"{name} early"}:
            raise RuntimeError("disk full: password=hunter2")

    def load(self, count: int = 60) -> None:
        """Send orders of one tenant."""
        self.world.send_orders(*map(str, range(count)), tenant="acme", seconds=0.1)

    async def move(self, *where: Consumer[Any, Any], **options: Any) -> Any:
        """Move acme."""
        options.setdefault("back", self.back)
        return await move_tenant(
            "acme", *where, switch=self.switch, reason="disk is full: password=hunter2", operator="ann",
            progress=lambda step, _: self.steps.append(step), **options,
        )  # fmt: skip


@asynccontextmanager
async def shop(
    world: World, replicas: int = 2, *, fleet: bool = False
) -> AsyncIterator[tuple[Shop, list[Consumer[str, list[str]]]]]:
    """Run replicas of a shop, under load."""
    world.create(dead_letters="dead", receives=20)
    made = Shop(world)
    common = Fleet(FaultyState(), per_tenant=3, tick=0.5) if fleet else None
    consumers = [made.replica(common) for _ in range(replicas)]
    async with AsyncExitStack() as stack:
        for consumer in consumers:
            await stack.enter_async_context(consumer)
        made.load()
        await asyncio.sleep(1)
        yield made, consumers


def check(made: Shop, place: str, count: int = 60) -> None:
    """Every order is there once, in one database."""
    assert sorted(made.rows[place], key=int) == [str(number) for number in range(count)]


@pytest.mark.parametrize("fleet", [False, True])
@with_world
async def test_a_tenant_is_moved_under_load(world: World, fleet: bool) -> None:
    """Nothing runs and nothing is open while it is switched; one message is tried first. Every order is there once."""
    async with shop(world, 3, fleet=fleet) as (made, consumers):
        moved = await made.move(*(consumers[:1] if fleet else consumers))
        assert (moved.before, moved.after, moved.probe) == ("old", "new", "handled")
        await asyncio.sleep(20)
        check(made, "new")
        assert made.calls == ["switch"]
        assert made.steps[-1] is MoveStep.RESUME
        assert {consumer.tenants["acme"].state for consumer in consumers} == {TenantState.ACTIVE}


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        ("switch", MoveStep.SWITCH),
        ("switch early", MoveStep.SWITCH),
        ("same place", MoveStep.VERIFY),
        ("refused", MoveStep.PROBE),
        ("poison", MoveStep.PROBE),
        ("slow handler", MoveStep.DRAIN),
        ("slow switch", MoveStep.SWITCH),
        ("forgotten pause", MoveStep.VERIFY),
    ],
)
@pytest.mark.parametrize("fleet", [False, True])
@with_world
async def test_what_fails_goes_back(world: World, fault: str, step: MoveStep, fleet: bool) -> None:
    """Whatever the step, the tenant runs on its old database again, with every order there once; the error says so."""
    async with shop(world, fleet=fleet) as (made, consumers):
        made.fail = fault if fault.startswith("switch") else None
        made.poison = fault == "poison"
        made.broken = {"new"} if fault == "refused" else set()
        options: dict[str, Any] = {"to": "elsewhere"} if fault == "same place" else {}
        if fault == "slow handler":
            world.send_orders("60", tenant="acme", seconds=30)
            await asyncio.sleep(10)
            options["drain"] = 2
        if fault == "slow switch":
            made.hang = "switch"
            options["timeout"] = 20
        if fault == "forgotten pause":
            real = made.switch

            async def forget() -> None:
                await real()
                consumers[1].tenants.resume("acme")
                await asyncio.sleep(2)

            made.switch = forget  # type: ignore[method-assign]
        with pytest.raises(MoveFailed) as failed:
            await made.move(*(consumers[:1] if fleet else consumers), **options)
        assert failed.value.step is step
        assert "It runs as before" in str(failed.value)
        assert "hunter2" not in str(failed.value)
        assert failed.value.left_paused == ()
        assert made.registry["acme"] == "old"
        await asyncio.sleep(60)
        assert {consumer.tenants["acme"].state for consumer in consumers} == {TenantState.ACTIVE}
        if fault != "forgotten pause":  # there the orders went on, to the new database, as an operator had it
            check(made, "old", 61 if fault == "slow handler" else 60)


@pytest.mark.parametrize("step", [step for step in MoveStep if step is not MoveStep.BACK])
@with_world
async def test_a_cancelled_move_goes_back_or_forward(world: World, step: MoveStep) -> None:
    """Cancelled at any step, the tenant runs afterwards, in one database: before the probe's end in the old one."""
    async with shop(world) as (made, consumers):
        moving: asyncio.Task[Any]

        def tell(now: MoveStep, _: str) -> None:
            if now is step:
                moving.cancel()

        moving = asyncio.create_task(
            move_tenant("acme", *consumers, switch=made.switch, back=made.back, reason="x", progress=tell)
        )
        await asyncio.wait([moving])
        assert moving.cancelled() or step is MoveStep.RESUME
        await asyncio.sleep(30)
        check(made, "old" if made.registry["acme"] == "old" else "new")
        assert made.registry["acme"] == ("new" if step is MoveStep.RESUME else "old")
        assert {consumer.tenants["acme"].state for consumer in consumers} == {TenantState.ACTIVE}


@pytest.mark.parametrize("fault", ["no way back", "back fails"])
@with_world
async def test_a_tenant_that_stays_paused_is_named(world: World, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """In the error and in the log, with what to write."""
    async with shop(world) as (made, consumers):
        made.broken = {"new"}
        if fault == "back fails":
            made.fail = "back early"
        with pytest.raises(MoveFailed, match="still PAUSED in this process") as failed:
            await made.move(*consumers, **({"back": None} if fault == "no way back" else {}))
        assert failed.value.left_paused == ("this process",)
        assert "postroom tenants resume acme" in str(failed.value)
        assert consumers[0].tenants["acme"].state is TenantState.PAUSED
        assert "stays paused" in caplog.text
        assert "hunter2" not in caplog.text


@with_world
async def test_what_an_operator_decided_is_not_overruled(world: World) -> None:
    """A tenant in quarantine is not moved, and stays in quarantine."""
    async with shop(world) as (made, consumers):
        consumers[1].tenants.quarantine("acme", reason="bad import")
        with pytest.raises(MoveFailed, match="resume it first"):
            await made.move(*consumers)
        assert [consumer.tenants["acme"].state for consumer in consumers] == [
            TenantState.ACTIVE,
            TenantState.QUARANTINED,
        ]
        assert made.calls == []


@pytest.mark.parametrize("places", [("new", "new"), ("new", "elsewhere")])
@with_world
async def test_a_tenant_that_is_being_moved_is_not_moved_by_another_operator_at_once(
    world: World, places: tuple[str, str]
) -> None:
    """The second one is refused, and undoes nothing; a move that was killed is gone on with only where that is said."""
    async with shop(world, 1) as (made, consumers):
        made.rows["elsewhere"] = []

        async def slow() -> None:
            await made.switch()
            await asyncio.sleep(10)

        first = asyncio.ensure_future(
            move_tenant("acme", *consumers, switch=slow, back=made.back, reason="disk is full", to=places[0])
        )
        await asyncio.sleep(5)
        with pytest.raises(MoveFailed, match=r"another move runs, or was killed.*It is as it was"):
            await made.move(*consumers, to=places[1])
        assert (await first).after == "new"
        await asyncio.sleep(20)
        check(made, "new")
        assert made.calls == ["switch"]

        consumers[0].tenants.pause("acme", reason="being moved: disk is full (ann)")  # and then it was killed
        with pytest.raises(MoveFailed, match="--go-on and --to PLACE"):
            await made.move(*consumers, to="new")
        moved = await made.move(*consumers, to="new", go_on=True)
        assert (moved.after, made.calls) == ("new", ["switch"])
        assert consumers[0].tenants["acme"].state is TenantState.ACTIVE


@pytest.mark.parametrize("fleet", [False, True])
@with_world
async def test_an_offboarded_tenant_ends_in_the_dead_letter_queue(world: World, fleet: bool) -> None:
    """Also while its database is gone: with the reason, without a retry; and resume takes the tenant back."""
    async with shop(world, fleet=fleet) as (made, consumers):
        await asyncio.sleep(20)
        made.broken = {"old"}
        await consumers[0].tenants.invalidate("acme")
        await offboard_tenant("acme", *(consumers[:1] if fleet else consumers), reason="left", operator="ann")
        await asyncio.sleep(2)
        assert made.open == []
        made.load(30)
        await asyncio.sleep(10)
        assert world.counts() == (0, 0)
        assert world.counts("dead") == (30, 0)
        letter = (await (await world.client.queue("dead")).receive(limit=1, wait=0, visibility=1))[0]
        reason = letter.message_attributes["postroom.reason"].string_value
        assert reason == "tenant offboarded: left (ann)"
        made.broken = set()
        for consumer in consumers:
            consumer.tenants.resume("acme")
        await asyncio.sleep(2)
        world.send_orders("60", tenant="acme")
        await asyncio.sleep(3)
        check(made, "old", 61)


@with_world
async def test_a_tenant_of_consumers_that_share_a_pool_is_offboarded_in_all_of_them(world: World) -> None:
    """All are drained before the pool's entry closes, so none opens it again; both end in quarantine."""
    for name in ("orders", "invoices"):
        world.create(name, dead_letters="dead", receives=20)
    made, runs = Shop(world), list[str]()
    pool = ResourcePool(made.database)
    consumers: list[Consumer[str, list[str]]] = []
    for name in ("orders", "invoices"):
        consumer = Consumer(name, context=tenant_of, resources=pool, client=world.client)
        consumers.append(consumer)

        @consumer.handler
        async def handle(order: Order, _ctx: MessageContext[str, list[str]]) -> None:
            await asyncio.sleep(order.seconds)
            runs.append(order.order_id)

    async with pool, consumers[0], consumers[1]:
        for name in ("orders", "invoices"):
            for number in range(600):
                world.send({"order_id": str(number), "seconds": 0.2}, tenant="acme", queue=name)
        await asyncio.sleep(1)
        async with asyncio.timeout(5):
            await offboard_tenant("acme", *consumers, reason="left")
        assert {each.tenants["acme"].state for each in consumers} == {TenantState.QUARANTINED}
        assert made.open == []
        before = len(runs)
        await asyncio.sleep(10)
        assert 0 < before == len(runs)


@with_world
async def test_an_offboarding_that_fails_in_several_queues_says_so_of_each(world: World) -> None:
    """Each of them has to be looked after. In both its messages become dead letters all the same."""
    consumers: list[Consumer[str, None]] = []
    for name in ("orders", "invoices"):
        world.create(name, dead_letters="dead", receives=20)
        consumer: Consumer[str, None] = Consumer(name, context=tenant_of, client=world.client)
        consumers.append(consumer)

        @consumer.handler
        async def handle(order: Order, _ctx: MessageContext[str]) -> None:
            await asyncio.sleep(order.seconds)

        world.send({"order_id": "1", "seconds": 9.0}, tenant="acme", queue=name)
    async with consumers[0], consumers[1]:
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError, match=r"orders: .*; invoices: "):
            await offboard_tenant("acme", *consumers, reason="left", drain=1)
        assert {each.tenants["acme"].state for each in consumers} == {TenantState.QUARANTINED}


@with_world
async def test_messages_that_are_held_in_an_outage_end_when_their_tenant_is_offboarded(world: World) -> None:
    """They do not wait for a database that never comes back."""
    world.create(dead_letters="dead", receives=20)
    made = Shop(world)
    made.broken = {"old"}
    async with made.replica() as consumer:
        made.load(20)
        await asyncio.sleep(30)
        assert world.counts("dead") == (0, 0)
        await offboard_tenant("acme", consumer, reason="left")
        await asyncio.sleep(3)
        assert world.counts("dead")[0] >= 10  # all that is here at once; what is deferred when it comes again
        await asyncio.sleep(200)
        assert world.counts("dead") == (20, 0)


@with_world
async def test_a_tenant_without_a_dead_letter_queue_is_not_offboarded(world: World) -> None:
    """Its messages would come again and again."""
    world.create()
    async with Shop(world).replica() as consumer:
        world.send_orders("1", tenant="acme", seconds=1)
        await asyncio.sleep(0.5)
        with pytest.raises(ConfigurationError, match="no dead-letter queue"):
            await offboard_tenant("acme", consumer, reason="left")
        assert consumer.tenants["acme"].state is TenantState.ACTIVE


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"switch": 1}, "switch"),
        ({"reason": " "}, "reason"),
        ({"drain": 0}, "drain"),
        ({"probe": 601}, "probe"),
        ({"timeout": True}, "timeout"),
        ({"go_on": True}, "to="),
    ],
)
async def test_wrong_arguments_are_refused(options: dict[str, Any], text: str) -> None:
    """Before anything is changed."""
    consumer: Consumer[str, None] = Consumer("orders", context=tenant_of)
    arguments: dict[str, Any] = {"switch": lambda: None, "back": None, "reason": "x", **options}
    with pytest.raises(ConfigurationError, match=text):
        await move_tenant("acme", consumer, **arguments)
    with pytest.raises(ConfigurationError, match="got none"):
        await move_tenant("acme", switch=lambda: None, back=None, reason="x")


@with_world
async def test_an_offboarding_that_was_called_off_meanwhile_quarantines_nothing(world: World) -> None:
    """The tenant was resumed while its handlers were waited for: it says so at once."""
    world.create(dead_letters="dead", receives=20)
    orders: Consumer[str, None] = Consumer("orders", context=tenant_of, client=world.client)

    @orders.handler
    async def handle(order: Order, _ctx: MessageContext[str, None]) -> None:
        await asyncio.sleep(order.seconds)

    async with orders:
        world.send_orders("long", tenant="acme", seconds=30)
        await asyncio.sleep(1)
        offboarding = asyncio.ensure_future(orders.tenants.offboard("acme", reason="gone", timeout=5))
        await asyncio.sleep(1)
        orders.tenants.resume("acme")
        with pytest.raises(ConfigurationError, match="acme was not drained: it was resumed meanwhile"):
            await offboarding
        assert orders.tenants["acme"].state is TenantState.ACTIVE


class _Slow(RemoteConsole):
    """A console that holds its first answer back."""

    def __init__(self, url: str) -> None:
        super().__init__(url, token=TOKEN, operator="ann")
        self.answered, self.go_on = threading.Event(), threading.Event()
        self.refused = threading.Event()

    def _call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            said = super()._call(method, path, **more)
        except ConsoleError:
            self.refused.set()
            raise
        if path == "me" and not self.go_on.is_set():
            self.answered.set()
            assert self.go_on.wait(20)
        return said


async def test_a_pause_that_was_called_off_does_not_come_after_the_way_back() -> None:
    """Its thread is between two requests when the move is cancelled: the second one is never sent."""
    orders: Consumer[str, None] = Consumer("orders", context=tenant_of)
    orders.tenants.limit("acme", rate=5)
    async with ConsoleServer(orders, port=0, allow=allow_token(TOKEN)) as server:
        remote = _Slow(server.url)
        order = {"action": "pause", "tenant": "acme", "reason": "a move"}
        pausing = asyncio.ensure_future(remote.order(order))
        assert await asyncio.to_thread(remote.answered.wait, 20)
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        remote.go_on.set()
        assert await asyncio.to_thread(remote.refused.wait, 20)
        assert orders.tenants["acme"].state is TenantState.ACTIVE


async def test_a_pause_that_is_called_off_while_it_connects_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no socket yet that a cancelled move could shut down; the thread finds out when it has one."""
    orders: Consumer[str, None] = Consumer("orders", context=tenant_of)
    orders.tenants.limit("acme", rate=5)
    connecting, connected = threading.Event(), threading.Event()
    connect = HTTPConnection.connect

    def connect_slowly(connection: HTTPConnection) -> None:
        connecting.set()
        assert connected.wait(20)
        connect(connection)

    async with ConsoleServer(orders, port=0, allow=allow_token(TOKEN)) as server:
        remote = _Slow(server.url)
        pausing = asyncio.ensure_future(remote.order({"action": "pause", "tenant": "acme", "reason": "a move"}))
        assert await asyncio.to_thread(remote.answered.wait, 20)
        monkeypatch.setattr(HTTPConnection, "connect", connect_slowly)
        remote.go_on.set()
        assert await asyncio.to_thread(connecting.wait, 20)
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        connected.set()
        assert await asyncio.to_thread(remote.refused.wait, 20)
        await asyncio.to_thread(remote.state, top=1)  # served after the connection that said nothing
        assert orders.tenants["acme"].state is TenantState.ACTIVE


@with_world
async def test_what_others_open_during_the_switch_is_closed_after_it(world: World) -> None:
    """A relay or a web route leases from the same pool: what it opened then is the old database."""
    world.create(dead_letters="dead", receives=20)
    made = Shop(world)
    made.pool = ResourcePool(Provider(made.database, place=made.place))
    async with made.pool, made.replica() as consumer:
        made.load(10)
        await asyncio.sleep(1)
        await made.move(consumer)
        made.load(5)
        await asyncio.sleep(10)
    assert made.calls == ["switch"]
    assert len(made.rows["old"]) <= 10
    assert len(made.rows["new"]) == 15
