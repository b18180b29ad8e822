"""Sends finished spans to an OTLP collector; imported only when one is configured."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanContext as OtelContext
from opentelemetry.trace import SpanKind, Status, StatusCode, TraceFlags

from hatoba_scheduler.telemetry.tracing import FinishedSpan

# 300 jobs/s of 12 spans each overflow the SDK's defaults (2,048 spans, sent every 5 s).
QUEUE_SPANS = 16_384
BATCH_SPANS = 1_024
DELAY_MS = 1_000
TIMEOUT_MS = 10_000
FLUSH_SECONDS = 3.0

_KINDS: Mapping[str, SpanKind] = MappingProxyType({kind.name.lower(): kind for kind in SpanKind})


class OtlpSink:
    """A span sink that batches in a thread of its own and drops what a slow collector leaves."""

    def __init__(self, exporter: SpanExporter, resource: Mapping[str, str]) -> None:
        self._resource = Resource(dict(resource))
        self._exporter = exporter
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE_SPANS,
            max_export_batch_size=BATCH_SPANS,
            schedule_delay_millis=DELAY_MS,
            export_timeout_millis=TIMEOUT_MS,
        )

    def __call__(self, span: FinishedSpan) -> None:
        """Queue one span."""
        self._processor.on_end(self._readable(span))

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send what is queued, for so long at most; blocks, so call it off the event loop."""
        # The SDK alone would retry a collector that is away for its whole time-out.
        give_up = threading.Timer(seconds, self._exporter.shutdown)
        give_up.start()
        try:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
        finally:
            give_up.cancel()

    def _readable(self, span: FinishedSpan) -> ReadableSpan:
        context = _context(span.context.trace_id, span.context.span_id)
        parent = _context(span.context.trace_id, span.parent_id) if span.parent_id else None
        return ReadableSpan(
            name=span.name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS.get(span.kind, SpanKind.INTERNAL),
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=span.start_ns,
            end_time=span.end_ns,
        )


def open_sink(endpoint: str, version: str, cluster_id: str) -> OtlpSink:
    """A sink for `http://HOST:PORT` (plaintext) or `https://HOST:PORT`."""
    resource = {
        "service.name": "hatoba-server",
        "service.version": version,
        "hatoba.cluster.id": cluster_id,
    }
    return OtlpSink(OTLPSpanExporter(endpoint=endpoint), resource)


def _context(trace_id: str, span_id: str) -> OtelContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return OtelContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags)
