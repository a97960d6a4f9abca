"""A small piece of what ``make fleet`` does at length: real replicas, a real Valkey, and real databases that count."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.fleet.site import Plan, Where
from integration.fleet.trial import Tally, piece
from postroom.testing.postgres import PostgresServer
from postroom.testing.valkey import ValkeyServer
from support.valkey import valkey_server

PLAN = Plan(replicas=3, tenants=2, cap=4, lease=2.0, tick=0.25)
pytestmark = [pytest.mark.long, pytest.mark.postgres, pytest.mark.timeout(240)]


@pytest.fixture
def store() -> Iterator[ValkeyServer]:
    """Run a Valkey that forgets everything when it starts again."""
    yield from valkey_server()


@pytest.mark.parametrize("scenes", ["kill,freeze,pause", "flush,restart", "cut-short", "cut-long,gone-shortly"])
async def test_the_cap_holds_whatever_happens(
    scenes: str, postgres_server: PostgresServer, store: ValkeyServer, tmp_path: Path
) -> None:
    """F1 to F3, F7, F8, F11: no start that is not allowed, everything is handled, nothing failed or a dead letter."""
    tally = Tally(todo=scenes.split(","))
    options = Namespace(seed=3, scenes=scenes, minutes=0.0)
    await piece(PLAN, Where(postgres_server, store, tmp_path), tally, options)
    assert not tally.over
    assert not tally.wrong
    assert tally.most["under slots"] == PLAN.cap  # it is used, too
    assert tally.told["succeeded"] > 100
    assert tally.told["failed"] == 0
    lease = PLAN.lease + PLAN.tick + 2.0  # the machine may be slow
    assert all(seconds < lease for seconds in tally.seconds.get("slots back after kill -9", ()))
