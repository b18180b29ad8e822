"""ModelService: versions, aliases, who may move them, and lineage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from hatoba.v1 import common_pb2, model_pb2, model_pb2_grpc
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.aliases import Aliases
from hatoba_scheduler.control.lineage import Lineages
from hatoba_scheduler.control.logged_models import FindManifest, Made, made_by
from hatoba_scheduler.control.model_versions import check_serving, find_version
from hatoba_scheduler.control.registrar import Registrar
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.convert import manifest_of, pairs
from hatoba_scheduler.convert_models import (
    content_of,
    model_to_proto,
    move_to_proto,
    serving_with_defaults,
    version_to_proto,
    with_images,
)
from hatoba_scheduler.domain.models import (
    Decision,
    Model,
    ModelState,
    ModelVersion,
    Moved,
    VersionKey,
    Want,
)
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.records import Job, Micros
from hatoba_scheduler.domain.references import BadReference, Reference, parse
from hatoba_scheduler.errors import (
    Aborted,
    FailedPrecondition,
    HatobaError,
    InvalidArgument,
    NotFound,
    Reason,
    Resource,
    shown,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import (
    made_before,
    mark_deduplicated,
    mismatch,
    request_key,
    seen_before,
)
from hatoba_scheduler.store.base import Duplicate, Met, Mismatch, RequestKey, Stale, Store
from hatoba_scheduler.store.datasets import DatasetKey
from hatoba_scheduler.store.models import InUse, MoveQuery
from hatoba_scheduler.whole import whole

Context = grpc.aio.ServicerContext[Any, Any]
_MOVE = re.compile(r"projects/([a-z0-9-]{1,48})/models/([a-z0-9-]{1,48})/moves/([1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What the model service stands on."""

    store: Store
    specs: SpecCache
    aliases: Aliases
    registrar: Registrar
    manifest: FindManifest
    pager: Pager
    clock: Clock


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """See proto/hatoba/v1/model.proto."""

    def __init__(self, parts: ModelParts) -> None:
        self._parts = parts
        self._store = parts.store
        self._models = parts.store.models
        self._pager = parts.pager

    def _now(self) -> Micros:
        return round(self._parts.clock.time() * 1e6)

    # -- versions -------------------------------------------------------------------------------

    async def RegisterModel(
        self, request: model_pb2.RegisterModelRequest, context: Context
    ) -> model_pb2.ModelVersion:
        """Make a version of a stored tree, and have it checked."""
        project = request.project or DEFAULT_PROJECT
        key = request_key(project, "RegisterModel", request.request_id, request)
        known = await seen_before(self._store, key)
        if known is not None:
            return await self._made_before(known)
        made = await whole(self._register(await self._new_version(request, project), key))
        if isinstance(made, Mismatch):
            raise mismatch(request.request_id, made)
        if isinstance(made, Duplicate):
            mark_deduplicated()
            return await self._made_before(made.resource)
        return version_to_proto(await self._models.version(made.key) or made)

    async def _register(self, version: ModelVersion, key: RequestKey | None) -> ModelVersion | Met:
        made = await self._models.register(version, key)
        if isinstance(made, ModelVersion) and made.state is ModelState.REGISTERING:
            await self._parts.registrar.start(made, current_call().trace)
        return made

    async def _made_before(self, resource: str) -> model_pb2.ModelVersion:
        return await self._message(await find_version(self._store, resource, DEFAULT_PROJECT))

    async def _new_version(
        self, request: model_pb2.RegisterModelRequest, project: str
    ) -> ModelVersion:
        check_serving(request.serving)
        manifest = await self._tree("manifest", request.manifest)
        serving = serving_with_defaults(request.serving, None, manifest.digest)
        if serving.code.digest:
            serving.code.CopyFrom(await self._tree("serving.code", serving.code))
        made = await self._made(request, project)
        params = {**made.params, **request.params}
        return ModelVersion(
            project=project,
            model=request.model,
            version=0,
            state=ModelState.REGISTERING if serving.handler else ModelState.READY,
            manifest=manifest_of(manifest),
            content=content_of(serving, None, params),
            create_time=self._now(),
            created_by=current_call().principal,
            handler=serving.handler,
            code=serving.code.digest,
            has_example=serving.HasField("example"),
            metrics=tuple(sorted(request.metrics.items())) or made.metrics,
            description=request.description,
            labels=pairs(request.labels.items()),
            job=made.job,
            attempt=made.attempt,
            datasets=made.datasets,
            code_version=made.code_version,
            git_commit=made.git_commit,
            parent=await self._parent(request, project),
            trace_id=made.trace_id,
        )

    async def _tree(self, field: str, ref: common_pb2.ManifestRef) -> common_pb2.ManifestRef:
        if not ref.digest:
            raise InvalidArgument.field(
                f"{field}.digest", "must be a stored tree's", remedy="upload it first"
            )
        try:
            return await self._parts.manifest(ref.digest)
        except NotFound as error:
            raise FailedPrecondition(
                f"{field}: {ref.digest} is not stored; upload it with ArtifactService first",
                resource=error.resource,
            ) from None

    async def _parent(self, request: model_pb2.RegisterModelRequest, project: str) -> str:
        if not request.parent:
            return ""
        return (await find_version(self._store, request.parent, project, "parent")).name

    async def _made(self, request: model_pb2.RegisterModelRequest, project: str) -> Made:
        """The facts of the job that is named, and of what is said besides."""
        made = await self._of_job(request.job, project) if request.job else Made()
        datasets = [
            await self._dataset(position, text, project)
            for position, text in enumerate(request.datasets)
        ]
        made = made._replace(datasets=tuple(dict.fromkeys([*made.datasets, *datasets])))
        if not request.code_version:
            return made
        named = _parsed(request.code_version, "code", project, "code_version")
        code = await self._store.datasets.code_version(named.project, named.name, named.version)
        if code is None:
            raise _missing("code_version", request.code_version, "hatoba datasets list")
        return made._replace(code_version=code.resource, git_commit=code.git_commit)

    async def _of_job(self, text: str, project: str) -> Made:
        named = _parsed(text, "jobs", project, "job")
        job = await self._store.job_by_name(named.project, named.name)
        if job is None:
            raise _missing("job", text, "hatoba jobs list")
        return await self._facts(job)

    async def _facts(self, job: Job) -> Made:
        """Of an array's job no metrics and no attempt: each task has its own."""
        spec = (await self._parts.specs.get([job.uid]))[job.uid]
        if job.size > 1:
            return made_by(job, spec, 0, ())
        tasks = await self._store.tasks(job.uid, -1, 1)
        metrics = await self._models.last_metrics(job.uid, 0)
        return made_by(job, spec, tasks[0].attempt if tasks else 0, metrics)

    async def _dataset(self, position: int, text: str, project: str) -> str:
        field = f"datasets[{position}]"
        named = _parsed(text, "datasets", project, field)
        key = DatasetKey(named.project, named.name, named.version)
        found = await self._store.datasets.version(key)
        if found is None:
            raise _missing(field, text, "hatoba datasets list")
        return found.resource

    async def GetModelVersion(
        self, request: model_pb2.GetModelVersionRequest, context: Context
    ) -> model_pb2.ModelVersion:
        """One version."""
        project = request.project or DEFAULT_PROJECT
        return await self._message(await find_version(self._store, request.name, project))

    async def _message(self, version: ModelVersion) -> model_pb2.ModelVersion:
        model = await self._models.model(version.project, version.model)
        return version_to_proto(version, model.aliases if model else ())

    async def ListModelVersions(
        self, request: model_pb2.ListModelVersionsRequest, context: Context
    ) -> model_pb2.ListModelVersionsResponse:
        """Versions of a model, newest first."""
        model = await self._named(request.model, request.project, "model")
        scope = f"versions:{model.project}/{model.model}"
        below = int(self._pager.position(scope, request.page_token) or 0)
        size = page_size(request.page_size)
        found = await self._models.versions(model.project, model.model, below, size + 1)
        reply = model_pb2.ListModelVersionsResponse(
            versions=[version_to_proto(version, model.aliases) for version in found[:size]]
        )
        if len(found) > size:
            reply.next_page_token = self._pager.token(scope, str(found[size - 1].version))
        return reply

    async def RecordImages(
        self, request: model_pb2.RecordImagesRequest, context: Context
    ) -> model_pb2.ModelVersion:
        """Keep which images were built of a version."""
        _one_of_each(request.images)
        project = request.project or DEFAULT_PROJECT
        key = request_key(project, "RecordImages", request.request_id, request)
        known = await seen_before(self._store, key)
        if known is not None:
            return await self._made_before(known)
        while True:
            version = await find_version(self._store, request.name, project)
            _checked(version)
            content = with_images(version.content, request.images, self._now())
            kept = await self._models.replace_content(version, content, key)
            if kept is Stale.STALE:
                continue
            if kept is not None:
                made_before(kept, key)
            return await self._made_before(version.name)

    async def DeleteModelVersion(
        self, request: model_pb2.DeleteModelVersionRequest, context: Context
    ) -> model_pb2.ModelVersion:
        """Remove a version that nothing uses."""
        named = _parsed(request.name, "models", request.project, "name")
        if not named.version:
            raise InvalidArgument.field(
                "name",
                "must name one version by its number",
                value=request.name,
                remedy=f"`hatoba models versions {named.name}` shows them",
                rule="reference.version",
            )
        request_id = request_key(named.project, "DeleteModelVersion", request.request_id, request)
        key = VersionKey(named.project, named.name, named.version)
        removed = await self._models.delete_version(key, request_id)
        if isinstance(removed, Mismatch):
            raise mismatch(request.request_id, removed)
        if isinstance(removed, Duplicate):
            mark_deduplicated()
            return model_pb2.ModelVersion(name=removed.resource, version=named.version)
        return version_to_proto(self._removed(key, removed))

    def _removed(self, key: VersionKey, removed: ModelVersion | InUse | None) -> ModelVersion:
        about = Resource("model_version", key.resource)
        if removed is None:
            raise NotFound(f"there is no model version {key.resource}", resource=about)
        if isinstance(removed, InUse):
            raise FailedPrecondition(
                f"{key.model}:{key.version} is used by {', '.join(removed.users)}",
                reason=Reason.IN_USE,
                resource=about,
            )
        return removed

    # -- models ---------------------------------------------------------------------------------

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.Model:
        """One model with its aliases."""
        return model_to_proto(await self._named(request.name, request.project, "name"))

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        """Models by name."""
        project = request.project or DEFAULT_PROJECT
        scope = f"models:{project}"
        after = self._pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = await self._models.models(project, after, size + 1)
        reply = model_pb2.ListModelsResponse(models=[model_to_proto(one) for one in found[:size]])
        if len(found) > size:
            reply.next_page_token = self._pager.token(scope, found[size - 1].model)
        return reply

    async def UpdateModel(
        self, request: model_pb2.UpdateModelRequest, context: Context
    ) -> model_pb2.Model:
        """Say which aliases are protected."""
        named = _model_ref(request.name, request.project, "name")
        key = request_key(named.project, "UpdateModel", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return model_to_proto(await self._named(request.name, request.project, "name"))
        wanted = tuple(sorted(request.protected_aliases))
        model = await self._models.protect(named.project, named.name, wanted, request.etag, key)
        if isinstance(model, Met):
            made_before(model, key)
            return model_to_proto(await self._named(request.name, request.project, "name"))
        if model is None:
            raise _no_model(request.name)
        if isinstance(model, Stale):
            raise Aborted(
                f"model {named.name!r} was changed since it was read (etag {request.etag}); "
                "read it again and retry"
            )
        return model_to_proto(model)

    async def _named(self, text: str, project: str, field: str) -> Model:
        named = _model_ref(text, project, field)
        model = await self._models.model(named.project, named.name)
        if model is None:
            raise _no_model(text)
        return model

    # -- aliases --------------------------------------------------------------------------------

    async def SetAlias(
        self, request: model_pb2.SetAliasRequest, context: Context
    ) -> model_pb2.SetAliasResponse:
        """Point an alias to a version, or ask for it."""
        moved = await self._move(request, request.version, request.reason)
        return model_pb2.SetAliasResponse(
            model=model_to_proto(moved.model), move=move_to_proto(moved.move)
        )

    async def DeleteAlias(
        self, request: model_pb2.DeleteAliasRequest, context: Context
    ) -> model_pb2.Model:
        """Take an alias away, or ask for it."""
        moved = await self._move(request, 0, "")
        if not moved.move.number:
            raise NotFound(
                f"model {moved.model.model!r} has no alias {request.alias!r}",
                resource=Resource("model", request.model),
            )
        return model_to_proto(moved.model)

    async def _move(
        self,
        request: model_pb2.SetAliasRequest | model_pb2.DeleteAliasRequest,
        version: int,
        reason: str,
    ) -> Moved:
        named = _model_ref(request.model, request.project, "model")
        method = request.DESCRIPTOR.name.removesuffix("Request")
        key = request_key(named.project, method, request.request_id, request)
        known = await seen_before(self._store, key)
        if known is not None:
            return await self._moved_before(known)
        want = Want(
            named.project,
            named.name,
            request.alias,
            version,
            request.expected if request.HasField("expected") else None,
            reason,
            current_call().principal,
            self._now(),
        )
        moved = await self._parts.aliases.move(want, key)
        return await self._first(moved, key)

    async def _first(self, moved: Moved | Met, key: RequestKey | None) -> Moved:
        """What this request did, or the one with its key that came first."""
        if isinstance(moved, Moved):
            return moved
        return await self._moved_before(made_before(moved, key))

    async def _moved_before(self, name: str) -> Moved:
        """What a repeated request did: its move, and the model as it is now."""
        project, model, number = _move_ref(name)
        moves = await self._models.moves(MoveQuery(project, model), number + 1, 1)
        return Moved(await self._named(model, project, "model"), moves[0], changed=False)

    async def DecideAliasMove(
        self, request: model_pb2.DecideAliasMoveRequest, context: Context
    ) -> model_pb2.AliasMove:
        """Approve or reject a move that waits."""
        project, model, number = _move_ref(request.name)
        key = request_key(project, "DecideAliasMove", request.request_id, request)
        known = await seen_before(self._store, key)
        if known is not None:
            return move_to_proto((await self._moved_before(known)).move)
        decision = Decision(
            project,
            model,
            number,
            request.approve,
            request.comment,
            current_call().principal,
            self._now(),
        )
        moved = await self._parts.aliases.decide(decision, key)
        return move_to_proto((await self._first(moved, key)).move)

    async def ListAliasMoves(
        self, request: model_pb2.ListAliasMovesRequest, context: Context
    ) -> model_pb2.ListAliasMovesResponse:
        """Moves of aliases, newest first."""
        project, model = request.project or DEFAULT_PROJECT, ""
        if request.model:
            found = await self._named(request.model, request.project, "model")
            project, model = found.project, found.model
        query = MoveQuery(project, model, request.pending_only)
        scope = f"moves:{query!r}"
        below = int(self._pager.position(scope, request.page_token) or 0)
        size = page_size(request.page_size)
        moves = await self._models.moves(query, below, size + 1)
        reply = model_pb2.ListAliasMovesResponse(moves=[move_to_proto(one) for one in moves[:size]])
        if len(moves) > size:
            reply.next_page_token = self._pager.token(scope, str(moves[size - 1].number))
        return reply

    # -- lineage --------------------------------------------------------------------------------

    async def GetLineage(
        self, request: model_pb2.GetLineageRequest, context: Context
    ) -> model_pb2.Lineage:
        """Where something comes from and what became of it."""
        project = request.project or DEFAULT_PROJECT
        return await Lineages(self._store).of(request.name, project, request.depth)


def _one_of_each(images: Sequence[model_pb2.ModelImage]) -> None:
    known = [image.architecture for image in images]
    if len(set(known)) < len(known):
        raise InvalidArgument.field(
            "images", "must have one image of an architecture at most", value=", ".join(known)
        )


def _checked(version: ModelVersion) -> None:
    if version.state is ModelState.REGISTERING:
        raise FailedPrecondition(
            f"{version.model}:{version.version} is still being checked; wait until it is READY",
            resource=Resource("model_version", version.name),
        )


def _parsed(text: str, kind: str, project: str, field: str) -> Reference:
    try:
        return parse(text, kind, project or DEFAULT_PROJECT)
    except BadReference as error:
        raise InvalidArgument.field(
            field,
            str(error),
            value=text,
            remedy="write it as in `hatoba models list`",
            rule="reference",
        ) from None


def _model_ref(text: str, project: str, field: str) -> Reference:
    """A model as a whole: a reference without number and alias."""
    named = _parsed(text, "models", project, field)
    if named.version or named.alias:
        raise InvalidArgument.field(
            field,
            "must name a model, without a version or alias",
            value=text,
            remedy=f"say `{named.name}`",
            rule="reference.model",
        )
    return named


def _move_ref(name: str) -> tuple[str, str, int]:
    matched = _MOVE.fullmatch(name)
    if matched is None:
        raise InvalidArgument.field(
            "name",
            "must be projects/P/models/M/moves/NUMBER",
            value=name,
            remedy="`hatoba models moves` shows them",
            rule="move.name",
        )
    return matched[1], matched[2], int(matched[3])


def _no_model(text: str) -> NotFound:
    return NotFound(
        f"there is no model {shown(text)}; `hatoba models list` shows those there are",
        resource=Resource("model", text),
    )


def _missing(field: str, text: str, command: str) -> HatobaError:
    return NotFound(
        f"{field}: there is no {shown(text)}; `{command}` shows those there are",
        resource=Resource(field.partition("[")[0], text),
    )
