"""All jobs of a simulation: rows, the changes that are committed, the events that tell of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import Attempt, Change, Event, Job, Task
from hatoba_scheduler.domain.transitions import Rows

Listener = Callable[[Job | None, Change, Rows], None]
"""(the job's row before, what was committed, its rows after)."""
Decide = Callable[[Rows], Change | None]


@dataclass(slots=True)
class _Kept:
    job: Job
    tasks: dict[int, Task] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)

    def rows(self) -> Rows:
        return Rows(self.job, self.tasks, self.attempts)


class Books:
    """Guards each change as a store does: one that was decided on other rows is refused."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Kept] = {}
        self._names: dict[str, tuple[str, int]] = {}
        self._listeners: list[Listener] = []
        self.events: list[Event] = []

    def listen(self, listener: Listener) -> None:
        """Tell of every commit from now on."""
        self._listeners.append(listener)

    def rows(self, uid: str) -> Rows | None:
        """A job's rows, ended ones too."""
        kept = self._jobs.get(uid)
        return kept.rows() if kept else None

    def find_attempt(self, name: str) -> tuple[str, int] | None:
        """(job uid, index) of a task's newest attempt, by its name."""
        return self._names.get(name)

    def all_rows(self) -> Iterator[Rows]:
        """Every job's rows."""
        return (kept.rows() for kept in self._jobs.values())

    def add(self, job: Job, event: Event) -> Rows:
        """A new job."""
        kept = self._jobs[job.uid] = _Kept(job)
        self._told(None, Change(job, 0, events=(event,)), kept)
        return kept.rows()

    def decide(self, uid: str, decide: Decide) -> Change | None:
        """Carry out a decision on a job; what was committed, None for nothing.

        Raises ValueError for a change that was not decided on the rows as they are.
        """
        kept = self._jobs[uid]
        change = decide(kept.rows())
        if change is None:
            return None
        before = kept.job
        _check(change, kept)
        kept.job = change.job
        kept.tasks.update({write.row.index: write.row for write in change.tasks})
        for write in change.attempts:
            if write.row.number >= kept.tasks[write.row.index].attempt:
                kept.attempts[write.row.index] = write.row
                self._names[write.row.name] = (uid, write.row.index)
        self._told(before, change, kept)
        return change

    def _told(self, before: Job | None, change: Change, kept: _Kept) -> None:
        for event in change.events:
            self.events.append(changed(event, seq=len(self.events) + 1, job_name=change.job.name))
        for listener in self._listeners:
            listener(before, change, kept.rows())


def _check(change: Change, kept: _Kept) -> None:
    stale = [
        f"{kind} {key}: {expected}, not {version}"
        for kind, key, expected, version in _guards(change, kept)
        if expected != version
    ]
    if stale:
        raise ValueError(f"decided on other versions: {', '.join(stale)}")


def _guards(change: Change, kept: _Kept) -> Iterator[tuple[str, object, int, int]]:
    yield "job", kept.job.name, change.expected, kept.job.version
    for task, expected in change.tasks:
        known = kept.tasks.get(task.index)
        yield "task", task.index, expected, known.version if known else 0
    for attempt, expected in change.attempts:
        last = kept.attempts.get(attempt.index)
        if last is not None and last.name == attempt.name:
            yield "attempt", attempt.name, expected, last.version
