"""What ``import postroom`` gives, and what it costs."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest

import postroom
from postroom.console.server import ConsoleServer, allow_token
from postroom.dead_letters.jobs import Scene
from postroom.dead_letters.queue import DeadLetterQueue

HEAVY = ("aiobotocore", "botocore", "aiohttp", "pydantic", "sqlalchemy", "asyncpg", "psycopg", "click")


def _imports() -> dict[str, str]:
    """Return what type checkers are told: the module of every name."""
    tree = ast.parse(Path(postroom.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {name.name: node.module or "" for node in imports for name in node.names}


def test_everything_that_is_named_is_exported() -> None:
    """``__all__`` is sorted and complete, and every name is what type checkers take it for."""
    assert set(postroom.__all__) == set(_imports()) == set(dir(postroom))
    assert list(postroom.__all__) == sorted(postroom.__all__)
    for name, module in _imports().items():
        assert getattr(postroom, name) is getattr(importlib.import_module(module), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """In the words that Python uses."""
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = postroom.Nonsense  # type: ignore[attr-defined]


def test_the_import_alone_loads_nothing() -> None:
    """Neither asyncio nor any module of the package: who wants only an error class pays for no more."""
    code = "import sys, postroom; print([name for name in sys.modules if name.startswith(('postroom.', 'asyncio'))])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_documented() -> None:
    """Each has a docstring of its own."""
    undocumented = [name for name in postroom.__all__ if not (getattr(postroom, name).__doc__ or "").strip()]
    assert [name for name in undocumented if name not in {"Middleware", "CallNext"}] == []


def test_no_heavy_library_is_imported_with_it() -> None:
    """AWS's SDK and the optional libraries are imported when something needs them."""
    code = f"import sys; from postroom import *; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("function", [ConsoleServer.__init__, allow_token, DeadLetterQueue.__init__, Scene.__init__])
def test_annotations_can_be_read_at_run_time(function: Callable[..., object]) -> None:
    """As a container of dependencies does."""
    assert "return" in get_type_hints(function)
