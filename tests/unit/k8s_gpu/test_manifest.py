"""Manifests: the rules that keep one attempt one execution, and nothing of a secret in them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu.manifest import COMMIT_BUDGET, Maker
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions, job_options
from hatoba_plugins.backends.k8s_gpu.replicas import replica_set
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import GatedBudget, NoWorkers
from hatoba_plugins.rolling import Creation
from hatoba_plugins.values import LaunchRequest, Placement, RevisionTarget, Target

WITH_RUNNER = K8sOptions(runner_image="registry.example/hatoba:1", secrets=["hf-token"])


def context() -> BackendContext:
    async def no_secret(name: str) -> str:
        raise KeyError(name)

    return BackendContext(
        FakeClock(),
        random.Random(1),
        "c1",
        1,
        "hatoba.example:443",
        GatedBudget(),
        no_secret,
        NoWorkers(),
        ca="PEM",
        tls=True,
    )


def request(spec: dict[str, Any] | None = None, **changes: Any) -> LaunchRequest:
    told: dict[str, Any] = {"name": "train", "command": ["train", "$(HOME)"]}
    told |= {"environment": {"image": "registry.example/train:1"}, **(spec or {})}
    made = LaunchRequest(
        name="h1-aa-0-1",
        fence=7,
        job="projects/default/jobs/train-1",
        job_uid="aa",
        index=0,
        number=1,
        task_count=1,
        spec=json_format.ParseDict(told, job_pb2.JobSpec()),
        placement=Placement("gpu-7"),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        credential="hr_secret",
    )
    return replace(made, **changes)


def made(options: K8sOptions, one: LaunchRequest) -> dict[str, Any]:
    return Maker(context(), options).single(one).job


def pod(job: dict[str, Any]) -> dict[str, Any]:
    return dict(job["spec"]["template"]["spec"])


def env(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_the_same_attempt_is_the_same_bytes() -> None:
    first, second = (made(WITH_RUNNER, request()) for _ in range(2))
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def test_where_it_may_go_is_not_what_it_was_made_from() -> None:
    """Nodes come and go between two launches of one attempt; it is the same attempt."""
    needs = {"resources": {"gpus": 1}}
    maker = Maker(context(), WITH_RUNNER)
    here = maker.single(request(needs))
    elsewhere = maker.single(request(needs, placement=Placement("gpu-9")), ["gpu-7"])
    other = maker.single(request({"resources": {"gpus": 2}}))
    assert here.spec == elsewhere.spec != other.spec
    terms = pod(elsewhere.job)["affinity"]["nodeAffinity"]
    (term,) = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"] == [
        {"key": "metadata.name", "operator": "NotIn", "values": ["gpu-7"]}
    ]


def test_one_attempt_is_one_pod() -> None:
    """Neither Kubernetes' retries nor its replacements: the core starts the next attempt."""
    spec = made(WITH_RUNNER, request())["spec"]
    assert (spec["backoffLimit"], spec["parallelism"], spec["completions"]) == (0, 1, 1)
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    disruption = [one for one in spec["podFailurePolicy"]["rules"] if "onPodConditions" in one]
    assert [one["action"] for one in disruption] == ["FailJob"]


def test_the_runner_stands_beside_the_command() -> None:
    spec = pod(made(WITH_RUNNER, request({"stop_grace": "30s"})))
    init, sidecar = spec["initContainers"]
    (main,) = spec["containers"]
    assert init["command"] == ["hatoba-entrypoint", "pod-init"]
    assert sidecar["command"] == ["hatoba-entrypoint", "pod-sidecar"]
    assert sidecar["restartPolicy"] == "Always"
    assert main["command"] == ["train", "$$(HOME)"], "the user's own, with nothing filled in"
    assert spec["terminationGracePeriodSeconds"] == 30 + COMMIT_BUDGET
    for container in (init, sidecar):
        assert env(container)["HATOBA_SERVER"] == "grpcs://hatoba.example:443"
        assert env(container)["HATOBA_CREDENTIAL"] == "hr_secret"
        assert env(container)["HATOBA_CA"] == "PEM"
    assert "HATOBA_CREDENTIAL" not in env(main)
    assert env(main)["HATOBA_DIR"] == "/hatoba/attempt"
    private = {"name": "hatoba-runner", "mountPath": "/hatoba-runner"}
    assert private in init["volumeMounts"]
    assert private not in main["volumeMounts"]
    assert spec["automountServiceAccountToken"] is False


def test_without_a_runner_the_cluster_keeps_the_timeout() -> None:
    spec = pod(made(K8sOptions(), request({"timeout": "90s", "stop_grace": "5s"})))
    assert "initContainers" not in spec
    assert spec["activeDeadlineSeconds"] == 90
    assert spec["terminationGracePeriodSeconds"] == 5
    asked = {"backend_options": {"k8s-gpu": {"runner": "none"}}}
    assert "initContainers" not in pod(made(WITH_RUNNER, request(asked)))


def test_secrets_come_by_reference() -> None:
    job = made(WITH_RUNNER, request({"secrets": [{"name": "hf-token"}]}))
    (main,) = pod(job)["containers"]
    assert env(main)["HF_TOKEN"] == {"secretKeyRef": {"name": "hf-token", "key": "value"}}
    assert "HF_TOKEN" not in env(pod(job)["initContainers"][0])


def test_gpus_are_limits_and_are_found() -> None:
    options = replace(WITH_RUNNER, gpu_runtime_class="nvidia")
    needs = {"resources": {"gpus": 4, "cpus": 1.5, "memory_bytes": str(2**34)}}
    wants = {"backend_options": {"k8s-gpu": {"gpu_product": "NVIDIA-H100-80GB-HBM3"}}}
    spec = pod(made(options, request(needs | wants)))
    resources = spec["containers"][0]["resources"]
    assert resources["limits"] == {"memory": str(2**34), "nvidia.com/gpu": "4"}
    assert resources["requests"] == resources["limits"] | {"cpu": "1500m"}
    assert spec["runtimeClassName"] == "nvidia"
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in spec["tolerations"]
    affinity = spec["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["NVIDIA-H100-80GB-HBM3"]
    (liked,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert liked["preference"]["matchFields"][0]["values"] == ["gpu-7"]
    memory = next(one for one in spec["volumes"] if one["name"] == "dshm")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": str(2**33)}


def test_a_node_that_is_away_ends_nothing_unless_the_job_says_so() -> None:
    def away(spec: dict[str, Any]) -> list[Any]:
        tolerated = pod(made(WITH_RUNNER, request(spec)))["tolerations"]
        return [one.get("tolerationSeconds") for one in tolerated]

    assert away({}) == [None, None]
    assert away({"disconnect": {"stop_after": "60s", "lost_after": "600s"}}) == [600, 600]


def test_placement_becomes_affinity() -> None:
    require = [
        {"key": "zone", "operator": "LABEL_OPERATOR_NOT_IN", "values": ["a", "b"]},
        {"key": "hatoba/host", "values": ["gpu-9"]},
    ]
    spec = pod(made(WITH_RUNNER, request({"placement": {"require": require, "apart": True}})))
    affinity = spec["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "zone", "operator": "NotIn", "values": ["a", "b"]}]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["gpu-9"]}]
    assert "podAntiAffinity" in spec["affinity"]


def test_kueue_decides_when_it_begins() -> None:
    job = made(replace(WITH_RUNNER, kueue_queue="team"), request())
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert job["spec"]["suspend"] is True
    assert "suspend" not in made(WITH_RUNNER, request())["spec"]


def gang() -> list[LaunchRequest]:
    return [
        request(
            name=f"h1-aa-{index}-1",
            index=index,
            gang_size=3,
            task_count=3,
            generation=2,
            credential=f"hr_secret_{index}",
        )
        for index in (2, 0, 1)
    ]


def test_a_gang_is_one_indexed_job() -> None:
    made_of = Maker(context(), WITH_RUNNER).gang(gang())
    spec, meta = made_of.job["spec"], made_of.job["metadata"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    members = json.loads(meta["annotations"]["hatoba.dev/members"])
    assert members == ["h1-aa-0-1", "h1-aa-1-1", "h1-aa-2-1"]
    assert made_of.name == "h1-aa-0-1"
    assert spec["suspend"], "until its Service and its Secret are there"
    assert "hatoba.dev/half-made" in meta["annotations"]
    assert "hr_secret" not in json.dumps(made_of.job), "claims stand in the Secret alone"
    assert made_of.secret is not None
    claims = json.loads(made_of.secret["stringData"]["members"])
    assert [one["credential"] for one in claims] == [f"hr_secret_{at}" for at in range(3)]
    assert made_of.service is not None
    assert made_of.service["spec"]["clusterIP"] == "None"
    template = spec["template"]["spec"]
    assert template["subdomain"] == made_of.service["metadata"]["name"]
    main = env(template["containers"][0])
    assert main["WORLD_SIZE"] == "3"
    assert main["RANK"] == "$(JOB_COMPLETION_INDEX)"
    assert main["MASTER_ADDR"] == "h1-aa-0-1-0.h1-aa-0-1"
    assert main["HATOBA_ATTEMPT"] == "h1-aa-$(JOB_COMPLETION_INDEX)-1"
    runner = env(template["initContainers"][0])
    assert runner["HATOBA_MEMBERS"] == "/hatoba-members/members"
    assert "HATOBA_ATTEMPT" not in runner


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("h10-a0b-{}-10", "h10-a0b-$(JOB_COMPLETION_INDEX)-10"),
        ("h1-aa-{0}-1{0}", "h1-aa-0-10"),
    ],
)
def test_each_member_has_its_own_name_where_one_text_can_say_it(pattern: str, told: str) -> None:
    members = [
        request(name=pattern.format(index), index=index, gang_size=3, generation=1)
        for index in range(3)
    ]
    (main,) = (
        Maker(context(), WITH_RUNNER).gang(members).job["spec"]["template"]["spec"]["containers"]
    )
    assert env(main)["HATOBA_ATTEMPT"] == told


@pytest.mark.parametrize(
    "asked",
    [{"no_such": 1}, {"shm_bytes": "1Gi"}, {"runner": "pod"}, {"gpu_product": 4}, "H100"],
)
def test_options_that_are_none_are_refused(asked: Any) -> None:
    spec = request({"backend_options": {"k8s-gpu": asked}}).spec
    with pytest.raises(ValueError, match=r"\w"):
        job_options(spec)


@pytest.mark.parametrize(
    ("architecture", "selected"),
    [("", {"zone": "a"}), ("arm64", {"zone": "a", "kubernetes.io/arch": "arm64"})],
)
def test_a_replica_stays_where_its_image_runs(architecture: str, selected: dict[str, str]) -> None:
    template = worker_pb2.ReplicaSpec(architecture=architecture)
    template.serving.environment.image = "registry.example/digits@sha256:1"
    revisions = (RevisionTarget(1, 1, 100, template),)
    target = Target("projects/default/deployments/d", "0" * 32, 1, revisions)
    options = replace(WITH_RUNNER, node_selector=["zone=a"])
    made = replica_set(context(), options, target, Creation("r-0-1-a", 1))
    pod = made["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == selected
    assert pod["containers"][0]["image"] == "registry.example/digits@sha256:1"
