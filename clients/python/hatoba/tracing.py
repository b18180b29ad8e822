"""The client's own part of a trace: W3C context out, spans kept until they are pushed."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from hatoba.v1 import job_pb2

TRACEPARENT = re.compile(r"^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$")
MAX_KEPT = 1000
MAX_ERROR = 1024


@dataclass(frozen=True)
class SpanContext:
    """The ids of one span: 32 and 16 hex digits."""

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        """The W3C header, sampled."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def parse_traceparent(text: str) -> SpanContext | None:
    """The context in a header; None for anything that the specification does not allow."""
    match = TRACEPARENT.match(text)
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return None
    return SpanContext(match[1], match[2])


@dataclass
class Tracer:
    """Makes spans and keeps the ended ones, the oldest dropped first, until `take` is called."""

    process: str = field(default_factory=lambda: f"{_program()}/{os.getpid()}")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    _ended: deque[job_pb2.Span] = field(default_factory=lambda: deque(maxlen=MAX_KEPT))
    _current: ContextVar[SpanContext | None] = field(
        default_factory=lambda: ContextVar("hatoba_span", default=None)
    )

    @property
    def current(self) -> SpanContext | None:
        """The span that is open here, or the one this process was started in; None outside a
        trace.
        """
        return self._current.get() or parse_traceparent(self.environ.get("TRACEPARENT", ""))

    @property
    def inside(self) -> bool:
        """Whether a span of this process is open here."""
        return self._current.get() is not None

    @contextmanager
    def span(self, name: str, kind: str = "internal", **attributes: str) -> Iterator[SpanContext]:
        """Time a block as a span below the current one, or as the root of a new trace."""
        parent = self.current
        context = SpanContext(
            parent.trace_id if parent else secrets.token_hex(16), secrets.token_hex(8)
        )
        token = self._current.set(context)
        began, error = time.time_ns(), ""
        try:
            yield context
        except BaseException as raised:
            error = (str(raised) or type(raised).__name__)[:MAX_ERROR]
            raise
        finally:
            self._current.reset(token)
            span = job_pb2.Span(name=name, kind=kind, start_unix_nanos=began, attributes=attributes)
            span.trace_id, span.span_id = context.trace_id, context.span_id
            span.parent_span_id = parent.span_id if parent else ""
            span.end_unix_nanos, span.error, span.process = time.time_ns(), error, self.process
            self._ended.append(span)

    def take(self) -> list[job_pb2.Span]:
        """The ended spans, which are forgotten here."""
        taken = list(self._ended)
        self._ended.clear()
        return taken


def _program() -> str:
    """`hatoba-cli` for the command, `hatoba-client` in somebody's program."""
    return (
        "hatoba-cli"
        if os.path.basename(sys.argv[0] or "") in {"hatoba", "__main__.py"}
        else "hatoba-client"
    )
