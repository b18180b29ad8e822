"""What queues hold, use and may claim: by counts, the planner's shares and what happened lately."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from hatoba_scheduler.control.activity import Activity, Rates
from hatoba_scheduler.control.counts import JobCounts
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.domain.capacity import describe
from hatoba_scheduler.domain.planning.model import QueueKey, QueueShare
from hatoba_scheduler.domain.records import Counts, Micros, Queue, Resources

MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What one queue holds and uses now."""

    queue: Queue
    tasks: Counts
    jobs: int
    share: QueueShare
    oldest_wait: float
    """Seconds that its oldest waiting job has waited; 0: none waits."""
    rates: Rates
    cordoned: bool


@dataclass(frozen=True, slots=True)
class QueueUsages:
    """Reads what queues use, without looking at any job."""

    book: QueueBook
    counts: JobCounts
    activity: Activity
    share: Callable[[QueueKey], QueueShare]
    total: Callable[[], Resources]
    """All known capacity; nothing while no backend has told of any."""
    now: Callable[[], Micros]

    def of(self, queue: Queue) -> Usage:
        """What a queue uses now."""
        key = (queue.project, queue.name)
        share = self.share(key)
        return Usage(
            queue,
            self.counts.tasks(key),
            self.counts.unfinished(key),
            share,
            self.age(share.oldest),
            self.activity.rates(key),
            self.book.cordon(queue) is not None,
        )

    def age(self, uid: str) -> float:
        """Seconds since a job was submitted, which its uid tells; 0 for none."""
        return max(0.0, (self.now() - made_at(uid)) / MICROS) if uid else 0.0

    def warnings(self, queue: Queue) -> list[str]:
        """What is suspicious about a queue's settings."""
        total = self.total()
        found = [
            *_above(queue.quota, total, "quota", "all known capacity"),
            *_above(queue.guaranteed, total, "guaranteed", "all known capacity"),
        ]
        quota = _limits(queue.quota, queue.guaranteed)
        found += _above(queue.guaranteed, quota, "guaranteed", "its quota")
        if queue.no_borrowing and queue.guaranteed == Resources():
            found.append("no_borrowing without guaranteed: nothing of this queue can ever start")
        return found + self._promised(queue)

    def _promised(self, queue: Queue) -> list[str]:
        """What is guaranteed to the queues below it, and is more than its own."""
        own = queue.guaranteed
        if own == Resources():
            return []
        below = Resources()
        for name in self.book.children(queue):
            below = below.plus(self.book.get(queue.project, name).guaranteed)
        return _above(below, own, "guaranteed to the queues below it", "its own guaranteed")


def made_at(uid: str) -> Micros:
    """When a job was submitted, to the millisecond; 0 for a uid that does not say."""
    try:
        return (uuid.UUID(uid).int >> 80) * 1_000
    except ValueError:
        return 0


def _limits(quota: Resources, amount: Resources) -> Resources:
    """A quota, with what it does not limit as large as an amount."""
    return Resources(
        quota.cpus or amount.cpus,
        quota.memory or amount.memory,
        quota.gpus or amount.gpus,
        quota.slots or amount.slots,
        tuple(sorted((dict(amount.named) | dict(quota.named)).items())),
    )


def _above(amount: Resources, bound: Resources, what: str, than: str) -> list[str]:
    """A warning where an amount has more of something than a bound that is known."""
    if bound == Resources():
        return []
    limits = bound._replace(slots=amount.slots)
    known = dict(bound.named)
    named = tuple((name, known.get(name, 0)) for name, _ in amount.named)
    if amount.within(limits._replace(named=named)):
        return []
    return [f"{what} ({describe(amount)}) is above {than} ({describe(bound)})"]
