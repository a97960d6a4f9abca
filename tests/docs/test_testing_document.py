"""The tests in docs/testing.md pass as they stand, and its import paths exist."""

import re
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


def test_every_example_passes() -> None:
    """All blocks, in order, in one namespace; each test function of them is called."""
    names: dict[str, Any] = {"connect": nullcontext}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, "testing.md", "exec"), names)  # noqa: S102 - the document's own code is tested
    tests = [value for name, value in names.items() if name.startswith("test_")]
    for test in tests:
        test()
    assert len(tests) == len(blocks) - 1 == 4


def test_every_import_path_of_the_table_exists() -> None:
    """Each name is in the module that stands beside it, or in one of them."""
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \|$", TEXT, flags=re.MULTILINE)
    checked = 0
    for names, homes in rows:
        modules = [import_module(home) for home in re.findall(r"`(postroom[\w.]*)`", homes)]
        for name in re.findall(r"`([A-Za-z_]+)(?:\(\.\.\.\))?`", names) if modules else []:
            if "fixture" not in names or name[0].isupper():
                assert any(hasattr(module, name) for module in modules), name
                checked += 1
    assert checked >= 12
