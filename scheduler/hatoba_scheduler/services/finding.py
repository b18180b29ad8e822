"""Finds the jobs that callers name."""

from __future__ import annotations

from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.domain.naming import JobRef, parse_job
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.errors import InvalidArgument, NotFound, Resource, shown
from hatoba_scheduler.store.base import Store


class JobFinder:
    """Jobs as they are now: those in memory from there, the others from the store."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    async def find(self, text: str) -> Job:
        """The job that somebody named. Raises NotFound, InvalidArgument."""
        ref = parse_job(text)
        if ref is None:
            raise InvalidArgument.field(
                "name",
                "must be projects/P/jobs/NAME-N, NAME-N or a uid",
                value=text,
                remedy="`hatoba jobs list` shows the names",
                rule="job.name",
            )
        job = await self.lookup(ref)
        if job is None:
            raise NotFound(
                f"there is no job {shown(text)}; `hatoba jobs list` shows those there are",
                resource=Resource("job", text),
            )
        return job

    async def lookup(self, ref: JobRef) -> Job | None:
        """The job of a reference, None when there is none."""
        if ref.uid:
            rows = self._ledger.rows(ref.uid)
            return rows.job if rows else await self._store.job(ref.uid)
        return await self._store.job_by_name(ref.project, ref.name)

    async def by_uid(self, uid: str) -> Job:
        """The job of this uid. Raises NotFound."""
        job = await self.lookup(JobRef(uid, "", ""))
        if job is None:
            raise NotFound(f"there is no job {uid}")
        return job
