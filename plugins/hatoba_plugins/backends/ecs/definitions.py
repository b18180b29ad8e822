"""Task definitions, by content: the same content is the same family, registered once. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.backends.ecs.names import FAMILY
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.backends.ecs.states import CONTAINER
from hatoba_plugins.errors import Invalid
from hatoba_plugins.values import Share

PORT = 8080
"""Where a replica's model server answers."""
LARGEST = 64 * 1024
"""Bytes of a task definition that ECS takes."""
LARGEST_OVERRIDES = 8192
"""Characters of a RunTask's overrides that ECS takes."""
MOST_STOP_SECONDS = 120
"""Longest stop time-out on Fargate."""
SERVE = ("hatoba-entrypoint", "serve")
RUN = ("hatoba-entrypoint", "run", "--")
LOG_PREFIX = "hatoba"
UNITS = 1024
"""CPU units in a core."""
_MIB = 2**20
_LEAST_MIB = 128
_FARGATE = (
    (256, (512, 1024, 2048)),
    (512, tuple(range(1024, 4097, 1024))),
    (1024, tuple(range(2048, 8193, 1024))),
    (2048, tuple(range(4096, 16385, 1024))),
    (4096, tuple(range(8192, 30721, 1024))),
    (8192, tuple(range(16384, 61441, 4096))),
    (16384, tuple(range(32768, 122881, 8192))),
)
"""CPU units that Fargate has, each with its MiB of memory."""
_CPUS = {"amd64": "X86_64", "arm64": "ARM64"}
Definition = dict[str, Any]

_HEALTH = (
    "import os,urllib.request as u;"
    "u.urlopen('http://127.0.0.1:'+os.environ.get('HATOBA_PORT','8080')+'/readyz',timeout=3)"
)


def replica_definition(
    options: EcsOptions,
    image: str,
    needs: common_pb2.Resources,
    env: Mapping[str, str],
    secrets: Iterable[job_pb2.SecretRef] = (),
    drain: float = 0.0,
    architecture: str = "",
) -> Definition:
    """What each replica of a revision runs. Raises Invalid for what ECS does not take."""
    grace = _stop_seconds(options, drain + 10.0)
    container = _container(options, image, needs, grace, secrets) | {
        "command": list(SERVE),
        "environment": _pairs({**env, "HATOBA_PORT": str(PORT), "HATOBA_TERM_SECONDS": str(grace)}),
        "portMappings": [_port_mapping(options)],
    }
    if options.readiness == "ecs":
        check = {"command": ["CMD", "python3", "-c", _HEALTH], "interval": 5, "timeout": 5}
        container["healthCheck"] = check | {"retries": 3, "startPeriod": 300}
    return _complete(options, container, needs, architecture)


def job_definition(
    options: EcsOptions, spec: job_pb2.JobSpec, memory: int, common: Mapping[str, str]
) -> Definition:
    """What jobs of this shape run; their commands and variables come with each RunTask."""
    needs = common_pb2.Resources()
    needs.CopyFrom(spec.resources)
    needs.memory_bytes = memory or needs.memory_bytes
    grace = _stop_seconds(options, spec.stop_grace.ToTimedelta().total_seconds() or 30.0)
    image = spec.environment.image or options.image
    container = _container(options, image, needs, grace, spec.secrets)
    container["environment"] = _pairs({**common, "HATOBA_TERM_SECONDS": str(grace)})
    return _complete(options, container, needs)


def overrides(command: Iterable[str], env: Mapping[str, str]) -> dict[str, Any]:
    """What is an attempt's own. Raises Invalid when ECS does not take so much."""
    container = {"name": CONTAINER, "command": list(command), "environment": _pairs(env)}
    made = {"containerOverrides": [container]}
    size = len(json.dumps(made))
    if size > LARGEST_OVERRIDES:
        raise Invalid(
            f"command and environment take {size} characters, and ECS takes {LARGEST_OVERRIDES}"
            " for one task; put what is long into code or an input"
        )
    return made


def content_hash(definition: Definition) -> str:
    """sha256 of a definition, in hex."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def family_of(definition: Definition) -> str:
    """The family of a definition: what has the same content has the same."""
    return FAMILY + content_hash(definition)[:40]


def fargate_size(cpus: float, memory: int) -> tuple[int, int]:
    """CPU units and MiB of the smallest size that has both. Raises Invalid for none."""
    units, mib = math.ceil(cpus * UNITS), math.ceil(memory / _MIB)
    for has, memories in _FARGATE:
        fitting = [one for one in memories if one >= mib]
        if has >= units and fitting:
            return has, fitting[0]
    raise Invalid(f"{cpus:g} cores with {memory} bytes of memory is more than Fargate has")


def _container(
    options: EcsOptions,
    image: str,
    needs: common_pb2.Resources,
    grace: int,
    secrets: Iterable[job_pb2.SecretRef],
) -> Definition:
    if not image:
        raise Invalid("no image is named; set the environment's image, or the backend's `image`")
    made: Definition = {"name": CONTAINER, "image": image, "essential": True, "stopTimeout": grace}
    if referenced := [_secret(options, one) for one in secrets]:
        made["secrets"] = referenced
    if needs.gpus:
        made["resourceRequirements"] = [{"type": "GPU", "value": str(needs.gpus)}]
    if options.log_group:
        made["logConfiguration"] = _log_configuration(options)
    return made


def _complete(
    options: EcsOptions,
    container: Definition,
    needs: common_pb2.Resources,
    architecture: str = "",
) -> Definition:
    made: Definition = {"networkMode": options.network, "containerDefinitions": [container]}
    if named := architecture or options.architecture_for(needs.gpus):
        platform = {"cpuArchitecture": _CPUS[named], "operatingSystemFamily": "LINUX"}
        made["runtimePlatform"] = platform
    if options.execution_role:
        made["executionRoleArn"] = options.execution_role
    if options.task_role:
        made["taskRoleArn"] = options.task_role
    share = Share.of(needs)
    if options.launch_type == "FARGATE":
        cpu, memory = fargate_size(share.cpus, share.memory)
        made |= {"cpu": str(cpu), "memory": str(memory), "requiresCompatibilities": ["FARGATE"]}
    else:
        container["cpu"] = round(share.cpus * UNITS)
        key = "memory" if share.memory else "memoryReservation"
        container[key] = max(_LEAST_MIB, math.ceil(share.memory / _MIB))
        made["requiresCompatibilities"] = ["EC2"]
    if (size := len(json.dumps(made))) > LARGEST:
        raise Invalid(f"its task definition has {size} bytes, and ECS takes {LARGEST}")
    return made


def _stop_seconds(options: EcsOptions, wanted: float) -> int:
    least = max(2, math.ceil(wanted))
    return min(least, MOST_STOP_SECONDS) if options.launch_type == "FARGATE" else least


def _port_mapping(options: EcsOptions) -> dict[str, Any]:
    # In bridge mode the instance gives a port of its own, so that replicas can share it.
    own = {"hostPort": 0} if options.network == "bridge" else {}
    return {"containerPort": PORT, "protocol": "tcp"} | own


def _secret(options: EcsOptions, secret: job_pb2.SecretRef) -> Definition:
    if not options.secrets_prefix:
        raise Invalid("secrets need the backend's `secrets_prefix`")
    variable = secret.env or secret.name.upper().replace("-", "_").replace(".", "_")
    return {"name": variable, "valueFrom": f"{options.secrets_prefix}{secret.name}"}


def _log_configuration(options: EcsOptions) -> Definition:
    told = {"awslogs-group": options.log_group, "awslogs-stream-prefix": LOG_PREFIX}
    region = {"awslogs-region": options.region} if options.region else {}
    return {"logDriver": "awslogs", "options": told | region}


def log_stream(task: str) -> str:
    """Where in the log group the container of a task writes, by the task's ARN."""
    return f"{LOG_PREFIX}/{CONTAINER}/{task.rsplit('/', 1)[-1]}"


def _pairs(env: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in sorted(env.items())]
