"""Whatever something else writes into the keys of a fleet, a bad value costs only itself."""

import struct
from contextlib import aclosing
from typing import Any

import pytest

from conformance.fleet.conftest import Shared
from postroom.fleet import ValkeyState
from postroom.testing.valkey import ValkeyServer

NO_END = struct.pack("<IIIIddd", 4, 4, 4, 0, float("nan"), 1.0, 0.0)
"""Slots of a replica that never run out."""
SCRIBBLES: dict[str, list[tuple[Any, ...]]] = {
    "slots of another type": [("SET", "slots:t:acme", "x")],
    "slots that are too short": [("HSET", "slots:t:acme", "other", "x")],
    "slots that are too long": [("HSET", "slots:t:acme", "other", "x" * 41)],
    "slots that never run out": [("HSET", "slots:t:acme", "other", NO_END)],
    "a rate of another type": [("HSET", "rate:t:acme", "a", "b")],
    "a rate that is no number": [("SET", "rate:t:acme", "soon")],
    "a rate that is NaN": [("SET", "rate:t:acme", "nan")],
    "a hint without a time": [("HSET", "hints", "db-1", "down")],
    "a hint that ends never": [("HSET", "hints", "db-1", "9" * 400 + " down")],
    "a version that is no number": [("HSET", "decisions", "#", "new")],
    "a version that is NaN": [("HSET", "decisions", "#", "nan")],
    "a version that is huge": [("HSET", "decisions", "#", "1e300")],
    "stamps that are no numbers": [
        ("HSET", "decisions", "state t:acme", '{"value":"paused"}', "@state t:acme", "new"),
        ("HSET", "decisions", "rate t:acme", '{"value":3}', "@rate t:acme", "inf"),
    ],
    "times of the epoch that are none": [("HSET", "epoch", "born", "x", "quiet", "y")],
    "bytes that are no text": [("HSET", "decisions", b"state t:\xff", b"\xff"), ("HSET", "hints", b"\xfe", b"\xff")],
}


@pytest.mark.parametrize("what", SCRIBBLES)
async def test_a_bad_value_costs_no_exchange(valkey9: ValkeyServer, what: str) -> None:
    """Slots and starts are granted to its tenant and to others, and what operators decide is kept and read."""
    name = f"scribbles-{list(SCRIBBLES).index(what)}"
    async with aclosing(ValkeyState(valkey9.url)) as state:
        shared = Shared(state, lambda _: state.aclose(), bool, name)
        assert (await shared.ask("a", need=1, tenant="t:first")).slots == 1
        for command, key, *arguments in SCRIBBLES[what]:
            await state._command(command, f"postroom:{{{name}}}:{key}", *arguments)
        for tenant in ("t:acme", "t:beta"):
            grant = await shared.ask("a", cap=4, need=3, rate=5.0, tokens=1, tenant=tenant)
            assert (grant.slots, grant.tokens) == (3, 1)
        version = await state.decide(name, {"rate t:beta": '{"value":7}'})
        said = await state.decisions(name)
        assert said.fields["rate t:beta"] == '{"value":7}'
        assert said.version == version > 1_000_000_000_000
        assert await state.restore(name, said) >= version
        assert (await state.usage(name))["t:beta"] == (3, 1)
        assert await state.replicas(name) == ["a"]
        await state.report(name, "db-2", "refused", 5.0)
        assert await state.claim_probe(name, "db-1", "a", 5.0)
        grant = await shared.ask("a", cap=4, need=3, hold=3, tenant="t:acme")
        assert grant.slots == 3
