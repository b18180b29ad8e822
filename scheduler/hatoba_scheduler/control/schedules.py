"""Submits jobs by the clock: for each time of a schedule at most one, whatever crashes.

What is about to be submitted is stored first; the submit has a request key made of the schedule and
the time; then the schedule moves on. A crash anywhere between is carried on at the next start, and
the key finds the job that was made before it. One heap of moments; the loop sleeps until the next.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.alarm import Alarm
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.control.schedule_book import Live, ScheduleBook
from hatoba_scheduler.control.submit import Caller
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.records import Event, Job, Micros
from hatoba_scheduler.domain.schedules import (
    Act,
    Before,
    CatchUp,
    Schedule,
    Step,
    astray,
    brought_back,
    delayed,
    due_times,
    let_pass,
    next_step,
    next_time,
    refused,
    submitted,
    submitting,
    taken,
)
from hatoba_scheduler.domain.transitions import Now, cancel
from hatoba_scheduler.errors import HatobaError, ResourceExhausted, Unavailable
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import Duplicate, RequestKey, Store
from hatoba_scheduler.telemetry.tracing import SpanContext

log = structlog.get_logger(__name__)

LABEL = "hatoba/schedule"
"""Label of every job of a schedule: the schedule's name."""
TIME_LABEL = "hatoba/scheduled-for"
"""Label of a job that was submitted for a time: that time, as RFC 3339 in UTC."""
AGAIN = 5.0
"""Seconds until what could not be submitted is tried again; doubled each time."""
AGAIN_AT_MOST = 60.0
AT_ONCE = 64
PUT_BACK = 60.0
"""Seconds by which a clock is put back at least for its moments to be found anew."""
SUBMIT_SECONDS = 60.0
_LOOKED_UP = 500
_NOT_NOW = (Unavailable, ResourceExhausted, TimeoutError)


class Submit(Protocol):
    """Makes a job on somebody's behalf, once for each key."""

    async def __call__(self, spec: job_pb2.JobSpec, caller: Caller, key: RequestKey) -> Job:
        """The job. Raises what SubmitJob refuses with."""
        ...


@dataclass(frozen=True, slots=True)
class ScheduleParts:
    """What the loop stands on. `trace` begins a new trace."""

    store: Store
    book: ScheduleBook
    ledger: Ledger
    clock: Clock
    trace: Callable[[], SpanContext]


def spec_of(schedule: Schedule) -> job_pb2.JobSpec:
    """What a run of a schedule submits."""
    spec = job_pb2.JobSpec.FromString(schedule.settings.spec)
    spec.name = schedule.name
    spec.labels[LABEL] = schedule.name
    return spec


class Schedules:
    """The loop that looks at each schedule when its time has come."""

    def __init__(self, parts: ScheduleParts) -> None:
        self._parts = parts
        self._book = parts.book
        self._clock = parts.clock
        self._alarm = Alarm(parts.clock)
        self._submit: asyncio.Future[Submit] = asyncio.get_running_loop().create_future()
        self._heap: list[tuple[Micros, str]] = []
        self._due: dict[str, Micros] = {}
        """By schedule: its one entry of the heap that counts."""
        self._watched: dict[str, str] = {}
        """By the uid of a job that has not ended: its schedule."""
        self._busy: set[str] = set()
        self._ahead = parts.clock.time() - parts.clock.monotonic()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._book.on_change(self._look_at)
        parts.ledger.listen(self.on_commit)

    def open(self, submit: Submit) -> None:
        """Jobs can be submitted from now on."""
        self._submit.set_result(submit)

    async def recover(self) -> None:
        """Take up all schedules, and which of their runs have not ended."""
        for live in [live for live in self._book.all() if live.schedule.submitting]:
            await self._find_submitted(live)
        lives = {live.schedule.last_job: live for live in self._book.all()}
        uids = [uid for uid in lives if uid]
        for start in range(0, len(uids), _LOOKED_UP):
            some = uids[start : start + _LOOKED_UP]
            for uid, job in (await self._parts.store.jobs_by_uid(some)).items():
                if not job.state.terminal:
                    self._watch(lives[uid], job)
        for live in self._book.all():
            self._look_at(live)

    async def adopted(self) -> None:
        """Of a store from a backup: leave out all times up to now, for each may have had its run.

        Whether it had died with the store that was in use until then, and nothing runs twice.
        """
        now = self._now()
        for live in list(self._book.all()):
            time = self._newest_due(live, now)
            if time:
                decide = partial(let_pass, time=time, now=now)
                await self._book.change(live.schedule.uid, decide)
                live.backlog.clear()
                self._look_at(live)

    def _newest_due(self, live: Live, now: Micros) -> Micros:
        """The newest time whose run the schedule would make now; 0: none."""
        schedule = live.schedule
        due = due_times(schedule, live.times, now) if live.times is not None else []
        return max(schedule.submitting, schedule.waiting, *due)

    async def _find_submitted(self, live: Live) -> None:
        """What was submitted just before a crash is known, before its request is forgotten."""
        time = live.schedule.submitting
        job = await self._made_before(_key(live.schedule, time))
        if job is not None:
            step = Step(Act.SUBMIT, time, "")
            await self._book.change(
                live.schedule.uid, lambda one: submitted(one, step, job.uid, job.name)
            )

    async def _made_before(self, key: RequestKey) -> Job | None:
        met = await self._parts.store.recall_request(key)
        return await self._parts.store.job(met.resource) if isinstance(met, Duplicate) else None

    # -- when to look ---------------------------------------------------------------------------

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        if not self._watched:
            return
        for commit in commits:
            if commit.change.job.state.terminal:
                self._note_end(commit.change.job.uid)

    def _watch(self, live: Live, job: Job) -> None:
        live.running = job.name
        self._watched[job.uid] = live.schedule.uid

    def _note_end(self, job_uid: str) -> None:
        """A run ended: what waited for it may go."""
        live = self._book.find(self._watched.pop(job_uid, ""))
        if live is not None and live.schedule.last_job in ("", job_uid):
            live.running = ""
            self._look_at(live)

    def _look_at(self, live: Live) -> None:
        """Set the moment at which a schedule is looked at next."""
        schedule, now = live.schedule, self._now()
        if live.times is None:
            return
        if schedule.submitting or live.backlog or (schedule.waiting and not live.running):
            self._set(schedule.uid, now)
            return
        time = next_time(schedule, live.times, now)
        if time is None:
            self._due.pop(schedule.uid, None)
        else:
            self._set(schedule.uid, time)

    def _set(self, uid: str, time: Micros) -> None:
        self._due[uid] = time
        heapq.heappush(self._heap, (time, uid))
        if self._heap[0] == (time, uid):
            self._alarm.ring()

    def _now(self) -> Micros:
        return round(self._clock.time() * 1e6)

    # -- looking --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Submit what is due; ends by cancellation."""
        await self._submit
        async with asyncio.TaskGroup() as group:
            while True:
                while (uid := self._take_due()) is not None:
                    await self._places.acquire()
                    self._busy.add(uid)
                    group.create_task(self._serve(uid), name="schedule")
                await self._alarm.sleep_until(self._heap[0][0] / 1e6 if self._heap else None)
                await self._notice_clock()

    async def _notice_clock(self) -> None:
        """After the wall clock was put back all moments are found anew."""
        ahead = self._clock.time() - self._clock.monotonic()
        put_back = ahead < self._ahead - PUT_BACK
        self._ahead = ahead
        if put_back:
            for live in list(self._book.all()):
                self._look_at(live)
                await asyncio.sleep(0)

    def _take_due(self) -> str | None:
        now = self._now()
        while self._heap and self._heap[0][0] <= now:
            time, uid = heapq.heappop(self._heap)
            # One that is being served is looked at again after that.
            if self._due.get(uid) == time and uid not in self._busy:
                del self._due[uid]
                return uid
        return None

    async def _serve(self, uid: str) -> None:
        """Do all that is due for one schedule."""
        again = False
        try:
            while await self._step(uid):
                pass
        except _NOT_NOW as error:
            log.warning("schedule.not_now", schedule=uid, error=str(error))
            again = True
        except Exception:
            # What one schedule trips over holds up no other.
            log.exception("schedule.failed", schedule=uid)
            again = True
        finally:
            self._busy.discard(uid)
            self._places.release()
        self._look_again(uid, failed=again)

    def _look_again(self, uid: str, failed: bool) -> None:
        live = self._book.find(uid)
        if live is None:
            return
        live.failures = live.failures + 1 if failed else 0
        if failed:
            wait = min(AGAIN_AT_MOST, AGAIN * 2.0 ** min(live.failures - 1, 10))
            self._set(uid, self._now() + round(wait * 1e6))
        elif not (live.running and live.backlog):
            self._look_at(live)

    async def _step(self, uid: str) -> bool:
        """Do the next thing for a schedule; False when there is nothing now."""
        live = self._book.find(uid)
        if live is None or live.times is None:
            return False
        now = self._now()
        if astray(live.schedule, now):
            await self._book.change(uid, lambda schedule: brought_back(schedule, now))
            return True
        before = Before(live.running) if live.running else None
        step = next_step(live.schedule, self._oldest_due(live), now, before)
        if step is None:
            return False
        if step.act is Act.SUBMIT:
            await self._carry_out(live, step)
        else:
            await self._book.change(uid, lambda schedule: taken(schedule, step))
        return True

    def _oldest_due(self, live: Live) -> Micros | None:
        assert live.times is not None
        backlog = live.backlog
        while backlog and backlog[0] <= live.schedule.position:
            backlog.popleft()
        if live.schedule.settings.catch_up is not CatchUp.ALL or live.schedule.settings.paused:
            backlog.clear()
        if not backlog:
            backlog.extend(due_times(live.schedule, live.times, self._now()))
        return backlog[0] if backlog else None

    # -- submitting -----------------------------------------------------------------------------

    async def _carry_out(self, live: Live, step: Step) -> None:
        uid = live.schedule.uid
        if not live.schedule.submitting:
            hit("schedule.intent.before")
            if await self._book.change(uid, lambda schedule: submitting(schedule, step)) is None:
                return
            hit("schedule.intent.after")
        if step.replaces:
            await self._cancel_before(live, step)
        try:
            async with asyncio.timeout(SUBMIT_SECONDS):
                job = await self._submit_for(live.schedule, step.time)
        except _NOT_NOW as error:
            await self._note_delay(live, str(error) or f"no answer within {SUBMIT_SECONDS:g} s")
            raise
        except HatobaError as error:
            why = error.message
            await self._book.change(uid, lambda schedule: refused(schedule, step, why))
            return
        hit("schedule.submit.after")
        await self._book.change(uid, lambda one: submitted(one, step, job.uid, job.name))
        hit("schedule.moved.after")
        await self._follow(live, job)

    async def _note_delay(self, live: Live, why: str) -> None:
        words = f"not submitted yet: {why}"
        if live.schedule.last_outcome != words:
            await self._book.change(live.schedule.uid, lambda one: delayed(one, words))

    async def _cancel_before(self, live: Live, step: Step) -> None:
        name = live.schedule.name
        cause = causes.cancelled(f"schedule {name}", f"replaced by the run of {_shown(step.time)}")
        now = Now(self._now())
        await self._parts.ledger.decide(
            live.schedule.last_job, lambda rows: cancel(rows, cause, now)
        )

    async def _submit_for(self, schedule: Schedule, time: Micros) -> Job:
        key = _key(schedule, time)
        made = await self._made_before(key)
        if made is not None:
            # What it needs may be gone since: it would be refused now.
            return made
        spec = spec_of(schedule)
        spec.labels[TIME_LABEL] = _shown(time)
        caller = Caller(schedule.created_by, schedule.project, self._parts.trace())
        return await self._submit.result()(spec, caller, key)

    async def _follow(self, live: Live, job: Job) -> None:
        """Watch a run to its end, which may have come before we began to."""
        self._watch(live, job)
        rows = await self._parts.ledger.load(job.uid)
        if rows is None or rows.job.state.terminal:
            self._note_end(job.uid)


def _shown(time: Micros) -> str:
    return f"{dt.datetime.fromtimestamp(time / 1e6, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _key(schedule: Schedule, time: Micros) -> RequestKey:
    """What makes the run of a time the only one, however its specification changed meanwhile."""
    text = f"{schedule.uid}:{time}"
    return RequestKey(schedule.project, "Schedule", text, hashlib.sha256(text.encode()).digest())
