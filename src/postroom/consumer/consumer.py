"""The consumer: what a user declares, starts and stops."""

import asyncio
import copy
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, cast, overload

from msgspec import UNSET, UnsetType
from typing_extensions import TypeVar

from postroom.checking import listed
from postroom.consumer.arguments import (
    check_functions,
    check_resources,
    checked,
    checked_fleet,
    checked_invalid,
    checked_mode,
    checked_queues,
    per_call,
    resolver_of,
)
from postroom.consumer.batching import BatchContext, BatchHandler, check_batch, check_batch_function, element_type_of
from postroom.consumer.callables import check_handler, check_sync
from postroom.consumer.context import MessageContext
from postroom.consumer.health import Health, Phase, unstarted
from postroom.consumer.interrupts import second_interrupt
from postroom.consumer.lifecycle import Run
from postroom.consumer.queues import Listing, Queues
from postroom.consumer.routing import RouterDecoder, router_of, unrouted_failures
from postroom.consumer.settings import Middleware, OnError, Provider, Settings
from postroom.consumer.starting import start_run
from postroom.consumer.statistics import ConsumerStatistics
from postroom.consumer.tenant_keys import TenantKeys
from postroom.consumer.tenants import Tenants
from postroom.consumer.unwrapping import Step, Unwrapping
from postroom.errors import ConfigurationError, NotOpenError
from postroom.events import Event, Observer, Observers
from postroom.fleet import Fleet
from postroom.message import Message
from postroom.options import Concurrency, Faults, PerCall, Polling, RetryPolicy, Shutdown, Visibility
from postroom.payloads import Decoder, decoder_for, payload_type_of
from postroom.resources import ResourcePool
from postroom.tasks import Home, told_once
from postroom.transports.protocol import Client, Queue, check_client
from postroom.types import AckMode, C, OnInvalid, P, R, StopReason

Outcome = TypeVar("Outcome", bound="Awaitable[None] | None")


class Consumer(Generic[C, R]):
    """Consumes a queue: resolves each message's context, leases its resources, calls the handler, settles it.

    (In the terms of other frameworks: the listener container.)

    Args:
        queue: name, URL or ARN.
        queues: several queues in its place, which share slots, resources and tenants: a list, a mapping of queues to
            weights, a function that lists them as they are now, or ``Queues(...)``, which says more. ``ctx.queue``
            tells the handler where a message came from. FIFO and standard queues may be mixed.
        context: the tenant of a message: a function ``(Message) -> context``, sync or async, or a class (a frozen
            dataclass, Struct or NamedTuple) that is filled from the message attributes by name. The context is the
            key of the resources, so it is hashable. None: handlers get ``ctx.context = None``.
        resources: what is leased for a context: an async context manager function ``(context) -> resources``, or an
            async function plus ``cleanup=``; then the consumer opens and closes the pool. Or a ``ResourcePool`` that
            you entered; then you close it. None: handlers get ``ctx.resources = None``.
        cleanup: closes what an async function passed as ``resources`` returned; None where nothing is to be closed.
        unwrap: takes each message out of what it travels in, before its context and its payload are read: such as
            ``unwrap_sns``, or a list of them, the outermost first. ``ctx.message`` is the message as it was received.
        payload: the payload type; by default the annotation of the handler's first parameter.
        ack: when a message is acknowledged.
        invalid: what becomes of a message with a body that the handler did not ask for, where ``on_error`` does not
            decide: it fails and comes back, is dropped, or is rejected at once.
        concurrency: how many handlers run at once, in all and per tenant.
        polling: how messages are asked for.
        visibility: how long a received message stays ours, and whether a heartbeat extends that.
        retry: when a failed message is seen again.
        shutdown: how long a stop, and each stage of it, may take.
        faults: when a tenant counts as broken, and when a message counts as poison.
            ``visibility``, ``retry`` and ``faults`` may each be a function of a ``postroom.options.Call`` (tenant,
            message, attempt) that returns the options for that message. It is called in the event loop and must be
            quick; if it raises, the defaults apply to that message.
        on_error: called with a ``Failure`` when a step fails. It may raise ``Retry``, ``Reject`` or ``Drop`` to
            decide what becomes of the message; anything else that it raises is logged, and the message is treated as
            failed.
        middleware: called around the handler, the first outermost. One that is an async context manager is entered
            when the consumer starts, and left when it has stopped.
        observers: told of events, synchronously.
        client: where the queue is; by default one AWS client, shared by all consumers of the event loop.
        fleet: limits, pauses and outages that hold over all replicas that consume the queue; see ``postroom.fleet``.

    Raises:
        ConfigurationError: an argument cannot work. Nothing is opened before ``async with`` or ``run``.

    A consumer can be started again after it stopped.
    """

    def __init__(
        self,
        queue: str | UnsetType = UNSET,
        *,
        queues: Queues | Listing | Callable[[], Listing | Awaitable[Listing]] | None = None,
        context: Callable[[Message], C | Awaitable[C]] | type[C] | None = None,
        # One function type: of a union of two, mypy takes the context of a lambda for Any.
        resources: Callable[[C], AbstractAsyncContextManager[R] | Awaitable[R]] | ResourcePool[C, R] | None = None,
        cleanup: Callable[[R], Awaitable[object] | None] | UnsetType | None = UNSET,
        unwrap: Step | Iterable[Step] | None = None,
        payload: Any = UNSET,
        ack: AckMode = AckMode.ON_SUCCESS,
        invalid: OnInvalid = OnInvalid.FAIL,
        concurrency: Concurrency = Concurrency(),  # noqa: B008 - frozen
        polling: Polling = Polling(),  # noqa: B008
        visibility: PerCall[Visibility] = Visibility(),  # noqa: B008
        retry: PerCall[RetryPolicy] = RetryPolicy(),  # noqa: B008
        shutdown: Shutdown = Shutdown(),  # noqa: B008
        faults: PerCall[Faults] = Faults(),  # noqa: B008
        on_error: OnError | None = None,
        middleware: Iterable[Middleware] = (),
        observers: Iterable[Observer] = (),
        client: Client | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        middleware = listed("Consumer(middleware=...)", "middleware=[layer]", middleware)
        observers = listed("Consumer(observers=...)", "observers=[observer]", observers)
        several = checked_queues(queue, queues, fleet)
        check_resources(context, resources, cleanup)
        check_functions(on_error, middleware, observers)
        unwrapping = None if unwrap is None else Unwrapping(unwrap)
        if unwrapping is not None:
            unwrapping.check_resolver(context)
        observers = observers if unwrapping is None else (*observers, *unwrapping.observers)
        self._settings: Settings[C, R] = Settings(
            queue=several.title if several is not None else cast("str", queue),
            queues=several,
            resolver=resolver_of(context),
            resources=cast("Provider[C, R] | ResourcePool[C, R] | None", resources),
            cleanup=cleanup,
            unwrap=unwrapping,
            payload=payload,
            ack=checked_mode(ack),
            invalid=checked_invalid(invalid),
            concurrency=checked("concurrency", concurrency, Concurrency),
            polling=checked("polling", polling, Polling),
            visibility=per_call("visibility", visibility, Visibility),
            retry=per_call("retry", retry, RetryPolicy),
            shutdown=checked("shutdown", shutdown, Shutdown),
            faults=per_call("faults", faults, Faults),
            on_error=on_error,
            middleware=middleware,
            observers=Observers(observers),
            client=check_client("Consumer", client),
            fleet=checked_fleet(fleet, context),
        )
        self._keys = TenantKeys(context, resources)
        self._keys.check_numbers(self._settings.concurrency, fleet)
        self.tenants: Tenants = Tenants(shared=fleet is not None, keys=self._keys)
        """Control of single tenants: pause, resume, drain, quarantine, limit, and a look at each."""
        self._handler: Callable[..., Any] | None = None
        self._decode: Decoder | None = None
        self._run: Run[C, R] | None = None
        self._last_run: Run[C, R] | None = None
        self._start: _Start | None = None
        self._early_stop: _Stop | None = None
        self._home: Home | None = None

    @property
    def queue(self) -> str:
        """The queue, as it was named; of several, what they are called together."""
        return self._settings.queue

    @property
    def resolver(self) -> Callable[[Message], C | Awaitable[C]] | None:
        """What makes a context of a message; None without ``context=``."""
        return self._settings.resolver

    @property
    def opened_queue(self) -> Queue | None:
        """The queue as the transport opened it, in this run or the last one; None before the first start.

        Of several it is the first; ``opened_queues`` has all.
        """
        return next(iter(self.opened_queues), None)

    @property
    def opened_queues(self) -> tuple[Queue, ...]:
        """The queues as the transport opened them, in this run or the last one: those that it consumes now."""
        return () if self._last_run is None else self._last_run.queues

    @property
    def opened_client(self) -> Client | None:
        """The client that it receives with; None while it is stopped."""
        return None if self._run is None else self._run.client

    async def list_queues(self) -> tuple[str, ...]:
        """Return the names of its queues: the one that it was given, or those that are listed now.

        Raises what the function raises that lists them, or ``ConfigurationError`` for what it returns.
        """
        queues = self._settings.queues
        return (self.queue,) if queues is None else tuple(await queues.ask())

    @property
    def settings(self) -> Settings[C, R]:
        """The arguments that it was made with, checked; for tools that inspect a consumer."""
        return self._settings

    @property
    def handles(self) -> Callable[..., Any] | None:
        """The function that ``handler`` registered; None before."""
        return self._handler

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

    @overload
    def handler(
        self, function: Callable[[P, MessageContext[C, R]], Outcome]
    ) -> Callable[[P, MessageContext[C, R]], Outcome]: ...

    @overload
    def handler(
        self,
    ) -> Callable[[Callable[[P, MessageContext[C, R]], Outcome]], Callable[[P, MessageContext[C, R]], Outcome]]: ...

    def handler(self, function: Any = UNSET) -> Any:
        """Register the handler, and return it unchanged. Use it as a decorator, with or without parentheses.

        It is called as ``handler(payload, ctx)``. An ``async def`` runs in the event loop; a plain ``def`` in a
        thread, of which there are ``Concurrency.threads``, and what it returns is awaited in the event loop if it can
        be. An object with ``__call__`` is as good as a function. A ``Router`` is a handler for several
        kinds of messages.

        Raises:
            ConfigurationError: there is a handler already, the payload type cannot be decoded, it cannot be called
                with two arguments by position, or it is a generator function, which would never run.
        """
        if function is UNSET:
            return self.handler
        self._refuse_second_handler()
        check_handler(function)
        self._decode = self._decoder_of(function)
        self._handler = function
        return function

    def batch_handler(
        self, *, size: int = 8, wait: float = 1.0
    ) -> Callable[
        [Callable[[list[P], BatchContext[C, R]], Awaitable[None]]],
        Callable[[list[P], BatchContext[C, R]], Awaitable[None]],
    ]:
        """Register a handler for several messages of one tenant at a time. Use it as a decorator.

            @orders.batch_handler(size=50, wait=0.5)
            async def store(orders: list[Order], batch: BatchContext[Tenant, Database]) -> None: ...

        It is called with up to ``size`` payloads of one context, and not later than ``wait`` seconds after the first of
        them could run. Each message keeps its own slot, heartbeat and outcome: when the handler returns, all are
        acknowledged, but those of ``batch.fail(index, error)``; when it raises, all others have failed with that error.
        Middleware, ``handler_timeout`` and ``on_error`` are for each message by itself.

        Args:
            size: the most messages of a batch. Each takes a slot: ``Concurrency`` must have as many for one tenant.
            wait: seconds that the first message waits for others; 0 takes what can run in the same moment. A stop, or
                a pause of the tenant, hands over what there is, and so do messages that wait for the slots.

        Raises:
            ConfigurationError: there is a handler already, the numbers cannot work, or the function is not ``async``,
                or its first parameter is no ``list[...]``.
        """
        check_batch(size, wait, self._settings.concurrency, shared=self._settings.resolver is not None)

        def register(
            function: Callable[[list[P], BatchContext[C, R]], Awaitable[None]],
        ) -> Callable[[list[P], BatchContext[C, R]], Awaitable[None]]:
            self._refuse_second_handler()
            check_batch_function(function)
            wanted = self._settings.payload
            self._decode = self._decoder_for(element_type_of(function) if wanted is UNSET else wanted)
            self._handler = BatchHandler(function, size=size, wait=wait)
            return function

        return register

    def _refuse_second_handler(self) -> None:
        if self._handler is not None:
            text = (
                f"the consumer of {self.queue!r} has a handler already; for several kinds of messages register "
                "handlers with a Router, and that with consumer.handler(router)"
            )
            raise ConfigurationError(text)

    def _decoder_of(self, function: Any) -> Decoder:
        wanted = self._settings.payload
        if (router := router_of(function)) is None:
            return self._decoder_for(payload_type_of(function) if wanted is UNSET else wanted)
        if wanted is not UNSET:
            text = "Consumer(payload=...) is for one handler; say it of each: @router.handler(kind, payload=...)"
            raise ConfigurationError(text)
        if (on_error := self._settings.on_error) is not None:
            self._settings = dataclasses.replace(self._settings, on_error=unrouted_failures(on_error))
        return RouterDecoder(router)

    def _decoder_for(self, payload_type: Any) -> Decoder:
        decode = decoder_for(payload_type)
        if self._settings.unwrap is not None:
            self._settings.unwrap.check_decoder(decode)
        return decode

    def adjust(self, concurrency: Concurrency) -> None:
        """Change how many handlers run at once, also while the consumer runs. Call it in the event loop.

        Handlers that run are left alone: where there are more than allowed now, none is started until enough have
        ended. A later start has the new numbers too, and alone the new ``handler_timeout`` and ``resolver_timeout``.

        Raises:
            ConfigurationError: it is not a ``Concurrency``, leaves a batch handler too few slots for its size, or names
                what can be no tenant of this consumer.
        """
        concurrency = checked("concurrency", concurrency, Concurrency)
        self._keys.check_numbers(concurrency, self._settings.fleet)
        if isinstance(self._handler, BatchHandler):
            self._handler.check_slots(concurrency, shared=self._settings.resolver is not None)
        if self._run is not None:
            self._run.adjust(concurrency)
        self._settings = dataclasses.replace(self._settings, concurrency=concurrency)

    async def __aenter__(self) -> Self:
        """Open client, queue and pool, and start to poll.

        A start that fails or is cancelled closes what it opened; the consumer can then be started again.

        Raises:
            ConfigurationError: no handler is registered, or it is running or starting already.
            TransportError: the queue cannot be opened; ``QueueNotFound`` and ``AccessDenied`` say what to check.
        """
        await self._begin(_Start())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop in order, and return when nothing of the consumer runs; see ``Shutdown`` for the budgets.

        If the caller is cancelled meanwhile, however often, handlers are cancelled at once, the stop is finished all
        the same, and the cancellation goes on. Raises what ended the consumer, if that is why it stopped: also the
        ``SystemExit`` of a handler that called ``sys.exit``.
        """
        if self._run is None:
            return  # ended in the block, by `end`, which has said what ended it
        fatal = await self.end()
        if fatal is not None and error is None:
            raise fatal

    async def end(self) -> BaseException | None:
        """Stop in order, as ``async with`` does at its end, but return what ended the consumer and do not raise it.

        None when it was stopped by ``stop``, or by the end of the block.
        """
        run = self._opened()
        # In a task of its own: a caller that is cancelled must not leave messages and pools
        # half-way.
        if (stopping := run.stopping) is None:
            stopping = run.stopping = asyncio.create_task(captured(run.stop), name=f"postroom-stop-{self.queue}")
            # Also where it was cancelled with the whole program, as by a second Ctrl-C: a hung thread would hang that.
            stopping.add_done_callback(run.ended)
        cancelled: asyncio.CancelledError | None = None
        loop = asyncio.get_running_loop()
        with second_interrupt(lambda: loop.call_soon_threadsafe(run.hurry)):
            while not stopping.done():
                try:
                    with told_once():
                        await asyncio.wait([stopping])  # unlike an await, it does not cancel the stop with its caller
                except asyncio.CancelledError as cancellation:
                    cancelled = cancellation
                    run.request_stop(StopReason.REQUESTED, now=True)
        # Only now: `health` and `statistics` tell of a run that stops until it has stopped.
        if self._run is run:  # not started again by another caller, who waited for the same stop
            self._run = self._home = None
        if cancelled is not None:
            raise cancelled
        if (error := stopping.result()) is not None:
            raise error
        return run.fatal

    async def run(self) -> None:
        """Start, consume until ``stop`` is called, and stop in order.

        A stop that is asked for while it starts ends the start.
        """
        start = _Start(asyncio.current_task())
        await self._begin(start)
        if start.given_up:
            return
        try:
            await self.wait_for_stop()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        await self.__aexit__(None, None, None)

    async def wait_for_stop(self) -> None:
        """Return when ``stop`` was called, or when something ended the consumer."""
        await self._opened().stop_requested()

    def stop(self, *, now: bool = False, reason: StopReason = StopReason.REQUESTED) -> None:
        """Ask for a stop; ``run`` and ``async with`` then carry it out. Safe to call again, and from a handler.

        Args:
            now: cancel running handlers without waiting for them to finish.
            reason: for the log and for observers.

        Before the first start, and during a start, it is remembered: ``run`` then ends without consuming, and
        ``async with`` is asked to stop as soon as it is entered. After a run it does nothing. Any thread may call it,
        such as that of a plain ``def`` handler: then it takes effect with the next turn of the consumer's event loop.
        """
        if self._home is None:
            self._stop(reason, now)
        else:
            self._home.call(self._stop, reason, now)

    def _stop(self, reason: StopReason, now: bool) -> None:  # noqa: FBT001 - positional, for a turn of the loop
        if self._run is not None:
            self._run.request_stop(reason, now=now)
        # After a run there is nothing to stop, and remembering it would end the next start.
        elif self._start is not None or self._last_run is None:
            self._early_stop = _Stop(reason, now or (self._early_stop is not None and self._early_stop.now))
            if self._start is not None:
                self._start.give_up()

    def tell(self, event: Event) -> None:
        """Tell the observers of an event: what a tool beside the consumer has to say."""
        self._settings.observers.tell(event)

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        """Tell one more observer of events, from now on. Returns a function that ends that.

        Call both in the event loop. Unlike ``observers=`` it may come and go while the consumer runs; it is
        told nothing of the pool.
        """
        check_sync("Consumer.subscribe(...)", "(event)", observer)
        return self._settings.observers.add(observer)

    def twin(self, settings: Settings[C, R]) -> Self:
        """Return a consumer with the same handler and other settings, which has not run yet. For the testing kit.

        The decisions about single tenants, ``consumer.tenants``, are shared by both.
        """
        copied = copy.copy(self)
        copied.__dict__.update(_settings=settings, _run=None, _last_run=None, _start=None, _early_stop=None, _home=None)
        return copied

    def statistics(self) -> ConsumerStatistics:
        """Return a snapshot of this run, or of the last one. Raises ``NotOpenError`` when there was none."""
        if self._last_run is None:
            return self._opened().statistics()
        return self._last_run.statistics()

    def health(self) -> Health:
        """Return whether the consumer is alive and receives. Cheap, never raises; any thread may call it."""
        if self._start is not None or self._last_run is None:
            return unstarted(self.queue, Phase.NEW if self._start is None else Phase.STARTING)
        return self._last_run.health(stopped=self._run is None)

    async def _begin(self, start: "_Start") -> None:
        """Start, unless the start is given up because a stop is asked for."""
        if self._handler is None or self._decode is None:
            text = f"the consumer of {self.queue!r} has no handler; register one with @consumer.handler"
            raise ConfigurationError(text)
        if self._run is not None and self._run.is_abandoned():
            self._run.ended(None)
            self._run = None
        if self._run is not None or self._start is not None:
            text = f"the consumer of {self.queue!r} is {'running' if self._run is not None else 'starting'} already"
            raise ConfigurationError(text)
        if (router := router_of(self._handler)) is not None:
            # A handler that is registered later would be missing in the decoder of this run.
            router.start()
            if (unwrap := self._settings.unwrap) is not None:
                for route in router.routes:
                    unwrap.check_decoder(route.decode)
        self._start = start
        self._home = Home()
        try:
            # Before `async with start`: then nothing is opened that has to be closed again.
            if self._early_stop is not None:
                start.give_up()
            async with start:
                run = await start_run(self._settings, self._handler, self._decode, self.tenants)
                self._run = self._last_run = run
        finally:
            self._start = None
            self._home = None if self._run is None else self._home
            # Taken here, however the start ended: the next start must not be stopped by it.
            early, self._early_stop = self._early_stop, None
        if early is not None and self._run is not None:
            self._run.request_stop(early.reason, now=early.now)

    def _opened(self) -> Run[C, R]:
        if self._run is None:
            text = f"the consumer of {self.queue!r} is not running; write: async with consumer: ..."
            raise NotOpenError(text)
        return self._run

    def __repr__(self) -> str:
        return f"<Consumer of {self.queue!r}, {'running' if self.running else 'not running'}>"


async def captured(work: Callable[[], Awaitable[object]]) -> BaseException | None:
    """Return what some work raises. A SystemExit that leaves a task would tear the event loop down under all others."""
    try:
        await work()
    except BaseException as error:
        return error
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _Stop:
    """A stop that was asked for before there was a run."""

    reason: StopReason
    now: bool


class _Start:
    """One start under way, and how to give it up. Without a task it cannot be given up.

    Giving up cancels the task that starts, and takes the cancellation back where the start ends, as ``asyncio.timeout``
    does; a cancellation by others goes on.
    """

    def __init__(self, task: "asyncio.Task[Any] | None" = None) -> None:
        self._task = task
        self._asked = False
        self._under_way = False
        self._before = 0
        self.given_up = False
        """Whether it ended without a run."""

    def give_up(self) -> None:
        """End the start, or do not begin it."""
        if self._task is not None and not self._asked:
            self._asked = True
            if self._under_way:
                self._task.cancel()

    async def __aenter__(self) -> None:
        if self._task is not None:
            # What others had asked for before this start is theirs, and must survive `uncancel`
            # below.
            self._before = self._task.cancelling()
            self._under_way = True
            if self._asked:
                self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> bool:
        task, self._under_way = self._task, False
        if task is None or not self._asked:
            return False
        if kind is None:  # it was done in the same instant: take in the cancellation before it hits something else
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if task.uncancel() > self._before:  # others cancelled it too: let that hit what comes next
                    task.cancel()
                    task.uncancel()
            return False
        self.given_up = task.uncancel() <= self._before and issubclass(kind, asyncio.CancelledError)
        return self.given_up
