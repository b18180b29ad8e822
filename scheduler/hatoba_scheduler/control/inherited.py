"""Tasks of a job with those that it took over, as they ended, from the job that it repeats."""

from __future__ import annotations

from typing import NamedTuple

from hatoba_scheduler.domain.naming import parse_job
from hatoba_scheduler.domain.records import Job, Task
from hatoba_scheduler.store.base import Store


class OwnedTask(NamedTuple):
    """A task, and the job that ran it."""

    job: Job
    task: Task


async def tasks_of(store: Store, job: Job, after: int, limit: int) -> list[OwnedTask]:
    """Started tasks by index, above `after`: the next ones, as far as they are known to be all.

    Of `limit` indices above `after` none is missing. Empty when there are no more.
    """
    own = [OwnedTask(job, task) for task in await store.tasks(job.uid, after, limit)]
    former = await _former(store, job)
    if former is None:
        return own
    while True:
        theirs = await tasks_of(store, former, after, limit)
        taken = [one for one in theirs if one.task.index in job.terms.inherited]
        upto = min(_upto(own, limit), theirs[-1].task.index if theirs else job.size)
        found = [one for one in (*own, *taken) if one.task.index <= upto]
        if found or not theirs:
            return sorted(found, key=lambda one: one.task.index)
        after = theirs[-1].task.index


def _upto(page: list[OwnedTask], limit: int) -> int:
    """Up to which index a page has all: a full one to its last, another to the end."""
    return page[-1].task.index if len(page) == limit else 1 << 31


async def _former(store: Store, job: Job) -> Job | None:
    """The job whose tasks it took over; None when it took over none."""
    ref = parse_job(job.rerun_of) if job.terms.inherited else None
    return await store.job_by_name(ref.project, ref.name) if ref is not None else None
