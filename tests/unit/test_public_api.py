"""What ``import postroom`` gives, and what it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import postroom

HEAVY = ("aiobotocore", "botocore", "aiohttp", "pydantic", "sqlalchemy", "asyncpg", "psycopg", "click")


def test_everything_that_is_named_is_exported() -> None:
    """``__all__`` is sorted, complete, and every name in it exists."""
    tree = ast.parse(Path(postroom.__file__).read_text())
    imported = {
        name.asname or name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert set(postroom.__all__) == imported
    assert list(postroom.__all__) == sorted(postroom.__all__)
    assert all(hasattr(postroom, name) for name in postroom.__all__)


def test_the_package_only_re_exports() -> None:
    """``__init__`` holds imports, ``__all__`` and a docstring, nothing else."""
    tree = ast.parse(Path(postroom.__file__).read_text())
    assert all(isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr) for node in tree.body)


def test_every_public_name_is_documented() -> None:
    """Each has a docstring of its own."""
    undocumented = [name for name in postroom.__all__ if not (getattr(postroom, name).__doc__ or "").strip()]
    assert [name for name in undocumented if name not in {"Middleware", "CallNext"}] == []


def test_no_heavy_library_is_imported_with_it() -> None:
    """AWS's SDK and the optional libraries are imported when something needs them."""
    code = f"import sys, postroom; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
