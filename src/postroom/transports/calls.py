"""The calls that are out on a client, so that closing it ends them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from postroom.errors import ClosedError

P = ParamSpec("P")
T = TypeVar("T")


class Calls:
    """Makes calls that end with ``ClosedError`` as soon as the client is closed.

    As ``asyncio.timeout`` does, it cancels the task and takes that back; it does so at a third of the cost.

    Args:
        client: what the error calls the client.
    """

    __slots__ = ("_client", "_out", "closed")

    def __init__(self, client: str) -> None:
        self._client = client
        self._out: set[asyncio.Task[Any]] = set()
        self.closed: bool = False

    async def make(self, what: object, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call and return its result. The text of ``what`` says in an error which call it was.

        Raises:
            ClosedError: the client is closed, or was closed before the call ended.
        """
        if self.closed:
            raise ClosedError(f"{what}: its {self._client} is closed; use it inside `async with client:`")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("this must be called from within a task")
        before = task.cancelling()
        self._out.add(task)
        try:
            return await call(*args, **kwargs)
        except asyncio.CancelledError as error:
            if task in self._out or task.cancelling() > before + 1:  # others want it cancelled, too
                raise
            raise ClosedError(f"{what}: its {self._client} was closed meanwhile") from error
        finally:
            if task in self._out:
                self._out.discard(task)
            else:
                task.uncancel()

    def end(self) -> None:
        """End every call, and refuse those to come."""
        self.closed = True
        while self._out:
            self._out.pop().cancel()
