"""DeploymentService: what people want of deployments, and what routers are told and tell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from hatoba.v1 import deployment_pb2, deployment_pb2_grpc
from hatoba_plugins.backend import Clock
from hatoba_plugins.errors import BackendError, Unsupported
from hatoba_scheduler.auth.authority import Authority, read_request
from hatoba_scheduler.control.deployables import Deployable, ServingGrounds, deployable, problems
from hatoba_scheduler.control.deployments import DeploymentBook, Live
from hatoba_scheduler.control.predictions import PredictionDesk
from hatoba_scheduler.control.routes import RouteFeed, Session
from hatoba_scheduler.convert import requirements_of
from hatoba_scheduler.convert_datasets import code_to_proto
from hatoba_scheduler.convert_datasets import version_to_proto as dataset_to_proto
from hatoba_scheduler.convert_deployments import (
    etag_of,
    event_to_proto,
    is_for_devices,
    prediction_to_proto,
    revision_to_proto,
    settings_of,
    spec_of,
    with_defaults,
)
from hatoba_scheduler.convert_devices import targets_of
from hatoba_scheduler.convert_models import version_to_proto
from hatoba_scheduler.domain.deployments import Change, Deployment, Prediction, Revision, Settings
from hatoba_scheduler.domain.device_rollouts import promoted as promoted_on_devices
from hatoba_scheduler.domain.models import ModelVersion, VersionKey
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.references import BadReference, Reference, parse, short
from hatoba_scheduler.domain.rollouts import (
    View,
    back_to,
    created,
    deleted,
    deployed_already,
    paused,
    promoted,
    resumed,
    rolled_back,
    settled,
    target_of,
    traffic_set,
    updated,
)
from hatoba_scheduler.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Resource,
    Unavailable,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import mark_deduplicated, request_key, seen_before
from hatoba_scheduler.store.base import RequestKey, Store
from hatoba_scheduler.store.datasets import DatasetKey
from hatoba_scheduler.validation import violations

Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger(__name__)

LOOK_AGAIN = 1.0
MOST_LINES = 10_000
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_STREAM = "stderr"
Decide = Callable[[View], Change | None]


@dataclass(frozen=True, slots=True)
class DeploymentParts:
    """What the service stands on. `tasks` owns the readers of open streams."""

    store: Store
    book: DeploymentBook
    feed: RouteFeed
    authority: Authority
    desk: PredictionDesk
    grounds: Callable[[], ServingGrounds]
    new_uid: Callable[[], str]
    pager: Pager
    clock: Clock
    tasks: asyncio.TaskGroup
    stopping: asyncio.Event


class DeploymentServicer(deployment_pb2_grpc.DeploymentServiceServicer):
    """See proto/hatoba/v1/deployment.proto."""

    def __init__(self, parts: DeploymentParts) -> None:
        self._parts = parts
        self._book = parts.book
        self._store = parts.store

    # -- making and changing --------------------------------------------------------------------

    async def CreateDeployment(
        self, request: deployment_pb2.CreateDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Make a deployment."""
        project = request.project or DEFAULT_PROJECT
        key = request_key(project, "CreateDeployment", request.request_id, request)
        made = await seen_before(self._store, key)
        if made is not None:
            return self._by_uid(made, request.deployment)
        grounds = self._parts.grounds()
        spec = with_defaults(request.spec, grounds.default_for(request.spec))
        wanted = await deployable(self._store, (project, request.deployment), spec, grounds)
        new = self._new(project, request.deployment, wanted, spec.backend)
        now = self._book.now(new.created_by)
        first = wanted.revision(1, now.actor, now.time)
        change = created(new, first, now, devices=spec.HasField("devices"))
        if request.validate_only:
            self._require_free(project, request.deployment)
            return deployment_pb2.Deployment(name=new.resource, spec=spec)
        live, again = await self._book.create(change, first, key)
        if again:
            mark_deduplicated()
        return self._book.shown(live)

    def _new(self, project: str, name: str, wanted: Deployable, backend: str) -> Deployment:
        return Deployment(
            uid=self._parts.new_uid(),
            project=project,
            name=name,
            backend=backend,
            settings=wanted.settings,
            version=0,
            settings_version=1,
            generation=0,
            wanted=(),
            current=0,
            newest=0,
            following=bool(wanted.settings.alias),
            followed=wanted.followed,
            rollout=None,
            events=0,
            create_time=self._book.now().time,
            created_by=current_call().principal,
        )

    def _require_free(self, project: str, name: str) -> None:
        if self._book.by_resource(f"projects/{project}/deployments/{name}") is not None:
            raise AlreadyExists(f"there is a deployment {name!r} in project {project!r}")

    def _by_uid(self, uid: str, name: str) -> deployment_pb2.Deployment:
        live = self._book.by_uid(uid)
        if live is None:
            raise NotFound(f"deployment {name!r}, which this call made or changed, was removed")
        return self._book.shown(live)

    async def UpdateDeployment(
        self, request: deployment_pb2.UpdateDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Change what the mask names."""
        live = self._book.named(request.name, request.project)
        one = live.deployment
        key = request_key(one.project, "UpdateDeployment", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return self._book.shown(live)
        spec = _masked(spec_of(one.settings), request.spec, request.update_mask)
        found = violations(spec, "spec")
        if found:
            raise InvalidArgument.of(found)
        if spec.backend and spec.backend != one.backend:
            raise InvalidArgument.field(
                "spec.backend",
                f"cannot be changed, it is {one.backend!r}",
                value=spec.backend,
                remedy="make another deployment there, then delete this one",
            )
        if spec.HasField("devices") != is_for_devices(one):
            raise InvalidArgument.field(
                "spec.devices",
                "cannot be added or taken away",
                value=one.name,
                remedy="make another deployment, then delete this one",
            )
        if is_for_devices(one) and "replicas" in request.update_mask.paths:
            raise InvalidArgument.field(
                "spec.replicas",
                "does not apply to devices: each that matches has one",
                value=request.spec.replicas,
                remedy="change the selector, or devices' labels",
            )
        if not request.allow_removal:
            self._require_none_lost(live, spec)
        same_content = set(request.update_mask.paths) <= _no_content(spec)
        wanted = await self._wanted(live, with_defaults(spec, one.backend), request.update_mask)

        def decide(view: View) -> Change | None:
            _check_etag(view.deployment, request.etag)
            if view.deployment.settings != one.settings:
                raise _changed_meanwhile(view.deployment)
            now = self._now()
            revision, followed = None, view.deployment.followed
            if not same_content:
                followed = wanted.followed
            if not same_content and not deployed_already(view, wanted.template):
                revision = wanted.revision(view.deployment.newest + 1, now.actor, now.time)
            return updated(view, wanted.settings, revision, followed, now)

        return await self._changed(live, decide, key)

    def _require_none_lost(self, live: Live, spec: deployment_pb2.DeploymentSpec) -> None:
        """Raise FailedPrecondition where another selector would take it from devices."""
        selector = requirements_of(spec.devices.selector)
        if live.fleet is not None and (lost := live.fleet.lost_by(selector)):
            some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
            raise FailedPrecondition(
                f"{len(lost):,} devices would lose deployment {live.deployment.name!r} ({some}); "
                "allow that with --allow-removal",
                resource=Resource("deployment", live.deployment.resource),
            )

    async def _wanted(
        self, live: Live, spec: deployment_pb2.DeploymentSpec, mask: FieldMask
    ) -> Deployable:
        """What the new settings mean. What does not concern content keeps the content as it is:
        a scaled deployment is not moved to another version, nor refused for its model."""
        one = live.deployment
        target = live.revisions.get(target_of(one))
        if set(mask.paths) <= _no_content(spec) and target is not None:
            grounds = self._parts.grounds()
            _check_strategy(spec, grounds)
            project, model, number = _parts_of(target.model_version)
            version = await self._store.models.version(VersionKey(project, model, number))
            if version is not None:
                settings = settings_of(spec, one.settings.model)
                return Deployable(settings, version, target.template)
        return await deployable(self._store, (one.project, one.name), spec, self._parts.grounds())

    async def SetTraffic(
        self, request: deployment_pb2.SetTrafficRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Weights by hand."""
        live = self._book.named(request.name, request.project)
        backend = self._parts.grounds().backends.get(live.deployment.backend)
        if len(request.weights) > 1 and backend and not backend.capabilities().canary:
            raise FailedPrecondition(
                f"backend {live.deployment.backend!r} cannot share traffic between revisions"
            )
        if sum(request.weights.values()) != 100:
            raise InvalidArgument.field(
                "weights",
                f"add up to {sum(request.weights.values())}, not to 100",
                value=dict(request.weights),
                remedy="correct them",
                rule="weights.sum",
            )
        return await self._simple(
            live,
            "SetTraffic",
            request,
            lambda view: traffic_set(view, request.weights, self._now()),
        )

    async def PauseRollout(
        self, request: deployment_pb2.PauseRolloutRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Stop a roll-out where it is."""
        live = self._book.named(request.name, request.project)
        return await self._simple(
            live, "PauseRollout", request, lambda view: paused(view, self._now())
        )

    async def ResumeRollout(
        self, request: deployment_pb2.ResumeRolloutRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Let a paused roll-out go on."""
        live = self._book.named(request.name, request.project)
        return await self._simple(
            live, "ResumeRollout", request, lambda view: resumed(view, self._now())
        )

    async def PromoteRollout(
        self, request: deployment_pb2.PromoteRolloutRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Skip the remaining steps."""
        live = self._book.named(request.name, request.project)
        spec = spec_of(live.deployment.settings)

        def decide(view: View) -> Change | None:
            if spec.HasField("devices"):
                return promoted_on_devices(view, targets_of(spec).policy, self._now())
            return promoted(view, self._now())

        return await self._simple(live, "PromoteRollout", request, decide)

    async def RollBackDeployment(
        self, request: deployment_pb2.RollBackDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Go back to an earlier revision."""
        live = self._book.named(request.name, request.project)
        key = request_key(
            live.deployment.project, "RollBackDeployment", request.request_id, request
        )
        if await seen_before(self._store, key) is not None:
            return self._book.shown(live)
        known = {one.revision: one for one in live.revisions.values()}
        asked = request.revision
        if asked and asked not in known:
            older = await self._store.deployments.revision(live.uid, asked)
            known |= {asked: older} if older is not None else {}
        for revision in list(known.values()):
            if not await self._still_there(revision):
                del known[revision.revision]

        def decide(view: View) -> Change | None:
            to = known[back_to(view, asked, known.values())]
            settings = _as_of(view.deployment.settings, to)
            return rolled_back(view, to, settings, request.reason, self._now())

        return await self._changed(live, decide, key)

    async def _still_there(self, revision: Revision) -> bool:
        if revision.in_use:
            return True
        project, model, number = _parts_of(revision.model_version)
        return await self._store.models.version(VersionKey(project, model, number)) is not None

    async def DeleteDeployment(
        self, request: deployment_pb2.DeleteDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """Take a deployment away."""
        live = self._book.named(request.name, request.project)

        def decide(view: View) -> Change | None:
            if not request.allow_removal and not view.deployment.deleting:
                _require_on_no_device(live)
            return deleted(view, self._now())

        return await self._simple(live, "DeleteDeployment", request, decide)

    def _now(self) -> Any:
        return self._book.now(current_call().principal)

    async def _simple(
        self, live: Live, method: str, request: Any, decide: Decide
    ) -> deployment_pb2.Deployment:
        key = request_key(live.deployment.project, method, request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return self._book.shown(live)
        return await self._changed(live, decide, key)

    async def _changed(
        self, live: Live, decide: Decide, key: RequestKey | None
    ) -> deployment_pb2.Deployment:
        if not await self._book.change(live, decide, key) and key is not None:
            # Nothing was written: the key is kept by itself, so that a repeat is told as one.
            await self._store.remember_request(key, live.uid)
        return self._book.shown(live)

    # -- reading --------------------------------------------------------------------------------

    async def GetDeployment(
        self, request: deployment_pb2.GetDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        """One deployment."""
        return self._book.shown(self._book.named(request.name, request.project))

    async def ListDeployments(
        self, request: deployment_pb2.ListDeploymentsRequest, context: Context
    ) -> deployment_pb2.ListDeploymentsResponse:
        """Deployments by name."""
        project = request.project or DEFAULT_PROJECT
        scope = f"deployments:{project}"
        after = self._parts.pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = [one for one in self._book.of_project(project) if one.deployment.name > after]
        reply = deployment_pb2.ListDeploymentsResponse(
            deployments=[self._book.shown(one) for one in found[:size]]
        )
        if len(found) > size:
            last = found[size - 1].deployment.name
            reply.next_page_token = self._parts.pager.token(scope, last)
        return reply

    async def ListRevisions(
        self, request: deployment_pb2.ListRevisionsRequest, context: Context
    ) -> deployment_pb2.ListRevisionsResponse:
        """Revisions, newest first."""
        live = self._book.named(request.deployment, request.project, "deployment")
        scope = f"revisions:{live.uid}"
        below = int(self._parts.pager.position(scope, request.page_token) or 0)
        size = page_size(request.page_size)
        found = await self._store.deployments.revisions(live.uid, below, size + 1)
        reply = deployment_pb2.ListRevisionsResponse(
            revisions=[revision_to_proto(one) for one in found[:size]]
        )
        if len(found) > size:
            last = str(found[size - 1].revision)
            reply.next_page_token = self._parts.pager.token(scope, last)
        return reply

    async def ListDeploymentEvents(
        self, request: deployment_pb2.ListDeploymentEventsRequest, context: Context
    ) -> deployment_pb2.ListDeploymentEventsResponse:
        """Events, newest first."""
        live = self._book.named(request.deployment, request.project, "deployment")
        scope = f"events:{live.uid}"
        below = int(self._parts.pager.position(scope, request.page_token) or 0)
        size = page_size(request.page_size)
        found = await self._store.deployments.events(live.uid, below, size + 1)
        reply = deployment_pb2.ListDeploymentEventsResponse(
            events=[event_to_proto(one) for one in found[:size]]
        )
        if len(found) > size:
            reply.next_page_token = self._parts.pager.token(scope, str(found[size - 1].seq))
        return reply

    async def WatchDeployment(
        self, request: deployment_pb2.WatchDeploymentRequest, context: Context
    ) -> AsyncIterator[deployment_pb2.Deployment]:
        """A deployment as it changes."""
        live = self._book.named(request.name, request.project)
        last: deployment_pb2.Deployment | None = None
        while not live.gone and not self._parts.stopping.is_set():
            news, over = live.news, _is_settled(live)
            shown = self._book.shown(live)
            if last is None or _told_anew(last, shown):
                last = shown
                yield shown
            if over and not request.follow:
                return
            await self._either(news)

    async def _either(self, news: asyncio.Event) -> None:
        """Wait for news, or for the server's stop."""
        async with asyncio.TaskGroup() as group:
            waits = (
                group.create_task(news.wait(), name="watch:news"),
                group.create_task(self._parts.stopping.wait(), name="watch:stop"),
            )
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for one in waits:
                one.cancel()

    async def TailReplicaLogs(
        self, request: deployment_pb2.TailReplicaLogsRequest, context: Context
    ) -> AsyncIterator[deployment_pb2.TailReplicaLogsResponse]:
        """What a replica wrote."""
        live = self._book.named(request.deployment, request.project, "deployment")
        if is_for_devices(live.deployment):
            raise FailedPrecondition(
                f"deployment {live.deployment.name!r} runs on devices, which send their logs: "
                "`hatoba devices logs DEVICE`",
                resource=Resource("deployment", live.deployment.resource),
            )
        name = self._replica(live, request.replica)
        stream, read = request.stream or _STREAM, 0
        lines = request.tail_lines or 100
        while True:
            async for chunk in self._log(live, name, stream, lines):
                data = chunk.data[max(read - chunk.offset, 0) :]
                read = max(read, chunk.offset + len(chunk.data))
                if data:
                    yield deployment_pb2.TailReplicaLogsResponse(replica=name, data=data)
            if not request.follow or self._parts.stopping.is_set() or not _has(live, name):
                return
            lines = MOST_LINES
            await self._parts.clock.sleep(LOOK_AGAIN)

    def _replica(self, live: Live, asked: str) -> str:
        replicas = live.seen.replicas if live.seen is not None else ()
        if not asked and replicas:
            return max(replicas, key=lambda one: (one.revision, one.since, one.name)).name
        if asked in {one.name for one in replicas}:
            return asked
        names = ", ".join(one.name for one in replicas) or "none"
        raise NotFound(
            f"deployment {live.deployment.name!r} has no replica {asked!r}; it has {names}",
            resource=Resource("replica", asked),
        )

    async def _log(self, live: Live, name: str, stream: str, lines: int) -> AsyncIterator[Any]:
        backend = self._parts.grounds().backends.get(live.deployment.backend)
        if backend is None or backend.deployments is None:
            raise FailedPrecondition(f"backend {live.deployment.backend!r} is not open")
        try:
            async for chunk in backend.deployments.replica_logs(name, stream, lines):
                yield chunk
        except Unsupported:
            raise FailedPrecondition(
                f"backend {live.deployment.backend!r} keeps no logs of replicas"
            ) from None
        except BackendError as error:
            raise Unavailable(f"the log of {name} cannot be read: {error.message}") from None

    # -- routers --------------------------------------------------------------------------------

    async def WatchDeployments(
        self,
        request_iterator: AsyncIterator[deployment_pb2.WatchDeploymentsRequest],
        context: Context,
    ) -> AsyncIterator[deployment_pb2.WatchDeploymentsResponse]:
        """A router's stream."""
        first = await anext(request_iterator, None)
        if first is None or not first.router:
            raise InvalidArgument.field(
                "router", "must say who it is in the first message", value="", remedy="set it"
            )
        feed = self._parts.feed
        session = await feed.open(first)
        self._heard(session, first)
        reader = self._parts.tasks.create_task(
            self._read(session, request_iterator), name=f"router:{first.router}"
        )
        try:
            async for message in feed.messages(session):
                yield message
        finally:
            reader.cancel()
            await feed.left(session)

    async def _read(
        self, session: Session, requests: AsyncIterator[deployment_pb2.WatchDeploymentsRequest]
    ) -> None:
        try:
            async for request in requests:
                self._heard(session, request)
        except Exception as error:  # noqa: BLE001 - a broken stream is an ordinary end of a session
            log.warning("router.stream.ended", router=session.seat.router, error=repr(error))
        finally:
            session.close()

    def _heard(self, session: Session, request: deployment_pb2.WatchDeploymentsRequest) -> None:
        self._book.reported(request.statistics)
        self._parts.feed.heard(session, request.acked)

    async def ReportPredictions(
        self, request: deployment_pb2.ReportPredictionsRequest, context: Context
    ) -> deployment_pb2.ReportPredictionsResponse:
        """Take what a router saw."""
        return deployment_pb2.ReportPredictionsResponse(
            refused=await self._parts.desk.take(request)
        )

    async def SignRouter(
        self, request: deployment_pb2.SignRouterRequest, context: Context
    ) -> deployment_pb2.RouterCertificate:
        """A certificate by which replicas know a router."""
        authority, csr = self._parts.authority, read_request(request.csr, "csr")
        certificate = authority.sign_router(csr, current_call().principal)
        return deployment_pb2.RouterCertificate(certificate=certificate, authority=authority.pem)

    async def ExplainPrediction(
        self, request: deployment_pb2.ExplainPredictionRequest, context: Context
    ) -> deployment_pb2.PredictionExplanation:
        """What stands behind a prediction."""
        trace_id = request.name.rpartition("/")[2].lower()
        if not _TRACE_ID.fullmatch(trace_id) or request.name.count("/") > 1:
            raise InvalidArgument.field(
                "name",
                "must be `predictions/TRACE_ID`, a trace id of 32 hex digits",
                value=request.name,
                remedy="take it from the reply's header `hatoba-trace-id`",
            )
        kept = await self._store.deployments.prediction(trace_id)
        if kept is None:
            raise NotFound(
                f"no prediction with trace id {trace_id} was kept: they are sampled, "
                "and only the newest stay",
                resource=Resource("prediction", f"predictions/{trace_id}"),
            )
        return await self._explained(kept)

    async def _explained(self, kept: Prediction) -> deployment_pb2.PredictionExplanation:
        out = deployment_pb2.PredictionExplanation(
            prediction=prediction_to_proto(kept),
            spans=await self._parts.desk.traces.trace(kept.trace_id),
        )
        version = await self._model(kept.model_version)
        if version is None:
            return out
        model = await self._store.models.model(version.project, version.model)
        message = version_to_proto(version, model.aliases if model else ())
        out.model_version.CopyFrom(message)
        out.job = version.job
        await self._put_sources(out, version)
        return out

    async def _model(self, name: str) -> ModelVersion | None:
        if not name:
            return None
        return await self._store.models.version(VersionKey(*_parts_of(name)))

    async def _put_sources(
        self, out: deployment_pb2.PredictionExplanation, version: ModelVersion
    ) -> None:
        if version.code_version:
            ref = parse(version.code_version, "code")
            code = await self._store.datasets.code_version(ref.project, ref.name, ref.version)
            if code is not None:
                out.code.CopyFrom(code_to_proto(code))
        for name in version.datasets:
            ref = parse(name, "datasets")
            dataset = await self._store.datasets.version(_dataset_key(ref))
            if dataset is not None:
                out.datasets.append(dataset_to_proto(dataset))


_NO_CONTENT = frozenset({"replicas", "capture", "strategy", "labels", "devices"})
_FIELDS = tuple(deployment_pb2.DeploymentSpec.DESCRIPTOR.fields_by_name)


def _no_content(spec: deployment_pb2.DeploymentSpec) -> frozenset[str]:
    """Fields that make no new revision. On devices it is the model servers that capture, each by
    what its revision says."""
    return _NO_CONTENT - {"capture"} if spec.HasField("devices") else _NO_CONTENT


def _masked(
    spec: deployment_pb2.DeploymentSpec, told: deployment_pb2.DeploymentSpec, mask: FieldMask
) -> deployment_pb2.DeploymentSpec:
    """The specification with those fields of `told` that the mask names."""
    paths = set(mask.paths)
    if not paths or paths - set(_FIELDS):
        raise InvalidArgument.field(
            "update_mask",
            f"must name some of {', '.join(_FIELDS)} and nothing else",
            value=",".join(sorted(paths)),
        )
    new = deployment_pb2.DeploymentSpec()
    new.CopyFrom(told)
    for field in _FIELDS:
        if field in paths:
            spec.ClearField(field)  # type: ignore[arg-type]
        else:
            new.ClearField(field)  # type: ignore[arg-type]
    spec.MergeFrom(new)
    return spec


def _check_strategy(spec: deployment_pb2.DeploymentSpec, grounds: ServingGrounds) -> None:
    """What may be wrong with fields that are no content."""
    found = [
        one
        for one in problems(spec, grounds)
        if one.field.startswith(("spec.strategy", "spec.capture", "spec.devices"))
    ]
    if found:
        raise InvalidArgument.of(found)


def _check_etag(deployment: Deployment, etag: str) -> None:
    if etag and etag != etag_of(deployment):
        raise Aborted(
            f"deployment {deployment.name!r} was changed since it was read "
            f"(etag {etag_of(deployment)}, not {etag}); read it again and retry"
        )


def _require_on_no_device(live: Live) -> None:
    """Raise FailedPrecondition where devices run it."""
    running = sum(live.fleet.shown().running.values()) if live.fleet is not None else 0
    if running:
        many = "1 device" if running == 1 else f"{running:,} devices"
        raise FailedPrecondition(
            f"deployment {live.deployment.name!r} runs on {many}, which would lose it; "
            "allow that with --allow-removal",
            resource=Resource("deployment", live.deployment.resource),
        )


def _changed_meanwhile(deployment: Deployment) -> Aborted:
    return Aborted(
        f"deployment {deployment.name!r} was changed at the same time; read it again and retry"
    )


def _as_of(settings: Settings, revision: Revision) -> Settings:
    """Settings with a revision's content; how many replicas and how they are exchanged stays."""
    spec = spec_of(settings)
    old = deployment_pb2.DeploymentSpec.FromString(revision.spec)
    stays = _no_content(spec)
    for field in _FIELDS:
        if field not in stays | {"model", "backend"}:
            spec.ClearField(field)  # type: ignore[arg-type]
    for field in (*stays, "model", "backend"):
        old.ClearField(field)  # type: ignore[arg-type]
    spec.MergeFrom(old)
    model = settings.model
    if not settings.alias:
        model, spec.model = revision.model_version, short(revision.model_version)
        project = revision.model_version.split("/")[1]
        if settings.model.split("/")[1] != project:
            spec.model = revision.model_version
    return settings_of(spec, model)


def _parts_of(model_version: str) -> tuple[str, str, int]:
    """Project, model and number of a version's resource name. Raises InvalidArgument."""
    try:
        ref = parse(model_version, "models")
    except BadReference as error:
        raise InvalidArgument(str(error)) from None
    return ref.project, ref.name, ref.version


def _dataset_key(ref: Reference) -> DatasetKey:
    return DatasetKey(ref.project, ref.name, ref.version)


def _is_settled(live: Live) -> bool:
    """Nothing is under way."""
    if live.fleet is None:
        return settled(live.deployment, live.seen)
    return live.deployment.active is None and not live.deployment.deleting


def _told_anew(before: deployment_pb2.Deployment, after: deployment_pb2.Deployment) -> bool:
    """Whether they differ in more than the seconds that are left."""
    return _without_wait(before) != _without_wait(after)


def _without_wait(shown: deployment_pb2.Deployment) -> Message:
    copy = deployment_pb2.Deployment()
    copy.CopyFrom(shown)
    copy.rollout.ClearField("waiting_for")
    return copy


def _has(live: Live, replica: str) -> bool:
    seen = live.seen
    return not live.gone and seen is not None and any(r.name == replica for r in seen.replicas)
