"""The code of the documents for operators runs as it stands and prints what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from postroom.console.actions import ACTIONS

DOCS = Path(__file__).parents[2] / "docs"


def blocks(name: str, kind: str) -> list[str]:
    """Return the blocks of a document that are of a kind."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


COMMANDS = ("console.md", "dead-letter-tools.md", "moving-a-tenant.md", "operating-tenants.md")
SETTLING = ("acknowledgement.md", "fifo.md", "shutdown.md", "upgrading.md")


@pytest.mark.parametrize("name", [*COMMANDS, *SETTLING])
def test_the_code_runs_and_prints_what_the_document_says(name: str, tmp_path: Path) -> None:
    """All blocks of a document, one after the other."""
    code = "\n".join(blocks(name, "python"))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "".join(blocks(name, "text"))


def test_every_action_is_documented() -> None:
    """By the name that the page gives it."""
    text = (DOCS / "operating-tenants.md").read_text(encoding="utf-8")
    for action in ACTIONS:
        assert f"* **{'retry now' if action == 'retry' else action}**" in text


def test_every_command_of_the_documents_exists() -> None:
    """With its options."""
    from click.testing import CliRunner

    from postroom.cli import main

    for name in COMMANDS:
        for line in (line for block in blocks(name, "console") for line in block.splitlines()):
            if (
                found := re.match(r"\$ postroom ([a-z-]+)(?: (list|redrive|pause|limit|resume|move|offboard))?", line)
            ) is not None:
                said = CliRunner().invoke(main, [*filter(None, found.groups()), "--help"])
                assert said.exit_code == 0, line
                for option in re.findall(r" (--[a-z-]+)", line):
                    assert option in said.output, line
