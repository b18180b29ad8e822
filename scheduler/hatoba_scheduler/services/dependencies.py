"""From the names of jobs to wait for to their uids, as far as there is still something to wait for.

Only jobs that are there can be named, and what a job waits for never changes afterwards: a cycle
cannot be made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.submit import Upstreams
from hatoba_scheduler.domain.naming import JobRef, parse_job
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.errors import FailedPrecondition, InvalidArgument, Reason
from hatoba_scheduler.services.finding import JobFinder


def waits(spec: job_pb2.JobSpec) -> bool:
    """Whether a specification names jobs to wait for."""
    return bool(spec.after_ok or spec.after_any or spec.after_end)


class Dependencies:
    """Looks up what a specification names in `after_ok`, `after_any` and `after_end`."""

    def __init__(self, finder: JobFinder) -> None:
        self._finder = finder

    async def resolve(self, spec: job_pb2.JobSpec, project: str) -> Upstreams:
        """The jobs that have not done yet what is waited for.

        Raises InvalidArgument for names that are no job of the project, FailedPrecondition when
        the job could never run.
        """
        ok = await self._named("after_ok", spec.after_ok, spec.name, project)
        any_of = await self._named("after_any", spec.after_any, spec.name, project)
        end = await self._named("after_end", spec.after_end, spec.name, project)
        return Upstreams(_ok(ok), _any(any_of), _uids(job for job in end if not job.state.terminal))

    async def _named(self, field: str, names: Sequence[str], own: str, project: str) -> list[Job]:
        return [
            await self._one(f"spec.{field}[{position}]", name, own, project)
            for position, name in enumerate(names)
        ]

    async def _one(self, path: str, name: str, own: str, project: str) -> Job:
        ref = parse_job(name)
        if ref is not None and not ref.uid and "/" not in name:
            ref = JobRef("", project, name)
        job = await self._finder.lookup(ref) if ref is not None else None
        if job is not None and job.project == project:
            return job
        if ref is not None and ref.name.rpartition("-")[0] == own:
            raise _unknown(
                path,
                name,
                f"names no job of project {project!r}: if it is to be this "
                f"job itself, {ref.name} -> {ref.name} is a cycle",
            )
        raise _unknown(path, name, f"names no job that there is in project {project!r}")


def _unknown(path: str, name: str, problem: str) -> InvalidArgument:
    return InvalidArgument.field(
        path,
        problem,
        value=name,
        remedy="a job can wait only for jobs submitted before it",
        rule=f"{path.removeprefix('spec.').partition('[')[0]}.unknown",
    )


def _ok(jobs: Sequence[Job]) -> tuple[str, ...]:
    for position, job in enumerate(jobs):
        if _bad(job):
            raise FailedPrecondition(
                f"spec.after_ok[{position}]: {job.name} ended {job.state.name}, "
                "so this job could never run; rerun that one first",
                reason=Reason.WRONG_STATE,
            )
    return _uids(job for job in jobs if not job.state.terminal)


def _any(jobs: Sequence[Job]) -> tuple[str, ...]:
    if any(job.state is JobState.SUCCEEDED for job in jobs):
        return ()
    if jobs and all(_bad(job) for job in jobs):
        ends = ", ".join(f"{job.name} {job.state.name}" for job in jobs[:5])
        raise FailedPrecondition(
            f"spec.after_any: all of them ended without success ({ends}), "
            "so this job could never run; rerun one of them first",
            reason=Reason.WRONG_STATE,
        )
    return _uids(job for job in jobs if not job.state.terminal)


def _bad(job: Job) -> bool:
    return job.state.terminal and job.state is not JobState.SUCCEEDED


def _uids(jobs: Iterable[Job]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(job.uid for job in jobs))
