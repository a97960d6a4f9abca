"""Metrics: how a day of work is counted, under which names, and how many series tenants may make."""

import asyncio
import dataclasses
import re
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest

from postroom import (
    Concurrency,
    Consumer,
    ConsumerStatistics,
    Faults,
    MessageContext,
    PoolStatistics,
    Queues,
    ResourcePool,
    RetryPolicy,
    Shutdown,
)
from postroom.errors import ServiceUnavailable
from postroom.events import ConsumerStarted, ConsumerStopped, Event, Observers, PollFailed
from postroom.fleet import Fleet, FleetStatistics
from postroom.integrations.otel import Telemetry, TopTenants, names
from postroom.integrations.otel.tenants import OTHER, Busiest
from postroom.types import StopReason
from support.fleet import Diary, FaultyState, replica
from support.telemetry import Recorded
from support.world import Databases, Order, Tenant, World, in_world, with_world

TEXT = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text(encoding="utf-8")
QUEUE = {"messaging.system": "aws_sqs", "messaging.destination.name": "orders"}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Spans and metrics in memory. Each look is a fresh one: minutes of virtual time take less than a reading lasts."""
    monkeypatch.setattr("postroom.integrations.otel.metrics._FRESH", -1.0)
    return Recorded()


def consumer(world: World, telemetry: Telemetry, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer: its handlers fail for orders that are named so, and take as long as orders say."""
    options.setdefault("shutdown", Shutdown(drain=0, cancel=1))
    orders: Consumer[Any, Any] = Consumer("orders", client=world.client, observers=[telemetry], **options)

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None:
        await asyncio.sleep(order.seconds)
        if order.order_id.startswith("bad"):
            raise ValueError(order.order_id)

    return orders


def test_every_name_is_the_one_that_dashboards_and_alerts_use() -> None:
    """Pinned: a change of one breaks what is built on it. Those of the conventions are of version 1.44.0."""
    assert names.SCHEMA_URL == "https://opentelemetry.io/schemas/1.44.0"
    assert sorted(instrument.name for instrument in names.INSTRUMENTS) == [
        "messaging.client.consumed.messages",
        "messaging.client.operation.duration",
        "messaging.client.sent.messages",
        "messaging.process.duration",
        "postroom.away",
        "postroom.breakers",
        "postroom.consumers",
        "postroom.deferred",
        "postroom.duplicates",
        "postroom.extensions",
        "postroom.failures",
        "postroom.fleet.degraded",
        "postroom.fleet.exchange.age",
        "postroom.fleet.exchange.duration",
        "postroom.fleet.exchanges",
        "postroom.fleet.exchanges.failed",
        "postroom.fleet.hosts.down",
        "postroom.fleet.overruns",
        "postroom.fleet.replicas",
        "postroom.fleet.slots",
        "postroom.fleet.starved",
        "postroom.group.mismatches",
        "postroom.handlers.cancelled",
        "postroom.handlers.succeeded",
        "postroom.held",
        "postroom.held.size",
        "postroom.lease.duration",
        "postroom.loop.lag",
        "postroom.message.attempts",
        "postroom.message.wait",
        "postroom.message.wait.oldest",
        "postroom.message.wait.oldest_within_share",
        "postroom.outages",
        "postroom.parked",
        "postroom.poll.age",
        "postroom.pool.budget",
        "postroom.pool.checks.failed",
        "postroom.pool.closed",
        "postroom.pool.cooling",
        "postroom.pool.hits",
        "postroom.pool.leased",
        "postroom.pool.live",
        "postroom.pool.misses",
        "postroom.pool.open.failed",
        "postroom.pool.opened",
        "postroom.pool.refusals",
        "postroom.pool.timeouts",
        "postroom.pool.waiting",
        "postroom.pool.weight",
        "postroom.receives",
        "postroom.receives.failed",
        "postroom.receives.scouting",
        "postroom.resource.open.duration",
        "postroom.settlements",
        "postroom.settlements.failed",
        "postroom.slots.limit",
        "postroom.slots.used",
        "postroom.tenant.failures",
        "postroom.tenant.handler.time",
        "postroom.tenant.messages",
        "postroom.tenant.wait",
        "postroom.tenants",
        "postroom.waiting",
    ]
    assert names.SECONDS == (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


def test_names_of_the_conventions_are_those_that_opentelemetry_publishes() -> None:
    """By its own package of names, as far as that has them."""
    from opentelemetry.semconv._incubating.attributes import messaging_attributes as attributes
    from opentelemetry.semconv._incubating.metrics import messaging_metrics as metrics
    from opentelemetry.semconv.schemas import Schemas

    assert names.SYSTEM == attributes.MESSAGING_SYSTEM
    assert attributes.MessagingSystemValues.AWS_SQS.value == names.SQS
    assert names.OPERATION_NAME == attributes.MESSAGING_OPERATION_NAME
    assert names.OPERATION_TYPE == attributes.MESSAGING_OPERATION_TYPE
    assert names.DESTINATION == attributes.MESSAGING_DESTINATION_NAME
    assert names.MESSAGE_ID == attributes.MESSAGING_MESSAGE_ID
    assert names.BATCH_COUNT == attributes.MESSAGING_BATCH_MESSAGE_COUNT
    assert names.PROCESS_DURATION.name == metrics.MESSAGING_PROCESS_DURATION
    assert names.OPERATION_DURATION.name == metrics.MESSAGING_CLIENT_OPERATION_DURATION
    assert names.CONSUMED.name == metrics.MESSAGING_CLIENT_CONSUMED_MESSAGES
    assert names.SENT.name == metrics.MESSAGING_CLIENT_SENT_MESSAGES
    assert {type_.value for type_ in attributes.MessagingOperationTypeValues} >= {
        "send",
        "receive",
        "process",
        "settle",
    }
    known = [schema.value for schema in Schemas]
    assert names.SCHEMA_URL in known or _version(names.SCHEMA_URL) > max(map(_version, known))


def _version(schema: str) -> tuple[int, ...]:
    return tuple(map(int, schema.rpartition("/")[2].split(".")))


def test_every_field_of_the_statistics_has_an_instrument_or_a_reason() -> None:
    """What is added to them is not forgotten here."""
    told = {*names.COUNTERS, *names.GAUGES, "received", "settled", "failed", "waiting", "suspended", "pool", "queues"}
    untold = {"scouting_stopped", "loop_lag", "fleet", "utilisation"}  # a text, a histogram, events, a quotient
    assert set(ConsumerStatistics.__dataclass_fields__) == told | untold
    pool = {*names.POOL_COUNTERS, *names.POOL_GAUGES}
    assert pool < set(PoolStatistics.__dataclass_fields__)
    fleet = {*names.FLEET_COUNTERS, *names.FLEET_GAUGES}
    untold = {"name", "reachable", "tenants", "decisions"}  # a label; told by the age; of no use as a number; a time
    assert set(FleetStatistics.__dataclass_fields__) == fleet | untold


@with_world
async def test_each_of_several_queues_is_counted_by_its_own_name(world: World, recorded: Recorded) -> None:
    """Receives, settlements and runs name their queue, also when it is listed no longer; slots name the consumer."""
    listed = ["orders", "invoices"]
    for number, name in enumerate(listed, 1):
        world.create(name)
        for _ in range(number):
            world.send({"order_id": name}, queue=name)
    queues = Queues(lambda: list(listed), name="sales", every=5)
    telemetry = recorded.telemetry()
    sales: Consumer[Any, Any] = Consumer(queues=queues, client=world.client, observers=[telemetry])

    @sales.handler
    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None: ...

    def counted(name: str, queue: str, **labels: str) -> Any:
        return recorded.value(name, messaging__destination__name=queue, **labels)

    async with sales:
        await asyncio.sleep(1)
        recorded.metrics()
        listed.remove("invoices")
        await asyncio.sleep(60)
        recorded.metrics()
        assert set(sales.statistics().queues) == {"orders"}
        assert counted("postroom.slots.limit", "sales") == Concurrency().total
        assert counted("postroom.handlers.succeeded", "sales") == 3
        with telemetry.sending("answers"):
            pass
        # An alert tells of each queue with 0 of them.
        assert recorded.metrics()["postroom.consumers"] == [({**QUEUE, "messaging.destination.name": "sales"}, 1)]
    for number, name in enumerate(("orders", "invoices"), 1):
        assert counted("messaging.client.consumed.messages", name) == number
        assert counted("postroom.settlements", name, postroom__settlement="acked") == number
        assert counted("postroom.receives", name) > 0
        assert counted("messaging.process.duration", name)[0] == number


@with_world
async def test_a_bad_day_is_counted_at_every_step(world: World, recorded: Recorded) -> None:
    """Good and bad handlers, an outage, messages that wait: read while it lasts."""
    world.create(dead_letters="dead", receives=5)
    databases = Databases()
    databases.seconds = 0.1
    databases.failures["down"] = lambda: ConnectionRefusedError("no database")
    retry, faults = RetryPolicy(attempts=3, base=1), Faults(breaker_after=2, messages=2)
    options: dict[str, Any] = {"context": Tenant, "resources": databases, "retry": retry, "faults": faults}
    async with consumer(world, recorded.telemetry(), concurrency=Concurrency(total=4), **options):
        world.send_orders("1", "2", "3", tenant="a")
        world.send_orders("bad-1", "bad-2", "bad-3", tenant="bad")
        world.send_orders("4", tenant="down")
        await asyncio.sleep(2)
        world.send_orders(*map(str, range(10, 20)), tenant="b", seconds=60)
        await asyncio.sleep(3)
        now = recorded.metrics()
        assert recorded.value("postroom.slots.limit", **_queue()) == 4
        assert recorded.value("postroom.slots.used", **_queue()) == 4
        assert recorded.value("postroom.handlers.succeeded", **_queue()) == 3
        assert recorded.value("postroom.settlements", postroom__settlement="acked") == 3
        assert recorded.value("postroom.failures", error__type="ValueError") >= 3
        assert recorded.value("postroom.failures", error__type="ResourceOpenError") >= 1
        assert recorded.value("postroom.outages", **_queue()) == 1
        assert recorded.value("postroom.breakers", **_queue()) == 1
        assert recorded.value("postroom.waiting", postroom__state="slot") >= 5
        assert recorded.value("postroom.message.wait.oldest", **_queue()) > 2
        assert recorded.value("postroom.consumers", **_queue()) == 1
        assert recorded.value("messaging.client.consumed.messages", **_queue()) >= 17
        processes = {labels.get("error.type"): value for labels, value in now["messaging.process.duration"]}
        assert processes[None][0] == 3
        assert processes["ValueError"][0] >= 3
        assert now["postroom.message.wait"][0][1][0] == 3 + 4 + processes["ValueError"][0]
        assert now["postroom.lease.duration"][0][1][0] >= 3
        assert now["postroom.resource.open.duration"][0][1] == (3, pytest.approx(0.3, abs=0.05))
        assert recorded.value("postroom.pool.live", postroom__pool="orders") == 3
        assert recorded.value("postroom.pool.open.failed", postroom__pool="orders") >= 1
        assert recorded.value("messaging.client.operation.duration", messaging__operation__name="receive")[0] >= 2
    produced = recorded.metrics().keys()
    assert produced >= {
        each.name for each in names.INSTRUMENTS if not each.name.startswith(("postroom.tenant.", "postroom.fleet."))
    } - {
        "messaging.client.sent.messages",  # nothing was sent
        *(each.name for each in [*names.POOL_COUNTERS.values(), *names.POOL_GAUGES.values()]),  # it is closed
        *(each.name for each in names.GAUGES.values()),
        names.WAITING.name,
    }


def _queue() -> dict[str, str]:
    return {"messaging__destination__name": "orders"}


@with_world
async def test_a_fleet_has_its_metrics(world: World, recorded: Recorded) -> None:
    """Slots of two consumers are added up, replicas are not; without the store both are degraded."""
    world.create()
    state, telemetry = FaultyState(), recorded.telemetry()
    world.send_orders(*map(str, range(60)), tenant="a", seconds=2.0)
    one, two = (
        replica(world, Diary(), Fleet(state, per_tenant=3), name, observers=[telemetry]) for name in ("one", "two")
    )
    async with one, two:
        await asyncio.sleep(8)
        assert _of_fleet(recorded, "postroom.fleet.replicas") == 2
        assert _of_fleet(recorded, "postroom.fleet.slots") == 3
        assert _of_fleet(recorded, "postroom.fleet.exchanges") >= 10
        assert _of_fleet(recorded, "postroom.fleet.degraded") == 0
        state.gone = True
        await asyncio.sleep(40)
        assert _of_fleet(recorded, "postroom.fleet.degraded") == 2
        assert _of_fleet(recorded, "postroom.fleet.exchanges.failed") >= 4
        assert _of_fleet(recorded, "postroom.fleet.exchange.age") > 30


def _of_fleet(recorded: Recorded, name: str) -> Any:
    return recorded.value(name, postroom__fleet__name="orders")


@with_world
async def test_no_metric_names_a_tenant_by_default(world: World, recorded: Recorded) -> None:
    """Each name is a time series, and tenants are many."""
    world.create()
    async with consumer(world, recorded.telemetry(), context=Tenant):
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(1)
    assert "acme" not in repr(recorded.metrics())


def test_a_consumer_without_observers_makes_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """So one without telemetry pays nothing for it: not a call, not an object."""
    made: list[str] = []

    class Spy(Observers):
        def tell(self, event: Event) -> None:
            made.append(type(event).__name__)

    async def scenario(world: World, observers: list[Any]) -> int:
        world.create()
        orders: Consumer[Any, Any] = Consumer("orders", context=Tenant, client=world.client, observers=observers)
        orders._settings = dataclasses.replace(orders._settings, observers=Spy(observers))

        @orders.handler
        async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None: ...

        async with orders:
            world.send_orders("1", "2", "3")
            await asyncio.sleep(1)
            return orders.statistics().succeeded

    assert in_world(lambda world: scenario(world, [])) == 3
    assert made == []
    assert in_world(lambda world: scenario(world, [lambda _event: None])) == 3
    assert made.count("HandlerStarted") == 3


@with_world
async def test_counters_go_on_when_a_consumer_is_started_again(world: World, recorded: Recorded) -> None:
    """Its statistics begin at 0 again; the counters of a process do not."""
    world.create()
    orders = consumer(world, recorded.telemetry())
    for run in range(1, 4):
        async with orders:
            world.send_orders("1", "2")
            await asyncio.sleep(1)
            assert recorded.value("postroom.handlers.succeeded", **_queue()) == 2 * run
        assert recorded.value("postroom.handlers.succeeded", **_queue()) == 2 * run
        assert recorded.value("postroom.consumers", **_queue()) == 0
    assert "postroom.slots.used" not in recorded.metrics()  # no consumer, no gauge


@with_world
async def test_two_consumers_of_a_queue_are_summed_and_a_shared_pool_is_told_once(
    world: World, recorded: Recorded
) -> None:
    """The labels name the queue and the pool, so a process tells one number of each."""
    world.create()
    telemetry = recorded.telemetry()
    pool = ResourcePool(Databases(), name="databases")
    options: dict[str, Any] = {"context": Tenant, "resources": pool, "concurrency": Concurrency(total=5)}
    async with consumer(world, telemetry, **options), consumer(world, telemetry, **options):
        world.send_orders("1", "2", "3")
        await asyncio.sleep(1)
        assert recorded.value("postroom.slots.limit", **_queue()) == 10
        assert recorded.value("postroom.handlers.succeeded", **_queue()) == 3
        assert recorded.value("postroom.consumers", **_queue()) == 2
        assert recorded.metrics()["postroom.pool.opened"] == [({"postroom.pool": "databases"}, 1)]
        [(_, (opened, _seconds))] = recorded.metrics()["postroom.resource.open.duration"]
        assert opened == 1


@with_world
async def test_collecting_in_another_thread_meets_no_error(
    world: World, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    """Exporters ask in threads of their own, while the loop changes what they look at."""
    world.create()
    done = threading.Event()
    collected: list[int] = []

    def collect() -> None:
        while not done.is_set():
            collected.append(len(recorded.metrics()))

    thread = threading.Thread(target=collect)
    async with consumer(world, recorded.telemetry(tenants=TopTenants(3)), context=Tenant):
        thread.start()
        for number in range(600):
            world.send_orders(str(number), tenant=f"t{number % 50}", seconds=0.01)
            if number % 100 == 99:
                await asyncio.sleep(1)
        await asyncio.sleep(5)
    done.set()
    thread.join()
    assert len(collected) > 3
    assert recorded.value("postroom.handlers.succeeded", **_queue()) == 600
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_a_loop_that_is_late_is_measured(recorded: Recorded) -> None:
    """In real time, by a timer of its own that ends with the last consumer."""
    telemetry = recorded.telemetry()
    started = ConsumerStarted("orders")
    telemetry(started)
    telemetry(started)
    stopped = ConsumerStopped("orders", StopReason.REQUESTED, 0)
    telemetry(stopped)
    lags = telemetry._metrics._lags
    [lag] = lags.values()
    lag._timer.cancel()
    lag._tick(asyncio.get_running_loop().time() - 2)
    [(_, (count, total))] = recorded.metrics()["postroom.loop.lag"]
    assert (count, total) == (1, pytest.approx(2, abs=0.2))
    telemetry(stopped)
    assert lags == {}
    assert lag._timer.cancelled()


def test_a_receive_and_a_send_that_fail_have_their_error(recorded: Recorded) -> None:
    """As duration with the type of the error, which the conventions ask for."""
    telemetry = recorded.telemetry()
    telemetry(PollFailed("orders", ServiceUnavailable("no", operation="ReceiveMessage", code="503"), 1.0, 0.5))
    with pytest.raises(ValueError, match="no"), telemetry.sending("orders", count=3):
        raise ValueError("no")
    assert recorded.value("messaging.client.operation.duration", messaging__operation__name="receive") == (1, 0.5)
    assert recorded.value("messaging.client.sent.messages", error__type="ValueError") == 3
    [span] = recorded.spans("send")
    assert dict(span.attributes or {})["messaging.batch.message_count"] == 3


# -- tenants --------------------------------------------------------------------------------------------------------


def run(busiest: Busiest, tenant: str, *, seconds: float = 1.0, now: float = 0.0, failed: bool = False) -> None:
    """Count one run."""
    busiest.ran(tenant, seconds, 0.5, now, failed=failed)


def labels(busiest: Busiest) -> set[str]:
    """Return the labels that there are."""
    return {label for label, _ in busiest.figures()}


@with_world
async def test_the_busiest_tenants_have_a_label_and_the_others_share_one(world: World, recorded: Recorded) -> None:
    """With their messages, failures, handler seconds and waits."""
    world.create()
    telemetry = recorded.telemetry(tenants=TopTenants(2))
    retry = RetryPolicy(base=1_000, cap=1_000)
    async with consumer(world, telemetry, retry=retry, context=lambda message: message.attributes["tenantId"]):
        for tenant in ("a", "b", "c", "d"):
            world.send_orders("1", "bad-2", tenant=tenant, seconds=0.25)
            await asyncio.sleep(1)
    assert recorded.value("postroom.tenant.messages", postroom__tenant="a") == 2
    assert recorded.value("postroom.tenant.failures", postroom__tenant="b") == 1
    assert recorded.value("postroom.tenant.messages", postroom__tenant=OTHER) == 4
    assert recorded.value("postroom.tenant.handler.time", postroom__tenant=OTHER) == pytest.approx(1.0, abs=0.01)


def test_a_tenant_that_becomes_much_busier_takes_a_place_at_the_next_review() -> None:
    """And the one that lost it is counted among the others, without being counted twice."""
    busiest = Busiest(TopTenants(2, every=60))
    run(busiest, "a", seconds=5)
    run(busiest, "b", seconds=1)
    for second in range(10):
        run(busiest, "c", now=second)
    assert labels(busiest) == {"a", "b", OTHER}
    run(busiest, "c", now=61)
    assert labels(busiest) == {"a", "c", OTHER}
    figures = dict(busiest.figures())
    assert figures["c"].messages == 1  # from its first run with a label on
    assert figures[OTHER].messages == 10


def test_tenants_that_are_about_equal_do_not_change_places() -> None:
    """Ten thousand of them, over hours: the labels at the end are those of the beginning."""
    rng = Random(1)
    busiest = Busiest(TopTenants(10, every=60))
    seen: set[str] = set()
    for second in range(20_000):
        run(busiest, f"t{rng.randrange(10_000)}", seconds=rng.random(), now=second)
        if second % 60 == 59:
            seen |= labels(busiest)
    assert len(labels(busiest)) == 11
    assert len(seen) == 11


def test_a_tenant_with_its_part_of_the_work_is_never_missed() -> None:
    """Among thousands of others, which come and go."""
    rng = Random(2)
    busiest = Busiest(TopTenants(5, every=60))
    for second in range(2_000):
        run(busiest, f"t{rng.randrange(5_000)}", seconds=0.1, now=second)
        run(busiest, "noisy", seconds=1.0, now=second)
    assert "noisy" in labels(busiest)


def test_a_tenant_that_is_called_other_has_no_label_of_its_own() -> None:
    """Its name is taken."""
    busiest = Busiest(TopTenants(5))
    run(busiest, OTHER)
    assert [label for label, _ in busiest.figures()] == [OTHER]


# -- the document ---------------------------------------------------------------------------------------------------


def test_the_document_lists_every_instrument_with_its_unit() -> None:
    """No more, and no less."""
    listed = dict(re.findall(r"^\| `((?:messaging|postroom)\.[a-z_.]+)` \| `([^`]+)` \|", TEXT, flags=re.MULTILINE))
    assert listed == {each.name: each.unit for each in names.INSTRUMENTS}
