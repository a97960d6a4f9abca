"""What a test sees of OpenTelemetry: spans and metrics in memory, and a trace as text."""

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from postroom.integrations.otel import Telemetry


class Recorded:
    """An SDK with lists as exporters."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader])

    def telemetry(self, **options: Any) -> Telemetry:
        """Make a telemetry that reports here."""
        return Telemetry(tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, **options)

    def spans(self, operation: str = "") -> list[ReadableSpan]:
        """Return the spans that ended, or those of one operation, in the order of their start."""
        found = [span for span in self._exporter.get_finished_spans() if span.name.startswith(operation)]
        return sorted(found, key=lambda span: span.start_time or 0)

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """Return, for each instrument, attributes and value; of a histogram the count and the sum."""
        data = self._reader.get_metrics_data()
        found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = found.setdefault(metric.name, [])
                    for point in metric.data.data_points:
                        each: Any = point
                        value = (each.count, each.sum) if hasattr(each, "bucket_counts") else each.value
                        points.append((dict(point.attributes or {}), value))
        return found

    def value(self, name: str, **labels: str) -> Any:
        """Return the value of an instrument with these labels; their dots are written as two underscores."""
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        [found] = [value for attributes, value in self.metrics()[name] if wanted.items() <= attributes.items()]
        return found


def drawn(spans: Sequence[ReadableSpan]) -> str:
    """Draw spans as text: children indented, links named by what they lead to."""
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    lines: list[str] = []

    def draw(span: ReadableSpan, depth: int) -> None:
        links = ", ".join(by_id[link.context.span_id].name for link in span.links if link.context.span_id in by_id)
        shown = " ".join(f"{name.rpartition('.')[2]}={(span.attributes or {})[name]!s}" for name in _shown(span))
        line = f"{'  ' * depth}{span.name} ({span.kind.name.lower()}) {shown}".rstrip()
        lines.append(f"{line}{f'  -> linked to {links}' if links else ''}")
        for child in spans:
            if child.parent is not None and span.context is not None and child.parent.span_id == span.context.span_id:
                draw(child, depth + 1)

    for span in spans:
        if span.parent is None or span.parent.span_id not in by_id:
            draw(span, 0)
    return "\n".join(lines)


def _shown(span: ReadableSpan) -> list[str]:
    wanted = ("postroom.tenant", "postroom.attempt", "postroom.settlement", "error.type")
    return [name for name in wanted if name in (span.attributes or {})]
