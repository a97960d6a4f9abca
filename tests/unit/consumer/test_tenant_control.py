"""Control of tenants, looked at closely: exact rates, threads and web routes, and what may never be dead-lettered."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import pytest

from postroom import (
    BatchContext,
    Concurrency,
    ConfigurationError,
    Consumer,
    MessageContext,
    Polling,
    PoolLimits,
    ResourcePool,
    RetryPolicy,
    Shutdown,
)
from postroom.consumer.statuses import TenantState
from postroom.consumer.tenants import Tenants
from postroom.local import LocalBroker
from postroom.message import Message
from postroom.options import Faults, OpenBackoff
from support.receives import LIMITS
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

A, B = Tenant("a"), Tenant("b")


def starts_of(world: World, starts: list[float], **options: Any) -> Consumer[Tenant]:
    """Make a consumer that writes down when the handlers of tenant a start."""
    orders: Consumer[Tenant] = Consumer("orders", context=Tenant, client=world.client, **options)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        if ctx.context == A:
            starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(order.seconds)

    return orders


def pauses(orders: Consumer[Tenant]) -> None:
    """Pause tenant a."""
    orders.tenants.pause(A)


def limits(orders: Consumer[Tenant]) -> None:
    """Let one handler of tenant a run."""
    orders.tenants.limit(A, concurrency=1)


def meters(orders: Consumer[Tenant]) -> None:
    """Let one handler of tenant a start per minute."""
    orders.tenants.limit(A, rate=1 / 60)


def adjusts(orders: Consumer[Tenant]) -> None:
    """Let one handler run."""
    orders.adjust(Concurrency(total=1, per_tenant=1))


@pytest.mark.parametrize(("decide", "runs"), [(pauses, 0), (limits, 1), (meters, 1), (adjusts, 1)])
@with_world
async def test_a_decision_in_the_middle_of_a_receive_holds_for_all_of_it(
    world: World, decide: Callable[[Consumer[Tenant]], None], runs: int
) -> None:
    """A resolver decides about a tenant: also about its messages of the same receive that came before."""
    world.create()
    starts: list[float] = []
    resolved: list[str] = []

    def resolve(message: Message) -> Tenant:
        resolved.append(message.id)
        if len(resolved) == 5:
            decide(orders)
        return A

    orders: Consumer[Tenant] = Consumer("orders", context=resolve, client=world.client)

    @orders.handler
    async def record(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(30)

    world.send_orders(*map(str, range(7)))
    async with orders:
        await asyncio.sleep(5)
        assert len(starts) == runs


@pytest.mark.parametrize(
    "rate", [0.5, pytest.param(3.0, marks=pytest.mark.long), pytest.param(50.0, marks=pytest.mark.long), 400.0]
)
@with_world
async def test_a_rate_is_kept_exactly(world: World, rate: float) -> None:
    """After the first burst of one second's worth there are as many starts as the rate says, to a message."""
    world.create()
    starts: list[float] = []
    orders = starts_of(world, starts, concurrency=Concurrency(total=20, per_tenant=20))
    orders.tenants.limit(A, rate=rate)
    seconds = min(1_000 / rate, 400)
    world.send_orders(*map(str, range(1_200)), tenant="a", seconds=0.001)
    async with orders:
        await asyncio.sleep(seconds)
        world.broker.purge("orders")
        orders.tenants.limit(A, rate=None)
    began = starts[0]
    burst = max(1.0, rate)
    in_time = [at for at in starts if at - began <= seconds - 1]
    assert len(in_time) <= burst + rate * (seconds - 1) + 1
    assert len(in_time) >= min(1_200, burst + rate * (seconds - 1)) - 2
    for place in range(0, len(in_time) - 1, 7):  # in no window does more start than the bucket holds
        window = sum(in_time[place] <= at < in_time[place] + 1.0 for at in in_time[place:])
        assert window <= burst + rate + 1


@with_world
async def test_other_decisions_do_not_fill_the_bucket_up(world: World) -> None:
    """A rate of one per second stays that while limits come and go, ten times a second."""
    world.create()
    starts: list[float] = []
    orders = starts_of(world, starts)
    orders.tenants.limit(A, rate=1)
    world.send_orders(*map(str, range(100)), tenant="a")
    async with orders:
        for number in range(200):
            await asyncio.sleep(0.1)
            orders.tenants.limit(A, concurrency=1 + number % 3)
        assert 20 <= len(starts) <= 22


def test_a_handler_that_pauses_its_tenant_is_the_last_that_starts() -> None:
    """Also before those that got their slots together with it; they wait, in order, and cost no attempt."""

    async def scenario(world: World) -> tuple[list[str], int, list[str], list[int]]:
        world.create()
        seen: list[str] = []
        attempts: list[int] = []
        orders: Consumer[Tenant] = Consumer("orders", context=Tenant, client=world.client)

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
            seen.append(order.order_id)
            attempts.append(ctx.attempt)
            if len(seen) == 1:
                orders.tenants.pause(A, reason="its database answers nonsense")
            await asyncio.sleep(1)

        world.send_orders(*map(str, range(8)), tenant="a")
        async with orders:
            await asyncio.sleep(5)
            before, waiting = list(seen), orders.tenants[A].waiting
            orders.tenants.resume(A)
            await asyncio.sleep(5)
            return before, waiting, sorted(seen), attempts

    before, waiting, seen, attempts = in_world(scenario)
    assert len(before) == 1
    assert waiting == 7
    assert seen == [str(number) for number in range(8)]
    assert attempts == [1] * 8


def test_a_pause_holds_while_a_body_is_fetched() -> None:
    """A message that was taken out of its envelope meanwhile does not start."""

    async def scenario(world: World) -> tuple[int, int]:
        world.create()
        seen: list[str] = []

        async def slowly(message: Message) -> Message:
            await asyncio.sleep(1)
            return message

        orders: Consumer[Tenant] = Consumer("orders", context=Tenant, client=world.client, unwrap=slowly)

        @orders.handler
        async def record(order: Order, _ctx: MessageContext[Tenant]) -> None:
            seen.append(order.order_id)

        world.send_orders("1", tenant="a")
        async with orders:
            await asyncio.sleep(0.5)
            orders.tenants.pause(A)
            await asyncio.sleep(5)
            paused = len(seen)
            orders.tenants.resume(A)
            await asyncio.sleep(5)
            return paused, len(seen)

    assert in_world(scenario) == (0, 1)


@with_world
async def test_another_rate_does_not_fill_the_bucket_up(world: World) -> None:
    """A program that follows a database's load sets a rate each second: that is no second burst each time."""
    world.create()
    starts: list[float] = []
    orders = starts_of(world, starts)
    world.send_orders(*map(str, range(1_000)), tenant="a")
    async with orders:
        for number in range(30):
            orders.tenants.limit(A, rate=10 + number % 2)
            await asyncio.sleep(1)
        assert 10 * 30 <= len(starts) <= 11 * 31


@with_world
async def test_an_open_counts_as_no_start(world: World) -> None:
    """Where each message finds its tenant's resources closed, as many start as the rate says, and at their time."""
    world.create()
    starts: list[float] = []
    databases = Databases()
    pool = ResourcePool(databases, limits=PoolLimits(idle=2))
    orders = starts_of(world, starts, resources=pool)
    orders.tenants.limit(A, rate=0.1)
    world.send_orders(*map(str, range(50)), tenant="a")
    async with orders:
        await asyncio.sleep(100)
        opens = len(databases.made)
    assert starts == pytest.approx([10 * place for place in range(len(starts))], abs=0.1)
    assert len(starts) == opens == 10


@pytest.mark.parametrize("how", ["divert", "quarantine"])
def test_a_rate_keeps_nothing_back_that_is_sent_away(how: str) -> None:
    """A flooded tenant is limited first and diverted then: its backlog starts no handler, and leaves at once."""

    async def scenario(world: World) -> tuple[int, int, int]:
        world.create(dead_letters="dead")
        world.create("aside")
        starts: list[float] = []
        orders = starts_of(world, starts)
        orders.tenants.limit(A, rate=0.01)
        world.send_orders(*map(str, range(100)), tenant="a")
        async with orders:
            await asyncio.sleep(5)
            if how == "divert":
                orders.tenants.divert(A, queue="aside", reason="backlog")
            else:
                orders.tenants.quarantine(A, reason="corrupt import")
            await asyncio.sleep(10)
            left = sum(world.counts())
            orders.tenants.resume(A)
            world.send_orders("one more", tenant="a")
            await asyncio.sleep(5)
            return len(starts), left, world.counts("aside" if how == "divert" else "dead")[0]

    assert in_world(scenario) == (1, 0, 99)  # the rate holds again after that


@with_world
async def test_a_rate_holds_in_the_queue_that_its_tenant_is_diverted_to(world: World) -> None:
    """One consumer of both queues: what comes from elsewhere goes there at once, and starts there at the rate."""
    world.create()
    world.create("aside")
    starts: list[float] = []
    orders: Consumer[Tenant] = Consumer(queues=["orders", "aside"], context=Tenant, client=world.client)

    @orders.handler
    async def record(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        starts.append(asyncio.get_running_loop().time())

    orders.tenants.limit(A, rate=1)
    orders.tenants.divert(A, queue="aside", reason="backlog")
    world.send_orders(*map(str, range(100)), tenant="a")
    async with orders:
        await asyncio.sleep(50)
        started, left = len(starts), sum(world.counts("orders"))
    assert 45 <= started <= 51
    assert left == 0


@with_world
async def test_a_noisy_tenant_with_a_rate_takes_no_room_from_others(world: World) -> None:
    """Its backlog waits or is deferred; another tenant's messages are handled as they come."""
    world.create()
    late: list[float] = []
    orders: Consumer[Tenant] = Consumer("orders", context=Tenant, client=world.client)
    loop = asyncio.get_running_loop()

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        if ctx.context == B:
            late.append(loop.time() - float(order.order_id))
        await asyncio.sleep(order.seconds)

    orders.tenants.limit(A, rate=5)
    world.send_orders(*map(str, range(3_000)), tenant="a", seconds=0.02, group="a")
    async with orders:
        await asyncio.sleep(5)
        for _ in range(100):
            await asyncio.sleep(0.1)
            world.send_orders(repr(loop.time()), tenant="b", seconds=0.02, group="b")
        await asyncio.sleep(1)
        world.broker.purge("orders")
    assert len(late) == 100
    assert sorted(late)[98] <= 0.1


def test_decisions_of_many_threads_are_all_kept() -> None:
    """Each thread changes another part of the same rule."""
    tenants = Tenants()
    rounds = 300
    barrier = threading.Barrier(3)

    def decide(action: Callable[[int], None]) -> None:
        for number in range(rounds):
            barrier.wait()
            action(number)
            barrier.wait()
            status = tenants[A]
            assert (status.rate, status.concurrency) == (1 + number, 1 + number)
            assert (status.state is TenantState.PAUSED) == (number % 2 == 0)

    actions: tuple[Callable[[int], None], ...] = (
        lambda number: tenants.limit(A, rate=1 + number),
        lambda number: tenants.limit(A, concurrency=1 + number),
        lambda number: tenants.resume(A) if number % 2 else tenants.pause(A),
    )
    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(decide, action) for action in actions]:
            done.result(timeout=60)


class Route(BaseHTTPRequestHandler):
    """A web route of some other framework, in threads of its own: GET lists, POST /a/pause decides."""

    tenants: Tenants

    def do_GET(self) -> None:  # the base class wants this name
        """List the tenants with their live figures."""
        listed = [
            {"key": str(status.key), "state": status.state.value, "running": status.running, "waiting": status.waiting}
            for status in self.tenants
        ]
        self._answer(listed)

    def do_POST(self) -> None:  # the base class wants this name
        """Carry a decision out."""
        _, key, what = self.path.split("/")
        getattr(self.tenants, what)(Tenant(key))
        self._answer([])

    def _answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


async def test_a_web_route_lists_pauses_and_resumes_while_the_consumer_runs() -> None:
    """In real time, on a real socket, from threads that know nothing of the loop."""
    async with LocalBroker() as broker:
        world = World(broker)
        world.create()
        starts: list[float] = []
        orders = starts_of(world, starts, shutdown=Shutdown(drain=0, cancel=1, poll=0))
        route = type("ThisRoute", (Route,), {"tenants": orders.tenants})
        server = ThreadingHTTPServer(("127.0.0.1", 0), route)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def call(path: str, method: str) -> Any:
            url = f"http://127.0.0.1:{server.server_port}{path}"
            with urlopen(Request(url, method=method), timeout=10) as answer:
                return json.load(answer)

        try:
            async with orders, asyncio.timeout(20):
                await asyncio.to_thread(call, "/a/pause", "POST")
                world.send_orders("1", "2", tenant="a", seconds=60)
                while not (listed := await asyncio.to_thread(call, "/", "GET")) or listed[0]["waiting"] < 2:
                    await asyncio.sleep(0.01)
                assert (listed[0]["state"], listed[0]["running"], starts) == ("paused", 0, [])
                await asyncio.to_thread(call, "/a/resume", "POST")
                while (listed := await asyncio.to_thread(call, "/", "GET"))[0]["running"] < 2:
                    await asyncio.sleep(0.01)
                assert (listed[0]["state"], len(starts)) == ("active", 2)
        finally:
            await asyncio.to_thread(server.shutdown)
            thread.join()
            server.server_close()


@pytest.mark.parametrize("most", LIMITS)
@with_world
async def test_an_outage_dead_letters_nothing(world: World, most: int) -> None:
    """A host with twenty tenants is down for two minutes, and one tenant is paused: in the end all is handled."""
    world.create(dead_letters="dead", receives=most)
    databases = Databases()
    names = [f"down-{number}" for number in range(20)]
    databases.failures = dict.fromkeys(names, ConnectionRefusedError)
    pool = ResourcePool(databases, host=lambda tenant: tenant.tenant_id.partition("-")[0], limits=PoolLimits())
    orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        ctx.resources.write(order.order_id)

    orders.tenants.pause(A)
    async with pool, orders:
        for number in range(24):
            world.send_orders(*(f"{number}-{part}" for part in range(3)), tenant=names[number % 20])
            world.send_orders(str(number), tenant="a")
            await asyncio.sleep(5)
        databases.failures.clear()
        orders.tenants.resume(A)
        await asyncio.sleep(120)
    assert (sum(len(made.rows) for made in databases.made), len(databases.rows("a")), world.counts("dead")) == (
        24 * 4,
        24,
        (0, 0),
    )


@pytest.mark.parametrize("most", LIMITS)
@with_world
async def test_a_message_of_a_broken_tenant_is_dead_lettered_only_for_its_own_failures(world: World, most: int) -> None:
    """What waits for the breaker has been deferred at most as often as leaves three real attempts."""
    world.create(dead_letters="dead", receives=most)
    tried: Counter[str] = Counter()
    orders: Consumer[Tenant] = Consumer(
        "orders",
        context=Tenant,
        client=world.client,
        polling=Polling(lane=2),
        retry=RetryPolicy(base=1, cap=5),
        faults=Faults(breaker_after=3, messages=2, base=2, cap=8, poison_after=None),
    )

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        tried[order.order_id] += 1
        raise ValueError

    world.send_orders(*map(str, range(30)), tenant="a")
    dead: list[str] = []
    async with orders:
        for _ in range(600):
            await asyncio.sleep(1)
            for letter in await world.broker.receive("dead", limit=10) if world.counts("dead")[0] else ():
                dead.append(json.loads(letter.body)["order_id"])
                assert tried[dead[-1]] >= min(most, 3), dead[-1]
    assert len(dead) > 0
    assert sum(tried.values()) >= 30


@with_world
async def test_a_tenant_in_quarantine_while_its_database_is_down_goes_to_the_dead_letter_queue(world: World) -> None:
    """Also what is held here because it has no receive to spare."""
    world.create(dead_letters="dead", receives=1)
    databases = Databases()
    databases.failures["a"] = ConnectionRefusedError
    pool = ResourcePool(databases, backoff=OpenBackoff(cap=2.0))
    orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        raise AssertionError

    world.send_orders("1", "2", "3", tenant="a")
    async with pool, orders:
        await asyncio.sleep(10)
        held = orders.statistics().held
        orders.tenants.quarantine(A)
        await asyncio.sleep(30)
    assert (held, world.counts("dead")) == (3, (3, 0))


@with_world
async def test_a_tenant_can_be_drained_while_its_database_is_down(world: World) -> None:
    """What is held for the end of the outage does not count as running, and stays quiet while the tenant is paused."""
    world.create(dead_letters="dead", receives=1)
    databases = Databases()
    databases.failures["a"] = ConnectionRefusedError
    tries = 0

    def refuse() -> Exception:
        nonlocal tries
        tries += 1
        return ConnectionRefusedError()

    databases.failures["a"] = refuse
    pool = ResourcePool(databases, backoff=OpenBackoff(cap=2.0))
    orders = Consumer("orders", context=Tenant, resources=pool, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        ctx.resources.write(order.order_id)

    world.send_orders("1", "2", tenant="a")
    loop = asyncio.get_running_loop()
    async with pool, orders:
        await asyncio.sleep(10)
        began = loop.time()
        await orders.tenants.drain(A, timeout=5)
        took, before = loop.time() - began, tries
        await asyncio.sleep(120)
        after = tries
        databases.failures.clear()
        orders.tenants.resume(A)
        await asyncio.sleep(60)
    rows, dead = len(databases.rows("a")), world.counts("dead")[0]
    assert took <= 5.0
    assert after - before <= 2  # those that were about to
    assert (rows, dead) == (2, 0)


@with_world
async def test_messages_of_a_paused_tenant_do_not_keep_the_others_from_being_received(world: World) -> None:
    """Few slots and no prefetching: what waits here for a decision is no work for a free slot."""
    world.create()
    starts: list[float] = []
    orders = starts_of(
        world, starts, concurrency=Concurrency(total=3, per_tenant=3), polling=Polling(prefetch=0, pollers=1)
    )
    orders.tenants.pause(B)
    async with orders:
        world.send_orders("held", tenant="b")
        await asyncio.sleep(1)
        world.send_orders("1", "2", tenant="a")
        await asyncio.sleep(30)
    assert len(starts) == 2


@with_world
async def test_a_paused_tenant_stops_no_receive_where_contexts_are_looked_up(world: World) -> None:
    """While its messages are resolved they take all the room; they take none once their tenant is known."""

    async def resolve(message: Message) -> Tenant:
        await asyncio.sleep(0.5)
        return Tenant(message.attributes["tenantId"])

    world.create()
    done: list[str] = []
    orders: Consumer[Tenant] = Consumer("orders", context=resolve, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        done.append(order.order_id)

    async with orders:
        orders.tenants.pause(B)
        world.send_orders(*map(str, range(300)), tenant="b")
        await asyncio.sleep(30)
        world.send_orders("other", tenant="a")
        await asyncio.sleep(2)
    assert done == ["other"]


@pytest.mark.parametrize("ask", ["pause", "retry_now", "invalidate", "close", "places", "probe"])
async def test_what_cannot_name_a_tenant_is_refused(ask: str) -> None:
    """A list of tenants, for instance: with what to write instead."""
    act = getattr(Consumer("orders", context=Tenant).tenants, ask)

    async def call() -> None:
        if (done := act(["acme", "beta"])) is not None:
            await done

    with pytest.raises(ConfigurationError, match="a tenant is named by its context"):
        await call()


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("what", ["drain", "close", "offboard"])
@with_world
async def test_a_handler_cannot_wait_for_the_end_of_its_own_tenant(world: World, what: str, batched: bool) -> None:
    """It would keep its slot without end, and tell nothing. A task that it does not wait for may do it."""
    refused: list[str] = []
    world.create("orders", dead_letters="orders-dlq")
    orders: Consumer[Tenant] = Consumer("orders", context=Tenant, client=world.client)
    begun: list[asyncio.Task[None]] = []
    options: dict[str, Any] = {"reason": "the account was closed"} if what == "offboard" else {}

    async def end(tenant: Tenant) -> None:
        try:
            await getattr(orders.tenants, what)(tenant, **options)
        except ConfigurationError as error:
            refused.append(str(error))
        assert orders.tenants[tenant].state is TenantState.ACTIVE
        begun.append(asyncio.create_task(getattr(orders.tenants, what)(tenant, **options)))

    if batched:

        @orders.batch_handler(size=2, wait=0)
        async def store(_orders: list[Order], batch: BatchContext[Tenant, Any]) -> None:
            await end(batch.context)

    else:

        @orders.handler
        async def handle(_order: Order, ctx: MessageContext[Tenant, Any]) -> None:
            await end(ctx.context)

    world.send_orders("1", tenant="a")
    async with orders:
        await asyncio.sleep(1.0)
        await asyncio.gather(*begun)
        wanted = {"drain": TenantState.PAUSED, "close": TenantState.ACTIVE, "offboard": TenantState.QUARANTINED}
        assert orders.tenants[A].state is wanted[what]
        assert orders.statistics().succeeded == 1
    (text,) = refused
    assert text.startswith("a handler of a:")
    assert "would wait for its own end" in text


@pytest.mark.parametrize("batched", [False, True])
@with_world
async def test_a_handler_may_drain_its_tenant_in_another_consumer_and_not_close_what_it_uses(
    world: World, batched: bool
) -> None:
    """Of a pool that both share: the close would wait for the lease of the handler, without end."""
    refused: list[str] = []
    for name in ("orders", "bills"):
        world.create(name)
    pool: ResourcePool[Tenant, Database] = ResourcePool(Databases())
    orders: Consumer[Tenant, Database] = Consumer("orders", context=Tenant, resources=pool, client=world.client)
    bills: Consumer[Tenant, Database] = Consumer("bills", context=Tenant, resources=pool, client=world.client)

    async def end(tenant: Tenant) -> None:
        await bills.tenants.drain(tenant)
        try:
            await bills.tenants.close(tenant)
        except ConfigurationError as error:
            refused.append(str(error))

    @bills.handler
    async def pay(_order: Order, _ctx: MessageContext[Tenant, Database]) -> None:
        pass

    if batched:

        @orders.batch_handler(size=2, wait=0)
        async def store(_orders: list[Order], batch: BatchContext[Tenant, Database]) -> None:
            await end(batch.context)

    else:

        @orders.handler
        async def handle(_order: Order, ctx: MessageContext[Tenant, Database]) -> None:
            await end(ctx.context)

    world.send_orders("1", tenant="a")
    async with pool, bills, orders:
        await asyncio.sleep(10.0)
        assert bills.tenants[A].state is TenantState.PAUSED
        assert orders.statistics().succeeded == 1
    (text,) = refused
    assert "would wait for its own end" in text
