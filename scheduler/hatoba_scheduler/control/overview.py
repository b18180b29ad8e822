"""What an operator must know first: from what is counted anyway, without a walk over all jobs."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from hatoba.v1 import admin_pb2
from hatoba_scheduler.control.activity import Activity
from hatoba_scheduler.control.counts import OwnerKey
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.timers import Late
from hatoba_scheduler.control.usage import QueueUsages, made_at
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT, job_name
from hatoba_scheduler.domain.records import Attempt, Host, Job, Micros, Queue
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.telemetry.timings import Timings

SHOWN = 50
OLDEST = 10


@dataclass(frozen=True, slots=True)
class Reports:
    """What the server tells of itself at any time."""

    status: Callable[[], admin_pb2.ServerStatus]
    backends: Callable[[], admin_pb2.ListBackendsResponse]


@dataclass(frozen=True, slots=True)
class OverviewParts:
    """What the overview is made of."""

    store: Store
    usages: QueueUsages
    activity: Activity
    hub: Hub
    reports: Reports
    why_waiting: Callable[[Job], str]
    late: Callable[[], list[Late]]
    loop_lag: Callable[[], float]
    rounds: Timings


class Overviewer:
    """Answers GetOverview."""

    def __init__(self, parts: OverviewParts) -> None:
        self._parts = parts
        self._usages = parts.usages
        self._activity = parts.activity

    async def overview(self) -> admin_pb2.Overview:
        """The operator's first screen."""
        parts, rates = self._parts, self._activity.rates()
        backends, commits = parts.reports.backends(), parts.store.commit_times
        return admin_pb2.Overview(
            server=parts.reports.status(),
            backends=backends.backends,
            failures=backends.failures,
            owners=self._owners(),
            oldest_waiting=await self._oldest(),
            overdue=self._overdue(),
            unknown=await self._notable(self._activity.unknown, _out_of_reach),
            releasing=await self._notable(self._activity.releasing, _not_let_go),
            hosts=self._hosts(),
            queues=self._queues(),
            loop_lag=parts.loop_lag(),
            planner_max=parts.rounds.longest,
            planner_mean=parts.rounds.mean,
            commit_max=commits.longest,
            commit_mean=commits.mean,
            submit_rate=rates.submitted,
            start_rate=rates.started,
            end_rate=rates.ended,
        )

    def _owners(self) -> list[admin_pb2.OwnedInQueue]:
        unfinished, running = self._usages.counts.owners(), self._activity.running
        largest = heapq.nlargest(SHOWN, unfinished.items(), key=lambda item: item[1])
        return [_owned(key, count, running) for key, count in largest]

    async def _oldest(self) -> list[admin_pb2.NotableJob]:
        """Of each queue the job that has waited longest; the oldest of those."""
        uids = [self._usages.share((one.project, one.name)).oldest for one in self._known()]
        oldest = sorted(filter(None, uids))[:OLDEST]
        jobs = await self._parts.store.jobs_by_uid(oldest)
        found = (jobs[uid] for uid in oldest if uid in jobs)
        return [
            _notable(job, made_at(job.uid) or job.create_time, self._parts.why_waiting(job))
            for job in found
        ]

    def _known(self) -> Iterator[Queue]:
        """Every queue that was made, and the default ones of projects with jobs."""
        book = self._usages.book
        made = {(one.project, one.name): one for one in book.all()}
        yield from made.values()
        for (project, name), _ in self._usages.counts.queues():
            if (project, name) not in made and book.known(project, name):
                yield book.get(project, name)

    def _overdue(self) -> list[admin_pb2.NotableJob]:
        late = self._parts.late()[:SHOWN]
        return [_notable(one.job, one.due.time, one.due.cause.message) for one in late]

    async def _notable(
        self, table: Mapping[str, Attempt], tell: Callable[[Attempt], tuple[Micros, str]]
    ) -> list[admin_pb2.NotableJob]:
        """The attempts of which this has been true longest."""
        found = heapq.nsmallest(SHOWN, table.values(), key=lambda one: tell(one)[0])
        jobs = await self._parts.store.jobs_by_uid(sorted({one.job_uid for one in found}))
        out = []
        for attempt in found:
            job = jobs.get(attempt.job_uid)
            if job is not None:
                since, words = tell(attempt)
                note = _notable(job, since, words)
                note.index = attempt.index
                out.append(note)
        return out

    def _hosts(self) -> list[str]:
        now, hub = self._usages.now(), self._parts.hub
        told = ((host, _host_words(host, hub.reachable(host.name), now)) for host in hub.hosts())
        return [f"{host.name}: {words}" for host, words in told if words]

    def _queues(self) -> list[str]:
        return [
            f"{_place(one.project, one.name)}: cordoned"
            + (f" ({one.cordon_reason})" if one.cordon_reason else "")
            for one in self._usages.book.all()
            if one.cordoned
        ]


def _owned(key: OwnerKey, count: int, running: Counter[OwnerKey]) -> admin_pb2.OwnedInQueue:
    runs = min(running.get(key, 0), count)
    return admin_pb2.OwnedInQueue(
        queue=_place(key.project, key.queue),
        created_by=key.created_by,
        waiting=count - runs,
        running=runs,
    )


def _place(project: str, queue: str) -> str:
    return queue if project == DEFAULT_PROJECT else f"{project}/{queue}"


def _notable(job: Job, since: Micros, message: str) -> admin_pb2.NotableJob:
    out = admin_pb2.NotableJob(
        job=job_name(job.project, job.name),
        created_by=job.created_by,
        queue=_place(job.project, job.queue),
        message=message,
    )
    set_time(out.since, since)
    return out


def _out_of_reach(attempt: Attempt) -> tuple[Micros, str]:
    where = attempt.host or attempt.backend
    return attempt.unknown_since, f"attempt {attempt.number} on {where} cannot be reached"


def _not_let_go(attempt: Attempt) -> tuple[Micros, str]:
    where = attempt.host or attempt.backend
    words = f"attempt {attempt.number} ended; {where} has not confirmed that it is gone"
    return attempt.end_time or attempt.create_time, words


def _host_words(host: Host, connected: bool, now: Micros) -> str:
    """Why a host takes no work; empty when it does."""
    words: Iterable[str] = (
        "declared gone" if host.declared_gone else "",
        "" if connected or host.declared_gone else "not connected",
        "draining" if host.draining else "cordoned" if host.cordoned else "",
        "quarantined" if host.quarantined_until > now else "",
    )
    found = ", ".join(filter(None, words))
    return f"{found} ({host.cordon_reason})" if found and host.cordon_reason else found
