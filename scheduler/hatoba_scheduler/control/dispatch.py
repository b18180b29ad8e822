"""Turns room into launches: feeds the planner from commits and commits its intents.

What the planner knows of waiting jobs follows the ledger; nothing here is remembered that could
not be rebuilt from it. It plans in slices of at most a millisecond, with everybody else's turn
between two of them, and does not wait for one slice's commits before it plans the next.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.alarm import Alarm
from hatoba_scheduler.control.ledger import Answer, Commit, Ledger
from hatoba_scheduler.control.rounds import Slice
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.gangs import launch_all
from hatoba_scheduler.domain.naming import attempt_name
from hatoba_scheduler.domain.planning.feed import Feed, job_of, under_way
from hatoba_scheduler.domain.planning.model import (
    Assignment,
    BackendSettings,
    Explained,
    Place,
    PlannerRules,
    Preemption,
    QueueKey,
    QueueSettings,
    QueueShare,
    Round,
)
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.preempting import give_way, preempted
from hatoba_scheduler.domain.records import Attempt, Change, Event, Job, Micros, Queue, Resources
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import Intent, Now, Rows, launch
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import Parked
from hatoba_scheduler.telemetry.timings import Timings

IN_FLIGHT = 1_000
"""Assignments whose intents may be on their way into the store."""
TICK = 1.0
"""Seconds after which it is planned anew while anything waits: time alone may decide something."""
FAILED_PAUSE = 1.0
"""Seconds until intents are tried again after the store did not take some."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """What dispatch must know of a backend to write an intent for it."""

    fenced: bool
    launch: Callable[[Attempt], None]
    """Takes over a committed intent; must not block."""


@dataclass(frozen=True, slots=True)
class _Landed:
    """What became of an assignment's intents; the answer is None where nothing was written."""

    assignment: Assignment
    answer: Answer


class Dispatcher:
    """The loop from waiting tasks to committed intents. Owns the planner."""

    def __init__(
        self, ledger: Ledger, clock: Clock, epoch: int, rules: PlannerRules | None = None
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._epoch = epoch
        self.planner = Planner(rules)
        self.rounds = Timings()
        """How long planning took of late."""
        self._feed = Feed(self.planner, ledger.rows)
        self._sites: dict[str, Site] = {}
        self._slice = Slice(clock)
        self._wake = asyncio.Event()
        self._alarm = Alarm(clock)
        self._ticks = False
        self._in_flight = 0
        self._landed: deque[_Landed] = deque()
        self._unread: list[str] = []
        """Jobs not in memory whose launch was not committed: they may wait again."""
        self._ids = random.Random()
        self._most: dict[tuple[object, ...], int] = {}
        self.away: Callable[[Rows], Explained | None] = _nobody_away
        """Why the devices that a job is for keep it waiting."""
        ledger.listen(self.on_commit, self.on_parked)

    # -- what it is told --------------------------------------------------------------------------

    def add_site(self, backend: str, site: Site) -> None:
        """A backend is open: what waits for it may be launched."""
        self._sites[backend] = site
        self._wake.set()

    def set_queue(self, queue: Queue) -> None:
        """A queue was made or changed."""
        self.planner.set_queue(queue_settings(queue))
        self._wake.set()

    def drop_queue(self, key: QueueKey) -> None:
        """A queue is gone."""
        self.planner.drop_queue(key)
        self._wake.set()

    def set_backend(self, settings: BackendSettings) -> None:
        """A backend takes work, or none, or so much."""
        self.planner.set_backend(settings)
        self._wake.set()

    def describe(self, backend: str, pools: Sequence[PoolRoom]) -> None:
        """A backend told of its pools."""
        self.planner.describe(backend, pools)
        self._most.clear()
        self._wake.set()

    def recover(self) -> None:
        """Take in everything that is in the ledger's memory, at start."""
        for rows in self._ledger.all_rows():
            self._feed.recover(rows)
        self._wake.set()

    def on_parked(self, batch: Sequence[Parked]) -> None:
        """Take in jobs that are not in the ledger's memory, at start."""
        self._feed.take_parked(alike for alike in batch if alike.state is JobState.QUEUED)
        self._wake.set()

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        due = self._feed.next_due
        for commit in commits:
            self._feed.take(commit.before, commit.change, commit.rows)
        if self._feed.next_due != due:
            self._alarm.ring()
        self._wake.set()

    # -- what it says -----------------------------------------------------------------------------

    def explain(self, job: Job, now: Micros, *, brief: bool = False) -> Explained:
        """Why a job that waits in line is not running; brief: the reason and its words alone."""
        rows = self._ledger.rows(job.uid) or Rows(job, {}, {})
        if away := self.away(rows):
            return away
        return self.planner.explain(*self._feed.place_of(rows), now, brief=brief)

    def plan_new(self, job: Job, now: Micros) -> Explained:
        """What would become of a job if it were submitted now."""
        if away := self.away(Rows(job, {}, {})):
            return away
        return self.planner.explain_new(self._feed.entry_of(job), now)

    def never_fits(self, job: Job) -> str:
        """Why no known place could ever hold it, even empty; empty: one could, or none is known."""
        if job.terms.devices:
            # What a device has is known while its stream for jobs is open, and was asked at submit.
            return ""
        return self.planner.never_fits(self._feed.entry_of(job).needs)

    def most_memory(self, job: Job) -> int:
        """Bytes of the largest place where a job may go; 0: none is known."""
        backends = job.terms.backends or (job.backend,)
        key = (backends, job.embedded_only, job.secrets)
        if key not in self._most:
            rooms = (room for name in backends for room in self.planner.pools(name))
            memory = (room.total.memory for room in rooms if _suits(room, job))
            self._most[key] = max(memory, default=0)
        return self._most[key]

    def on_spot(self, attempt: Attempt) -> bool:
        """Whether an attempt was sent to capacity that its provider may take back."""
        return self.planner.on_spot(attempt.backend, attempt.host)

    def share(self, key: QueueKey) -> QueueShare:
        """What a queue may claim and uses."""
        return self.planner.share(key)

    def total(self) -> Resources:
        """All known capacity; nothing while no backend has told of any."""
        return self.planner.total()

    # -- the loops --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan and commit intents whenever something changed; ends by cancellation."""
        while True:
            try:
                await self._wake.wait()
                self._wake.clear()
                await self._round()
            except Exception:
                log.exception("dispatch.failed")
                await self._clock.sleep(FAILED_PAUSE)
                self._wake.set()

    async def run_timer(self) -> None:
        """Have it planned when a time has come that something waited for, and now and then while
        anything waits in line."""
        while True:
            try:
                await self._tick()
            except Exception:
                log.exception("dispatch.timer.failed")
                await self._clock.sleep(FAILED_PAUSE)

    async def _tick(self) -> None:
        self._feed.pass_to(self._now())
        moments = [self._clock.time() + TICK] if self.planner.waits else []
        if self._feed.next_due is not None:
            moments.append(self._feed.next_due / 1e6)
        self._ticks = self.planner.waits
        await self._alarm.sleep_until(min(moments, default=None))
        self._wake.set()

    def _now(self) -> Micros:
        return round(self._clock.time() * 1e6)

    async def _round(self) -> None:
        """Slice after slice, until nothing more is to be decided now."""
        took, more = 0.0, True
        while more:
            if not self._settle():
                await self._clock.sleep(FAILED_PAUSE)
            if self._unread:
                await self._read_again()
            if self._in_flight >= IN_FLIGHT:
                break
            now = self._now()
            self._feed.pass_to(now)
            found, spent = self._slice.plan(self.planner, now)
            took += spent
            self._carry_out(found)
            more = found.more
            await asyncio.sleep(0)
        self.rounds.add(took)
        if self.planner.waits and not self._ticks:
            self._alarm.ring()

    def _carry_out(self, found: Round) -> None:
        self._feed.planned(found.assignments)
        self._in_flight += len(found.assignments)
        now = Now(self._now())
        for assignment in found.assignments:
            try:
                hit("dispatch.intent.before")
                decide = partial(self._decide, assignment, now)
                told = partial(self._land, assignment)
                self._ledger.request(job_of(assignment.uid), decide, told)
            except Exception as error:  # noqa: BLE001 - its places must not stay taken
                self._land(assignment, error)
        for preemption in found.preemptions:
            self._preempt(preemption)

    # -- launching --------------------------------------------------------------------------------

    def _decide(self, assignment: Assignment, now: Now, rows: Rows) -> Change | None:
        job = rows.job
        if job.max_parallel and under_way(job) >= job.max_parallel:
            return None
        intents = [
            self._intent(rows, task, place, assignment)
            for task, place in zip(assignment.tasks, assignment.places, strict=True)
        ]
        if job.terms.gang:
            return launch_all(rows, intents, now)
        return launch(rows, intents[0], now)

    def _intent(self, rows: Rows, index: int, place: Place, assignment: Assignment) -> Intent:
        task = rows.tasks.get(index)
        number = task.attempt + 1 if task else 1
        site = self._sites.get(place.backend)
        return Intent(
            index=index,
            name=attempt_name(self._epoch, rows.job.uid, index, number),
            backend=place.backend,
            host=place.pool,
            gpus=place.gpus,
            reserved=assignment.needs.resources,
            fenced=site is not None and site.fenced,
            span_id=f"{self._ids.getrandbits(64):016x}",
        )

    def _land(self, assignment: Assignment, answer: Answer) -> None:
        self._landed.append(_Landed(assignment, answer))
        self._wake.set()

    def _settle(self) -> bool:
        """Hand committed intents to their backends; False when the store did not take some."""
        stored = True
        while self._landed:
            landed = self._landed.popleft()
            self._in_flight -= 1
            if isinstance(landed.answer, Change):
                self._launch(landed.answer, landed.assignment)
                continue
            stored = stored and landed.answer is None
            if not self._feed.reject(landed.assignment):
                self._unread.append(job_of(landed.assignment.uid))
        return stored

    def _launch(self, change: Change, assignment: Assignment) -> None:
        try:
            hit("dispatch.intent.after")
        finally:
            tasks = set(assignment.tasks)
            for attempt, _ in change.attempts:
                if attempt.index in tasks and attempt.backend in self._sites:
                    self._sites[attempt.backend].launch(attempt)

    async def _read_again(self) -> None:
        """Put back what waits, is not in memory, and was not launched."""
        unread, self._unread = self._unread, []
        try:
            found = await self._ledger.load_all(unread)
        except Exception:
            self._unread += unread
            raise
        for rows in found.values():
            self._feed.recover(rows)

    # -- preempting -------------------------------------------------------------------------------

    def _preempt(self, preemption: Preemption) -> None:
        """Have attempts give way; what is not stored is found out by the planner's next round."""
        rows = self._ledger.rows(job_of(preemption.uid))
        whom = f"{rows.job.project}/{rows.job.name}" if rows else job_of(preemption.uid)
        cause = preempted(f"Its place was taken for {whom}: {preemption.note}")
        victims: dict[str, dict[int, str]] = {}
        for name in preemption.victims:
            where = self._ledger.find_attempt(name)
            if where is not None:
                victims.setdefault(where[0], {})[where[1]] = name
        now = Now(self._now())
        for uid, names in victims.items():
            try:
                hit("dispatch.preempt.before")
                decide = partial(give_way, indices=names.keys(), cause=cause, now=now)
                self._ledger.request(uid, decide, partial(self._preempted, tuple(names.values())))
            except Exception as error:  # noqa: BLE001 - nobody must count as leaving for ever
                self._keep(names.values(), error)

    def _preempted(self, victims: Iterable[str], answer: Answer) -> None:
        if isinstance(answer, BaseException):
            self._keep(victims, answer)

    def _keep(self, victims: Iterable[str], error: BaseException) -> None:
        """They were not told to give way."""
        log.warning("preemption.not_stored", victims=list(victims), error=repr(error))
        for name in victims:
            self.planner.changed(name, leaving=False)
        self._wake.set()


def _nobody_away(rows: Rows) -> Explained | None:
    """There are no devices."""
    del rows
    return None


def _suits(room: PoolRoom, job: Job) -> bool:
    """Whether tasks of a job could be there now, had it room."""
    mine = room.embedded or not job.embedded_only
    return room.accepting and mine and set(job.secrets) <= room.secrets


def queue_settings(queue: Queue) -> QueueSettings:
    """A queue as the planner sees it."""
    return QueueSettings(
        key=(queue.project, queue.name),
        parent=(queue.project, queue.parent) if queue.parent else None,
        weight=queue.weight,
        max_running=queue.max_running,
        quota=queue.quota,
        guaranteed=queue.guaranteed,
        no_borrowing=queue.no_borrowing,
        cordoned=queue.cordoned,
        cordon_reason=queue.cordon_reason,
    )
