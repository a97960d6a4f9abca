"""What a tenant costs: counted, told, written, and bounded."""

import asyncio
import csv
from pathlib import Path
from typing import Any

import pytest

from postroom import Consumer
from postroom.console import UsageMeter
from postroom.errors import ConfigurationError
from postroom.events import UsageReport
from support.world import World, with_world
from unit.console.test_console import office


def reports(events: list[Any]) -> list[UsageReport]:
    """Return the reports among events."""
    return [event for event in events if isinstance(event, UsageReport)]


@with_world
async def test_each_minute_tells_what_each_tenant_cost(world: World) -> None:
    """Handler seconds, lease seconds, messages, failures, receives, dead letters; the most expensive first."""
    async with office(world) as made, UsageMeter(made.consumer):
        world.send_orders("1", "2", tenant="acme", seconds=3)
        world.send_orders("bad-1", tenant="beta", seconds=0.1)
        made.consumer.tenants.quarantine("gone")
        world.send_orders("1", tenant="gone")
        await asyncio.sleep(61)
        [report] = reports(made.events)
        usage = {each.tenant: each for each in report.tenants}
        assert (report.queue, report.seconds) == ("orders", 60.0)
        assert report.tenants[0].tenant == "acme"
        acme = usage["acme"]
        assert (acme.handler_seconds, acme.lease_seconds, acme.messages, acme.receives) == (6.0, 6.0, 2, 2)
        assert usage["beta"].failed == usage["beta"].receives >= 1
        assert (usage["gone"].dead_letters, usage["gone"].handler_seconds) == (1, 0.0)
        world.send_orders("3", tenant="acme")
        await asyncio.sleep(5)
    assert len(reports(made.events)) == 2  # the rest, at the end


@with_world
async def test_tenants_beyond_the_limit_are_summed_up(world: World) -> None:
    """Memory stays bounded, whatever ids are invented; nothing is lost from the sum."""
    async with office(world) as made, UsageMeter(made.consumer, most=3):
        for number in range(20):
            world.send_orders("1", tenant=f"tenant-{number}", seconds=0.01)
        await asyncio.sleep(61)
        [report] = reports(made.events)
        assert len(report.tenants) == 4
        assert report.tenants[-1].tenant == "(others)"
        assert sum(each.messages for each in report.tenants) == 20


async def test_a_file_gets_a_line_per_tenant(tmp_path: Path) -> None:
    """With a head once, and no name that a spreadsheet takes for a formula."""
    from postroom.console.usage import _append
    from postroom.events import TenantUsage

    path = tmp_path / "usage.csv"
    report = UsageReport("orders", 60.0, 60.0, (TenantUsage(tenant="=1+1"), TenantUsage(tenant="a,b", messages=2)))
    _append(path, [report])
    _append(path, [report])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tenant"] for row in rows] == ["'=1+1", "a,b"] * 2
    assert rows[1]["messages"] == "2"


async def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    """Not after a minute."""
    with pytest.raises(ConfigurationError, match="Name another one"):
        await UsageMeter(Consumer("orders"), path=tmp_path / "none" / "usage.csv").__aenter__()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"every": 0}, "at least 0.001"), ({"most": 0}, "from 1 up"), ({"consumers": ()}, "at least one consumer")],
)
def test_a_wrong_argument_says_what_to_write(arguments: dict[str, Any], text: str) -> None:
    """Before anything is counted."""
    consumers = arguments.pop("consumers", (Consumer("orders"),))
    with pytest.raises(ConfigurationError, match=text):
        UsageMeter(*consumers, **arguments)
