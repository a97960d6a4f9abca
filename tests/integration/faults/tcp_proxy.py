"""A TCP proxy that does to connections what networks do: delay, swallow, reset, close slowly."""

import asyncio
import contextlib
import socket
import struct
from enum import StrEnum
from types import TracebackType
from typing import Self


class Mode(StrEnum):
    """What happens to bytes and connections."""

    PASS = "pass"
    BLACK_HOLE = "black hole"
    """Nothing arrives any longer, in either direction, and neither side is told. What was swallowed never comes."""
    RESET = "reset"
    """New connections are reset at once."""


class TcpProxy:
    """Listens on a loopback port for the time of an ``async with`` and forwards to another one.

    Args:
        port: where the real server listens, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.mode = Mode.PASS
        self.latency = 0.0
        """Seconds that each piece of data takes, in each direction."""
        self.linger = 0.0
        """Seconds between the end of one side and the close of the other."""
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for connection in tuple(self._connections):
            connection.cancel()
        if self._connections:
            await asyncio.wait(tuple(self._connections))
        await self._server.wait_closed()

    def reset(self) -> None:
        """Reset every connection that exists: the other side sees ECONNRESET, whatever was on its way."""
        for writer in tuple(self._writers):
            _reset(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("proxy-connection")
        self.accepted += 1
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.RESET:
            _reset(writer)
            return
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            while self.mode is Mode.BLACK_HOLE:
                await asyncio.sleep(0.05)
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream), name="proxy-requests")
                group.create_task(self._pump(answers, writer), name="proxy-answers")
        except* OSError:
            pass
        finally:
            for each in (writer, upstream):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.mode is Mode.BLACK_HOLE:
                continue  # swallowed: a connection that loses bytes is half open forever
            if self.latency:
                await asyncio.sleep(self.latency)
            writer.write(data)
            await writer.drain()
        if self.linger:
            await asyncio.sleep(self.linger)
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    plug: socket.socket | None = writer.get_extra_info("socket")
    if plug is not None:
        with contextlib.suppress(OSError):
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
