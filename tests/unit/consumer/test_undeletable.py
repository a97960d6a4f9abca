"""Deletes that do not work: what was handled stays ours, and nothing more is received until they do."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from postroom import (
    AccessDenied,
    AckMode,
    Consumer,
    InvalidRequest,
    MessageContext,
    Polling,
    QueueNotFound,
    Reject,
    ServiceUnavailable,
    Visibility,
)
from postroom.transports.memory import MemoryQueue
from postroom.transports.protocol import NO_HANDLE, EntryFailure
from support.world import Order, Tenant, World, in_world

DENIED = AccessDenied("ExpiredToken; log in again", code="ExpiredToken", retryable=True)


class Site:
    """A consumer of orders, with deletes that fail as told."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch, **options: Any) -> None:
        world.create(dead_letters="dead", receives=5)
        world.create("others")
        self.world = world
        self.handled: Counter[str] = Counter()
        self.at: dict[str, float] = {}
        self.deletes: list[float] = []
        self.error: Exception | list[EntryFailure] | None = None
        self.stuck: list[str] | None = None
        """Handles that are never deleted; the first one of all if there is none yet."""
        options |= {"context": Tenant, "client": world.client}
        if "queues" not in options:
            options["queue"] = "orders"
        self.orders: Consumer[Any, Any] = Consumer(**options)
        self.orders.handler(self.handle)
        delete = MemoryQueue.delete

        async def failing(queue: MemoryQueue, handles: Sequence[str]) -> Any:
            if self.stuck is not None and queue.info.name == "orders":
                self.stuck = self.stuck or list(handles[:1])
                stuck = [n for n, each in enumerate(handles) if each in self.stuck]
                await delete(queue, [each for each in handles if each not in self.stuck] or [NO_HANDLE])
                return [EntryFailure(n, "InternalError") for n in stuck]
            if self.error is None or queue.info.name != "orders":
                return await delete(queue, handles)
            self.deletes.append(asyncio.get_running_loop().time())
            if isinstance(self.error, Exception):
                raise self.error.with_traceback(None)
            return [EntryFailure(n, each.code) for n, each in enumerate(self.error * len(handles))]

        patch.setattr(MemoryQueue, "delete", failing)

    async def handle(self, order: Order, _ctx: MessageContext[Any, Any]) -> None:
        """Note that it was handled."""
        await asyncio.sleep(order.seconds)
        if order.order_id == "bad":
            raise Reject("bad")
        self.handled[order.order_id] += 1
        self.at[order.order_id] = asyncio.get_running_loop().time()

    @property
    def receives(self) -> int:
        """Receives so far."""
        return self.orders.statistics().receives


def run(patch: pytest.MonkeyPatch, scenario: Callable[[Site], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario with a site, and return what it returns."""

    async def main(world: World) -> Any:
        site = Site(world, patch, **options)
        async with site.orders:
            return await scenario(site)

    return in_world(main)


@pytest.mark.parametrize(
    "error",
    [
        DENIED,
        ServiceUnavailable("503"),
        [EntryFailure(0, "InternalError")],
        QueueNotFound("not known yet"),
        InvalidRequest("an endpoint that is being replaced"),
    ],
)
def test_what_was_handled_is_handled_once_however_long_deletes_fail(
    error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hours, all defaults: no second run, no dead letter, few calls; then everything goes on within a minute."""

    async def scenario(site: Site) -> tuple[Any, ...]:
        site.world.send_orders("bad", *map(str, range(50)))
        site.error = error
        await asyncio.sleep(7000)
        before = site.receives
        site.world.send_orders("late")
        await asyncio.sleep(200)
        spent, runs = site.receives - before, site.handled.copy()
        site.error = None
        await asyncio.sleep(61)
        return spent, runs, site.handled["late"], site.world.counts(), site.world.counts("dead"), len(site.deletes)

    spent, runs, late, left, dead, calls = run(monkeypatch, scenario)
    assert runs == Counter(map(str, range(50)))
    assert spent == 0
    assert (late, left, dead) == (1, (0, 0), (1, 0))
    assert calls < 8000


def test_the_log_says_what_happened_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two lines when it begins, two when it is over; health tells of it as well."""

    async def scenario(site: Site) -> tuple[str, ...]:
        site.error = DENIED
        site.world.send_orders("1")
        await asyncio.sleep(100)
        health = site.orders.health()
        site.error = None
        await asyncio.sleep(100)
        assert site.orders.health().ready
        return health.reasons

    with caplog.at_level(logging.INFO, "postroom"):
        [reason] = run(monkeypatch, scenario)
    assert "Undeletable" in reason
    said = [each for each in caplog.messages if "orders" in each and "onsum" not in each]
    assert len([each for each in said if "still fails" in each]) == 1
    deleting, receiving, again, on = [each for each in said if "still fails" not in each]
    assert deleting.startswith("Deleting messages of orders failed")
    assert receiving.startswith("Receiving from orders failed")
    assert "no message of orders could be deleted" in receiving
    assert "ExpiredToken; log in again), so what comes would be handled again and again; tried again" in receiving
    assert again.startswith("Deleting messages of orders works again")
    assert on.startswith("Receiving from orders works again")


def test_a_short_outage_of_deletes_stops_no_receive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds, in which a message comes: it is handled at once."""

    async def scenario(site: Site) -> tuple[float, int]:
        site.world.send_orders("1")
        site.error = ServiceUnavailable("503")
        await asyncio.sleep(2)
        site.world.send_orders("2")
        await asyncio.sleep(1)
        site.error = None
        await asyncio.sleep(20)
        return site.at["2"], site.orders.statistics().poll_failures

    at, failures = run(monkeypatch, scenario)
    assert at < 2.1
    assert failures == 0


def test_where_nothing_waits_to_be_deleted_a_delete_finds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without heartbeat what was handled is lost after its timeout: it is not received to be handled once more."""

    async def scenario(site: Site) -> tuple[Any, ...]:
        site.world.send_orders("1", "2", "3")
        site.error = DENIED
        await asyncio.sleep(4000)
        runs, before = site.handled.copy(), site.receives
        site.error = None
        await asyncio.sleep(60)
        return runs, before, site.world.counts(), site.world.counts("dead"), len(site.deletes)

    visibility = Visibility(timeout=30, heartbeat=False)
    runs, receives, left, dead, calls = run(monkeypatch, scenario, visibility=visibility)
    assert runs == Counter("123")
    assert receives < 5
    assert (left, dead) == ((0, 0), (0, 0))
    assert 100 < calls < 1500


def test_one_message_that_is_not_deleted_keeps_no_other_from_being_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS fails to delete it, for an hour, and deletes all others."""

    async def scenario(site: Site) -> tuple[Counter[str], float]:
        site.stuck = []
        site.world.send_orders("stuck")
        await asyncio.sleep(60)
        began = asyncio.get_running_loop().time()
        for number in range(60):
            site.world.send_orders(str(number))
            await asyncio.sleep(60)
        late = max(site.at[str(number)] - began - 60 * number for number in range(60))
        return site.handled, late

    handled, late = run(monkeypatch, scenario)
    assert handled == Counter(["stuck", *map(str, range(60))])
    assert late < 2


def test_a_queue_with_deletes_that_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several queues only the one that refuses deletes is not asked."""

    async def scenario(site: Site) -> tuple[Any, ...]:
        site.error = DENIED
        site.world.send_orders("1")
        await asyncio.sleep(100)
        site.world.send_orders("2")
        site.world.send({"order_id": "other"}, queue="others")
        await asyncio.sleep(100)
        runs, unreachable = site.handled.copy(), site.orders.health().unreachable
        site.error = None
        await asyncio.sleep(100)
        return runs, unreachable, site.handled["2"]

    runs, [unreachable], late = run(monkeypatch, scenario, queues=["orders", "others"])
    assert runs == Counter(["1", "other"])
    assert unreachable.startswith("orders: ")
    assert late == 1


def test_a_handler_that_waits_for_its_delete_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ctx.ack()`` returns once deletes are allowed again, half an hour later."""
    acked: list[float] = []

    async def scenario(site: Site) -> tuple[int, int]:
        site.error = DENIED
        site.world.send_orders("1")
        await asyncio.sleep(1800)
        assert acked == []
        site.error = None
        await asyncio.sleep(60)
        assert len(acked) == 1
        return site.world.counts()

    async def handle(_order: Order, ctx: MessageContext[Any, Any]) -> None:
        await ctx.ack()
        acked.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(Site, "handle", staticmethod(handle))
    assert run(monkeypatch, scenario, ack=AckMode.MANUAL) == (0, 0)


@pytest.mark.parametrize(
    ("call", "bodies", "what"),
    [
        ("send", "bad", "messages on their way to the dead-letter queue take all the room"),
        ("delete", "good", "messages that SQS has not confirmed to be deleted or given back take all the room"),
    ],
)
def test_the_log_names_what_fills_the_memory(
    call: str, bodies: str, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no tenant that cannot run: SQS does not answer."""

    async def silent(_queue: MemoryQueue, _entries: Any) -> Any:
        await asyncio.Event().wait()

    async def scenario(site: Site) -> None:
        monkeypatch.setattr(MemoryQueue, call, silent)
        for _ in range(30):
            site.world.send({"order_id": bodies, "filling": "x" * 100_000})
        await asyncio.sleep(20)

    run(monkeypatch, scenario, polling=Polling(memory=1_048_576))
    [said] = [line for line in caplog.messages if line.startswith("Nothing is received any longer")]
    assert what in said
