"""The local server in a thread of its own, for code that has no event loop: scripts, and tests with boto3."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from postroom.checking import check_function, check_kind
from postroom.errors import ConfigurationError, NotOpenError
from postroom.local.inprocess import LocalBroker
from postroom.local.server import LocalServer

T = TypeVar("T")


class ThreadedServer:
    """SQS over HTTP on this machine, for the time of a ``with``.

        with ThreadedServer() as server:
            client = boto3.client("sqs", **server.client_options)
            url = server.create_queue("orders")

    Args:
        broker: makes the broker, within the thread: ``lambda: LocalBroker(seed=1)``.
        port: the port; 0 takes a free one.

    Raises:
        ConfigurationError: ``broker`` is no such function. Entering it: it is open already, or the broker is open in
            another event loop.
    """

    def __init__(self, broker: Callable[[], LocalBroker] = LocalBroker, *, port: int = 0) -> None:
        given: Any = broker
        if isinstance(given, LocalBroker):
            text = "ThreadedServer(broker) takes a function that makes the broker in the server's own thread"
            raise ConfigurationError(f"{text}: write ThreadedServer(lambda: LocalBroker(seed=1)); got a LocalBroker")
        check_function("ThreadedServer(broker)", "() -> LocalBroker", broker, arguments=0)
        self._broker = broker
        self._port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._server: LocalServer | None = None

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise ConfigurationError("this ThreadedServer is open already: make one for each `with`")
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="postroom-local", daemon=True)
        try:
            self._thread.start()
            started.result()
        except BaseException:
            started.cancel()  # where the wait was interrupted: then it ends as soon as it has started
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the server failed, and its loop is closed
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        self._thread = self._server = self._loop = self._stop = None

    def _run(self, started: "Future[None]") -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:
            # The server ran and then failed: no caller waits here, so the thread's own traceback has to tell.
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        broker = self._broker()
        check_kind("ThreadedServer(broker)", broker, LocalBroker, "ThreadedServer(lambda: LocalBroker(seed=1))")
        async with LocalServer(broker, port=self._port) as server:
            self._server = server
            if started.set_running_or_notify_cancel():
                started.set_result(None)
                await self._stop.wait()

    @property
    def server(self) -> LocalServer:
        """The server, which lives in the other thread."""
        if self._server is None:
            raise NotOpenError("this ThreadedServer is not open: write `with ThreadedServer() as server:`")
        return self._server

    @property
    def endpoint_url(self) -> str:
        """The URL to give to clients."""
        return self.server.endpoint_url

    @property
    def client_options(self) -> dict[str, str]:
        """Keyword arguments for ``boto3.client("sqs", ...)``."""
        return self.server.client_options

    def call(self, function: Callable[[LocalBroker], T]) -> T:
        """Call a function with the broker in the broker's thread; return or raise what it does."""
        broker = self.server.broker
        if threading.current_thread() is self._thread:  # from within such a function: waiting here would never end
            return function(broker)
        assert self._loop is not None  # noqa: S101 - set before the server is

        async def run() -> T:
            return function(broker)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def create_queue(self, name: str, attributes: Mapping[str, str] | None = None) -> str:
        """Create a queue and return its URL."""
        queue = self.call(lambda broker: broker.create_queue(name, attributes))
        return self.queue_url(queue.name)

    def queue_url(self, name: str) -> str:
        """Return the URL of a queue of the server's own account, whether it exists or not."""
        return f"{self.endpoint_url}/{self.server.broker.scope.account}/{name}"

    def counts(self, name: str) -> tuple[int, int, int]:
        """Return how many messages of a queue are (available, in flight, delayed)."""
        attributes = self.call(lambda broker: broker.attributes(name))
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
            int(attributes["ApproximateNumberOfMessagesDelayed"]),
        )
