"""What the store has of a decision may be written by another version, or by hand: a bad one costs only itself."""

import asyncio
from typing import Any

import msgspec
import pytest

from postroom import ConfigurationError, Fleet, TenantState
from postroom.fleet import Decisions
from postroom.fleet.decisions import Verdict, verdicts
from support.fleet import Diary, FaultyState, replica
from support.world import Tenant, World, with_world

A, B = Tenant("a"), Tenant("b")
NAME = 'j:{"region":"eu-west-1","tenant_id":"%s"}'
ODD = [
    "", "x", "[]", '"a"', "[" * 100_000, '{"value":' + "[" * 100_000, "\ud800", '{"value":nan}', '{"value":NaN}',
    '{"value":1e400}', '{"value":-1}', '{"value":0}', '{"value":1e300}', f'{{"value":1{"0" * 30}}}',
    f'{{"value":1{"0" * 5000}}}', '{"value":true}', '{"value":"3"}', '{"value":null}', '{"value":[2]}', '{"value":{}}',
]  # fmt: skip
CASES = [
    *((part, text) for part in ("concurrency", "rate", "state") for text in ODD),
    *(("diverted_to", text) for text in ODD if text != '{"value":"3"}'),  # the name of a queue
    ("concurrency", '{"value":2.5}'),
    ("concurrency", '{"value":1000001}'),
    ("rate", '{"value":1e-9}'),
    ("state", '{"value":"asleep"}'),
    ("diverted_to", '{"value":"https://app:hunter2@sqs/1/q"}'),
]


@pytest.mark.parametrize(("part", "text"), CASES)
def test_a_value_that_cannot_be_used_costs_only_its_own_part(part: str, text: str) -> None:
    """Whatever else was decided about the tenant holds, and about others; the reader is told which and why."""
    good = {"state": '{"value":"paused","reason":"full"}', "concurrency": '{"value":3}', "rate": '{"value":0.5}'}
    fields = {f"{each} t:a": value for each, value in good.items()} | {f"{part} t:a": text, "rate t:b": '{"value":7}'}
    refused: dict[str, str] = {}
    found = verdicts(fields, refused.__setitem__)
    wanted: dict[str, Any] = {"state": "paused", "concurrency": 3, "rate": 0.5, "reason": "full"}
    wanted |= {part: None} | ({"reason": None} if part == "state" else {})
    assert found == {"t:a": Verdict(**wanted), "t:b": Verdict(rate=7)}
    assert list(refused) == [f"{part} t:a"]
    assert refused[f"{part} t:a"]
    assert "hunter2" not in refused[f"{part} t:a"]


@pytest.mark.parametrize("text", ['{"value":2}', '{"value":2.0}', '{"value":2,"reason":5}', '{"value":2,"later":1}'])
def test_what_can_be_used_is(text: str) -> None:
    """Other languages write whole numbers as they do; a reason that is none costs nothing."""
    assert verdicts({"concurrency t:a": text}, lambda *_: pytest.fail("refused")) == {"t:a": Verdict(concurrency=2)}


@pytest.mark.parametrize(
    "text", ['{"value":-1}', f'{{"value":1{"0" * 30}}}', '{"value":"many"}', "{", '{"value":1e30}']
)
@pytest.mark.parametrize("part", ["concurrency", "rate"])
@with_world
async def test_a_bad_limit_in_the_store_is_one_line_and_stops_nothing(
    world: World, part: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tenant has the limits of the options; a pause of it holds; other tenants, and their limits, go on."""
    world.create()
    diary, state = Diary(), FaultyState()
    fleet = Fleet(state, per_tenant=4)
    async with replica(world, diary, fleet) as one:
        one.tenants.limit(B, concurrency=1)
        await asyncio.sleep(2)
        await state.decide("orders", {f"{part} {NAME % 'a'}": text})
        world.send_orders(*map(str, range(8)), tenant="a", seconds=1)
        world.send_orders(*map(str, range(8)), tenant="b", seconds=1)
        await asyncio.sleep(30)
        assert diary.most == {"a": 4, "b": 1}
        assert one.statistics().succeeded == 16
        await state.decide("orders", {f"state {NAME % 'a'}": '{"value":"paused"}'})
        await asyncio.sleep(2)
        assert one.tenants[A].state is TenantState.PAUSED
        found = one.statistics().fleet
        assert found is not None
        assert (found.failed_exchanges, found.reachable) == (0, True)
        one.tenants.resume(A)
        changes: dict[str, Any] = {part: 2}
        one.tenants.limit(A, **changes)
        await asyncio.sleep(2)
        assert getattr(one.tenants[A], part) == 2
    said = [each.getMessage() for each in caplog.records if "cannot be used" in each.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"Fleet orders: the {part} decided for tenant ")
    assert '"tenant_id":"a"' in said[0]


class Scribbled(FaultyState):
    """A store in which something else writes a report, again and again."""

    async def decisions(self, fleet: str) -> Decisions:
        """Read decisions."""
        said = await super().decisions(fleet)
        return msgspec.structs.replace(said, fields={**said.fields, f"done {NAME % 'a'} another": "no report"})


@with_world
async def test_a_report_that_is_none_is_no_confirmation(world: World) -> None:
    """It is left out: what the replicas that are alive confirm counts."""
    world.create()
    async with replica(world, Diary(), Fleet(Scribbled(), per_tenant=4)) as one:
        await asyncio.sleep(2)
        await one.tenants.drain(A, timeout=10)


@pytest.mark.parametrize("most", [10**6, 10**30, 10**400])
@with_world
async def test_a_limit_beyond_all_numbers_of_the_store_is_none(world: World, most: int) -> None:
    """Of the options, and of what a function chooses; ``limit()`` refuses it."""
    world.create()
    state = FaultyState()
    async with replica(world, Diary(), Fleet(state, per_tenant=most, overrides=lambda _: most)) as one:
        world.send_orders(*map(str, range(8)), tenant="a", seconds=1)
        await asyncio.sleep(10)
        assert one.statistics().succeeded == 8
        assert max(ask.cap for _, request in state.requests for ask in request.asks) == 10**6
        if most > 10**6:
            with pytest.raises(ConfigurationError, match="from 1 to"):
                one.tenants.limit(A, concurrency=most)
