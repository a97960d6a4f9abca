"""One message through the whole path of a consumer, in this process, and what became of it."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec

from postroom.checking import check_text
from postroom.consumer import CallNext, Consumer, ConsumerStatistics, MessageContext
from postroom.consumer.settings import Settings
from postroom.errors import ConfigurationError, ContextError, InvalidRequest
from postroom.events import Event, HandlerFinished, MessageFailed, MessageSettled, Observers
from postroom.local import LocalBroker
from postroom.local.errors import BrokerError
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.options import check_count, check_seconds
from postroom.payloads import AttributeResolver
from postroom.payloads.encoding import encode_payload
from postroom.transports.memory import MemoryClient
from postroom.transports.protocol import EntryFailure, Queue
from postroom.types import C, R, Settlement

_UNSET: Any = object()
_LOOK: Final = 0.02
"""Seconds between two looks at whether anything still happens to the message."""
_QUIET: Final = 3
"""Looks in a row at which nothing did, after which it counts as waiting."""
_DEAD_LETTERS: Final = "dead-letters-of-deliver"
_MOST_RECEIVES: Final = 1000
"""SQS allows no larger ``maxReceiveCount``."""
_ANY_QUEUE: Final = "queue"
"""The queue of a message to a consumer that asks a function for its queues."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a message. Made by ``deliver``."""

    settlement: Settlement
    """What was done with it. ``RETURNED``: it still waited, for its tenant's resources or for a paused tenant."""
    handled: bool
    """Whether the handler was called."""
    attempt: int
    """Which attempt it was, the first one being 1."""
    error: BaseException | None
    """What the handler, or a step before it, raised; None when nothing failed. Also ``Drop``, ``Reject``, ``Retry``."""
    delay: float
    """Seconds until the message is visible again, where it is."""
    reason: str | None
    """Why it is a dead letter: its ``postroom.reason``; None when it is none."""
    message: Message
    """The message, as the consumer received it."""
    context: Any
    """What the resolver made of it; None when neither middleware nor handler was called."""


async def deliver(
    consumer: Consumer[C, R],
    payload: Any,
    *,
    context: C = _UNSET,
    resources: Any = _UNSET,
    attributes: Mapping[str, str] = {},
    group: str | None = None,
    receives: int = 1,
    max_receives: int | None = 10,
    timeout: float = 60.0,
    queue: str | None = None,
) -> Delivered:
    """Send one message to a consumer in this process, wait until it is settled, and return what became of it.

        def test_an_order_is_recorded() -> None:
            database = FakeDatabase()
            sent = deliver(orders, OrderCreated("order-1"), context=Tenant("acme"), resources=database)
            assert run_virtual(sent).settlement is Settlement.ACKED

    The message takes the whole path: resolver, decoder, lease, middleware, handler, ``on_error``, settlement. It goes
    through a queue of the memory transport, so no network is needed, and it runs in real and in virtual time. The
    consumer itself is not started; its settings are used as they are, its ``client=`` is not.

    A message that cannot run is not waited for: it is returned. Where its resources cannot be opened, ``error`` says
    why; where its tenant is paused, nothing has failed, and ``error`` is None.

    Args:
        consumer: with its handlers registered. It must not be running.
        payload: text is sent as it is, an ``OutgoingMessage`` too; anything else as a ``Sender`` sends it, as JSON.
        context: the tenant of the message. It is written into the message attributes where the consumer reads its
            context from them by a class; otherwise it takes the resolver's place. Left out: the resolver reads
            ``attributes``.
        resources: what the handler gets as ``ctx.resources``, instead of what the consumer would lease.
        attributes: further String attributes of the message.
        group: its message group. A FIFO queue needs one; there it is ``"1"`` by default.
        receives: how often it has been received, this time included.
        max_receives: ``maxReceiveCount`` of the queue, which has a dead-letter queue; None for one without.
        timeout: seconds that it may take.
        queue: the name of the queue that it comes from: ``ctx.queue``. By default the consumer's, or the first one
            of a list.

    Raises:
        ConfigurationError: an argument cannot work; the text says what to write.
        TimeoutError: it was not settled in time.
    """
    _check(consumer, receives, max_receives)
    _check_more(attributes, group, timeout)
    if consumer.settings.resources is None:
        resources = _refuse_resources(resources)
    settings = dataclasses.replace(consumer.settings, queue=_queue_of(consumer.settings, queue), queues=None)
    message = _outgoing(settings, payload, context, attributes, group)
    async with _queues(settings, max_receives) as (client, opened, dead_letters):
        await _send(opened, message, receives)
        watch = _Watch()
        moved = dataclasses.replace(settings, client=client, queue=opened.info.name)
        async with consumer.twin(_watched(moved, watch, context, resources)) as running:
            try:
                await watch.end(running, timeout)
            except BaseException:
                running.stop(now=True)  # there is nothing to wait for any longer
                raise
        return watch.result(await dead_letters.receive(limit=1, wait=0, visibility=0))


def _check(consumer: object, receives: object, max_receives: object) -> None:
    if not isinstance(consumer, Consumer):
        text = f"deliver(consumer, payload): the first argument is a Consumer; got {type(consumer).__name__}"
        raise ConfigurationError(text)
    if consumer.running:
        text = f"deliver() takes a consumer that is not running: {consumer!r} is; send the message to its queue instead"
        raise ConfigurationError(text)
    check_count("deliver", "receives", receives)
    if max_receives is not None:
        check_count("deliver", "max_receives", max_receives, most=_MOST_RECEIVES)
    if isinstance(max_receives, int) and isinstance(receives, int) and receives > max_receives:
        text = f"deliver(receives={receives}) is more than max_receives={max_receives} allows: it is a dead letter then"
        raise ConfigurationError(text)


def _check_more(attributes: object, group: object, timeout: object) -> None:
    if not isinstance(attributes, Mapping) or not all(
        isinstance(each, str) and each
        for item in cast("Mapping[object, object]", attributes).items()
        for each in item  # names and values
    ):
        raise ConfigurationError('deliver(attributes=...) takes texts by name: write attributes={"tenantId": "acme"}')
    if group is not None:
        check_text("deliver(group=...)", group, 'group="order-7"')
    check_seconds("deliver", "timeout", timeout, least=0.001)


def _refuse_resources(given: Any) -> Any:
    if given is not _UNSET and given is not None:
        text = "deliver(resources=...): this consumer has no resources=, so that no handler of it gets any"
        raise ConfigurationError(text)
    return _UNSET


# -- the message and its queue ----------------------------------------------------------------------------------------


def _outgoing(
    settings: Settings[Any, Any], payload: Any, context: Any, attributes: Mapping[str, str], group: str | None
) -> OutgoingMessage:
    message = payload if isinstance(payload, OutgoingMessage) else OutgoingMessage(body=encode_payload(payload))
    named = dict(attributes)
    if context is not _UNSET and settings.resolver is None:
        text = "deliver(context=...): this consumer has no context=, so that no message of it has one"
        raise ConfigurationError(text)
    if context is not _UNSET and (reader := _reader(settings)) is not None:
        named = {**_written(reader, context), **named}
    made = {name: MessageAttribute(string_value=value) for name, value in named.items()}
    # A delay is over by the time at which a message is received.
    changes: dict[str, Any] = {"message_attributes": {**message.message_attributes, **made}, "delay": None}
    if group is not None:
        changes["group_id"] = group
    if _is_fifo(settings.queue):
        changes["group_id"] = group or message.group_id or "1"
        changes["deduplication_id"] = message.deduplication_id or "1"
    return msgspec.structs.replace(message, **changes)


def _written(reader: AttributeResolver[Any], context: Any) -> dict[str, str]:
    try:
        return reader.write(context)
    except ContextError as error:
        text = f"no message can carry this {type(context).__name__} as its context: {error}"
        raise ConfigurationError(text) from error


def _reader(settings: Settings[Any, Any]) -> AttributeResolver[Any] | None:
    """Return what reads the context from the attributes alone: for that, a context can be written into them."""
    resolver: Any = settings.resolver
    if not isinstance(resolver, AttributeResolver):
        return None
    resolver = cast("AttributeResolver[Any]", resolver)
    return resolver if resolver.unwraps is None and settings.unwrap is None else None


def _queue_of(settings: Settings[Any, Any], named: str | None) -> str:
    given: object = named
    if given is not None and not (isinstance(given, str) and given.strip()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"deliver(queue=...) takes the name of a queue; got {given!r}")
    if named is not None or settings.queues is None:
        return settings.queue if named is None else named
    listed = settings.queues.which
    return _ANY_QUEUE if callable(listed) else next(iter(listed))


def _is_fifo(queue: str) -> bool:
    return queue.endswith(".fifo")


@asynccontextmanager
async def _queues(
    settings: Settings[Any, Any], max_receives: int | None
) -> AsyncGenerator[tuple[MemoryClient, Queue, Queue]]:
    """Make the consumer's queue, and one for its dead letters, for the time of the block."""
    name = re.split(r"[:/]", settings.queue)[-1]
    fifo = {"FifoQueue": "true"} if _is_fifo(name) else {}
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        dead = broker.create_queue(_DEAD_LETTERS + (".fifo" if fifo else ""), fifo)
        policy = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": str(max_receives)}
        redrive = {} if max_receives is None else {"RedrivePolicy": msgspec.json.encode(policy).decode()}
        try:
            broker.create_queue(name, {**fifo, **redrive})
        except BrokerError as error:
            text = f"no queue can be called {settings.queue!r}: pass deliver(queue=...) with another name ({error})"
            raise ConfigurationError(text) from error
        yield client, await client.queue(name), await client.queue(dead.name)


async def _send(queue: Queue, message: OutgoingMessage, receives: int) -> None:
    try:
        [sent] = await queue.send([message])
    except InvalidRequest as error:
        raise ConfigurationError(f"deliver(): SQS would not take this message: {error}") from error
    if isinstance(sent, EntryFailure):
        text = f"deliver(): SQS would not take this message: {sent.code}: {sent.text}"
        raise ConfigurationError(text)
    for _ in range(receives - 1):
        await queue.receive(limit=1, wait=0, visibility=0)


def _watched(settings: Settings[C, R], watch: "_Watch", context: Any, resources: Any) -> Settings[C, R]:
    """Return the settings with which one message is delivered: those of the consumer, and watched."""

    def same_context(_message: Message) -> C:
        return cast("C", context)

    def same_resources(_context: C) -> AbstractAsyncContextManager[R]:
        return nullcontext(resources)

    changed = dataclasses.replace(
        settings,
        middleware=(watch.begin, *settings.middleware, watch.handle),
        observers=Observers((watch.observe, *settings.observers)),
    )
    if context is not _UNSET and _reader(settings) is None:
        changed = dataclasses.replace(changed, resolver=same_context)
    if resources is not _UNSET:
        changed = dataclasses.replace(changed, resources=same_resources, cleanup=msgspec.UNSET)
    return changed


# -- what becomes of it -----------------------------------------------------------------------------------------------


class _Watch:
    """Notes what becomes of the one message."""

    def __init__(self) -> None:
        self._settled = asyncio.Event()
        self._settlement: MessageSettled | None = None
        self._error: BaseException | None = None
        self._ctx: MessageContext[Any, Any] | None = None
        self._handled = False

    async def begin(self, payload: Any, ctx: MessageContext[Any, Any], call_next: CallNext) -> None:
        """Note that everything before the middleware went well: the outermost middleware."""
        self._ctx = ctx
        await call_next(payload, ctx)

    async def handle(self, payload: Any, ctx: MessageContext[Any, Any], call_next: CallNext) -> None:
        """Note that the handler is called: the innermost middleware, since others may keep a message from it."""
        self._handled = True
        await call_next(payload, ctx)

    def observe(self, event: Event) -> None:
        """Note a failure, and the end."""
        match event:
            case HandlerFinished(error=error) | MessageFailed(error=error) if error is not None:
                self._error = error
            case MessageSettled() if self._settlement is None:
                self._settlement = event
                self._settled.set()
            case _:
                pass

    async def end(self, consumer: Consumer[Any, Any], timeout: float) -> None:
        """Return when the message is settled, when the consumer ends, or when nothing happens to the message."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        settled, stopped = loop.create_task(self._settled.wait()), loop.create_task(consumer.wait_for_stop())
        quiet = 0
        try:
            while quiet < _QUIET:
                left = min(_LOOK, deadline - loop.time())
                done, _ = await asyncio.wait({settled, stopped}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return
                quiet = quiet + 1 if _only_waits(consumer.statistics()) else 0
                if loop.time() >= deadline:
                    text = f"deliver(timeout={timeout:g}): the message was not settled in time, {_where(consumer)}"
                    raise TimeoutError(text)
        finally:
            settled.cancel()
            stopped.cancel()
            await asyncio.wait({settled, stopped})

    def result(self, dead_letters: list[Message]) -> Delivered:
        """Return what became of it."""
        assert self._settlement is not None  # noqa: S101 - a stop settles all that was received
        event, ctx = self._settlement, self._ctx
        reason = dead_letters[0].attributes.get("postroom.reason") if dead_letters else None
        return Delivered(
            settlement=event.settlement,
            handled=self._handled,
            attempt=event.message.receive_count if ctx is None else ctx.attempt,
            error=self._error,
            delay=event.delay,
            reason=reason,
            message=event.message,
            context=None if ctx is None else ctx.context,
        )


def _only_waits(now: ConsumerStatistics) -> bool:
    return now.waiting > 0 and not now.running and not now.suspended


def _where(consumer: Consumer[Any, Any]) -> str:
    now = consumer.statistics()
    if now.running:
        return "its handler still runs"
    if now.suspended:
        return "its resources are still being opened"
    return "its context is not resolved yet" if now.received else "it was not received"
