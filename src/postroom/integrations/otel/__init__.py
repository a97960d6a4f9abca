"""OpenTelemetry: traces and metrics of consumers, with ``opentelemetry-api`` alone (``pip install postroom[otel]``).

    telemetry = Telemetry()
    orders = Consumer("orders", context=Tenant, observers=[telemetry])

The SDK, its exporters and its sampling are the application's: postroom only calls the API.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from time import perf_counter
from typing import Any, Literal

from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import SpanKind, TracerProvider, get_tracer

from postroom.checking import check_flag, shown
from postroom.errors import ConfigurationError
from postroom.events import (
    ConsumerStarted,
    ConsumerStopped,
    Event,
    HandlerFinished,
    HandlerStarted,
    MessageFailed,
    MessageSettled,
    PollFailed,
    PollFinished,
    ResourceOpened,
)
from postroom.integrations.otel import names
from postroom.integrations.otel.metrics import Metrics
from postroom.integrations.otel.propagation import inject
from postroom.integrations.otel.spans import Spans, note_failure
from postroom.integrations.otel.tenants import TopTenants

__all__ = ["Telemetry", "TopTenants", "inject"]


class Telemetry:
    """Traces and metrics of consumers: an observer, one for all consumers of a process.

    Pass it as ``observers=[telemetry]`` to each consumer, and to a ``ResourcePool`` that has none of them. A consumer
    without it pays nothing.

    Args:
        producer: how the span of a handler refers to the span in which its message was sent. ``"link"``: as the
            conventions want it, each handler run is a trace of its own with a link. ``"parent"``: it continues the
            producer's trace, and takes over its baggage; a retried message then has several spans in one trace.
        settle_spans: whether the delete of a message, or its return, has a span of its own: from the end of the handler
            until SQS has confirmed it. It doubles the number of spans.
        tenants: metrics of the busiest tenants: ``TopTenants(20)``. By default no metric names a tenant, because each
            name is a time series. Spans always do.
        tracer_provider: by default the global one.
        meter_provider: by default the global one.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        *,
        producer: Literal["link", "parent"] = "link",
        settle_spans: bool = False,
        tenants: TopTenants | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        given: tuple[Any, Any] = (producer, tenants)
        if given[0] not in ("link", "parent"):
            raise ConfigurationError(f'Telemetry(producer=...) takes "link" or "parent"; got {producer!r}')
        if given[1] is not None and not isinstance(given[1], TopTenants):
            raise ConfigurationError(f"Telemetry(tenants=...) takes TopTenants(20), or None; got {tenants!r}")
        check_flag("Telemetry(settle_spans=...)", settle_spans)
        for name, provider, makes in (
            ("tracer_provider", tracer_provider, "get_tracer"),
            ("meter_provider", meter_provider, "get_meter"),
        ):
            if provider is not None and not hasattr(provider, makes):
                raise ConfigurationError(
                    f"Telemetry({name}=...) takes a provider of OpenTelemetry; got {shown(provider)}"
                )
        release = version("postroom")
        self._tracer = get_tracer(names.SCOPE, release, tracer_provider, names.SCHEMA_URL)
        meter = get_meter(names.SCOPE, release, meter_provider, names.SCHEMA_URL)
        self._spans = Spans(self._tracer, parent=producer == "parent", settle=settle_spans)
        self._metrics = Metrics(meter, tenants)
        self._takes: dict[type[Event], Callable[[Any], None]] = {
            HandlerStarted: self._started,
            HandlerFinished: self._finished,
            MessageSettled: self._spans.settled,
            MessageFailed: self._spans.failed,
            PollFinished: self._metrics.polled,
            PollFailed: self._metrics.poll_failed,
            ResourceOpened: self._metrics.opened,
            ConsumerStarted: self._metrics.began,
            ConsumerStopped: self._metrics.ended,
        }

    def __call__(self, event: Event) -> None:
        """Take an event of a consumer or a pool."""
        if (take := self._takes.get(type(event))) is not None:
            take(event)

    def _started(self, event: HandlerStarted) -> None:
        self._metrics.started(event)
        self._spans.started(event)  # last: its context is that of the handler

    def _finished(self, event: HandlerFinished) -> None:
        self._spans.finished(event)
        self._metrics.finished(event)

    @contextmanager
    def sending(self, queue: str, *, count: int = 1) -> Generator[None]:
        """Send messages within this block: it is a span, which their trace context refers to, and is counted.

            with telemetry.sending("orders"):
                await sender.send(order, context=tenant)  # a Sender(..., trace=inject)

        Args:
            queue: the name of the queue.
            count: how many messages are sent.
        """
        attributes: dict[str, Any] = {
            names.SYSTEM: names.SQS,
            names.OPERATION_NAME: names.SEND,
            names.OPERATION_TYPE: names.SEND,
            names.DESTINATION: queue,
        }
        if count != 1:
            attributes[names.BATCH_COUNT] = count
        began, error = perf_counter(), None
        with self._tracer.start_as_current_span(
            f"{names.SEND} {queue}",
            kind=SpanKind.PRODUCER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as raised:
                error = raised
                note_failure(span, raised)
                raise
            finally:
                self._metrics.sent(queue, count, perf_counter() - began, error)
