"""Asks a tenant's server whether it answers, without a connection of its database: all may be in use."""

import asyncio
import struct
from contextlib import suppress
from typing import Any, Final

from postroom.datasources._attempts import unanswered
from postroom.redaction import describe
from postroom.tasks import TimeLimit, is_in_loop

_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""What PostgreSQL answers with one byte, before it knows a user or counts a connection; drivers begin with it, too."""

Address = str | tuple[str, int]
"""A path, or a host and a port."""


def address_of(connection: Any) -> Address | None:
    """Return where a connection of asyncpg or psycopg leads to; None where that cannot be known."""
    if hasattr(connection, "pgconn"):
        info = connection.info
        host: str = info.host
        if host.startswith(("/", "@")):
            return f"{host}/.s.PGSQL.{info.port}".replace("@", "\0", 1)  # an abstract one begins so
        return info.hostaddr, info.port
    path, transport = getattr(connection, "_addr", None), getattr(connection, "_transport", None)
    if isinstance(path, str):
        return path
    peer: tuple[Any, ...] | None = None if transport is None else transport.get_extra_info("peername")
    return None if peer is None else (peer[0], peer[1])


class Server:
    """The server that the connections of one resource lead to. Made in the event loop.

    Args:
        timeout: seconds that it may take to answer.
        place: where it is, as people are told.
    """

    def __init__(self, timeout: float, place: str) -> None:
        self._timeout = timeout
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._address: Address | None = None
        self._asking = asyncio.Lock()
        self._asked_at = -1.0
        self._problem: Exception | None = None

    def met(self, connection: Any) -> None:
        """Note where a new connection leads to."""
        self._address = address_of(connection)

    async def problem(self) -> TimeoutError | None:
        """Ask whether it answers, while all connections are in use: their users may wait for it in vain.

        One question for all who ask meanwhile. Returns an outage, or None where it answers.
        """
        began = self._loop.time()
        async with self._asking:
            if self._asked_at < began and self._address is not None:
                try:
                    async with TimeLimit(self._timeout):
                        await _knock(self._address)
                    self._problem = None
                except OSError as error:  # a TimeoutError is one
                    self._problem = error
                self._asked_at = self._loop.time()
            if (problem := self._problem) is None:
                return None
            return unanswered(f"the server of {self._place} does not answer ({describe(problem)})", problem)

    async def check(self) -> bool:
        """Return True, or raise what is wrong with a server while all connections are in use."""
        if (problem := await self.problem()) is not None:
            raise problem
        return True

    def problem_for_a_thread(self) -> TimeoutError | None:
        """Ask as ``problem`` does, from a thread. None also where the event loop has no time for it."""
        if is_in_loop():  # it would wait for itself
            return None
        asking = self.problem()
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the loop is closed
            asking.close()
            return None
        try:  # it may wait for the end of another question first
            return answer.result(2 * self._timeout + 1)
        except TimeoutError:
            return None
        finally:
            answer.cancel()


async def _knock(address: Address) -> None:
    if isinstance(address, str):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        reader, writer = await asyncio.open_connection(*address)
    try:
        # An end is an answer, too: of what takes nothing but TLS, for instance.
        with suppress(ConnectionError):
            writer.write(_SSL_REQUEST)
            await reader.read(1)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)  # an aborted socket closes in the next turn of the loop
