"""Checks of registered models: a job in the model's environment imports its handler and has it
answer its example and its golden cases; the job's end makes the version READY or FAILED.

A version is REGISTERING from its own commit on, and what is REGISTERING is looked at again after
every start: neither a check that was not submitted nor an end that was not seen is forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from hatoba.artifacts.manifest import CHUNK_BYTES
from hatoba.v1 import artifact_pb2, common_pb2, job_pb2, model_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.control.submit import Caller
from hatoba_scheduler.convert_models import serving_of, signature_of, with_signature
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.models import ModelState, ModelVersion, VersionKey
from hatoba_scheduler.domain.naming import job_name, parse_job
from hatoba_scheduler.domain.records import Cause, Event, Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    HatobaError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unimplemented,
)
from hatoba_scheduler.store.base import RequestKey, Store
from hatoba_scheduler.store.blobs import ChunkStore, Piece
from hatoba_scheduler.store.models import Verdict
from hatoba_scheduler.telemetry.tracing import SpanContext, Tracer

log = structlog.get_logger(__name__)

LABEL = "hatoba/checks"
CHECK_SECONDS = 600
AGAIN = 1.0
"""Seconds until what could not be done is tried once more."""
REPORT = "report.json"
MOST_REPORT = 1 << 20
EXAMPLE = "example"
_FOR_GOOD = (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unimplemented,
)
"""Refusals of a check job that trying again does not change."""


class Submit(Protocol):
    """Submits a job for the server's own purposes, once for each key."""

    async def __call__(self, spec: job_pb2.JobSpec, caller: Caller, key: RequestKey) -> Job:
        """The job; the one that the key made before, if it did."""
        ...


@dataclass(frozen=True, slots=True)
class RegistrarParts:
    """What checks of models stand on."""

    store: Store
    ledger: Ledger
    chunks: ChunkStore
    tracer: Tracer
    clock: Clock


class Registrar:
    """Has registered versions checked."""

    def __init__(self, parts: RegistrarParts) -> None:
        self._parts = parts
        self._models = parts.store.models
        self._submit: asyncio.Future[Submit] = asyncio.get_running_loop().create_future()
        self._checks: dict[str, VersionKey] = {}
        self._todo: deque[VersionKey] = deque()
        self._wake = asyncio.Event()
        parts.ledger.listen(self.on_commit)

    def open(self, submit: Submit) -> None:
        """Say how jobs are submitted; nothing is checked before."""
        self._submit.set_result(submit)

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in ends of check jobs; a listener of the ledger."""
        for commit in commits:
            if commit.rows.job.state.terminal:
                key = self._checks.pop(commit.rows.job.uid, None)
                if key is not None:
                    self._look(key)

    async def start(self, version: ModelVersion, trace: SpanContext) -> None:
        """Have a new version checked, now or, when that cannot be now, as soon as it can."""
        try:
            await self._begin(version, trace)
        except HatobaError as error:
            log.warning("model.check.delayed", version=version.name, error=error.message)
            self._look(version.key)

    async def _begin(self, version: ModelVersion, trace: SpanContext) -> None:
        """What refuses the job for good is why the version is FAILED."""
        try:
            submit = await self._submit
            spec = await self._check_spec(version)
            caller = Caller(version.created_by, version.project, trace)
            job = await submit(spec, caller, _check_key(version))
        except _FOR_GOOD as refused:
            message = f"Its check was refused: {refused.message}."
            await self._fail(version, causes.model_refused(message))
            return
        await self._models.note_check(version.key, job_name(job.project, job.name))
        self._checks[job.uid] = version.key
        self._look(version.key)

    async def run(self) -> None:
        """Follow checks to their ends, those of earlier servers too, until cancelled."""
        await self._submit
        self._todo.extend(version.key for version in await self._models.registering())
        while True:
            while self._todo:
                await self._follow(self._todo.popleft())
            await self._wake.wait()
            self._wake.clear()

    def _look(self, key: VersionKey) -> None:
        self._todo.append(key)
        self._wake.set()

    async def _follow(self, key: VersionKey) -> None:
        try:
            await self._go_on(key)
        except HatobaError as error:
            log.warning("model.check.delayed", version=key.resource, error=error.message)
            self._todo.append(key)
            await self._parts.clock.sleep(AGAIN)
        except Exception:
            # What one check left ends nobody else's work; the next start looks at it again.
            log.exception("model.check.failed", version=key.resource)

    async def _go_on(self, key: VersionKey) -> None:
        version = await self._models.version(key)
        if version is None or version.state is not ModelState.REGISTERING:
            return
        if not version.check_job:
            await self._begin(version, self._parts.tracer.root())
            return
        job = await self._job(version.check_job)
        if job is None:
            message = f"Its check {version.check_job} is not there any more."
            await self._fail(version, causes.model_refused(message))
        elif job.state.terminal:
            await self._settle(version, job)
        else:
            self._checks[job.uid] = key

    async def _job(self, name: str) -> Job | None:
        ref = parse_job(name)
        stored = await self._parts.store.job_by_name(ref.project, ref.name) if ref else None
        if stored is None:
            return None
        rows = self._parts.ledger.rows(stored.uid)
        # What left memory since it was read has ended since: what is stored now says how.
        return rows.job if rows else await self._parts.store.job(stored.uid)

    async def _settle(self, version: ModelVersion, job: Job) -> None:
        if job.state is not JobState.SUCCEEDED:
            await self._fail(version, job.cause or causes.model_refused(f"{job.name} ended badly."))
            return
        signature = signature_of(await self._report(job))
        content = with_signature(version.content, signature) if signature else version.content
        await self._end(version, Verdict(ModelState.READY, None, content))

    async def _fail(self, version: ModelVersion, cause: Cause) -> None:
        await self._end(version, Verdict(ModelState.FAILED, cause, version.content))

    async def _end(self, version: ModelVersion, verdict: Verdict) -> None:
        if await self._models.settle(version.key, verdict):
            log.info("model.checked", version=version.name, state=verdict.state.name)

    # -- what the job is given and what it leaves -------------------------------------------------

    async def _check_spec(self, version: ModelVersion) -> job_pb2.JobSpec:
        serving = serving_of(version)
        spec = job_pb2.JobSpec(
            name=f"check-{version.model}"[:48].rstrip("-"),
            command=check_command(serving),
            labels={LABEL: version.name},
        )
        spec.code.CopyFrom(serving.code)
        spec.inputs.add(name="model").manifest.digest = version.manifest.digest
        spec.inputs.add(name=EXAMPLE).manifest.CopyFrom(await self._stored(serving.example.data))
        if serving.HasField("environment"):
            spec.environment.CopyFrom(serving.environment)
        if serving.HasField("resources"):
            spec.resources.CopyFrom(serving.resources)
        spec.timeout.seconds = CHECK_SECONDS
        return spec

    async def _stored(self, data: bytes) -> common_pb2.ManifestRef:
        """A tree of one file with these bytes, at most one chunk."""
        assert len(data) <= CHUNK_BYTES
        entry = artifact_pb2.ManifestEntry(
            path=EXAMPLE, type=artifact_pb2.ENTRY_TYPE_FILE, mode=0o644, size=len(data)
        )
        if data:
            digest = hashlib.sha256(data).digest()
            entry.chunks.add(sha256=digest, size=len(data))
            async with self._parts.chunks.upload() as upload:
                await upload.add(Piece(digest, data, True))
                await upload.commit()
        return await self._parts.chunks.put_manifest(artifact_pb2.Manifest(entries=[entry]))

    async def _report(self, job: Job) -> Mapping[str, Any]:
        """What the check wrote; nothing when it wrote nothing that can be read."""
        if job.outputs is None:
            return {}
        try:
            manifest = await self._parts.chunks.manifest(job.outputs.digest)
        except NotFound:
            return {}
        for entry in manifest.entries:
            if entry.path == REPORT and entry.size <= MOST_REPORT:
                return _parsed(await self._read(entry))
        return {}

    async def _read(self, entry: artifact_pb2.ManifestEntry) -> bytes:
        reading = self._parts.chunks.read([chunk.sha256 for chunk in entry.chunks])
        return b"".join([piece.data async for pieces in reading for piece in pieces])


def check_command(serving: model_pb2.Serving) -> list[str]:
    """What has a model answer its example; the job runs in its code, beside its inputs."""
    return [
        *("python", "-m", "hatoba_worker.serving", "check"),
        *("--model", "../inputs/model", "--code", "."),
        *("--handler", serving.handler),
        *("--example", f"../inputs/{EXAMPLE}/{EXAMPLE}"),
        *("--media-type", serving.example.media_type or "application/json"),
        *(("--golden", str(serving.golden)) if serving.golden else ()),
        *("--report", f"../outputs/{REPORT}"),
    ]


def _check_key(version: ModelVersion) -> RequestKey:
    name = version.name
    return RequestKey(version.project, "CheckModel", name, hashlib.sha256(name.encode()).digest())


def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
