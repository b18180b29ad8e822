"""New jobs as a write: those that were carried out before are told, the others numbered and stored.

Jobs alike that follow each other are numbered as one, since a batch's items are most often equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from hatoba_scheduler.domain.naming import DEFAULT_QUEUE
from hatoba_scheduler.domain.records import Job, Micros, Queue
from hatoba_scheduler.store.base import Duplicate, Mismatch, Submission, Submitted
from hatoba_scheduler.store.sqlite import rows
from hatoba_scheduler.store.sqlite.alike import LEAST, Kind, Run, kind_of, own_values
from hatoba_scheduler.store.sqlite.statements import Row
from hatoba_scheduler.store.sqlite.unit import Known, Needs, Rows, met_or_kept

Result = Submitted | Duplicate | Mismatch


class _Part(NamedTuple):
    """Items that follow each other: of one kind, or each for itself."""

    items: Sequence[Submission]
    kind: Kind | None


class Submit:
    """Jobs to number and store."""

    def __init__(self, items: Sequence[Submission], now: Micros) -> None:
        self._given = items
        self._parts: Sequence[_Part] = ()
        self._now = now
        self.weight = 6 * len(items)

    def need(self, needs: Needs) -> None:
        """Their request keys and name counters."""
        self._parts = list(_parts(self._given))
        for items, kind in self._parts:
            for item in items if kind is None else items[:1]:
                needs.names[item.job.project, item.base_name] = 0
        needs.requests |= {one.request[:3]: None for one in self._given if one.request is not None}

    def decide(self, known: Known, out: Rows) -> list[Result]:
        """Per item what became of it."""
        answers: list[Result] = []
        for items, kind in self._parts:
            met = [self._met(item, known, out) for item in items]
            new = [item for item, before in zip(items, met, strict=True) if before is None]
            stored = iter(_stored(new, kind, known, out))
            answers += [next(stored) if before is None else before for before in met]
        return answers

    def _met(self, item: Submission, known: Known, out: Rows) -> Duplicate | Mismatch | None:
        if item.request is None:
            return None
        return met_or_kept(item.request, item.job.uid, self._now, known, out)


def _parts(items: Sequence[Submission]) -> Iterator[_Part]:
    for _, group in groupby(items, lambda item: id(item.like)):
        some = list(group)
        first = some[0]
        if first.like is None or len(some) < LEAST:
            yield _Part(some, None)
        else:
            yield _Part(some, kind_of(first.job, first.base_name, first.event))


def _stored(
    items: Sequence[Submission], kind: Kind | None, known: Known, out: Rows
) -> Sequence[Submitted]:
    if kind is None:
        return [_store(item, known, out) for item in items]
    return _store_alike(items, kind, known, out) if items else ()


def _store(item: Submission, known: Known, out: Rows) -> Submitted:
    position, number = _numbered(item, 1, known, out)
    name = f"{item.base_name}-{number}"
    spec = out.recent.known(item.spec, position)
    if not spec:
        out.specs.append((position, item.spec))
    row = rows.new_job_row(item.job, item.base_name)
    out.new_jobs.append((position, number, *row, spec))
    out.events.append((position, name, *rows.event_row(item.event)))
    _add_parts(item, position, out)
    known.jobs[item.job.uid] = item.job.version
    return Submitted(item.job.completed(name), position)


def _store_alike(
    items: Sequence[Submission], kind: Kind, known: Known, out: Rows
) -> list[Submitted]:
    first = items[0]
    position, number = _numbered(first, len(items), known, out)
    spec = out.recent.known(first.spec, position)
    if not spec:
        # All of them find it under the id of the first.
        spec = position
        out.specs.append((position, first.spec))
    out.runs.append(Run(kind, position, number, spec, own_values(items)))
    if first.job.labels or first.reads or first.publishes:
        for place, item in enumerate(items, position):
            _add_parts(item, place, out)
    known.jobs |= {item.job.uid: item.job.version for item in items}
    base_name = first.base_name
    return [
        Submitted(item.job.completed(f"{base_name}-{number + place}"), position + place)
        for place, item in enumerate(items)
    ]


def _numbered(item: Submission, count: int, known: Known, out: Rows) -> tuple[int, int]:
    """Position and number of the first of so many jobs of the same name."""
    key = (item.job.project, item.base_name)
    number = known.names.get(key, 0) + 1
    known.names[key] = out.names[key] = number + count - 1
    position = out.position + 1
    out.position += count
    if item.job.project not in out.queues:
        out.queues[item.job.project] = _default_queue(item.job)
    return position, number


def _add_parts(item: Submission, position: int, out: Rows) -> None:
    """What stands in tables beside the job's."""
    if item.job.labels:
        out.labels += [(label, value, position) for label, value in item.job.labels]
    if item.reads:
        out.inputs += [(resource, item.job.uid) for resource in item.reads]
    if item.publishes:
        out.publications.append((item.job.uid, 0, "", ""))


def _default_queue(job: Job) -> Row:
    return rows.queue_row(Queue(job.project, DEFAULT_QUEUE, 1, "system", job.create_time))
