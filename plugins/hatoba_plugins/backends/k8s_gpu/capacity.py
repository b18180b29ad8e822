"""Nodes as pools, and the namespace's quota. Pure: from lists of objects to a snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.values import CapacitySnapshot, Pool, Share

Json = Mapping[str, Any]
ARCHITECTURE = "kubernetes.io/arch"
"""Label that every kubelet gives its node."""
ENDLESS = Share(cpus=2.0**40, memory=2**60, slots=1_000_000)
_SUFFIXES = {
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
}  # fmt: skip


class Quota(NamedTuple):
    """What all pods of the namespace may have together; None: no limit."""

    cpus: float | None = None
    memory: int | None = None
    gpus: int | None = None
    pods: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node that jobs may go to."""

    name: str
    total: Share
    labels: tuple[tuple[str, str], ...]
    accepting: bool
    ready: bool


def quantity(text: str | int | float) -> float:
    """`500m`, `16Gi` or `1e3` as a number. ValueError for what is none."""
    said = str(text).strip()
    for suffix, factor in _SUFFIXES.items():
        if said.endswith(suffix):
            return float(said[: -len(suffix)]) * factor
    return float(said)


def node_of(told: Json, options: K8sOptions) -> Node:
    """A node as it was told."""
    meta, spec, status = told["metadata"], told.get("spec") or {}, told.get("status") or {}
    has = status.get("allocatable") or {}
    ready = any(
        one["type"] == "Ready" and one.get("status") == "True"
        for one in status.get("conditions") or ()
    )
    return Node(
        name=meta["name"],
        total=Share(
            cpus=quantity(has.get("cpu", 0)),
            memory=int(quantity(has.get("memory", 0))),
            gpus=int(quantity(has.get(options.gpu_resource, 0))),
            slots=int(quantity(has.get("pods", 0))),
        ),
        labels=tuple(sorted((meta.get("labels") or {}).items())),
        accepting=ready and not spec.get("unschedulable") and not _tainted(spec, options),
        ready=ready,
    )


def _tainted(spec: Json, options: K8sOptions) -> bool:
    """Whether a taint keeps our pods away, which tolerate the GPUs' own."""
    tolerated = {options.gpu_resource, *options.tolerations}
    return any(
        one.get("effect") in ("NoSchedule", "NoExecute") and one.get("key") not in tolerated
        for one in spec.get("taints") or ()
    )


def quota_of(told: Iterable[Json], options: K8sOptions) -> Quota:
    """The strictest of all ResourceQuotas."""
    hard: dict[str, float] = {}
    for one in told:
        for name, amount in ((one.get("status") or {}).get("hard") or {}).items():
            hard[name] = min(hard.get(name, float("inf")), quantity(amount))

    def of(*keys: str) -> float | None:
        found = [hard[key] for key in keys if key in hard]
        return min(found) if found else None

    memory = of("requests.memory", "limits.memory", "memory")
    gpus, pods = of(f"requests.{options.gpu_resource}"), of("pods", "count/pods")
    return Quota(
        cpus=of("requests.cpu", "cpu"),
        memory=None if memory is None else int(memory),
        gpus=None if gpus is None else int(gpus),
        pods=None if pods is None else int(pods),
    )


def within_quota(share: Share, quota: Quota) -> Share:
    """At most what the quota lets a namespace have."""
    return share._replace(
        cpus=share.cpus if quota.cpus is None else min(share.cpus, quota.cpus),
        memory=share.memory if quota.memory is None else min(share.memory, quota.memory),
        gpus=share.gpus if quota.gpus is None else min(share.gpus, quota.gpus),
        slots=share.slots if quota.pods is None else min(share.slots, quota.pods),
    )


def wanted_nodes(nodes: Iterable[Node], options: K8sOptions) -> list[Node]:
    """Those that the instance's node_selector leaves."""
    wanted = {tuple(one.split("=", 1)) for one in options.node_selector}
    return [node for node in nodes if wanted <= set(node.labels)]


def snapshot(
    nodes: Sequence[Node],
    quota: Quota,
    options: K8sOptions,
    faulty: frozenset[str],
    now: float,
) -> CapacitySnapshot:
    """All nodes as pools; without any, or without the right to look, one that is endless.

    A node with a failed GPU keeps its cores and has no GPUs, while another has some.
    """
    spared = faulty if _others(nodes, faulty) else frozenset()
    pools = [_pool(node, quota, options, node.name in spared) for node in nodes]
    if not pools:
        total = within_quota(ENDLESS, quota)
        known, embedded = frozenset(options.secrets), bool(options.image)
        pools = [Pool("cluster", total, embedded=embedded, secrets=known)]
    return CapacitySnapshot(tuple(pools), options.elastic, now)


def _others(nodes: Iterable[Node], faulty: frozenset[str]) -> bool:
    return any(node.accepting and node.total.gpus and node.name not in faulty for node in nodes)


def _pool(node: Node, quota: Quota, options: K8sOptions, spared: bool) -> Pool:
    total = within_quota(node.total, quota)
    if spared:
        total = total._replace(gpus=0)
    return Pool(
        node.name,
        total,
        gpu_ids=tuple(str(at) for at in range(total.gpus)),
        labels=node.labels,
        accepting=node.accepting,
        embedded=bool(options.image),
        secrets=frozenset(options.secrets),
    )


def architectures(nodes: Iterable[Node], options: K8sOptions, gpus: int) -> list[str]:
    """Of nodes with so many GPUs, that of the most of them first; or the selected one."""
    selected = dict(one.split("=", 1) for one in options.node_selector)
    if ARCHITECTURE in selected:
        return [selected[ARCHITECTURE]]
    able = (dict(one.labels).get(ARCHITECTURE, "") for one in nodes if one.total.gpus >= gpus)
    return [name for name, _ in Counter(sorted(filter(None, able))).most_common()]


def shunned(nodes: Sequence[Node], faulty: frozenset[str]) -> list[str]:
    """Nodes that pods with GPUs are kept away from: none when no other has any."""
    return sorted(faulty) if _others(nodes, faulty) else []
