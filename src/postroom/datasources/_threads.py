"""A thread of its own for what may hang, such as opening and closing a database; and how threads answer."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T], name: str = "postroom-datasource") -> T:
    """Do it in a thread of its own, which begins at once and keeps no process from its end.

    The default executor has few threads: what hangs for some tenants would keep the others waiting.
    """
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            complete(done, None, error)
        else:
            complete(done, value, None)

    threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True).start()
    return await done


def complete(future: "asyncio.Future[Any] | Future[Any]", value: Any, error: BaseException | None) -> None:
    """Complete a future of the event loop, or of another thread, from this one, unless it is cancelled."""

    def finish() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    if isinstance(future, Future):
        with contextlib.suppress(InvalidStateError):  # it is cancelled at this very moment
            finish()
        return
    with contextlib.suppress(RuntimeError):  # the loop is closed, and so are its futures
        future.get_loop().call_soon_threadsafe(finish)
