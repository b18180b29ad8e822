"""What jobs name instead of bringing it: `datasets/faces:3`, `jobs/digits-42/outputs`.

A name is resolved once, at submit, to the exact version; that is what the stored specification has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from hatoba.v1 import job_pb2
from hatoba_scheduler.convert import manifest_to_proto
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.records import Job, ManifestRef
from hatoba_scheduler.domain.references import BadReference, Reference, parse
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.errors import FieldViolation, shown
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.datasets import DatasetKey

_UID = 36
_FORMS = "write for example datasets/faces:3, models/digits@production or jobs/digits-42/outputs"


class Resolved(NamedTuple):
    """What a source stands for: its resource name with the version, its files, and its items."""

    resource: str
    manifest: ManifestRef
    items: ManifestRef | None = None


class Unresolved(Exception):
    """A source that names nothing that can be read; with what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


Resolver = Callable[[Reference], Awaitable[Resolved]]
"""Finds what a reference of one kind stands for. Raises Unresolved."""


class Sources:
    """The kinds of things that inputs may be: who knows them registers."""

    def __init__(self) -> None:
        self._resolvers: dict[str, Resolver] = {}

    def register(self, kind: str, resolver: Resolver) -> None:
        """Have references of a kind (`models`) resolved by this."""
        self._resolvers[kind] = resolver

    async def resolve(self, spec: job_pb2.JobSpec, project: str) -> list[FieldViolation]:
        """Fill in what the specification's sources stand for; what cannot be resolved."""
        found = [
            await self._input(f"spec.inputs[{position}]", one, project)
            for position, one in enumerate(spec.inputs)
        ]
        found.append(await self._code(spec, project))
        return [violation for violation in found if violation is not None]

    async def _input(self, at: str, told: job_pb2.Input, project: str) -> FieldViolation | None:
        if not told.source:
            told.ClearField("items")
            return None if told.manifest.digest else _nothing(f"{at}.manifest")
        try:
            resolved = await self._resolved(told.source, "", project)
        except Unresolved as error:
            return _violation(f"{at}.source", told.source, error)
        told.source = resolved.resource
        told.manifest.CopyFrom(manifest_to_proto(resolved.manifest))
        told.ClearField("items")
        if resolved.items is not None:
            told.items.CopyFrom(manifest_to_proto(resolved.items))
        return None

    async def _code(self, spec: job_pb2.JobSpec, project: str) -> FieldViolation | None:
        if not spec.code_version:
            return None
        try:
            resolved = await self._resolved(spec.code_version, "code", project)
            if spec.code.digest != resolved.manifest.digest:
                raise Unresolved("must be the version of `code`", "leave it out, or record it anew")
        except Unresolved as error:
            return _violation("spec.code_version", spec.code_version, error)
        spec.code_version = resolved.resource
        return None

    async def _resolved(self, text: str, kind: str, project: str) -> Resolved:
        try:
            reference = parse(text, kind, project)
        except BadReference as error:
            raise Unresolved(f"cannot be read: {error}", _FORMS) from None
        resolver = self._resolvers.get(reference.kind)
        if resolver is None:
            raise Unresolved(f"cannot be one of {reference.kind}", _FORMS)
        return await resolver(reference)


def _nothing(at: str) -> FieldViolation:
    return FieldViolation(at, "must be there, or else a source", "input.none", "''", _FORMS)


def _violation(field: str, value: str, error: Unresolved) -> FieldViolation:
    return FieldViolation(field, error.problem, "source.unknown", shown(value), error.remedy)


def register_stored(sources: Sources, store: Store) -> None:
    """Let inputs be dataset versions and outputs of jobs, and code be versions of it."""

    async def dataset(reference: Reference) -> Resolved:
        key = DatasetKey(reference.project, reference.name, reference.version)
        found = await store.datasets.version(key)
        if found is None:
            problem = f"names no dataset version of project {reference.project!r}"
            raise Unresolved(problem, "`hatoba datasets list` shows them")
        return Resolved(found.resource, found.manifest, found.items)

    async def outputs(reference: Reference) -> Resolved:
        job = await _job(store, reference)
        if job is None or reference.part != "outputs":
            raise Unresolved(
                f"names no outputs of a job of project {reference.project!r}",
                "write jobs/NAME-N/outputs; `hatoba jobs list` shows the jobs",
            )
        return Resolved(f"{job_name(job.project, job.name)}/outputs", _outputs_of(job))

    async def code(reference: Reference) -> Resolved:
        project, name, version = reference.project, reference.name, reference.version
        found = await store.datasets.code_version(project, name, version)
        if found is None:
            problem = f"names no version of code of project {project!r}"
            raise Unresolved(problem, "`hatoba code list` shows them")
        return Resolved(found.resource, found.manifest)

    sources.register("datasets", dataset)
    sources.register("jobs", outputs)
    sources.register("code", code)


async def _job(store: Store, reference: Reference) -> Job | None:
    if len(reference.name) == _UID:
        job = await store.job(reference.name)
        if job is not None and job.project == reference.project:
            return job
    return await store.job_by_name(reference.project, reference.name)


def _outputs_of(job: Job) -> ManifestRef:
    if job.state is not JobState.SUCCEEDED:
        raise Unresolved(
            f"is not there: {job.name} is {job.state.name}",
            f"submit with --after {job.name} once it has outputs, or wait for it",
        )
    if job.outputs is None:
        raise Unresolved(f"is not there: {job.name} left no outputs", "name another job")
    return job.outputs


def named_inputs(spec: job_pb2.JobSpec) -> Iterator[str]:
    """Resource names of everything that a stored specification names."""
    for one in spec.inputs:
        if one.source:
            yield one.source
    if spec.code_version:
        yield spec.code_version


def dataset_versions_of(spec: job_pb2.JobSpec) -> list[str]:
    """Resource names of the dataset versions that a stored specification reads, each once."""
    found = [name for name in named_inputs(spec) if "/datasets/" in name]
    return list(dict.fromkeys(found))
