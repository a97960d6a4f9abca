"""A small server that answers one request on each connection: what the health pages and the console listen with."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final

from postroom.errors import ConfigurationError

_TRIES: Final = 10
"""Ports that are tried where any will do."""


def check_port(what: str, port: object) -> int:
    """Return a port. Raises ``ConfigurationError`` for what is none."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65_535:
        raise ConfigurationError(f"{what}(port=...) takes a number from 0 to 65535; got {port!r}")
    return port


class Listener(ABC):
    """Listens, bounds what is open, and closes it at the end. A subclass answers.

    Args:
        what: what listens, for the error when it cannot.
        host: the address; None for all of them.
        port: the port; 0 takes a free one, which ``port`` says once it listens.
        most: connections at once; further ones are closed unanswered.
        longest_head: bytes of a request's head.
        grace: seconds that open connections get at the end.
    """

    def __init__(self, what: str, host: str | None, port: int, *, most: int, longest_head: int, grace: float) -> None:
        self.port: int = port
        self._what = what
        self._host = host
        self._most = most
        self._longest_head = longest_head
        self._grace = grace
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @abstractmethod
    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request. What is no request raises an OSError, EOFError, ValueError or TimeoutError."""

    async def listen(self) -> None:
        """Begin to listen. Raises ``ConfigurationError`` where that is not possible."""
        try:
            self._server = await self._start()
        except OSError as error:
            where = f"{self._host or '*'}:{self.port}"
            raise ConfigurationError(f"{self._what} cannot listen at {where}: {error.strerror or error}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def _start(self) -> asyncio.Server:
        """Listen at all addresses of the host, at one port."""
        start = partial(asyncio.start_server, self._serve, self._host, limit=self._longest_head)
        if self.port:
            return await start(port=self.port)
        for _ in range(_TRIES):
            found = await start(port=0, start_serving=False)
            if len(found.sockets) == 1:
                await found.start_serving()
                return found
            # The system gave each address a port of its own. The first one is to be that of all.
            port = found.sockets[0].getsockname()[1]
            found.close()
            await found.wait_closed()
            with suppress(OSError):  # it is not free at another address
                return await start(port=port)
        raise OSError("no port is free at all addresses")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Listen no more, and close what is open."""
        assert self._server is not None  # noqa: S101 - it was entered
        self._server.close()
        for connection in tuple(self._open):
            connection.cancel()
        if self._open:
            await asyncio.wait(tuple(self._open), timeout=self._grace)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._open.add(task)
        try:
            if len(self._open) <= self._most:
                await self.answer(reader, writer)
        except (TimeoutError, OSError, EOFError, ValueError):  # what came is no request, or the client is gone
            writer.transport.abort()
        except asyncio.CancelledError:  # of the stop: asyncio would log it as an error
            writer.transport.abort()
        finally:
            self._open.discard(task)
            with suppress(OSError):
                writer.close()
