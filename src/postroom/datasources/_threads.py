"""A thread of its own for what may hang: opening and closing a tenant's database."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

from postroom.datasources._sqlite_units import complete

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
