"""The calls that are out on a client, so that closing it ends them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from postroom.errors import ClosedError

P = ParamSpec("P")
T = TypeVar("T")


class Calls:
    """Makes calls that end with ``ClosedError`` as soon as the client is closed.

    Args:
        client: what the error calls the client.
    """

    __slots__ = ("_client", "_out", "closed")

    def __init__(self, client: str) -> None:
        self._client = client
        self._out: set[asyncio.Timeout] = set()
        self.closed = False

    async def make(self, what: str, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call and return its result.

        Raises:
            ClosedError: the client is closed, or was closed before the call ended.
        """
        if self.closed:
            raise ClosedError(f"{what}: its {self._client} is closed; use it inside `async with client:`")
        closing = asyncio.timeout(None)
        try:
            async with closing:
                self._out.add(closing)
                try:
                    return await call(*args, **kwargs)
                finally:
                    self._out.discard(closing)
        except TimeoutError as error:
            if not closing.expired():
                raise
            raise ClosedError(f"{what}: its {self._client} was closed meanwhile") from error

    def end(self) -> None:
        """End every call, and refuse those to come."""
        self.closed = True
        while self._out:
            self._out.pop().reschedule(0)
