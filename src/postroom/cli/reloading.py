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
    again with the next change. Ctrl-C on a terminal reaches the child by itself, once; any other signal is passed on.
    """
    parent = _Parent(own_terminal=sys.stdin.isatty())
    while True:
        known = _snapshot(directory)
        child = parent.start()
        changed: str | None = None
        told = False
        while changed is None and not parent.stopping.wait(every):
            changed = _changed(known, _snapshot(directory))
            if not told and child.poll() is not None:
                told = True
                click.echo(f"it ended with exit code {child.returncode}; waiting for a change", err=True)
        if changed is not None:
            parent.drain()
        code = child.wait()
        if parent.stopping.is_set():
            return code if code >= 0 else 128 - code
        click.echo(f"{changed} has changed; starting again", err=True)


class _Parent:
    """Passes signals on to the child, each once.

    Args:
        own_terminal: whether a terminal sends Ctrl-C to the child itself. Elsewhere the child has a process group of
            its own: a second signal would cancel its handlers.
    """

    def __init__(self, *, own_terminal: bool) -> None:
        self.stopping = threading.Event()
        self._own_terminal = own_terminal
        self._draining = False
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the command."""
        environment = {**os.environ, "POSTROOM_RELOAD": ""}
        group = None if self._own_terminal else 0
        self._child = subprocess.Popen(_command(), env=environment, process_group=group)  # noqa: S603 - see above
        self._draining = False
        if self.stopping.is_set():  # it came while the child was started
            self.drain()
        return self._child

    def drain(self) -> None:
        """Tell the child to drain, once: a second time would cancel its handlers."""
        if not self._draining:
            self._draining = True
            self._pass_on()

    def _pass_on(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def _stop(self, number: int, _frame: object) -> None:
        again = self.stopping.is_set()
        self.stopping.set()
        if self._own_terminal and number == signal.SIGINT:
            return
        if again:
            self._pass_on()
        else:
            self.drain()


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
