"""What Batch is asked for an attempt: always the same for the same attempt. Pure.

What many attempts share stands in a job definition that is named by its content; what is an
attempt's own stands in the submit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hatoba.v1 import job_pb2
from hatoba_plugins.aws import owner_tags
from hatoba_plugins.backends.batch_spot.options import BatchOptions
from hatoba_plugins.runner import bare_environment
from hatoba_plugins.values import LaunchRequest

MIB = 2**20
LEAST_MEMORY = 4
LEAST_TIMEOUT = 60
BACKSTOP = 3_600
"""Seconds on top of a job's timeout, which the runner keeps: for staging before and outputs after.
Batch's own limit only ends what has no runner any more."""
EYES = 1_024
"""Characters of the command that are shown where the runner is told it otherwise."""
Parameters = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A job definition and a submit that refers to it, without the definition's revision."""

    definition: Parameters
    submit: Parameters

    @property
    def definition_name(self) -> str:
        """Named by its content: what is the same has the same name."""
        return f"hatoba-{digest(self.definition)[:40]}"


def manifest(
    request: LaunchRequest,
    options: BatchOptions,
    queue: str,
    environment: Mapping[str, str],
    cluster_id: str,
) -> Manifest:
    """For one attempt; `environment` is what its runner needs, empty without one."""
    definition = _definition(request.spec, options, _memory(request, options))
    overrides = _overrides(request, options, environment)
    submit: Parameters = {
        "jobName": request.name,
        "jobQueue": queue,
        "containerOverrides": overrides,
        "retryStrategy": {"attempts": 1},
        "propagateTags": True,
    }
    if timeout := timeout_of(request.spec, fenced=bool(environment)):
        submit["timeout"] = {"attemptDurationSeconds": timeout}
    spec = digest({"definition": definition, "submit": submit})
    return Manifest(definition, submit | {"tags": owner_tags(request, cluster_id, spec)})


def digest(content: Parameters) -> str:
    """sha256 of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def size(parameters: Parameters) -> int:
    """Bytes of it on the wire."""
    return len(json.dumps(parameters, separators=(",", ":")).encode())


def timeout_of(spec: job_pb2.JobSpec, *, fenced: bool) -> int:
    """Batch's own limit in seconds; 0: none."""
    if not spec.HasField("timeout"):
        return 0
    seconds = math.ceil(spec.timeout.ToTimedelta().total_seconds())
    return max(LEAST_TIMEOUT, seconds) + (BACKSTOP if fenced else 0)


def image_of(spec: job_pb2.JobSpec, options: BatchOptions) -> str:
    """The image it runs in; empty: it names none, and there is none for such jobs."""
    return spec.environment.image or options.image


def secret_variable(secret: job_pb2.SecretRef) -> str:
    """The environment variable that gets a secret's value."""
    return secret.env or secret.name.upper().replace("-", "_").replace(".", "_")


def _definition(spec: job_pb2.JobSpec, options: BatchOptions, memory: int) -> Parameters:
    container: Parameters = {
        "image": image_of(spec, options),
        "resourceRequirements": [
            {"type": "VCPU", "value": "1"},
            {"type": "MEMORY", "value": str(LEAST_MEMORY)},
        ],
        "linuxParameters": _linux(spec, memory),
    }
    if options.job_role:
        container["jobRoleArn"] = options.job_role
    if options.execution_role:
        container["executionRoleArn"] = options.execution_role
    if spec.secrets:
        container["secrets"] = [
            {"name": secret_variable(one), "valueFrom": f"{options.secrets_prefix}{one.name}"}
            for one in spec.secrets
        ]
    return {
        "type": "container",
        "platformCapabilities": ["EC2"],
        "containerProperties": container,
        "retryStrategy": {"attempts": 1},
    }


def _linux(spec: job_pb2.JobSpec, memory: int) -> Parameters:
    parameters: Parameters = {"initProcessEnabled": True}
    if spec.resources.gpus:
        # Data loaders hand batches over in /dev/shm, which has 64 MiB unless one says otherwise.
        parameters["sharedMemorySize"] = max(64, memory // 2)
    return parameters


def _overrides(
    request: LaunchRequest, options: BatchOptions, environment: Mapping[str, str]
) -> Parameters:
    command = list(request.spec.command)
    if environment:
        env = {**environment, "HATOBA_TERM_SECONDS": str(options.term_seconds)}
        command = ["hatoba-entrypoint", "run", "--", *_for_eyes(command)]
    else:
        env = {**bare_environment(request), **request.spec.env}
    return {
        "command": command,
        "environment": [{"name": key, "value": env[key]} for key in sorted(env)],
        "resourceRequirements": _requirements(request, options),
    }


def _for_eyes(command: list[str]) -> list[str]:
    """The command, cut short: the runner is told it whole with its claim's answer."""
    shown: list[str] = []
    left = EYES
    for argument in command:
        if len(argument) > left:
            return [*shown, "..."]
        shown.append(argument)
        left -= len(argument)
    return shown


def _requirements(request: LaunchRequest, options: BatchOptions) -> list[dict[str, str]]:
    needs = request.spec.resources
    wanted = [
        {"type": "VCPU", "value": str(max(1, math.ceil(needs.cpus or options.vcpus)))},
        {"type": "MEMORY", "value": str(_memory(request, options))},
    ]
    if needs.gpus:
        wanted.append({"type": "GPU", "value": str(needs.gpus)})
    return wanted


def _memory(request: LaunchRequest, options: BatchOptions) -> int:
    """MiB; what a retry rule made of it rules."""
    stated = request.placement.memory or request.spec.resources.memory_bytes
    return max(LEAST_MEMORY, math.ceil(stated / MIB)) if stated else options.memory_mib
