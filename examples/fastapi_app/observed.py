"""The service with its telemetry: JSON logs, traces in memory, and pages that show both to a person.

``uvicorn --factory examples.fastapi_app.observed:create_app``

In production the spans go to a collector (``OTLPSpanExporter`` instead of the list), and the page ``/traces`` is left
out. ``/metrics`` is what Prometheus scrapes.
"""

import logging
import sys
from collections.abc import Sequence

from examples.fastapi_app import main
from fastapi import FastAPI, Response
from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from postroom.integrations.logs import JsonFormatter, MessageFields

ATTRIBUTES = ("http.response.status_code", "postroom.tenant", "postroom.attempt", "postroom.settlement", "error.type")
"""What is shown of a span."""
FRAMEWORK = "fastapi."
"""FastAPI's own inner spans, which are left out here."""


def create_app() -> FastAPI:
    """Set OpenTelemetry's SDK and the log up, then make the application."""
    spans = InMemorySpanExporter()
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(traces)
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    log_json()
    app = main.create_app()  # FastAPI makes the spans of requests itself

    @app.get("/traces")
    async def show_traces(most: int = 30) -> Response:
        return Response(drawn(spans.get_finished_spans()[:most]), media_type="text/plain")

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


def log_json() -> None:
    """Write one JSON object per line to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(MessageFields())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def drawn(spans: Sequence[ReadableSpan]) -> str:
    """Draw traces as text: a span below its parent, and a handler below the span that sent its message."""
    shown = [span for span in spans if not span.name.startswith(FRAMEWORK)]
    ordered = sorted(shown, key=lambda span: span.start_time or 0)
    known = {span.context.span_id for span in ordered if span.context is not None}
    parents = {_id(span): span.parent.span_id for span in spans if span.parent is not None}
    above = {_id(span): _above(span, known, parents) for span in ordered}
    lines: list[str] = []

    def draw(parent: int | None, depth: int) -> None:
        for span in ordered:
            if above[_id(span)] == parent:
                linked = "linked: " if span.parent is None and parent is not None else ""
                lines.append(f"{'  ' * depth}{linked}{_text(span)}")
                draw(_id(span), depth + 1)

    draw(None, 0)
    return "\n".join(lines) + "\n"


def _above(span: ReadableSpan, known: set[int], parents: dict[int, int]) -> int | None:
    """Return the nearest span that is shown: among the parents, else the one that a root is linked to."""
    near = span.parent.span_id if span.parent is not None else next((link.context.span_id for link in span.links), None)
    while near is not None and near not in known:
        near = parents.get(near)
    return near


def _id(span: ReadableSpan) -> int:
    return span.context.span_id if span.context is not None else 0


def _text(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    shown = [f"{name.rpartition('.')[2]}={attributes[name]!s}" for name in ATTRIBUTES if name in attributes]
    milliseconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
    return " ".join([f"{span.name} ({span.kind.name.lower()})", *shown, f"{milliseconds:.0f} ms"])
