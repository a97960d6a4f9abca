"""A second Ctrl-C during a stop, in a program that calls ``asyncio.run`` itself.

``asyncio.run`` cancels its main task at the first Ctrl-C, and the consumer stops in order. At the
second one it raises ``KeyboardInterrupt`` in the midst of the loop and cancels every task, those of
the stop as well: messages that ran would stay invisible until their timeout. So for the time of a
stop the second one cancels handlers, as it does with ``run``, and the third one ends the loop.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from weakref import WeakSet

_hurried: WeakSet[asyncio.Task[Any]] = WeakSet()
"""Main tasks of programs in which a second one came: what stops after that hurries at once."""


class _Listener:
    """Listens to Ctrl-C in the place of ``asyncio.run``, which it asks first."""

    def __init__(self, before: Callable[[int, FrameType | None], object], main: asyncio.Task[Any]) -> None:
        self.before = before
        self.main = main
        self.stops: list[Callable[[], object]] = []
        """What hurries the stops that are under way."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.before(number, frame)
        except KeyboardInterrupt:
            if self.main in _hurried:
                # The loop ends now, and `asyncio.run` puts back what it finds to be its own.
                self.leave()
                raise
            # Nothing is lost with the exception: the main task was cancelled at the first one, and
            # `asyncio.run` raises KeyboardInterrupt when that task ends.
            _hurried.add(self.main)
            for hurry in self.stops:
                hurry()

    def leave(self) -> None:
        """Put back what listened before, unless something else does by now."""
        installed: object = signal.getsignal(signal.SIGINT)
        if installed is self:
            signal.signal(signal.SIGINT, self.before)


@contextmanager
def second_interrupt(hurry: Callable[[], object]) -> Generator[None]:
    """Have the second Ctrl-C call something, in the midst of any code, in the place of ``KeyboardInterrupt``.

    Only where ``asyncio.run`` listens to Ctrl-C. Any other handler, such as a web server's, is left
    alone.
    """
    listener = _listener() if threading.current_thread() is threading.main_thread() else None
    if listener is None:
        yield
        return
    listener.stops.append(hurry)
    if listener.main in _hurried:
        hurry()
    try:
        yield
    finally:
        listener.stops.remove(hurry)
        if not listener.stops:
            listener.leave()


def _listener() -> _Listener | None:
    """Return what listens for the stops that are under way; None where ``asyncio.run`` does not listen."""
    handler: Any = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Listener):
        return handler
    # What `asyncio.Runner.run` sets: a partial of its own method, with the main task.
    main = getattr(handler, "keywords", {}).get("main_task")
    if not isinstance(getattr(getattr(handler, "func", None), "__self__", None), asyncio.Runner) or main is None:
        return None
    listener = _Listener(handler, main)
    signal.signal(signal.SIGINT, listener)
    return listener
