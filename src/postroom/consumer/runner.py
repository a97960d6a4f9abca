"""Run consumers as the main job of a process: signals, and exit codes."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from postroom.consumer.consumer import Consumer
from postroom.errors import AccessDenied, ConfigurationError, NotOpenError, QueueNotFound, TransportError
from postroom.types import ExitCode, StopReason

_log = logging.getLogger("postroom.consumer")

_NOT_AS_CONFIGURED = (ConfigurationError, NotOpenError, QueueNotFound, AccessDenied)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(*consumers: Consumer[Any, Any]) -> None:
    """Run consumers until SIGINT or SIGTERM, then stop them in order. The last line of a worker's main module.

    The first signal drains and says what it waits for; the second cancels handlers at once. When one consumer stops,
    for whatever reason, all do. What is loaded when they run is frozen (``gc.freeze``), see :func:`serve`.

    Raises:
        SystemExit: with 1 when a consumer died, 2 when it could not be started as configured, 3 when handlers had to
            be cancelled. A clean stop returns.
    """
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = asyncio.run(serve(*consumers, freeze=True))
    if code is not ExitCode.CLEAN:
        sys.exit(int(code))


async def serve(*consumers: Consumer[Any, Any], freeze: bool = False) -> ExitCode:
    """Do what :func:`run` does inside a running event loop, and return the exit code.

    Signal handlers are installed in the main thread only, and removed at the end.

    Args:
        consumers: what to run.
        freeze: whether the garbage collector leaves alone, until the end, what is loaded when all consumers run. It
            would look through the whole AWS client every 20,000 messages or so, which stops the loop for a tenth of
            a second. For processes with no other job: cycles that exist at that moment stay until the end.
    """
    if not consumers:
        _log.critical("Nothing to run: pass at least one consumer")
        return ExitCode.CONFIGURATION
    with _signals(consumers):
        return await _serve(consumers, freeze=freeze)


async def _serve(consumers: tuple[Consumer[Any, Any], ...], *, freeze: bool) -> ExitCode:
    started: list[Consumer[Any, Any]] = []
    problems: list[BaseException] = []
    try:
        for consumer in consumers:
            await consumer.__aenter__()
            started.append(consumer)
        if freeze:
            gc.freeze()
        await _first_stop(consumers)
    except Exception as error:
        problems.append(error)
    finally:
        ended = await asyncio.gather(*(c.__aexit__(None, None, None) for c in started), return_exceptions=True)
        problems.extend(error for error in ended if error is not None)
        if freeze:
            gc.unfreeze()
    for problem in problems:
        if isinstance(problem, TransportError) and not isinstance(problem, _NOT_AS_CONFIGURED):
            _log.critical("Stopped: %s", problem)  # its text says what to check; a traceback would hide it
            return ExitCode.FATAL
        if not isinstance(problem, _NOT_AS_CONFIGURED):
            _log.critical("Stopped by an error", exc_info=problem)
            return ExitCode.FATAL
    for problem in problems:
        _log.critical("Cannot start: %s", problem)
        return ExitCode.CONFIGURATION
    cancelled = any(consumer.statistics().cancelled for consumer in started)
    return ExitCode.CANCELLED_WORK if cancelled else ExitCode.CLEAN


async def _first_stop(consumers: tuple[Consumer[Any, Any], ...]) -> None:
    """Wait until one consumer is asked to stop, then ask all: they drain at the same time."""
    waits = [asyncio.create_task(c.wait_for_stop(), name=f"postroom-wait-{c.queue}") for c in consumers]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
    for consumer in consumers:
        consumer.stop()


@contextmanager
def _signals(consumers: tuple[Consumer[Any, Any], ...]) -> Generator[None]:
    loop = asyncio.get_running_loop()
    seen = 0

    def on_signal(number: signal.Signals) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            _log.info("%s: draining; once more to cancel what runs", number.name)
        else:
            _log.warning("%s again: cancelling what runs", number.name)
        for consumer in consumers:
            consumer.stop(now=seen > 1, reason=StopReason.SIGNAL)

    installed: list[signal.Signals] = []
    try:
        for number in _SIGNALS:
            try:
                loop.add_signal_handler(number, on_signal, number)
            except (NotImplementedError, ValueError, RuntimeError):  # not the main thread, or not on this platform
                break
            installed.append(number)
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
