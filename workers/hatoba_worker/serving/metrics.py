"""What a model server counts, as Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Values counted by upper bounds."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        """Its text."""
        yield from _head(self._name, self._text, "histogram")
        below = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            shown = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{self._name}_bucket{{le="{shown}"}} {below}'
        yield f"{self._name}_sum {self._sum:.9g}"
        yield f"{self._name}_count {below}"


GAUGES = {
    "in_flight": "Predictions worked on or waiting.",
    "queued": "Predictions waiting for a thread.",
    "connections": "Open connections.",
    "ready": "1 when /readyz says so.",
}


class Metrics:
    """Everything that `/metrics` says; `gauges` has a value for each of `GAUGES`."""

    def __init__(self, gauges: Mapping[str, Callable[[], int]]) -> None:
        self._gauges = gauges
        self.requests: Counter[int] = Counter()
        self.seconds = Histogram(
            "hatoba_serving_request_seconds", "From a whole request to its answer.", LATENCY
        )
        self.batch = Histogram("hatoba_serving_batch_size", "Inputs answered at once.", BATCH)

    def answered(self, code: int, seconds: float) -> None:
        """A prediction was asked for and answered."""
        self.requests[code] += 1
        self.seconds.add(seconds)

    def text(self) -> str:
        """All of it."""
        return "\n".join([*self._counters(), *self.seconds.lines(), *self.batch.lines(), ""])

    def _counters(self) -> Iterator[str]:
        name = "hatoba_serving_requests_total"
        yield from _head(name, "Predictions that were asked for, by status.", "counter")
        for code, count in sorted(self.requests.items()):
            yield f'{name}{{code="{code}"}} {count}'
        for key, text in GAUGES.items():
            yield from _head(f"hatoba_serving_{key}", text, "gauge")
            yield f"hatoba_serving_{key} {int(self._gauges[key]())}"


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
