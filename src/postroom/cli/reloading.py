"""``postroom run --reload``: the same command again in a child process, started again when a file changes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

_EVERY: Final = 0.5
"""Seconds between two looks at the files."""
_SKIPPED: Final = frozenset({".git", ".venv", "__pycache__", "node_modules", ".mypy_cache", ".pytest_cache"})


def run_reloading(directory: Path, *, every: float = _EVERY) -> int:
    """Run this command without ``--reload`` until a signal says stop; return its exit code.

    A change drains the consumers as SIGTERM does, then starts them again. A child that ends by an error is started
    again with the next change.
    """
    stopping = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    while True:
        known = _snapshot(directory)
        child = subprocess.Popen(_command(), env={**os.environ, "POSTROOM_RELOAD": ""})  # noqa: S603 - see above
        changed: str | None = None
        while changed is None and not stopping.wait(every):
            changed = _changed(known, _snapshot(directory))
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        if changed is None:
            return code if code >= 0 else 128 - code
        click.echo(f"{changed} has changed; starting again", err=True)


def _command() -> list[str]:
    return [sys.executable, "-m", "postroom", *(word for word in sys.argv[1:] if word != "--reload")]


def _snapshot(directory: Path) -> dict[str, float]:
    """Return when each Python file was changed last."""
    return {str(path): path.stat().st_mtime for path in _files(directory)}


def _files(directory: Path) -> Iterator[Path]:
    for root, names, files in os.walk(directory):
        names[:] = [name for name in names if name not in _SKIPPED]
        for name in files:
            path = Path(root, name)
            if name.endswith(".py") and path.exists():
                yield path


def _changed(before: dict[str, float], after: dict[str, float]) -> str | None:
    """Return the first file that was added, removed or changed."""
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            return path
    return None
