"""A tenant that is diverted in one replica is diverted in all of them."""

import asyncio

import pytest

from postroom import Consumer, Fleet, TenantState
from postroom.fleet.decisions import Verdict, verdicts
from postroom.types import Settlement
from support.fleet import Diary, FaultyState, replica
from support.world import Tenant, World, with_world

A, B = Tenant("a"), Tenant("b")


def all_diverted(*consumers: Consumer[Tenant]) -> bool:
    """Whether each replica shows where the tenant's messages go."""
    found = [consumer.tenants[A] for consumer in consumers]
    return {(each.state, each.diverted_to, each.reason) for each in found} == {
        (TenantState.DIVERTED, "aside", "half a million")
    }


@pytest.mark.parametrize("lost", [False, True])
@with_world
async def test_a_diversion_holds_everywhere_within_a_tick(world: World, lost: bool) -> None:
    """F11: of all replicas' messages none is handled, also after a loss of the store, and by one that starts later."""
    world.create()
    world.create("aside")
    diary, state = Diary(), FaultyState()
    fleet = Fleet(state, per_tenant=8)
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two")
    async with one, two:
        one.tenants.divert(A, queue="aside", reason="half a million")
        await asyncio.sleep(1.2)
        if lost:
            state.store.flush()
            await asyncio.sleep(3)
        assert all_diverted(one, two)
        world.send_orders(*map(str, range(40)), tenant="a", seconds=0.1)
        world.send_orders("other", tenant="b", seconds=0.1)
        await asyncio.sleep(20 if lost else 5)  # a store that lost its memory grants nothing new for a lease
        assert world.counts() == (0, 0)
        assert world.counts("aside") == (40, 0)
        assert {tenant for _, _, tenant in diary.starts} == {"b"}
        assert all(each.statistics().succeeded < 2 for each in (one, two))
        async with replica(world, diary, fleet, "three") as three:
            assert all_diverted(three)
        two.tenants.resume(A)
        await asyncio.sleep(1.2)
        assert one.tenants[A].state is TenantState.ACTIVE
        assert one.tenants[A].diverted_to is None
        world.send_orders("back", tenant="a", seconds=0.1)
        await asyncio.sleep(2)
        assert diary.starts[-1][2] == "a"


@with_world
async def test_what_waits_in_other_replicas_is_diverted_too(world: World) -> None:
    """Messages that the other replica holds go to the other queue, not only those that it receives later."""
    world.create()
    world.create("aside")
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=2)
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two")
    world.send_orders(*map(str, range(40)), tenant="a", seconds=2.0)
    async with two:
        await asyncio.sleep(1)
        assert two.statistics().waiting
        async with one:
            one.tenants.divert(A, queue="aside", reason="half a million")
            await asyncio.sleep(8)
        assert len(diary.starts) <= 4
        assert world.counts("aside")[0] == 40 - len(diary.starts)


@with_world
async def test_a_pause_ends_a_diversion_everywhere(world: World) -> None:
    """The later decision holds in every replica, and what belonged to the earlier one is gone from the store."""
    world.create()
    state = FaultyState()
    fleet = Fleet(state, per_tenant=8)
    one, two = replica(world, Diary(), fleet, "one"), replica(world, Diary(), fleet, "two")
    async with one, two:
        one.tenants.divert(A, queue="aside", reason="half a million")
        await asyncio.sleep(1.2)
        two.tenants.pause(A, reason="wait")
        await asyncio.sleep(1.2)
        status = one.tenants[A]
        assert (status.state, status.diverted_to, status.reason) == (TenantState.PAUSED, None, "wait")
        assert not [field for field in state.store.decisions("orders").fields if "diverted" in field]


@with_world
async def test_a_diversion_without_the_store_holds_here_and_reaches_the_others_later(world: World) -> None:
    """While the store is gone it holds where it was made; then everywhere, with its queue."""
    world.create()
    state = FaultyState()
    fleet = Fleet(state, per_tenant=8, lease=6)
    one, two = replica(world, Diary(), fleet, "one"), replica(world, Diary(), fleet, "two")
    async with one, two:
        state.gone = True
        one.tenants.divert(A, queue="aside", reason="half a million")
        await asyncio.sleep(10)
        assert all_diverted(one)
        assert two.tenants[A].state is TenantState.ACTIVE
        state.gone = False
        await asyncio.sleep(4)
        assert all_diverted(one, two)


@with_world
async def test_a_consumer_of_the_other_queue_handles_what_arrives_there(world: World) -> None:
    """One fleet for both queues: messages do not go round in the queue to which they were diverted."""
    world.create()
    world.create("aside")
    diary, fleet = Diary(), Fleet(FaultyState(), per_tenant=8, name="both")
    one, two = replica(world, diary, fleet, "one"), replica(world, diary, fleet, "two", queue="aside")
    async with one, two:
        one.tenants.divert(A, queue="aside", reason="half a million")
        await asyncio.sleep(1.2)
        assert all_diverted(one, two)
        world.send_orders(*map(str, range(10)), tenant="a", seconds=0.1)
        await asyncio.sleep(10)
        assert world.counts() == world.counts("aside") == (0, 0)
        assert len(diary.by("two")) == 10
        assert two.statistics().settled.get(Settlement.REJECTED, 0) == 0


@with_world
async def test_a_diversion_without_a_queue_is_no_decision(world: World) -> None:
    """Whatever wrote it: messages are not sent to a queue without a name."""
    fields = {"state t:a": '{"value":"diverted","reason":"r"}', "diverted_to t:a": '{"value":"aside","reason":"r"}'}
    assert verdicts(fields) == {"t:a": Verdict(state="diverted", diverted_to="aside", reason="r")}
    world.create()
    state, diary = FaultyState(), Diary()
    state.store.decide("orders", {'state j:{"tenant_id":"a"}': '{"value":"diverted"}'})
    async with replica(world, diary, Fleet(state, per_tenant=8)) as one:
        world.send_orders("1", tenant="a")
        await asyncio.sleep(2)
        assert one.tenants[A].state is TenantState.ACTIVE
        assert len(diary.starts) == 1
