"""One suite for every implementation of the shared state: the promises F1 to F12, as far as the store keeps them."""

import asyncio
import random

import pytest

from conformance.fleet.conftest import LEASE, Shared
from postroom.fleet import Ask, Decisions, Request
from postroom.fleet.protocol import REMEMBERED_MOST


async def test_slots_never_exceed_the_cap(shared: Shared) -> None:
    """F1: whatever replicas want, together they get the cap and no more."""
    first = await shared.ask("a", cap=4, need=10)
    second = await shared.ask("b", cap=4, need=10)
    assert (first.slots, second.slots) == (4, 0)
    assert second.share == 2


async def test_who_holds_too_much_gives_back_as_handlers_end(shared: Shared) -> None:
    """F4: a holder keeps what it says it holds, is told its share, and what it gives back goes to who needs it."""
    await shared.ask("a", cap=4, need=10)
    await shared.ask("b", cap=4, need=10)
    kept = await shared.ask("a", cap=4, need=10, hold=4)
    assert (kept.slots, kept.share, kept.contended) == (4, 2, True)
    shrunk = await shared.ask("a", cap=4, need=10, hold=3)
    assert shrunk.slots == 3
    assert (await shared.ask("b", cap=4, need=10)).slots == 1
    await shared.ask("a", cap=4, need=10, hold=2)
    assert (await shared.ask("b", cap=4, need=10, hold=1)).slots == 2


async def test_small_needs_are_met_in_full(shared: Shared) -> None:
    """F4: shares are max-min: one that needs little gets it, and the rest is divided."""
    await shared.ask("a", cap=10, need=1)
    await shared.ask("b", cap=10, need=9, hold=0)
    await shared.ask("c", cap=10, need=9)
    assert (await shared.ask("b", cap=10, need=9, hold=0)).share in {4, 5}
    assert (await shared.ask("a", cap=10, need=1, hold=1)).share == 1


async def test_needs_come_before_wants(shared: Shared) -> None:
    """F4: a replica without work gets half of the free slots: the other half is there for the next one."""
    idle = await shared.ask("a", cap=8, need=1, want=8)
    assert idle.slots == 4
    assert (await shared.ask("b", cap=8, need=7, want=8)).slots == 4
    assert (await shared.ask("a", cap=8, need=1, want=8, hold=1)).share == 1
    assert (await shared.ask("b", cap=8, need=7, want=8, hold=4)).slots == 7


async def test_a_crashed_replica_returns_its_slots(shared: Shared) -> None:
    """F3: what is not renewed for a lease is free again."""
    await shared.ask("a", cap=4, need=4)
    assert (await shared.ask("b", cap=4, need=4)).slots == 0
    await shared.sleep(LEASE + 0.05)
    assert (await shared.ask("b", cap=4, need=4)).slots == 4


async def test_slots_last_for_the_lease_of_who_holds_them(shared: Shared) -> None:
    """F1: another replica with a shorter lease, as while a new version is rolled out, ends only its own."""
    assert (await shared.ask("long", cap=4, need=3, lease=10 * LEASE)).slots == 3
    assert (await shared.ask("short", cap=4, need=4)).slots == 1
    await shared.sleep(LEASE + 0.05)
    assert (await shared.ask("third", cap=4, need=4)).slots == 1
    assert await shared.state.usage(shared.name) == {"t:acme": (4, 2)}


async def test_what_is_given_back_is_free_at_once(shared: Shared) -> None:
    """F3: a replica that leaves, or has an idle tenant, returns everything at once."""
    await shared.ask("a", cap=4, need=4)
    await shared.ask("a", cap=4, need=0, leaving=True)
    assert (await shared.ask("b", cap=4, need=4)).slots == 4


async def test_a_slot_rotates(shared: Shared) -> None:
    """F5: with a cap below the number of hungry replicas each of them is the one in turn."""
    names = ["a", "b", "c"]
    had: set[str] = set()
    holds = dict.fromkeys(names, 0)
    for _ in range(60):
        for name in names:
            grant = await shared.ask(name, cap=1, need=5, hold=holds[name])
            if grant.slots:
                had.add(name)
            holds[name] = min(grant.slots, grant.share)  # what runs ends at once
        if had == set(names):
            return
        await shared.sleep(LEASE / 6)
    pytest.fail(f"only {had} ever had the slot")


async def test_a_request_that_comes_late_changes_nothing(shared: Shared) -> None:
    """F2: an earlier request that arrives after a later one must not take away what the later one was granted."""
    await shared.ask("a", cap=8, need=1, sequence=1)
    assert (await shared.ask("a", cap=8, need=6, hold=1, sequence=3)).slots == 6
    assert (await shared.ask("a", cap=8, need=0, hold=0, sequence=2)).slots == 6
    assert (await shared.ask("b", cap=8, need=8)).slots == 2


async def test_nothing_new_is_granted_while_leases_of_a_lost_memory_may_be_out(shared: Shared) -> None:
    """F1, F10: after a flush only what is held is granted, for one lease."""
    await shared.ask("a", cap=4, need=4)
    await shared.ask("b", cap=4, need=4)
    shared.flush()
    assert (await shared.ask("b", cap=4, need=4)).slots == 0
    assert (await shared.ask("a", cap=4, need=4, hold=4)).slots == 4
    await shared.sleep(LEASE / 2)
    await shared.ask("a", cap=4, need=4, hold=4)
    await shared.sleep(LEASE / 2 + 0.05)
    assert (await shared.ask("b", cap=4, need=4)).slots == 0
    await shared.ask("a", cap=4, need=4, hold=2)
    assert (await shared.ask("b", cap=4, need=4)).slots == 2


async def test_a_first_start_waits_for_nothing(shared: Shared) -> None:
    """F10: a store that never had a memory has lost none."""
    assert (await shared.ask("a", cap=4, need=4)).slots == 4


async def test_starts_are_granted_a_tick_at_a_time(shared: Shared) -> None:
    """F9: replicas together get what the rate allows in a tick, and no more."""
    for name in ("a", "b", "c"):
        await shared.ask(name, cap=100, need=50)
    got = [
        (await shared.ask(name, cap=100, need=50, rate=100.0, tokens=50, tick=0.1)).tokens
        for name in ("a", "b", "c", "a", "b", "c")
    ]
    assert 15 <= sum(got) <= 30  # two ticks, and what real time adds
    assert min(got[:3]) >= 1


async def test_a_slow_rate_grants_one_start(shared: Shared) -> None:
    """F9: a rate of less than one per tick still grants whole starts, at its pace."""
    got = 0
    for _ in range(10):
        got += (await shared.ask("a", cap=9, need=5, rate=4.0, tokens=5, tick=0.1)).tokens
        await shared.sleep(0.1)
    assert 3 <= got <= 6


async def test_a_decision_moves_the_version(shared: Shared) -> None:
    """F11: every decision is a new version, and one that is taken back is gone."""
    state, name = shared.state, shared.name
    assert await state.decisions(name) == Decisions(0, {})
    first = await state.decide(name, {"state t:acme": "x", "rate t:acme": "y"})
    second = await state.decide(name, {"state t:acme": None})
    assert 0 < first < second
    known = Decisions(second, {"rate t:acme": "y"}, {"rate t:acme": first}, {"state t:acme": second})
    assert await state.decisions(name) == known
    request = Request("a", 1, "", LEASE, 0.1, ())
    assert (await state.exchange(name, request)).version == second


async def test_of_two_decisions_the_later_one_is_restored(shared: Shared) -> None:
    """F11: a replica that remembers writes decisions down again; what was decided since stays."""
    state, name = shared.state, shared.name
    now = await state.decide(name, {"state t:acme": "new", "state t:early": "early"})
    fields = {"state t:acme": "old", "state t:lost": "old", "state t:early": "late"}
    stamps = {"state t:acme": now - 9, "state t:lost": now - 9, "state t:early": now + 1}
    version = await state.restore(name, Decisions(now + 1, fields, stamps))
    known = await state.decisions(name)
    assert known.version == version > now + 1
    assert known.fields == {"state t:acme": "new", "state t:lost": "old", "state t:early": "late"}
    assert known.stamps == {"state t:acme": now, "state t:lost": now - 9, "state t:early": now + 1}
    assert await state.restore(name, Decisions(now, known.fields, known.stamps)) == version


async def test_what_was_taken_back_is_not_restored(shared: Shared) -> None:
    """F11: neither by a replica that does not know that it was, nor by a server that remembers an earlier state."""
    state, name = shared.state, shared.name
    decided = await state.decide(name, {"state t:acme": "x"})
    stale = await state.decisions(name)
    undone = await state.decide(name, {"state t:acme": None})
    assert await state.restore(name, stale) == undone
    assert (await state.decisions(name)).fields == {}
    other = await state.decide(name, {"state t:other": "y"})
    remembered = await state.decisions(name)
    # Known to a replica that saw both taken back, while this server starts again from before that.
    later = Decisions(remembered.version + 5, {}, {}, {"state t:acme": undone, "state t:other": other + 1})
    assert await state.restore(name, later) > later.version > decided
    known = await state.decisions(name)
    assert (known.fields, known.stamps) == ({}, {})
    assert known.undone == later.undone


async def test_what_a_replica_does_not_know_is_not_taken_back(shared: Shared) -> None:
    """F11: a replica that came after a loss, and knows only what was decided since, undoes nothing of before."""
    state, name = shared.state, shared.name
    before = await state.decide(name, {"state t:acme": "x"})
    witness = await state.decisions(name)
    shared.flush()
    await state.decide(name, {"state t:late": "y", "state t:short": "z"})
    await state.decide(name, {"state t:short": None})
    newcomer = await state.decisions(name)
    shared.flush()
    await state.restore(name, witness)
    await state.restore(name, newcomer)
    known = await state.decisions(name)
    assert known.fields == {"state t:acme": "x", "state t:late": "y"}
    assert known.stamps["state t:acme"] == before
    assert known.undone == newcomer.undone


async def test_decisions_name_the_memory_that_they_are_from(shared: Shared) -> None:
    """F11: a replica notices that the store lost its memory between an exchange and the reading that follows it."""
    state, name = shared.state, shared.name
    first = await state.exchange(name, Request("a", 1, "", LEASE, 0.1, ()))
    assert (await state.decisions(name)).epoch == first.epoch
    shared.flush()
    assert (await state.decisions(name)).epoch == ""
    await shared.sleep(0.01)
    second = await state.exchange(name, Request("a", 2, first.epoch, LEASE, 0.1, ()))
    assert (await state.decisions(name)).epoch == second.epoch != first.epoch


async def test_only_the_latest_that_were_taken_back_are_remembered(shared: Shared) -> None:
    """F10: however much is taken back, the store stays small; a report that is out of date leaves nothing."""
    state, name = shared.state, shared.name
    await state.decide(name, {"state t:first": None})
    await state.decide(name, {f"state t:{number}": None for number in range(REMEMBERED_MOST - 1)})
    await state.decide(name, {"done t:acme r1": "said"})
    await state.decide(name, {"done t:acme r1": None})
    assert len((await state.decisions(name)).undone) == REMEMBERED_MOST
    await state.decide(name, {"state t:last": None})
    undone = (await state.decisions(name)).undone
    assert len(undone) == REMEMBERED_MOST
    assert "state t:first" not in undone
    assert max(undone, key=undone.__getitem__) == "state t:last"


async def test_decisions_outlive_leases(shared: Shared) -> None:
    """F10: decisions have no end of their own, unlike everything else."""
    await shared.state.decide(shared.name, {"state t:acme": "x"})
    await shared.ask("a", cap=4, need=4)
    await shared.sleep(2 * LEASE)
    assert (await shared.state.decisions(shared.name)).fields == {"state t:acme": "x"}
    assert await shared.state.usage(shared.name) == {}


async def test_an_outage_is_a_hint_with_an_end(shared: Shared) -> None:
    """F12: hosts that are down are told to all, until they are back or the hint runs out."""
    state, name, request = shared.state, shared.name, Request("a", 1, "", LEASE, 0.1, ())
    await state.report(name, "t:db1", "refused", 0.5)
    await state.report(name, "t:db2", "silent: no answer", 5.0)
    hints = (await state.exchange(name, request)).hints
    assert {(hint.host, hint.cause) for hint in hints} == {("t:db1", "refused"), ("t:db2", "silent: no answer")}
    assert all(0 < hint.seconds <= 5.0 for hint in hints)
    await state.report(name, "t:db2", None, 1.0)
    await shared.sleep(0.55)
    assert (await state.exchange(name, request)).hints == ()


async def test_one_replica_tries_a_host(shared: Shared) -> None:
    """F12: of all replicas one may try a host; its failure makes all of them wait, its success none."""
    state, name = shared.state, shared.name
    claims = [await state.claim_probe(name, "t:db1", replica, 0.3) for replica in ("a", "b", "c")]
    assert claims == [True, False, False]
    await shared.sleep(0.35)
    assert await state.claim_probe(name, "t:db1", "b", 5.0)
    await state.report(name, "t:db1", "refused", 0.8)
    assert not await state.claim_probe(name, "t:db1", "b", 5.0)
    await state.report(name, "t:db1", None, 1.0)
    assert await state.claim_probe(name, "t:db1", "c", 5.0)


async def test_who_tries_a_host_makes_its_hint_last(shared: Shared) -> None:
    """F12: while a replica has the turn the others know, whether or not the hint ran out; what it says ends that."""
    state, name, request = shared.state, shared.name, Request("a", 1, "", LEASE, 0.1, ())
    await state.report(name, "t:db1", "refused", 0.4)
    await shared.sleep(0.25)
    assert await state.claim_probe(name, "t:db1", "a", 5.0)
    await state.claim_probe(name, "t:db2", "a", 0.4)
    hints = {hint.host: hint for hint in (await state.exchange(name, request)).hints}
    assert hints["t:db1"].cause == "refused"
    assert 4.0 < hints["t:db1"].seconds <= 5.0
    assert 0.0 < hints["t:db2"].seconds <= 0.4
    await shared.sleep(0.45)
    assert [hint.host for hint in (await state.exchange(name, request)).hints] == ["t:db1"]
    await state.report(name, "t:db1", None, 2.0)
    assert (await state.exchange(name, request)).hints == ()


async def test_a_turn_does_not_shorten_a_hint(shared: Shared) -> None:
    """F12: a try that is over sooner says nothing of the host."""
    state, name, request = shared.state, shared.name, Request("a", 1, "", LEASE, 0.1, ())
    await state.report(name, "t:db1", "refused", 2.0)
    await shared.sleep(1.05)
    assert await state.claim_probe(name, "t:db1", "a", 0.2)
    [hint] = (await state.exchange(name, request)).hints
    assert 0.5 < hint.seconds <= 1.0


async def test_replicas_are_counted_while_they_are_alive(shared: Shared) -> None:
    """F8: the number of replicas is what the fallback divides by."""
    await shared.ask("a")
    request = Request("b", 1, "", LEASE, 0.1, ())
    assert (await shared.state.exchange(shared.name, request)).replicas == 2
    await shared.ask("a", leaving=True)
    request = Request("b", 2, "", LEASE, 0.1, ())
    assert (await shared.state.exchange(shared.name, request)).replicas == 1


async def test_many_tenants_are_asked_for_at_once(shared: Shared) -> None:
    """F6: an exchange takes any number of tenants, and answers for each of them in order."""
    asks = tuple(Ask(f"t:{number}", 1 + number % 7, 0, 9, 9) for number in range(1_200))
    answer = await shared.state.exchange(shared.name, Request("a", 1, "", 30.0, 1.0, asks))
    assert [grant.slots for grant in answer.grants] == [1 + number % 7 for number in range(1_200)]
    assert len(await shared.state.usage(shared.name)) == 1_200


async def test_two_fleets_do_not_meet(shared: Shared) -> None:
    """Names that are alike up to a pattern's letters are different fleets."""
    request = Request("a", 1, "", LEASE, 0.1, (Ask("t:acme", 4, 0, 4, 4),))
    await shared.state.exchange(f"{shared.name}[x]", request)
    await shared.state.exchange(f"{shared.name}*", request)
    assert await shared.state.usage(f"{shared.name}*") == {"t:acme": (4, 1)}
    assert (await shared.ask("b", cap=4, need=4)).slots == 4


async def test_replicas_that_ask_at_once_never_get_more_than_the_cap(shared: Shared) -> None:
    """F1: with eight replicas that ask side by side, whatever they hold, the sum stays within the cap."""
    rng = random.Random(7)
    cap, names = 5, [f"r{number}" for number in range(8)]
    have = dict.fromkeys(names, 0)

    async def step(name: str) -> None:
        hold = rng.randint(0, have[name])
        have[name] = hold
        grant = await shared.ask(name, cap=cap, need=rng.randint(0, 6), want=6, hold=hold)
        have[name] = grant.slots

    for _ in range(25):
        await asyncio.gather(*(step(name) for name in rng.sample(names, 5)))
        assert sum(have.values()) <= cap
