"""Several consumers of one queue as one fleet: limits, decisions, and a store that is lost."""

import asyncio
import itertools
import logging
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from postroom import Concurrency, Fleet, Polling, PoolLimits, ResourcePool, TenantState
from postroom.events import Event, FleetReachable, FleetUnreachable
from postroom.fleet import Answer, Decisions, Request
from postroom.fleet.orders import Orders
from postroom.tasks import Tasks
from support.fleet import Diary, FaultyState, replica
from support.virtual import in_virtual_time
from support.world import Databases, Tenant, World, in_world, with_world

A, B = Tenant("a"), Tenant("b")


@with_world
async def test_a_limit_holds_over_all_replicas(world: World) -> None:
    """F1: three replicas with eight slots each run three handlers of a tenant together, and all take part."""
    world.create()
    diary, state = Diary(), FaultyState()
    world.send_orders(*map(str, range(120)), tenant="a", seconds=0.25)
    async with AsyncExitStack() as stack:
        for name in ("one", "two", "three"):
            await stack.enter_async_context(replica(world, diary, Fleet(state, per_tenant=3), name))
        await asyncio.sleep(30)
    assert world.counts() == (0, 0)
    assert diary.most["a"] == 3
    assert len(diary.starts) == 120
    assert {who for _, who, _ in diary.starts} == {"one", "two", "three"}
    assert diary.starts[-1][0] <= 120 * 0.25 / 3 + 4  # the cap is used, too


@with_world
async def test_a_limit_that_is_true_or_false_is_the_default(world: World) -> None:
    """An ``overrides=`` that answers yes or no sets no limit; above all, the store is asked for numbers only."""
    world.create()
    diary, state = Diary(), FaultyState()
    for tenant in ("a", "b"):
        world.send_orders(*(f"{tenant}{number}" for number in range(10)), tenant=tenant, seconds=0.5)
    async with replica(world, diary, Fleet(state, per_tenant=3, overrides=lambda tenant: tenant == A)):
        await asyncio.sleep(10)
    assert diary.most == {"a": 3, "b": 3}
    assert {type(ask.cap) for _, request in state.requests for ask in request.asks} == {int}


def _fails(tenant: Tenant) -> int:
    raise LookupError(f"no limit of {tenant.tenant_id} at postgresql://app:hunter2@db/limits")


@pytest.mark.parametrize(
    ("chooses", "per_tenant", "said"),
    [
        (_fails, 3, "failed: LookupError: no limit of a at postgresql://app:***@db/limits; 3 applies"),
        (lambda _: "many", None, "chose str, which is no such number; no limit applies"),
    ],
)
@with_world
async def test_a_limit_that_cannot_be_chosen_is_told_once(
    world: World, chooses: Any, per_tenant: int | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The default applies, which may be no limit at all."""
    world.create()
    diary = Diary()
    world.send_orders(*map(str, range(10)), tenant="a", seconds=0.5)
    async with replica(world, diary, Fleet(FaultyState(), per_tenant=per_tenant, overrides=chooses)):
        await asyncio.sleep(10)
    assert diary.most == {"a": per_tenant or 8}
    [line] = [each for each in caplog.messages if "overrides" in each]
    assert line.startswith(f"Fleet(overrides=...) for tenant a:eu-west-1 {said}")


@with_world
async def test_a_tenant_alone_may_use_the_local_limit(world: World) -> None:
    """F4: what no other replica needs is granted at once, up to what the replica itself allows."""
    world.create()
    diary, state = Diary(), FaultyState()
    world.send_orders(*map(str, range(40)), tenant="a", seconds=0.5)
    async with replica(world, diary, Fleet(state, per_tenant=20)):
        await asyncio.sleep(10)
    assert diary.most["a"] == 8
    assert diary.starts[-1][0] < 4


@with_world
async def test_no_message_waits_for_the_store(world: World) -> None:
    """F6: a thousand messages of ten tenants cost a few calls, and a new tenant is asked for at once."""
    world.create()
    diary, state = Diary(), FaultyState()
    async with replica(world, diary, Fleet(state, per_tenant=20), polling=Polling(wait=20.0, scout=False)):
        await asyncio.sleep(5.3)
        sent = asyncio.get_running_loop().time()
        world.send_orders("new", tenant="new", seconds=0.0)
        await asyncio.sleep(1)
        before = len(state.requests)
        for number in range(10):
            world.send_orders(*map(str, range(100)), tenant=f"t{number}", seconds=0.05)
        await asyncio.sleep(10)
        del state.requests[:before]
    assert diary.starts[0][0] - sent < 0.05
    assert len(diary.starts) == 1_001
    assert len(state.requests) <= 0.02 * 1_000 + 10


@pytest.mark.parametrize("lost", [False, True])
@with_world
async def test_a_pause_holds_everywhere(world: World, lost: bool) -> None:
    """F11: the other replica pauses, shows the reason, and knows it after a loss of the store; resume ends it."""
    world.create()
    diary, state = Diary(), FaultyState()
    fleet = Fleet(state, per_tenant=8)
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two")
    async with one, two:
        one.tenants.pause(A, reason="database move")
        await asyncio.sleep(1.2)
        if lost:
            state.store.flush()
            await asyncio.sleep(3)
            assert state.store.decisions("orders").fields
        world.send_orders(*map(str, range(20)), tenant="a", seconds=0.1)
        await asyncio.sleep(5)
        assert diary.starts == []
        assert two.tenants[A].state is TenantState.PAUSED
        assert two.tenants[A].reason == "database move"
        three = replica(world, diary, fleet, "three")
        async with three:  # a start knows it before its first message
            assert three.tenants[A].state is TenantState.PAUSED
            await asyncio.sleep(1)
            assert diary.starts == []
        two.tenants.resume(A)
        await asyncio.sleep(20)
        assert len(diary.starts) == 20
        assert one.tenants[A].state is TenantState.ACTIVE


@pytest.mark.parametrize("delay", [0.001, 0.05, 0.3])
@with_world
async def test_a_pause_takes_a_tick_and_three_calls_at_most(world: World, delay: float) -> None:
    """F11: one call to write it down, and two in which the others hear that there is one and read it."""
    tick = 1.0
    world.create()
    loop, state, took = asyncio.get_running_loop(), FaultyState(), list[float]()
    state.delay = delay
    one, two = (replica(world, Diary(), Fleet(state, per_tenant=8, tick=tick), name) for name in ("one", "two"))
    async with one, two:
        for moment in range(20):
            await asyncio.sleep(3 + moment / 20)
            decided = loop.time()
            one.tenants.pause(A, reason="move")
            while two.tenants[A].state is not TenantState.PAUSED:
                await asyncio.sleep(0.001)
            took.append(loop.time() - decided)
            one.tenants.resume(A)
    assert max(took) < tick + 3 * delay + 0.005
    assert max(took) > tick + delay  # it is no less than that


@pytest.mark.parametrize("later", [0.2, 0.5, 0.8])
@with_world
async def test_a_replica_that_comes_between_two_losses_takes_nothing_back(world: World, later: float) -> None:
    """F11: it knows only what was decided since, and says nothing about what the others have to restore."""
    world.create()
    diary, state = Diary(), FaultyState()
    fleet = Fleet(state, per_tenant=8)
    one, newcomer = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "newcomer")
    async with one:
        one.tenants.pause(A, reason="database move")
        await asyncio.sleep(2 + later)
        state.store.flush()
        newcomer.tenants.pause(B, reason="newer")
        async with newcomer:
            await asyncio.sleep(0.05)  # before the other restores anything
            state.store.flush()
            await asyncio.sleep(3)
            for each in (one, newcomer):
                assert each.tenants[A].reason == "database move"
                assert each.tenants[A].state is TenantState.PAUSED
                assert each.tenants[B].state is TenantState.PAUSED


@with_world
async def test_a_loss_between_an_exchange_and_the_reading_after_it_takes_nothing_back(world: World) -> None:
    """F11: what is read then is from a store that has forgotten everything, and not from the one that answered."""

    class Forgetful(FaultyState):
        forgets = False

        async def decisions(self, fleet: str) -> Decisions:
            if self.forgets:
                self.forgets = False
                self.store.flush()
            return await super().decisions(fleet)

    world.create()
    diary, state = Diary(), Forgetful()
    one = replica(world, diary, Fleet(state, per_tenant=8), "one")
    async with one:
        one.tenants.pause(A, reason="database move")
        await asyncio.sleep(1.5)
        state.forgets = True
        await state.decide("orders", {"state t:other": '{"value":"paused"}'})  # by a replica that is gone
        await asyncio.sleep(4)
        assert not state.forgets
        assert one.tenants[A].state is TenantState.PAUSED
        assert one.tenants[A].reason == "database move"
        assert len(state.store.decisions("orders").fields) == 1


@with_world
async def test_a_decision_before_the_start_reaches_the_fleet(world: World) -> None:
    """F11: what was decided while the consumer did not run is written down with its start."""
    world.create()
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=8)
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two")
    one.tenants.limit(A, concurrency=1, rate=2, reason="slow database")
    async with two, one:
        await asyncio.sleep(1.5)
        assert (two.tenants[A].concurrency, two.tenants[A].rate) == (1, 2)
        assert two.tenants[A].reason == "slow database"
        slots = two.tenants[A].fleet
        assert slots is not None
        assert slots.cap == 1


@with_world
async def test_a_decision_about_a_tenant_without_messages_stays_in_the_list(world: World) -> None:
    """The replica that it was made in lists the tenant until the decision is taken back, here or elsewhere."""
    world.create()
    diary, state = Diary(), FaultyState()
    async with (
        replica(world, diary, Fleet(state, per_tenant=3), "one") as one,
        replica(world, diary, Fleet(state, per_tenant=3), "two") as two,
    ):
        one.tenants.pause(A, reason="moving")
        two.tenants.limit(B, rate=5)
        await asyncio.sleep(5)
        assert [(each.key, each.state, each.reason) for each in one.tenants] == [(A, TenantState.PAUSED, "moving")]
        assert [(each.key, each.rate) for each in two.tenants] == [(B, 5)]
        two.tenants.resume(A)
        await asyncio.sleep(5)
        assert list(one.tenants) == []


@with_world
async def test_a_limit_by_an_operator_is_the_fleets(world: World) -> None:
    """F11: limit(concurrency=2) is two handlers over both replicas, and ends when it is taken back."""
    world.create()
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=10)
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two")
    async with one, two:
        one.tenants.limit(A, concurrency=2)
        await asyncio.sleep(1.5)
        world.send_orders(*map(str, range(200)), tenant="a", seconds=0.2)
        await asyncio.sleep(10)
        limited = diary.most["a"]
        two.tenants.limit(A, concurrency=None)
        await asyncio.sleep(10)
    after = diary.most["a"]
    assert limited == 2
    assert after == 10


@with_world
async def test_a_quarantine_holds_everywhere(world: World) -> None:
    """F11: messages that another replica receives go to the dead-letter queue, with the reason."""
    world.create(dead_letters="dead")
    diary, fleet = Diary(), Fleet(FaultyState())
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two")
    async with two:
        async with one:
            one.tenants.quarantine(A, reason="corrupt import")
            await asyncio.sleep(1.2)
        world.send_orders("x", tenant="a")
        world.send_orders("y", tenant="b")
        await asyncio.sleep(2)
    assert [tenant for _, _, tenant in diary.starts] == ["b"]
    assert world.counts("dead") == (1, 0)


@pytest.mark.parametrize("way", ["refuses", "is silent"])
def test_nothing_fails_while_the_store_is_gone(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """F8: for 60 s without the store each replica works with its part; two log lines in all, and no secret in them."""

    async def scenario(world: World) -> tuple[Diary, list[Event]]:
        world.create(dead_letters="dead", receives=2)
        diary, state = Diary(), FaultyState()
        events: list[Event] = []
        fleet = Fleet(state, per_tenant=4, lease=6, tick=1)
        one = replica(world, diary, fleet, "one", observers=[events.append])
        two = replica(world, diary, fleet, "two")
        world.send_orders(*map(str, range(700)), tenant="a", seconds=0.5)
        async with one, two:
            await asyncio.sleep(10)
            setattr(state, {"refuses": "gone", "is silent": "silent"}[way], True)
            await asyncio.sleep(10)
            statistics = one.statistics().fleet
            assert statistics is not None
            assert statistics.degraded
            assert not statistics.reachable
            diary.most.clear()
            since = len(diary.starts)
            await asyncio.sleep(50)
            assert diary.most["a"] == 4  # two of each
            assert len(diary.starts) - since >= 380
            state.gone = state.silent = False
            await asyncio.sleep(8)
            statistics = one.statistics().fleet
            assert statistics is not None
            assert statistics.reachable
            assert not statistics.degraded
            assert one.statistics().failed == {}
            age = one.statistics().last_poll_age
            assert age is not None
            assert age < 2
            await asyncio.sleep(40)
        assert diary.most["a"] == 4
        assert world.counts() == (0, 0)
        assert world.counts("dead") == (0, 0)
        return diary, events

    with caplog.at_level(logging.INFO, "postroom.fleet"):
        _, events = in_world(scenario)
    lines = [record.getMessage() for record in caplog.records if record.name == "postroom.fleet"]
    assert len([line for line in lines if "cannot be reached" in line]) == 2  # one for each replica
    assert len([line for line in lines if "answers again" in line]) == 2
    assert "s3cret" not in " ".join(lines)
    kinds = [type(event) for event in events if isinstance(event, FleetReachable | FleetUnreachable)]
    assert kinds == [FleetUnreachable, FleetReachable]


@pytest.mark.parametrize(("fallback", "most"), [("stop", 0), ("local", 8), ("share", 4)])
@with_world
async def test_the_fallback_is_chosen(world: World, fallback: str, most: int) -> None:
    """F8: once slots have run out: nothing, what the replica itself allows, or its part."""
    world.create()
    diary, state = Diary(), FaultyState()
    fleet = Fleet(state, per_tenant=4, lease=6, fallback=fallback)  # type: ignore[arg-type]
    world.send_orders(*map(str, range(300)), tenant="a", seconds=1.0)
    async with replica(world, diary, fleet):
        await asyncio.sleep(3)
        state.gone = True
        await asyncio.sleep(9)
        diary.most.clear()
        await asyncio.sleep(5)
        assert diary.most["a"] == most


@with_world
async def test_a_start_without_the_store_works_after_a_lease(world: World) -> None:
    """F8: a store that is not there yet delays the first message by a lease, and fails nothing."""
    world.create()
    diary, state = Diary(), FaultyState()
    state.gone = True
    world.send_orders(*map(str, range(5)), tenant="a", seconds=0.1)
    async with replica(world, diary, Fleet(state, per_tenant=4, lease=6)):
        await asyncio.sleep(12)
    assert len(diary.starts) == 5
    assert 5 < diary.starts[0][0] < 7
    assert diary.most["a"] == 1  # how many replicas there are was never known


@pytest.mark.parametrize("rate", [0.5, 5.0, 40.0])
def test_a_rate_holds_over_all_replicas(rate: float) -> None:
    """F9: three replicas together start what the rate allows, and not much less."""

    async def scenario(world: World) -> Diary:
        world.create()
        diary, state = Diary(), FaultyState()
        world.send_orders(*map(str, range(900)), tenant="a", seconds=0.001)
        async with AsyncExitStack() as stack:
            for name in ("one", "two", "three"):
                await stack.enter_async_context(replica(world, diary, Fleet(state, rate=rate), name))
            await asyncio.sleep(20)
        return diary

    starts = [at for at, _, _ in in_world(scenario).starts]
    assert rate * 20 * 0.8 - 1 <= len(starts) <= rate * (20 + 4) + 3
    for at in starts[:: max(1, len(starts) // 50)]:
        assert sum(at <= other < at + 5.0 for other in starts) <= rate * (5 + 4) + 3


@with_world
async def test_a_limit_takes_no_reason_from_a_quarantine_of_the_fleet(world: World) -> None:
    """Neither where it was decided nor elsewhere, nor while the store is gone."""
    world.create(dead_letters="dead")
    diary, state = Diary(), FaultyState()
    one, two = (replica(world, diary, Fleet(state), name) for name in ("one", "two"))
    found: list[str | None] = []
    async with one, two:
        one.tenants.quarantine(A, reason="corrupt import")
        await asyncio.sleep(3)
        state.gone = True
        two.tenants.limit(A, rate=5, reason="its database is slow")
        found.append(two.tenants[A].reason)
        await asyncio.sleep(3)
        state.gone = False
        await asyncio.sleep(30)
        found += [each.tenants[A].reason for each in (one, two)]
        one.tenants.resume(A)
        await asyncio.sleep(5)
        assert (found + [each.tenants[A].reason for each in (one, two)]) == ["corrupt import"] * 3 + [
            "its database is slow"
        ] * 2


@pytest.mark.parametrize("lost", [False, True])
@with_world
async def test_an_open_counts_as_no_start_in_the_fleet(world: World, lost: bool) -> None:
    """Each message finds its tenant's resources closed; also by the part of the rate when the store is gone."""
    world.create()
    diary, state = Diary(), FaultyState()
    world.send_orders(*map(str, range(100)), tenant="a")
    pool = ResourcePool(Databases(), limits=PoolLimits(idle=2))
    async with replica(world, diary, Fleet(state, rate=0.1), resources=pool):
        await asyncio.sleep(1)
        state.gone = lost
        await asyncio.sleep(200)
        assert 19 <= len(diary.starts) <= 22


@pytest.mark.parametrize("how", ["divert", "quarantine"])
@with_world
async def test_a_rate_of_the_fleet_keeps_nothing_back_that_is_sent_away(world: World, how: str) -> None:
    """Its backlog starts no handler, and leaves from every replica at once."""
    world.create(dead_letters="dead", receives=5)
    world.create("aside")
    diary, state = Diary(), FaultyState()
    replicas = [replica(world, diary, Fleet(state, rate=0.01), name) for name in ("one", "two")]
    world.send_orders(*map(str, range(100)), tenant="a")
    async with AsyncExitStack() as stack:
        for each in replicas:
            await stack.enter_async_context(each)
        await asyncio.sleep(5)
        if how == "divert":
            replicas[0].tenants.divert(A, queue="aside", reason="backlog")
        else:
            replicas[0].tenants.quarantine(A, reason="corrupt import")
        await asyncio.sleep(30)
        assert (len(diary.starts), world.counts("aside" if how == "divert" else "dead")[0]) == (1, 99)


@with_world
async def test_each_outage_of_the_store_leaves_each_replica_its_part_of_a_rate(world: World) -> None:
    """F8: one replica goes on with all of it, three with a third each, one with all again: whatever was before."""
    world.create()
    diary, state = Diary(), FaultyState()
    found: list[dict[str, float]] = []

    async def lose_the_store() -> None:
        world.send_orders(*map(str, range(1000)), tenant="a", seconds=0.001)
        await asyncio.sleep(20)
        state.gone = True
        await asyncio.sleep(10)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(20)
        found.append({name: sum(at >= began for at in diary.by(name)) / 20 / 5 for name in names})
        state.gone = False
        await asyncio.sleep(20)

    names = ["one", "two", "three"]
    one, two, three = (replica(world, diary, Fleet(state, rate=5, lease=6), name) for name in names)
    await asyncio.sleep(1000)  # a clock that has run for a while
    async with one:
        await lose_the_store()
        async with two, three:
            await lose_the_store()
        await lose_the_store()
    alone, together, alone_again = found
    for parts in (alone, alone_again):
        assert parts == {"one": pytest.approx(1, abs=0.1), "two": 0, "three": 0}
    assert together == dict.fromkeys(("one", "two", "three"), pytest.approx(1 / 3, abs=0.1))


@with_world
async def test_a_clean_stop_returns_slots_at_once(world: World) -> None:
    """F3: the other replica has them within two ticks, not after the lease."""
    world.create()
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=4, lease=60)
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two")
    world.send_orders(*map(str, range(400)), tenant="a", seconds=0.2)
    async with two:
        async with one:
            await asyncio.sleep(4)
        stopped = asyncio.get_running_loop().time()
        diary.most.clear()
        await asyncio.sleep(2.5)
        assert diary.most["a"] == 4
    assert [at for at in diary.by("one") if at > stopped] == []


@with_world
async def test_a_fleet_of_one_name_is_one_limit_for_two_queues(world: World) -> None:
    """Two consumers of different queues with the same name share the tenant's slots."""
    world.create()
    world.create("invoices")
    diary, state = Diary(), FaultyState()
    fleet = Fleet(state, per_tenant=2, name="database")
    one = replica(world, diary, fleet, "one")
    two = replica(world, diary, fleet, "two", queue="invoices")
    world.send_orders(*map(str, range(20)), tenant="a", seconds=0.2)
    for number in range(20):
        world.send({"order_id": str(number), "seconds": 0.2}, tenant="a", queue="invoices")
    async with one, two:
        await asyncio.sleep(10)
    assert len(diary.starts) == 40
    assert diary.most["a"] == 2


@with_world
async def test_the_signal_to_scale_on_ignores_a_noisy_tenant(world: World) -> None:
    """A tenant that has its whole limit cannot raise utilisation or the oldest wait; one that lacks slots does."""
    world.create()
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=4)
    one = replica(world, diary, fleet, concurrency=Concurrency(total=16, per_tenant=16))
    async with one:
        world.send_orders(*map(str, range(24)), tenant="noisy", seconds=2.0)
        await asyncio.sleep(10)
        said = one.statistics()
        assert said.utilisation == 4 / 16
        assert said.oldest_wait_within_share < 0.5
        for number in range(30):
            world.send_orders("x", tenant=f"quiet-{number}", seconds=30.0)
        await asyncio.sleep(12)
        said = one.statistics()
        assert said.utilisation >= 0.8
        assert said.oldest_wait_within_share > 5


@with_world
async def test_a_tenant_without_a_slot_here_makes_room_for_others(world: World) -> None:
    """A replica without a slot for a noisy tenant defers its messages, which come back once it has one: none waits."""
    world.create()
    diary, state = Diary(), FaultyState()
    fleet = Fleet(state, per_tenant=1, lease=6.0)
    options: dict[str, Any] = {"polling": Polling(wait=1.0, scout=False, prefetch=10, lane=2)}
    world.send_orders(*map(str, range(90)), tenant="noisy", seconds=0.5)
    async with replica(world, diary, fleet, "one", **options) as one:
        await asyncio.sleep(2)
        async with replica(world, diary, fleet, "two", **options) as two:
            await asyncio.sleep(3)
            sent = asyncio.get_running_loop().time()
            world.send_orders(*map(str, range(6)), tenant="quiet", seconds=0.0)
            await asyncio.sleep(70)
            deferred = one.statistics().deferred + two.statistics().deferred
    assert world.counts() == (0, 0)
    quiet = [at - sent for at, _, tenant in diary.starts if tenant == "quiet"]
    assert len(quiet) == 6
    assert max(quiet) < 2.0
    assert deferred > 0
    assert diary.most["noisy"] == 1
    assert {who for _, who, tenant in diary.starts if tenant == "noisy"} == {"one", "two"}
    noisy = [at for at, _, tenant in diary.starts if tenant == "noisy"]
    assert max(after - before for before, after in itertools.pairwise(noisy)) < 2.0  # the slot is not idle for long


@pytest.mark.parametrize("apart", [0.0, 0.3])
@with_world
async def test_an_order_that_another_replica_gives_too_ends_for_both(world: World, apart: float) -> None:
    """As where every replica is told of a new password: the newest order takes the place of the others."""
    world.create()
    state, ended = FaultyState(), list[str]()

    async def invalidate(name: str, seconds: float) -> None:
        async with replica(world, Diary(), Fleet(state, per_tenant=8), name) as one:
            await asyncio.sleep(1 + seconds)
            await one.tenants.invalidate(A, timeout=60)
            await one.tenants.close(A, timeout=60)
            ended.append(name)
            await asyncio.sleep(30)

    names = ("one", "two", "three")
    await asyncio.gather(*(invalidate(name, place * apart) for place, name in enumerate(names)))
    assert not [field for field in state.store.decisions("orders").fields if field.startswith(("order", "done"))]
    assert sorted(ended) == ["one", "three", "two"]


class SlowWorkers:
    """Carry out an order in three seconds."""

    async def carry_out(self, what: str, name: str) -> str | None:
        """Carry out an order."""
        await asyncio.sleep(3)
        return f"{what} {name}"


@in_virtual_time
async def test_a_report_that_comes_after_its_order_was_given_up_leaves_nothing_in_the_store() -> None:
    """Each would stay for good, and be read with every decision."""
    state = FaultyState()
    one = Orders("orders", "one", state, SlowWorkers(), Tasks(lambda error: pytest.fail(str(error))))
    learned = 0

    async def look() -> None:
        nonlocal learned
        found = await state.decisions("orders")
        if found.version != learned:
            learned = found.version
            one.learn(found.fields)

    order = {"order t:a b": '{"id":"1","what":"close"}'}
    await state.decide("orders", order)
    await look()
    await asyncio.sleep(1)
    await state.decide("orders", dict.fromkeys(order))
    await asyncio.sleep(3)
    assert [*(await state.decisions("orders")).fields] == ["done t:a b one"]
    await look()
    await state.decide("orders", {"order t:a b": '{"id":"2","what":"close"}', "done t:a b two": '{"id":"2"}'})
    await look()
    await asyncio.sleep(4)
    fields = (await state.decisions("orders")).fields
    assert fields["done t:a b one"] == '{"id":"2","said":"close t:a b"}'
    await state.decide("orders", dict.fromkeys([*order, "done t:a b two"]))
    await look()
    await asyncio.sleep(1)
    assert not (await state.decisions("orders")).fields


class DeafState(FaultyState):
    """A state with a client that swallows cancellations."""

    async def exchange(self, fleet: str, request: Request) -> Answer:
        """Exchange, whatever comes meanwhile."""
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)
        return await super().exchange(fleet, request)


@pytest.mark.parametrize("after", [3.1, 3.3, 3.5, 3.7, 3.9, 4.1])
@with_world
async def test_a_stop_ends_although_the_client_of_the_store_swallows_its_cancellation(
    world: World, after: float
) -> None:
    """In the middle of an exchange, or between two."""
    world.create()
    async with replica(world, Diary(), Fleet(DeafState(), per_tenant=3)):
        await asyncio.sleep(after)
        began = asyncio.get_running_loop().time()
    assert (asyncio.get_running_loop().time() - began) < 5
