"""The code in docs/tenants.md runs as it stands and prints what it says."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "tenants.md").read_text(encoding="utf-8")


def test_decisions_by_hand_print_what_the_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Decisions may be made before the consumer runs."""
    [code] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    [said] = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(code, "tenants.md", "exec"), {})  # noqa: S102 - the document's own code is what is tested
    assert capsys.readouterr().out == said
