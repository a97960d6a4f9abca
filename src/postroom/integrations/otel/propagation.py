"""Trace context on its way through SQS: into the attributes of a message, and out of them."""

import logging
from collections.abc import Mapping, MutableMapping
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context

from postroom.log_fields import Log, Step, about
from postroom.message import Attributes, Message
from postroom.redaction import log_error

_log = Log("postroom.telemetry", Step.OBSERVER)

MOST_ATTRIBUTES: Final = 10
"""Message attributes that SQS takes (sqs-message-metadata.html)."""
_FIRST: Final = ("traceparent", "b3", "uber-trace-id", "X-Amzn-Trace-Id", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled")
"""Fields that carry the trace itself, which go before all others, such as tracestate and baggage."""
_TRACE_HEADER: Final = "AWSTraceHeader"


def inject(carrier: MutableMapping[str, str], *, most: int = MOST_ATTRIBUTES) -> None:
    """Write the present trace context into a mapping, by the global propagator, as far as there is room for it.

    It is what ``trace=`` of a sender takes. With attributes of your own in the mapping, what does not fit into ten is
    left out: baggage and tracestate first, the trace itself last. A field that is there already stays. It never
    raises: a trace is no reason not to send.

    Args:
        carrier: attributes by name.
        most: how many there may be in the end.
    """
    try:
        found: dict[str, str] = {}
        propagate.inject(found)
    except Exception as error:
        log_error(_log, logging.DEBUG, "The trace context could not be written", error=error)
        return
    for name in sorted(found, key=_rank):
        if name in carrier:
            continue
        if len(carrier) >= most:
            return
        if found[name]:  # SQS refuses an empty value
            carrier[name] = found[name]


def _rank(name: str) -> tuple[int, str]:
    if name in _FIRST:
        return _FIRST.index(name), name
    return len(_FIRST) + (name == "baggage") + 2 * (name == "tracestate"), name


def extract(message: Message, inside: Attributes | None = None) -> Context:
    """Return the context in which a message was sent; an empty one where it tells of none. Never raises.

    By the global propagator from its attributes, else from those that stood in its envelope; else the trace that AWS
    wrote into its ``AWSTraceHeader``.
    """
    context = _propagated(message.attributes, message)
    if not _has_trace(context) and inside is not None:
        found = _propagated(inside, message)
        context = found if _has_trace(found) else context
    if _has_trace(context):
        return context
    header = message.system_attributes.get(_TRACE_HEADER)
    sent = None if header is None else xray_context(header)
    return context if sent is None else trace.set_span_in_context(trace.NonRecordingSpan(sent), context)


def _propagated(attributes: Attributes, message: Message) -> Context:
    try:
        if not propagate.get_global_textmap().fields.isdisjoint(attributes):
            return propagate.extract(dict(attributes), Context())
    except Exception as error:  # of a propagator that trips over what anyone may write into an attribute
        text, extra = "The trace context of message %s could not be read", about(message_id=message.id)
        log_error(_log, logging.DEBUG, text, message.id, error=error, extra=extra)
    return Context()


def _has_trace(context: Context) -> bool:
    return trace.get_current_span(context).get_span_context().is_valid


def xray_context(header: str) -> trace.SpanContext | None:
    """Read ``Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1``; None if it is not one."""
    parts: Mapping[str, str] = dict(part.strip().split("=", 1) for part in header.split(";") if "=" in part)
    version, _, identity = parts.get("Root", "").partition("-")
    digits, parent = identity.replace("-", ""), parts.get("Parent", "")
    if version != "1" or len(digits) != 32 or len(parent) != 16:
        return None
    try:
        trace_id, span_id = int(digits, 16), int(parent, 16)
    except ValueError:
        return None
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parts.get("Sampled") == "1" else trace.TraceFlags.DEFAULT)
    context = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
    return context if context.is_valid else None
