"""Jobs as callers see them: rows with specs, progress, what they made, and why they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.convert import job_to_proto, progress_to_proto
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.services.explaining import Explainer
from hatoba_scheduler.services.job_parts import JobParts

SLICE = 25
"""Messages that are made between two turns that others get."""


class JobMessages:
    """Makes the messages of stored jobs."""

    def __init__(self, parts: JobParts, explainer: Explainer) -> None:
        self._specs = parts.specs
        self._store = parts.store
        self._ledger = parts.ledger
        self._desk = parts.desk
        self._explainer = explainer

    async def one(self, job: Job) -> job_pb2.Job:
        """The message of one job."""
        return (await self.all([job]))[0]

    async def all(self, jobs: Sequence[Job]) -> list[job_pb2.Job]:
        """The messages of jobs, in order; others have their turns while a long page is made."""
        specs = await self._specs.get([job.uid for job in jobs])
        reasons = self._explainer.waiting_all(jobs)
        messages: list[job_pb2.Job] = []
        for job, why in zip(jobs, reasons, strict=True):
            if messages and not len(messages) % SLICE:
                await asyncio.sleep(0)
            messages.append(self._dressed(job, specs.get(job.uid), why))
        await self._put_models(messages)
        await self._put_published(messages)
        return messages

    async def _put_published(self, messages: Sequence[job_pb2.Job]) -> None:
        """Tell what became of the outputs of those that publish them."""
        asked = {one.uid: one for one in messages if one.spec.HasField("publish")}
        settled = await self._store.publications.settled(list(asked)) if asked else {}
        for uid, found in settled.items():
            asked[uid].published, asked[uid].summary = found

    async def _put_models(self, messages: Sequence[job_pb2.Job]) -> None:
        """Name the versions that jobs made; none did before one of its tasks succeeded."""
        able = {one.name: one for one in messages if one.counts.by_state.get("SUCCEEDED")}
        made = await self._store.models.made_by(list(able)) if able else {}
        for name, versions in made.items():
            able[name].models.extend(versions)

    def _dressed(self, job: Job, spec: job_pb2.JobSpec | None, why: str) -> job_pb2.Job:
        message = job_to_proto(job, spec)
        message.waiting_reason = why
        if job.state is JobState.RUNNING:
            self._put_progress(job, message)
        return message

    def _put_progress(self, job: Job, message: job_pb2.Job) -> None:
        rows = self._ledger.rows(job.uid)
        for index in sorted(rows.tasks) if rows else ():
            progress = self._desk.progress(job.uid, index)
            if progress is not None:
                message.progress.CopyFrom(progress_to_proto(progress))
                return
