"""Many writes as one: what they need is loaded, each is decided in order, the rows are flushed.

Only the writer's thread writes, so what is loaded inside its transaction holds until the commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hatoba_scheduler.domain.models import ModelVersion, links_of
from hatoba_scheduler.domain.records import Change, Event, MetricPoint, Micros
from hatoba_scheduler.store.base import (
    Applied,
    Duplicate,
    Mismatch,
    RequestKey,
    Stale,
)
from hatoba_scheduler.store.sqlite import rows
from hatoba_scheduler.store.sqlite.alike import Run, insert_runs
from hatoba_scheduler.store.sqlite.recent_specs import RecentSpecs
from hatoba_scheduler.store.sqlite.statements import Row, execute_rows

JobKey = str
TaskKey = tuple[str, int]
AttemptKey = tuple[str, int, int]
RequestId = tuple[str, str, str]
NameKey = tuple[str, str]


@dataclass(slots=True)
class Needs:
    """What writes must know of the store: each key once, guards with their first expectation."""

    jobs: dict[JobKey, int] = field(default_factory=dict)
    tasks: dict[TaskKey, int] = field(default_factory=dict)
    attempts: dict[AttemptKey, int] = field(default_factory=dict)
    requests: dict[RequestId, None] = field(default_factory=dict)
    names: dict[NameKey, int] = field(default_factory=dict)
    models: dict[NameKey, int] = field(default_factory=dict)


@dataclass(slots=True)
class Known:
    """What the store holds, as of the writes decided so far."""

    jobs: dict[JobKey, int]
    tasks: dict[TaskKey, int]
    attempts: dict[AttemptKey, int]
    requests: dict[RequestId, tuple[bytes, str]]
    names: dict[NameKey, int]
    models: dict[NameKey, int]
    """The newest number that each model has given."""


@dataclass(slots=True)
class Rows:
    """What is to be written; of the same row only the last."""

    position: int
    """Of the newest event."""
    recent: RecentSpecs
    queues: dict[str, Row] = field(default_factory=dict)
    requests: list[Row] = field(default_factory=list)
    names: dict[NameKey, int] = field(default_factory=dict)
    new_jobs: list[Row] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    specs: list[Row] = field(default_factory=list)
    labels: list[Row] = field(default_factory=list)
    jobs: dict[JobKey, Row] = field(default_factory=dict)
    tasks: dict[TaskKey, Row] = field(default_factory=dict)
    attempts: dict[AttemptKey, Row] = field(default_factory=dict)
    events: list[Row] = field(default_factory=list)
    metrics: list[Row] = field(default_factory=list)
    inputs: list[Row] = field(default_factory=list)
    publications: list[Row] = field(default_factory=list)
    model_heads: dict[NameKey, Row] = field(default_factory=dict)
    model_versions: list[Row] = field(default_factory=list)
    links: list[Row] = field(default_factory=list)


class Write(Protocol):
    """One call's writes; `weight` is about how many rows it has.

    Made on the event loop, carried out by the writer's thread, which makes the rows too: records
    do not change, and the loop has others to answer.
    """

    @property
    def weight(self) -> int:
        """About how many rows it writes."""
        ...

    def need(self, needs: Needs) -> None:
        """Name what must be known to decide."""
        ...

    def decide(self, known: Known, out: Rows) -> object:
        """The call's answer; what it writes goes to `out` and into `known`."""
        ...


# -- requests ------------------------------------------------------------------------------------


def met_or_kept(
    key: RequestKey, resource: str, now: Micros, known: Known, out: Rows
) -> Duplicate | Mismatch | None:
    """What a key met that is known; None for a new one, which is kept with what it makes."""
    name = key[:3]
    found = known.requests.get(name)
    if found is not None:
        return compare_request(key, *found)
    known.requests[name] = (key.body_sha256, resource)
    out.requests.append((*key, resource, now))
    return None


def compare_request(key: RequestKey, body_sha256: bytes, resource: str) -> Duplicate | Mismatch:
    """What a key meets that is known with this body and resource."""
    if body_sha256 == key.body_sha256:
        return Duplicate(resource)
    return Mismatch(body_sha256.hex(), key.body_sha256.hex())


class Remember:
    """A request key to keep."""

    weight = 1

    def __init__(self, key: RequestKey, resource: str, now: Micros) -> None:
        self._key = key
        self._resource = resource
        self._now = now

    def need(self, needs: Needs) -> None:
        """The key."""
        needs.requests[self._key[:3]] = None

    def decide(self, known: Known, out: Rows) -> Duplicate | Mismatch | None:
        """What it met before."""
        return met_or_kept(self._key, self._resource, self._now, known, out)


# -- apply ---------------------------------------------------------------------------------------


class _NewRow(NamedTuple):
    """A row as it shall be; `row` is empty when there is nothing to write."""

    expected: int
    version: int
    row: Row


class _Change(NamedTuple):
    uid: str
    job: _NewRow
    tasks: tuple[tuple[TaskKey, _NewRow], ...]
    attempts: tuple[tuple[AttemptKey, _NewRow], ...]
    events: list[tuple[str, Row]]
    models: tuple[ModelVersion, ...]


class Apply:
    """Decided changes, each all or nothing."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._given = changes
        self._changes: list[_Change] = []
        self.weight = sum(
            1 + len(c.tasks) + len(c.attempts) + len(c.events) + 3 * len(c.models) for c in changes
        )

    def need(self, needs: Needs) -> None:
        """The versions of all rows that are guarded."""
        self._changes = [_change(change) for change in self._given]
        for change in self._changes:
            needs.jobs.setdefault(change.uid, change.job.expected)
            for task, new in change.tasks:
                needs.tasks.setdefault(task, new.expected)
            for attempt, new in change.attempts:
                needs.attempts.setdefault(attempt, new.expected)
            for model in change.models:
                needs.models[model.project, model.model] = 0

    def decide(self, known: Known, out: Rows) -> list[Applied | Stale]:
        """Per change what became of it."""
        return [_decide_change(change, known, out) for change in self._changes]


def _change(change: Change) -> _Change:
    job = change.job
    version = job.version
    # Version is what changes with the row: an unchanged one has nothing to write.
    row = rows.job_update_row(job) if version != change.expected else ()
    return _Change(
        job.uid,
        _NewRow(change.expected, version, row),
        tuple(
            [
                ((task.job_uid, task.index), _NewRow(expected, task.version, rows.task_row(task)))
                for task, expected in change.tasks
            ]
        ),
        tuple(
            [
                (
                    (attempt.job_uid, attempt.index, attempt.number),
                    _NewRow(expected, attempt.version, rows.attempt_row(attempt)),
                )
                for attempt, expected in change.attempts
            ]
        ),
        [_told(event) for event in change.events],
        change.models,
    )


def _told(event: Event) -> tuple[str, Row]:
    return event.job_name, rows.event_row(event)


def _decide_change(change: _Change, known: Known, out: Rows) -> Applied | Stale:
    if not _holds(change, known):
        return Stale.STALE
    known.jobs[change.uid] = change.job.version
    if change.job.row:
        out.jobs[change.uid] = change.job.row
    for task, new in change.tasks:
        known.tasks[task] = new.version
        out.tasks[task] = new.row
    for attempt, new in change.attempts:
        known.attempts[attempt] = new.version
        out.attempts[attempt] = new.row
    first = out.position + 1
    for name, row in change.events:
        out.position += 1
        out.events.append((out.position, name, *row))
    for model in change.models:
        _add_version(model, known, out)
    return Applied(tuple(range(first, out.position + 1)))


def _add_version(model: ModelVersion, known: Known, out: Rows) -> None:
    key = (model.project, model.model)
    number = known.models[key] = known.models[key] + 1
    model.completed(number)
    out.model_heads[key] = head_row(model)
    out.model_versions.append((number, *rows.model_version_row(model)))
    out.links += links_of(model)


def head_row(model: ModelVersion) -> Row:
    """A model's row with this version as the newest that it gave a number."""
    return (
        model.project,
        model.model,
        model.version,
        "",
        1,
        model.create_time,
        model.created_by,
    )


def _holds(change: _Change, known: Known) -> bool:
    if known.jobs[change.uid] != change.job.expected:
        return False
    for task, new in change.tasks:
        if known.tasks[task] != new.expected:
            return False
    return all(known.attempts[key] == new.expected for key, new in change.attempts)


# -- metrics -------------------------------------------------------------------------------------


class AddMetrics:
    """Points to keep."""

    def __init__(self, points: Sequence[MetricPoint]) -> None:
        self._rows = [rows.metric_row(point) for point in points]
        self.weight = len(points)

    def need(self, needs: Needs) -> None:
        """Nothing: the statement itself compares attempts."""

    def decide(self, known: Known, out: Rows) -> None:
        """Always written."""
        out.metrics += self._rows


class Direct:
    """A small write that runs statements of its own, in its turn."""

    weight = 1

    def __init__(self, run: Callable[[sqlite3.Connection], object]) -> None:
        self.run = run


# -- carrying out --------------------------------------------------------------------------------


def carry_out(
    connection: sqlite3.Connection, writes: Sequence[Write], position: int, recent: RecentSpecs
) -> tuple[list[object], int]:
    """Run writes in the open transaction; their answers and the newest event's position."""
    known = _load(connection, writes)
    out = Rows(position, recent)
    answers = [write.decide(known, out) for write in writes]
    _flush(connection, out)
    return answers, out.position


def _load(connection: sqlite3.Connection, writes: Iterable[Write]) -> Known:
    needs = Needs()
    for write in writes:
        write.need(needs)
    jobs, tasks, attempts = needs.jobs, needs.tasks, needs.attempts
    # A guard that holds returns no row: what is there is what was expected.
    for uid, version in execute_rows(connection, "stale_jobs", list(jobs.items())):
        jobs[uid] = version
    for uid, index, version in execute_rows(
        connection, "stale_tasks", [(*key, expected) for key, expected in tasks.items()]
    ):
        tasks[uid, index] = version
    for uid, index, number, version in execute_rows(
        connection, "stale_attempts", [(*key, expected) for key, expected in attempts.items()]
    ):
        attempts[uid, index, number] = version
    requests = {
        (project, method, request): (sha256, resource)
        for project, method, request, sha256, resource in execute_rows(
            connection, "requests", list(needs.requests)
        )
    }
    for project, base_name, last in execute_rows(connection, "name_counters", list(needs.names)):
        needs.names[project, base_name] = last
    for project, model, last in execute_rows(connection, "heads", list(needs.models), "models"):
        needs.models[project, model] = last
    return Known(jobs, tasks, attempts, requests, needs.names, needs.models)


def _flush(connection: sqlite3.Connection, out: Rows) -> None:
    insert_runs(connection, out.runs)
    names = [(*key, last) for key, last in out.names.items()]
    for name, found in (
        ("add_default_queues", list(out.queues.values())),
        ("insert_requests", out.requests),
        ("put_name_counters", names),
        ("insert_jobs", out.new_jobs),
        ("insert_specs", out.specs),
        ("insert_labels", out.labels),
        ("update_jobs", list(out.jobs.values())),
        ("put_tasks", list(out.tasks.values())),
        ("put_attempts", list(out.attempts.values())),
        ("insert_events", out.events),
        ("put_metrics", out.metrics),
    ):
        if found:
            execute_rows(connection, name, found)
    if out.inputs:
        execute_rows(connection, "put_job_inputs", out.inputs, "datasets")
    if out.publications:
        execute_rows(connection, "expect", out.publications, "publications")
    for name, found in (
        ("put_heads", list(out.model_heads.values())),
        ("insert_versions", out.model_versions),
        ("insert_links", out.links),
    ):
        if found:
            execute_rows(connection, name, found, "models")
