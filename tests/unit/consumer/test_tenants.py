"""One tenant is paused, drained, limited or quarantined while the consumer runs; the others notice nothing."""

import asyncio
import threading
from typing import Any

import pytest

from postroom import ConfigurationError, Consumer, MessageContext, Polling
from postroom.consumer.statuses import TenantState
from support.receives import LIMITS
from support.world import Database, Databases, Order, Tenant, World, in_world, with_world

A, B = Tenant("a"), Tenant("b")


class Diary:
    """A consumer with a handler that writes down what ran when, and how many of each tenant ran at once."""

    def __init__(self, world: World, **options: Any) -> None:
        self.seen: list[tuple[str, str]] = []
        self.times: list[float] = []
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.consumer = Consumer("orders", context=Tenant, client=world.client, **options)
        self.tenants = self.consumer.tenants
        self.consumer.handler(self.handle)

    async def handle(self, order: Order, ctx: MessageContext[Tenant]) -> None:
        """Take as long as the order says."""
        name = ctx.context.tenant_id
        self.running[name] = self.running.get(name, 0) + 1
        self.most[name] = max(self.most.get(name, 0), self.running[name])
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(order.seconds)
        self.running[name] -= 1
        self.seen.append((name, order.order_id))


@with_world
async def test_a_paused_tenant_waits_and_goes_on_when_it_is_resumed(world: World) -> None:
    """Nothing of it starts, nothing of it is lost, and others go on."""
    world.create()
    diary = Diary(world)
    diary.tenants.pause(A)
    async with diary.consumer:
        world.send_orders("1", "2", tenant="a")
        world.send_orders("1", tenant="b")
        await asyncio.sleep(100)
        assert diary.seen == [("b", "1")]
        assert diary.tenants[A].state is TenantState.PAUSED
        assert diary.tenants[A].waiting == 2
        diary.tenants.resume(A)
        await asyncio.sleep(1)
        assert diary.seen == [("b", "1"), ("a", "1"), ("a", "2")]
    assert world.counts() == (0, 0)


@with_world
async def test_a_decision_outlives_a_restart(world: World) -> None:
    """It belongs to the consumer, not to one run of it."""
    world.create()
    diary = Diary(world)
    async with diary.consumer:
        diary.tenants.pause(A)
    world.send_orders("1", tenant="a")
    async with diary.consumer:
        await asyncio.sleep(10)
        assert diary.seen == []
    assert world.counts() == (1, 0)


@with_world
async def test_a_tenant_in_quarantine_goes_to_the_dead_letter_queue_with_the_reason(world: World) -> None:
    """At once, and only its messages; no handler sees them."""
    world.create(dead_letters="dead")
    diary = Diary(world)
    async with diary.consumer:
        diary.tenants.quarantine(A, reason="being migrated")
        world.send_orders("1", tenant="a")
        world.send_orders("1", tenant="b")
        await asyncio.sleep(2)
    assert diary.seen == [("b", "1")]
    assert world.counts() == (0, 0)
    [letter] = await world.broker.receive("dead")
    assert letter.message_attributes["postroom.reason"].string_value == "being migrated"


async def reason_in(world: World) -> str | None:
    """Return the reason of the one dead letter."""
    [letter] = await world.broker.receive("dead")
    return letter.message_attributes["postroom.reason"].string_value


@pytest.mark.parametrize(
    ("reason", "said"), [("database move", "paused: database move"), (None, "paused"), ("rate", "limited to 0.001 st")]
)
@pytest.mark.parametrize("end", ["stop", "retention"])
@with_world
async def test_a_dead_letter_names_the_decision_that_kept_it(
    world: World, end: str, reason: str | None, said: str
) -> None:
    """An operator who finds it later may not know that its tenant was paused."""
    world.create(dead_letters="dead", receives=1, MessageRetentionPeriod="120")
    diary = Diary(world)
    if reason == "rate":
        diary.tenants.limit(A, rate=0.001)
    else:
        diary.tenants.pause(A, reason=reason)
    world.send_orders(*(["1", "2"] if reason == "rate" else ["1"]), tenant="a")
    async with diary.consumer:
        await asyncio.sleep(2 if end == "stop" else 110)
    text = await reason_in(world)
    assert text is not None
    begin = "not tried: its retention period is nearly over and"
    if end == "stop":
        begin = "the consumer stopped, at its last receive, not tried by this consumer;"
    assert text.startswith(f"{begin} its tenant is {said}")


@pytest.mark.parametrize("how", ["quarantine", "divert"])
@with_world
async def test_a_limit_takes_no_reason_from_what_is_sent_away(world: World, how: str) -> None:
    """Dead letters carry the reason of the quarantine; that of the limit is shown when only the limit is left."""
    world.create(dead_letters="dead")
    diary = Diary(world)
    async with diary.consumer:
        if how == "quarantine":
            diary.tenants.quarantine(A, reason="corrupt import")
        else:
            diary.tenants.divert(A, queue="dead", reason="corrupt import")
        diary.tenants.limit(A, rate=5, reason="its database is slow")
        world.send_orders("1", tenant="a")
        await asyncio.sleep(2)
        [letter] = await world.broker.receive("dead")
        decided = diary.tenants[A].reason
        diary.tenants.resume(A)
        said, limited = letter.message_attributes["postroom.reason"].string_value, diary.tenants[A].reason
    assert said is not None
    assert said.removeprefix("diverted to dead: ") == decided == "corrupt import"
    assert limited == "its database is slow"


def test_the_reason_of_a_limit_goes_with_the_limit() -> None:
    """A limit of another day does not tell of it."""
    tenants = Consumer("orders", context=Tenant).tenants
    tenants.limit(A, rate=5, reason="its database is slow")
    tenants.limit(A, rate=None)
    tenants.limit(A, concurrency=2)
    assert tenants[A].reason is None


def test_a_concurrency_limit_applies_at_once_and_can_be_lifted() -> None:
    """From then on no more than so many start; None restores the default."""

    async def scenario(world: World) -> tuple[int, int, int]:
        world.create()
        diary = Diary(world)
        diary.tenants.limit(A, concurrency=2)
        world.send_orders(*map(str, range(40)), tenant="a", seconds=1)
        async with diary.consumer:
            await asyncio.sleep(3.5)
            limited = diary.most["a"]
            diary.tenants.limit(A, concurrency=None)
            await asyncio.sleep(2)
            return limited, diary.most["a"], len(list(diary.tenants))

    assert in_world(scenario) == (2, 8, 1)


@with_world
async def test_a_concurrency_limit_may_be_more_than_the_own_limit_of_a_tenant(world: World) -> None:
    """A tenant that has fallen behind has more slots for a while."""
    world.create()
    diary = Diary(world)
    diary.tenants.limit(A, concurrency=12)
    world.send_orders(*map(str, range(40)), tenant="a", seconds=1)
    async with diary.consumer:
        await asyncio.sleep(3.5)
        assert diary.most["a"] == 12


@with_world
async def test_a_rate_limit_spreads_starts_and_costs_others_nothing(world: World) -> None:
    """Two per second: the tenth starts four seconds later, the other tenant's at once."""
    world.create()
    diary = Diary(world)
    diary.tenants.limit(A, rate=2)
    world.send_orders(*map(str, range(10)), tenant="a")
    world.send_orders("1", tenant="b")
    async with diary.consumer:
        await asyncio.sleep(10)
    seconds, first = diary.times[-1] - diary.times[0], diary.seen[:3]
    assert 3.9 <= seconds <= 4.1
    assert ("b", "1") in first


@with_world
async def test_drain_returns_when_the_tenants_handlers_have_ended(world: World) -> None:
    """Its database may be moved then; nothing of it starts meanwhile."""
    world.create()
    diary = Diary(world)
    world.send_orders(*map(str, range(20)), tenant="a", seconds=3)
    async with diary.consumer:
        await asyncio.sleep(1)
        await diary.tenants.drain(A)
        drained = asyncio.get_running_loop().time()
        await asyncio.sleep(10)
        done = len(diary.seen)
    assert 3.0 <= drained <= 3.2
    assert done == 8


@with_world
async def test_drain_that_takes_too_long_says_so(world: World) -> None:
    """The tenant stays paused."""
    world.create()
    diary = Diary(world)
    world.send_orders("1", tenant="a", seconds=30)
    async with diary.consumer:
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await diary.tenants.drain(A, timeout=5)
        assert diary.tenants[A].state is TenantState.PAUSED


@with_world
async def test_a_drain_that_a_resume_called_off_says_so(world: World) -> None:
    """At once: its handlers start again, and nothing may be moved because one moment was quiet."""
    world.create()
    diary = Diary(world)
    world.send_orders(*map(str, range(100)), tenant="a", seconds=3)
    async with diary.consumer:
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_later(1, diary.tenants.resume, A)
        with pytest.raises(ConfigurationError, match="a:eu-west-1 was not drained: it was resumed"):
            await diary.tenants.drain(A)
        when, state = asyncio.get_running_loop().time(), diary.tenants[A].state
    assert when == pytest.approx(2, abs=0.2)
    assert state is TenantState.ACTIVE


@with_world
async def test_a_drain_ends_where_its_tenant_is_put_in_quarantine_meanwhile(world: World) -> None:
    """Nothing of it starts then, either."""
    world.create(dead_letters="dead")
    diary = Diary(world)
    world.send_orders(*map(str, range(20)), tenant="a", seconds=3)
    async with diary.consumer:
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_later(1, lambda: diary.tenants.quarantine(A, reason="corrupt import"))
        await diary.tenants.drain(A)
        assert diary.tenants[A].running == 0


def test_decisions_may_come_from_another_thread() -> None:
    """A web route in a thread pauses and resumes; the list can be read there, too."""

    async def scenario(world: World) -> tuple[int, int]:
        world.create()
        diary = Diary(world)

        def elsewhere(decide: Any) -> None:
            thread = threading.Thread(target=decide)
            thread.start()
            thread.join()

        async with diary.consumer:
            elsewhere(lambda: diary.tenants.pause(A))
            world.send_orders("1", tenant="a")
            await asyncio.sleep(5)
            before = len(diary.seen)
            elsewhere(lambda: [str(status) for status in diary.tenants])
            elsewhere(lambda: diary.tenants.resume(A))
            await asyncio.sleep(1)
            return before, len(diary.seen)

    assert in_world(scenario) == (0, 1)


@with_world
async def test_the_list_shows_who_is_here_and_who_is_under_control(world: World) -> None:
    """With live figures; a tenant that has nothing here and no decision is not in it."""
    world.create()
    diary = Diary(world)
    world.send_orders(*map(str, range(10)), tenant="a", seconds=5)
    diary.tenants.limit(B, rate=1)
    async with diary.consumer:
        await asyncio.sleep(1)
        listed = {status.key: status for status in diary.tenants}
        assert set(listed) == {A, B}
        assert (listed[A].running, listed[A].waiting) == (8, 2)
        assert listed[B].rate == 1
        diary.tenants.limit(B, rate=None)
        assert [status.key for status in diary.tenants] == [A]
        assert diary.tenants[Tenant("stranger")].state is TenantState.ACTIVE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("concurrency", value) for value in (0, 0.5, 2.0, True, "2", 1_000_001, float("inf"))),
        *(("rate", value) for value in (0, -1.5, 1e-16, 9e-7, True, "2", 1e10, float("inf"), float("nan"))),
        pytest.param("concurrency", 10**400, id="concurrency-beyond-floats"),
        pytest.param("rate", 10**400, id="rate-beyond-floats"),
    ],
)
def test_a_limit_of_nothing_or_out_of_range_is_refused(name: str, value: Any) -> None:
    """The text says what to use instead. A fleet's store could not calculate with it, for any tenant."""
    limits: Any = {name: value}
    with pytest.raises(ConfigurationError, match=r"from 1.* to 1e\+0.*pause\(\)"):
        Consumer("orders").tenants.limit("a", **limits)


@pytest.mark.parametrize("most", LIMITS)
@with_world
async def test_parking_and_pausing_dead_letter_nothing(world: World, most: int) -> None:
    """Whatever the maxReceiveCount: noise with scouts, and a paused tenant, and in the end all is handled."""
    world.create(dead_letters="dead", receives=most)
    diary = Diary(world, polling=Polling(pollers=4, lane=4, wait=1))
    diary.tenants.pause(A)
    for number in range(40):
        world.send_orders(f"{number}", tenant="a")
        world.send_orders(*(f"{number}-{part}" for part in range(5)), tenant="noisy", seconds=0.4)
        world.send_orders(f"{number}", tenant="quiet", seconds=0.1)
    async with diary.consumer:
        await asyncio.sleep(300)
        diary.tenants.resume(A)
        await asyncio.sleep(100)
        seen, handled, dead = set(diary.seen), len(diary.seen), world.counts("dead")
    assert dead == (0, 0)
    assert len(seen) == handled == 40 * 7


@pytest.mark.parametrize("most", [1, 2, 3, 4, 10])
@with_world
async def test_a_database_that_is_down_for_long_dead_letters_nothing(world: World, most: int) -> None:
    """Messages that could not be tried are deferred while that is safe, then held here, and handled in the end."""
    world.create(dead_letters="dead", receives=most)
    databases = Databases()
    databases.failures["a"] = ConnectionRefusedError
    orders = Consumer("orders", context=Tenant, resources=databases, client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        ctx.resources.write(order.order_id)

    world.send_orders(*map(str, range(30)), tenant="a")
    async with orders:
        await asyncio.sleep(600)
        databases.failures.clear()
        await asyncio.sleep(1_000)
    rows, dead = databases.rows("a"), world.counts("dead")
    assert dead == (0, 0)
    assert sorted(rows, key=int) == [str(number) for number in range(30)]
