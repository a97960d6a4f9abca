"""While a tenant's resources, or their host, are down: one message tries, all others wait."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from random import Random
from typing import Any
from unittest import mock

import pytest

from postroom import (
    Consumer,
    MessageContext,
    PoolLimits,
    ResourceError,
    ResourceOpenError,
    ResourcePool,
    RetryPolicy,
    Shutdown,
    Visibility,
)
from postroom.consumer import TenantState
from postroom.consumer.availability import Availability, Obstacle, ObstacleKind
from postroom.consumer.demand import BEYOND
from postroom.options import OpenBackoff
from postroom.resources.failures import of_server
from simulation.fairness.model import FarClient
from support.jobs import job
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world


def host_of(tenant: Tenant) -> str:
    """Return the host: what comes before the dash."""
    return tenant.tenant_id.partition("-")[0]


class Scene:
    """A consumer over databases that can be broken, and what it handled when."""

    def __init__(self, world: World, *, host: Any = host_of, **options: Any) -> None:
        self.world = world
        self.databases = Databases()
        self.databases.seconds = 0.01
        self.done: list[tuple[str, float]] = []
        self.tries = 0
        self.pool = ResourcePool(
            self.databases, host=host, limits=PoolLimits(budget=2_000, idle=None), backoff=OpenBackoff(base=0.5)
        )
        self.orders = Consumer("orders", context=Tenant, resources=self.pool, client=world.client, **options)
        self.orders.handler(self.handle)

    async def handle(self, order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        """Write down when it was handled."""
        await asyncio.sleep(order.seconds)
        self.done.append((ctx.context.tenant_id, asyncio.get_running_loop().time()))

    def refuse(self) -> Exception:
        """Fail an open."""
        self.tries += 1
        return ConnectionRefusedError()

    def break_down(self, *names: str) -> None:
        """Let the databases of some tenants be unreachable."""
        self.databases.failures |= dict.fromkeys(names, self.refuse)


NAMES = tuple(f"down-{number}" for number in range(50))


@with_world
async def test_the_end_of_an_outage_calls_everything_back(world: World) -> None:
    """Two minutes of traffic for fifty tenants come back within seconds, whichever of them was tried."""
    world.create()
    scene = Scene(world)
    scene.break_down(*NAMES)
    async with scene.pool, scene.orders:
        for number in range(240):
            world.send_orders(str(number), tenant=NAMES[number % 50], group=NAMES[number % 50])
            await asyncio.sleep(0.5)
        tries = scene.tries
        scene.databases.failures.clear()
        healed = asyncio.get_running_loop().time()
        world.send_orders("last", tenant=NAMES[0])
        await asyncio.sleep(10)
        assert [status for status in scene.orders.tenants if status.state is TenantState.UNAVAILABLE] == []
    done, seconds = len(scene.done), max(at for _, at in scene.done) - healed
    assert done == 241
    assert seconds <= 7.0  # a probe is due at the latest after a thirtieth of the outage
    assert tries <= 5 + 120 / 0.5


@pytest.mark.parametrize(("state", "together"), [("53300", True), ("3D000", False)])
@with_world
async def test_tenants_of_a_server_that_has_room_again_follow_the_first_of_them(
    world: World, state: str, *, together: bool
) -> None:
    """Too few fail to tell of their host, and their pauses are long by then. What failed otherwise keeps its own."""

    class RefusedError(Exception):
        sqlstate = state

    world.create()
    scene = Scene(world)
    scene.databases.failures |= dict.fromkeys(NAMES[:4], RefusedError)
    async with scene.pool, scene.orders:
        for number in range(120):
            world.send_orders(str(number), tenant=NAMES[number % 4])
            await asyncio.sleep(1)
        assert not scene.done
        scene.databases.failures.clear()
        await asyncio.sleep(40)
    first = dict(reversed(scene.done))
    assert len(first) == 4
    assert (max(first.values()) - min(first.values()) < 1.0) is together


def test_the_end_of_an_outage_asks_about_no_other_tenant_of_its_host() -> None:
    """Where a thousand have one each, the pool was asked a million times. Those that it invites go on, if they wait."""
    pool = mock.Mock(host_of=lambda _context: "host", retry_after=mock.Mock(return_value=0.0))
    known = Availability(pool, Random(1))
    for tenant in NAMES:
        known.refused(job(tenant), ResourceOpenError("refused", context=tenant), 0.0)
    pool.retry_after.reset_mock()
    first, second = NAMES[:2]
    over, woken = known.recovered(first, "host", 60.0, (second, "a tenant that waits for nothing"))
    assert over == [Obstacle(ObstacleKind.TENANT, first)]
    assert woken == [first, second]
    assert not pool.retry_after.called


def test_tenants_of_hosts_that_are_not_remembered_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """More hosts are down than are remembered. Tenants with messages still wake with the first success."""
    monkeypatch.setattr("postroom.consumer.availability.REMEMBER", 10)
    pool = mock.Mock(host_of=lambda tenant: f"host of {tenant}", troubles=[[1]], retry_after=lambda _tenant: 1.0)
    known = Availability(pool, Random(1))
    for tenant in NAMES:
        error = ResourceOpenError("refused", context=tenant, host=f"host of {tenant}")
        known.slept(job(tenant), known.refused(job(tenant), error, 0.0))
    first, last = NAMES[0], NAMES[-10:]
    known.tidy(5.0, lambda tenant: tenant == first)
    assert known._asleep == {f"host of {tenant}": {tenant: None} for tenant in (first, *last)}
    assert known.recovered("another", f"host of {first}", 6.0) == ([], [first])


@pytest.mark.parametrize("opened_again", [False, True])
@with_world
async def test_only_one_message_at_a_time_finds_out(world: World, opened_again: bool) -> None:
    """However much traffic there is for a tenant that is down, each open is tried after its pause, and no other.

    Also in a pool that was closed, and opened again, while the consumer ran.
    """
    world.create()
    scene = Scene(world, host=None)
    scene.break_down("down-0")
    async with scene.pool, scene.orders:
        if opened_again:
            await scene.pool.aclose()
            await scene.pool.__aenter__()
        for number in range(1_000):
            world.send_orders(str(number), tenant="down-0")
            await asyncio.sleep(0.1)
        statistics = scene.orders.statistics()
        world.broker.purge("orders")
    tries, failed, held = scene.tries, statistics.failed["ResourceOpenError"], statistics.held
    assert tries <= 40  # the pauses grow to 30 s
    assert failed <= tries
    assert held <= 1_020


@with_world
async def test_tenants_that_are_open_go_on_while_no_other_of_their_host_can_be_opened(world: World) -> None:
    """A server that takes no new connections still answers on those it has."""
    world.create()
    scene = Scene(world)
    async with scene.pool, scene.orders:
        world.send_orders("first", tenant="down-0")
        await asyncio.sleep(1)
        scene.break_down(*NAMES)
        for number in range(200):
            world.send_orders(str(number), tenant=NAMES[number % 50])
            await asyncio.sleep(0.1)
        world.broker.purge("orders")
    assert sum(name == "down-0" for name, _ in scene.done) == 5


@with_world
async def test_a_stop_during_an_outage_leaves_everything_visible_at_once(world: World) -> None:
    """What was deferred has not started either."""
    world.create()
    scene = Scene(world, shutdown=Shutdown(poll=0))
    scene.break_down(*NAMES)
    async with scene.pool:
        async with scene.orders:
            for number in range(100):
                world.send_orders(str(number), tenant=NAMES[number % 50])
                await asyncio.sleep(0.1)
        at_once = world.counts()[0]
        await asyncio.sleep(2)  # what would have been visible within a second is left alone
        soon = world.counts()[0]
    assert at_once >= 90
    assert soon == 100


def test_a_crowd_that_waits_for_openings_keeps_no_other_tenant_waiting() -> None:
    """However many opens hang: a tenant that is open is served in between, and memory is bounded."""

    async def scenario(world: World) -> tuple[int, int, int]:
        world.create()
        scene = Scene(world)
        async with scene.pool, scene.orders:
            world.send_orders("first", tenant="well-0")
            await asyncio.sleep(1)
            scene.databases.hanging = {f"down-{number}" for number in range(1_500)}
            for number in range(1_500):
                world.send_orders(str(number), tenant=f"down-{number}")
            world.send_orders(*map(str, range(20)), tenant="well-0")
            await asyncio.sleep(20)
            held = scene.orders.statistics().held
            run: Any = scene.orders._run
            capacity = run.core.capacity()
            world.broker.purge("orders")
        return sum(name == "well-0" for name, _ in scene.done), held, capacity

    with mock.patch("postroom.consumer.deferral.MOST_BLOCKED", 500):
        well, held, capacity = in_world(scenario)
    assert well == 21
    assert held <= 500 + BEYOND * capacity


@with_world
async def test_a_cold_start_of_many_tenants_holds_up_no_tenant_that_is_open(world: World) -> None:
    """A thousand tenants come at once, sixteen opens at a time; others go on, and few receives are used up."""
    world.create()
    scene = Scene(world)
    scene.databases.seconds = 0.05
    late: list[float] = []
    receives: list[int] = []
    loop = asyncio.get_running_loop()
    orders = Consumer("orders", context=Tenant, resources=scene.pool, client=FarClient(world.client, 0.01))

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        receives.append(ctx.message.receive_count)
        if ctx.context.tenant_id == "warm" and order.seconds:
            late.append(loop.time() - order.seconds)

    world.send_orders("first", tenant="warm")
    async with scene.pool, orders:
        await asyncio.sleep(3)
        for number in range(1_000):
            world.send_orders("x", tenant=f"cold-{number}", group=f"cold-{number}")
        while world.counts() != (0, 0):
            if len(late) < 100:
                world.send_orders("x", tenant="warm", group="warm", seconds=loop.time())
            await asyncio.sleep(0.02)
    late.sort()
    most, handled = max(receives), len(receives) - len(late)
    assert late[int(0.9 * len(late))] <= 0.5
    assert most <= 4
    assert handled == 1_001


@with_world
async def test_a_host_function_that_fails_costs_only_its_own_message(world: World) -> None:
    """It is asked in the receive path while anything is down: no other tenant may feel it."""

    def host(tenant: Tenant) -> str:
        if tenant.tenant_id == "odd":
            raise KeyError
        return host_of(tenant)

    world.create()
    scene = Scene(world, host=host)
    scene.break_down(*NAMES)
    async with scene.pool, scene.orders:
        world.send_orders("1", tenant="down-1")
        await asyncio.sleep(3)
        world.send_orders("1", tenant="odd")
        world.send_orders("1", tenant="well-1")
        await asyncio.sleep(3)
        failed = scene.orders.statistics().failed
        world.broker.purge("orders")
    done = [name for name, _ in scene.done]
    assert done == ["well-1"]
    assert failed["ResourceOpenError"] >= 1


@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0, 11.0])
@with_world
async def test_messages_that_open_resources_for_each_other_end_no_pause_of_their_handlers(
    world: World, seconds: float
) -> None:
    """Every statement is cut, as behind a proxy, although connecting works: the tenant is tried less and less often."""

    class Cut(Exception):
        sqlstate = "57P01"

    world.create(receives=10)
    starts: list[float] = []
    cut = True

    class Cutting(Scene):
        async def handle(self, order: Order, ctx: MessageContext[Tenant, Database]) -> None:
            starts.append(asyncio.get_running_loop().time())
            assert len(starts) < 200
            if cut:
                raise Cut

    scene = Cutting(world)
    async with scene.pool, scene.orders:
        for number in range(3):
            world.send_orders(str(number), tenant="cut")
            await asyncio.sleep(seconds)
        await asyncio.sleep(40)
        tries = len(starts)
        cut = False
        await asyncio.sleep(31)
        world.send_orders("after", tenant="cut")
        await asyncio.sleep(1)
    after = starts[tries:]
    assert 4 <= tries <= 24
    assert len(after) == 4


@with_world
async def test_a_handler_that_met_an_outage_gets_its_payload_as_it_was_sent(world: World) -> None:
    """It changed its payload before the database said no."""
    world.create()
    orders: Consumer[Tenant, Database] = Consumer("orders", context=Tenant, resources=Databases(), client=world.client)
    seen: list[dict[str, str]] = []

    @orders.handler
    async def handle(payload: dict[str, str], _ctx: MessageContext[Tenant, Database]) -> None:
        seen.append(dict(payload))
        payload["order_id"] = "changed"
        if len(seen) == 1:
            error = ConnectionError("the server shuts down")
            error.sqlstate = "57P01"  # type: ignore[attr-defined]
            raise error

    async with orders:
        world.send({"order_id": "1"})
        await asyncio.sleep(60)
    assert seen == [{"order_id": "1"}] * 2


@pytest.mark.parametrize("of_resources", [True, False])
@with_world
async def test_a_connection_that_a_handler_cannot_get_costs_no_attempt(
    world: World, of_resources: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails while it is made is ruled an outage; the same error of any other call is the message's own."""
    world.create(dead_letters="dead", receives=3)
    tries = 0

    class Asking(Scene):
        async def handle(self, order: Order, ctx: MessageContext[Tenant, Database]) -> None:
            nonlocal tries
            tries += 1
            if tries <= 5:
                error = OSError("the secret store refused token=top-secret")
                raise of_server(error) if of_resources else error
            await super().handle(order, ctx)

    scene = Asking(world, retry=RetryPolicy(base=0.1, cap=0.2))
    async with scene.pool, scene.orders:
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(120)
        opened = scene.pool.statistics().opened
    assert (len(scene.done), sum(world.counts("dead")), opened) == ((1, 0, 1) if of_resources else (0, 1, 1))
    assert ("its messages wait" in caplog.text) is of_resources
    assert "the secret store refused" in caplog.text
    assert "top-secret" not in caplog.text


@with_world
async def test_the_return_of_a_handler_ends_an_outage_that_handlers_met(world: World) -> None:
    """Nothing was opened again, because nothing was closed: no open tells that the tenant is available."""
    world.create()
    full = False

    class Full(Exception):
        sqlstate = "53300"

    class Filling(Scene):
        async def handle(self, order: Order, ctx: MessageContext[Tenant, Database]) -> None:
            if full and order.order_id != "slow":
                raise Full
            await super().handle(order, ctx)

    scene = Filling(world)
    outages: list[int] = []
    async with scene.pool, scene.orders:
        world.send_orders("slow", tenant="acme", seconds=5.0)
        await asyncio.sleep(1)
        full = True
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(3)
        outages.append(scene.orders.statistics().outages)
        await asyncio.sleep(3)  # a handler that ran before the outage has returned: it shows nothing
        outages.append(scene.orders.statistics().outages)
        full = False
        await asyncio.sleep(40)
        outages.append(scene.orders.statistics().outages)
        assert len(scene.done) == 2
    assert outages == [1, 1, 0]


@pytest.mark.parametrize("how", ["paused", "unavailable"])
def test_a_backlog_of_a_tenant_that_cannot_run_costs_no_other_tenant_anything(how: str) -> None:
    """Ten times as many messages as may be held, until each of them is at its last receive."""

    async def scenario(world: World) -> tuple[float, list[int], int, float]:
        world.create(dead_letters="dead", receives=3)
        scene = Scene(world, visibility=Visibility(timeout=3600))
        loop = asyncio.get_running_loop()
        late, receives = [0.0], []
        async with scene.pool, scene.orders:
            if how == "paused":
                scene.orders.tenants.pause(Tenant("down-0"), reason="its backlog")
            scene.break_down("down-0")
            world.send_orders(*map(str, range(400)), tenant="down-0", group="down-0")
            for minute in range(95):
                sent = loop.time()
                world.send_orders("x", tenant="well-0", group="well-0")
                await asyncio.sleep(60)
                late.append(scene.done[-1][1] - sent if len(scene.done) == minute + 1 else 60.0)
                if minute == 14:
                    receives = [message.receives for message in world.broker.queue("orders").messages.values()]
            scene.databases.failures.clear()
            if how == "paused":
                scene.orders.tenants.resume(Tenant("down-0"))
            healed = loop.time()
            while world.counts() != (0, 0):
                await asyncio.sleep(0.5)
        return max(late), receives, world.counts("dead")[0], loop.time() - healed

    with mock.patch.multiple("postroom.consumer.deferral", MOST_HELD=40, MOST_BLOCKED=80, MOST_LAST=400):
        late, receives, dead, seconds = in_world(scenario)
    assert late <= 1.0
    assert len(receives) == 400
    assert max(receives) <= 2  # the last one is not used up in minutes
    assert dead == 0
    assert seconds <= 60


def test_backlogs_of_tenants_that_cannot_run_cost_no_tenant_that_has_to_be_opened_anything() -> None:
    """As many are held as may be: a tenant that comes for the first time is served at once, at its first receive."""

    async def scenario(world: World) -> tuple[float, int, int]:
        world.create(dead_letters="dead", receives=5)
        loop = asyncio.get_running_loop()
        late, receives = [0.0], [0]

        class Timing(Scene):
            async def handle(self, order: Order, ctx: MessageContext[Tenant, Database]) -> None:
                late.append(loop.time() - order.seconds)
                receives.append(ctx.message.receive_count)

        scene = Timing(world, host=None, visibility=Visibility(timeout=3600))
        async with scene.pool, scene.orders:
            for name in NAMES[:4]:
                scene.orders.tenants.pause(Tenant(name), reason="its backlog")
                world.send_orders(*map(str, range(60)), tenant=name, group=name)
            await asyncio.sleep(600)
            assert scene.orders.statistics().held >= 80
            for number in range(30):
                tenant = f"well-{number}"
                world.send_orders("x", tenant=tenant, group=tenant, seconds=loop.time())
                await asyncio.sleep(10)
            world.broker.purge("orders")
        return max(late), max(receives), len(late) - 1

    with mock.patch.multiple("postroom.consumer.deferral", MOST_HELD=40, MOST_BLOCKED=80):
        late, receives, handled = in_world(scenario)
    assert late <= 1.0
    assert (receives, handled) == (1, 30)


def test_what_opens_and_is_unhealthy_ends_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    """Each try opens it: the log would tell of an end each time, and messages that are away would be called back."""

    async def scenario(world: World) -> tuple[list[int], int]:
        world.create(dead_letters="dead", receives=10)
        databases, healthy = Databases(), True

        async def check(_: Database) -> bool:
            return healthy

        pool = ResourcePool(databases, check=check, backoff=OpenBackoff(cap=5.0))
        orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)
        done: list[int] = []

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
            if not healthy:
                raise ConnectionResetError
            done.append(ctx.message.receive_count)

        async with orders:
            world.send_orders("first")
            await asyncio.sleep(1)
            healthy = False
            world.send_orders(*map(str, range(60)))
            await asyncio.sleep(120)
            tries = len(databases.made)
            healthy = True
            await asyncio.sleep(60)
        return done, tries

    with caplog.at_level("INFO", "postroom.consumer"):
        done, tries = in_world(scenario)
    assert tries > 20
    assert len(done) == 61
    assert max(done) <= 4  # a wait grows with the outage: 15 s, a minute
    for text in ("is unavailable; its messages wait", "is available again after"):
        assert sum(text in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("host", [None, host_of])
def test_an_outage_that_only_another_user_of_the_pool_has_met_is_over_here_too(host: Any) -> None:
    """What was deferred for long because of it is called back when that one has opened the resources again."""

    async def scenario(world: World) -> float:
        world.create(dead_letters="dead", receives=3)
        scene = Scene(world, host=host)
        tenant, loop = Tenant("down-0"), asyncio.get_running_loop()
        scene.break_down("down-0")
        world.send_orders(*map(str, range(400)), tenant="down-0")
        async with scene.pool:
            while scene.pool.retry_after(tenant) < 20:
                with contextlib.suppress(ResourceError):
                    await scene.pool.acquire(tenant)
                await asyncio.sleep(1)
            async with scene.orders:
                tries = scene.tries
                await asyncio.sleep(10)
                assert scene.tries == tries
                assert scene.orders.statistics().away > 300
                scene.databases.failures.clear()
                await scene.pool.invalidate(tenant)
                async with scene.pool.lease(tenant):
                    healed = loop.time()
                while len(scene.done) < 400:
                    await asyncio.sleep(0.5)
            return loop.time() - healed

    with mock.patch.multiple("postroom.consumer.deferral", MOST_HELD=20):
        assert in_world(scenario) < 60


def test_an_outage_that_another_user_has_met_in_use_is_over_with_the_first_success() -> None:
    """The resources stayed open: no open tells of its end."""

    class Full(Exception):
        sqlstate = "53300"

    async def scenario(world: World) -> float:
        world.create(dead_letters="dead", receives=3)
        scene = Scene(world)
        tenant, loop = Tenant("a"), asyncio.get_running_loop()
        world.send_orders(*map(str, range(400)))
        async with scene.pool:
            while (pause := scene.pool.retry_after(tenant)) < 20:
                await asyncio.sleep(pause)
                with contextlib.suppress(Full):
                    async with scene.pool.lease(tenant):
                        raise Full
            over = loop.time() + pause
            async with scene.orders:
                await asyncio.sleep(10)
                assert scene.orders.statistics().away > 300
                while len(scene.done) < 400:
                    await asyncio.sleep(0.5)
            return loop.time() - over

    with mock.patch.multiple("postroom.consumer.deferral", MOST_HELD=20):
        assert in_world(scenario) < 60


def test_a_backlog_that_leaves_no_room_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is received any longer: the log says why, once, and what to do."""

    async def scenario(world: World) -> int:
        world.create(dead_letters="dead", receives=1)
        scene = Scene(world)
        async with scene.pool, scene.orders:
            scene.orders.tenants.pause(Tenant("big-0"), reason="its backlog")
            world.send_orders(*map(str, range(1_000)), tenant="big-0")
            await asyncio.sleep(60)
            handled = len(scene.done)
            scene.orders.tenants.resume(Tenant("big-0"))
            await asyncio.sleep(60)
        return len(scene.done) - handled

    with mock.patch.multiple("postroom.consumer.deferral", MOST_HELD=100, MOST_BLOCKED=200, MOST_LAST=300):
        assert in_world(scenario) == 1_000
    (said,) = [record for record in caplog.records if "Nothing is received any longer" in record.message]
    assert said.levelname == "WARNING"
    assert "are of tenant big-0:eu-west-1: resume it, or divert it to a queue of its own" in said.message
    assert said.tenant == "big-0:eu-west-1"  # type: ignore[attr-defined]
    (over,) = [record for record in caplog.records if "Messages are received again" in record.message]
    assert over.levelname == "WARNING"


@pytest.mark.parametrize("what", ["resources", "handlers"])
@with_world
async def test_a_tenant_that_nothing_came_of_for_an_hour_is_said_to_be_unavailable_no_longer(
    world: World, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its messages have expired, and it may have left for good: no success would ever end the alarm."""

    @contextlib.asynccontextmanager
    async def database(_tenant: Tenant) -> AsyncGenerator[None]:
        if what == "resources":
            raise ConnectionRefusedError
        yield

    world.create(MessageRetentionPeriod="60")
    retry = RetryPolicy(base=1, cap=1)
    orders = Consumer("orders", context=Tenant, resources=database, client=world.client, retry=retry)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, None]) -> None:
        raise ValueError

    world.send_orders(*map(str, range(10)), tenant="acme")
    acme = Tenant("acme")
    async with orders:
        await asyncio.sleep(1800)
        seen = orders.statistics()
        assert (seen.held, seen.outages + seen.breakers) == (0, 1)
        assert orders.tenants[acme].state is TenantState.UNAVAILABLE
        await asyncio.sleep(1980)
        seen = orders.statistics()
        assert (seen.outages, seen.breakers) == (0, 0)
        assert orders.tenants[acme].state is TenantState.ACTIVE
    (end,) = [record for record in caplog.records if "no longer said to be unavailable" in record.message]
    assert end.levelname == "WARNING", "a warning has told that it is"


@with_world
async def test_a_host_that_all_tenants_were_moved_from_is_said_to_be_unavailable_no_longer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is ever opened on it again, and no success would end the alarm."""
    hosts = ["old"]

    @contextlib.asynccontextmanager
    async def database(_tenant: Tenant) -> AsyncGenerator[None]:
        if hosts == ["old"]:
            raise ConnectionRefusedError
        yield

    world.create()
    pool = ResourcePool(database, host=lambda _tenant: hosts[0])
    orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant, None]) -> None:
        pass

    tenants = "abcdefgh"
    async with pool, orders:
        for tenant in tenants:
            world.send_orders("1", tenant=tenant)
        await asyncio.sleep(120)
        assert orders.statistics().outages > 0
        hosts[:] = ["new"]
        for _ in range(14):
            await asyncio.sleep(300)
            for tenant in tenants:
                world.send_orders("2", tenant=tenant)
        assert orders.statistics().outages == 0
    told = [(each.levelname, each.message) for each in caplog.records if "ost old is unavailable" in each.message]
    assert len(told) == 1
    assert any(
        each.levelname == "WARNING" and each.message.startswith("No message has needed host old for 3600 s")
        for each in caplog.records
    )
