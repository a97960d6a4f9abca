"""Tells when all connections of a tenant are in use and handlers wait for one."""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from contextvars import Context
from typing import Final, TypeVar

from postroom.datasources._attempts import unanswered
from postroom.datasources._server import Server
from postroom.display import counted, display_key
from postroom.log_fields import Log, Step, about
from postroom.redaction import sqlstate_of

T = TypeVar("T")
SAID_AFTER: Final = 3.0
"""Seconds that a handler waits for a connection before the log says so."""
_AGAIN: Final = 1.0
"""Seconds between two attempts to connect to a server that is full, while none of the tenant's connections comes free.
"""
ADVICE: Final = (
    "A handler must give its connection back, as `with` does, and must not ask for a second one meanwhile; else raise "
    "max_size=, or lower Concurrency(per_tenant=)"
)
"""What to do about it."""
_QUIET: Final = 60.0
"""Seconds between two lines about one tenant's connections."""
_FULL: Final = "53300"
"""PostgreSQL's SQLSTATE too_many_connections."""
_log = Log("postroom.datasources", Step.RESOURCES)


def is_out_of_room(error: BaseException, held: int) -> bool:
    """Return whether the server has no room for one more connection, while the tenant holds some.

    Then it is as if the tenant's pool had no more than these: a caller waits for one, as for any pool that is in use.
    A tenant without a connection is told at once: that is an outage.
    """
    return held > 0 and sqlstate_of(error) == _FULL


def make_do(connect: Callable[[], T], *, held: Collection[object], wait: Callable[[], object], limit: float) -> T:
    """Connect, and while the server has no room for one more connection, wait for one of those that are held.

    Args:
        connect: takes a connection of the pool, or makes one.
        held: the connections that there are.
        wait: returns when one came free, or after a while.
        limit: seconds after which what the server says is raised.
    """
    until = time.monotonic() + limit
    while True:
        try:
            return connect()
        except Exception as error:
            if not is_out_of_room(error, len(held)) or time.monotonic() >= until:
                raise
        wait()


def in_vain(who: str, limit: float, most: int) -> str:
    """Return what to tell a caller who waited for one of a tenant's connections, all of which are in use."""
    return (
        f"no connection of tenant {who} came free within {limit:g} s: all {most} are in use; a handler must give its "
        "connection back, as `with` does, and one that takes a second one meanwhile needs a larger max_size="
    )


def tell_of_held(who: str, connections: int) -> None:
    """Say that connections of a tenant were ended under their users."""
    text = "Tenant %s: its resources were closed with %s in use, which ended; handlers that use them fail"
    _log.warning(text, who, counted(connections, "connection"), extra=about(tenant=who))


class Waiting:
    """Counts those who wait for a connection of one resource, and warns, at most once a minute, of a long wait.

    Args:
        context: the tenant.
        max_size: connections at most.
        timeout: seconds after which waiting fails; None for never.
        server: where the connections lead to.
    """

    def __init__(self, context: object, max_size: int, timeout: float | None, server: Server) -> None:
        self._who = display_key(context)
        self._max_size = max_size
        self._timeout = timeout
        self._waiting = 0
        self._quiet_until = -math.inf
        self._refused: list[asyncio.Future[None]] = []
        """Those that the server had no connection for."""
        self.server = server

    def freed(self) -> None:
        """Note that a connection came free, or was closed: one caller that was refused may try again."""
        while self._refused:
            caller = self._refused.pop(0)
            if not caller.done():
                caller.set_result(None)
                return

    async def until_freed(self) -> None:
        """Wait for one of the tenant's own connections, or a while: a full server may have room again then."""
        caller = asyncio.get_running_loop().create_future()
        self._refused.append(caller)
        try:  # the more of them wait, the more rarely each tries: the server has enough to do
            await asyncio.wait([caller], timeout=_AGAIN * len(self._refused))
        finally:
            if caller in self._refused:
                self._refused.remove(caller)

    @contextmanager
    def one(self, full: Callable[[], bool]) -> Generator[None]:
        """Mark the time in which one caller asks for a connection.

        Args:
            full: whether all connections are in use. A caller that a connection is being made for
                waits, too, but that is another matter.
        """
        # In an empty context: the loop may keep a timer that was cancelled, and with it the message of who waits.
        timer = asyncio.get_running_loop().call_later(SAID_AFTER, self._warn, full, context=Context())
        self._waiting += 1
        try:
            yield
        finally:
            timer.cancel()
            self._waiting -= 1

    async def timed_out(self, limit: float, *, full: bool = True) -> TimeoutError:
        """Return the error for a caller who has waited for ``limit`` seconds: an outage where the server is silent.

        A caller with a limit of its own is not kept for longer to ask that.
        """
        text = f"no connection of tenant {self._who} came free within {limit:g} s"
        if limit == self._timeout and (problem := await self.server.problem()) is not None:
            return unanswered(f"{text}: {problem}", problem.__cause__)
        if not full:
            return TimeoutError(text)
        return TimeoutError(in_vain(self._who, limit, self._max_size))

    def _warn(self, full: Callable[[], bool]) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until or not full():
            return
        self._quiet_until = now + _QUIET
        end = "they wait without a limit" if self._timeout is None else f"each fails after {self._timeout:g} s"
        _log.warning(
            "Tenant %s: all %d connections are in use, with %s waiting for one, the first for %g s; %s. %s",
            self._who,
            self._max_size,
            counted(self._waiting, "caller"),
            SAID_AFTER,
            end,
            ADVICE,
            extra=about(tenant=self._who),
        )
