"""Task definitions, names and options."""

from __future__ import annotations

from typing import Any

import pytest

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.backends.ecs.backend import capabilities_of
from hatoba_plugins.backends.ecs.definitions import (
    PORT,
    content_hash,
    family_of,
    fargate_size,
    job_definition,
    log_stream,
    overrides,
    replica_definition,
)
from hatoba_plugins.backends.ecs.names import (
    ServiceName,
    cluster_of,
    parse_service,
    replica_name,
    service_name,
    submitted_at,
    token,
)
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.errors import Invalid
from hatoba_plugins.rolling import parse_name

UID = "0123456789abcdef0123456789abcdef"
NEEDS = common_pb2.Resources(cpus=1.5, memory_bytes=2**30)


def _spec(**more: object) -> job_pb2.JobSpec:
    spec = job_pb2.JobSpec(name="j", command=["train"], resources=NEEDS)
    spec.environment.image = "train:7"
    return spec


def test_jobs_of_one_shape_have_one_definition() -> None:
    one, other = _spec(), _spec()
    other.command[:] = ["other", "command"]
    other.env["KEY"] = "value"
    options = EcsOptions()
    assert job_definition(options, one, 0, {}) == job_definition(options, other, 0, {})
    other.resources.gpus = 1
    assert job_definition(options, one, 0, {}) != job_definition(options, other, 0, {})


def test_memory_is_what_a_retry_rule_made_of_it() -> None:
    (container,) = job_definition(EcsOptions(), _spec(), 2**31, {})["containerDefinitions"]
    assert (container["cpu"], container["memory"]) == (1536, 2048)


def test_gpus_roles_secrets_and_logs() -> None:
    spec = _spec()
    spec.resources.gpus = 2
    spec.secrets.add(name="hub-token")
    options = EcsOptions(
        region="eu-central-1",
        secrets_prefix="arn:aws:ssm:eu-central-1:1:parameter/hatoba/",
        log_group="/hatoba",
        execution_role="arn:aws:iam::1:role/execution",
        task_role="arn:aws:iam::1:role/task",
    )
    made = job_definition(options, spec, 0, {})
    (container,) = made["containerDefinitions"]
    assert container["resourceRequirements"] == [{"type": "GPU", "value": "2"}]
    assert container["secrets"] == [
        {
            "name": "HUB_TOKEN",
            "valueFrom": "arn:aws:ssm:eu-central-1:1:parameter/hatoba/hub-token",
        }
    ]
    assert container["logConfiguration"] == {
        "logDriver": "awslogs",
        "options": {
            "awslogs-group": "/hatoba",
            "awslogs-region": "eu-central-1",
            "awslogs-stream-prefix": "hatoba",
        },
    }
    assert made["executionRoleArn"].endswith("execution")
    assert made["taskRoleArn"].endswith("task")


def test_a_replica_answers_on_its_port_and_says_how_it_is() -> None:
    made = replica_definition(EcsOptions(), "model:1", NEEDS, {"A": "1"}, drain=30.0)
    (container,) = made["containerDefinitions"]
    assert container["portMappings"] == [{"containerPort": PORT, "protocol": "tcp"}]
    assert container["stopTimeout"] == 40
    assert "/readyz" in container["healthCheck"]["command"][-1]
    assert {"name": "A", "value": "1"} in container["environment"]
    bridge = replica_definition(EcsOptions(network="bridge"), "model:1", NEEDS, {})
    assert bridge["containerDefinitions"][0]["portMappings"][0]["hostPort"] == 0


def test_fargate_has_sizes_and_a_longest_stop() -> None:
    options = EcsOptions(launch_type="FARGATE")
    made = replica_definition(options, "model:1", NEEDS, {}, drain=600.0)
    assert (made["cpu"], made["memory"]) == ("2048", "4096")
    assert made["containerDefinitions"][0]["stopTimeout"] == 120
    assert fargate_size(0.25, 0) == (256, 512)
    assert fargate_size(0.25, 3 * 2**30) == (512, 3072)
    with pytest.raises(Invalid, match="more than Fargate has"):
        fargate_size(64, 0)


def test_what_is_for_one_architecture_says_so() -> None:
    options = EcsOptions(architecture="arm64", gpu_cluster="gpus", gpu_architecture="amd64")
    spec = _spec()
    assert _cpu(job_definition(options, spec, 0, {})) == "ARM64"
    spec.resources.gpus = 1
    assert _cpu(job_definition(options, spec, 0, {})) == "X86_64"
    plain, image = EcsOptions(launch_type="FARGATE"), "model@sha256:1"
    assert _cpu(replica_definition(plain, image, NEEDS, {}, architecture="arm64")) == "ARM64"
    assert _cpu(replica_definition(plain, image, NEEDS, {})) == ""


def _cpu(definition: dict[str, Any]) -> str:
    return str(definition.get("runtimePlatform", {}).get("cpuArchitecture", ""))


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(Invalid, match="task definition has"):
        replica_definition(EcsOptions(), "model:1", NEEDS, {"LONG": "x" * 70_000})
    with pytest.raises(Invalid, match="ECS takes 8192"):
        overrides(["train"], {"LONG": "x" * 9_000})


def test_secrets_need_a_place_and_tasks_an_image() -> None:
    spec = _spec()
    spec.secrets.add(name="token")
    with pytest.raises(Invalid, match="secrets_prefix"):
        job_definition(EcsOptions(), spec, 0, {})
    with pytest.raises(Invalid, match="no image"):
        replica_definition(EcsOptions(), "", NEEDS, {})


def test_families_follow_from_content() -> None:
    one = replica_definition(EcsOptions(), "model:1", NEEDS, {"A": "1", "B": "2"})
    same = replica_definition(EcsOptions(), "model:1", NEEDS, {"B": "2", "A": "1"})
    other = replica_definition(EcsOptions(), "model:2", NEEDS, {"A": "1", "B": "2"})
    assert family_of(one) == family_of(same) != family_of(other)
    assert len(content_hash(one)) == 64


def test_names_lead_both_ways() -> None:
    name = service_name(UID, 12)
    assert parse_service(f"arn:aws:ecs:r:1:service/c/{name}") == ServiceName(UID, 12)
    assert parse_service("somebody-elses") is None
    replica = replica_name(ServiceName(UID, 12), "arn:aws:ecs:r:1:task/c/0cc43cdb-3bee-4407")
    assert parse_name(replica) == (UID, 12)
    assert cluster_of("arn:aws:ecs:r:1:task/ml/0cc43cdb") == "ml"


def test_a_task_writes_to_a_log_of_its_own() -> None:
    assert log_stream("arn:aws:ecs:r:1:task/ml/0cc43cdb-3bee") == "hatoba/main/0cc43cdb-3bee"


@pytest.mark.parametrize(
    ("options", "jobs", "replicas"),
    [
        (EcsOptions(), False, False),
        (EcsOptions(log_group="/hatoba"), False, True),
        (EcsOptions(log_group="/hatoba", runner="none"), True, True),
        (EcsOptions(runner="none"), False, False),
    ],
)
def test_what_a_runner_ships_is_not_read_once_more(
    options: EcsOptions, jobs: bool, replicas: bool
) -> None:
    can = capabilities_of(options)
    assert (can.logs, can.replica_logs) == (jobs, replicas)


def test_tokens_are_the_same_for_the_same_and_fit() -> None:
    assert token("a", 1) == token("a", 1) != token("a", 2)
    assert len(token("a" * 1_000)) == 36


def test_an_attempts_name_tells_when_its_job_was_submitted() -> None:
    name = "h1-0192f0c1a2b37c4d8e5f001122334455-0-1"
    assert submitted_at(name) == int("0192f0c1a2b3", 16) / 1000
    assert submitted_at("kit-0cc43cdb3bee4407a26d0e3b7ba4c4a1-0-1") is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"network": "host"}, "network"),
        ({"runner": "pod"}, "runner"),
        ({"readiness": "never"}, "readiness"),
        ({"launch_type": "FARGATE", "gpu_cluster": "gpus"}, "gpu_cluster"),
        ({"launch_type": "FARGATE", "network": "bridge"}, "network"),
        ({"launch_type": "EC2", "capacity_provider": "p"}, "launch_type"),
        ({"architecture": "x86_64"}, "architecture"),
        ({"cluster": "arn:aws:ecs:r:1:cluster/c"}, "cluster"),
        ({"listener": "arn"}, "vpc"),
        ({"poll_every": 0.0}, "poll_every"),
        ({"region": "nowhere"}, "region"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], field: str) -> None:
    assert [one.field for one in EcsOptions.check(options)] == [field]


def test_cpu_and_gpu_work_go_to_clusters_of_their_own() -> None:
    options = EcsOptions(
        cluster="cpus", gpu_cluster="gpus", capacity_provider="a", gpu_capacity_provider="b"
    )
    assert (options.cluster_for(0), options.cluster_for(1)) == ("cpus", "gpus")
    assert (options.provider_for(0), options.provider_for(1)) == ("a", "b")
    assert options.clusters == ("cpus", "gpus")
