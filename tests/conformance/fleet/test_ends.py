"""F10 on real servers: every key but the decisions runs out by itself; and what a server says of itself."""

from unittest.mock import patch

import pytest

from conformance.fleet.conftest import LEASE, Shared
from postroom.fleet import Request, ValkeyState, scripts, valkey
from postroom.testing.valkey import ValkeyServer

LONGEST = 86_400_000
"""Milliseconds after which the last of all keys is gone: that a decision was taken back is remembered for a day."""
_NEVER = -1
"""What the server says of a key without an end; of one that has ended by now it says -2."""


async def endless(server: ValkeyServer, name: str) -> list[str]:
    """Let a fleet write everything that it can write, and return the keys that would stay."""
    state = ValkeyState(server.url)
    shared = Shared(state, lambda _seconds: state.aclose(), bool, name)
    await shared.ask("a", cap=4, need=2, rate=5.0, tokens=2)
    await shared.ask("b", cap=4, need=3)
    await state.decide(name, {"state t:acme": "x", "state t:other": "y"})
    await state.decide(name, {"state t:other": None})
    await state.report(name, "t:db1", "refused", 5.0)
    await state.claim_probe(name, "t:db2", "a", 5.0)
    await state.exchange(name, Request("a", 9, "", LEASE, 0.1, ()))
    keys = [key.decode() for key in await state._command("KEYS", f"postroom:{{{name}}}:*")]
    await state.aclose()
    assert len(keys) >= 8
    ends = {key: int(server.command("PTTL", key).lstrip(":")) for key in keys}
    return sorted(key for key, end in ends.items() if end == _NEVER or end > LONGEST)


async def test_every_key_but_the_decisions_has_an_end(valkey9: ValkeyServer) -> None:
    """F10: after everything that a fleet can write, only what operators decided has no end."""
    assert await endless(valkey9, "ends") == ["postroom:{ends}:decisions"]


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("EXCHANGE", "outlast(slots_key, lease)"),
        ("EXCHANGE", "outlast(members_key, lease)"),
        ("EXCHANGE", "outlast(epoch_key, 10 * lease)"),
        (
            "REPORT",
            "if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end",
        ),
        ("DECIDE", "redis.call('PEXPIRE', key, remembered)"),
    ],
)  # fmt: skip
async def test_a_key_without_an_end_is_found(valkey9: ValkeyServer, script: str, line: str) -> None:
    """F10: each of the places that sets an end is missed if it goes, from all scripts that have it."""
    assert line in getattr(scripts, script)
    without = {name: getattr(scripts, name).replace(line, "") for name in _NAMES}
    with patch.multiple(valkey, **without, _SCRIPTS=tuple(without.values())):
        assert len(await endless(valkey9, f"ends-{len(line)}-{script}")) == 2


_NAMES = ("EXCHANGE", "DECIDE", "RESTORE", "REPORT", "CLAIM", "MEMBERS", "USAGE", "DECISIONS")
