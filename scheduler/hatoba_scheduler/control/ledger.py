"""The one place where jobs change: decides on rows in memory, commits, then tells.

Decisions are pure functions of a job's rows. All that are asked for while a commit is under way are
taken together in the next one; each sees the outcome of those before it. Memory, futures and
listeners move only after the commit. Jobs that are over leave memory once nothing of them is held.
Of plain waiting jobs (`domain.parking`) a bounded number is in memory; the others are parked: they
are in the store alone, and loaded when something is decided about them.
"""

from __future__ import annotations

import asyncio
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import structlog

from hatoba_scheduler.control.gather import Gatherer
from hatoba_scheduler.domain.changing import changed as changed_record
from hatoba_scheduler.domain.changing import quick
from hatoba_scheduler.domain.parking import is_plain
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Attempt,
    AttemptWrite,
    Change,
    Event,
    Job,
    Task,
    TaskWrite,
    combined,
)
from hatoba_scheduler.domain.states import Release
from hatoba_scheduler.domain.transitions import Rows
from hatoba_scheduler.errors import HatobaError, Unavailable
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import (
    Applied,
    Duplicate,
    LiveState,
    Mismatch,
    Parked,
    Stale,
    Store,
    Submission,
    Submitted,
)
from hatoba_scheduler.store.errors import WriteRefused

Decide = Callable[[Rows], Change | None]
Answer = Change | BaseException | None
"""What became of a decision: what was committed, None for nothing, or why it was not stored."""
SubmitResult = Submitted | Duplicate | Mismatch
BATCH = 500
QUEUE = 20_000
KEEP = 20_000
SLICE = 20
"""Jobs that are decided on, or that listeners hear of, between two turns that others get."""
UNSURE_PAUSE = 0.5
"""Seconds until a store that could not be read is asked again what became of failed commits."""
FEW = 8
"""Started tasks in memory up to which a batch works on copies of a job's rows."""

log = structlog.get_logger(__name__)


@quick
@dataclass(frozen=True, slots=True)
class Commit:
    """One job's committed change, for listeners: `before` is None for a new job."""

    before: Job | None
    change: Change
    rows: Rows
    publishes: bool = False
    """Of a new job: its outputs are to become a dataset version."""
    found: bool = False
    """It was reported as failed, and found in the store: nobody acts on what it began but us."""


class Listener(Protocol):
    """Hears of committed changes, in commit order; must not block and must not raise."""

    def __call__(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take note."""
        ...


@dataclass(slots=True)
class _Live:
    """A job in memory."""

    job: Job
    tasks: dict[int, Task] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)


@dataclass(slots=True)
class _New:
    """New jobs of one call."""

    items: Sequence[Submission]
    answer: asyncio.Future[list[SubmitResult]]


@dataclass(slots=True)
class _Ask:
    uid: str
    decide: Decide
    told: Callable[[Answer], None]
    answered: bool = False

    def answer(self, answer: Answer) -> None:
        """Tell what became of it, the first time."""
        if not self.answered:
            self.answered = True
            self.told(answer)


@dataclass(slots=True)
class _Work:
    """A job's rows within a batch: what is in memory, and over it what the batch decided."""

    live: _Live
    job: Job
    tasks: MutableMapping[int, Task]
    attempts: MutableMapping[int, Attempt]
    changes: list[Change] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    """Tasks that changed, or whose attempt did."""

    def rows(self) -> Rows:
        return Rows(self.job, self.tasks, self.attempts)

    def take(self, change: Change) -> None:
        if (change.job.uid, change.expected) != (self.job.uid, self.job.version):
            raise ValueError(f"not decided on version {self.job.version} of {self.job.name}")
        self.job = change.job
        for task, _ in change.tasks:
            self.tasks[task.index] = task
            self.touched.add(task.index)
        for attempt, _ in change.attempts:
            if attempt.number >= self.tasks[attempt.index].attempt:
                self.attempts[attempt.index] = attempt
                self.touched.add(attempt.index)
        self.changes.append(change)


def _over(live: _Live) -> _Work:
    """Work on a job: on copies of its rows, or over them where there are many."""
    if len(live.tasks) <= FEW:
        return _Work(live, live.job, dict(live.tasks), dict(live.attempts))
    return _Work(live, live.job, ChainMap({}, live.tasks), ChainMap({}, live.attempts))


class Ledger:
    """All jobs that are not over, and every change of them."""

    def __init__(self, store: Store, keep: int = KEEP) -> None:
        """Of plain jobs at most `keep` are in memory."""
        self._store = store
        self._keep = keep
        self._live: dict[str, _Live] = {}
        self._plain: set[str] = set()
        self._parked = 0
        self._coming: set[str] = set()
        self._early: list[_Ask] = []
        self._names: dict[str, tuple[str, int]] = {}
        self._unsure: dict[str, int] = {}
        """Jobs of which it is not known whether a commit took effect, by uid: version before."""
        self._asks: list[_Ask] = []
        self._wake = asyncio.Event()
        self._listeners: list[Listener] = []
        self._on_parked: list[Callable[[Sequence[Parked]], None]] = []
        self._submits = asyncio.TaskGroup()
        self._arrivals = Gatherer(self._begin)
        self._running = asyncio.Event()
        self._stopped = False

    # -- reading --------------------------------------------------------------------------------

    def rows(self, uid: str) -> Rows | None:
        """A job's rows while it is in memory; parked jobs, and ended ones that hold nothing, are
        not."""
        live = self._live.get(uid)
        return Rows(live.job, live.tasks, live.attempts) if live else None

    async def load(self, uid: str) -> Rows | None:
        """A job's rows, parked or not; None when it is over and holds nothing."""
        return (await self.load_all([uid])).get(uid)

    async def load_all(self, uids: Sequence[str]) -> dict[str, Rows]:
        """The rows of those of these jobs that are not over, or hold something."""
        found = {uid: rows for uid in uids if (rows := self.rows(uid)) is not None}
        missing = [uid for uid in uids if uid not in found]
        if missing and self._parked:
            found |= {job.uid: Rows(job, {}, {}) for job in await self._read_parked(missing)}
        # What was loaded meanwhile may have moved on.
        return {uid: self.rows(uid) or rows for uid, rows in found.items()}

    async def _read_parked(self, uids: Sequence[str]) -> list[Job]:
        jobs = await self._store.jobs_by_uid(uids)
        return [job for job in jobs.values() if is_plain(job)]

    def find_attempt(self, name: str) -> tuple[str, int] | None:
        """(job uid, index) of a task's newest attempt, by external name."""
        return self._names.get(name)

    def all_rows(self) -> Iterable[Rows]:
        """Every job in memory, so no parked ones; not to be kept over an await."""
        return (Rows(live.job, live.tasks, live.attempts) for live in self._live.values())

    def active(self) -> int:
        """Jobs that are not over."""
        return self._parked + sum(not live.job.state.terminal for live in self._live.values())

    # -- changing -------------------------------------------------------------------------------

    def listen(
        self,
        listener: Listener,
        on_parked: Callable[[Sequence[Parked]], None] | None = None,
    ) -> None:
        """Tell this listener of every commit from now on, and of what recovery finds parked."""
        self._listeners.append(listener)
        if on_parked is not None:
            self._on_parked.append(on_parked)

    async def recover(self) -> LiveState:
        """Load all that is not over, less what stays parked, before the first decision."""
        state = await self._store.live(self._keep)
        for job in state.jobs:
            self._live[job.uid] = _Live(job)
        for task in state.tasks:
            self._live[task.job_uid].tasks[task.index] = task
        for attempt in state.attempts:
            self._live[attempt.job_uid].attempts[attempt.index] = attempt
            self._names[attempt.name] = (attempt.job_uid, attempt.index)
        for live in list(self._live.values()):
            self._shrink(live, list(live.tasks))
            self._place(live)
        return state

    async def recover_parked(self) -> None:
        """Tell of all parked jobs, once everybody listens."""
        async for batch in self._store.parked(self._keep):
            self._parked += sum(len(alike.uids) for alike in batch)
            for hear in self._on_parked:
                hear(batch)

    async def submit(self, items: Sequence[Submission]) -> list[SubmitResult]:
        """Store new jobs; they are in memory, and told of, when this returns.

        Once begun it is carried through, whatever becomes of the caller. Raises StorageFull,
        StorageFailed, Unavailable.
        """
        await self._running.wait()
        if self._stopped:
            raise _stopping()
        if not items:
            return []
        self._coming.update([item.job.uid for item in items])
        new = _New(items, asyncio.get_running_loop().create_future())
        self._arrivals.add(new, len(items))
        return await new.answer

    def _begin(self, group: list[_New]) -> None:
        self._submits.create_task(self._submit(group), name="submit")

    async def _submit(self, group: list[_New]) -> None:
        try:
            await self._store_all(group)
        except asyncio.CancelledError:
            for new in group:
                _fail(new.answer, _stopping())
            raise
        except Exception as error:  # noqa: BLE001 - told to who asked
            for new in group:
                _fail(new.answer, error)
            if not isinstance(error, WriteRefused):
                self._doubt((item.job.uid, 0) for new in group for item in new.items)
        finally:
            self._arrived(group)

    async def _store_all(self, group: Sequence[_New]) -> None:
        """Store jobs together; when a row of one is refused, each call's for themselves.

        The smallest calls come first: none of them waits until a whole batch is taken in.
        """
        group = sorted(group, key=lambda new: len(new.items))
        items = [item for new in group for item in new.items]
        try:
            hit("ledger.submit.before")
            results = await self._store.submit(items)
            hit("ledger.submit.after")
        except WriteRefused:
            if len(group) == 1:
                raise
            for new in group:
                await self._submit([new])
            return
        waiting, answered = deque(group), 0
        for start in range(0, len(items), SLICE):
            if start:
                await asyncio.sleep(0)
            end = start + SLICE
            self._take_in(items[start:end], results[start:end])
            while waiting and answered + len(waiting[0].items) <= end:
                answered += _answer(waiting.popleft(), results, answered)

    def _take_in(self, items: Sequence[Submission], results: Sequence[SubmitResult]) -> None:
        commits, events = [], []
        for item, result in zip(items, results, strict=True):
            if not isinstance(result, Submitted) or result.job.uid in self._live:
                continue
            event = item.event.completed(result.seq, result.job.name)
            change = Change(result.job, 0, (), (), (event,))
            commits.append(Commit(None, change, self._admit(result.job), item.publishes))
            events.append(event)
        self._tell(commits, events)

    def _admit(self, job: Job) -> Rows:
        """A new job comes into memory, or is parked."""
        plain = is_plain(job)
        if plain and len(self._plain) >= self._keep:
            self._parked += 1
            return Rows(job, {}, {})
        live = self._live[job.uid] = _Live(job)
        if plain:
            self._plain.add(job.uid)
        return Rows(job, live.tasks, live.attempts)

    def _arrived(self, group: Sequence[_New]) -> None:
        """What became of new jobs is told: decisions about them may be taken."""
        for new in group:
            self._coming.difference_update([item.job.uid for item in new.items])
        if self._early:
            self._asks += self._early
            self._early = []
            self._wake.set()

    def _place(self, live: _Live) -> None:
        """Keep a job in memory, unless it is plain and there are enough of these."""
        uid = live.job.uid
        if live.tasks or not is_plain(live.job):
            self._plain.discard(uid)
        elif len(self._plain) < self._keep or uid in self._plain:
            self._plain.add(uid)
        else:
            del self._live[uid]
            self._parked += 1

    async def decide(self, uid: str, decide: Decide) -> Change | None:
        """As `ask`, awaited."""
        return await self.ask(uid, decide)

    def ask(self, uid: str, decide: Decide) -> asyncio.Future[Change | None]:
        """Carry out a decision on a job; the future tells what was committed, None for nothing.

        Decisions are taken in the order in which they were asked for. Jobs that are over and hold
        nothing never change: None. The future raises StorageFull or StorageFailed when the commit
        failed, and Unavailable when too much waits or the server stops; then nothing changed.
        """
        answer: asyncio.Future[Change | None] = asyncio.get_running_loop().create_future()
        self.request(uid, decide, partial(_fulfil, answer))
        return answer

    def request(self, uid: str, decide: Decide, told: Callable[[Answer], None]) -> None:
        """As `ask`, for those who ask a lot: `told` hears the answer as soon as it is known.

        That may be at once, and is once; it must not block and must not raise.
        """
        if self._stopped or len(self._asks) >= QUEUE:
            busy = Unavailable("too many changes wait to be stored", retry_after=1.0)
            told(_stopping() if self._stopped else busy)
            return
        self._asks.append(_Ask(uid, decide, told))
        self._wake.set()

    async def run(self) -> None:
        """Commit batch after batch, until cancelled; then what was asked for fails."""
        try:
            async with self._submits:
                self._running.set()
                try:
                    await self._commit_all()
                finally:
                    self._stopped = True
                    for new in self._arrivals.take():
                        _fail(new.answer, _stopping())
        finally:
            for ask in [*self._asks, *self._early]:
                ask.answer(_stopping())
            self._asks, self._early = [], []

    async def _commit_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._asks or self._unsure:
                if self._unsure:
                    await self._make_sure()
                batch, self._asks = self._asks[:BATCH], self._asks[BATCH:]
                await self._commit(batch)

    async def _commit(self, batch: Sequence[_Ask]) -> None:
        if self._coming:
            self._early += [ask for ask in batch if ask.uid in self._coming]
            batch = [ask for ask in batch if ask.uid not in self._coming]
        loaded: Sequence[_Live] = ()
        try:
            loaded = await self._load_for(batch) if self._parked else ()
            await self._carry_out(batch)
        except asyncio.CancelledError:
            for ask in batch:
                ask.answer(_stopping())
            raise
        finally:
            for live in loaded:
                if self._live.get(live.job.uid) is live:
                    self._place(live)

    async def _load_for(self, batch: Sequence[_Ask]) -> Sequence[_Live]:
        """Bring the parked jobs of a batch into memory."""
        missing = {ask.uid for ask in batch if ask.uid not in self._live}
        if not missing:
            return ()
        try:
            jobs = await self._read_parked(list(missing))
        except HatobaError as error:
            for ask in batch:
                if ask.uid in missing:
                    ask.answer(error)
            return ()
        loaded = [_Live(job) for job in jobs]
        self._live |= {live.job.uid: live for live in loaded}
        self._parked -= len(loaded)
        return loaded

    async def _carry_out(self, batch: Sequence[_Ask]) -> None:
        works, answers = await self._decide_all(batch)
        changed = [work for work in works.values() if work.changes]
        changes = [combined(work.changes) for work in changed]
        try:
            results = await self._apply(changes)
        except Exception as error:  # noqa: BLE001 - told to everybody who asked
            log.error("commit.failed", error=str(error), asks=len(batch))
            for ask in batch:
                ask.answer(error)
            self._doubt((change.job.uid, change.expected) for change in changes)
            return
        await self._settle(changed, changes, results)
        stale = {
            work.job.uid
            for work, result in zip(changed, results, strict=True)
            if not isinstance(result, Applied)
        }
        self._answer(batch, answers, stale)

    async def _apply(self, changes: Sequence[Change]) -> Sequence[Applied | Stale]:
        """Write changes together; when a row of one is refused, each for itself."""
        try:
            return await self._write(changes) if changes else []
        except WriteRefused:
            if len(changes) == 1:
                raise
        return [await self._apply_one(change) for change in changes]

    async def _write(self, changes: Sequence[Change]) -> Sequence[Applied | Stale]:
        hit("ledger.commit.before")
        results = await self._store.apply(changes)
        hit("ledger.commit.after")
        return results

    async def _apply_one(self, change: Change) -> Applied | Stale:
        """A refused change is a bug of ours, and is dropped by deciding anew on what is stored."""
        try:
            return (await self._store.apply([change]))[0]
        except WriteRefused as error:
            log.error("change.refused", job=change.job.name, error=error.message)
            return Stale.STALE

    async def _decide_all(
        self, batch: Sequence[_Ask]
    ) -> tuple[dict[str, _Work], list[Change | None]]:
        works: dict[str, _Work] = {}
        answers: list[Change | None] = []
        for place, ask in enumerate(batch, 1):
            if place % SLICE == 0:
                await asyncio.sleep(0)
            live = self._live.get(ask.uid)
            if live is None:
                answers.append(None)
                continue
            work = works.get(ask.uid)
            if work is None:
                work = works[ask.uid] = _over(live)
            answers.append(self._decide_one(ask, work))
        return works, answers

    def _decide_one(self, ask: _Ask, work: _Work) -> Change | None:
        try:
            change = ask.decide(work.rows())
            if change is not None:
                work.take(change)
        except HatobaError as refusal:
            ask.answer(refusal)
            return None
        except Exception as error:  # a bug in one decision must not take the others with it
            log.exception("decision.failed", job=work.job.name)
            ask.answer(error)
            return None
        return change

    async def _settle(
        self,
        works: Sequence[_Work],
        changes: Sequence[Change],
        results: Sequence[Applied | Stale],
    ) -> None:
        for start in range(0, len(works), SLICE):
            if start:
                await asyncio.sleep(0)
            some = slice(start, start + SLICE)
            await self._settle_some(works[some], changes[some], results[some])

    async def _settle_some(
        self,
        works: Sequence[_Work],
        changes: Sequence[Change],
        results: Sequence[Applied | Stale],
    ) -> None:
        commits: list[Commit] = []
        events: list[Event] = []
        for work, change, result in zip(works, changes, results, strict=True):
            if not isinstance(result, Applied):
                await self._reload(work.job.uid)
                continue
            for event, seq in zip(change.events, result.seqs, strict=True):
                events.append(event.completed(seq, work.job.name))
            before = work.live.job
            self._take_over(work)
            commits.append(Commit(before, change, work.rows()))
        self._tell(commits, events)
        for work in works:
            self._shrink(work.live, work.touched)
            self._plain.discard(work.job.uid)
            if work.job.uid in self._live:
                self._place(work.live)

    def _take_over(self, work: _Work) -> None:
        live = work.live
        live.job = work.job
        for index in work.touched:
            task = work.tasks.get(index)
            if task is not None:
                live.tasks[index] = task
            attempt = work.attempts.get(index)
            if attempt is not None:
                self._take_over_attempt(live, attempt)

    def _take_over_attempt(self, live: _Live, attempt: Attempt) -> None:
        former = live.attempts.get(attempt.index)
        if former is not None and former.name != attempt.name:
            self._names.pop(former.name, None)
        live.attempts[attempt.index] = attempt
        self._names[attempt.name] = (attempt.job_uid, attempt.index)

    def _shrink(self, live: _Live, touched: Iterable[int]) -> None:
        """Forget tasks that are over and hold nothing, and the job with the last of them."""
        for index in touched:
            task, attempt = live.tasks.get(index), live.attempts.get(index)
            if task is None or not task.state.terminal:
                continue
            if attempt is None or attempt.release is Release.RELEASED:
                del live.tasks[index]
                live.attempts.pop(index, None)
                if attempt is not None:
                    self._names.pop(attempt.name, None)
        if live.job.state.terminal and not live.tasks:
            self._live.pop(live.job.uid, None)

    async def _reload(self, uid: str) -> None:
        """Somebody else wrote this job: what memory held is replaced by what is stored."""
        log.warning("change.stale", job=uid)
        state = await self._store.live_job(uid)
        live = self._live.get(uid)
        found = state.jobs
        for attempt in live.attempts.values() if live else ():
            self._names.pop(attempt.name, None)
        if live is None or not found:
            self._live.pop(uid, None)
            return
        live.job = found[0]
        live.tasks = {task.index: task for task in state.tasks}
        live.attempts = {attempt.index: attempt for attempt in state.attempts}
        self._names |= {a.name: (uid, index) for index, a in live.attempts.items()}

    # -- after a commit that failed ---------------------------------------------------------------

    def _doubt(self, jobs: Iterable[tuple[str, int]]) -> None:
        """A commit about these jobs, by uid and version before, failed: perhaps after its effect.

        A disk that fails while it syncs may have kept what it was given.
        """
        for uid, version in jobs:
            self._unsure.setdefault(uid, version)
        self._wake.set()

    async def _make_sure(self) -> None:
        """Find out what is stored of jobs in doubt; what is there is taken in, and told of."""
        for uid, version in list(self._unsure.items()):
            try:
                await self._find_out(uid, version)
            except (HatobaError, OSError) as error:
                log.warning("ledger.not_sure", job=uid, error=str(error))
                await asyncio.sleep(UNSURE_PAUSE)
                return
            del self._unsure[uid]

    async def _find_out(self, uid: str, version: int) -> None:
        state = await self._store.live_job(uid)
        job = state.jobs[0] if state.jobs else (await self._store.jobs_by_uid([uid])).get(uid)
        if job is None:
            return
        events = await self._events_after(uid, version)
        live = self._live.get(uid)
        before = live.job if live is not None else _parked_before(job, version, events)
        found = _Live(job, {t.index: t for t in state.tasks}, {a.index: a for a in state.attempts})
        if live is not None:
            await self._read_over(live, found)
        change = _difference(live or _Live(job), found, version, events)
        if job.version == version and not (change.tasks or change.attempts):
            return
        log.warning("commit.found", job=job.name, version=job.version)
        self._replace(live, found, parked=live is None and before is not None)
        self._tell([Commit(before, change, _rows_of(found), found=True)], events)
        self._shrink(found, list(found.tasks))
        if uid in self._live:
            self._place(found)

    async def _read_over(self, live: _Live, found: _Live) -> None:
        """Add what memory has and the store counts as over: it may have ended, or been released."""
        uid = found.job.uid
        for index in live.tasks.keys() - found.tasks.keys():
            found.tasks |= {t.index: t for t in await self._store.tasks(uid, index - 1, 1)}
        over = [a.name for index, a in live.attempts.items() if index not in found.attempts]
        if over:
            rows = await self._store.attempts_by_name(over)
            found.attempts |= {attempt.index: attempt for attempt in rows.values()}

    async def _events_after(self, uid: str, version: int) -> list[Event]:
        found: list[Event] = []
        after = 0
        while page := await self._store.events(after, 1_000, [uid]):
            found += [event for event in page if event.job_seq > version]
            after = page[-1].seq
        return found

    def _replace(self, live: _Live | None, found: _Live, *, parked: bool) -> None:
        uid = found.job.uid
        for attempt in live.attempts.values() if live is not None else ():
            self._names.pop(attempt.name, None)
        self._parked -= parked
        self._plain.discard(uid)
        self._live[uid] = found
        self._names |= {one.name: (uid, index) for index, one in found.attempts.items()}

    def _answer(
        self, batch: Sequence[_Ask], answers: Sequence[Change | None], stale: set[str]
    ) -> None:
        for ask, answer in zip(batch, answers, strict=True):
            if ask.uid not in stale:
                ask.answer(answer)
            elif not ask.answered:
                self._asks.append(ask)
                self._wake.set()

    def _tell(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        if not commits:
            return
        for listener in self._listeners:
            listener(commits, events)


def _answer(new: _New, results: Sequence[SubmitResult], start: int) -> int:
    """Tell a call what became of its jobs; how many they are. Their results begin at `start`."""
    count = len(new.items)
    if not new.answer.done():
        new.answer.set_result(list(results[start : start + count]))
    return count


def _rows_of(live: _Live) -> Rows:
    return Rows(live.job, live.tasks, live.attempts)


def _parked_before(job: Job, version: int, events: Sequence[Event]) -> Job | None:
    """A parked job as it was, when something was decided about it; None for a new one."""
    if not version or not events:
        return None
    state = events[0].job_from
    waiting = Ranges.upto(job.size)
    return changed_record(
        job, version=version, state=state, unstarted=waiting, unstarted_state=state
    )


def _difference(known: _Live, found: _Live, version: int, events: Sequence[Event]) -> Change:
    """What a commit made of what was known, judged by what is stored."""
    tasks, attempts = [], []
    for index, task in found.tasks.items():
        last = known.tasks.get(index)
        if last is None or last.version != task.version:
            tasks.append(TaskWrite(task, last.version if last else 0))
    for index, attempt in found.attempts.items():
        former = known.attempts.get(index)
        same = former is not None and former.name == attempt.name
        before = former.version if former is not None and same else 0
        if before != attempt.version:
            attempts.append(AttemptWrite(attempt, before))
    return Change(found.job, version, tuple(tasks), tuple(attempts), tuple(events))


def _fulfil(future: asyncio.Future[Change | None], answer: Answer) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after=1.0)
