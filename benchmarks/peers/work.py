"""What every worker is told, and what its handler does. Standard library only: it runs in everybody's environment."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ARGUMENTS = "BENCHMARK_WORKER"
"""The environment variable with the arguments, for workers that another program's command line starts."""


@dataclass(frozen=True)
class Arguments:
    """What a worker is told, as JSON: its argument, or the environment variable ``BENCHMARK_WORKER``."""

    url: str
    queue_url: str
    messages: int
    """How many to handle, and then stop. 0: behave as the messages say, until a signal comes."""
    concurrency: int = 64
    hot_path: bool = True
    uvloop: bool = False

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.queue_url.rsplit("/", 1)[-1]


def arguments() -> Arguments:
    """Return what this process was told."""
    told: dict[str, Any] = json.loads(os.environ[ARGUMENTS])
    return Arguments(**told)


class Failed(Exception):
    """What a handler raises when the message says so."""


class Work:
    """The handler's body: count, or do what the message's note says.

    Args:
        messages: how many to count; 0 to behave.
        finish: called after the last one. It may be set later.
    """

    def __init__(self, messages: int, finish: Callable[[], object] = lambda: None) -> None:
        self._left = messages
        self._behaves = not messages
        self.finish = finish

    async def do(self, name: str, note: str) -> None:
        """Handle a message in a coroutine."""
        if self._behaves:
            await asyncio.sleep(self._begin(name, note))
            say("done", name)
        else:
            self.count()

    def do_in_thread(self, name: str, note: str) -> None:
        """Handle a message in a thread. The caller counts."""
        if self._behaves:
            time.sleep(self._begin(name, note))
            say("done", name)

    def count(self) -> None:
        """Count one message that was handled."""
        self._left -= 1
        if self._left == 0:
            self.finish()

    def _begin(self, name: str, note: str) -> float:
        say("begin", name)
        if note == "fail":
            raise Failed(name)
        return float(note.removeprefix("sleep ")) if note.startswith("sleep ") else 0.0


def say(what: str, name: str) -> None:
    """Tell the benchmark what happened, in one line that other threads do not tear."""
    sys.stdout.write(f"{what} {name} {time.monotonic():.6f}\n")
    sys.stdout.flush()
