"""Whatever happens to a job, in whatever order: what must stay true stays true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from domain_rows import CANCEL, MANIFEST, after, intent, new_job, rows_of
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.dependencies import Upstream, upstream_ended
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Change,
    Checkpoint,
    Event,
    Job,
    RetryPolicy,
    Usage,
    combined,
)
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    Desired,
    JobState,
    Origin,
    Release,
)
from hatoba_scheduler.domain.timing import timed_out
from hatoba_scheduler.domain.transitions import (
    TRANSITIONS,
    Now,
    Outcome,
    Rows,
    Settings,
    View,
    cancel,
    cancel_tasks,
    checkpointed,
    claimed,
    ended,
    fail_fast,
    hold,
    launch,
    launched,
    reachability,
    released,
    running,
    starting,
    stopping,
    submitted,
    updated,
    used,
    waiting,
)

UPSTREAM = ("up-1", "up-2")
BUDGET = st.integers(0, 2)
INDEX = st.integers(0, 2)
STOPPED_FOR = st.sampled_from(
    [AttemptState.CANCELLED, AttemptState.TIMED_OUT, AttemptState.PREEMPTED]
)
JOBS = st.builds(
    new_job,
    size=st.sampled_from([1, 2, 3, 3]),
    hold=st.sampled_from([False, False, True]),
    blocked_on=st.sampled_from([(), (), UPSTREAM[:1], UPSTREAM]),
    blocked_any=st.sampled_from([(), (), UPSTREAM[:1], UPSTREAM]),
    blocked_end=st.sampled_from([(), (), UPSTREAM[:1], UPSTREAM]),
    fail_fast=st.booleans(),
    retries=st.builds(RetryPolicy, user=BUDGET, infrastructure=BUDGET, preemption=BUDGET),
)
GOOD = Ending(ExitKind.EXITED)
ENDINGS = st.one_of(
    st.just(GOOD), st.sampled_from(ExitKind).map(lambda kind: Ending(kind, code=3, signal=9))
)
LATE = causes.past_deadline("now")
REFUSAL = causes.refused(CauseCode.NO_CAPACITY, Origin.CAPACITY, "No room.")

WORDS: dict[str, Callable[[View, Now], Change | None]] = {
    "handle": lambda view, now: launched(view, b"1:a"),
    "other handle": lambda view, now: launched(view, b"1:b"),
    "waiting": waiting,
    "starting": starting,
    "claimed": lambda view, now: claimed(view, "nonce", now) if claimable(view) else None,
    "running": lambda view, now: running(view, now.time, "rlimit", now),
    "unreachable": lambda view, now: reachability(view, reachable=False, now=now),
    "reachable": lambda view, now: reachability(view, reachable=True, now=now),
    "used": lambda view, now: used(view, Usage(memory_peak_bytes=now.time)),
}
WISHES: dict[str, Callable[[Rows, Now], Change | None]] = {
    "cancel": lambda rows, now: cancel(rows, CANCEL, now),
    "hold": lambda rows, now: hold(rows, held=True, now=now),
    "let go": lambda rows, now: hold(rows, held=False, now=now),
    "first is ok": lambda rows, now: upstream_ended(rows, good(UPSTREAM[0]), now),
    "second is ok": lambda rows, now: upstream_ended(rows, good(UPSTREAM[1]), now),
    "first failed": lambda rows, now: upstream_ended(rows, bad(UPSTREAM[0]), now),
    "second failed": lambda rows, now: upstream_ended(rows, bad(UPSTREAM[1]), now),
    "deadline": lambda rows, now: timed_out(rows, LATE, now),
    "hurry": lambda rows, now: updated(rows, Settings(priority=5), now),
    "move": lambda rows, now: updated(rows, Settings(queue="night"), now),
    "calm": lambda rows, now: updated(rows, Settings(priority=0, queue="default"), now),
}


def good(uid: str) -> Upstream:
    """A job that it may wait for succeeded."""
    return Upstream(uid, f"{uid}-1", JobState.SUCCEEDED)


def bad(uid: str) -> Upstream:
    """A job that it may wait for did not."""
    return Upstream(uid, f"{uid}-1", JobState.FAILED)


def claimable(view: View) -> bool:
    """What the desk checks before it grants a claim."""
    return view.attempt.state <= AttemptState.WAITING


class Histories(RuleBasedStateMachine):
    """One job, and everything that owners, runners, backends and other jobs can do to it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = rows_of(new_job())
        self.base = self.rows
        self.pending: list[Change] = []
        self.events: list[Event] = []
        self.former: list[View] = []
        self.paid: Counter[tuple[int, Origin]] = Counter()
        self.unwanted: set[int] = set()
        self.time = 10

    @initialize(job=JOBS)
    def submit(self, job: Job) -> None:
        self.rows = self.base = rows_of(job)
        self.pending, self.former = [], []
        self.paid.clear()
        self.unwanted = set()
        self.events = [submitted(job, self.now())]

    @precondition(lambda self: self.rows.job.state.terminal)
    @rule(job=JOBS)
    def submit_another(self, job: Job) -> None:
        """A job that is over has no more history: go on with another."""
        self.submit(job)

    # -- how a change is taken ------------------------------------------------------------------

    def now(self) -> Now:
        self.time += 1
        return Now(self.time, "tester")

    def view(self, index: int) -> View | None:
        known = sorted(self.rows.tasks)
        return self.rows.view(known[index % len(known)]) if known else None

    def take(self, change: Change | None) -> None:
        """Commit, as a store does that guards every row."""
        if change is None:
            return
        self.check_guards(change)
        self.check_events(change)
        self.rows = after(self.rows, change)
        self.pending.append(change)
        self.events.extend(change.events)

    def check_guards(self, change: Change) -> None:
        before = self.rows
        assert change.expected == before.job.version
        assert change.job.version == before.job.version + len(change.events)
        assert change.events or change.job == before.job
        for task, expected in change.tasks:
            known = before.tasks.get(task.index)
            assert expected == (known.version if known else 0)
            assert task.version > expected
            assert known is None or not known.state.terminal
        for attempt, expected in change.attempts:
            last = before.attempts.get(attempt.index)
            same = last is not None and last.name == attempt.name
            assert expected == (last.version if same and last else 0)
            assert attempt.version > expected

    def check_events(self, change: Change) -> None:
        for event in change.events:
            assert not event.job_from.terminal
            if event.index is not None:
                assert event.to_state in TRANSITIONS[event.from_state]
            if self.rows.job.size == 1 and event.job_from is not event.job_to:
                assert event.job_to in TRANSITIONS[event.job_from]

    # -- a task's life --------------------------------------------------------------------------

    @precondition(lambda self: self.rows.job.counts[JobState.QUEUED])
    @rule(index=INDEX)
    def launch(self, index: int) -> None:
        index %= self.rows.job.size
        last = self.rows.view(index)
        change = launch(self.rows, intent(self.rows, index), self.now())
        if change is None:
            return
        assert last is None or last.attempt.release is Release.RELEASED
        assert self.rows.job.desired is Desired.RUN
        assert not self.rows.job.hold
        assert not self.rows.job.upstreams
        if last is not None:
            self.former.append(last)
        self.take(change)

    @precondition(lambda self: self.rows.attempts)
    @rule(index=INDEX, word=st.sampled_from(sorted(WORDS)))
    def hear(self, index: int, word: str) -> None:
        """A runner or backend tells of an attempt that goes on."""
        if view := self.view(index):
            self.take(WORDS[word](view, self.now()))
            again = view_or_fail(self.rows, view.task.index)
            assert again.attempt.state.terminal == view.attempt.state.terminal

    @precondition(lambda self: self.rows.attempts)
    @rule(index=INDEX, intended=STOPPED_FOR)
    def stop(self, index: int, intended: AttemptState) -> None:
        if view := self.view(index):
            cause = causes.judge(Ending(ExitKind.STOPPED))[1]
            self.take(stopping(view, intended, cause, self.now()))

    @precondition(lambda self: self.rows.attempts)
    @rule(index=INDEX, ending=ENDINGS, gone=st.booleans())
    def end(self, index: int, ending: Ending, gone: bool) -> None:
        state, cause = causes.judge(ending)
        outputs = MANIFEST if ending.good else None
        self.end_with(index, Outcome(state, cause, wait=1.0, gone=gone, outputs=outputs))

    @precondition(lambda self: self.rows.attempts)
    @rule(index=INDEX)
    def refuse(self, index: int) -> None:
        """Waited for, without charge."""
        self.end_with(index, Outcome(AttemptState.REFUSED, REFUSAL, gone=True, charged=False))

    def end_with(self, index: int, outcome: Outcome) -> None:
        view = self.view(index)
        if view is None:
            return
        change = ended(view, outcome, self.now())
        assert (change is None) == view.attempt.state.terminal
        if change is None:
            return
        self.take(change)
        again = self.view(index)
        assert again is not None
        self.count_retry(again, outcome)
        assert ended(again, outcome, self.now()) is None, "an end told twice counts once"

    def count_retry(self, view: View, outcome: Outcome) -> None:
        cause = view.attempt.cause
        if view.task.state is JobState.QUEUED and outcome.charged and cause is not None:
            self.paid[view.task.index, cause.origin] += 1

    @precondition(lambda self: self.rows.job.counts[JobState.QUEUED] and not self.rows.job.hold)
    @rule(index=INDEX, ending=ENDINGS)
    def attempt(self, index: int, ending: Ending) -> None:
        """One from launch to release, so that histories get far."""
        index %= self.rows.job.size
        self.launch(index)
        if index in self.rows.tasks:
            place = sorted(self.rows.tasks).index(index)
            self.hear(place, "running")
            self.end(place, ending, gone=True)

    @precondition(lambda self: self.rows.attempts)
    @rule(index=INDEX)
    def release(self, index: int) -> None:
        if view := self.view(index):
            self.take(released(view))

    @precondition(lambda self: self.rows.attempts)
    @rule(index=INDEX, step=st.integers(1, 5))
    def checkpoint(self, index: int, step: int) -> None:
        view = self.view(index)
        if view is None:
            return
        change = checkpointed(view, Checkpoint(step, view.attempt.number, MANIFEST))
        if change is not None:
            self.paid[view.task.index, Origin.PREEMPTION] = 0
        self.take(change)

    @precondition(lambda self: self.former)
    @rule(data=st.data(), ending=ENDINGS)
    def late_word(self, data: st.DataObject, ending: Ending) -> None:
        """What is said of an attempt that another has followed changes nothing."""
        old = data.draw(st.sampled_from(self.former))
        view = View(self.rows.job, self.rows.tasks[old.task.index], old.attempt)
        state, cause = causes.judge(ending)
        now = self.now()
        assert launched(view, b"1:late") is None
        assert waiting(view, now) is None
        assert starting(view, now) is None
        assert running(view, now.time, "", now) is None
        assert stopping(view, AttemptState.CANCELLED, CANCEL, now) is None
        assert ended(view, Outcome(state, cause), now) is None
        assert released(view) is None
        assert reachability(view, reachable=False, now=now) is None
        assert used(view, Usage(cpu_seconds=9.0)) is None
        assert checkpointed(view, Checkpoint(99, old.attempt.number, MANIFEST)) is None

    # -- the job as a whole ---------------------------------------------------------------------

    @precondition(lambda self: not self.rows.job.state.terminal)
    @rule(wish=st.sampled_from(sorted(WISHES)))
    def wish(self, wish: str) -> None:
        """An owner, or the end of another job, wants something of it."""
        self.take(WISHES[wish](self.rows, self.now()))
        assert WISHES[wish](self.rows, self.now()) is None, "twice is once"

    @precondition(lambda self: not self.rows.job.state.terminal and self.rows.job.size > 1)
    @rule(wanted=st.sets(INDEX, min_size=1))
    def cancel_some(self, wanted: set[int]) -> None:
        """An owner wants some tasks of an array ended."""
        indices = Ranges.of((index, index + 1) for index in wanted)
        change = cancel_tasks(self.rows, indices, CANCEL, self.now())
        self.take(change)
        if change is not None:
            self.unwanted |= wanted
        assert cancel_tasks(self.rows, indices, CANCEL, self.now()) is None, "twice is once"

    @precondition(lambda self: not self.rows.job.state.terminal and self.rows.tasks)
    @rule()
    def fail_fast(self) -> None:
        bad = {JobState.FAILED, JobState.TIMED_OUT}
        for index in [n for n, task in self.rows.tasks.items() if task.state in bad]:
            self.take(fail_fast(self.rows, index, self.now()))
            assert fail_fast(self.rows, index, self.now()) is None

    @precondition(lambda self: self.pending)
    @rule()
    def commit_together(self) -> None:
        """All since the last time as one change: the same rows, over the same versions."""
        one = combined(self.pending)
        assert one.expected == self.base.job.version
        for task, expected in one.tasks:
            known = self.base.tasks.get(task.index)
            assert expected == (known.version if known else 0)
        assert after(self.base, one) == self.rows
        assert one.events == tuple(e for change in self.pending for e in change.events)
        self.base, self.pending = self.rows, []

    # -- what must stay true --------------------------------------------------------------------

    @invariant()
    def counts_are_those_of_the_tasks(self) -> None:
        job = self.rows.job
        found = Counter(task.state for task in self.rows.tasks.values())
        found[job.unstarted_state] += len(job.unstarted)
        found[JobState.CANCELLED] += len(job.dropped)
        assert job.counts == (0, *(found[state] for state in JobState))
        assert sum(job.counts) == job.size
        without_rows = set(range(job.size)) - set(self.rows.tasks)
        assert set(job.unstarted) | set(job.dropped) == without_rows
        assert not set(job.unstarted) & set(job.dropped)

    @invariant()
    def job_has_the_state_of_its_tasks(self) -> None:
        assert self.rows.job.state is expected_state(self.rows.job)

    @invariant()
    def events_have_no_gap(self) -> None:
        numbers = [event.job_seq for event in self.events]
        if numbers:
            assert numbers == list(range(1, self.rows.job.version + 1))

    @invariant()
    def each_end_is_told_once(self) -> None:
        job = self.rows.job
        assert sum(event.job_terminal for event in self.events) == job.state.terminal
        assert bool(job.end_time) == job.state.terminal
        ends = Counter(e.index for e in self.events if e.index is not None and e.terminal)
        for index, task in self.rows.tasks.items():
            assert ends[index] == task.state.terminal
            assert bool(task.end_time) == task.state.terminal

    @invariant()
    def nobody_retries_beyond_a_budget(self) -> None:
        policy = self.rows.job.retries
        for (_, origin), retries in self.paid.items():
            limit = {Origin.USER: policy.user, Origin.PREEMPTION: policy.preemption}
            assert retries <= limit.get(origin, policy.infrastructure)

    @invariant()
    def cancel_is_never_forgotten(self) -> None:
        job = self.rows.job
        if job.desired is not Desired.CANCELLED:
            return
        assert not {"launch", "retry"} & self.reasons_since("cancel")
        live = [task.state for task in self.rows.tasks.values() if not task.state.terminal]
        assert all(state is JobState.STOPPING for state in live)

    @invariant()
    def tasks_that_nobody_wants_begin_nothing(self) -> None:
        for index in self.unwanted:
            assert index not in self.rows.job.unstarted or self.rows.job.unstarted_state.terminal
            if index in self.rows.tasks:
                state = self.rows.tasks[index].state
                assert state is JobState.STOPPING or state.terminal

    @invariant()
    def nothing_begins_after_a_fast_failure(self) -> None:
        assert not {"launch", "retry"} & self.reasons_since("fail_fast")

    def reasons_since(self, reason: str) -> set[str]:
        reasons = [event.reason for event in self.events]
        return set(reasons[reasons.index(reason) :]) if reason in reasons else set()

    @invariant()
    def only_success_has_outputs_and_no_cause(self) -> None:
        job = self.rows.job
        if job.state.terminal:
            assert (job.cause is None) == (job.state is JobState.SUCCEEDED)
        assert job.outputs is None or job.state is JobState.SUCCEEDED

    def teardown(self) -> None:
        """A cancel, now: once what lives has ended, whatever it says, the job is over."""
        self.take(cancel(self.rows, CANCEL, self.now()))
        kinds = [GOOD, Ending(ExitKind.LOST), Ending(ExitKind.EXITED, 1)]
        wanted = self.rows.job.desired is Desired.CANCELLED
        for index in sorted(self.rows.tasks):
            state, cause = causes.judge(kinds[index % 3])
            self.take(ended(view_or_fail(self.rows, index), Outcome(state, cause), self.now()))
        state_now = self.rows.job.state
        assert state_now.terminal
        if wanted:
            assert state_now in {JobState.CANCELLED, JobState.SUCCEEDED}
        self.job_has_the_state_of_its_tasks()
        self.each_end_is_told_once()
        self.cancel_is_never_forgotten()


def view_or_fail(rows: Rows, index: int) -> View:
    view = rows.view(index)
    assert view is not None
    return view


def expected_state(job: Job) -> JobState:
    """A job's state, in other words than the domain's."""
    present = {JobState(n) for n, count in enumerate(job.counts) if count}
    if len(present) == 1 and job.size == 1:
        return present.pop()
    if any(not state.terminal for state in present):
        return expected_live(job, present)
    if present == {JobState.SUCCEEDED}:
        return JobState.SUCCEEDED
    if job.desired is Desired.CANCELLED:
        return JobState.CANCELLED
    bad = [JobState.FAILED, JobState.TIMED_OUT, JobState.UPSTREAM_FAILED, JobState.CANCELLED]
    return min(present - {JobState.SUCCEEDED}, key=bad.index)


def expected_live(job: Job, present: set[JobState]) -> JobState:
    if job.start_time:
        return JobState.RUNNING
    live = [state for state in present if not state.terminal]
    furthest = max(live)
    if furthest >= JobState.LAUNCHING:
        return furthest
    return JobState.QUEUED if JobState.QUEUED in live else furthest


Histories.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
TestHistories = pytest.mark.timeout(900)(Histories.TestCase)
