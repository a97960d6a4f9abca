"""The consumer: what a user declares, starts and stops."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, cast

from typing_extensions import TypeVar

from postroom.consumer import lifecycle
from postroom.consumer.context import MessageContext
from postroom.consumer.settings import Middleware, OnError, Settings
from postroom.consumer.statistics import ConsumerStatistics
from postroom.consumer.tenants import Tenants
from postroom.errors import ConfigurationError, NotOpenError
from postroom.events import Observer, Observers
from postroom.message import Message
from postroom.options import Concurrency, Faults, Polling, RetryPolicy, Shutdown, Visibility
from postroom.payloads import Decoder, context_from_attributes, decoder_for, payload_type_of
from postroom.resources import ResourcePool
from postroom.transports.protocol import Client
from postroom.types import AckMode, C, P, R, StopReason

Outcome = TypeVar("Outcome", bound="Awaitable[None] | None")

_UNSET: Any = object()


class Consumer(Generic[C, R]):
    """Consumes one queue: resolves each message's context, leases its resources, calls the handler, settles it.

    (In the terms of other frameworks: the listener container.)

    Args:
        queue: name, URL or ARN.
        context: whose message it is: a function ``(Message) -> context``, sync or async, or a class (a frozen
            dataclass, Struct or NamedTuple) that is filled from the message attributes by name. The context is the
            key of the resources, so it is hashable. None: handlers get ``ctx.context = None``.
        resources: what is leased for a context: an async context manager function ``(context) -> resources``, or an
            async function plus ``cleanup=``; then the consumer opens and closes the pool. Or a ``ResourcePool`` that
            you entered; then you close it. None: handlers get ``ctx.resources = None``.
        cleanup: closes what an async function passed as ``resources`` returned.
        payload: the payload type; by default the annotation of the handler's first parameter.
        ack: when a message is acknowledged.
        concurrency: how many handlers run at once, in all and per tenant.
        polling: how messages are asked for.
        visibility: how long a received message stays ours, and whether a heartbeat extends that.
        retry: when a failed message is seen again.
        shutdown: how long each stage of a stop may take.
        faults: when a tenant counts as broken, and when a message counts as poison.
        on_error: called with a ``Failure`` when a step fails. It may raise ``Retry`` or ``Reject`` to decide what
            becomes of the message; anything else that it raises is logged, and the message is treated as failed.
        middleware: called around the handler, the first outermost.
        observers: told of events, synchronously.
        client: where the queue is; by default one AWS client, shared by all consumers of the event loop.

    Raises:
        ConfigurationError: an argument cannot work. Nothing is opened before ``async with`` or ``run``.

    A consumer can be started again after it stopped.
    """

    def __init__(
        self,
        queue: str,
        *,
        context: Callable[[Message], C | Awaitable[C]] | type[C] | None = None,
        resources: Callable[[C], AbstractAsyncContextManager[R]]
        | Callable[[C], Awaitable[R]]
        | ResourcePool[C, R]
        | None = None,
        cleanup: Callable[[R], Awaitable[object]] | None = None,
        payload: Any = _UNSET,
        ack: AckMode = AckMode.ON_SUCCESS,
        concurrency: Concurrency = Concurrency(),  # noqa: B008 - frozen
        polling: Polling = Polling(),  # noqa: B008
        visibility: Visibility = Visibility(),  # noqa: B008
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008
        shutdown: Shutdown = Shutdown(),  # noqa: B008
        faults: Faults = Faults(),  # noqa: B008
        on_error: OnError | None = None,
        middleware: Iterable[Middleware] = (),
        observers: Iterable[Observer] = (),
        client: Client | None = None,
    ) -> None:
        _check_queue(queue)
        _check_resources(context, resources, cleanup)
        self._settings: Settings[C, R] = Settings(
            queue=queue,
            resolver=_resolver(context),
            resources=resources,
            cleanup=cleanup,
            payload=payload,
            ack=AckMode(ack),
            concurrency=_checked("concurrency", concurrency, Concurrency),
            polling=_checked("polling", polling, Polling),
            visibility=_checked("visibility", visibility, Visibility),
            retry=_checked("retry", retry, RetryPolicy),
            shutdown=_checked("shutdown", shutdown, Shutdown),
            faults=_checked("faults", faults, Faults),
            on_error=on_error,
            middleware=tuple(middleware),
            observers=Observers(observers),
            client=client,
        )
        self.tenants = Tenants()
        """Control of single tenants: pause, resume, drain, quarantine, limit, and a look at each."""
        self._handler: Callable[..., Any] | None = None
        self._decode: Decoder | None = None
        self._run: lifecycle.Run[C, R] | None = None
        self._last_run: lifecycle.Run[C, R] | None = None

    @property
    def queue(self) -> str:
        """The queue, as it was named."""
        return self._settings.queue

    @property
    def running(self) -> bool:
        """Whether the consumer is started and not stopped."""
        return self._run is not None

    @property
    def pool(self) -> ResourcePool[C, R] | None:
        """The pool that resources are leased from; None without ``resources=``, or before an own one is made."""
        if self._last_run is not None:
            return self._last_run.pool
        resources = self._settings.resources
        return cast("ResourcePool[C, R]", resources) if isinstance(resources, ResourcePool) else None

    def handler(
        self, function: Callable[[P, MessageContext[C, R]], Outcome]
    ) -> Callable[[P, MessageContext[C, R]], Outcome]:
        """Register the handler, and return it unchanged. Use it as a decorator.

        An ``async def`` runs in the event loop; a plain ``def`` in a thread, of which there are
        ``Concurrency.threads``. An object with ``__call__`` is as good as a function.

        Raises:
            ConfigurationError: there is a handler already, or the payload type cannot be decoded.
        """
        if self._handler is not None:
            text = f"the consumer of {self.queue!r} has a handler already; one consumer calls one handler"
            raise ConfigurationError(text)
        wanted = self._settings.payload
        self._decode = decoder_for(payload_type_of(function) if wanted is _UNSET else wanted)
        self._handler = function
        return function

    async def __aenter__(self) -> Self:
        """Open client, queue and pool, and start to poll.

        Raises:
            ConfigurationError: no handler is registered.
            TransportError: the queue cannot be opened; ``QueueNotFound`` and ``AccessDenied`` say what to check.
            PostroomError: it is running already.
        """
        if self._handler is None or self._decode is None:
            text = f"the consumer of {self.queue!r} has no handler; register one with @consumer.handler"
            raise ConfigurationError(text)
        if self._run is not None:
            text = f"the consumer of {self.queue!r} is running already"
            raise ConfigurationError(text)
        self._run = self._last_run = await lifecycle.start(self._settings, self._handler, self._decode, self.tenants)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop in order, and return when nothing of the consumer runs any more; see ``Shutdown`` for the budgets.

        If the caller is cancelled meanwhile, handlers are cancelled at once, the stop is finished all the same, and
        the cancellation goes on. Raises what ended the poller or the heartbeat, if that is why it stopped.
        """
        run = self._opened()
        stopping = asyncio.create_task(run.stop(), name=f"postroom-stop-{self.queue}")
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            run.request_stop(StopReason.REQUESTED, now=True)
            await asyncio.wait([stopping])
            raise
        finally:
            self._run = None
        if run.fatal is not None and error is None:
            raise run.fatal

    async def run(self) -> None:
        """Start, consume until :meth:`stop` is called, and stop in order."""
        async with self:
            await self.wait_for_stop()

    async def wait_for_stop(self) -> None:
        """Return when somebody called :meth:`stop`, or when the poller or the heartbeat died."""
        await self._opened().stop_requested()

    def stop(self, *, now: bool = False, reason: StopReason = StopReason.REQUESTED) -> None:
        """Ask for a stop; :meth:`run` and ``async with`` then carry it out. Safe to call again, and from a handler.

        Args:
            now: cancel running handlers without waiting for them to finish.
            reason: for the log and for observers.

        From another thread, call it with ``loop.call_soon_threadsafe``. Does nothing when it is not running.
        """
        if self._run is not None:
            self._run.request_stop(reason, now=now)

    def statistics(self) -> ConsumerStatistics:
        """Return a snapshot of this run, or of the last one. Raises ``NotOpenError`` when there was none."""
        if self._last_run is None:
            return self._opened().statistics()
        return self._last_run.statistics()

    def _opened(self) -> lifecycle.Run[C, R]:
        if self._run is None:
            text = f"the consumer of {self.queue!r} is not running; write: async with consumer: ..."
            raise NotOpenError(text)
        return self._run

    def __repr__(self) -> str:
        return f"<Consumer of {self.queue!r}, {'running' if self.running else 'not running'}>"


def _resolver(
    context: Callable[[Message], C | Awaitable[C]] | type[C] | None,
) -> Callable[[Message], C | Awaitable[C]] | None:
    if isinstance(context, type):
        return context_from_attributes(cast("type[C]", context))
    return context


def _check_queue(queue: object) -> None:
    if not isinstance(queue, str) or not queue.strip():
        text = f"Consumer(queue) takes the name, URL or ARN of a queue; got {queue!r}"
        raise ConfigurationError(text)


def _check_resources(context: object, resources: object, cleanup: object) -> None:
    if resources is not None and context is None:
        text = "Consumer(resources=...) needs context=...: resources are leased for a context"
        raise ConfigurationError(text)
    if context is not None and not callable(context):
        text = f"Consumer(context=...) takes a function (Message) -> context or a class; got {context!r}"
        raise ConfigurationError(text)
    if resources is not None and not isinstance(resources, ResourcePool) and not callable(resources):
        text = f"Consumer(resources=...) takes a provider function or a ResourcePool; got {resources!r}"
        raise ConfigurationError(text)
    if cleanup is not None and (resources is None or isinstance(resources, ResourcePool)):
        text = "Consumer(cleanup=...) goes with resources=<async function>; a ResourcePool has its own cleanup="
        raise ConfigurationError(text)


T = TypeVar("T")


def _checked(name: str, value: T, kind: type[T]) -> T:
    if not isinstance(value, kind):
        text = f"Consumer({name}=...) takes {kind.__name__}(...); got {value!r}"
        raise ConfigurationError(text)
    return value
