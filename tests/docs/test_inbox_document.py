"""The code in docs/inbox.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from postroom import Consumer

TEXT = (Path(__file__).parents[2] / "docs" / "inbox.md").read_text(encoding="utf-8")


def test_its_code_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The consumer is declared, and the migration is printed."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for block in blocks:
        exec(block, namespace)  # noqa: S102 - our own document
    assert isinstance(namespace["orders"], Consumer)
    assert "CREATE TABLE IF NOT EXISTS postroom_inbox" in capsys.readouterr().out
