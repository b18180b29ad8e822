"""Replicas: what each is made from, and what its pods say of it. Pure.

A replica is a ReplicaSet of one under the replica's own name: the cluster starts it again, also on
another node when its own is drained, while nobody of ours is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hatoba.v1 import common_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu import names, pods
from hatoba_plugins.backends.k8s_gpu.capacity import ARCHITECTURE
from hatoba_plugins.backends.k8s_gpu.objects import Container, Running, SeenPod
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.backends.k8s_gpu.states import container_exit, doom
from hatoba_plugins.errors import Invalid
from hatoba_plugins.rolling import Creation
from hatoba_plugins.runner import replica_environment
from hatoba_plugins.values import Exit, ExitKind, ReplicaPhase, ReplicaView, RevisionTarget, Target

Json = dict[str, Any]
PORT = 8080
SLACK = 30
"""Seconds that a replica has to end beyond the time that it may go on with what it has."""
_CODES = {
    ExitKind.EXITED: (common_pb2.CAUSE_CODE_EXIT_CODE, common_pb2.ORIGIN_USER),
    ExitKind.SIGNALED: (common_pb2.CAUSE_CODE_SIGNAL, common_pb2.ORIGIN_USER),
    ExitKind.OUT_OF_MEMORY: (common_pb2.CAUSE_CODE_OUT_OF_MEMORY, common_pb2.ORIGIN_USER),
    ExitKind.NOT_FOUND: (common_pb2.CAUSE_CODE_COMMAND_NOT_FOUND, common_pb2.ORIGIN_USER),
    ExitKind.NOT_EXECUTABLE: (
        common_pb2.CAUSE_CODE_COMMAND_NOT_EXECUTABLE,
        common_pb2.ORIGIN_USER,
    ),
    ExitKind.IMAGE_MISSING: (common_pb2.CAUSE_CODE_IMAGE_MISSING, common_pb2.ORIGIN_USER),
    ExitKind.IMAGE_DENIED: (common_pb2.CAUSE_CODE_IMAGE_DENIED, common_pb2.ORIGIN_USER),
    ExitKind.IMAGE_ARCHITECTURE: (
        common_pb2.CAUSE_CODE_IMAGE_ARCHITECTURE,
        common_pb2.ORIGIN_USER,
    ),
    ExitKind.IMAGE_UNREACHABLE: (
        common_pb2.CAUSE_CODE_IMAGE_UNREACHABLE,
        common_pb2.ORIGIN_INFRASTRUCTURE,
    ),
    ExitKind.SECRET_MISSING: (common_pb2.CAUSE_CODE_SECRET_MISSING, common_pb2.ORIGIN_USER),
    ExitKind.DEVICE_FAULT: (
        common_pb2.CAUSE_CODE_DEVICE_FAULT,
        common_pb2.ORIGIN_INFRASTRUCTURE,
    ),
}
_FAILED = (common_pb2.CAUSE_CODE_BACKEND_FAILED, common_pb2.ORIGIN_INFRASTRUCTURE)


def require_runnable(target: Target, options: K8sOptions) -> None:
    """Raise Invalid for what no pod can ever run."""
    for one in target.revisions:
        if not image_of(one, options):
            raise Invalid(
                f"revision {one.revision} names no image; build one with `hatoba images build`, or"
                " set `serving_image` of the backend"
            )
        missing = sorted({s.name for s in one.template.secrets} - set(options.secrets))
        if missing:
            raise Invalid(f"{', '.join(missing)}: not among the `secrets` of the backend")


def image_of(revision: RevisionTarget, options: K8sOptions) -> str:
    """The image that a revision's replicas run in; empty: there is none."""
    named: str = revision.template.serving.environment.image
    return named or options.serving_image or options.runner_image


def replica_set(
    ctx: BackendContext, options: K8sOptions, target: Target, creation: Creation
) -> Json:
    """The ReplicaSet of one replica."""
    revision = next(one for one in target.revisions if one.revision == creation.revision)
    labels = {
        names.CLUSTER: ctx.cluster_id,
        names.DEPLOYMENT: target.uid,
        names.REVISION: str(creation.revision),
        names.REPLICA: creation.name,
        names.ROLE: names.ROLE_REPLICA,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": creation.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {names.REPLICA: creation.name}},
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod(ctx, options, target, revision),
            },
        },
    }


def _pod(
    ctx: BackendContext, options: K8sOptions, target: Target, revision: RevisionTarget
) -> Json:
    template = revision.template
    needs = template.resources
    spec = pods.pod_spec(options, service_account="", priority_class="")
    drain = template.drain.ToTimedelta().total_seconds()
    spec |= {
        "terminationGracePeriodSeconds": math.ceil(drain) + SLACK,
        "containers": [_container(ctx, options, target, revision)],
        "volumes": [
            pods.shared_memory(needs, 0, options.shm_bytes),
            {"name": "hatoba", "emptyDir": {}},
        ],
        "tolerations": pods.tolerations(options, needs.gpus > 0),
        "topologySpreadConstraints": [_spread(target.uid)],
    }
    if template.architecture:
        spec["nodeSelector"] = spec.get("nodeSelector", {}) | {ARCHITECTURE: template.architecture}
    if needs.gpus and options.gpu_runtime_class:
        spec["runtimeClassName"] = options.gpu_runtime_class
    return spec


def _container(
    ctx: BackendContext, options: K8sOptions, target: Target, revision: RevisionTarget
) -> Json:
    template = revision.template
    env = dict(template.env) | replica_environment(ctx, target, revision)
    env["HATOBA_PORT"] = str(PORT)
    container: Json = {
        "name": names.MAIN,
        "image": image_of(revision, options),
        "command": ["hatoba-entrypoint", "serve"],
        "env": [*pods.env_of(env), *pods.secrets_of(template.secrets)],
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        },
        "volumeMounts": [
            {"name": "dshm", "mountPath": "/dev/shm"},
            {"name": "hatoba", "mountPath": pods.SHARED},
        ],
        "securityContext": pods.LOCKED_DOWN,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if asks := pods.resources_of(template.resources, 0, options):
        container["resources"] = asks
    return container


def _spread(uid: str) -> Json:
    """On as many nodes as there are, as far as that is possible."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {names.DEPLOYMENT: uid}},
    }


# -- what pods say ---------------------------------------------------------------------------------


def view_of(
    name: str, revision: int, found: Sequence[SeenPod], let_go: bool, since: float
) -> ReplicaView:
    """A replica as its pods show it: the one that is to stay, where there are two."""
    pod = min(found, key=lambda one: (one.deleting or one.over, -one.created), default=None)
    if let_go:
        return ReplicaView(name, revision, ReplicaPhase.DRAINING, since=since)
    if pod is None:
        return ReplicaView(name, revision, ReplicaPhase.PENDING, since=since)
    phase = _phase(pod)
    address = f"{pod.address}:{PORT}" if phase is ReplicaPhase.READY else ""
    return ReplicaView(
        name,
        revision,
        phase,
        pod.node,
        address,
        restarts=pod.main.restarts,
        since=pod.created or since,
        cause=cause_of(pod),
    )


def _phase(pod: SeenPod) -> ReplicaPhase:
    if pod.deleting or pod.over:
        return ReplicaPhase.UNHEALTHY
    if pod.ready and pod.address:
        return ReplicaPhase.READY
    begun = pod.main.state is Running.RUNNING
    ended = pod.main.state is Running.TERMINATED or pod.main.reason == "CrashLoopBackOff"
    if ended or pod.lapsed or (begun and pod.main.restarts):
        return ReplicaPhase.UNHEALTHY
    return ReplicaPhase.STARTING


def cause_of(pod: SeenPod) -> common_pb2.Cause | None:
    """Why it does not answer, or how it ended last."""
    if pod.main.state is Running.TERMINATED:
        return _cause(container_exit(pod.main), pod.main.message)
    if found := doom(pod):
        return _cause(found.exit, "")
    if pod.main.last is not None:
        reason, code, message = pod.main.last
        last = Container(Running.TERMINATED, reason, message, code)
        return _cause(container_exit(last), message)
    if pod.deleting:
        return _cause(Exit(ExitKind.FAILED, message="its pod is being deleted"), "")
    return None


def _cause(ended: Exit, lines: str) -> common_pb2.Cause:
    code, origin = _CODES.get(ended.kind, _FAILED)
    cause = common_pb2.Cause(
        code=code,
        origin=origin,
        message=ended.message or _words(ended),
        retryable=origin != common_pb2.ORIGIN_USER,
        last_log_lines=[line[:512] for line in lines.splitlines()[-20:]],
    )
    if ended.kind is ExitKind.EXITED:
        cause.exit_code = ended.code
    if ended.kind is ExitKind.SIGNALED:
        cause.signal = ended.signal
    return cause


def _words(ended: Exit) -> str:
    if ended.kind is ExitKind.SIGNALED:
        return f"The model server was ended by signal {ended.signal}."
    if ended.kind is ExitKind.OUT_OF_MEMORY:
        return "The model server used more memory than its limit."
    return f"The model server ended with exit code {ended.code}."


def no_room(pod: SeenPod) -> common_pb2.Cause | None:
    """That no node takes a pod; None while one may."""
    if pod.scheduled or not pod.unschedulable or pod.deleting:
        return None
    return common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_NO_CAPACITY,
        origin=common_pb2.ORIGIN_CAPACITY,
        message=pod.unschedulable,
        retryable=True,
    )


def told_set(told: Json) -> tuple[str, str, int] | None:
    """Name, deployment and revision of a ReplicaSet of ours."""
    labels = told["metadata"].get("labels") or {}
    try:
        return (
            labels[names.REPLICA],
            labels[names.DEPLOYMENT],
            int(labels[names.REVISION]),
        )
    except (KeyError, ValueError):
        return None
