"""Spans of an attempt, made from times that are known, and sent in batches."""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from functools import lru_cache
from typing import NamedTuple

from hatoba.v1 import job_pb2, worker_pb2

MOST = 1000
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Parent(NamedTuple):
    """The span that an attempt's own spans stand below; `flags` as two hex digits."""

    trace_id: str
    span_id: str
    flags: str

    @property
    def sampled(self) -> bool:
        """Whether spans are wanted at all."""
        return bool(int(self.flags, 16) & 1)


@lru_cache(maxsize=MOST)
def parent_of(traceparent: str) -> Parent | None:
    """Read a W3C trace context; None when there is none to speak of."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return None
    return Parent(*match.groups())


def span_id(attempt: str, name: str) -> str:
    """The id of an attempt's span, known before it is made and after a restart: 16 hex digits."""
    return hashlib.blake2b(f"{attempt} {name}".encode(), digest_size=8).hexdigest()


def exec_context(attempt: str, traceparent: str) -> str:
    """The trace context for the user's code, whose spans stand below `job.exec`."""
    parent = parent_of(traceparent)
    if parent is None:
        return ""
    return f"00-{parent.trace_id}-{span_id(attempt, 'job.exec')}-{parent.flags}"


class Spans:
    """Keeps what was made until it is taken; the oldest of more than 1,000 are dropped."""

    def __init__(self, program: str = "hatoba-worker") -> None:
        self._kept: deque[job_pb2.Span] = deque(maxlen=MOST)
        self._process = f"{program}/{os.getpid()}"

    def add(
        self,
        launch: worker_pb2.LaunchAttempt,
        name: str,
        times: tuple[int, int],
        error: str = "",
        attributes: dict[str, str] | None = None,
    ) -> None:
        """Make a span of an attempt from begin to end, in Unix nanoseconds, if it is sampled."""
        parent = parent_of(launch.traceparent)
        if parent is None or not parent.sampled:
            return
        self._kept.append(
            job_pb2.Span(
                trace_id=parent.trace_id,
                span_id=span_id(launch.attempt, name),
                parent_span_id=parent.span_id,
                name=name,
                kind="internal",
                start_unix_nanos=times[0],
                end_unix_nanos=times[1],
                error=error[:1024],
                attributes={
                    "job": launch.job,
                    "attempt": launch.attempt,
                    **(attributes or {}),
                },
                process=self._process,
            )
        )

    def take(self) -> worker_pb2.WorkerItem | None:
        """Everything made since the last time, as one item."""
        if not self._kept:
            return None
        batch = worker_pb2.SpanBatch(spans=self._kept)
        self._kept.clear()
        return worker_pb2.WorkerItem(spans=batch)
