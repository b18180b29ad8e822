"""Turns room into launches: feeds the planner from commits and commits its intents.

What the planner knows of waiting jobs follows the ledger; nothing here is remembered that could
not be rebuilt from it.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.capacity import Capacity, Needs, Place, PoolRoom
from hatoba_scheduler.domain.naming import attempt_name
from hatoba_scheduler.domain.planner import Assignment, Entry, Planner, QueueKey, planned_name
from hatoba_scheduler.domain.records import Attempt, Change, Event, Job, Queue, Resources
from hatoba_scheduler.domain.states import Desired, JobState, Release
from hatoba_scheduler.domain.transitions import Intent, Now, Rows, launch

SLICE = 100
FAILED_PAUSE = 1.0
"""Seconds until intents are tried again after the store did not take some."""


@dataclass(frozen=True, slots=True)
class Site:
    """What dispatch must know of a backend to write an intent for it."""

    fenced: bool
    launch: Callable[[Attempt], None]
    """Takes over a committed intent; must not block."""


class Dispatcher:
    """The loop from waiting tasks to committed intents. Owns planner and capacity."""

    def __init__(self, ledger: Ledger, clock: Clock, epoch: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._epoch = epoch
        self._capacity = Capacity()
        self._planner = Planner(self._capacity)
        self._sites: dict[str, Site] = {}
        self._wake = asyncio.Event()
        self._later: list[tuple[float, str]] = []
        self._timed: set[tuple[float, str]] = set()
        self._planned: set[tuple[str, int]] = set()
        self._charged: dict[str, QueueKey] = {}
        ledger.listen(self.on_commit)

    @property
    def capacity(self) -> Capacity:
        """Room of all backends, to read."""
        return self._capacity

    def add_site(self, backend: str, site: Site) -> None:
        """A backend is open: what waits for it may be launched."""
        self._sites[backend] = site
        self._wake.set()

    def set_queue(self, queue: Queue) -> None:
        """A queue was made or changed."""
        share = self._planner.share((queue.project, queue.name))
        share.weight, share.max_running = queue.weight, queue.max_running
        self._room_changed()

    def describe(self, backend: str, pools: Sequence[PoolRoom]) -> None:
        """A backend told of its pools."""
        self._capacity.describe(backend, pools)
        self._room_changed()

    def recover(self) -> None:
        """Take in everything that is in the ledger, at start."""
        for rows in self._ledger.all_rows():
            for attempt in rows.attempts.values():
                if attempt.release is not Release.RELEASED:
                    self._hold(attempt, _key(rows.job))
                    self._planner.share(_key(rows.job)).running += 1
            self._refresh(rows)
        self._wake.set()

    def why_waiting(self, job: Job) -> str:
        """In words, why a job that waits is not running."""
        share = self._planner.share(_key(job))
        if share.full:
            return f"Queue {job.queue!r} runs {share.running} of at most {share.max_running} tasks."
        return self._capacity.why_not(needs_of(job))

    # -- following the ledger -------------------------------------------------------------------

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        for commit in commits:
            for attempt, _ in commit.change.attempts:
                if attempt.release is Release.RELEASED:
                    self._let_go(attempt)
            if _matters(commit):
                self._refresh(commit.rows)
        self._wake.set()

    def _hold(self, attempt: Attempt, queue: QueueKey) -> None:
        self._charged[attempt.name] = queue
        self._capacity.hold(
            attempt.backend,
            attempt.host,
            attempt.name,
            (attempt.reserved, Place(attempt.host, attempt.gpus)),
        )

    def _let_go(self, attempt: Attempt) -> None:
        queue = self._charged.pop(attempt.name, None)
        if queue is not None:
            self._planner.share(queue).running -= 1
        if self._capacity.let_go(attempt.backend, attempt.host, attempt.name):
            self._room_changed()

    def _room_changed(self) -> None:
        self._planner.room_changed()
        self._wake.set()

    def _refresh(self, rows: Rows) -> None:
        """What of a job may start now goes to the planner; what may later, on the timer."""
        job = rows.job
        if job.hold or job.desired is not Desired.RUN or job.state.terminal:
            self._planner.remove(job.uid)
            return
        ready, live = self._ready(rows)
        fresh = job.unstarted_state is JobState.QUEUED and bool(job.unstarted)
        if not ready and not fresh:
            self._planner.remove(job.uid)
            return
        entry = Entry(job.uid, _key(job), needs_of(job), job.priority, ready)
        if fresh:
            entry.fresh = (i for i in job.unstarted if (job.uid, i) not in self._planned)
        if job.max_parallel:
            entry.room = job.max_parallel - live - self._planned_of(rows)
        self._planner.put(entry)

    def _planned_of(self, rows: Rows) -> int:
        """Tasks of a job whose launch is decided and not committed yet."""
        indices = [index for uid, index in self._planned if uid == rows.job.uid]
        tasks = [rows.tasks.get(index) for index in indices]
        return sum(task is None or task.state is JobState.QUEUED for task in tasks)

    def _ready(self, rows: Rows) -> tuple[list[int], int]:
        """(started tasks that may go again now, tasks under way)."""
        ready: list[int] = []
        live = 0
        now = self._clock.time()
        for index, task in rows.tasks.items():
            if task.state is not JobState.QUEUED:
                live += not task.state.terminal
                continue
            attempt = rows.attempts.get(index)
            if attempt is not None and attempt.release is not Release.RELEASED:
                continue
            if task.not_before / 1e6 > now:
                self._call_back((task.not_before / 1e6, rows.job.uid))
            elif (rows.job.uid, index) not in self._planned:
                ready.append(index)
        heapq.heapify(ready)
        return ready, live

    def _call_back(self, when: tuple[float, str]) -> None:
        if when not in self._timed:
            self._timed.add(when)
            heapq.heappush(self._later, when)

    # -- the loops ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan and commit intents whenever something changed; ends by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while assignments := self._planner.plan(SLICE):
                if not await self._commit(assignments):
                    await self._clock.sleep(FAILED_PAUSE)

    async def run_timer(self) -> None:
        """Bring back what waited for a back-off, when its time has come."""
        while True:
            await self._clock.sleep(0.1 if self._later else 0.5)
            for uid in self._due():
                rows = self._ledger.rows(uid)
                if rows is not None:
                    self._refresh(rows)
                    self._wake.set()

    def _due(self) -> set[str]:
        """Jobs with a task whose back-off is over: each once, however many tasks it is."""
        due: set[str] = set()
        now = self._clock.time()
        while self._later and self._later[0][0] <= now:
            when = heapq.heappop(self._later)
            self._timed.discard(when)
            due.add(when[1])
        return due

    async def _commit(self, assignments: Sequence[Assignment]) -> bool:
        """False when the store did not take all of them."""
        asked = []
        for assignment in assignments:
            self._planned.add((assignment.uid, assignment.task))
            asked.append(self._ledger.ask(assignment.uid, self._decision(assignment)))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for assignment, answer in zip(assignments, answers, strict=True):
            self._planned.discard((assignment.uid, assignment.task))
            self._capacity.let_go(
                assignment.needs.backend,
                assignment.place.pool,
                planned_name(assignment.uid, assignment.task),
            )
            if isinstance(answer, Change):
                attempt = _new_attempt(answer, assignment.task)
                self._hold(attempt, assignment.queue)
                self._sites[attempt.backend].launch(attempt)
            else:
                self._undo(assignment, answer)
        return not any(isinstance(answer, BaseException) for answer in answers)

    def _decision(self, assignment: Assignment) -> Callable[[Rows], Change | None]:
        site = self._sites.get(assignment.needs.backend)
        now = Now(round(self._clock.time() * 1e6))

        def decide(rows: Rows) -> Change | None:
            task = rows.tasks.get(assignment.task)
            number = task.attempt + 1 if task else 1
            intent = Intent(
                index=assignment.task,
                name=attempt_name(self._epoch, rows.job.uid, assignment.task, number),
                backend=assignment.needs.backend,
                host=assignment.place.pool,
                gpus=assignment.place.gpus,
                reserved=assignment.needs.resources,
                fenced=site is not None and site.fenced,
                span_id=secrets.token_hex(8),
            )
            return launch(rows, intent, now)

        return decide

    def _undo(self, assignment: Assignment, answer: object) -> None:
        self._planner.share(assignment.queue).running -= 1
        rows = self._ledger.rows(assignment.uid)
        if rows is not None and isinstance(answer, BaseException):
            self._refresh(rows)
        self._planner.room_changed()


def needs_of(job: Job) -> Needs:
    """The class of a job: what each of its tasks needs of a place."""
    want = job.resources
    resources = want if want.stated else Resources(slots=1)
    return Needs(job.backend, resources, job.embedded_only, job.secrets)


def _key(job: Job) -> QueueKey:
    return (job.project, job.queue)


def _matters(commit: Commit) -> bool:
    """Whether a commit can change what of the job waits."""
    if (
        commit.before is None
        or commit.before.settings_version != commit.change.job.settings_version
    ):
        return True
    return bool(commit.change.events) or any(
        attempt.release is Release.RELEASED for attempt, _ in commit.change.attempts
    )


def _new_attempt(change: Change, index: int) -> Attempt:
    return next(row for row, _ in change.attempts if row.index == index)
