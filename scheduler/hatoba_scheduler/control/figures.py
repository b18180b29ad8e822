"""The operators' numbers for Prometheus; labels are bounded: queues, states and causes, no jobs."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hatoba_scheduler.control.activity import Activity
from hatoba_scheduler.control.backend_loop import BackendLoop
from hatoba_scheduler.control.breaker import BreakerState
from hatoba_scheduler.control.usage import QueueUsages
from hatoba_scheduler.domain.planning.model import QueueKey
from hatoba_scheduler.domain.states import JobState

QUEUES = 500
"""So many queues are shown, those with most unfinished jobs; the others count in the sums only."""
OF_QUEUE = ("project", "queue")
BREAKER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


@dataclass(frozen=True, slots=True)
class Figures:
    """Reads all of it; on the loop."""

    usages: QueueUsages
    activity: Activity
    backends: Mapping[str, BackendLoop]
    watchers: Callable[[], int]
    failing_webhooks: Callable[[], int]

    def read(self) -> Iterator[Metric]:
        """Every family with its samples now."""
        keys = self._queues()
        yield from self._depths(keys)
        yield from self._shares(keys)
        yield from self._throughput(keys)
        yield from self._happened()
        yield self._attempts()
        yield from self._backends()
        yield _one("hatoba_watchers", "Streams of events under way.", self.watchers())
        yield _one(
            "hatoba_webhooks_failing",
            "Webhooks whose last delivery failed.",
            self.failing_webhooks(),
        )

    def _queues(self) -> list[QueueKey]:
        counts = self.usages.counts
        known = [key for key, _ in counts.queues()]
        return heapq.nlargest(QUEUES, known, key=counts.unfinished)

    def _depths(self, keys: list[QueueKey]) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(
            "hatoba_queue_jobs", "Unfinished jobs.", labels=(*OF_QUEUE, "state")
        )
        for project, queue in keys:
            for state, count in self.usages.counts.by_state(project, queue).items():
                if state < JobState.SUCCEEDED:
                    jobs.add_metric((project, queue, state.name), count)
        yield jobs

    def _shares(self, keys: list[QueueKey]) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "hatoba_queue_waiting", "Tasks that could start if there were room.", labels=OF_QUEUE
        )
        oldest = GaugeMetricFamily(
            "hatoba_queue_oldest_wait_seconds",
            "How long the oldest waiting job has waited.",
            labels=OF_QUEUE,
        )
        shares = GaugeMetricFamily(
            "hatoba_queue_share",
            "Share of all capacity: fair (may claim), used (now), decayed (over the last hours).",
            labels=(*OF_QUEUE, "kind"),
        )
        for key in keys:
            share = self.usages.share(key)
            waiting.add_metric(key, share.waiting)
            oldest.add_metric(key, self.usages.age(share.oldest))
            for kind in ("fair", "used", "decayed"):
                shares.add_metric((*key, kind), getattr(share, kind))
        yield from (waiting, oldest, shares)

    def _throughput(self, keys: list[QueueKey]) -> Iterator[Metric]:
        happened = self.activity
        for name, text, counts in (
            ("hatoba_jobs_submitted", "Jobs submitted.", happened.submitted),
            ("hatoba_tasks_started", "Tasks whose code began.", happened.started),
            ("hatoba_tasks_ended", "Tasks that ended, however.", happened.ended),
        ):
            family = CounterMetricFamily(name, text, labels=OF_QUEUE)
            for key in keys:
                family.add_metric(key, counts.get(key, 0))
            yield family

    def _happened(self) -> Iterator[Metric]:
        moves = CounterMetricFamily(
            "hatoba_transitions", "Changes of state.", labels=("from", "to", "cause")
        )
        for move, count in self.activity.transitions.items():
            moves.add_metric(move, count)
        retries = CounterMetricFamily(
            "hatoba_retries", "Further attempts, by what ended the one before.", labels=("cause",)
        )
        for cause, count in self.activity.retries.items():
            retries.add_metric((cause,), count)
        preemptions = CounterMetricFamily("hatoba_preemptions", "Tasks whose place was taken.")
        preemptions.add_metric((), self.activity.preemptions)
        yield from (moves, retries, preemptions)

    def _attempts(self) -> Metric:
        """Live attempts by state, and those that are out of reach or not let go."""
        family = GaugeMetricFamily(
            "hatoba_attempts",
            "Attempts by state; UNKNOWN ones count as what they were as well.",
            labels=("state",),
        )
        for state, count in Counter(self.activity.live.values()).items():
            family.add_metric((state.name,), count)
        family.add_metric(("UNKNOWN",), len(self.activity.unknown))
        family.add_metric(("RELEASING",), len(self.activity.releasing))
        return family

    def _backends(self) -> Iterator[Metric]:
        breakers = GaugeMetricFamily(
            "hatoba_backend_breaker", "0 closed, 1 half-open, 2 open.", labels=("backend",)
        )
        calls = GaugeMetricFamily(
            "hatoba_backend_calls", "Calls to it under way.", labels=("backend",)
        )
        for name, loop in self.backends.items():
            breakers.add_metric((name,), BREAKER[loop.calls.state])
            calls.add_metric((name,), loop.calls.under_way)
        yield from (breakers, calls)


def _one(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric((), value)
    return family
