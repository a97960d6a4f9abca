"""What one replica finds out about a host, the others do not have to find out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from postroom import Fleet, PoolLimits, ResourcePool
from postroom.options import OpenBackoff
from support.fleet import Diary, FaultyState, replica
from support.world import Tenant, World, in_world, with_world


class Host:
    """A database server that is down until it is brought back, and writes down who tried it."""

    def __init__(self) -> None:
        self.down = True
        self.tries: list[tuple[float, str]] = []

    def pool(self, who: str, pause: float = 0.5) -> ResourcePool[Tenant, str]:
        """Make the pool of one replica, with every tenant on this host."""

        @asynccontextmanager
        async def database(tenant: Tenant) -> AsyncIterator[str]:
            self.tries.append((asyncio.get_running_loop().time(), who))
            await asyncio.sleep(0.01)
            if self.down:
                raise ConnectionRefusedError(tenant.tenant_id)
            yield tenant.tenant_id

        return ResourcePool(
            database,
            host=lambda _tenant: "db1",
            limits=PoolLimits(budget=100),
            backoff=OpenBackoff(base=pause, cap=8 * pause),
        )


def outage(*, hints: bool, store_goes: bool = False) -> tuple[Host, Diary, FaultyState, float]:
    """Let three replicas meet a host that is down for a minute, one of them first."""

    async def scenario(world: World) -> tuple[Host, Diary, FaultyState, float]:
        world.create(dead_letters="dead", receives=3)
        host, diary, state = Host(), Diary(), FaultyState()
        async with AsyncExitStack() as stack:
            for name in ("one", "two", "three"):
                fleet = Fleet(state if hints else FaultyState(), lease=6)
                pool = await stack.enter_async_context(host.pool(name))
                await stack.enter_async_context(replica(world, diary, fleet, name, resources=pool))
                if name == "one":
                    for number in range(12):
                        world.send_orders(f"first-{number}", tenant=f"t{number}")
                    await asyncio.sleep(5)
            for number in range(12, 72):
                world.send_orders(f"later-{number}", tenant=f"t{number}")
            await asyncio.sleep(15)
            state.gone = store_goes
            await asyncio.sleep(40)
            host.down = False
            back = asyncio.get_running_loop().time()
            await asyncio.sleep(90)
        assert world.counts() == (0, 0)
        assert world.counts("dead") == (0, 0)
        return host, diary, state, back

    return in_world(scenario)


def test_a_fleet_tries_a_host_that_is_down_less_often() -> None:
    """F12: with hints the fleet tries less often than three replicas do, and every message is handled soon after."""
    host, diary, state, back = outage(hints=True)
    alone, _, _, _ = outage(hints=False)
    assert len(diary.starts) == 72
    tries = [at for at, _ in host.tries if 8 < at < back]
    assert tries
    assert len(tries) < 0.75 * len([at for at, _ in alone.tries if 8 < at < back])
    assert state.probes
    assert max(at for at, _, _ in diary.starts) < back + 45


def test_a_hint_without_an_end_does_not_exist() -> None:
    """F12: when the store goes with hints in it, they run out, and every replica tries for itself."""
    host, diary, _, back = outage(hints=True, store_goes=True)
    assert len(diary.starts) == 72
    assert len({who for at, who in host.tries if at > back}) == 3


@with_world
async def test_a_report_that_did_not_reach_the_store_is_told_again(world: World) -> None:
    """F12: the call to the store fails once; the others hear of the host all the same, and wait for one who tries."""
    world.create(dead_letters="dead", receives=3)
    host, state = Host(), FaultyState()
    state.refused_reports = 1
    async with AsyncExitStack() as stack:
        for name in ("one", "two"):
            pool = await stack.enter_async_context(host.pool(name, pause=8.0))
            await stack.enter_async_context(replica(world, Diary(), Fleet(state, lease=6), name, resources=pool))
            if name == "one":
                for number in range(12):
                    world.send_orders(f"first-{number}", tenant=f"t{number}")
                await asyncio.sleep(1.5)
                assert not state.refused_reports
                assert not state.store.fleets["orders"].hints
                tries = len(host.tries)
                await asyncio.sleep(1.5)
        assert "t:db1" in state.store.fleets["orders"].hints
        assert len(host.tries) == tries  # it was not found out again, but told again
        host.down = False
        await asyncio.sleep(120)
    assert world.counts() == (0, 0)
