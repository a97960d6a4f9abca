"""Spans of messages: one for each handler run, with what it waited for and what became of it."""

from collections.abc import Mapping
from contextvars import Token
from time import time_ns
from typing import Final

import msgspec
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from postroom.display import display_key
from postroom.errors import AlreadyHandled, ContextError, Drop, PayloadError
from postroom.events import HandlerFinished, HandlerStarted, MessageFailed, MessageSettled
from postroom.integrations.otel import names
from postroom.integrations.otel.propagation import extract
from postroom.message import Message
from postroom.redaction import describe, describe_at_length

_MOST_OPEN: Final = 200_000
"""Settlements that are waited for; more than a queue may have in flight."""


class _Open(msgspec.Struct):
    """A handler that runs, and its span."""

    span: Span
    token: Token[Context]
    settled: bool = False
    """Whether its message was settled meanwhile: by the handler itself, or because it was lost."""


class _Done(msgspec.Struct, frozen=True):
    """A handler that ended, and is not settled yet."""

    context: SpanContext
    at: int


class Spans:
    """Makes the spans of messages from the events of their consumers.

    Args:
        tracer: makes spans.
        parent: whether the producer's span is the parent, and not a link.
        settle: whether settlements have spans.
    """

    def __init__(self, tracer: Tracer, *, parent: bool, settle: bool) -> None:
        self._tracer = tracer
        self._parent = parent
        self._settle = settle
        # By identity: two consumers of one process may have the same message, and each has an object of its own.
        self._open: dict[int, _Open] = {}
        self._done: dict[int, _Done] = {}

    def started(self, event: HandlerStarted) -> None:
        """Start the span of a handler, and make it the current one of the handler's task."""
        attributes = self._attributes(event.message, event.tenant, event.attempt)
        attributes[names.WAITED] = event.waited
        sent = extract(event.message, event.attributes)
        span = self._process(event.message, attributes, sent)
        # As a child it has the producer's baggage, too. A new trace has none: anyone can write it.
        context = trace.set_span_in_context(span, sent if self._parent else None)
        if event.leasing > 0:
            self._leased(event, context)
        self._open[id(event.message)] = _Open(span, otel_context.attach(context))

    def finished(self, event: HandlerFinished) -> None:
        """End the span of a handler."""
        opened = self._open.pop(id(event.message), None)
        if opened is None:
            return
        # Before the span ends: what ends it must not find itself as the current span.
        otel_context.detach(opened.token)
        if event.error is not None:
            note_failure(opened.span, event.error)
        opened.span.end()
        if self._settle and not opened.settled and len(self._done) < _MOST_OPEN:
            self._done[id(event.message)] = _Done(opened.span.get_span_context(), time_ns())

    def failed(self, event: MessageFailed) -> None:
        """Make a span for a message that never reached its handler, through a fault of its own."""
        if isinstance(event.error, ContextError | PayloadError):
            attributes = self._attributes(event.message, event.tenant, event.attempt)
            span = self._process(event.message, attributes, extract(event.message, event.attributes))
            note_failure(span, event.error)
            span.end()

    def settled(self, event: MessageSettled) -> None:
        """Make the span of a settlement, from the end of the handler on."""
        if not self._settle:
            return
        queue, now = event.message.queue, time_ns()
        done = self._done.pop(id(event.message), None)
        if done is not None:
            context, start = done.context, done.at
        elif (opened := self._open.get(id(event.message))) is not None:  # by the handler itself
            # Noted, so that the end of the handler does not wait for a second settlement.
            context, start, opened.settled = opened.span.get_span_context(), now, True
        else:
            return
        attributes = {**self._of(queue, names.SETTLE, names.SETTLE), names.SETTLEMENT: event.settlement.value}
        attributes[names.MESSAGE_ID] = event.message.id
        parent = trace.set_span_in_context(trace.NonRecordingSpan(context), Context())
        self._tracer.start_span(
            f"{names.SETTLE} {queue}", parent, SpanKind.CLIENT, attributes=attributes, start_time=start
        ).end(now)

    def _process(self, message: Message, attributes: Mapping[str, AttributeValue], sent: Context) -> Span:
        # A link by default: one trace for a producer that sends a million messages could not be
        # read.
        producer = trace.get_current_span(sent).get_span_context()
        name = f"{names.PROCESS} {message.queue}"
        if self._parent and producer.is_valid:
            return self._tracer.start_span(name, sent, SpanKind.CONSUMER, attributes=attributes)
        links = [Link(producer)] if producer.is_valid else None
        return self._tracer.start_span(name, Context(), SpanKind.CONSUMER, attributes=attributes, links=links)

    def _leased(self, event: HandlerStarted, parent: Context) -> None:
        """Make a span of what is over: the wait for resources came before the handler."""
        now = time_ns()
        attributes: dict[str, AttributeValue] = {names.TENANT: display_key(event.tenant)}
        start = now - int(event.leasing * 1e9)
        self._tracer.start_span(
            f"{names.LEASE} {event.message.queue}", parent, SpanKind.INTERNAL, attributes=attributes, start_time=start
        ).end(now)

    def _attributes(self, message: Message, tenant: object, attempt: int) -> dict[str, AttributeValue]:
        """Return the attributes that samplers may want to see, so from the start of the span."""
        attributes = dict(self._of(message.queue, names.PROCESS, names.PROCESS))
        attributes[names.MESSAGE_ID] = message.id
        attributes[names.ATTEMPT] = attempt
        attributes[names.RECEIVES] = message.receive_count
        if tenant is not None:
            attributes[names.TENANT] = display_key(tenant)
        return attributes

    def _of(self, queue: str, operation: str, kind: str) -> dict[str, AttributeValue]:
        return {
            names.SYSTEM: names.SQS,
            names.OPERATION_NAME: operation,
            names.OPERATION_TYPE: kind,
            names.DESTINATION: queue,
        }


def is_failure(error: BaseException | None) -> bool:
    """Return whether a handler's end is a failure: not if it returned, dropped a message, or had handled it before."""
    return error is not None and not isinstance(error, Drop | AlreadyHandled)


def note_failure(span: Span, error: BaseException) -> None:
    """Say on a span how it failed, without the secrets that an error may show."""
    if not span.is_recording():
        return
    kind = type(error).__name__
    if not is_failure(error):
        span.set_attribute(names.SETTLEMENT, kind)
        return
    span.set_attribute(names.ERROR_TYPE, kind)
    shown = describe(error)
    span.add_event(
        "exception",
        {
            names.EXCEPTION_TYPE: kind,
            names.EXCEPTION_MESSAGE: shown,
            names.EXCEPTION_STACKTRACE: describe_at_length(error),
        },
    )
    span.set_status(StatusCode.ERROR, shown)
