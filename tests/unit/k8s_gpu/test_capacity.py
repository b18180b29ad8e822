"""Nodes as pools: what they have, what a quota leaves of it, and which are to be spared."""

from __future__ import annotations

from typing import Any

import pytest

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.k8s_gpu.backend import capabilities_of
from hatoba_plugins.backends.k8s_gpu.capacity import (
    ARCHITECTURE,
    Node,
    Quota,
    architectures,
    node_of,
    quantity,
    quota_of,
    shunned,
    snapshot,
    wanted_nodes,
)
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.backends.k8s_gpu.validation import problems

OPTIONS = K8sOptions(image="busybox", secrets=["hf-token"])


def told(name: str, gpus: int = 0, **changes: Any) -> dict[str, Any]:
    has = {"cpu": "7910m", "memory": "31Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "metadata": {"name": name, "labels": changes.pop("labels", {})},
        "spec": changes,
        "status": {
            "allocatable": has,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def node(name: str, gpus: int = 0, **changes: Any) -> Node:
    return node_of(told(name, gpus, **changes), OPTIONS)


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("2", 2.0), ("16Gi", 2.0**34), ("1e3", 1e3), ("5k", 5e3), ("100M", 1e8)],
)
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


def test_a_node_is_a_pool() -> None:
    found = snapshot([node("a", 4)], Quota(), OPTIONS, frozenset(), 5.0)
    (pool,) = found.pools
    assert pool.total[:4] == (7.91, 31 * 2**30, 4, 110)
    assert pool.gpu_ids == ("0", "1", "2", "3")
    assert pool.secrets == {"hf-token"}
    assert not found.elastic


@pytest.mark.parametrize(
    "spec",
    [
        {"unschedulable": True},
        {"taints": [{"key": "team", "value": "other", "effect": "NoSchedule"}]},
    ],
)
def test_nodes_that_take_nothing(spec: dict[str, Any]) -> None:
    assert not node("a", **spec).accepting


def test_the_taint_of_gpus_keeps_nobody_away() -> None:
    assert node("a", 4, taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]).accepting


def test_a_node_whose_gpu_failed_is_spared_while_there_is_another() -> None:
    faulty = frozenset({"a"})
    both = [node("a", 4), node("b", 4)]
    pools = {one.name: one.total for one in snapshot(both, Quota(), OPTIONS, faulty, 0.0).pools}
    assert (pools["a"].gpus, pools["b"].gpus) == (0, 4)
    assert pools["a"].cpus == pools["b"].cpus
    assert shunned(both, faulty) == ["a"]
    alone = [node("a", 4), node("c")]
    pools = {one.name: one.total for one in snapshot(alone, Quota(), OPTIONS, faulty, 0.0).pools}
    assert pools["a"].gpus == 4
    assert shunned(alone, faulty) == []


def test_a_quota_bounds_every_pool() -> None:
    hard = [
        {"status": {"hard": {"requests.nvidia.com/gpu": "2", "requests.cpu": "4", "pods": "9"}}},
        {"status": {"hard": {"requests.cpu": "3500m"}}},
    ]
    quota = quota_of(hard, OPTIONS)
    (pool,) = snapshot([node("a", 4)], quota, OPTIONS, frozenset(), 0.0).pools
    assert (pool.total.gpus, pool.total.cpus, pool.total.slots) == (2, 3.5, 9)
    assert len(pool.gpu_ids) == 2


def test_without_the_right_to_look_there_is_one_endless_pool() -> None:
    (pool,) = snapshot([], Quota(pods=5), OPTIONS, frozenset(), 0.0).pools
    assert pool.total.slots == 5
    assert pool.total.cpus > 1e9


def test_only_nodes_that_are_selected_count() -> None:
    nodes = [node("a", labels={"pool": "train"}), node("b")]
    options = K8sOptions(node_selector=["pool=train"])
    assert [one.name for one in wanted_nodes(nodes, options)] == ["a"]


def test_architectures_are_those_of_nodes_that_have_the_gpus() -> None:
    amd, arm = ({ARCHITECTURE: name} for name in ("amd64", "arm64"))
    nodes = [node("a", labels=arm), node("b", labels=arm), node("c", 2, labels=amd), node("d")]
    assert architectures(nodes, OPTIONS, 0) == ["arm64", "amd64"]
    assert architectures(nodes, OPTIONS, 1) == ["amd64"]
    assert architectures(nodes, OPTIONS, 4) == []
    selected = K8sOptions(node_selector=[f"{ARCHITECTURE}=arm64"])
    assert architectures([], selected, 0) == ["arm64"]


def _problems(spec: job_pb2.JobSpec, options: K8sOptions, quota: Quota) -> dict[str, str]:
    nodes = [node("a", 4, labels={"nvidia.com/gpu.product": "T4"})]
    found = problems(spec, options, capabilities_of(options), nodes, quota)
    return {one.field: one.message for one in found}


def test_what_can_never_run_is_refused_with_figures() -> None:
    spec = job_pb2.JobSpec(command=["true"])
    spec.resources.gpus = 8
    assert "the largest has 4" in _problems(spec, OPTIONS, Quota())["resources.gpus"]
    assert _problems(spec, K8sOptions(image="x", queues=True), Quota()) == {}
    assert (
        "quota of 2"
        in _problems(spec, K8sOptions(image="x", queues=True), Quota(gpus=2))["resources.gpus"]
    )
    spec.resources.gpus = 1
    spec.backend_options.update({"k8s-gpu": {"gpu_product": "H100"}})
    assert "there are: T4" in _problems(spec, OPTIONS, Quota())["backend_options"]


def test_what_is_missing_is_named() -> None:
    spec = job_pb2.JobSpec(command=["true"])
    spec.secrets.add(name="other")
    found = _problems(spec, K8sOptions(), Quota())
    assert found.keys() == {"environment.image", "secrets"}
    assert "other" in found["secrets"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"secrets": ["UPPER"]}, "secrets"),
        ({"node_selector": ["pool"]}, "node_selector"),
        ({"run_as_user": -1}, "run_as_user"),
        ({"settles_after": 0.0}, "settles_after"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], field: str) -> None:
    assert [one.field for one in K8sOptions.check(options)] == [field]
