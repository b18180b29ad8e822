"""Queues, jobs and a cluster on a virtual clock: days pass in as long as their events take.

What decides is the product's own: the planner, what feeds it, and every transition. Only time, the
store and the cluster are made up.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hatoba_scheduler.domain import gangs, timing
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.dependencies import Upstream, upstream_ended
from hatoba_scheduler.domain.naming import attempt_name
from hatoba_scheduler.domain.planning.feed import Feed, job_of, needs_of, queue_key
from hatoba_scheduler.domain.planning.model import (
    Assignment,
    BackendSettings,
    Explained,
    PlannerRules,
    Preemption,
    QueueSettings,
)
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.preempting import give_way, preempted
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    PLAIN,
    Cause,
    Change,
    Event,
    Job,
    Micros,
    Resources,
    RetryPolicy,
    Terms,
)
from hatoba_scheduler.domain.states import CauseCode, Desired, JobState, Origin
from hatoba_scheduler.domain.transitions import (
    Intent,
    Now,
    Rows,
    Settings,
    cancel,
    fail_fast,
    first_state,
    hold,
    initial_counts,
    launch,
    submitted,
    updated,
)
from hatoba_scheduler.simulation.agenda import SECOND, Agenda
from hatoba_scheduler.simulation.books import Books, Decide
from hatoba_scheduler.simulation.cluster import Callback, Cluster, Delays, Span
from hatoba_scheduler.simulation.script import Script

PROJECT = "default"
START: Micros = 1_700_000_000 * SECOND
WORK = 2_000
"""Units of planning in one call."""
TICK = 60.0
"""Seconds between looks at what waits, for what only the passing of time changes."""
LOST = Ending(ExitKind.LOST)
RECLAIMED = Ending(ExitKind.PREEMPTED, spot=True)
_BAD = frozenset({JobState.FAILED, JobState.TIMED_OUT})


@dataclass(frozen=True, slots=True)
class Ask:
    """What is submitted. `after_ok` and its like name jobs by uid."""

    name: str = "job"
    resources: Resources = Resources()
    queue: str = "default"
    priority: int = 0
    size: int = 1
    max_parallel: int = 0
    terms: Terms = PLAIN
    retries: RetryPolicy = RetryPolicy()
    labels: tuple[tuple[str, str], ...] = ()
    after_ok: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    after_end: tuple[str, ...] = ()
    fail_fast: bool = False
    held: bool = False
    owner: str = "user"
    stop_grace: float = 10.0


class Simulation:
    """One installation. Every method acts at the present moment; `until` lets time pass."""

    def __init__(
        self,
        *,
        start: Micros = START,
        rules: PlannerRules | None = None,
        delays: Delays | None = None,
        seed: int = 0,
    ) -> None:
        self.agenda = Agenda(start)
        self.books = Books()
        self.planner = Planner(rules) if rules else Planner()
        self.feed = Feed(self.planner, self.books.rows)
        self.cluster = Cluster(self.books, self.agenda, random.Random(seed), delays)
        self._pools: dict[str, dict[str, PoolRoom]] = defaultdict(dict)
        self._waiting: dict[str, list[str]] = defaultdict(list)
        self._queued: dict[str, Micros] = {}
        self._woken: set[Micros] = set()
        self._unfinished: set[str] = set()
        self._in_line: set[str] = set()
        self._uids = 0
        self.rounds = 0
        self.books.listen(self._on_commit)
        self.queue("default")

    # -- the installation -------------------------------------------------------------------------

    @property
    def now(self) -> Micros:
        """Microseconds since 1970."""
        return self.agenda.now

    def queue(self, name: str, **settings: object) -> None:
        """Make or change a queue; settings are fields of QueueSettings, `parent` by name."""
        parent = settings.pop("parent", None)
        above = (PROJECT, str(parent)) if parent else None
        made = QueueSettings((PROJECT, name), above, **settings)  # type: ignore[arg-type]
        self.planner.set_queue(made)

    def backend(self, name: str, **settings: object) -> None:
        """Change a backend; settings are fields of BackendSettings."""
        self.planner.set_backend(BackendSettings(name, **settings))  # type: ignore[arg-type]

    def pools(self, backend: str, *pools: PoolRoom) -> None:
        """Add pools to a backend, or replace those of the same names."""
        if backend not in self._pools:
            self.backend(backend)
        self._pools[backend].update({pool.name: pool for pool in pools})
        self.planner.describe(backend, [replace(p) for p in self._pools[backend].values()])

    def lose_pool(self, backend: str, pool: str, *, reclaimed: bool = False) -> None:
        """A pool is gone with all that runs there: a crash, or spot capacity taken back."""
        self._pools[backend].pop(pool)
        self.planner.describe(backend, [replace(p) for p in self._pools[backend].values()])
        self.cluster.fail_pool(backend, pool, RECLAIMED if reclaimed else LOST)

    # -- jobs -------------------------------------------------------------------------------------

    def submit(self, ask: Ask, script: Script | None = None) -> str:
        """Submit a job now; its uid. Ended upstreams count as they ended."""
        self._uids += 1
        milliseconds = self.now // 1_000
        uid = f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7000-8000-{self._uids:012x}"
        waits = {uid for uids in (ask.after_ok, ask.after_any, ask.after_end) for uid in uids}
        job = _new_job(ask, uid, self.now)
        if script is not None:
            self.cluster.script(uid, script)
        self.books.add(job, submitted(job, Now(self.now, ask.owner)))
        for upstream in waits:
            self._waiting[upstream].append(uid)
            rows = self.books.rows(upstream)
            if rows is not None and rows.job.state.terminal:
                self._carry(rows.job)
        return uid

    def submit_all(self, asks: Iterable[Ask], script: Script | None = None) -> list[str]:
        """Submit many; their uids."""
        return [self.submit(ask, script) for ask in asks]

    def cancel(self, uid: str) -> None:
        """The owner wants it ended."""
        cause = Cause(CauseCode.CANCELLED, Origin.POLICY, "Cancelled by user.", False)
        self.books.decide(uid, lambda rows: cancel(rows, cause, self._time("user")))

    def hold(self, uid: str, held: bool = True) -> None:
        """Keep back, or let go."""
        self.books.decide(uid, lambda rows: hold(rows, held, self._time("user")))

    def update(self, uid: str, *, priority: int | None = None, queue: str | None = None) -> None:
        """Another priority or queue."""
        settings = Settings(priority=priority, queue=queue)
        self.books.decide(uid, lambda rows: updated(rows, settings, self._time("user")))

    # -- looking ----------------------------------------------------------------------------------

    def job(self, uid: str) -> Job:
        """A job as it is."""
        return self.rows(uid).job

    def rows(self, uid: str) -> Rows:
        """A job with its tasks and attempts."""
        rows = self.books.rows(uid)
        assert rows is not None
        return rows

    def state(self, uid: str) -> JobState:
        """Where it stands."""
        return self.job(uid).state

    def spans(self, uid: str) -> list[Span]:
        """Runs of its code, in the order in which they began."""
        return [span for span in self.cluster.spans if span.uid == uid]

    def events(self, uid: str) -> list[Event]:
        """What happened to it."""
        return [event for event in self.books.events if event.job_uid == uid]

    def explain(self, uid: str) -> Explained:
        """Why it does not run, of one that stands in line."""
        job = self.job(uid)
        members = job.size if job.terms.gang else 1
        needs = needs_of(job, members=members)
        return self.planner.explain(uid, queue_key(job), needs, job.priority, self.now)

    # -- time -------------------------------------------------------------------------------------

    def until(self, time: Micros) -> None:
        """Let time pass up to this moment."""
        self.plan()
        while (due := self.agenda.next) is not None and due <= time:
            self.agenda.step()
            self.plan()
        self.agenda.pass_to(time)

    def run_for(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.until(self.now + round(seconds * SECOND))

    def run(self, limit: float = 3.2e9) -> None:
        """Go on until every job has ended. Raises TimeoutError after `limit` simulated seconds."""
        end = self.now + round(limit * SECOND)
        self.plan()
        while self._unfinished:
            if self.agenda.next is None or self.agenda.next > end:
                raise TimeoutError("some jobs never end")
            self.agenda.step()
            self.plan()

    def plan(self) -> None:
        """Plan until nothing more can be decided at this moment."""
        self.feed.pass_to(self.now)
        while True:
            self.rounds += 1
            decided = self.planner.plan(self.now, WORK)
            self.feed.planned(decided.assignments)
            for assignment in decided.assignments:
                self._launch(assignment)
            for preemption in decided.preemptions:
                self._preempt(preemption)
            if not decided.more and not decided.assignments and not decided.preemptions:
                break
        self._wake_later()

    def _wake_later(self) -> None:
        """Look again when a date of the feed comes, and now and then while anything waits."""
        due = self.feed.next_due
        if due is not None:
            self._wake_at(due)
        if self._in_line:
            tick = round(TICK * SECOND)
            self._wake_at((self.now // tick + 1) * tick)

    def _wake_at(self, time: Micros) -> None:
        if time not in self._woken:
            self._woken.add(time)
            self.agenda.at(time, lambda: self._woken.discard(time))

    # -- carrying out -----------------------------------------------------------------------------

    def _time(self, actor: str = "system") -> Now:
        return Now(self.now, actor)

    def _launch(self, assignment: Assignment) -> None:
        def decide(rows: Rows) -> Change | None:
            intents = _intents(rows, assignment)
            if rows.job.terms.gang:
                return gangs.launch_all(rows, intents, self._time())
            return launch(rows, intents[0], self._time())

        if self.books.decide(job_of(assignment.uid), decide) is None:
            self.feed.reject(assignment)

    def _preempt(self, preemption: Preemption) -> None:
        for uid, indices in _by_job(self.books, preemption.victims).items():
            cause = preempted(preemption.note)
            self.books.decide(uid, _giving_way(indices, cause, self._time()))

    # -- following --------------------------------------------------------------------------------

    def _on_commit(self, before: Job | None, change: Change, rows: Rows) -> None:
        self.feed.take(before, change, rows)
        job = rows.job
        _keep(self._unfinished, job.uid, not job.state.terminal)
        _keep(self._in_line, job.uid, bool(job.counts[JobState.QUEUED]))
        self._follow_time(before, rows)
        for event in change.events:
            if event.job_terminal:
                self._carry(job)
            elif event.terminal and event.to_state in _BAD and job.fail_fast:
                self.agenda.at(self.now, self._failer(job.uid, event.index))

    def _failer(self, uid: str, index: int | None) -> Callback:
        return lambda: self.books.decide(uid, lambda rows: fail_fast(rows, index, self._time()))

    def _carry(self, ended: Job) -> None:
        """The end of a job reaches those that wait for it, each in a step of its own."""
        upstream = Upstream(ended.uid, ended.name, ended.state)
        for uid in self._waiting.pop(ended.uid, ()):
            self.agenda.at(self.now, self._carrier(uid, upstream))

    def _carrier(self, uid: str, upstream: Upstream) -> Callback:
        return lambda: self.books.decide(
            uid, lambda rows: upstream_ended(rows, upstream, self._time())
        )

    def _follow_time(self, before: Job | None, rows: Rows) -> None:
        job = rows.job
        if timing.timed(job):
            known = self._queued.get(job.uid, 0)
            self._queued[job.uid] = timing.queues_since(before, job, known, self.now)
            due = timing.next_due(rows, self._queued[job.uid])
            if due is not None:
                self.agenda.at(due.time, self._clock_of(job.uid))
        claims = gangs.claims_due(rows) if job.terms.gang else None
        if claims is not None:
            self.agenda.at(claims, self._gang_timer(job.uid))

    def _gang_timer(self, uid: str) -> Callback:
        return lambda: self.books.decide(uid, lambda rows: gangs.timed_out(rows, self._time()))

    def _clock_of(self, uid: str) -> Callback:
        def decide(rows: Rows) -> Change | None:
            due = timing.next_due(rows, self._queued[uid])
            if due is None or due.time > self.now:
                return None
            return timing.timed_out(rows, due.cause, self._time())

        return lambda: self.books.decide(uid, decide)


def _keep(uids: set[str], uid: str, there: bool) -> None:
    if there:
        uids.add(uid)
    else:
        uids.discard(uid)


def _new_job(ask: Ask, uid: str, now: Micros) -> Job:
    waits = ask.after_ok + ask.after_any + ask.after_end
    state = first_state(ask.held, waits)
    return Job(
        uid=uid,
        project=PROJECT,
        name=f"{ask.name}-{int(uid[-12:], 16)}",
        queue=ask.queue,
        backend=ask.terms.backends[0] if ask.terms.backends else "hosts",
        priority=ask.priority,
        size=ask.size,
        max_parallel=ask.max_parallel,
        fail_fast=ask.fail_fast,
        resources=ask.resources,
        retries=ask.retries,
        state=state,
        desired=Desired.RUN,
        version=1,
        settings_version=1,
        unstarted=Ranges.upto(ask.size),
        unstarted_state=state,
        counts=initial_counts(ask.size, state),
        hold=ask.held,
        blocked_on=ask.after_ok,
        blocked_any=ask.after_any,
        blocked_end=ask.after_end,
        created_by=ask.owner,
        create_time=now,
        labels=ask.labels,
        stop_grace=ask.stop_grace,
        terms=ask.terms,
    )


def _intents(rows: Rows, assignment: Assignment) -> list[Intent]:
    return [
        Intent(
            index=index,
            name=attempt_name(1, rows.job.uid, index, _next_number(rows, index)),
            backend=place.backend,
            host=place.pool,
            gpus=place.gpus,
            reserved=assignment.needs.resources,
            fenced=True,
            span_id="",
        )
        for index, place in zip(assignment.tasks, assignment.places, strict=True)
    ]


def _next_number(rows: Rows, index: int) -> int:
    task = rows.tasks.get(index)
    return task.attempt + 1 if task else 1


def _by_job(books: Books, names: Sequence[str]) -> dict[str, list[int]]:
    """Tasks whose newest attempts have these names, by job."""
    found = defaultdict[str, list[int]](list)
    for name in names:
        where = books.find_attempt(name)
        if where is not None:
            found[where[0]].append(where[1])
    return dict(found)


def _giving_way(indices: Sequence[int], cause: Cause, now: Now) -> Decide:
    return lambda rows: give_way(rows, indices, cause, now)
