"""A network to the store for each replica, in a thread of its own: other work in this process must not slow it down."""

import asyncio
import threading
from types import TracebackType
from typing import Self

from integration.faults.tcp_proxy import Mode, TcpProxy


class Networks:
    """Proxies by the replica that they belong to, for the time of a ``with``."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._proxies: dict[str, TcpProxy] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="networks", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def open(self, name: str) -> int:
        """Make a network for a replica. Returns the port under which it reaches the store."""
        proxy = self._proxies[name] = TcpProxy(self._port)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(proxy.__aenter__(), self._loop))
        return proxy.port

    def set(self, names: list[str], mode: Mode) -> None:
        """Let replicas' connections pass or swallow everything, or reset them and refuse new ones."""
        for name in names:
            self._loop.call_soon_threadsafe(self._set, self._proxies[name], mode)

    @staticmethod
    def _set(proxy: TcpProxy, mode: Mode) -> None:
        proxy.mode = mode
        if mode is Mode.RESET:
            proxy.reset()

    async def _close(self) -> None:
        for proxy in self._proxies.values():
            await proxy.__aexit__(None, None, None)
