"""Ctrl-C and SIGTERM in a command that has something to undo: the first asks, the second ends the program."""

import asyncio
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import click

ENDS: Final = "it ends with the batch that is under way; once more to end at once"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """What came so far."""

    def __init__(self) -> None:
        self.came: bool = False
        """Whether there was a signal."""


@contextmanager
def interrupts(ask: Callable[[], object], text: str) -> Generator[Interrupts]:
    """Have the first signal call ``ask`` and say what follows. The second one ends the program as it would any other.

    To be entered in the event loop.

    Args:
        ask: asks the work to end.
        text: what follows, for the operator.
    """
    loop, said = asyncio.get_running_loop(), Interrupts()

    def interrupt() -> None:
        said.came = True
        click.echo(f"interrupted: {text}", err=True)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            # Not what asyncio had there: that cancels the work once more, and waits for it again.
            signal.signal(number, signal.SIG_DFL)
        ask()

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        yield said
    finally:
        if not said.came:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
