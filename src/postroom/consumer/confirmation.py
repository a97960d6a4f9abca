"""What ``ctx.ack()`` and its like return, so that they work in the event loop and in threads alike."""

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import CancelledError as CancelledInLoop
from concurrent.futures import Future
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from postroom.errors import PostroomError
from postroom.log_fields import Described, Log, Step, about, tenant_in_words

_log = Log("postroom.consumer", Step.HANDLER)

Work = Callable[[], Coroutine[Any, Any, None]]

_LOOK: Final = 1.0
"""Seconds after which a thread that waits for the event loop looks whether that still runs."""

_later: ContextVar["list[Confirmation] | None"] = ContextVar("postroom_later", default=None)


class Confirmation(Coroutine[Any, Any, None]):
    """Await it in async code: nothing happens before. In a thread it is confirmed already.

    One that async code forgets to await is logged as a warning, and is a ``RuntimeWarning``.
    """

    __slots__ = ("_coroutine", "_of", "_what", "_work")

    def __init__(self, work: Work, what: str, of: Described | None = None) -> None:
        self._work: Work | None = work
        self._of = of  # which message
        self._what = what
        self._coroutine: Coroutine[Any, Any, None] | None = None

    def __await__(self) -> Generator[Any, None, None]:
        """Do it, and return when SQS has confirmed it."""
        return self._begun().__await__()

    def send(self, value: Any, /) -> Any:
        """Go on: the protocol of coroutines, so that ``asyncio.create_task`` takes it."""
        return self._begun().send(value)

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Any:
        """Raise in it: the protocol of coroutines."""
        error = kind if isinstance(kind, BaseException) else value if isinstance(value, BaseException) else kind()
        return self._begun().throw(error.with_traceback(traceback) if traceback is not None else error)

    def close(self) -> None:
        """Give it up: the protocol of coroutines."""
        self._work = self._of = None
        if self._coroutine is not None:
            self._coroutine.close()

    def _begun(self) -> Coroutine[Any, Any, None]:
        if self._coroutine is None:
            self._coroutine = _nothing() if self._work is None else self._work()
            self._work = self._of = None
        return self._coroutine

    def __del__(self) -> None:
        if self._work is not None:
            of, self._work, self._of = self._of, None, None  # who keeps the warning does not keep the message
            what = self._what if of is None else f"{self._what} of {tenant_in_words(of.tenant)}"
            text = f"{what} was never awaited, so it did nothing: write `await ctx...` in an async handler"
            _log.warning("%s", text, extra=about(of))
            warnings.warn(text, RuntimeWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<Confirmation of {self._what}>"


def confirmed(loop: asyncio.AbstractEventLoop, work: Work, what: str, of: Described) -> Confirmation:
    """Do some work in the consumer's event loop, from wherever this is called.

    In that loop, the caller awaits what is returned. In a thread without a loop, this returns when the work is done.
    In another event loop, as of an ``asyncio.run`` in a thread, the caller awaits it as well.

    Raises:
        PostroomError: the consumer's loop has ended.
    """
    running = _running_loop()
    if running is None:
        _wait_in_thread(loop, work, what)
        return _done(what)
    if running is not loop:
        return Confirmation(lambda: _from_another_loop(loop, work, what), what, of)
    confirmation = Confirmation(work, what, of)
    if (later := _later.get()) is not None and asyncio.current_task() is None:
        # A plain function that runs inline, in virtual time: there is no thread that could wait.
        later.append(confirmation)
        return _done(what)
    return confirmation


def settling_later(later: list[Confirmation], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a plain handler in its thread. Where there is only the loop's, what it asks for is done afterwards."""
    if _running_loop() is not None:
        _later.set(later)
    return function(*arguments)


def _done(what: str) -> Confirmation:
    confirmation = Confirmation(_nothing, what)
    confirmation.close()
    return confirmation


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _wait_in_thread(loop: asyncio.AbstractEventLoop, work: Work, what: str) -> None:
    future = _submit(loop, work, what)
    while True:
        try:
            return future.result(timeout=_LOOK)
        except TimeoutError:
            if future.done():
                raise  # of the work's own
            if not loop.is_running():
                raise _stopped(what) from None
        except CancelledInLoop:
            raise _stopped(what) from None


async def _from_another_loop(loop: asyncio.AbstractEventLoop, work: Work, what: str) -> None:
    await asyncio.wrap_future(_submit(loop, work, what))


def _submit(loop: asyncio.AbstractEventLoop, work: Work, what: str) -> "Future[None]":
    if not loop.is_running():
        raise _stopped(what)
    coroutine = work()
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # it was closed in this instant
        coroutine.close()
        raise _stopped(what) from None


def _stopped(what: str) -> PostroomError:
    text = f"{what}: the consumer has stopped, and nothing was confirmed; the message comes back by itself"
    return PostroomError(text)


async def _nothing() -> None:
    """Be done."""
