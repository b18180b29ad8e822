"""Pod templates: what jobs and replicas have in common. Pure, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.backends.k8s_gpu import names
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions

Json = dict[str, Any]
SHARED, PRIVATE, MEMBERS_DIR = "/hatoba", "/hatoba-runner", "/hatoba-members"
LOCKED_DOWN: Json = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_AWAY = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")


def escaped(text: str) -> str:
    """A value in which Kubernetes finds no `$(VARIABLE)` to fill in."""
    return text.replace("$", "$$")


def env_of(values: Mapping[str, str]) -> list[Json]:
    """Variables with these very values."""
    return [{"name": name, "value": escaped(value)} for name, value in values.items()]


def secrets_of(secrets: Iterable[job_pb2.SecretRef]) -> list[Json]:
    """Variables that the kubelet fills in from Secrets of these names."""
    return [
        {
            "name": one.env or one.name.upper().replace("-", "_").replace(".", "_"),
            "valueFrom": {"secretKeyRef": {"name": one.name, "key": "value"}},
        }
        for one in secrets
    ]


def resources_of(needs: common_pb2.Resources, memory: int, options: K8sOptions) -> Json:
    """Requests that are limits as well, but for processors: those may use what is idle."""
    limits: Json = {}
    if memory or needs.memory_bytes:
        limits["memory"] = str(memory or needs.memory_bytes)
    if needs.gpus:
        limits[options.gpu_resource] = str(needs.gpus)
    requests = dict(limits)
    if needs.cpus:
        requests["cpu"] = f"{round(needs.cpus * 1000)}m"
    made = {"requests": requests, "limits": limits}
    return {kind: amounts for kind, amounts in made.items() if amounts}


def shared_memory(needs: common_pb2.Resources, memory: int, asked: int) -> Json:
    """/dev/shm: the 64 MiB that a container has otherwise are too few for loaders of batches."""
    size = asked or (memory or needs.memory_bytes) // 2
    limit = {"sizeLimit": str(size)} if size else {}
    return {"name": "dshm", "emptyDir": {"medium": "Memory", **limit}}


def pod_spec(options: K8sOptions, *, service_account: str, priority_class: str) -> Json:
    """What every pod of ours has."""
    spec: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security(options),
    }
    if account := service_account or options.service_account:
        spec["serviceAccountName"] = account
    if priority := priority_class or options.priority_class:
        spec["priorityClassName"] = priority
    if options.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.image_pull_secrets]
    if chosen := dict(one.split("=", 1) for one in options.node_selector):
        spec["nodeSelector"] = chosen
    return spec


def security(options: K8sOptions) -> Json:
    """One user for all containers of a pod, which share files and see each other's processes."""
    user = options.run_as_user
    context: Json = {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    if user:
        context["runAsNonRoot"] = True
    return {**context, "seccompProfile": {"type": "RuntimeDefault"}}


def tolerations(options: K8sOptions, gpus: bool) -> list[Json]:
    """Of taints that keep others away: what the instance names, and with GPUs the GPUs' own."""
    keys = [*options.tolerations, *([options.gpu_resource] if gpus else [])]
    return [{"key": key, "operator": "Exists"} for key in keys]


def patience(away: float | None) -> list[Json]:
    """A node that cannot be reached does not end what runs there, or only after `away` seconds."""
    wait = {} if away is None else {"tolerationSeconds": round(away)}
    return [{"key": key, "operator": "Exists", "effect": "NoExecute", **wait} for key in _AWAY]


def affinity(
    required: Sequence[Json], fields: Sequence[Json], preferred: str, shunned: Sequence[str]
) -> Json:
    """Node affinity: what must hold of labels and fields, the node that is liked best, and nodes
    to keep away from. Empty: anywhere.
    """
    by_field = list(fields)
    if shunned:
        by_field += [
            {"key": "metadata.name", "operator": "NotIn", "values": [one]} for one in shunned
        ]
    term: Json = {}
    if required:
        term["matchExpressions"] = list(required)
    if by_field:
        term["matchFields"] = by_field
    made: Json = {}
    if term:
        made["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [term]}
    if preferred:
        liked = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [preferred]}]}
        made["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100, "preference": liked}
        ]
    return {"nodeAffinity": made} if made else {}


def runner_containers(image: str, env: Sequence[Json], mounts: Sequence[Json]) -> list[Json]:
    """The init container that claims, and the sidecar that commits."""
    run = {"name": "HATOBA_RUN", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    shared = {
        "image": image,
        "env": [run, *env],
        "volumeMounts": [
            {"name": "hatoba", "mountPath": SHARED},
            {"name": "hatoba-runner", "mountPath": PRIVATE},
            *mounts,
        ],
        "securityContext": LOCKED_DOWN,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    init = {"name": names.INIT, "command": ["hatoba-entrypoint", "pod-init"], **shared}
    sidecar = {
        "name": names.SIDECAR,
        "command": ["hatoba-entrypoint", "pod-sidecar"],
        "restartPolicy": "Always",
        # A command that ends at once must not end before the sidecar hears of it.
        "startupProbe": {
            "exec": {"command": ["test", "-e", f"{PRIVATE}/ready"]},
            "periodSeconds": 1,
            "failureThreshold": 300,
        },
        **shared,
    }
    return [init, sidecar]
