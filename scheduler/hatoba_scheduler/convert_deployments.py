"""Between records of deployments, messages of the contract, and values of the backend seam."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from hatoba.v1 import common_pb2, deployment_pb2, model_pb2, worker_pb2
from hatoba_plugins.values import (
    Handle,
    ReplicaPhase,
    ReplicaSet,
    ReplicaView,
    RevisionTarget,
    Target,
)
from hatoba_scheduler.convert import cause_to_proto, manifest_to_proto, micros, set_time
from hatoba_scheduler.domain.deployments import (
    CanaryStep,
    Deployment,
    DeploymentEvent,
    Prediction,
    ReplicaState,
    Revision,
    Rollout,
    RouteShare,
    Seen,
    SeenSet,
    Settings,
    Strategy,
)
from hatoba_scheduler.domain.device_rollouts import (
    Policy,
    Tally,
    fleet_state,
    fleet_waiting_for,
    tally,
)
from hatoba_scheduler.domain.models import ModelVersion
from hatoba_scheduler.domain.records import Cause, Micros
from hatoba_scheduler.domain.rollouts import View, state_of, trouble, waiting_for
from hatoba_scheduler.domain.states import CauseCode, Origin

SECOND = 1_000_000
DEFAULT_BAKE = 5 * SECOND
DEFAULT_DEVICE_BAKE = 60 * SECOND
DEFAULT_READY_DEADLINE = 300 * SECOND
DEFAULT_DRAIN = 30 * SECOND
DEFAULT_TIMEOUT = 60 * SECOND
DEFAULT_BODY = 16 << 20
DEFAULT_QUEUE = 64
DEFAULT_ERROR_SHARE = 0.05
_PHASES = {
    ReplicaPhase.PENDING: ReplicaState.PENDING,
    ReplicaPhase.STARTING: ReplicaState.STARTING,
    ReplicaPhase.READY: ReplicaState.READY,
    ReplicaPhase.UNHEALTHY: ReplicaState.UNHEALTHY,
    ReplicaPhase.DRAINING: ReplicaState.DRAINING,
}
_TO_DEVICES = Policy()
DEVICE_WAITS = ("group_wait", "retry_wait", "offer_deadline", "apply_deadline", "approve_deadline")
_OVER = (ReplicaState.DRAINING, ReplicaState.GONE)
_CODES = {int(code): code for code in CauseCode}
_ORIGINS = {int(origin): origin for origin in Origin}


# -- what is wanted --------------------------------------------------------------------------------


def with_defaults(
    wanted: deployment_pb2.DeploymentSpec, default_backend: str
) -> deployment_pb2.DeploymentSpec:
    """A specification with everything said that was left to us."""
    spec = deployment_pb2.DeploymentSpec()
    spec.CopyFrom(wanted)
    if spec.HasField("devices"):
        put_device_defaults(spec)
    if not spec.HasField("replicas"):
        spec.replicas = 1
    spec.backend = spec.backend or default_backend
    strategy, limits = spec.strategy, spec.limits
    if not strategy.HasField("max_surge"):
        strategy.max_surge = 1
    if not strategy.HasField("max_error_share"):
        strategy.max_error_share = DEFAULT_ERROR_SHARE
    _default(strategy, "bake", DEFAULT_BAKE)
    _default(strategy, "ready_deadline", DEFAULT_READY_DEADLINE)
    _default(spec, "drain", DEFAULT_DRAIN)
    _default(limits, "timeout", DEFAULT_TIMEOUT)
    limits.max_body_bytes = limits.max_body_bytes or DEFAULT_BODY
    limits.max_queue = limits.max_queue or DEFAULT_QUEUE
    limits.concurrency = limits.concurrency or 1
    return spec


def _default(
    message: deployment_pb2.DeploymentSpec
    | deployment_pb2.Strategy
    | deployment_pb2.ServingLimits
    | deployment_pb2.DeviceTargets,
    field: str,
    value: Micros,
) -> None:
    known = {one.name for one, _ in message.ListFields()}
    if field not in known:
        duration: Duration = getattr(message, field)
        duration.FromMicroseconds(value)


def put_device_defaults(spec: deployment_pb2.DeploymentSpec) -> None:
    """Fill in what a specification for devices leaves to us."""
    told = spec.devices
    for field in ("go_on_share", "abort_share", "retries"):
        if not told.HasField(field):
            setattr(told, field, getattr(_TO_DEVICES, field))
    for field in DEVICE_WAITS:
        _default(told, field, getattr(_TO_DEVICES, field))
    _default(spec.strategy, "bake", DEFAULT_DEVICE_BAKE)
    spec.replicas = 0


def settings_of(spec: deployment_pb2.DeploymentSpec, model: str) -> Settings:
    """The record of a specification with defaults; `model` is the reference in full."""
    body = spec.SerializeToString(deterministic=True)
    return Settings(body, model, spec.replicas, _strategy(spec.strategy))


def _strategy(told: deployment_pb2.Strategy) -> Strategy:
    return Strategy(
        max_unavailable=told.max_unavailable,
        max_surge=told.max_surge,
        steps=tuple(CanaryStep(one.percent, _micros(one.hold)) for one in told.steps),
        bake=_micros(told.bake),
        ready_deadline=_micros(told.ready_deadline),
        rollback=not told.no_rollback,
        max_error_share=told.max_error_share,
    )


def _micros(duration: Duration) -> Micros:
    return duration.ToMicroseconds()


def spec_of(settings: Settings) -> deployment_pb2.DeploymentSpec:
    """The specification that is wanted."""
    return deployment_pb2.DeploymentSpec.FromString(settings.spec)


def template_of(
    deployment: str, spec: deployment_pb2.DeploymentSpec, version: ModelVersion
) -> worker_pb2.ReplicaSpec:
    """What each replica of this version is made from."""
    content = model_pb2.ModelVersion.FromString(version.content)
    own = spec.HasField("resources")
    return worker_pb2.ReplicaSpec(
        deployment=deployment,
        model_version=version.name,
        model=manifest_to_proto(version.manifest),
        serving=content.serving,
        resources=spec.resources if own else content.serving.resources,
        env=dict(spec.env),
        secrets=spec.secrets,
        limits=spec.limits,
        drain=spec.drain,
        # Elsewhere routers do, of whose share replicas know nothing.
        capture_rate=spec.capture.rate if spec.HasField("devices") else 0.0,
    )


# -- the backend's side ----------------------------------------------------------------------------


def hex_uid(uid: str) -> str:
    """A uid as it stands in external names."""
    return uid.replace("-", "")


ReplicaCredential = Callable[[str, Revision], str]
"""What replicas of a deployment's (hex uid) revision read its files with."""


def target_of(
    deployment: Deployment,
    revisions: Mapping[int, Revision],
    credential: ReplicaCredential = lambda uid, revision: "",
) -> Target:
    """What its backend is asked for; the same values each time for a generation."""
    strategy = deployment.settings.strategy
    uid = hex_uid(deployment.uid)
    wanted = [
        RevisionTarget(
            one.revision,
            one.replicas,
            one.weight,
            _template(revisions[one.revision]),
            credential(uid, revisions[one.revision]),
        )
        for one in deployment.wanted
    ]
    return Target(
        deployment=deployment.resource,
        uid=uid,
        generation=deployment.generation,
        revisions=tuple(wanted),
        max_unavailable=strategy.max_unavailable,
        max_surge=strategy.max_surge,
    )


def _template(revision: Revision) -> worker_pb2.ReplicaSpec:
    template = worker_pb2.ReplicaSpec.FromString(revision.template)
    template.revision = revision.revision
    return template


def handle_text(handle: Handle) -> str:
    """A handle as it is stored."""
    return json.dumps(handle)


def handle_from(text: str) -> Handle | None:
    """A stored handle; None for empty text."""
    return Handle(*json.loads(text)) if text else None


def seen_of(told: ReplicaSet) -> SeenSet:
    """What a backend sees, as a record."""
    return SeenSet(
        told.generation,
        tuple(_seen(one) for one in sorted(told.replicas, key=lambda one: one.name)),
        told.leaving,
        cause_of(told.problem),
    )


def _seen(one: ReplicaView) -> Seen:
    return Seen(
        one.name,
        one.revision,
        _PHASES[one.phase],
        one.host,
        one.address,
        one.restarts,
        round(one.since * SECOND),
        cause_of(one.cause),
        one.server_name,
        one.gpus,
    )


def cause_of(told: common_pb2.Cause | None) -> Cause | None:
    """The record of a cause that a backend or a device tells; None: nothing is told."""
    if told is None or not told.code:
        return None
    return Cause(
        _CODES.get(told.code, CauseCode.BACKEND_FAILED),
        _ORIGINS.get(told.origin, Origin.UNKNOWN),
        told.message,
        told.retryable,
        told.exit_code if told.HasField("exit_code") else None,
        told.signal if told.HasField("signal") else None,
        tuple(sorted(told.evidence.items())),
        tuple(told.last_log_lines),
    )


# -- what callers see ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A deployment as callers see it; `problem` is the backend's, where it cannot be reached."""

    view: View
    weights: Mapping[int, int]
    """Shares of traffic as routers have them."""
    urls: Sequence[str]
    problem: Cause | None
    now: Micros
    fleet: FleetShown | None = None


@dataclass(frozen=True, slots=True)
class FleetShown:
    """Of a deployment to devices: where these stand, how many are connected, and on how many each
    revision is wanted and runs."""

    tally: Tally
    connected: int
    wanted: Mapping[int, int]
    running: Mapping[int, int]


NOBODY_YET = FleetShown(tally(()), 0, {}, {})


def is_for_devices(deployment: Deployment) -> bool:
    """Whether a deployment runs on devices, instead of as replicas behind routers."""
    return _is_for_devices(deployment.settings.spec)


@functools.lru_cache(maxsize=1024)
def _is_for_devices(spec: bytes) -> bool:
    return deployment_pb2.DeploymentSpec.FromString(spec).HasField("devices")


def etag_of(deployment: Deployment) -> str:
    """Changes with what is wanted."""
    return f"d{deployment.uid[-6:]}-{deployment.settings_version}"


def deployment_to_proto(shown: Shown) -> deployment_pb2.Deployment:
    """The message of a deployment."""
    view, one = shown.view, shown.view.deployment
    fleet = shown.fleet
    state = fleet_state(one, fleet.tally) if fleet is not None else state_of(one, view.seen)
    out = deployment_pb2.Deployment(
        name=one.resource,
        uid=one.uid,
        spec=spec_of(one.settings),
        state=deployment_pb2.DeploymentState.ValueType(state),
        generation=one.generation,
        revisions=_statuses(shown),
        etag=etag_of(one),
        created_by=one.created_by,
        urls=shown.urls,
        following=one.following,
        current_revision=one.current,
    )
    if view.seen is not None:
        out.replicas.extend(_replicas(view, view.seen))
    cause = trouble(one, view.seen) or shown.problem
    if cause is not None:
        out.cause.CopyFrom(cause_to_proto(cause))
    if fleet is not None:
        told = fleet.tally
        out.devices.MergeFrom(
            deployment_pb2.DeviceTally(
                total=told.total, connected=fleet.connected, **told._asdict()
            )
        )
    if one.rollout is not None:
        _put_rollout(out.rollout, one.rollout)
        waits = fleet_waiting_for(one, fleet.tally) if fleet is not None else None
        out.rollout.waiting_for = waiting_for(view, shown.now) if waits is None else waits
    set_time(out.create_time, one.create_time)
    return out


def _statuses(shown: Shown) -> list[deployment_pb2.RevisionStatus]:
    view = shown.view
    if shown.fleet is not None:
        return _on_devices(view, shown.fleet)
    numbers = {one.revision for one in view.deployment.wanted} | set(shown.weights)
    if view.seen is not None:
        numbers |= {one.revision for one in view.seen.replicas if one.state not in _OVER}
    return [
        deployment_pb2.RevisionStatus(
            revision=number,
            model_version=revision.model_version if revision is not None else "",
            weight=shown.weights.get(number, 0),
            wanted=view.deployment.share(number).replicas,
            ready=view.seen.ready(number) if view.seen is not None else 0,
        )
        for number in sorted(numbers, reverse=True)
        for revision in [view.revisions.get(number)]
    ]


def _on_devices(view: View, fleet: FleetShown) -> list[deployment_pb2.RevisionStatus]:
    return [
        deployment_pb2.RevisionStatus(
            revision=number,
            model_version=revision.model_version if revision is not None else "",
            wanted=fleet.wanted.get(number, 0),
            ready=fleet.running.get(number, 0),
        )
        for number in sorted({*fleet.wanted, *fleet.running}, reverse=True)
        for revision in [view.revisions.get(number)]
    ]


def _replicas(view: View, seen: SeenSet) -> Iterator[deployment_pb2.Replica]:
    promised = {
        number: worker_pb2.ReplicaSpec.FromString(view.revisions[number].template).resources
        for number in view.revisions.keys() & {one.revision for one in seen.replicas}
    }
    for one in seen.replicas:
        out = _replica(one, seen)
        if one.revision in promised:
            out.resources.CopyFrom(promised[one.revision])
        yield out


def _replica(one: Seen, seen: SeenSet) -> deployment_pb2.Replica:
    leaving = one.name in seen.leaving and one.state is ReplicaState.READY
    state = ReplicaState.DRAINING if leaving else one.state
    out = deployment_pb2.Replica(
        name=one.name,
        revision=one.revision,
        state=deployment_pb2.ReplicaState.ValueType(state),
        host=one.host,
        address=one.address,
        secure=bool(one.server_name),
        restarts=one.restarts,
        gpus=one.gpus,
    )
    if one.cause is not None:
        out.cause.CopyFrom(cause_to_proto(one.cause))
    set_time(out.since, one.since)
    return out


def _put_rollout(out: deployment_pb2.Rollout, one: Rollout) -> None:
    out.number, out.step = one.number, one.step
    out.from_revision, out.to_revision = one.from_revision, one.to_revision
    out.state = deployment_pb2.RolloutState.ValueType(one.state)
    set_time(out.start_time, one.start_time)
    set_time(out.end_time, one.end_time)
    if one.cause is not None:
        out.cause.CopyFrom(cause_to_proto(one.cause))


def revision_to_proto(one: Revision) -> deployment_pb2.Revision:
    """The message of a revision."""
    out = deployment_pb2.Revision(
        revision=one.revision,
        model_version=one.model_version,
        spec=deployment_pb2.DeploymentSpec.FromString(one.spec),
        created_by=one.created_by,
        proven=one.proven,
    )
    if one.cause is not None:
        out.cause.CopyFrom(cause_to_proto(one.cause))
    set_time(out.create_time, one.create_time)
    return out


def event_to_proto(one: DeploymentEvent) -> deployment_pb2.DeploymentEvent:
    """The message of an event."""
    out = deployment_pb2.DeploymentEvent(
        seq=one.seq, kind=one.kind, message=one.message, revision=one.revision, actor=one.actor
    )
    if one.cause is not None:
        out.cause.CopyFrom(cause_to_proto(one.cause))
    set_time(out.time, one.time)
    return out


def route_to_proto(
    deployment: Deployment, shares: Iterable[RouteShare], revisions: Mapping[int, Revision]
) -> deployment_pb2.Route:
    """The message of a route."""
    spec = spec_of(deployment.settings)
    out = deployment_pb2.Route(
        deployment=deployment.resource,
        generation=deployment.generation,
        limits=spec.limits,
        capture=spec.capture,
    )
    for share in shares:
        revision = revisions.get(share.revision)
        target = out.targets.add(revision=share.revision, weight=share.weight)
        target.model_version = revision.model_version if revision is not None else ""
        for one in share.replicas:
            target.replicas.add(name=one.name, address=one.address, server_name=one.server_name)
    return out


def prediction_of(told: deployment_pb2.Prediction) -> Prediction:
    """The record of a kept prediction."""
    return Prediction(
        told.trace_id,
        told.deployment,
        told.revision,
        told.model_version,
        told.replica,
        told.status,
        micros(told.time),
        _micros(told.duration),
        told.item,
    )


def prediction_to_proto(one: Prediction) -> deployment_pb2.Prediction:
    """The message of a kept prediction."""
    out = deployment_pb2.Prediction(
        trace_id=one.trace_id,
        deployment=one.deployment,
        revision=one.revision,
        model_version=one.model_version,
        replica=one.replica,
        status=one.status,
        item=one.item,
    )
    set_time(out.time, one.time)
    out.duration.FromMicroseconds(one.duration)
    return out
