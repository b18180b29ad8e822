"""A Store in memory, as far as the ledger and its followers need one, with faults on demand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from hatoba_scheduler.domain.parking import is_plain
from hatoba_scheduler.domain.records import Attempt, Change, Event, Job, Task
from hatoba_scheduler.domain.states import Release
from hatoba_scheduler.store.base import (
    Applied,
    Duplicate,
    JobCount,
    LiveState,
    Mismatch,
    Parked,
    RequestKey,
    Stale,
    Store,
    Submission,
    Submitted,
)


@dataclass
class MemoryStore:
    """Guards every write as a real store does; nothing of it outlives the test."""

    jobs: dict[str, Job] = field(default_factory=dict)
    kept_tasks: dict[tuple[str, int], Task] = field(default_factory=dict)
    kept_attempts: dict[str, Attempt] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    kept_specs: dict[str, bytes] = field(default_factory=dict)
    requests: dict[RequestKey, str] = field(default_factory=dict)
    """Jobs by the keys of the requests that made them."""
    fail_with: Exception | None = None
    """Raised by the next writes, until it is taken away."""
    fail_reads_with: Exception | None = None
    """Raised when jobs are asked for, until it is taken away."""
    batches: list[int] = field(default_factory=list)
    """Sizes of the calls of `apply`."""
    lookups: list[int] = field(default_factory=list)
    """How many jobs were asked for at a time."""
    reads: int = 0
    """How often specs, events or attempts were asked for."""

    def __post_init__(self) -> None:
        self.open = asyncio.Event()
        """Cleared: writes wait just before their commit becomes known."""
        self.open.set()
        self.reached = asyncio.Event()
        """Set once a write waits or passed there."""

    def as_store(self) -> Store:
        """For those who ask for the whole protocol."""
        return cast(Store, self)

    async def submit(self, items: Sequence[Submission]) -> list[Submitted | Duplicate | Mismatch]:
        """Number and keep new jobs."""
        self._fail()
        results: list[Submitted | Duplicate | Mismatch] = []
        for item in items:
            if item.request is not None and item.request in self.requests:
                results.append(Duplicate(self.requests[item.request]))
                continue
            job = replace(item.job, name=f"{item.base_name}-{len(self.jobs) + 1}")
            if item.request is not None:
                self.requests[item.request] = job.uid
            self.jobs[job.uid] = job
            self.kept_specs[job.uid] = item.spec
            results.append(Submitted(job, self._append(replace(item.event, job_name=job.name))))
        await self._gate()
        return results

    async def apply(self, changes: Sequence[Change]) -> list[Applied | Stale]:
        """Write each change whose guards hold."""
        self._fail()
        self.batches.append(len(changes))
        results = [self._write(change) for change in changes]
        await self._gate()
        return results

    async def live(self, plain: int) -> LiveState:
        """Jobs that are not over or hold something."""
        waiting = [job for job in self.jobs.values() if is_plain(job)]
        left_out = {job.uid for job in waiting[plain:]}
        return self._live([job for job in self.jobs.values() if job.uid not in left_out])

    async def live_job(self, uid: str) -> LiveState:
        """One of them."""
        return self._live([self.jobs[uid]] if uid in self.jobs else [])

    async def parked(self, skip: int) -> AsyncIterator[Sequence[Parked]]:
        """Plain jobs, two at a time."""
        waiting = [job for job in self.jobs.values() if is_plain(job)][skip:]
        for start in range(0, len(waiting), 2):
            yield [parked_of(job) for job in waiting[start : start + 2]]

    async def jobs_by_uid(self, uids: Sequence[str]) -> dict[str, Job]:
        """Those that exist."""
        if self.fail_reads_with is not None:
            raise self.fail_reads_with
        self.lookups.append(len(uids))
        return {uid: self.jobs[uid] for uid in uids if uid in self.jobs}

    async def job_counts(self) -> list[JobCount]:
        """By queue and state."""
        counts = Counter((job.project, job.queue, job.state) for job in self.jobs.values())
        return [JobCount(*key, count) for key, count in counts.items()]

    def _live(self, jobs: Sequence[Job]) -> LiveState:
        attempts = self._newest()
        held = {a.job_uid for a in attempts if a.release is not Release.RELEASED}
        jobs = [job for job in jobs if not job.state.terminal or job.uid in held]
        uids = {job.uid for job in jobs}
        tasks = [t for t in self.kept_tasks.values() if t.job_uid in uids]
        return LiveState(list(jobs), tasks, [a for a in attempts if a.job_uid in uids])

    async def job(self, uid: str) -> Job | None:
        """One job."""
        return self.jobs.get(uid)

    async def attempt(self, name: str) -> Attempt | None:
        """One attempt by external name."""
        return self.kept_attempts.get(name)

    async def attempts_by_name(self, names: Sequence[str]) -> dict[str, Attempt]:
        """Those of the attempts that exist."""
        self.reads += 1
        return {name: self.kept_attempts[name] for name in names if name in self.kept_attempts}

    async def recall_request(self, key: RequestKey) -> Duplicate | None:
        """What a request made before."""
        return Duplicate(self.requests[key]) if key in self.requests else None

    async def specs(self, uids: Sequence[str]) -> dict[str, bytes]:
        """Specs of the jobs that exist."""
        self.reads += 1
        return {uid: self.kept_specs[uid] for uid in uids if uid in self.kept_specs}

    async def events(self, after_seq: int, limit: int, job_uids: Sequence[str] = ()) -> list[Event]:
        """A page of the log."""
        self.reads += 1
        later = (event for event in self.log if event.seq > after_seq)
        return [event for event in later if not job_uids or event.job_uid in job_uids][:limit]

    def _fail(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with

    async def _gate(self) -> None:
        self.reached.set()
        await self.open.wait()

    def _append(self, event: Event) -> int:
        seq = len(self.log) + 1
        self.log.append(replace(event, seq=seq))
        return seq

    def _write(self, change: Change) -> Applied | Stale:
        if not self._guards_hold(change):
            return Stale.STALE
        self.jobs[change.job.uid] = change.job
        self.kept_tasks |= {(t.job_uid, t.index): t for t, _ in change.tasks}
        self.kept_attempts |= {a.name: a for a, _ in change.attempts}
        return Applied(tuple(self._append(event) for event in change.events))

    def _guards_hold(self, change: Change) -> bool:
        tasks = [(self.kept_tasks.get((t.job_uid, t.index)), v) for t, v in change.tasks]
        attempts = [(self.kept_attempts.get(a.name), v) for a, v in change.attempts]
        rows = [(self.jobs.get(change.job.uid), change.expected), *tasks, *attempts]
        return all((row.version if row else 0) == version for row, version in rows)

    def _newest(self) -> list[Attempt]:
        newest: dict[tuple[str, int], Attempt] = {}
        for attempt in sorted(self.kept_attempts.values(), key=lambda a: a.number):
            newest[attempt.job_uid, attempt.index] = attempt
        return list(newest.values())


def parked_of(job: Job) -> Parked:
    """A plain job as recovery tells of it, alone."""
    return Parked(
        [job.uid],
        job.project,
        job.queue,
        job.backend,
        job.priority,
        job.state,
        job.resources,
        job.terms,
        job.secrets,
        job.embedded_only,
        job.created_by,
    )
