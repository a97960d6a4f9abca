"""Who is alive, for every implementation of the shared state: orders to all replicas wait for exactly these."""

import asyncio

from conformance.fleet.conftest import LEASE, Shared
from postroom.fleet import Request


async def enter(shared: Shared, *replicas: str, lease: float = LEASE, leaving: bool = False) -> None:
    """Have replicas exchange without asking for anything."""
    for replica in replicas:
        sequence = shared.sequences[replica] = shared.sequences.get(replica, 0) + 1
        await shared.state.exchange(shared.name, Request(replica, sequence, "", lease, 0.1, (), leaving))


async def alive(shared: Shared) -> list[str]:
    """Return the names of the replicas that are alive, in order."""
    return sorted(await shared.state.replicas(shared.name))


async def test_a_fleet_of_which_nothing_was_heard_has_no_replicas(shared: Shared) -> None:
    """F8: looking does not make one."""
    assert await alive(shared) == []
    assert await alive(shared) == []


async def test_every_replica_is_named_that_exchanged(shared: Shared) -> None:
    """F8: with work or without, once each, as texts, and however often it exchanges."""
    await enter(shared, "a", "b", "r 3: ü", "a")
    await shared.ask("c", need=4)
    assert await alive(shared) == ["a", "b", "c", "r 3: ü"]


async def test_a_replica_that_leaves_is_gone_at_once(shared: Shared) -> None:
    """F3: a clean stop is not waited for, and a replica that was never there may leave, too."""
    await enter(shared, "a", "b")
    await enter(shared, "a", "c", leaving=True)
    assert await alive(shared) == ["b"]


async def test_a_replica_is_alive_for_a_lease_after_its_last_exchange(shared: Shared) -> None:
    """F3: no longer, also while others go on; and one that comes back is there again."""
    await enter(shared, "a", "b")
    await shared.sleep(0.6 * LEASE)
    await enter(shared, "a")
    assert await alive(shared) == ["a", "b"]
    await shared.sleep(0.6 * LEASE)
    assert await alive(shared) == ["a"]
    await enter(shared, "b")
    assert await alive(shared) == ["a", "b"]
    await shared.sleep(LEASE + 0.05)
    assert await alive(shared) == []


async def test_each_replica_has_its_own_lease(shared: Shared) -> None:
    """F3: an earlier or later version with another lease keeps the others neither alive nor from being alive."""
    await enter(shared, "long", lease=10 * LEASE)
    await enter(shared, "short", lease=LEASE)
    await shared.sleep(LEASE + 0.05)
    assert await alive(shared) == ["long"]


async def test_fleets_do_not_see_each_others_replicas(shared: Shared) -> None:
    """Names that are alike up to a pattern's letters are different fleets."""
    await enter(shared, "a")
    await shared.state.exchange(f"{shared.name}*", Request("b", 1, "", LEASE, 0.1, ()))
    assert await alive(shared) == ["a"]
    assert list(await shared.state.replicas(f"{shared.name}*")) == ["b"]


async def test_a_store_that_lost_its_memory_knows_those_that_came_since(shared: Shared) -> None:
    """F10: the others are named again with their next exchange, a tick later."""
    await enter(shared, "a", "b")
    shared.flush()
    assert await alive(shared) == []
    await enter(shared, "b")
    assert await alive(shared) == ["b"]


async def test_the_names_are_as_many_as_an_exchange_counts(shared: Shared) -> None:
    """F8: what the fallback divides by, and what an order waits for, are the same replicas; also with many at once."""
    await asyncio.gather(*(enter(shared, f"r{number:02}", lease=10.0) for number in range(40)))
    answer = await shared.state.exchange(shared.name, Request("r00", 9, "", 10.0, 0.1, ()))
    assert answer.replicas == len(await alive(shared)) == 40
