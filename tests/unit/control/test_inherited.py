"""Tasks that were taken over stand among a job's own, in order, whatever the page."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domain_rows import new_job

from hatoba_scheduler.control.inherited import tasks_of
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import Job, Task, Terms
from hatoba_scheduler.domain.states import JobState


class Tasks:
    """A store of three jobs, each of which repeats the one before."""

    def __init__(self, jobs: dict[str, Job], tasks: dict[str, list[int]]) -> None:
        self.jobs = {job.name: job for job in jobs.values()}
        self.tasks_by_uid = {jobs[key].uid: indices for key, indices in tasks.items()}

    async def tasks(self, uid: str, after: int, limit: int) -> list[Task]:
        found = [index for index in self.tasks_by_uid[uid] if index > after][:limit]
        return [Task(uid, index, JobState.SUCCEEDED, 1, 1) for index in found]

    async def job_by_name(self, project: str, name: str) -> Job | None:
        return self.jobs.get(name)


def repeats(uid: str, former: Job | None, inherited: str) -> Job:
    job = new_job(uid, size=10)
    if former is None:
        return job
    rerun_of = f"projects/default/jobs/{former.name}"
    return replace(job, rerun_of=rerun_of, terms=Terms(inherited=Ranges.parse(inherited)))


@pytest.fixture
def store() -> Tasks:
    first = replace(repeats("first", None, ""), name="a-1")
    second = replace(repeats("second", first, "0-3,9"), name="a-2")
    third = replace(repeats("third", second, "0-5,9"), name="a-3")
    jobs = {"first": first, "second": second, "third": third}
    tasks = {"first": [0, 1, 2, 3, 4, 5, 9], "second": [4, 5, 6], "third": [6, 7]}
    return Tasks(jobs, tasks)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 10])
async def test_all_are_found_page_by_page(store: Tasks, limit: int) -> None:
    found: list[tuple[int, str]] = []
    after = -1
    job = store.jobs["a-3"]
    while page := await tasks_of(store, job, after, limit):  # type: ignore[arg-type]
        found += [(task.index, owner.name) for owner, task in page]
        after = page[-1].task.index
    firsts = [(index, "a-1") for index in range(4)]
    seconds = [(4, "a-2"), (5, "a-2")]
    assert found == [*firsts, *seconds, (6, "a-3"), (7, "a-3"), (9, "a-1")]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_a_page_of_so_many_indices_misses_none(store: Tasks, limit: int) -> None:
    job = store.jobs["a-3"]
    for after in range(-1, 10):
        page = await tasks_of(store, job, after, limit)  # type: ignore[arg-type]
        wanted = [i for i in (0, 1, 2, 3, 4, 5, 6, 7, 9) if after < i <= after + limit]
        assert [i for i in (one.task.index for one in page) if i <= after + limit] == wanted


async def test_a_job_that_took_over_nothing_has_its_own(store: Tasks) -> None:
    found = await tasks_of(store, store.jobs["a-1"], -1, 3)  # type: ignore[arg-type]
    assert [one.task.index for one in found] == [0, 1, 2]
