"""What the server is told of revisions, and what Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hatoba.v1 import deployment_pb2
from hatoba_worker.router.table import Table
from hatoba_worker.router.visits import CLIENT_GONE, Visit

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_MAX_ERROR = 1_024


class Statistics:
    """Counts requests by deployment and revision until they are taken; a listener of visits."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], deployment_pb2.RouteStatistics] = {}

    def __call__(self, visit: Visit) -> None:
        """Count it, once a replica was chosen and it was a prediction."""
        if visit.route is None or visit.choice is None or visit.method != "POST":
            return
        key = visit.route.deployment, visit.choice.target.revision
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = deployment_pb2.RouteStatistics(
                deployment=key[0], revision=key[1]
            )
        row.requests += 1
        if visit.fault:
            row.errors += 1
            row.last_error = visit.fault[:_MAX_ERROR]

    def take(self) -> list[deployment_pb2.RouteStatistics]:
        """Everything since the last time."""
        taken = list(self._rows.values())
        self._rows.clear()
        return taken

    def give_back(self, rows: Iterable[deployment_pb2.RouteStatistics]) -> None:
        """They did not arrive."""
        for row in rows:
            kept = self._rows.setdefault((row.deployment, row.revision), row)
            if kept is not row:
                kept.requests += row.requests
                kept.errors += row.errors
                kept.last_error = kept.last_error or row.last_error


class Figures:
    """The router's own registry; a listener of visits. Labels are deployments and revisions."""

    def __init__(self, table: Table) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_TableFigures(table))
        self._requests = Counter(
            "hatoba_router_requests",
            "Requests that ended, by HTTP status.",
            ("deployment", "revision", "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "hatoba_router_request_seconds",
            "From a request's headers to the end of its reply.",
            ("deployment",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._counters: dict[tuple[str, int, int], Callable[[], None]] = {}
        self._observers: dict[str, Callable[[float], None]] = {}

    def __call__(self, visit: Visit) -> None:
        """Count it."""
        name = visit.route.deployment if visit.route else ""
        revision = visit.choice.target.revision if visit.choice else 0
        key = name, revision, visit.status
        count = self._counters.get(key)
        if count is None:
            labels = (name, str(revision or ""), str(visit.status))
            count = self._counters[key] = self._requests.labels(*labels).inc
        count()
        if not name or visit.status == CLIENT_GONE:
            return
        observe = self._observers.get(name)
        if observe is None:
            observe = self._observers[name] = self._seconds.labels(name).observe
        observe(visit.seconds)

    def watch(self, name: str, description: str, read: Callable[[], dict[str, float]]) -> None:
        """Show figures that somebody else counts, by what they are of."""
        self.registry.register(_Watched(name, description, read))

    def forget(self, deployments: Iterable[str]) -> None:
        """They are no more: their figures go too."""
        gone = set(deployments)
        for key in [key for key in self._counters if key[0] in gone]:
            del self._counters[key]
            self._requests.remove(key[0], str(key[1] or ""), str(key[2]))
        for name in gone & self._observers.keys():
            del self._observers[name]
            self._seconds.remove(name)


class _Watched(Collector):
    def __init__(self, name: str, description: str, read: Callable[[], dict[str, float]]) -> None:
        self._name = name
        self._description = description
        self._read = read

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._description, labels=("what",))
        for what, value in self._read().items():
            family.add_metric((what,), value)
        yield family


class _TableFigures(Collector):
    """What stands in the table now."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def collect(self) -> Iterator[Metric]:
        labels = ("deployment", "revision")
        replicas = GaugeMetricFamily("hatoba_router_replicas", "Ready replicas.", labels=labels)
        in_flight = GaugeMetricFamily(
            "hatoba_router_in_flight", "Requests that replicas have now.", labels=labels
        )
        for route in list(self._table.routes):
            for target in route.targets:
                key = (route.deployment, str(target.revision))
                replicas.add_metric(key, sum(not one.gone for one in target.replicas))
                in_flight.add_metric(key, sum(one.in_flight for one in target.replicas))
        yield replicas
        yield in_flight
