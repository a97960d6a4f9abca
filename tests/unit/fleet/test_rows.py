"""A tenant's row in the console and in ``postroom tenants list`` knows the fleet."""

import asyncio

import msgspec

from postroom import Fleet
from postroom.cli.tenant_rows import HEAD, cells
from postroom.console.collecting import Collector
from postroom.console.ranking import Ranking
from postroom.console.snapshots import Snapshot
from support.fleet import Diary, FaultyState, replica
from support.world import Tenant, World, with_world


@with_world
async def test_a_row_shows_the_slots_held_here_and_the_limit_of_the_fleet(world: World) -> None:
    """Two replicas share three slots: a row says what runs, of how many slots here, of how many in the fleet."""
    world.create()
    state = FaultyState()
    world.send_orders(*map(str, range(60)), tenant="a", seconds=2.0)
    one, two = (replica(world, Diary(), Fleet(state, per_tenant=3), name) for name in ("one", "two"))
    async with one, two:
        await asyncio.sleep(8)
        collectors = [Collector(consumer) for consumer in (one, two)]
        now = asyncio.get_running_loop().time()
        snapshot = Snapshot(collectors, Ranking(collectors), wall=0.0, loop=now)
        rows = [snapshot.row(number, Tenant("a")) for number in range(2)]
        assert sorted(row.fl or (0, 0) for row in rows) == [(1, 3), (2, 3)]
        shown = [cells(msgspec.to_builtins(row), 0.0)[HEAD.index("run")] for row in rows]
        assert sorted(shown) == ["1/1 of 3", "2/2 of 3"]


def test_a_row_without_a_fleet_is_as_before() -> None:
    """The tenant's limit in this process is all there is."""
    assert cells({"n": "a", "run": 2, "cap": 8}, 0.0)[HEAD.index("run")] == "2/8"
