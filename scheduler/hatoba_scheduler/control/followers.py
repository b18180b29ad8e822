"""What one job's end means for others: for those that wait for it, and for its own siblings.

Ends are carried on in bounded steps, each one batch of decisions for the ledger. Whoever waits for
what can never run any more is told without waiting for commits, so a long chain falls as fast as a
wide fan. Nothing of this is stored: a restart finds it again in the jobs' rows.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.dependencies import Upstream, upstream_ended
from hatoba_scheduler.domain.records import Change, Event, Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import Now, Rows, fail_fast
from hatoba_scheduler.errors import HatobaError
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

STEP = 100
"""Dependants that are looked at between two turns of the loop."""
LOOKED_UP = 500
AGAIN = 1.0
"""Seconds until what could not be read or stored is tried again."""
_BAD = frozenset({JobState.FAILED, JobState.TIMED_OUT})
_Todo = tuple[str, Callable[[Rows], Change | None]]


@dataclass(slots=True)
class _Wave:
    """The end of one job, on its way to those that wait for it."""

    upstream: Upstream
    dependants: Iterator[str]
    committed: bool
    """False: it is certain to end so, but has not; only what that ends as well is told."""


class Followers:
    """Carries the end of a job to those that wait for it, in bounded steps."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._waiting: dict[str, set[str]] = defaultdict(set)
        """By the uid of a job that others wait for: who they are."""
        self._waves: deque[_Wave] = deque()
        self._doomed: set[str] = set()
        """Who was told an end that it cannot outlive, and has not ended yet."""
        self._failing: dict[str, int | None] = {}
        """Arrays with a failed task, which may fail fast."""
        self._again: list[_Todo] = []
        self._doubtful: set[str] = set()
        self._wake = asyncio.Event()
        ledger.listen(self.on_commit)

    def recover(self) -> None:
        """Take in who waits for whom; ends that were not carried on before a crash are now."""
        for rows in self._ledger.all_rows():
            self._note_waiting(rows.job)
            if rows.job.fail_fast and any(rows.job.counts[state] for state in _BAD):
                self._failing[rows.job.uid] = None
        self._wake.set()

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        for commit in commits:
            job = commit.change.job
            if commit.before is None:
                self._note_waiting(job)
            elif job.state.terminal and not commit.before.state.terminal:
                self._doomed.discard(job.uid)
                self._carry(job)
        for event in events:
            if event.index is not None and event.to_state in _BAD and event.terminal:
                self._note_failure(event)

    def _note_waiting(self, job: Job) -> None:
        for uid in job.upstreams:
            self._waiting[uid].add(job.uid)
            upstream = self._ledger.rows(uid)
            if upstream is None or upstream.job.state.terminal:
                # It ended between the dependant's admission and its commit, or before a crash.
                self._doubtful.add(uid)
                self._wake.set()

    def _note_failure(self, event: Event) -> None:
        rows = self._ledger.rows(event.job_uid)
        if rows is not None and rows.job.fail_fast:
            self._failing[event.job_uid] = event.index
            self._wake.set()

    def _carry(self, ended: Job) -> None:
        dependants = self._waiting.pop(ended.uid, None)
        if dependants:
            upstream = Upstream(ended.uid, ended.name, ended.state)
            self._waves.append(_Wave(upstream, iter(dependants), committed=True))
            self._wake.set()

    def _now(self) -> Now:
        return Now(round(self._clock.time() * 1e6))

    async def run(self) -> None:
        """Carry ends on; ends by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._check_doubtful()
            while self._again or self._failing or self._waves:
                await self._carry_out(self._next_step())
                await asyncio.sleep(0)

    async def _carry_out(self, step: Sequence[_Todo]) -> None:
        hit("follow.step.before")
        asked = [self._ledger.ask(uid, decide) for uid, decide in step]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        hit("follow.step.after")
        failed = [
            todo
            for todo, answer in zip(step, answers, strict=True)
            if isinstance(answer, BaseException)
        ]
        if failed:
            log.warning("follow.not_stored", count=len(failed))
            self._again.extend(failed)
            await self._clock.sleep(AGAIN)

    # -- what to decide next --------------------------------------------------------------------

    def _next_step(self) -> list[_Todo]:
        """The decisions to ask for now; none when nobody who was looked at is concerned."""
        step, self._again = self._again[:STEP], self._again[STEP:]
        while self._failing and len(step) < STEP:
            step.append(self._failure(*self._failing.popitem()))
        looked_at = 0
        while self._waves and len(step) < STEP and looked_at < STEP:
            wave = self._waves[0]
            uid = next(wave.dependants, None)
            if uid is None:
                self._waves.popleft()
                continue
            looked_at += 1
            if self._reaches(wave, uid):
                step.append(self._decision(uid, wave.upstream))
        return step

    def _failure(self, uid: str, index: int | None) -> _Todo:
        return uid, lambda rows: fail_fast(rows, index, self._now())

    def _decision(self, uid: str, upstream: Upstream) -> _Todo:
        return uid, lambda rows: upstream_ended(rows, upstream, self._now())

    def _reaches(self, wave: _Wave, uid: str) -> bool:
        """Whether a dependant is to be told now; what it cannot outlive is told on at once."""
        if uid in self._doomed:
            return False
        if wave.committed and uid not in self._waiting:
            return True
        rows = self._ledger.rows(uid)
        change = upstream_ended(rows, wave.upstream, self._now()) if rows else None
        if change is None or not change.job.state.terminal:
            return wave.committed
        self._doomed.add(uid)
        self._foretell(change.job)
        return True

    def _foretell(self, job: Job) -> None:
        """It will end UPSTREAM_FAILED, or was ended meanwhile: it never succeeds in any case."""
        dependants = self._waiting.get(job.uid)
        if dependants:
            upstream = Upstream(job.uid, job.name, job.state)
            self._waves.append(_Wave(upstream, iter(list(dependants)), committed=False))

    async def _check_doubtful(self) -> None:
        """Ask the store for jobs that are not in memory; those that ended are carried on."""
        while self._doubtful:
            some = list(self._doubtful)[:LOOKED_UP]
            try:
                found = await self._store.jobs_by_uid(some)
            except HatobaError as error:
                log.warning("follow.not_read", error=error.message)
                await self._clock.sleep(AGAIN)
                continue
            self._doubtful.difference_update(some)
            for job in found.values():
                if job.state.terminal:
                    self._carry(job)
