"""One request on its way through the router, and everything that is told of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import NamedTuple, Protocol

from hatoba.sampling import RateSampler
from hatoba_worker.router.replies import Refusal
from hatoba_worker.router.table import Choice, Route
from hatoba_worker.spans import parent_of

CLIENT_GONE = 499
SERVER_FAULT = 500


class Trace(NamedTuple):
    """Where a request stands: its trace, the router's span, the span of the call to a replica, and
    the caller's span (empty: none). Ids in hex."""

    trace_id: str
    span_id: str
    call_id: str
    parent_id: str
    sampled: bool

    @property
    def of_router(self) -> str:
        """W3C context below which the caller may go on."""
        return f"00-{self.trace_id}-{self.span_id}-{self._flags}"

    @property
    def of_call(self) -> str:
        """W3C context for the replica."""
        return f"00-{self.trace_id}-{self.call_id}-{self._flags}"

    @property
    def _flags(self) -> str:
        return "01" if self.sampled else "00"


class Tracer:
    """Continues a caller's trace or begins one; `sampler` decides which are kept."""

    def __init__(self, rng: Random, sampler: RateSampler) -> None:
        self._bits = rng.getrandbits
        self._sampler = sampler

    def begin(self, traceparent: str | None) -> Trace:
        """A caller's wish to be kept counts within our own rate only."""
        parent = parent_of(traceparent) if traceparent else None
        trace_id = parent.trace_id if parent else f"{self._bits(128) or 1:032x}"
        wanted = parent is None or parent.sampled
        return Trace(
            trace_id,
            f"{self._bits(64) or 1:016x}",
            f"{self._bits(64) or 1:016x}",
            parent.span_id if parent else "",
            wanted and self._sampler.keep(trace_id),
        )


class Body(NamedTuple):
    """Bytes that went through whole."""

    data: bytes
    media_type: str


@dataclass(slots=True)
class Visit:
    """What is known of a request; times in nanoseconds since 1970, 0: not there yet.

    `fault` says what a replica did wrong. `asked` and `answered` are there when they were small
    enough to pass whole.
    """

    method: str
    path: str
    trace: Trace
    began: int
    ended: int = 0
    call_began: int = 0
    principal: str = ""
    route: Route | None = None
    choice: Choice | None = None
    status: int = 0
    kind: str = ""
    fault: str = ""
    received: int = 0
    sent: int = 0
    uploaded: bool = False
    asked: Body | None = None
    answered: Body | None = None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended - self.began) / 1e9

    def refuse(self, refusal: Refusal) -> None:
        """It got no prediction."""
        self.status = refusal.status
        self.kind = refusal.kind
        if self.choice is not None and refusal.status >= SERVER_FAULT:
            self.fault = refusal.message

    def headers(self) -> dict[str, str]:
        """What every reply carries."""
        told = {"hatoba-trace-id": self.trace.trace_id, "traceparent": self.trace.of_router}
        if self.choice is not None:
            told["hatoba-model"] = self.choice.target.model
        return told

    def line(self) -> str:
        """For the access log; neither bodies nor tokens nor what stands behind a `?`."""
        told = {
            "time": datetime.fromtimestamp(self.began / 1e9, UTC).isoformat(
                timespec="milliseconds"
            ),
            "method": self.method,
            "path": self.path[:256],
            "status": self.status,
            "ms": round(self.seconds * 1e3, 2),
            "principal": self.principal,
            "received": self.received,
            "sent": self.sent,
            "trace": self.trace.trace_id,
        }
        if self.route is not None:
            told["deployment"] = self.route.deployment
        if self.choice is not None:
            told["revision"] = self.choice.target.revision
            told["model"] = self.choice.target.model
            told["replica"] = self.choice.replica.name
        if self.kind:
            told["kind"] = self.kind
        return json.dumps(told, ensure_ascii=False)


class Listener(Protocol):
    """Who is told of visits that are over; returns at once and never raises."""

    def __call__(self, visit: Visit) -> None:
        """Take note of it."""


class Visits:
    """Begins visits and tells of their ends."""

    def __init__(
        self, tracer: Tracer, listeners: tuple[Listener, ...], clock_ns: Callable[[], int]
    ) -> None:
        self._tracer = tracer
        self._listeners = listeners
        self.clock_ns = clock_ns

    def begin(self, method: str, path: str, traceparent: str | None) -> Visit:
        """Somebody came."""
        return Visit(method, path, self._tracer.begin(traceparent), self.clock_ns())

    def end(self, visit: Visit) -> None:
        """It is over."""
        visit.ended = self.clock_ns()
        for listener in self._listeners:
            listener(visit)
