"""PlanJob and ExplainJob, and the word in every job's message on why it waits: one function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.convert import set_time, state_to_proto
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.planning.model import Candidate, Explained, Place
from hatoba_scheduler.domain.records import Job, Micros
from hatoba_scheduler.domain.states import WaitReason
from hatoba_scheduler.domain.transitions import Rows
from hatoba_scheduler.domain.waiting import own_reason
from hatoba_scheduler.services.job_parts import JobParts

ASKED = 10
"""Of so many jobs of a page the planner is asked why they wait."""
CANDIDATES = 20
"""So many places that were looked at are told of at most."""


class Explainer:
    """Says where jobs stand and why."""

    def __init__(self, parts: JobParts) -> None:
        self._parts = parts
        self._store = parts.store
        self._ledger = parts.ledger
        self._dispatcher = parts.dispatcher

    async def explain(self, job: Job) -> job_pb2.Explanation:
        """Why a job is where it is."""
        rows = await self._ledger.load(job.uid) or Rows(job, {}, {})
        explained = self._explained(rows, await self._names(rows.job.upstreams))
        return await self._message(rows.job, explained)

    async def plan(self, job: Job, warnings: Sequence[str]) -> job_pb2.Explanation:
        """What would happen to a job that was not stored."""
        now = round(self._parts.clock.time() * 1e6)
        names = await self._names(job.upstreams)
        waits = own_reason(Rows(job, {}, {}), names, now)
        explained = waits or self._dispatcher.plan_new(job, now)
        message = await self._message(job, explained)
        message.warnings.extend(warnings)
        if explained.reason is WaitReason.NEVER_FITS:
            message.warnings.append(explained.message)
        return message

    def waiting(self, job: Job) -> str:
        """The reason that matters most, in words; empty for a job that does not wait."""
        return self.waiting_all([job])[0]

    def waiting_all(self, jobs: Sequence[Job]) -> list[str]:
        """For each the reason that matters most, in words; empty for one that does not wait.

        The planner is asked of the first few alone: it takes longer than all else of a page.
        """
        now = round(self._parts.clock.time() * 1e6)
        told, asked = [], 0
        for job in jobs:
            found = self._own(job, now)
            if found is None and asked < ASKED:
                asked += 1
                found = self._dispatcher.explain(job, now, brief=True)
            told.append(_words(found, job))
        return told

    def _own(self, job: Job, now: Micros) -> Explained | None:
        rows = self._ledger.rows(job.uid) or Rows(job, {}, {})
        return own_reason(rows, self._names_in_memory(job.upstreams), now)

    def _explained(self, rows: Rows, names: dict[str, str]) -> Explained:
        now = round(self._parts.clock.time() * 1e6)
        return own_reason(rows, names, now) or self._dispatcher.explain(rows.job, now)

    async def _names(self, uids: Sequence[str]) -> dict[str, str]:
        return {uid: job.name for uid, job in (await self._jobs(uids)).items()}

    async def _jobs(self, uids: Sequence[str]) -> dict[str, Job]:
        found = await self._store.jobs_by_uid(list(dict.fromkeys(uids))) if uids else {}
        return {uid: found[uid] for uid in uids if uid in found}

    def _names_in_memory(self, uids: Iterable[str]) -> dict[str, str]:
        found = {uid: self._ledger.rows(uid) for uid in uids}
        return {uid: rows.job.name for uid, rows in found.items() if rows is not None}

    async def _message(self, job: Job, explained: Explained) -> job_pb2.Explanation:
        out = explanation_to_proto(explained)
        out.job = job_name(job.project, job.name) if job.name else ""
        out.state, out.queue = state_to_proto(job.state), job.queue
        if explained.reason is not WaitReason.NONE and (ails := self._parts.ailing(job.backend)):
            out.also.append(f"Backend {job.backend!r} is not well: {ails}")
        victims = await self._jobs(explained.preempts)
        out.preempts.extend(job_name(victim.project, victim.name) for victim in victims.values())
        return out


def _words(found: Explained | None, job: Job) -> str:
    if found is None:
        return f"Waits in queue {job.queue!r}; `hatoba explain {job.name}` says why."
    return found.message if found.reason is not WaitReason.NONE else ""


def explanation_to_proto(explained: Explained) -> job_pb2.Explanation:
    """The message of what is decided about a job, as far as the planner knows it."""
    out = job_pb2.Explanation(
        reason=job_pb2.WaitReason.ValueType(explained.reason),
        message=explained.message,
        remedy=explained.remedy,
        also=explained.also,
        position=explained.position,
        queue_length=explained.queue_length,
        estimate_basis=explained.estimate_basis,
        places=[_place(place, explained.candidates) for place in explained.places],
        candidates=[_candidate(one) for one in explained.candidates[:CANDIDATES]],
    )
    set_time(out.estimated_start, explained.estimate or 0)
    return out


def _candidate(one: Candidate) -> job_pb2.Candidate:
    return job_pb2.Candidate(
        backend=one.backend,
        pool=one.pool,
        fits=one.fits,
        message=one.message,
        cost_per_hour=one.cost_per_hour,
    )


def _place(place: Place, known: Iterable[Candidate]) -> job_pb2.Candidate:
    """Where it would go, with the words that were found for that place."""
    same = (one for one in known if (one.backend, one.pool) == (place.backend, place.pool))
    found = next(same, Candidate(place.backend, place.pool, True, ""))
    gpus = f"GPU {', '.join(place.gpus)}" if place.gpus else ""
    out = _candidate(found)
    out.fits = True
    out.message = "; ".join(part for part in (found.message, gpus) if part)
    return out
