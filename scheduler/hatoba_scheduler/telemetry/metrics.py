"""Figures about the server itself, for Prometheus; labels are bounded, never a job's name."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# The buckets that the RPC conventions ask for, in seconds.
SHORT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
LAG_INTERVAL_SECONDS = 1.0
LAG_WARNING_SECONDS = 0.1

_log = structlog.get_logger("hatoba.metrics")


class ServerMetrics:
    """The server's own registry. Others add their metrics to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._durations = Histogram(
            "rpc_server_call_duration_seconds",
            "Time from a call's arrival to its end.",
            ("rpc_method", "rpc_response_status_code"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._active = Gauge(
            "rpc_server_active_calls",
            "Calls and streams that have not ended.",
            ("rpc_method",),
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "hatoba_loop_lag_seconds",
            "How late the event loop woke up, as last measured.",
            registry=self.registry,
        )
        self.errors = Counter(
            "hatoba_internal_errors",
            "Calls that ended with INTERNAL.",
            registry=self.registry,
        )
        self.planner_rounds = Histogram(
            "hatoba_planner_round_seconds",
            "Time that a round of planning took, its slices together.",
            buckets=SHORT_BUCKETS,
            registry=self.registry,
        )
        self.commits = Histogram(
            "hatoba_store_commit_seconds",
            "Time from a transaction's begin to its commit.",
            buckets=SHORT_BUCKETS,
            registry=self.registry,
        )
        self.last_lag = 0.0
        self._snapshots: list[_Snapshot] = []
        self._observers: dict[tuple[str, str], Callable[[float], None]] = {}
        self._gauges: dict[str, Gauge] = {}

    def started(self, method: str) -> None:
        """A call of `method` (without leading slash) began."""
        gauge = self._gauges.get(method)
        if gauge is None:
            gauge = self._gauges[method] = self._active.labels(method)
        gauge.inc()

    def ended(self, method: str, code: str, seconds: float) -> None:
        """A call that had `started` ended with the status named `code`."""
        self._gauges[method].dec()
        self.refused(method, code, seconds)

    def refused(self, method: str, code: str, seconds: float = 0.0) -> None:
        """A call ended before it started."""
        observe = self._observers.get((method, code))
        if observe is None:
            observe = self._observers[method, code] = self._durations.labels(method, code).observe
        observe(seconds)

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Show a figure that somebody else counts; `read` is called from another thread."""
        Gauge(name, description, registry=self.registry).set_function(read)

    def show(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Show what `read` finds; it is called on the loop, before each page is written."""
        snapshot = _Snapshot(read)
        self._snapshots.append(snapshot)
        self.registry.register(snapshot)

    def refresh(self) -> None:
        """Read anew what is shown; on the loop."""
        for snapshot in self._snapshots:
            snapshot.refresh()

    def lagged(self, seconds: float) -> None:
        """The loop woke up so late."""
        self.last_lag = seconds
        self.loop_lag.set(seconds)


class _Snapshot(Collector):
    """What was read on the loop, to be written by another thread."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read
        self._found: Sequence[Metric] = ()

    def refresh(self) -> None:
        self._found = list(self._read())

    def collect(self) -> Iterable[Metric]:
        return self._found


async def watch_loop_lag(
    metrics: ServerMetrics,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Measure, until cancelled, how late the loop wakes up; runs as a task of the server's."""
    while True:
        before = monotonic()
        await sleep(LAG_INTERVAL_SECONDS)
        lag = max(0.0, monotonic() - before - LAG_INTERVAL_SECONDS)
        metrics.lagged(lag)
        if lag >= LAG_WARNING_SECONDS:
            _log.warning("event loop late", lag_seconds=round(lag, 3))


def metrics_app(
    metrics: ServerMetrics, authorize: Callable[[str | None], bool] | None = None
) -> web.Application:
    """An HTTP application with `/metrics` alone.

    `authorize` gets the Authorization header; without it the page is open (loopback only).
    """

    async def show(request: web.Request) -> web.Response:
        if authorize is not None and not authorize(request.headers.get("Authorization")):
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        metrics.refresh()
        # The process collector reads /proc.
        body = await asyncio.to_thread(generate_latest, metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application(client_max_size=0)
    app.router.add_get("/metrics", show)
    return app


@asynccontextmanager
async def serve_http(
    app: web.Application, host: str, port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve `app` inside the `async with`; yields the port that was bound."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=context, reuse_address=True)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
