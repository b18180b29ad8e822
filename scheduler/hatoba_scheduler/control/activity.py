"""What happens, counted as it is committed: rates by queue, transitions by cause, what is odd now.

All of it follows the ledger, so that asking costs nothing however many jobs there are.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.counts import OwnerKey
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.planning.model import QueueKey
from hatoba_scheduler.domain.records import Attempt, Event, Job
from hatoba_scheduler.domain.states import AttemptState, CauseCode, JobState, Release
from hatoba_scheduler.domain.transitions import Rows

_RUNNING, _RELEASED = JobState.RUNNING, Release.RELEASED
SPAN_SECONDS = 10.0
SPANS = 30
"""Rates are over the last five minutes, in spans of ten seconds."""


class Rates(NamedTuple):
    """Jobs submitted, tasks started and tasks ended, a minute."""

    submitted: float = 0.0
    started: float = 0.0
    ended: float = 0.0


class Transition(NamedTuple):
    """A kind of change of a task's or job's state; `cause` is empty where nothing went wrong."""

    before: str
    after: str
    cause: str


class _Span:
    """What happened in some seconds, by queue."""

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.submitted: Counter[QueueKey] = Counter()
        self.started: Counter[QueueKey] = Counter()
        self.ended: Counter[QueueKey] = Counter()


class Activity:
    """Listens to the ledger. Figures are read by services, and by metrics from another thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._spans: deque[_Span] = deque([_Span(self._began)], maxlen=SPANS)
        self.submitted: Counter[QueueKey] = Counter()
        """Jobs since the start, by queue; likewise tasks started and ended."""
        self.started: Counter[QueueKey] = Counter()
        self.ended: Counter[QueueKey] = Counter()
        self._moves: Counter[tuple[JobState, JobState, CauseCode | None]] = Counter()
        self.retries: Counter[str] = Counter()
        """Further attempts, by the cause of the one before."""
        self.preemptions = 0
        self.running: Counter[OwnerKey] = Counter()
        """Jobs that are under way, by whose they are."""
        self.live: dict[str, AttemptState] = {}
        """Attempts that have not ended, by name."""
        self.unknown: dict[str, Attempt] = {}
        """Attempts that cannot be reached, by name."""
        self.releasing: dict[str, Attempt] = {}
        """Ended attempts that still hold what was reserved, by name."""

    def recover(self, rows: Iterable[Rows]) -> None:
        """Take in what is unfinished, at start."""
        for one in rows:
            if _under_way(one.job):
                self.running[_owner(one.job)] += 1
            for attempt in one.attempts.values():
                self._note_attempt(attempt)

    # -- reading --------------------------------------------------------------------------------

    @property
    def transitions(self) -> dict[Transition, int]:
        """Changes of state since the start."""
        return {
            Transition(before.name, after.name, cause.name if cause else ""): count
            for (before, after, cause), count in self._moves.items()
        }

    def rates(self, key: QueueKey | None = None) -> Rates:
        """Of one queue, or of all."""
        now = self._clock.monotonic()
        recent = [one for one in self._spans if now - one.begin < SPANS * SPAN_SECONDS]
        if not recent:
            return Rates()
        minutes = max(now - recent[0].begin, SPAN_SECONDS) / 60

        def rate(counts: Callable[[_Span], Counter[QueueKey]]) -> float:
            return sum(_count(counts(one), key) for one in recent) / minutes

        return Rates(
            rate(lambda one: one.submitted),
            rate(lambda one: one.started),
            rate(lambda one: one.ended),
        )

    # -- following the ledger -------------------------------------------------------------------

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        for commit in commits:
            self._note_job(commit.before, commit.change.job)
            for attempt, _ in commit.change.attempts:
                self._note_attempt(attempt)
        span = self._span()
        for event in events:
            self._note_event(span, event)

    def _span(self) -> _Span:
        now = self._clock.monotonic()
        if now - self._spans[-1].begin >= SPAN_SECONDS:
            self._spans.append(_Span(now))
        return self._spans[-1]

    def _note_event(self, span: _Span, event: Event) -> None:
        key, before, after = (event.project, event.queue), event.from_state, event.to_state
        if event.reason == "submit":
            span.submitted[key] += 1
            self.submitted[key] += 1
            return
        if before is after:
            return
        cause = event.cause.code if event.cause is not None else None
        self._moves[before, after, cause] += 1
        if event.index is None:
            return
        if after is _RUNNING:
            span.started[key] += 1
            self.started[key] += 1
        elif after.terminal:
            span.ended[key] += 1
            self.ended[key] += 1
        elif after is JobState.QUEUED and event.attempt:
            self.retries[cause.name if cause else "NONE"] += 1
        self.preemptions += event.reason == "preempt"

    def _note_job(self, before: Job | None, job: Job) -> None:
        was, now = before is not None and _under_way(before), _under_way(job)
        if before is not None and was and now and before.queue == job.queue:
            return
        if before is not None and was:
            _take_off(self.running, _owner(before))
        if now:
            self.running[_owner(job)] += 1

    def _note_attempt(self, attempt: Attempt) -> None:
        name, over = attempt.name, attempt.state.terminal
        if over:
            self.live.pop(name, None)
        else:
            self.live[name] = attempt.state
        if attempt.unknown_since and not over:
            self.unknown[name] = attempt
        elif self.unknown:
            self.unknown.pop(name, None)
        if over and attempt.release is not _RELEASED:
            self.releasing[name] = attempt
        elif self.releasing:
            self.releasing.pop(name, None)


def _under_way(job: Job) -> bool:
    return not (job.state.pending or job.state.terminal)


def _owner(job: Job) -> OwnerKey:
    return OwnerKey(job.project, job.queue, job.created_by)


def _count(counts: Mapping[QueueKey, int], key: QueueKey | None) -> int:
    return sum(counts.values()) if key is None else counts.get(key, 0)


def _take_off(counts: Counter[OwnerKey], key: OwnerKey) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
