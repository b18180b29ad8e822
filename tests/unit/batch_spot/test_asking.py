"""What Batch is asked: definitions by content, submits, queues, and what is refused before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import duration_pb2

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.backends.batch_spot.backend import capabilities_of
from hatoba_plugins.backends.batch_spot.checks import PAYLOAD, problems_of
from hatoba_plugins.backends.batch_spot.health import judged
from hatoba_plugins.backends.batch_spot.manifest import Manifest, manifest, size
from hatoba_plugins.backends.batch_spot.options import BatchOptions, Queue
from hatoba_plugins.backends.batch_spot.queues import choose, pool_of
from hatoba_plugins.errors import Invalid
from hatoba_plugins.values import HealthStatus, LaunchRequest, Placement

OPTIONS = BatchOptions(
    region="eu-central-1",
    queues={"spot": {"queue": "hatoba-spot"}},
    secrets_prefix="/hatoba/",
    secrets=["hf-token", "key"],
    job_role="arn:aws:iam::123456789012:role/job",
)
RUNNER = {"HATOBA_SERVER": "grpcs://hatoba:443", "HATOBA_CREDENTIAL": "hr_x"}
SPOT, ON_DEMAND = Queue("spot", "hatoba-spot"), Queue("on-demand", "hatoba-od", spot=False)
A10G = Queue("a10g", "hatoba-a10g", gpus=4, labels={"gpu": "a10g"})


def spec(**fields: Any) -> job_pb2.JobSpec:
    made = job_pb2.JobSpec(name="train", command=["python", "train.py"], **fields)
    made.environment.image = "registry.test/train:1"
    return made


def request(asked: job_pb2.JobSpec | None = None, **fields: Any) -> LaunchRequest:
    made = LaunchRequest(
        name="h1-aa-0-1",
        fence=7,
        job="projects/default/jobs/train-1",
        job_uid="aa",
        index=0,
        number=1,
        task_count=1,
        spec=asked or spec(),
        placement=Placement(),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    return replace(made, **fields)


def made(asked: LaunchRequest, options: BatchOptions = OPTIONS) -> Manifest:
    return manifest(asked, options, "hatoba-spot", RUNNER, "c1")


def requirements(one: Manifest) -> dict[str, str]:
    asked = one.submit["containerOverrides"]["resourceRequirements"]
    return {each["type"]: each["value"] for each in asked}


# -- manifests -----------------------------------------------------------------------------------


def test_the_same_attempt_is_asked_for_in_the_same_bytes() -> None:
    assert made(request()) == made(request())


def test_attempts_of_one_image_share_a_definition() -> None:
    first, second = made(request()), made(request(name="h1-bb-3-2", index=3, number=2))
    assert first.definition_name == second.definition_name
    assert first.submit["jobName"] != second.submit["jobName"]
    other = spec()
    other.environment.image = "registry.test/train:2"
    assert made(request(other)).definition_name != first.definition_name


def test_an_attempt_runs_once_and_carries_whose_it_is() -> None:
    submit = made(request()).submit
    assert submit["retryStrategy"] == {"attempts": 1}
    assert submit["tags"]["hatoba:attempt"] == "h1-aa-0-1"
    assert submit["tags"]["hatoba:cluster"] == "c1"
    assert submit["tags"]["hatoba:fence"] == "7"


def test_the_runner_is_before_the_command_and_users_variables_are_not_in_the_open() -> None:
    overrides = made(request(spec(env={"COLOUR": "blue"}))).submit["containerOverrides"]
    assert overrides["command"] == ["hatoba-entrypoint", "run", "--", "python", "train.py"]
    names = [one["name"] for one in overrides["environment"]]
    assert names == ["HATOBA_CREDENTIAL", "HATOBA_SERVER", "HATOBA_TERM_SECONDS"]


def test_without_a_runner_the_command_is_the_jobs_own() -> None:
    asked = request(spec(env={"COLOUR": "blue"}))
    overrides = manifest(asked, OPTIONS, "hatoba-spot", {}, "c1").submit["containerOverrides"]
    assert overrides["command"] == ["python", "train.py"]
    assert {"name": "COLOUR", "value": "blue"} in overrides["environment"]
    assert {"name": "HATOBA_INDEX", "value": "0"} in overrides["environment"]


def test_a_long_command_does_not_fill_the_payload() -> None:
    asked = spec()
    asked.command.append("x" * 100_000)
    submit = made(request(asked)).submit
    assert size(submit) < 4_096
    assert submit["containerOverrides"]["command"][-1] == "..."


@pytest.mark.parametrize(
    ("resources", "placement", "expected"),
    [
        (common_pb2.Resources(), Placement(), {"VCPU": "1", "MEMORY": "2048"}),
        (common_pb2.Resources(cpus=2.5), Placement(), {"VCPU": "3", "MEMORY": "2048"}),
        (
            common_pb2.Resources(memory_bytes=2**30 + 1),
            Placement(),
            {"VCPU": "1", "MEMORY": "1025"},
        ),
        (
            common_pb2.Resources(memory_bytes=2**30),
            Placement(memory=2**32),
            {"VCPU": "1", "MEMORY": "4096"},
        ),
        (
            common_pb2.Resources(cpus=8, gpus=2),
            Placement(),
            {"VCPU": "8", "MEMORY": "2048", "GPU": "2"},
        ),
    ],
)
def test_resources_are_requirements(
    resources: common_pb2.Resources, placement: Placement, expected: dict[str, str]
) -> None:
    assert requirements(made(request(spec(resources=resources), placement=placement))) == expected


def test_secrets_are_references() -> None:
    secrets = [job_pb2.SecretRef(name="hf-token"), job_pb2.SecretRef(name="key", env="API_KEY")]
    container = made(request(spec(secrets=secrets))).definition["containerProperties"]
    assert container["secrets"] == [
        {"name": "HF_TOKEN", "valueFrom": "/hatoba/hf-token"},
        {"name": "API_KEY", "valueFrom": "/hatoba/key"},
    ]


def test_batch_ends_only_what_outlived_its_runner() -> None:
    timeout = duration_pb2.Duration(seconds=90)
    assert made(request(spec(timeout=timeout))).submit["timeout"] == {
        "attemptDurationSeconds": 90 + 3_600
    }
    assert "timeout" not in made(request()).submit


# -- queues --------------------------------------------------------------------------------------

OF_SPOT = job_pb2.SPOT_ONLY
PREFERS = job_pb2.SPOT_PREFER
NEVER = job_pb2.SPOT_NEVER


@pytest.mark.parametrize(
    ("spot", "losses", "pool", "expected"),
    [
        (job_pb2.SPOT_UNSPECIFIED, 0, "", "spot"),
        (job_pb2.SPOT_UNSPECIFIED, 0, "on-demand", "spot"),
        (job_pb2.SPOT_UNSPECIFIED, 1, "on-demand", "on-demand"),
        (OF_SPOT, 9, "on-demand", "spot"),
        (PREFERS, 1, "spot", "spot"),
        (PREFERS, 2, "spot", "on-demand"),
        (NEVER, 0, "", "on-demand"),
    ],
)
def test_spot_unless_it_was_lost_too_often(
    spot: job_pb2.Spot, losses: int, pool: str, expected: str
) -> None:
    asked = request(spec(spot=spot), spot_losses=losses, placement=Placement(pool=pool))
    assert choose(asked, [SPOT, ON_DEMAND], 2).name == expected


def test_who_prefers_spot_stays_there_while_there_is_nothing_else() -> None:
    assert choose(request(spec(spot=PREFERS), spot_losses=5), [SPOT], 2) is SPOT
    assert choose(request(), [ON_DEMAND], 2) is ON_DEMAND


def test_what_there_is_no_queue_for_is_invalid() -> None:
    with pytest.raises(Invalid, match="without spot capacity"):
        choose(request(spec(spot=NEVER)), [SPOT], 2)
    with pytest.raises(Invalid, match="8 GPUs"):
        choose(request(spec(resources=common_pb2.Resources(gpus=8))), [SPOT, A10G], 2)


def test_gpus_go_where_they_are_and_others_do_not() -> None:
    assert choose(request(spec(resources=common_pb2.Resources(gpus=2))), [SPOT, A10G], 2) is A10G
    assert choose(request(), [A10G, SPOT], 2) is SPOT


def test_a_queue_is_a_pool() -> None:
    pool = pool_of(A10G, 64.0, ["key"])
    assert pool.secrets == {"key"}
    assert pool.labels == (("gpu", "a10g"), ("spot", "true"))
    assert (pool.total.cpus, pool.total.gpus, len(pool.gpu_ids)) == (64.0, 4, 4)


# -- what is refused at submit -------------------------------------------------------------------


def fields(asked: job_pb2.JobSpec, options: BatchOptions = OPTIONS) -> list[str]:
    return [one.field for one in problems_of(asked, options, capabilities_of(options))]


def test_a_good_one_has_no_problems() -> None:
    assert fields(spec()) == []


def test_what_batch_does_not_take_is_told_with_its_field() -> None:
    unfenced = replace(OPTIONS, runner="none")
    imageless = spec()
    imageless.environment.Clear()
    assert fields(imageless) == ["environment.image"]
    assert fields(imageless, replace(OPTIONS, image="registry.test/base:1")) == []
    assert fields(spec(env={"AWS_BATCH_JOB_ID": "1"})) == ["env[AWS_BATCH_JOB_ID]"]
    reserved = [job_pb2.SecretRef(name="x", env="AWS_BATCH_X")]
    assert fields(spec(secrets=reserved)) == ["secrets[0].env"]
    assert fields(spec(spot=NEVER)) == ["spot"]
    assert fields(spec(timeout=duration_pb2.Duration(seconds=10)), unfenced) == ["timeout"]
    assert fields(spec(timeout=duration_pb2.Duration(seconds=10))) == []
    assert fields(spec(resources=common_pb2.Resources(gpus=1))) == ["resources.gpus"]


def test_an_environment_over_the_limit_is_told_with_both_sizes() -> None:
    unfenced = replace(OPTIONS, runner="none")
    large = spec(env={f"V{n}": "x" * 1_000 for n in range(40)})
    assert fields(large) == []
    (problem,) = problems_of(large, unfenced, capabilities_of(unfenced))
    assert problem.field == "env"
    assert str(PAYLOAD) in problem.message


# -- options and health --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "queues"),
        ({"queues": {}}, "queues"),
        ({"queues": {"spot": {}}}, "queues.spot"),
        ({"queues": {"spot": {"queue": "q", "colour": 1}}}, "queues.spot"),
        ({"queues": {"spot": {"queue": "q", "gpus": True}}}, "queues.spot"),
        ({"queues": {"spot": {"queue": "q", "gpus": -1}}}, "queues.spot"),
        ({"queues": {"spot": {"queue": "q"}}, "runner": "pod"}, "runner"),
        ({"queues": {"spot": {"queue": "q"}}, "secrets": ["key"]}, "secrets_prefix"),
        ({"queues": {"spot": {"queue": "q"}}, "region": "Frankfurt"}, "region"),
        ({"queues": {"spot": {"queue": "q"}}, "endpoint": "localhost"}, "endpoint"),
        ({"queues": {"spot": {"queue": "q"}}, "profile": "p", "credentials": "c"}, "credentials"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], field: str) -> None:
    assert [one.field for one in BatchOptions.check(options)] == [field]


def queue(**fields: str) -> dict[str, object]:
    told: dict[str, object] = {
        "jobQueueName": "hatoba-spot",
        "jobQueueArn": "arn:q",
        "state": "ENABLED",
        "status": "VALID",
        "computeEnvironmentOrder": [{"order": 1, "computeEnvironment": "arn:ce"}],
    }
    return {**told, **fields}


def environment(**fields: str) -> dict[str, object]:
    told: dict[str, object] = {
        "computeEnvironmentName": "hatoba-spot",
        "computeEnvironmentArn": "arn:ce",
        "state": "ENABLED",
        "status": "VALID",
        "computeResources": {"maxvCpus": 256},
    }
    return {**told, **fields}


def test_a_healthy_queue_brings_its_room() -> None:
    found = judged([SPOT], [queue()], [environment()])
    assert found.health.status is HealthStatus.HEALTHY
    assert found.vcpus == {"spot": 256.0}


@pytest.mark.parametrize(
    ("queues", "environments", "status", "said"),
    [
        ([], [], HealthStatus.UNHEALTHY, "does not exist"),
        ([queue(state="DISABLED")], [environment()], HealthStatus.DEGRADED, "takes no jobs"),
        (
            [queue()],
            [environment(status="INVALID", statusReason="CLIENT_ERROR - role cannot be assumed")],
            HealthStatus.DEGRADED,
            "role cannot be assumed",
        ),
        ([queue()], [environment(state="DISABLED")], HealthStatus.DEGRADED, "starts nothing"),
    ],
)
def test_what_is_wrong_is_told(
    queues: list[dict[str, object]],
    environments: list[dict[str, object]],
    status: HealthStatus,
    said: str,
) -> None:
    found = judged([SPOT], queues, environments)
    assert found.health.status is status
    assert said in found.health.message
