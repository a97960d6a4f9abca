"""The code in docs/pool.md runs as it stands, and prints what the document says."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[3] / "docs" / "pool.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Copied and run."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    (expected,) = re.findall(r"prints\n\n```text\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(code, "pool.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - the document's own code is what is tested
    assert capsys.readouterr().out == expected
