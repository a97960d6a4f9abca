"""The FastAPI service loses nothing at a SIGTERM under load, and its README says what it does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from postroom.cli import main
from postroom.testing.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fastapi_app"
TEXT = (EXAMPLE / "README.md").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.postgres
@pytest.mark.timeout(300)  # three processes that import everything: 10 s of CPU, on whatever is left of the machine
def test_sigterm_under_load_loses_nothing(postgres_server: PostgresServer) -> None:
    """Three tenants under uvicorn: what was accepted is in the databases once; the lines are those of the README."""
    [command] = re.findall(r"^python -m (\S+)$", TEXT, flags=re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment["ORDERS_SERVER"] = postgres_server.dsn("x").removesuffix("/x")
    done = subprocess.run(
        [sys.executable, "-m", command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [shown] = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    numbers = re.compile(r"\d+")
    ours, theirs = (numbers.sub("N", text).splitlines() for text in (shown, done.stdout))
    assert ours == theirs
    assert "dead letters: 0; lost or doubled: 0" in done.stdout
    waiting = int(re.findall(r"(\d+) visible", done.stdout)[0])
    assert waiting > 0, "it was not under load"
    stranded = re.findall(r"(\d+) in flight", done.stdout)
    assert set(stranded) == {"0"}, done.stdout  # what it held is visible again, and what it handled is deleted


def test_the_check_of_the_readme_finds_nothing_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and with the options that the README says."""
    [line] = re.findall(r"postroom (check .*)$", TEXT, flags=re.MULTILINE)
    [databases] = re.findall(r"ORDERS_DATABASES='(.*?)'", TEXT)
    monkeypatch.setenv("ORDERS_DATABASES", databases)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = CliRunner().invoke(main, [*line.split(), "--offline", "--directory", str(ROOT)])
    assert result.exit_code == 0, result.output
    assert "4 x 20 = 80 connections to one server, of 97" in result.output


def test_every_file_of_the_example_is_named() -> None:
    """And every file that is named exists."""
    named = set(re.findall(r"\]\(([\w.]+\.py)\)", TEXT))
    assert named == {path.name for path in EXAMPLE.glob("*.py")} - {"__init__.py"}
