"""Spans: small records made when something ends, never held open across the outside world.

A span's id can be allocated long before the span is emitted (`Tracer.child`), so that an attempt's
span survives a restart: whoever sees its end emits it from stored times. Sinks get finished spans:
the kept-trace store always, an OTLP exporter when one is configured.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from hatoba.sampling import RateSampler
from hatoba.v1 import job_pb2

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED = 0x01
_MAX_TEXT = 1_024

INTERNAL = "internal"
SERVER = "server"
CLIENT = "client"


class SpanContext(NamedTuple):
    """Where a span stands: its trace (32 hex digits), its own id (16), and whether it is kept."""

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The W3C header that makes what follows a child of this span."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(header: str | None) -> SpanContext | None:
    """A W3C traceparent, or None if it breaks the specification in any way."""
    match = _TRACEPARENT.fullmatch(header) if header else None
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest):
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return SpanContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


class FinishedSpan(NamedTuple):
    """A span that has ended; times in nanoseconds since 1970, `error` empty when all went well."""

    context: SpanContext
    parent_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    error: str
    attributes: Mapping[str, str]
    process: str

    def to_message(self) -> job_pb2.Span:
        """As the API shows it, with over-long texts cut."""
        return job_pb2.Span(
            trace_id=self.context.trace_id,
            span_id=self.context.span_id,
            parent_span_id=self.parent_id,
            name=self.name[:256],
            kind=self.kind,
            start_unix_nanos=self.start_ns,
            end_unix_nanos=self.end_ns,
            error=self.error[:_MAX_TEXT],
            attributes={key[:128]: value[:_MAX_TEXT] for key, value in self.attributes.items()},
            process=self.process,
        )


SpanSink = Callable[[FinishedSpan], None]
"""Takes finished spans; must return at once and never raise."""


class Tracer:
    """Makes spans for one process, named `SERVICE/PID`."""

    def __init__(
        self,
        sinks: Sequence[SpanSink] = (),
        *,
        service: str = "hatoba-server",
        sampler: RateSampler | None = None,
        rng: Random | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._sinks = tuple(sinks)
        self._process = f"{service}/{os.getpid()}"
        self._sampler = sampler or RateSampler()
        self._bits = (rng or Random()).getrandbits
        self.clock_ns = clock_ns

    def root(self, *, sampled: bool | None = None) -> SpanContext:
        """A new trace; kept as the sampler decides, unless the caller says."""
        trace_id = f"{self._bits(128) or 1:032x}"
        keep = self._sampler.keep(trace_id) if sampled is None else sampled
        return SpanContext(trace_id, f"{self._bits(64) or 1:016x}", keep)

    def child(self, parent: SpanContext) -> SpanContext:
        """An id for a span below `parent`, to be emitted whenever it ends."""
        return SpanContext(parent.trace_id, f"{self._bits(64) or 1:016x}", parent.sampled)

    def accept(self, remote: SpanContext) -> SpanContext:
        """A child of a span of a caller, whose wish to be kept counts within our own rate only."""
        keep = remote.sampled and self._sampler.keep(remote.trace_id)
        return SpanContext(remote.trace_id, f"{self._bits(64) or 1:016x}", keep)

    def emit(
        self,
        context: SpanContext,
        name: str,
        *,
        start_ns: int,
        parent_id: str = "",
        end_ns: int = 0,
        kind: str = INTERNAL,
        error: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Hand over a span that has ended (`end_ns` 0: now). Nothing happens if it is not kept."""
        if not context.sampled:
            return
        end_ns = end_ns or self.clock_ns()
        span = FinishedSpan(
            context, parent_id, name, kind, start_ns, end_ns, error, attributes or {}, self._process
        )
        for sink in self._sinks:
            sink(span)

    def span(
        self,
        name: str,
        parent: SpanContext,
        kind: str = INTERNAL,
        attributes: Mapping[str, str] | None = None,
    ) -> ActiveSpan:
        """A span around a `with` block that waits for nobody outside; an exception marks it."""
        return ActiveSpan(self, name, parent, kind, dict(attributes or {}))


class ActiveSpan:
    """See Tracer.span; `attributes` may be added to until the block ends."""

    __slots__ = ("_kind", "_name", "_parent", "_start_ns", "_tracer", "attributes", "context")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        parent: SpanContext,
        kind: str,
        attributes: dict[str, str],
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._parent = parent
        self._kind = kind
        self._start_ns = tracer.clock_ns()
        self.attributes = attributes
        self.context = tracer.child(parent)

    def __enter__(self) -> ActiveSpan:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._tracer.emit(
            self.context,
            self._name,
            start_ns=self._start_ns,
            parent_id=self._parent.span_id,
            kind=self._kind,
            error="" if error is None else type(error).__name__,
            attributes=self.attributes,
        )
