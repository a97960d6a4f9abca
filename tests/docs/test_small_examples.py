"""The small examples print what their READMEs say, each with its own command."""

from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("customer_config", "environment_api_client", "fifo", "manual_ack", "resource_caching")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Awaitable[list[str]]]:
    """Run an example and return the lines that it prints."""
    monkeypatch.syspath_prepend(str(ROOT))

    async def main(name: str) -> list[str]:
        await import_module(f"examples.{name}.main").main()
        return capsys.readouterr().out.splitlines()

    return main


Run = Callable[[str], Awaitable[list[str]]]


@pytest.mark.parametrize("name", SMALL)
def test_each_has_a_readme_with_its_command(name: str) -> None:
    """One command, from the root of a checkout."""
    assert f"python -m examples.{name}.main" in (ROOT / "examples" / name / "README.md").read_text()


async def test_an_environment_that_is_down_costs_no_other_and_no_attempt(run: Run) -> None:
    """Production ships at once; staging ships once it is back."""
    lines = await run("environment_api_client")
    down = next(number for number, line in enumerate(lines) if line.startswith("staging is down: 0 shipped"))
    assert sorted(line.split(":")[0] for line in lines[:down]) == ["production"] * 3
    assert sorted(lines[down + 1 :]) == [f"staging: order-{n} has tracking number staging-order-{n}" for n in (1, 2, 3)]


async def test_a_customer_gets_what_its_tier_says(run: Run) -> None:
    """Premium and standard run at once, a trial waits for its rate; each configuration is read once."""
    lines = await run("customer_config")
    assert sum("acme (premium)" in line and "with charts" in line for line in lines) == 4
    assert sum("globex (standard)" in line and "plain" in line for line in lines) == 4
    assert "initech may start 10 a minute; 3 wait" in lines
    assert lines[-1] == "configurations read: {'acme': 1, 'globex': 1, 'initech': 1}"


async def test_the_cache_tells_what_it_does(run: Run) -> None:
    """A miss and hits, an eviction, a change from outside, a failed check."""
    lines = await run("resource_caching")
    assert lines[1] == "  opened acme"
    assert "  closed acme: capacity" in lines
    assert lines.index("  still in use") < lines.index("  closed globex: invalidated")
    assert "  closed umbrella: unhealthy" in lines
    assert sum(line == "  opened umbrella" for line in lines) == 3


async def test_a_failed_booking_keeps_its_account_in_order(run: Run) -> None:
    """The next one of the account waits behind it."""
    lines = await run("fifo")
    assert "bob: booking 2 fails; booking 3 waits behind it" in lines
    assert lines[-1] == "{'alice': [1, 2, 3], 'bob': [1, 2, 3]}"


async def test_what_is_acknowledged_by_hand_is_gone(run: Run) -> None:
    """Two groups of five are written and acknowledged."""
    assert await run("manual_ack") == ["wrote and acknowledged 5 readings"] * 2 + ["left in the queue: 0"]
