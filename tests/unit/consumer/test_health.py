"""Health by freshness: what counts as live, ready and started, from before the start to after the stop."""

import asyncio
import threading
from typing import Any

import pytest

from postroom import Concurrency, Consumer, Health, MessageContext, Phase, Polling, Shutdown
from postroom.consumer.health import BLOCKED, SLACK
from postroom.consumer.loop_watch import LoopWatch
from postroom.errors import AccessDenied, ServiceUnavailable
from postroom.tasks import Tasks
from postroom.testing.loop import settle
from postroom.transports.memory import MemoryClient
from support.world import Databases, Order, Tenant, World, with_world

WAIT = 20.0
LIMIT = 2 * WAIT + SLACK


class Mood(MemoryClient):
    """A client with receives that fail, or hang, from a moment on."""

    def __init__(self, world: World) -> None:
        super().__init__(world.broker)
        self.error: Exception | None = None
        self.hangs = False

    async def queue(self, name: str) -> Any:
        """Open a queue, and come between it and its receives."""
        queue = await super().queue(name)
        receive = queue.receive

        async def moody(**options: Any) -> Any:
            if self.error is not None:
                raise self.error
            if self.hangs:
                await asyncio.Event().wait()
            return await receive(**options)

        queue.receive = moody  # type: ignore[method-assign]
        return queue


def consumer(world: World, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer: its handlers take as long as their orders say."""
    options.setdefault("client", world.client)
    orders: Consumer[Any, Any] = Consumer("orders", **options)

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None:
        await asyncio.sleep(order.seconds)

    return orders


@with_world
async def test_from_before_the_start_to_after_the_stop(world: World) -> None:
    """It is live all the time, and ready from the first receive on until it is asked to stop."""
    seen: list[Health] = []
    world.create()
    orders = consumer(world, shutdown=Shutdown(drain=5))
    seen.append(orders.health())
    await orders.__aenter__()
    await settle()
    seen.append(orders.health())  # the first long poll is out: SQS has answered nothing yet
    world.send_orders("1", seconds=2)
    await asyncio.sleep(1)
    seen.append(orders.health())
    ending = asyncio.create_task(orders.end(), name="end")
    await settle()
    seen.append(orders.health())
    await ending
    seen.append(orders.health())
    assert [health.phase for health in seen] == list(_phases("new running running stopping stopped"))
    assert [health.ready for health in seen] == [False, True, True, False, False]
    assert [health.started for health in seen] == [False, True, True, True, True]
    assert all(health.live for health in seen)
    assert [health.reasons for health in seen] == [
        ("it was not started yet",), (), (), ("it is stopping",), ("it is stopped",),
    ]  # fmt: skip
    assert seen[1].last_poll_age is None
    assert seen[2].last_poll_age == pytest.approx(1, abs=0.1)


def _phases(text: str) -> list[Phase]:
    return [Phase(word) for word in text.split()]


@with_world
async def test_a_start_under_way_is_live_and_not_ready(world: World) -> None:
    """It waits for its queue to be opened."""
    world.create()
    client = MemoryClient(world.broker)
    may_open = asyncio.Event()
    opens = client.queue

    async def slowly(name: str) -> Any:
        await may_open.wait()
        return await opens(name)

    client.queue = slowly  # type: ignore[method-assign]
    orders = consumer(world, client=client)
    starting = asyncio.create_task(orders.__aenter__(), name="start")
    await settle()
    health = orders.health()
    assert (health.phase, health.live, health.ready) == (Phase.STARTING, True, False)
    assert health.reasons == ("it is starting",)
    may_open.set()
    await starting
    await settle()
    assert orders.health().ready
    await orders.end()


@with_world
async def test_an_idle_queue_is_healthy_for_as_long_as_it_is_idle(world: World) -> None:
    """Long polls that bring nothing are answers."""
    world.create()
    async with consumer(world, polling=Polling(wait=WAIT)) as orders:
        for _ in range(200):
            await asyncio.sleep(5)
            assert orders.health().ready, orders.health()


@with_world
async def test_a_full_consumer_that_asks_for_nothing_is_healthy(world: World) -> None:
    """All slots are taken for an hour, and there is no room: that SQS has not answered for so long says nothing."""
    world.create()
    world.send_orders(*map(str, range(50)), seconds=3_600)
    options = {"concurrency": Concurrency(total=2), "polling": Polling(prefetch=0, scout=False)}
    async with consumer(world, shutdown=Shutdown(drain=0, cancel=1), **options) as orders:
        await asyncio.sleep(3_000)
        health = orders.health()
        assert health.ready
        assert health.last_poll_age is not None
        assert health.last_poll_age > LIMIT


@with_world
async def test_the_outage_of_a_tenant_is_no_reason_to_be_unready(world: World) -> None:
    """Another tenant's database is down; the consumer goes on with the others."""
    world.create()
    databases = Databases()
    databases.failures["down"] = lambda: ConnectionRefusedError("no database")
    async with consumer(world, context=Tenant, resources=databases) as orders:
        world.send_orders(*map(str, range(30)), tenant="down")
        world.send_orders("1", tenant="a")
        await asyncio.sleep(300)
        assert orders.statistics().failed["ResourceOpenError"] > 0
        assert orders.health().ready


@with_world
async def test_receives_that_fail_make_it_unready_after_two_long_polls_and_ready_again_at_the_first_answer(
    world: World,
) -> None:
    """A short outage of SQS is not worth a word, a long one is; it never calls for a restart."""
    world.create()
    client = Mood(world)
    async with consumer(world, client=client, polling=Polling(wait=WAIT, max_backoff=5)) as orders:
        await asyncio.sleep(30)
        client.error = ServiceUnavailable("secret-host is down", operation="ReceiveMessage", code="503")
        await asyncio.sleep(10 + LIMIT - 1)  # the long poll that is out still ends well
        assert orders.health().ready
        await asyncio.sleep(12)
        health = orders.health()
        assert (health.ready, health.live, health.started) == (False, True, True)
        [reason] = health.reasons
        assert reason.startswith("receives have failed for ")
        assert reason.endswith(" s (ServiceUnavailable)")
        client.error = None
        await asyncio.sleep(30)
        assert orders.health().ready


@with_world
async def test_a_first_receive_that_is_refused_makes_it_unready_at_once(world: World) -> None:
    """A deployment without the permission to receive must not pass for one that works."""
    world.create()
    client = Mood(world)
    client.error = AccessDenied("no", operation="ReceiveMessage", code="AccessDenied")
    async with consumer(world, client=client) as orders:
        await settle()
        health = orders.health()
        assert (health.ready, health.live, health.started) == (False, True, False)
        assert health.reasons == ("receives have failed for 0 s (AccessDenied)",)


@with_world
async def test_a_receive_without_an_answer_makes_it_unready(world: World) -> None:
    """The connection hangs, and no error says so."""
    world.create()
    client = Mood(world)
    async with consumer(world, client=client, polling=Polling(wait=WAIT), shutdown=Shutdown(poll=1)) as orders:
        await asyncio.sleep(WAIT - 1)
        client.hangs = True
        await asyncio.sleep(LIMIT)
        assert orders.health().ready
        await asyncio.sleep(3)
        [reason] = orders.health().reasons
        assert reason == f"SQS has not answered a receive for {LIMIT + 2:.0f} s"
        assert orders.health().live


@with_world
async def test_a_poller_that_was_cancelled_from_outside_makes_it_dead(world: World) -> None:
    """Code that cancels all tasks of the loop leaves no error behind, only silence."""
    world.create()
    async with consumer(world) as orders:
        await settle()
        [poller] = [task for task in asyncio.all_tasks() if task.get_name() == "postroom-poller-0"]
        poller.cancel()
        await settle()
        health = orders.health()
        assert (health.live, health.ready) == (False, False)
        assert health.reasons == ("its task postroom-poller-0 ended",)


@with_world
async def test_a_consumer_that_was_ended_by_an_error_stays_dead(world: World) -> None:
    """Also after its block was left: only a restart helps, and the reason names no more than the error's type."""
    world.create()
    orders: Consumer[Any, Any] = Consumer("orders", client=world.client)

    @orders.handler
    async def handle(body: dict[str, Any], ctx: MessageContext[Any, Any]) -> None:
        raise SystemExit("secret")

    await orders.__aenter__()
    world.send({})
    await orders.wait_for_stop()
    assert orders.health().reasons == ("it was ended by SystemExit", "it is stopping")
    assert isinstance(await orders.end(), SystemExit)
    health = orders.health()
    assert (health.live, health.ready) == (False, False)
    assert health.reasons == ("it was ended by SystemExit", "it is stopped")


async def test_a_loop_that_is_blocked_is_dead_to_who_asks_from_another_thread() -> None:
    """From within, the loop runs: it cannot be blocked."""
    watch = LoopWatch(Tasks(lambda _error: None), dict, int)
    watch.start()
    try:
        assert watch._watched is not None
        watch._watched._due -= BLOCKED + 60
        found: list[float] = []
        asking = threading.Thread(target=lambda: found.append(watch.silence()))
        asking.start()
        asking.join()
        assert found[0] > BLOCKED
        assert watch.silence() == 0.0
    finally:
        watch.close()
    assert watch.silence() == 0.0
