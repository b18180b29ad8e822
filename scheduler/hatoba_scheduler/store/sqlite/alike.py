"""Stores jobs that differ in little with what they have in common said once for all of them.

Binding a value costs as much as storing it, and a new job has sixty. Their events are made of the
jobs' own rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from hatoba_scheduler.domain.records import Event, Job
from hatoba_scheduler.store.base import Submission
from hatoba_scheduler.store.sqlite import rows
from hatoba_scheduler.store.sqlite.statements import Row, chunks, many, write

LEAST = 4
"""Jobs alike in a call from which on they are stored together."""

_OWN_OF_JOB = {1, 21, 25, 26, 27}
"""Places in `rows.new_job_row` of uid, create_time, trace_id, span_id and sampled."""
_OWN_OF_EVENT = {0, 2, 13}
"""Places in `rows.event_row` of job_uid, time and trace_id."""


@dataclass(slots=True)
class Kind:
    """What jobs that are alike have in common."""

    job: Row
    event: Row


@dataclass(slots=True)
class Run:
    """Jobs of one kind whose positions and numbers follow each other."""

    kind: Kind
    first: int
    number: int
    """Of the first of them."""
    spec: int
    """Where their spec is stored."""
    own: Sequence[Row]
    """Of each: how many come before it, uid, create_time, trace_id, span_id and sampled."""


def kind_of(job: Job, base_name: str, event: Event) -> Kind:
    """What all have in common that are like this one."""
    job_row, event_row = rows.new_job_row(job, base_name), rows.event_row(event)
    return Kind(
        tuple(value for place, value in enumerate(job_row) if place not in _OWN_OF_JOB),
        tuple(value for place, value in enumerate(event_row) if place not in _OWN_OF_EVENT),
    )


def own_values(items: Sequence[Submission]) -> list[Row]:
    """What each of these jobs has of its own, see `Run.own`."""
    return [
        (place, job.uid, job.create_time, job.trace_id, job.span_id, 1 if job.sampled else 0)
        for place, job in enumerate([item.job for item in items])
    ]


def insert_runs(connection: sqlite3.Connection, runs: Sequence[Run]) -> None:
    """Store the jobs of these runs, and their first events."""
    for run in runs:
        shared = [run.first, run.number, *run.kind.job, run.spec]
        for chunk in chunks(run.own):
            sql = many("insert_alike_jobs", len(chunk))
            connection.execute(sql, [*shared, *chain.from_iterable(chunk)])
        last = run.first + len(run.own) - 1
        connection.execute(write("insert_alike_events"), (*run.kind.event, run.first, last))
