"""Manifests of jobs: pure, the same for each launch of an attempt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu import names, pods
from hatoba_plugins.backends.k8s_gpu.options import JobOptions, K8sOptions, job_options
from hatoba_plugins.runner import CLAIM_REFUSED, runner_environment
from hatoba_plugins.values import LaunchRequest

Json = dict[str, Any]
DEFAULT_GRACE = 10.0
COMMIT_BUDGET = 600.0
"""Seconds that a sidecar has for outputs and commit once the command has ended."""
GANG_PORT = 29500
_ATTEMPT_DIR = f"{pods.SHARED}/attempt"
_OWN_VARIABLES = ("HATOBA_ATTEMPT", "HATOBA_FENCE", "HATOBA_CREDENTIAL", "TRACEPARENT")
_OPERATORS = {
    job_pb2.LABEL_OPERATOR_IN: "In",
    job_pb2.LABEL_OPERATOR_NOT_IN: "NotIn",
    job_pb2.LABEL_OPERATOR_EXISTS: "Exists",
    job_pb2.LABEL_OPERATOR_NOT_EXISTS: "DoesNotExist",
}


@dataclass(frozen=True, slots=True)
class Made:
    """All that one launch creates: the Job, and of a gang a Service and a Secret as well."""

    job: Json
    service: Json | None = None
    secret: Json | None = None

    @property
    def name(self) -> str:
        """Of all of them."""
        return str(self.job["metadata"]["name"])

    @property
    def spec(self) -> str:
        """Digest of what it was made from."""
        return str(self.job["metadata"]["annotations"][names.SPEC])


class Maker:
    """Makes manifests for one instance."""

    def __init__(self, ctx: BackendContext, options: K8sOptions) -> None:
        self._ctx = ctx
        self._options = options

    def single(self, request: LaunchRequest, shunned: Sequence[str] = ()) -> Made:
        """A Job of one pod. ValueError says what of the specification is wrong."""
        return Made(self._job([request], names.ROLE_JOB, shunned))

    def gang(self, members: Sequence[LaunchRequest], shunned: Sequence[str] = ()) -> Made:
        """An Indexed Job with a Service for its names, and a Secret with each member's claim.

        The Job is half made, and suspended, until the others are there: without its name and its
        claim no member may begin.
        """
        by_index = sorted(members, key=lambda one: one.index)
        job = self._job(by_index, names.ROLE_GANG, shunned)
        labels = job["metadata"]["labels"]
        name = job["metadata"]["name"]
        secret = None
        if self.runner(by_index[0]) == "pod":
            secret = _secret(name, labels, by_index)
        return Made(job, _service(name, labels), secret)

    def runner(self, request: LaunchRequest) -> str:
        """Where the runner of an attempt stands."""
        return job_options(request.spec).runner or self._options.runner

    def _job(self, members: Sequence[LaunchRequest], role: str, shunned: Sequence[str]) -> Json:
        request = members[0]
        asked = job_options(request.spec)
        labels = self._labels(request, role)
        queue = asked.kueue_queue or self._options.kueue_queue
        spec: Json = {
            "backoffLimit": 0,
            "parallelism": len(members),
            "completions": len(members),
            "completionMode": "Indexed" if role == names.ROLE_GANG else "NonIndexed",
            "ttlSecondsAfterFinished": round(self._options.ttl),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules(self.runner(request) == "pod")},
            "template": {"metadata": {"labels": labels}, "spec": self._pod(members, asked)},
        }
        if queue or role == names.ROLE_GANG:
            spec["suspend"] = True
        notes = {names.SPEC: names.digest(spec), names.RUNNER: self.runner(request)}
        if role == names.ROLE_GANG:
            notes |= {names.MEMBERS: json.dumps([one.name for one in members]), names.HALF: "true"}
        _place(spec["template"]["spec"], request, asked, self._options, shunned)
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": request.name,
                "labels": labels | ({names.KUEUE_QUEUE: queue} if queue else {}),
                "annotations": notes,
            },
            "spec": spec,
        }

    def _labels(self, request: LaunchRequest, role: str) -> dict[str, str]:
        return {
            names.CLUSTER: self._ctx.cluster_id,
            names.JOB: request.job_uid,
            names.ATTEMPT: request.name,
            names.FENCE: str(request.fence),
            names.INDEX: str(request.index),
            names.NUMBER: str(request.number),
            names.ROLE: role,
        }

    def _pod(self, members: Sequence[LaunchRequest], asked: JobOptions) -> Json:
        request, options = members[0], self._options
        needs, memory = request.spec.resources, request.placement.memory
        with_runner = self.runner(request) == "pod"
        gang = request.gang_size > 1
        spec = pods.pod_spec(
            options, service_account=asked.service_account, priority_class=asked.priority_class
        )
        grace = grace_of(request.spec)
        spec |= {
            "restartPolicy": "Never",
            "shareProcessNamespace": True,
            "terminationGracePeriodSeconds": grace + (round(COMMIT_BUDGET) if with_runner else 0),
            "containers": [self._main(members, with_runner)],
            "volumes": [
                pods.shared_memory(needs, memory, int(asked.shm_bytes) or options.shm_bytes)
            ],
        }
        if with_runner:
            self._add_runner(spec, members)
        elif request.spec.HasField("timeout"):
            spec["activeDeadlineSeconds"] = max(1, math.ceil(_seconds(request.spec.timeout)))
        if gang:
            spec["subdomain"] = request.name
        runtime = asked.runtime_class or (options.gpu_runtime_class if needs.gpus else "")
        if runtime:
            spec["runtimeClassName"] = runtime
        return spec

    def _main(self, members: Sequence[LaunchRequest], with_runner: bool) -> Json:
        request = members[0]
        env = dict(request.spec.env) | _identity(request)
        more = _gang_env(members) if request.gang_size > 1 else []
        mounts = [{"name": "dshm", "mountPath": "/dev/shm"}]
        if with_runner:
            env |= _places(request)
            mounts.append({"name": "hatoba", "mountPath": pods.SHARED})
        container: Json = {
            "name": names.MAIN,
            "image": request.spec.environment.image or self._options.image,
            "command": [pods.escaped(one) for one in _command(request.spec.command)],
            # Those that name others come after those others.
            "env": [*more, *pods.env_of(env), *pods.secrets_of(request.spec.secrets)],
            "volumeMounts": mounts,
            "securityContext": pods.LOCKED_DOWN,
        }
        if with_runner:
            container["workingDir"] = f"{_ATTEMPT_DIR}/work"
        needs = request.spec.resources
        if asks := pods.resources_of(needs, request.placement.memory, self._options):
            container["resources"] = asks
        return container

    def _add_runner(self, spec: Json, members: Sequence[LaunchRequest]) -> None:
        request = members[0]
        values = runner_environment(self._ctx, request)
        mounts: list[Json] = []
        more: list[Json] = []
        if request.gang_size > 1:
            for name in _OWN_VARIABLES:
                values.pop(name, None)
            values["HATOBA_MEMBERS"] = f"{pods.MEMBERS_DIR}/members"
            more = _member_env(request)
            mounts.append({"name": "members", "mountPath": pods.MEMBERS_DIR, "readOnly": True})
            spec["volumes"].append({"name": "members", "secret": {"secretName": request.name}})
        env = [*more, *pods.env_of(values)]
        spec["initContainers"] = pods.runner_containers(self._options.runner_image, env, mounts)
        spec["volumes"] += [
            {"name": "hatoba", "emptyDir": {}},
            {"name": "hatoba-runner", "emptyDir": {"medium": "Memory"}},
        ]


def grace_of(spec: job_pb2.JobSpec) -> int:
    """Whole seconds between the polite signal and the kill, at least one."""
    grace = _seconds(spec.stop_grace) if spec.HasField("stop_grace") else DEFAULT_GRACE
    return max(1, math.ceil(grace))


def _seconds(duration: Any) -> float:
    seconds: float = duration.ToTimedelta().total_seconds()
    return seconds


def _command(command: Sequence[str]) -> list[str]:
    """A program that is a Python file is run by `python`, as it is everywhere."""
    given = list(command)
    return ["python", *given] if given and given[0].endswith(".py") else given


def _failure_rules(with_runner: bool) -> list[Json]:
    """Not to retry, but to write into the Job's condition how its pod ended.

    The core starts the next attempt, so a disruption ends the Job as any exit code does. A pod that
    was refused its claim counts for nothing: another pod of the same Job was granted it.
    """
    refused = {"containerName": names.INIT, "operator": "In", "values": [CLAIM_REFUSED]}
    disruption = {"type": "DisruptionTarget", "status": "True"}
    return [
        *([{"action": "Ignore", "onExitCodes": refused}] if with_runner else []),
        {"action": "FailJob", "onPodConditions": [disruption]},
        {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [0]}},
    ]


def _identity(request: LaunchRequest) -> dict[str, str]:
    """Which task of which job this is."""
    env = {
        "HATOBA_JOB": request.job,
        "HATOBA_ATTEMPT_NUMBER": str(request.number),
        "HATOBA_TASK_COUNT": str(request.task_count),
        "PYTHONUNBUFFERED": "1",
    }
    if request.gang_size <= 1:
        env["HATOBA_ATTEMPT"] = request.name
        env["HATOBA_INDEX"] = str(request.index)
    if request.traceparent:
        env["TRACEPARENT"] = request.traceparent
    return env


def _places(request: LaunchRequest) -> dict[str, str]:
    """Where `hatoba.current_job()` finds what the runner brought, the same in every pod."""
    path = request.spec.env.get("PYTHONPATH")
    return {
        "HATOBA_DIR": _ATTEMPT_DIR,
        "HATOBA_SPOOL": f"{_ATTEMPT_DIR}/spool.jsonl",
        "HATOBA_PARAMS": f"{_ATTEMPT_DIR}/params.json",
        "HATOBA_INPUTS": f"{_ATTEMPT_DIR}/inputs",
        "HATOBA_OUTPUTS": f"{_ATTEMPT_DIR}/outputs",
        "HATOBA_CHECKPOINTS": f"{_ATTEMPT_DIR}/checkpoints",
        "HATOBA_RESTORE": f"{_ATTEMPT_DIR}/restore/latest",
        "PYTHONPATH": f"{path}:{pods.SHARED}/lib" if path else f"{pods.SHARED}/lib",
    }


_RANK = "$(JOB_COMPLETION_INDEX)"
_INDEX: Json = {
    "name": "JOB_COMPLETION_INDEX",
    "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{names.COMPLETION_INDEX}']"}},
}


def _member_env(request: LaunchRequest) -> list[Json]:
    """Variables of a gang's runners that differ from pod to pod."""
    address = f"{request.name}-{_RANK}.{request.name}:{GANG_PORT}"
    return [_INDEX, {"name": "HATOBA_ADDRESS", "value": address}]


def _gang_env(members: Sequence[LaunchRequest]) -> list[Json]:
    """What a gang's commands find each other by: the same names as on hosts, and torch's own."""
    request = members[0]
    name, size = request.name, request.gang_size
    addresses = ",".join(f"{name}-{at}.{name}:{GANG_PORT}" for at in range(size))
    fixed = {
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": f"{name}-0.{name}",
        "MASTER_PORT": str(GANG_PORT),
        "HATOBA_GANG_SIZE": str(size),
        "HATOBA_GANG_GENERATION": str(request.generation),
        "HATOBA_GANG_ADDRESSES": addresses,
    }
    by_index = ("RANK", "HATOBA_GANG_RANK", "HATOBA_INDEX")
    return [
        _INDEX,
        *({"name": one, "value": _RANK} for one in by_index),
        {"name": "HATOBA_ATTEMPT", "value": _own_name([one.name for one in members])},
        *pods.env_of(fixed),
    ]


def _own_name(members: Sequence[str]) -> str:
    """One text for the name of each: they differ in their index. If in more, that of the first."""
    first = members[0]
    zeros = [at for at, sign in enumerate(first) if sign == "0"]
    texts = [f"{first[:at]}{_RANK}{first[at + 1 :]}" for at in zeros]
    return next((text for text in texts if _fits(text, members)), first)


def _fits(text: str, members: Sequence[str]) -> bool:
    return [text.replace(_RANK, str(index)) for index in range(len(members))] == list(members)


def _place(
    pod: Json,
    request: LaunchRequest,
    asked: JobOptions,
    options: K8sOptions,
    shunned: Sequence[str],
) -> None:
    """Where its pods may go: not part of what it was made from, since nodes come and go.

    The node that the planner chose is preferred; the cluster's scheduler, which knows of others'
    pods as well, has the last word.
    """
    spec, gpus = request.spec, request.spec.resources.gpus > 0
    required, fields = _required(spec)
    if asked.gpu_product:
        values = [asked.gpu_product]
        required.append({"key": options.gpu_product_label, "operator": "In", "values": values})
    alone = request.gang_size <= 1
    node = request.placement.pool if alone else ""
    if affinity := pods.affinity(required, fields, node, shunned if gpus else ()):
        pod["affinity"] = affinity
    if spec.placement.apart:
        pod.setdefault("affinity", {})["podAntiAffinity"] = _apart(request.job_uid)
    away = _seconds(spec.disconnect.lost_after) if spec.disconnect.HasField("lost_after") else None
    pod["tolerations"] = [*pods.patience(away), *pods.tolerations(options, gpus)]


def _required(spec: job_pb2.JobSpec) -> tuple[list[Json], list[Json]]:
    """Requirements of the placement, as ones of labels and of the node's name."""
    labels: list[Json] = []
    fields: list[Json] = []
    for one in spec.placement.require:
        operator = _OPERATORS.get(one.operator, "In")
        if one.key == "hatoba/host":
            fields += _named(operator, list(one.values))
        else:
            values = {"values": list(one.values)} if operator in ("In", "NotIn") else {}
            labels.append({"key": one.key, "operator": operator, **values})
    return labels, fields


def _named(operator: str, values: list[str]) -> list[Json]:
    """Kubernetes takes one name in each requirement of a field."""
    if operator == "In" and len(values) != 1:
        raise ValueError("placement: hatoba/host takes one node's name here")
    return [
        {"key": "metadata.name", "operator": operator, "values": [value]}
        for value in values
        if operator in ("In", "NotIn")
    ]


def _apart(job_uid: str) -> Json:
    term = {
        "labelSelector": {"matchLabels": {names.JOB: job_uid}},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def _service(name: str, labels: Mapping[str, str]) -> Json:
    """A headless one, under which members find each other before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.JOB_NAME: name},
            "ports": [{"name": "gang", "port": GANG_PORT}],
        },
    }


def _secret(name: str, labels: Mapping[str, str], members: Sequence[LaunchRequest]) -> Json:
    """Each member's claim, by its completion index."""
    claims = [
        {"attempt": one.name, "fence": one.fence, "credential": one.credential} for one in members
    ]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": dict(labels)},
        "stringData": {"members": json.dumps(claims)},
    }


def owned_by(manifest: Mapping[str, Any], job_uid: str) -> Json:
    """A manifest whose object the cluster removes together with a Job."""
    name = manifest["metadata"]["name"]
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job_uid}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [reference]}}
