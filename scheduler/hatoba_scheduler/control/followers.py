"""What one job's change means for others: dependants, siblings, logs, progress, spans."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.records import Change, Event, Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import (
    Now,
    Rows,
    fail_fast,
    upstream_failed,
    upstream_succeeded,
)
from hatoba_scheduler.errors import HatobaError
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

STEP = 200
AGAIN = 1.0
_BAD = frozenset({JobState.FAILED, JobState.TIMED_OUT})
_Todo = tuple[str, Callable[[Rows], Change | None]]


class Followers:
    """Carries the end of a job to those that wait for it, in bounded steps."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._waiting: dict[str, set[str]] = defaultdict(set)
        self._todo: deque[_Todo] = deque()
        self._doubtful: set[str] = set()
        self._wake = asyncio.Event()
        ledger.listen(self.on_commit)

    def recover(self) -> None:
        """Take in who waits for whom; ends that were not carried on before a crash are now."""
        for rows in self._ledger.all_rows():
            self._note_waiting(rows.job)
            if rows.job.fail_fast and any(rows.job.counts[state] for state in _BAD):
                self._todo.append((rows.job.uid, lambda rows: fail_fast(rows, None, self._now())))
        self._wake.set()

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        for commit in commits:
            if commit.before is None:
                self._note_waiting(commit.change.job)
        for event in events:
            self._note_event(event)
        if self._todo or self._doubtful:
            self._wake.set()

    def _note_event(self, event: Event) -> None:
        if event.job_terminal:
            rows = self._ledger.rows(event.job_uid)
            if rows is not None:
                self._carry(rows.job)
        elif event.index is not None and event.to_state in _BAD and event.terminal:
            index = event.index
            self._todo.append((event.job_uid, lambda rows: fail_fast(rows, index, self._now())))

    def _note_waiting(self, job: Job) -> None:
        for uid in job.blocked_on:
            self._waiting[uid].add(job.uid)
            upstream = self._ledger.rows(uid)
            if upstream is None or upstream.job.state.terminal:
                # It ended between the dependant's admission and its commit, or before a crash.
                self._doubtful.add(uid)

    def _carry(self, ended: Job) -> None:
        for uid in self._waiting.pop(ended.uid, ()):
            self._todo.append((uid, self._decision(ended)))
        self._wake.set()

    def _decision(self, ended: Job) -> Callable[[Rows], Change | None]:
        if ended.state is JobState.SUCCEEDED:
            return lambda rows: upstream_succeeded(rows, ended.uid, self._now())
        return lambda rows: upstream_failed(rows, ended.name, ended.state, self._now())

    def _now(self) -> Now:
        return Now(round(self._clock.time() * 1e6))

    async def run(self) -> None:
        """Carry ends on; ends by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._check_doubtful()
            while self._todo:
                step = [self._todo.popleft() for _ in range(min(STEP, len(self._todo)))]
                asked = [self._ledger.ask(uid, decide) for uid, decide in step]
                answers = await asyncio.gather(*asked, return_exceptions=True)
                failed = [
                    todo
                    for todo, answer in zip(step, answers, strict=True)
                    if isinstance(answer, BaseException)
                ]
                if failed:
                    log.warning("follow.not_stored", count=len(failed))
                    self._todo.extend(failed)
                    await self._clock.sleep(AGAIN)

    async def _check_doubtful(self) -> None:
        while self._doubtful:
            uid = next(iter(self._doubtful))
            try:
                job = await self._store.job(uid)
            except HatobaError as error:
                log.warning("follow.not_read", error=error.message)
                await self._clock.sleep(AGAIN)
                continue
            self._doubtful.discard(uid)
            if job is not None and job.state.terminal:
                self._carry(job)
