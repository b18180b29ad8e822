"""CheckBackend: one short job through all of a backend, and what is missing in words."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from hatoba.v1 import admin_pb2, common_pb2, job_pb2
from hatoba_plugins.backend import Backend
from hatoba_plugins.errors import Denied
from hatoba_plugins.loader import LoadFailure
from hatoba_plugins.values import HealthStatus
from hatoba_scheduler.control.submit import Caller
from hatoba_scheduler.domain import causes, probes
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.probes import Grounds, Trouble
from hatoba_scheduler.domain.records import Attempt, Job
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.domain.transitions import Now, cancel
from hatoba_scheduler.errors import HatobaError, NotFound, Resource
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.explaining import Explainer
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.submitting import Submitter
from hatoba_scheduler.store.base import RequestKey

T = TypeVar("T")
SAID = b"hatoba-probe"
PROJECT = "default"
PATIENCE = 120.0
"""Seconds that a step may take when nothing else is said."""
LONGEST = 3 * 3600
"""Seconds after which the probe ends by itself, whatever became of whoever sent it."""
_LOOK = 0.25
_BEGUN = frozenset({AttemptState.RUNNING, AttemptState.STOPPING})
Response = admin_pb2.CheckBackendResponse


@dataclass(frozen=True, slots=True)
class ProbeParts:
    """What a check stands on."""

    jobs: JobParts
    submitter: Submitter
    explainer: Explainer
    failures: list[LoadFailure]
    """Instances that could not be opened."""
    reached_at: Callable[[], str]
    """Where runners are told to reach this server, as an address with its scheme."""


class _Failed(Exception):
    """A step did not go well."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


class _Seen(NamedTuple):
    """The probe as it is stored."""

    job: Job
    attempt: Attempt | None

    @property
    def over(self) -> bool:
        """It has ended, before anybody asked for that."""
        return self.job.state.terminal


class Probe:
    """One check of one backend."""

    def __init__(self, parts: ProbeParts, request: admin_pb2.CheckBackendRequest) -> None:
        self._parts = parts
        self._jobs = parts.jobs
        self._name = request.name
        self._image = request.image
        asked = request.patience.ToTimedelta().total_seconds()
        self._patience = asked or PATIENCE
        self._job: Job | None = None
        self._backend: Backend | None = None

    async def run(self) -> AsyncGenerator[Response, None]:
        """Each step as it is done, up to the first that fails."""
        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("open", self._open),
            ("health", self._health),
            ("submit", self._submit),
            ("launch", self._launch),
            ("start", self._start),
            ("log", self._log),
            ("stop", self._stop),
            ("release", self._release),
        ]
        try:
            for name, step in steps:
                response = await self._step(name, step)
                if response.message or not response.good:
                    yield response
                if not response.good:
                    return
        finally:
            await self._end()

    async def _step(self, name: str, step: Callable[[], Awaitable[str]]) -> Response:
        began = self._jobs.clock.monotonic()
        response = Response(step=name, good=True)
        try:
            response.message = await step()
        except _Failed as error:
            response.good = False
            response.message, response.remedy = error.trouble
        if self._job is not None:
            response.job = job_name(self._job.project, self._job.name)
        response.took.FromMilliseconds(round(1e3 * (self._jobs.clock.monotonic() - began)))
        return response

    # -- steps ----------------------------------------------------------------------------------

    async def _open(self) -> str:
        failed = [one for one in self._parts.failures if one.name == self._name]
        if failed:
            raise _Failed(Trouble(failed[0].reason, failed[0].remedy))
        self._backend = self._jobs.grounds().backends.get(self._name)
        if self._backend is None:
            known = ", ".join(sorted(self._jobs.grounds().backends))
            raise NotFound(
                f"no backend {self._name!r}; there are {known}",
                resource=Resource("backend", self._name),
            )
        if self._backend.jobs is None:
            raise _Failed(Trouble("it runs no jobs, only deployments", "deploy a model to it"))
        if self._backend.capabilities().pretends:
            raise _Failed(
                Trouble("it only acts as if it ran something", "there is nothing to check")
            )
        return "it is opened"

    async def _health(self) -> str:
        assert self._backend is not None
        try:
            async with asyncio.timeout(self._patience):
                health = await self._backend.health()
        except TimeoutError:
            raise _Failed(Trouble("it does not answer", "see the server's log")) from None
        if health.status is not HealthStatus.HEALTHY:
            raise _Failed(Trouble(health.message or health.status.value, probes.HEALTH_REMEDY))
        return health.message or "it answers"

    async def _submit(self) -> str:
        key = RequestKey(PROJECT, "CheckBackend", uuid.uuid4().hex, b"")
        call = current_call()
        caller = Caller(call.principal, PROJECT, call.trace)
        try:
            self._job = await self._parts.submitter.submit_for(self._spec(), caller, key)
        except HatobaError as error:
            raise _Failed(probes.refused(error.message, imageless=not self._image)) from error
        return f"{self._job.name} is accepted"

    def _spec(self) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(
            name="probe",
            backend=self._name,
            command=["sh", "-c", f"echo {SAID.decode()}; sleep {LONGEST}"],
            retries=common_pb2.RetryPolicy(user=0, infrastructure=0, preemption=0),
        )
        spec.environment.image = self._image
        spec.timeout.FromSeconds(LONGEST)
        spec.stop_grace.FromSeconds(1)
        return spec

    async def _launch(self) -> str:
        seen = await self._until("launch", lambda one: one.attempt if _launched(one) else None)
        return f"{seen.name} is created" + (f" on {seen.host}" if seen.host else "")

    async def _start(self) -> str:
        seen = await self._until("start", lambda one: one.attempt if _begun(one) else None)
        if not seen.fenced:
            return "it runs; it has no runner, so it is not fenced"
        return "its runner has claimed it, and it runs"

    async def _log(self) -> str:
        assert self._backend is not None
        can = self._backend.capabilities()
        if can.runner == "none" and not can.logs:
            return ""
        return await self._awaited("log", self._line)

    async def _line(self) -> str | None:
        attempt, logs = (await self._look()).attempt, self._jobs.logs
        if attempt is None:
            return None
        if (source := logs.sources.get(attempt.backend)) is not None:
            source.read(attempt.name)
            if isinstance(failure := source.failure(attempt.name), Denied):
                raise _Failed(probes.log_denied(failure.message))
        piece = await logs.read(attempt, "stdout", 0)
        said = piece is not None and SAID in piece.data
        return "a line of its log came back" if said else None

    async def _stop(self) -> str:
        await self._cancel()
        await self._until("stop", lambda one: one.job if one.over else None, ended=True)
        return "it was stopped"

    async def _release(self) -> str:
        await self._until("release", _released, ended=True)
        return "nothing of it is left"

    # -- looking --------------------------------------------------------------------------------

    async def _until(
        self, step: str, fits: Callable[[_Seen], T | None], *, ended: bool = False
    ) -> T:
        async def look() -> T | None:
            seen = await self._look()
            if (found := fits(seen)) is not None:
                return found
            if seen.over and not ended:
                raise _Failed(probes.ended(seen.job, seen.attempt, self._grounds()))
            return None

        return await self._awaited(step, look)

    async def _awaited(self, step: str, look: Callable[[], Awaitable[T | None]]) -> T:
        clock = self._jobs.clock
        until = clock.monotonic() + self._patience
        while clock.monotonic() < until:
            if found := await look():
                return found
            await clock.sleep(_LOOK)
        seen = await self._look()
        waits = self._parts.explainer.waiting(seen.job)
        trouble = probes.late(step, seen.attempt, waits, self._grounds(), self._patience)
        raise _Failed(trouble)

    async def _look(self) -> _Seen:
        assert self._job is not None
        job = await self._jobs.store.job(self._job.uid)
        attempts = await self._jobs.store.attempts(self._job.uid, 0, (0, 0), 100)
        return _Seen(job or self._job, attempts[-1] if attempts else None)

    def _grounds(self) -> Grounds:
        assert self._backend is not None
        return Grounds(self._backend.capabilities().runner, self._parts.reached_at())

    # -- end ------------------------------------------------------------------------------------

    async def _cancel(self) -> None:
        assert self._job is not None
        now = Now(round(self._jobs.clock.time() * 1e6), current_call().principal)
        cause = causes.cancelled(now.actor, "the check is over")
        await self._jobs.ledger.ask(self._job.uid, lambda rows: cancel(rows, cause, now))

    async def _end(self) -> None:
        if self._job is not None and not (await self._look()).over:
            await self._cancel()


def _launched(seen: _Seen) -> bool:
    """Whether its backend has said that there is something of it."""
    attempt = seen.attempt
    return attempt is not None and (bool(attempt.handle) or attempt.state in _BEGUN)


def _begun(seen: _Seen) -> bool:
    return seen.attempt is not None and seen.attempt.state in _BEGUN


def _released(seen: _Seen) -> Attempt | None:
    attempt = seen.attempt
    return attempt if attempt is not None and attempt.release is Release.RELEASED else None
