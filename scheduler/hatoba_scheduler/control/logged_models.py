"""What a job logged becomes model versions: checked before its commit decides, stored with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from google.protobuf import struct_pb2

from hatoba.v1 import common_pb2, job_pb2, runner_pb2
from hatoba_scheduler.control.model_versions import find_version
from hatoba_scheduler.control.sources import dataset_versions_of
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.convert import manifest_of, pairs
from hatoba_scheduler.convert_models import content_of, serving_with_defaults
from hatoba_scheduler.domain.models import ModelState, ModelVersion
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.records import Attempt, Job, Micros
from hatoba_scheduler.errors import HatobaError, InvalidArgument, NotFound
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.models import Metrics

MOST_METRICS = 256

FindManifest = Callable[[str], Awaitable[common_pb2.ManifestRef]]


class ModelRefused(Exception):
    """A model that cannot be registered; the message is a sentence for its author."""


class Made(NamedTuple):
    """The facts of the job that made a model."""

    job: str = ""
    attempt: int = 0
    params: Mapping[str, struct_pb2.Value] = {}
    metrics: Metrics = ()
    datasets: tuple[str, ...] = ()
    code_version: str = ""
    git_commit: str = ""
    trace_id: str = ""


def made_by(job: Job, spec: job_pb2.JobSpec, attempt: int, metrics: Metrics) -> Made:
    """The facts that a job leaves in what it makes."""
    return Made(
        job_name(job.project, job.name),
        attempt,
        spec.params,
        metrics[:MOST_METRICS],
        tuple(dataset_versions_of(spec)),
        spec.code_version,
        spec.source.get("commit", ""),
        job.trace_id,
    )


class LoggedModels:
    """Makes versions of what commits bring. `manifest` raises NotFound for a tree not stored."""

    def __init__(self, store: Store, specs: SpecCache, manifest: FindManifest) -> None:
        self._store = store
        self._specs = specs
        self._manifest = manifest

    async def of(
        self, job: Job, attempt: Attempt, request: runner_pb2.CommitAttemptRequest, now: Micros
    ) -> tuple[ModelVersion, ...]:
        """The versions of a commit, without numbers. Raises ModelRefused."""
        spec = (await self._specs.get([job.uid]))[job.uid]
        metrics = await self._store.models.last_metrics(job.uid, attempt.index)
        made = made_by(job, spec, attempt.number, metrics)
        return tuple([await self._one(told, job, (spec, made), now) for told in request.models])

    async def _one(
        self,
        told: runner_pb2.LoggedModel,
        job: Job,
        facts: tuple[job_pb2.JobSpec, Made],
        now: Micros,
    ) -> ModelVersion:
        spec, made = facts
        manifest = await self._stored(told.manifest.digest, told.model, "its tree")
        serving = serving_with_defaults(told.serving, spec, manifest.digest)
        if serving.code.digest:
            code = await self._stored(serving.code.digest, told.model, "the code that serves it")
            serving.code.CopyFrom(code)
        return ModelVersion(
            project=job.project,
            model=told.model,
            version=0,
            state=ModelState.READY,
            manifest=manifest_of(manifest),
            content=content_of(serving, told.signature, made.params),
            create_time=now,
            created_by=job.created_by,
            handler=serving.handler,
            code=serving.code.digest,
            has_example=serving.HasField("example"),
            metrics=tuple(sorted(told.metrics.items())) or made.metrics,
            description=told.description,
            labels=pairs(told.labels.items()),
            job=made.job,
            attempt=made.attempt,
            datasets=made.datasets,
            code_version=made.code_version,
            git_commit=made.git_commit,
            parent=await self._parent(told, job.project),
            trace_id=made.trace_id,
        )

    async def _stored(self, digest: str, model: str, what: str) -> common_pb2.ManifestRef:
        try:
            return await self._manifest(digest)
        except (NotFound, InvalidArgument):
            where = digest or "no digest"
            raise ModelRefused(
                f"Model {model!r} was not registered: {what} ({where}) is not stored."
            ) from None

    async def _parent(self, told: runner_pb2.LoggedModel, project: str) -> str:
        if not told.parent:
            return ""
        try:
            return (await find_version(self._store, told.parent, project)).name
        except HatobaError as error:
            raise ModelRefused(
                f"Model {told.model!r} was not registered: its parent: {error.message}."
            ) from None
